//! Multicast listener reports of a solicited-node group, as a host sends them: RFC 2710 section 3
//! (version 1) and RFC 3810 section 5.2 (version 2). Written only; the kernel answers queries.
//!
//! The kernel of every candidate is a member of the group, and where a querier speaks version 1 the
//! members keep their reports back as soon as one has sent his (RFC 2710 section 4): a switch that
//! snoops then sends solicitations to that one only. Whoever owns the address therefore reports
//! himself, unasked, which both versions allow at any time.
//!
//! Which version the querier speaks is not to be found out (Linux keeps it to itself), so both are
//! sent. An older switch or router leaves a report of type 143 alone (RFC 2710 section 3.1); a newer
//! one takes both, and forgets the sources of the group for a while because of the one of type 131
//! (RFC 3810 section 8.3.2), of which a solicited-node group has none.

use std::net::Ipv6Addr;

use pnet::packet::Packet;
use pnet::packet::ethernet::EtherTypes;
use pnet::packet::icmpv6::{self, Icmpv6Packet};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv6::{Ipv6Packet, MutableIpv6Packet};
use pnet::util::MacAddr;

use crate::{ethernet, ndp};

/// All routers that understand version 2, and all switches that snoop it.
const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// A hop-by-hop header of 8 octets before ICMPv6: a router alert for listener discovery (RFC 2711
/// section 2.1), and two octets of padding.
const ROUTER_ALERT: [u8; 8] = [58, 0, 5, 2, 0, 0, 1, 0];

const REPORT_V1: u8 = 131;
const REPORT_V2: u8 = 143;
/// A listener to whatever source, as before (RFC 3810 section 5.2.12).
const MODE_IS_EXCLUDE: u8 = 2;

/// A listener of a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listener {
    pub(crate) own: MacAddr,
    /// The link-local address of the interface. Without one the report is sent from the unspecified
    /// address: no router takes that, but every switch that snoops does (RFC 3590 section 4).
    pub(crate) source: Option<Ipv6Addr>,
    pub(crate) group: Ipv6Addr,
}

impl Listener {
    /// To the group itself.
    pub(crate) fn report_v1(&self) -> Vec<u8> {
        let mut message = vec![REPORT_V1, 0, 0, 0, 0, 0, 0, 0];
        message.extend(self.group.octets());
        self.encode(self.group, message)
    }

    /// To whoever keeps listeners.
    pub(crate) fn report_v2(&self) -> Vec<u8> {
        let mut message = vec![REPORT_V2, 0, 0, 0, 0, 0, 0, 1, MODE_IS_EXCLUDE, 0, 0, 0];
        message.extend(self.group.octets());
        self.encode(ALL_MLDV2_ROUTERS, message)
    }

    fn encode(&self, destination: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
        let source = self.source.unwrap_or(Ipv6Addr::UNSPECIFIED);
        let icmp = Icmpv6Packet::new(&message).expect("the message has its fixed part");
        let checksum = icmpv6::checksum(&icmp, &source, &destination);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());

        let payload = [&ROUTER_ALERT[..], &message].concat();
        let mut packet = vec![0; Ipv6Packet::minimum_packet_size() + payload.len()];
        let mut ip = MutableIpv6Packet::new(&mut packet).expect("the buffer holds the header");
        ip.set_version(6);
        ip.set_payload_length(u16::try_from(payload.len()).expect("36 octets at most"));
        ip.set_next_header(IpNextHeaderProtocols::Hopopt);
        ip.set_hop_limit(1);
        ip.set_source(source);
        ip.set_destination(destination);
        ip.set_payload(&payload);
        ethernet::encode(ndp::group_station(destination), self.own, EtherTypes::Ipv6, ip.packet())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddr = MacAddr(0x02, 0, 0, 0, 0, 0x01);
    const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x01);
    const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff12, 0x3456);

    fn listener(source: Option<Ipv6Addr>) -> Listener {
        Listener { own: OWN, source, group: GROUP }
    }

    #[test]
    fn reports_have_these_octets() {
        #[rustfmt::skip]
        let cases = [
            (
                "version 1",
                listener(Some(LINK_LOCAL)).report_v1(),
                vec![
                    0x33, 0x33, 0xff, 0x12, 0x34, 0x56, 0x02, 0, 0, 0, 0, 0x01, 0x86, 0xdd,
                    0x60, 0, 0, 0, 0, 32, 0, 1,
                    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01,
                    0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0xff, 0x12, 0x34, 0x56,
                    58, 0, 5, 2, 0, 0, 1, 0,
                    131, 0, 0x19, 0x51, 0, 0, 0, 0,
                    0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0xff, 0x12, 0x34, 0x56,
                ],
            ),
            (
                "version 2",
                listener(Some(LINK_LOCAL)).report_v2(),
                vec![
                    0x33, 0x33, 0, 0, 0, 0x16, 0x02, 0, 0, 0, 0, 0x01, 0x86, 0xdd,
                    0x60, 0, 0, 0, 0, 36, 0, 1,
                    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01,
                    0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16,
                    58, 0, 5, 2, 0, 0, 1, 0,
                    143, 0, 0x3e, 0xa0, 0, 0, 0, 1,
                    2, 0, 0, 0,
                    0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0xff, 0x12, 0x34, 0x56,
                ],
            ),
        ];
        for (name, frame, expected) in cases {
            assert_eq!(frame, expected, "{name}");
        }
    }

    #[test]
    fn without_a_link_local_address_a_report_comes_from_nowhere() {
        let unspecified = listener(None);
        for frame in [unspecified.report_v1(), unspecified.report_v2()] {
            assert_eq!(frame[22..38], [0; 16]);
            assert_eq!(sum_of(&frame), 0xffff, "the checksum is made with that source");
        }
    }

    #[test]
    fn the_checksum_is_over_what_the_last_header_carries() {
        for frame in
            [listener(Some(LINK_LOCAL)).report_v1(), listener(Some(LINK_LOCAL)).report_v2()]
        {
            assert_eq!(sum_of(&frame), 0xffff);
        }
    }

    /// The sum in one's complement over the pseudo header of RFC 8200 section 8.1 (whose length and
    /// next header are those of ICMPv6, not of the packet) and the message.
    fn sum_of(frame: &[u8]) -> u16 {
        let (addresses, message) = (&frame[22..54], &frame[62..]);
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let all = [addresses, &length, &[0, 0, 0, 58], message].concat();
        let sum: u32 =
            all.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    }
}
