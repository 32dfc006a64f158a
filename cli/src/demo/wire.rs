//! What is announced on the wire: gratuitous ARP (RFC 5227 section 3) and unsolicited neighbour advertisements
//! (RFC 4861 section 7.2.6), with the moment at which each was seen. Reads frames only; it neither sends nor answers.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use netlab::Namespace;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;

/// `ETH_P_ALL` of packet(7).
const ALL_PROTOCOLS: u16 = 3;
/// A demo sees some hundred announcements; more than this and the oldest are let go.
const SIGHTINGS_LIMIT: usize = 10_000;
/// How long a sniffer that is not wanted any more goes on listening.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// One announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    pub at: Instant,
    pub announcement: Announcement,
}

/// That an address is to be found at a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    pub address: IpAddr,
    pub mac: [u8; 6],
}

/// Listens in one namespace until it is dropped.
#[derive(Debug)]
pub struct Sniffer {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    sightings: Mutex<Vec<Sighting>>,
    news: Notify,
    stop: AtomicBool,
}

impl Sniffer {
    /// # Errors
    /// When the kernel gives no packet socket (it wants `CAP_NET_RAW`).
    pub fn start(namespace: &Namespace) -> anyhow::Result<Self> {
        let socket = namespace.inside(|| {
            // The kernel takes the protocol in network byte order.
            let protocol = Protocol::from(i32::from(ALL_PROTOCOLS.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
                .context("opening a packet socket")?;
            socket.set_read_timeout(Some(POLL_INTERVAL))?;
            Ok(socket)
        })?;
        let shared = Arc::new(Shared::default());
        let listener = shared.clone();
        std::thread::spawn(move || listener.listen(socket));
        Ok(Self { shared })
    }

    /// Who announced an address last.
    pub fn last(&self, address: IpAddr) -> Option<[u8; 6]> {
        let sightings = self.shared.lock();
        let last =
            sightings.iter().rev().find(|sighting| sighting.announcement.address == address)?;
        Some(last.announcement.mac)
    }

    /// The first announcement at or after `since` that `wanted` takes, if it comes within `limit`.
    pub async fn first(
        &self,
        since: Instant,
        limit: Duration,
        wanted: impl Fn(&Announcement) -> bool,
    ) -> Option<Sighting> {
        let find = async {
            loop {
                let news = self.shared.news.notified();
                let found = self
                    .shared
                    .lock()
                    .iter()
                    .find(|sighting| sighting.at >= since && wanted(&sighting.announcement))
                    .copied();
                if let Some(found) = found {
                    return found;
                }
                news.await;
            }
        };
        tokio::time::timeout(limit, find).await.ok()
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn listen(&self, mut socket: Socket) {
        let mut frame = [0; 2048];
        while !self.stop.load(Ordering::Relaxed) {
            // An error is the time-out, or a link that goes: the next read tells.
            let Ok(length) = socket.read(&mut frame) else { continue };
            let at = Instant::now();
            if let Some(announcement) = announcement(&frame[..length]) {
                let mut sightings = self.lock();
                if sightings.len() >= SIGHTINGS_LIMIT {
                    sightings.drain(..SIGHTINGS_LIMIT / 2);
                }
                sightings.push(Sighting { at, announcement });
                drop(sightings);
                self.news.notify_waiters();
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Sighting>> {
        self.sightings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads an Ethernet frame; anything but an announcement is `None`.
fn announcement(frame: &[u8]) -> Option<Announcement> {
    let (header, payload) = frame.split_at_checked(14)?;
    match [header[12], header[13]] {
        [0x08, 0x06] => gratuitous_arp(payload),
        [0x86, 0xdd] => unsolicited_advertisement(payload),
        _ => None,
    }
}

/// RFC 826: hardware type, protocol type, both lengths, operation, then sender and target.
fn gratuitous_arp(packet: &[u8]) -> Option<Announcement> {
    let packet: &[u8; 28] = packet.first_chunk()?;
    let ethernet_and_ipv4 = packet[..6] == [0, 1, 8, 0, 6, 4];
    let sender: [u8; 4] = packet[14..18].try_into().ok()?;
    let target: [u8; 4] = packet[24..28].try_into().ok()?;
    (ethernet_and_ipv4 && sender == target).then_some(Announcement {
        address: Ipv4Addr::from(sender).into(),
        mac: packet[8..14].try_into().ok()?,
    })
}

/// RFC 8200 section 3, then RFC 4861 section 4.4 with a target link-layer address option.
fn unsolicited_advertisement(packet: &[u8]) -> Option<Announcement> {
    const ICMPV6: u8 = 58;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const SOLICITED: u8 = 0x40;
    let (header, message) = packet.split_at_checked(40)?;
    let message: &[u8; 32] = message.first_chunk()?;
    let wanted = header[6] == ICMPV6
        && message[0] == NEIGHBOUR_ADVERTISEMENT
        && message[4] & SOLICITED == 0
        && message[24..26] == [2, 1];
    let target: [u8; 16] = message[8..24].try_into().ok()?;
    wanted.then_some(Announcement {
        address: Ipv6Addr::from(target).into(),
        mac: message[26..32].try_into().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 1, 3];

    fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(MAC);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend(MAC);
        frame.extend(sender);
        frame.extend([0xff; 6]);
        frame.extend(target);
        frame
    }

    fn advertisement(flags: u8, kind: u8) -> Vec<u8> {
        let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
        frame.extend(MAC);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        frame.extend([0; 32]);
        frame.extend([kind, 0, 0, 0, flags, 0, 0, 0]);
        frame.extend("fd00:a::200".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend([2, 1]);
        frame.extend(MAC);
        frame
    }

    #[test]
    fn only_announcements_are_taken() {
        let vip = [10, 0, 0, 200];
        let v4 = Some(Announcement { address: IpAddr::from(vip), mac: MAC });
        let v6 = Some(Announcement { address: "fd00:a::200".parse().unwrap(), mac: MAC });
        for (what, frame, expected) in [
            ("a gratuitous request", arp(1, vip, vip), v4),
            ("a gratuitous reply", arp(2, vip, vip), v4),
            ("an ordinary question", arp(1, [10, 0, 0, 100], vip), None),
            ("an unsolicited advertisement", advertisement(0x20, 136), v6),
            ("an answer to a solicitation", advertisement(0x60, 136), None),
            ("another ICMPv6 message", advertisement(0x20, 135), None),
            ("no frame", vec![], None),
        ] {
            assert_eq!(announcement(&frame), expected, "{what}");
        }
        for frame in [arp(1, vip, vip), advertisement(0x20, 136)] {
            for length in 0..frame.len() {
                assert_eq!(announcement(&frame[..length]), None, "cut at {length}");
            }
        }
    }
}
