//! A token bucket, kept as the one instant at which it will be full again.

use std::time::{Duration, Instant};

/// How much may pass: one each `interval`, and `burst` of them at once after a rest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) interval: Duration,
    pub(crate) burst: u32,
}

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
        let from = self.full_at.map_or(now, |full| full.max(now));
        self.full_at = Some(from + rate.interval);
        true
    }

    /// Whether it says nothing that a new one would not.
    pub(crate) fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full| full <= now)
    }
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
}
