//! The wire: who answers for an address, and the answering itself, as one value.
//!
//! It joins `layer2::Ownership` (which node owns what) with `layer2::Announcer` (frames) and lives on
//! a thread of its own, so that decoding and planning never delay a heartbeat or an answer. It goes on
//! with the last [`Wanted`] whatever happens to the planner. One exists per speaker.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use layer2::{
    Announcer, Candidates, Interface, InterfaceIndex, InterfaceMatch, NodeName, Ownership,
    OwnershipConfig, announcer, ownership,
};

/// How long a node whose only links came back waits for a peer before it takes anything: while it was
/// cut off its peers fell silent, and that must not pass for their death. Ports that have just come
/// up may take seconds to forward.
const RETURN_WAIT: Duration = Duration::from_secs(2);
/// How long the peers then get to tell what they own.
const CLAIMS_WAIT: Duration = Duration::from_millis(80);

/// What the planner wants on the segment; always the whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    pub addresses: BTreeMap<IpAddr, WantedAddress>,
    /// The other speakers' node addresses. Heartbeats go to the one of the family that the socket
    /// has; a datagram from any other source is dropped.
    pub peers: BTreeMap<NodeName, BTreeSet<IpAddr>>,
}

/// Who may answer for an address, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedAddress {
    pub candidates: Candidates,
    /// The interfaces of this node; meaningful only when this node is a candidate.
    pub interfaces: InterfaceMatch,
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
    SendFrame { interface: InterfaceIndex, frame: Vec<u8> },
    JoinGroup { interface: InterfaceIndex, group: Ipv6Addr },
    LeaveGroup { interface: InterfaceIndex, group: Ipv6Addr },
    SendDatagram { to: NodeName, address: IpAddr, payload: Vec<u8> },
    Report(Report),
}

/// The wire's state as the planner sees it; always the whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Addresses that this node answers for.
    pub owned: BTreeSet<IpAddr>,
    /// The other speakers heard now.
    pub live: BTreeSet<NodeName>,
    pub interfaces: Vec<Interface>,
    /// After [`Event::Leave`]: nothing is owned any more.
    pub left: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Wire {
    me: NodeName,
    wanted: Wanted,
    ownership: Ownership,
    announcer: Announcer,
    report: Report,
    /// The planner has spoken.
    planned: bool,
    /// After a time without a link: until then this node takes nothing.
    returning_until: Option<Instant>,
    leaving: bool,
}

