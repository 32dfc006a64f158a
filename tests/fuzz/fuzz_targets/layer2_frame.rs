//! Frames of any kind to an announcer that owns an address of each family and is a candidate for
//! others. It answers a frame by one at most, from its own station, and for what it owns.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
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
    let candidates: BTreeMap<_, _> =
        owned.iter().copied().chain([other]).map(|address| (address, InterfaceMatch::All)).collect();
    let mut announcer = Announcer::new();
    announcer.handle(Event::Interfaces(vec![interface()]), now);
    announcer.handle(Event::Candidates(candidates), now);
    announcer.handle(Event::Own(owned.clone()), now);

    // An octet is the length of the frame after it.
    let mut data = data;
    while let [length, rest @ ..] = data {
        let (frame, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let actions = announcer.handle(Event::Frame { interface: HERE, frame }, now);
        match actions.as_slice() {
            [] => {}
            [Action::SendFrame { interface, frame }] => check_answer(*interface, frame, &owned),
            more => panic!("{more:?}"),
        }
        data = rest;
    }
});

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
        arp: true,
    }
}
