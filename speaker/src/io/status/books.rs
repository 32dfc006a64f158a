//! What is to be written, what the API server has, and when to write next: no I/O.
//!
//! An address is announced first and seen to answer by another node some 0.2 s later. One write tells
//! both: the status of an address that may yet be seen waits for that, two seconds at most. What is
//! seen later still goes out with the next write of the same object, or else a few a second: it is
//! news to nobody, and a thousand addresses are not to be a thousand writes more. So it is with a BGP
//! session that comes or goes and the thousands of Services that are announced in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use config::{PeerName, ServiceKey};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{
    object::{self, Digest, News, Status},
    sessions::{Moment, SessionTold},
};
use crate::{
    io::bgp::board::SessionView,
    status::{BgpStatus, Layer2Status, ServiceStatus},
};

/// So long a change waits for others of the same object, so that none is written more often.
const SETTLE: Duration = Duration::from_secs(1);
/// A Service that had no status waits so long: for its other addresses.
const FIRST: Duration = Duration::from_millis(200);
/// What may yet be seen on the wire waits for it so long, and what a session that begins may yet say.
const PROOF: Duration = Duration::from_secs(2);
/// A change that only says what was seen waits so long for a better reason to write; what is only
/// news of a session is written so long after the last write.
const LATE: Duration = Duration::from_secs(5);
/// A change of numbers alone is written so long after the last write.
pub const NUMBERS: Duration = Duration::from_secs(60);
/// And then for its turn: one each.
const DRIP: Duration = Duration::from_millis(200);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// What an earlier life left is removed after so long, unless it is wanted again.
const LEFT_OVER: Duration = Duration::from_secs(10);

/// One object: a kind, and what it tells of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    Layer2(ServiceKey),
    Bgp(ServiceKey),
    Session(PeerName),
}

/// What the API server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// `None`: it is another Pod's and goes with that one.
    pub digest: Option<Digest>,
    /// Whether the condition is True, and since when.
    pub announced: bool,
    pub since: Timestamp,
    /// When this life wrote it last.
    pub at: Option<Instant>,
}

/// A write.
#[derive(Debug, Clone)]
pub struct Job {
    pub object: Object,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    /// Make the object, then set its status.
    Create(Status, Written),
    /// Make the object ours, then set its status.
    Adopt(Status, Written),
    Update(Status, Written),
    Delete,
}

/// Whether there are other speakers, which may see addresses answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Witnesses {
    Some,
    None,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Books {
    /// Without those that say nothing.
    wanted: BTreeMap<ServiceKey, Arc<ServiceStatus>>,
    sessions: BTreeMap<PeerName, SessionTold>,
    written: BTreeMap<Object, Written>,
    due: BTreeMap<Object, Instant>,
    by_due: BTreeSet<(Instant, Object)>,
    under_way: BTreeSet<Object>,
    /// Those whose only news is what was seen, with their turns.
    drips: BTreeMap<Object, Instant>,
    last_drip: Option<Instant>,
}

impl Books {
    /// An object of this node was there before.
    pub fn found(&mut self, object: Object, written: Written, now: Instant) {
        self.written.insert(object.clone(), written);
        self.schedule(object, now + LEFT_OVER);
    }

    pub fn want(
        &mut self,
        service: &ServiceKey,
        status: Arc<ServiceStatus>,
        witnesses: Witnesses,
        now: Instant,
    ) {
        let unproven = status.layer2.as_ref().is_some_and(Layer2Status::awaits_proof);
        let is_up = |(peer, _): &(PeerName, _)| {
            self.sessions.get(peer).is_some_and(|told| told.takes.established)
        };
        let beginning = status.bgp.as_ref().is_some_and(|bgp| !bgp.peers.iter().all(is_up));
        if *status == ServiceStatus::default() {
            self.wanted.remove(service);
        } else {
            self.wanted.insert(service.clone(), status);
        }
        let layer2 = Object::Layer2(service.clone());
        let wait = match witnesses {
            Witnesses::Some if unproven => PROOF,
            _ if !self.written.contains_key(&layer2) => FIRST,
            Witnesses::Some | Witnesses::None => SETTLE,
        };
        self.schedule(layer2, now + wait);
        let bgp = Object::Bgp(service.clone());
        let begins = !self.written.contains_key(&bgp) && beginning;
        self.schedule(bgp, now + if begins { PROOF } else { SETTLE });
    }

