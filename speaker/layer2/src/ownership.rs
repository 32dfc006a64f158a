//! Agrees with the other speakers which node answers for an address.
//!
//! Speakers tell each other by datagrams that they live and what they hold; nobody else is asked. A
//! claim is a pair of an epoch and a node, the higher epoch wins, and a claim counts only while its
//! node lives. Whoever answers goes on answering; an address that nobody answers for is taken by
//! the first in an order that every speaker computes alike. Where datagrams are lost between nodes
//! that both live, both answer until they hear each other: availability goes before consistency.
//!
//! It is the first form of the protocol: every speaker hears every other, nobody probes the wire
//! before it takes an address, and datagrams are trusted as far as the caller's transport vouches
//! for their sender. Nothing is remembered over a restart.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::message::{ClaimState, Message, Row, Standing};

/// A beat may be late by this much beside those that are lost.
const SLACK: Duration = Duration::from_millis(10);

/// How long the first speakers of a cluster wait for the other candidates before they divide the
/// addresses.
const FIRST_CLAIM_WAIT: Duration = Duration::from_secs(2);

/// How long an address that is offered is answered for without a successor.
const HAND_OVER: Duration = Duration::from_millis(500);

/// How many beats repeat what has changed, against loss.
const REPETITIONS: u8 = 3;

/// The largest step of an epoch that is believed.
const MAX_EPOCH_STEP: u64 = 1 << 32;

/// Claims for addresses outside the own view are kept for as long as the table is smaller than
/// this.
const MAX_ADDRESSES: usize = 100_000;

const LOWEST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const HIGHEST: IpAddr = IpAddr::V6(Ipv6Addr::from_bits(u128::MAX));

/// The name of a node.
pub type NodeName = Arc<str>;

/// Who may own an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates {
    /// The nodes that may.
    pub nodes: BTreeSet<NodeName>,
    /// The score of nodes that are preferred or shunned; a node that is not named has 0.
    pub preference: BTreeMap<NodeName, i32>,
}

/// What a speaker needs to know of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipConfig {
    /// This node.
    pub me: NodeName,
    /// Which life of the speaker this is; each one's is higher than that of the one before.
    pub incarnation: u64,
    /// The time between two beats (T), the same on all nodes and more than zero.
    pub interval: Duration,
    /// How many missed beats make a peer dead (m), at least 1.
    pub misses: u32,
}

impl OwnershipConfig {
    /// The default profile: a beat every 40 ms, dead after 4 of them.
    pub fn new(me: NodeName, incarnation: u64) -> Self {
        Self { me, incarnation, interval: Duration::from_millis(40), misses: 4 }
    }

    /// How long a peer may be silent.
    fn patience(&self) -> Duration {
        self.interval * self.misses + SLACK
    }

    /// How long a new speaker claims nothing.
    fn listening(&self) -> Duration {
        self.interval * self.misses * 2
    }

    /// How long the next in the order leaves an address to the one before it.
    fn turn(&self) -> Duration {
        self.interval * 4
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// All addresses to be owned by somebody, and by whom they may be.
    Wanted(BTreeMap<IpAddr, Candidates>),
    /// All other nodes with a speaker.
    Peers(BTreeSet<NodeName>),
    /// A datagram arrived.
    Datagram {
        /// The node that the transport says it is from.
        from: &'a str,
        /// Its content.
        payload: &'a [u8],
    },
    /// The speaker is to end: hand everything over. Done when nothing is owned any more, 500 ms
    /// later at most.
    Leave,
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram.
    Send {
        /// To whom.
        to: Recipient,
        /// Its content, at most 1,200 octets.
        payload: Vec<u8>,
    },
    /// All addresses that are this node's now; whenever they change.
    Own(BTreeSet<IpAddr>),
    /// Somebody else has just stopped answering for these addresses of ours: announce them again.
    Repeat(BTreeSet<IpAddr>),
    /// A peer lives, again, or anew after a restart that was not noticed otherwise.
    PeerUp(NodeName),
    /// A peer is dead, or no peer any more.
    PeerDown(NodeName),
}

/// To whom a datagram goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recipient {
    /// Every peer.
    All,
    /// One peer.
    Node(NodeName),
}

/// What was counted since the speaker started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that could not be read.
    pub malformed: u64,
    /// Datagrams from a node that is no peer.
    pub strangers: u64,
    /// Datagrams of a former life of their sender.
    pub stale: u64,
    /// Claims with an epoch that no honest history leads to, or for more addresses than are kept.
    pub refused: u64,
    /// Peers that were taken for dead and turned out to have lived on.
    pub false_verdicts: u64,
    /// Addresses lost to a higher claim.
    pub yielded: u64,
}

/// The core that claims and gives up.
#[derive(Debug)]
pub struct Ownership {
    config: OwnershipConfig,
    standing: Standing,
    view: View,
    listening_until: Instant,
    ready_since: Instant,
    /// When first claims wait no longer; `None` before the listening ends and after that moment.
    first_claims_at: Option<Instant>,
    next_beat: Instant,
    sequence: u64,
    cursor: IpAddr,
    peers: BTreeMap<NodeName, Peer>,
    addresses: BTreeMap<IpAddr, Address>,
    held: BTreeMap<IpAddr, Holding>,
    timers: BTreeSet<(Instant, IpAddr)>,
    urgent: BTreeMap<IpAddr, u8>,
    news: News,
    counters: Counters,
}

