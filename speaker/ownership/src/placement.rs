//! Who is to take what nobody holds.
//!
//! Every speaker deals the same addresses out to the same nodes in the same way, each to the live
//! candidate with the best score, then the fewest addresses, then the smallest rank. Nobody is
//! told the result: the first takes its address at once, the next some time later if it must.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::claim::rank;
use crate::life::Phase;
use crate::message::Flags;
use crate::peers::tag;
use crate::timers::Due;
use crate::{Candidates, Cause, ConflictProbe, NodeName, Ownership};

/// How many beats the next in the order leaves an address to the one before it.
const TURN: u32 = 4;

/// The longest that RFC 5227 takes to ask, and a little.
const THOROUGH: Duration = Duration::from_secs(8);

/// How long an owner that is no candidate any more has to hand over by itself, at least and, after
/// it was taken from repeatedly, at most.
const GRACE: Duration = Duration::from_secs(2);
const GRACE_LIMIT: Duration = Duration::from_secs(60);

/// After this time without another one nobody remembers that an address was taken from an owner.
const GRACE_MEMORY: Duration = Duration::from_secs(600);

/// A node that may be dealt addresses, with what it has been dealt.
#[derive(Debug)]
pub(crate) struct Bidder {
    pub(crate) name: NodeName,
    pub(crate) load: usize,
    /// It has just started: it is dealt only what nobody ever claimed.
    novice: bool,
    /// It comes and goes.
    unsteady: bool,
}

/// What is compared before ranks are.
type Standing = (bool, std::cmp::Reverse<i32>, usize);

impl Bidder {
    /// One that owns nothing.
    pub(crate) fn idle(name: NodeName) -> Self {
        Self { name, load: 0, novice: false, unsteady: false }
    }

    /// Whether it may be given what was owned before.
    pub(crate) fn is_settled(&self) -> bool {
        !self.novice
    }

    fn standing(&self, candidates: &Candidates) -> Standing {
        let preference = candidates.preference.get(&self.name).copied().unwrap_or(0);
        (self.unsteady, std::cmp::Reverse(preference), self.load)
    }

    /// Less if it comes first.
    fn compare(&self, other: &Self, candidates: &Candidates, address: IpAddr) -> Ordering {
        self.standing(candidates)
            .cmp(&other.standing(candidates))
            .then_with(|| rank(&self.name, address).cmp(&rank(&other.name, address)))
    }
}

/// The first of some bidders, by its place among them.
pub(crate) fn first(
    bidders: &[Bidder],
    candidates: &Candidates,
    address: IpAddr,
    may: impl Fn(&Bidder) -> bool,
) -> Option<usize> {
    let bids = bidders.iter().enumerate().filter(|(_, bidder)| may(bidder));
    bids.min_by(|(_, a), (_, b)| a.compare(b, candidates, address)).map(|(place, _)| place)
}

impl Ownership {
    /// Whether this node may take anything.
    pub(crate) fn can_take(&self) -> bool {
        !self.start.is_listening()
            && !self.start.is_silent()
            && !self.draining
            && !self.leaving
            && !self.is_muted()
            && !self.isolation.is_isolated()
            && self.view.is_some()
    }

    /// The nodes that may be dealt addresses, by name.
    pub(crate) fn bidders(&self, now: Instant) -> Vec<Bidder> {
        let unsteady = self.peers.all_unsteady(now);
        let out = Flags::DRAINING | Flags::LEAVING | Flags::ISOLATED | Flags::MUTED;
        let peers = self.peers.living().filter(|(_, life)| !life.flags().has(out));
        let all = peers.map(|(name, life)| (name, life.flags().has(Flags::LISTENING)));
        let me = self.can_take().then_some((&self.settings.me, false));
        let mut bidders: Vec<_> = all
            .chain(me)
            .map(|(name, novice)| Bidder {
                name: name.clone(),
                load: self.table.load(name),
                novice,
                unsteady: unsteady.contains(&tag(name)),
            })
            .collect();
        bidders.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        bidders
    }

