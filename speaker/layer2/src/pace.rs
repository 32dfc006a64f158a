//! How much may be done, and in which order what is due.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How much may pass: one each `interval`, and `burst` of them at once after a rest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) interval: Duration,
    pub(crate) burst: u32,
}

/// A token bucket, kept as the one instant at which it will be full again.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    /// When the next one may pass; `None` if at any time.
    pub(crate) fn ready_at(&self, rate: Rate) -> Option<Instant> {
        self.full_at?.checked_sub(rate.interval * rate.burst.saturating_sub(1))
    }

    /// Lets one pass if it may.
    pub(crate) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        if self.ready_at(rate).is_some_and(|ready| now < ready) {
            return false;
        }
        self.charge(rate, now);
        true
    }

    /// Counts one that has passed without having asked.
    pub(crate) fn charge(&mut self, rate: Rate, now: Instant) {
        let from = self.full_at.map_or(now, |full| full.max(now));
        self.full_at = Some(from + rate.interval);
    }

    /// Whether it says nothing that a new one would not.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full| full <= now)
    }
}

/// What is to be done at its time. Of what is due, the lowest rank comes first: where there is more
/// than the pace lets through, the time at which it was due says little about what can wait.
#[derive(Debug)]
pub(crate) struct Agenda<K, R> {
    entries: BTreeMap<K, (Instant, R)>,
    waiting: BTreeSet<(Instant, K)>,
    due: BTreeSet<(R, K)>,
}

impl<K: Copy + Ord, R: Copy + Ord> Agenda<K, R> {
    pub(crate) fn new() -> Self {
        Self { entries: BTreeMap::new(), waiting: BTreeSet::new(), due: BTreeSet::new() }
    }

    /// Replaces what was to be done of the same key.
    pub(crate) fn put(&mut self, key: K, at: Instant, rank: R) {
        self.remove(key);
        self.entries.insert(key, (at, rank));
        self.waiting.insert((at, key));
    }

    /// Of what is to be done of a key.
    pub(crate) fn rank(&self, key: K) -> Option<&R> {
        self.entries.get(&key).map(|(_, rank)| rank)
    }

    pub(crate) fn remove(&mut self, key: K) {
        if let Some((at, rank)) = self.entries.remove(&key) {
            self.waiting.remove(&(at, key));
            self.due.remove(&(rank, key));
        }
    }

    /// When something is or was due first.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        match self.due.first() {
            Some((_, key)) => self.entries.get(key).map(|(at, _)| *at),
            None => self.waiting.first().map(|(at, _)| *at),
        }
    }

    /// Takes what is due and first in rank, if the bucket lets it pass.
    pub(crate) fn pop(&mut self, bucket: &mut Bucket, rate: Rate, now: Instant) -> Option<(K, R)> {
        while let Some(&(at, key)) = self.waiting.first()
            && at <= now
        {
            self.waiting.pop_first();
            self.due.extend(self.entries.get(&key).map(|&(_, rank)| (rank, key)));
        }
        if self.due.is_empty() || !bucket.take(rate, now) {
            return None;
        }
        let (rank, key) = self.due.pop_first()?;
        self.entries.remove(&key);
        Some((key, rank))
    }
}

/// A part of `whole` that is always the same for the same address, and evenly spread over addresses,
/// seeds and turns.
pub(crate) fn part(whole: Duration, seed: u64, address: IpAddr, turn: u8) -> Duration {
    let address = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut mixed = mix(seed ^ u64::from(turn));
    for segment in address.segments() {
        mixed = mix(mixed ^ u64::from(segment));
    }
    let [high, low, ..] = mixed.to_be_bytes();
    whole * u32::from(u16::from_be_bytes([high, low])) / 0x1_0000
}

/// The finalizer of SplitMix64: each bit of the result depends on each bit of the argument.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::epoch;

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let rate = Rate { interval: Duration::from_millis(10), burst: 3 };
        let (mut bucket, start) = (Bucket::default(), epoch());
        let mut passed = Vec::new();
        for millisecond in 0..45 {
            let now = start + Duration::from_millis(millisecond);
            while bucket.take(rate, now) {
                passed.push(millisecond);
            }
        }
        assert_eq!(passed, [0, 0, 0, 10, 20, 30, 40]);
        assert_eq!(bucket.ready_at(rate), Some(start + Duration::from_millis(50)));
        assert!(!bucket.is_full(start + Duration::from_millis(69)));
        assert!(bucket.is_full(start + Duration::from_millis(70)));
    }

    #[test]
    fn what_is_due_comes_by_rank_and_nothing_before_its_time() {
        let rate = Rate { interval: Duration::from_millis(10), burst: 2 };
        let (mut bucket, start) = (Bucket::default(), epoch());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut agenda = Agenda::new();
        for (key, time, rank) in [('a', 0, 3), ('b', 1, 1), ('c', 2, 2), ('d', 99, 0)] {
            agenda.put(key, at(time), rank);
        }
        assert_eq!(agenda.next_at(), Some(at(0)));
        agenda.put('a', at(3), 4);
        assert_eq!(agenda.pop(&mut bucket, rate, at(0)), None);
        assert_eq!(agenda.pop(&mut bucket, rate, at(5)), Some(('b', 1)));
        assert_eq!(agenda.pop(&mut bucket, rate, at(5)), Some(('c', 2)));
        assert_eq!(agenda.pop(&mut bucket, rate, at(5)), None, "the bucket is empty");
        assert_eq!(agenda.next_at(), Some(at(3)));
        agenda.remove('a');
        assert_eq!(agenda.pop(&mut bucket, rate, at(90)), None);
        assert_eq!(agenda.pop(&mut bucket, rate, at(99)), Some(('d', 0)));
        assert_eq!(agenda.next_at(), None);
    }

    #[test]
    fn parts_are_spread_and_always_the_same() {
        let whole = Duration::from_secs(60);
        let of = |n: u16, seed, turn| {
            let [high, low] = n.to_be_bytes();
            part(whole, seed, IpAddr::from([10, 0, high, low]), turn)
        };
        let mut sixths = [0; 6];
        for n in 0..6000 {
            sixths[usize::try_from(of(n, 1, 0).as_secs() / 10).unwrap()] += 1;
        }
        assert!(sixths.iter().all(|count| (850..1150).contains(count)), "{sixths:?}");
        assert_eq!(of(7, 1, 0), of(7, 1, 0));
        assert_ne!(of(7, 1, 0), of(7, 2, 0));
        assert_ne!(of(7, 1, 0), of(7, 1, 1));
    }
}
