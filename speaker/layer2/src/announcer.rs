//! Speaks ARP and NDP for the addresses that this node owns.
//!
//! It answers whoever asks for an owned address on an interface where that is announced, and tells
//! the neighbors by gratuitous frames when an address has come or its station has changed. It does
//! not decide who owns an address, learns nothing from what it reads, and detects no conflict with
//! a foreign station. Read RFC 5227 for ARP and RFC 4861 section 7.2 for NDP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use pnet::packet::ethernet::EtherTypes;
use pnet::util::MacAddr;

pub use crate::ethernet::Ignored;
use crate::interface::{Interface, InterfaceIndex, InterfaceMatch};
use crate::pace::{Bucket, Rate};
use crate::{arp, ethernet, ndp};

/// When gratuitous frames are sent, counted from the moment an address has come. The first reaches
/// the neighbors, the others are for those that lost it or were looking elsewhere just then.
const SERIES: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Switches and routers hand ARP to a policed processor: more than they take is lost.
const GRATUITOUS: Rate = Rate { interval: Duration::from_millis(1), burst: 200 };

/// All answers together.
const ANSWERS: Rate = Rate { interval: Duration::from_micros(200), burst: 1000 };

/// The answers to one source.
const ANSWERS_TO_ONE: Rate = Rate { interval: Duration::from_millis(20), burst: 100 };

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// All addresses that may become this node's, and where each is announced. Solicited-node
    /// groups are joined for them beforehand, so that a take-over needs no MLD round. An owned
    /// address that is missing here is announced as before until it is no longer owned.
    Candidates(BTreeMap<IpAddr, InterfaceMatch>),
    /// All addresses that are this node's now. One that never was a candidate is not announced.
    Own(BTreeSet<IpAddr>),
    /// All interfaces that may answer.
    Interfaces(Vec<Interface>),
    /// Neighbors may hold a stale entry for these addresses: those owned are announced anew.
    Repeat(BTreeSet<IpAddr>),
    /// A frame arrived.
    Frame {
        /// Where.
        interface: InterfaceIndex,
        /// From the Ethernet header on, without the frame check sequence.
        frame: &'a [u8],
    },
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a frame.
    SendFrame {
        /// Where.
        interface: InterfaceIndex,
        /// From the Ethernet header on, without padding and frame check sequence.
        frame: Vec<u8>,
    },
    /// Become a member of a solicited-node group.
    JoinGroup {
        /// Where.
        interface: InterfaceIndex,
        /// The group.
        group: Ipv6Addr,
    },
    /// Give a membership up. The interface may be down, or may have gone and the membership with
    /// it.
    LeaveGroup {
        /// Where.
        interface: InterfaceIndex,
        /// The group.
        group: Ipv6Addr,
    },
}

/// What the announcer counted since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// By address, for as long as it is a candidate or owned.
    pub addresses: BTreeMap<IpAddr, AddressCounters>,
    /// Frames that were not answered, by reason.
    pub ignored: BTreeMap<Ignored, u64>,
}

/// The counters of one address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressCounters {
    /// Requests for it that this node was to answer.
    pub requests_received: u64,
    /// Answers sent.
    pub responses_sent: u64,
    /// Gratuitous ARP frames and unsolicited advertisements sent.
    pub gratuitous_sent: u64,
}

/// The core that answers and announces.
#[derive(Debug, Default)]
pub struct Announcer {
    interfaces: BTreeMap<InterfaceIndex, Interface>,
    candidates: BTreeMap<IpAddr, InterfaceMatch>,
    own: BTreeMap<IpAddr, Owned>,
    groups: BTreeSet<(InterfaceIndex, Ipv6Addr)>,
    due: BTreeSet<Announcement>,
    gratuitous: Bucket,
    answers: Bucket,
    askers: Askers,
    counters: Counters,
}

