//! The forms in which objects are read off the wire: only what is used. A third of the cost of a
//! small object is metadata that nobody here looks at (`managedFields`).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Secret, Service, ServiceSpec, ServiceStatus},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// A Service with the metadata that [`crate::service::Service`] is made from.
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

/// A Secret without the values of other keys than `password`.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = Secret)]
pub struct SlimSecret {
    #[serde(deserialize_with = "slim_metadata")]
    metadata: ObjectMeta,
    #[serde(rename = "type")]
    pub type_: Option<String>,
    #[serde(default)]
    pub data: Option<SlimData>,
}

#[derive(Clone, Deserialize)]
pub struct SlimData {
    pub password: Option<k8s_openapi::ByteString>,
}

impl std::fmt::Debug for SlimData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<retracted>")
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
