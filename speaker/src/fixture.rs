//! Objects for the tests of this crate.

use config::{Config, Resources};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the fixture has its kind's form")
}

pub(crate) fn meta(name: &str) -> Value {
    json!({"name": name, "namespace": "metallb-system"})
}

/// A Service of type LoadBalancer that has `addresses`; `more` is merged into it.
pub(crate) fn service(name: &str, addresses: &[&str], more: &Value) -> Service {
    let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let mut value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    merge(&mut value, more);
    object(value)
}

/// A slice of a Service with one serving endpoint on each node.
pub(crate) fn slice(service: &str, nodes: &[&str]) -> EndpointSlice {
    let endpoint = |node: &&str| json!({"addresses": ["10.244.0.9"], "nodeName": node, "conditions": {"ready": true}});
    let endpoints: Vec<Value> = nodes.iter().map(endpoint).collect();
    object(json!({
        "metadata": {"name": format!("{service}-x"), "namespace": "default",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": endpoints,
    }))
}

pub(crate) fn node(name: &str, address: &str, more: &Value) -> Node {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    });
    merge(&mut value, more);
    object(value)
}

/// Pool `lan` is announced by layer 2, pool `routed` by BGP to the peer `tor`.
pub(crate) fn resources() -> Resources {
    Resources {
        pools: vec![
            object(json!({"metadata": meta("lan"), "spec": {"addresses": ["10.0.0.0/24"]}})),
            object(json!({"metadata": meta("routed"), "spec": {
                "addresses": ["203.0.113.0/24", "2001:db8::/64"]}})),
        ],
        l2_advertisements: vec![object(json!({
            "metadata": meta("lan"), "spec": {"ipAddressPools": ["lan"]}}))],
        bgp_advertisements: vec![object(json!({
            "metadata": meta("routed"), "spec": {"ipAddressPools": ["routed"]}}))],
        bgp_peers: vec![object(json!({"metadata": meta("tor"), "spec": {
            "myASN": 64_513, "peerASN": 64_512, "peerAddress": "10.1.0.1"}}))],
        ..Resources::default()
    }
}

/// The configuration of `resources`, which must be in order, over these nodes.
pub(crate) fn parse(mut resources: Resources, nodes: &[Node]) -> Config {
    for node in nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let labels = node.metadata.labels.clone().unwrap_or_default();
        resources.nodes.insert(name.into(), labels);
    }
    let (config, errors) = Config::parse(&resources, None);
    assert!(errors.is_empty(), "{errors:?}");
    config
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) if !more.is_null() => *into = more.clone(),
        _ => {}
    }
}
