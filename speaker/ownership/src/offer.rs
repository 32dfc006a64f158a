//! Handing over: the old owner answers until the new one does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::home::LIMIT;
use crate::life::Phase;
use crate::message::{Occasion, Row};
use crate::placement::{Bidder, first};
use crate::timers::Due;
use crate::{Action, Cause, Claim, NodeName, Ownership};

/// How often a successor is asked.
const PACE: Duration = Duration::from_millis(20);

/// How long a successor is asked, and how long the last owner answers when there is none.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long both answer: neighbors are told of the new owner before the old one stops.
const OVERLAP: Duration = Duration::from_millis(10);

/// When those that refused are asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// An address that is being handed over.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) occasion: Occasion,
    pub(crate) successor: Option<NodeName>,
    tried: BTreeSet<NodeName>,
    since: Instant,
}

/// What is on its way out.
#[derive(Debug, Default)]
pub(crate) struct Farewells {
    /// Addresses that are offered.
    offered: BTreeSet<IpAddr>,
    /// Those among them without a successor that is being asked.
    open: BTreeSet<IpAddr>,
    /// Yields to be said, again, against loss.
    yields: BTreeMap<(Instant, NodeName), Vec<(IpAddr, Claim)>>,
    /// When everything owned is announced again.
    greetings: BTreeSet<Instant>,
}

impl Farewells {
    /// Tells the winner that this node stopped for its claim, at once and twice more.
    pub(crate) fn say(&mut self, address: IpAddr, claim: &Claim, interval: Duration, now: Instant) {
        for times in 0..3 {
            let key = (now + interval * times, claim.owner.clone());
            self.yields.entry(key).or_default().push((address, claim.clone()));
        }
    }

    /// Announces everything again soon: neighbors may have learnt another owner in a cut.
    pub(crate) fn greet(&mut self, now: Instant) {
        self.greetings.clear();
        self.greetings.extend([100, 600].map(|ms| now + Duration::from_millis(ms)));
    }

    pub(crate) fn forget(&mut self, address: IpAddr) {
        self.offered.remove(&address);
        self.open.remove(&address);
    }

    /// Nothing is being handed over.
    pub(crate) fn is_empty(&self) -> bool {
        self.offered.is_empty()
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        let yields = self.yields.keys().next().map(|(at, _)| *at);
        yields.into_iter().chain(self.greetings.first().copied()).min()
    }
}

impl Ownership {
    /// Says the yields that are due, and announces again.
    pub(crate) fn say_farewells(&mut self, now: Instant) {
        while let Some(entry) = self.farewells.yields.first_entry()
            && entry.key().0 <= now
        {
            let ((_, winner), rows) = entry.remove_entry();
            self.outbox.yields.entry(winner).or_default().extend(rows);
        }
        while self.farewells.greetings.first().is_some_and(|at| *at <= now) {
            self.farewells.greetings.pop_first();
            self.outbox.repeat.extend(self.table.held_by(&self.settings.me));
        }
    }

    /// The speaker is to end.
    pub(crate) fn leave(&mut self, now: Instant) {
        self.leaving = true;
        self.home.leave(self.draining);
        self.settle_all_mine(now);
        self.cancel_probes();
        self.memory_changed = true;
    }

    /// Whether nothing is left; true once.
    pub(crate) fn has_left(&mut self) -> bool {
        self.leaving
            && self.farewells.is_empty()
            && self.table.load(&self.settings.me) == 0
            && !std::mem::replace(&mut self.left, true)
    }

    /// Whether what is held is handed over, or kept after all.
    pub(crate) fn settle_departure(&mut self, address: IpAddr, now: Instant) {
        let Some(entry) = self.addresses.get(&address) else { return };
        let reason = self.reason_to_leave(entry);
        let Some(entry) = self.addresses.get_mut(&address) else { return };
        match (&mut entry.phase, reason) {
            (Phase::Owner, Some(occasion)) => self.begin_offer(address, occasion, None, now),
            (Phase::Offering(offer), Some(occasion)) => offer.occasion = occasion,
            (Phase::Offering(offer), None) => match offer.occasion {
                Occasion::Departure | Occasion::Restart => self.keep(address),
                Occasion::GiveBack | Occasion::Rebalance => {}
            },
            (Phase::Owner | Phase::Idle | Phase::Probing, _) => {}
        }
    }

