//! The wire: who answers for an address, and the answering itself, as one value.
//!
//! It joins `ownership::Ownership` (which node owns what) with `layer2::Announcer` (frames) and lives
//! on a thread of its own, so that decoding and planning never delay a heartbeat or an answer. It goes
//! on with what was last [`Wanted`] whatever happens to the planner. One exists per speaker.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use layer2::{Announcer, AnnouncerSettings, Interface, InterfaceIndex, InterfaceMatch, announcer};
use ownership::{AddressState, Candidates, Extent, Heard, Mac, NodeName, Ownership, View};

/// What the planner wants on the segment: the whole the first time, then what has changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// The highest resource version that it is made from.
    pub version: u64,
    pub extent: Extent,
    /// Who may answer for an address; `None`: nobody any more.
    pub addresses: BTreeMap<IpAddr, Option<Arc<Candidates>>>,
    /// The other speakers' node addresses, all of them, if that has changed. Heartbeats go to the one
    /// of the family that the socket has; a datagram from any other source is dropped.
    pub peers: Option<BTreeMap<NodeName, BTreeSet<IpAddr>>>,
    /// Whether this node is being drained, if that has changed.
    pub draining: Option<bool>,
}

impl Wanted {
    /// Takes in what is wanted after this, so that both are one change.
    pub fn merge(&mut self, later: Self) {
        match later.extent {
            Extent::Whole => *self = later,
            Extent::Changes => {
                self.version = self.version.max(later.version);
                self.addresses.extend(later.addresses);
                self.peers = later.peers.or_else(|| self.peers.take());
                self.draining = later.draining.or(self.draining);
                if self.extent == Extent::Whole {
                    self.addresses.retain(|_, candidates| candidates.is_some());
                }
            }
        }
    }
}

/// What outlives the process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    /// The whole of what was wanted last.
    pub wanted: Wanted,
    pub ownership: ownership::Memory,
}

/// What happens to the wire.
#[derive(Debug)]
pub enum Event<'a> {
    Wanted(Wanted),
    /// Every interface that may answer.
    Interfaces(Vec<Interface>),
    Frame {
        interface: InterfaceIndex,
        frame: &'a [u8],
    },
    /// A heartbeat datagram, opened and attributed to its node by the shell.
    Datagram {
        from: &'a str,
        payload: &'a [u8],
    },
    /// The process is about to end: hand over what is owned.
    Leave,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    SendFrame {
        interface: InterfaceIndex,
        frame: Vec<u8>,
    },
    JoinGroup {
        interface: InterfaceIndex,
        group: Ipv6Addr,
    },
    LeaveGroup {
        interface: InterfaceIndex,
        group: Ipv6Addr,
    },
    SendDatagram {
        to: NodeName,
        address: IpAddr,
        payload: Vec<u8>,
    },
    /// The state of these addresses has changed; `None`: nothing is known any more. It comes before
    /// the frames that rest on it.
    Addresses(BTreeMap<IpAddr, Option<AddressState>>),
    Report(Report),
}

/// The rest of the wire's state as others see it; always the whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The other speakers heard now.
    pub live: BTreeSet<NodeName>,
    pub interfaces: Vec<Interface>,
    /// After [`Event::Leave`]: nothing is owned any more.
    pub left: bool,
}

/// While frames wait for their turn in the pace, those of so long go out together: one wake for
/// each of a thousand frames costs more than the frames.
const TOGETHER: Duration = Duration::from_millis(4);

/// See the module.
#[derive(Debug)]
pub struct Wire {
    me: NodeName,
    /// The whole of what is wanted.
    wanted: Wanted,
    ownership: Ownership,
    announcer: Announcer,
    /// Frames that are due before wait until then.
    announce_from: Option<Instant>,
    report: Report,
    memory_changed: bool,
}

