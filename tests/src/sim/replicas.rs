//! Several controllers, one Lease and one API server on one clock: nobody but the leader writes, no
//! address is given twice, and none changes hands, whoever dies, freezes or loses its network.
//!
//! A replica is [`Controller`] and [`Election`] with what their shell does between them: a new
//! leader reads every Service once more before it decides, and each request is given up after a
//! time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use config::Labels;
use controller::{
    controller::{Action, Controller, Event, Settings, WriteResult},
    election::{self, Election},
    service::{Service, ServiceKey},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::{
    api::{Api, Change, Key, Outcome},
    checker::Checker,
    queue::Queue,
};

/// A status write is given up by its sender after this.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// More things than can happen in any one run.
const MOST_STEPS: u32 = 200_000;
/// A list is tried again after this.
const LIST_RETRY: Duration = Duration::from_millis(200);

/// A rule broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Every replica believes to lead.
    EverybodyLeads,
    /// A new leader decides from what its watch has told it so far.
    NoListOnTakeover,
    /// A leader goes on to send writes when it can renew no more.
    WritesPastDeadline,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9.
    Crash(usize),
    /// A new life.
    Boot(usize),
    /// SIGTERM: what is in flight lands, the Lease is given back, the process ends.
    Stop(usize),
    /// The process stands still for so long.
    Freeze(usize, Duration),
    /// Nothing of this replica reaches the API server for so long, and nothing comes back.
    CutOff(usize, Duration),
    /// The API server stands still for so long: requests wait.
    ApiFreeze(Duration),
    /// The API server refuses connections for so long.
    ApiDown(Duration),
    /// The watches of a replica tell nothing for so long.
    WatchLag(usize, Duration),
    /// Somebody deletes the Lease.
    LeaseDeleted,
}

#[derive(Debug)]
enum Request {
    Lease { number: u64, action: election::Action },
    Patch { key: ServiceKey, body: Box<Value> },
    List { term: u64 },
    FirstList,
}

#[derive(Debug)]
enum Answer {
    Lease {
        number: u64,
        event: election::Event,
    },
    Patch {
        key: ServiceKey,
        result: WriteResult,
    },
    List {
        term: u64,
        everything: Vec<Change>,
        upto: usize,
    },
    FirstList {
        everything: Vec<Change>,
        upto: usize,
    },
    /// The list failed.
    ListFailed {
        term: u64,
    },
    FirstListFailed,
}

#[derive(Debug)]
enum Message {
    Arrives {
        replica: usize,
        life: u64,
        request: Request,
    },
    Answered {
        replica: usize,
        life: u64,
        answer: Answer,
    },
    /// The sender stops waiting.
    LeaseTimeout {
        replica: usize,
        life: u64,
        number: u64,
    },
    WriteTimeout {
        replica: usize,
        life: u64,
        number: u64,
        key: ServiceKey,
    },
    Watch {
        replica: usize,
        life: u64,
        upto: usize,
    },
    Send {
        replica: usize,
        life: u64,
        request: Request,
    },
}

#[derive(Debug)]
struct Process {
    core: Controller,
    election: Election,
    cursor: Option<usize>,
    /// Counts how often it came to lead; what a list was asked for.
    term: u64,
    /// The number of the Lease request that is waited for.
    lease_request: Option<u64>,
    /// The writes that are waited for, by number.
    writes: BTreeMap<ServiceKey, u64>,
    stopping: bool,
}

#[derive(Debug, Default)]
struct Replica {
    process: Option<Process>,
    life: u64,
    frozen_until: Option<Instant>,
    cut_off_until: Option<Instant>,
    lagging_until: Option<Instant>,
    watched_until: Option<Instant>,
}

/// The whole.
#[derive(Debug)]
pub struct Replicas {
    pub now: Instant,
    pub start: Instant,
    pub api: Api,
    pub checker: Checker,
    /// What happened, for the reader of a failed seed.
    pub story: Vec<String>,
    replicas: Vec<Replica>,
    lease: Option<election::Lease>,
    /// Versions of the Lease, which Services do not share.
    lease_version: u64,
    settings: election::Settings,
    api_frozen_until: Option<Instant>,
    api_down_until: Option<Instant>,
    broken: Option<Broken>,
    rng: StdRng,
    queue: Queue<Message>,
    /// Numbers of requests.
    requests: u64,
    log_told: usize,
}

