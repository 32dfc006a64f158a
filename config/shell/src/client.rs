//! API clients with the timeouts that a daemon needs.

use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::{Client, Config};

/// Longest that one request other than a watch may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// A watch ends by itself after this many seconds and is resumed, so that a peer which vanished
/// without a word is noticed.
pub(crate) const WATCH_SECONDS: u32 = 60;

/// Two clients, because reading a watch and writing want different patience.
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

/// Connects as `KUBECONFIG` says, else as the pod's service account. `agent` names this program in
/// the audit log. Must run after [`install_crypto`].
pub async fn connect(agent: &str) -> Result<Clients> {
    let config = Config::infer()
        .await
        .context("no Kubernetes configuration: set KUBECONFIG or run in a cluster")?;
    let with = |read: Duration, retry: bool| -> Result<Client> {
        let mut config = config.clone();
        config.read_timeout = Some(read);
        config.connect_timeout = Some(REQUEST_TIMEOUT);
        config.default_retry = retry;
        config.headers.push((http::header::USER_AGENT, agent.parse()?));
        Client::try_from(config).context("cannot build the API client")
    };
    Ok(Clients {
        watch: with(Duration::from_secs(u64::from(WATCH_SECONDS) + 15), true)?,
        write: with(REQUEST_TIMEOUT * 2, false)?,
    })
}

/// Chooses the TLS implementation of the process. Call first in `main`: a second provider anywhere
/// in the dependency tree would otherwise make TLS set-up panic.
pub fn install_crypto() {
    // Fails only when a provider is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The namespace to work in: as given, else the pod's.
///
/// # Errors
/// When neither is known.
pub fn namespace(given: Option<String>) -> Result<String> {
    const FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    match given {
        Some(namespace) => Ok(namespace),
        None => std::fs::read_to_string(FILE).map(|text| text.trim().to_owned()).context(
            "the namespace is not known: give --namespace (METALLB_NAMESPACE) outside a cluster",
        ),
    }
}
