use proptest::prelude::*;

use super::*;
use crate::fixture::*;

const BOTH: Families = Families::Both;
const PREFER: Families = Families::PreferBoth { first: Family::V4 };
const PREFER_V6: Families = Families::PreferBoth { first: Family::V6 };

fn assigned(pool: &str, addresses: &[&str]) -> Outcome {
    Outcome::Assigned(assignment(pool, addresses))
}

fn pending(refusal: Refusal) -> Outcome {
    Outcome::Pending { refusal, kept: None }
}

/// The outcome for the first Service given.
fn outcome(pools: impl IntoIterator<Item = Pool>, all: &[Service]) -> Outcome {
    outcomes(pools, all).remove(0)
}

/// The outcomes, in the order of the Services given.
fn outcomes(pools: impl IntoIterator<Item = Pool>, all: &[Service]) -> Vec<Outcome> {
    let plan = plan(&config(pools), &services(all.to_vec()));
    all.iter()
        .map(|s| plan.decision(&s.key).map_or(Outcome::NotOurs, |d| d.outcome.clone()))
        .collect()
}

use config::Pool;

fn v4_pool() -> Pool {
    pool("four", &["192.0.2.0-192.0.2.3"])
}

fn v6_pool() -> Pool {
    pool("six", &["2001:db8::-2001:db8::3"])
}

fn dual_pool() -> Pool {
    pool("dual", &["198.51.100.0-198.51.100.3", "2001:db8:1::-2001:db8:1::3"])
}

#[test]
fn automatic_assignment() {
    struct Case {
        what: &'static str,
        pools: Vec<Pool>,
        service: Service,
        expected: Outcome,
    }
    let case = |what, pools: &[Pool], service, expected| Case {
        what,
        pools: pools.to_vec(),
        service,
        expected,
    };
    let hidden = |pool: Pool| Pool { auto_assign: false, ..pool };
    let cases = [
        case("lowest address", &[v4_pool()], service("a"), assigned("four", &["192.0.2.0"])),
        case(
            "ranges in the order they are written",
            &[pool("p", &["192.0.2.9", "192.0.2.1"])],
            service("a"),
            assigned("p", &["192.0.2.9"]),
        ),
        case(
            "avoidBuggyIPs leaves out .0 and .255",
            &[Pool { avoid_buggy_ips: true, ..pool("p", &["192.0.2.255-192.0.3.9"]) }],
            service("a"),
            assigned("p", &["192.0.3.1"]),
        ),
        case(
            "pools by name",
            &[pool("b", &["192.0.2.1"]), pool("a", &["192.0.2.2"])],
            service("a"),
            assigned("a", &["192.0.2.2"]),
        ),
        case(
            "a family that the first pool lacks",
            &[v4_pool(), v6_pool()],
            service("a").families(V6),
            assigned("six", &["2001:db8::"]),
        ),
        case(
            "autoAssign: false",
            &[hidden(v4_pool())],
            service("a"),
            pending(Refusal::NoPoolServes),
        ),
        case("no pool", &[], service("a"), pending(Refusal::NoPools)),
        case(
            "no address of the family",
            &[v4_pool()],
            service("a").families(V6),
            pending(Refusal::Exhausted { families: V6 }),
        ),
        case(
            "pinned before general",
            &[v4_pool(), pinned("pin", &["192.0.2.9"], 0, Some("default"))],
            service("a"),
            assigned("pin", &["192.0.2.9"]),
        ),
        case(
            "pinned by priority, 0 last, then by name",
            &[
                pinned("a", &["192.0.2.1"], 0, None),
                pinned("b", &["192.0.2.2"], 20, None),
                pinned("d", &["192.0.2.3"], 10, None),
                pinned("c", &["192.0.2.4"], 10, None),
            ],
            service("a"),
            assigned("c", &["192.0.2.4"]),
        ),
        case(
            "pinned for another namespace",
            &[pinned("pin", &["192.0.2.9"], 1, Some("other"))],
            service("a"),
            pending(Refusal::NoPoolServes),
        ),
        case(
            "dual stack from the pool that has both",
            &[v4_pool(), v6_pool(), pool("z", &["192.0.2.9", "2001:db8::9"])],
            service("a").families(BOTH),
            assigned("z", &["192.0.2.9", "2001:db8::9"]),
        ),
        case(
            "dual stack needs one pool",
            &[v4_pool(), v6_pool()],
            service("a").families(BOTH),
            pending(Refusal::Exhausted { families: BOTH }),
        ),
        case(
            "PreferDualStack takes both where possible",
            &[v4_pool(), dual_pool()],
            service("a").families(PREFER),
            assigned("dual", &["198.51.100.0", "2001:db8:1::"]),
        ),
        case(
            "PreferDualStack falls back to the primary family",
            &[v4_pool(), v6_pool()],
            service("a").families(PREFER_V6),
            assigned("six", &["2001:db8::"]),
        ),
        case(
            "PreferDualStack falls back to the secondary family",
            &[v4_pool()],
            service("a").families(PREFER_V6),
            assigned("four", &["192.0.2.0"]),
        ),
        case(
            "no cluster IP",
            &[v4_pool()],
            Service { families: Err(FamilyError::NoClusterIp), ..service("a") },
            pending(Refusal::Families(FamilyError::NoClusterIp)),
        ),
        case(
            "nothing new for a Service that is being deleted",
            &[v4_pool()],
            Service { deleting: true, ..service("a") },
            pending(Refusal::BeingDeleted),
        ),
        case(
            "not a LoadBalancer",
            &[v4_pool()],
            Service { role: Role::NotLoadBalancer, ..service("a") }.shows(&["192.0.2.0"], "four"),
            Outcome::NotOurs,
        ),
        case(
            "another loadBalancerClass",
            &[v4_pool()],
            Service { role: Role::OtherClass, ..service("a") },
            Outcome::NotOurs,
        ),
    ];
    for Case { what, pools, service, expected } in cases {
        assert_eq!(outcome(pools, &[service]), expected, "{what}");
    }
}

