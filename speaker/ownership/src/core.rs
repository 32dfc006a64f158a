//! The core: what it keeps, and the order of a step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use crate::asking::Station;
use crate::beats::Rhythm;
use crate::estate::Estate;
use crate::home::Home;
use crate::isolation::Isolation;
use crate::life::Address;
use crate::offer::Farewells;
use crate::outbox::{Claims, Outbox};
use crate::peers::Peers;
use crate::proof::Proofs;
use crate::repair::Repair;
use crate::spread::{Birth, Spread};
use crate::start::Start;
use crate::table::Table;
use crate::timers::{Due, Timers};
use crate::{Action, AddressState, Counters, Event, Extent, Mac, Memory, NodeName, Settings, View};

/// Agrees with the cores of the other nodes on who answers for which address.
#[derive(Debug)]
pub struct Ownership {
    pub(crate) settings: Settings,
    pub(crate) peers: Peers,
    pub(crate) table: Table,
    pub(crate) addresses: BTreeMap<IpAddr, Address>,
    pub(crate) timers: Timers,
    /// The version of the view; `None` before any has arrived.
    pub(crate) view: Option<u64>,
    pub(crate) draining: bool,
    pub(crate) leaving: bool,
    /// [`Action::Left`] was said.
    pub(crate) left: bool,
    /// `None` before they were told.
    pub(crate) stations: Option<BTreeMap<String, Mac>>,
    pub(crate) start: Start,
    pub(crate) rhythm: Rhythm,
    pub(crate) sequence: u64,
    pub(crate) estate: Estate,
    pub(crate) farewells: Farewells,
    pub(crate) isolation: Isolation,
    pub(crate) repair: Repair,
    pub(crate) proofs: Proofs,
    pub(crate) home: Home,
    pub(crate) birth: Birth,
    pub(crate) spread: Spread,
    pub(crate) outbox: Outbox,
    pub(crate) claims: Claims,
    /// What the caller was told last.
    pub(crate) reported: BTreeMap<IpAddr, AddressState>,
    pub(crate) announced: BTreeSet<IpAddr>,
    pub(crate) counters: Counters,
    pub(crate) memory_changed: bool,
}

impl Ownership {
    /// A speaker that starts now. It listens before it claims anything.
    pub fn new(settings: Settings, now: Instant) -> Self {
        let mut settings = settings;
        let memory = std::mem::take(&mut settings.memory);
        let peers = Peers::new(settings.me.clone(), settings.incarnation, settings.profile);
        let had = memory.claims.values().any(|claim| claim.owner == settings.me);
        let mut table = Table::default();
        for (address, claim) in memory.claims {
            table.insert(address, claim, |_| false);
        }
        Self {
            start: Start::new(settings.profile, had, now),
            birth: Birth::new(table.len() > 0),
            rhythm: Rhythm::new(now),
            home: Home::new(memory.handed_over, now),
            peers,
            table,
            settings,
            addresses: BTreeMap::new(),
            timers: Timers::default(),
            view: None,
            draining: false,
            leaving: false,
            left: false,
            stations: None,
            sequence: 0,
            estate: Estate::default(),
            farewells: Farewells::default(),
            isolation: Isolation::default(),
            repair: Repair::default(),
            proofs: Proofs::default(),
            spread: Spread::default(),
            outbox: Outbox::default(),
            claims: Claims::default(),
            reported: BTreeMap::new(),
            announced: BTreeSet::new(),
            counters: Counters::default(),
            memory_changed: false,
        }
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        self.forgive_own_pause(now);
        match event {
            Event::View(view) => self.set_view(view, now),
            Event::Stations(stations) => self.set_stations(stations, now),
            Event::Gateways(gateways) => self.isolation.set_gateways(gateways),
            Event::Datagram { from, payload } => self.receive(from, payload, now),
            Event::Heard { address, interface, mac, form } => {
                self.hear(address, Station { mac, interface }, form, now);
            }
            Event::Silence(address) => self.hear_nothing(address, now),
            Event::Leave => self.leave(now),
        }
        self.finish(now)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        self.forgive_own_pause(now);
        self.finish(now)
    }

