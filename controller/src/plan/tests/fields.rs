//! The fields of a pool that MetalLB lacks, pools in error, reserved addresses, and who is woken.

use std::time::Duration;

use config::{AllocationOrder, Config, NodeName, Reserved, SharingScope};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A plan with its surroundings.
struct World {
    config: Config,
    all: BTreeMap<ServiceKey, Service>,
    plan: Plan,
    now: Instant,
}

impl World {
    fn new(config: Config, all: impl IntoIterator<Item = Service>) -> Self {
        let (all, now) = (services(all), Instant::now());
        Self { plan: plan(&config, &all, now), config, all, now }
    }

    fn apply(&mut self, service: Service) -> BTreeSet<ServiceKey> {
        let key = service.key.clone();
        self.all.insert(key.clone(), service);
        self.plan.revise(&self.all, &BTreeSet::from([key]), self.now)
    }

    fn delete(&mut self, name: &str) -> BTreeSet<ServiceKey> {
        self.all.remove(&key(name));
        self.plan.revise(&self.all, &BTreeSet::from([key(name)]), self.now)
    }

    fn wait(&mut self, time: Duration) -> BTreeSet<ServiceKey> {
        self.now += time;
        self.plan.handle_timeout(&self.all, self.now)
    }

    fn renew(&mut self, config: Config) {
        self.config = config;
        self.plan = self.plan.renew(&self.config, &self.all, self.now);
    }

    /// As another controller would, which knows nothing but the API.
    fn restart(&mut self) {
        for service in self.all.values_mut() {
            *service = service.clone().showing(self.plan.assignment(&service.key));
        }
        self.plan = plan(&self.config, &self.all, self.now);
    }

    fn decision(&self, name: &str) -> &Decision {
        self.plan.decision(&key(name)).unwrap()
    }

    fn held(&self, name: &str) -> Vec<IpAddr> {
        self.plan.assignment(&key(name)).map(|held| held.addresses().to_vec()).unwrap_or_default()
    }

    fn refusal(&self, name: &str) -> Option<&Refusal> {
        self.plan.pending().find(|(pending, _)| **pending == key(name)).map(|(_, refusal)| refusal)
    }
}

fn keys(names: &[&str]) -> BTreeSet<ServiceKey> {
    names.iter().map(|name| key(name)).collect()
}

fn reserving(pools: impl IntoIterator<Item = Pool>, nodes: &[&str], ranges: &[&str]) -> Config {
    let node = |(index, address): (usize, &&str)| {
        (ip(address), (NodeName::from(format!("n{index}")), "InternalIP".into()))
    };
    let reserved = Reserved {
        nodes: nodes.iter().enumerate().map(node).collect(),
        service_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
    };
    Config { reserved, ..config(pools) }
}

fn notes(decision: &Decision) -> Vec<String> {
    decision.notes.iter().map(Note::to_string).collect()
}

#[test]
fn reserved_addresses_are_skipped_and_named_when_they_are_what_is_left() {
    let config = reserving([v4_pool()], &["192.0.2.0", "192.0.2.2"], &["192.0.2.3/32"]);
    let mut world = World::new(config, [service("a").created(1), service("b").created(2)]);
    assert_eq!(world.held("a"), ips(&["192.0.2.1"]));
    let expected = "no available IPs: no IPAddressPool for this Service has an IPv4 address left; \
                    2 addresses of \"four\" belong to nodes (192.0.2.0: InternalIP of n0, \
                    192.0.2.2: InternalIP of n1) and 192.0.2.3/32 is for cluster IPs, to be had on \
                    request only";
    assert_eq!(world.refusal("b").unwrap().to_string(), expected);
    let (_, counters) = world.plan.allocator().counters().next().unwrap();
    assert_eq!((counters.assigned_v4, counters.available_v4), (1, 0));

    world.apply(service("b").created(2).requests(&["192.0.2.2"]));
    world.apply(service("c").requests(&["192.0.2.3"]));
    assert_eq!(world.held("b"), ips(&["192.0.2.2"]));
    assert_eq!(notes(world.decision("b")), ["address 192.0.2.2 is the InternalIP of node n1"]);
    assert_eq!(
        notes(world.decision("c")),
        ["address 192.0.2.3 is inside 192.0.2.3/32, the range of cluster IPs"]
    );
    // What is given back is still nobody's.
    world.delete("b");
    world.apply(service("d"));
    assert_eq!(world.held("d"), ips(&[]));
}