#[test]
fn requests() {
    let hidden = Pool { auto_assign: false, ..v4_pool() };
    let pools =
        || [hidden.clone(), v6_pool(), dual_pool(), pinned("pin", &["10.0.0.1"], 1, Some("x"))];
    let cases = [
        (
            "an address, also of a pool without autoAssign",
            service("a").requests(&["192.0.2.2"]),
            assigned("four", &["192.0.2.2"]),
        ),
        (
            "a pool, also without autoAssign",
            service("a").requests_pool("four"),
            assigned("four", &["192.0.2.0"]),
        ),
        (
            "both addresses of one pool",
            service("a").families(BOTH).requests(&["198.51.100.1", "2001:db8:1::2"]),
            assigned("dual", &["198.51.100.1", "2001:db8:1::2"]),
        ),
        (
            "one address is enough for PreferDualStack",
            service("a").families(PREFER).requests(&["198.51.100.1"]),
            assigned("dual", &["198.51.100.1"]),
        ),
        (
            "PreferDualStack in a pool of one family",
            service("a").families(PREFER).requests_pool("four"),
            assigned("four", &["192.0.2.0"]),
        ),
        (
            "addresses of two pools",
            service("a").families(BOTH).requests(&["198.51.100.1", "2001:db8::1"]),
            pending(Refusal::TwoPools { address: ip("2001:db8::1"), pool: "dual".into() }),
        ),
        (
            "an address of no pool",
            service("a").requests(&["203.0.113.1"]),
            pending(Refusal::InNoPool { address: ip("203.0.113.1") }),
        ),
        (
            "the wrong family",
            service("a").requests(&["2001:db8::1"]),
            pending(Refusal::RequestedFamilies { requested: ips(&["2001:db8::1"]), families: V4 }),
        ),
        (
            "one address for dual stack",
            service("a").families(BOTH).requests(&["192.0.2.1"]),
            pending(Refusal::RequestedFamilies { requested: ips(&["192.0.2.1"]), families: BOTH }),
        ),
        (
            "an address outside the requested pool",
            service("a").requests(&["192.0.2.1"]).requests_pool("dual"),
            pending(Refusal::InOtherPool {
                address: ip("192.0.2.1"),
                pool: "four".into(),
                requested: "dual".to_owned(),
            }),
        ),
        (
            "an unknown pool",
            service("a").requests_pool("nowhere"),
            pending(Refusal::UnknownPool { pool: "nowhere".to_owned() }),
        ),
        (
            "a pool for another namespace",
            service("a").requests_pool("pin"),
            pending(Refusal::NotAdmitted { pool: "pin".into() }),
        ),
        (
            "an address for another namespace",
            service("a").requests(&["10.0.0.1"]),
            pending(Refusal::NotAdmitted { pool: "pin".into() }),
        ),
        (
            "a pool without the family",
            service("a").requests_pool("six"),
            pending(Refusal::PoolExhausted { pool: "six".into(), families: V4 }),
        ),
        (
            "an unreadable request",
            Service { requested: Err(RequestError::Twice), ..service("a") },
            pending(Refusal::Request(RequestError::Twice)),
        ),
    ];
    for (what, service, expected) in cases {
        assert_eq!(outcome(pools(), &[service]), expected, "{what}");
    }
}

