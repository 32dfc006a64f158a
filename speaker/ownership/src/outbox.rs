//! What a step leaves to be done, collected and turned into actions at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::message::{self, Header, Occasion, Sighting};
use crate::peer::Peer;
use crate::{Action, AddressState, Claim, NodeName, Ownership};

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) peers: Vec<Action>,
    /// Addresses whose state may have changed.
    pub(crate) touched: BTreeSet<IpAddr>,
    pub(crate) repeat: BTreeSet<IpAddr>,
    /// [`Action::Ask`] and [`Action::StopAsking`], in their order.
    pub(crate) asks: Vec<Action>,
    /// Own claims to be told to all.
    pub(crate) changed: BTreeSet<IpAddr>,
    /// Rows for single peers.
    pub(crate) rows: BTreeMap<NodeName, BTreeSet<IpAddr>>,
    pub(crate) handovers: BTreeMap<(NodeName, Occasion), BTreeSet<IpAddr>>,
    pub(crate) refusals: BTreeMap<NodeName, Vec<(IpAddr, Claim)>>,
    pub(crate) yields: BTreeMap<NodeName, Vec<(IpAddr, Claim)>>,
    pub(crate) wires: BTreeMap<NodeName, Vec<Sighting>>,
    pub(crate) give_backs: BTreeMap<NodeName, Vec<IpAddr>>,
    /// Peers to compare tables with.
    pub(crate) digests: BTreeSet<NodeName>,
    /// Peers that get a beat at once, by the life that it is meant for.
    pub(crate) beats: BTreeMap<NodeName, u64>,
    /// All get a beat at once: what is said with it depends on what this node is and knows now.
    pub(crate) beat_first: bool,
    /// Bodies for all, made already.
    pub(crate) to_all: Vec<Vec<u8>>,
    /// Bodies for one, made already.
    pub(crate) to_one: Vec<(NodeName, Vec<u8>)>,
}

/// Own claims on their way to all. A thousand that are made one after the other within a moment
/// go in a few datagrams, not in a thousand.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    gathered: BTreeSet<IpAddr>,
    /// When the next datagram may leave; the first one always may.
    from: Option<Instant>,
}

impl Claims {
    const PACE: Duration = Duration::from_millis(1);

    pub(crate) fn next(&self) -> Option<Instant> {
        self.from.filter(|_| !self.gathered.is_empty())
    }

    fn due(&mut self, now: Instant) -> Option<BTreeSet<IpAddr>> {
        if self.gathered.is_empty() || self.from.is_some_and(|from| from > now) {
            return None;
        }
        self.from = Some(now + Self::PACE);
        Some(std::mem::take(&mut self.gathered))
    }
}

impl Ownership {
    /// The end of a step.
    pub(crate) fn report(&mut self, now: Instant) -> Vec<Action> {
        let mut news = std::mem::take(&mut self.outbox);
        let mut actions = std::mem::take(&mut news.peers);
        self.report_states(&news.touched, &mut actions);
        let left = self.has_left();
        self.send(&mut news, now, &mut actions);
        // What a successor is asked to take is announced by the successor alone.
        news.repeat
            .retain(|address| self.announced.contains(address) && !self.is_on_its_way(*address));
        if !news.repeat.is_empty() {
            actions.push(Action::Repeat(news.repeat.into_iter().collect()));
        }
        actions.append(&mut news.asks);
        if left {
            actions.push(Action::Left);
        }
        actions
    }

    /// Says what has become of addresses, and which of them the node answers for now.
    fn report_states(&mut self, touched: &BTreeSet<IpAddr>, actions: &mut Vec<Action>) {
        let (mut own, mut disown) = (Vec::new(), Vec::new());
        for &address in touched {
            let state = self.state(address);
            if self.reported.get(&address) != state.as_ref() {
                match &state {
                    Some(state) => self.reported.insert(address, state.clone()),
                    None => self.reported.remove(&address),
                };
                actions.push(Action::State(address, state));
            }
            if self.answers(address) {
                if self.announced.insert(address) {
                    own.push(address);
                }
            } else if self.announced.remove(&address) {
                disown.push(address);
            }
        }
        if !disown.is_empty() {
            actions.push(Action::Disown(disown));
        }
        if !own.is_empty() {
            actions.push(Action::Own(own));
        }
    }

