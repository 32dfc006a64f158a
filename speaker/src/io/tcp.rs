//! Dials a BGP peer: everything about the connection that is settled before its first segment. What
//! is said on it is `bgp`'s matter. See RFC 4271 section 8 and appendix E, RFC 2385.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use config::Password;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::packet;

/// DSCP CS6, network control, in the place where it stands in the IP header.
pub(super) const CLASS_SELECTOR_6: u32 = 0xc0;

/// Longest wait for a peer's answer; the kernel's own is two minutes, in which nobody is told.
const PATIENCE: Duration = Duration::from_secs(15);

/// How to reach a peer.
#[derive(Debug, Clone)]
pub struct ConnectConfig {
    pub peer: SocketAddr,
    /// The address to speak from; the kernel's choice if none.
    pub source: Option<IpAddr>,
    /// The peer may be behind routers. Otherwise they drop what is sent to it (TTL 1).
    pub multihop: bool,
    /// The TCP MD5 key, 1 to 80 octets.
    pub password: Option<Password>,
}

/// Connects.
///
/// # Errors
/// What stands in the way: a source address that this node does not have, a password that TCP MD5
/// cannot carry, a peer that refuses or, as `TimedOut`, does not answer within 15 s.
pub async fn connect(config: ConnectConfig) -> io::Result<TcpStream> {
    let ConnectConfig { peer, source, multihop, password } = &config;
    let socket = Socket::new(Domain::for_address(*peer), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match peer {
        SocketAddr::V4(_) => socket.set_tos_v4(CLASS_SELECTOR_6)?,
        SocketAddr::V6(_) => socket.set_tclass_v6(CLASS_SELECTOR_6)?,
    }
    match (multihop, peer) {
        (false, SocketAddr::V4(_)) => socket.set_ttl_v4(1)?,
        (false, SocketAddr::V6(_)) => socket.set_unicast_hops_v6(1)?,
        (true, _) => {}
    }
    if let Some(source) = source {
        socket
            .bind(&SocketAddr::new(*source, 0).into())
            .map_err(|error| saying(&error, &format!("speaking from sourceAddress {source}")))?;
    }
    if let Some(Password(password)) = password {
        packet::set_tcp_md5(&socket, *peer, password.as_bytes())
            .map_err(|error| saying(&error, "setting the password"))?;
    }
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(*peer);
    let Ok(connected) = timeout(PATIENCE, connecting).await else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, no_answer(&config)));
    };
    connected.map_err(|error| saying(&error, &format!("connecting to {peer}")))
}

fn no_answer(config: &ConnectConfig) -> String {
    let hint = match (&config.password, config.multihop) {
        // RFC 2385 section 2.0: a segment with a bad signature is dropped without a word.
        (Some(_), _) => "; a peer with another password, or with none, is silent too",
        (None, false) => "; a peer behind a router needs ebgpMultiHop",
        (None, true) => "",
    };
    format!("connecting to {}: no answer within {PATIENCE:?}{hint}", config.peer)
}

fn saying(error: &io::Error, doing: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn to(peer: SocketAddr) -> ConnectConfig {
        ConnectConfig { peer, source: None, multihop: false, password: None }
    }

    #[tokio::test]
    async fn a_connection_has_its_options_from_the_first_segment() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let source = IpAddr::from([127, 0, 0, 9]);
        let stream = connect(ConnectConfig { source: Some(source), ..to(peer) }).await.unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert_eq!(socket.ttl_v4().unwrap(), 1);
        assert_eq!(socket.tos_v4().unwrap(), CLASS_SELECTOR_6);
        assert!(socket.tcp_nodelay().unwrap());
        let (_, seen) = listener.accept().await.unwrap();
        assert_eq!(seen.ip(), source);
    }

    #[tokio::test]
    async fn the_same_holds_for_ipv6_and_a_peer_that_may_be_far() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        for (multihop, hops) in [(false, 1), (true, 64)] {
            let stream = connect(ConnectConfig { multihop, ..to(peer) }).await.unwrap();
            let socket = socket2::SockRef::from(&stream);
            assert_eq!(socket.unicast_hops_v6().unwrap(), hops);
            assert_eq!(socket.tclass_v6().unwrap(), CLASS_SELECTOR_6);
        }
    }

    #[tokio::test]
    async fn a_foreign_source_address_is_named() {
        let source = Some(IpAddr::from([192, 0, 2, 77]));
        let config = ConnectConfig { source, ..to("127.0.0.1:1".parse().unwrap()) };
        let error = connect(config).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("192.0.2.77"), "{error}");
    }

    #[tokio::test]
    async fn a_peer_that_refuses_is_named() {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        drop(listener);
        let error = connect(to(peer)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&peer.to_string()), "{error}");
    }

    #[tokio::test]
    async fn only_the_right_password_is_answered() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        match packet::set_tcp_md5(&listener, SocketAddr::from(([127, 0, 0, 1], 0)), b"right") {
            // A kernel without CONFIG_TCP_MD5SIG.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => return,
            result => result.unwrap(),
        }
        listener.listen(8).unwrap();
        let peer = listener.local_addr().unwrap().as_socket().unwrap();
        let with = |password: Option<&str>| {
            let password = password.map(|password| Password(password.to_owned()));
            let connecting = connect(ConnectConfig { password, ..to(peer) });
            timeout(Duration::from_millis(300), connecting)
        };
        with(Some("right")).await.unwrap().unwrap();
        assert!(with(Some("wrong")).await.is_err(), "silence");
        assert!(with(None).await.is_err(), "silence");
    }
}
