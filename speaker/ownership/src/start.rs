//! When a speaker may claim: not before it has heard what the others hold.

use std::time::{Duration, Instant};

use crate::message::Flags;
use crate::{Candidates, Ownership, Profile};

/// How long the first speakers of a cluster wait for the other candidates before they divide the
/// addresses, and one that was cut off for a peer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long one that has just been heard may go on listening before it is not waited for.
const NOVICE: Duration = Duration::from_secs(1);

/// The beginning of a life, and of what is like it: the return of the only link, a long pause.
#[derive(Debug)]
pub(crate) struct Start {
    profile: Profile,
    /// `None`: it is over.
    listening_until: Option<Instant>,
    /// The listening ends soon after a peer is heard.
    returning: bool,
    resuming_until: Option<Instant>,
    /// After a pause of its own a speaker answers for nothing until then.
    silent_until: Option<Instant>,
    pub(crate) ready_since: Instant,
    /// When to look again whether first claims must wait.
    pub(crate) waits_until: Option<Instant>,
}

impl Start {
    pub(crate) fn new(profile: Profile, resumes: bool, now: Instant) -> Self {
        let listening = profile.interval * profile.misses * 2;
        Self {
            profile,
            listening_until: Some(now + listening),
            returning: false,
            resuming_until: resumes.then(|| now + profile.interval * 3),
            silent_until: None,
            ready_since: now + listening,
            waits_until: None,
        }
    }

    pub(crate) fn is_listening(&self) -> bool {
        self.listening_until.is_some()
    }

    pub(crate) fn is_resuming(&self) -> bool {
        self.resuming_until.is_some()
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.silent_until.is_some()
    }

    /// The only links have come back: while they were gone the peers fell silent, and that must
    /// not pass for their death.
    pub(crate) fn listen_again(&mut self, now: Instant) {
        let until = now + PATIENCE + self.profile.interval * 2;
        self.listening_until = Some(self.listening_until.map_or(until, |at| at.max(until)));
        self.returning = true;
    }

    /// A peer was heard: two beats later it is known what it holds.
    pub(crate) fn hear(&mut self, now: Instant) {
        if std::mem::take(&mut self.returning) {
            let until = now + self.profile.interval * 2;
            self.listening_until = self.listening_until.map(|at| at.min(until));
        }
    }

    pub(crate) fn next(&self, view_known: bool) -> Option<Instant> {
        let listening = self.listening_until.filter(|_| view_known);
        [listening, self.resuming_until, self.silent_until, self.waits_until]
            .into_iter()
            .flatten()
            .min()
    }

    /// How long first claims wait for candidates that were never heard.
    pub(crate) fn patience_ends(&self) -> Instant {
        self.ready_since + PATIENCE
    }
}

fn over(moment: &mut Option<Instant>, now: Instant) -> bool {
    moment.take_if(|at| *at <= now).is_some()
}

impl Ownership {
    /// Ends what has lasted long enough.
    pub(crate) fn advance_start(&mut self, now: Instant) {
        // With nobody to listen to there is nothing to wait for.
        let alone = self.peers.is_empty() && self.view.is_some();
        if alone && self.start.listening_until.is_some_and(|at| at > now) {
            self.start.listening_until = Some(now);
        }
        if self.view.is_some() && over(&mut self.start.listening_until, now) {
            self.start.returning = false;
            self.start.ready_since = now;
            self.home.begin(now);
            self.estate.replan();
        }
        if over(&mut self.start.resuming_until, now) {
            self.estate.replan();
        }
        if over(&mut self.start.silent_until, now) {
            self.touch_mine();
            self.estate.replan();
        }
        if over(&mut self.start.waits_until, now) {
            self.estate.replan();
        }
    }

    /// A loop that comes back late knows nothing of what the peers did meanwhile: nobody is dead
    /// for that, and what was owned may be another's now.
    pub(crate) fn forgive_own_pause(&mut self, now: Instant) {
        let interval = self.settings.profile.interval;
        let late = now.saturating_duration_since(self.rhythm.next);
        if late <= interval || self.peers.is_empty() {
            return;
        }
        self.peers.forgive(now);
        self.cancel_probes();
        if late > interval * 2 && self.start.silent_until.is_none() {
            self.start.silent_until = Some(now + interval * 2);
            self.touch_mine();
        }
    }

    /// Whether an address that nobody ever claimed may be claimed now, and if not when to look
    /// again. Speakers that start together wait for each other, or the first would take all.
    pub(crate) fn may_begin(&self, candidates: &Candidates, now: Instant) -> Result<(), Instant> {
        let patience = self.start.patience_ends();
        let mut again: Option<Instant> = None;
        for name in candidates.nodes.iter().filter(|name| **name != self.settings.me) {
            let Some(peer) = self.peers.get(name) else { continue };
            let until = match (&peer.life, peer.living()) {
                (None, _) => patience,
                // It was heard, and is known to be dead.
                (Some(_), None) => continue,
                (Some(_), Some(life)) if life.flags().has(Flags::LISTENING) => life.since + NOVICE,
                // What it holds is not all known yet.
                (Some(_), Some(life)) if self.owes(name, life) => patience,
                (Some(_), Some(_)) => continue,
            };
            if until > now {
                again = Some(again.map_or(until, |at| at.min(until)));
            }
        }
        again.map_or(Ok(()), Err)
    }
}
