//! The planner's shell: the one task that owns the [`Planner`], and what it talks to.
//!
//! ```text
//!  API server --watches--> events --> Planner --> wanted set --> wire thread --> segment
//!                                      |  ^--- report (owned, interfaces) --'
//!                                      |--> one task a BGP session --> routers
//!                                      '--> statuses, Events (never waited for)
//! ```

pub mod allocator;
pub mod bfd;
pub mod bgp;
pub mod clock;
pub mod filter;
pub mod heartbeat;
pub mod link;
pub mod memory;
pub mod metrics;
pub mod packet;
pub mod privileges;
pub mod status;
pub mod tcp;
pub mod wire;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use config::NodeName;
use futures::{
    Stream, StreamExt as _, future,
    stream::{BoxStream, iter, select_all},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{
        events::{self, EventType},
        watcher,
    },
};
use prometheus_client::registry::Registry;
use shell::{
    client::Clients,
    events::Events,
    metrics::{ApiMetrics, scrape},
    probes::{MetricsServer, Ready, serve_health, serve_metrics},
    resources::{Selection, Update, resources},
    slim::{SlimEndpointSlice, SlimNode, SlimService},
    watch::{Change, ObjectKey, changes, lists},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    plan::Options,
    planner::{Action, Event, Planner, PlannerConfig},
    status::{Note, NoteKind, Subject},
    view::{Many, ServiceKey},
    wire::Report,
};

/// The source of Events, by MetalLB's name, which users filter by.
const EVENT_SOURCE: &str = "metallb-speaker";
/// Changes taken in before planning, so that a flood cannot keep the planner from acting.
const BATCH: usize = 512;
/// Longest wait for the hand-over of owned addresses at the end.
const HANDOVER: Duration = Duration::from_secs(1);

/// The process's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub node: NodeName,
    pub namespace: String,
    /// The name of our own Pod, if it is known.
    pub pod: Option<String>,
    pub heartbeat: Option<SocketAddr>,
    /// The directory or file with `secretkey`; while it is absent heartbeats are not sealed.
    pub secret_key: PathBuf,
    /// Where the speaker remembers what it announces.
    pub run_dir: PathBuf,
    pub profile: ownership::Profile,
    pub conflict_probe: ownership::ConflictProbe,
    pub rebalance: bool,
    /// How often owned addresses are announced anew though nothing has changed.
    pub gratuitous_refresh: Option<Duration>,
    pub exclude: link::Exclude,
    pub options: Options,
    /// Between telling the routers that the node is drained and leaving them.
    pub bgp_drain_time: Duration,
    /// Where passive peers connect to.
    pub bgp_listen_port: u16,
    pub on_api_unavailable: bgp::OnApiUnavailable,
    pub metrics: Option<MetricsServer>,
    pub health: Option<SocketAddr>,
}

/// What reaches the loop from the watches.
enum Input {
    Event(Event),
    Listed,
}