impl Replicas {
    /// `count` replicas, none of which runs.
    pub fn new(seed: u64, count: usize, broken: Option<Broken>) -> Self {
        let start = Instant::now();
        Self {
            now: start,
            start,
            api: Api::default(),
            checker: Checker::default(),
            story: Vec::new(),
            replicas: (0..count).map(|_| Replica::default()).collect(),
            lease: None,
            lease_version: 0,
            settings: election::Settings::new(String::new()),
            api_frozen_until: None,
            api_down_until: None,
            broken,
            rng: StdRng::seed_from_u64(seed),
            queue: Queue::default(),
            requests: 0,
            log_told: 0,
        }
    }

    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    pub fn count(&self) -> usize {
        self.replicas.len()
    }

    /// Who believes to lead.
    pub fn leaders(&self) -> Vec<usize> {
        let leads = |replica: &Replica| {
            replica.process.as_ref().is_some_and(|p| p.election.may_write(self.now))
        };
        (0..self.replicas.len()).filter(|index| leads(&self.replicas[*index])).collect()
    }

    pub fn runs(&self, replica: usize) -> bool {
        self.replicas[replica].process.is_some()
    }

    pub fn tell(&mut self, what: impl std::fmt::Display) {
        let at = (self.now - self.start).as_secs_f64() * 1000.0;
        self.story.push(format!("{at:>9.3} ms {what}"));
    }

    /// Makes something go wrong (or right again).
    pub fn fault(&mut self, fault: Fault) {
        self.tell(format_args!("{fault:?}"));
        let now = self.now;
        match fault {
            Fault::Crash(replica) => self.end(replica),
            Fault::Boot(replica) => self.boot(replica),
            Fault::Stop(replica) => {
                if let Some(process) = &mut self.replicas[replica].process {
                    process.stopping = true;
                }
                self.stop_when_done(replica);
            }
            Fault::Freeze(replica, time) => self.replicas[replica].frozen_until = Some(now + time),
            Fault::CutOff(replica, time) => self.replicas[replica].cut_off_until = Some(now + time),
            Fault::ApiFreeze(time) => self.api_frozen_until = Some(now + time),
            Fault::ApiDown(time) => self.api_down_until = Some(now + time),
            Fault::WatchLag(replica, time) => {
                self.replicas[replica].lagging_until = Some(now + time);
            }
            Fault::LeaseDeleted => self.lease = None,
        }
    }

    /// Runs for a time.
    ///
    /// # Errors
    /// The first invariant that did not hold.
    pub fn run(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        let mut steps = 0;
        while self.step(end)? {
            steps += 1;
            if steps > MOST_STEPS {
                let due: Vec<_> = (0..self.count())
                    .map(|replica| {
                        let process = self.replicas[replica].process.as_ref();
                        let due = |at: Option<Instant>| at.map(|at| at - self.start);
                        process
                            .map(|p| (due(p.core.poll_timeout()), due(p.election.poll_timeout())))
                    })
                    .collect();
                let next = self.queue.first();
                return Err(format!(
                    "{MOST_STEPS} steps within {time:?}; due (controller, election): {due:?}, \
                     next: {next:?}"
                ));
            }
        }
        self.now = end;
        Ok(())
    }

    fn step(&mut self, end: Instant) -> Result<bool, String> {
        self.tell_watchers();
        let message = self.queue.first().map(|(at, _)| at);
        let timer = (0..self.replicas.len()).filter_map(|replica| self.due(replica)).min();
        let Some(next) = [message, timer].into_iter().flatten().min().filter(|next| *next <= end)
        else {
            return Ok(false);
        };
        self.now = self.now.max(next);
        if let Some(message) = self.queue.pop_due(self.now) {
            self.deliver(message);
        } else {
            for replica in 0..self.replicas.len() {
                self.fire(replica);
            }
        }
        self.checker.step(&self.api)?;
        Ok(true)
    }

