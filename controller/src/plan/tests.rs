mod fields;
mod properties;

use super::*;
use crate::fixture::*;
use crate::{
    allocator::Conflict,
    service::{Families, Family, FamilyError, RequestError},
};

const BOTH: Families = Families::Both;
const PREFER: Families = Families::PreferBoth { first: Family::V4 };
const PREFER_V6: Families = Families::PreferBoth { first: Family::V6 };

fn assigned(pool: &str, addresses: &[&str]) -> Outcome {
    Outcome::Assigned(assignment(pool, addresses))
}

fn two_pools(v4: (&str, &str), v6: (&str, &str)) -> Outcome {
    let first = Assignment::new(ip(v4.1), v4.0.into());
    Outcome::Assigned(first.with(ip(v6.1), v6.0.into()))
}

fn exhausted(family: Family) -> Refusal {
    Refusal::Exhausted { family, left: Left::default() }
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
    let plan = plan(&config(pools), &services(all.to_vec()), Instant::now());
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

fn v6_pool_for_others() -> Pool {
    pinned("six", &["2001:db8::1"], 0, Some("other"))
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
            pending(exhausted(Family::V6)),
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
            "dual stack out of two pools",
            &[v4_pool(), v6_pool()],
            service("a").families(BOTH),
            two_pools(("four", "192.0.2.0"), ("six", "2001:db8::")),
        ),
        case(
            "dual stack names the family that is missing",
            &[v4_pool()],
            service("a").families(BOTH),
            pending(exhausted(Family::V6)),
        ),
        case(
            "a pool with both is better than a pinned one and a general one",
            &[pinned("pin", &["192.0.2.9"], 1, None), v6_pool(), dual_pool()],
            service("a").families(BOTH),
            assigned("dual", &["198.51.100.0", "2001:db8:1::"]),
        ),
        case(
            "two pools in their order",
            &[v4_pool(), pinned("pin", &["192.0.2.9"], 1, None), v6_pool()],
            service("a").families(PREFER),
            two_pools(("pin", "192.0.2.9"), ("six", "2001:db8::")),
        ),
        case(
            "PreferDualStack takes both where possible",
            &[v4_pool(), dual_pool()],
            service("a").families(PREFER),
            assigned("dual", &["198.51.100.0", "2001:db8:1::"]),
        ),
        case(
            "PreferDualStack takes two pools",
            &[v4_pool(), v6_pool()],
            service("a").families(PREFER_V6),
            two_pools(("four", "192.0.2.0"), ("six", "2001:db8::")),
        ),
        case(
            "PreferDualStack falls back to the primary family",
            &[v6_pool()],
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
            two_pools(("dual", "198.51.100.1"), ("six", "2001:db8::1")),
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
                requested: "dual".into(),
            }),
        ),
        (
            "an unknown pool",
            service("a").requests_pool("nowhere"),
            pending(Refusal::UnknownPool { pool: "nowhere".into() }),
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
            pending(Refusal::PoolExhausted {
                pools: vec!["six".into()],
                family: Family::V4,
                left: Left::default(),
            }),
        ),
        (
            "a pool for each family",
            service("a").families(BOTH).requests_pool("four, six"),
            two_pools(("four", "192.0.2.0"), ("six", "2001:db8::")),
        ),
        (
            "two pools that lack a family",
            service("a").families(V6).requests_pool("pin-of-nobody,four"),
            pending(Refusal::UnknownPool { pool: "pin-of-nobody".into() }),
        ),
        (
            "a thousand pools",
            service("a").requests_pool(&["four"; 1000].join(",")),
            pending(Refusal::TooManyPools),
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
    let local = |service: Service, backend: &str| service.local(backend);
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
            "PreferDualStack is completed out of another pool",
            service("a").families(PREFER).shows(&["192.0.2.3"], "four"),
            &["192.0.2.3", "2001:db8:1::"],
        ),
        (
            "PreferDualStack stays where it cannot be completed",
            service("a").families(PREFER).requests_pool("four").shows(&["192.0.2.3"], "four"),
            &["192.0.2.3"],
        ),
        (
            "dual stack that became single stack keeps the family that fits",
            service("a").shows(&["198.51.100.3", "2001:db8:1::1"], "dual"),
            &["198.51.100.3"],
        ),
        (
            "single stack that became dual stack stays and gets the other family",
            service("a").families(BOTH).shows(&["192.0.2.3"], "four"),
            &["192.0.2.3", "2001:db8:1::"],
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
        assert_eq!(held.addresses(), ips(expected), "{what}");
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
        service("a").requests(&["192.0.2.3", "2001:db8::1"]).families(BOTH),
        service("a").requests_pool("tenant"),
        service("a").requests(&["10.0.0.1"]),
        service("a").requests_pool("a,b,c"),
        Service { requested: Err(RequestError::Twice), ..service("a") },
    ];
    let tenant = pinned("tenant", &["10.0.0.1"], 0, Some("other"));
    for case in cases {
        let case = case.shows(&["192.0.2.3"], "four");
        match outcome(
            [v4_pool(), v6_pool_for_others(), tenant.clone()],
            &[case.clone(), holder.clone()],
        ) {
            Outcome::Pending { kept, .. } => {
                assert_eq!(kept.as_deref(), Some(&assignment("four", &["192.0.2.3"])));
            }
            other => panic!("{case:?}: {other:?}"),
        }
    }
}

