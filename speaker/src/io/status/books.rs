//! What is to be written, what the API server has, and when to write next: no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use config::ServiceKey;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::object::{self, Status};
use crate::status::ServiceStatus;

/// So long a change waits for others of the same object: an address that is announced is seen on
/// the wire a moment later, and both are one write.
const SETTLE: Duration = Duration::from_secs(1);
/// After a failure.
const RETRY: Duration = Duration::from_secs(2);
/// What an earlier life left is removed after so long, unless it is wanted again.
const LEFT_OVER: Duration = Duration::from_secs(10);

/// One object: a kind and a Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Layer2,
    Bgp,
}

pub type Object = (Kind, ServiceKey);

/// What the API server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Of the status, without times; `None`: it is another Pod's and goes with that one.
    pub digest: Option<u64>,
    /// Whether the condition is True, and since when.
    pub announced: bool,
    pub since: Timestamp,
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

/// See the module.
#[derive(Debug, Default)]
pub struct Books {
    /// Without those that say nothing.
    wanted: BTreeMap<ServiceKey, Arc<ServiceStatus>>,
    written: BTreeMap<Object, Written>,
    due: BTreeMap<Object, Instant>,
    by_due: BTreeSet<(Instant, Object)>,
    under_way: BTreeSet<Object>,
}

impl Books {
    /// An object of this node was there before.
    pub fn found(&mut self, object: Object, written: Written, now: Instant) {
        self.written.insert(object.clone(), written);
        self.schedule(object, now + LEFT_OVER);
    }

    pub fn want(&mut self, service: &ServiceKey, status: Arc<ServiceStatus>, now: Instant) {
        if *status == ServiceStatus::default() {
            self.wanted.remove(service);
        } else {
            self.wanted.insert(service.clone(), status);
        }
        for kind in [Kind::Layer2, Kind::Bgp] {
            self.schedule((kind, service.clone()), now + SETTLE);
        }
    }

