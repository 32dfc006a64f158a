//! Neighbor discovery: what is read of others' solicitations and advertisements, and those that are
//! sent. RFC 4861 sections 4.3, 4.4, 7.1, 7.2.4 and 7.2.6; duplicate address detection RFC 4862
//! section 5.4. Options are walked and written here: pnet's own reader of them overflows on long
//! ones.

use std::net::Ipv6Addr;

use pnet::packet::Packet;
use pnet::packet::ethernet::EtherTypes;
use pnet::packet::icmpv6::ndp::{
    NdpOptionType, NdpOptionTypes, NeighborAdvertPacket, NeighborSolicitPacket,
};
use pnet::packet::icmpv6::{self, Icmpv6Code, Icmpv6Packet, Icmpv6Types};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet::util::MacAddr;

use crate::ethernet::{self, Ignored};

/// Every node of the link.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What somebody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    Solicitation(Solicitation),
    Advertisement(Advertisement),
}

/// Somebody asks for the station of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Solicitation {
    /// Unspecified in duplicate address detection.
    pub(crate) source: Ipv6Addr,
    /// A unicast probe of an entry that is in use may leave it out.
    pub(crate) source_mac: Option<MacAddr>,
    pub(crate) target: Ipv6Addr,
    pub(crate) purpose: Purpose,
}

/// Why somebody asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To send something there.
    Resolution,
    /// To find out whether the address is free: duplicate address detection, or a speaker before it
    /// takes the address. That one asks from its link-local address, for then the answer comes to
    /// it alone and no host that is about to use the address takes the question for a conflict; it
    /// is told from others by a nonce (RFC 7527 section 4.1), which is else found in detection only.
    Probe,
}

/// Somebody says which station has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Advertisement {
    pub(crate) target: Ipv6Addr,
    /// The frame's sender if it is left out.
    pub(crate) target_mac: Option<MacAddr>,
}

/// `payload` starts with the IPv6 header.
pub(crate) fn decode(payload: &[u8]) -> Result<Message, Ignored> {
    let ip = Ipv6Packet::new(payload).ok_or(Ignored::Truncated)?;
    if ip.get_version() != 6 || ip.get_next_header() != IpNextHeaderProtocols::Icmpv6 {
        return Err(Ignored::NoNeighborDiscovery);
    }
    let start = Ipv6Packet::minimum_packet_size();
    let message = payload
        .get(start..start + usize::from(ip.get_payload_length()))
        .ok_or(Ignored::Truncated)?;
    let icmp = Icmpv6Packet::new(message).ok_or(Ignored::Truncated)?;
    let read = match icmp.get_icmpv6_type() {
        Icmpv6Types::NeighborSolicit => solicitation,
        Icmpv6Types::NeighborAdvert => advertisement,
        _ => return Err(Ignored::NoNeighborDiscovery),
    };
    if ip.get_hop_limit() != 255 {
        return Err(Ignored::HopLimit);
    }
    if icmpv6::checksum(&icmp, &ip.get_source(), &ip.get_destination()) != icmp.get_checksum() {
        return Err(Ignored::Checksum);
    }
    read(&ip, message)
}

/// RFC 4861 section 7.1.1.
fn solicitation(ip: &Ipv6Packet<'_>, message: &[u8]) -> Result<Message, Ignored> {
    let malformed = Ignored::MalformedSolicitation;
    let solicit = NeighborSolicitPacket::new(message).ok_or(malformed)?;
    let (source, target) = (ip.get_source(), solicit.get_target_addr());
    let options = &message[NeighborSolicitPacket::minimum_packet_size()..];
    let options = Options::read(options, NdpOptionTypes::SourceLLAddr).ok_or(malformed)?;
    let source_mac = options.station;
    let sound = solicit.get_icmpv6_code() == Icmpv6Code(0)
        && !target.is_multicast()
        && !source.is_multicast()
        && source_mac.is_none_or(ethernet::is_station)
        && (!source.is_unspecified()
            || (source_mac.is_none() && ip.get_destination() == solicited_node(target)));
    if !sound {
        return Err(malformed);
    }
    let probe = source.is_unspecified() || (source.is_unicast_link_local() && options.has_nonce);
    let purpose = if probe { Purpose::Probe } else { Purpose::Resolution };
    Ok(Message::Solicitation(Solicitation { source, source_mac, target, purpose }))
}