/// Runs until `stop`, then says good-bye: addresses are handed over and sessions closed.
///
/// # Errors
/// When a socket that the speaker cannot do without cannot be opened.
pub async fn run(settings: Settings, clients: Clients, stop: CancellationToken) -> Result<()> {
    let metrics = Arc::new(metrics::Metrics::default());
    let ready = Ready::default();
    let listed = ready.waits_for("the first list of every kind");
    let (wire, wire::Told { mut report, addresses: outbox }) = wire::spawn(wire::WireConfig {
        ownership: ownership::Settings {
            profile: settings.profile,
            conflict_probe: settings.conflict_probe,
            rebalance: settings.rebalance,
            ..ownership::Settings::new(settings.node.clone(), clock::incarnation())
        },
        announcer: layer2::AnnouncerSettings {
            refresh: settings.gratuitous_refresh,
            seed: clock::incarnation(),
        },
        run_dir: settings.run_dir.clone(),
        bind: settings.heartbeat,
        secret_key: settings.secret_key.clone(),
    })
    .context("cannot start the wire thread")?;
    let wire = Arc::new(wire);
    let sessions = bgp::Sessions::new(
        bgp::SessionsConfig {
            node: settings.node.clone(),
            run_dir: settings.run_dir.clone(),
            port: settings.bgp_listen_port,
            on_api_unavailable: settings.on_api_unavailable,
        },
        report.clone(),
        Arc::clone(&metrics),
    );
    let board = sessions.board();
    serve_probes(&settings, &clients.write, &metrics, &wire, Arc::clone(&board), ready, &stop)
        .await?;
    let interfaces = Arc::clone(&wire);
    tokio::spawn(link::watch(settings.exclude.clone(), move |all| interfaces.interfaces(all)));

    let mut inputs = inputs(&clients.watch, &settings.namespace, &metrics.api);
    let mut unlisted = WATCHES;
    let events = Events::start(
        clients.write.clone(),
        EVENT_SOURCE,
        Some(settings.node.to_string()),
        metrics.events_dropped.clone(),
    );
    let (statuses, updates) = mpsc::channel(status::QUEUE);
    let writer = status::Writer {
        client: clients.write.clone(),
        namespace: settings.namespace.clone(),
        me: settings.node.clone(),
        pod: settings.pod.clone(),
        others: match settings.heartbeat {
            Some(_) => status::Others::Heard(report.clone()),
            None => status::Others::Unheard,
        },
        board,
        events: events.clone(),
    };
    tokio::spawn(writer.run(updates));

    let mut planner = Planner::new(PlannerConfig {
        me: settings.node.clone(),
        heartbeat: settings.heartbeat.map(|address| address.ip()),
        options: settings.options.clone(),
        bgp_drain_time: settings.bgp_drain_time,
    });
    let mut shell =
        Shell { node: settings.node.clone(), wire, sessions, events, statuses, metrics };
    let mut tidying = allocator::Tidying::default();
    loop {
        let due = [planner.poll_timeout(), tidying.poll_timeout(), shell.sessions.poll_timeout()];
        let due = due.into_iter().flatten().min();
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = report.changed() => {
                changed.context("the wire thread ended")?;
                let report = report.borrow_and_update().clone();
                shell.metrics.live_peers(report.live.len());
                planner.handle(Event::Live(report.live), clock::now());
                let names = report.interfaces.into_iter().map(|interface| interface.name);
                planner.handle(Event::Interfaces(names.collect()), clock::now());
            }
            () = outbox.changed() => {
                planner.handle(Event::Addresses(outbox.take()), clock::now());
            }
            Some(inputs) = inputs.next() => {
                tidying.passed(inputs.len(), clock::now());
                for input in inputs {
                    match input {
                        Input::Event(event) => {
                            planner.handle(event, clock::now());
                        }
                        Input::Listed => {
                            unlisted -= 1;
                            if unlisted == 0 {
                                info!("everything is listed");
                                planner.handle(Event::Synced, clock::now());
                                listed.fulfill();
                            }
                        }
                    }
                }
            }
            () = async { sleep_until(due.expect("guarded").into()).await }, if due.is_some() => {}
        }
        tidying.handle_timeout(clock::now());
        shell.sessions.handle_timeout(clock::now());
        let actions = planner.handle_timeout(clock::now());
        tidying.passed(actions.len(), clock::now());
        for action in actions {
            shell.perform(action).await;
        }
    }
    shell.leave(&mut planner, &mut report).await;
    Ok(())
}

async fn serve_probes(
    settings: &Settings,
    client: &Client,
    metrics: &Arc<metrics::Metrics>,
    wire: &Arc<wire::WireHandle>,
    board: Arc<bgp::board::Board>,
    ready: Ready,
    stop: &CancellationToken,
) -> Result<()> {
    if let Some(address) = settings.health {
        serve_health(address, ready, None, stop.clone()).await?;
    }
    if let Some(server) = settings.metrics.clone() {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        registry.register_collector(Box::new(metrics::bgp::BgpMetrics(board)));
        let registry = Arc::new(registry);
        let collected = Arc::clone(&metrics.collected);
        let wire = Arc::clone(wire);
        let text = move || async move {
            // Without an answer the numbers of the last scrape stand.
            if let Some(counters) = wire.counters().await {
                collected.wire(counters);
            }
            Some(scrape(&registry))
        };
        serve_metrics(server, client.clone(), text, stop.clone()).await?;
    }
    Ok(())
}