    /// These are all objects of this kind that the API server has of this node.
    pub fn compare(&mut self, kind: Kind, all: &BTreeSet<ServiceKey>, now: Instant) {
        let gone = |object: &&Object| object.0 == kind && !all.contains(&object.1);
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
            if let Some(what) = self.what(&object, me, time) {
                self.under_way.insert(object.clone());
                return Some(Job { object, what });
            }
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
                self.written.insert(object.clone(), Written { digest, ..*written });
            }
            What::Delete if succeeded => {
                self.written.remove(object);
            }
            What::Delete => {}
        }
        let waiting = self.due.remove(object);
        if !succeeded {
            self.schedule(object.clone(), now + RETRY);
        } else if waiting.is_some() {
            self.schedule(object.clone(), now);
        }
    }

    fn what(&self, object: &Object, me: &str, time: Timestamp) -> Option<What> {
        let (kind, service) = object;
        let written = self.written.get(object);
        let wanted = self.wanted.get(service);
        let status = wanted.and_then(|wanted| Status::of(*kind, me, service, wanted));
        let Some(mut status) = status else { return written.map(|_| What::Delete) };
        let digest = Some(status.digest());
        let announced = status.announced();
        let since = written.filter(|written| written.announced == announced);
        let since = since.map_or(time, |written| written.since);
        status.set_since(since);
        let new = Written { digest, announced, since };
        match written {
            None => Some(What::Create(status, new)),
            Some(Written { digest: None, .. }) => Some(What::Adopt(status, new)),
            Some(written) if written.digest == digest => None,
            Some(_) => Some(What::Update(status, new)),
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
    Written { digest: ours.then(|| status.digest()), announced, since }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{AddressStatus, BgpStatus, Layer2Status, Step};

    const ME: &str = "n1";

    fn key() -> ServiceKey {
        ServiceKey::new("shop", "web")
    }

    fn told(step: Step, reason: Option<&'static str>) -> Arc<ServiceStatus> {
        let address = "192.0.2.1".parse().unwrap();
        let told = AddressStatus { address, step, seen_by: None, reason };
        let layer2 = Layer2Status { addresses: [told].into(), ..Layer2Status::default() };
        Arc::new(ServiceStatus { layer2: Some(layer2), bgp: None })
    }

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn next(books: &mut Books, now: Instant) -> Option<Job> {
        books.next(ME, now, time(1))
    }

    /// The jobs that are due, each done at once.
    fn settle(books: &mut Books, now: Instant) -> Vec<&'static str> {
        let mut done = Vec::new();
        while let Some(job) = next(books, now) {
            done.push(match job.what {
                What::Create(..) => "create",
                What::Adopt(..) => "adopt",
                What::Update(..) => "update",
                What::Delete => "delete",
            });
            books.done(&job, true, now);
        }
        done
    }

    fn status() -> Status {
        Status::of(Kind::Layer2, ME, &key(), &told(Step::Seen, None)).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_together_is_one_write() {
        let mut books = Books::default();
        let now = Instant::now();
        books.want(&key(), told(Step::Announced, None), now);
        assert_eq!(settle(&mut books, now), [""; 0], "it waits for what follows");
        let later = now + SETTLE / 2;
        books.want(&key(), told(Step::Seen, None), later);
        assert_eq!(books.poll_timeout(), Some(now + SETTLE), "but not for ever");
        assert_eq!(settle(&mut books, now + SETTLE), ["create"]);
        books.want(&key(), told(Step::Seen, None), later);
        assert_eq!(settle(&mut books, now + SETTLE * 2), [""; 0], "nothing new");
        books.want(&key(), Arc::default(), now);
        assert_eq!(settle(&mut books, now + SETTLE * 3), ["delete"]);
        assert_eq!(books.poll_timeout(), None);
        assert!(books.written.is_empty() && books.wanted.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_life_wrote_is_not_written_again() {
        let now = Instant::now();
        for (ours, wanted, expected) in [
            (true, Some(Step::Seen), vec![]),
            (true, Some(Step::Announced), vec!["update"]),
            (false, Some(Step::Seen), vec!["adopt"]),
            (true, None, vec!["delete"]),
        ] {
            let mut books = Books::default();
            books.found((Kind::Layer2, key()), written_before(&status(), ours), now);
            assert_eq!(settle(&mut books, now + LEFT_OVER / 2), [""; 0], "it may be wanted yet");
            if let Some(step) = wanted {
                books.want(&key(), told(step, None), now);
            }
            assert_eq!(settle(&mut books, now + LEFT_OVER), expected, "{ours} {wanted:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_tried_again_as_if_nothing_were_known() {
        let mut books = Books::default();
        let mut now = Instant::now();
        books.want(&key(), told(Step::Announced, None), now);
        now += SETTLE;
        let job = next(&mut books, now).unwrap();
        books.want(&key(), told(Step::Seen, None), now);
        assert!(next(&mut books, now + SETTLE).is_none(), "one write of an object at a time");
        books.done(&job, false, now);
        assert_eq!(settle(&mut books, now), [""; 0]);
        assert_eq!(settle(&mut books, now + RETRY), ["adopt"], "it may be there");
        assert_eq!(settle(&mut books, now + RETRY * 2), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_removed_is_made_anew() {
        let mut books = Books::default();
        let now = Instant::now();
        let bgp = BgpStatus { peers: ["tor".into()].into(), ..BgpStatus::default() };
        let both = ServiceStatus { bgp: Some(bgp), ..(*told(Step::Seen, None)).clone() };
        books.want(&key(), Arc::new(both), now);
        assert_eq!(settle(&mut books, now + SETTLE), ["create", "create"]);
        books.compare(Kind::Layer2, &BTreeSet::from([key()]), now);
        books.compare(Kind::Bgp, &BTreeSet::new(), now);
        assert_eq!(settle(&mut books, now), ["create"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_condition_keeps_its_time_while_it_stays() {
        let mut books = Books::default();
        let mut now = Instant::now();
        let mut since = Vec::new();
        for (second, step, reason) in [
            (10, Step::Announced, None),
            (20, Step::Seen, None),
            (30, Step::Conflict, Some("addressConflict")),
            (40, Step::Owned, Some("nodeIsolated")),
        ] {
            books.want(&key(), told(step, reason), now);
            now += SETTLE;
            let job = books.next(ME, now, time(second)).unwrap();
            books.done(&job, true, now);
            let (What::Create(Status::Layer2(status), _) | What::Update(Status::Layer2(status), _)) =
                job.what
            else {
                panic!("an object of layer 2 is written")
            };
            let condition = &status.conditions[0];
            let at = condition.last_transition_time.0.as_second();
            since.push((condition.status.clone(), condition.reason.clone(), at));
            assert_eq!(status.node.is_some(), condition.status == "True");
        }
        let expected = [
            ("True", "Announced", 10),
            ("True", "Announced", 10),
            ("False", "addressConflict", 30),
            ("False", "nodeIsolated", 30),
        ];
        let expected = expected.map(|(status, reason, at)| (status.into(), reason.into(), at));
        assert_eq!(since, expected);
    }
}
