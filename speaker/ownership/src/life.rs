//! The life of one address on this node: vacant, asked for, owned, given up.
//!
//! `settle` is the one place where conclusions are drawn: it is called after anything about an
//! address has changed, and only for that address.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::{Flags, Occasion};
use crate::offer::Offer;
use crate::table::Taken;
use crate::timers::Due;
use crate::{Candidates, Cause, Claim, NodeName, Ownership, Proof, Stage, Stranger};

/// How long those that still want an address leave it to those that know better: whoever gave it
/// up had a newer view.
const HEARSAY: Duration = Duration::from_secs(2);

/// The longest wait for a claim that is not in force, as a power of two of beats.
const MAX_RAISES: u32 = 6;

/// How long a row is kept that nobody wants or holds.
const OBLIVION: Duration = Duration::from_secs(24 * 3600);

/// What this node does about an address that is wanted, or held.
#[derive(Debug)]
pub(crate) struct Address {
    pub(crate) wanted: Option<Arc<Candidates>>,
    pub(crate) phase: Phase,
    /// `None` while somebody holds it.
    pub(crate) vacancy: Option<Vacancy>,
    pub(crate) conflict: Option<Stranger>,
    pub(crate) proof: Proof,
    /// How often and until when its owner was deposed here.
    pub(crate) deposed: Option<(u32, Instant)>,
    /// It was handed over by a node that will ask for it when it is back, until then.
    pub(crate) guest_until: Option<Instant>,
    pub(crate) foreign_vetoes: u8,
    /// How often it was claimed again above a claim that is not in force.
    raises: u32,
    pub(crate) defend_from: Option<Instant>,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Idle,
    Probing,
    Owner,
    Offering(Offer),
}

/// Nobody holds an address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vacancy {
    pub(crate) cause: Cause,
    pub(crate) since: Instant,
    /// From when on the candidates take their turns; `None` while those of a first claim are
    /// waited for.
    pub(crate) ready: Option<Instant>,
    /// This node was answered, and asks again then.
    pub(crate) not_before: Option<Instant>,
}

impl Default for Address {
    fn default() -> Self {
        Self {
            wanted: None,
            phase: Phase::Idle,
            vacancy: None,
            conflict: None,
            proof: Proof::NotYet,
            deposed: None,
            guest_until: None,
            foreign_vetoes: 0,
            raises: 0,
            defend_from: None,
        }
    }
}

impl Address {
    pub(crate) fn is_guest(&self, now: Instant) -> bool {
        self.guest_until.is_some_and(|until| until > now)
    }
}

impl Phase {
    pub(crate) fn holds(&self) -> bool {
        match self {
            Self::Owner | Self::Offering(_) => true,
            Self::Idle | Self::Probing => false,
        }
    }
}

impl Ownership {
    /// The claim of this node that is in force.
    pub(crate) fn mine(&self, address: IpAddr) -> Option<&Claim> {
        let claim = self.table.in_force(address, |claim| self.is_mine(claim))?;
        self.holds(address).then_some(claim)
    }

