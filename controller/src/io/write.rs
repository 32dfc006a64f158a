//! Writes to the API server, each ending with the event that the controller waits for.

use config::PoolName;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::Value;
use shell::{
    client::{RequestError, request},
    slim::SlimService,
    state,
};

use super::FIELD_MANAGER;
use crate::{
    controller::{Event, WriteResult},
    service::ServiceKey,
    status::CONFIGURATION_STATE,
};

/// How a write ended; `error` is for the log.
pub struct Done {
    pub event: Event,
    pub error: Option<String>,
}

/// Writes in the name of the controller.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    namespace: String,
}

impl Writer {
    pub fn new(client: Client, namespace: String) -> Self {
        Self { client, namespace }
    }

    pub async fn service(self, key: ServiceKey, body: Value) -> Done {
        let api = Api::<SlimService>::namespaced(self.client, &key.namespace);
        let params = patch_params();
        let patch = Patch::Merge(&body);
        let answer = request(api.patch_status(&key.name, &params, &patch)).await;
        let (result, error) = outcome(answer);
        let error = error.map(|error| format!("status of Service {key}: {error}"));
        Done { event: Event::WriteDone { key, result }, error }
    }

    pub async fn pool(self, pool: PoolName, body: Value) -> Done {
        let api = Api::<crds::IPAddressPool>::namespaced(self.client, &self.namespace);
        let params = patch_params();
        let patch = Patch::Merge(&body);
        let (result, error) = outcome(request(api.patch_status(&pool, &params, &patch)).await);
        let error = error.map(|error| format!("status of IPAddressPool {pool}: {error}"));
        Done { event: Event::PoolStatusDone { pool, result }, error }
    }

    pub async fn configuration_state(self, body: Value) -> Done {
        let api = Api::<crds::ConfigurationState>::namespaced(self.client, &self.namespace);
        let labels = [("metallb.io/component-type", "controller")];
        let written = state::write(&api, FIELD_MANAGER, CONFIGURATION_STATE, labels, body).await;
        let (result, error) = outcome(written);
        let error = error.map(|error| format!("ConfigurationState: {error}"));
        Done { event: Event::ConfigurationStateDone { result }, error }
    }
}

fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

fn outcome<K: ResourceExt>(answer: Result<K, RequestError>) -> (WriteResult, Option<String>) {
    let error = match answer {
        Ok(object) => {
            let resource_version = object.resource_version().unwrap_or_default();
            return (WriteResult::Written { resource_version }, None);
        }
        Err(error) => error,
    };
    match error.status() {
        Some(status) if status.is_conflict() => (WriteResult::Conflict, None),
        Some(status) if status.is_not_found() => (WriteResult::Gone, None),
        // The uid is another one, or the Service is no LoadBalancer any more.
        Some(status)
            if status.code == 422
                && (status.message.contains("metadata.uid")
                    || status.message.contains("spec.type")) =>
        {
            (WriteResult::Gone, None)
        }
        Some(_) | None => (WriteResult::Failed, Some(error.to_string())),
    }
}
