//! Keeps ServiceL2Status, ServiceBGPStatus and ConfigurationState equal to what the planner says, and
//! BGPSessionState to what the sessions say.
//!
//! Announcing never waits for any of this: the writer lags behind an API server that is slow or
//! away and then writes only the newest. It reads its own objects once, at the start, and writes
//! what differs.

mod books;
mod object;
mod sessions;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use config::{NodeName, PeerName};
use crds::{BGPPeer, BGPSessionState, ConfigurationState, ServiceBGPStatus, ServiceL2Status};
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{NamespaceResourceScope, Status as ApiStatus},
    runtime::events::{Event, EventType},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use shell::{
    client::{RequestError, request},
    events::Events,
    state,
};
use tokio::{
    sync::{OnceCell, mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use self::{
    books::{Books, Job, NUMBERS, Object, What, Witnesses, written_before},
    object::Status,
    sessions::{SessionNote, SessionNoteKind, SessionNotes},
};
use crate::{io::bgp::board::Board, status::ServiceStatus, view::ServiceKey, wire::Report};

/// Changes waiting for the writer. When it is full the planner's shell waits: that is only reached
/// with more changed Services than this and an API server that answers slowly.
pub const QUEUE: usize = 16_384;
/// Writes under way at once.
const AT_ONCE: usize = 20;
const RETRY: Duration = Duration::from_secs(2);
/// Nodes that were not heard for so long are dead, as far as their objects go.
const DEAD: Duration = Duration::from_secs(5);
/// Objects in one answer to a list.
const PAGE: u32 = 500;
const MANAGER: &str = "berth-speaker";
const NODE_LABEL: &str = "metallb.io/node";
const NAME_LABEL: &str = "metallb.io/service-name";
const NAMESPACE_LABEL: &str = "metallb.io/service-namespace";
const PEER_LABEL: &str = "metallb.io/peer";
/// Longest value of a label.
const LONGEST_LABEL: usize = 63;

/// One thing to write; only the newest of a kind and Service counts.
#[derive(Debug)]
pub enum Update {
    Service { service: ServiceKey, status: Arc<ServiceStatus> },
    Config { errors: Vec<String> },
}

/// Who writes and where.
#[derive(Clone)]
pub struct Writer {
    pub client: Client,
    pub namespace: String,
    pub me: NodeName,
    /// Our own Pod, if its name is known: what is written goes when it goes.
    pub pod: Option<String>,
    pub others: Others,
    /// What the BGP sessions say.
    pub board: Arc<Board>,
    pub events: Events,
}

/// What is known of the other speakers.
#[derive(Debug, Clone)]
pub enum Others {
    /// Who of them lives.
    Heard(watch::Receiver<Report>),
    /// Nothing, so nobody can be called dead.
    Unheard,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Writer {
    /// Writes until the planner's shell ends.
    pub async fn run(self, mut updates: mpsc::Receiver<Update>) {
        let mut others = self.others.clone();
        let (board, events) = (self.board, self.events);
        let mut notes = SessionNotes::default();
        // Numbers change unheard.
        let mut look_at = None;
        let requests = Arc::new(Requests {
            client: self.client,
            namespace: self.namespace,
            me: self.me,
            pod: self.pod,
            owner: OnceCell::new(),
        });
        let mut books = Books::default();
        let mut config: Option<Vec<String>> = None;
        let mut under_way: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
        // Before the first write: what is there already is not written again.
        while let Err(error) = requests.find_own(&mut books).await {
            debug!(%error, "own statuses not read, will retry");
            sleep(RETRY).await;
        }
        let mut live = others.live();
        let mut sweep = live.is_some().then(|| Instant::now() + DEAD);
        loop {
            while under_way.len() < AT_ONCE
                && let Some(job) = books.next(&requests.me, Instant::now(), Timestamp::now())
            {
                let requests = Arc::clone(&requests);
                under_way.push(Box::pin(async move {
                    let result = requests.perform(&job).await;
                    Done::Wrote(Box::new(job), result)
                }));
            }
            let write_at = books.poll_timeout().filter(|_| under_way.len() < AT_ONCE);
            tokio::select! {
                biased;
                update = updates.recv() => match update {
                    Some(Update::Service { service, status }) => {
                        books.want(&service, status, others.witnesses(), Instant::now());
                    }
                    Some(Update::Config { errors }) => {
                        let first = config.is_none();
                        config = Some(errors.clone());
                        if first {
                            under_way.push(Box::pin(Arc::clone(&requests).configured(errors)));
                        }
                    }
                    None => return,
                },
                Some(done) = under_way.next() => match done {
                    Done::Wrote(job, result) => {
                        if let Err(error) = &result {
                            debug!(%error, object = ?job.object, "status not written, will retry");
                        }
                        books.done(&job, result.is_ok(), Instant::now());
                    }
                    Done::Configured(errors, result) => {
                        let newest = config.take().filter(|newest| {
                            result.is_err() || *newest != errors
                        });
                        if let Some(newest) = newest {
                            config = Some(newest.clone());
                            let again = Arc::clone(&requests).configured(newest);
                            under_way.push(Box::pin(async move {
                                if result.is_err() {
                                    sleep(RETRY).await;
                                }
                                again.await
                            }));
                        }
                    }
                    Done::Swept(Ok(own)) => books.compare(&own, Instant::now()),
                    Done::Noted => {}
                    Done::Swept(Err(error)) => {
                        debug!(%error, "statuses of dead nodes not removed, will retry");
                        sweep = Some(Instant::now() + DEAD);
                    }
                },
                () = others.changed() => {
                    let now = others.live();
                    if now != live {
                        live = now;
                        sweep = Some(Instant::now() + DEAD);
                    }
                }
                () = async {
                    tokio::select! {
                        () = board.changed() => {}
                        () = until(look_at), if look_at.is_some() => {}
                    }
                } => {
                    let (views, now) = (board.views(), Instant::now());
                    books.sessions(&requests.me, &views, now, Timestamp::now());
                    for note in notes.take(&requests.me, &views, now.into_std()) {
                        under_way.push(Box::pin(Arc::clone(&requests).note(events.clone(), note)));
                    }
                    let again = books.has_sessions().then(|| now + NUMBERS);
                    let told = notes.poll_timeout().map(Instant::from_std);
                    look_at = again.into_iter().chain(told).min();
                }
                () = until(sweep), if sweep.is_some() => {
                    sweep = None;
                    let live = live.clone().unwrap_or_default();
                    under_way.push(Box::pin(Arc::clone(&requests).sweep(live)));
                }
                () = until(write_at), if write_at.is_some() => {}
            }
        }
    }
}

impl Others {
    fn live(&self) -> Option<BTreeSet<NodeName>> {
        match self {
            Self::Heard(report) => Some(report.borrow().live.clone()),
            Self::Unheard => None,
        }
    }

    fn witnesses(&self) -> Witnesses {
        match self {
            Self::Heard(report) if !report.borrow().live.is_empty() => Witnesses::Some,
            Self::Heard(_) | Self::Unheard => Witnesses::None,
        }
    }

    async fn changed(&mut self) {
        if let Self::Heard(report) = self
            && report.changed().await.is_ok()
        {
            return;
        }
        // Nothing more will be heard.
        std::future::pending::<()>().await;
    }
}

/// The end of what was under way.
enum Done {
    Wrote(Box<Job>, anyhow::Result<()>),
    Configured(Vec<String>, anyhow::Result<()>),
    /// With all that the API server has of this node.
    Swept(anyhow::Result<BTreeSet<Object>>),
    Noted,
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

struct Requests {
    client: Client,
    namespace: String,
    me: NodeName,
    pod: Option<String>,
    owner: OnceCell<OwnerReference>,
}

impl Requests {
    /// What an earlier life of this speaker left behind.
    async fn find_own(&self, books: &mut Books) -> anyhow::Result<()> {
        let owner = self.owner().await;
        let ours = |metadata: &ObjectMeta| {
            let owners = metadata.owner_references.as_deref().unwrap_or_default();
            owner.is_none_or(|owner| owners.iter().any(|known| known.uid == owner.uid))
        };
        let now = Instant::now();
        self.each::<ServiceL2Status>(|object| {
            let status = Status::Layer2(object.status.unwrap_or_default());
            if let Some(key) = key_of(&object.metadata) {
                let written = written_before(&status, ours(&object.metadata));
                books.found(Object::Layer2(key), written, now);
            }
        })
        .await?;
        self.each::<ServiceBGPStatus>(|object| {
            let status = Status::Bgp(object.status.unwrap_or_default());
            if let Some(key) = key_of(&object.metadata) {
                let written = written_before(&status, ours(&object.metadata));
                books.found(Object::Bgp(key), written, now);
            }
        })
        .await?;
        let sessions = self.each::<BGPSessionState>(|object| {
            if let Some(peer) = peer_of(&object) {
                let status = Status::Session(Box::new(object.status.unwrap_or_default()));
                let written = written_before(&status, ours(&object.metadata));
                books.found(Object::Session(peer), written, now);
            }
        });
        self.unless_unknown(sessions.await)
    }

    /// The kind is younger than the others: a cluster without it, or whose roles do not have it, is
    /// told everything else.
    fn unless_unknown(&self, result: anyhow::Result<()>) -> anyhow::Result<()> {
        let Err(error) = result else { return Ok(()) };
        let status = error.downcast_ref::<RequestError>().and_then(RequestError::status);
        if status.is_some_and(|status| status.is_not_found() || status.is_forbidden()) {
            warn!(
                %error,
                "the state of BGP sessions is not shown: the kind BGPSessionState is not \
                 installed, or the speaker may not write it; apply Berth's manifests anew"
            );
            return Ok(());
        }
        Err(error)
    }

    /// Visits all objects of this node.
    async fn each<K>(&self, mut visit: impl FnMut(K)) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let mut page = ListParams::default().labels(&format!("{NODE_LABEL}={}", self.me));
        page = page.limit(PAGE);
        loop {
            let list = request(self.api::<K>().list(&page)).await?;
            list.items.into_iter().for_each(&mut visit);
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    async fn perform(&self, job: &Job) -> anyhow::Result<()> {
        match job.object {
            Object::Layer2(_) => self.write::<ServiceL2Status>(job).await,
            Object::Bgp(_) => self.write::<ServiceBGPStatus>(job).await,
            Object::Session(_) => self.write::<BGPSessionState>(job).await,
        }
    }

    async fn write<K>(&self, job: &Job) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Serialize,
    {
        let api = self.api::<K>();
        let name = self.name_of(&job.object);
        match &job.what {
            What::Delete => return Ok(delete(&api, &name).await?),
            What::Create(..) => {
                if self.create(&api, &name, &job.object).await? == Created::WasThere {
                    self.adopt(&api, &name).await?;
                }
            }
            What::Adopt(..) => {
                if let Err(error) = self.adopt(&api, &name).await {
                    if !error.status().is_some_and(ApiStatus::is_not_found) {
                        return Err(error.into());
                    }
                    self.create(&api, &name, &job.object).await?;
                }
            }
            What::Update(..) => {}
        }
        let (What::Create(status, _) | What::Adopt(status, _) | What::Update(status, _)) =
            &job.what
        else {
            return Ok(());
        };
        match patch_status(&api, &name, status).await {
            // Somebody removed it.
            Err(error) if error.status().is_some_and(ApiStatus::is_not_found) => {
                self.create(&api, &name, &job.object).await?;
                Ok(patch_status(&api, &name, status).await?)
            }
            other => Ok(other?),
        }
    }

    /// The API server takes no status with a new object, so this is one write of two.
    async fn create<K>(&self, api: &Api<K>, name: &str, object: &Object) -> anyhow::Result<Created>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
    {
        let about = match object {
            Object::Layer2(service) | Object::Bgp(service) => vec![
                (NAME_LABEL, service.name.to_string()),
                (NAMESPACE_LABEL, service.namespace.to_string()),
            ],
            Object::Session(peer) => vec![(PEER_LABEL, peer_label(peer))],
        };
        let labels = about.into_iter().chain([(NODE_LABEL, self.me.to_string())]);
        let labels = labels.map(|(name, value)| (name.to_owned(), value));
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels.collect()),
            owner_references: self.owner().await.map(|owner| vec![owner.clone()]),
            ..ObjectMeta::default()
        };
        let object = serde_json::from_value(json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": metadata,
            "spec": {},
        }))?;
        let params =
            PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match request(api.create(&params, &object)).await {
            Ok(_) => Ok(Created::Now),
            Err(error) if error.status().is_some_and(ApiStatus::is_already_exists) => {
                Ok(Created::WasThere)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The Pod that it goes with is to be this one.
    async fn adopt<K>(&self, api: &Api<K>, name: &str) -> Result<(), RequestError>
    where
        K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let Some(owner) = self.owner().await else { return Ok(()) };
        let body = json!({"metadata": {"ownerReferences": [owner]}});
        request(api.patch_metadata(name, &params(), &Patch::Merge(&body))).await.map(drop)
    }

    async fn configured(self: Arc<Self>, errors: Vec<String>) -> Done {
        let written = self.write_config(&errors).await;
        if let Err(error) = &written {
            debug!(%error, "ConfigurationState not written, will retry");
        }
        Done::Configured(errors, written)
    }

    async fn write_config(&self, errors: &[String]) -> anyhow::Result<()> {
        let api = self.api::<ConfigurationState>();
        let name = format!("speaker-{}", self.me);
        let labels =
            [("metallb.io/component-type", "speaker"), ("metallb.io/node-name", &*self.me)];
        let (result, truth, reason) = match errors {
            [] => ("Valid", "True", "Reconciled"),
            _ => ("Invalid", "False", "ConfigurationError"),
        };
        let summary = errors.join("\n");
        let condition = json!({
            "type": "configReconcilerValid",
            "status": truth,
            "reason": reason,
            "message": summary,
        });
        let status = json!({"result": result, "errorSummary": summary, "conditions": [condition]});
        let body = json!({"status": status});
        let owner = self.owner().await;
        state::write(&api, MANAGER, &name, labels, owner, body).await?;
        Ok(())
    }

    /// The first of the speakers that live removes what dead ones left, and each looks whether
    /// another did so with its own.
    async fn sweep(self: Arc<Self>, live: BTreeSet<NodeName>) -> Done {
        let swept = async {
            if live.first().is_none_or(|first| self.me < *first) {
                self.remove_all_but::<ServiceL2Status>(&live).await?;
                self.remove_all_but::<ServiceBGPStatus>(&live).await?;
                let sessions = self.remove_all_but::<BGPSessionState>(&live).await;
                self.unless_unknown(sessions)?;
            }
            let layer2 = self.own_keys::<ServiceL2Status>().await?.into_iter();
            let bgp = self.own_keys::<ServiceBGPStatus>().await?.into_iter();
            let services = layer2.map(Object::Layer2).chain(bgp.map(Object::Bgp));
            let mut own: BTreeSet<Object> = services.collect();
            let sessions = self.each::<BGPSessionState>(|object| {
                own.extend(peer_of(&object).map(Object::Session));
            });
            self.unless_unknown(sessions.await)?;
            Ok(own)
        };
        Done::Swept(swept.await)
    }

    async fn remove_all_but<K>(&self, live: &BTreeSet<NodeName>) -> anyhow::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let alive: Vec<&str> = live.iter().chain([&self.me]).map(|node| &**node).collect();
        let dead = format!("{NODE_LABEL},{NODE_LABEL} notin ({})", alive.join(","));
        let api = self.api::<K>();
        let left = request(api.list_metadata(&ListParams::default().labels(&dead))).await?;
        let names = left.items.into_iter().filter_map(|object| object.metadata.name);
        let mut removed = futures::stream::iter(names)
            .map(|name| {
                let api = api.clone();
                async move { delete(&api, &name).await }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(result) = removed.next().await {
            result?;
        }
        Ok(())
    }

    /// Says of a BGPPeer what became of the session with it.
    async fn note(self: Arc<Self>, events: Events, note: SessionNote) -> Done {
        let (type_, reason) = match note.kind {
            SessionNoteKind::Up => (EventType::Normal, "BGPSessionUp"),
            SessionNoteKind::Down => (EventType::Warning, "BGPSessionDown"),
        };
        // `kubectl describe` asks for the Events of this very object.
        let named = ListParams::default().fields(&format!("metadata.name={}", note.peer));
        let found = request(self.api::<BGPPeer>().list_metadata(&named)).await;
        let found = found.ok().and_then(|list| list.items.into_iter().next());
        let regarding = ObjectReference {
            api_version: Some(BGPPeer::api_version(&()).into_owned()),
            kind: Some(BGPPeer::kind(&()).into_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(note.peer.to_string()),
            uid: found.and_then(|peer| peer.metadata.uid),
            ..ObjectReference::default()
        };
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.text),
            action: "Announce".to_owned(),
            secondary: None,
        };
        events.publish(regarding, event);
        Done::Noted
    }

    async fn own_keys<K>(&self) -> anyhow::Result<BTreeSet<ServiceKey>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let own = ListParams::default().labels(&format!("{NODE_LABEL}={}", self.me));
        let all = request(self.api::<K>().list_metadata(&own)).await?;
        Ok(all.items.iter().filter_map(|object| key_of(&object.metadata)).collect())
    }

    /// Our own Pod; without it the objects are nobody's.
    async fn owner(&self) -> Option<&OwnerReference> {
        let name = self.pod.as_ref()?;
        let look = || state::own_pod(&self.client, &self.namespace, name);
        let found = self.owner.get_or_try_init(look).await;
        found.inspect_err(|error| debug!(%error, name, "our own Pod")).ok()
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Named after what it tells of, so that a restarted speaker finds its own again.
    fn name_of(&self, object: &Object) -> String {
        let (kind, about) = match object {
            Object::Layer2(service) => ("l2", service.to_string()),
            Object::Bgp(service) => ("bgp", service.to_string()),
            Object::Session(peer) => ("session", peer.to_string()),
        };
        format!("{kind}-{}", hex(&format!("{about}#{}", self.me)))
    }
}

/// 16 digits.
fn hex(text: &str) -> String {
    Sha256::digest(text)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names may be longer than labels.
fn peer_label(peer: &PeerName) -> String {
    if peer.len() <= LONGEST_LABEL {
        return peer.to_string();
    }
    let digits = hex(peer);
    // Names of objects are ASCII.
    let kept: String = peer.chars().take(LONGEST_LABEL - 1 - digits.len()).collect();
    format!("{kept}-{digits}")
}

fn peer_of(object: &BGPSessionState) -> Option<PeerName> {
    let told = object.status.as_ref().and_then(|status| status.peer.as_deref());
    let label = || object.metadata.labels.as_ref()?.get(PEER_LABEL).map(String::as_str);
    told.or_else(label).map(PeerName::from)
}

#[derive(Debug, PartialEq, Eq)]
enum Created {
    Now,
    WasThere,
}

fn key_of(metadata: &ObjectMeta) -> Option<ServiceKey> {
    let labels = metadata.labels.as_ref()?;
    Some(ServiceKey::new(labels.get(NAMESPACE_LABEL)?.as_str(), labels.get(NAME_LABEL)?.as_str()))
}

async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), RequestError>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    match request(api.delete(name, &DeleteParams::default())).await {
        Err(error) if !error.status().is_some_and(ApiStatus::is_not_found) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn patch_status<K>(api: &Api<K>, name: &str, status: &Status) -> Result<(), RequestError>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned,
{
    request(api.patch_status(name, &params(), &Patch::Merge(&status.patch()))).await.map(drop)
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}
