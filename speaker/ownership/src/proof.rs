//! Whether owners are seen to answer: another node asks the segment now and then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::claim::rank;
use crate::message::{Flags, Sighting};
use crate::timers::{Due, Timers};
use crate::{Action, Asking, Mac, NodeName, Ownership, Proof};

/// How long after a claim it is asked for: the announcements are out by then.
const SETTLED: Duration = Duration::from_millis(150);

/// How long after a question without an answer the next is asked: one frame may be lost.
const AGAIN: Duration = Duration::from_secs(1);

/// Questions are asked together, and what came of them is told together: a thousand of them are not
/// to wake every node a thousand times. The first after a pause waits for no other.
const TOGETHER: Duration = Duration::from_millis(50);

/// All nodes together ask for one address in this time: for a thousand in half a second.
const EACH: Duration = Duration::from_micros(500);

/// How long an answer waits for others to the same owner.
const GATHER: Duration = Duration::from_millis(10);

/// In how many steps, one a second, all addresses are gone through; with more addresses it takes
/// longer, as all nodes together are to ask for so many of them a second at most.
const ROUND: usize = 60;
const MOST: usize = 10;
const STEP: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Proofs {
    queue: VecDeque<IpAddr>,
    queued: BTreeSet<IpAddr>,
    asked: BTreeMap<IpAddr, Question>,
    /// Those whose last question was not answered.
    doubted: BTreeSet<IpAddr>,
    /// What is to be told to the owners, and when.
    seen: BTreeMap<NodeName, Vec<Sighting>>,
    tell_at: Option<Instant>,
    ask_from: Option<Instant>,
    step_at: Option<Instant>,
    cursor: Option<IpAddr>,
}

#[derive(Debug)]
struct Question {
    owner: NodeName,
    epoch: u64,
}

impl Proofs {
    /// An address has a new owner.
    pub(crate) fn expect(&mut self, address: IpAddr, now: Instant, timers: &mut Timers) {
        self.doubted.remove(&address);
        timers.arm(address, Due::Prove, now + SETTLED);
    }

    pub(crate) fn queue(&mut self, address: IpAddr) {
        if self.queued.insert(address) {
            self.queue.push_back(address);
        }
    }

    /// The address is to be asked for with another aim; returns whether it was with this one.
    pub(crate) fn abandon(&mut self, address: IpAddr) -> bool {
        self.asked.remove(&address).is_some()
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        let ask = self.ask_from.filter(|_| !self.queue.is_empty());
        [ask, self.step_at, self.tell_at].into_iter().flatten().min()
    }
}

impl Ownership {
    /// Asks for the next in the queue, and tells what came of earlier questions, if it is time.
    pub(crate) fn ask_for_proof(&mut self, now: Instant) {
        if self.proofs.tell_at.is_some_and(|at| at <= now) {
            self.proofs.tell_at = None;
            for (owner, sightings) in std::mem::take(&mut self.proofs.seen) {
                self.outbox.wires.entry(owner).or_default().extend(sightings);
            }
        }
        self.step_round(now);
        if self.proofs.queue.is_empty() || self.proofs.ask_from.is_some_and(|from| now < from) {
            return;
        }
        let nodes = u32::try_from(self.peers.living().count() + 1).unwrap_or(u32::MAX);
        let own_each = EACH.saturating_mul(nodes);
        let mut share = TOGETHER.max(own_each);
        while share >= own_each
            && let Some(address) = self.proofs.queue.pop_front()
        {
            self.proofs.queued.remove(&address);
            if let Some(question) = self.question(address) {
                share -= own_each;
                self.proofs.asked.insert(address, question);
                self.proofs.ask_from = Some(now + TOGETHER.max(own_each));
                self.outbox.asks.push(Action::Ask { address, how: Asking::Once });
            }
        }
    }

    /// Queues the next part of all addresses.
    fn step_round(&mut self, now: Instant) {
        if self.peers.is_empty() || self.addresses.is_empty() {
            self.proofs.step_at = None;
            return;
        }
        let at = *self.proofs.step_at.get_or_insert(now + STEP);
        if at > now {
            return;
        }
        self.proofs.step_at = Some(now + STEP);
        let share = self.addresses.len().div_ceil(ROUND).min(MOST);
        let from = self.proofs.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let next: Vec<_> =
            self.addresses.range((from, Bound::Unbounded)).take(share).map(|(at, _)| *at).collect();
        self.proofs.cursor = next.last().copied().filter(|_| next.len() == share);
        for address in next {
            if self.question(address).is_some() {
                self.proofs.queue(address);
            }
        }
    }

    /// What this node is to ask for an address, if it is the one to ask.
    fn question(&self, address: IpAddr) -> Option<Question> {
        let owner = self.table.holder(address).filter(|owner| **owner != self.settings.me)?;
        let epoch = self.table.best(address)?.epoch;
        let busy = self.proofs.asked.contains_key(&address) || self.is_muted();
        let wanted = self.addresses.get(&address)?.wanted.as_ref()?;
        if busy || self.start.is_listening() || !self.admits(wanted, &self.settings.me) {
            return None;
        }
        let mine = rank(&self.settings.me, address);
        let deaf = Flags::MUTED | Flags::LISTENING;
        let first = self.peers.living().all(|(name, life)| {
            name == owner
                || life.flags().has(deaf)
                || !self.admits(wanted, name)
                || rank(name, address) > mine
        });
        first.then(|| Question { owner: owner.clone(), epoch })
    }

    /// What came of a question.
    pub(crate) fn note_proof(&mut self, address: IpAddr, mac: Option<Mac>, now: Instant) {
        let Some(Question { owner, epoch }) = self.proofs.asked.remove(&address) else { return };
        if mac.is_none() && self.proofs.doubted.insert(address) {
            self.timers.arm(address, Due::Prove, now + AGAIN);
            return;
        }
        self.proofs.doubted.remove(&address);
        let sighting = Sighting { address, epoch, mac };
        self.proofs.seen.entry(owner).or_default().push(sighting);
        self.proofs.tell_at.get_or_insert(now + GATHER);
    }

    /// What another saw of an address of this node's.
    pub(crate) fn take_proof(&mut self, from: &NodeName, sightings: Vec<Sighting>) {
        for Sighting { address, epoch, mac } in sightings {
            if self.mine(address).is_none_or(|mine| mine.epoch != epoch) {
                continue;
            }
            let own = |mac: Mac| self.stations.iter().flatten().any(|(_, known)| *known == mac);
            let by = from.clone();
            let proof = match mac {
                None => Proof::Silent { by },
                Some(mac) if own(mac) => Proof::Seen { by },
                Some(mac) => Proof::Wrong { by, mac },
            };
            if let Some(entry) = self.addresses.get_mut(&address) {
                entry.proof = proof;
                self.outbox.touched.insert(address);
            }
        }
    }
}
