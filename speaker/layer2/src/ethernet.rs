//! The Ethernet header around ARP and NDP, and the reasons for leaving a frame alone.

use pnet::packet::Packet;
use pnet::packet::ethernet::{EtherType, EthernetPacket, MutableEthernetPacket};
use pnet::util::MacAddr;

/// Why a frame was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ignored {
    /// It came from an interface that the announcer has not been told of, or that is down.
    UnknownInterface,
    /// Shorter than its headers say.
    Truncated,
    /// Neither ARP nor IPv6.
    OtherProtocol,
    /// Addressed to another station.
    OtherDestination,
    /// Sent by this node.
    OwnFrame,
    /// ARP about something else than IPv4 on Ethernet, or from a sender that cannot be answered.
    MalformedArp,
    /// An ARP reply or announcement: nothing is asked.
    NoRequest,
    /// IPv6, but no neighbor solicitation.
    NoSolicitation,
    /// A neighbor solicitation that came over a router (RFC 4861 section 7.1.1: hop limit not 255).
    HopLimit,
    /// A neighbor solicitation with a wrong checksum.
    Checksum,
    /// A neighbor solicitation that breaks another rule of RFC 4861 section 7.1.1.
    MalformedSolicitation,
    /// About an address that this node does not own.
    NotOwned,
    /// About an address that this node owns, but does not announce on that interface.
    NotHere,
    /// More requests than are answered, from this source or from all.
    RateLimited,
}

/// A frame with its header read.
pub(crate) struct Frame<'a> {
    pub(crate) destination: MacAddr,
    pub(crate) source: MacAddr,
    pub(crate) ethertype: EtherType,
    pub(crate) payload: &'a [u8],
}

pub(crate) fn decode(frame: &[u8]) -> Result<Frame<'_>, Ignored> {
    let header = EthernetPacket::new(frame).ok_or(Ignored::Truncated)?;
    Ok(Frame {
        destination: header.get_destination(),
        source: header.get_source(),
        ethertype: header.get_ethertype(),
        payload: frame.get(EthernetPacket::minimum_packet_size()..).unwrap_or_default(),
    })
}

/// Puts a header in front of `payload`. Padding to the minimum length is the driver's work.
pub(crate) fn encode(
    destination: MacAddr,
    source: MacAddr,
    ethertype: EtherType,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = vec![0; EthernetPacket::minimum_packet_size() + payload.len()];
    let mut packet = MutableEthernetPacket::new(&mut frame).expect("the buffer holds a header");
    packet.set_destination(destination);
    packet.set_source(source);
    packet.set_ethertype(ethertype);
    packet.set_payload(payload);
    packet.packet().to_vec()
}

/// Whether a frame can be sent to this address alone.
pub(crate) fn is_station(address: MacAddr) -> bool {
    !address.is_zero() && !address.is_multicast()
}
