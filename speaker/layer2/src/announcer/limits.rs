//! How much is answered and reported, so that nobody who floods the segment keeps this node busy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pnet::util::MacAddr;

use super::Watch;
use crate::pace::{Bucket, Rate};

/// All answers together.
const ANSWERS: Rate = Rate { interval: Duration::from_micros(200), burst: 1000 };

/// The answers to one source.
const ANSWERS_TO_ONE: Rate = Rate { interval: Duration::from_millis(20), burst: 100 };

/// All answers to probes together.
const PROBES: Rate = Rate { interval: Duration::from_micros(50), burst: 6000 };

/// The answers to probes for one address.
const PROBES_OF_ONE: Rate = Rate { interval: Duration::from_millis(10), burst: 12 };

/// What is reported of all owned addresses together.
const HEARD: Rate = Rate { interval: Duration::from_millis(5), burst: 200 };

/// What is reported of one owned address.
const HEARD_OF_ONE: Rate = Rate { interval: Duration::from_millis(100), burst: 1 };

#[derive(Debug, Default)]
pub(super) struct Limits {
    answers: Bucket,
    probes: Bucket,
    heard: Bucket,
    askers: Askers,
}

impl Limits {
    /// Whether one that asks for one of `owned` addresses is answered.
    pub(super) fn admit(&mut self, asker: MacAddr, owned: usize, now: Instant) -> bool {
        self.askers.admit(asker, owned, now) && self.answers.take(ANSWERS, now)
    }

    /// Whether a probe is answered. One that is not lets the prober take the address, so it is
    /// limited by address and not by source: a speaker that has lost sight of this node probes for
    /// everything here at once, and again soon after.
    pub(super) fn admit_probe(&mut self, watch: &mut Watch, now: Instant) -> bool {
        watch.probes.take(PROBES_OF_ONE, now) && self.probes.take(PROBES, now)
    }

    /// Whether what a station says of an owned address is reported.
    pub(super) fn report(&mut self, watch: &mut Watch, now: Instant) -> bool {
        watch.heard.take(HEARD_OF_ONE, now) && self.heard.take(HEARD, now)
    }
}

/// Who has asked lately. A station that floods is held back; one that asks for every address here,
/// as a router does that has just started, is not.
#[derive(Debug, Default)]
struct Askers {
    buckets: BTreeMap<MacAddr, Bucket>,
    swept_at: Option<Instant>,
}

impl Askers {
    /// More are not told apart: whoever comes then is held back with all others only.
    const KEPT: usize = 1024;
    const SWEEP: Duration = Duration::from_secs(1);

    fn admit(&mut self, asker: MacAddr, owned: usize, now: Instant) -> bool {
        if self.buckets.len() >= Self::KEPT
            && self.swept_at.is_none_or(|swept| now >= swept + Self::SWEEP)
        {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            self.swept_at = Some(now);
        }
        let all_twice = u32::try_from(owned.saturating_mul(2)).unwrap_or(u32::MAX);
        let rate = Rate { burst: ANSWERS_TO_ONE.burst.max(all_twice), ..ANSWERS_TO_ONE };
        let full = self.buckets.len() >= Self::KEPT;
        match self.buckets.get_mut(&asker) {
            Some(bucket) => bucket.take(rate, now),
            None if full => true,
            None => self.buckets.entry(asker).or_default().take(rate, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::epoch;

    #[test]
    fn a_flood_from_ever_new_sources_takes_no_memory() {
        let (mut limits, now) = (Limits::default(), epoch());
        let admitted = (0..20_000_u32)
            .filter(|n| {
                let [_, a, b, c] = n.to_be_bytes();
                limits.admit(MacAddr::new(0x06, 0, 0, a, b, c), 1, now)
            })
            .count();
        assert_eq!(admitted, 1000, "all sources together");
        assert!(limits.askers.buckets.len() <= Askers::KEPT);
    }
}