impl Announcer {
    /// One that owns nothing and knows no interface.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        match event {
            Event::Candidates(candidates) => {
                self.candidates = candidates;
                self.reconcile(now)
            }
            Event::Own(addresses) => {
                self.own.retain(|address, _| addresses.contains(address));
                for address in addresses {
                    self.own.entry(address).or_default();
                }
                self.reconcile(now)
            }
            Event::Interfaces(interfaces) => {
                self.interfaces =
                    interfaces.into_iter().map(|interface| (interface.index, interface)).collect();
                self.reconcile(now)
            }
            Event::Repeat(addresses) => {
                for address in addresses {
                    if let Some(owned) = self.own.get_mut(&address) {
                        owned.stations.clear();
                    }
                }
                self.reconcile(now)
            }
            Event::Frame { interface, frame } => match self.answer(interface, frame, now) {
                Ok(frame) => vec![Action::SendFrame { interface, frame }],
                Err(reason) => {
                    *self.counters.ignored.entry(reason).or_default() += 1;
                    Vec::new()
                }
            },
        }
    }

    /// Sends the gratuitous frames that are due.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.announce(now, &mut actions);
        actions
    }

    /// When the next gratuitous frame is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = self.due.first()?.at;
        Some(self.gratuitous.ready_at(GRATUITOUS).map_or(due, |ready| ready.max(due)))
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Brings groups, stations and series in line with what is wanted.
    fn reconcile(&mut self, now: Instant) -> Vec<Action> {
        for (address, owned) in &mut self.own {
            if let Some(on) = self.candidates.get(address)
                && owned.on.as_ref() != Some(on)
            {
                owned.on = Some(on.clone());
            }
        }
        self.counters.addresses.retain(|address, _| {
            self.candidates.contains_key(address) || self.own.contains_key(address)
        });
        let mut actions = self.reconcile_groups();
        self.reconcile_stations(now);
        self.announce(now, &mut actions);
        actions
    }

    fn reconcile_groups(&mut self) -> Vec<Action> {
        let kept =
            self.own.iter().filter_map(|(address, owned)| Some((address, owned.on.as_ref()?)));
        let mut wanted = BTreeSet::new();
        for (address, on) in self.candidates.iter().chain(kept) {
            if let IpAddr::V6(address) = address {
                let group = ndp::solicited_node(*address);
                wanted.extend(
                    places(on, IpAddr::V6(*address), &self.interfaces)
                        .map(|interface| (interface.index, group)),
                );
            }
        }
        let left = self.groups.difference(&wanted);
        let joined = wanted.difference(&self.groups);
        let actions = left
            .map(|&(interface, group)| Action::LeaveGroup { interface, group })
            .chain(joined.map(|&(interface, group)| Action::JoinGroup { interface, group }))
            .collect();
        self.groups = wanted;
        actions
    }

    /// A series starts wherever an owned address has come or has a new station, and ends wherever
    /// it is no longer announced.
    fn reconcile_stations(&mut self, now: Instant) {
        let mut begun = BTreeSet::new();
        for (&address, owned) in &mut self.own {
            let stations: BTreeMap<_, _> = owned
                .on
                .iter()
                .flat_map(|on| places(on, address, &self.interfaces))
                .map(|interface| (interface.index, MacAddr::from(interface.mac)))
                .collect();
            for (index, station) in &stations {
                if owned.stations.get(index) != Some(station) {
                    begun.insert((address, *index));
                }
            }
            owned.stations = stations;
        }
        let own = &self.own;
        self.due.retain(|due| {
            own.get(&due.address).is_some_and(|owned| owned.stations.contains_key(&due.interface))
                && !begun.contains(&(due.address, due.interface))
        });
        for (address, interface) in begun {
            let forms: &[Form] = match address {
                IpAddr::V4(_) => &[Form::First, Form::Second],
                IpAddr::V6(_) => &[Form::First],
            };
            self.due.extend(forms.iter().map(|&form| Announcement {
                at: now,
                form,
                address,
                interface,
                begun: now,
            }));
        }
    }

    fn announce(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some(&due) = self.due.first()
            && due.at <= now
            && self.gratuitous.take(GRATUITOUS, now)
        {
            self.due.pop_first();
            // What the pace has overtaken is left out, it would only hold up others.
            let next = SERIES.iter().map(|&after| due.begun + after).find(|&at| at > now);
            self.due.extend(next.map(|at| Announcement { at, ..due }));
            let Some(interface) = self.interfaces.get(&due.interface) else { continue };
            actions.push(Action::SendFrame {
                interface: due.interface,
                frame: gratuitous_frame(interface, due.address, due.form),
            });
            self.counters.addresses.entry(due.address).or_default().gratuitous_sent += 1;
        }
    }

    fn answer(
        &mut self,
        index: InterfaceIndex,
        frame: &[u8],
        now: Instant,
    ) -> Result<Vec<u8>, Ignored> {
        let interface = self
            .interfaces
            .get(&index)
            .filter(|interface| interface.speaks())
            .ok_or(Ignored::UnknownInterface)?;
        let own = MacAddr::from(interface.mac);
        let frame = ethernet::decode(frame)?;
        let question = match frame.ethertype {
            EtherTypes::Arp => Question::Arp(arp::decode(frame.payload)?),
            EtherTypes::Ipv6 => Question::Ndp(ndp::decode(frame.payload)?),
            _ => return Err(Ignored::OtherProtocol),
        };
        if frame.destination != own && !frame.destination.is_multicast() {
            return Err(Ignored::OtherDestination);
        }
        let asker = question.asker(frame.source);
        let ours = |mac: MacAddr| {
            self.interfaces.values().any(|interface| MacAddr::from(interface.mac) == mac)
        };
        if ours(frame.source) || ours(asker) {
            return Err(Ignored::OwnFrame);
        }
        let address = question.target();
        let owned = self.own.get(&address).ok_or(Ignored::NotOwned)?;
        if !owned.stations.contains_key(&index) {
            return Err(Ignored::NotHere);
        }
        let counters = self.counters.addresses.entry(address).or_default();
        counters.requests_received += 1;
        if !self.askers.admit(asker, self.own.len(), now) || !self.answers.take(ANSWERS, now) {
            return Err(Ignored::RateLimited);
        }
        counters.responses_sent += 1;
        Ok(match question {
            Question::Arp(request) => arp::reply(own, request),
            Question::Ndp(solicitation) => {
                let advertisement = advertisement(interface, solicitation.target);
                if solicitation.source.is_unspecified() {
                    advertisement.to_all()
                } else {
                    advertisement.to_one(asker, solicitation.source)
                }
            }
        })
    }
}

