//! Frames of any kind to an announcer that owns an address of each family and is a candidate for
//! others. It answers a frame by one at most, from its own station, and for what it owns.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    time::Instant,
};

use layer2::{
    Announcer, Interface, InterfaceIndex, InterfaceMatch,
    announcer::{Action, Event},
};
use libfuzzer_sys::fuzz_target;

const MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const HERE: InterfaceIndex = InterfaceIndex(2);

fuzz_target!(|data: &[u8]| {
    let now = Instant::now();
    let owned: BTreeSet<IpAddr> =
        ["10.0.0.200", "fd00:a::200"].map(|address| address.parse().expect("an address")).into();
    let other = "10.0.0.201".parse().expect("an address");
    let candidates: BTreeMap<_, _> = owned
        .iter()
        .copied()
        .chain([other])
        .map(|address| (address, InterfaceMatch::All))
        .collect();
    let mut announcer = Announcer::new();
    announcer.handle(Event::Interfaces(vec![interface()]), now);
    announcer.handle(Event::Candidates(candidates), now);
    announcer.handle(Event::Own(owned.clone()), now);

    // An octet is the length of the piece after it.
    let mut data = data;
    while let [length, rest @ ..] = data {
        let (piece, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        // As it is; behind an honest start; and as the options of a solicitation.
        for frame in [piece, &[ARP, piece].concat(), &solicitation(piece)] {
            let actions = announcer.handle(Event::Frame { interface: HERE, frame }, now);
            match actions.as_slice() {
                [] => {}
                [Action::SendFrame { interface, frame }] => check_answer(*interface, frame, &owned),
                more => panic!("{more:?}"),
            }
        }
        data = rest;
    }
});

/// A broadcast ARP frame up to the operation.
const ARP: &[u8] = &[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 99, 8, 6, 0, 1, 8, 0, 6, 4, 0];

/// A neighbor solicitation for an owned address, with a checksum that is right.
fn solicitation(options: &[u8]) -> Vec<u8> {
    let source: Ipv6Addr = "fe80::99".parse().expect("an address");
    let group: Ipv6Addr = "ff02::1:ff00:200".parse().expect("an address");
    let target: Ipv6Addr = "fd00:a::200".parse().expect("an address");
    let length = u16::try_from(24 + options.len()).expect("a piece has at most 255 octets");
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..], options].concat();
    let pseudo_header =
        [&source.octets()[..], &group.octets(), &u32::from(length).to_be_bytes(), &[0, 0, 0, 58]];
    let checksum = checksum(&[&pseudo_header.concat()[..], &message].concat());
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let [high, low] = length.to_be_bytes();
    [
        &[0x33, 0x33, 0xff, 0, 2, 0, 2, 0, 0, 0, 0, 99, 0x86, 0xdd][..],
        &[0x60, 0, 0, 0, high, low, 58, 255],
        &source.octets(),
        &group.octets(),
        &message,
    ]
    .concat()
}

/// RFC 1071.
fn checksum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|pair| {
        u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded")
}

fn check_answer(interface: InterfaceIndex, frame: &[u8], owned: &BTreeSet<IpAddr>) {
    assert_eq!(interface, HERE);
    assert_eq!(frame[6..12], MAC, "source");
    // The sender of an ARP reply (RFC 826), the target of an advertisement (RFC 4861 section 4.4).
    let address = match frame[12..14] {
        [0x08, 0x06] => IpAddr::from(<[u8; 4]>::try_from(&frame[28..32]).expect("4 octets")),
        [0x86, 0xdd] => IpAddr::from(<[u8; 16]>::try_from(&frame[62..78]).expect("16 octets")),
        ref other => panic!("EtherType {other:?}"),
    };
    assert!(owned.contains(&address), "an answer for {address}");
}

fn interface() -> Interface {
    Interface {
        index: HERE,
        name: "eth0".to_owned(),
        mac: MAC,
        up: true,
        networks: ["10.0.0.11/24", "fd00:a::11/64"]
            .map(|network| network.parse().expect("a network"))
            .into(),
        link_local: Some("fe80::1".parse().expect("an address")),
        gateways: Vec::new(),
        arp: true,
    }
}
