//! Who of several replicas may write: the algorithm of client-go's leader election over one
//! `coordination.k8s.io/v1` Lease, as a core with three verbs. Sends nothing.
//!
//! Times are only ever compared with times of the same process: the timestamps in a Lease are
//! opaque words that either changed or did not. A leader may write until
//! [`Settings::renew_deadline`] after the *start* of the last renewal that succeeded; a standby
//! takes the Lease only after it saw the same words for the whole duration that the holder wrote
//! into it, which is longer. So the two never overlap, however the clocks of the machines differ.
//!
//! Where there is no Lease, one that has just started takes it at once: after the removal of a Lease
//! whose holder lives, it would lead beside that one for as long as the holder needs to notice: one
//! retry period, or up to the renew deadline where the holder is cut off as well.
//!
//! Two rules go beyond client-go's: a standby whose reads failed looks once more before it takes
//! an expired Lease, so that the holder can come back first when the API server does; and it does
//! not take a Lease that vanished before the last holder it saw must have stopped.

use std::time::{Duration, Instant};

use crate::random::Random;

/// A Lease that asks for more is believed this much only: nobody must be locked out for years by
/// a slip of the pen.
const LONGEST: Duration = Duration::from_secs(600);

/// Who we are, and how patient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Unique among all processes that ever held the Lease.
    pub identity: String,
    /// A standby waits so long for a sign of life of the holder. Told to it in whole seconds,
    /// rounded up.
    pub lease_duration: Duration,
    /// A leader that could not renew for so long stops to write.
    pub renew_deadline: Duration,
    /// Between two renewals, and between two looks of a standby.
    pub retry_period: Duration,
}

/// Durations that do not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("--leader-election-retry-period is zero; give a duration such as 300ms")]
    NoRetryPeriod,
    #[error(
        "--leader-election-renew-deadline ({deadline:?}) must be longer than \
         --leader-election-retry-period ({retry:?}), or no renewal is ever tried twice"
    )]
    Deadline { deadline: Duration, retry: Duration },
    #[error(
        "--leader-election-lease-duration ({duration:?}) must be longer than \
         --leader-election-renew-deadline ({deadline:?}), or two replicas may lead at once"
    )]
    Duration { duration: Duration, deadline: Duration },
    #[error("--leader-election-lease-duration ({0:?}) is longer than {LONGEST:?}")]
    TooLong(Duration),
}

impl Settings {
    /// A takeover takes up to `lease_duration` + `retry_period` after a death without a word:
    /// 2.3 s.
    pub fn new(identity: String) -> Self {
        Self {
            identity,
            lease_duration: Duration::from_secs(2),
            renew_deadline: Duration::from_millis(1400),
            retry_period: Duration::from_millis(300),
        }
    }

    /// # Errors
    /// The first pair of durations that leaves no room for the algorithm.
    pub fn check(&self) -> Result<(), SettingsError> {
        let (duration, deadline) = (self.lease_duration, self.renew_deadline);
        let retry = self.retry_period;
        if retry.is_zero() {
            Err(SettingsError::NoRetryPeriod)
        } else if deadline <= retry {
            Err(SettingsError::Deadline { deadline, retry })
        } else if duration <= deadline {
            Err(SettingsError::Duration { duration, deadline })
        } else if duration > LONGEST {
            Err(SettingsError::TooLong(duration))
        } else {
            Ok(())
        }
    }

    /// How long one request may take: three of them fit into the deadline.
    pub fn request_timeout(&self) -> Duration {
        self.renew_deadline / 3
    }
}

/// A Lease as the API server shows it. Absent fields are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    pub version: Version,
    pub record: Record,
}

/// What a write is guarded with. Without the uid a Lease that was deleted would be made anew by a
/// write that was meant for the old one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    pub uid: String,
    pub resource_version: String,
}

/// The words of a Lease that change when its holder lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// `spec.holderIdentity`; empty: nobody.
    pub holder: String,
    /// `spec.leaseDurationSeconds`.
    pub duration_seconds: Option<i32>,
    /// `spec.acquireTime`, as it is written.
    pub acquired: Option<String>,
    /// `spec.renewTime`, as it is written.
    pub renewed: Option<String>,
    /// `spec.leaseTransitions`.
    pub transitions: i32,
}

/// What is to be written; the shell stamps `spec.renewTime`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Empty gives the Lease back.
    pub holder: String,
    pub duration_seconds: i32,
    /// `None`: the time of the write.
    pub acquired: Option<String>,
    pub transitions: i32,
}

/// What happened. Each request of [`Action`] is answered exactly once by one of the first four.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The answer to [`Action::Read`]; `None`: there is no Lease.
    Found(Option<Lease>),
    /// The write was stored; the Lease of the answer.
    Stored(Lease),
    /// The Lease is not the one that the write was meant for: another version, or made or removed
    /// by somebody else meanwhile (409 and 404).
    Refused,
    /// Anything else, silence included; a write may have been stored or not.
    Failed,
    /// The process ends: everything that it wanted to write is written.
    Release,
}