    /// When a replica has something to do by itself.
    fn due(&self, replica: usize) -> Option<Instant> {
        let Replica { process, frozen_until, .. } = &self.replicas[replica];
        let process = process.as_ref()?;
        let due = [process.core.poll_timeout(), process.election.poll_timeout()];
        let due = due.into_iter().flatten().min()?;
        Some(frozen_until.map_or(due, |until| until.max(due)))
    }

    fn fire(&mut self, replica: usize) {
        if self.due(replica).is_none_or(|due| due > self.now) {
            return;
        }
        let now = self.now;
        let Some(process) = &mut self.replicas[replica].process else { return };
        if process.election.poll_timeout().is_some_and(|due| due <= now) {
            let actions = process.election.handle_timeout(now);
            self.perform_election(replica, actions);
        }
        let Some(process) = &mut self.replicas[replica].process else { return };
        if process.core.poll_timeout().is_some_and(|due| due <= now) {
            let actions = process.core.handle_timeout(now);
            self.perform(replica, actions);
        }
    }

    // --- lives

    fn boot(&mut self, replica: usize) {
        if self.replicas[replica].process.is_some() {
            return;
        }
        self.replicas[replica].life += 1;
        let life = self.replicas[replica].life;
        let seed = self.rng.random();
        let settings = Settings { namespace: "metallb-system".to_owned(), seed };
        let identity = format!("controller-{replica}-{life}");
        let election = election::Settings { identity, ..self.settings.clone() };
        self.replicas[replica].process = Some(Process {
            core: Controller::new(settings),
            election: Election::new(election, seed, self.now),
            cursor: None,
            term: 0,
            lease_request: None,
            writes: BTreeMap::new(),
            stopping: false,
        });
        self.send(replica, Request::FirstList);
    }

    fn end(&mut self, replica: usize) {
        let replica = &mut self.replicas[replica];
        replica.process = None;
        replica.frozen_until = None;
        // Whatever is on its way to this life finds nobody.
        replica.life += 1;
    }

    /// A stopping replica gives the Lease back once its writes have landed.
    fn stop_when_done(&mut self, replica: usize) {
        let now = self.now;
        let Some(process) = &mut self.replicas[replica].process else { return };
        if process.stopping && process.writes.is_empty() {
            let actions = process.election.handle(election::Event::Release, now);
            self.perform_election(replica, actions);
        }
    }

    // --- requests

    fn send(&mut self, replica: usize, request: Request) {
        let life = self.replicas[replica].life;
        if self.is_cut_off(replica) {
            return self.lost(replica, life, &request);
        }
        let delay = self.delay(300, 3_000);
        self.at(self.now + delay, Message::Arrives { replica, life, request });
    }

    fn is_cut_off(&self, replica: usize) -> bool {
        self.replicas[replica].cut_off_until.is_some_and(|until| until > self.now)
    }

    /// The sender of a lease request or a write stops waiting by itself.
    fn lost(&mut self, replica: usize, life: u64, request: &Request) {
        let answer = match request {
            Request::Lease { .. } | Request::Patch { .. } => return,
            Request::List { term } => Answer::ListFailed { term: *term },
            Request::FirstList => Answer::FirstListFailed,
        };
        self.at(self.now + WRITE_TIMEOUT, Message::Answered { replica, life, answer });
    }