    /// These are all BGP sessions.
    pub fn sessions(
        &mut self,
        me: &str,
        views: &BTreeMap<PeerName, SessionView>,
        now: Instant,
        time: Timestamp,
    ) {
        let moment = Moment { instant: now.into_std(), time };
        let mut turned = BTreeSet::new();
        let gone: Vec<PeerName> =
            self.sessions.keys().filter(|peer| !views.contains_key(*peer)).cloned().collect();
        for peer in gone {
            self.sessions.remove(&peer);
            self.schedule(Object::Session(peer.clone()), now + SETTLE);
            turned.insert(peer);
        }
        for (peer, view) in views {
            let before = self.sessions.get(peer);
            let told = SessionTold::of(me, peer, view, before, moment);
            if before == Some(&told) {
                continue;
            }
            if before.is_none_or(|before| before.takes != told.takes) {
                turned.insert(peer.clone());
            }
            self.sessions.insert(peer.clone(), told);
            self.schedule(Object::Session(peer.clone()), now + SETTLE);
        }
        if turned.is_empty() {
            return;
        }
        let in_it = |bgp: &BgpStatus| bgp.peers.iter().any(|(peer, _)| turned.contains(peer));
        let announced = self.wanted.iter();
        let announced = announced.filter(|(_, told)| told.bgp.as_ref().is_some_and(in_it));
        let services: Vec<ServiceKey> = announced.map(|(service, _)| service.clone()).collect();
        for service in services {
            self.schedule(Object::Bgp(service), now + SETTLE);
        }
    }

