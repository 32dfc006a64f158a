//! The cluster as this speaker sees it: Services, their endpoints by node, and Nodes.
//!
//! The only place of the speaker's cores that reads `k8s_openapi` types; it keeps what announcing
//! needs and nothing else (a full EndpointSlice costs sixty times as much).

mod endpoints;
mod node;
mod shared;
mod uid;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub use config::ServiceKey;
use config::{NodeName, PackedLabels};
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use endpoints::{AddressFamily, Endpoints};
pub use node::{DRAIN_ANNOTATION, Drain, Node, NodeChange};
pub use shared::Few;
pub(crate) use shared::{Shared, compact};
pub use uid::Uid;

const SHARE_ANNOTATIONS: [&str; 2] =
    ["metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];

/// What announcing needs of a Service of type LoadBalancer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub class: Option<Box<str>>,
    pub labels: PackedLabels,
    pub policy: TrafficPolicy,
    /// The key of `allow-shared-ip` is given and not empty.
    pub shares_address: bool,
    /// `status.loadBalancer.ingress[].ip`, in order, each once.
    pub addresses: Few<IpAddr>,
    pub uid: Uid,
}

/// `spec.externalTrafficPolicy`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficPolicy {
    Cluster,
    Local,
}

/// The kinds of which there are tens of thousands: what a list of them does not show any more is
/// found here, so that their names are kept in one place only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Many {
    Services,
    EndpointSlices,
}

/// Everything known of the cluster.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub services: BTreeMap<ServiceKey, Service>,
    pub nodes: BTreeMap<NodeName, Node>,
    endpoints: Endpoints,
    namespaces: Shared<str>,
    /// Known before the list of Services that is being read, and not in it so far.
    unseen: BTreeSet<ServiceKey>,
}

impl Cluster {
    /// Takes a Service in; says whether anything that matters changed. A Service that is no
    /// LoadBalancer counts as absent.
    pub fn apply_service(&mut self, object: &core::Service) -> Option<ServiceKey> {
        let key = key_of(&object.metadata)?;
        self.unseen.remove(&key);
        match read_service(object) {
            Some(service) => {
                if let Some(known) = self.services.get_mut(&key) {
                    let changed = *known != service;
                    *known = service;
                    return changed.then_some(key);
                }
                let key = match self.endpoints.shared_key(&key) {
                    Some(known) => known,
                    None => with_shared_namespace(key, &mut self.namespaces),
                };
                self.services.insert(key.clone(), service);
                Some(key)
            }
            None => self.services.remove(&key).map(|_| key),
        }
    }

    pub fn delete_service(&mut self, key: &ServiceKey) -> bool {
        self.unseen.remove(key);
        self.services.remove(key).is_some()
    }

    /// Takes an EndpointSlice in; returns the Services whose endpoints changed.
    pub fn apply_slice(&mut self, object: &discovery::EndpointSlice) -> Vec<ServiceKey> {
        let (services, namespaces) = (&self.services, &mut self.namespaces);
        let known = |key| match services.get_key_value(&key) {
            Some((known, _)) => known.clone(),
            None => with_shared_namespace(key, namespaces),
        };
        self.endpoints.apply(object, known)
    }

    /// Forgets an EndpointSlice; returns the Service that it belonged to.
    pub fn delete_slice(&mut self, namespace: &str, name: &str) -> Option<ServiceKey> {
        self.endpoints.delete(namespace, name)
    }

    /// A list begins that will show all objects of a kind.
    pub fn begin_list(&mut self, of: Many) {
        match of {
            Many::Services => self.unseen = self.services.keys().cloned().collect(),
            Many::EndpointSlices => self.endpoints.begin_list(),
        }
    }

    /// The list is complete: what it did not show is gone. Returns the Services that it concerns.
    pub fn end_list(&mut self, of: Many) -> Vec<ServiceKey> {
        match of {
            Many::Services => {
                let gone = std::mem::take(&mut self.unseen);
                let gone = gone.into_iter().filter(|key| self.services.remove(key).is_some());
                let gone = gone.collect();
                compact(&mut self.services);
                gone
            }
            Many::EndpointSlices => self.endpoints.end_list(),
        }
    }

    /// Takes a Node in; says what changed that matters.
    pub fn apply_node(&mut self, object: &core::Node) -> NodeChange {
        let Some(name) = object.metadata.name.as_deref() else { return NodeChange::default() };
        let node = Node::read(object);
        match self.nodes.get_mut(name) {
            Some(known) => {
                let change = known.change_to(&node);
                *known = node;
                change
            }
            None => {
                self.nodes.insert(name.into(), node);
                NodeChange::ALL
            }
        }
    }

    pub fn delete_node(&mut self, name: &str) -> NodeChange {
        self.nodes.remove(name).map(|_| NodeChange::ALL).unwrap_or_default()
    }

    /// True when some endpoint of the Service serves, wherever it runs.
    pub fn has_endpoint(&self, key: &ServiceKey) -> bool {
        self.endpoints.of(key).any(|serving| serving.elsewhere || !serving.nodes.is_empty())
    }

    /// Nodes with a serving endpoint of the Service.
    pub fn endpoint_nodes(&self, key: &ServiceKey) -> BTreeSet<NodeName> {
        self.endpoints.of(key).flat_map(|serving| serving.nodes.keys().cloned()).collect()
    }

    /// How many ready endpoints of the Service a node has for traffic to this address: those of its
    /// family, or all where there are none of that.
    pub fn ready_endpoints(&self, key: &ServiceKey, node: &str, address: IpAddr) -> u16 {
        let of = |family| {
            let slices = self.endpoints.of(key).filter(|serving| serving.family == family);
            let counts = slices.filter_map(|serving| serving.nodes.get(node).copied());
            counts.fold(0, u16::saturating_add)
        };
        let (own, other) = match address {
            IpAddr::V4(_) => (AddressFamily::Ipv4, AddressFamily::Ipv6),
            IpAddr::V6(_) => (AddressFamily::Ipv6, AddressFamily::Ipv4),
        };
        let count = of(own);
        if count == 0 { of(other) } else { count }
    }
}

fn key_of(metadata: &ObjectMeta) -> Option<ServiceKey> {
    Some(ServiceKey::new(metadata.namespace.as_deref()?, metadata.name.as_deref()?))
}

fn with_shared_namespace(key: ServiceKey, namespaces: &mut Shared<str>) -> ServiceKey {
    ServiceKey { namespace: namespaces.one(key.namespace), name: key.name }
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
    let addresses: BTreeSet<IpAddr> =
        ingress.iter().filter_map(|i| i.ip.as_deref()?.parse().ok()).collect();
    Some(Service {
        class: spec.load_balancer_class.as_deref().map(Into::into),
        labels: PackedLabels::new(object.metadata.labels.iter().flatten()),
        policy: match spec.external_traffic_policy.as_deref() {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        },
        shares_address: SHARE_ANNOTATIONS.iter().any(|name| {
            annotations.and_then(|a| a.get(*name)).is_some_and(|value| !value.is_empty())
        }),
        addresses: addresses.into_iter().collect(),
        uid: Uid::new(object.metadata.uid.as_deref().unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests;
