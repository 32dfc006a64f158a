//! `/healthz`, `/readyz` and `/metrics` over plain HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result};
use axum::{Router, http::StatusCode, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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

/// Serves the probes until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_health(
    address: SocketAddr,
    ready: Ready,
    stop: CancellationToken,
) -> Result<()> {
    let app = Router::new().route("/healthz", get(async || "ok")).route(
        "/readyz",
        get(async move || {
            if ready.is_set() {
                (StatusCode::OK, "ok")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "the first lists are not complete")
            }
        }),
    );
    serve(address, app, stop).await
}

/// Serves the metrics until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_metrics(
    address: SocketAddr,
    registry: Arc<Registry>,
    stop: CancellationToken,
) -> Result<()> {
    let app = Router::new().route(
        "/metrics",
        get(async move || {
            let mut text = String::new();
            match encode(&mut text, &registry) {
                Ok(()) => (StatusCode::OK, text),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }),
    );
    serve(address, app, stop).await
}

async fn serve(address: SocketAddr, app: Router, stop: CancellationToken) -> Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    tokio::spawn(async move {
        let _ = axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await;
    });
    Ok(())
}
