//! Takes part in the election: performs what [`Election`] asks for on a Lease, and tells the rest
//! of the process whether it leads.

use std::time::Duration;

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams, core::Status};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{FIELD_MANAGER, now};
use crate::election::{self, Action, Claim, Election, Event, Record, Settings, Version};

/// The Lease that replicas lead by.
#[derive(Debug, Clone)]
pub struct LeaseOptions {
    pub namespace: String,
    pub name: String,
    pub settings: Settings,
}

/// Whether this replica leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    StandBy,
    Leading {
        /// Counts how often it came to lead.
        term: u64,
        /// When its right to write ends; `None`: never, for there is no election.
        until: Option<Instant>,
    },
}

impl Leadership {
    pub fn term(self) -> Option<u64> {
        match self {
            Self::StandBy => None,
            Self::Leading { term, .. } => Some(term),
        }
    }
}

/// The right to write what was decided in one term, as long as that lasts.
#[derive(Debug, Clone)]
pub struct Permit {
    leadership: watch::Receiver<Leadership>,
    term: u64,
}

impl Permit {
    /// To be asked right before a request is sent.
    pub fn holds(&self) -> bool {
        match *self.leadership.borrow() {
            Leadership::StandBy => false,
            Leadership::Leading { term, until } => {
                term == self.term && until.is_none_or(|until| Instant::now() < until)
            }
        }
    }
}

