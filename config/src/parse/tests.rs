use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    AddressRange, Secret,
    fixture::{created, errors, hostname, object, pool, resources, with_nodes},
};

fn good(resources: &Resources) -> Config {
    let (config, errors) = Config::parse(resources, None);
    assert_eq!(errors, []);
    config
}

fn peer(name: &str, changes: Value) -> Value {
    let mut spec = json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" });
    spec.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    object("BGPPeer", name, spec)
}

fn bgp(name: &str, spec: Value) -> Value {
    object("BGPAdvertisement", name, spec)
}

fn l2(name: &str, spec: Value) -> Value {
    object("L2Advertisement", name, spec)
}

fn ranges(config: &Config) -> Vec<(String, Vec<String>)> {
    let printed = |pool: &Pool| pool.ranges.iter().map(ToString::to_string).collect();
    config.pools.iter().map(|(name, pool)| (name.to_string(), printed(pool))).collect()
}

fn bgp_names(config: &Config, pool: &str) -> Vec<String> {
    config.pools[pool].bgp_advertisements.iter().map(|a| a.name.clone()).collect()
}

#[test]
fn one_bad_object_does_not_block_the_others() {
    let resources = resources(&[
        pool("bad", &["nonsense"]),
        pool("good", &["192.0.2.0/24"]),
        l2("bad", json!({ "ipAddressPools": ["x", "x"] })),
        l2("good", json!({})),
        bgp("bad", json!({ "aggregationLength": 33 })),
        bgp("good", json!({})),
        peer("bad", json!({ "peerAddress": "x" })),
        peer("good", json!({})),
        object("BFDProfile", "bad", json!({ "minimumTtl": 0 })),
        object("BFDProfile", "good", json!({})),
        object("Community", "bad", json!({ "communities": [{ "name": "x", "value": "y" }] })),
    ]);
    let (config, errors) = Config::parse(&resources, None);
    assert_eq!(config.pools.keys().map(|n| &**n).collect::<Vec<_>>(), ["good"]);
    assert_eq!(config.peers.keys().map(|n| &**n).collect::<Vec<_>>(), ["good"]);
    assert_eq!(config.bfd_profiles.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(config.pools["good"].l2_advertisements.len(), 1);
    assert_eq!(bgp_names(&config, "good"), ["good"]);
    let objects: Vec<String> =
        errors.iter().map(|error| format!("{} {}", error.object(), error.field())).collect();
    assert_eq!(
        objects,
        [
            "BFDProfile \"bad\" spec.minimumTtl",
            "BGPAdvertisement \"bad\" spec.aggregationLength",
            "BGPPeer \"bad\" spec.peerAddress",
            "Community \"bad\" spec.communities[0].value",
            "IPAddressPool \"bad\" spec.addresses[0]",
            "L2Advertisement \"bad\" spec.ipAddressPools[1]",
        ]
    );
}

#[test]
fn of_two_pools_that_overlap_the_older_is_in_force() {
    let a = pool("a", &["192.0.2.0/24"]);
    let b = pool("b", &["192.0.2.128/25", "198.51.100.0/24"]);
    let in_error = |resources: &Resources| {
        let (config, errors) = Config::parse(resources, None);
        assert_eq!(errors.len(), 1);
        assert_eq!(config.pools.len(), 1);
        errors[0].object().name
    };
    let (a1, b2) = (created(a.clone(), 1), created(b.clone(), 2));
    assert_eq!(in_error(&resources(&[a1.clone(), b2.clone()])), "b");
    assert_eq!(in_error(&resources(&[b2, a1])), "b");
    assert_eq!(in_error(&resources(&[created(a.clone(), 2), created(b.clone(), 1)])), "a");
    assert_eq!(in_error(&resources(&[created(b.clone(), 1), created(a.clone(), 1)])), "b");
    // One without a date is not stored yet.
    assert_eq!(in_error(&resources(&[a, created(b, 1)])), "a");
}

#[test]
fn a_pool_in_error_keeps_its_last_good_form() {
    let last = good(&resources(&[pool("a", &["192.0.2.0/24"]), pool("b", &["198.51.100.0/24"])]));
    let resources = resources(&[pool("a", &["nonsense"]), pool("b", &["203.0.113.0/24"])]);
    let (config, errors) = Config::parse(&resources, Some(&last));
    assert_eq!(
        ranges(&config),
        [
            ("a".to_owned(), vec!["192.0.2.0/24".to_owned()]),
            ("b".to_owned(), vec!["203.0.113.0/24".to_owned()]),
        ]
    );
    assert_eq!(errors.len(), 1);
    // And again: the last good form is not the form of last time.
    let (again, errors) = Config::parse(&resources, Some(&config));
    assert_eq!((again, errors.len()), (config, 1));
}

#[test]
fn a_pool_that_is_gone_is_gone() {
    let last = good(&resources(&[pool("a", &["192.0.2.0/24"])]));
    let (config, errors) = Config::parse(&Resources::default(), Some(&last));
    assert_eq!((config, errors), (Config::default(), vec![]));
}

#[test]
fn a_pool_that_changed_yields_to_one_that_did_not_even_if_older() {
    let a = |addresses| created(pool("a", addresses), 1);
    let b = created(pool("b", &["198.51.100.0/24"]), 2);
    let last = good(&resources(&[a(&["192.0.2.0/24"]), b.clone()]));
    let (config, errors) =
        Config::parse(&resources(&[a(&["192.0.2.0/24", "198.51.100.8/29"]), b]), Some(&last));
    assert_eq!(ranges(&config), ranges(&last));
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["IPAddressPool \"a\": spec.addresses[1]: 198.51.100.8/29 overlaps with \
          198.51.100.0/24, which is already in pool \"b\""]
    );
}

