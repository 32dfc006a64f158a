//! A planned restart ends with what it began with: what was handed over is asked back for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::life::Phase;
use crate::message::Occasion;
use crate::{NodeName, Ownership};

/// How often one address is asked for.
const PACE: Duration = Duration::from_millis(20);

/// How often each is asked for before it is left where it is.
const ATTEMPTS: u8 = 5;

/// For how long after the start.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(crate) struct Home {
    /// What was this node's before it was restarted, and how often it was asked for.
    missed: BTreeMap<IpAddr, u8>,
    until: Instant,
    /// What was handed over in this life.
    handed_over: BTreeSet<IpAddr>,
    next: Option<Instant>,
    cursor: Option<IpAddr>,
}

impl Home {
    pub(crate) fn new(handed_over: BTreeSet<IpAddr>, now: Instant) -> Self {
        Self {
            missed: handed_over.into_iter().map(|address| (address, 0)).collect(),
            until: now + LIMIT,
            handed_over: BTreeSet::new(),
            next: None,
            cursor: None,
        }
    }

    /// The listening is over.
    pub(crate) fn begin(&mut self, now: Instant) {
        self.next = (!self.missed.is_empty()).then_some(now);
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// What another life is to ask for: also what this one has not got back yet.
    pub(crate) fn handed_over(&self) -> BTreeSet<IpAddr> {
        self.handed_over.iter().chain(self.missed.keys()).copied().collect()
    }

    /// After a drain nothing is asked for.
    pub(crate) fn leave(&mut self, draining: bool) {
        self.next = None;
        if draining {
            self.missed.clear();
        }
    }

    pub(crate) fn note_handed_over(&mut self, address: IpAddr) {
        self.handed_over.insert(address);
    }

    pub(crate) fn receive(&mut self, address: IpAddr) {
        self.missed.remove(&address);
    }

    /// The next to ask for, in turn.
    fn turn(&mut self) -> Option<IpAddr> {
        let from = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let after = self.missed.range((from, Bound::Unbounded)).next();
        let address = after.or_else(|| self.missed.first_key_value()).map(|(at, _)| *at)?;
        self.cursor = Some(address);
        Some(address)
    }
}

impl Ownership {
    /// Asks for the next address that was this node's.
    pub(crate) fn ask_back(&mut self, now: Instant) {
        if self.home.next.is_none_or(|at| at > now) {
            return;
        }
        if self.draining || self.home.until <= now {
            self.home.missed.clear();
        }
        self.home.next = None;
        if let Some(address) = self.home.turn() {
            self.home.next = Some(now + PACE);
            self.ask_back_for(address);
        }
    }

    fn ask_back_for(&mut self, address: IpAddr) {
        let holder = self.table.holder(address);
        if holder == Some(&self.settings.me) || self.home.missed[&address] >= ATTEMPTS {
            self.home.missed.remove(&address);
            self.memory_changed = true;
            return;
        }
        if let Some(attempts) = self.home.missed.get_mut(&address) {
            *attempts += 1;
        }
        let mine = self.addresses.get(&address).is_some_and(|entry| self.may_hold(entry));
        if let Some(holder) = holder.cloned()
            && mine
            && self.can_take()
        {
            self.outbox.give_backs.entry(holder).or_default().push(address);
        }
    }

    /// Hands back what a peer had before it was restarted.
    pub(crate) fn give_back(&mut self, to: &NodeName, addresses: Vec<IpAddr>, now: Instant) {
        for address in addresses {
            let Some(entry) = self.addresses.get(&address) else { continue };
            let Some(wanted) = &entry.wanted else { continue };
            let owner = matches!(entry.phase, Phase::Owner);
            if owner && self.is_fit(to) && self.admits(wanted, to) {
                self.begin_offer(address, Occasion::GiveBack, Some(to.clone()), now);
            }
        }
    }
}
