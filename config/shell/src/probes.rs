//! `/healthz`, `/readyz` and `/metrics`.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
    routing::get,
};
use kube::Client;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    authorize::{ApiReviewer, Authorizer, METRICS_PATH},
    tls::{self, Certificate, Tls},
};

/// Far longer than a main task is ever busy.
const PULSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a shell is ever busy with what came in.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the process waits for before it is of use; clones are one.
#[derive(Debug, Clone, Default)]
pub struct Ready(Arc<Mutex<BTreeSet<&'static str>>>);

/// One of the things that a process waits for.
#[derive(Debug, Clone)]
pub struct Condition {
    ready: Ready,
    what: &'static str,
}

impl Ready {
    /// From now on the process is not ready before the condition is fulfilled; `what` is shown at
    /// `/readyz` until then.
    pub fn waits_for(&self, what: &'static str) -> Condition {
        self.missing().insert(what);
        Condition { ready: self.clone(), what }
    }

    fn missing(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// For good: what was there once is not waited for again.
    pub fn fulfill(&self) {
        self.ready.missing().remove(self.what);
    }
}

/// Asks the task that a process is about whether it still gets on.
#[derive(Debug, Clone)]
pub struct Pulse(mpsc::Sender<Beat>);

/// What that task hears of it.
#[derive(Debug)]
pub struct Pulses(mpsc::Receiver<Beat>);

/// One question.
#[derive(Debug)]
pub struct Beat(oneshot::Sender<()>);

impl Pulse {
    pub fn new() -> (Self, Pulses) {
        let (questions, asked) = mpsc::channel(4);
        (Self(questions), Pulses(asked))
    }

    async fn felt(self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.0.send(Beat(reply)).await.is_ok() && answer.await.is_ok()
    }
}

impl Pulses {
    /// The next question; `None` when nobody will ask any more. Cancel safe.
    pub async fn next(&mut self) -> Option<Beat> {
        self.0.recv().await
    }
}

impl Beat {
    pub fn answer(self) {
        // Nobody minds when the prober did not wait.
        let _ = self.0.send(());
    }
}

/// Where `/metrics` is served, and to whom.
#[derive(Debug, Clone)]
pub struct MetricsServer {
    pub address: SocketAddr,
    pub access: MetricsAccess,
}

/// Who may read the metrics.
#[derive(Debug, Clone)]
pub enum MetricsAccess {
    /// Everybody, over HTTP.
    Plain,
    /// Bearer tokens that the API server allows to `get` the path `/metrics`, over HTTPS.
    Secure {
        tls: Tls,
        /// Holds `tls.crt` and `tls.key`; without it, a self-signed certificate is shown.
        cert_dir: Option<PathBuf>,
    },
}

/// The port on every address of the host; `None` for port 0, which turns a server off.
pub fn on_all_addresses(port: u16) -> Option<SocketAddr> {
    on(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// The port on the loopback address; `None` for port 0, which turns a server off.
pub fn on_loopback(port: u16) -> Option<SocketAddr> {
    on(Ipv4Addr::LOCALHOST.into(), port)
}

/// Serves `/healthz` (the process answers, and so does the task behind `pulse`) and `/readyz` (everything that it waits for is there)
/// until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_health(
    address: SocketAddr,
    ready: Ready,
    pulse: Option<Pulse>,
    stop: CancellationToken,
) -> Result<()> {
    let health = move || async move {
        let felt = match pulse {
            None => true,
            Some(pulse) => timeout(PULSE_TIMEOUT, pulse.felt()).await.unwrap_or(false),
        };
        if felt {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::INTERNAL_SERVER_ERROR, "the main task does not answer\n")
        }
    };
    let readiness = move || async move {
        let missing: Vec<_> = ready.missing().iter().copied().collect();
        if missing.is_empty() {
            (StatusCode::OK, "ok\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}\n", missing.join(", ")))
        }
    };
    let router = Router::new().route("/healthz", get(health)).route("/readyz", get(readiness));
    serve(address, router, stop).await
}

/// Serves `/metrics` until `stop`: the OpenMetrics text that `scrape` returns, which is asked anew
/// for each request and has five seconds. `client` has the tokens of readers reviewed.
///
/// # Errors
/// When the address cannot be bound, or TLS not be set up.
pub async fn serve_metrics<Text>(
    server: MetricsServer,
    client: Client,
    scrape: impl FnOnce() -> Text + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> Result<()>
where
    Text: Future<Output = Option<String>> + Send + 'static,
{
    let MetricsServer { address, access } = server;
    let (tls, cert_dir) = match access {
        MetricsAccess::Plain => {
            let metrics = move || metrics(scrape());
            return serve(address, Router::new().route(METRICS_PATH, get(metrics)), stop).await;
        }
        MetricsAccess::Secure { tls, cert_dir } => (tls, cert_dir),
    };
    let authorizer = Arc::new(Authorizer::new(ApiReviewer(client)));
    let metrics = move |headers: HeaderMap| async move {
        match authorizer.check(&headers).await {
            Ok(()) => metrics(scrape()).await,
            Err(refusal) => refusal.into_response(),
        }
    };
    let listener = listen(address).await?;
    let certificate = match &cert_dir {
        Some(_) => Certificate::default(),
        None => Certificate::self_signed(&["localhost"])?,
    };
    let router = Router::new().route(METRICS_PATH, get(metrics));
    tls::serve(listener, &tls, &certificate, router, stop.clone())?;
    if let Some(directory) = cert_dir {
        info!(directory = %directory.display(), "certificate of /metrics");
        tls::follow_files(directory, certificate, stop);
    }
    Ok(())
}

async fn metrics(scrape: impl Future<Output = Option<String>>) -> Response {
    match timeout(SCRAPE_TIMEOUT, scrape).await {
        Ok(Some(text)) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Ok(None) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn on(address: IpAddr, port: u16) -> Option<SocketAddr> {
    (port != 0).then(|| SocketAddr::new(address, port))
}

async fn serve(address: SocketAddr, router: Router, stop: CancellationToken) -> Result<()> {
    let listener = listen(address).await?;
    tokio::spawn(async move {
        let _ = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    });
    Ok(())
}

/// A listener on `address`.
///
/// # Errors
/// When it cannot be bound.
pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
    bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// On `[::]` IPv4 is answered too; a host without IPv6 has only `0.0.0.0`.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// The kernel has no IPv6 (EAFNOSUPPORT, which has no kind of its own), or it is turned off.
fn is_without_ipv6(error: &io::Error) -> bool {
    !matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_means_ipv4_too() {
        let listener = bind((Ipv6Addr::UNSPECIFIED, 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let taken = bind((Ipv6Addr::UNSPECIFIED, port).into()).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