/// What to do. At most one request is under way at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Read,
    Create(Claim),
    Replace {
        version: Version,
        claim: Claim,
    },
    /// From now on this replica leads, as long as [`Election::may_write`].
    Lead,
    /// From now on it does not.
    StandBy,
    /// Nothing more will come: the Lease is given back, or was not ours.
    Released,
}

/// One candidate.
#[derive(Debug)]
pub struct Election {
    settings: Settings,
    random: Random,
    state: State,
    /// The Lease as it was seen last.
    observed: Option<Observed>,
    /// The request under way.
    request: Option<Request>,
    /// When the next one is due.
    next: Instant,
    /// A look of this standby failed, and none has succeeded since.
    interrupted: bool,
    /// A renewal was refused and looked into at once; the next refusal waits.
    hurried: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    StandBy,
    Leading {
        until: Instant,
    },
    /// The Lease goes back as soon as no request is under way.
    Releasing,
    Released,
}

#[derive(Debug)]
struct Observed {
    lease: Lease,
    /// When `lease.record` was first seen so.
    since: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    started: Instant,
    kind: RequestKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestKind {
    Read,
    Claim,
    GiveBack,
}

impl Election {
    /// `seed`: of the jitter between looks.
    pub fn new(settings: Settings, seed: u64, now: Instant) -> Self {
        Self {
            settings,
            random: Random::new(seed),
            state: State::StandBy,
            observed: None,
            request: None,
            next: now,
            interrupted: false,
            hurried: false,
        }
    }

    /// Whether a write may be sent now.
    pub fn may_write(&self, now: Instant) -> bool {
        self.write_until().is_some_and(|until| now < until)
    }

    /// Until when writes may be sent if no renewal succeeds any more; `None` for a standby.
    pub fn write_until(&self) -> Option<Instant> {
        match self.state {
            State::Leading { until } => Some(until),
            State::StandBy | State::Releasing | State::Released => None,
        }
    }

    /// Takes in what happened; the actions are to be performed in their order.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.expire(now, &mut actions);
        let request = match event {
            Event::Release => None,
            Event::Found(_) | Event::Stored(_) | Event::Refused | Event::Failed => {
                self.request.take()
            }
        };
        match (event, request) {
            (Event::Release, _) => self.release(&mut actions),
            (Event::Found(lease), Some(_)) => self.found(lease, now, &mut actions),
            (Event::Stored(lease), Some(request)) => {
                self.stored(lease, request, now, &mut actions);
            }
            (Event::Refused, Some(request)) => self.refused(request, now, &mut actions),
            (Event::Failed, Some(request)) => self.failed(request, now, &mut actions),
            (Event::Found(_) | Event::Stored(_) | Event::Refused | Event::Failed, None) => {}
        }
        self.pump(now, &mut actions);
        actions
    }