    fn arrives(&mut self, replica: usize, life: u64, request: Request) {
        if let Some(until) = self.api_frozen_until.filter(|until| *until > self.now) {
            return self.at(until, Message::Arrives { replica, life, request });
        }
        if self.is_cut_off(replica) {
            return self.lost(replica, life, &request);
        }
        let down = self.api_down_until.is_some_and(|until| until > self.now);
        let answer = match request {
            Request::Lease { number, action } => {
                let event = if down { election::Event::Failed } else { self.lease_request(action) };
                Answer::Lease { number, event }
            }
            Request::Patch { key, body } => {
                let result = if down {
                    WriteResult::Unavailable { retry_after: None }
                } else {
                    self.patch(&key, &body)
                };
                Answer::Patch { key, result }
            }
            Request::List { term } if down => Answer::ListFailed { term },
            Request::FirstList if down => Answer::FirstListFailed,
            Request::List { term } => {
                Answer::List { term, everything: self.api.list(), upto: self.api.log.len() }
            }
            Request::FirstList => {
                Answer::FirstList { everything: self.api.list(), upto: self.api.log.len() }
            }
        };
        let delay = self.delay(200, 2_000);
        self.at(self.now + delay, Message::Answered { replica, life, answer });
    }

    fn lease_request(&mut self, action: election::Action) -> election::Event {
        use election::{Action, Event};
        let claim = match (action, &self.lease) {
            (Action::Read, lease) => return Event::Found(lease.clone()),
            (Action::Create(_), Some(_)) | (Action::Replace { .. }, None) => {
                return Event::Refused;
            }
            (Action::Replace { version, .. }, Some(lease)) if version != lease.version => {
                return Event::Refused;
            }
            (Action::Create(claim), None) | (Action::Replace { claim, .. }, Some(_)) => claim,
            (Action::Lead | Action::StandBy | Action::Released, _) => return Event::Failed,
        };
        self.lease_version += 1;
        let stamp = format!("{:?}", self.now - self.start);
        let uid = self.lease.as_ref().map(|lease| lease.version.uid.clone());
        let lease = election::Lease {
            version: election::Version {
                uid: uid.unwrap_or_else(|| format!("lease-{}", self.lease_version)),
                resource_version: self.lease_version.to_string(),
            },
            record: election::Record {
                holder: claim.holder,
                duration_seconds: Some(claim.duration_seconds),
                acquired: claim.acquired.or_else(|| Some(stamp.clone())),
                renewed: Some(stamp),
                transitions: claim.transitions,
            },
        };
        self.lease = Some(lease.clone());
        Event::Stored(lease)
    }

    fn patch(&mut self, key: &ServiceKey, body: &Value) -> WriteResult {
        let key: Key = (key.namespace.to_string(), key.name.to_string());
        match self.api.patch_status(&key, body) {
            Outcome::Written => {
                let version = self
                    .api
                    .services
                    .get(&key)
                    .and_then(|service| service.metadata.resource_version.clone());
                WriteResult::Written { resource_version: version.unwrap_or_default() }
            }
            Outcome::Conflict => WriteResult::Conflict,
            Outcome::Gone => WriteResult::Gone,
        }
    }

    // --- what comes in

    fn deliver(&mut self, message: Message) {
        let (replica, life, to_process) = match &message {
            // What was sent arrives, whatever has become of the sender.
            Message::Arrives { replica, life, .. } => (*replica, *life, false),
            Message::Answered { replica, life, .. }
            | Message::LeaseTimeout { replica, life, .. }
            | Message::WriteTimeout { replica, life, .. }
            | Message::Watch { replica, life, .. }
            | Message::Send { replica, life, .. } => (*replica, *life, true),
        };
        if to_process && self.replicas[replica].life != life {
            return;
        }
        let frozen = self.replicas[replica].frozen_until.filter(|at| *at > self.now);
        if let Some(until) = frozen.filter(|_| to_process) {
            return self.at(until, message);
        }
        match message {
            Message::Arrives { replica, life, request } => self.arrives(replica, life, request),
            Message::Answered { answer, .. } => self.answered(replica, answer),
            Message::LeaseTimeout { number, .. } => {
                self.lease_answered(replica, number, election::Event::Failed);
            }
            Message::WriteTimeout { number, key, .. } => {
                let process = self.replicas[replica].process.as_ref();
                if process.is_some_and(|process| process.writes.get(&key) == Some(&number)) {
                    self.written(replica, key, WriteResult::Unavailable { retry_after: None });
                }
            }
            Message::Watch { upto, .. } => self.watched(replica, upto),
            Message::Send { request, .. } => self.send(replica, request),
        }
    }

