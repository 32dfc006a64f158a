//! What planning costs a speaker: 10,000 Services with 50,000 EndpointSlices on 100 nodes.
//!
//! Prints the time of the first plan and of one changed Service, and the memory that the planner
//! takes after each step. Nothing here touches a network.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use ownership::{AddressState, Proof, Stage};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use speaker::{
    plan::Options,
    planner::{Action, Event, Planner, PlannerConfig},
    view::Many,
};

const SERVICES: u32 = 10_000;
const SLICES_EACH: u32 = 5;
const NODES: u32 = 100;

fn main() {
    let settings = PlannerConfig {
        me: "node-0".into(),
        heartbeat: Some(IpAddr::from([10, 0, 0, 1])),
        options: Options::default(),
    };
    let mut planner = Planner::new(settings);
    let now = Instant::now();
    let before = resident();
    println!("at the start: {} MiB", mebibytes(before));
    planner.handle(Event::Resources(Box::new(resources())), now);
    for number in 0..NODES {
        planner.handle(Event::NodeApplied(Box::new(node(number))), now);
    }
    planner.handle(Event::ListBegins(Many::Services), now);
    for number in 0..SERVICES {
        planner.handle(Event::ServiceApplied(Box::new(service(number, "a"))), now);
    }
    planner.handle(Event::ListEnds(Many::Services), now);
    report("10,000 Services taken in", before);
    planner.handle(Event::ListBegins(Many::EndpointSlices), now);
    for number in 0..SERVICES * SLICES_EACH {
        planner.handle(Event::SliceApplied(Box::new(slice(number))), now);
    }
    planner.handle(Event::ListEnds(Many::EndpointSlices), now);
    report("50,000 EndpointSlices taken in", before);

    planner.handle(Event::Synced, now);
    let (actions, took) = timed(|| planner.handle_timeout(now));
    println!("first plan: {took:?}, {} actions", actions.len());
    report("planned", before);
    let states = addresses(&actions).map(|address| (address, Some(owned()))).collect();
    drop(actions);
    planner.handle(Event::Addresses(states), now);
    let (actions, took) = timed(|| planner.handle_timeout(now));
    println!("all addresses owned: {took:?}, {} actions", actions.len());
    drop(actions);
    report("all statuses told", before);

    let mut changes = Vec::new();
    for number in 0..1000 {
        let changed = Box::new(service(number * 7, "b"));
        let gone = Event::ServiceDeleted(speaker::view::ServiceKey::new(
            changed.metadata.namespace.clone().unwrap(),
            changed.metadata.name.clone().unwrap(),
        ));
        let (_, took) = timed(|| {
            planner.handle(gone, now);
            planner.handle_timeout(now);
            planner.handle(Event::ServiceApplied(changed), now);
            planner.handle_timeout(now)
        });
        changes.push(took);
    }
    changes.sort();
    println!(
        "one Service removed and added: median {:?}, p99 {:?}",
        changes[changes.len() / 2],
        changes[changes.len() * 99 / 100]
    );
    let mut labelled = node(1);
    labelled.metadata.labels.get_or_insert_default().insert("a".to_owned(), "b".to_owned());
    planner.handle(Event::NodeApplied(Box::new(labelled)), now);
    let (actions, took) = timed(|| planner.handle_timeout(now));
    println!("a label of a node: {took:?}, {} actions", actions.len());
    planner.handle(Event::NodeDeleted("node-1".into()), now);
    let (actions, took) = timed(|| planner.handle_timeout(now));
    println!("a node gone: {took:?}, {} actions", actions.len());
    report("at the end", before);
}

fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = what();
    (result, started.elapsed())
}

fn report(what: &str, before: usize) {
    println!("{what}: + {} MiB", mebibytes(resident().saturating_sub(before)));
}

/// In pages of 4 KiB.
fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

fn mebibytes(pages: usize) -> String {
    format!("{:.1}", pages as f64 / 256.0)
}

fn addresses(actions: &[Action]) -> impl Iterator<Item = IpAddr> {
    actions.iter().flat_map(|action| match action {
        Action::Wanted(wanted) => wanted.addresses.keys().copied().collect(),
        _ => Vec::new(),
    })
}

fn owned() -> AddressState {
    AddressState {
        owner: Some("node-0".into()),
        stage: Stage::Owner,
        epoch: 1,
        conflict: None,
        proof: Proof::Seen { by: "node-1".into() },
    }
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn resources() -> config::Resources {
    let meta = |name: &str| json!({"name": name, "namespace": "metallb-system"});
    config::Resources {
        pools: vec![object(json!({"metadata": meta("lan"), "spec": {
            "addresses": ["10.64.0.0/16"]}}))],
        l2_advertisements: vec![object(json!({"metadata": meta("lan"), "spec": {}}))],
        ..config::Resources::default()
    }
}

fn node(number: u32) -> k8s_openapi::api::core::v1::Node {
    let name = format!("node-{number}");
    object(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("10.0.0.{number}")}]},
    }))
}

fn service(number: u32, version: &str) -> k8s_openapi::api::core::v1::Service {
    let labels: BTreeMap<&str, String> = [
        ("app.kubernetes.io/name", format!("web-{number}")),
        ("app.kubernetes.io/instance", format!("web-{number}")),
        ("app.kubernetes.io/version", version.to_owned()),
        ("app.kubernetes.io/managed-by", "Helm".to_owned()),
    ]
    .into();
    let [_, _, high, low] = number.to_be_bytes();
    object(json!({
        "metadata": {"name": format!("web-{number}"), "namespace": format!("team-{}", number % 50),
                     "uid": format!("00000000-0000-4000-8000-{number:012}"), "labels": labels,
                     "resourceVersion": "1"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"},
        "status": {"loadBalancer": {"ingress": [{"ip": format!("10.64.{high}.{low}")}]}},
    }))
}

fn slice(number: u32) -> k8s_openapi::api::discovery::v1::EndpointSlice {
    let service = number / SLICES_EACH;
    let endpoint = |index: u32| {
        json!({"addresses": [format!("10.244.0.{index}")], "conditions": {"ready": true},
               "nodeName": format!("node-{}", (number + index * 3) % NODES)})
    };
    object(json!({
        "metadata": {"name": format!("web-{service}-{number:05}"),
                     "namespace": format!("team-{}", service % 50), "resourceVersion": "1",
                     "labels": {"kubernetes.io/service-name": format!("web-{service}")}},
        "addressType": "IPv4",
        "endpoints": [endpoint(0), endpoint(1)],
    }))
}