    /// Does what is due at `now`; nothing when nothing is.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.expire(now, &mut actions);
        self.pump(now, &mut actions);
        actions
    }

    /// When to call [`Self::handle_timeout`] if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = self.request.is_none().then_some(self.next);
        match self.state {
            State::StandBy => next,
            State::Leading { until } => Some(next.map_or(until, |next| next.min(until))),
            State::Releasing | State::Released => None,
        }
    }

    fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if matches!(self.state, State::Leading { until } if until <= now) {
            self.stand_by(actions);
        }
    }

    fn stand_by(&mut self, actions: &mut Vec<Action>) {
        self.state = State::StandBy;
        actions.push(Action::StandBy);
    }

    fn release(&mut self, actions: &mut Vec<Action>) {
        match self.state {
            State::Leading { .. } => {
                self.state = State::Releasing;
                actions.push(Action::StandBy);
            }
            State::StandBy => self.end(actions),
            State::Releasing | State::Released => {}
        }
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        self.state = State::Released;
        actions.push(Action::Released);
    }

    fn found(&mut self, lease: Option<Lease>, now: Instant, actions: &mut Vec<Action>) {
        let interrupted = std::mem::take(&mut self.interrupted);
        let mut same = false;
        if let Some(lease) = lease {
            same = self.observed.as_ref().is_some_and(|seen| seen.lease.record == lease.record);
            match self.observed.as_mut().filter(|_| same) {
                Some(seen) => seen.lease.version = lease.version,
                None => self.observed = Some(Observed { lease, since: now }),
            }
        } else if let Some(seen) = &mut self.observed {
            // Its words stay known: whoever wrote them may still lead.
            seen.lease.version = Version::default();
        }
        let holder = self.observed.as_ref().map_or("", |seen| &seen.lease.record.holder);
        let ours = holder == self.settings.identity;
        let claimable = match self.state {
            State::Leading { .. } if !ours => {
                self.stand_by(actions);
                false
            }
            State::Leading { .. } => true,
            State::StandBy => {
                let expired = self.expires_at().is_none_or(|at| at <= now);
                ours || holder.is_empty() || expired && !(same && interrupted)
            }
            State::Releasing | State::Released => false,
        };
        if claimable {
            self.claim(now, actions);
        } else {
            self.look_again(now);
        }
    }

    /// When the holder that was seen last must have stopped; `None`: there is none.
    fn expires_at(&self) -> Option<Instant> {
        let seen = self.observed.as_ref()?;
        let record = &seen.lease.record;
        let seconds = record.duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = match seconds {
            Some(0) | None => self.settings.lease_duration,
            Some(seconds) => Duration::from_secs(seconds).min(LONGEST),
        };
        (!record.holder.is_empty()).then(|| seen.since + duration)
    }

    fn look_again(&mut self, now: Instant) {
        let regular = now + self.random.jittered(self.settings.retry_period, 0.2);
        let expiry = self.expires_at().filter(|at| *at > now);
        self.next = expiry.map_or(regular, |at| at.min(regular));
    }

    fn claim(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let seen = self.observed.as_ref().map(|seen| &seen.lease);
        let record = seen.map(|lease| &lease.record);
        let ours = record.is_some_and(|record| record.holder == self.settings.identity);
        let claim = Claim {
            holder: self.settings.identity.clone(),
            duration_seconds: whole_seconds(self.settings.lease_duration),
            acquired: record.filter(|_| ours).and_then(|record| record.acquired.clone()),
            transitions: record
                .map_or(0, |record| record.transitions.saturating_add(i32::from(!ours))),
        };
        let version = seen.map(|lease| &lease.version).filter(|v| **v != Version::default());
        actions.push(match version {
            Some(version) => Action::Replace { version: version.clone(), claim },
            None => Action::Create(claim),
        });
        self.request = Some(Request { started: now, kind: RequestKind::Claim });
    }

    fn stored(&mut self, lease: Lease, request: Request, now: Instant, actions: &mut Vec<Action>) {
        self.observed = Some(Observed { lease, since: now });
        self.next = (request.started + self.settings.retry_period).max(now);
        self.hurried = false;
        if request.kind == RequestKind::GiveBack {
            self.end(actions);
            return;
        }
        let until = request.started + self.settings.renew_deadline;
        match self.state {
            State::Leading { .. } => self.state = State::Leading { until },
            // An answer that comes after its own deadline is of no use.
            State::StandBy if now < until => {
                self.state = State::Leading { until };
                actions.push(Action::Lead);
            }
            State::StandBy | State::Releasing | State::Released => {}
        }
    }

    fn refused(&mut self, request: Request, now: Instant, actions: &mut Vec<Action>) {
        if request.kind == RequestKind::GiveBack {
            // It belongs to somebody else by now.
            self.end(actions);
            return;
        }
        // A leader must know soon whether it still is one.
        let hurry = matches!(self.state, State::Leading { .. }) && !self.hurried;
        self.hurried = true;
        if let Some(seen) = &mut self.observed {
            seen.lease.version = Version::default();
        }
        if hurry {
            self.next = now;
        } else {
            self.look_again(now);
        }
    }

    fn failed(&mut self, request: Request, now: Instant, actions: &mut Vec<Action>) {
        if request.kind == RequestKind::GiveBack {
            // It runs out by itself.
            self.end(actions);
            return;
        }
        self.interrupted = true;
        self.next = (request.started + self.settings.retry_period).max(now);
    }

    /// Sends the request that is due.
    fn pump(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.request.is_some() {
            return;
        }
        match self.state {
            State::Leading { .. } if self.next <= now => {
                let known = |seen: &Observed| seen.lease.version != Version::default();
                if self.observed.as_ref().is_some_and(known) {
                    self.claim(now, actions);
                } else {
                    self.read(now, actions);
                }
            }
            State::StandBy if self.next <= now => self.read(now, actions),
            State::StandBy | State::Leading { .. } | State::Released => {}
            State::Releasing => self.give_back(now, actions),
        }
    }

    fn read(&mut self, now: Instant, actions: &mut Vec<Action>) {
        actions.push(Action::Read);
        self.request = Some(Request { started: now, kind: RequestKind::Read });
    }

    fn give_back(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let seen = self.observed.as_ref().map(|seen| &seen.lease);
        let Some(lease) = seen.filter(|lease| lease.version != Version::default()) else {
            self.end(actions);
            return;
        };
        let claim = Claim {
            holder: String::new(),
            duration_seconds: 1,
            acquired: lease.record.acquired.clone(),
            transitions: lease.record.transitions,
        };
        actions.push(Action::Replace { version: lease.version.clone(), claim });
        self.request = Some(Request { started: now, kind: RequestKind::GiveBack });
    }
}

/// Rounded up: a standby may wait longer than it had to, never less.
fn whole_seconds(duration: Duration) -> i32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(seconds).unwrap_or(i32::MAX).max(1)
}

#[cfg(test)]
mod tests;
