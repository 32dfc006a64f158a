//! Connections with BGP peers: everything that is settled before their first segment. What is said on
//! them is `bgp`'s matter. See RFC 4271 section 8 and appendix E, RFC 2385, RFC 5082, RFC 5925.

mod options;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use config::{Password, TcpAo};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// DSCP CS6, network control, in the place where it stands in the IP header.
pub(super) const CLASS_SELECTOR_6: u32 = 0xc0;

/// Longest wait for a peer's answer; the kernel's own is two minutes, in which nobody is told.
const PATIENCE: Duration = Duration::from_secs(15);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;
/// What everybody sends who uses GTSM.
const HIGHEST_TTL: u8 = 255;

/// How to reach a peer.
#[derive(Debug, Clone)]
pub struct ConnectConfig {
    pub peer: SocketAddr,
    /// The address to speak from; the kernel's choice if none.
    pub source: Option<IpAddr>,
    pub hops: Hops,
    /// The VRF's device.
    pub device: Option<String>,
    pub key: Option<Key>,
}

/// How far away a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hops {
    /// On this network: routers drop what is sent to it (TTL 1).
    One,
    /// Behind routers, maybe.
    Many,
    /// At most so many, 1 to 254, and whoever sends from further away is not heard (RFC 5082).
    Within(u8),
}

/// What segments are signed with.
#[derive(Debug, Clone)]
pub enum Key {
    /// RFC 2385; 1 to 80 octets.
    Md5(Password),
    /// RFC 5925; 1 to 80 octets.
    Ao(TcpAo, Password),
}

/// Connects.
///
/// # Errors
/// What stands in the way: a source address or a VRF that this node does not have, a password that
/// the kernel does not take, a peer that refuses or, as `TimedOut`, does not answer within 15 s.
pub async fn connect(config: ConnectConfig) -> io::Result<TcpStream> {
    let ConnectConfig { peer, source, hops, device, key } = &config;
    let socket = socket_towards(*peer, *hops, device.as_deref())?;
    if let Some(source) = source {
        socket
            .bind(&SocketAddr::new(*source, 0).into())
            .map_err(|error| saying(&error, &format!("speaking from sourceAddress {source}")))?;
    }
    if let Some(key) = key {
        set_key(&socket, *peer, key)?;
    }
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(*peer);
    let Ok(connected) = timeout(PATIENCE, connecting).await else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, no_answer(&config)));
    };
    connected.map_err(|error| saying(&error, &format!("connecting to {peer}")))
}

/// A socket that peers connect to, without keys.
///
/// # Errors
/// What stands in the way: a VRF that this node does not have, a port that is taken, or one that
/// needs a capability.
pub fn listen(on: SocketAddr, device: Option<&str>) -> io::Result<TcpListener> {
    let socket = socket_towards(on, Hops::Many, device)?;
    socket.set_reuse_address(true)?;
    if on.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let listen = || {
        socket.bind(&on.into())?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => saying(
            &error,
            &format!(
                "listening for passive peers on port {}: give the speaker the capability \
                 NET_BIND_SERVICE, or a port above 1023 with --bgp-listen-port",
                on.port()
            ),
        ),
        _ => saying(&error, &format!("listening for passive peers on {on}")),
    })?;
    TcpListener::from_std(socket.into())
}

/// Has a listener take only signed connections from a peer.
///
/// # Errors
/// As for [`connect`].
pub fn expect_key(listener: &TcpListener, peer: IpAddr, key: &Key) -> io::Result<()> {
    set_key(&SockRef::from(listener), SocketAddr::new(peer, 0), key)
}

/// Gives an accepted connection what one that was dialled has.
///
/// # Errors
/// What the kernel says.
pub fn accepted(stream: &TcpStream, hops: Hops) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let peer = stream.peer_addr()?;
    stream.set_nodelay(true)?;
    match peer {
        SocketAddr::V4(_) => socket.set_tos_v4(CLASS_SELECTOR_6)?,
        SocketAddr::V6(_) => socket.set_tclass_v6(CLASS_SELECTOR_6)?,
    }
    set_hops(&socket, peer, hops)
}

fn socket_towards(peer: SocketAddr, hops: Hops, device: Option<&str>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match peer {
        SocketAddr::V4(_) => socket.set_tos_v4(CLASS_SELECTOR_6)?,
        SocketAddr::V6(_) => socket.set_tclass_v6(CLASS_SELECTOR_6)?,
    }
    set_hops(&socket, peer, hops)?;
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes())).map_err(|error| {
            saying(&error, &format!("this node has no device for vrf {device}"))
        })?;
    }
    Ok(socket)
}

