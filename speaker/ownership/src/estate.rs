//! The addresses that are to be dealt out: those that nobody holds, and those that were taken up
//! a moment ago. The latter are dealt again with the others, so that speakers that look a moment
//! earlier or later come to the same result.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Candidates, Cause};

/// For how long after its loss an address is dealt with the others, taken or not.
const WAVE: Duration = Duration::from_secs(2);

/// The same after it was claimed for the first time: many may be created one after the other.
const FIRST: Duration = Duration::from_millis(160);

#[derive(Debug, Default)]
pub(crate) struct Estate {
    members: BTreeMap<IpAddr, Member>,
    /// In the order in which they are dealt.
    order: BTreeSet<(Wave, IpAddr)>,
    vacant: BTreeSet<IpAddr>,
    /// Those among the vacant that are not dealt yet because candidates are waited for, each with
    /// the number of its queue.
    waiting: BTreeMap<IpAddr, usize>,
    queues: BTreeMap<usize, Queue>,
    ends: BTreeSet<(Instant, IpAddr)>,
    replan: bool,
}

#[derive(Debug)]
struct Member {
    lost: Instant,
    wave: Wave,
    /// When it is dealt no more; `None` while it is vacant.
    ends: Option<Instant>,
}

/// Addresses that wait for the same candidates. Its number is where those are kept in memory: the
/// order of queues decides nothing.
#[derive(Debug)]
struct Queue {
    wanted: Arc<Candidates>,
    addresses: BTreeSet<IpAddr>,
}

/// Those that lost their owners are dealt together, whichever died first: not all speakers hear
/// of deaths in the same order. Those that were created are dealt in the order of their creation,
/// which all learn alike; what was created before counts.
type Wave = Option<Instant>;

impl Estate {
    /// Something has changed by which addresses are dealt out.
    pub(crate) fn replan(&mut self) {
        self.replan = true;
    }

    pub(crate) fn take_replan(&mut self) -> bool {
        std::mem::take(&mut self.replan)
    }

    pub(crate) fn lose(&mut self, address: IpAddr, cause: Cause, now: Instant) {
        self.drop(address);
        let wave = (cause == Cause::First).then_some(now);
        self.members.insert(address, Member { lost: now, wave, ends: None });
        self.order.insert((wave, address));
        self.vacant.insert(address);
        self.replan = true;
    }

    /// A vacant address is not to be dealt before [`end_wait`](Self::end_wait).
    pub(crate) fn wait(&mut self, address: IpAddr, wanted: &Arc<Candidates>) {
        self.end_wait(address);
        let number = Arc::as_ptr(wanted).addr();
        let new = || Queue { wanted: Arc::clone(wanted), addresses: BTreeSet::new() };
        self.queues.entry(number).or_insert_with(new).addresses.insert(address);
        self.waiting.insert(address, number);
    }

    pub(crate) fn end_wait(&mut self, address: IpAddr) {
        let Some(number) = self.waiting.remove(&address) else { return };
        if let Some(queue) = self.queues.get_mut(&number) {
            queue.addresses.remove(&address);
            if queue.addresses.is_empty() {
                self.queues.remove(&number);
            }
        }
    }

    pub(crate) fn waits(&self, address: IpAddr) -> bool {
        self.waiting.contains_key(&address)
    }

    /// What is waited for.
    pub(crate) fn awaited(&self) -> Vec<Arc<Candidates>> {
        self.queues.values().map(|queue| Arc::clone(&queue.wanted)).collect()
    }

    /// Those that wait for these candidates.
    pub(crate) fn waiting_for(&self, wanted: &Arc<Candidates>) -> Vec<IpAddr> {
        let queue = self.queues.get(&Arc::as_ptr(wanted).addr());
        queue.into_iter().flat_map(|queue| &queue.addresses).copied().collect()
    }