#[test]
fn pools_can_swap_their_addresses() {
    let last = good(&resources(&[pool("a", &["192.0.2.0/24"]), pool("b", &["198.51.100.0/24"])]));
    let swapped = resources(&[pool("a", &["198.51.100.0/24"]), pool("b", &["192.0.2.0/24"])]);
    let (config, errors) = Config::parse(&swapped, Some(&last));
    assert_eq!(errors, []);
    assert_eq!(config.pools["a"].ranges, last.pools["b"].ranges);
}

/// The older pool may have what the younger gives up, unless the younger cannot move.
#[test]
fn a_pool_that_cannot_move_keeps_its_place_against_all() {
    let last = good(&resources(&[
        created(pool("a", &["192.0.2.0/26"]), 1),
        created(pool("b", &["192.0.2.64/26"]), 2),
        created(pool("c", &["192.0.2.128/26"]), 3),
    ]));
    let (config, errors) = Config::parse(
        &resources(&[
            created(pool("a", &["192.0.2.64/26"]), 1),
            created(pool("b", &["192.0.2.128/26"]), 2),
            created(pool("c", &["192.0.2.128/26"]), 3),
        ]),
        Some(&last),
    );
    assert_eq!(ranges(&config), ranges(&last));
    let objects: Vec<String> = errors.iter().map(|e| e.object().name).collect();
    assert_eq!(objects, ["a", "b"]);
}

#[test]
fn what_is_given_back_goes_to_who_was_refused_for_it() {
    let last = good(&resources(&[
        created(pool("a", &["192.0.2.0/26"]), 1),
        created(pool("c", &["192.0.2.64/26"]), 3),
        created(pool("d", &["192.0.2.192/26"]), 4),
    ]));
    // c cannot move to d's place, so a cannot have that of c, so b can have the rest.
    let (config, errors) = Config::parse(
        &resources(&[
            created(pool("a", &["192.0.2.100-192.0.2.191"]), 1),
            created(pool("b", &["192.0.2.128/26"]), 2),
            created(pool("c", &["192.0.2.192/26"]), 3),
            created(pool("d", &["192.0.2.192/26"]), 4),
        ]),
        Some(&last),
    );
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "IPAddressPool \"a\": spec.addresses[0]: 192.0.2.100-192.0.2.191 overlaps with \
             192.0.2.64/26, which is already in pool \"c\"",
            "IPAddressPool \"c\": spec.addresses[0]: 192.0.2.192/26 overlaps with \
             192.0.2.192/26, which is already in pool \"d\"",
        ]
    );
    let mut expected = ranges(&last);
    expected.insert(1, ("b".to_owned(), vec!["192.0.2.128/26".to_owned()]));
    assert_eq!(ranges(&config), expected);
}