#[test]
fn a_pool_of_nothing_but_reserved_addresses_is_used() {
    let pools = || [pool("n", &["192.0.2.0-192.0.2.1", "2001:db8::1-2001:db8::2"])];
    let nodes = ["192.0.2.0", "192.0.2.1", "2001:db8::1"];
    let world = World::new(reserving(pools(), &nodes, &[]), [service("a").families(BOTH)]);
    assert_eq!(world.held("a"), ips(&["192.0.2.0", "2001:db8::2"]));
    assert_eq!(notes(world.decision("a")), ["address 192.0.2.0 is the InternalIP of node n0"]);
    let ranges = ["192.0.2.0/24"];
    let world = World::new(reserving(pools(), &[], &ranges), [service("a")]);
    assert_eq!(world.held("a"), ips(&["192.0.2.0"]));
    assert_eq!(world.decision("a").notes[0].reason(), "ServiceRange");
}

#[test]
fn a_held_address_that_a_node_gets_stays() {
    let mut world = World::new(config([v4_pool()]), [service("a")]);
    assert_eq!(world.decision("a").notes, []);
    world.renew(reserving([v4_pool()], &["192.0.2.0"], &[]));
    assert_eq!(world.held("a"), ips(&["192.0.2.0"]));
    assert_eq!(world.decision("a").notes[0].reason(), "NodeAddress");
    world.restart();
    assert_eq!(world.held("a"), ips(&["192.0.2.0"]));
}

fn cooling(pool: Pool) -> Pool {
    Pool { reuse_after: MINUTE, ..pool }
}

#[test]
fn a_freed_address_is_left_alone_for_a_while() {
    let config = config([cooling(pool("p", &["192.0.2.1-192.0.2.2"]))]);
    let mut world = World::new(config, [service("a"), service("b")]);
    world.delete("a");
    world.apply(service("c").created(2));
    world.apply(service("d").created(1));
    assert_eq!(world.held("c"), ips(&[]));
    let text = world.refusal("c").unwrap().to_string();
    assert!(text.ends_with("freed addresses are given out again after spec.reuseAfter"), "{text}");
    let end = world.now + MINUTE;
    assert_eq!(world.plan.poll_timeout(), Some(end));
    assert_eq!(world.wait(MINUTE / 2), keys(&[]));
    assert_eq!(world.wait(MINUTE / 2), keys(&["d"]), "the oldest that waits");
    assert_eq!(world.held("d"), ips(&["192.0.2.1"]));
    assert_eq!(world.plan.poll_timeout(), None);
}

#[test]
fn who_asks_for_it_gets_an_address_in_its_cool_down() {
    let config = config([cooling(pool("p", &["192.0.2.1"]))]);
    let mut world = World::new(config, [service("a"), service("b").created(1)]);
    world.delete("a");
    world.apply(service("c").requests(&["192.0.2.1"]));
    assert_eq!(world.held("c"), ips(&["192.0.2.1"]));
    assert_eq!(world.plan.poll_timeout(), None);
    world.wait(2 * MINUTE);
    assert_eq!(world.held("b"), ips(&[]));
}

#[test]
fn a_cool_down_survives_another_configuration() {
    let config = |time| config([Pool { reuse_after: time, ..pool("p", &["192.0.2.1"]) }]);
    let mut world = World::new(config(MINUTE), [service("a")]);
    world.delete("a");
    let end = world.now + MINUTE;
    world.now += MINUTE / 2;
    world.renew(config(10 * MINUTE));
    assert_eq!(world.plan.poll_timeout(), Some(end));
    world.renew(config(MINUTE / 4));
    assert_eq!(world.plan.poll_timeout(), Some(world.now + MINUTE / 4));
    world.apply(service("b"));
    world.renew(config(Duration::ZERO));
    assert_eq!(world.held("b"), ips(&["192.0.2.1"]));
}

