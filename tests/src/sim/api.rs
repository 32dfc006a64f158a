//! The API server of the simulation: objects, versions, and a log that watchers read at their own
//! pace. What it accepts as a status write follows the real server (guards, no-ops).

use std::collections::BTreeMap;

use config::{NodeName, Resources};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use serde_json::{Value, json};

/// Namespace and name.
pub type Key = (String, String);

/// What a watcher is told.
#[derive(Debug, Clone)]
pub enum Change {
    Service(Box<Service>),
    ServiceGone(Key),
    Slice(Box<EndpointSlice>),
    SliceGone(Key),
    Node(Box<Node>),
    NodeGone(NodeName),
    Resources(Box<Resources>),
}

/// How a status write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Written,
    Conflict,
    Gone,
}

#[derive(Debug, Default)]
pub struct Api {
    version: u64,
    pub services: BTreeMap<Key, Service>,
    pub slices: BTreeMap<Key, EndpointSlice>,
    pub nodes: BTreeMap<NodeName, Node>,
    pub resources: Resources,
    /// Everything that happened, for watchers to read on.
    pub log: Vec<Change>,
    /// Status writes that changed something.
    pub writes: u64,
}

impl Api {
    /// Everything there is, as a first list tells it.
    pub fn list(&self) -> Vec<Change> {
        let resources = Change::Resources(Box::new(self.resources.clone()));
        let nodes = self.nodes.values().map(|n| Change::Node(Box::new(n.clone())));
        let services = self.services.values().map(|s| Change::Service(Box::new(s.clone())));
        let slices = self.slices.values().map(|s| Change::Slice(Box::new(s.clone())));
        [resources].into_iter().chain(nodes).chain(services).chain(slices).collect()
    }

    pub fn put_service(&mut self, mut service: Service) {
        let key = key(&service.metadata);
        let version = self.next();
        service.metadata.resource_version = Some(version.to_string());
        service.metadata.uid.get_or_insert_with(|| format!("uid-{version}"));
        self.services.insert(key, service.clone());
        self.log.push(Change::Service(Box::new(service)));
    }

    pub fn delete_service(&mut self, key: &Key) {
        if self.services.remove(key).is_some() {
            self.log.push(Change::ServiceGone(key.clone()));
        }
        if self.slices.remove(key).is_some() {
            self.log.push(Change::SliceGone(key.clone()));
        }
    }

    /// One slice a Service, of the same name.
    pub fn put_slice(&mut self, slice: EndpointSlice) {
        self.slices.insert(key(&slice.metadata), slice.clone());
        self.log.push(Change::Slice(Box::new(slice)));
    }

    pub fn put_node(&mut self, node: Node) {
        let name: NodeName = node.metadata.name.clone().unwrap_or_default().into();
        self.nodes.insert(name, node.clone());
        self.log.push(Change::Node(Box::new(node)));
    }

    pub fn put_resources(&mut self, resources: Resources) {
        self.resources = resources.clone();
        self.log.push(Change::Resources(Box::new(resources)));
    }

    /// A merge patch of `services/status`: metadata and status are taken, guards obeyed, and a patch
    /// that changes nothing makes no new version.
    pub fn patch_status(&mut self, key: &Key, body: &Value) -> Outcome {
        let Some(service) = self.services.get(key) else { return Outcome::Gone };
        let guard = |field: &str| body["metadata"][field].as_str();
        if guard("uid").is_some_and(|uid| service.metadata.uid.as_deref() != Some(uid)) {
            return Outcome::Gone;
        }
        let version = service.metadata.resource_version.as_deref();
        if guard("resourceVersion").is_some_and(|guard| version != Some(guard)) {
            return Outcome::Conflict;
        }
        let before = serde_json::to_value(service).expect("a Service is JSON");
        let mut after = before.clone();
        let mut patch = json!({});
        if let Some(annotations) = body["metadata"].get("annotations") {
            patch["metadata"] = json!({ "annotations": annotations });
        }
        if let Some(status) = body.get("status") {
            patch["status"] = status.clone();
        }
        // The simulation has no time of day: what the shells stamp is always the same here.
        for condition in patch["status"]["conditions"].as_array_mut().into_iter().flatten() {
            if condition.get("lastTransitionTime").is_none() {
                condition["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
            }
        }
        json_patch::merge(&mut after, &patch);
        if after != before {
            self.writes += 1;
            self.put_service(serde_json::from_value(after).expect("still a Service"));
        }
        Outcome::Written
    }

    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }
}

pub fn key(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
