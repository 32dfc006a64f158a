//! ARP for IPv4 on Ethernet: what is read of others' packets, and the frames that are sent.
//! RFC 826; probes RFC 5227 section 2.1.1; announcements RFC 5227 section 2.3 and, for the reply
//! form, RFC 5944 section 4.6.

use std::net::Ipv4Addr;

use pnet::packet::Packet as _;
use pnet::packet::arp::{
    ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket,
};
use pnet::packet::ethernet::EtherTypes;
use pnet::util::MacAddr;

use crate::ethernet::{self, Ignored};

/// A request or a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) operation: Operation,
    pub(crate) sender_mac: MacAddr,
    /// 0.0.0.0 in a probe.
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Request,
    Reply,
}

impl Packet {
    /// The address whose station is asked for. An announcement asks nothing.
    pub(crate) fn asks_for(&self) -> Option<Ipv4Addr> {
        match self.operation {
            Operation::Request if self.sender != self.target => Some(self.target),
            Operation::Request | Operation::Reply => None,
        }
    }

    /// The address that the sender says is its own, in a request as in a reply.
    pub(crate) fn claims(&self) -> Option<Ipv4Addr> {
        (!self.sender.is_unspecified()).then_some(self.sender)
    }
}

pub(crate) fn decode(payload: &[u8]) -> Result<Packet, Ignored> {
    let arp = ArpPacket::new(payload).ok_or(Ignored::Truncated)?;
    let ethernet_and_ipv4 = arp.get_hardware_type() == ArpHardwareTypes::Ethernet
        && arp.get_protocol_type() == EtherTypes::Ipv4
        && arp.get_hw_addr_len() == 6
        && arp.get_proto_addr_len() == 4;
    if !ethernet_and_ipv4 || !ethernet::is_station(arp.get_sender_hw_addr()) {
        return Err(Ignored::MalformedArp);
    }
    let operation = match arp.get_operation() {
        ArpOperations::Request => Operation::Request,
        ArpOperations::Reply => Operation::Reply,
        _ => return Err(Ignored::MalformedArp),
    };
    Ok(Packet {
        operation,
        sender_mac: arp.get_sender_hw_addr(),
        sender: arp.get_sender_proto_addr(),
        target: arp.get_target_proto_addr(),
    })
}

/// The answer to a request, to the asker alone.
pub(crate) fn reply(own: MacAddr, request: Packet) -> Vec<u8> {
    encode(
        request.sender_mac,
        ArpOperations::Reply,
        Parties {
            sender_mac: own,
            sender: request.target,
            target_mac: request.sender_mac,
            target: request.sender,
        },
    )
}

/// Asks everybody for the station of an address. From 0.0.0.0 it is a probe, of which nobody learns
/// a station.
pub(crate) fn request(own: MacAddr, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let parties = Parties { sender_mac: own, sender, target_mac: MacAddr::zero(), target };
    encode(MacAddr::broadcast(), ArpOperations::Request, parties)
}

/// A gratuitous request. Linux obeys it whatever the age of its entry.
pub(crate) fn announcement_request(own: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    request(own, address, address)
}

/// A gratuitous reply. The target hardware address is the own one: with any other Linux takes the
/// frame for a stray answer and leaves an entry younger than a second as it is.
pub(crate) fn announcement_reply(own: MacAddr, address: Ipv4Addr) -> Vec<u8> {
    let parties = Parties { sender_mac: own, sender: address, target_mac: own, target: address };
    encode(MacAddr::broadcast(), ArpOperations::Reply, parties)
}

struct Parties {
    sender_mac: MacAddr,
    sender: Ipv4Addr,
    target_mac: MacAddr,
    target: Ipv4Addr,
}