#[test]
fn an_address_left_out_by_avoid_buggy_ips_is_not_owned() {
    let pool = Pool { avoid_buggy_ips: true, ..v4_pool() };
    let refusal = Refusal::InNoPool { address: ip("192.0.2.0") };
    assert_eq!(outcome([pool], &[service("a").requests(&["192.0.2.0"])]), pending(refusal));
}

#[test]
fn sharing() {
    let first = || service("a").created(1).shares("key", 80);
    let local = |service: Service, backend: &str| {
        let sharing = Sharing { backend: backend.to_owned(), ..service.sharing.clone() };
        Service { sharing, ..service }
    };
    let address = ip("192.0.2.0");
    let taken = |conflict| pending(Refusal::Conflict(conflict));
    let second = |service: Service| service.created(2).requests(&["192.0.2.0"]);
    let shared = assigned("four", &["192.0.2.0"]);
    let by = key("a");
    let cases = [
        (first(), second(service("b").shares("key", 443)), shared.clone()),
        (
            first(),
            second(service("b").shares("key", 80)),
            taken(Conflict::Port { address, port: tcp(80), by: by.clone() }),
        ),
        (
            first(),
            second(service("b").shares("other", 443)),
            taken(Conflict::OtherKey { address, by: by.clone() }),
        ),
        (
            first(),
            second(service("b").shares("", 443)),
            taken(Conflict::Taken { address, by: by.clone() }),
        ),
        (
            service("a").created(1),
            second(service("b").shares("key", 443)),
            taken(Conflict::Taken { address, by: by.clone() }),
        ),
        (
            local(first(), "app=a"),
            second(service("b").shares("key", 443)),
            taken(Conflict::OtherBackends { address, by }),
        ),
        (local(first(), "app=a"), second(local(service("b").shares("key", 443), "app=a")), shared),
    ];
    for (first, second, expected) in cases {
        assert_eq!(outcome([v4_pool()], &[second, first]), expected);
    }
}

use crate::service::Sharing;

#[test]
fn services_with_one_key_pack_onto_one_address() {
    let all = [
        service("a").created(1).shares("key", 80),
        service("b").created(2).shares("key", 443),
        service("c").created(3).shares("key", 80),
        service("d").created(4).shares("key", 443),
        service("e").created(5),
    ];
    let expected = ["192.0.2.0", "192.0.2.0", "192.0.2.1", "192.0.2.1", "192.0.2.2"]
        .map(|address| assigned("four", &[address]));
    assert_eq!(outcomes([v4_pool()], &all), expected);
}

