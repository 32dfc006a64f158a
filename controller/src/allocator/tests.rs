use proptest::prelude::*;

use super::*;
use crate::{
    fixture::{V4, V6, assignment, config, ip, key, pinned, pool, service, tcp},
    service::Service,
};

#[test]
fn counters_know_what_avoid_buggy_ips_leaves_out() {
    let avoiding = |name, ranges: &[&str]| Pool { avoid_buggy_ips: true, ..pool(name, ranges) };
    let cases = [
        (pool("p", &["192.0.2.0-192.0.2.255"]), 256, 0),
        (avoiding("p", &["192.0.2.0-192.0.2.255"]), 254, 0),
        (avoiding("p", &["192.0.2.255-192.0.3.0"]), 0, 0),
        (avoiding("p", &["0.0.0.0-255.255.255.255"]), (1 << 32) - (1 << 25), 0),
        (avoiding("p", &["192.0.2.7", "2001:db8::-2001:db8::ff"]), 1, 256),
        (pool("p", &["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]), 0, i64::MAX),
    ];
    for (pool, available_v4, available_v6) in cases {
        let allocator = Allocator::new(&config([pool.clone()]));
        let (_, counters) = allocator.counters().next().unwrap();
        let expected = Counters { available_v4, available_v6, ..Counters::default() };
        assert_eq!(counters, expected, "{:?}", pool.ranges);
    }
}

#[test]
fn the_ends_of_the_address_space_can_be_given_and_taken() {
    let ranges = ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0.0.0.0", "::"];
    let mut allocator = Allocator::new(&config([pool("p", &ranges)]));
    let (a, b) = (service("a"), service("b"));
    let found = allocator.find(a.tenant(), Families::Both).unwrap();
    assert_eq!(found, assignment("p", &ranges[..2]));
    allocator.assign(a.tenant(), found);
    let found = allocator.find(b.tenant(), Families::Both).unwrap();
    assert_eq!(found, assignment("p", &ranges[2..]));
    allocator.assign(b.tenant(), found);
    assert_eq!(allocator.find(a.tenant(), V4), None);
    allocator.release(&a.key);
    assert_eq!(allocator.find(b.tenant(), V6), Some(assignment("p", &ranges[1..2])));
}

#[test]
fn a_pool_of_buggy_addresses_gives_nothing() {
    let pool = Pool { avoid_buggy_ips: true, ..pool("p", &["192.0.2.255-192.0.3.0"]) };
    let allocator = Allocator::new(&config([pool]));
    assert_eq!(allocator.find(service("a").tenant(), V4), None);
    assert_eq!(allocator.pool_of(ip("192.0.2.255")), None);
}

#[test]
fn an_unchanged_assignment_frees_nothing() {
    let mut allocator = Allocator::new(&config([pool("p", &["192.0.2.1"])]));
    let a = service("a");
    allocator.assign(a.tenant(), assignment("p", &["192.0.2.1"]));
    allocator.assign(a.tenant(), assignment("p", &["192.0.2.1"]));
    assert!(!allocator.take_freed());
    allocator.release(&a.key);
    assert!(allocator.take_freed());
    assert!(!allocator.take_freed());
}

/// The same by looking at every address in turn.
#[derive(Default)]
struct Model {
    pools: Vec<Pool>,
    held: BTreeMap<ServiceKey, (Service, Assignment)>,
}

impl Model {
    fn fits(&self, service: &Service, address: IpAddr) -> bool {
        self.held.values().filter(|(other, _)| other.key != service.key).all(|(other, held)| {
            !held.addresses.contains(&address)
                || (!service.sharing.key.is_empty()
                    && service.sharing == other.sharing
                    && service.ports.is_disjoint(&other.ports))
        })
    }

    fn lowest(&self, service: &Service, pool: &Pool, family: Family) -> Option<IpAddr> {
        pool.ranges
            .iter()
            .filter(|range| Family::of(range.first) == family)
            .flat_map(|range| {
                (number(range.first)..=number(range.last)).map(|n| address(family, n))
            })
            .filter(|address| pool.contains(*address))
            // What it holds itself is not free, and not shared with another.
            .filter(|address| {
                let own = self.held.get(&service.key);
                let holds = own.is_some_and(|(_, held)| held.addresses.contains(address));
                let alone = !self.held.values().any(|(other, held)| {
                    other.key != service.key && held.addresses.contains(address)
                });
                !(holds && alone)
            })
            .find(|address| self.fits(service, *address))
    }

    fn find(&self, service: &Service, families: Families) -> Option<Assignment> {
        let mut pinned: Vec<&Pool> =
            self.pools.iter().filter(|pool| pool.allocation.is_some()).collect();
        pinned.sort_by_key(|pool| {
            let priority = pool.allocation.as_ref().unwrap().priority;
            (if priority == 0 { i32::MAX } else { priority }, pool.name.clone())
        });
        let general = self.pools.iter().filter(|pool| pool.allocation.is_none()).collect();
        [pinned, general].into_iter().find_map(|pools| {
            choices(families).iter().find_map(|wanted| {
                pools.iter().find_map(|pool| {
                    let addresses = wanted.iter().map(|f| self.lowest(service, pool, *f));
                    let addresses = addresses.collect::<Option<Vec<_>>>()?;
                    Some(Assignment { pool: pool.name.clone(), addresses })
                })
            })
        })
    }
}

fn any_tenant() -> impl Strategy<Value = Service> {
    let sharing = prop_oneof![2 => Just(("", "")), 2 => Just(("k", "")), 1 => Just(("k", "b"))];
    (0u8..12, sharing, 0u8..4).prop_map(|(index, (sharing, backend), ports)| {
        let mut service = service(&format!("s{index}"));
        service.sharing = Sharing { key: sharing.to_owned(), backend: backend.to_owned() };
        service.ports = [tcp(80), tcp(443)]
            .into_iter()
            .enumerate()
            .filter(|(bit, _)| ports & (1 << bit) != 0)
            .map(|(_, port)| port)
            .collect();
        service
    })
}

fn any_families() -> impl Strategy<Value = Families> {
    prop_oneof![
        Just(V4),
        Just(V6),
        Just(Families::Both),
        Just(Families::PreferBoth { first: Family::V4 }),
        Just(Families::PreferBoth { first: Family::V6 }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn agrees_with_a_walk_over_all_addresses(
        steps in prop::collection::vec((any_tenant(), any_families(), 0u8..5), 1..80)
    ) {
        let config = config([
            Pool {
                avoid_buggy_ips: true,
                ..pool("a", &["192.0.2.254-192.0.3.2", "2001:db8::fe-2001:db8::100"])
            },
            pool("b", &["198.51.100.3-198.51.100.4", "198.51.100.1", "2001:db8::1"]),
            pinned("c", &["203.0.113.1-203.0.113.2"], 0, None),
            pinned("d", &["203.0.113.9"], 7, Some("default")),
        ]);
        let mut allocator = Allocator::new(&config);
        let mut model =
            Model { pools: config.pools.values().cloned().collect(), ..Model::default() };
        for (service, families, kind) in steps {
            if kind == 0 {
                let released = allocator.release(&service.key);
                prop_assert_eq!(released, model.held.remove(&service.key).map(|(_, held)| held));
                continue;
            }
            // As a Service that holds nothing asks.
            allocator.release(&service.key);
            model.held.remove(&service.key);
            let found = allocator.find(service.tenant(), families);
            prop_assert_eq!(&found, &model.find(&service, families));
            if let Some(found) = found {
                allocator.assign(service.tenant(), found.clone());
                model.held.insert(service.key.clone(), (service, found));
            }
            for (pool, (_, counters)) in model.pools.iter().zip(allocator.counters()) {
                let used: BTreeSet<IpAddr> = model
                    .held
                    .values()
                    .filter(|(_, held)| held.pool == pool.name)
                    .flat_map(|(_, held)| held.addresses.clone())
                    .collect();
                let v4 = used.iter().filter(|address| address.is_ipv4()).count();
                prop_assert_eq!(counters.assigned_v4, i64::try_from(v4).unwrap());
                prop_assert_eq!(counters.assigned_v6, i64::try_from(used.len() - v4).unwrap());
            }
        }
        for name in (0..12).map(|index| key(&format!("s{index}"))) {
            allocator.release(&name);
        }
        let fresh: Vec<Counters> =
            Allocator::new(&config).counters().map(|(_, counters)| counters).collect();
        let emptied: Vec<Counters> = allocator.counters().map(|(_, counters)| counters).collect();
        prop_assert_eq!(emptied, fresh);
        prop_assert!(allocator.tenancies.is_empty() && allocator.groups.is_empty());
    }
}
