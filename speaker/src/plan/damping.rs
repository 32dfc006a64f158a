//! Routes of a Service that come and go often are announced again late, so that routers have some
//! rest. They are always withdrawn at once. Pure: the time is passed in.
//!
//! More than three losses in a minute begin it. Each loss is a penalty of one, which halves every
//! minute; it ends when one is left of them (after RFC 2439, whose figures are for routers that see
//! a loss from many sides).

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::{Damped, Refusal, ServicePlan};
use crate::view::ServiceKey;

/// More losses than this within [`WINDOW`] begin it.
const LOSSES: usize = 3;
const WINDOW: Duration = Duration::from_secs(60);
const HALF_LIFE: Duration = Duration::from_secs(60);
/// The penalty that ends it.
const REUSE: f64 = 1.0;
/// However many losses there were: four minutes of rest are enough.
const MAX_PENALTY: f64 = 16.0;

/// The losses of all Services that are damped.
#[derive(Debug, Default)]
pub struct Damping {
    histories: BTreeMap<ServiceKey, History>,
}

#[derive(Debug)]
struct History {
    /// The last losses, at most [`LOSSES`], the oldest first.
    losses: VecDeque<Instant>,
    /// At the last loss.
    penalty: f64,
    at: Instant,
    /// Until then the routes are held back.
    until: Option<Instant>,
}

impl Damping {
    /// Takes in that `before` is followed by `new`, and holds the routes of that back if they may
    /// not be announced yet.
    pub fn damp(
        &mut self,
        key: &ServiceKey,
        before: Option<&ServicePlan>,
        new: &mut ServicePlan,
        now: Instant,
    ) {
        match (before.and_then(ServicePlan::routes), new.routes()) {
            (Some(old), None) if old.damping == Damped::Yes => self.lost(key, now),
            (None, Some(plan)) if plan.damping == Damped::Yes && self.holds(key, now) => {
                new.bgp = Err(Refusal::Damped);
            }
            (Some(_) | None, _) => {}
        }
    }

    /// The routes of a Service were withdrawn.
    fn lost(&mut self, key: &ServiceKey, now: Instant) {
        let history = self.histories.entry(key.clone()).or_insert_with(|| History {
            losses: VecDeque::new(),
            penalty: 0.0,
            at: now,
            until: None,
        });
        history.penalty = (history.penalty_at(now) + 1.0).min(MAX_PENALTY);
        history.at = now;
        let often = history.losses.len() == LOSSES
            && history.losses.front().is_some_and(|first| now.duration_since(*first) <= WINDOW);
        if often || history.until.is_some_and(|until| until > now) {
            let half_lives = (history.penalty / REUSE).log2().max(0.0);
            history.until = Some(now + HALF_LIFE.mul_f64(half_lives));
        }
        if history.losses.len() == LOSSES {
            history.losses.pop_front();
        }
        history.losses.push_back(now);
    }

    /// Whether the routes of a Service may not be announced yet.
    fn holds(&self, key: &ServiceKey, now: Instant) -> bool {
        let history = self.histories.get(key);
        history.and_then(|history| history.until).is_some_and(|until| until > now)
    }

    /// When the next Service may be announced again.
    pub fn due(&self) -> Option<Instant> {
        self.histories.values().filter_map(|history| history.until).min()
    }

    /// The Services that may be announced again, each once; what is long ago is forgotten.
    pub fn released(&mut self, now: Instant) -> Vec<ServiceKey> {
        let mut released = Vec::new();
        for (key, history) in &mut self.histories {
            if history.until.is_some_and(|until| until <= now) {
                history.until = None;
                released.push(key.clone());
            }
        }
        self.histories.retain(|_, history| {
            history.until.is_some() || now.duration_since(history.at) < HALF_LIFE.max(WINDOW)
        });
        released
    }
}

impl History {
    fn penalty_at(&self, now: Instant) -> f64 {
        let half_lives = now.duration_since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.penalty * (-half_lives).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn key() -> ServiceKey {
        ServiceKey::new("default", "a")
    }

    /// When it may be announced again after losses at these seconds.
    fn rest(losses: &[u64]) -> Option<Duration> {
        let (mut damping, start) = (Damping::default(), Instant::now());
        for at in losses {
            damping.lost(&key(), start + seconds(*at));
        }
        let last = start + seconds(*losses.last().unwrap());
        let due = damping.due()?;
        assert!(damping.holds(&key(), last));
        assert!(damping.holds(&key(), due - Duration::from_millis(1)));
        assert!(!damping.holds(&key(), due));
        Some(due - last)
    }

    #[test]
    fn three_losses_a_minute_are_no_reason_and_four_are() {
        assert_eq!(rest(&[0]), None);
        assert_eq!(rest(&[0, 0, 0]), None);
        assert_eq!(rest(&[0, 20, 40, 61]), None, "not within a minute");
        assert_eq!(rest(&[0, 61, 122, 183, 244]), None);
        assert_eq!(rest(&[0, 0, 0, 0]), Some(seconds(120)), "4, 2, 1");
        let spread = rest(&[0, 20, 40, 60]).unwrap();
        assert!((seconds(90)..seconds(95)).contains(&spread), "{spread:?}");
    }

    #[test]
    fn further_losses_make_it_longer_up_to_four_minutes() {
        assert_eq!(rest(&[0; 8]), Some(seconds(180)));
        assert_eq!(rest(&[0; 16]), Some(seconds(240)));
        assert_eq!(rest(&[0; 100]), Some(seconds(240)));
        let late = rest(&[0, 0, 0, 0, 110]).unwrap();
        assert!(late > seconds(60), "a loss while it is held back counts: {late:?}");
    }

    #[test]
    fn a_service_is_released_once_and_then_forgotten() {
        let (mut damping, start) = (Damping::default(), Instant::now());
        for _ in 0..4 {
            damping.lost(&key(), start);
        }
        let due = damping.due().unwrap();
        assert_eq!(damping.released(due - Duration::from_millis(1)), []);
        assert_eq!(damping.released(due), [key()]);
        assert_eq!((damping.released(due), damping.due()), (vec![], None));
        assert!(damping.histories.is_empty());
    }

    #[test]
    fn services_are_damped_each_by_itself() {
        let (mut damping, start) = (Damping::default(), Instant::now());
        for _ in 0..4 {
            damping.lost(&key(), start);
        }
        assert!(!damping.holds(&ServiceKey::new("default", "b"), start));
    }
}
