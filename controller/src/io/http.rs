//! Health, readiness and metrics over plain HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// A scrape in waiting: the owner of the controller answers with the text.
pub type Scrape = oneshot::Sender<String>;

/// Longer than the owner is ever busy with one event.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `/healthz` (the process answers) and `/readyz` (everything is listed and decisions are
/// made) until `stop`.
///
/// # Errors
/// When the port cannot be bound.
pub async fn serve_health(
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let readiness = move || async move {
        if ready.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "waiting for the first list of every kind\n")
        }
    };
    let router =
        Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(readiness));
    serve(address, router, stop).await
}

/// Serves `/metrics` until `stop`.
///
/// # Errors
/// When the port cannot be bound.
pub async fn serve_metrics(
    address: SocketAddr,
    scrapes: mpsc::Sender<Scrape>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let metrics = move || async move {
        let (reply, text) = oneshot::channel();
        let answered = async {
            scrapes.send(reply).await.ok()?;
            text.await.ok()
        };
        match timeout(SCRAPE_TIMEOUT, answered).await {
            Ok(Some(text)) => {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], text).into_response()
            }
            Ok(None) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    };
    serve(address, Router::new().route("/metrics", get(metrics)), stop).await
}

async fn serve(address: SocketAddr, router: Router, stop: CancellationToken) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}