/// RFC 4861 section 7.1.2.
fn advertisement(ip: &Ipv6Packet<'_>, message: &[u8]) -> Result<Message, Ignored> {
    let malformed = Ignored::MalformedAdvertisement;
    let advert = NeighborAdvertPacket::new(message).ok_or(malformed)?;
    let target = advert.get_target_addr();
    let options = &message[NeighborAdvertPacket::minimum_packet_size()..];
    let options = Options::read(options, NdpOptionTypes::TargetLLAddr).ok_or(malformed)?;
    let solicited = advert.get_flags() & SOLICITED != 0;
    let solicited_by_all = solicited && ip.get_destination().is_multicast();
    let sound = advert.get_icmpv6_code() == Icmpv6Code(0)
        && !target.is_multicast()
        && !ip.get_source().is_multicast()
        && !ip.get_source().is_unspecified()
        && !solicited_by_all
        && options.station.is_none_or(ethernet::is_station);
    if !sound {
        return Err(malformed);
    }
    Ok(Message::Advertisement(Advertisement { target, target_mac: options.station }))
}

/// The group in which an address is asked for (RFC 4291 section 2.7.1).
pub(crate) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Tells stations which one has `target`. "Override" is always set, "router" never: a stale entry is
/// to be corrected, and an address that moves between nodes is no router.
pub(crate) struct Answer {
    pub(crate) own: MacAddr,
    pub(crate) source: Ipv6Addr,
    pub(crate) target: Ipv6Addr,
}

impl Answer {
    /// To one asker, who may be the frame's sender if he names no station. Whoever asks without an
    /// address of his own is answered by [`Self::to_all`].
    pub(crate) fn to_one(&self, station: MacAddr, destination: Ipv6Addr) -> Vec<u8> {
        self.encode(station, destination, SOLICITED | OVERRIDE)
    }

    /// To every node, unsolicited.
    pub(crate) fn to_all(&self) -> Vec<u8> {
        self.encode(group_station(ALL_NODES), ALL_NODES, OVERRIDE)
    }

    fn encode(&self, station: MacAddr, destination: Ipv6Addr, flags: u8) -> Vec<u8> {
        let mut message = vec![Icmpv6Types::NeighborAdvert.0, 0, 0, 0, flags, 0, 0, 0];
        message.extend(self.target.octets());
        message.extend(link_layer_option(NdpOptionTypes::TargetLLAddr, self.own));
        encode(self.own, self.source, station, destination, message)
    }
}

/// Asks everybody for the station of `target`.
pub(crate) struct Question {
    pub(crate) own: MacAddr,
    /// An address of this node's on the link, its link-local one in a [`Purpose::Probe`]; without
    /// any the question has the form of duplicate address detection, which is answered to everybody.
    pub(crate) source: Option<Ipv6Addr>,
    pub(crate) target: Ipv6Addr,
    pub(crate) purpose: Purpose,
}

impl Question {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut message = vec![Icmpv6Types::NeighborSolicit.0, 0, 0, 0, 0, 0, 0, 0];
        message.extend(self.target.octets());
        if self.source.is_some() {
            message.extend(link_layer_option(NdpOptionTypes::SourceLLAddr, self.own));
        }
        match self.purpose {
            Purpose::Resolution => {}
            // A frame that comes back is known by its station, so the nonce need not be random.
            Purpose::Probe => message.extend(link_layer_option(NONCE, self.own)),
        }
        let source = self.source.unwrap_or(Ipv6Addr::UNSPECIFIED);
        let group = solicited_node(self.target);
        encode(self.own, source, group_station(group), group, message)
    }
}

/// RFC 3971 section 5.3.2.
const NONCE: NdpOptionType = NdpOptionType(14);

fn link_layer_option(kind: NdpOptionType, station: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = station.octets();
    [kind.0, 1, a, b, c, d, e, f]
}

/// The station address of a group (RFC 2464 section 7).
pub(crate) fn group_station(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr::new(0x33, 0x33, a, b, c, d)
}

