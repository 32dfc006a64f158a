//! `/healthz`, `/readyz` and `/metrics` over plain HTTP.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse as _,
    routing::get,
};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

/// Longer than a shell is ever busy with what came in.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Set once everything that the process needs has been read.
#[derive(Debug, Clone, Default)]
pub struct Ready(Arc<AtomicBool>);

impl Ready {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The port on every address of the host; `None` for port 0, which turns a server off.
pub fn on_all_addresses(port: u16) -> Option<SocketAddr> {
    on(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// The port on the loopback address; `None` for port 0, which turns a server off.
pub fn on_loopback(port: u16) -> Option<SocketAddr> {
    on(Ipv4Addr::LOCALHOST.into(), port)
}

/// Serves `/healthz` (the process answers) and `/readyz` (everything is listed) until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_health(
    address: SocketAddr,
    ready: Ready,
    stop: CancellationToken,
) -> Result<()> {
    let readiness = move || async move {
        if ready.is_set() {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "waiting for the first list of every kind\n")
        }
    };
    let router =
        Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(readiness));
    serve(address, router, stop).await
}

/// Serves `/metrics` until `stop`: the OpenMetrics text that `scrape` returns, which is asked anew
/// for each request and has five seconds.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_metrics<Text>(
    address: SocketAddr,
    scrape: impl FnOnce() -> Text + Clone + Send + Sync + 'static,
    stop: CancellationToken,
) -> Result<()>
where
    Text: Future<Output = Option<String>> + Send + 'static,
{
    let metrics = move || async move {
        match timeout(SCRAPE_TIMEOUT, scrape()).await {
            Ok(Some(text)) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
            Ok(None) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    };
    serve(address, Router::new().route("/metrics", get(metrics)), stop).await
}

fn on(address: IpAddr, port: u16) -> Option<SocketAddr> {
    (port != 0).then(|| SocketAddr::new(address, port))
}

async fn serve(address: SocketAddr, router: Router, stop: CancellationToken) -> Result<()> {
    let listener = bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    tokio::spawn(async move {
        let _ = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    });
    Ok(())
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