#[test]
fn random_order_spreads_and_finds_the_last_one() {
    let random = Pool { order: AllocationOrder::Random, ..pool("p", &["10.0.0.0-10.0.255.255"]) };
    let held = |seed, count: usize| {
        let all = services((0..count).map(|index| service(&format!("s{index}"))));
        let plan = Plan::new(seed).renew(&config([random.clone()]), &all, Instant::now());
        plan.held().map(|(address, _)| address).collect::<BTreeSet<IpAddr>>()
    };
    let some = held(1, 1000);
    assert_eq!(some.len(), 1000);
    assert_eq!(some, held(1, 1000));
    assert!(some.intersection(&held(2, 1000)).count() < 100);
    // Of 1000 in 65,536 some 250 are to be expected in each quarter.
    for quarter in 0..4u8 {
        let bounds = ip(&format!("10.0.{}.0", quarter * 64))
            ..=ip(&format!("10.0.{}.255", quarter * 64 + 63));
        let count = some.range(bounds).count();
        assert!((180..320).contains(&count), "{count} in quarter {quarter}");
    }

    let few = Pool {
        order: AllocationOrder::Random,
        ..pool("p", &["10.0.0.0-10.0.0.99", "10.9.0.0", "2001:db8::-2001:db8::ffff"])
    };
    let all = services((0..102).map(|index| service(&format!("s{index:03}"))));
    let plan = plan(&config([few]), &all, Instant::now());
    assert_eq!(plan.held().count(), 101);
    assert_eq!(plan.pending().count(), 1);
}

#[test]
fn random_order_in_all_of_ipv6() {
    let all = "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let pool = Pool { order: AllocationOrder::Random, ..pool("p", &[all]) };
    let world = World::new(config([pool]), [service("a").families(V6), service("b").families(V6)]);
    assert_ne!(world.held("a"), world.held("b"));
}

#[test]
fn sharing_across_namespaces_can_be_forbidden() {
    let pool = Pool { sharing_scope: SharingScope::Namespace, ..v4_pool() };
    let shared = |name: &str, port| service(name).shares("key", port);
    let stranger = shared("stranger", 443).in_namespace("other").requests(&["192.0.2.0"]);
    let all = [shared("a", 80), shared("b", 443), stranger.clone()];
    let world = World::new(config([pool.clone()]), all.clone());
    assert_eq!((world.held("a"), world.held("b")), (ips(&["192.0.2.0"]), ips(&["192.0.2.0"])));
    let decision = world.plan.decision(&stranger.key).unwrap();
    let refusal =
        Conflict::OtherNamespace { address: ip("192.0.2.0"), pool: "four".into(), by: key("a") };
    assert_eq!(decision.outcome, pending(refusal.into()));

    // Of its own accord it takes another one, where another of its namespace joins it.
    let own = shared("stranger", 443).in_namespace("other").created(1);
    let friend = shared("friend", 80).in_namespace("other").created(2);
    let [a, b, _] = all;
    let world = World::new(config([pool]), [a, b, own.clone(), friend.clone()]);
    let held = |service: &Service| world.plan.assignment(&service.key).unwrap().clone();
    assert_eq!(held(&own), assignment("four", &["192.0.2.1"]));
    assert_eq!(held(&friend), held(&own));
}

fn limited(pool: Pool, limit: u32) -> Pool {
    Pool { max_addresses_per_namespace: Some(limit), ..pool }
}

#[test]
fn a_namespace_gets_no_more_than_its_share() {
    let mut world = World::new(
        config([limited(v4_pool(), 2)]),
        ["a", "b", "c"].map(|name| service(name).created(1)),
    );
    let refusal = Refusal::Quota { pool: "four".into(), limit: 2 };
    assert_eq!(world.refusal("c"), Some(&refusal));
    let other = service("other").in_namespace("other");
    world.apply(other.clone());
    assert_eq!(world.plan.assignment(&other.key), Some(&assignment("four", &["192.0.2.2"])));
    // By request neither, except in place of another.
    world.apply(service("d").requests(&["192.0.2.3"]));
    assert_eq!(world.refusal("d"), Some(&refusal));
    world.apply(service("a").created(1).requests(&["192.0.2.3"]));
    assert_eq!(world.held("a"), ips(&["192.0.2.3"]));
    world.delete("d");
    // Another namespace's address is of no use to those that wait.
    world.plan.decided = 0;
    world.all.remove(&other.key);
    world.plan.revise(&world.all, &BTreeSet::from([other.key]), world.now);
    assert_eq!(world.plan.decided, 0);
    assert_eq!(world.delete("b"), keys(&["b", "c"]));
}

