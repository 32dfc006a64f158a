//! Neighbor discovery: the solicitations that are answered and the advertisements that are sent.
//! RFC 4861 sections 4.3, 4.4, 7.1.1, 7.2.4 and 7.2.6; duplicate address detection RFC 4862 section
//! 5.4. Options are walked and written here: pnet's own reader of them overflows on long ones.

use std::net::Ipv6Addr;

use pnet::packet::Packet;
use pnet::packet::ethernet::EtherTypes;
use pnet::packet::icmpv6::ndp::{
    MutableNeighborAdvertPacket, NdpOptionTypes, NeighborAdvertPacket, NeighborSolicitPacket,
};
use pnet::packet::icmpv6::{self, Icmpv6Code, Icmpv6Packet, Icmpv6Types};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet::util::MacAddr;

use crate::ethernet::{self, Ignored};

/// Every node of the link.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Somebody asks for the station of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Solicitation {
    /// Unspecified in duplicate address detection.
    pub(crate) source: Ipv6Addr,
    /// A unicast probe of an entry that is in use may leave it out.
    pub(crate) source_mac: Option<MacAddr>,
    pub(crate) target: Ipv6Addr,
}

/// `payload` starts with the IPv6 header.
pub(crate) fn decode(payload: &[u8]) -> Result<Solicitation, Ignored> {
    let ip = Ipv6Packet::new(payload).ok_or(Ignored::Truncated)?;
    if ip.get_version() != 6 || ip.get_next_header() != IpNextHeaderProtocols::Icmpv6 {
        return Err(Ignored::NoSolicitation);
    }
    let start = Ipv6Packet::minimum_packet_size();
    let message = payload
        .get(start..start + usize::from(ip.get_payload_length()))
        .ok_or(Ignored::Truncated)?;
    let icmp = Icmpv6Packet::new(message).ok_or(Ignored::Truncated)?;
    if icmp.get_icmpv6_type() != Icmpv6Types::NeighborSolicit {
        return Err(Ignored::NoSolicitation);
    }
    if ip.get_hop_limit() != 255 {
        return Err(Ignored::HopLimit);
    }
    let (source, destination) = (ip.get_source(), ip.get_destination());
    if icmpv6::checksum(&icmp, &source, &destination) != icmp.get_checksum() {
        return Err(Ignored::Checksum);
    }
    let solicit = NeighborSolicitPacket::new(message).ok_or(Ignored::MalformedSolicitation)?;
    let target = solicit.get_target_addr();
    let options = &message[NeighborSolicitPacket::minimum_packet_size()..];
    let source_mac = source_link_layer_address(options)?;
    let sound = solicit.get_icmpv6_code() == Icmpv6Code(0)
        && !target.is_multicast()
        && !source.is_multicast()
        && source_mac.is_none_or(ethernet::is_station)
        && (!source.is_unspecified()
            || (source_mac.is_none() && destination == solicited_node(target)));
    if !sound {
        return Err(Ignored::MalformedSolicitation);
    }
    Ok(Solicitation { source, source_mac, target })
}

/// The group in which an address is asked for (RFC 4291 section 2.7.1).
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// What an advertisement says; "override" is always set, "router" never: a stale entry is to be
/// corrected, and an address that moves between nodes is no router.
pub(crate) struct Advertisement {
    pub(crate) own: MacAddr,
    pub(crate) source: Ipv6Addr,
    pub(crate) target: Ipv6Addr,
}

impl Advertisement {
    /// The answer to one asker, who may be the frame's sender if he names no station. Whoever asks
    /// without an address of his own is answered by [`Self::to_all`].
    pub(crate) fn to_one(&self, station: MacAddr, destination: Ipv6Addr) -> Vec<u8> {
        const SOLICITED_AND_OVERRIDE: u8 = 0x60;
        self.encode(station, destination, SOLICITED_AND_OVERRIDE)
    }

    /// To every node, unsolicited.
    pub(crate) fn to_all(&self) -> Vec<u8> {
        const OVERRIDE: u8 = 0x20;
        self.encode(MacAddr::new(0x33, 0x33, 0, 0, 0, 1), ALL_NODES, OVERRIDE)
    }

