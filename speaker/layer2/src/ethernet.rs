//! The Ethernet header around ARP and NDP, and the reasons why nothing comes of a frame.

use pnet::packet::Packet;
use pnet::packet::ethernet::{EtherType, EthernetPacket, MutableEthernetPacket};
use pnet::util::MacAddr;

/// Why nothing came of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ignored {
    /// It came from an interface that the announcer has not been told of, or that is down.
    UnknownInterface,
    /// Shorter than its headers say.
    Truncated,
    /// Neither ARP nor IPv6.
    OtherProtocol,
    /// Sent from a group address or from none.
    NoStation,
    /// Addressed to another station.
    OtherDestination,
    /// Sent by this node.
    OwnFrame,
    /// ARP about something else than IPv4 on Ethernet, with another operation than a request or a
    /// reply, or from a sender that cannot be answered.
    MalformedArp,
    /// IPv6, but neither a neighbor solicitation nor an advertisement.
    NoNeighborDiscovery,
    /// Neighbor discovery that came over a router (RFC 4861 section 7.1: hop limit not 255).
    HopLimit,
    /// Neighbor discovery with a wrong checksum.
    Checksum,
    /// A neighbor solicitation that breaks another rule of RFC 4861 section 7.1.1.
    MalformedSolicitation,
    /// A neighbor advertisement that breaks another rule of RFC 4861 section 7.1.2.
    MalformedAdvertisement,
    /// A request for an address that this node does not own.
    NotOwned,
    /// About an address that this node owns or asks for, but not on that interface.
    NotHere,
    /// More requests than are answered, from this source or from all.
    RateLimited,
    /// A reply or an announcement for an address that this node neither owns nor asks for.
    Unheeded,
    /// What a station says of an owned address, or has said already of one that is asked for, more
    /// often than it is reported.
    HeardTooOften,
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
    if !is_station(header.get_source()) {
        return Err(Ignored::NoStation);
    }
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