#[test]
fn a_shared_address_counts_once_for_a_namespace() {
    let all = [
        service("a").created(1).shares("key", 80),
        service("b").created(2).shares("key", 443),
        service("c").created(3).shares("key", 80),
    ];
    let world = World::new(config([limited(v4_pool(), 1)]), all);
    assert_eq!((world.held("a"), world.held("b")), (ips(&["192.0.2.0"]), ips(&["192.0.2.0"])));
    assert_eq!(world.refusal("c"), Some(&Refusal::Quota { pool: "four".into(), limit: 1 }));
}

#[test]
fn a_lower_limit_takes_nothing_away() {
    let mut world = World::new(config([v4_pool()]), ["a", "b"].map(service));
    world.renew(config([limited(v4_pool(), 1)]));
    assert_eq!((world.held("a"), world.held("b")), (ips(&["192.0.2.0"]), ips(&["192.0.2.1"])));
    world.restart();
    assert_eq!(world.plan.pending().count(), 0);
}

#[test]
fn a_pool_in_error_keeps_what_it_gave_out() {
    let left_out = |pools: &[Pool]| Config {
        left_out_pools: BTreeSet::from(["four".into()]),
        ..config(pools.to_vec())
    };
    let holder = service("a").shows(&["192.0.2.1"], "four");
    let in_error = Refusal::PoolInError { pool: "four".into() };
    let expected = Outcome::Pending {
        refusal: in_error.clone(),
        kept: Some(Box::new(assignment("four", &["192.0.2.1"]))),
    };
    let mut world = World::new(left_out(&[dual_pool()]), [holder.clone(), service("new")]);
    assert_eq!(world.decision("a").outcome, expected);
    assert_eq!(world.held("new"), ips(&["198.51.100.0"]));
    world.apply(service("b").requests(&["192.0.2.1"]));
    assert_eq!(world.refusal("b"), Some(&Refusal::InNoPool { address: ip("192.0.2.1") }));
    world.apply(service("b").requests_pool("four"));
    assert_eq!(world.refusal("b"), Some(&in_error));
    world.restart();
    assert_eq!(world.decision("a").outcome, expected);

    // Until the pool is back, or another one is asked for.
    world.apply(holder.clone().requests_pool("dual"));
    assert_eq!(world.held("a"), ips(&["198.51.100.1"]));
    let mut world = World::new(left_out(&[]), [holder]);
    assert_eq!(world.decision("a").outcome, expected);
    world.renew(config([v4_pool()]));
    assert_eq!(world.decision("a").outcome, assigned("four", &["192.0.2.1"]));
}

#[test]
fn of_two_that_show_an_address_in_error_the_older_keeps_it() {
    let shows = |name: &str| service(name).shows(&["192.0.2.1"], "gone");
    let config = Config { left_out_pools: BTreeSet::from(["gone".into()]), ..config([v4_pool()]) };
    let world = World::new(config, [shows("a").created(2), shows("b").created(1)]);
    assert_eq!(world.held("b"), ips(&["192.0.2.1"]));
    assert_eq!(world.held("a"), ips(&["192.0.2.0"]));
}

#[test]
fn of_two_holders_that_cannot_share_the_older_keeps_the_address() {
    let shows = |name: &str, sharing, port| {
        service(name).shares(sharing, port).shows(&["192.0.2.1"], "four")
    };
    let all = [
        shows("a", "key", 80).created(3),
        shows("b", "key", 80).created(2),
        shows("c", "key", 443).created(4),
        shows("d", "other", 53).created(5),
    ];
    let world = World::new(config([v4_pool()]), all);
    for (name, held) in [("b", "192.0.2.1"), ("c", "192.0.2.1"), ("a", "192.0.2.0")] {
        assert_eq!(world.held(name), ips(&[held]), "{name}");
    }
    assert_eq!(world.held("d"), ips(&["192.0.2.2"]));
    let lost = |name| world.decision(name).lost.as_ref().map(|lost| lost.reason());
    assert_eq!(lost("a"), Some("SharedPortInUse"));
    assert_eq!(lost("d"), Some("SharedUnderOtherKey"));
}

