//! Heartbeats as a peer with the right key, but no sense, sends them. Whatever they claim, a node
//! owns nothing but what it is a candidate for, and says when it wants to be woken.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use layer2::{
    Candidates, NodeName, Ownership, OwnershipConfig,
    ownership::{Action, Event},
};
use libfuzzer_sys::fuzz_target;

/// The datagram's own preamble and version, which random octets rarely hit.
const PREAMBLE: &[u8] = b"BTH\x01";

fuzz_target!(|data: &[u8]| {
    let mut now = Instant::now();
    let nodes: BTreeSet<NodeName> = ["n1", "n2", "n3"].map(NodeName::from).into();
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let everywhere = Candidates { nodes: nodes.clone(), preference: BTreeMap::new() };
    let elsewhere = Candidates { nodes: ["n2".into()].into(), preference: BTreeMap::new() };
    let wanted = BTreeMap::from([
        (address("10.0.0.200"), everywhere.clone()),
        (address("fd00:a::200"), everywhere),
        (address("10.0.0.201"), elsewhere),
    ]);
    let mine: BTreeSet<_> = [address("10.0.0.200"), address("fd00:a::200")].into();

    let mut ownership = Ownership::new(OwnershipConfig::new("n1".into(), 1), now);
    let mut actions = ownership.handle(Event::Peers(nodes), now);
    actions.extend(ownership.handle(Event::Wanted(wanted), now));
    // An octet is the length of the datagram after it and, by its parity, whose it is; 0 lets time
    // pass.
    let mut data = data;
    while let [length, rest @ ..] = data {
        let (datagram, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        if *length == 0 {
            let due = ownership.poll_timeout().expect("there always is a next beat");
            now = now.max(due) + Duration::from_micros(10);
            actions.extend(ownership.handle_timeout(now));
        } else {
            let from = if length % 2 == 0 { "n2" } else { "n3" };
            let payload = [PREAMBLE, datagram].concat();
            for payload in [datagram, &payload] {
                actions.extend(ownership.handle(Event::Datagram { from, payload }, now));
            }
        }
        for action in actions.drain(..) {
            match action {
                Action::Own(addresses) => {
                    assert!(addresses.is_subset(&mine), "owns {addresses:?}");
                }
                Action::Send { payload, .. } => assert!(payload.len() <= 1200),
                Action::Repeat(_) | Action::PeerUp(_) | Action::PeerDown(_) => {}
            }
        }
        data = rest;
    }
});
