//! Takes connections for the peers that are passive: nobody else is answered.
//!
//! There is one socket for each VRF and family, opened for the first peer that needs it and closed
//! with the last. A caller that no session waits for is told so (Cease/5) before anything of it is
//! read.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tracing::{debug, warn};

use crate::io::tcp::{self, Hops, Key};

/// The sockets.
#[derive(Debug)]
pub struct Listeners {
    port: u16,
    sockets: BTreeMap<Entrance, Socket>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entrance {
    ipv6: bool,
    vrf: Option<String>,
}

#[derive(Debug)]
struct Socket {
    listener: Arc<TcpListener>,
    expected: Arc<Mutex<BTreeMap<IpAddr, Expected>>>,
    task: JoinHandle<()>,
}

/// A peer that may connect.
#[derive(Debug)]
struct Expected {
    hops: Hops,
    stream: mpsc::Sender<TcpStream>,
}

/// NOTIFICATION Cease, Connection Rejected (RFC 4486).
const REJECTED: [u8; 21] = {
    let mut octets = [0xff; 21];
    octets[16] = 0;
    octets[17] = 21;
    octets[18] = 3;
    octets[19] = 6;
    octets[20] = 5;
    octets
};

impl Listeners {
    pub fn new(port: u16) -> Self {
        Self { port, sockets: BTreeMap::new() }
    }

    /// Lets a peer connect from now on; its connections come out of the receiver.
    ///
    /// # Errors
    /// When the port cannot be listened on, or the kernel does not take the key.
    pub fn expect(
        &mut self,
        peer: IpAddr,
        vrf: Option<&str>,
        hops: Hops,
        key: Option<&Key>,
    ) -> std::io::Result<mpsc::Receiver<TcpStream>> {
        let entrance = Entrance { ipv6: peer.is_ipv6(), vrf: vrf.map(str::to_owned) };
        if !self.sockets.contains_key(&entrance) {
            let socket = Socket::open(self.port, &entrance)?;
            self.sockets.insert(entrance.clone(), socket);
        }
        let socket = &self.sockets[&entrance];
        if let Some(key) = key {
            tcp::expect_key(&socket.listener, peer, key)?;
        }
        let (stream, streams) = mpsc::channel(1);
        lock(&socket.expected).insert(peer, Expected { hops, stream });
        Ok(streams)
    }

    /// Closes the sockets that no session waits at any more.
    pub fn tidy(&mut self) {
        self.sockets.retain(|_, socket| {
            let mut expected = lock(&socket.expected);
            expected.retain(|_, expected| !expected.stream.is_closed());
            !expected.is_empty()
        });
    }
}

impl Socket {
    fn open(port: u16, entrance: &Entrance) -> std::io::Result<Self> {
        let any =
            if entrance.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let listener = Arc::new(tcp::listen(SocketAddr::new(any, port), entrance.vrf.as_deref())?);
        let expected = Arc::default();
        let task = tokio::spawn(accept(Arc::clone(&listener), Arc::clone(&expected)));
        Ok(Self { listener, expected, task })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: Arc<TcpListener>, expected: Arc<Mutex<BTreeMap<IpAddr, Expected>>>) {
    loop {
        match listener.accept().await {
            Ok((stream, caller)) => hand_over(stream, caller.ip(), &expected),
            // Out of descriptors, or a caller that went away meanwhile.
            Err(error) => {
                warn!(%error, "cannot accept a BGP connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

fn hand_over(stream: TcpStream, caller: IpAddr, expected: &Mutex<BTreeMap<IpAddr, Expected>>) {
    let expected = lock(expected);
    let wanted = expected.get(&caller).filter(|expected| {
        tcp::accepted(&stream, expected.hops)
            .inspect_err(|error| warn!(%caller, %error, "cannot accept a BGP connection"))
            .is_ok()
    });
    let rejected = match wanted {
        Some(expected) => match expected.stream.try_send(stream) {
            Ok(()) => return,
            Err(
                mpsc::error::TrySendError::Full(stream) | mpsc::error::TrySendError::Closed(stream),
            ) => stream,
        },
        None => stream,
    };
    debug!(%caller, "BGP connection rejected");
    // Best effort: a fresh connection has room for this, and the caller is told nothing else.
    let _ = rejected.try_write(&REJECTED);
}

fn lock(
    expected: &Mutex<BTreeMap<IpAddr, Expected>>,
) -> MutexGuard<'_, BTreeMap<IpAddr, Expected>> {
    expected.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn only_who_is_expected_gets_in() {
        // A port that was free a moment ago; nothing else listens on loopback here.
        let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let mut listeners = Listeners::new(port);
        let peer = IpAddr::from([127, 0, 0, 7]);
        let mut streams = listeners.expect(peer, None, Hops::Many, None).unwrap();
        let connect = |from: [u8; 4]| {
            tcp::connect(tcp::ConnectConfig {
                peer: SocketAddr::from(([127, 0, 0, 1], port)),
                source: Some(from.into()),
                hops: Hops::Many,
                device: None,
                key: None,
            })
        };
        let _peer = connect([127, 0, 0, 7]).await.unwrap();
        assert_eq!(streams.recv().await.unwrap().peer_addr().unwrap().ip(), peer);
        let mut stranger = connect([127, 0, 0, 8]).await.unwrap();
        let mut said = Vec::new();
        // It may be a reset that ends it: nobody reads what a stranger says.
        let _ = stranger.read_to_end(&mut said).await;
        assert_eq!(said, REJECTED);
        drop(streams);
        listeners.tidy();
        assert!(listeners.sockets.is_empty());
    }
}