impl Wire {
    /// With a `wanted` of an earlier life it answers before the planner has spoken.
    pub fn new(
        settings: ownership::Settings,
        announcer: AnnouncerSettings,
        wanted: Option<Wanted>,
        now: Instant,
    ) -> (Self, Vec<Action>) {
        let mut wire = Self {
            me: settings.me.clone(),
            wanted: Wanted::default(),
            ownership: Ownership::new(settings, now),
            announcer: Announcer::new(announcer),
            announce_from: None,
            report: Report::default(),
            memory_changed: false,
        };
        let actions = wanted.map(|wanted| wire.handle(Event::Wanted(wanted), now));
        (wire, actions.unwrap_or_default())
    }

    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        let mut step = Step::default();
        match event {
            Event::Wanted(wanted) => self.set_wanted(wanted, now, &mut step),
            Event::Interfaces(interfaces) => self.set_interfaces(interfaces, now, &mut step),
            Event::Frame { interface, frame } => {
                step.announced(
                    self.announcer.handle(announcer::Event::Frame { interface, frame }, now),
                );
            }
            Event::Datagram { from, payload } => {
                step.owned(
                    self.ownership.handle(ownership::Event::Datagram { from, payload }, now),
                );
            }
            Event::Leave => step.owned(self.ownership.handle(ownership::Event::Leave, now)),
        }
        self.finish(step, now)
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut step = Step::default();
        step.owned(self.ownership.handle_timeout(now));
        step.announced(self.announcer.handle_timeout(now));
        // One address alone has longer pauses between its frames, and is not put off.
        let soon = now + TOGETHER;
        let next = self.announcer.poll_timeout();
        self.announce_from = next.filter(|next| *next < soon).map(|_| soon);
        self.finish(step, now)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let announcer = self.announcer.poll_timeout().max(self.announce_from);
        [self.ownership.poll_timeout(), announcer].into_iter().flatten().min()
    }

    /// What is to outlive the process, if it has changed since this was last asked.
    pub fn memory(&mut self) -> Option<Memory> {
        let claims = self.ownership.take_memory_changed();
        let changed = std::mem::take(&mut self.memory_changed) || claims;
        changed.then(|| Memory { wanted: self.wanted.clone(), ownership: self.ownership.memory() })
    }

    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    pub fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    fn set_wanted(&mut self, wanted: Wanted, now: Instant, step: &mut Step) {
        let mut candidacies: BTreeMap<IpAddr, Option<InterfaceMatch>> = BTreeMap::new();
        if wanted.extent == Extent::Whole {
            candidacies.extend(self.wanted.addresses.keys().map(|address| (*address, None)));
        }
        candidacies.extend(wanted.addresses.iter().map(|(address, candidates)| {
            (*address, candidates.as_deref().and_then(|candidates| self.candidacy(candidates)))
        }));
        let view = View {
            version: wanted.version,
            extent: wanted.extent,
            addresses: wanted.addresses.clone(),
            peers: wanted.peers.as_ref().map(|peers| peers.keys().cloned().collect()),
            draining: wanted.draining,
        };
        let mut whole = std::mem::take(&mut self.wanted);
        whole.extent = Extent::Whole;
        whole.merge(wanted);
        self.wanted = whole;
        self.memory_changed = true;
        step.announced(self.announcer.handle(announcer::Event::Candidates(candidacies), now));
        step.owned(self.ownership.handle(ownership::Event::View(view), now));
    }

    /// Where this node may answer, if it may at all.
    fn candidacy(&self, candidates: &Candidates) -> Option<InterfaceMatch> {
        candidates.nodes.contains(&self.me).then(|| match candidates.interfaces.get(&self.me) {
            Some(names) => InterfaceMatch::Only(names.clone()),
            None => InterfaceMatch::All,
        })
    }

    fn set_interfaces(&mut self, interfaces: Vec<Interface>, now: Instant, step: &mut Step) {
        if self.report.interfaces == interfaces {
            return;
        }
        let stations = interfaces
            .iter()
            .filter(|interface| interface.up)
            .map(|interface| (interface.name.clone(), interface.mac))
            .collect();
        let gateways = interfaces.iter().flat_map(|interface| &interface.gateways).copied();
        let gateways = gateways.collect();
        self.report.interfaces.clone_from(&interfaces);
        self.tell_report(step);
        step.announced(self.announcer.handle(announcer::Event::Interfaces(interfaces), now));
        step.owned(self.ownership.handle(ownership::Event::Gateways(gateways), now));
        step.owned(self.ownership.handle(ownership::Event::Stations(stations), now));
    }

    /// Lets the two cores answer each other until both are content.
    fn finish(&mut self, mut step: Step, now: Instant) -> Vec<Action> {
        while let Some(next) = step.queue.pop_front() {
            match next {
                Next::Owned(action) => self.perform_owned(action, now, &mut step),
                Next::Heard { address, interface, mac, form } => {
                    let known = self.report.interfaces.iter();
                    let Some(on) = known.clone().find(|known| known.index == interface) else {
                        continue;
                    };
                    let interface = &*on.name;
                    let event = ownership::Event::Heard { address, interface, mac, form };
                    step.owned(self.ownership.handle(event, now));
                }
                Next::Silence(address) => {
                    step.owned(self.ownership.handle(ownership::Event::Silence(address), now));
                }
            }
        }
        step.flush();
        step.actions
    }

    fn perform_owned(&mut self, action: ownership::Action, now: Instant, step: &mut Step) {
        let event = match action {
            ownership::Action::State(address, state) => {
                step.states.insert(address, state);
                return;
            }
            ownership::Action::Send { to, payload } => return self.send(to, payload, step),
            ownership::Action::PeerUp(node) => {
                self.report.live.insert(node);
                return self.tell_report(step);
            }
            ownership::Action::PeerDown(node) => {
                self.report.live.remove(&node);
                return self.tell_report(step);
            }
            ownership::Action::Left => {
                self.report.left = true;
                return self.tell_report(step);
            }
            ownership::Action::Own(addresses) => announcer::Event::Own(addresses),
            ownership::Action::Disown(addresses) => announcer::Event::Disown(addresses),
            ownership::Action::Repeat(addresses) => announcer::Event::Repeat(addresses),
            ownership::Action::Ask { address, how } => announcer::Event::Ask { address, how },
            ownership::Action::StopAsking(address) => announcer::Event::StopAsking(address),
        };
        step.flush();
        step.announced(self.announcer.handle(event, now));
    }

    fn tell_report(&self, step: &mut Step) {
        step.flush();
        step.actions.push(Action::Report(self.report.clone()));
    }

    fn send(&self, to: NodeName, payload: Vec<u8>, step: &mut Step) {
        let addresses = self.wanted.peers.as_ref().and_then(|peers| peers.get(&to));
        // IPv4 sorts first, so a dual-stack node is spoken to over IPv4 and a single-stack one over
        // what it has.
        if let Some(&address) = addresses.and_then(BTreeSet::first) {
            step.flush();
            step.actions.push(Action::SendDatagram { to, address, payload });
        }
    }
}