    /// Takes an offer back.
    fn keep(&mut self, address: IpAddr) {
        for due in [Due::Offer, Due::Stop, Due::GiveUp] {
            self.timers.disarm(address, due);
        }
        self.farewells.forget(address);
        if let Some(entry) = self.addresses.get_mut(&address) {
            entry.phase = Phase::Owner;
            self.outbox.touched.insert(address);
        }
    }

    /// Starts to hand an address over, to one node or to whoever comes first in the order.
    pub(crate) fn begin_offer(
        &mut self,
        address: IpAddr,
        occasion: Occasion,
        successor: Option<NodeName>,
        now: Instant,
    ) {
        let Some(entry) = self.addresses.get_mut(&address) else { return };
        self.farewells.offered.insert(address);
        match &successor {
            Some(_) => self.timers.arm(address, Due::Offer, now),
            None => {
                self.farewells.open.insert(address);
            }
        }
        entry.phase =
            Phase::Offering(Offer { occasion, successor, tried: BTreeSet::new(), since: now });
        self.outbox.touched.insert(address);
    }

    /// Finds successors for what has none, dealt out evenly.
    pub(crate) fn choose_successors(&mut self, now: Instant) {
        if self.farewells.open.is_empty() {
            return;
        }
        let mut bidders = self.bidders(now);
        bidders.retain(|bidder| bidder.name != self.settings.me);
        for address in &self.farewells.offered {
            if let Some(successor) = self.successor(*address)
                && let Some(bidder) = bidders.iter_mut().find(|one| one.name == *successor)
            {
                bidder.load += 1;
            }
        }
        for address in std::mem::take(&mut self.farewells.open) {
            self.choose_successor(address, &mut bidders, now);
        }
    }

    /// Whether another is about to answer for an address, or does already.
    pub(crate) fn is_on_its_way(&self, address: IpAddr) -> bool {
        self.successor(address).is_some() || self.timers.is_armed(address, Due::Stop)
    }

    fn successor(&self, address: IpAddr) -> Option<&NodeName> {
        match &self.addresses.get(&address)?.phase {
            Phase::Offering(offer) => offer.successor.as_ref(),
            Phase::Idle | Phase::Probing | Phase::Owner => None,
        }
    }

    fn choose_successor(&mut self, address: IpAddr, bidders: &mut [Bidder], now: Instant) {
        let Some(entry) = self.addresses.get(&address) else { return };
        let (Phase::Offering(offer), Some(wanted)) = (&entry.phase, &entry.wanted) else { return };
        let found = first(bidders, wanted, address, |bidder| {
            bidder.is_settled()
                && !offer.tried.contains(&bidder.name)
                && self.admits(wanted, &bidder.name)
        });
        let Some(place) = found else { return self.find_none(address, now) };
        bidders[place].load += 1;
        let successor = bidders[place].name.clone();
        self.timers.disarm(address, Due::GiveUp);
        self.timers.arm(address, Due::Offer, now);
        if let Some(offer) = self.offer_mut(address) {
            offer.successor = Some(successor);
            offer.since = now;
        }
    }

    /// Nobody can take it: it is kept while that is possible, and the nodes are asked again.
    fn find_none(&mut self, address: IpAddr, now: Instant) {
        if self.leaving {
            self.timers.arm_once(address, Due::GiveUp, now + PATIENCE);
        }
        self.timers.arm(address, Due::Offer, now + if self.leaving { PACE } else { AGAIN });
    }

    fn offer_mut(&mut self, address: IpAddr) -> Option<&mut Offer> {
        match &mut self.addresses.get_mut(&address)?.phase {
            Phase::Offering(offer) => Some(offer),
            Phase::Idle | Phase::Probing | Phase::Owner => None,
        }
    }

    /// Offers an address to its successor, again, or looks for another.
    pub(crate) fn offer(&mut self, address: IpAddr, now: Instant) {
        let leaving = self.leaving;
        let Some(offer) = self.offer_mut(address) else { return };
        let Some(successor) = offer.successor.clone() else {
            if !leaving {
                offer.tried.clear();
            }
            self.farewells.open.insert(address);
            return;
        };
        if offer.since + PATIENCE <= now || self.peers.life(&successor).is_none() {
            return self.try_next(address, &successor, now);
        }
        let Some(offer) = self.offer_mut(address) else { return };
        let letter = (successor, offer.occasion);
        self.outbox.handovers.entry(letter).or_default().insert(address);
        self.timers.arm(address, Due::Offer, now + PACE);
    }

