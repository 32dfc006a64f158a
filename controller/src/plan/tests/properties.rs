//! What holds after any history, with the slow model beside it.

use std::time::Duration;

use config::{AllocationOrder, Config, NodeName, PoolName, Reserved, SharingScope};
use proptest::prelude::*;

use super::*;
use crate::plan::model::Model;

const NAMESPACES: [&str; 2] = ["red", "blue"];

fn any_key() -> impl Strategy<Value = ServiceKey> {
    (0usize..2, 0u8..6).prop_map(|(ns, i)| ServiceKey::new(NAMESPACES[ns], format!("s{i}")))
}

fn any_service() -> impl Strategy<Value = Service> {
    let families = prop_oneof![Just(V4), Just(V6), Just(BOTH), Just(PREFER), Just(PREFER_V6)];
    let requested = prop_oneof![
        8 => Just(vec![]),
        1 => Just(ips(&["192.0.2.1"])),
        1 => Just(ips(&["192.0.2.2"])),
        1 => Just(ips(&["203.0.113.1"])),
        1 => Just(ips(&["198.51.100.1", "2001:db8:1::1"])),
        1 => Just(ips(&["192.0.2.1", "2001:db8::1"])),
    ];
    let requested_pool = prop_oneof![
        8 => Just(None),
        1 => Just(Some("four")),
        1 => Just(Some("dual")),
        1 => Just(Some("pin")),
        1 => Just(Some("four,six")),
    ];
    let sharing = prop_oneof![2 => Just(""), 1 => Just("k"), 1 => Just("l")];
    let ports = prop::collection::btree_set(prop_oneof![Just(80u16), Just(443), Just(53)], 0..3);
    (any_key(), families, requested, requested_pool, sharing, ports, 0i64..4).prop_map(
        |(key, families, requested, requested_pool, sharing, ports, created)| Service {
            key,
            requested: Ok(requested),
            requested_pool: requested_pool.map(str::to_owned),
            ports: ports.into_iter().map(tcp).collect(),
            ..service("").created(created).families(families).shares(sharing, 0)
        },
    )
}

/// The pools that `bits` name, with what a user may set on them.
fn any_config() -> impl Strategy<Value = Config> {
    let limit = || prop_oneof![3 => Just(None), 1 => Just(Some(1)), 1 => Just(Some(2))];
    let limits = (limit(), limit(), limit(), limit());
    let scopes = (any::<bool>(), any::<bool>());
    (0u8..16, limits, scopes, 0u64..3, 0u8..4, any::<bool>()).prop_map(
        |(bits, limits, (four_ns, dual_ns), reuse, reserved, auto)| {
            let scope = |ns| if ns { SharingScope::Namespace } else { SharingScope::Cluster };
            let pools = [
                Pool {
                    max_addresses_per_namespace: limits.0,
                    sharing_scope: scope(four_ns),
                    auto_assign: auto,
                    ..pool("four", &["192.0.2.1-192.0.2.3"])
                },
                Pool {
                    max_addresses_per_namespace: limits.1,
                    reuse_after: Duration::from_secs(10 * reuse),
                    ..pool("six", &["2001:db8::1-2001:db8::2"])
                },
                Pool {
                    max_addresses_per_namespace: limits.2,
                    sharing_scope: scope(dual_ns),
                    reuse_after: Duration::from_secs(10 * reuse),
                    ..pool("dual", &["198.51.100.1-198.51.100.2", "2001:db8:1::1-2001:db8:1::2"])
                },
                Pool {
                    max_addresses_per_namespace: limits.3,
                    ..pinned("pin", &["203.0.113.1", "2001:db8:2::1"], 1, Some("red"))
                },
            ];
            let (there, gone): (Vec<_>, Vec<_>) =
                pools.into_iter().enumerate().partition(|(i, _)| bits & (1 << i) != 0);
            let node = |address: &str| (ip(address), (NodeName::from("n"), "InternalIP".into()));
            let nodes = match reserved {
                0 => vec![],
                1 => vec![node("192.0.2.2")],
                2 => vec![node("203.0.113.1"), node("2001:db8::1")],
                _ => vec![node("198.51.100.1"), node("2001:db8:1::1"), node("2001:db8:1::2")],
            };
            let left_out = gone.into_iter().map(|(_, pool)| pool.name).filter(|_| auto);
            Config {
                left_out_pools: left_out.collect(),
                reserved: Reserved { nodes: nodes.into_iter().collect(), ..Reserved::default() },
                ..config(there.into_iter().map(|(_, pool)| pool))
            }
        },
    )
}

#[derive(Debug, Clone)]
enum Step {
    Apply(Box<Service>),
    Delete(ServiceKey),
    Config(Box<Config>),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => any_service().prop_map(|service| Step::Apply(Box::new(service))),
        4 => any_key().prop_map(Step::Delete),
        1 => any_config().prop_map(|config| Step::Config(Box::new(config))),
        2 => (1u64..15).prop_map(Step::Wait),
    ]
}