fn set_hops(socket: &Socket, peer: SocketAddr, hops: Hops) -> io::Result<()> {
    let ttl = match hops {
        Hops::One => 1,
        Hops::Many => return Ok(()),
        Hops::Within(count) => {
            let least = HIGHEST_TTL - count.clamp(1, HIGHEST_TTL) + 1;
            options::set_minimum_ttl(socket.as_fd(), peer, least)
                .map_err(|error| saying(&error, "setting ttlSecurityHops"))?;
            HIGHEST_TTL
        }
    };
    match peer {
        SocketAddr::V4(_) => socket.set_ttl_v4(ttl.into()),
        SocketAddr::V6(_) => socket.set_unicast_hops_v6(ttl.into()),
    }
}

fn set_key(socket: &Socket, peer: SocketAddr, key: &Key) -> io::Result<()> {
    match key {
        Key::Md5(Password(password)) => options::set_tcp_md5(socket, peer, password.as_bytes())
            .map_err(|error| saying(&error, "setting the password")),
        Key::Ao(option, Password(password)) => {
            options::set_tcp_ao(socket, peer, *option, password.as_bytes()).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::ENOPROTOOPT) => {
                        saying(&error, "tcpAO: this node's kernel has no TCP-AO (CONFIG_TCP_AO)")
                    }
                    _ => saying(&error, "setting the key of tcpAO"),
                }
            })
        }
    }
}

fn no_answer(config: &ConnectConfig) -> String {
    let hint = match (&config.key, config.hops) {
        // RFC 2385 section 2.0: a segment with a bad signature is dropped without a word.
        (Some(_), _) => "; a peer with another password, or with none, is silent too",
        (None, Hops::One) => "; a peer behind a router needs ebgpMultiHop",
        (None, Hops::Within(_)) => {
            "; a peer that has no TTL security, or is further away, is silent too"
        }
        (None, Hops::Many) => "",
    };
    format!("connecting to {}: no answer within {PATIENCE:?}{hint}", config.peer)
}

fn saying(error: &io::Error, doing: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn to(peer: SocketAddr) -> ConnectConfig {
        ConnectConfig { peer, source: None, hops: Hops::One, device: None, key: None }
    }

    #[tokio::test]
    async fn a_connection_has_its_options_from_the_first_segment() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let source = IpAddr::from([127, 0, 0, 9]);
        let stream = connect(ConnectConfig { source: Some(source), ..to(peer) }).await.unwrap();
        let socket = SockRef::from(&stream);
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
        for (hops, ttl) in [(Hops::One, 1), (Hops::Many, 64), (Hops::Within(200), 255)] {
            let stream = connect(ConnectConfig { hops, ..to(peer) }).await.unwrap();
            let socket = SockRef::from(&stream);
            assert_eq!(socket.unicast_hops_v6().unwrap(), ttl);
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
        match options::set_tcp_md5(&listener, SocketAddr::from(([127, 0, 0, 1], 0)), b"right") {
            // A kernel without CONFIG_TCP_MD5SIG.
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => return,
            result => result.unwrap(),
        }
        listener.listen(8).unwrap();
        let peer = listener.local_addr().unwrap().as_socket().unwrap();
        let with = |password: Option<&str>| {
            let key = password.map(|password| Key::Md5(Password(password.to_owned())));
            let connecting = connect(ConnectConfig { key, ..to(peer) });
            timeout(Duration::from_millis(300), connecting)
        };
        with(Some("right")).await.unwrap().unwrap();
        assert!(with(Some("wrong")).await.is_err(), "silence");
        assert!(with(None).await.is_err(), "silence");
    }

    #[tokio::test]
    async fn who_is_too_far_away_is_not_heard() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let peer = listener.local_addr().unwrap();
        // The answer to a SYN has the TTL of the listener.
        let impatient =
            |hops| timeout(Duration::from_millis(300), connect(ConnectConfig { hops, ..to(peer) }));
        assert!(impatient(Hops::Within(1)).await.is_err(), "the listener's TTL is 64");
        let stream = impatient(Hops::Within(200)).await.unwrap().unwrap();
        assert_eq!(SockRef::from(&stream).ttl_v4().unwrap(), 255);
        SockRef::from(&listener).set_ttl_v4(255).unwrap();
        impatient(Hops::Within(1)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_was_accepted_is_heard_from_near_only() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let peer = listener.local_addr().unwrap();
        let far = connect(ConnectConfig { hops: Hops::Many, ..to(peer) }).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        accepted(&stream, Hops::Within(1)).unwrap();
        assert_eq!(SockRef::from(&stream).ttl_v4().unwrap(), 255);
        far.writable().await.unwrap();
        far.try_write(b"x").unwrap();
        let heard = timeout(Duration::from_millis(100), stream.read_u8()).await;
        assert!(heard.is_err(), "its TTL is 64: {heard:?}");
    }

    #[tokio::test]
    async fn a_vrf_that_is_not_there_is_named() {
        let device = Some("red".to_owned());
        let error = connect(ConnectConfig { device, ..to("127.0.0.1:1".parse().unwrap()) })
            .await
            .unwrap_err();
        assert!(error.to_string().contains("vrf red"), "{error}");
    }
}
