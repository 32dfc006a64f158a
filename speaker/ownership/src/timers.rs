//! What is to be done about an address at a later time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// This node's turn to take a vacant address.
    Turn,
    /// A higher claim that is not in force has stayed so: claim above it.
    Raise,
    /// Offer it to the successor, again.
    Offer,
    /// The successor has claimed it: stop.
    Stop,
    /// Nobody was found to take it: stop all the same.
    GiveUp,
    /// The foreign station has not been heard for long.
    Calm,
    /// The owner had its time to hand over what it may not own.
    Depose,
    /// Ask whether the owner is seen to answer.
    Prove,
    /// The row is no longer needed.
    Forget,
}

/// At most one moment for each address and purpose.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeSet<(Instant, IpAddr, Due)>,
    armed: BTreeMap<(IpAddr, Due), Instant>,
}

impl Timers {
    /// Sets a moment in the place of the one set before.
    pub(crate) fn arm(&mut self, address: IpAddr, due: Due, at: Instant) {
        if let Some(before) = self.armed.insert((address, due), at) {
            self.queue.remove(&(before, address, due));
        }
        self.queue.insert((at, address, due));
    }

    /// Sets a moment if none is set.
    pub(crate) fn arm_once(&mut self, address: IpAddr, due: Due, at: Instant) {
        if !self.is_armed(address, due) {
            self.arm(address, due, at);
        }
    }

    pub(crate) fn disarm(&mut self, address: IpAddr, due: Due) {
        if let Some(at) = self.armed.remove(&(address, due)) {
            self.queue.remove(&(at, address, due));
        }
    }

    pub(crate) fn is_armed(&self, address: IpAddr, due: Due) -> bool {
        self.armed.contains_key(&(address, due))
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(at, ..)| at)
    }

    /// Takes out the next that is due.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(IpAddr, Due)> {
        let (at, address, due) = self.queue.first().copied().filter(|(at, ..)| *at <= now)?;
        self.queue.remove(&(at, address, due));
        self.armed.remove(&(address, due));
        Some((address, due))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_moment_for_each_purpose() {
        #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
        let now = Instant::now();
        let at = |n| now + Duration::from_secs(n);
        let address = IpAddr::from([192, 0, 2, 1]);
        let mut timers = Timers::default();
        timers.arm(address, Due::Turn, at(5));
        timers.arm(address, Due::Turn, at(3));
        timers.arm_once(address, Due::Turn, at(1));
        timers.arm_once(address, Due::Raise, at(4));
        assert_eq!(timers.next(), Some(at(3)));
        assert_eq!(timers.pop(at(2)), None);
        assert_eq!(timers.pop(at(9)), Some((address, Due::Turn)));
        assert!(!timers.is_armed(address, Due::Turn));
        timers.disarm(address, Due::Raise);
        assert_eq!(timers.pop(at(9)), None);
    }
}
