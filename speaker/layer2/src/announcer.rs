//! Speaks ARP and NDP for the addresses that this node owns, and asks the segment who has one.
//!
//! It answers whoever asks for an owned address on an interface where that is announced, and tells
//! the neighbors by gratuitous frames when an address has come or its station has changed. It
//! reports what other stations say of addresses that are owned or asked for, but does not judge it:
//! who owns an address is decided elsewhere. Read RFC 5227 for ARP and RFC 4861 section 7.2 for NDP.
//!
//! One address more or less costs the same however many there are; only a change of the interfaces
//! walks over all of them.

mod answer;
mod ask;
mod groups;
mod limits;
mod series;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ownership::{Asking, Heard, Mac};
use pnet::util::MacAddr;

use self::ask::Questions;
use self::groups::Groups;
use self::limits::Limits;
use self::series::{Audience, Series};
pub use crate::ethernet::Ignored;
use crate::interface::{Interface, InterfaceIndex, InterfaceMatch};
use crate::ndp;
use crate::pace::Bucket;

/// What an announcer can be told when it is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnnouncerSettings {
    /// How often every owned address is announced anew though nothing has happened to it, at least
    /// once a second; `None`: never.
    pub refresh: Option<Duration>,
    /// Sets the waiting times of this node apart from those of others.
    pub seed: u64,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// These addresses may become this node's, and where each is then announced; with `None` one may
    /// no more. Solicited-node groups are joined for candidates beforehand, so that a take-over needs
    /// no MLD round. One that is owned is announced as before until it is no longer owned.
    Candidates(BTreeMap<IpAddr, Option<InterfaceMatch>>),
    /// These addresses are this node's from now on. One that never was a candidate is not announced
    /// before it is.
    Own(Vec<IpAddr>),
    /// These are this node's no more.
    Disown(Vec<IpAddr>),
    /// All interfaces that may answer.
    Interfaces(Vec<Interface>),
    /// Neighbors may hold a stale entry for these addresses: those owned are announced once more, at
    /// once; a series that is going on goes on.
    Repeat(Vec<IpAddr>),
    /// Find out whether a station of the segment has an address. A candidate is asked for where it
    /// would be announced; any other where it is a gateway or a subnet holds it. Asking anew begins
    /// from the start.
    Ask {
        /// Which.
        address: IpAddr,
        /// How.
        how: Asking,
    },
    /// The answer does not matter any more.
    StopAsking(IpAddr),
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
    /// A station that is not this node's spoke of an address. Of one that is asked for, each thing
    /// that a station says is reported once; of one that is owned, ten things a second at most.
    Heard {
        /// Which address.
        address: IpAddr,
        /// Where.
        interface: InterfaceIndex,
        /// The station.
        mac: Mac,
        /// What it said.
        form: Heard,
    },
    /// Nobody said that he has the address that was asked for, in the time given for it. The question
    /// is over.
    Silence(IpAddr),
}

/// What the announcer counted since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// By address, for as long as it is a candidate or owned.
    pub addresses: BTreeMap<IpAddr, AddressCounters>,
    /// Frames of which nothing came, by reason.
    pub ignored: BTreeMap<Ignored, u64>,
    /// Frames sent to ask for addresses.
    pub probes_sent: u64,
    /// Multicast listener reports sent.
    pub reports_sent: u64,
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
    /// Frames in which another station said that it has it, while this node owned it.
    pub conflicts_heard: u64,
}

/// The core that answers, announces and asks.
#[derive(Debug)]
pub struct Announcer {
    interfaces: BTreeMap<InterfaceIndex, Interface>,
    /// The stations of all interfaces.
    macs: BTreeSet<MacAddr>,
    /// Candidates and owned addresses.
    addresses: BTreeMap<IpAddr, Address>,
    /// One copy of each that an address has.
    stations: BTreeSet<Arc<Stations>>,
    owned: BTreeSet<IpAddr>,
    groups: Groups,
    series: Series,
    questions: Questions,
    limits: Limits,
    counters: Counters,
    heeded_version: u64,
}

