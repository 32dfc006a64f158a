//! The UDP sockets of BFD: RFC 5881 sections 4 and 5, RFC 5883 section 5.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::cmsg_space;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{
    Ipv4PacketInfo, Ipv4RecvTtl, Ipv6RecvHopLimit, Ipv6RecvPacketInfo,
};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::Path;
use crate::io::{packet::would_block, tcp::CLASS_SELECTOR_6};

/// The TTL that only a neighbour's packet still has on arrival.
pub const MOST_HOPS: u8 = 255;
/// A source port may be any of these, up to the last there is.
const FIRST_SOURCE_PORT: u16 = 49152;
/// A flood of 200,000 datagrams in a second for some 5 ms, at the 768 octets that the kernel counts
/// for a small one.
const RECEIVE_BUFFER: usize = 1 << 20;
/// The longest packet there can be, by its Length field.
const LONGEST: usize = 255;

/// Where packets for some sessions come in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entrance {
    pub family: Family,
    pub multihop: bool,
    /// The device of a VRF.
    pub vrf: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Entrance {
    pub fn port(&self) -> u16 {
        if self.multihop { 4784 } else { 3784 }
    }
}

/// A socket at an [`Entrance`]; never blocks.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    payload: [u8; LONGEST],
    control: Vec<u8>,
}

/// What came.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    pub payload: &'a [u8],
    pub source: IpAddr,
    pub destination: IpAddr,
    /// The index of the device that it came in by.
    pub interface: u32,
    /// Its TTL or hop limit.
    pub hops: u8,
}

impl Listener {
    /// # Errors
    /// When another program has the port, or there is no such VRF or no such family here.
    pub fn open(entrance: &Entrance) -> io::Result<Self> {
        let kind = Type::DGRAM.nonblocking().cloexec();
        let (domain, any) = match entrance.family {
            Family::V4 => (Domain::IPV4, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
            Family::V6 => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
        };
        let socket = Socket::new(domain, kind, Some(Protocol::UDP))?;
        // Before the first packet can come.
        match entrance.family {
            Family::V4 => {
                setsockopt(&socket, Ipv4RecvTtl, &true)?;
                setsockopt(&socket, Ipv4PacketInfo, &true)?;
            }
            Family::V6 => {
                socket.set_only_v6(true)?;
                setsockopt(&socket, Ipv6RecvHopLimit, &true)?;
                setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
            }
        }
        socket.bind_device(entrance.vrf.as_deref().map(str::as_bytes))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.bind(&SocketAddr::new(any, entrance.port()).into())?;
        let control = cmsg_space!(libc::in6_pktinfo, libc::c_int);
        Ok(Self { socket, payload: [0; LONGEST], control })
    }

    /// The next datagram that waits, if any does.
    ///
    /// # Errors
    /// What the kernel says of the socket.
    pub fn receive(&mut self) -> io::Result<Option<Datagram<'_>>> {
        let fd = self.socket.as_raw_fd();
        let (length, source, way) = {
            let mut parts = [IoSliceMut::new(&mut self.payload)];
            let control = Some(&mut self.control[..]);
            let message =
                match recvmsg::<SockaddrStorage>(fd, &mut parts, control, MsgFlags::empty())
                    .map_err(io::Error::from)
                {
                    Ok(message) => message,
                    Err(error) if would_block(&error) => return Ok(None),
                    Err(error) => return Err(error),
                };
            (message.bytes, message.address.as_ref().and_then(address), Way::of(message.cmsgs()?))
        };
        let incomplete = || io::Error::other("the kernel does not say where a datagram is from");
        let (Some(source), Some(way)) = (source, way) else { return Err(incomplete()) };
        let Way { destination, interface, hops } = way;
        let payload = &self.payload[..length.min(LONGEST)];
        Ok(Some(Datagram { payload, source, destination, interface, hops }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the kernel says beside a datagram.
struct Way {
    destination: IpAddr,
    interface: u32,
    hops: u8,
}

impl Way {
    fn of(messages: impl Iterator<Item = ControlMessageOwned>) -> Option<Self> {
        let (mut arrival, mut hops) = (None, None);
        for message in messages {
            match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let destination = Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr));
                    arrival = Some((destination.into(), u32::try_from(info.ipi_ifindex).ok()?));
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    let destination = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    arrival = Some((destination.into(), info.ipi6_ifindex));
                }
                ControlMessageOwned::Ipv4Ttl(ttl) => hops = u8::try_from(ttl).ok(),
                ControlMessageOwned::Ipv6HopLimit(limit) => hops = u8::try_from(limit).ok(),
                _ => {}
            }
        }
        let (destination, interface) = arrival?;
        Some(Self { destination, interface, hops: hops? })
    }
}

fn address(storage: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| address.ip().into()))
}

/// The socket that one session sends from, its own and always from the same port.
#[derive(Debug)]
pub struct Sender {
    socket: Socket,
    to: SockAddr,
    port: u16,
    /// The index of the device that the session is bound to.
    interface: Option<u32>,
}