    /// Whether there are sessions, whose numbers change unheard.
    pub fn has_sessions(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// These are all objects that the API server has of this node.
    pub fn compare(&mut self, all: &BTreeSet<Object>, now: Instant) {
        let gone = |object: &&Object| !all.contains(*object);
        let gone: Vec<Object> = self.written.keys().filter(gone).cloned().collect();
        for object in gone {
            self.written.remove(&object);
            self.schedule(object, now);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// The next write that is due. Ends with [`Self::done`].
    pub fn next(&mut self, me: &str, now: Instant, time: Timestamp) -> Option<Job> {
        while let Some((due, object)) = self.by_due.first().cloned()
            && due <= now
        {
            self.by_due.pop_first();
            self.due.remove(&object);
            if self.under_way.contains(&object) {
                // Looked at again when that one is done.
                self.due.insert(object, due);
                continue;
            }
            let Some(what) = self.what(&object, me, time) else {
                self.drips.remove(&object);
                continue;
            };
            let turn = match self.news(&object, &what) {
                News::Great => now,
                News::Small => self.turn_of(&object, now),
                News::None | News::Numbers => self.since_last_write(&object, NUMBERS, now),
            };
            if now < turn {
                self.schedule(object, turn);
                continue;
            }
            self.drips.remove(&object);
            self.under_way.insert(object.clone());
            return Some(Job { object, what });
        }
        None
    }

    /// A write has ended; of one that failed it is not known whether it was done.
    pub fn done(&mut self, job: &Job, succeeded: bool, now: Instant) {
        let object = &job.object;
        self.under_way.remove(object);
        match &job.what {
            What::Create(_, written) | What::Adopt(_, written) | What::Update(_, written) => {
                let digest = written.digest.filter(|_| succeeded);
                self.written.insert(object.clone(), Written { digest, at: Some(now), ..*written });
            }
            What::Delete if succeeded => {
                self.written.remove(object);
            }
            What::Delete => {}
        }
        // What came meanwhile and has waited long enough is in no queue.
        let passed = self.due.get(object).copied().filter(|due| *due <= now);
        if passed.is_some() {
            self.due.remove(object);
        }
        if !succeeded {
            self.unschedule(object);
            self.schedule(object.clone(), now + RETRY);
        } else if passed.is_some() {
            self.schedule(object.clone(), now);
        }
    }

    fn what(&self, object: &Object, me: &str, time: Timestamp) -> Option<What> {
        let written = self.written.get(object);
        let status = self.status(object, me);
        let Some(mut status) = status else { return written.map(|_| What::Delete) };
        let digest = Some(status.digest());
        let announced = status.announced();
        let since = written.filter(|written| written.announced == announced);
        let since = since.map_or(time, |written| written.since);
        status.set_since(since);
        let new = Written { digest, announced, since, at: None };
        match written {
            None => Some(What::Create(status, new)),
            Some(Written { digest: None, .. }) => Some(What::Adopt(status, new)),
            Some(written) if written.digest == digest => None,
            Some(_) => Some(What::Update(status, new)),
        }
    }

    /// `None`: there is to be no such object.
    fn status(&self, object: &Object, me: &str) -> Option<Status> {
        match object {
            Object::Layer2(service) => {
                let told = self.wanted.get(service)?.layer2.as_ref()?;
                Some(Status::layer2(me, service, told))
            }
            Object::Bgp(service) => {
                let told = self.wanted.get(service)?.bgp.as_ref()?;
                let takes = |peer: &PeerName| self.sessions.get(peer).map(|told| &told.takes);
                Some(Status::bgp(me, service, told, takes))
            }
            Object::Session(peer) => {
                let told = self.sessions.get(peer)?;
                Some(Status::Session(Box::new(told.status.clone())))
            }
        }
    }

    fn news(&self, object: &Object, what: &What) -> News {
        let before = self.written.get(object).and_then(|written| written.digest);
        match (what, before) {
            (What::Update(_, Written { digest: Some(new), .. }), Some(before)) => new.news(before),
            (What::Create(..) | What::Adopt(..) | What::Update(..) | What::Delete, _) => {
                News::Great
            }
        }
    }

    /// When small news may be written.
    fn turn_of(&mut self, object: &Object, now: Instant) -> Instant {
        let earliest = match object {
            Object::Layer2(_) => now + LATE,
            Object::Bgp(_) => self.since_last_write(object, LATE, now),
            // There are few.
            Object::Session(_) => return self.since_last_write(object, LATE, now),
        };
        let last = &mut self.last_drip;
        *self.drips.entry(object.clone()).or_insert_with(|| {
            let next = earliest.max(last.map_or(now, |last| last + DRIP));
            *last.insert(next)
        })
    }

    fn since_last_write(&self, object: &Object, wait: Duration, now: Instant) -> Instant {
        let last = self.written.get(object).and_then(|written| written.at);
        last.map_or(now, |last| (last + wait).max(now))
    }

    fn unschedule(&mut self, object: &Object) {
        if let Some(due) = self.due.remove(object) {
            self.by_due.remove(&(due, object.clone()));
        }
    }

    /// At the earlier of this and what was meant before.
    fn schedule(&mut self, object: Object, due: Instant) {
        if let Some(before) = self.due.get(&object).copied() {
            if before <= due {
                return;
            }
            self.by_due.remove(&(before, object.clone()));
        }
        self.due.insert(object.clone(), due);
        self.by_due.insert((due, object));
    }
}

/// What is known of an object that was there before this life.
pub fn written_before(status: &Status, ours: bool) -> Written {
    let (announced, since) = object::announced_since(status);
    Written { digest: ours.then(|| status.digest()), announced, since, at: None }
}

#[cfg(test)]
mod tests;
