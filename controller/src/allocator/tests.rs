use super::*;
use crate::{
    fixture::{V4, V6, assignment, config, ip, pool, service},
    service::{Families, Service},
};

/// An allocator that knows two Services.
fn with_two(pools: impl IntoIterator<Item = Pool>) -> (Allocator, [(Id, Service); 2]) {
    let mut allocator = Allocator::new(&config(pools), 0);
    let services = ["a", "b"].map(|name| {
        let service = service(name);
        (allocator.register(&service.key), service)
    });
    (allocator, services)
}

fn find(allocator: &Allocator, (id, service): &(Id, Service), families: Families) -> Option<Parts> {
    let tenant = service.tenant(*id);
    Search::new(allocator, tenant, Scope::Automatic, Parts::default()).find(families)
}

#[test]
fn an_assignment_names_each_address_and_its_pool() {
    let (v4, v6) = (ip("192.0.2.1"), ip("2001:db8::1"));
    let one = Assignment::new(v6, "six".into());
    assert_eq!((one.addresses(), &*one.pool_annotation()), (&[v6][..], "six"));
    assert_eq!(one.clone().with(ip("2001:db8::2"), "x".into()), one);
    let two = one.with(v4, "four".into());
    assert_eq!((two.addresses(), &*two.pool_annotation()), (&[v4, v6][..], "four,six"));
    assert_eq!(two.clone().with(ip("192.0.2.2"), "x".into()), two);
    let parts: Vec<_> = two.parts().map(|(address, pool)| (address, &**pool)).collect();
    assert_eq!(parts, [(v4, "four"), (v6, "six")]);
    let same = Assignment::new(v4, "p".into()).with(v6, "p".into());
    assert_eq!((same.pool_annotation(), same.pools().count()), ("p".to_owned(), 1));
}

#[test]
fn counters_know_what_avoid_buggy_ips_leaves_out() {
    let avoiding = |name, ranges: &[&str]| Pool { avoid_buggy_ips: true, ..pool(name, ranges) };
    let cases = [
        (pool("p", &["192.0.2.0-192.0.2.255"]), 256, 0),
        (avoiding("p", &["192.0.2.0-192.0.2.255"]), 254, 0),
        (avoiding("p", &["192.0.2.7", "2001:db8::-2001:db8::ff"]), 1, 256),
        (pool("p", &["::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]), 0, i64::MAX),
    ];
    for (pool, available_v4, available_v6) in cases {
        let allocator = Allocator::new(&config([pool.clone()]), 0);
        let (_, counters) = allocator.counters().next().unwrap();
        let expected = Counters { available_v4, available_v6, ..Counters::default() };
        assert_eq!(counters, expected, "{:?}", pool.ranges);
    }
}

#[test]
fn the_ends_of_the_address_space_can_be_given_and_taken() {
    let ranges = ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "0.0.0.0", "::"];
    let (mut allocator, [a, b]) = with_two([pool("p", &ranges)]);
    let now = Instant::now();
    for (service, expected) in [(&a, &ranges[..2]), (&b, &ranges[2..])] {
        let found = find(&allocator, service, Families::Both).unwrap();
        assert_eq!(allocator.assignment(found), Some(assignment("p", expected)));
        allocator.assign(service.1.tenant(service.0), found, now);
    }
    assert_eq!(find(&allocator, &a, V4), None);
    allocator.release(a.0, now);
    let found = find(&allocator, &b, V6).unwrap();
    assert_eq!(allocator.assignment(found), Some(assignment("p", &ranges[1..2])));
}

#[test]
fn a_pool_of_buggy_addresses_gives_nothing() {
    let pool = Pool { avoid_buggy_ips: true, ..pool("p", &["192.0.2.255-192.0.3.0"]) };
    let (allocator, [a, _]) = with_two([pool]);
    assert_eq!(find(&allocator, &a, V4), None);
    assert_eq!(allocator.pool_of(ip("192.0.2.255")), None);
}

#[test]
fn an_unchanged_assignment_opens_nothing() {
    let (mut allocator, [a, _]) = with_two([pool("p", &["192.0.2.1"])]);
    let now = Instant::now();
    let found = find(&allocator, &a, V4).unwrap();
    for _ in 0..2 {
        allocator.assign(a.1.tenant(a.0), found, now);
        assert_eq!(allocator.take_opened(), []);
    }
    allocator.release(a.0, now);
    let family = Family::V4;
    let expected =
        [Topic::Address(ip("192.0.2.1")), Topic::Pool(PoolId(0), family), Topic::General(family)];
    assert_eq!(allocator.take_opened(), expected);
}

#[test]
fn what_is_taken_back_leaves_no_trace() {
    let pool = Pool { max_addresses_per_namespace: Some(9), ..pool("p", &["192.0.2.1"]) };
    let (mut allocator, [(a, first), (b, second)]) = with_two([pool]);
    let now = Instant::now();
    let (first, second) = (first.shares("key", 80), second.shares("key", 443));
    let found = find(&allocator, &(a, first.clone()), V4).unwrap();
    allocator.assign(first.tenant(a), found, now);
    assert_eq!(find(&allocator, &(b, second.clone()), V4), Some(found));
    allocator.assign(second.tenant(b), found, now);
    assert_eq!(allocator.pools[0].held_by("default"), 1);
    for id in [a, b] {
        allocator.release(id, now);
    }
    assert!(allocator.tenancies.is_empty() && allocator.groups.is_empty());
    assert_eq!(allocator.pools[0].held_by("default"), 0);
    let available = Counters { available_v4: 1, ..Counters::default() };
    assert_eq!(allocator.counters().next().unwrap().1, available);
}