#[test]
fn prefer_dual_stack_takes_the_other_family_when_there_is_one() {
    let first = service("a").created(1).families(V6);
    let pools = [v4_pool(), pool("six", &["2001:db8::1"])];
    let mut world = World::new(config(pools), [first, service("b").created(2).families(PREFER)]);
    assert_eq!(world.held("b"), ips(&["192.0.2.0"]));
    assert_eq!(world.delete("a"), keys(&["a", "b"]));
    assert_eq!(world.held("b"), ips(&["192.0.2.0", "2001:db8::1"]));
    assert_eq!(world.plan.assignment(&key("b")).unwrap().pool_annotation(), "four,six");
    world.restart();
    assert_eq!(world.held("b"), ips(&["192.0.2.0", "2001:db8::1"]));
}

#[test]
fn a_change_decides_about_those_that_it_helps_and_nobody_else() {
    let pools = [
        pool("a", &["192.0.2.1-192.0.2.2"]),
        Pool { auto_assign: false, ..pool("b", &["198.51.100.1"]) },
        pool("c", &["2001:db8::1"]),
    ];
    let mut all = vec![
        service("a1").created(1),
        service("a2").created(1),
        service("b1").created(1).requests_pool("b"),
        service("c1").created(1).families(V6),
    ];
    for index in 0..50 {
        let waits = |kind: &str| service(&format!("{kind}-waits-{index:02}")).created(2);
        all.push(waits("any"));
        all.push(waits("b").requests_pool("b"));
        all.push(waits("v6").families(V6));
        all.push(waits("both").families(BOTH));
        all.push(waits("address").requests(&["192.0.2.2"]));
        all.push(waits("none").requests(&["203.0.113.1"]));
    }
    let mut world = World::new(config(pools), all);
    let decided = |world: &mut World, name: &str| {
        world.plan.decided = 0;
        let changed = world.delete(name);
        (changed, world.plan.decided)
    };
    // The first of those that take any address of the family.
    assert_eq!(decided(&mut world, "a1"), (keys(&["a1", "any-waits-00"]), 1));
    assert_eq!(decided(&mut world, "b1"), (keys(&["b1", "b-waits-00"]), 1));
    // Those that lack IPv4 as well wait for that first.
    assert_eq!(decided(&mut world, "c1"), (keys(&["c1", "v6-waits-00"]), 1));
    assert_eq!(decided(&mut world, "none-waits-00"), (keys(&["none-waits-00"]), 0));
    // The older one that asks for this very address, whose name comes first; the others that ask
    // for it hear who has it now.
    let (changed, count) = decided(&mut world, "a2");
    assert_eq!(world.held("address-waits-00"), ips(&["192.0.2.2"]));
    assert_eq!((changed.len(), count), (51, 50));
}

#[test]
fn thousands_of_pools_and_whole_address_spaces_are_no_burden() {
    let many = (0..10_000u32).map(|index| {
        let address = std::net::Ipv4Addr::from(0x0A00_0000 + index).to_string();
        let namespace = format!("ns-{index}");
        pinned(&format!("p{index:05}"), &[&address], 1, Some(&namespace))
    });
    let own = service("a").in_namespace("ns-9999");
    let both = service("b").families(BOTH);
    let spaces = [
        pool("v4", &["16.0.0.0-255.255.255.255"]),
        pool("v6", &["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
    ];
    let world = World::new(config(many.chain(spaces)), [own.clone(), both]);
    assert_eq!(world.plan.assignment(&own.key), Some(&assignment("p09999", &["10.0.39.15"])));
    assert_eq!(world.held("b"), ips(&["16.0.0.0", "::"]));
}

#[test]
fn two_families_under_a_limit_of_one_each_come_from_two_pools() {
    let pin = pinned("pin", &["203.0.113.1", "2001:db8:2::1"], 1, None);
    let pools = [limited(pin, 1), limited(pool("six", &["2001:db8::1"]), 1)];
    let holder = service("holder").families(V6).created(1).in_namespace("other");
    let holder = holder.requests(&["2001:db8::1"]);
    let mut world =
        World::new(config(pools), [holder.clone(), service("a").families(BOTH).created(2)]);
    assert_eq!(world.held("a"), ips(&[]));
    world.all.remove(&holder.key);
    world.plan.revise(&world.all, &BTreeSet::from([holder.key]), world.now);
    assert_eq!(world.held("a"), ips(&["203.0.113.1", "2001:db8::1"]));
}

/// There is one of each for every Service.
#[test]
fn a_decision_takes_little_memory() {
    let sizes = (size_of::<Decision>(), size_of::<Refusal>());
    assert!(sizes.0 <= 128 && sizes.1 <= 80, "{sizes:?}");
}