impl Announcer {
    /// One that owns nothing and knows no interface.
    pub fn new(settings: AnnouncerSettings) -> Self {
        Self {
            interfaces: BTreeMap::new(),
            macs: BTreeSet::new(),
            addresses: BTreeMap::new(),
            stations: BTreeSet::new(),
            owned: BTreeSet::new(),
            groups: Groups::default(),
            series: Series::new(settings),
            questions: Questions::new(settings.seed),
            limits: Limits::default(),
            counters: Counters::default(),
            heeded_version: 0,
        }
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        match event {
            Event::Candidates(changes) => {
                let many = changes.len() > self.addresses.len();
                for (address, on) in changes {
                    self.set_candidate(address, on, now);
                }
                if many {
                    // What came in order has filled the nodes of the tree to a half.
                    self.addresses = std::mem::take(&mut self.addresses).into_iter().collect();
                }
            }
            Event::Own(addresses) => {
                for address in addresses {
                    self.own(address, now);
                }
            }
            Event::Disown(addresses) => {
                for address in addresses {
                    self.disown(address, now);
                }
            }
            Event::Interfaces(interfaces) => self.set_interfaces(interfaces, now),
            Event::Repeat(addresses) => {
                for address in addresses {
                    if let Some((requests, interfaces)) = self.announced(address) {
                        for interface in interfaces {
                            self.series.repeat(address, interface, requests, now);
                        }
                    }
                }
            }
            Event::Ask { address, how } => self.ask(address, how, now),
            Event::StopAsking(address) => {
                let stopped = self.questions.stop(address);
                self.heed(stopped);
            }
            Event::Frame { interface, frame } => return self.receive(interface, frame, now),
        }
        let mut actions = self.groups.settle();
        self.send_due(now, &mut actions);
        actions
    }