    fn encode(&self, station: MacAddr, destination: Ipv6Addr, flags: u8) -> Vec<u8> {
        const ICMP: usize = NeighborAdvertPacket::minimum_packet_size() + 8;
        let mut message = [0; ICMP];
        let mut advert =
            MutableNeighborAdvertPacket::new(&mut message).expect("the buffer holds the message");
        advert.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
        advert.set_flags(flags);
        advert.set_target_addr(self.target);
        let (_, option) = message.split_at_mut(NeighborAdvertPacket::minimum_packet_size());
        option[0] = NdpOptionTypes::TargetLLAddr.0;
        option[1] = 1;
        option[2..].copy_from_slice(&self.own.octets());
        let icmp = Icmpv6Packet::new(&message).expect("the buffer holds the message");
        let checksum = icmpv6::checksum(&icmp, &self.source, &destination);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());

        let mut packet = [0; Ipv6Packet::minimum_packet_size() + ICMP];
        let mut ip = MutableIpv6Packet::new(&mut packet).expect("the buffer holds the header");
        ip.set_version(6);
        ip.set_payload_length(u16::try_from(ICMP).expect("32 octets"));
        ip.set_next_header(IpNextHeaderProtocols::Icmpv6);
        ip.set_hop_limit(255);
        ip.set_source(self.source);
        ip.set_destination(destination);
        ip.set_payload(&message);
        ethernet::encode(station, self.own, EtherTypes::Ipv6, ip.packet())
    }
}

