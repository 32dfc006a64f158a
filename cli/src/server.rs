//! `berth apiserver`: the embedded API server on a TCP port, for a look at it with kubectl.

use std::net::SocketAddr;

use anyhow::Context;
use apiserver::{ApiServer, Options as ServerOptions};
use tokio::net::TcpListener;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where to listen. It asks nobody who they are: keep it on an address that only you reach
    #[arg(long, default_value = "127.0.0.1:8001")]
    listen: SocketAddr,
}

/// Serves until Ctrl-C.
///
/// # Errors
/// When the port cannot be taken.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("listening on {}", options.listen))?;
    let address = listener.local_addr()?;
    eprintln!("an empty cluster in memory; try: kubectl --server http://{address} get svc -A");
    let interrupted = async {
        // Failing to listen for it is no reason to stop.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    };
    Ok(ApiServer::new(ServerOptions::default()).serve(listener, interrupted).await?)
}