/// Those that [`inputs`] joins; each tells once that its first list is complete.
const WATCHES: usize = 4;

fn inputs(
    client: &Client,
    namespace: &str,
    metrics: &ApiMetrics,
) -> impl Stream<Item = Vec<Input>> + Unpin + use<> {
    let all = watcher::Config::default;
    let services = Api::<SlimService>::all(client.clone());
    let services = lists(services, all(), metrics);
    let services = many(
        services,
        Many::Services,
        |service| Event::ServiceApplied(Box::new(service.into())),
        |(namespace, name)| Event::ServiceDeleted(ServiceKey::new(namespace, name)),
    );
    let slices = Api::<SlimEndpointSlice>::all(client.clone());
    let slices = lists(slices, all().labels("kubernetes.io/service-name"), metrics);
    let slices = many(
        slices,
        Many::EndpointSlices,
        |slice| Event::SliceApplied(Box::new(slice.into())),
        |(namespace, name)| Event::SliceDeleted { namespace, name },
    );
    let nodes = Api::<SlimNode>::all(client.clone());
    let nodes = changes(nodes, all(), metrics).map(|change| match change {
        Change::Applied(node) => Input::Event(Event::NodeApplied(Box::new((*node).into()))),
        Change::Deleted((_, name)) => Input::Event(Event::NodeDeleted(name.into())),
        Change::Listed => Input::Listed,
    });
    let resources = resources(client, namespace, Selection::Unlabelled, metrics);
    let whole = |update| match update {
        Update::Whole(resources) => Some(Arc::unwrap_or_clone(resources)),
        Update::Status(_) => None,
    };
    let resources = resources
        .filter_map(move |update| future::ready(whole(update)))
        .enumerate()
        .flat_map(|(before, resources)| {
            let event = Input::Event(Event::Resources(Box::new(resources)));
            iter([event].into_iter().chain((before == 0).then_some(Input::Listed)))
        });
    let watches: [_; WATCHES] =
        [services.boxed(), slices.boxed(), nodes.boxed(), resources.boxed()];
    select_all(watches).ready_chunks(BATCH)
}

/// A watch whose lists are swept by the planner.
fn many<K: Resource + Send + 'static>(
    events: BoxStream<'static, watcher::Event<K>>,
    of: Many,
    applied: impl Fn(K) -> Event + Send + 'static,
    deleted: impl Fn(ObjectKey) -> Event + Send + 'static,
) -> impl Stream<Item = Input> + Send + 'static {
    let mut listed = false;
    events.flat_map(move |event| {
        let inputs = match event {
            watcher::Event::Init => [Some(Event::ListBegins(of)), None],
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                [Some(applied(object)), None]
            }
            watcher::Event::Delete(object) => {
                let version = object.resource_version().and_then(|version| version.parse().ok());
                let key = (object.namespace().unwrap_or_default(), object.name_any());
                [version.map(Event::Version), Some(deleted(key))]
            }
            watcher::Event::InitDone => {
                let first = !std::mem::replace(&mut listed, true);
                let end = [Input::Event(Event::ListEnds(of)), Input::Listed];
                return iter(end.into_iter().take(1 + usize::from(first)).collect::<Vec<_>>());
            }
        };
        iter(inputs.into_iter().flatten().map(Input::Event).collect::<Vec<_>>())
    })
}

struct Shell {
    node: NodeName,
    wire: Arc<wire::WireHandle>,
    sessions: bgp::Sessions,
    events: Events,
    statuses: mpsc::Sender<status::Update>,
    metrics: Arc<metrics::Metrics>,
}

