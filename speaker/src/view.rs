//! The cluster as this speaker sees it: Services, their endpoints by node, and Nodes.
//!
//! The only place of the speaker's cores that reads `k8s_openapi` types; it keeps what announcing
//! needs and nothing else (a full EndpointSlice costs sixty times as much).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub use config::ServiceKey;
use config::{Labels, NodeName};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};

const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const SHARE_ANNOTATIONS: [&str; 2] =
    ["metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];

/// What announcing needs of a Service of type LoadBalancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub class: Option<String>,
    pub labels: Labels,
    pub policy: TrafficPolicy,
    /// The key of `allow-shared-ip` is given and not empty.
    pub shares_address: bool,
    /// `status.loadBalancer.ingress[].ip`
    pub addresses: BTreeSet<IpAddr>,
    pub uid: String,
}

/// `spec.externalTrafficPolicy`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficPolicy {
    Cluster,
    Local,
}

/// What announcing needs of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub labels: Labels,
    /// Condition `NetworkUnavailable` is True.
    pub network_unavailable: bool,
    pub internal_addresses: BTreeSet<IpAddr>,
}

impl Node {
    /// The well-known label that takes a node out of load balancing, whatever its value.
    pub fn excluded(&self) -> bool {
        self.labels.contains_key(EXCLUDE_LABEL)
    }
}

/// Everything known of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub services: BTreeMap<ServiceKey, Service>,
    pub nodes: BTreeMap<NodeName, Node>,
    slices: BTreeMap<ServiceKey, BTreeMap<Arc<str>, Slice>>,
    /// Which Service a slice belonged to when it was last seen: by namespace and slice name.
    slice_owner: BTreeMap<(Arc<str>, Arc<str>), ServiceKey>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Slice {
    /// Nodes with a serving endpoint.
    nodes: BTreeSet<NodeName>,
    /// A serving endpoint without a node name exists.
    elsewhere: bool,
}

impl Cluster {
    /// Takes a Service in; says whether anything that matters changed. A Service that is no
    /// LoadBalancer counts as absent.
    pub fn apply_service(&mut self, object: &core::Service) -> Option<ServiceKey> {
        let key = key_of(&object.metadata)?;
        match read_service(object) {
            Some(service) => {
                let changed = self.services.get(&key) != Some(&service);
                self.services.insert(key.clone(), service);
                changed.then_some(key)
            }
            None => self.services.remove(&key).map(|_| key),
        }
    }

    pub fn delete_service(&mut self, key: &ServiceKey) -> bool {
        self.services.remove(key).is_some()
    }

    /// Takes an EndpointSlice in; returns the Services whose endpoints changed.
    pub fn apply_slice(&mut self, object: &discovery::EndpointSlice) -> Vec<ServiceKey> {
        let Some(ServiceKey { namespace, name }) = key_of(&object.metadata) else {
            return Vec::new();
        };
        let owner = object.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        let owner = owner.map(|owner| ServiceKey::new(namespace.clone(), owner.as_str()));
        let mut changed = Vec::new();
        if self.slice_owner.get(&(namespace.clone(), name.clone())) != owner.as_ref() {
            changed.extend(self.delete_slice(&namespace, &name));
        }
        let Some(owner) = owner else { return changed };
        let slice = read_slice(object);
        let slices = self.slices.entry(owner.clone()).or_default();
        if slices.get(&name) != Some(&slice) {
            slices.insert(name.clone(), slice);
            changed.push(owner.clone());
        }
        self.slice_owner.insert((namespace, name), owner);
        changed
    }

    /// Forgets an EndpointSlice; returns the Service that it belonged to.
    pub fn delete_slice(&mut self, namespace: &str, name: &str) -> Option<ServiceKey> {
        let owner = self.slice_owner.remove(&(namespace.into(), name.into()))?;
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        Some(owner)
    }

    /// Takes a Node in; says whether anything that matters changed.
    pub fn apply_node(&mut self, object: &core::Node) -> bool {
        let Some(name) = object.metadata.name.as_deref() else { return false };
        let node = read_node(object);
        if self.nodes.get(name) == Some(&node) {
            return false;
        }
        self.nodes.insert(name.into(), node);
        true
    }

    pub fn delete_node(&mut self, name: &str) -> bool {
        self.nodes.remove(name).is_some()
    }

    /// True when some endpoint of the Service serves, wherever it runs.
    pub fn has_endpoint(&self, key: &ServiceKey) -> bool {
        self.slices_of(key).any(|slice| slice.elsewhere || !slice.nodes.is_empty())
    }

    /// Nodes with a serving endpoint of the Service.
    pub fn endpoint_nodes(&self, key: &ServiceKey) -> BTreeSet<NodeName> {
        self.slices_of(key).flat_map(|slice| slice.nodes.iter().cloned()).collect()
    }

    fn slices_of(&self, key: &ServiceKey) -> impl Iterator<Item = &Slice> {
        self.slices.get(key).into_iter().flat_map(BTreeMap::values)
    }
}

fn key_of(
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> Option<ServiceKey> {
    Some(ServiceKey::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
}

fn read_service(object: &core::Service) -> Option<Service> {
    let spec = object.spec.as_ref()?;
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return None;
    }
    let annotations = object.metadata.annotations.as_ref();
    let ingress = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|load_balancer| load_balancer.ingress.as_deref())
        .unwrap_or_default();
    Some(Service {
        class: spec.load_balancer_class.clone(),
        labels: object.metadata.labels.clone().unwrap_or_default(),
        policy: match spec.external_traffic_policy.as_deref() {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        },
        shares_address: SHARE_ANNOTATIONS.iter().any(|name| {
            annotations.and_then(|a| a.get(*name)).is_some_and(|value| !value.is_empty())
        }),
        addresses: ingress.iter().filter_map(|i| i.ip.as_deref()?.parse().ok()).collect(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
    })
}

fn read_slice(object: &discovery::EndpointSlice) -> Slice {
    let mut slice = Slice::default();
    for endpoint in &object.endpoints {
        if !serves(endpoint.conditions.as_ref()) || endpoint.addresses.is_empty() {
            continue;
        }
        match endpoint.node_name.as_deref() {
            Some(node) => {
                slice.nodes.insert(node.into());
            }
            None => slice.elsewhere = true,
        }
    }
    slice
}

/// Ready (unset counts as ready), or terminating and still serving.
fn serves(conditions: Option<&discovery::EndpointConditions>) -> bool {
    conditions.is_none_or(|c| c.ready.unwrap_or(true) || c.serving.unwrap_or(false))
}

fn read_node(object: &core::Node) -> Node {
    let status = object.status.as_ref();
    Node {
        labels: object.metadata.labels.clone().unwrap_or_default(),
        network_unavailable: status
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default()
            .iter()
            .any(|c| c.type_ == "NetworkUnavailable" && c.status == "True"),
        internal_addresses: status
            .and_then(|s| s.addresses.as_deref())
            .unwrap_or_default()
            .iter()
            .filter(|a| a.type_ == "InternalIP")
            .filter_map(|a| a.address.parse().ok())
            .collect(),
    }
}

#[cfg(test)]
mod tests;