    fn answered(&mut self, replica: usize, answer: Answer) {
        let life = self.replicas[replica].life;
        match answer {
            Answer::Lease { number, event } => self.lease_answered(replica, number, event),
            Answer::Patch { key, result } => self.written(replica, key, result),
            Answer::FirstList { everything, upto } => {
                let Some(process) = &mut self.replicas[replica].process else { return };
                if process.cursor.is_none_or(|cursor| cursor < upto) {
                    process.cursor = Some(upto);
                    self.feed(replica, everything);
                }
                self.tell_core(replica, Event::Synced);
                if self.broken == Some(Broken::EverybodyLeads) {
                    self.tell_core(replica, Event::Leading);
                }
            }
            Answer::List { term, everything, upto } => {
                let Some(process) = &mut self.replicas[replica].process else { return };
                if process.term != term || !process.election.may_write(self.now) {
                    return;
                }
                // The watch goes on from the list.
                process.cursor = process.cursor.max(Some(upto));
                let there: Vec<ServiceKey> = everything.iter().filter_map(key_of).collect();
                let gone: Vec<ServiceKey> =
                    process.core.services().filter(|key| !there.contains(key)).cloned().collect();
                self.feed(replica, everything);
                for key in gone {
                    self.tell_core(replica, Event::ServiceDeleted(key));
                }
                self.tell_core(replica, Event::Leading);
            }
            Answer::ListFailed { term } => {
                let request = Request::List { term };
                self.at(self.now + LIST_RETRY, Message::Send { replica, life, request });
            }
            Answer::FirstListFailed => {
                let request = Request::FirstList;
                self.at(self.now + LIST_RETRY, Message::Send { replica, life, request });
            }
        }
    }

    fn lease_answered(&mut self, replica: usize, number: u64, event: election::Event) {
        let now = self.now;
        let Some(process) = &mut self.replicas[replica].process else { return };
        if process.lease_request == Some(number) {
            process.lease_request = None;
            let actions = process.election.handle(event, now);
            self.perform_election(replica, actions);
        }
    }

    fn written(&mut self, replica: usize, key: ServiceKey, result: WriteResult) {
        let Some(process) = &mut self.replicas[replica].process else { return };
        if process.writes.remove(&key).is_some() {
            self.tell_core(replica, Event::WriteDone { key, result });
            self.stop_when_done(replica);
        }
    }

    fn tell_watchers(&mut self) {
        let upto = self.api.log.len();
        if upto == self.log_told {
            return;
        }
        self.log_told = upto;
        for replica in 0..self.replicas.len() {
            let delay = self.delay(200, 20_000);
            let Replica { process, life, watched_until, lagging_until, cut_off_until, .. } =
                &mut self.replicas[replica];
            if process.is_none() {
                continue;
            }
            let late = [*lagging_until, *cut_off_until].into_iter().flatten().max();
            let at = late.map_or(self.now, |late| late.max(self.now)) + delay;
            let at = watched_until.map_or(at, |last| last.max(at));
            *watched_until = Some(at);
            let life = *life;
            self.at(at, Message::Watch { replica, life, upto });
        }
    }

    fn watched(&mut self, replica: usize, upto: usize) {
        let Some(process) = &mut self.replicas[replica].process else { return };
        let Some(cursor) = process.cursor.as_mut().filter(|cursor| **cursor < upto) else {
            return;
        };
        let news = self.api.log[*cursor..upto].to_vec();
        *cursor = upto;
        self.feed(replica, news);
    }

    fn feed(&mut self, replica: usize, changes: Vec<Change>) {
        for change in changes {
            let event = match change {
                Change::Service(service) => match Service::new(&service, None) {
                    Some(service) => Event::ServiceApplied(Box::new(service)),
                    None => continue,
                },
                Change::ServiceGone((namespace, name)) => {
                    Event::ServiceDeleted(ServiceKey::new(namespace, name))
                }
                Change::Resources(mut resources) => {
                    resources.namespaces.insert("default".into(), Labels::new());
                    Event::ResourcesChanged((*resources).into())
                }
                Change::Slice(_) | Change::SliceGone(_) | Change::Node(_) | Change::NodeGone(_) => {
                    continue;
                }
            };
            self.tell_core(replica, event);
        }
    }