#[test]
fn held_addresses_stay() {
    let cases = [
        ("as it is", service("a").shows(&["192.0.2.3"], "four"), &["192.0.2.3"][..]),
        (
            "without autoAssign it would not be given now",
            service("a").shows(&["203.0.113.1"], "hidden"),
            &["203.0.113.1"],
        ),
        ("the better pool came later", service("a").shows(&["192.0.2.3"], ""), &["192.0.2.3"]),
        (
            "one address of PreferDualStack gets its companion",
            service("a").families(PREFER).shows(&["198.51.100.3"], "dual"),
            &["198.51.100.3", "2001:db8:1::"],
        ),
        (
            "PreferDualStack stays where it cannot be completed",
            service("a").families(PREFER).shows(&["192.0.2.3"], "four"),
            &["192.0.2.3"],
        ),
        (
            "dual stack that became single stack keeps the family that fits",
            service("a").shows(&["198.51.100.3", "2001:db8:1::1"], "dual"),
            &["198.51.100.3"],
        ),
        (
            "single stack that became dual stack moves to a pool that has both",
            service("a").families(BOTH).shows(&["192.0.2.3"], "four"),
            &["198.51.100.0", "2001:db8:1::"],
        ),
        (
            "of two addresses of one family the first stays",
            service("a").shows(&["192.0.2.2", "192.0.2.1"], "four"),
            &["192.0.2.2"],
        ),
        (
            "a new request moves it",
            service("a").requests(&["192.0.2.1"]).shows(&["192.0.2.3"], "four"),
            &["192.0.2.1"],
        ),
        (
            "another requested pool moves it",
            service("a").requests_pool("dual").shows(&["192.0.2.3"], "four"),
            &["198.51.100.0"],
        ),
        (
            "an address that left its pool is replaced",
            service("a").shows(&["192.0.2.9"], "four"),
            &["198.51.100.0"],
        ),
        (
            "a Service that is being deleted keeps what it has",
            Service { deleting: true, ..service("a") }.shows(&["192.0.2.3"], "four"),
            &["192.0.2.3"],
        ),
    ];
    let hidden = Pool { auto_assign: false, ..pool("hidden", &["203.0.113.1"]) };
    for (what, service, expected) in cases {
        let pools = [v4_pool(), dual_pool(), v6_pool(), hidden.clone()];
        let outcome = outcome(pools, &[service]);
        let Outcome::Assigned(held) = outcome else { panic!("{what}: {outcome:?}") };
        assert_eq!(held.addresses, ips(expected), "{what}");
    }
}

#[test]
fn a_request_that_cannot_be_met_leaves_the_service_what_it_holds() {
    let holder = service("holder").shows(&["192.0.2.1"], "four");
    let cases = [
        service("a").requests(&["192.0.2.1"]),
        service("a").requests(&["203.0.113.1"]),
        service("a").requests_pool("nowhere"),
        service("a").requests_pool("six"),
        service("a").families(BOTH),
        Service { requested: Err(RequestError::Twice), ..service("a") },
    ];
    for case in cases {
        let case = case.shows(&["192.0.2.3"], "four");
        match outcome([v4_pool(), v6_pool()], &[case.clone(), holder.clone()]) {
            Outcome::Pending { kept, .. } => {
                assert_eq!(kept, Some(assignment("four", &["192.0.2.3"])));
            }
            other => panic!("{case:?}: {other:?}"),
        }
    }
}

#[test]
fn what_the_configuration_no_longer_allows_is_taken_back_with_its_reason() {
    let lost = |pools: &[Pool], service: Service| {
        let plan = plan(&config(pools.to_vec()), &services([service.clone()]));
        let decision = plan.decision(&service.key).unwrap();
        assert_eq!(decision.outcome.assignment(), None);
        decision.lost.clone()
    };
    let full = service("a").families(V6);
    assert_eq!(
        lost(&[v6_pool()], service("a").shows(&["192.0.2.0"], "four")),
        Some(Refusal::InNoPool { address: ip("192.0.2.0") })
    );
    assert_eq!(
        lost(
            &[pinned("four", &["192.0.2.0"], 0, Some("x"))],
            service("a").shows(&["192.0.2.0"], "")
        ),
        Some(Refusal::NotAdmitted { pool: "four".into() })
    );
    assert_eq!(
        lost(&[v4_pool()], full.shows(&["192.0.2.0"], "four")),
        Some(Refusal::HeldFamily { address: ip("192.0.2.0"), families: V6 })
    );
}

#[test]
fn of_two_holders_the_older_keeps_the_address() {
    let all = [
        service("a").created(2).shows(&["192.0.2.2"], "four"),
        service("b").created(1).shows(&["192.0.2.2"], "four"),
    ];
    let plan = plan(&config([v4_pool()]), &services(all));
    let address = |name| plan.decision(&key(name)).unwrap().outcome.assignment().cloned();
    assert_eq!(address("b"), Some(assignment("four", &["192.0.2.2"])));
    assert_eq!(address("a"), Some(assignment("four", &["192.0.2.0"])));
    assert!(matches!(
        plan.decision(&key("a")).unwrap().lost,
        Some(Refusal::Conflict(Conflict::Taken { .. }))
    ));
}

#[test]
fn a_holder_is_served_before_an_older_service_without() {
    let pool = pool("one", &["192.0.2.1"]);
    let all = [service("old").created(1), service("new").created(2).shows(&["192.0.2.1"], "one")];
    assert_eq!(
        outcomes([pool], &all),
        [pending(Refusal::Exhausted { families: V4 }), assigned("one", &["192.0.2.1"])]
    );
}