#[derive(Debug, Default)]
struct Owned {
    /// `None` until it has been a candidate.
    on: Option<InterfaceMatch>,
    /// Where it is announced now, and as which station.
    stations: BTreeMap<InterfaceIndex, MacAddr>,
}

/// The next gratuitous frame of a series. They are ordered as they are sent: where frames have to
/// wait, the first form of every address goes before the second of any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Announcement {
    at: Instant,
    form: Form,
    address: IpAddr,
    interface: InterfaceIndex,
    begun: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Form {
    /// A gratuitous request, or an unsolicited advertisement.
    First,
    /// A gratuitous reply, for the neighbors that learn from replies only.
    Second,
}

enum Question {
    Arp(arp::Request),
    Ndp(ndp::Solicitation),
}

impl Question {
    fn target(&self) -> IpAddr {
        match self {
            Self::Arp(request) => request.target.into(),
            Self::Ndp(solicitation) => solicitation.target.into(),
        }
    }

    fn asker(&self, frame_source: MacAddr) -> MacAddr {
        match self {
            Self::Arp(request) => request.sender_mac,
            Self::Ndp(solicitation) => solicitation.source_mac.unwrap_or(frame_source),
        }
    }
}

/// Who has asked lately. A station that floods is held back; one that asks for every address here,
/// as a router does that has just started, is not.
#[derive(Debug, Default)]
struct Askers {
    buckets: BTreeMap<MacAddr, Bucket>,
    swept_at: Option<Instant>,
}

impl Askers {
    /// More are not told apart: whoever comes then is held back with all others only.
    const KEPT: usize = 1024;
    const SWEEP: Duration = Duration::from_secs(1);