impl Sender {
    /// From the first port that is free, `from` and upwards, beginning anew at the end; any number
    /// will do for `from`.
    ///
    /// # Errors
    /// When there is no such interface or address here, or no port is left; each is named.
    pub fn open(path: &Path, from: u16) -> io::Result<Self> {
        let saying = |what: String, error: io::Error| {
            io::Error::new(error.kind(), format!("{what}: {error}"))
        };
        let index = |name: &String| {
            if_nametoindex(name.as_str())
                .map_err(|error| saying(format!("interface {name}"), error.into()))
        };
        let interface = path.interface.as_ref().map(index).transpose()?;
        let link_local = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if link_local(path.remote) && interface.is_none() {
            let message = format!("{} needs the interface that it is behind", path.remote);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let scoped = |address: IpAddr, port| match address {
            IpAddr::V6(v6) if link_local(address) => {
                SocketAddrV6::new(v6, port, 0, interface.unwrap_or_default()).into()
            }
            _ => SocketAddr::new(address, port),
        };

        let kind = Type::DGRAM.nonblocking().cloexec();
        let domain = match path.remote {
            IpAddr::V4(_) => Domain::IPV4,
            IpAddr::V6(_) => Domain::IPV6,
        };
        let socket = Socket::new(domain, kind, Some(Protocol::UDP))?;
        match path.remote {
            IpAddr::V4(_) => {
                socket.set_ttl_v4(MOST_HOPS.into())?;
                socket.set_tos_v4(CLASS_SELECTOR_6)?;
            }
            IpAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_unicast_hops_v6(MOST_HOPS.into())?;
                socket.set_tclass_v6(CLASS_SELECTOR_6)?;
            }
        }
        // Nobody reads here: a program that lets nothing in, BPF_RET of 0 octets.
        socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])?;
        if let Some(device) = path.interface.as_ref().or(path.entrance.vrf.as_ref()) {
            socket
                .bind_device(Some(device.as_bytes()))
                .map_err(|error| saying(format!("device {device}"), error))?;
        }
        let any = match path.remote {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let local = path.local.unwrap_or(any);
        let port = bind(&socket, from, |port| scoped(local, port))
            .map_err(|error| saying(format!("speaking from {local}"), error))?;
        let to = scoped(path.remote, path.entrance.port()).into();
        Ok(Self { socket, to, port, interface })
    }

    /// # Errors
    /// When there is no way to the peer now, or the device has gone.
    pub fn send(&self, payload: &[u8]) -> io::Result<()> {
        self.socket.send_to(payload, &self.to).map(drop)
    }

    /// The source port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// See [`Path::interface`].
    pub fn interface(&self) -> Option<u32> {
        self.interface
    }
}

fn bind(socket: &Socket, from: u16, address: impl Fn(u16) -> SocketAddr) -> io::Result<u16> {
    let count = u16::MAX - FIRST_SOURCE_PORT + 1;
    for offset in 0..count {
        let port = FIRST_SOURCE_PORT + from.wrapping_add(offset) % count;
        match socket.bind(&address(port).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result.map(|()| port),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(remote: &str) -> Path {
        let remote: IpAddr = remote.parse().unwrap();
        let family = if remote.is_ipv4() { Family::V4 } else { Family::V6 };
        let entrance = Entrance { family, multihop: false, vrf: None };
        Path { entrance, remote, local: None, interface: None }
    }

    #[test]
    fn a_sender_has_a_port_of_its_own_and_the_marks_of_bfd() {
        for remote in ["127.0.0.1", "::1"] {
            let senders: Vec<_> =
                (0..3).map(|_| Sender::open(&path(remote), u16::MAX).unwrap()).collect();
            for sender in &senders {
                let bound = sender.socket.local_addr().unwrap().as_socket().unwrap();
                assert_eq!(bound.port(), sender.port());
                assert!(sender.port() >= FIRST_SOURCE_PORT);
                let socket = &sender.socket;
                let marks = match sender.to.as_socket().unwrap() {
                    SocketAddr::V4(_) => (socket.ttl_v4().unwrap(), socket.tos_v4().unwrap()),
                    SocketAddr::V6(_) => {
                        (socket.unicast_hops_v6().unwrap(), socket.tclass_v6().unwrap())
                    }
                };
                assert_eq!(marks, (255, 0xc0));
            }
            assert!(senders[0].port() != senders[1].port());
            assert!(senders[1].port() != senders[2].port());
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let cases = [
            (Path { local: Some([192, 0, 2, 77].into()), ..path("127.0.0.1") }, "192.0.2.77"),
            (Path { interface: Some("no-such-one".into()), ..path("127.0.0.1") }, "no-such-one"),
            (path("fe80::1"), "fe80::1 needs the interface"),
        ];
        for (path, name) in cases {
            let error = Sender::open(&path, 0).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
