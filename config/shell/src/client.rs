//! The cluster: which one, as whom, with what patience, and until when.

use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{
    HeaderValue, Request,
    header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use kube::{Client, Config, client::Body, core::Status};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::watch::WATCH_SECONDS;

/// Longest that one request other than a watch may take; an API server that hangs looks like one
/// that is away.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One client for watches, which may be silent for a minute, and one for everything else.
#[derive(Clone)]
pub struct Clients {
    pub watch: Client,
    pub write: Client,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

/// Finds the cluster by `KUBECONFIG` or `~/.kube/config`, else as the Pod's service account; no
/// request is made yet. `agent` names this program in the audit log. With the clients comes the
/// namespace to work in: as given, else the Pod's, else the kubeconfig's. Must run after
/// [`install_crypto`].
///
/// # Errors
/// When there is neither a kubeconfig nor a Pod, or what there is cannot be used.
pub async fn connect(agent: &str, namespace: Option<String>) -> Result<(Clients, String)> {
    let config = Config::infer().await.context("no cluster: neither a kubeconfig nor a Pod")?;
    let namespace =
        namespace.or_else(namespace_of_pod).unwrap_or_else(|| config.default_namespace.clone());
    info!(agent, api_server = %config.cluster_url, namespace, "starting");
    let clients = Clients {
        // Longer than a watch lasts: only a peer that vanished without a word is given up.
        watch: client(
            config.clone(),
            agent,
            Duration::from_secs(u64::from(WATCH_SECONDS)) + REQUEST_TIMEOUT * 3,
        )?,
        write: client(config, agent, REQUEST_TIMEOUT * 2)?,
    };
    Ok((clients, namespace))
}

/// Chooses the TLS implementation of the process. Call first in `main`: a second provider anywhere
/// in the dependency tree would otherwise make TLS set-up panic.
pub fn install_crypto() {
    // Fails only when a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A token that SIGTERM and SIGINT cancel.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn stop_on_signals() -> Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    Ok(stop)
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Failed(#[from] kube::Error),
    #[error("no answer within {REQUEST_TIMEOUT:?}")]
    Silence,
}

impl RequestError {
    /// What the API server said, if it was the one to refuse.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Failed(kube::Error::Api(status)) => Some(status),
            Self::Failed(_) | Self::Silence => None,
        }
    }

    /// How long the API server wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.status()?.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }
}

/// One request, which may take [`REQUEST_TIMEOUT`].
///
/// # Errors
/// When the API server refuses it, cannot be reached or does not answer in time.
pub async fn request<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    match timeout(REQUEST_TIMEOUT, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::Silence),
    }
}

/// A merge patch of the status of one object, `path` its place below `/apis`. Of the answer only
/// the new version is read, and the time before which the API server wants no more requests.
///
/// # Errors
/// Those of [`request`].
pub async fn patch_status(
    client: &Client,
    path: &str,
    manager: &str,
    body: &Value,
) -> Result<String, RequestError> {
    let patch = Request::patch(format!("{path}/status?fieldManager={manager}"))
        .header(CONTENT_TYPE, "application/merge-patch+json")
        .header(ACCEPT, "application/json")
        .body(Body::from(body.to_string().into_bytes()))
        .map_err(kube::Error::HttpError)?;
    let answer = async {
        let answer = client.send(patch).await?;
        let (head, body) = answer.into_parts();
        Ok((head, body.collect_bytes().await?))
    };
    let (head, body) = request(answer).await?;
    if head.status.is_success() {
        let stored: Stored = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
        return Ok(stored.metadata.resource_version);
    }
    let mut status = serde_json::from_slice(&body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body);
        Status::failure(text.trim(), head.status.canonical_reason().unwrap_or_default())
    });
    status.code = head.status.as_u16();
    let seconds = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(seconds) = seconds {
        let details = status.details.get_or_insert_with(|| kube::core::response::StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        });
        details.retry_after_seconds = seconds;
    }
    Err(kube::Error::Api(Box::new(status)).into())
}

/// The part of an object that names its version.
#[derive(Deserialize)]
struct Stored {
    metadata: StoredMetadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredMetadata {
    resource_version: String,
}

fn client(mut config: Config, agent: &str, read_timeout: Duration) -> Result<Client> {
    config.read_timeout = Some(read_timeout);
    config.connect_timeout = Some(REQUEST_TIMEOUT);
    // Whoever asks decides when to ask again.
    config.default_retry = false;
    config.headers.push((USER_AGENT, HeaderValue::try_from(agent)?));
    Client::try_from(config).context("cannot build the API client")
}

fn namespace_of_pod() -> Option<String> {
    const FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    let text = std::fs::read_to_string(FILE).ok()?;
    Some(text.trim().to_owned()).filter(|namespace| !namespace.is_empty())
}
