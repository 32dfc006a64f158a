//! The same server on a TCP port, over plain HTTP/1.1.

use std::io;

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{ApiServer, http::answer};

impl ApiServer {
    /// Serves until `cancel` is done, then drops all connections.
    ///
    /// While the server is switched off, connections are closed as soon as they are made.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve(
        &self,
        listener: TcpListener,
        cancel: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let mut connections = JoinSet::new();
        tokio::pin!(cancel);
        loop {
            tokio::select! {
                () = &mut cancel => return Ok(()),
                Some(_ended) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(connection(self.clone(), stream));
                    }
                    // The peer gave up before it was accepted.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error),
                },
            }
        }
    }
}

async fn connection(server: ApiServer, stream: TcpStream) {
    let mut available = server.inner.available.subscribe();
    if !*available.borrow_and_update() {
        return;
    }
    // Answers are small and come in one piece: there is nothing to gather.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let service = service_fn(|request| answer(&server, request));
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::debug!(%error, "connection");
            }
        }
        _off = available.wait_for(|on| !on) => {}
    }
}