    pub(crate) fn find(&mut self, address: IpAddr, cause: Cause, now: Instant) {
        self.vacant.remove(&address);
        self.end_wait(address);
        let Some(member) = self.members.get_mut(&address) else { return };
        let ends = if cause == Cause::First { now + FIRST } else { member.lost + WAVE };
        member.ends = Some(ends);
        self.ends.insert((ends, address));
    }

    pub(crate) fn drop(&mut self, address: IpAddr) {
        self.vacant.remove(&address);
        self.end_wait(address);
        let Some(member) = self.members.remove(&address) else { return };
        self.order.remove(&(member.wave, address));
        if let Some(ends) = member.ends {
            self.ends.remove(&(ends, address));
        }
    }

    /// Those that nobody holds.
    pub(crate) fn vacant(&self) -> impl Iterator<Item = IpAddr> {
        self.vacant.iter().copied()
    }

    /// Those of some addresses that nobody holds.
    pub(crate) fn vacant_among(&self, addresses: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        self.vacant.intersection(addresses).copied().collect()
    }

    pub(crate) fn vacancies(&self) -> usize {
        self.vacant.len()
    }

    /// Whether there is anything to deal.
    pub(crate) fn is_open(&self) -> bool {
        self.vacant.len() > self.waiting.len()
    }

    /// All that are dealt out now.
    pub(crate) fn deal(&mut self, now: Instant) -> Vec<IpAddr> {
        while let Some((_, address)) = self.ends.first().copied().filter(|(at, _)| *at <= now) {
            self.drop(address);
        }
        let order = self.order.iter().filter(|_| !self.vacant.is_empty());
        order.map(|(_, address)| *address).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_dealt_together_for_a_time_whether_it_is_taken_or_not() {
        #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let address = |n| IpAddr::from([192, 0, 2, n]);
        let mut estate = Estate::default();
        estate.lose(address(5), Cause::First, at(0));
        estate.lose(address(4), Cause::First, at(10));
        estate.lose(address(9), Cause::Death, at(20));
        estate.lose(address(8), Cause::Death, at(30));
        assert!(estate.take_replan() && !estate.take_replan());
        let all = [8, 9, 5, 4].map(address);
        assert_eq!(estate.deal(at(30)), all, "the dead's by address, the new ones as they came");
        estate.find(address(9), Cause::Death, at(50));
        estate.find(address(5), Cause::First, at(50));
        assert_eq!(estate.deal(at(209)), all);
        assert_eq!(estate.deal(at(210)), [8, 9, 4].map(address));
        assert_eq!(estate.deal(at(2020)), [8, 4].map(address), "the vacant ones stay");
        estate.find(address(8), Cause::Death, at(2030));
        estate.find(address(4), Cause::First, at(2030));
        assert!(estate.deal(at(2031)).is_empty(), "nothing is vacant");
    }
    #[test]
    fn what_waits_for_the_same_candidates_waits_together() {
        #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
        let now = Instant::now();
        let address = |n| IpAddr::from([192, 0, 2, n]);
        let (one, other) = (Arc::new(Candidates::default()), Arc::new(Candidates::default()));
        let mut estate = Estate::default();
        for n in 1..=4 {
            estate.lose(address(n), Cause::First, now);
            estate.wait(address(n), if n < 4 { &one } else { &other });
        }
        assert!(!estate.is_open(), "all wait");
        assert_eq!(estate.awaited().len(), 2);
        estate.wait(address(3), &other);
        assert_eq!(estate.waiting_for(&one), [1, 2].map(address));
        assert_eq!(estate.waiting_for(&other), [3, 4].map(address));
        estate.find(address(4), Cause::First, now);
        estate.end_wait(address(3));
        assert!(estate.is_open() && !estate.waits(address(3)) && estate.waits(address(1)));
        assert!(estate.waiting_for(&other).is_empty());
        estate.drop(address(1));
        estate.drop(address(2));
        assert!(estate.awaited().is_empty());
        let claimed = [2, 3, 4].map(address).into();
        assert_eq!(estate.vacant_among(&claimed), [address(3)]);
    }
}