#[test]
fn advertisements_reach_the_pools_they_select_once() {
    let mut labelled = pool("b", &["198.51.100.0/24"]);
    labelled["metadata"]["labels"] = json!({ "tier": "front" });
    let by_label = json!([{ "matchLabels": { "tier": "front" } }]);
    let config = good(&resources(&[
        pool("a", &["192.0.2.0/24"]),
        labelled,
        bgp("all", json!({})),
        bgp("both", json!({ "ipAddressPools": ["b"], "ipAddressPoolSelectors": by_label })),
        bgp("name", json!({ "ipAddressPools": ["a", "unknown"] })),
        bgp("label", json!({ "ipAddressPoolSelectors": by_label })),
        bgp("none", json!({ "ipAddressPools": ["unknown"] })),
    ]));
    assert_eq!(bgp_names(&config, "a"), ["all", "name"]);
    assert_eq!(bgp_names(&config, "b"), ["all", "both", "label"]);
}

#[test]
fn an_advertisement_in_error_keeps_its_last_good_form_with_the_nodes_of_now() {
    let all = [pool("a", &["192.0.2.0/24"]), l2("l", json!({ "interfaces": ["eth0"] }))];
    let last = good(&with_nodes(resources(&all), &["n1"]));
    let bad = [pool("a", &["192.0.2.0/24"]), l2("l", json!({ "nodeSelectors": [{}, {}] }))];
    let (config, errors) = Config::parse(&with_nodes(resources(&bad), &["n1", "n2"]), Some(&last));
    assert_eq!(errors.len(), 1);
    let kept = &config.pools["a"].l2_advertisements[0];
    assert_eq!(kept.interfaces, crate::InterfaceMatch::Only(["eth0".to_owned()].into()));
    assert_eq!(kept.nodes.len(), 2);
}

#[test]
fn an_alias_that_is_gone_leaves_the_routes_as_they_are() {
    let pool = pool("a", &["192.0.2.0/24"]);
    let advertisement = bgp("b", json!({ "communities": ["drain"] }));
    let alias = json!({ "communities": [{ "name": "drain", "value": "65535:666" }] });
    let community = object("Community", "c", alias);
    let last = good(&resources(&[pool.clone(), advertisement.clone(), community]));
    let without = resources(&[pool, advertisement]);
    let (config, errors) = Config::parse(&without, Some(&last));
    assert_eq!(config.pools, last.pools);
    assert_eq!(errors[0].field(), "spec.communities[0]");
    // Not only once, and still reported.
    assert_eq!(Config::parse(&without, Some(&config)), (config, errors));
}

#[test]
fn an_object_that_cannot_be_read_keeps_its_last_good_form() {
    let objects = [
        ("IPAddressPool", pool("a", &["192.0.2.0/24"])),
        ("L2Advertisement", l2("l", json!({ "interfaces": ["eth0"] }))),
        ("BGPAdvertisement", bgp("b", json!({ "communities": ["x"] }))),
        ("BGPPeer", peer("router", json!({ "bfdProfile": "fast" }))),
        ("BFDProfile", object("BFDProfile", "fast", json!({}))),
        (
            "Community",
            object("Community", "c", json!({ "communities": [{ "name": "x", "value": "1:1" }] })),
        ),
    ];
    let all = resources(&objects.clone().map(|(_, object)| object));
    let last = good(&all);
    for (index, (kind, lost)) in objects.iter().enumerate() {
        let mut rest = objects.to_vec();
        rest.remove(index);
        let rest: Vec<Value> = rest.into_iter().map(|(_, object)| object).collect();
        let mut resources = resources(&rest);
        let name = lost["metadata"]["name"].as_str().unwrap();
        let lost = ObjectRef { kind, name: name.to_owned() };
        resources.unreadable.insert(lost.clone(), "spec.x is 7".to_owned());
        let (config, errors) = Config::parse(&resources, Some(&last));
        assert_eq!(config, last, "{kind}");
        let error = errors.iter().find(|error| error.object() == lost).unwrap();
        assert_eq!(error.rule(), &Rule::Unreadable("spec.x is 7".to_owned()));
        // Without a last form it is left out.
        let (config, _) = Config::parse(&resources, None);
        assert_eq!(config.left_out_pools.contains("a"), *kind == POOL, "{kind}");
    }
}

