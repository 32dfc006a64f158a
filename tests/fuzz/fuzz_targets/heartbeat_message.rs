//! Heartbeats as a peer with the right key, but no sense, sends them. Whatever they claim, a node
//! owns nothing but what it is a candidate for, and says when it wants to be woken.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ownership::{
    Action, Candidates, Event, Extent, Heard, NodeName, Ownership, Settings, View,
};
use libfuzzer_sys::fuzz_target;

/// The datagram's own preamble and version, which random octets rarely hit.
const PREAMBLE: &[u8] = b"BTH\x02";

fuzz_target!(|data: &[u8]| {
    let mut now = Instant::now();
    let nodes: BTreeSet<NodeName> = ["n1", "n2", "n3"].map(NodeName::from).into();
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let candidates = |nodes: BTreeSet<NodeName>| {
        Some(Arc::new(Candidates { nodes, ..Candidates::default() }))
    };
    let wanted = BTreeMap::from([
        (address("10.0.0.200"), candidates(nodes.clone())),
        (address("fd00:a::200"), candidates(nodes.clone())),
        (address("10.0.0.201"), candidates(["n2".into()].into())),
    ]);
    let mine: BTreeSet<_> = [address("10.0.0.200"), address("fd00:a::200")].into();

    let mut ownership = Ownership::new(Settings::new("n1".into(), 1), now);
    let stations = [("eth0".to_owned(), [2, 0, 0, 0, 0, 1])].into();
    let mut actions = ownership.handle(Event::Stations(stations), now);
    let view = View {
        version: 1,
        extent: Extent::Whole,
        addresses: wanted,
        peers: Some(nodes),
        draining: Some(false),
    };
    actions.extend(ownership.handle(Event::View(view), now));
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
        for action in std::mem::take(&mut actions) {
            match action {
                Action::Own(addresses) => {
                    assert!(addresses.iter().all(|a| mine.contains(a)), "owns {addresses:?}");
                }
                Action::Send { payload, .. } => assert!(payload.len() <= 1200),
                Action::Ask { address, .. } => {
                    let heard =
                        |mac, form| Event::Heard { address, interface: "eth0", mac, form };
                    let event = match length % 3 {
                        0 => Event::Silence(address),
                        1 => heard([2, 0, 0, 0, 0, 2], Heard::Has),
                        _ => heard([2, 0, 0, 0, 9, 9], Heard::Probes),
                    };
                    actions.extend(ownership.handle(event, now));
                }
                Action::Disown(_)
                | Action::Repeat(_)
                | Action::StopAsking(_)
                | Action::State(..)
                | Action::PeerUp(_)
                | Action::PeerDown(_)
                | Action::Left => {}
            }
        }
        data = rest;
    }
});