/// Walks all options, for a length of zero or past the end condemns the message.
fn source_link_layer_address(mut options: &[u8]) -> Result<Option<MacAddr>, Ignored> {
    let mut found = None;
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * 8;
        let (option, rest) =
            options.split_at_checked(length).ok_or(Ignored::MalformedSolicitation)?;
        let [_, _, value @ ..] = option else {
            return Err(Ignored::MalformedSolicitation);
        };
        if kind == NdpOptionTypes::SourceLLAddr.0 {
            let octets = <[u8; 6]>::try_from(value).map_err(|_| Ignored::MalformedSolicitation)?;
            found = Some(MacAddr::from(octets));
        }
        options = rest;
    }
    if options.is_empty() { Ok(found) } else { Err(Ignored::MalformedSolicitation) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const OWN: MacAddr = MacAddr(0x02, 0, 0, 0, 0, 0x01);
    const VIP: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);
    const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99);
    const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

    /// An IPv6 packet with a solicitation for `target` and a right checksum.
    pub(crate) fn solicitation(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        target: Ipv6Addr,
        options: &[u8],
    ) -> Vec<u8> {
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        message.extend(options);
        sealed(source, destination, message)
    }

    fn sealed(source: Ipv6Addr, destination: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
        message[2..4].fill(0);
        let sum = icmpv6::checksum(&Icmpv6Packet::new(&message).unwrap(), &source, &destination);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], 58, 255];
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(message);
        packet
    }

    fn link_layer_option() -> [u8; 8] {
        [1, 1, 0x02, 0, 0, 0, 0, 0x99]
    }

    #[test]
    fn the_solicited_node_group_has_the_last_24_bits() {
        assert_eq!(solicited_node(VIP), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn a_solicitation_is_read_from_its_octets() {
        #[rustfmt::skip]
        let packet = [
            0x60, 0, 0, 0, 0, 32, 58, 255,
            0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99,
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x12, 0x34, 0x56,
            135, 0, 0xe1, 0x62, 0, 0, 0, 0,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56,
            1, 1, 0x02, 0, 0, 0, 0, 0x99,
        ];
        let expected = Solicitation {
            source: CLIENT,
            source_mac: Some(MacAddr::from(CLIENT_MAC)),
            target: VIP,
        };
        assert_eq!(decode(&packet), Ok(expected));
    }

    #[test]
    fn a_solicitation_may_be_unicast_and_name_no_station() {
        let read = decode(&solicitation(CLIENT, VIP, VIP, &[])).unwrap();
        assert_eq!(read, Solicitation { source: CLIENT, source_mac: None, target: VIP });
    }

    #[test]
    fn duplicate_address_detection_is_read() {
        let none = Ipv6Addr::UNSPECIFIED;
        let read = decode(&solicitation(none, solicited_node(VIP), VIP, &[])).unwrap();
        assert_eq!(read, Solicitation { source: none, source_mac: None, target: VIP });
    }

    #[test]
    fn unsound_solicitations_are_left_alone() {
        let group = solicited_node(VIP);
        let none = Ipv6Addr::UNSPECIFIED;
        let good = solicitation(CLIENT, group, VIP, &link_layer_option());
        let with = |at: usize, octet: u8| {
            let mut packet = good.clone();
            packet[at] = octet;
            packet
        };
        let mut code = good[40..].to_vec();
        code[1] = 1;
        let malformed = Ignored::MalformedSolicitation;
        let cases = [
            ("version", with(0, 0x40), Ignored::NoSolicitation),
            ("next header", with(6, 17), Ignored::NoSolicitation),
            ("length past the end", with(5, 33), Ignored::Truncated),
            ("an advertisement", with(40, 136), Ignored::NoSolicitation),
            ("hop limit", with(7, 254), Ignored::HopLimit),
            ("checksum", with(43, good[43] ^ 1), Ignored::Checksum),
            ("code", sealed(CLIENT, group, code), malformed),
            ("no target", sealed(CLIENT, group, good[40..60].to_vec()), malformed),
            ("group as target", solicitation(CLIENT, group, ALL_NODES, &[]), malformed),
            ("group as source", solicitation(ALL_NODES, group, VIP, &[]), malformed),
            ("length 0", solicitation(CLIENT, group, VIP, &[1, 0, 0, 0, 0, 0, 0, 0]), malformed),
            ("length 32", solicitation(CLIENT, group, VIP, &[14, 32, 0, 0, 0, 0, 0, 0]), malformed),
            ("half an option", solicitation(CLIENT, group, VIP, &[14, 1, 0, 0]), malformed),
            ("one octet", solicitation(CLIENT, group, VIP, &[14]), malformed),
            (
                "long station",
                solicitation(CLIENT, group, VIP, &[1, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
                malformed,
            ),
            (
                "group as station",
                solicitation(CLIENT, group, VIP, &[1, 1, 3, 0, 0, 0, 0, 1]),
                malformed,
            ),
            ("detection by unicast", solicitation(none, VIP, VIP, &[]), malformed),
            (
                "detection with a station",
                solicitation(none, group, VIP, &link_layer_option()),
                malformed,
            ),
        ];
        for (name, packet, reason) in cases {
            assert_eq!(decode(&packet), Err(reason), "{name}");
        }
    }

    #[test]
    fn advertisements_have_their_flags_and_the_station() {
        let advertisement = Advertisement { own: OWN, source: LINK_LOCAL, target: VIP };
        let solicited = advertisement.to_one(MacAddr::from(CLIENT_MAC), CLIENT);
        #[rustfmt::skip]
        assert_eq!(solicited, [
            0x02, 0, 0, 0, 0, 0x99, 0x02, 0, 0, 0, 0, 0x01, 0x86, 0xdd,
            0x60, 0, 0, 0, 0, 32, 58, 255,
            0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01,
            0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99,
            136, 0, 0xb3, 0xe5, 0x60, 0, 0, 0,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0x56,
            2, 1, 0x02, 0, 0, 0, 0, 0x01,
        ]);
        let unsolicited = advertisement.to_all();
        assert_eq!(unsolicited[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(unsolicited[38..54], ALL_NODES.octets());
        assert_eq!(unsolicited[58..62], [0x20, 0, 0, 0]);
        assert_eq!(unsolicited[78..], [2, 1, 0x02, 0, 0, 0, 0, 0x01]);
        let ip = &unsolicited[14..];
        let icmp = Icmpv6Packet::new(&ip[40..]).unwrap();
        assert_eq!(icmpv6::checksum(&icmp, &LINK_LOCAL, &ALL_NODES), icmp.get_checksum());
    }
}
