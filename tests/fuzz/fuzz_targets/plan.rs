//! Pools and Services as anybody may write them, in JSON, one object a line; a line that is no
//! object sets the annotations of the Service before it. Whatever they hold, the plan obeys its own
//! rules, and a controller that starts anew from what it wrote changes nothing.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use config::{Candidate, Config, Resources};
use controller::{
    plan::{Plan, plan},
    service::{Service, ServiceKey},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut resources = Resources::default();
    let mut services: BTreeMap<ServiceKey, Service> = BTreeMap::new();
    let mut last = None;
    for line in text.lines() {
        match serde_json::from_str::<serde_json::Value>(line) {
            Ok(object) if object["kind"] == "Service" => {
                last = Some(object.clone());
                add(&mut services, object);
            }
            Ok(object) if object.is_object() => {
                if let Ok(Some(Candidate::Pool(pool))) = Candidate::from_json(&object) {
                    resources.pools.push(*pool);
                }
            }
            Ok(_) | Err(_) => {
                let Some(object) = &mut last else { continue };
                for name in ["loadBalancerIPs", "address-pool", "allow-shared-ip"] {
                    object["metadata"]["annotations"][format!("metallb.io/{name}")] = line.into();
                    add(&mut services, object.clone());
                }
            }
        }
    }
    let (config, _) = Config::parse(&resources, None);
    let now = Instant::now();
    let whole = plan(&config, &services, now);
    assert_sound(&whole, &config, &services);

    // What was written is kept.
    for (key, service) in &mut services {
        let held = whole.assignment(key);
        service.seen.addresses = held.map(|held| held.addresses().to_vec()).unwrap_or_default();
        service.seen.pool = held.map(|held| held.pool_annotation());
    }
    let again = plan(&config, &services, now);
    for key in services.keys() {
        assert_eq!(whole.assignment(key), again.assignment(key), "{key}");
    }

    // As Services go, what they leave goes to others, and in the end all is free.
    let mut left = again;
    while let Some((key, _)) = services.pop_first() {
        left.revise(&services, &BTreeSet::from([key]), now);
        assert_sound(&left, &config, &services);
    }
    assert_eq!(left.held().count(), 0);
});

fn add(services: &mut BTreeMap<ServiceKey, Service>, object: serde_json::Value) {
    let Ok(object) = serde_json::from_value(object) else { return };
    if let Some(service) = Service::new(&object, None) {
        services.insert(service.key.clone(), service);
    }
}

fn assert_sound(plan: &Plan, config: &Config, services: &BTreeMap<ServiceKey, Service>) {
    let mut users: BTreeMap<IpAddr, Vec<&Service>> = BTreeMap::new();
    for (address, key) in plan.held() {
        users.entry(address).or_default().push(&services[key]);
    }
    for (address, users) in users {
        for (index, a) in users.iter().enumerate() {
            for b in &users[index + 1..] {
                assert!(a.sharing.is_some() && a.sharing == b.sharing, "{address}");
                assert!(!a.ports.iter().any(|port| b.ports.contains(port)), "{address}");
            }
        }
    }
    for (key, refusal) in plan.pending() {
        assert!(!refusal.to_string().is_empty() && !refusal.reason().is_empty(), "{key}");
    }
    for (name, decision) in plan.decisions() {
        for (address, pool) in decision.outcome.assignment().into_iter().flat_map(|a| a.parts()) {
            let owner = config.pools.get(pool);
            let left_out = config.left_out_pools.contains(pool);
            assert!(left_out || owner.is_some_and(|pool| pool.contains(address)), "{name}");
        }
    }
}
