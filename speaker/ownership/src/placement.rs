//! Who is to take what nobody holds.
//!
//! Every speaker deals the same addresses out to the same nodes in the same way, each to the live
//! candidate with the best score, then the fewest addresses, then the smallest rank. Nobody is
//! told the result: the first takes its address at once, the next some time later if it must.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::claim::Ranks;
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
}

/// Some bidders for one address. A rank is found out only if it decides, and once.
struct Bids<'a> {
    bids: Vec<Bid<'a>>,
    ranks: Ranks,
}

struct Bid<'a> {
    place: usize,
    name: &'a str,
    standing: Standing,
    rank: OnceCell<[u8; 32]>,
}

impl<'a> Bids<'a> {
    /// Of these bidders, each with its place among all.
    fn new(
        bidders: impl Iterator<Item = (usize, &'a Bidder)>,
        candidates: &Candidates,
        address: IpAddr,
    ) -> Self {
        let bid = |(place, bidder): (usize, &'a Bidder)| Bid {
            place,
            name: &bidder.name,
            standing: bidder.standing(candidates),
            rank: OnceCell::new(),
        };
        Self { bids: bidders.map(bid).collect(), ranks: Ranks::of(address) }
    }

    /// Less if the first of two comes first.
    fn compare(&self, a: &Bid<'_>, b: &Bid<'_>) -> Ordering {
        let rank = |bid: &Bid<'_>| *bid.rank.get_or_init(|| self.ranks.rank(bid.name));
        a.standing.cmp(&b.standing).then_with(|| rank(a).cmp(&rank(b)))
    }

    /// The place of the first.
    fn first(&self) -> Option<usize> {
        self.bids.iter().min_by(|a, b| self.compare(a, b)).map(|bid| bid.place)
    }

    /// How many come before a node; `None` if it does not bid.
    fn before(&self, node: &str) -> Option<u32> {
        let me = self.bids.iter().find(|bid| bid.name == node)?;
        let before = self.bids.iter().filter(|bid| self.compare(bid, me) == Ordering::Less);
        u32::try_from(before.count()).ok()
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
    Bids::new(bids, candidates, address).first()
}

/// Which bidders are candidates, by their places; found out once for all addresses of which the
/// same is said.
#[derive(Default)]
struct Slates(BTreeMap<*const Candidates, Rc<[usize]>>);

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
        if self.estate.vacancies() == 0 {
            return;
        }
        self.end_waits(now);
        // What candidates are waited for has no turn, and nobody has bid for it yet.
        if !self.estate.is_open() {
            return;
        }
        let estate = self.estate.deal(now);
        let mut bidders = self.bidders(now);
        self.leave_out(&mut bidders, &estate);
        let (mut turns, mut slates) = (Vec::new(), Slates::default());
        for address in estate {
            match self.table.holder(address) {
                Some(holder) => add(&mut bidders, holder, 1),
                None => turns.push((address, self.deal(address, &mut bidders, &mut slates))),
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
    fn deal(
        &self,
        address: IpAddr,
        bidders: &mut [Bidder],
        slates: &mut Slates,
    ) -> Option<Instant> {
        let entry = self.addresses.get(&address)?;
        let (wanted, vacancy) = (entry.wanted.as_ref()?, entry.vacancy?);
        let ready = vacancy.ready?;
        let slate = self.slate(wanted, bidders, slates);
        let all = slate.iter().map(|place| (*place, &bidders[*place]));
        let may = all.filter(|(_, bidder)| !bidder.novice || vacancy.cause == Cause::First);
        let bids = Bids::new(may, wanted, address);
        let winner = bids.first()?;
        let turn = bids.before(&self.settings.me).map(|turns| {
            let start = ready.max(self.start.ready_since);
            let turn = start + self.turn(vacancy.cause).saturating_mul(turns);
            vacancy.not_before.map_or(turn, |at| at.max(turn))
        });
        bidders[winner].load += 1;
        turn
    }

    fn slate(
        &self,
        wanted: &Arc<Candidates>,
        bidders: &[Bidder],
        slates: &mut Slates,
    ) -> Rc<[usize]> {
        let places = || {
            let all = bidders.iter().enumerate();
            all.filter(|(_, bidder)| self.admits(wanted, &bidder.name)).map(|(place, _)| place)
        };
        Rc::clone(slates.0.entry(Arc::as_ptr(wanted)).or_insert_with(|| places().collect()))
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
        for wanted in self.estate.awaited() {
            match self.may_begin(&wanted, now) {
                Ok(()) => self.end_wait(&wanted, now),
                Err(again) => {
                    let until = self.start.waits_until.map_or(again, |at| at.min(again));
                    self.start.waits_until = Some(until);
                }
            }
        }
    }

    fn end_wait(&mut self, wanted: &Arc<Candidates>, now: Instant) {
        for address in self.estate.waiting_for(wanted) {
            self.estate.end_wait(address);
            let entry = self.addresses.get_mut(&address);
            if let Some(vacancy) = entry.and_then(|entry| entry.vacancy.as_mut()) {
                vacancy.ready = Some(now);
            }
        }
    }

    /// Notes whether the owner of an address may not own it, by a newer view than its own.
    pub(crate) fn note_unfit(&mut self, address: IpAddr) {
        if self.is_unfit(address) {
            self.spread.unfit.insert(address);
            self.spread.reconsidered.insert(address);
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
    pub(crate) fn reconsider_deposing(&mut self) {
        self.spread.reconsidered.extend(&self.spread.unfit);
    }

    /// Finds out when this node takes addresses from owners that may not own them.
    pub(crate) fn consider_deposing(&mut self, now: Instant) {
        let mut bidders = None;
        for address in std::mem::take(&mut self.spread.reconsidered) {
            if !self.may_depose(address) {
                self.timers.disarm(address, Due::Depose);
            } else if !self.timers.is_armed(address, Due::Depose) {
                let bidders = bidders.get_or_insert_with(|| self.bidders(now));
                if let Some(place) = self.place_as_successor(address, bidders) {
                    let turn = self.settings.profile.interval * TURN * place;
                    self.timers.arm(address, Due::Depose, now + self.grace(address, now) + turn);
                }
            }
        }
    }

    /// Whether this node may take an address from its owner: that may not own it by a view that is
    /// newer than the owner's.
    fn may_depose(&self, address: IpAddr) -> bool {
        let wanted = self.addresses.get(&address).and_then(|entry| entry.wanted.as_ref());
        let holder = self.table.holder(address).and_then(|holder| self.peers.life(holder));
        wanted.zip(holder).is_some_and(|(wanted, holder)| {
            self.is_unfit(address)
                && self.view.is_some_and(|version| version > holder.version())
                && self.can_take()
                && self.admits(wanted, &self.settings.me)
        })
    }

    /// How many come before this node to take an address from an owner that may not own it.
    fn place_as_successor(&self, address: IpAddr, bidders: &[Bidder]) -> Option<u32> {
        let wanted = self.addresses.get(&address)?.wanted.as_ref()?;
        let may = |bidder: &Bidder| !bidder.novice && self.admits(wanted, &bidder.name);
        let bids = bidders.iter().enumerate().filter(|(_, bidder)| may(bidder));
        Bids::new(bids, wanted, address).before(&self.settings.me)
    }

    fn grace(&self, address: IpAddr, now: Instant) -> Duration {
        let deposed = self.addresses.get(&address).and_then(|entry| entry.deposed);
        let times = deposed.filter(|(_, until)| *until > now).map_or(0, |(times, _)| times);
        GRACE.saturating_mul(1 << times.min(5)).min(GRACE_LIMIT)
    }

    /// Takes an address from an owner that may not own it and had its time.
    pub(crate) fn depose(&mut self, address: IpAddr, now: Instant) {
        if !self.may_depose(address) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rank;

    fn any_bidder(name: &str) -> impl Strategy<Value = Bidder> {
        let name = NodeName::from(name);
        (0..3_usize, any::<bool>(), any::<bool>()).prop_map(move |(load, novice, unsteady)| {
            Bidder { name: name.clone(), load, novice, unsteady }
        })
    }

    fn any_bidders() -> impl Strategy<Value = Vec<Bidder>> {
        ["a", "b", "c", "d", "e", "f"].map(any_bidder).into_iter().collect::<Vec<_>>()
    }

    proptest! {
        #[test]
        fn bids_are_ordered_by_standing_and_then_by_rank(
            bidders in any_bidders(),
            preferences in proptest::collection::vec(-1..2_i32, 3),
            last in any::<u8>(),
        ) {
            let address = IpAddr::from([192, 0, 2, last]);
            let names = ["a", "b", "c"].map(NodeName::from);
            let preference = names.into_iter().zip(preferences).collect();
            let candidates = Candidates { preference, ..Candidates::default() };
            let may = |bidder: &Bidder| !bidder.novice;
            let mut order: Vec<_> = bidders.iter().filter(|bidder| may(bidder)).collect();
            order.sort_by_key(|bidder| {
                (bidder.standing(&candidates), rank(&bidder.name, address))
            });
            let found = first(&bidders, &candidates, address, may);
            prop_assert_eq!(
                found.map(|place| &bidders[place].name),
                order.first().map(|bidder| &bidder.name)
            );
            let bids = bidders.iter().enumerate().filter(|(_, bidder)| may(bidder));
            let bids = Bids::new(bids, &candidates, address);
            for bidder in &bidders {
                let place = order.iter().position(|other| other.name == bidder.name);
                let before = bids.before(&bidder.name);
                prop_assert_eq!(before, place.map(|place| u32::try_from(place).unwrap()));
            }
        }
    }
}
