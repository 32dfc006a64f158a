//! What the tests of this crate share.

use serde_json::{Value, json};

use crate::{Candidate, Config, Fault, Labels, NodeName, Resources};

pub const NAMESPACE: &str = "berth-system";

/// An object of our own namespace, as written in a manifest.
pub fn object(kind: &str, name: &str, spec: Value) -> Value {
    let version = if kind == "BGPPeer" { "v1beta2" } else { "v1beta1" };
    json!({
        "apiVersion": format!("metallb.io/{version}"),
        "kind": kind,
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": spec,
    })
}

pub fn pool(name: &str, addresses: &[&str]) -> Value {
    object("IPAddressPool", name, json!({ "addresses": addresses }))
}

/// `object`, created so many seconds after another one.
pub fn created(mut object: Value, second: u8) -> Value {
    object["metadata"]["creationTimestamp"] = format!("2026-01-01T00:00:{second:02}Z").into();
    object
}

pub fn candidate(object: &Value) -> Candidate {
    Candidate::from_json(object).unwrap().unwrap()
}

pub fn resources(objects: &[Value]) -> Resources {
    let mut resources = Resources::default();
    for object in objects {
        candidate(object).put_into(&mut resources);
    }
    resources
}

/// Nodes of these names with a label `kubernetes.io/hostname` each.
pub fn with_nodes(mut resources: Resources, names: &[&str]) -> Resources {
    resources.nodes = names
        .iter()
        .map(|&name| {
            let labels = Labels::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]);
            (NodeName::from(name), labels)
        })
        .collect();
    resources
}

pub fn hostname(name: &str) -> Value {
    json!({ "matchLabels": { "kubernetes.io/hostname": name } })
}

/// Errors in the form in which users see them.
pub fn errors(resources: &Resources, last: Option<&Config>) -> Vec<String> {
    Config::parse(resources, last).1.iter().map(ToString::to_string).collect()
}

pub fn fields(faults: &[Fault]) -> Vec<&str> {
    faults.iter().map(|fault| fault.field.as_str()).collect()
}