    fn is_mine(&self, claim: &Claim) -> bool {
        claim.owner == self.settings.me && claim.incarnation == self.settings.incarnation
    }

    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        self.addresses.get(&address).is_some_and(|entry| entry.phase.holds())
    }

    /// Whether this node answers for an address.
    pub(crate) fn answers(&self, address: IpAddr) -> bool {
        self.addresses.get(&address).is_some_and(|entry| self.stage(entry).answers())
    }

    pub(crate) fn stage(&self, entry: &Address) -> Stage {
        match entry.phase {
            Phase::Owner | Phase::Offering(_) if self.is_fenced(entry) => Stage::Fenced,
            Phase::Owner => Stage::Owner,
            Phase::Offering(_) => Stage::HandingOver,
            Phase::Probing => Stage::Probing,
            Phase::Idle if self.start.is_listening() && entry.vacancy.is_some() => Stage::Listening,
            Phase::Idle => Stage::Idle,
        }
    }

    /// Whether it is answered for by nobody here although it is held: after a pause, and in what
    /// looks like a cut. A sole candidate goes on: there is nobody it could disturb.
    fn is_fenced(&self, entry: &Address) -> bool {
        let sole = || entry.wanted.as_ref().is_some_and(|wanted| wanted.nodes.len() <= 1);
        self.start.is_silent() || (self.isolation.is_fenced() && !sole())
    }

    /// Everything held here may have begun or ceased to be answered for.
    pub(crate) fn touch_mine(&mut self) {
        self.outbox.touched.extend(self.table.held_by(&self.settings.me));
    }

    pub(crate) fn settle_all_mine(&mut self, now: Instant) {
        let me = self.settings.me.clone();
        self.settle_all_of(&me, now);
    }

    /// After a node has died, come back or changed in what matters for its claims.
    pub(crate) fn settle_all_of(&mut self, node: &str, now: Instant) {
        let all: Vec<_> = self.table.claimed_by(node).collect();
        for address in all {
            self.settle(address, now);
        }
    }

    /// Takes in who may own an address.
    pub(crate) fn want(&mut self, address: IpAddr, wanted: Option<Arc<Candidates>>, now: Instant) {
        if wanted.is_none() && !self.addresses.contains_key(&address) {
            return;
        }
        let entry = self.addresses.entry(address).or_default();
        let same = match (&entry.wanted, &wanted) {
            (Some(before), Some(after)) => Arc::ptr_eq(before, after) || before == after,
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        entry.wanted = wanted;
        if !same {
            if let Some(wanted) = entry.wanted.as_ref().filter(|_| self.estate.waits(address)) {
                self.estate.wait(address, wanted);
            }
            if !self.addresses.get(&address).is_some_and(|entry| self.may_hold(entry)) {
                self.stop_probing(address);
            }
            self.settle(address, now);
            self.estate.replan();
        }
    }

    /// Draws the conclusions for one address.
    pub(crate) fn settle(&mut self, address: IpAddr, now: Instant) {
        let peers = &self.peers;
        self.table.settle(address, |claim| peers.stands_by(claim));
        let holder = self.table.in_force(address, |claim| peers.stands_by(claim)).cloned();
        let changed =
            self.table.set_holder(address, holder.as_ref().map(|claim| claim.owner.clone()));
        if changed {
            self.spread.settled = false;
            self.proofs.expect(address, now, &mut self.timers);
        }
        self.outbox.touched.insert(address);
        if self.holds(address) {
            self.settle_held(address, holder.as_ref(), now);
        } else {
            self.settle_free(address, holder.as_ref(), now);
        }
        self.note_unfit(address);
    }

    fn settle_held(&mut self, address: IpAddr, holder: Option<&Claim>, now: Instant) {
        let Some(entry) = self.addresses.get(&address) else { return };
        // Where nobody may answer, nobody does; where nobody else can, the owner goes on.
        if entry.wanted.as_ref().is_none_or(|wanted| wanted.nodes.is_empty()) {
            return self.release(address, now);
        }
        let (offering, raises) = (matches!(entry.phase, Phase::Offering(_)), entry.raises);
        match holder {
            Some(claim) if claim.owner != self.settings.me && offering => {
                self.await_stop(address, now);
                return;
            }
            Some(claim) if claim.owner != self.settings.me => {
                return self.yield_to(address, claim, now);
            }
            Some(_) | None => self.stop_no_more(address),
        }
        if self.table.best(address).is_some_and(|best| self.is_mine(best)) {
            self.timers.disarm(address, Due::Raise);
        } else {
            // Two that are heard by a third, but not by each other, are not to outbid each other
            // at every beat.
            let patience = self.settings.profile.interval * (2 << raises.min(MAX_RAISES));
            self.timers.arm_once(address, Due::Raise, now + patience);
        }
        self.settle_departure(address, now);
    }

    fn settle_free(&mut self, address: IpAddr, holder: Option<&Claim>, now: Instant) {
        let wanted = self.addresses.get(&address).is_some_and(|entry| entry.wanted.is_some());
        if !wanted || holder.is_some() {
            self.close_vacancy(address, now);
        } else if self.addresses.get(&address).is_some_and(|entry| entry.vacancy.is_none()) {
            self.open_vacancy(address, now);
        }
        if !wanted {
            self.addresses.remove(&address);
            self.estate.drop(address);
            self.timers.disarm(address, Due::Calm);
            self.timers.disarm(address, Due::Prove);
        }
        if wanted || holder.is_some() || self.table.best(address).is_none() {
            self.timers.disarm(address, Due::Forget);
        } else {
            self.timers.arm_once(address, Due::Forget, now + OBLIVION);
        }
    }

    fn close_vacancy(&mut self, address: IpAddr, now: Instant) {
        self.stop_probing(address);
        self.timers.disarm(address, Due::Turn);
        let Some(entry) = self.addresses.get_mut(&address) else { return };
        entry.conflict = None;
        entry.foreign_vetoes = 0;
        if let Some(vacancy) = entry.vacancy.take() {
            self.estate.find(address, vacancy.cause, now);
        }
    }

    fn open_vacancy(&mut self, address: IpAddr, now: Instant) {
        let (cause, ready) = self.judge_loss(address, now);
        if let Some(entry) = self.addresses.get_mut(&address) {
            entry.vacancy = Some(Vacancy { cause, since: now, ready, not_before: None });
            entry.proof = Proof::NotYet;
            self.estate.lose(address, cause, now);
            if let Some(wanted) = entry.wanted.as_ref().filter(|_| ready.is_none()) {
                self.estate.wait(address, wanted);
            }
        }
    }

    /// Why nobody holds an address since then, and from when on it may be taken.
    pub(crate) fn judge_loss(&self, address: IpAddr, since: Instant) -> (Cause, Option<Instant>) {
        let Some(best) = self.table.best(address) else { return (Cause::First, None) };
        let life = self.peers.life(&best.owner);
        if best.is_released() {
            let newer = life.is_some_and(|life| {
                let departs = Flags::MUTED | Flags::LEAVING;
                Some(life.version()) > self.view && !life.flags().has(departs)
            });
            let ready = if newer { since + HEARSAY } else { since };
            return (Cause::Released, Some(ready));
        }
        if best.owner == self.settings.me {
            return (Cause::Resumed, Some(since));
        }
        let resumes = life.filter(|life| life.flags().has(Flags::RESUMING));
        let grace = self.settings.profile.interval * 3;
        (Cause::Death, Some(resumes.map_or(since, |life| (life.since + grace).max(since))))
    }

    /// Makes an address this node's.
    pub(crate) fn claim(&mut self, address: IpAddr, cause: Cause, now: Instant) {
        let best = self.table.best(address);
        let epoch = match best {
            Some(best) if cause == Cause::Resumed && best.owner == self.settings.me => best.epoch,
            Some(best) => best.epoch.saturating_add(1),
            None => 1,
        };
        let Some(entry) = self.addresses.get_mut(&address) else { return };
        entry.phase = Phase::Owner;
        entry.guest_until = None;
        entry.raises = 0;
        entry.proof = Proof::NotYet;
        *self.counters.taken.entry(cause).or_default() += 1;
        self.write(address, epoch);
        self.birth.note(now);
        match cause {
            Cause::First | Cause::Resumed | Cause::GivenBack | Cause::Rebalanced => {}
            Cause::Death | Cause::HandOver | Cause::Released | Cause::Deposed => {
                self.birth.disturb();
            }
        }
        self.close_vacancy(address, now);
        self.settle(address, now);
    }

    /// Puts a claim of this node into the table and tells all.
    fn write(&mut self, address: IpAddr, epoch: u64) {
        let owner = self.settings.me.clone();
        let claim = Claim { epoch, owner, incarnation: self.settings.incarnation };
        self.put(address, claim);
    }

    fn put(&mut self, address: IpAddr, claim: Claim) {
        let peers = &self.peers;
        self.table.insert(address, claim, |claim| peers.stands_by(claim));
        self.outbox.changed.insert(address);
        self.memory_changed = true;
    }

    /// A higher claim is known that nobody stands by: claim above it, or whoever trusts the table
    /// more than the segment would take the address.
    pub(crate) fn raise(&mut self, address: IpAddr, now: Instant) {
        let best = self.table.best(address).filter(|best| !self.is_mine(best));
        if let Some(epoch) = best.map(|best| best.epoch.saturating_add(1))
            && self.holds(address)
        {
            if let Some(entry) = self.addresses.get_mut(&address) {
                entry.raises = entry.raises.saturating_add(1);
            }
            self.write(address, epoch);
            // Whoever claimed it may have announced it too.
            self.outbox.repeat.insert(address);
            self.settle(address, now);
        }
    }

    /// Stops for a higher claim.
    fn yield_to(&mut self, address: IpAddr, winner: &Claim, now: Instant) {
        self.counters.yielded += 1;
        self.give_up(address);
        self.farewells.say(address, winner, self.settings.profile.interval, now);
        self.settle_free(address, Some(winner), now);
    }

    /// What comes with not holding an address any more.
    pub(crate) fn give_up(&mut self, address: IpAddr) {
        for due in [Due::Raise, Due::Offer, Due::Stop, Due::GiveUp, Due::Calm] {
            self.timers.disarm(address, due);
        }
        self.farewells.forget(address);
        if let Some(entry) = self.addresses.get_mut(&address) {
            entry.phase = Phase::Idle;
            entry.conflict = None;
            entry.guest_until = None;
            entry.proof = Proof::NotYet;
        }
        self.outbox.touched.insert(address);
    }

    /// Stops answering without a successor.
    pub(crate) fn release(&mut self, address: IpAddr, now: Instant) {
        let Some(released) = self.mine(address).map(Claim::released) else {
            // A successor has claimed it already, and this node only answers beside it.
            if self.holds(address) {
                self.give_up(address);
                self.settle(address, now);
            }
            return;
        };
        let above = self.table.best(address).map_or(0, |best| best.epoch.saturating_add(1));
        self.give_up(address);
        self.outbox.beat_first = true;
        self.put(address, Claim { epoch: released.epoch.max(above), ..released });
        self.settle(address, now);
    }

    pub(crate) fn release_all(&mut self, now: Instant) {
        let all: Vec<_> = self.table.held_by(&self.settings.me).collect();
        for address in all {
            self.release(address, now);
        }
        self.cancel_probes();
    }

    /// Why this node may not keep an address.
    pub(crate) fn reason_to_leave(&self, entry: &Address) -> Option<Occasion> {
        if self.leaving && !self.draining {
            return Some(Occasion::Restart);
        }
        let stays = !self.leaving && !self.draining && self.may_hold(entry);
        (!stays).then_some(Occasion::Departure)
    }

    /// Whether this node is a candidate in its own view.
    pub(crate) fn may_hold(&self, entry: &Address) -> bool {
        entry.wanted.as_ref().is_some_and(|wanted| self.admits(wanted, &self.settings.me))
    }

    /// Whether a node is a candidate: it is named, and has one of the interfaces on which it must
    /// answer.
    pub(crate) fn admits(&self, wanted: &Candidates, node: &NodeName) -> bool {
        if !wanted.nodes.contains(node) {
            return false;
        }
        let Some(interfaces) = wanted.interfaces.get(node) else { return true };
        let stations = if *node == self.settings.me {
            self.stations.as_ref()
        } else {
            self.peers.get(node).map(|peer| &peer.stations)
        };
        stations.is_some_and(|stations| interfaces.iter().any(|name| stations.contains_key(name)))
    }

    /// Takes in what a peer says of a claim.
    pub(crate) fn take_row(
        &mut self,
        from: &NodeName,
        address: IpAddr,
        claim: Claim,
        now: Instant,
    ) {
        let in_force = self.peers.stands_by(&claim);
        let known = self.table.best(address).is_some() || self.addresses.contains_key(&address);
        // What nobody here wants or knows, and nobody stands by, would be remembered for ever: as
        // soon as one node forgets it another would remind it.
        if !known && !in_force && self.view.is_some() && !self.start.is_listening() {
            return;
        }
        if self.is_mine(&claim) {
            return self.hear_of_mine(from, address, &claim, now);
        }
        let by_claimant = claim.owner == *from && in_force;
        // That a claim beneath the best one is still in force its claimant says, if it is so: what
        // others remember may have been given up since.
        let beneath = self
            .table
            .best(address)
            .is_some_and(|best| claim.compare(best, address) == Ordering::Less);
        if beneath && !by_claimant {
            return;
        }
        let peers = &self.peers;
        match self.table.insert(address, claim, |claim| peers.stands_by(claim)) {
            Taken::Best | Taken::Beneath => {
                self.memory_changed = true;
                self.birth.note(now);
                self.settle(address, now);
            }
            Taken::Refused => self.counters.refused += 1,
            Taken::Outdated if by_claimant => {
                self.correct(from, address, now);
                if self.holds(address) {
                    self.outbox.repeat.insert(address);
                }
            }
            Taken::Outdated | Taken::Known => {}
        }
    }

    /// A peer names a claim of this life of this node, which nobody knows better than the node.
    fn hear_of_mine(&mut self, from: &NodeName, address: IpAddr, claim: &Claim, now: Instant) {
        let best = self.table.best(address);
        match best.map(|best| claim.compare(best, address)) {
            None | Some(Ordering::Greater) => self.counters.refused += 1,
            Some(Ordering::Less | Ordering::Equal) if self.holds(address) => {}
            // It was given up. Where nobody else stands by the address that must be said, or the
            // others would wait for this node for ever.
            Some(Ordering::Less | Ordering::Equal) => {
                if self.table.holder(address).is_none()
                    && let Some(released) = best.map(Claim::released)
                {
                    let owner = self.settings.me.clone();
                    self.put(address, Claim { owner, ..released });
                    self.settle(address, now);
                }
                self.correct(from, address, now);
            }
        }
    }

    /// Nobody has wanted or held it for a day.
    pub(crate) fn forget(&mut self, address: IpAddr) {
        self.table.forget(address);
        self.memory_changed = true;
    }
}
