//! The forms in which objects are read off the wire: only what is used. Most of a small object is
//! metadata that nobody here looks at (`managedFields`), most of a Node its list of images.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{
        core::v1::{
            Node, NodeAddress, NodeCondition, NodeStatus, Secret, Service, ServiceSpec,
            ServiceStatus,
        },
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// A Service without the metadata that no daemon reads.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = Service)]
pub struct SlimService {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

impl From<SlimService> for Service {
    fn from(slim: SlimService) -> Self {
        Self { metadata: slim.metadata, spec: slim.spec, status: slim.status }
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

/// A Node's metadata, conditions and addresses.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = Node)]
pub struct SlimNode {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    status: Option<SlimNodeStatus>,
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
        Self { metadata: slim.metadata, spec: None, status }
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
            password: password.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()),
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
