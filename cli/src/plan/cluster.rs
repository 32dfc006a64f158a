//! The same objects, from a cluster. Only reads.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use http::Request;
use kube::Client;
use serde_json::Value;

use super::{
    input::{Input, Settings},
    read::{self, Object, Place},
};

/// Objects in one answer.
const PAGE: u32 = 500;

/// Everything that the daemons in `settings.namespace` read, and of the Secrets only those that
/// BGPPeers there or `more_secrets` name.
///
/// # Errors
/// When the cluster cannot be reached, or refuses; kinds that it does not have count as empty.
pub async fn read(
    client: &Client,
    settings: &Settings,
    more_secrets: BTreeSet<String>,
) -> Result<Input> {
    let namespace = &settings.namespace;
    let ours = |version: &str, plural: &str| {
        format!("/apis/{}/{version}/namespaces/{namespace}/{plural}", crds::GROUP)
    };
    let mut objects = Vec::new();
    for path in [
        ours("v1beta1", "ipaddresspools"),
        ours("v1beta1", "l2advertisements"),
        ours("v1beta1", "bgpadvertisements"),
        ours("v1beta2", "bgppeers"),
        ours("v1beta1", "bfdprofiles"),
        ours("v1beta1", "communities"),
        "/apis/networking.k8s.io/v1/servicecidrs".to_owned(),
        "/api/v1/nodes".to_owned(),
        "/api/v1/namespaces".to_owned(),
        "/api/v1/services".to_owned(),
        "/apis/discovery.k8s.io/v1/endpointslices".to_owned(),
    ] {
        list(client, &path, &mut objects).await.with_context(|| format!("reading {path}"))?;
    }
    let mut secrets = Input::new(objects.clone(), settings)?.named_secrets();
    secrets.extend(more_secrets);
    for name in secrets {
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        let found = get(client, &path).await.with_context(|| format!("reading {path}"))?;
        objects.extend(found.map(|value| Object { place: Place::Cluster, value }));
    }
    Ok(Input::new(objects, settings)?)
}

async fn list(client: &Client, path: &str, objects: &mut Vec<Object>) -> Result<()> {
    let mut token = String::new();
    loop {
        let page = format!("{path}?limit={PAGE}&continue={token}");
        let Some(page) = get(client, &page).await? else { return Ok(()) };
        token = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        read::expand(Place::Cluster, page, 0, objects)?;
        if token.is_empty() {
            return Ok(());
        }
    }
}

/// `None`: there is no such thing.
async fn get(client: &Client, path: &str) -> Result<Option<Value>> {
    match client.request(Request::get(path).body(Vec::new())?).await {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}
