//! Objects for scenarios, and scenarios made from a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use config::Resources;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use rand::RngExt as _;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    api::Key,
    checker::{SHARE, at_rest},
    cluster::{Broken, Cluster, Fault, Options, addresses},
    replicas::{self, Replicas},
};

/// Long enough for every back-off, list and hand-over to end.
pub const REST: Duration = Duration::from_secs(12);

/// IPv4 addresses of the pool `lan`; of IPv6 ones it has more.
pub const LAN_V4: usize = 10;

/// A pool of one /28 of each family in the segment's subnets, announced by ARP and NDP from every
/// node, and one of each announced by BGP.
pub fn resources(peer: bool) -> Resources {
    let mut resources = Resources {
        pools: vec![
            object(json!({"metadata": meta("lan"), "spec": {
                "addresses": ["10.0.0.240-10.0.0.249", "fd00:a::f0/124"],
            }})),
            object(json!({"metadata": meta("routed"), "spec": {
                "addresses": ["203.0.113.0/28", "2001:db8:113::/124"], "autoAssign": false,
            }})),
        ],
        l2_advertisements: vec![object(
            json!({"metadata": meta("lan"), "spec": {"ipAddressPools": ["lan"]}}),
        )],
        bgp_advertisements: vec![object(
            json!({"metadata": meta("routed"), "spec": {"ipAddressPools": ["routed"]}}),
        )],
        ..Resources::default()
    };
    if peer {
        resources.bgp_peers = vec![object(json!({"metadata": meta("tor"), "spec": {
            "myASN": 64_513, "peerASN": 64_512, "peerAddress": "10.0.0.1",
            "dualStackAddressFamily": true,
        }}))];
    }
    resources
}

/// A cluster with its nodes known, everything running, and `services` created.
pub fn cluster(seed: u64, options: Options, services: u32) -> Cluster {
    let nodes = options.nodes;
    let mut cluster = Cluster::new(seed, options);
    cluster.api.put_resources(resources(true));
    for index in 0..nodes {
        cluster.api.put_node(node(index));
    }
    for number in 0..services {
        create(&mut cluster, number, Shape::default());
    }
    for index in 0..nodes {
        cluster.fault(Fault::Boot(index));
    }
    cluster.fault(Fault::ControllerBoot);
    cluster
}

/// What a Service of a scenario is like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    pub local: bool,
    pub shared: bool,
    pub routed: bool,
    pub dual: bool,
}

/// Creates Service `number` with an endpoint on one node.
pub fn create(cluster: &mut Cluster, number: u32, shape: Shape) -> Key {
    cluster.api.put_service(service(number, shape));
    let key = ("default".to_owned(), format!("s{number}"));
    let nodes = cluster.nodes.len();
    let node = cluster.rng().random_range(0..nodes);
    endpoints(cluster, &key, &[node]);
    key
}

/// Sets on which nodes a Service has an endpoint.
pub fn endpoints(cluster: &mut Cluster, key: &Key, nodes: &[usize]) {
    let endpoints: Vec<Value> = nodes
        .iter()
        .map(|node| {
            json!({"addresses": ["10.244.0.1"], "nodeName": format!("n{}", node + 1),
                   "conditions": {"ready": true}})
        })
        .collect();
    let slice: EndpointSlice = object(json!({
        "metadata": {"name": key.1, "namespace": key.0,
                     "labels": {"kubernetes.io/service-name": key.1}},
        "addressType": "IPv4",
        "endpoints": endpoints,
    }));
    cluster.api.put_slice(slice);
}

/// A LoadBalancer Service with one port, or two cluster IPs for `shape.dual`.
fn service(number: u32, shape: Shape) -> Service {
    let name = format!("s{number}");
    let mut annotations = BTreeMap::new();
    if shape.shared {
        annotations.insert(SHARE, "together");
    }
    if shape.routed {
        annotations.insert("metallb.io/address-pool", "routed");
    }
    let v4 = format!("10.96.{}.{}", number / 256, number % 256);
    let (families, ips): (Value, Value) = if shape.dual {
        (json!(["IPv4", "IPv6"]), json!([v4, format!("fd96::{number:x}")]))
    } else {
        (json!(["IPv4"]), json!([v4]))
    };
    object(json!({
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families,
            "ipFamilyPolicy": if shape.dual { "RequireDualStack" } else { "SingleStack" },
            "externalTrafficPolicy": if shape.local { "Local" } else { "Cluster" },
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 1000 + number, "protocol": "TCP"}],
        },
    }))
}