    /// What is known of an address that is wanted.
    fn state(&self, address: IpAddr) -> Option<AddressState> {
        let entry = self.addresses.get(&address).filter(|entry| entry.wanted.is_some())?;
        Some(AddressState {
            owner: self.table.holder(address).cloned(),
            stage: self.stage(entry),
            epoch: self.table.best(address).map_or(0, |claim| claim.epoch),
            conflict: entry.conflict.clone(),
            proof: entry.proof.clone(),
        })
    }

    fn send(&mut self, news: &mut Outbox, now: Instant, actions: &mut Vec<Action>) {
        self.send_beats(news, now, actions);
        for body in &news.to_all {
            self.send_to_all(body, actions);
        }
        self.claims.gathered.append(&mut news.changed);
        if let Some(addresses) = self.claims.due(now) {
            for body in message::claims(self.rows(&addresses)) {
                self.send_to_all(&body, actions);
            }
        }
        for (to, body) in self.letters(news) {
            self.send_to(to, &body, actions);
        }
    }

    /// What goes to single peers.
    fn letters(&self, news: &mut Outbox) -> Vec<(NodeName, Vec<u8>)> {
        let mut letters = std::mem::take(&mut news.to_one);
        let mut add = |to: &NodeName, bodies: Vec<Vec<u8>>| {
            letters.extend(bodies.into_iter().map(|body| (to.clone(), body)));
        };
        for to in &news.digests {
            add(to, vec![message::digest(self.table.buckets())]);
        }
        for (to, addresses) in &news.rows {
            add(to, message::claims(self.rows(addresses)));
        }
        for ((to, occasion), addresses) in &news.handovers {
            let rows = addresses.iter().filter_map(|at| Some((*at, self.mine(*at)?)));
            add(to, message::handovers(*occasion, rows));
        }
        for (to, rows) in &news.refusals {
            add(to, message::refusals(rows.iter().map(|(address, claim)| (*address, claim))));
        }
        for (to, rows) in &news.yields {
            add(to, message::yields(rows.iter().map(|(address, claim)| (*address, claim))));
        }
        for (to, sightings) in &news.wires {
            add(to, message::wires(sightings));
        }
        for (to, addresses) in &news.give_backs {
            add(to, message::give_backs(addresses));
        }
        letters
    }

    fn rows<'a>(
        &'a self,
        addresses: &'a BTreeSet<IpAddr>,
    ) -> impl Iterator<Item = (IpAddr, &'a Claim)> {
        addresses.iter().filter_map(|address| Some((*address, self.table.best(*address)?)))
    }

    /// A datagram to a peer, meant for the life of it that is known.
    fn send_to(&mut self, to: NodeName, body: &[u8], actions: &mut Vec<Action>) {
        let Some(receiver) = self.peers.get(&to).map(Peer::incarnation) else { return };
        let payload = Header { receiver, ..self.next_header() }.seal(body);
        actions.push(Action::Send { to, payload });
    }

    /// A datagram to every peer that lives.
    fn send_to_all(&mut self, body: &[u8], actions: &mut Vec<Action>) {
        let header = self.next_header();
        actions.extend(self.peers.living().map(|(name, life)| {
            let payload = Header { receiver: life.incarnation, ..header }.seal(body);
            Action::Send { to: name.clone(), payload }
        }));
    }

    /// The copies of one datagram have the same sequence: watchers compare what they heard last.
    pub(crate) fn next_header(&mut self) -> Header {
        self.sequence += 1;
        let (incarnation, sequence) = (self.settings.incarnation, self.sequence);
        Header { incarnation, receiver: 0, sequence }
    }
}