    /// Sends the gratuitous frames and the questions that are due, and ends the questions that have
    /// had their time.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.send_due(now, &mut actions);
        actions
    }

    /// When `handle_timeout` has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.series.poll_timeout(), self.questions.poll_timeout()].into_iter().flatten().min()
    }

    /// The addresses about which frames matter now: those owned and those asked for, each once.
    pub fn heeded(&self) -> impl Iterator<Item = IpAddr> {
        let asked = self.questions.addresses().filter(|address| !self.owned.contains(address));
        self.owned.iter().copied().chain(asked)
    }

    /// Another number whenever [`heeded`](Self::heeded) may have changed.
    pub fn heeded_version(&self) -> u64 {
        self.heeded_version
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn set_candidate(&mut self, address: IpAddr, on: Option<InterfaceMatch>, now: Instant) {
        match on {
            Some(_) => {
                let known = self.addresses.entry(address).or_default();
                known.candidate = true;
                if known.on != on {
                    known.on = on;
                    self.place(address, now);
                }
            }
            None => {
                if let Some(known) = self.addresses.get_mut(&address) {
                    known.candidate = false;
                    self.forget_if_idle(address, now);
                }
            }
        }
    }

    fn own(&mut self, address: IpAddr, now: Instant) {
        if self.owned.insert(address) {
            self.addresses.entry(address).or_default().watch = Watch::default();
            self.heed(Heeding::Changed);
            if let Some((requests, interfaces)) = self.announced(address) {
                for interface in interfaces {
                    self.series.begin(address, interface, requests, now);
                }
            }
        }
    }

    fn disown(&mut self, address: IpAddr, now: Instant) {
        if self.owned.remove(&address) {
            self.heed(Heeding::Changed);
            for &interface in
                self.addresses.get(&address).iter().flat_map(|known| known.stations.keys())
            {
                self.series.end(address, interface);
            }
            self.forget_if_idle(address, now);
        }
    }

    fn forget_if_idle(&mut self, address: IpAddr, now: Instant) {
        let idle = self.addresses.get_mut(&address).filter(|known| !known.candidate);
        if let Some(known) = idle
            && !self.owned.contains(&address)
        {
            known.on = None;
            self.place(address, now);
            self.addresses.remove(&address);
            self.counters.addresses.remove(&address);
        }
    }

    fn set_interfaces(&mut self, interfaces: Vec<Interface>, now: Instant) {
        self.macs = interfaces.iter().map(|interface| MacAddr::from(interface.mac)).collect();
        self.interfaces =
            interfaces.into_iter().map(|interface| (interface.index, interface)).collect();
        let addresses: Vec<_> = self.addresses.keys().copied().collect();
        for address in addresses {
            self.place(address, now);
        }
        self.stations.retain(|stations| Arc::strong_count(stations) > 1);
    }

    /// Brings an address's stations, groups and series in line with where it belongs now. A series
    /// starts wherever an owned address has a new station, and ends where it has none any more.
    fn place(&mut self, address: IpAddr, now: Instant) {
        let Some(known) = self.addresses.get_mut(&address) else { return };
        let stations: Stations = known
            .on
            .iter()
            .flat_map(|on| on.places(address, self.interfaces.values()))
            .map(|interface| (interface.index, MacAddr::from(interface.mac)))
            .collect();
        if stations == *known.stations {
            return;
        }
        let stations = match self.stations.get(&stations) {
            Some(same) => Arc::clone(same),
            None => {
                let new = Arc::new(stations);
                self.stations.insert(Arc::clone(&new));
                new
            }
        };
        let before = std::mem::replace(&mut known.stations, stations);
        let owned = self.owned.contains(&address);
        for &interface in before.keys().filter(|index| !known.stations.contains_key(index)) {
            self.groups.release(address, interface);
            self.series.end(address, interface);
        }
        for (&interface, station) in &*known.stations {
            if !before.contains_key(&interface) {
                self.groups.hold(address, interface);
            }
            if owned && before.get(&interface) != Some(station) {
                self.series.begin(address, interface, known.requests, now);
            }
        }
    }

    /// How much an owned address is asked for, and where it is announced.
    fn announced(&self, address: IpAddr) -> Option<(u64, Vec<InterfaceIndex>)> {
        let known = self.addresses.get(&address).filter(|_| self.owned.contains(&address))?;
        Some((known.requests, known.stations.keys().copied().collect()))
    }

    fn send_due(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // Questions first: who waits for their answers waits with the announcing, too.
        self.send_questions(now, actions);
        while let Some(due) = self.series.pop(now) {
            let Some(interface) = self.interfaces.get(&due.interface) else { continue };
            actions.push(Action::SendFrame {
                interface: due.interface,
                frame: series::gratuitous_frame(interface, due.address, due.form),
            });
            match due.audience() {
                Audience::Neighbors => {
                    self.counters.addresses.entry(due.address).or_default().gratuitous_sent += 1;
                }
                Audience::Switches => self.counters.reports_sent += 1,
            }
        }
    }

    fn heed(&mut self, heeding: Heeding) {
        match heeding {
            Heeding::Changed => self.heeded_version += 1,
            Heeding::AsBefore => {}
        }
    }
}

/// Whether other addresses are heeded than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heeding {
    Changed,
    AsBefore,
}

/// Where an address is announced, and as which station. There are few, and thousands of addresses.
type Stations = BTreeMap<InterfaceIndex, MacAddr>;

/// A candidate or an owned address.
#[derive(Debug, Default)]
struct Address {
    candidate: bool,
    /// `None` until it has been a candidate.
    on: Option<InterfaceMatch>,
    /// Where it would be announced now, and as which station.
    stations: Arc<Stations>,
    /// Requests for it that were seen, whoever was to answer.
    requests: u64,
    watch: Watch,
}

/// How much of what concerns one address has passed lately, whoever it is from.
#[derive(Debug, Clone, Copy, Default)]
struct Watch {
    probes: Bucket,
    heard: Bucket,
}

/// What neighbors are told of an IPv6 address, asked or unasked.
fn advertisement(interface: &Interface, target: Ipv6Addr) -> ndp::Answer {
    ndp::Answer {
        own: MacAddr::from(interface.mac),
        source: interface.link_local.unwrap_or(target),
        target,
    }
}

#[cfg(test)]
mod tests;