    /// Decides for every vacant address when this node takes it, if nobody else has by then.
    pub(crate) fn plan(&mut self, now: Instant) {
        let estate = self.estate.deal(now);
        if estate.is_empty() {
            return;
        }
        self.end_waits(now);
        let mut bidders = self.bidders(now);
        self.leave_out(&mut bidders, &estate);
        let mut turns = Vec::new();
        for address in estate {
            match self.table.holder(address) {
                Some(holder) => add(&mut bidders, holder, 1),
                None => turns.push((address, self.deal(address, &mut bidders))),
            }
        }
        for (address, turn) in turns {
            self.schedule(address, turn, now);
        }
    }

    /// What is dealt out again does not count as a load beforehand.
    fn leave_out(&self, bidders: &mut [Bidder], estate: &[IpAddr]) {
        for address in estate {
            if let Some(holder) = self.table.holder(*address) {
                add(bidders, holder, -1);
            }
        }
    }

    /// Deals one address and returns when it is this node's turn to take it, if ever.
    fn deal(&self, address: IpAddr, bidders: &mut [Bidder]) -> Option<Instant> {
        let entry = self.addresses.get(&address)?;
        let (wanted, vacancy) = (entry.wanted.as_ref()?, entry.vacancy?);
        let ready = vacancy.ready?;
        let may = |bidder: &Bidder| {
            (!bidder.novice || vacancy.cause == Cause::First) && self.admits(wanted, &bidder.name)
        };
        let winner = first(bidders, wanted, address, may)?;
        let me = bidders.iter().find(|bidder| bidder.name == self.settings.me);
        let turn = me.filter(|me| may(me)).map(|me| {
            let before = |bidder: &&Bidder| {
                may(bidder) && bidder.compare(me, wanted, address) == Ordering::Less
            };
            let place = bidders.iter().filter(before).count();
            let turns = u32::try_from(place).unwrap_or(u32::MAX);
            let start = ready.max(self.start.ready_since);
            let turn = start + self.turn(vacancy.cause).saturating_mul(turns);
            vacancy.not_before.map_or(turn, |at| at.max(turn))
        });
        bidders[winner].load += 1;
        turn
    }

    fn turn(&self, cause: Cause) -> Duration {
        let turn = self.settings.profile.interval * TURN;
        if cause == Cause::First && self.settings.conflict_probe == ConflictProbe::Rfc {
            turn + THOROUGH
        } else {
            turn
        }
    }

    fn schedule(&mut self, address: IpAddr, turn: Option<Instant>, now: Instant) {
        let Some(entry) = self.addresses.get(&address) else { return };
        match (&entry.phase, turn) {
            // Its own of an earlier life is asked for whatever the order.
            (Phase::Probing, None) if self.start.is_resuming() => {}
            (Phase::Probing, None) => self.stop_probing(address),
            // More have died, and it falls to another now: all deal again alike.
            (Phase::Probing, Some(at)) if at > now && !self.start.is_resuming() => {
                self.stop_probing(address);
                self.timers.arm(address, Due::Turn, at);
            }
            (Phase::Probing | Phase::Owner | Phase::Offering(_), _) => {}
            (Phase::Idle, Some(at)) => self.timers.arm(address, Due::Turn, at),
            (Phase::Idle, None) => self.timers.disarm(address, Due::Turn),
        }
    }

    /// Lets first claims be made for which nobody is waited for any more.
    fn end_waits(&mut self, now: Instant) {
        self.start.waits_until = None;
        if !self.can_take() {
            return;
        }
        let mut asked: BTreeMap<*const Candidates, Result<(), Instant>> = BTreeMap::new();
        let waiting: Vec<_> = self.estate.vacant().collect();
        for address in waiting {
            let Some(entry) = self.addresses.get(&address) else { continue };
            let Some(wanted) = entry.wanted.clone() else { continue };
            if entry.vacancy.is_none_or(|vacancy| vacancy.ready.is_some()) {
                continue;
            }
            let answer =
                *asked.entry(Arc::as_ptr(&wanted)).or_insert_with(|| self.may_begin(&wanted, now));
            self.end_wait(address, answer, now);
        }
    }

