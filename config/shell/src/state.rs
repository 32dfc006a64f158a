//! ConfigurationState: where each daemon says whether the configuration can be used.

use crds::{ConfigurationState, ConfigurationStateSpec};
use k8s_openapi::{
    api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::OwnerReference, jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::client::{RequestError, request};

/// A daemon's own Pod, as the owner of what is to go with it.
///
/// # Errors
/// Those of the request.
pub async fn own_pod(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<OwnerReference, RequestError> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let pod = request(pods.get_metadata(name)).await?;
    Ok(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.to_owned(),
        uid: pod.uid().unwrap_or_default(),
        ..OwnerReference::default()
    })
}

/// Makes the object if there is none and writes its status; a condition whose status does not
/// change keeps the time of its last transition. `body` is a merge patch whose conditions lack that
/// time, `manager` the name in `managedFields`. With `owner` the object goes away.
///
/// # Errors
/// Those of the requests.
pub async fn write<const N: usize>(
    api: &Api<ConfigurationState>,
    manager: &str,
    name: &str,
    labels: [(&str, &str); N],
    owner: Option<&OwnerReference>,
    mut body: Value,
) -> Result<ConfigurationState, RequestError> {
    let owners = owner.map(|owner| vec![owner.clone()]);
    let mut current = match request(api.get_opt(name)).await? {
        Some(current) => current,
        None => {
            let mut new = ConfigurationState::new(name, ConfigurationStateSpec {});
            new.metadata.labels =
                Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
            new.metadata.owner_references.clone_from(&owners);
            let field_manager = Some(manager.to_owned());
            let params = PostParams { field_manager, ..PostParams::default() };
            request(api.create(&params, &new)).await?
        }
    };
    let params = PatchParams { field_manager: Some(manager.to_owned()), ..PatchParams::default() };
    if owners.is_some() && current.metadata.owner_references != owners {
        let owners = json!({ "metadata": { "ownerReferences": owners } });
        current = request(api.patch(name, &params, &Patch::Merge(&owners))).await?;
    }
    let old = current.status.unwrap_or_default().conditions;
    for condition in body["status"]["conditions"].as_array_mut().into_iter().flatten() {
        let since = old
            .iter()
            .find(|old| condition["type"] == *old.type_ && condition["status"] == *old.status)
            .map_or_else(Timestamp::now, |old| old.last_transition_time.0);
        condition["lastTransitionTime"] = json!(since.to_string());
    }
    request(api.patch_status(name, &params, &Patch::Merge(&body))).await
}
