//! Evening out: addresses move from the node with the most to the one with the least. On request,
//! slowly, and at once in the first minute of a cluster, when no connection is old.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::life::Phase;
use crate::message::Occasion;
use crate::placement::Bidder;
use crate::{Candidates, NodeName, Ownership};

/// How often one address is moved.
const DRIP: Duration = Duration::from_secs(1);

/// How often a cluster that has just been started is looked at.
const EARLY: Duration = Duration::from_millis(250);

/// For how many seconds a cluster has just been started.
const BEGINNING: u8 = 60;

/// The older of two nodes holds this much more at least, or nothing is gained.
const GAIN: usize = 2;

/// Since when addresses have been claimed in this cluster.
#[derive(Debug)]
pub(crate) struct Birth {
    at: Option<Instant>,
    /// It was before this speaker can tell.
    old: bool,
    /// Something has failed or moved since: what is uneven then is not the beginning's.
    disturbed: bool,
}

impl Birth {
    pub(crate) fn new(old: bool) -> Self {
        Self { at: None, old, disturbed: false }
    }

    /// An address is claimed.
    pub(crate) fn note(&mut self, now: Instant) {
        self.at.get_or_insert(now);
    }

    /// In seconds; 255 if that or longer.
    pub(crate) fn age(&self, now: Instant) -> u8 {
        if self.old {
            return u8::MAX;
        }
        let since = |at| now.saturating_duration_since(at).as_secs();
        self.at.map_or(0, |at| u8::try_from(since(at)).unwrap_or(u8::MAX))
    }

    /// What a peer says of it.
    pub(crate) fn hear(&mut self, age: u8, now: Instant) {
        if age <= self.age(now) {
            return;
        }
        match now.checked_sub(Duration::from_secs(age.into())) {
            Some(at) if age < u8::MAX => self.at = Some(at),
            Some(_) | None => self.old = true,
        }
    }

    /// A node has died, or an address has changed hands.
    pub(crate) fn disturb(&mut self) {
        self.disturbed = true;
    }

    fn is_beginning(&self, now: Instant) -> bool {
        !self.disturbed && self.age(now) < BEGINNING
    }
}

#[derive(Debug, Default)]
pub(crate) struct Spread {
    /// Addresses whose owner may not own them, in the view of this node.
    pub(crate) unfit: BTreeSet<IpAddr>,
    /// Those among them of which it is to be found out when this node takes them.
    pub(crate) reconsidered: BTreeSet<IpAddr>,
    next: Option<Instant>,
    /// Nothing has changed since it was found that nothing is to be moved.
    pub(crate) settled: bool,
}

impl Spread {
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }
}

impl Ownership {
    pub(crate) fn even_out(&mut self, now: Instant) {
        let beginning = self.birth.is_beginning(now);
        if (!beginning && !self.settings.rebalance) || self.peers.is_empty() {
            self.spread.next = None;
            return;
        }
        let pace = if beginning { EARLY } else { DRIP };
        let at = *self.spread.next.get_or_insert(now + pace);
        if at > now {
            return;
        }
        self.spread.next = Some(now + pace);
        if self.spread.settled || !self.is_quiet() {
            return;
        }
        let moves = self.excess(if beginning { usize::MAX } else { 1 }, now);
        self.spread.settled = moves.is_empty();
        for (from, address, to) in moves {
            if from == self.settings.me {
                self.begin_offer(address, Occasion::Rebalance, Some(to), now);
            }
        }
    }

    /// Nothing is being dealt out or handed over.
    fn is_quiet(&self) -> bool {
        let novices = self.peers.living().any(|(name, _)| !self.is_fit(name));
        self.can_take()
            && !novices
            && self.estate.vacant().next().is_none()
            && self.farewells.is_empty()
    }

    /// The moves that even out, at most so many; every node comes to the same.
    fn excess(&self, most: usize, now: Instant) -> Vec<(NodeName, IpAddr, NodeName)> {
        let mut bidders = self.bidders(now);
        let mut givers: Vec<(usize, Vec<IpAddr>)> = bidders
            .iter()
            .enumerate()
            .map(|(place, bidder)| (place, self.table.held_by(&bidder.name).collect()))
            .collect();
        let mut moves = Vec::new();
        while moves.len() < most {
            givers.sort_by_key(|(place, _)| std::cmp::Reverse(bidders[*place].load));
            let Some((giver, held)) = givers.first_mut() else { break };
            let giver = *giver;
            match self.movable(&bidders, giver, held) {
                Some((index, taker)) => {
                    let address = held.remove(index);
                    bidders[giver].load -= 1;
                    bidders[taker].load += 1;
                    moves.push((bidders[giver].name.clone(), address, bidders[taker].name.clone()));
                }
                None => {
                    givers.remove(0);
                }
            }
        }
        moves
    }

    /// An address of a node that another should have, and which.
    fn movable(&self, bidders: &[Bidder], giver: usize, held: &[IpAddr]) -> Option<(usize, usize)> {
        let from = &bidders[giver];
        let mut takers: Vec<_> =
            (0..bidders.len()).filter(|taker| bidders[*taker].load + GAIN <= from.load).collect();
        takers.sort_by_key(|taker| bidders[*taker].load);
        takers.into_iter().find_map(|taker| {
            let index = held.iter().position(|address| {
                self.addresses.get(address).is_some_and(|entry| {
                    let owned =
                        from.name != self.settings.me || matches!(entry.phase, Phase::Owner);
                    let fits = |wanted: &Candidates| {
                        let score = |name: &NodeName| wanted.preference.get(name).copied();
                        let to = &bidders[taker].name;
                        self.admits(wanted, to)
                            && score(to).unwrap_or(0) >= score(&from.name).unwrap_or(0)
                    };
                    owned && entry.wanted.as_ref().is_some_and(|wanted| fits(wanted))
                })
            })?;
            Some((index, taker))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_cluster_is_that_of_its_oldest_claim() {
        #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
        let now = Instant::now() + Duration::from_secs(3600);
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut birth = Birth::new(false);
        assert_eq!(birth.age(at(100)), 0, "nothing was ever claimed");
        birth.note(at(0));
        birth.note(at(10));
        assert_eq!(birth.age(at(30)), 30);
        birth.hear(20, at(30));
        assert_eq!(birth.age(at(30)), 30);
        birth.hear(40, at(30));
        assert!(birth.is_beginning(at(49)) && !birth.is_beginning(at(50)));
        assert_eq!(birth.age(at(1000)), 255);
        assert_eq!(Birth::new(true).age(at(0)), 255);
        let mut told = Birth::new(false);
        told.hear(255, at(0));
        assert!(!told.is_beginning(at(0)));
    }
}