    fn end_wait(&mut self, address: IpAddr, answer: Result<(), Instant>, now: Instant) {
        let vacancy = self.addresses.get_mut(&address).and_then(|entry| entry.vacancy.as_mut());
        match (answer, vacancy) {
            (Ok(()), Some(vacancy)) => vacancy.ready = Some(now),
            (Err(again), Some(_)) => {
                let until = self.start.waits_until.map_or(again, |at| at.min(again));
                self.start.waits_until = Some(until);
            }
            (Ok(()) | Err(_), None) => {}
        }
    }

    /// Notes whether the owner of an address may not own it, by a newer view than its own.
    pub(crate) fn note_unfit(&mut self, address: IpAddr, now: Instant) {
        if self.is_unfit(address) {
            self.spread.unfit.insert(address);
            self.consider_deposing(address, now);
        } else if self.spread.unfit.remove(&address) {
            self.timers.disarm(address, Due::Depose);
        }
    }

    fn is_unfit(&self, address: IpAddr) -> bool {
        let wanted = self.addresses.get(&address).and_then(|entry| entry.wanted.as_ref());
        wanted.zip(self.table.holder(address)).is_some_and(|(wanted, holder)| {
            *holder != self.settings.me && !self.admits(wanted, holder)
        })
    }

    /// Looks at all unfit owners again, after views have changed.
    pub(crate) fn reconsider_deposing(&mut self, now: Instant) {
        let unfit: BTreeSet<_> = self.spread.unfit.clone();
        for address in unfit {
            self.consider_deposing(address, now);
        }
    }

    fn consider_deposing(&mut self, address: IpAddr, now: Instant) {
        match self.place_as_successor(address, now) {
            Some(place) => {
                let turn = self.settings.profile.interval * TURN * place;
                let at = now + self.grace(address, now) + turn;
                self.timers.arm_once(address, Due::Depose, at);
            }
            None => self.timers.disarm(address, Due::Depose),
        }
    }

    /// How many come before this node to take an address from an owner that may not own it;
    /// `None` if this node may not, or does not know better.
    fn place_as_successor(&self, address: IpAddr, now: Instant) -> Option<u32> {
        let holder = self.peers.life(self.table.holder(address)?)?;
        let wanted = self.addresses.get(&address)?.wanted.as_ref()?;
        if self.view.is_none_or(|version| version <= holder.version()) {
            return None;
        }
        let bidders = self.bidders(now);
        let me = bidders.iter().find(|bidder| bidder.name == self.settings.me)?;
        if !self.admits(wanted, &me.name) {
            return None;
        }
        let before = bidders.iter().filter(|bidder| {
            !bidder.novice
                && self.admits(wanted, &bidder.name)
                && bidder.compare(me, wanted, address) == Ordering::Less
        });
        u32::try_from(before.count()).ok()
    }

    fn grace(&self, address: IpAddr, now: Instant) -> Duration {
        let deposed = self.addresses.get(&address).and_then(|entry| entry.deposed);
        let times = deposed.filter(|(_, until)| *until > now).map_or(0, |(times, _)| times);
        GRACE.saturating_mul(1 << times.min(5)).min(GRACE_LIMIT)
    }

    /// Takes an address from an owner that may not own it and had its time.
    pub(crate) fn depose(&mut self, address: IpAddr, now: Instant) {
        if !self.is_unfit(address) || self.place_as_successor(address, now).is_none() {
            return;
        }
        if let Some(entry) = self.addresses.get_mut(&address) {
            let times = entry.deposed.filter(|(_, until)| *until > now).map_or(0, |(n, _)| n);
            entry.deposed = Some((times.saturating_add(1), now + GRACE_MEMORY));
        }
        self.claim(address, Cause::Deposed, now);
    }
}

/// Changes a load, if the node is a bidder. Bidders lie in the order of their names.
fn add(bidders: &mut [Bidder], node: &NodeName, change: isize) {
    if let Ok(place) = bidders.binary_search_by(|bidder| bidder.name.cmp(node)) {
        bidders[place].load = bidders[place].load.saturating_add_signed(change);
    }
}
