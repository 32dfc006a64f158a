//! Who is at the other end of an interface, for peers without an address: found by the router
//! advertisements of the other side (RFC 4861), which in turn waits for one of ours.
//!
//! Ours has a router lifetime of 0, so nobody takes this node for a way out.

use std::{
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    num::NonZeroU32,
    os::fd::AsRawFd as _,
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
        sockopt::Ipv6RecvHopLimit,
    },
};
use rand::RngExt as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, sync::watch, time::sleep};
use tracing::{debug, warn};

use crate::{io::packet::would_block, wire::Report};

/// The router at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Link-local.
    address: Ipv6Addr,
    /// The index of the interface.
    interface: u32,
}

impl Neighbour {
    /// Where it listens.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddrV6::new(self.address, port, 0, self.interface).into()
    }
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
/// Between two advertisements, in milliseconds; RFC 4861 section 6.2.1 allows no less than 3 s.
const PERIOD: std::ops::Range<u64> = 3_000..4_000;
/// Before an interface that could not be used is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// More than any advertisement; the rest is not read.
const LONGEST: usize = 256;

/// Looks for the router at the other end of an interface until nobody asks any more.
pub fn watch(
    interface: String,
    report: watch::Receiver<Report>,
) -> watch::Receiver<Option<Neighbour>> {
    let (found, neighbour) = watch::channel(None);
    tokio::spawn(async move {
        let gone = found.clone();
        tokio::select! {
            () = gone.closed() => {}
            () = look(&interface, report, &found) => {}
        }
    });
    neighbour
}

async fn look(
    name: &str,
    mut report: watch::Receiver<Report>,
    found: &watch::Sender<Option<Neighbour>>,
) {
    loop {
        let interface = report.borrow_and_update().interfaces.iter().find_map(|interface| {
            let usable = *interface.name == *name && interface.up;
            let own = interface.link_local.filter(|_| usable)?;
            Some((interface.index.0, own, interface.mac))
        });
        let Some((index, own, mac)) = interface else {
            found.send_replace(None);
            if report.changed().await.is_err() {
                return;
            }
            continue;
        };
        let other = async {
            // Another address or index of the interface needs another socket.
            while report.changed().await.is_ok() {
                let report = report.borrow_and_update();
                let same = report.interfaces.iter().any(|interface| {
                    interface.index.0 == index
                        && interface.up
                        && interface.link_local == Some(own)
                        && *interface.name == *name
                });
                if !same {
                    return;
                }
            }
        };
        tokio::select! {
            () = other => {}
            Err(error) = speak(index, own, mac, found) => {
                warn!(interface = name, %error, "router advertisements stopped");
                sleep(PAUSE).await;
            }
        }
        found.send_replace(None);
    }
}

async fn speak(
    interface: u32,
    own: Ipv6Addr,
    mac: [u8; 6],
    found: &watch::Sender<Option<Neighbour>>,
) -> io::Result<()> {
    // For tokio a datagram socket is one, whatever its protocol.
    let socket = UdpSocket::from_std(open(interface)?.into())?;
    let all = SocketAddr::from(SocketAddrV6::new(ALL_NODES, 0, 0, interface));
    let advertisement = advertisement(mac);
    loop {
        // Best effort, as all multicast: the next one is not far.
        if let Err(error) = socket.send_to(&advertisement, all).await {
            debug!(%error, interface, "a router advertisement was not sent");
        }
        let period = sleep(Duration::from_millis(rand::rng().random_range(PERIOD)));
        tokio::pin!(period);
        loop {
            tokio::select! {
                () = &mut period => break,
                ready = socket.readable() => ready?,
            }
            match socket.try_io(Interest::READABLE, || receive(&socket)) {
                Ok(Some(Heard::Advertisement(router))) if router != own => {
                    let neighbour = Neighbour { address: router, interface };
                    found.send_if_modified(|known| known.replace(neighbour) != Some(neighbour));
                }
                Ok(Some(Heard::Solicitation)) => break,
                Ok(Some(Heard::Advertisement(_)) | None) => {}
                Err(error) if would_block(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn open(interface: u32) -> io::Result<Socket> {
    let kind = Type::RAW.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV6, kind, Some(Protocol::ICMPV6))?;
    setsockopt(&socket, Ipv6RecvHopLimit, &true)?;
    socket.set_multicast_hops_v6(255)?;
    socket.set_multicast_if_v6(interface)?;
    socket.set_multicast_loop_v6(false)?;
    socket.join_multicast_v6(&ALL_ROUTERS, interface)?;
    socket.bind_device_by_index_v6(NonZeroU32::new(interface))?;
    Ok(socket)
}

/// RFC 4861 section 4.2, with the source link-layer address; the kernel fills the checksum in.
fn advertisement(mac: [u8; 6]) -> [u8; 24] {
    let mut message = [0; 24];
    message[0] = ADVERTISEMENT;
    message[4] = 64;
    message[16] = 1;
    message[17] = 1;
    message[18..].copy_from_slice(&mac);
    message
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Advertisement(Ipv6Addr),
    Solicitation,
}

fn receive(socket: &UdpSocket) -> io::Result<Option<Heard>> {
    let mut payload = [0; LONGEST];
    let mut control = cmsg_space!(libc::c_int);
    let (length, source, hops) = {
        let mut parts = [IoSliceMut::new(&mut payload)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let source = message.address.as_ref().and_then(|address| address.as_sockaddr_in6());
        let hops = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv6HopLimit(hops) => Some(hops),
            _ => None,
        });
        (message.bytes, source.map(|source| source.ip()), hops)
    };
    let message = &payload[..length.min(LONGEST)];
    Ok(source.zip(hops).and_then(|(source, hops)| understand(message, source, hops)))
}

/// What RFC 4861 section 6.1 lets pass; the kernel has checked the checksum.
fn understand(message: &[u8], source: Ipv6Addr, hops: i32) -> Option<Heard> {
    let valid = hops == 255 && message.get(1) == Some(&0);
    match *message.first()? {
        SOLICITATION if valid && message.len() >= 8 => Some(Heard::Solicitation),
        ADVERTISEMENT if valid && message.len() >= 16 && source.is_unicast_link_local() => {
            Some(Heard::Advertisement(source))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_from_the_link_is_believed() {
        let router: Ipv6Addr = "fe80::9".parse().unwrap();
        let sent = advertisement([2, 0, 0, 0, 1, 1]);
        let heard = Some(Heard::Advertisement(router));
        assert_eq!(understand(&sent, router, 255), heard);
        assert_eq!(sent[6..8], [0, 0], "a lifetime of 0: not a default router");
        assert_eq!(understand(&sent, router, 254), None, "from behind a router");
        assert_eq!(understand(&sent, "2001:db8::9".parse().unwrap(), 255), None);
        assert_eq!(understand(&sent[..15], router, 255), None, "cut off");
        assert_eq!(
            understand(&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], router, 255),
            Some(Heard::Solicitation)
        );
        assert_eq!(understand(&[SOLICITATION, 1, 0, 0, 0, 0, 0, 0], router, 255), None);
        assert_eq!(understand(&[], router, 255), None);
    }
}