/// What one event leads to.
#[derive(Debug, Default)]
struct Step {
    queue: VecDeque<Next>,
    states: BTreeMap<IpAddr, Option<AddressState>>,
    actions: Vec<Action>,
}

#[derive(Debug)]
enum Next {
    Owned(ownership::Action),
    Heard { address: IpAddr, interface: InterfaceIndex, mac: Mac, form: Heard },
    Silence(IpAddr),
}

impl Step {
    fn owned(&mut self, actions: Vec<ownership::Action>) {
        self.queue.extend(actions.into_iter().map(Next::Owned));
    }

    fn announced(&mut self, actions: Vec<announcer::Action>) {
        for action in actions {
            match action {
                announcer::Action::SendFrame { interface, frame } => {
                    self.actions.push(Action::SendFrame { interface, frame });
                }
                announcer::Action::JoinGroup { interface, group } => {
                    self.actions.push(Action::JoinGroup { interface, group });
                }
                announcer::Action::LeaveGroup { interface, group } => {
                    self.actions.push(Action::LeaveGroup { interface, group });
                }
                announcer::Action::Heard { address, interface, mac, form } => {
                    self.queue.push_back(Next::Heard { address, interface, mac, form });
                }
                announcer::Action::Silence(address) => {
                    self.queue.push_back(Next::Silence(address));
                }
            }
        }
    }

    fn flush(&mut self) {
        if !self.states.is_empty() {
            self.actions.push(Action::Addresses(std::mem::take(&mut self.states)));
        }
    }
}

#[cfg(test)]
mod tests;