impl Wire {
    /// `incarnation` must be higher at each start of the same node's speaker.
    pub fn new(me: NodeName, incarnation: u64, now: Instant) -> Self {
        let ownership = Ownership::new(OwnershipConfig::new(me.clone(), incarnation), now);
        Self {
            me,
            wanted: Wanted::default(),
            ownership,
            announcer: Announcer::new(),
            report: Report::default(),
            planned: false,
            returning_until: None,
            leaving: false,
        }
    }

    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Wanted(wanted) => self.set_wanted(wanted, now, &mut actions),
            Event::Interfaces(interfaces) => {
                if self.report.interfaces != interfaces {
                    let up = |all: &[Interface]| all.iter().any(|interface| interface.up);
                    if self.planned && !up(&self.report.interfaces) && up(&interfaces) {
                        self.returning_until = Some(now + RETURN_WAIT);
                    }
                    self.report.interfaces.clone_from(&interfaces);
                    self.announce(announcer::Event::Interfaces(interfaces), now, &mut actions);
                    actions.push(Action::Report(self.report.clone()));
                    // Before the planner's first word there is nothing to own: an empty set would
                    // pass for a view of the cluster.
                    if self.planned {
                        self.own(ownership::Event::Wanted(self.candidates()), now, &mut actions);
                    }
                }
            }
            Event::Frame { interface, frame } => {
                self.announce(announcer::Event::Frame { interface, frame }, now, &mut actions);
            }
            Event::Datagram { from, payload } => {
                self.own(ownership::Event::Datagram { from, payload }, now, &mut actions);
            }
            Event::Leave => {
                self.leaving = true;
                self.own(ownership::Event::Leave, now, &mut actions);
                self.note_left(&mut actions);
            }
        }
        actions
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.returning_until.is_some_and(|until| until <= now) {
            self.returning_until = None;
            self.own(ownership::Event::Wanted(self.candidates()), now, &mut actions);
        }
        let owned = self.ownership.handle_timeout(now);
        self.perform_ownership(owned, now, &mut actions);
        let announced = self.announcer.handle_timeout(now);
        actions.extend(announced.into_iter().map(Action::from));
        actions
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.ownership.poll_timeout(), self.announcer.poll_timeout(), self.returning_until]
            .into_iter()
            .flatten()
            .min()
    }

    fn set_wanted(&mut self, wanted: Wanted, now: Instant, actions: &mut Vec<Action>) {
        let first = !std::mem::replace(&mut self.planned, true);
        if self.wanted == wanted && !first {
            return;
        }
        let mine = wanted
            .addresses
            .iter()
            .filter(|(_, address)| address.candidates.nodes.contains(&self.me))
            .map(|(ip, address)| (*ip, address.interfaces.clone()))
            .collect();
        let peers = wanted.peers.keys().cloned().collect();
        self.wanted = wanted;
        self.announce(announcer::Event::Candidates(mine), now, actions);
        self.own(ownership::Event::Peers(peers), now, actions);
        self.own(ownership::Event::Wanted(self.candidates()), now, actions);
    }

    /// Who may own what. This node is left out where it has no interface to answer on: cut off, it
    /// must not claim an address that somebody else now answers for.
    fn candidates(&self) -> BTreeMap<IpAddr, Candidates> {
        let mut all = BTreeMap::new();
        for (address, wanted) in &self.wanted.addresses {
            let mut candidates = wanted.candidates.clone();
            if self.returning_until.is_some() || !self.can_answer(&wanted.interfaces) {
                candidates.nodes.remove(&self.me);
            }
            all.insert(*address, candidates);
        }
        all
    }

    fn can_answer(&self, on: &InterfaceMatch) -> bool {
        self.report.interfaces.iter().filter(|interface| interface.up).any(|interface| match on {
            InterfaceMatch::All => true,
            InterfaceMatch::Only(names) => names.contains(&interface.name),
        })
    }

    fn announce(&mut self, event: announcer::Event<'_>, now: Instant, actions: &mut Vec<Action>) {
        let announced = self.announcer.handle(event, now);
        actions.extend(announced.into_iter().map(Action::from));
    }

    fn own(&mut self, event: ownership::Event<'_>, now: Instant, actions: &mut Vec<Action>) {
        let owned = self.ownership.handle(event, now);
        self.perform_ownership(owned, now, actions);
    }

    fn perform_ownership(
        &mut self,
        owned: Vec<ownership::Action>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        for action in owned {
            match action {
                ownership::Action::Send { to, payload } => self.send(&to, &payload, actions),
                ownership::Action::Own(addresses) => {
                    self.report.owned.clone_from(&addresses);
                    // The report first: frames rest on what it says.
                    actions.push(Action::Report(self.report.clone()));
                    self.announce(announcer::Event::Own(addresses), now, actions);
                    self.note_left(actions);
                }
                ownership::Action::Repeat(addresses) => {
                    self.announce(announcer::Event::Repeat(addresses), now, actions);
                }
                ownership::Action::PeerUp(node) => {
                    self.returning_until =
                        self.returning_until.map(|until| until.min(now + CLAIMS_WAIT));
                    self.report.live.insert(node);
                    actions.push(Action::Report(self.report.clone()));
                }
                ownership::Action::PeerDown(node) => {
                    self.report.live.remove(&node);
                    actions.push(Action::Report(self.report.clone()));
                }
            }
        }
    }

    fn note_left(&mut self, actions: &mut Vec<Action>) {
        if self.leaving && self.report.owned.is_empty() && !self.report.left {
            self.report.left = true;
            actions.push(Action::Report(self.report.clone()));
        }
    }

    fn send(&self, to: &ownership::Recipient, payload: &[u8], actions: &mut Vec<Action>) {
        for (node, addresses) in &self.wanted.peers {
            let meant = match to {
                ownership::Recipient::All => true,
                ownership::Recipient::Node(name) => name == node,
            };
            // IPv4 sorts first, so a dual-stack node is spoken to over IPv4 and a single-stack one
            // over what it has.
            if let (true, Some(address)) = (meant, addresses.first()) {
                actions.push(Action::SendDatagram {
                    to: node.clone(),
                    address: *address,
                    payload: payload.to_vec(),
                });
            }
        }
    }
}

impl From<announcer::Action> for Action {
    fn from(action: announcer::Action) -> Self {
        match action {
            announcer::Action::SendFrame { interface, frame } => {
                Self::SendFrame { interface, frame }
            }
            announcer::Action::JoinGroup { interface, group } => {
                Self::JoinGroup { interface, group }
            }
            announcer::Action::LeaveGroup { interface, group } => {
                Self::LeaveGroup { interface, group }
            }
        }
    }
}

#[cfg(test)]
mod tests;
