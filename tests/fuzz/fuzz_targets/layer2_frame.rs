//! Frames of any kind to an announcer whose addresses, questions and interfaces change meanwhile. It
//! answers for what it owns where it owns it, asks for what it was told to, reports what concerns
//! either, and sends from its own stations only.
#![no_main]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use layer2::{
    Announcer, AnnouncerSettings, Interface, InterfaceIndex, InterfaceMatch,
    announcer::{Action, Event},
};
use libfuzzer_sys::fuzz_target;
use ownership::Asking;

/// Candidates, but for the last of each family.
const ADDRESSES: [&str; 7] = [
    "10.0.0.200",
    "fd00:a::200",
    "10.0.0.201",
    "fd00:b::200",
    "203.0.113.1",
    "10.0.0.254",
    "fe80::fe",
];
const CANDIDATES: usize = 5;

fuzz_target!(|data: &[u8]| {
    let mut world = World::new();
    // Two octets say what happens, and to which address or how much of the input is taken for it.
    let mut data = data;
    while let [kind, of, rest @ ..] = data {
        data = rest;
        let address = world.addresses[usize::from(*of) % ADDRESSES.len()];
        match kind % 16 {
            0 => world.own(address),
            1 => world.disown(address),
            2 => world.ask(address, Asking::Fast),
            3 => world.ask(address, Asking::Once),
            4 => world.ask(address, Asking::Thorough),
            5 => world.stop_asking(address),
            6 => world.handle(Event::Repeat(vec![address])),
            7 => world.set_interfaces(interfaces(*of)),
            8 => world.handle(Event::Candidates([(address, matches(*of))].into())),
            9 => world.pass(Duration::from_millis(u64::from(*of) * 4)),
            frame => {
                let (piece, rest) = rest.split_at(usize::from(*of).min(rest.len()));
                data = rest;
                let [_, target, ..] = world.addresses;
                let frame = match frame {
                    10 => piece.to_vec(),
                    11 => [ARP, piece].concat(),
                    12 => overlaid(piece),
                    13 => ndp(135, target, "ff02::1:ff00:200", piece),
                    14 => ndp(136, target, "ff02::1", piece),
                    _ => ndp(136, "fe80::fe".parse().expect("an address"), "fe80::1", piece),
                };
                world.handle(Event::Frame { interface: InterfaceIndex(2), frame: &frame });
            }
        }
    }
    world.pass(Duration::from_millis(30));
});

struct World {
    announcer: Announcer,
    addresses: [IpAddr; ADDRESSES.len()],
    owned: BTreeSet<IpAddr>,
    asked: BTreeSet<IpAddr>,
    interfaces: Vec<Interface>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let addresses = ADDRESSES.map(|address| address.parse().expect("an address"));
        let settings = AnnouncerSettings { refresh: Some(Duration::from_secs(10)), seed: 1 };
        let mut world = Self {
            announcer: Announcer::new(settings),
            addresses,
            owned: BTreeSet::new(),
            asked: BTreeSet::new(),
            interfaces: Vec::new(),
            now: Instant::now(),
        };
        world.set_interfaces(interfaces(0));
        let all = addresses[..CANDIDATES].iter().map(|a| (*a, Some(InterfaceMatch::All)));
        world.handle(Event::Candidates(all.collect()));
        world.own(addresses[0]);
        world.own(addresses[1]);
        world
    }

    fn set_interfaces(&mut self, interfaces: Vec<Interface>) {
        self.interfaces.clone_from(&interfaces);
        self.handle(Event::Interfaces(interfaces));
    }

    fn own(&mut self, address: IpAddr) {
        self.owned.insert(address);
        self.handle(Event::Own(vec![address]));
    }

    fn disown(&mut self, address: IpAddr) {
        self.owned.remove(&address);
        self.handle(Event::Disown(vec![address]));
    }

    fn ask(&mut self, address: IpAddr, how: Asking) {
        self.asked.insert(address);
        self.handle(Event::Ask { address, how });
    }

    fn stop_asking(&mut self, address: IpAddr) {
        self.asked.remove(&address);
        self.handle(Event::StopAsking(address));
    }

    fn handle(&mut self, event: Event<'_>) {
        let frame = matches!(event, Event::Frame { .. });
        let actions = self.announcer.handle(event, self.now);
        assert!(!frame || actions.len() <= 2, "an answer and a report: {actions:?}");
        self.check(actions);
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        while let Some(at) = self.announcer.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let actions = self.announcer.handle_timeout(self.now);
            self.check(actions);
            steps += 1;
            assert!(steps < 10_000, "it is woken without end");
        }
        self.now = end;
    }

    fn check(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::SendFrame { interface, frame } => self.check_frame(interface, &frame),
                Action::Heard { address, mac, .. } => {
                    let heeded = self.owned.contains(&address) || self.asked.contains(&address);
                    assert!(heeded, "nobody minds {address}");
                    assert!(mac[0] & 1 == 0 && mac != [0; 6], "no station: {mac:?}");
                    let own = self.interfaces.iter().any(|interface| interface.mac == mac);
                    assert!(!own, "its own word: {mac:?}");
                }
                Action::Silence(address) => {
                    assert!(self.asked.remove(&address), "nobody asked for {address}");
                }
                Action::JoinGroup { .. } | Action::LeaveGroup { .. } => {}
            }
        }
        let heeded: BTreeSet<_> = self.announcer.heeded().collect();
        assert!(self.owned.is_subset(&heeded));
        let both: BTreeSet<_> = self.owned.union(&self.asked).copied().collect();
        assert!(heeded.is_subset(&both));
    }

    fn check_frame(&self, index: InterfaceIndex, frame: &[u8]) {
        let interface = self.interfaces.iter().find(|interface| interface.index == index);
        let interface = interface.expect("one that there is");
        assert!(interface.up && interface.arp, "{interface:?} does not speak");
        assert_eq!(frame[6..12], interface.mac, "source");
        let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).expect("four"));
        let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).expect("16"));
        match (&frame[12..14], frame[21], frame[54 % frame.len()]) {
            ([0x08, 0x06], 1, _) if v4(28) != v4(38) => self.check_question(v4(38), v4(28)),
            ([0x08, 0x06], 1 | 2, _) => self.check_answer(v4(28)),
            // A hop limit of 1 and a hop-by-hop header.
            ([0x86, 0xdd], 1, 58) => match frame[62] {
                131 => self.check_report(v6(70)),
                143 => self.check_report(v6(74)),
                other => panic!("{other}"),
            },
            ([0x86, 0xdd], _, 135) => self.check_question(v6(62), v6(22)),
            ([0x86, 0xdd], _, 136) => self.check_answer(v6(62)),
            other => panic!("{other:?}"),
        }
    }

    /// The sender of an ARP reply or announcement (RFC 826), the target of an advertisement (RFC
    /// 4861 section 4.4).
    fn check_answer(&self, address: IpAddr) {
        assert!(self.owned.contains(&address), "an answer for {address}");
    }

    /// The group of an owned address (RFC 4291 section 2.7.1).
    fn check_report(&self, group: IpAddr) {
        let low = |address: IpAddr| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.octets()[13..].to_vec()),
        };
        let named = self.owned.iter().any(|address| low(*address) == low(group));
        assert!(named && low(group).is_some(), "a report of {group}");
    }

    fn check_question(&self, target: IpAddr, sender: IpAddr) {
        assert!(self.asked.contains(&target), "nobody wants to know of {target}");
        assert!(!self.owned.contains(&sender), "{sender} moves");
    }
}