#[test]
fn an_alias_is_defined_once() {
    let alias = |value| json!({ "communities": [{ "name": "x", "value": value }] });
    let first = created(object("Community", "b", alias("1:1")), 1);
    let second = created(object("Community", "a", alias("2:2")), 2);
    let (config, errors) = Config::parse(
        &resources(&[
            pool("p", &["192.0.2.0/24"]),
            bgp("all", json!({ "communities": ["x"] })),
            second,
            first,
        ]),
        None,
    );
    let communities = &config.pools["p"].bgp_advertisements[0].communities;
    assert_eq!(communities.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1:1"]);
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["Community \"a\": spec.communities[0].name: the name \"x\" is already defined in \
          Community \"b\""]
    );
}

#[test]
fn a_secret_or_profile_that_is_gone_leaves_the_session_as_it_is() {
    let peer = peer("router", json!({ "bfdProfile": "fast", "passwordSecret": { "name": "key" } }));
    let mut before = resources(&[peer.clone(), object("BFDProfile", "fast", json!({}))]);
    let secret = Secret {
        kind: "kubernetes.io/basic-auth".to_owned(),
        password: Some("x".to_owned().into()),
    };
    before.secrets.insert("key".to_owned(), secret);
    let last = good(&before);
    let without = resources(&[peer]);
    let (config, errors) = Config::parse(&without, Some(&last));
    assert_eq!((&config.peers, &config.bfd_profiles), (&last.peers, &last.bfd_profiles));
    let fields: Vec<_> = errors.iter().map(ConfigError::field).collect();
    assert_eq!(fields, ["spec.passwordSecret", "spec.bfdProfile"]);
    // Not only once.
    assert_eq!(Config::parse(&without, Some(&config)).0.peers, last.peers);
    // Without a last form there is nothing to go on with.
    assert!(Config::parse(&without, None).0.peers.is_empty());
}

#[test]
fn two_sessions_to_one_place_need_two_nodes() {
    let on = |name: &str, node: &str| peer(name, json!({ "nodeSelectors": [hostname(node)] }));
    let apart = resources(&[on("a", "n1"), on("b", "n2")]);
    assert_eq!(errors(&with_nodes(apart.clone(), &["n1", "n2"]), None), Vec::<String>::new());
    assert_eq!(
        errors(&apart, None),
        ["BGPPeer \"b\": spec.peerAddress: BGPPeer \"a\" already is the session with \
          192.0.2.1"]
    );
    assert_eq!(
        errors(&with_nodes(resources(&[on("a", "n1"), peer("b", json!({}))]), &["n1"]), None),
        ["BGPPeer \"b\": spec.peerAddress: BGPPeer \"a\" already is the session with \
          192.0.2.1 on node \"n1\""]
    );
    for different in [
        json!({ "vrf": "red" }),
        json!({ "peerPort": 1179 }),
        json!({ "peerAddress": "192.0.2.2" }),
        json!({ "peerAddress": "192.0.2.2", "myASN": 64510, "routerID": "192.0.2.9" }),
    ] {
        let both = resources(&[peer("a", json!({})), peer("b", different.clone())]);
        assert_eq!(errors(&both, None), Vec::<String>::new(), "{different}");
    }
}

#[test]
fn a_pool_too_small_for_an_advertisement_takes_no_other_routes_away() {
    let wide = pool("wide", &["192.0.2.0/24"]);
    let advertisement = bgp("all", json!({ "aggregationLength": 24 }));
    let last = good(&resources(&[wide.clone(), advertisement.clone()]));
    let both = resources(&[wide, advertisement, pool("small", &["198.51.100.0/26"])]);
    let (config, errors) = Config::parse(&both, Some(&last));
    assert_eq!(bgp_names(&config, "wide"), ["all"]);
    assert_eq!(bgp_names(&config, "small"), Vec::<String>::new());
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["BGPAdvertisement \"all\": spec.aggregationLength: the aggregation length 24 of \
          BGPAdvertisement \"all\" is shorter than the prefix length 26 of 198.51.100.0/26 in \
          pool \"small\", so that addresses outside of the pool would be announced; use 26 \
          or more"]
    );
}

