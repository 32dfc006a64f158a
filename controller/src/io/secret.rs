//! Makes the Secret that the speakers authenticate each other with, when there is none.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use k8s_openapi::{
    ByteString,
    api::{apps::v1::Deployment, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, Client, ResourceExt as _, api::PostParams, core::Status};
use rand::Rng as _;
use shell::client::request;
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::FIELD_MANAGER;

/// The key in the Secret, as the speakers' volume expects it.
const SECRET_KEY: &str = "secretkey";
/// Random bytes in it, before base64.
const SECRET_LENGTH: usize = 128;
const RETRY: Duration = Duration::from_secs(2);

/// Sees to it that the Secret `name` exists, once this replica leads; tries until it does. With
/// `deployment` it is removed together with that Deployment.
pub async fn ensure(
    client: Client,
    namespace: String,
    name: String,
    deployment: Option<String>,
    mut leading: watch::Receiver<bool>,
) {
    while leading.wait_for(|leads| *leads).await.is_ok() {
        match create_if_absent(&client, &namespace, &name, deployment.as_deref()).await {
            Ok(()) => return,
            Err(error) => warn!(%name, error = format!("{error:#}"), "cannot make the Secret"),
        }
        sleep(RETRY).await;
    }
}

async fn create_if_absent(
    client: &Client,
    namespace: &str,
    name: &str,
    deployment: Option<&str>,
) -> anyhow::Result<()> {
    let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
    if request(secrets.get_opt(name)).await?.is_some() {
        return Ok(());
    }
    let owner = match deployment {
        Some(deployment) => Some(owner(client, namespace, deployment).await?),
        None => None,
    };
    let mut bytes = vec![0; SECRET_LENGTH];
    rand::rng().fill_bytes(&mut bytes);
    let serde_json::Value::String(text) = serde_json::to_value(ByteString(bytes))? else {
        anyhow::bail!("bytes are written as base64 text");
    };
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(SECRET_KEY.to_owned(), ByteString(text.into_bytes()))])),
        ..Secret::default()
    };
    let params =
        PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match request(secrets.create(&params, &secret)).await {
        Ok(_) => {
            info!(%name, "made the Secret of the speakers");
            Ok(())
        }
        // Another controller was quicker; its key is as good.
        Err(error) if error.status().is_some_and(Status::is_already_exists) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn owner(
    client: &Client,
    namespace: &str,
    deployment: &str,
) -> anyhow::Result<OwnerReference> {
    let deployments = Api::<Deployment>::namespaced(client.clone(), namespace);
    let deployment = request(deployments.get_metadata(deployment))
        .await
        .with_context(|| format!("Deployment {deployment:?} (--deployment)"))?;
    Ok(OwnerReference {
        api_version: "apps/v1".to_owned(),
        kind: "Deployment".to_owned(),
        name: deployment.name_any(),
        uid: deployment.uid().unwrap_or_default(),
        ..OwnerReference::default()
    })
}
