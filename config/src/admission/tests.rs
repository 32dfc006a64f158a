use serde_json::json;

use super::*;
use crate::fixture::{NAMESPACE, candidate, object, pool, resources};

/// The errors, as users see them, or the warnings.
fn admitted(
    operation: Operation,
    object: &Value,
    existing: &[Value],
) -> Result<Vec<String>, Vec<String>> {
    admitted_with(operation, object, &resources(existing), &BTreeMap::new())
}

fn admitted_with(
    operation: Operation,
    object: &Value,
    resources: &Resources,
    held: &BTreeMap<IpAddr, Vec<ServiceKey>>,
) -> Result<Vec<String>, Vec<String>> {
    let existing = Existing { resources, held, namespace: NAMESPACE };
    admit(operation, &candidate(object), &existing)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[test]
fn objects_of_other_namespaces_cannot_be_created_but_changed() {
    let mut elsewhere = pool("a", &["nonsense"]);
    elsewhere["metadata"]["namespace"] = "default".into();
    assert_eq!(
        admitted(Operation::Create, &elsewhere, &[]),
        Err(vec![
            "IPAddressPool \"a\": metadata.namespace: resource must be created in \
             berth-system namespace"
                .to_owned()
        ])
    );
    assert_eq!(admitted(Operation::Update, &elsewhere, &[]), Ok(vec![]));
    assert_eq!(admitted(Operation::Delete, &elsewhere, &[]), Ok(vec![]));
}

#[test]
fn a_conflict_is_the_candidates_even_where_it_would_come_first() {
    let existing = [pool("b", &["192.0.2.0/28"])];
    let errors = admitted(Operation::Create, &pool("a", &["192.0.2.8/30"]), &existing);
    assert_eq!(
        errors,
        Err(vec![
            "IPAddressPool \"a\": spec.addresses[0]: 192.0.2.8/30 overlaps with 192.0.2.0/28, \
             which is already in pool \"b\""
                .to_owned()
        ])
    );
}

#[test]
fn a_pool_that_lost_keeps_nobody_from_changing_the_one_that_won() {
    let mut winner = pool("lan", &["192.0.2.0/28"]);
    winner["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut loser = pool("late", &["192.0.2.8/30"]);
    loser["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z".into();
    let existing = [winner.clone(), loser.clone()];
    winner["spec"]["addresses"] = json!(["192.0.2.0/28", "198.51.100.0/28"]);
    assert_eq!(admitted(Operation::Update, &winner, &existing), Ok(vec![]));
    loser["spec"]["addresses"] = json!(["192.0.2.12/30"]);
    assert!(admitted(Operation::Update, &loser, &existing).is_err(), "it still overlaps");
}

#[test]
fn an_update_takes_the_place_of_the_old_form() {
    let existing = [pool("a", &["192.0.2.0/28"])];
    let wider = pool("a", &["192.0.2.0/24"]);
    assert_eq!(admitted(Operation::Update, &wider, &existing), Ok(vec![]));
}

#[test]
fn errors_of_others_refuse_nothing() {
    let existing = [pool("a", &["nonsense"]), pool("b", &["192.0.2.0"])];
    let good = pool("c", &["192.0.2.0/24"]);
    assert_eq!(admitted(Operation::Create, &good, &existing), Ok(vec![]));
}

#[test]
fn what_is_not_there_yet_refuses_nothing() {
    let peer = object(
        "BGPPeer",
        "router",
        json!({
            "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1",
            "bfdProfile": "later", "passwordSecret": { "name": "later" },
        }),
    );
    assert_eq!(admitted(Operation::Create, &peer, &[]), Ok(vec![]));
    let advertisement =
        |community: &str| object("BGPAdvertisement", "all", json!({ "communities": [community] }));
    assert_eq!(admitted(Operation::Create, &advertisement("later"), &[]), Ok(vec![]));
    assert!(admitted(Operation::Create, &advertisement("1:2:3"), &[]).is_err());
}

#[test]
fn a_bfd_profile_stays_while_a_peer_needs_it() {
    let profile = object("BFDProfile", "fast", json!({}));
    let peer = object("BGPPeer", "router", json!({ "myASN": 1, "bfdProfile": "fast" }));
    assert_eq!(admitted(Operation::Delete, &profile, &[]), Ok(vec![]));
    assert_eq!(
        admitted(Operation::Delete, &profile, &[peer]),
        Err(vec![
            "BFDProfile \"fast\": metadata.name: failed to delete BFDProfile fast, used by \
             BGPPeer router"
                .to_owned()
        ])
    );
    let pool = pool("a", &["192.0.2.0/24"]);
    assert_eq!(admitted(Operation::Delete, &pool, &[]), Ok(vec![]));
}

#[test]
fn what_is_of_no_effect_or_of_too_much_is_warned_of_and_the_rest_still_checked() {
    let spec = json!({
        "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1", "disableMP": true,
    });
    let mut peer = object("BGPPeer", "router", spec);
    assert_eq!(admitted(Operation::Create, &peer, &[]).unwrap().len(), 1);
    for (time, warnings) in [("1m0s", 1), ("61s", 2)] {
        peer["spec"]["gracefulRestartTime"] = time.into();
        assert_eq!(admitted(Operation::Create, &peer, &[]).unwrap().len(), warnings, "{time}");
    }
    peer["spec"]["peerAddress"] = "nonsense".into();
    assert!(admitted(Operation::Create, &peer, &[]).is_err());
}

fn held(addresses: &[(&str, &str)]) -> BTreeMap<IpAddr, Vec<ServiceKey>> {
    let mut held: BTreeMap<IpAddr, Vec<ServiceKey>> = BTreeMap::new();
    for (address, service) in addresses {
        let (namespace, name) = service.split_once('/').unwrap();
        let services = held.entry(address.parse().unwrap()).or_default();
        services.push(ServiceKey::new(namespace, name));
    }
    held
}

#[test]
fn services_that_would_lose_their_addresses_are_named() {
    let held = held(&[
        ("192.0.2.0", "x/buggy"),
        ("192.0.2.1", "x/low"),
        ("192.0.2.200", "x/high"),
        ("192.0.2.200", "y/shared"),
        ("192.0.2.255", "y/elsewhere"),
        ("198.51.100.1", "x/elsewhere"),
        ("2001:db8::1", "x/low"),
    ]);
    let of = |changes: Value| {
        let mut spec = json!({ "addresses": ["192.0.2.0-192.0.2.254", "2001:db8::/64"] });
        spec.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        object("IPAddressPool", "a", spec)
    };
    let old = resources(&[of(json!({}))]);
    let lost = |count: &str, list: &str| {
        Ok(vec![format!(
            "{count} will lose the addresses of IPAddressPool \"a\" and get others where there \
             are any: {list}"
        )])
    };
    for (change, expected) in [
        (json!({}), Ok(vec![])),
        (json!({ "autoAssign": false }), Ok(vec![])),
        (json!({ "addresses": ["192.0.2.0/24", "2001:db8::/32"] }), Ok(vec![])),
        (
            json!({ "addresses": ["192.0.2.0/25", "2001:db8::/64"] }),
            lost("2 Services", "x/high (192.0.2.200), y/shared (192.0.2.200)"),
        ),
        (json!({ "addresses": ["192.0.2.0/24"] }), lost("1 Service", "x/low (2001:db8::1)")),
        (json!({ "avoidBuggyIPs": true }), lost("1 Service", "x/buggy (192.0.2.0)")),
        (
            json!({ "serviceAllocation": { "namespaces": ["x"] } }),
            lost("1 Service", "y/shared (192.0.2.200)"),
        ),
        (json!({ "serviceAllocation": { "serviceSelectors": [{}] } }), Ok(vec![])),
    ] {
        let found = admitted_with(Operation::Update, &of(change.clone()), &old, &held);
        assert_eq!(found, expected, "{change}");
    }
    assert_eq!(
        admitted_with(Operation::Delete, &of(json!({})), &old, &held),
        lost(
            "4 Services",
            "x/buggy (192.0.2.0), x/high (192.0.2.200), x/low (192.0.2.1), y/shared \
             (192.0.2.200)"
        )
    );
    // The pool never owned what it leaves out.
    let buggy = resources(&[of(json!({ "avoidBuggyIPs": true }))]);
    let narrow = of(json!({ "addresses": ["192.0.2.128-192.0.2.254", "2001:db8::/64"] }));
    assert_eq!(
        admitted_with(Operation::Update, &narrow, &buggy, &held),
        lost("1 Service", "x/low (192.0.2.1)")
    );
    // What cannot be read of it may still be held of the rest.
    let ill = of(json!({ "addresses": ["nonsense", "192.0.2.0/25"] }));
    let found = admitted_with(Operation::Delete, &ill, &old, &held);
    assert_eq!(found, lost("2 Services", "x/buggy (192.0.2.0), x/low (192.0.2.1)"));
}

#[test]
fn a_long_list_of_services_is_cut_off() {
    let all: Vec<(String, String)> =
        (0..25).map(|n| (format!("192.0.2.{n}"), format!("x/s{n:02}"))).collect();
    let all: Vec<(&str, &str)> = all.iter().map(|(a, s)| (a.as_str(), s.as_str())).collect();
    let pool = pool("a", &["192.0.2.0/24"]);
    let existing = resources(std::slice::from_ref(&pool));
    let warnings = admitted_with(Operation::Delete, &pool, &existing, &held(&all)).unwrap();
    assert!(warnings[0].starts_with("25 Services will lose"), "{warnings:?}");
    assert!(warnings[0].ends_with("x/s09 (192.0.2.9) and 15 more"), "{warnings:?}");
}

#[test]
fn a_pool_that_refuses_keeps_what_services_hold() {
    let of = |addresses: &str, policy: &str| {
        let spec = json!({ "addresses": [addresses], "removalPolicy": policy });
        object("IPAddressPool", "a", spec)
    };
    let (wide, narrow) = ("192.0.2.0/24", "192.0.2.0/25");
    let held = held(&[("192.0.2.200", "x/web")]);
    for (before, after, refused) in [
        ("Warn", "Warn", false),
        ("Refuse", "Refuse", true),
        // The policy is given up first, in a write of its own.
        ("Refuse", "Warn", true),
        ("Warn", "Refuse", true),
    ] {
        let existing = resources(&[of(wide, before)]);
        let found = admitted_with(Operation::Update, &of(narrow, after), &existing, &held);
        assert_eq!(found.is_err(), refused, "{before} to {after}");
        let found = admitted_with(Operation::Update, &of(wide, after), &existing, &held);
        assert_eq!(found, Ok(vec![]), "{before} to {after}");
        let found =
            admitted_with(Operation::Update, &of(narrow, after), &existing, &BTreeMap::new());
        assert_eq!(found, Ok(vec![]), "{before} to {after}");
    }
    let existing = resources(&[of(wide, "Refuse")]);
    let error = |field: &str| {
        Err(vec![format!(
            "IPAddressPool \"a\": {field}: removalPolicy is Refuse, and 1 Service would lose \
             addresses of the pool: x/web (192.0.2.200); set removalPolicy to Warn first"
        )])
    };
    let update = admitted_with(Operation::Update, &of(narrow, "Refuse"), &existing, &held);
    assert_eq!(update, error("spec.addresses"));
    let delete = admitted_with(Operation::Delete, &of(wide, "Refuse"), &existing, &held);
    assert_eq!(delete, error("metadata.name"));
}

#[test]
fn a_write_that_breaks_another_object_is_refused_and_one_that_changes_nothing_is_not() {
    let aggregated = object("BGPAdvertisement", "all", json!({ "aggregationLength": 24 }));
    let narrow = pool("a", &["198.51.100.0/24", "192.0.2.0/26"]);
    let wide = pool("a", &["192.0.2.0/24"]);
    let error = Err(vec![
        "IPAddressPool \"a\": spec.addresses[1]: the aggregation length 24 of \
         BGPAdvertisement \"all\" is shorter than the prefix length 26 of 192.0.2.0/26 in pool \
         \"a\", so that addresses outside of the pool would be announced; use 26 or more"
            .to_owned(),
    ]);
    let existing = [aggregated.clone(), wide];
    assert_eq!(admitted(Operation::Update, &narrow, &existing), error);
    assert_eq!(admitted(Operation::Create, &narrow, std::slice::from_ref(&aggregated)), error);
    // A label may do the same.
    let selecting = object(
        "BGPAdvertisement",
        "some",
        json!({
            "aggregationLength": 24,
            "ipAddressPoolSelectors": [{ "matchLabels": { "tier": "front" } }],
        }),
    );
    let existing = [selecting, narrow.clone()];
    let mut labelled = narrow.clone();
    labelled["metadata"]["labels"] = json!({ "tier": "front" });
    assert!(admitted(Operation::Update, &labelled, &existing).is_err());
    // It is so already: the pool can still be changed, also to another too small one.
    let mut other = narrow.clone();
    other["spec"]["autoAssign"] = false.into();
    let existing = [aggregated, narrow];
    assert_eq!(admitted(Operation::Update, &other, &existing), Ok(vec![]));
    other["spec"]["addresses"][1] = "192.0.2.0/27".into();
    assert_eq!(admitted(Operation::Update, &other, &existing), Ok(vec![]));
}

#[test]
fn echo_over_ipv6_is_refused_whichever_of_the_four_is_written_last() {
    let profile = |echo: bool| object("BFDProfile", "echo", json!({ "echoMode": echo }));
    let advertisement = |peers: &[&str]| {
        let spec = json!({ "ipAddressPools": ["p"], "peers": peers });
        object("BGPAdvertisement", "a", spec)
    };
    let peer = |profile: Option<&str>| {
        let mut spec = json!({ "myASN": 1, "peerASN": 2, "peerAddress": "192.0.2.1" });
        spec["bfdProfile"] = json!(profile);
        object("BGPPeer", "router", spec)
    };
    let v6 = || pool("p", &["2001:db8::/64"]);
    let all = [profile(true), advertisement(&["router"]), peer(Some("echo")), v6()];
    for (index, field) in
        ["spec.echoMode", "spec.peers", "spec.bfdProfile", "spec.addresses"].iter().enumerate()
    {
        let mut others = all.to_vec();
        let last = others.remove(index);
        let refusal = admitted(Operation::Create, &last, &others).unwrap_err();
        assert_eq!(refusal.len(), 1, "{refusal:?}");
        assert!(refusal[0].contains(&format!(": {field}: pool \"p\", which")), "{refusal:?}");
        let harmless =
            [profile(false), advertisement(&["x"]), peer(None), pool("p", &["192.0.2.0/24"])];
        for (other, harmless) in harmless.into_iter().enumerate() {
            let mut objects = all.to_vec();
            objects[other] = harmless;
            let last = objects.remove(index);
            let good = admitted(Operation::Create, &last, &objects);
            assert_eq!(good, Ok(vec![]), "{field} {other}");
        }
    }
    // What is wrong already stays possible to write about.
    let mut changed = all[2].clone();
    changed["spec"]["holdTime"] = "30s".into();
    assert_eq!(admitted(Operation::Update, &changed, &all), Ok(vec![]));
}

#[test]
fn metadata_of_an_object_in_error_can_be_changed() {
    let bad = pool("a", &["nonsense"]);
    let mut changed = bad.clone();
    changed["metadata"]["finalizers"] = json!([]);
    changed["metadata"]["annotations"] = json!({ "note": "x" });
    let warnings = admitted(Operation::Update, &changed, std::slice::from_ref(&bad)).unwrap();
    assert!(warnings[0].contains("spec.addresses[0]"), "{warnings:?}");
    changed["spec"]["autoAssign"] = false.into();
    assert!(admitted(Operation::Update, &changed, &[bad]).is_err());
}

#[test]
fn what_could_not_be_read_can_be_repaired() {
    let mut existing = Resources::default();
    let lost = ObjectRef { kind: POOL, name: "a".to_owned() };
    existing.unreadable.insert(lost, "spec.x is 7".to_owned());
    let repaired = pool("a", &["192.0.2.0/24"]);
    let found = admitted_with(Operation::Update, &repaired, &existing, &BTreeMap::new());
    assert_eq!(found, Ok(vec![]));
}

#[test]
fn who_still_names_what_goes_away_is_told() {
    let users = [
        object("L2Advertisement", "l", json!({ "ipAddressPools": ["a", "b"] })),
        object(
            "BGPAdvertisement",
            "b",
            json!({ "ipAddressPools": ["a"], "peers": ["router"], "communities": ["x", "1:1"] }),
        ),
        object("BGPAdvertisement", "c", json!({ "communities": ["y"] })),
    ];
    let aliases = |names: &[&str]| {
        let aliases = names.iter().map(|name| json!({ "name": name, "value": "1:2" }));
        object("Community", "c", json!({ "communities": aliases.collect::<Vec<_>>() }))
    };
    let peer = object(
        "BGPPeer",
        "router",
        json!({ "myASN": 1, "peerASN": 2, "peerAddress": "192.0.2.1" }),
    );
    for (gone, warning) in [
        (
            pool("a", &["192.0.2.0/24"]),
            "still named by L2Advertisement \"l\", BGPAdvertisement \"b\"",
        ),
        (pool("b", &["192.0.2.0/24"]), "still named by L2Advertisement \"l\""),
        (peer, "still named by BGPAdvertisement \"b\""),
        (aliases(&["x", "z"]), "still named by BGPAdvertisement \"b\""),
    ] {
        let found = admitted(Operation::Delete, &gone, &users);
        assert_eq!(found, Ok(vec![warning.to_owned()]), "{gone}");
    }
    assert_eq!(admitted(Operation::Delete, &aliases(&["z"]), &users), Ok(vec![]));
    let mut existing = users.to_vec();
    existing.push(aliases(&["x", "y"]));
    assert_eq!(
        admitted(Operation::Update, &aliases(&["x"]), &existing),
        Ok(vec!["still named by BGPAdvertisement \"c\"".to_owned()])
    );
}

#[test]
fn addresses_of_the_cluster_itself_are_warned_of() {
    let mut existing = Resources::default();
    let address = "192.0.2.7".parse().unwrap();
    let node = crate::NodeAddress { address, kind: "InternalIP".into() };
    existing.node_addresses.insert("n1".into(), [node].into());
    existing.service_ranges.insert("kubernetes".to_owned(), vec!["10.96.0.0/16".parse().unwrap()]);
    let none = BTreeMap::new();
    let warning = |list: &str| {
        Ok(vec![format!(
            "spec.addresses has addresses that are in use by the cluster itself, which only \
             Services that ask for them are given while the pool has others: {list}"
        )])
    };
    for (range, expected) in [
        ("198.51.100.0/24", Ok(vec![])),
        ("192.0.2.0/24", warning("192.0.2.7 (InternalIP of Node \"n1\")")),
        ("10.96.3.0/24", warning("10.96.0.0/16 (the cluster's Service range)")),
    ] {
        let found = admitted_with(Operation::Create, &pool("a", &[range]), &existing, &none);
        assert_eq!(found, expected, "{range}");
    }
}

#[test]
fn every_served_version_is_read_and_other_kinds_are_not() {
    let mut peer = object(
        "BGPPeer",
        "router",
        json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" }),
    );
    let new = candidate(&peer);
    peer["apiVersion"] = "metallb.io/v1beta1".into();
    let old = candidate(&peer);
    assert_eq!(new.object(), old.object());
    assert!(matches!(old, Candidate::BgpPeer(peer) if peer.spec.peer_port == 179));
    for other in [
        json!({ "apiVersion": "v1", "kind": "Service" }),
        json!({ "apiVersion": "example.org/v1", "kind": "IPAddressPool" }),
        json!({ "apiVersion": "metallb.io/v1beta1", "kind": "ServiceL2Status" }),
        json!(null),
    ] {
        assert_eq!(Candidate::from_json(&other), Ok(None), "{other}");
    }
    let spec = json!({ "addresses": 7 });
    let error = Candidate::from_json(&object("IPAddressPool", "a", spec)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "IPAddressPool \"a\": spec: cannot be read: invalid type: integer `7`, expected a sequence"
    );
}