#[test]
fn what_a_service_leaves_in_the_same_plan_goes_to_one_that_waits() {
    let pools = [pool("one", &["192.0.2.1"]), pool("two", &["192.0.2.2"])];
    let all = [
        service("waits").created(1).requests_pool("one"),
        service("moves").created(2).requests_pool("two").shows(&["192.0.2.1"], "one"),
    ];
    assert_eq!(
        outcomes(pools, &all),
        [assigned("one", &["192.0.2.1"]), assigned("two", &["192.0.2.2"])]
    );
}

#[test]
fn a_freed_address_goes_to_the_oldest_that_waits() {
    let config = config([pool("one", &["192.0.2.1"])]);
    let mut all =
        services([service("a").created(1), service("b").created(3), service("c").created(2)]);
    let mut plan = plan(&config, &all);
    all.remove(&key("a"));
    let changed = plan.revise(&all, &BTreeSet::from([key("a")]));
    assert_eq!(changed, BTreeSet::from([key("a"), key("c")]));
    let outcome = |name| plan.decision(&key(name)).map(|decision| decision.outcome.clone());
    assert_eq!(outcome("c"), Some(assigned("one", &["192.0.2.1"])));
    assert_eq!(outcome("b"), Some(pending(Refusal::Exhausted { families: V4 })));
    assert_eq!(outcome("a"), None);
}

#[test]
fn who_waits_may_share_what_another_got() {
    let pools = [
        pool("full", &["192.0.2.1"]),
        Pool { auto_assign: false, ..pool("hidden", &["192.0.2.2"]) },
    ];
    let mut all = services([
        service("holder").created(1),
        service("waits").created(2).shares("key", 80).requests(&["192.0.2.1"]),
    ]);
    let mut plan = plan(&config(pools), &all);
    all.insert(key("holder"), service("holder").created(1).shares("key", 443));
    let changed = plan.revise(&all, &BTreeSet::from([key("holder")]));
    assert_eq!(changed, BTreeSet::from([key("waits")]));
}

#[test]
fn refusals_are_said_in_the_users_words() {
    let cases = [
        (
            Refusal::RequestedFamilies {
                requested: ips(&["192.0.2.1", "2001:db8::1"]),
                families: V6,
            },
            "the requested addresses 192.0.2.1, 2001:db8::1 do not fit: the Service is IPv6",
        ),
        (
            Refusal::Exhausted { families: BOTH },
            "no available IPs: no IPAddressPool for this Service has a dual stack address left",
        ),
        (
            Refusal::Conflict(Conflict::Port {
                address: ip("192.0.2.1"),
                port: tcp(80),
                by: key("a"),
            }),
            "port TCP/80 of the shared address 192.0.2.1 is in use by Service default/a",
        ),
    ];
    for (refusal, text) in cases {
        assert_eq!(refusal.to_string(), text);
    }
}

fn any_service() -> impl Strategy<Value = Service> {
    let families = prop_oneof![Just(V4), Just(V6), Just(BOTH), Just(PREFER), Just(PREFER_V6)];
    let requested = prop_oneof![
        6 => Just(vec![]),
        1 => Just(ips(&["192.0.2.1"])),
        1 => Just(ips(&["192.0.2.2"])),
        1 => Just(ips(&["198.51.100.1", "2001:db8:1::1"])),
    ];
    let requested_pool =
        prop_oneof![6 => Just(None), 1 => Just(Some("four")), 1 => Just(Some("dual"))];
    let sharing = prop_oneof![2 => Just(""), 1 => Just("k"), 1 => Just("l")];
    let port = prop_oneof![Just(80u16), Just(443)];
    (0u8..8, families, requested, requested_pool, sharing, port).prop_map(
        |(index, families, requested, requested_pool, sharing, port)| {
            let service = service(&format!("s{index}"))
                .created(i64::from(index) % 5)
                .families(families)
                .shares(sharing, port);
            Service {
                requested: Ok(requested),
                requested_pool: requested_pool.map(str::to_owned),
                ..service
            }
        },
    )
}