    /// A successor is silent or refuses.
    fn try_next(&mut self, address: IpAddr, refuser: &NodeName, now: Instant) {
        let Some(offer) = self.offer_mut(address) else { return };
        match offer.occasion {
            Occasion::Departure | Occasion::Restart => {
                offer.tried.insert(refuser.clone());
                offer.successor = None;
                self.timers.disarm(address, Due::Offer);
                self.farewells.open.insert(address);
            }
            Occasion::GiveBack | Occasion::Rebalance => {
                self.keep(address);
                self.settle(address, now);
            }
        }
    }

    /// A peer has died: those that were to take something from here do not.
    pub(crate) fn drop_successor(&mut self, node: &NodeName, now: Instant) {
        let lost: Vec<_> = self
            .farewells
            .offered
            .iter()
            .copied()
            .filter(|address| self.successor(*address) == Some(node))
            .collect();
        for address in lost {
            self.try_next(address, node, now);
        }
    }

    /// The successor has claimed it.
    pub(crate) fn await_stop(&mut self, address: IpAddr, now: Instant) {
        self.timers.disarm(address, Due::Offer);
        self.timers.disarm(address, Due::GiveUp);
        self.farewells.open.remove(&address);
        self.timers.arm_once(address, Due::Stop, now + OVERLAP);
    }

    /// Whoever claimed it has given it up again, before this node stopped: it is still this node's,
    /// and handed over anew if that is still wanted.
    pub(crate) fn stop_no_more(&mut self, address: IpAddr) {
        if self.timers.is_armed(address, Due::Stop) {
            self.keep(address);
        }
    }

    /// Stops answering for what another claims now.
    pub(crate) fn stop(&mut self, address: IpAddr, now: Instant) {
        let Some(offer) = self.offer_mut(address) else { return };
        let restart = offer.occasion == Occasion::Restart;
        let guest = self.addresses.get(&address).is_some_and(|entry| entry.is_guest(now));
        if restart && !guest {
            self.home.note_handed_over(address);
            self.memory_changed = true;
        }
        self.give_up(address);
        self.settle(address, now);
    }

    /// A peer asks this node to take addresses from it.
    pub(crate) fn take_over(
        &mut self,
        from: &NodeName,
        occasion: Occasion,
        rows: Vec<Row>,
        now: Instant,
    ) {
        for Row { address, claim } in rows {
            self.take_row(from, address, claim.clone(), now);
            let base = self.table.best(address).is_some_and(|best| *best == claim);
            if !base {
                // It is claimed already, or somebody knows better.
                self.outbox.rows.entry(from.clone()).or_default().insert(address);
            } else if self.may_succeed(address) {
                let cause = match occasion {
                    Occasion::Departure | Occasion::Restart => Cause::HandOver,
                    Occasion::GiveBack => Cause::GivenBack,
                    Occasion::Rebalance => Cause::Rebalanced,
                };
                self.claim(address, cause, now);
                self.home.receive(address);
                if let Some(entry) = self.addresses.get_mut(&address) {
                    entry.guest_until = (occasion == Occasion::Restart).then_some(now + LIMIT);
                }
            } else {
                self.outbox.refusals.entry(from.clone()).or_default().push((address, claim));
            }
        }
    }

    /// Whether this node takes what is handed over to it.
    fn may_succeed(&self, address: IpAddr) -> bool {
        self.can_take() && self.addresses.get(&address).is_some_and(|entry| self.may_hold(entry))
    }

    /// A successor does not want it.
    pub(crate) fn be_refused(&mut self, from: &NodeName, rows: Vec<Row>, now: Instant) {
        for Row { address, claim } in rows {
            let current = self.mine(address).is_some_and(|mine| *mine == claim);
            if current && self.successor(address) == Some(from) {
                self.try_next(address, from, now);
            }
        }
    }

    /// A peer is alive, again: it is told of with an action.
    pub(crate) fn tell_up(&mut self, node: &NodeName) {
        self.outbox.peers.push(Action::PeerUp(node.clone()));
    }
}
