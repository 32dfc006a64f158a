//! What planning costs a speaker: `make bench-planner`. 10,000 Services with 50,000 EndpointSlices on
//! 100 nodes go through the planner alone; nothing here touches a network.
//!
//! Memory is what the allocator has handed out and not got back: it is the same on every machine with
//! glibc, and 0 elsewhere.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use ownership::{AddressState, Proof, Stage};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use speaker::{
    io::allocator::{in_use, use_one_arena},
    plan::Options,
    planner::{Action, Event, Planner, PlannerConfig},
    view::{Many, ServiceKey},
};
use tests::bench::{Goal, Rows, count, percentile};

const SERVICES: u32 = 10_000;
const SLICES_EACH: u32 = 5;
const NODES: u32 = 100;
/// What a Service with four labels and five EndpointSlices may take at most, in octets: so that what
/// makes it larger is seen.
const EACH: f64 = 1200.0;

fn main() -> Result<()> {
    use_one_arena();
    let mut rows = Rows::default();
    let settings = PlannerConfig {
        me: "node-0".into(),
        heartbeat: Some(IpAddr::from([10, 0, 0, 1])),
        bgp_drain_time: Duration::from_secs(5),
        options: Options::default(),
    };
    let now = Instant::now();
    let empty = in_use();
    let memory = |rows: &mut Rows, after: &str, goal| {
        let each = count(in_use() - empty) / f64::from(SERVICES);
        rows.push(&format!("memory for each Service, {after}"), "octets", vec![each], goal);
    };
    let mut planner = Planner::new(settings);
    planner.handle(Event::Resources(Box::new(resources())), now);
    for number in 0..NODES {
        planner.handle(Event::NodeApplied(Box::new(node(number))), now);
    }
    planner.handle(Event::ListBegins(Many::Services), now);
    for number in 0..SERVICES {
        planner.handle(Event::ServiceApplied(Box::new(service(number, "a"))), now);
    }
    planner.handle(Event::ListEnds(Many::Services), now);
    memory(&mut rows, "read", None);
    planner.handle(Event::ListBegins(Many::EndpointSlices), now);
    for number in 0..SERVICES * SLICES_EACH {
        planner.handle(Event::SliceApplied(Box::new(slice(number))), now);
    }
    planner.handle(Event::ListEnds(Many::EndpointSlices), now);
    memory(&mut rows, "and its five EndpointSlices", None);

    planner.handle(Event::Synced, now);
    let (actions, took) = timed(|| planner.handle_timeout(now));
    rows.push("first plan of 10,000 Services", "ms", vec![took], None);
    let states = addresses(&actions).map(|address| (address, Some(owned()))).collect();
    drop(actions);
    memory(&mut rows, "and its plan", None);
    planner.handle(Event::Addresses(states), now);
    let (actions, took) = timed(|| planner.handle_timeout(now));
    rows.push("10,000 addresses owned: their statuses", "ms", vec![took], None);
    drop(actions);
    memory(&mut rows, "and its status", Some(Goal::Max(EACH)));

    let mut changes = Vec::new();
    for number in 0..1000 {
        let changed = Box::new(service(number * 7, "b"));
        let gone = Event::ServiceDeleted(ServiceKey::new(
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
    let p99 = percentile(&changes, 99);
    rows.push("one of 10,000 Services removed and added", "ms", changes, None);
    rows.push("one of 10,000 Services removed and added, p99", "ms", vec![p99], None);
    let mut labelled = node(1);
    labelled.metadata.labels.get_or_insert_default().insert("a".to_owned(), "b".to_owned());
    planner.handle(Event::NodeApplied(Box::new(labelled)), now);
    let (_, took) = timed(|| planner.handle_timeout(now));
    rows.push("a label of one of 100 nodes changed", "ms", vec![took], None);
    planner.handle(Event::NodeDeleted("node-1".into()), now);
    let (_, took) = timed(|| planner.handle_timeout(now));
    rows.push("one of 100 nodes gone", "ms", vec![took], None);
    memory(&mut rows, "after all that", Some(Goal::Max(EACH)));
    rows.publish()
}

/// With the time that it took, in milliseconds.
fn timed<T>(what: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let result = what();
    (result, started.elapsed().as_secs_f64() * 1e3)
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
