//! Writes to the API server, each ending with the event that the controller waits for.

use std::{sync::Arc, time::Duration};

use config::ObjectRef;
use k8s_openapi::{
    api::core::v1, apimachinery::pkg::apis::meta::v1::OwnerReference, jiff::Timestamp,
};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde_json::{Value, json};
use shell::{
    client::{RequestError, patch_status},
    state,
};
use tokio::{sync::OnceCell, time::Instant};
use tracing::debug;

use super::{FIELD_MANAGER, lease::Permit};
use crate::{
    controller::{Event, WriteResult},
    service::ServiceKey,
    status::CONFIGURATION_STATE,
};

/// How a write ended; `error` is for the log.
pub struct Done {
    pub event: Event,
    pub error: Option<String>,
    /// From the moment at which it was asked for to the answer.
    pub took: Duration,
}

/// Writes in the name of the controller.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    namespace: String,
    pod_name: Option<String>,
    /// The Pod, once it was looked up.
    pod: Arc<OnceCell<OwnerReference>>,
}

impl Writer {
    /// `pod_name`: with whom the ConfigurationState goes away.
    pub fn new(client: Client, namespace: String, pod_name: Option<String>) -> Self {
        Self { client, namespace, pod_name, pod: Arc::default() }
    }

    pub async fn service(self, permit: Permit, key: ServiceKey, body: Value) -> Done {
        let path = path::<v1::Service>(&key.namespace, &key.name);
        let (result, error, took) = self.patch(permit, &path, body).await;
        let error = error.map(|error| format!("status of Service {key}: {error}"));
        Done { event: Event::WriteDone { key, result }, error, took }
    }

    pub async fn status(self, permit: Permit, object: ObjectRef, body: Value) -> Done {
        let path = path_of(&object, &self.namespace);
        let (result, error, took) = self.patch(permit, &path, body).await;
        let error = error.map(|error| format!("status of {object}: {error}"));
        Done { event: Event::StatusDone { object, result }, error, took }
    }

    pub async fn configuration_state(self, permit: Permit, body: Value) -> Done {
        let started = Instant::now();
        let labels = [("metallb.io/component-type", "controller")];
        let owner = self.owner().await.cloned();
        let api = Api::<crds::ConfigurationState>::namespaced(self.client, &self.namespace);
        let written = if permit.holds() {
            let written = state::write(
                &api,
                FIELD_MANAGER,
                CONFIGURATION_STATE,
                labels,
                owner.as_ref(),
                body,
            );
            Some(written.await.map(|state| state.resource_version().unwrap_or_default()))
        } else {
            None
        };
        let (result, error) = outcome(written);
        let error = error.map(|error| format!("ConfigurationState: {error}"));
        Done { event: Event::ConfigurationStateDone { result }, error, took: started.elapsed() }
    }

    /// Our own Pod; without it the ConfigurationState is nobody's.
    async fn owner(&self) -> Option<&OwnerReference> {
        let name = self.pod_name.as_ref()?;
        let look = || state::own_pod(&self.client, &self.namespace, name);
        let found = self.pod.get_or_try_init(look).await;
        found.inspect_err(|error| debug!(%error, name, "our own Pod")).ok()
    }

    async fn patch(
        self,
        permit: Permit,
        path: &str,
        mut body: Value,
    ) -> (WriteResult, Option<String>, Duration) {
        let started = Instant::now();
        stamp(&mut body);
        let written = if permit.holds() {
            Some(patch_status(&self.client, path, FIELD_MANAGER, &body).await)
        } else {
            None
        };
        let (result, error) = outcome(written);
        (result, error, started.elapsed())
    }
}

/// Where an object of a namespace is.
fn path<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> String {
    format!("{}/{name}", K::url_path(&(), Some(namespace)))
}

fn path_of(object: &ObjectRef, namespace: &str) -> String {
    let path = match object.kind {
        "L2Advertisement" => path::<crds::L2Advertisement>,
        "BGPAdvertisement" => path::<crds::BGPAdvertisement>,
        "BGPPeer" => path::<crds::BGPPeer>,
        "BFDProfile" => path::<crds::BFDProfile>,
        "Community" => path::<crds::Community>,
        _ => path::<crds::IPAddressPool>,
    };
    path(namespace, &object.name)
}

/// Conditions that changed get the present time.
fn stamp(body: &mut Value) {
    let conditions = body.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten() {
        if condition.get("lastTransitionTime").is_none() {
            // Whole seconds, as every other controller writes them.
            let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
            condition["lastTransitionTime"] = json!(now.to_string());
        }
    }
}

/// `None`: not sent, because the permission had ended.
fn outcome(answer: Option<Result<String, RequestError>>) -> (WriteResult, Option<String>) {
    let error = match answer {
        Some(Ok(resource_version)) => return (WriteResult::Written { resource_version }, None),
        Some(Err(error)) => error,
        None => return (WriteResult::Failed, None),
    };
    let result = match error.status() {
        Some(status) if status.is_conflict() => return (WriteResult::Conflict, None),
        Some(status) if status.is_not_found() => return (WriteResult::Gone, None),
        // The uid is another one, or the Service is no LoadBalancer any more.
        Some(status)
            if status.code == 422
                && (status.message.contains("metadata.uid")
                    || status.message.contains("spec.type")) =>
        {
            return (WriteResult::Gone, None);
        }
        Some(status) if !matches!(status.code, 429 | 502..=504) => WriteResult::Failed,
        Some(_) | None => WriteResult::Unavailable { retry_after: error.retry_after() },
    };
    (result, Some(error.to_string()))
}