fn encode(destination: MacAddr, operation: ArpOperation, parties: Parties) -> Vec<u8> {
    let mut payload = [0; ArpPacket::minimum_packet_size()];
    let mut arp = MutableArpPacket::new(&mut payload).expect("the buffer has the size of ARP");
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(operation);
    arp.set_sender_hw_addr(parties.sender_mac);
    arp.set_sender_proto_addr(parties.sender);
    arp.set_target_hw_addr(parties.target_mac);
    arp.set_target_proto_addr(parties.target);
    ethernet::encode(destination, parties.sender_mac, EtherTypes::Arp, arp.packet())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MacAddr = MacAddr(0x02, 0, 0, 0, 0, 0x01);
    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
    #[rustfmt::skip]
    const REQUEST: [u8; 28] = [
        0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01,
        0x02, 0, 0, 0, 0, 0x99, 192, 0, 2, 1,
        0, 0, 0, 0, 0, 0, 192, 0, 2, 10,
    ];

    #[test]
    fn a_request_is_read_and_answered_to_its_sender() {
        let request = decode(&REQUEST).unwrap();
        assert_eq!(request.asks_for(), Some(VIP));
        #[rustfmt::skip]
        assert_eq!(reply(OWN, request), [
            0x02, 0, 0, 0, 0, 0x99, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x06,
            0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x02,
            0x02, 0, 0, 0, 0, 0x01, 192, 0, 2, 10,
            0x02, 0, 0, 0, 0, 0x99, 192, 0, 2, 1,
        ]);
    }

    #[test]
    fn a_probe_is_defended_with_the_address_it_came_from() {
        let mut probe = REQUEST;
        probe[14..18].fill(0);
        let answer = reply(OWN, decode(&probe).unwrap());
        assert_eq!(answer[38..42], [0, 0, 0, 0]);
        assert_eq!(answer[32..38], [0x02, 0, 0, 0, 0, 0x99]);
    }

    #[test]
    fn announcements_have_the_forms_that_neighbors_obey() {
        #[rustfmt::skip]
        assert_eq!(announcement_request(OWN, VIP), [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x06,
            0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01,
            0x02, 0, 0, 0, 0, 0x01, 192, 0, 2, 10,
            0, 0, 0, 0, 0, 0, 192, 0, 2, 10,
        ]);
        #[rustfmt::skip]
        assert_eq!(announcement_reply(OWN, VIP), [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 0, 0x01, 0x08, 0x06,
            0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x02,
            0x02, 0, 0, 0, 0, 0x01, 192, 0, 2, 10,
            0x02, 0, 0, 0, 0, 0x01, 192, 0, 2, 10,
        ]);
    }

    #[test]
    fn a_question_tells_nobody_a_station_for_its_target() {
        let node = Ipv4Addr::new(192, 0, 2, 2);
        for sender in [Ipv4Addr::UNSPECIFIED, node] {
            let frame = request(OWN, sender, VIP);
            assert_eq!(frame[..6], [0xff; 6]);
            assert_eq!(frame[20..22], [0, 1]);
            assert_eq!(frame[28..32], sender.octets());
            assert_eq!(frame[32..], [0, 0, 0, 0, 0, 0, 192, 0, 2, 10]);
        }
    }

    #[test]
    fn who_asks_and_who_claims() {
        let other = Ipv4Addr::new(192, 0, 2, 1);
        let none = Ipv4Addr::UNSPECIFIED;
        let cases = [
            ("a request", Operation::Request, other, Some(VIP), Some(other)),
            ("a probe", Operation::Request, none, Some(VIP), None),
            ("an announcement", Operation::Request, VIP, None, Some(VIP)),
            ("a reply", Operation::Reply, other, None, Some(other)),
            ("a gratuitous reply", Operation::Reply, VIP, None, Some(VIP)),
            ("a reply of nobody", Operation::Reply, none, None, None),
        ];
        for (name, operation, sender, asks_for, claims) in cases {
            let mut payload = REQUEST;
            payload[7] = if operation == Operation::Request { 1 } else { 2 };
            payload[14..18].copy_from_slice(&sender.octets());
            let packet = decode(&payload).unwrap();
            assert_eq!(packet.operation, operation, "{name}");
            assert_eq!((packet.asks_for(), packet.claims()), (asks_for, claims), "{name}");
        }
    }

    #[test]
    fn unsound_packets_are_left_alone() {
        let cases: [(&str, usize, &[u8]); 8] = [
            ("hardware type", 0, &[0x00, 0x06]),
            ("protocol type", 2, &[0x86, 0xdd]),
            ("hardware length", 4, &[8]),
            ("protocol length", 5, &[16]),
            ("no operation", 6, &[0x00, 0x00]),
            ("RARP", 6, &[0x00, 0x03]),
            ("a sender that is a group", 8, &[0x03]),
            ("no sender", 8, &[0; 6]),
        ];
        for (name, at, octets) in cases {
            let mut payload = REQUEST;
            payload[at..at + octets.len()].copy_from_slice(octets);
            assert_eq!(decode(&payload), Err(Ignored::MalformedArp), "{name}");
        }
        assert_eq!(decode(&REQUEST[..27]), Err(Ignored::Truncated));
    }
}