fn node(index: usize) -> Node {
    object(json!({
        "metadata": {"name": format!("n{}", index + 1), "labels": {}},
        "status": {"addresses": [
            {"type": "InternalIP", "address": format!("10.0.0.{}", 11 + index)},
        ]},
    }))
}

fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "metallb-system"})
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the scenario's object has its kind's form")
}

/// Plays the scenario of a seed to its end; the story is in the cluster.
///
/// # Errors
/// The rule that was broken.
pub fn play(seed: u64, broken: Option<Broken>) -> (Cluster, Result<(), String>) {
    let nodes = 2 + usize::try_from(seed % 4).expect("small");
    let loss = [0, 0, 5, 20][usize::try_from(seed / 4 % 4).expect("small")];
    let options = Options { nodes, loss, broken, ..Options::default() };
    let mut cluster = cluster(seed, options, 4);
    let outcome = acts(&mut cluster);
    (cluster, outcome)
}

fn acts(cluster: &mut Cluster) -> Result<(), String> {
    let mut number = 4;
    cluster.run(Duration::from_secs(3))?;
    let acts = cluster.rng().random_range(4..=9);
    for _ in 0..acts {
        act(cluster, &mut number);
        let pause = cluster.rng().random_range(1..=900);
        cluster.run(Duration::from_millis(pause))?;
    }
    cluster.fault(Fault::Heal);
    cluster.fault(Fault::ApiUp);
    cluster.run(Duration::from_millis(1100))?;
    for node in 0..cluster.nodes.len() {
        cluster.fault(Fault::LinkUp(node));
        cluster.fault(Fault::Boot(node));
    }
    if !cluster.has_controller() {
        cluster.fault(Fault::ControllerBoot);
    }
    cluster.calm();
    cluster.run(REST)?;
    at_rest(cluster)
}

fn act(cluster: &mut Cluster, number: &mut u32) {
    let nodes = cluster.nodes.len();
    let node = cluster.rng().random_range(0..nodes);
    match cluster.rng().random_range(0..19) {
        0 | 1 => cluster.fault(Fault::Crash(node)),
        2 | 3 => cluster.fault(Fault::Boot(node)),
        4 => cluster.fault(Fault::Leave(node)),
        5 => {
            let time = Duration::from_millis(cluster.rng().random_range(50..2000));
            cluster.fault(Fault::FreezePlanner(node, time));
        }
        6 => cluster.fault(Fault::Split(node)),
        7 => cluster.fault(Fault::Heal),
        8 => cluster.fault(Fault::ControllerCrash),
        9 => cluster.fault(Fault::ControllerBoot),
        10 => cluster.fault(Fault::ApiDown),
        11 => cluster.fault(Fault::ApiUp),
        12 => cluster.fault(Fault::RouterReset),
        17 => cluster.fault(Fault::LinkDown(node)),
        18 => cluster.fault(Fault::LinkUp(node)),
        13 | 14 => {
            // The pool has ten addresses of a family; more Services than that would rightly wait.
            if *number < 9 {
                let shape = Shape {
                    local: cluster.rng().random(),
                    shared: cluster.rng().random_ratio(1, 3),
                    routed: cluster.rng().random_ratio(1, 3),
                    dual: cluster.rng().random(),
                };
                cluster.tell(format_args!("create s{number} {shape:?}"));
                create(cluster, *number, shape);
                *number += 1;
            }
        }
        15 => {
            if let Some(key) = some_service(cluster) {
                cluster.tell(format_args!("delete {key:?}"));
                cluster.api.delete_service(&key);
            }
        }
        _ => {
            if let Some(key) = some_service(cluster) {
                let many = cluster.rng().random_range(0..=nodes);
                let on: BTreeSet<usize> =
                    (0..many).map(|_| cluster.rng().random_range(0..nodes)).collect();
                cluster.tell(format_args!("{key:?} runs on {on:?}"));
                endpoints(cluster, &key, &on.into_iter().collect::<Vec<_>>());
            }
        }
    }
}

/// Several controllers that the faults of a seed happen to; with the Services that come and go
/// meanwhile. At the end everything is well again.
///
/// # Errors
/// The rule that was broken.
pub fn play_replicas(
    seed: u64,
    broken: Option<replicas::Broken>,
) -> (Replicas, Result<(), String>) {
    let count = 2 + usize::try_from(seed % 3).expect("small");
    let mut all = Replicas::new(seed, count, broken);
    all.api.put_resources(resources(false));
    for replica in 0..count {
        all.fault(replicas::Fault::Boot(replica));
    }
    let outcome = replica_acts(&mut all);
    (all, outcome)
}