fn small_pools() -> [Pool; 4] {
    [
        pool("four", &["192.0.2.1-192.0.2.2"]),
        pool("six", &["2001:db8::1-2001:db8::2"]),
        pool("dual", &["198.51.100.1-198.51.100.2", "2001:db8:1::1-2001:db8:1::2"]),
        pinned("pin", &["203.0.113.1"], 1, Some("default")),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Box<Service>),
    Delete(u8),
    /// Bit by bit, which of the pools there are.
    Pools(u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_service().prop_map(|service| Step::Apply(Box::new(service))),
        2 => (0u8..8).prop_map(Step::Delete),
        1 => (0u8..16).prop_map(Step::Pools),
    ]
}

fn assert_sound(plan: &Plan, services: &BTreeMap<ServiceKey, Service>) {
    let mut users: BTreeMap<IpAddr, Vec<&Service>> = BTreeMap::new();
    for (key, decision) in plan.decisions() {
        let service = &services[key];
        let Some(held) = decision.outcome.assignment() else { continue };
        assert_eq!(plan.allocator().assignment(key), Some(held));
        for address in &held.addresses {
            let pool = plan.allocator().pool_of(*address).expect("held addresses are in a pool");
            assert_eq!(pool.name, held.pool);
            assert!(pool.admits(&key.namespace, &service.labels));
            users.entry(*address).or_default().push(service);
        }
        if let (Outcome::Assigned(held), Ok(families)) = (&decision.outcome, service.families) {
            let fits = match families {
                Families::One(family) => held.addresses.iter().map(|a| Family::of(*a)).eq([family]),
                Families::Both => held.addresses.len() == 2,
                Families::PreferBoth { .. } => !held.addresses.is_empty(),
            };
            assert!(fits, "{service:?} {held:?}");
        }
    }
    for (address, users) in users {
        for (index, a) in users.iter().enumerate() {
            for b in &users[index + 1..] {
                assert!(!a.sharing.key.is_empty() && a.sharing == b.sharing, "{address}");
                assert!(a.ports.is_disjoint(&b.ports), "{address}");
            }
        }
    }
}

/// What everybody holds, and whether more is asked for. Which of several obstacles a refusal names
/// depends on when it was asked.
fn result(plan: &Plan) -> BTreeMap<ServiceKey, (Option<Assignment>, bool)> {
    let result = |decision: &Decision| {
        let pending = matches!(decision.outcome, Outcome::Pending { .. });
        (decision.outcome.assignment().cloned(), pending)
    };
    plan.decisions().map(|(key, decision)| (key.clone(), result(decision))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// After any history the plan is sound, and a controller that starts anew from the statuses
    /// decides the same.
    #[test]
    fn a_restart_changes_nothing(steps in prop::collection::vec(any_step(), 1..40)) {
        let mut pools = config(small_pools());
        let mut all = BTreeMap::new();
        let mut kept = plan(&pools, &all);
        for step in steps {
            match step {
                Step::Apply(service) => {
                    let held = kept.allocator().assignment(&service.key);
                    let service = service.showing(held);
                    let key = service.key.clone();
                    all.insert(key.clone(), service);
                    kept.revise(&all, &BTreeSet::from([key]));
                }
                Step::Delete(index) => {
                    let key = key(&format!("s{index}"));
                    all.remove(&key);
                    kept.revise(&all, &BTreeSet::from([key]));
                }
                Step::Pools(bits) => {
                    let chosen = small_pools()
                        .into_iter()
                        .enumerate()
                        .filter(|(index, _)| bits & (1 << index) != 0)
                        .map(|(_, pool)| pool);
                    pools = config(chosen);
                    kept = kept.renew(&pools, &all);
                }
            }
            for service in all.values_mut() {
                *service = service.clone().showing(kept.allocator().assignment(&service.key));
            }
            assert_sound(&kept, &all);
            prop_assert_eq!(result(&plan(&pools, &all)), result(&kept));
        }
    }

    /// Services without a common key that come one by one, the oldest first, get what they get
    /// when all are there from the start.
    #[test]
    fn one_by_one_is_all_at_once(
        list in prop::collection::vec(any_service().prop_map(|s| s.shares("", 80)), 1..12)
    ) {
        let pools = config(small_pools());
        let all = services(list);
        let mut ranked: Vec<&Service> = all.values().collect();
        ranked.sort_by_key(|service| service.rank());
        let mut present = BTreeMap::new();
        let mut grown = plan(&pools, &present);
        for service in ranked {
            present.insert(service.key.clone(), service.clone());
            grown.revise(&present, &BTreeSet::from([service.key.clone()]));
        }
        prop_assert_eq!(result(&grown), result(&plan(&pools, &all)));
    }
}