    fn admit(&mut self, asker: MacAddr, owned: usize, now: Instant) -> bool {
        if self.buckets.len() >= Self::KEPT
            && self.swept_at.is_none_or(|swept| now >= swept + Self::SWEEP)
        {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            self.swept_at = Some(now);
        }
        let all_twice = u32::try_from(owned.saturating_mul(2)).unwrap_or(u32::MAX);
        let rate = Rate { burst: ANSWERS_TO_ONE.burst.max(all_twice), ..ANSWERS_TO_ONE };
        let full = self.buckets.len() >= Self::KEPT;
        match self.buckets.get_mut(&asker) {
            Some(bucket) => bucket.take(rate, now),
            None if full => true,
            None => self.buckets.entry(asker).or_default().take(rate, now),
        }
    }
}

/// Where an address is announced now. A link-local one means another station on every link, so it
/// is announced nowhere.
fn places<'a>(
    on: &'a InterfaceMatch,
    address: IpAddr,
    interfaces: &'a BTreeMap<InterfaceIndex, Interface>,
) -> impl Iterator<Item = &'a Interface> {
    let link_local = match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    on.select(address, interfaces.values()).filter(move |_| !link_local)
}

fn gratuitous_frame(interface: &Interface, address: IpAddr, form: Form) -> Vec<u8> {
    let own = MacAddr::from(interface.mac);
    match (address, form) {
        (IpAddr::V4(address), Form::First) => arp::announcement_request(own, address),
        (IpAddr::V4(address), Form::Second) => arp::announcement_reply(own, address),
        (IpAddr::V6(address), Form::First | Form::Second) => {
            advertisement(interface, address).to_all()
        }
    }
}