    /// When `handle_timeout` has something to do next; there always is a next beat.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.timers.next(),
            self.peers.next_deadline(),
            self.start.next(self.view.is_some()),
            self.farewells.next(),
            self.claims.next(),
            self.repair.next(),
            self.isolation.next(),
            self.proofs.next(),
            self.home.next(),
            self.spread.next(),
        ]
        .into_iter()
        .flatten()
        .chain([self.rhythm.next])
        .min()
    }

    /// What is to outlive the process.
    pub fn memory(&self) -> Memory {
        let claims = self.table.rows().map(|(_, address, claim)| (address, claim.clone()));
        Memory { claims: claims.collect(), handed_over: self.home.handed_over() }
    }

    /// Whether [`memory`](Self::memory) has changed since this was last asked.
    pub fn take_memory_changed(&mut self) -> bool {
        std::mem::take(&mut self.memory_changed)
    }

    /// The peers that live.
    pub fn live_peers(&self) -> impl Iterator<Item = &NodeName> {
        self.peers.living().map(|(name, _)| name)
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn set_view(&mut self, view: View, now: Instant) {
        self.view = Some(view.version);
        if let Some(peers) = view.peers {
            self.set_peers(peers, now);
        }
        if let Some(draining) = view.draining
            && draining != self.draining
        {
            self.draining = draining;
            self.settle_all_mine(now);
            self.estate.replan();
        }
        if view.extent == Extent::Whole {
            let gone = |address: &&IpAddr| !view.addresses.contains_key(*address);
            let gone: Vec<_> = self.addresses.keys().filter(gone).copied().collect();
            for address in gone {
                self.want(address, None, now);
            }
        }
        for (address, candidates) in view.addresses {
            self.want(address, candidates, now);
        }
        if view.extent == Extent::Whole {
            // What came in order has filled the nodes of the tree to a half.
            self.addresses = std::mem::take(&mut self.addresses).into_iter().collect();
        }
        self.resume(now);
    }

    fn set_peers(&mut self, mut names: BTreeSet<NodeName>, now: Instant) {
        names.remove(&self.settings.me);
        let gone: Vec<_> = self
            .peers
            .all()
            .filter(|(name, _)| !names.contains(*name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let lived = self.peers.remove(&name).is_some_and(|peer| peer.living().is_some());
            if lived {
                self.outbox.peers.push(Action::PeerDown(name.clone()));
            }
            self.settle_all_of(&name, now);
        }
        for name in names {
            self.peers.add(name);
        }
        self.peers.close_ranks(now);
        self.estate.replan();
    }

    /// Whether no interface can answer.
    pub(crate) fn is_muted(&self) -> bool {
        self.stations.as_ref().is_none_or(BTreeMap::is_empty)
    }

    fn set_stations(&mut self, stations: BTreeMap<String, Mac>, now: Instant) {
        let told = self.stations.is_some();
        let muted = self.is_muted();
        if self.stations.as_ref() == Some(&stations) {
            return;
        }
        self.stations = Some(stations);
        if self.is_muted() {
            self.release_all(now);
        } else if muted && told && !self.peers.is_empty() {
            self.start.listen_again(now);
        }
        self.settle_all_mine(now);
        self.estate.replan();
        self.resume(now);
    }

    /// The end of a step: what is due, then what follows from what has happened.
    fn finish(&mut self, now: Instant) -> Vec<Action> {
        self.bury_the_silent(now);
        self.advance_start(now);
        self.advance_isolation(now);
        self.say_farewells(now);
        while let Some((address, due)) = self.timers.pop(now) {
            self.do_due(address, due, now);
        }
        self.ask_back(now);
        self.even_out(now);
        self.ask_for_proof(now);
        self.choose_successors(now);
        while self.estate.take_replan() {
            self.spread.settled = false;
            self.plan(now);
            while let Some((address, due)) = self.timers.pop(now) {
                self.do_due(address, due, now);
            }
        }
        self.choose_successors(now);
        self.consider_deposing(now);
        self.report(now)
    }

    fn do_due(&mut self, address: IpAddr, due: Due, now: Instant) {
        match due {
            Due::Turn => self.take_turn(address, now),
            Due::Raise => self.raise(address, now),
            Due::Offer => self.offer(address, now),
            Due::Stop => self.stop(address, now),
            Due::GiveUp => self.release(address, now),
            Due::Calm => self.calm(address),
            Due::Depose => self.depose(address, now),
            Due::Prove => self.proofs.queue(address),
            Due::Forget => self.forget(address),
        }
    }
}