fn encode(
    own: MacAddr,
    source: Ipv6Addr,
    station: MacAddr,
    destination: Ipv6Addr,
    mut message: Vec<u8>,
) -> Vec<u8> {
    let icmp = Icmpv6Packet::new(&message).expect("the message has its fixed part");
    let checksum = icmpv6::checksum(&icmp, &source, &destination);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut packet = vec![0; Ipv6Packet::minimum_packet_size() + message.len()];
    let mut ip = MutableIpv6Packet::new(&mut packet).expect("the buffer holds the header");
    ip.set_version(6);
    ip.set_payload_length(u16::try_from(message.len()).expect("at most 40 octets"));
    ip.set_next_header(IpNextHeaderProtocols::Icmpv6);
    ip.set_hop_limit(255);
    ip.set_source(source);
    ip.set_destination(destination);
    ip.set_payload(&message);
    ethernet::encode(station, own, EtherTypes::Ipv6, ip.packet())
}

/// What is of interest among the options of a message.
struct Options {
    station: Option<MacAddr>,
    has_nonce: bool,
}

impl Options {
    /// Walks all options, for a length of zero or past the end condemns the message. `station` is
    /// the kind that names a station.
    fn read(mut options: &[u8], station: NdpOptionType) -> Option<Self> {
        let mut found = Self { station: None, has_nonce: false };
        while let [kind, units, ..] = *options {
            let (option, rest) = options.split_at_checked(usize::from(units) * 8)?;
            let [_, _, value @ ..] = option else { return None };
            if kind == station.0 {
                let octets = <[u8; 6]>::try_from(value).ok()?;
                found.station = Some(MacAddr::from(octets));
            }
            found.has_nonce |= kind == NONCE.0;
            options = rest;
        }
        options.is_empty().then_some(found)
    }
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