    // --- what goes out

    fn tell_core(&mut self, replica: usize, event: Event) {
        let now = self.now;
        if let Some(process) = &mut self.replicas[replica].process {
            let actions = process.core.handle(event, now);
            self.perform(replica, actions);
        }
    }

    fn perform(&mut self, replica: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::PatchService { key, body } => self.write(replica, key, body),
                Action::PatchStatus { object, body: _ } => {
                    let resource_version = "0".to_owned();
                    let result = WriteResult::Written { resource_version };
                    self.tell_core(replica, Event::StatusDone { object, result });
                }
                Action::PatchConfigurationState { .. } => {
                    let resource_version = "0".to_owned();
                    let result = WriteResult::Written { resource_version };
                    self.tell_core(replica, Event::ConfigurationStateDone { result });
                }
                Action::PublishEvent { .. } => {}
            }
        }
    }

    fn write(&mut self, replica: usize, key: ServiceKey, body: Value) {
        let now = self.now;
        let past_deadline = self.broken == Some(Broken::WritesPastDeadline);
        let everybody = self.broken == Some(Broken::EverybodyLeads);
        let life = self.replicas[replica].life;
        let Some(process) = &mut self.replicas[replica].process else { return };
        let may = process.election.may_write(now) || past_deadline || everybody;
        let sent = may && !process.stopping;
        self.requests += 1;
        let number = self.requests;
        process.writes.insert(key.clone(), number);
        if !sent {
            let result = WriteResult::Unavailable { retry_after: None };
            let answer = Answer::Patch { key, result };
            return self.at(now, Message::Answered { replica, life, answer });
        }
        let at = now + WRITE_TIMEOUT;
        self.at(at, Message::WriteTimeout { replica, life, number, key: key.clone() });
        self.send(replica, Request::Patch { key, body: Box::new(body) });
    }

    fn perform_election(&mut self, replica: usize, actions: Vec<election::Action>) {
        for action in actions {
            let Some(process) = &mut self.replicas[replica].process else { return };
            match action {
                election::Action::Read
                | election::Action::Create(_)
                | election::Action::Replace { .. } => {
                    self.requests += 1;
                    let number = self.requests;
                    process.lease_request = Some(number);
                    let life = self.replicas[replica].life;
                    let at = self.now + self.settings.request_timeout();
                    self.at(at, Message::LeaseTimeout { replica, life, number });
                    self.send(replica, Request::Lease { number, action });
                }
                election::Action::Lead => {
                    process.term += 1;
                    let term = process.term;
                    self.tell(format_args!("controller {replica} leads"));
                    if self.broken == Some(Broken::NoListOnTakeover) {
                        self.tell_core(replica, Event::Leading);
                    } else {
                        self.send(replica, Request::List { term });
                    }
                }
                election::Action::StandBy => {
                    self.tell(format_args!("controller {replica} stands by"));
                    if self.broken != Some(Broken::WritesPastDeadline) {
                        self.tell_core(replica, Event::StandBy);
                    }
                }
                election::Action::Released => self.end(replica),
            }
        }
    }

    // --- the queue

    /// Between the two, in microseconds.
    fn delay(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(least..=most))
    }

    fn at(&mut self, at: Instant, message: Message) {
        self.queue.put(at, message);
    }
}

fn key_of(change: &Change) -> Option<ServiceKey> {
    match change {
        Change::Service(service) => {
            let (namespace, name) = super::api::key(&service.metadata);
            Some(ServiceKey::new(namespace, name))
        }
        Change::ServiceGone(_)
        | Change::Slice(_)
        | Change::SliceGone(_)
        | Change::Node(_)
        | Change::NodeGone(_)
        | Change::Resources(_) => None,
    }
}