#[test]
fn an_advertisement_that_became_too_wide_stays_as_it_was() {
    let pool = pool("p", &["192.0.2.0/26"]);
    let last = good(&resources(&[pool.clone(), bgp("all", json!({ "localPref": 7 }))]));
    let wide = bgp("all", json!({ "aggregationLength": 24 }));
    let (config, errors) = Config::parse(&resources(&[pool, wide]), Some(&last));
    assert_eq!(config, last);
    assert_eq!(errors.len(), 1);
}

#[test]
fn one_route_has_one_local_preference() {
    let with = |a: Value, b: Value| {
        let objects = [
            pool("p", &["192.0.2.0/24", "2001:db8::/64"]),
            created(bgp("a", a), 1),
            created(bgp("b", b), 2),
        ];
        errors(&with_nodes(resources(&objects), &["n1", "n2"]), None).len()
    };
    let (low, high) = (json!({ "localPref": 1 }), json!({ "localPref": 2 }));
    assert_eq!(with(low.clone(), low.clone()), 0);
    assert_eq!(with(low.clone(), high.clone()), 1);
    let changed = |name: &str, value: Value| {
        let mut changed = high.clone();
        changed[name] = value;
        changed
    };
    // The IPv6 routes would still be the same.
    assert_eq!(with(low.clone(), changed("aggregationLength", 24.into())), 1);
    let both = json!({ "localPref": 2, "aggregationLength": 24, "aggregationLengthV6": 64 });
    assert_eq!(with(low.clone(), both), 0);
    assert_eq!(with(low.clone(), changed("peers", json!(["x"]))), 1);
    assert_eq!(with(json!({ "localPref": 1, "peers": ["y"] }), changed("peers", json!(["x"]))), 0);
    assert_eq!(with(low.clone(), changed("serviceSelectors", json!([{}]))), 0);
    let on = |name| json!([hostname(name)]);
    assert_eq!(with(low.clone(), changed("nodeSelectors", on("n1"))), 1);
    assert_eq!(
        with(
            json!({ "localPref": 1, "nodeSelectors": on("n2") }),
            changed("nodeSelectors", on("n1"))
        ),
        0
    );
}

#[test]
fn one_route_has_one_med_and_one_length() {
    let with = |a: Value, b: Value| {
        let objects =
            [pool("p", &["192.0.2.0/24"]), created(bgp("a", a), 1), created(bgp("b", b), 2)];
        errors(&with_nodes(resources(&objects), &["n1"]), None)
    };
    assert_eq!(
        with(json!({ "med": 1, "asPathPrepend": 2 }), json!({ "med": 1, "asPathPrepend": 2 })),
        [""; 0]
    );
    assert_eq!(
        with(json!({ "med": 1 }), json!({ "asPathPrepend": 1 })),
        ["med", "asPathPrepend"].map(|attribute| format!(
            "BGPAdvertisement \"b\": spec.{attribute}: BGPAdvertisement \"b\" gives the same \
             routes of pool \"p\" from the same nodes to the same peers another {attribute} than \
             \"a\"; make them equal, or keep the two apart"
        ))
    );
    let apart = json!({ "med": 1, "aggregationLength": 24 });
    assert_eq!(with(apart, json!({ "med": 2 })), [""; 0]);
}

#[test]
fn echo_is_not_for_ipv6() {
    let objects = |addresses: &[&str], peers: Value| {
        resources(&[
            pool("p", addresses),
            bgp("all", json!({ "peers": peers })),
            peer("router", json!({ "bfdProfile": "echo" })),
            object("BFDProfile", "echo", json!({ "echoMode": true })),
        ])
    };
    assert_eq!(errors(&objects(&["192.0.2.0/24"], json!([])), None), Vec::<String>::new());
    assert_eq!(errors(&objects(&["2001:db8::/64"], json!(["other"])), None), Vec::<String>::new());
    assert_eq!(
        errors(&objects(&["2001:db8::/64"], json!([])), None),
        ["BGPAdvertisement \"all\": spec.peers: pool \"p\", which BGPAdvertisement \"all\" \
          announces to BGPPeer \"router\", has IPv6 addresses, and BFDProfile \"echo\" of that \
          peer has echoMode, which is for IPv4 only; turn echoMode off, or leave the peer or \
          the pool out of the advertisement"]
    );
}