impl Ownership {
    /// A speaker that starts now. It listens before it claims anything.
    pub fn new(config: OwnershipConfig, now: Instant) -> Self {
        let listening_until = now + config.listening();
        Self {
            config,
            standing: Standing::Listening,
            view: View::Unknown,
            listening_until,
            ready_since: listening_until,
            first_claims_at: None,
            next_beat: now,
            sequence: 0,
            cursor: LOWEST,
            peers: BTreeMap::new(),
            addresses: BTreeMap::new(),
            held: BTreeMap::new(),
            timers: BTreeSet::new(),
            urgent: BTreeMap::new(),
            news: News::default(),
            counters: Counters::default(),
        }
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        self.forgive_own_pause(now);
        match event {
            Event::Wanted(wanted) => self.set_wanted(wanted, now),
            Event::Peers(names) => self.set_peers(names, now),
            Event::Datagram { from, payload } => self.receive(from, payload, now),
            Event::Leave => self.leave(now),
        }
        self.finish(now)
    }

    /// Does what is due: beats, verdicts, claims.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        self.forgive_own_pause(now);
        self.bury_the_silent(now);
        self.stop_listening(now);
        if self.first_claims_at.is_some_and(|at| at <= now) {
            self.first_claims_at = None;
            self.news.replan = true;
        }
        self.finish(now)
    }

    /// When `handle_timeout` has something to do next; there always is a next beat.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = self.peers.values().filter_map(|peer| Some(peer.living()?.deadline));
        let timers = self.timers.first().map(|&(at, _)| at);
        let listening = match (self.standing, self.view) {
            (Standing::Listening, View::Known) => Some(self.listening_until),
            (Standing::Listening, View::Unknown) | (Standing::Ready | Standing::Leaving, _) => None,
        };
        deadlines
            .chain(timers)
            .chain(listening)
            .chain(self.first_claims_at)
            .chain([self.next_beat])
            .min()
    }

    /// Who answers for an address, as far as this node knows.
    pub fn owner(&self, address: IpAddr) -> Option<&NodeName> {
        self.addresses.get(&address)?.owner.as_ref()
    }

    /// The peers that live.
    pub fn live_peers(&self) -> impl Iterator<Item = &NodeName> {
        self.peers.iter().filter(|(_, peer)| peer.living().is_some()).map(|(name, _)| name)
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A loop that comes back late knows nothing of what the peers did meanwhile.
    fn forgive_own_pause(&mut self, now: Instant) {
        if now > self.next_beat + self.config.interval {
            let deadline = now + self.config.patience();
            for life in self.peers.values_mut().filter_map(|peer| peer.life.as_mut()) {
                life.deadline = deadline;
            }
        }
    }

    fn set_wanted(&mut self, mut wanted: BTreeMap<IpAddr, Candidates>, now: Instant) {
        self.view = View::Known;
        for address in wanted.keys() {
            self.addresses.entry(*address).or_default();
        }
        let mut changed = Vec::new();
        for (address, entry) in &mut self.addresses {
            let candidates = wanted.remove(address);
            if entry.wanted != candidates {
                entry.wanted = candidates;
                changed.push(*address);
            }
        }
        for address in changed {
            self.settle(address, Vacated::Suddenly, now);
        }
        self.news.replan = true;
        self.stop_listening(now);
    }

    fn set_peers(&mut self, mut names: BTreeSet<NodeName>, now: Instant) {
        names.remove(&self.config.me);
        let gone: Vec<_> =
            self.peers.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            if let Some(peer) = self.peers.remove(&name) {
                if peer.living().is_some() {
                    self.news.peers.push(Action::PeerDown(name.clone()));
                }
                self.forget_claims(&name, peer.claims, now);
            }
        }
        for name in names {
            self.peers.entry(name).or_default();
        }
        self.news.replan = true;
    }

    fn receive(&mut self, from: &str, payload: &[u8], now: Instant) {
        let Some((name, peer)) = self.peers.get_key_value(from) else {
            self.counters.strangers += 1;
            return;
        };
        let Ok(message) = Message::decode(payload) else {
            self.counters.malformed += 1;
            return;
        };
        let known = peer.life.as_ref();
        if known.is_some_and(|life| message.incarnation < life.incarnation) {
            self.counters.stale += 1;
            return;
        }
        let name = name.clone();
        let same_life = known.is_some_and(|life| life.incarnation == message.incarnation);
        let before = known.filter(|_| same_life).map(|life| (life.verdict, life.prospect()));
        if !same_life {
            self.begin_life(&name, &message, now);
        }
        self.read_rows(&name, &message, now);

        let deadline = now + self.config.patience();
        let Some(life) = self.peers.get_mut(&name).and_then(|peer| peer.life.as_mut()) else {
            return;
        };
        // A datagram that was overtaken, or is played back, proves nothing about the present.
        if message.sequence > life.sequence || !same_life {
            life.sequence = message.sequence;
            life.standing = message.standing;
            life.introduced |= life.answering >= message.claimed;
            life.deadline = deadline;
            life.verdict = Verdict::Lives;
        }
        let after = (life.verdict, life.prospect());
        if before == Some(after) {
            return;
        }
        self.news.replan = true;
        if let Some((Verdict::Dead, _)) = before
            && after.0 == Verdict::Lives
        {
            self.counters.false_verdicts += 1;
            self.settle_claims_of(&name, now);
        }
        if before.map(|(verdict, _)| verdict) != Some(after.0) {
            self.news.peers.push(Action::PeerUp(name.clone()));
            self.news.newcomers.insert(name);
        }
    }

    /// A new life ends the one before at once, and what was claimed in it.
    fn begin_life(&mut self, name: &NodeName, message: &Message, now: Instant) {
        let life = Life {
            incarnation: message.incarnation,
            sequence: message.sequence,
            standing: message.standing,
            answering: 0,
            introduced: false,
            deadline: now + self.config.patience(),
            verdict: Verdict::Lives,
        };
        if let Some(peer) = self.peers.get_mut(name) {
            peer.life = Some(life);
            let claims = std::mem::take(&mut peer.claims);
            self.forget_claims(name, claims, now);
        }
    }

    fn forget_claims(&mut self, name: &str, claims: BTreeMap<IpAddr, Claim>, now: Instant) {
        for address in claims.into_keys() {
            if let Some(entry) = self.addresses.get_mut(&address) {
                entry.claimants.remove(name);
            }
            self.settle(address, Vacated::Suddenly, now);
        }
    }

    fn settle_claims_of(&mut self, name: &str, now: Instant) {
        let claims: Option<Vec<_>> =
            self.peers.get(name).map(|peer| peer.claims.keys().copied().collect());
        for address in claims.unwrap_or_default() {
            self.settle(address, Vacated::Suddenly, now);
        }
    }

    fn read_rows(&mut self, name: &NodeName, message: &Message, now: Instant) {
        for row in &message.rows {
            self.read_row(name, *row, message.sequence, now);
        }
        let Some(span) = message.span.clone() else { return };
        let Some(peer) = self.peers.get(name) else { return };
        let unsaid: Vec<_> = peer
            .claims
            .range(span)
            .filter(|(_, claim)| claim.sequence < message.sequence && claim.state.answers())
            .map(|(&address, claim)| Row {
                address,
                state: ClaimState::Released,
                epoch: claim.epoch,
            })
            .collect();
        for row in unsaid {
            self.read_row(name, row, message.sequence, now);
        }
    }

    fn read_row(&mut self, name: &NodeName, row: Row, sequence: u64, now: Instant) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let Some(life) = peer.life.as_mut() else { return };
        let address = row.address;
        let known = peer.claims.get_mut(&address);
        let before = known.as_ref().map(|claim| claim.state);
        if let Some(claim) = known {
            if claim.sequence >= sequence {
                return;
            }
            claim.sequence = sequence;
            if (claim.state, claim.epoch) == (row.state, row.epoch) {
                if row.state == ClaimState::Held {
                    self.contradict(address);
                }
                return;
            }
        } else if !row.state.answers() {
            return;
        }
        let full = self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(&address);
        let top = self.addresses.get(&address).map_or(0, |entry| entry.top_epoch);
        if full || row.epoch > top.saturating_add(MAX_EPOCH_STEP) {
            self.counters.refused += 1;
            return;
        }
        let entry = self.addresses.entry(address).or_default();
        entry.top_epoch = top.max(row.epoch);
        let answered = before.is_some_and(ClaimState::answers);
        match (answered, row.state.answers()) {
            (false, true) => {
                entry.claimants.insert(name.clone());
                life.answering += 1;
            }
            (true, false) => {
                entry.claimants.remove(name);
                life.answering = life.answering.saturating_sub(1);
            }
            (false, false) | (true, true) => {}
        }
        peer.claims.insert(address, Claim { state: row.state, epoch: row.epoch, sequence });
        let vacated = match row.state {
            ClaimState::Held | ClaimState::Offered => Vacated::Suddenly,
            ClaimState::Released => Vacated::Quietly,
        };
        self.settle(address, vacated, now);
        match row.state {
            ClaimState::Held => self.contradict(address),
            ClaimState::Released if answered && self.holds(address) => {
                self.news.repeat.insert(address);
            }
            ClaimState::Offered | ClaimState::Released => {}
        }
    }

    /// Somebody else says that he holds what is held here: he has not heard of it.
    fn contradict(&mut self, address: IpAddr) {
        if self.holds(address) {
            self.urgent.entry(address).or_insert(1);
        }
    }

    fn holds(&self, address: IpAddr) -> bool {
        matches!(self.held.get(&address), Some(Holding::Owner { .. }))
    }

    fn leave(&mut self, now: Instant) {
        self.standing = Standing::Leaving;
        self.news.replan = true;
        let held: Vec<_> = self.held.keys().copied().collect();
        for address in held {
            self.settle(address, Vacated::Suddenly, now);
        }
    }

    fn bury_the_silent(&mut self, now: Instant) {
        let mut dead = Vec::new();
        for (name, peer) in &mut self.peers {
            if let Some(life) = &mut peer.life
                && life.verdict == Verdict::Lives
                && life.deadline <= now
            {
                life.verdict = Verdict::Dead;
                dead.push(name.clone());
            }
        }
        for name in dead {
            self.settle_claims_of(&name, now);
            self.news.peers.push(Action::PeerDown(name));
            self.news.replan = true;
        }
    }

    fn stop_listening(&mut self, now: Instant) {
        if self.standing == Standing::Listening
            && self.view == View::Known
            && self.listening_until <= now
        {
            self.standing = Standing::Ready;
            self.ready_since = now;
            self.first_claims_at = Some(now + FIRST_CLAIM_WAIT);
            self.news.replan = true;
        }
    }

    /// Draws the conclusions for one address after anything about it has changed.
    fn settle(&mut self, address: IpAddr, vacated: Vacated, now: Instant) {
        let rival = self.best_claim(address);
        self.settle_holding(address, rival.as_ref(), now);
        let Some(entry) = self.addresses.get_mut(&address) else { return };
        let holder = match self.held.get(&address) {
            Some(Holding::Owner { .. }) => Some(self.config.me.clone()),
            Some(Holding::HandingOver { .. }) | None => rival.map(|(_, name)| name),
        };
        let vacant = entry.wanted.is_some() && holder.is_none();
        if vacant && entry.vacancy.is_none() {
            let ready = match vacated {
                _ if entry.top_epoch == 0 => None,
                Vacated::Suddenly => Some(now),
                Vacated::Quietly => Some(now + self.config.turn()),
            };
            entry.vacancy = Some(Vacancy { ready });
            entry.wave = Some(now);
            self.news.replan = true;
        }
        if !vacant && entry.vacancy.take().is_some() {
            self.set_timer(address, None);
        }
        let owner = holder.or_else(|| self.last_answerer(address));
        if let Some(entry) = self.addresses.get_mut(&address) {
            entry.owner = owner;
            let forgotten = entry.wanted.is_none() && entry.owner.is_none();
            if forgotten && entry.claimants.is_empty() {
                self.set_timer(address, None);
                self.addresses.remove(&address);
                for peer in self.peers.values_mut() {
                    peer.claims.remove(&address);
                }
            }
        }
    }

    /// Whether what is held here is held on, offered or given up.
    fn settle_holding(
        &mut self,
        address: IpAddr,
        rival: Option<&(Strength, NodeName)>,
        now: Instant,
    ) {
        let Some(&holding) = self.held.get(&address) else { return };
        let epoch = holding.epoch();
        let wanted = self.addresses.get(&address).and_then(|entry| entry.wanted.as_ref());
        let keep = self.standing != Standing::Leaving
            && wanted.is_some_and(|candidates| candidates.nodes.contains(&self.config.me));
        let mine = strength(epoch, &self.config.me, address);
        match holding {
            Holding::Owner { .. } if rival.is_some_and(|(theirs, _)| *theirs > mine) => {
                self.counters.yielded += 1;
                self.release(address);
            }
            Holding::HandingOver { .. } if rival.is_some() => self.release(address),
            // Nobody wants it any more, so nobody is to take it.
            Holding::Owner { .. } | Holding::HandingOver { .. } if wanted.is_none() => {
                self.release(address);
            }
            Holding::Owner { .. } if !keep => {
                let until = now + HAND_OVER;
                self.held.insert(address, Holding::HandingOver { epoch });
                self.news.changed.insert(address);
                self.set_timer(address, Some(until));
            }
            Holding::HandingOver { .. } if keep => {
                self.held.insert(address, Holding::Owner { epoch });
                self.news.changed.insert(address);
                self.set_timer(address, None);
            }
            Holding::Owner { .. } | Holding::HandingOver { .. } => {}
        }
    }

    fn release(&mut self, address: IpAddr) {
        self.held.remove(&address);
        self.set_timer(address, None);
        self.news.changed.insert(address);
        self.news.own = true;
    }

    /// The strongest claim in force of a peer that means to keep it.
    fn best_claim(&self, address: IpAddr) -> Option<(Strength, NodeName)> {
        self.claims_in_force(address)
            .filter(|(_, claim)| claim.state == ClaimState::Held)
            .map(|(name, claim)| (strength(claim.epoch, name, address), name.clone()))
            .max()
    }

    /// Who answers while nobody means to keep the address.
    fn last_answerer(&self, address: IpAddr) -> Option<NodeName> {
        let me = self.held.get(&address).map(|holding| (holding.epoch(), &self.config.me));
        let peers = self.claims_in_force(address).map(|(name, claim)| (claim.epoch, name));
        peers.chain(me).max().map(|(_, name)| name.clone())
    }

    fn claims_in_force(&self, address: IpAddr) -> impl Iterator<Item = (&NodeName, &Claim)> {
        let claimants = self.addresses.get(&address).into_iter().flat_map(|entry| &entry.claimants);
        claimants.filter_map(move |name| {
            let peer = self.peers.get(name)?;
            peer.living()?;
            Some((name, peer.claims.get(&address)?))
        })
    }

    fn set_timer(&mut self, address: IpAddr, at: Option<Instant>) {
        if let Some(entry) = self.addresses.get_mut(&address) {
            if let Some(before) = std::mem::replace(&mut entry.timer, at) {
                self.timers.remove(&(before, address));
            }
            self.timers.extend(at.map(|at| (at, address)));
        }
    }

    fn finish(&mut self, now: Instant) -> Vec<Action> {
        self.run_timers(now);
        while std::mem::take(&mut self.news.replan) {
            self.plan(now);
            self.run_timers(now);
        }
        self.report(now)
    }

    fn run_timers(&mut self, now: Instant) {
        while let Some(&(at, address)) = self.timers.first()
            && at <= now
        {
            self.set_timer(address, None);
            if self.held.contains_key(&address) {
                self.release(address);
                self.settle(address, Vacated::Quietly, now);
            } else {
                self.claim(address, now);
            }
        }
    }

    fn claim(&mut self, address: IpAddr, now: Instant) {
        if let Some(entry) = self.addresses.get_mut(&address) {
            entry.top_epoch = entry.top_epoch.saturating_add(1);
            self.held.insert(address, Holding::Owner { epoch: entry.top_epoch });
            self.news.own = true;
            self.news.changed.insert(address);
            self.settle(address, Vacated::Suddenly, now);
        }
    }

    /// Decides for every vacant address when this node takes it, if nobody else has by then.
    ///
    /// Addresses that became vacant together are a wave. They are dealt out in their order, each to
    /// the live candidate with the best score, then the fewest addresses, then the smallest rank.
    /// Those of the wave that are taken already count for their taker at their place in the order
    /// only: so speakers that look a moment earlier or later come to the same result.
    fn plan(&mut self, now: Instant) {
        self.end_waits(now);
        let open: BTreeSet<_> = self
            .addresses
            .values()
            .filter(|entry| entry.vacancy.is_some_and(|vacancy| vacancy.ready.is_some()))
            .filter_map(|entry| entry.wave)
            .collect();
        if open.is_empty() {
            return;
        }
        let mut loads = Loads::new();
        let mut waves: BTreeMap<Instant, Vec<(IpAddr, &Address)>> = BTreeMap::new();
        for (address, entry) in &self.addresses {
            if let Some(wave) = entry.wave.filter(|wave| open.contains(wave)) {
                waves.entry(wave).or_default().push((*address, entry));
            } else if let (Some(owner), None) = (&entry.owner, entry.vacancy) {
                *loads.entry(owner).or_default() += 1;
            }
        }
        let mut turns = Vec::new();
        for (address, entry) in waves.into_values().flatten() {
            let Some(vacancy) = entry.vacancy else {
                if let Some(owner) = &entry.owner {
                    *loads.entry(owner).or_default() += 1;
                }
                continue;
            };
            let order = self.order(address, entry, &loads);
            let place = order.iter().position(|name| **name == self.config.me);
            let turn = place.zip(vacancy.ready).map(|(place, ready)| {
                let turns = u32::try_from(place).unwrap_or(u32::MAX);
                ready.max(self.ready_since) + self.config.turn().saturating_mul(turns)
            });
            if let Some(&first) = order.first() {
                *loads.entry(first).or_default() += 1;
            }
            if !self.held.contains_key(&address) {
                turns.push((address, turn));
            }
        }
        for (address, turn) in turns {
            self.set_timer(address, turn);
        }
    }

    /// Lets first claims be made. Speakers that start together wait until all candidates are heard,
    /// or the first to start would take everything; but no longer than for a time, and not for
    /// those that are silent where others have divided addresses between the same candidates
    /// already.
    fn end_waits(&mut self, now: Instant) {
        if self.standing != Standing::Ready {
            return;
        }
        let patient = now < self.ready_since + FIRST_CLAIM_WAIT;
        let all_known = self.peers.values().filter_map(Peer::living).all(Life::is_known);
        let waiting = || self.addresses.iter().filter(|(_, entry)| entry.waits());
        if waiting().next().is_none() {
            return;
        }
        let divided: BTreeSet<_> = self
            .addresses
            .values()
            .filter(|entry| entry.vacancy.is_none())
            .filter_map(|entry| Some(&entry.wanted.as_ref()?.nodes))
            .collect();
        let known = |name: &NodeName| {
            *name == self.config.me
                || self.peers.get(name).and_then(Peer::living).is_some_and(Life::is_known)
        };
        let over: Vec<_> = waiting()
            .filter(|(_, entry)| {
                entry.wanted.as_ref().is_some_and(|wanted| {
                    !patient
                        || (all_known && divided.contains(&wanted.nodes))
                        || wanted.nodes.iter().all(known)
                })
            })
            .map(|(address, _)| *address)
            .collect();
        for address in over {
            if let Some(entry) = self.addresses.get_mut(&address) {
                entry.vacancy = Some(Vacancy { ready: Some(now) });
            }
        }
    }

    /// The live candidates of an address, the one that is to take it first.
    fn order<'a>(
        &'a self,
        address: IpAddr,
        entry: &'a Address,
        loads: &Loads<'_>,
    ) -> Vec<&'a NodeName> {
        let Some(wanted) = &entry.wanted else { return Vec::new() };
        let mut order: Vec<_> = wanted
            .nodes
            .iter()
            .filter(|name| self.may_take(name, entry))
            .map(|name| {
                let preference = wanted.preference.get(name).copied().unwrap_or(0);
                let load = loads.get(&**name).copied().unwrap_or(0);
                (Reverse(preference), load, rank(name, address), name)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(.., name)| name).collect()
    }

    /// Whether a node lives, claims what falls to it, and is not just giving this address away.
    fn may_take(&self, name: &NodeName, entry: &Address) -> bool {
        let standing = if *name == self.config.me {
            self.standing
        } else if let Some(life) = self.peers.get(name).and_then(Peer::living) {
            life.standing
        } else {
            return false;
        };
        standing == Standing::Ready && !entry.claimants.contains(name)
    }

    /// Turns the news into actions, and beats if it is time.
    fn report(&mut self, now: Instant) -> Vec<Action> {
        let news = std::mem::take(&mut self.news);
        let mut actions = news.peers;
        if news.own {
            actions.push(Action::Own(self.held.keys().copied().collect()));
        }
        if !news.repeat.is_empty() {
            actions.push(Action::Repeat(news.repeat));
        }
        if self.peers.is_empty() {
            self.urgent.clear();
        } else {
            let changed: Vec<_> = news.changed.iter().map(|&address| self.row(address)).collect();
            self.send_rows(changed, &mut actions);
            self.urgent.extend(news.changed.into_iter().map(|address| (address, REPETITIONS)));
            for name in news.newcomers {
                self.send_table(&name, &mut actions);
            }
        }
        if now >= self.next_beat {
            while self.next_beat <= now {
                self.next_beat += self.config.interval;
            }
            if !self.peers.is_empty() {
                let payload = self.beat().encode();
                actions.push(Action::Send { to: Recipient::All, payload });
            }
        }
        actions
    }

    fn send_rows(&mut self, rows: Vec<Row>, actions: &mut Vec<Action>) {
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let mut message = self.message();
            let mut room = message.room();
            while let Some(row) = rows.next_if(|row| Row::length(row.address) <= room) {
                room -= Row::length(row.address);
                message.rows.push(row);
            }
            actions.push(Action::Send { to: Recipient::All, payload: message.encode() });
        }
    }

    /// Everything held here, for a peer that has just come.
    fn send_table(&mut self, name: &NodeName, actions: &mut Vec<Action>) {
        let mut from = LOWEST;
        loop {
            let mut message = self.message();
            let end = self.fill_span(&mut message, from);
            let to = Recipient::Node(name.clone());
            actions.push(Action::Send { to, payload: message.encode() });
            if end == HIGHEST {
                break;
            }
            from = end;
        }
    }

    /// What has changed lately, and the next part of what is held here.
    fn beat(&mut self) -> Message {
        let mut message = self.message();
        let mut room = message.room() / 2;
        let mut said = Vec::new();
        for &address in self.urgent.keys() {
            if Row::length(address) > room {
                break;
            }
            room -= Row::length(address);
            said.push(address);
        }
        for address in said {
            message.rows.push(self.row(address));
            if let Some(left) = self.urgent.get_mut(&address) {
                *left -= 1;
                if *left == 0 {
                    self.urgent.remove(&address);
                }
            }
        }
        let end = self.fill_span(&mut message, self.cursor);
        self.cursor = if end == HIGHEST { LOWEST } else { end };
        message
    }

    /// Says all that is held from `from` on, as far as there is room, and returns how far that is.
    fn fill_span(&self, message: &mut Message, from: IpAddr) -> IpAddr {
        message.span = Some(from..=HIGHEST);
        let mut room = message.room();
        let mut end = from;
        for &address in self.held.range(from..).map(|(address, _)| address) {
            if Row::length(address) > room {
                message.span = Some(from..=end);
                return end;
            }
            room -= Row::length(address);
            message.rows.push(self.row(address));
            end = address;
        }
        HIGHEST
    }

    fn row(&self, address: IpAddr) -> Row {
        match self.held.get(&address) {
            Some(&Holding::Owner { epoch }) => Row { address, state: ClaimState::Held, epoch },
            Some(&Holding::HandingOver { epoch }) => {
                Row { address, state: ClaimState::Offered, epoch }
            }
            None => {
                let top = self.addresses.get(&address).map_or(1, |entry| entry.top_epoch);
                Row { address, state: ClaimState::Released, epoch: top.max(1) }
            }
        }
    }

    fn message(&mut self) -> Message {
        self.sequence += 1;
        Message {
            standing: self.standing,
            incarnation: self.config.incarnation,
            sequence: self.sequence,
            claimed: u32::try_from(self.held.len()).unwrap_or(u32::MAX),
            span: None,
            rows: Vec::new(),
        }
    }
}

