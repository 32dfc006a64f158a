//! Writes to the API server, each ending with the event that the controller waits for.

use config::PoolName;
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{FIELD_MANAGER, REQUEST_TIMEOUT, slim::SlimService};
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
        let answer = timed(api.patch_status(&key.name, &params, &patch)).await;
        let (result, error) = outcome(answer);
        let error = error.map(|error| format!("status of Service {key}: {error}"));
        Done { event: Event::WriteDone { key, result }, error }
    }

    pub async fn pool(self, pool: PoolName, body: Value) -> Done {
        let api = Api::<crds::IPAddressPool>::namespaced(self.client, &self.namespace);
        let params = patch_params();
        let patch = Patch::Merge(&body);
        let (result, error) = outcome(timed(api.patch_status(&pool, &params, &patch)).await);
        let error = error.map(|error| format!("status of IPAddressPool {pool}: {error}"));
        Done { event: Event::PoolStatusDone { pool, result }, error }
    }

    pub async fn configuration_state(self, body: Value) -> Done {
        let api = Api::<crds::ConfigurationState>::namespaced(self.client, &self.namespace);
        let (result, error) = outcome(timed(write_state(&api, body)).await);
        let error = error.map(|error| format!("ConfigurationState: {error}"));
        Done { event: Event::ConfigurationStateDone { result }, error }
    }
}

/// Makes the object if there is none and writes its status if it differs; a condition whose status
/// does not change keeps the time of its last transition.
async fn write_state(
    api: &Api<crds::ConfigurationState>,
    mut body: Value,
) -> kube::Result<crds::ConfigurationState> {
    let current = match api.get_opt(CONFIGURATION_STATE).await? {
        Some(current) => current,
        None => {
            let mut new =
                crds::ConfigurationState::new(CONFIGURATION_STATE, crds::ConfigurationStateSpec {});
            let label = ("metallb.io/component-type".to_owned(), "controller".to_owned());
            new.metadata.labels = Some([label].into());
            let params = PostParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PostParams::default()
            };
            api.create(&params, &new).await?
        }
    };
    let old = current.status.clone().unwrap_or_default().conditions;
    for condition in body["status"]["conditions"].as_array_mut().into_iter().flatten() {
        let since = old
            .iter()
            .find(|old| condition["type"] == *old.type_ && condition["status"] == *old.status)
            .map_or_else(Timestamp::now, |old| old.last_transition_time.0);
        condition["lastTransitionTime"] = json!(since.to_string());
    }
    api.patch_status(CONFIGURATION_STATE, &patch_params(), &Patch::Merge(&body)).await
}

fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

async fn timed<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(Failure::Kube),
        Err(_) => Err(Failure::Silence),
    }
}

enum Failure {
    Kube(kube::Error),
    Silence,
}

fn outcome<K: kube::ResourceExt>(answer: Result<K, Failure>) -> (WriteResult, Option<String>) {
    match answer {
        Ok(object) => {
            let resource_version = object.resource_version().unwrap_or_default();
            (WriteResult::Written { resource_version }, None)
        }
        Err(Failure::Kube(kube::Error::Api(status))) if status.is_conflict() => {
            (WriteResult::Conflict, None)
        }
        Err(Failure::Kube(kube::Error::Api(status))) if status.is_not_found() => {
            (WriteResult::Gone, None)
        }
        // The uid is another one, or the Service is no LoadBalancer any more.
        Err(Failure::Kube(kube::Error::Api(status)))
            if status.code == 422
                && (status.message.contains("metadata.uid")
                    || status.message.contains("spec.type")) =>
        {
            (WriteResult::Gone, None)
        }
        Err(Failure::Kube(error)) => (WriteResult::Failed, Some(error.to_string())),
        Err(Failure::Silence) => {
            (WriteResult::Failed, Some(format!("no answer within {REQUEST_TIMEOUT:?}")))
        }
    }
}