#[test]
fn debug_output_holds_no_password() {
    let config = good(&resources(&[peer("router", json!({ "password": "hunter2" }))]));
    assert!(!format!("{config:?}").contains("hunter2"));
}

fn any_pools() -> impl Strategy<Value = Vec<(u8, u8, u8, u8)>> {
    proptest::collection::vec((0..6u8, 0..32u8, 0..12u8, 0..10u8), 0..6)
}

/// Some pools; every tenth is nonsense.
fn pools_of(pools: &[(u8, u8, u8, u8)]) -> Resources {
    let mut objects = BTreeMap::new();
    for &(name, first, length, luck) in pools {
        let range = if luck == 0 {
            "nonsense".to_owned()
        } else {
            format!("192.0.2.{first}-192.0.2.{}", first + length)
        };
        let name = format!("p{name}");
        objects.insert(name.clone(), created(pool(&name, &[&range]), luck));
    }
    resources(&objects.into_values().collect::<Vec<_>>())
}

proptest! {
    /// Whatever is written, in any number of steps: no two pools overlap, a pool without an
    /// error is as written, and one that was there stays with an error or without.
    #[test]
    fn pools_stay_disjoint_and_in_force(
        steps in proptest::collection::vec(any_pools(), 1..5)
    ) {
        let mut last = Config::default();
        for step in &steps {
            let resources = pools_of(step);
            let (config, errors) = Config::parse(&resources, Some(&last));
            let all: Vec<AddressRange> =
                config.pools.values().flat_map(|pool| pool.ranges.clone()).collect();
            for (i, a) in all.iter().enumerate() {
                prop_assert!(!all[i + 1..].iter().any(|b| a.overlaps(b)));
            }
            for object in &resources.pools {
                let name = object.metadata.name.as_deref().unwrap();
                let now = config.pools.get(name).map(|pool| &pool.ranges);
                let before = last.pools.get(name).map(|pool| &pool.ranges);
                if errors.iter().any(|error| error.object().name == name) {
                    prop_assert_eq!(now, before);
                } else {
                    let range: AddressRange = object.spec.addresses[0].parse().unwrap();
                    prop_assert_eq!(now, Some(&vec![range]));
                }
            }
            prop_assert_eq!(&Config::parse(&resources, Some(&last)), &(config.clone(), errors));
            last = config;
        }
    }

    #[test]
    fn nothing_written_makes_the_parser_panic(
        texts in proptest::collection::vec("\\PC{0,12}", 8),
        number in any::<i32>(),
        unsigned in any::<u32>(),
    ) {
        let t = |i: usize| texts[i].clone();
        let resources = resources(&[
            object("IPAddressPool", &t(0), json!({
                "addresses": [t(1), format!("{}-{}", t(2), t(3))],
                "serviceAllocation": { "priority": i64::from(number) << 20, "namespaces": [t(4)] },
            })),
            pool("p", &["0.0.0.0/0", "::/0"]),
            l2(&t(5), json!({ "preferredNodeSelectors": [
                { "weight": number, "preference": { "matchLabels": { (t(6)): t(7) } } },
            ] })),
            bgp(&t(1), json!({
                "aggregationLength": number, "aggregationLengthV6": number,
                "localPref": unsigned, "communities": [t(0), format!("{}:{}", t(1), t(2))],
            })),
            peer(&t(2), json!({
                "holdTime": t(3), "keepaliveTime": format!("{unsigned}h"),
                "connectTime": format!("{number}s"), "routerID": t(4), "password": t(5),
            })),
            object("BFDProfile", &t(3), json!({ "detectMultiplier": unsigned })),
            object("Community", &t(4), json!({ "communities": [{ "name": t(5), "value": t(6) }] })),
        ]);
        let (config, _) = Config::parse(&with_nodes(resources.clone(), &["n"]), None);
        let _ = Config::parse(&resources, Some(&config));
    }
}