/// Whether the addresses that are wanted have been told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Unknown,
    Known,
}

/// What events leave behind for the end of a step.
#[derive(Debug, Default)]
struct News {
    replan: bool,
    own: bool,
    changed: BTreeSet<IpAddr>,
    repeat: BTreeSet<IpAddr>,
    peers: Vec<Action>,
    newcomers: BTreeSet<NodeName>,
}

#[derive(Debug, Default)]
struct Peer {
    /// `None` until it has been heard.
    life: Option<Life>,
    /// Its last word on every address it ever claimed in this life.
    claims: BTreeMap<IpAddr, Claim>,
}

impl Peer {
    fn living(&self) -> Option<&Life> {
        self.life.as_ref().filter(|life| life.verdict == Verdict::Lives)
    }
}

#[derive(Debug)]
struct Life {
    incarnation: u64,
    sequence: u64,
    standing: Standing,
    /// For how many addresses it is known to answer.
    answering: u32,
    /// Those were all at one time. What it has claimed since then it has told at once.
    introduced: bool,
    deadline: Instant,
    verdict: Verdict,
}

impl Life {
    /// It takes part, and what it held when it was first heard is known.
    fn is_known(&self) -> bool {
        self.standing != Standing::Listening && self.introduced
    }

    /// What plans depend on beside its claims.
    fn prospect(&self) -> (Standing, bool, bool) {
        (self.standing, self.introduced, self.answering > 0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Lives,
    Dead,
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    state: ClaimState,
    epoch: u64,
    /// Of the datagram that said so: those that it has overtaken do not count.
    sequence: u64,
}

#[derive(Debug, Default)]
struct Address {
    wanted: Option<Candidates>,
    /// The peers, living or dead, that were last heard to answer for it.
    claimants: BTreeSet<NodeName>,
    /// The highest epoch ever seen; 0 if nobody ever claimed it.
    top_epoch: u64,
    owner: Option<NodeName>,
    vacancy: Option<Vacancy>,
    /// When it last became vacant: it was dealt out with those of the same instant.
    wave: Option<Instant>,
    /// When it is claimed, or given up.
    timer: Option<Instant>,
}

impl Address {
    /// Nobody ever claimed it, and it is not time to yet.
    fn waits(&self) -> bool {
        self.vacancy.is_some_and(|vacancy| vacancy.ready.is_none())
    }
}

#[derive(Debug, Clone, Copy)]
struct Vacancy {
    /// From when on the candidates take their turns; `None` while those of a first claim are
    /// waited for.
    ready: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum Holding {
    Owner { epoch: u64 },
    HandingOver { epoch: u64 },
}

impl Holding {
    fn epoch(self) -> u64 {
        match self {
            Self::Owner { epoch } | Self::HandingOver { epoch } => epoch,
        }
    }
}

/// How an address lost its owner.
#[derive(Debug, Clone, Copy)]
enum Vacated {
    /// It died or offers the address: take it at once.
    Suddenly,
    /// It stopped without looking for a successor, most likely because the address is not wanted
    /// any more and that has not been heard of here. A turn is left for it to be heard.
    Quietly,
}

/// How many addresses each node answers for.
type Loads<'a> = BTreeMap<&'a str, usize>;

/// Claims in the order in which they win, the strongest last.
type Strength = (u64, Reverse<[u8; 32]>);

fn strength(epoch: u64, node: &str, address: IpAddr) -> Strength {
    (epoch, Reverse(rank(node, address)))
}

/// The place of a node for an address when neither preference nor load decides, smaller first: the
/// SHA-256 of node, "#" and address, by which MetalLB elects.
pub fn rank(node: &str, address: IpAddr) -> [u8; 32] {
    Sha256::digest(format!("{node}#{address}")).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::epoch;

    const PEER: &str = "b";

    fn address() -> IpAddr {
        "192.0.2.10".parse().unwrap()
    }

    /// Node "a", ready, with "b" as its peer and one address that both may own.
    fn ready(now: Instant) -> Ownership {
        let mut core = Ownership::new(OwnershipConfig::new("a".into(), 1), now);
        let nodes = ["a".into(), PEER.into()].into();
        let candidates = Candidates { nodes, ..Candidates::default() };
        core.handle(Event::Peers([PEER.into()].into()), now);
        core.handle(Event::Wanted([(address(), candidates)].into()), now);
        core.handle_timeout(now + Duration::from_millis(320));
        core
    }

    fn message(incarnation: u64, sequence: u64, rows: Vec<Row>) -> Message {
        let standing = Standing::Ready;
        Message { standing, incarnation, sequence, claimed: 1, span: None, rows }
    }

    fn held(epoch: u64) -> Row {
        Row { address: address(), state: ClaimState::Held, epoch }
    }

    fn tell(core: &mut Ownership, message: &Message, now: Instant) -> Vec<Action> {
        core.handle(Event::Datagram { from: PEER, payload: &message.encode() }, now)
    }

    #[test]
    fn the_rank_is_metallbs() {
        let digest = rank("node-1", address());
        // printf 'node-1#192.0.2.10' | sha256sum
        assert_eq!(digest[..4], [0x60, 0x24, 0x62, 0x0c]);
    }

    #[test]
    fn bad_datagrams_are_counted_and_change_nothing() {
        let now = epoch() + Duration::from_millis(330);
        let mut core = ready(epoch());
        core.handle(Event::Datagram { from: PEER, payload: b"BTH\x01" }, now);
        assert_eq!(core.counters().malformed, 1);
        core.handle(Event::Datagram { from: "c", payload: &message(1, 1, vec![]).encode() }, now);
        core.handle(Event::Datagram { from: "a", payload: &message(1, 1, vec![]).encode() }, now);
        assert_eq!(core.counters().strangers, 2);
        assert_eq!(core.live_peers().count(), 0);
        tell(&mut core, &message(5, 1, vec![]), now);
        tell(&mut core, &message(4, 9, vec![held(7)]), now);
        assert_eq!(core.counters().stale, 1);
        assert_eq!(core.owner(address()), None);
        tell(&mut core, &message(5, 2, vec![held((1 << 32) + 1)]), now);
        assert_eq!((core.counters().refused, core.owner(address())), (1, None));
        tell(&mut core, &message(5, 3, vec![held(1 << 32)]), now);
        assert_eq!(core.owner(address()).unwrap().as_ref(), PEER);
    }

    #[test]
    fn what_was_overtaken_or_is_played_back_does_not_count() {
        let now = epoch() + Duration::from_millis(330);
        let mut core = ready(epoch());
        let released = Row { state: ClaimState::Released, ..held(3) };
        tell(&mut core, &message(1, 1, vec![held(3)]), now);
        tell(&mut core, &message(1, 5, vec![released]), now);
        tell(&mut core, &message(1, 4, vec![held(3)]), now);
        assert_eq!(core.owner(address()), None);
        let dead = now + Duration::from_millis(171);
        while let Some(at) = core.poll_timeout().filter(|at| *at <= dead) {
            core.handle_timeout(at);
        }
        assert_eq!(core.live_peers().count(), 0);
        tell(&mut core, &message(1, 5, vec![held(3)]), dead);
        assert_eq!(core.live_peers().count(), 0, "a recording raises nobody from the dead");
        tell(&mut core, &message(1, 6, vec![]), dead);
        assert_eq!(core.live_peers().count(), 1);
        assert_eq!(core.counters().false_verdicts, 1);
    }

    #[test]
    fn a_span_without_an_address_releases_it() {
        let now = epoch() + Duration::from_millis(330);
        let mut core = ready(epoch());
        tell(&mut core, &message(1, 1, vec![held(3)]), now);
        let elsewhere = Some("192.0.2.11".parse().unwrap()..=HIGHEST);
        tell(&mut core, &Message { span: elsewhere, ..message(1, 2, vec![]) }, now);
        assert!(core.owner(address()).is_some());
        tell(&mut core, &Message { span: Some(LOWEST..=HIGHEST), ..message(1, 3, vec![]) }, now);
        assert_eq!(core.owner(address()), None);
    }

    #[test]
    fn the_higher_epoch_wins_then_the_smaller_rank() {
        let mine_is_smaller = rank("a", address()) < rank(PEER, address());
        for (step, keeps) in [(-1, true), (0, mine_is_smaller), (1, false)] {
            let now = epoch() + Duration::from_millis(4000);
            let mut core = ready(epoch());
            core.handle_timeout(now);
            assert_eq!(core.owner(address()).unwrap().as_ref(), "a");
            let Some(Holding::Owner { epoch: mine }) = core.held.get_mut(&address()) else {
                unreachable!()
            };
            *mine = 5;
            let theirs = held(5_u64.saturating_add_signed(step));
            let actions = tell(&mut core, &message(1, 1, vec![theirs]), now);
            let lost = actions.contains(&Action::Own(BTreeSet::new()));
            assert_eq!(lost, !keeps, "epoch {}", theirs.epoch);
            assert_eq!(core.owner(address()).unwrap().as_ref(), if keeps { "a" } else { PEER });
        }
    }

    #[test]
    fn beats_keep_their_schedule_and_nothing_happens_between() {
        let start = epoch();
        let mut core = ready(start);
        for beat in 9..20_u64 {
            let due = core.poll_timeout().unwrap();
            assert_eq!(due, start + Duration::from_millis(beat * 40));
            assert!(core.handle_timeout(due - Duration::from_millis(1)).is_empty());
            let late = due + Duration::from_millis(7);
            assert_eq!(core.handle_timeout(late).len(), 1);
        }
    }

    /// Many more addresses than one beat has room for, all held by "a".
    fn holder_of_many() -> (Ownership, Vec<IpAddr>, BTreeMap<IpAddr, Candidates>, Instant) {
        let now = epoch();
        let addresses: Vec<_> = (0..=255).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        let nodes = BTreeSet::from(["a".into(), PEER.into()]);
        let candidates = Candidates { nodes, ..Candidates::default() };
        let wanted: BTreeMap<_, _> =
            addresses.iter().map(|&address| (address, candidates.clone())).collect();
        let mut core = ready(now);
        core.handle(Event::Wanted(wanted.clone()), now + Duration::from_millis(330));
        let end = now + Duration::from_millis(4_990);
        while let Some(at) = core.poll_timeout().filter(|at| *at < end) {
            core.handle_timeout(at);
        }
        assert_eq!(core.held.len(), 256);
        assert!(core.urgent.is_empty());
        (core, addresses, wanted, end)
    }

    /// In how many of the next beats the first row is about `address`.
    fn beats_that_start_with(core: &mut Ownership, address: IpAddr) -> usize {
        (0..10)
            .filter(|_| {
                let actions = core.handle_timeout(core.poll_timeout().unwrap());
                actions.iter().any(|action| match action {
                    Action::Send { payload, .. } => {
                        Message::decode(payload).unwrap().rows[0].address == address
                    }
                    _ => false,
                })
            })
            .count()
    }

    #[test]
    fn a_change_is_repeated_against_loss() {
        let (mut core, addresses, mut wanted, now) = holder_of_many();
        wanted.get_mut(&addresses[100]).unwrap().nodes.remove("a");
        let actions = core.handle(Event::Wanted(wanted), now);
        assert!(matches!(&actions[..], [Action::Send { to: Recipient::All, .. }]));
        assert_eq!(beats_that_start_with(&mut core, addresses[100]), 3);
    }

    #[test]
    fn one_that_claims_what_is_held_here_is_told() {
        let (mut core, addresses, _, now) = holder_of_many();
        // The higher epoch is here.
        for address in &addresses {
            core.held.insert(*address, Holding::Owner { epoch: 9 });
        }
        let row = Row { address: addresses[100], ..held(1) };
        tell(&mut core, &message(1, 1, vec![row]), now);
        assert_eq!(beats_that_start_with(&mut core, addresses[100]), 1);
        tell(&mut core, &message(1, 2, vec![row]), now + Duration::from_millis(400));
        assert_eq!(beats_that_start_with(&mut core, addresses[100]), 1, "as often as it says so");
    }

    proptest! {
        #[test]
        fn noise_changes_nothing(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut core = ready(epoch());
            let now = epoch() + Duration::from_millis(330);
            core.handle(Event::Datagram { from: PEER, payload: &payload }, now);
            prop_assert_eq!(core.counters().malformed, 1);
        }

        #[test]
        fn any_message_of_a_peer_is_borne(
            messages in proptest::collection::vec(
                (0..3_u64, any::<u64>(), any::<u32>(), 0..3_u8,
                 proptest::collection::vec((any::<u8>(), 0..3_u8, any::<u64>()), 0..5)),
                0..30,
            ),
        ) {
            let mut now = epoch() + Duration::from_millis(330);
            let mut core = ready(epoch());
            for (incarnation, sequence, claimed, standing, rows) in messages {
                let rows = rows.into_iter().map(|(last, state, epoch)| Row {
                    address: IpAddr::from([192, 0, 2, last]),
                    state: [ClaimState::Held, ClaimState::Offered, ClaimState::Released]
                        [usize::from(state)],
                    epoch: epoch.max(1),
                }).collect();
                let standing = [Standing::Listening, Standing::Ready, Standing::Leaving]
                    [usize::from(standing)];
                let span = Some(LOWEST..=HIGHEST);
                let message = Message { standing, incarnation, sequence, claimed, span, rows };
                tell(&mut core, &message, now);
                let held: Vec<_> = core.held.keys().collect();
                prop_assert!(held.is_empty() || held == [&address()], "only what is wanted");
                now += Duration::from_millis(50);
                core.handle_timeout(now);
            }
        }
    }
}