/// The leader of `count` controllers dies `times` times at random moments, and comes back, while
/// Services come and go.
///
/// # Errors
/// The rule that was broken.
pub fn restarts(seed: u64, count: usize, times: u32) -> (Replicas, Result<(), String>) {
    let mut all = Replicas::new(seed, count, None);
    all.api.put_resources(resources(false));
    for replica in 0..count {
        all.fault(replicas::Fault::Boot(replica));
    }
    let outcome = restart_acts(&mut all, times);
    (all, outcome)
}

fn restart_acts(all: &mut Replicas, times: u32) -> Result<(), String> {
    let mut number = 0;
    for _ in 0..times {
        for _ in 0..all.rng().random_range(0..=3) {
            come_and_go(all, &mut number);
            let pause = all.rng().random_range(0..20);
            all.run(Duration::from_millis(pause))?;
        }
        // A takeover takes up to 2.3 s: some deaths come in the middle of one.
        let pause = all.rng().random_range(0..4000);
        all.run(Duration::from_millis(pause))?;
        let victim = all.leaders().first().copied().unwrap_or_default();
        all.fault(replicas::Fault::Crash(victim));
        let pause = all.rng().random_range(0..500);
        all.run(Duration::from_millis(pause))?;
        all.fault(replicas::Fault::Boot(victim));
    }
    all.run(REST)?;
    replicas_at_rest(all)
}

fn replica_acts(all: &mut Replicas) -> Result<(), String> {
    let mut number = 0;
    let acts = all.rng().random_range(20..=60);
    for _ in 0..acts {
        replica_act(all, &mut number);
        let pause = all.rng().random_range(1..=600);
        all.run(Duration::from_millis(pause))?;
    }
    all.run(Duration::from_secs(6))?;
    for replica in 0..all.count() {
        all.fault(replicas::Fault::Boot(replica));
    }
    all.run(REST)?;
    replicas_at_rest(all)
}

fn replica_act(all: &mut Replicas, number: &mut u32) {
    use replicas::Fault;
    let count = all.count();
    let any = all.rng().random_range(0..count);
    // The leader is who it hurts.
    let replica = all.leaders().first().copied().filter(|_| all.rng().random()).unwrap_or(any);
    let time = Duration::from_millis(all.rng().random_range(50..5000));
    match all.rng().random_range(0..24) {
        0 | 1 => all.fault(Fault::Crash(replica)),
        2..=4 => all.fault(Fault::Boot(any)),
        5 => all.fault(Fault::Stop(replica)),
        6 | 7 => all.fault(Fault::Freeze(replica, time)),
        8 => all.fault(Fault::CutOff(replica, time)),
        9 => all.fault(Fault::ApiFreeze(time)),
        10 => all.fault(Fault::ApiDown(time)),
        11 => all.fault(Fault::WatchLag(any, time)),
        12 => all.fault(Fault::LeaseDeleted),
        _ => come_and_go(all, number),
    }
}

fn come_and_go(all: &mut Replicas, number: &mut u32) {
    let services = all.api.services.len();
    if services > 0 && all.rng().random_ratio(1, 4) {
        let index = all.rng().random_range(0..services);
        if let Some(key) = all.api.services.keys().nth(index).cloned() {
            all.tell(format_args!("delete {key:?}"));
            all.api.delete_service(&key);
        }
        return;
    }
    // More Services than the pool has addresses: some wait for what others leave.
    for _ in 0..all.rng().random_range(1..=4) {
        if all.api.services.len() < 14 {
            let shape = Shape {
                shared: all.rng().random_ratio(1, 4),
                dual: all.rng().random_ratio(1, 3),
                ..Shape::default()
            };
            all.tell(format_args!("create s{number} {shape:?}"));
            all.api.put_service(service(*number, shape));
            *number += 1;
        }
    }
}

/// One leads, and nobody waits for an address that is free.
///
/// # Errors
/// The rule that is broken.
pub fn replicas_at_rest(all: &Replicas) -> Result<(), String> {
    let [_] = all.leaders()[..] else {
        return Err(format!("{:?} lead at rest", all.leaders()));
    };
    let held: BTreeSet<_> = all.api.services.values().flat_map(addresses).collect();
    let v4_is_full = held.iter().filter(|address| address.is_ipv4()).count() == LAN_V4;
    for (key, service) in &all.api.services {
        if addresses(service).is_empty() && !v4_is_full {
            return Err(format!("{key:?} has no address at rest, and there are some"));
        }
    }
    Ok(())
}

fn some_service(cluster: &mut Cluster) -> Option<Key> {
    let count = cluster.api.services.len();
    if count == 0 {
        return None;
    }
    let index = cluster.rng().random_range(0..count);
    cluster.api.services.keys().nth(index).cloned()
}
