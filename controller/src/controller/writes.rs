//! Which Services are to be compared with their status, in which order, and what becomes of their
//! writes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    random::Random,
    service::{SeenStatus, ServiceKey},
};

/// Service writes in flight at once. More gain nothing against a real API server.
pub const MAX_WRITES: usize = 16;
/// A failed write is tried again after this, doubled up to the limit, plus up to half at random.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(200);
pub(super) const LAST_RETRY: Duration = Duration::from_secs(30);
/// After `MAX_WRITES` times silence in a row there is one attempt each so long, whoever's turn it
/// is.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Whether a Service is served before those that wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It changed just now, and somebody looks at it.
    Fresh,
    Backlog,
}

/// A Service write on its way.
#[derive(Debug)]
pub(super) struct Write {
    /// Of the object that the write rests on.
    pub resource_version: String,
    pub before: SeenStatus,
    pub result: SeenStatus,
    /// It was sent in an earlier term as leader: its end says nothing about the plan.
    pub stale: bool,
}

/// Why a write is to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// With this object.
    Here,
    /// With the API server; the time before which it does not want to be asked again.
    Everywhere { retry_after: Option<Duration> },
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    attempts: u32,
}

#[derive(Debug)]
pub(super) struct Writes {
    random: Random,
    fresh: VecDeque<ServiceKey>,
    backlog: VecDeque<ServiceKey>,
    /// What is in `fresh` or `backlog`.
    queued: BTreeSet<ServiceKey>,
    in_flight: BTreeMap<ServiceKey, Write>,
    retries: BTreeMap<ServiceKey, Retry>,
    /// The API server knows a newer object than this version: nothing to do until it comes.
    outdated: BTreeMap<ServiceKey, String>,
    /// Wait until another Service's status lets go of an address.
    blocked: BTreeSet<ServiceKey>,
    silences_in_a_row: usize,
    probe_at: Option<Instant>,
}

impl Writes {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            fresh: VecDeque::new(),
            backlog: VecDeque::new(),
            queued: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            retries: BTreeMap::new(),
            outdated: BTreeMap::new(),
            blocked: BTreeSet::new(),
            silences_in_a_row: 0,
            probe_at: None,
        }
    }

    /// Nothing is to be written any more; what is in flight ends as it will.
    pub fn stop(&mut self) {
        self.fresh.clear();
        self.backlog.clear();
        self.queued.clear();
        self.retries.clear();
        self.outdated.clear();
        self.blocked.clear();
        self.silences_in_a_row = 0;
        self.probe_at = None;
        for write in self.in_flight.values_mut() {
            write.stale = true;
        }
    }

    /// Services with a write that is on its way or waits for its turn.
    pub fn len(&self) -> usize {
        self.in_flight.len() + self.queued.len() + self.retries.len()
    }

    /// Whether a write is on its way, or could be.
    pub fn has_backlog(&self) -> bool {
        !self.in_flight.is_empty() || !self.queued.is_empty()
    }

    pub fn enqueue(&mut self, key: ServiceKey, turn: Turn) {
        let waits = self.in_flight.contains_key(&key)
            || self.retries.contains_key(&key)
            || self.outdated.contains_key(&key);
        if waits || !self.queued.insert(key.clone()) {
            return;
        }
        self.blocked.remove(&key);
        match turn {
            Turn::Fresh => self.fresh.push_back(key),
            Turn::Backlog => self.backlog.push_back(key),
        }
    }

    /// Whose turn it is, if something may be sent.
    pub fn next(&mut self, now: Instant) -> Option<ServiceKey> {
        let may_send = match self.probe_at {
            Some(at) => self.in_flight.is_empty() && at <= now,
            None => self.in_flight.len() < MAX_WRITES,
        };
        if !may_send {
            return None;
        }
        let key = self.fresh.pop_front().or_else(|| self.backlog.pop_front())?;
        self.queued.remove(&key);
        Some(key)
    }

    pub fn sent(&mut self, key: ServiceKey, write: Write) {
        self.in_flight.insert(key, write);
    }

    pub fn ended(&mut self, key: &ServiceKey) -> Option<Write> {
        let write = self.in_flight.remove(key);
        if write.is_some() {
            self.unblock();
        }
        write
    }

    pub fn is_in_flight(&self, key: &ServiceKey) -> bool {
        self.in_flight.contains_key(key)
    }

    pub fn in_flight(&self) -> impl Iterator<Item = (&ServiceKey, &Write)> {
        self.in_flight.iter()
    }

    /// It goes on when somebody else lets go of something.
    pub fn block(&mut self, key: ServiceKey) {
        // Its back-off is over; left in there, it would be due for ever.
        self.retries.remove(&key);
        self.blocked.insert(key);
    }

    pub fn is_blocked(&self, key: &ServiceKey) -> bool {
        self.blocked.contains(key)
    }

    pub fn unblock(&mut self) {
        for key in std::mem::take(&mut self.blocked) {
            self.enqueue(key, Turn::Fresh);
        }
    }

    /// The API server has a newer object than `resource_version`, which is yet to come.
    pub fn wait_for_newer(&mut self, key: ServiceKey, resource_version: String) {
        self.outdated.insert(key, resource_version);
    }

    pub fn newer_seen(&mut self, key: &ServiceKey, resource_version: &str) {
        if self.outdated.get(key).is_some_and(|version| version != resource_version) {
            self.outdated.remove(key);
        }
    }

    /// The API server answered.
    pub fn answered(&mut self) {
        self.silences_in_a_row = 0;
        self.probe_at = None;
    }

    /// There is nothing left to be written.
    pub fn settled(&mut self, key: &ServiceKey) {
        self.retries.remove(key);
    }

    pub fn failed(&mut self, key: &ServiceKey, trouble: Trouble, now: Instant) {
        let mut not_before = now;
        match trouble {
            Trouble::Here => self.answered(),
            Trouble::Everywhere { retry_after } => {
                self.silences_in_a_row += 1;
                if self.silences_in_a_row >= MAX_WRITES {
                    self.probe_at = Some(now + PROBE_INTERVAL);
                }
                not_before += retry_after.unwrap_or_default().min(LAST_RETRY);
            }
        }
        let attempts = self.retries.get(key).map_or(1, |retry| retry.attempts + 1);
        let delay = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(16)).min(LAST_RETRY);
        let at = (now + delay).max(not_before) + self.random.jittered(delay, 0.5) - delay;
        self.retries.insert(key.clone(), Retry { at, attempts });
    }

    /// Puts what is due back into the queue.
    pub fn wake(&mut self, now: Instant) {
        let due: Vec<ServiceKey> = self
            .retries
            .iter()
            .filter(|(key, retry)| retry.at <= now && !self.in_flight.contains_key(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            if self.queued.insert(key.clone()) {
                self.backlog.push_back(key);
            }
        }
    }

    /// The Service is gone.
    pub fn forget(&mut self, key: &ServiceKey) {
        self.retries.remove(key);
        self.outdated.remove(key);
        self.blocked.remove(key);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let idle =
            |key: &ServiceKey| !self.in_flight.contains_key(key) && !self.queued.contains(key);
        let retry =
            self.retries.iter().filter(|(key, _)| idle(key)).map(|(_, retry)| retry.at).min();
        let probe = self.probe_at.filter(|_| !self.queued.is_empty() && self.in_flight.is_empty());
        [retry, probe].into_iter().flatten().min()
    }
}
