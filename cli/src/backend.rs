//! A backend for the demo: HTTP on one port, over IPv4 and IPv6, answering with its own name and the address that it
//! saw as the client's. Not a web server: it reads one request a connection and looks at nothing in it.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// No request line and headers of ours are longer.
const REQUEST_LIMIT: usize = 8192;
/// A client that connects and says nothing is let go after this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// The name that is answered
    #[arg(long)]
    name: String,
    /// Where to listen; the default takes both address families
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
}

/// What a backend answers, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub backend: String,
    pub client: String,
}

/// Serves until the process is killed.
///
/// # Errors
/// When the port cannot be taken.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("listening on {}", options.listen))?;
    loop {
        // Failing to accept one connection (the client has gone again) is no reason to stop.
        let Ok((stream, client)) = listener.accept().await else { continue };
        let answer = Answer {
            backend: options.name.clone(),
            client: client.ip().to_canonical().to_string(),
        };
        tokio::spawn(async move {
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, serve(stream, &answer)).await;
        });
    }
}

async fn serve(mut stream: TcpStream, answer: &Answer) -> anyhow::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut chunk).await?;
        anyhow::ensure!(n > 0 && request.len() + n <= REQUEST_LIMIT, "not a request");
        request.extend_from_slice(&chunk[..n]);
    }
    let mut body = serde_json::to_string(answer)?;
    body.push('\n');
    let response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}