/// A broadcast ARP frame up to the operation.
const ARP: &[u8] = &[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 99, 8, 6, 0, 1, 8, 0, 6, 4, 0];

/// A sound ARP frame with some octets others: which, and what.
fn overlaid(changes: &[u8]) -> Vec<u8> {
    let rest = [1, 2, 0, 0, 0, 0, 99, 10, 0, 0, 99, 0, 0, 0, 0, 0, 0, 10, 0, 0, 200];
    let mut frame = [ARP, &rest].concat();
    for change in changes.chunks_exact(2) {
        let at = usize::from(change[0]) % frame.len();
        frame[at] = change[1];
    }
    frame
}

/// Neighbor discovery about `target` with a checksum that is right, whatever the flags (the first of
/// `rest`) and the options are.
fn ndp(kind: u8, target: IpAddr, destination: &str, rest: &[u8]) -> Vec<u8> {
    let IpAddr::V6(target) = target else { unreachable!("an IPv6 address") };
    let (flags, options) = rest.split_first().unwrap_or((&0, &[]));
    let source: Ipv6Addr = "fe80::99".parse().expect("an address");
    let destination: Ipv6Addr = destination.parse().expect("an address");
    let length = u16::try_from(24 + options.len()).expect("a piece has at most 255 octets");
    let head = [kind, 0, 0, 0, *flags, 0, 0, 0];
    let mut message = [&head, &target.octets()[..], options].concat();
    let length_of_all = u32::from(length).to_be_bytes();
    let pseudo_header =
        [&source.octets()[..], &destination.octets(), &length_of_all, &[0, 0, 0, 58]];
    let checksum = checksum(&[&pseudo_header.concat()[..], &message].concat());
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    let [high, low] = length.to_be_bytes();
    [
        &[0x33, 0x33, 0xff, 0, 2, 0, 2, 0, 0, 0, 0, 99, 0x86, 0xdd][..],
        &[0x60, 0, 0, 0, high, low, 58, 255],
        &source.octets(),
        &destination.octets(),
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

fn matches(of: u8) -> Option<InterfaceMatch> {
    match of % 5 {
        0 => None,
        1 | 2 => Some(InterfaceMatch::All),
        3 => Some(InterfaceMatch::Only(["eth0".to_owned()].into())),
        _ => Some(InterfaceMatch::Only(["eth1".to_owned()].into())),
    }
}

fn interfaces(state: u8) -> Vec<Interface> {
    let bit = |n: u8| u8::from(state & (1 << n) != 0);
    let one = |index: u32, name: &str, networks: [&str; 2]| Interface {
        index: InterfaceIndex(index),
        name: name.to_owned(),
        mac: [2, 0, 0, 0, bit(0), index.to_be_bytes()[3]],
        up: bit(1) == 0 || index == 3,
        networks: networks.map(|network| network.parse().expect("a network")).into(),
        link_local: (bit(2) == 0).then(|| "fe80::1".parse().expect("an address")),
        gateways: ["10.0.0.254", "fe80::fe"].map(|gateway| gateway.parse().expect("one")).into(),
        arp: bit(3) == 0 || index == 3,
    };
    let mut all = vec![one(2, "eth0", ["10.0.0.11/24", "fd00:a::11/64"])];
    if bit(4) == 1 {
        all.push(one(3, "eth1", ["10.0.0.12/24", "fd00:b::11/64"]));
    }
    all
}