fn assert_sound(plan: &Plan, config: &Config, services: &BTreeMap<ServiceKey, Service>) {
    let mut users: BTreeMap<IpAddr, Vec<&Service>> = BTreeMap::new();
    for (key, decision) in plan.decisions() {
        let service = &services[key];
        let Some(held) = decision.outcome.assignment() else { continue };
        for (address, name) in held.parts() {
            match config.pools.get(name) {
                Some(pool) => assert!(pool.contains(address)),
                None => assert!(config.left_out_pools.contains(name)),
            }
            users.entry(address).or_default().push(service);
        }
        let admitted =
            |pool: &PoolName| config.pools[pool].admits(&key.namespace, &service.labels.unpack());
        if let (Outcome::Assigned(held), Ok(families)) = (&decision.outcome, service.families) {
            let fits = match families {
                Families::One(family) => {
                    held.addresses().iter().map(|a| Family::of(*a)).eq([family])
                }
                Families::Both => held.addresses().len() == 2,
                Families::PreferBoth { .. } => !held.addresses().is_empty(),
            };
            assert!(fits && held.pools().all(admitted), "{service:?} {held:?}");
        }
    }
    for (address, users) in &users {
        let scope = config.pools.values().find(|pool| pool.contains(*address));
        let one_namespace = scope.is_some_and(|p| p.sharing_scope == SharingScope::Namespace);
        for (index, a) in users.iter().enumerate() {
            for b in &users[index + 1..] {
                assert!(a.sharing.is_some() && a.sharing == b.sharing, "{address}");
                assert!(!a.ports.iter().any(|port| b.ports.contains(port)), "{address}");
                assert!(!one_namespace || a.key.namespace == b.key.namespace, "{address}");
            }
        }
    }
    let held: Vec<(IpAddr, ServiceKey)> =
        plan.held().map(|(address, key)| (address, key.clone())).collect();
    let mut expected: Vec<(IpAddr, ServiceKey)> = users
        .iter()
        .flat_map(|(address, users)| users.iter().map(|user| (*address, user.key.clone())))
        .collect();
    expected.sort();
    let mut sorted = held;
    sorted.sort();
    assert_eq!(sorted, expected);
    for (name, counters) in plan.allocator().counters() {
        let Some(pool) = config.pools.get(name) else { continue };
        let used = users.keys().filter(|address| pool.contains(**address));
        let (v4, v6): (Vec<&IpAddr>, Vec<&IpAddr>) = used.partition(|address| address.is_ipv4());
        assert_eq!(counters.assigned_v4, i64::try_from(v4.len()).unwrap());
        assert_eq!(counters.assigned_v6, i64::try_from(v6.len()).unwrap());
        assert!(counters.available_v4 >= 0 && counters.available_v6 >= 0);
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

fn without_cool_down(config: &Config) -> Config {
    let mut config = config.clone();
    for pool in config.pools.values_mut() {
        pool.reuse_after = Duration::ZERO;
    }
    config
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// After any history the plan is sound and what the model says. Where nothing cools down, a
    /// controller that starts anew from the statuses decides the same.
    #[test]
    fn any_history(
        start in any_config(),
        cools in any::<bool>(),
        steps in prop::collection::vec(any_step(), 1..40),
    ) {
        let set = |config: &Config| if cools { config.clone() } else { without_cool_down(config) };
        let mut now = Instant::now();
        let mut config = set(&start);
        let mut all = BTreeMap::new();
        let mut kept = plan(&config, &all, now);
        let mut model = Model::default();
        model.renew(&config, &all, now);
        for step in steps {
            match step {
                Step::Apply(service) => {
                    let held = kept.assignment(&service.key);
                    let service = service.showing(held);
                    let key = service.key.clone();
                    all.insert(key.clone(), service);
                    kept.revise(&all, &BTreeSet::from([key.clone()]), now);
                    model.revise(&all, &key, now);
                }
                Step::Delete(key) => {
                    all.remove(&key);
                    kept.revise(&all, &BTreeSet::from([key.clone()]), now);
                    model.revise(&all, &key, now);
                }
                Step::Config(new) => {
                    config = set(&new);
                    kept = kept.renew(&config, &all, now);
                    model.renew(&config, &all, now);
                }
                Step::Wait(seconds) => {
                    let end = now + Duration::from_secs(seconds);
                    while let Some(at) = kept.poll_timeout().filter(|at| *at <= end) {
                        now = at;
                        kept.handle_timeout(&all, now);
                        model.revise(&all, &ServiceKey::new("", ""), now);
                    }
                    now = end;
                }
            }
            for service in all.values_mut() {
                *service = service.clone().showing(kept.assignment(&service.key));
            }
            assert_sound(&kept, &config, &all);
            prop_assert_eq!(result(&kept), model.result());
            if !cools {
                prop_assert_eq!(result(&plan(&config, &all, now)), result(&kept));
            }
        }
    }

    /// Services without a common key that come one by one, the oldest first, get what they get
    /// when all are there from the start.
    #[test]
    fn one_by_one_is_all_at_once(
        config in any_config(),
        list in prop::collection::vec(any_service().prop_map(|s| s.shares("", 80)), 1..12)
    ) {
        let now = Instant::now();
        let all = services(list);
        let mut ranked: Vec<&Service> = all.values().collect();
        ranked.sort_by_key(|service| service.rank());
        let mut present = BTreeMap::new();
        let mut grown = plan(&config, &present, now);
        for service in ranked {
            present.insert(service.key.clone(), service.clone());
            grown.revise(&present, &BTreeSet::from([service.key.clone()]), now);
        }
        prop_assert_eq!(result(&grown), result(&plan(&config, &all, now)));
    }

    /// Whatever is chosen at random is free, of the pool, and the same for the same seed.
    #[test]
    fn random_order_is_sound(
        start in any_config(),
        seed in any::<u64>(),
        list in prop::collection::vec(any_service(), 1..12)
    ) {
        let mut config = without_cool_down(&start);
        for pool in config.pools.values_mut() {
            pool.order = AllocationOrder::Random;
        }
        let mut all = services(list);
        let now = Instant::now();
        let made = Plan::new(seed).renew(&config, &all, now);
        assert_sound(&made, &config, &all);
        prop_assert_eq!(result(&made), result(&Plan::new(seed).renew(&config, &all, now)));
        for service in all.values_mut() {
            *service = service.clone().showing(made.assignment(&service.key));
        }
        prop_assert_eq!(result(&Plan::new(!seed).renew(&config, &all, now)), result(&made));
    }
}