/// The part of this process in the election.
#[derive(Debug)]
pub struct Candidacy {
    leadership: watch::Receiver<Leadership>,
    looked: Option<oneshot::Receiver<()>>,
    release: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Candidacy {
    /// The only replica: it leads for good.
    pub fn unopposed() -> Self {
        let (_, leadership) = watch::channel(Leadership::Leading { term: 1, until: None });
        Self { leadership, looked: None, release: CancellationToken::new(), task: None }
    }

    /// Stands for election. The requests of `client` must not be repeated by itself: a late
    /// success is worse than an error.
    pub fn start(client: Client, options: LeaseOptions) -> Self {
        let (told, leadership) = watch::channel(Leadership::StandBy);
        let (look, looked) = oneshot::channel();
        let release = CancellationToken::new();
        info!(
            lease = format!("{}/{}", options.namespace, options.name),
            identity = options.settings.identity,
            "standing for election"
        );
        let keeper = Keeper {
            api: Api::namespaced(client, &options.namespace),
            name: options.name,
            request_timeout: options.settings.request_timeout(),
            election: Election::new(options.settings, rand::random(), now()),
            requests: FuturesUnordered::new(),
            last: None,
            term: 0,
            told,
            look: Some(look),
            troubled: false,
        };
        let task = tokio::spawn(keeper.run(release.clone()));
        Self { leadership, looked: Some(looked), release, task: Some(task) }
    }

    /// Until it is known whether the Lease can be had at once.
    pub async fn looked(&mut self) {
        if let Some(looked) = self.looked.take() {
            // The task ends only when it is told to.
            let _ = looked.await;
        }
    }

    pub fn leadership(&self) -> Leadership {
        *self.leadership.borrow()
    }

    /// Until the answer of [`Self::leadership`] is another one. Cancel safe.
    pub async fn changed(&mut self) {
        if self.leadership.changed().await.is_err() {
            std::future::pending().await
        }
    }

    pub fn permit(&self, term: u64) -> Permit {
        Permit { leadership: self.leadership.clone(), term }
    }

    /// Gives the Lease back; call when everything that had to be written is written.
    pub async fn release(mut self) {
        self.release.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Candidacy {
    /// As if it had died: the others find out by themselves.
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// How a request ended.
struct Answer {
    event: Event,
    /// The Lease that the answer showed.
    lease: Option<Lease>,
    /// For the log.
    error: Option<String>,
}

impl Answer {
    fn good(event: Event, lease: Option<Lease>) -> Self {
        Self { event, lease, error: None }
    }

    fn silence() -> Self {
        Self { event: Event::Failed, lease: None, error: Some("no answer in time".to_owned()) }
    }

    fn error(error: &kube::Error) -> Self {
        let event = match error {
            kube::Error::Api(status) if refuses(status) => Event::Refused,
            _ => Event::Failed,
        };
        Self { event, lease: None, error: Some(error.to_string()) }
    }
}

struct Keeper {
    api: Api<Lease>,
    name: String,
    request_timeout: Duration,
    election: Election,
    requests: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// The Lease as it was read last: what others wrote into it stays.
    last: Option<Lease>,
    term: u64,
    told: watch::Sender<Leadership>,
    look: Option<oneshot::Sender<()>>,
    /// Requests fail; told once.
    troubled: bool,
}

impl Keeper {
    async fn run(mut self, release: CancellationToken) {
        let mut releasing = false;
        loop {
            let deadline = self.election.poll_timeout().map(Instant::from_std);
            let actions = tokio::select! {
                biased;
                Some(answer) = self.requests.next() => {
                    self.log(&answer);
                    self.last = answer.lease.or(self.last);
                    self.election.handle(answer.event, now())
                }
                () = release.cancelled(), if !releasing => {
                    releasing = true;
                    self.election.handle(Event::Release, now())
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.election.handle_timeout(now())
                }
            };
            let released = actions.contains(&Action::Released);
            for action in actions {
                self.perform(action);
            }
            self.tell();
            if released {
                return;
            }
        }
    }

    fn perform(&mut self, action: Action) {
        let (api, name) = (self.api.clone(), self.name.clone());
        let params =
            PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let patience = self.request_timeout;
        match action {
            Action::Read => self.requests.push(Box::pin(async move {
                match timeout(patience, api.get_opt(&name)).await {
                    Ok(Ok(lease)) => Answer::good(Event::Found(lease.as_ref().map(read)), lease),
                    Ok(Err(error)) => Answer::error(&error),
                    Err(_) => Answer::silence(),
                }
            })),
            Action::Create(claim) => {
                let lease = written(None, name, &claim, Version::default());
                self.requests.push(Box::pin(async move {
                    stored(timeout(patience, api.create(&params, &lease)).await)
                }));
            }
            Action::Replace { version, claim } => {
                let lease = written(self.last.as_ref(), name, &claim, version);
                self.requests.push(Box::pin(async move {
                    let name = lease.metadata.name.clone().unwrap_or_default();
                    stored(timeout(patience, api.replace(&name, &params, &lease)).await)
                }));
            }
            Action::Lead => {
                self.term += 1;
                info!(term = self.term, "leading");
            }
            Action::StandBy => info!("not leading any more"),
            Action::Released => {}
        }
    }

    fn tell(&mut self) {
        let leadership = match self.election.write_until() {
            Some(until) => {
                Leadership::Leading { term: self.term, until: Some(Instant::from_std(until)) }
            }
            None => Leadership::StandBy,
        };
        self.told.send_if_modified(|told| std::mem::replace(told, leadership) != leadership);
        let decided = leadership != Leadership::StandBy || self.requests.is_empty();
        if let Some(look) = self.look.take_if(|_| decided) {
            let _ = look.send(());
        }
    }

    fn log(&mut self, answer: &Answer) {
        let (lease, error) = (&self.name, &answer.error);
        let troubled = answer.event == Event::Failed;
        if troubled && !self.troubled {
            warn!(lease, error, "the Lease cannot be read or written; trying again");
        } else if error.is_some() {
            debug!(lease, error, "Lease");
        }
        self.troubled = troubled;
    }
}

fn refuses(status: &Status) -> bool {
    status.is_conflict() || status.is_already_exists() || status.is_not_found()
}

fn stored(answer: Result<kube::Result<Lease>, tokio::time::error::Elapsed>) -> Answer {
    match answer {
        Ok(Ok(lease)) => Answer::good(Event::Stored(read(&lease)), Some(lease)),
        Ok(Err(error)) => Answer::error(&error),
        Err(_) => Answer::silence(),
    }
}

fn read(lease: &Lease) -> election::Lease {
    let metadata = &lease.metadata;
    let spec = lease.spec.clone().unwrap_or_default();
    let text = |time: Option<MicroTime>| time.map(|time| time.0.to_string());
    election::Lease {
        version: Version {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
        },
        record: Record {
            holder: spec.holder_identity.unwrap_or_default(),
            duration_seconds: spec.lease_duration_seconds,
            acquired: text(spec.acquire_time),
            renewed: text(spec.renew_time),
            transitions: spec.lease_transitions.unwrap_or_default(),
        },
    }
}

/// `last` with `claim` in it, guarded by `version`.
fn written(last: Option<&Lease>, name: String, claim: &Claim, version: Version) -> Lease {
    let same = |last: &&Lease| last.metadata.uid.as_ref() == Some(&version.uid);
    let metadata = last.filter(same).map(|last| last.metadata.clone()).unwrap_or_default();
    let now = Timestamp::now();
    let acquired = claim.acquired.as_deref().and_then(|text| text.parse().ok()).unwrap_or(now);
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Lease {
        metadata: ObjectMeta {
            name: Some(name),
            uid: given(version.uid),
            resource_version: given(version.resource_version),
            managed_fields: None,
            ..metadata
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(claim.holder.clone()),
            lease_duration_seconds: Some(claim.duration_seconds),
            acquire_time: Some(MicroTime(acquired)),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(claim.transitions),
            ..LeaseSpec::default()
        }),
    }
}
