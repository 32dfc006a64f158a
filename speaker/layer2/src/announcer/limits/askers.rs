//! Who asks: how often each source is answered, and who is a neighbor.
//!
//! A flood under forged names differs from neighbors in nothing but that those were there before.
//! So who has been answered while there was no flood, at least [`Askers::PROBATION`] ago, is a neighbor,
//! and stays one through any flood. One who is new while there is one competes with all strangers; so
//! do all who were too new when it began.
//!
//! What this cannot do: tell a neighbor from one who forges its very name (that one's share is used
//! up then, the others' is not), or from one who has prepared his names slowly and for long.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use pnet::util::MacAddr;

use crate::pace::{Bucket, Rate};

/// The answers to one source.
const ANSWERS_TO_ONE: Rate = Rate { interval: Duration::from_millis(20), burst: 100 };

/// What is known of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Neighbor,
    Stranger,
}

/// See the module. A station that floods is held back; one that asks for every address here, as a
/// router does that has just started, is not.
#[derive(Debug, Default)]
pub(super) struct Askers {
    neighbors: BTreeMap<MacAddr, Neighbor>,
    /// Who asked the longest time ago comes first.
    by_asked: BTreeSet<(Instant, MacAddr)>,
    /// Who may become one, and since when; the oldest first.
    newcomers: VecDeque<(Instant, MacAddr)>,
    /// Until when nobody does, for there is a flood.
    distrusts_until: Option<Instant>,
    /// How much strangers have asked lately.
    strangers: BTreeMap<MacAddr, Bucket>,
    swept_at: Option<Instant>,
}

#[derive(Debug)]
struct Neighbor {
    asked: Instant,
    bucket: Bucket,
}

impl Askers {
    /// More strangers are not told apart: whoever comes then is held back with all others only.
    const STRANGERS: usize = 1024;
    const SWEEP: Duration = Duration::from_secs(1);
    /// For one more the one goes that has not asked for the longest time.
    const NEIGHBORS: usize = 4096;
    /// More do not become neighbors in one [`Self::PROBATION`], so that a short shower of forged
    /// names does not replace all that there are.
    const NEWCOMERS: usize = 256;
    /// How long before a flood a neighbor must have been there.
    const PROBATION: Duration = Duration::from_secs(10);
    /// How long after somebody was refused nobody is trusted.
    const DISTRUST: Duration = Duration::from_secs(10);
    /// The order of neighbors is no more exact than this, so that it costs nothing to ask often.
    const ORDER: Duration = Duration::from_secs(1);

    /// What a source is, if it has not asked too much.
    pub(super) fn admit(&mut self, asker: MacAddr, owned: usize, now: Instant) -> Option<Standing> {
        self.promote(now);
        let all_twice = u32::try_from(owned.saturating_mul(2)).unwrap_or(u32::MAX);
        let rate = Rate { burst: ANSWERS_TO_ONE.burst.max(all_twice), ..ANSWERS_TO_ONE };
        if let Some(neighbor) = self.neighbors.get_mut(&asker) {
            if now >= neighbor.asked + Self::ORDER {
                self.by_asked.remove(&(neighbor.asked, asker));
                self.by_asked.insert((now, asker));
                neighbor.asked = now;
            }
            return neighbor.bucket.take(rate, now).then_some(Standing::Neighbor);
        }
        if self.strangers.len() >= Self::STRANGERS
            && self.swept_at.is_none_or(|swept| now >= swept + Self::SWEEP)
        {
            self.strangers.retain(|_, bucket| !bucket.is_full(now));
            self.swept_at = Some(now);
        }
        let full = self.strangers.len() >= Self::STRANGERS;
        let admitted = match self.strangers.get_mut(&asker) {
            Some(bucket) => bucket.take(rate, now),
            None if full => true,
            None => self.strangers.entry(asker).or_default().take(rate, now),
        };
        admitted.then_some(Standing::Stranger)
    }

    /// A stranger has been answered: in time it becomes a neighbor.
    pub(super) fn note(&mut self, asker: MacAddr, now: Instant) {
        let trusts = self.distrusts_until.is_none_or(|until| until <= now);
        if trusts
            && self.newcomers.len() < Self::NEWCOMERS
            && !self.newcomers.iter().any(|(_, newcomer)| *newcomer == asker)
        {
            self.newcomers.push_back((now, asker));
        }
    }

    /// A stranger could not be answered because of all others: there is a flood, and who has come
    /// lately may be part of it.
    pub(super) fn distrust(&mut self, now: Instant) {
        self.newcomers.clear();
        self.distrusts_until = Some(now + Self::DISTRUST);
    }

    fn promote(&mut self, now: Instant) {
        while let Some(&(since, asker)) = self.newcomers.front()
            && since + Self::PROBATION <= now
        {
            self.newcomers.pop_front();
            self.strangers.remove(&asker);
            self.by_asked.insert((now, asker));
            self.neighbors.insert(asker, Neighbor { asked: now, bucket: Bucket::default() });
            if self.neighbors.len() > Self::NEIGHBORS
                && let Some((_, longest)) = self.by_asked.pop_first()
            {
                self.neighbors.remove(&longest);
            }
        }
    }
}

#[cfg(test)]
impl Askers {
    /// The most that are ever kept.
    pub(super) const MOST: usize = Self::NEIGHBORS + Self::NEWCOMERS + Self::STRANGERS;

    pub(super) fn kept(&self) -> usize {
        assert_eq!(self.by_asked.len(), self.neighbors.len());
        self.neighbors.len() + self.newcomers.len() + self.strangers.len()
    }

    pub(super) fn neighbors(&self) -> usize {
        self.neighbors.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::epoch;

    #[test]
    fn of_too_many_neighbors_those_are_kept_that_asked_last() {
        let (mut askers, mut now) = (Askers::default(), epoch());
        let station = |number: u16| {
            let [high, low] = number.to_be_bytes();
            MacAddr::new(0x02, 0, 0, 0, high, low)
        };
        for number in 0..5000 {
            askers.admit(station(number), 1, now);
            askers.note(station(number), now);
            // The first one goes on asking.
            askers.admit(station(0), 1, now);
            now += Duration::from_millis(100);
        }
        now += Askers::PROBATION;
        askers.promote(now);
        assert_eq!(askers.neighbors.len(), Askers::NEIGHBORS);
        assert!(askers.kept() <= Askers::MOST);
        let standing = |askers: &mut Askers, number| askers.admit(station(number), 1, now);
        for (number, expected) in [
            (0, Standing::Neighbor),
            (1, Standing::Stranger),
            (900, Standing::Stranger),
            (4999, Standing::Neighbor),
        ] {
            assert_eq!(standing(&mut askers, number), Some(expected), "{number}");
        }
    }
}
