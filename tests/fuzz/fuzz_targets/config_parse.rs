//! Custom resources as anybody may write them: ranges of a pool one a line, or whole objects in
//! JSON, one a line. Whatever they hold, the usable configuration obeys its own rules, and reading
//! it again with what was made from it changes nothing. No write makes admission stumble, and no
//! BGPPeer the conversion between its versions, which loses nothing of it.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use config::{
    AddressRange, Candidate, Config, Existing, ObjectRef, Operation, Resources, ServiceKey, admit,
};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const NAMESPACE: &str = "metallb-system";

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut resources = Resources::default();
    if first & 1 == 0 {
        let addresses: Vec<_> = text.lines().collect();
        add(
            &mut resources,
            &json!({
                "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
                "metadata": {"name": "pool", "namespace": NAMESPACE},
                "spec": {
                    "addresses": addresses,
                    "removalPolicy": if first & 2 == 0 { "Warn" } else { "Refuse" },
                    "reuseAfter": addresses.first(),
                },
            }),
        );
    } else {
        for object in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            convert(&object);
            add(&mut resources, &object);
        }
    }
    let (config, errors) = Config::parse(&resources, None);
    for error in &errors {
        assert!(!error.field().is_empty(), "{error}");
        assert!(error.rule().name().bytes().all(|b| b.is_ascii_alphanumeric()), "{error}");
    }
    let ranges: Vec<&AddressRange> = config.pools.values().flat_map(|pool| &pool.ranges).collect();
    for (index, range) in ranges.iter().enumerate() {
        assert!(range.is_ipv4() == range.last.is_ipv4() && range.first <= range.last, "{range:?}");
        let others = &ranges[index + 1..];
        assert!(!others.iter().any(|other| range.overlaps(other)), "{range:?} in {ranges:?}");
    }
    for pool in &config.left_out_pools {
        assert!(!config.pools.contains_key(pool), "{pool} is both in force and left out");
    }
    let (again, errors_again) = Config::parse(&resources, Some(&config));
    assert_eq!(config, again);
    assert_eq!(errors, errors_again);

    // No pool can be read any more: what was in force stays.
    for pool in std::mem::take(&mut resources.pools) {
        let name = pool.metadata.name.unwrap_or_default();
        resources.unreadable.insert(ObjectRef { kind: "IPAddressPool", name }, text.to_owned());
    }
    let (kept, _) = Config::parse(&resources, Some(&config));
    assert!(config.pools.keys().eq(kept.pools.keys()));
});

/// Where the API would put it, whether or not it would admit it.
fn add(resources: &mut Resources, object: &Value) {
    let Ok(Some(candidate)) = Candidate::from_json(object) else { return };
    // Its verdict is not in question here, that it comes is.
    let held = held(resources);
    for operation in [Operation::Create, Operation::Update, Operation::Delete] {
        let existing = Existing { resources, held: &held, namespace: NAMESPACE };
        let _ = admit(operation, &candidate, &existing);
    }
    match candidate {
        Candidate::Pool(object) => resources.pools.push(*object),
        Candidate::L2Advertisement(object) => resources.l2_advertisements.push(*object),
        Candidate::BgpAdvertisement(object) => resources.bgp_advertisements.push(*object),
        Candidate::BgpPeer(object) => resources.bgp_peers.push(*object),
        Candidate::BfdProfile(object) => resources.bfd_profiles.push(*object),
        Candidate::Community(object) => resources.communities.push(*object),
    }
}

/// A Service at each end of every range.
fn held(resources: &Resources) -> BTreeMap<IpAddr, Vec<ServiceKey>> {
    let texts = resources.pools.iter().flat_map(|pool| &pool.spec.addresses);
    let ranges = texts.filter_map(|text| text.parse::<AddressRange>().ok());
    let ends = ranges.flat_map(|range| [range.first, range.last]);
    ends.map(|end| (end, BTreeSet::from([ServiceKey::new("default", "web")]))).collect()
}

fn convert(object: &Value) {
    const VERSIONS: [&str; 2] = ["metallb.io/v1beta1", "metallb.io/v1beta2"];
    let typed = |object: &Value| serde_json::from_value::<crds::BGPPeer>(object.clone()).ok();
    for desired in VERSIONS {
        let Ok(there) = crds::convert(object, desired) else { continue };
        assert_eq!(there["apiVersion"], *desired);
        let Ok(back) = crds::convert(&there, VERSIONS[1]) else { panic!("{there}") };
        // An annotation in v1beta2 means nothing, and is lost.
        if object["apiVersion"] == VERSIONS[1]
            && object["metadata"].get("annotations").is_none()
            && let Some(before) = typed(object)
        {
            assert_eq!(typed(&back), Some(before), "{there}");
        }
    }
}
