//! The forms in which objects are read off the wire: only what is used. Most of a small object is
//! metadata that nobody here looks at (`managedFields`), most of a Node its list of images.

use std::collections::{BTreeMap, BTreeSet};

use config::Labels;
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{
            Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, Secret, Service, ServicePort,
            ServiceSpec, ServiceStatus, Taint,
        },
        discovery::v1::{Endpoint, EndpointSlice},
        networking::v1::{ServiceCIDR, ServiceCIDRSpec},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// A Service without what no daemon reads.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = Service)]
pub struct SlimService {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    spec: Option<SlimServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    ip_families: Option<Vec<String>>,
    ip_family_policy: Option<String>,
    load_balancer_class: Option<String>,
    #[serde(rename = "loadBalancerIP")]
    load_balancer_ip: Option<String>,
    external_traffic_policy: Option<String>,
    selector: Option<BTreeMap<String, String>>,
    ports: Option<Vec<SlimServicePort>>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimServicePort {
    port: i32,
    protocol: Option<String>,
}

impl From<SlimService> for Service {
    fn from(slim: SlimService) -> Self {
        let port = |port: SlimServicePort| ServicePort {
            port: port.port,
            protocol: port.protocol,
            ..ServicePort::default()
        };
        let spec = slim.spec.map(|spec| ServiceSpec {
            type_: spec.kind,
            cluster_ip: spec.cluster_ip,
            cluster_ips: spec.cluster_ips,
            ip_families: spec.ip_families,
            ip_family_policy: spec.ip_family_policy,
            load_balancer_class: spec.load_balancer_class,
            load_balancer_ip: spec.load_balancer_ip,
            external_traffic_policy: spec.external_traffic_policy,
            selector: spec.selector,
            ports: spec.ports.map(|ports| ports.into_iter().map(port).collect()),
            ..ServiceSpec::default()
        });
        Self { metadata: slim.metadata, spec, status: slim.status }
    }
}

/// An EndpointSlice without its ports and the metadata that no daemon reads.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = EndpointSlice)]
#[serde(rename_all = "camelCase")]
pub struct SlimEndpointSlice {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    address_type: String,
    // Go writes an empty list as null.
    endpoints: Option<Vec<Endpoint>>,
}

impl From<SlimEndpointSlice> for EndpointSlice {
    fn from(slim: SlimEndpointSlice) -> Self {
        Self {
            metadata: slim.metadata,
            address_type: slim.address_type,
            endpoints: slim.endpoints.unwrap_or_default(),
            ports: None,
        }
    }
}

/// A Node's metadata, taints, conditions and addresses.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = Node)]
pub struct SlimNode {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    spec: Option<SlimNodeSpec>,
    status: Option<SlimNodeStatus>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimNodeSpec {
    taints: Option<Vec<Taint>>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimNodeStatus {
    conditions: Option<Vec<NodeCondition>>,
    addresses: Option<Vec<NodeAddress>>,
}

impl From<SlimNode> for Node {
    fn from(slim: SlimNode) -> Self {
        let status = slim.status.map(|status| NodeStatus {
            conditions: status.conditions,
            addresses: status.addresses,
            ..NodeStatus::default()
        });
        let spec = slim.spec.map(|spec| NodeSpec { taints: spec.taints, ..NodeSpec::default() });
        Self { metadata: slim.metadata, spec, status }
    }
}

/// A Node's labels and addresses.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = Node)]
pub(crate) struct SlimNodeAddresses {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    status: Option<SlimAddresses>,
}

#[derive(Debug, Clone, Deserialize)]
struct SlimAddresses {
    addresses: Option<Vec<NodeAddress>>,
}

impl SlimNodeAddresses {
    /// Its labels, and the addresses that it is reached at: those of type InternalIP and
    /// ExternalIP.
    pub fn into_facts(self) -> (Labels, BTreeSet<config::NodeAddress>) {
        let addresses = self.status.and_then(|status| status.addresses).unwrap_or_default();
        let addresses = addresses.into_iter().filter_map(|address| {
            let kind =
                matches!(&*address.type_, "InternalIP" | "ExternalIP").then_some(address.type_)?;
            let address = address.address.parse().ok()?;
            Some(config::NodeAddress { address, kind: kind.into() })
        });
        (self.metadata.labels.unwrap_or_default(), addresses.collect())
    }
}

/// A ServiceCIDR.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = ServiceCIDR)]
pub(crate) struct SlimServiceCidr {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    spec: Option<ServiceCIDRSpec>,
}

impl SlimServiceCidr {
    /// The ranges, as they are written.
    pub fn ranges(self) -> Vec<String> {
        self.spec.and_then(|spec| spec.cidrs).unwrap_or_default()
    }
}

/// A Secret without the values of other keys than `password`.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = Secret)]
pub(crate) struct SlimSecret {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    #[serde(rename = "type")]
    kind: Option<String>,
    data: Option<SlimData>,
}

#[derive(Clone, Deserialize)]
struct SlimData {
    password: Option<ByteString>,
}

impl std::fmt::Debug for SlimData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<retracted>")
    }
}

impl From<SlimSecret> for config::Secret {
    fn from(slim: SlimSecret) -> Self {
        let password = slim.data.and_then(|data| data.password);
        Self {
            kind: slim.kind.unwrap_or_default(),
            password: password.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned().into()),
        }
    }
}

fn slim_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let slim = SlimMetadata::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        labels: slim.labels,
        annotations: slim.annotations,
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        ..ObjectMeta::default()
    })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SlimMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}