    /// An IPv6 packet with an advertisement of `target` and a right checksum.
    pub(crate) fn advertisement(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        flags: u8,
        target: Ipv6Addr,
        options: &[u8],
    ) -> Vec<u8> {
        let mut message = vec![136, 0, 0, 0, flags, 0, 0, 0];
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
            purpose: Purpose::Resolution,
        };
        assert_eq!(decode(&packet), Ok(Message::Solicitation(expected)));
    }

    #[test]
    fn a_solicitation_may_be_unicast_and_name_no_station() {
        let expected = Solicitation {
            source: CLIENT,
            source_mac: None,
            target: VIP,
            purpose: Purpose::Resolution,
        };
        let read = decode(&solicitation(CLIENT, VIP, VIP, &[]));
        assert_eq!(read, Ok(Message::Solicitation(expected)));
    }

    #[test]
    fn a_probe_is_told_from_a_question() {
        let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
        let global: Ipv6Addr = "2001:db8::99".parse().unwrap();
        let none = Ipv6Addr::UNSPECIFIED;
        let cases = [
            (none, &[][..], Purpose::Probe),
            (none, &nonce, Purpose::Probe),
            (CLIENT, &nonce, Purpose::Probe),
            (CLIENT, &[], Purpose::Resolution),
            (global, &nonce, Purpose::Resolution),
        ];
        for (source, options, expected) in cases {
            match decode(&solicitation(source, solicited_node(VIP), VIP, options)) {
                Ok(Message::Solicitation(read)) => {
                    assert_eq!((read.source, read.target), (source, VIP));
                    assert_eq!(read.purpose, expected, "from {source} with {options:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_advertisement_is_read_with_and_without_its_station() {
        for (options, target_mac) in
            [(&[2, 1, 2, 0, 0, 0, 0, 0x99][..], Some(MacAddr::from(CLIENT_MAC))), (&[], None)]
        {
            for destination in [LINK_LOCAL, ALL_NODES] {
                let read = decode(&advertisement(CLIENT, destination, OVERRIDE, VIP, options));
                let expected = Advertisement { target: VIP, target_mac };
                assert_eq!(read, Ok(Message::Advertisement(expected)));
            }
        }
    }

    #[test]
    fn unsound_advertisements_are_left_alone() {
        let good = advertisement(CLIENT, LINK_LOCAL, 0x60, VIP, &[2, 1, 2, 0, 0, 0, 0, 0x99]);
        let with = |at: usize, octet: u8| {
            let mut packet = good.clone();
            packet[at] = octet;
            packet
        };
        let to = |destination, flags, options: &[u8]| {
            advertisement(CLIENT, destination, flags, VIP, options)
        };
        let mut code = good[40..].to_vec();
        code[1] = 1;
        let none = Ipv6Addr::UNSPECIFIED;
        let malformed = Ignored::MalformedAdvertisement;
        let cases = [
            ("hop limit", with(7, 254), Ignored::HopLimit),
            ("checksum", with(43, good[43] ^ 1), Ignored::Checksum),
            ("code", sealed(CLIENT, LINK_LOCAL, code), malformed),
            ("no target", sealed(CLIENT, LINK_LOCAL, good[40..60].to_vec()), malformed),
            ("solicited by a group", to(ALL_NODES, 0x60, &[]), malformed),
            ("group as target", advertisement(CLIENT, LINK_LOCAL, 0, ALL_NODES, &[]), malformed),
            ("group as source", advertisement(ALL_NODES, LINK_LOCAL, 0, VIP, &[]), malformed),
            ("no source", advertisement(none, LINK_LOCAL, 0, VIP, &[]), malformed),
            ("length 0", to(LINK_LOCAL, 0, &[2, 0, 0, 0, 0, 0, 0, 0]), malformed),
            ("half an option", to(LINK_LOCAL, 0, &[2, 1, 2, 0]), malformed),
            ("group as station", to(LINK_LOCAL, 0, &[2, 1, 3, 0, 0, 0, 0, 1]), malformed),
            ("no station", to(LINK_LOCAL, 0, &[2, 1, 0, 0, 0, 0, 0, 0]), malformed),
        ];
        for (name, packet, reason) in cases {
            assert_eq!(decode(&packet), Err(reason), "{name}");
        }
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
            ("version", with(0, 0x40), Ignored::NoNeighborDiscovery),
            ("next header", with(6, 17), Ignored::NoNeighborDiscovery),
            ("length past the end", with(5, 33), Ignored::Truncated),
            ("a router solicitation", with(40, 133), Ignored::NoNeighborDiscovery),
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
        let answer = Answer { own: OWN, source: LINK_LOCAL, target: VIP };
        let solicited = answer.to_one(MacAddr::from(CLIENT_MAC), CLIENT);
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
        let unsolicited = answer.to_all();
        assert_eq!(unsolicited[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(unsolicited[38..54], ALL_NODES.octets());
        assert_eq!(unsolicited[58..62], [0x20, 0, 0, 0]);
        assert_eq!(unsolicited[78..], [2, 1, 0x02, 0, 0, 0, 0, 0x01]);
        let ip = &unsolicited[14..];
        let icmp = Icmpv6Packet::new(&ip[40..]).unwrap();
        assert_eq!(icmpv6::checksum(&icmp, &LINK_LOCAL, &ALL_NODES), icmp.get_checksum());
    }
    #[test]
    fn a_question_asks_the_group_of_its_target() {
        let question = |source, purpose| Question { own: OWN, source, target: VIP, purpose };
        let sllao = [1, 1, 0x02, 0, 0, 0, 0, 0x01];
        let nonce = [14, 1, 0x02, 0, 0, 0, 0, 0x01];
        let cases = [
            (Some(LINK_LOCAL), Purpose::Probe, [sllao, nonce].concat()),
            (Some(LINK_LOCAL), Purpose::Resolution, sllao.to_vec()),
            (None, Purpose::Probe, nonce.to_vec()),
            (None, Purpose::Resolution, vec![]),
        ];
        for (source, purpose, options) in cases {
            let frame = question(source, purpose).encode();
            assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
            let expected = source.unwrap_or(Ipv6Addr::UNSPECIFIED);
            assert_eq!(frame[22..38], expected.octets());
            assert_eq!(frame[38..54], solicited_node(VIP).octets());
            assert_eq!(frame[78..], options);
            match decode(&frame[14..]) {
                Ok(Message::Solicitation(read)) => {
                    assert_eq!((read.source, read.target), (expected, VIP));
                    assert_eq!(read.source_mac, source.map(|_| OWN));
                    let probe = purpose == Purpose::Probe || source.is_none();
                    assert_eq!(read.purpose == Purpose::Probe, probe);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
