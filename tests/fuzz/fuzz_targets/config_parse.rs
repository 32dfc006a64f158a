//! Custom resources as anybody may write them: ranges of a pool one a line, or whole objects in
//! JSON, one a line. Whatever they hold, the usable configuration obeys its own rules, and reading
//! it again with what was made from it changes nothing.
#![no_main]

use config::{AddressRange, Candidate, Config, Operation, Resources, admit};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

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
                "spec": {"addresses": addresses},
            }),
        );
    } else {
        for object in text.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            add(&mut resources, &object);
        }
    }
    let (config, errors) = Config::parse(&resources, None);
    for error in &errors {
        assert!(!error.field().is_empty(), "{error}");
    }
    let ranges: Vec<&AddressRange> = config.pools.values().flat_map(|pool| &pool.ranges).collect();
    for (index, range) in ranges.iter().enumerate() {
        assert!(range.is_ipv4() == range.last.is_ipv4() && range.first <= range.last, "{range:?}");
        let others = &ranges[index + 1..];
        assert!(!others.iter().any(|other| range.overlaps(other)), "{range:?} in {ranges:?}");
    }
    let (again, errors_again) = Config::parse(&resources, Some(&config));
    assert_eq!(config, again);
    assert_eq!(errors, errors_again);
});

/// Where the API would put it, whether or not it would admit it.
fn add(resources: &mut Resources, object: &serde_json::Value) {
    let Ok(Some(candidate)) = Candidate::from_json(object) else { return };
    // Its verdict is not in question here, that it comes is.
    let _ = admit(Operation::Create, &candidate, resources, NAMESPACE);
    match candidate {
        Candidate::Pool(object) => resources.pools.push(*object),
        Candidate::L2Advertisement(object) => resources.l2_advertisements.push(*object),
        Candidate::BgpAdvertisement(object) => resources.bgp_advertisements.push(*object),
        Candidate::BgpPeer(object) => resources.bgp_peers.push(*object),
        Candidate::BfdProfile(object) => resources.bfd_profiles.push(*object),
        Candidate::Community(object) => resources.communities.push(*object),
    }
}