fn advertisement(interface: &Interface, target: Ipv6Addr) -> ndp::Advertisement {
    ndp::Advertisement {
        own: MacAddr::from(interface.mac),
        source: interface.link_local.unwrap_or(target),
        target,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ndp::tests::solicitation;
    use crate::tests::epoch;

    const ETH0: InterfaceIndex = InterfaceIndex(2);
    const ETH1: InterfaceIndex = InterfaceIndex(3);
    const OWN: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
    const CLIENT: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
    const BROADCAST: [u8; 6] = [0xff; 6];

    fn v4() -> IpAddr {
        "192.0.2.10".parse().unwrap()
    }

    fn v6() -> IpAddr {
        "2001:db8::10".parse().unwrap()
    }

    fn link_local() -> Ipv6Addr {
        "fe80::2".parse().unwrap()
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn interface(index: InterfaceIndex, name: &str, networks: &[&str]) -> Interface {
        Interface {
            index,
            name: name.into(),
            mac: [0x02, 0, 0, 0, 0, u8::try_from(index.0).unwrap()],
            up: true,
            networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
            link_local: Some(link_local()),
            gateways: Vec::new(),
            arp: true,
        }
    }

    fn lan() -> Vec<Interface> {
        vec![
            interface(ETH0, "eth0", &["192.0.2.2/24", "2001:db8::2/64"]),
            interface(ETH1, "eth1", &["198.51.100.2/24"]),
        ]
    }

    fn everywhere(addresses: &[IpAddr]) -> BTreeMap<IpAddr, InterfaceMatch> {
        addresses.iter().map(|&address| (address, InterfaceMatch::All)).collect()
    }

    /// One that owns `addresses` on `lan`, its series over.
    fn owner_of(addresses: &[IpAddr], now: Instant) -> Announcer {
        let mut announcer = Announcer::new();
        announcer.handle(Event::Interfaces(lan()), now);
        announcer.handle(Event::Candidates(everywhere(addresses)), now);
        announcer.handle(Event::Own(addresses.iter().copied().collect()), now);
        timeline(&mut announcer, now, now + ms(60_000));
        assert_eq!(announcer.poll_timeout(), None);
        announcer
    }

    fn arp(destination: [u8; 6], sender: [u8; 6], spa: &str, tpa: &str) -> Vec<u8> {
        let mut frame = [destination, sender].concat();
        frame.extend([0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01]);
        frame.extend(sender);
        frame.extend(spa.parse::<std::net::Ipv4Addr>().unwrap().octets());
        frame.extend([0; 6]);
        frame.extend(tpa.parse::<std::net::Ipv4Addr>().unwrap().octets());
        frame
    }

    fn solicit(destination: [u8; 6], ip: Vec<u8>) -> Vec<u8> {
        let mut frame = [destination, CLIENT].concat();
        frame.extend([0x86, 0xdd]);
        frame.extend(ip);
        frame
    }

    fn answers(announcer: &mut Announcer, interface: InterfaceIndex, frame: &[u8]) -> Vec<Vec<u8>> {
        let now = epoch() + ms(100_000);
        frames(announcer.handle(Event::Frame { interface, frame }, now))
    }

    fn frames(actions: Vec<Action>) -> Vec<Vec<u8>> {
        actions
            .into_iter()
            .filter_map(|action| match action {
                Action::SendFrame { frame, .. } => Some(frame),
                Action::JoinGroup { .. } | Action::LeaveGroup { .. } => None,
            })
            .collect()
    }

    fn ignored(announcer: &Announcer) -> Vec<Ignored> {
        announcer.counters().ignored.keys().copied().collect()
    }

    /// Runs all timers until `end` and says when frames were sent, from `start` on.
    fn timeline(
        announcer: &mut Announcer,
        start: Instant,
        end: Instant,
    ) -> Vec<(u128, InterfaceIndex)> {
        let mut sent = Vec::new();
        while let Some(at) = announcer.poll_timeout().filter(|at| *at <= end) {
            for action in announcer.handle_timeout(at) {
                if let Action::SendFrame { interface, .. } = action {
                    sent.push(((at - start).as_millis(), interface));
                }
            }
        }
        sent
    }

    #[test]
    fn requests_probes_and_unicast_requests_are_answered() {
        let mut announcer = owner_of(&[v4()], epoch());
        for (destination, sender) in
            [(BROADCAST, "192.0.2.1"), (OWN, "192.0.2.1"), (BROADCAST, "0.0.0.0")]
        {
            let request = arp(destination, CLIENT, sender, "192.0.2.10");
            let answer = answers(&mut announcer, ETH0, &request);
            assert_eq!(answer.len(), 1);
            assert_eq!(answer[0][..12], [CLIENT, OWN].concat());
            assert_eq!(answer[0][20..22], [0, 2]);
            assert_eq!(answer[0][22..32], [0x02, 0, 0, 0, 0, 0x02, 192, 0, 2, 10]);
            assert_eq!(answer[0][38..42], request[28..32], "to {sender}");
        }
        let counters = announcer.counters().addresses[&v4()];
        assert_eq!((counters.requests_received, counters.responses_sent), (3, 3));
    }

    #[test]
    fn solicitations_are_answered_in_every_form() {
        let mut announcer = owner_of(&[v6()], epoch());
        let IpAddr::V6(target) = v6() else { unreachable!() };
        let (client, group) = ("fe80::99".parse().unwrap(), ndp::solicited_node(target));
        let multicast = [0x33, 0x33, 0xff, 0, 0, 0x10];
        let station = [1, 1, 0x02, 0, 0, 0, 0, 0x77];
        let all = [0x33, 0x33, 0, 0, 0, 1];
        let none = Ipv6Addr::UNSPECIFIED;
        let cases = [
            (multicast, client, group, &station[..], [0x02, 0, 0, 0, 0, 0x77], client, 0x60),
            (OWN, client, target, &[], CLIENT, client, 0x60),
            (multicast, none, group, &[], all, ndp::ALL_NODES, 0x20),
        ];
        for (to, source, destination, options, answer_to, answer_destination, flags) in cases {
            let packet = solicitation(source, destination, target, options);
            let answer = answers(&mut announcer, ETH0, &solicit(to, packet));
            assert_eq!(answer.len(), 1, "{:?}", ignored(&announcer));
            assert_eq!(answer[0][..6], answer_to);
            assert_eq!(answer[0][22..38], link_local().octets());
            assert_eq!(answer[0][38..54], answer_destination.octets());
            assert_eq!(answer[0][58], flags);
            assert_eq!(answer[0][78..], [2, 1, 0x02, 0, 0, 0, 0, 0x02]);
        }
    }

    #[test]
    fn an_interface_without_link_local_advertises_from_the_address_itself() {
        let mut announcer = owner_of(&[v6()], epoch());
        let mut interfaces = lan();
        interfaces[0].link_local = None;
        announcer.handle(Event::Interfaces(interfaces), epoch());
        let IpAddr::V6(target) = v6() else { unreachable!() };
        let packet = solicitation("fe80::99".parse().unwrap(), target, target, &[]);
        let answer = answers(&mut announcer, ETH0, &solicit(OWN, packet));
        assert_eq!(answer[0][22..38], target.octets());
    }

    #[test]
    fn what_is_not_ours_to_answer_is_counted_by_reason() {
        let request = arp(BROADCAST, CLIENT, "192.0.2.1", "192.0.2.10");
        let mut vlan = request.clone();
        vlan[12..14].copy_from_slice(&[0x81, 0x00]);
        let cases = [
            (ETH0, arp(BROADCAST, CLIENT, "192.0.2.1", "192.0.2.11"), Ignored::NotOwned),
            (ETH1, request.clone(), Ignored::NotHere),
            (InterfaceIndex(9), request.clone(), Ignored::UnknownInterface),
            (ETH0, request[..41].to_vec(), Ignored::Truncated),
            (ETH0, request[..13].to_vec(), Ignored::Truncated),
            (ETH0, vlan, Ignored::OtherProtocol),
            (ETH0, arp(CLIENT, CLIENT, "192.0.2.1", "192.0.2.10"), Ignored::OtherDestination),
            (ETH0, arp(BROADCAST, OWN, "192.0.2.1", "192.0.2.10"), Ignored::OwnFrame),
            (ETH0, arp(BROADCAST, CLIENT, "192.0.2.10", "192.0.2.10"), Ignored::NoRequest),
        ];
        for (interface, frame, reason) in cases {
            let mut announcer = owner_of(&[v4()], epoch());
            assert!(answers(&mut announcer, interface, &frame).is_empty(), "{reason:?}");
            assert_eq!(ignored(&announcer), [reason]);
        }
    }

    #[test]
    fn nothing_is_answered_before_and_after_it_is_owned() {
        let request = arp(BROADCAST, CLIENT, "192.0.2.1", "192.0.2.10");
        let mut announcer = Announcer::new();
        announcer.handle(Event::Interfaces(lan()), epoch());
        announcer.handle(Event::Candidates(everywhere(&[v4()])), epoch());
        assert!(answers(&mut announcer, ETH0, &request).is_empty());
        announcer.handle(Event::Own([v4()].into()), epoch());
        assert_eq!(answers(&mut announcer, ETH0, &request).len(), 1);
        announcer.handle(Event::Candidates(BTreeMap::new()), epoch());
        assert_eq!(answers(&mut announcer, ETH0, &request).len(), 1, "it is being handed over");
        announcer.handle(Event::Own(BTreeSet::new()), epoch());
        assert!(answers(&mut announcer, ETH0, &request).is_empty());
        assert!(announcer.counters().addresses.is_empty());
    }

    #[test]
    fn an_address_is_announced_where_its_subnet_is_or_everywhere_or_where_it_is_told() {
        let foreign: IpAddr = "203.0.113.1".parse().unwrap();
        let only = |name: &str| InterfaceMatch::Only([name.into()].into());
        let mut down = lan();
        down[0].up = false;
        let mut silent = lan();
        silent[0].arp = false;
        let cases = [
            (v4(), InterfaceMatch::All, lan(), vec![ETH0]),
            (foreign, InterfaceMatch::All, lan(), vec![ETH0, ETH1]),
            (v4(), only("eth1"), lan(), vec![ETH1]),
            (v4(), only("eth9"), lan(), vec![]),
            (v4(), InterfaceMatch::All, down, vec![]),
            (v4(), InterfaceMatch::All, silent, vec![]),
            (link_local().into(), InterfaceMatch::All, lan(), vec![]),
        ];
        for (address, on, interfaces, expected) in cases {
            let mut announcer = Announcer::new();
            announcer.handle(Event::Interfaces(interfaces), epoch());
            announcer.handle(Event::Candidates([(address, on.clone())].into()), epoch());
            announcer.handle(Event::Own([address].into()), epoch());
            let places: Vec<_> = announcer.own[&address].stations.keys().copied().collect();
            assert_eq!(places, expected, "{address} on {on:?}");
        }
    }

    #[test]
    fn a_gained_address_is_announced_in_both_forms_on_schedule() {
        let start = epoch();
        let mut announcer = Announcer::new();
        announcer.handle(Event::Interfaces(lan()), start);
        announcer.handle(Event::Candidates(everywhere(&[v4(), v6()])), start);
        assert_eq!(announcer.poll_timeout(), None);
        let at_once = frames(announcer.handle(Event::Own([v4(), v6()].into()), start));
        assert_eq!(at_once.len(), 3);
        assert_eq!(at_once[0][20..22], [0, 1], "the request form first");
        assert_eq!(at_once[1][..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(at_once[1][58], 0x20);
        assert_eq!(at_once[2][20..22], [0, 2]);
        assert!(announcer.handle_timeout(start).is_empty(), "nothing is due");
        let later = timeline(&mut announcer, start, start + ms(60_000));
        let expected: Vec<_> =
            [10, 50, 200, 1000, 2000, 5000].into_iter().flat_map(|at| [(at, ETH0); 3]).collect();
        assert_eq!(later, expected);
        assert_eq!(announcer.counters().addresses[&v4()].gratuitous_sent, 14);
        assert_eq!(announcer.counters().addresses[&v6()].gratuitous_sent, 7);
    }

    #[test]
    fn a_series_ends_with_ownership_and_starts_again_with_the_link_or_the_station() {
        let mut announcer = owner_of(&[v4()], epoch());
        let start = epoch() + ms(60_000);
        let mut interfaces = lan();
        let mut change = |announcer: &mut Announcer, change: fn(&mut Interface)| {
            change(&mut interfaces[0]);
            frames(announcer.handle(Event::Interfaces(interfaces.clone()), start))
        };
        assert!(change(&mut announcer, |eth0| eth0.name = "renamed".into()).is_empty());
        assert!(change(&mut announcer, |eth0| eth0.up = false).is_empty());
        assert_eq!(change(&mut announcer, |eth0| eth0.up = true).len(), 2);
        let moved = change(&mut announcer, |eth0| eth0.mac[5] = 0x55);
        assert_eq!(moved[0][6..12], [0x02, 0, 0, 0, 0, 0x55]);
        assert!(frames(announcer.handle(Event::Own([v4()].into()), start)).is_empty());
        assert_eq!(frames(announcer.handle(Event::Repeat([v4(), v6()].into()), start)).len(), 2);
        assert!(announcer.poll_timeout().is_some());
        announcer.handle(Event::Own(BTreeSet::new()), start);
        assert_eq!(announcer.poll_timeout(), None);
    }

    #[test]
    fn a_thousand_addresses_are_paced_and_each_is_told_of_before_any_is_repeated() {
        let start = epoch();
        let addresses: BTreeSet<IpAddr> = (0..1000_u16)
            .map(|n| IpAddr::from([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]))
            .collect();
        let all: Vec<_> = addresses.iter().copied().collect();
        let mut announcer = Announcer::new();
        announcer.handle(Event::Interfaces(vec![interface(ETH0, "eth0", &["10.0.0.1/8"])]), start);
        announcer.handle(Event::Candidates(everywhere(&all)), start);
        let burst = announcer.handle(Event::Own(addresses), start);
        assert_eq!(burst.len(), 200);
        let mut first = frames(burst);
        while let Some(at) = announcer.poll_timeout().filter(|at| *at <= start + ms(820)) {
            first.extend(frames(announcer.handle_timeout(at)));
        }
        let told: BTreeSet<_> = first.iter().map(|frame| frame[28..32].to_vec()).collect();
        assert_eq!(told.len(), 1000, "all within a second");
        let rest = timeline(&mut announcer, start, start + ms(60_000));
        for second in 1..20 {
            let sent = rest.iter().filter(|(at, _)| at / 1000 == second).count();
            assert!(sent <= 1200, "{sent} frames in second {second}");
        }
        let counters = announcer.counters();
        assert!(counters.addresses.values().all(|address| address.gratuitous_sent >= 6));
    }

    #[test]
    fn groups_are_joined_for_candidates_and_shared() {
        let start = epoch();
        let neighbour: IpAddr = "2001:db8::1:0:10".parse().unwrap();
        let mut announcer = Announcer::new();
        announcer.handle(Event::Interfaces(lan()), start);
        let group = "ff02::1:ff00:10".parse().unwrap();
        let join = Action::JoinGroup { interface: ETH0, group };
        let leave = Action::LeaveGroup { interface: ETH0, group };
        let candidates = |addresses: &[IpAddr]| Event::Candidates(everywhere(addresses));
        assert_eq!(announcer.handle(candidates(&[v4(), v6()]), start), std::slice::from_ref(&join));
        assert!(announcer.handle(candidates(&[v6(), neighbour]), start).is_empty());
        assert!(announcer.handle(candidates(&[neighbour]), start).is_empty());
        assert_eq!(
            announcer.handle(Event::Interfaces(vec![]), start),
            std::slice::from_ref(&leave)
        );
        assert_eq!(announcer.handle(Event::Interfaces(lan()), start), [join]);
        assert_eq!(announcer.handle(candidates(&[]), start), [leave]);
    }

    #[test]
    fn one_that_floods_is_held_back_and_others_are_not() {
        let start = epoch();
        let mut announcer = owner_of(&[v4()], start);
        let mut ask = |sender: [u8; 6], now: Instant| {
            let frame = arp(BROADCAST, sender, "192.0.2.1", "192.0.2.10");
            announcer.handle(Event::Frame { interface: ETH0, frame: &frame }, now).len()
        };
        let flood: usize = (0..1000).map(|_| ask(CLIENT, start)).sum();
        assert_eq!(flood, 100);
        assert_eq!(ask([0x02, 0, 0, 0, 0, 0x98], start), 1);
        let later: usize = (0..1000).map(|n| ask(CLIENT, start + ms(n))).sum();
        assert_eq!(later, 49);
        let spoofed: usize = (0..20_000_u32)
            .map(|n| {
                let [_, a, b, c] = n.to_be_bytes();
                ask([0x06, 0, 0, a, b, c], start + ms(2000))
            })
            .sum();
        assert_eq!(spoofed, 1000, "all sources together");
        assert!(announcer.askers.buckets.len() <= Askers::KEPT);
    }

    #[test]
    fn a_router_may_ask_for_everything_at_once() {
        let all: Vec<IpAddr> = (1..=250).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let mut announcer = owner_of(&all, epoch());
        for address in &all {
            let request = arp(BROADCAST, CLIENT, "192.0.2.254", &address.to_string());
            assert_eq!(answers(&mut announcer, ETH0, &request).len(), 1, "{address}");
        }
    }

    proptest! {
        #[test]
        fn noise_is_never_answered(
            mut frame in proptest::collection::vec(any::<u8>(), 0..120),
            kind in 0..3_u8,
        ) {
            if frame.len() > 60 && kind > 0 {
                frame[..6].fill(0xff);
                let head: &[u8] = match kind {
                    1 => &[0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01],
                    _ => &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 58, 255],
                };
                frame[12..22].copy_from_slice(head);
            }
            let mut announcer = owner_of(&[v4(), v6()], epoch());
            prop_assert_eq!(answers(&mut announcer, ETH0, &frame).len(), 0);
            prop_assert_eq!(announcer.counters().ignored.values().sum::<u64>(), 1);
        }

        #[test]
        fn a_solicitation_with_any_options_is_answered_only_if_owned(
            options in proptest::collection::vec(any::<u8>(), 0..80),
            owned in any::<bool>(),
        ) {
            let IpAddr::V6(target) = v6() else { unreachable!() };
            let mut announcer = owner_of(&[if owned { v6() } else { v4() }], epoch());
            let packet = solicitation("fe80::99".parse().unwrap(), target, target, &options);
            let sound = ndp::decode(&packet).is_ok();
            let count = answers(&mut announcer, ETH0, &solicit(OWN, packet)).len();
            prop_assert_eq!(count, usize::from(owned && sound));
        }
    }
}