#[test]
fn what_the_configuration_no_longer_allows_is_taken_back_with_its_reason() {
    let lost = |pools: &[Pool], service: Service| {
        let plan = plan(&config(pools.to_vec()), &services([service.clone()]), Instant::now());
        let decision = plan.decision(&service.key).unwrap();
        assert_eq!(decision.outcome.assignment(), None);
        decision.lost.as_deref().cloned()
    };
    let full = service("a").families(V6);
    assert_eq!(
        lost(&[v6_pool()], service("a").shows(&["192.0.2.0"], "four")),
        Some(Refusal::InNoPool { address: ip("192.0.2.0") })
    );
    assert_eq!(
        lost(&[v4_pool()], full.shows(&["192.0.2.0"], "four")),
        Some(Refusal::HeldFamily { address: ip("192.0.2.0"), families: V6 })
    );
}

#[test]
fn a_pool_that_is_not_for_the_service_any_more_is_left_for_another_one() {
    let other = pinned("other", &["192.0.2.0"], 0, Some("x"));
    let holder = service("a").shows(&["192.0.2.0"], "other");
    let not_admitted = Refusal::NotAdmitted { pool: "other".into() };
    let kept = Outcome::Pending {
        refusal: not_admitted.clone(),
        kept: Some(Box::new(assignment("other", &["192.0.2.0"]))),
    };
    assert_eq!(outcome([other.clone()], std::slice::from_ref(&holder)), kept);
    let full = pool("full", &["192.0.2.9"]);
    let taken = service("b").shows(&["192.0.2.9"], "full");
    assert_eq!(outcome([other.clone(), full.clone()], &[holder.clone(), taken.clone()]), kept);

    // And as soon as there is another one.
    let mut all = services([holder, taken]);
    let config = config([other, full]);
    let mut plan = plan(&config, &all, Instant::now());
    all.remove(&key("b"));
    plan.revise(&all, &BTreeSet::from([key("b")]), Instant::now());
    let decision = plan.decision(&key("a")).unwrap();
    assert_eq!(decision.outcome, assigned("full", &["192.0.2.9"]));
    assert_eq!(decision.lost.as_deref(), Some(&not_admitted));
}

#[test]
fn of_two_holders_the_older_keeps_the_address() {
    let all = [
        service("a").created(2).shows(&["192.0.2.2"], "four"),
        service("b").created(1).shows(&["192.0.2.2"], "four"),
    ];
    let plan = plan(&config([v4_pool()]), &services(all), Instant::now());
    let address = |name| plan.decision(&key(name)).unwrap().outcome.assignment().cloned();
    assert_eq!(address("b"), Some(assignment("four", &["192.0.2.2"])));
    assert_eq!(address("a"), Some(assignment("four", &["192.0.2.0"])));
    assert!(matches!(
        plan.decision(&key("a")).unwrap().lost.as_deref(),
        Some(Refusal::Conflict(Conflict::Taken { .. }))
    ));
}

#[test]
fn a_holder_is_served_before_an_older_service_without() {
    let pool = pool("one", &["192.0.2.1"]);
    let all = [service("old").created(1), service("new").created(2).shows(&["192.0.2.1"], "one")];
    assert_eq!(
        outcomes([pool], &all),
        [pending(exhausted(Family::V4)), assigned("one", &["192.0.2.1"])]
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
    let mut plan = plan(&config, &all, Instant::now());
    all.remove(&key("a"));
    let changed = plan.revise(&all, &BTreeSet::from([key("a")]), Instant::now());
    assert_eq!(changed, BTreeSet::from([key("a"), key("c")]));
    let outcome = |name| plan.decision(&key(name)).map(|decision| decision.outcome.clone());
    assert_eq!(outcome("c"), Some(assigned("one", &["192.0.2.1"])));
    assert_eq!(outcome("b"), Some(pending(exhausted(Family::V4))));
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
    let mut plan = plan(&config(pools), &all, Instant::now());
    all.insert(key("holder"), service("holder").created(1).shares("key", 443));
    let changed = plan.revise(&all, &BTreeSet::from([key("holder")]), Instant::now());
    assert_eq!(changed, BTreeSet::from([key("waits")]));
}
