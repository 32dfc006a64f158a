//! The planner's shell: the one task that owns the [`Planner`], and what it talks to.
//!
//! ```text
//!  API server --watches--> events --> Planner --> wanted set --> wire thread --> segment
//!                                      |  ^--- report (owned, interfaces) --'
//!                                      |--> one task a BGP session --> routers
//!                                      '--> statuses, Events (never waited for)
//! ```

pub mod bgp;
pub mod clock;
pub mod heartbeat;
pub mod link;
pub mod metrics;
pub mod packet;
pub mod status;
pub mod tcp;
pub mod wire;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ::bgp::StopReason;
use anyhow::{Context as _, Result};
use config::NodeName;
use futures::{
    Stream, StreamExt as _, future,
    stream::{iter, select_all},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client,
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
    watch::{Change, changes},
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
    status::{Note, NoteKind},
    view::ServiceKey,
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
    pub heartbeat: Option<SocketAddr>,
    /// The directory or file with `secretkey`; absent: heartbeats are not sealed.
    pub secret_key: Option<PathBuf>,
    pub exclude: link::Exclude,
    pub options: Options,
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
    serve_probes(&settings, &clients.write, &metrics, ready, &stop).await?;

    let (wire, mut report) = wire::spawn(wire::WireConfig {
        me: settings.node.clone(),
        incarnation: clock::incarnation(),
        bind: settings.heartbeat,
        secret_key: settings.secret_key.clone(),
    })
    .context("cannot start the wire thread")?;
    let wire = Arc::new(wire);
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
        report: report.clone(),
    };
    tokio::spawn(writer.run(updates));

    let mut planner = Planner::new(PlannerConfig {
        me: settings.node.clone(),
        heartbeat: settings.heartbeat.map(|address| address.ip()),
        options: settings.options.clone(),
    });
    let mut shell = Shell {
        node: settings.node.clone(),
        wire,
        sessions: bgp::Sessions::new(report.clone(), Arc::clone(&metrics)),
        events,
        statuses,
        metrics,
    };
    loop {
        let due = planner.poll_timeout();
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = report.changed() => {
                changed.context("the wire thread ended")?;
                let report = report.borrow_and_update().clone();
                shell.metrics.live_peers(report.live.len());
                planner.handle(Event::Wire(report), clock::now());
            }
            Some(inputs) = inputs.next() => for input in inputs {
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
            },
            () = async { sleep_until(due.expect("guarded").into()).await }, if due.is_some() => {}
        }
        for action in planner.handle_timeout(clock::now()) {
            shell.perform(action).await;
        }
    }
    shell.leave(&mut report).await;
    Ok(())
}

async fn serve_probes(
    settings: &Settings,
    client: &Client,
    metrics: &metrics::Metrics,
    ready: Ready,
    stop: &CancellationToken,
) -> Result<()> {
    if let Some(address) = settings.health {
        serve_health(address, ready, None, stop.clone()).await?;
    }
    if let Some(server) = settings.metrics.clone() {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let registry = Arc::new(registry);
        let text = move || future::ready(Some(scrape(&registry)));
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
    let services = changes(services, all(), metrics).map(|change| match change {
        Change::Applied(service) => {
            Input::Event(Event::ServiceApplied(Box::new((*service).into())))
        }
        Change::Deleted((namespace, name)) => {
            Input::Event(Event::ServiceDeleted(ServiceKey::new(namespace, name)))
        }
        Change::Listed => Input::Listed,
    });
    let slices = Api::<SlimEndpointSlice>::all(client.clone());
    let of_services = all().labels("kubernetes.io/service-name");
    let slices = changes(slices, of_services, metrics).map(|change| match change {
        Change::Applied(slice) => Input::Event(Event::SliceApplied(Box::new((*slice).into()))),
        Change::Deleted((namespace, name)) => Input::Event(Event::SliceDeleted { namespace, name }),
        Change::Listed => Input::Listed,
    });
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
            Action::CloseSession(peer) => {
                self.sessions.close(&peer, StopReason::PeerDeconfigured);
            }
            Action::Advertise { peer, routes } => self.sessions.advertise(&peer, routes),
            Action::ServiceStatus { service, status } => {
                self.metrics.service(&self.node, &service, &status);
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
        match note.kind {
            NoteKind::NotAnnounced => {
                info!(service = %note.service, reason = note.text, "not announced");
            }
            NoteKind::NodeAssigned => {
                info!(service = %note.service, note = note.text, "announcing");
                let regarding = ObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Service".to_owned()),
                    namespace: Some(note.service.namespace.to_string()),
                    name: Some(note.service.name.to_string()),
                    uid: Some(note.uid),
                    ..ObjectReference::default()
                };
                let event = events::Event {
                    type_: EventType::Normal,
                    reason: "nodeAssigned".to_owned(),
                    note: Some(note.text),
                    action: "Announce".to_owned(),
                    secondary: None,
                };
                self.events.publish(regarding, event);
            }
        }
    }

    /// Make before break: the addresses are handed over while this node still answers.
    async fn leave(&mut self, report: &mut watch::Receiver<Report>) {
        info!("stopping");
        self.wire.leave();
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
        self.sessions.close_all("the speaker is stopping").await;
    }
}