impl Shell {
    async fn perform(&mut self, action: Action) {
        match action {
            Action::Wanted(wanted) => self.wire.wanted(wanted),
            Action::OpenSession(spec) => self.sessions.open(*spec),
            Action::UpdateSession(spec) => self.sessions.update(*spec),
            Action::CloseSession { peer, reason } => self.sessions.close(&peer, reason),
            Action::Advertise { peer, changes } => self.sessions.advertise(&peer, changes),
            Action::Complete => self.sessions.complete(),
            Action::ServiceStatus { service, status } => {
                self.metrics.collected.service(&self.node, &service, &status);
                self.write(status::Update::Service { service, status }).await;
            }
            Action::Note(note) => self.tell(note),
            Action::ConfigErrors(errors) => {
                for error in &errors {
                    let object = error.object();
                    error!(%object, field = %error.field(), %error, "configuration error");
                }
                self.metrics.api.configured(errors.len());
                let errors = errors.iter().map(ToString::to_string).collect();
                self.write(status::Update::Config { errors }).await;
            }
        }
    }

    async fn write(&self, update: status::Update) {
        // Fails only when the writer is gone, at the end of the process.
        let _ = self.statuses.send(update).await;
    }

    fn tell(&self, note: Note) {
        let (type_, reason) = match note.kind {
            NoteKind::NotAnnounced => {
                info!(about = %note.about, reason = note.text, "not announced");
                return;
            }
            NoteKind::NodeAssigned => (EventType::Normal, "nodeAssigned"),
            NoteKind::AnnounceFailed => (EventType::Warning, "announceFailed"),
            NoteKind::AddressConflict => (EventType::Warning, "AddressConflict"),
            NoteKind::ConflictGone => (EventType::Normal, "AddressConflictGone"),
            NoteKind::Drained => (EventType::Normal, "Drained"),
            NoteKind::DrainUnknown => (EventType::Warning, "DrainUnknown"),
        };
        match type_ {
            EventType::Normal => info!(about = %note.about, reason, "{}", note.text),
            EventType::Warning => warn!(about = %note.about, reason, "{}", note.text),
        }
        let event = events::Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.text),
            action: "Announce".to_owned(),
            secondary: None,
        };
        self.events.publish(reference(note.about), event);
    }

    /// Make before break: the addresses are handed over while this node still answers, and routers
    /// turn away while it still forwards, unless they keep its routes until the speaker is back.
    async fn leave(&mut self, planner: &mut Planner, report: &mut watch::Receiver<Report>) {
        info!("stopping");
        self.wire.leave();
        if planner.node_goes() || self.sessions.close_restartable().await {
            planner.handle(Event::Leave, clock::now());
            while !planner.has_left() {
                for action in planner.handle_timeout(clock::now()) {
                    self.perform(action).await;
                }
                if let Some(due) = planner.poll_timeout() {
                    sleep_until(due.into()).await;
                }
            }
            self.sessions.left().await;
        }
        let left = async {
            while !report.borrow_and_update().left {
                if report.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(HANDOVER, left).await.is_err() {
            warn!("no other node took all addresses over in time");
        }
        self.wire.stop();
        let ended = async { while report.changed().await.is_ok() {} };
        if timeout(HANDOVER, ended).await.is_err() {
            warn!("what this speaker is to remember may not be written yet");
        }
    }
}

fn reference(about: Subject) -> ObjectReference {
    let (kind, namespace, name, uid) = match about {
        Subject::Service { key, uid } => {
            ("Service", Some(key.namespace.to_string()), key.name, uid.into())
        }
        // `kubectl describe node` asks for Events by this, as the kubelet writes them.
        Subject::Node(name) => ("Node", None, name.clone(), name.to_string()),
    };
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(kind.to_owned()),
        namespace,
        name: Some(name.to_string()),
        uid: Some(uid),
        ..ObjectReference::default()
    }
}
