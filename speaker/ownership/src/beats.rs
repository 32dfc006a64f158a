//! The rhythm of a speaker: when it beats, to whom, and what it says of itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::message::{Beat, Flags, Header, MAX_STATIONS};
use crate::outbox::Outbox;
use crate::{Action, LATENESS_BOUNDS, Lateness, NodeName, Ownership};

/// For so many beats all are told what has changed, even those that do not watch.
const REPETITIONS: u32 = 3;

/// Views change all the time; in a ring all are told at most this often.
const VERSION_PACE: Duration = Duration::from_secs(1);

/// How many dead or silent peers get each beat in a ring, so that a split that heals is noticed.
const KNOCKS: usize = 2;

/// The schedule is absolute: a beat that is late does not delay the next.
#[derive(Debug)]
pub(crate) struct Rhythm {
    pub(crate) next: Instant,
    /// Until then all get each beat.
    loud_until: Instant,
    flags: Flags,
    version: u64,
    version_from: Instant,
    knocked: Option<NodeName>,
}

impl Rhythm {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            next: now,
            loud_until: now,
            flags: Flags::default(),
            version: 0,
            version_from: now,
            knocked: None,
        }
    }

    /// Notes what is said of this node, and whether all are to hear it.
    fn note(&mut self, flags: Flags, version: u64, interval: Duration, now: Instant) {
        let news = flags != self.flags;
        self.flags = flags;
        if news || flags.has(Flags::LISTENING) {
            self.loud_until = now + interval * REPETITIONS;
        }
        if version != self.version && self.version_from <= now {
            self.version = version;
            self.version_from = now + VERSION_PACE;
            self.loud_until = self.loud_until.max(now + interval * REPETITIONS);
        }
    }
}

impl Lateness {
    fn record(&mut self, late: Duration) {
        let micros = late.as_micros();
        match LATENESS_BOUNDS.iter().position(|bound| micros <= u128::from(*bound)) {
            Some(place) => self.buckets[place] += 1,
            None => self.later += 1,
        }
        self.sum += late;
    }
}

impl Ownership {
    /// What this node says of itself.
    pub(crate) fn flags(&self) -> Flags {
        Flags::LISTENING.when(self.start.is_listening())
            | Flags::RESUMING.when(self.start.is_resuming())
            | Flags::DRAINING.when(self.draining)
            | Flags::LEAVING.when(self.leaving)
            | Flags::ISOLATED.when(self.isolation.is_isolated())
            | Flags::RING.when(self.peers.in_ring())
            | Flags::MUTED.when(self.is_muted())
    }

    /// Beats to some at once, and to all who are to hear it if it is time.
    pub(crate) fn send_beats(&mut self, outbox: &Outbox, now: Instant, actions: &mut Vec<Action>) {
        let flags = self.flags();
        // The change itself does not wait for the next beat.
        let news = (flags != self.rhythm.flags || outbox.beat_first) && !self.peers.is_empty();
        let due = now >= self.rhythm.next;
        if due {
            self.keep_time(now);
        }
        self.rhythm.note(flags, self.view.unwrap_or(0), self.settings.profile.interval, now);
        if outbox.beats.is_empty() && !due && !news {
            return;
        }
        let body = self.beat(now).encode();
        let audience = match (due, news) {
            (_, true) => self.peers.all().map(|(name, _)| name.clone()).collect(),
            (true, false) => self.audience(now),
            (false, false) => Vec::new(),
        };
        let known = audience.into_iter().filter_map(|name| {
            let receiver = self.peers.get(&name)?.incarnation();
            Some((name, receiver))
        });
        let mut receivers: BTreeMap<_, _> = known.collect();
        receivers.extend(outbox.beats.iter().map(|(name, receiver)| (name.clone(), *receiver)));
        let header = self.next_header();
        actions.extend(receivers.into_iter().map(|(to, receiver)| {
            let payload = Header { receiver, ..header }.seal(&body);
            Action::Send { to, payload }
        }));
    }

    fn keep_time(&mut self, now: Instant) {
        if !self.peers.is_empty() {
            let late = now.saturating_duration_since(self.rhythm.next);
            self.counters.lateness.record(late);
        }
        let interval = self.settings.profile.interval.max(Duration::from_millis(1));
        let missed =
            now.saturating_duration_since(self.rhythm.next).as_nanos() / interval.as_nanos();
        let steps = u32::try_from(missed).unwrap_or(u32::MAX).saturating_add(1);
        self.rhythm.next += interval.saturating_mul(steps);
    }

    /// To whom the next beat goes.
    fn audience(&mut self, now: Instant) -> Vec<NodeName> {
        let loud = now < self.rhythm.loud_until || !self.peers.in_ring();
        if loud {
            return self.peers.all().map(|(name, _)| name.clone()).collect();
        }
        let mut audience = self.peers.watchers();
        audience.extend(self.knock());
        audience
    }

    /// The next of those that are not heard, in turn.
    fn knock(&mut self) -> Vec<NodeName> {
        let silent = self.peers.silent_after(self.rhythm.knocked.as_ref());
        let next: Vec<_> = silent.take(KNOCKS).cloned().collect();
        self.rhythm.knocked = next.last().cloned();
        next
    }

    fn beat(&self, now: Instant) -> Beat {
        let stations = self.stations.iter().flatten().take(MAX_STATIONS);
        Beat {
            flags: self.flags().told(),
            owned: u32::try_from(self.table.load(&self.settings.me)).unwrap_or(u32::MAX),
            version: self.view.unwrap_or(0),
            hash: self.table.hash(),
            age: self.birth.age(now),
            stations: stations.map(|(name, mac)| (name.clone(), *mac)).collect(),
            ages: self.peers.ages(now),
            unsteady: self.peers.unsteady(now).collect(),
        }
    }
}
