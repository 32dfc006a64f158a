//! The shell: one task that owns the [`Controller`], brings it what the watches report and
//! performs what it asks for. The only place with a clock, sockets and a client.
//!
//! Nothing here decides. An API server that is away stops neither the process nor what the
//! speakers announce: watches and writes go on when it is back.

mod metrics;
mod secret;
mod write;

use std::{net::SocketAddr, time::Duration};

use config::Resources;
use futures::{Stream, StreamExt as _, stream::select_all};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client,
    runtime::{
        events::{self, EventType},
        watcher,
    },
};
pub use shell::client::Clients;
use shell::{
    events::Events,
    metrics::ApiMetrics,
    probes::{Ready, serve_health, serve_metrics},
    resources::{Selection, resources},
    slim::SlimService,
    watch::{Change, changes},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use self::{
    metrics::Metrics,
    write::{Done, Writer},
};
use crate::{
    controller::{Action, Controller, Event, Settings},
    service::{Service, ServiceKey},
    status::{Notice, NoticeKind, Regarding},
};

/// Our name in managedFields and as User-Agent.
pub const FIELD_MANAGER: &str = "berth-controller";
/// The source of Events, by MetalLB's name, which users filter by.
const EVENT_SOURCE: &str = "metallb-controller";
/// Watch events that are taken in before actions are performed.
const BATCH: usize = 500;
/// What is in flight at the end gets so long to arrive.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the custom resources, the Secrets and the controller itself live.
    pub namespace: String,
    pub lb_class: Option<String>,
    /// The Secret of the speakers to make when absent.
    pub ml_secret_name: Option<String>,
    /// The Deployment that owns that Secret.
    pub deployment: Option<String>,
    /// Named as the reporting instance of Events.
    pub pod_name: Option<String>,
    pub health: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
}

/// Runs until `stop`.
///
/// # Errors
/// When a port cannot be bound, or a task of the shell died.
pub async fn run(
    clients: Clients,
    options: Options,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let ready = Ready::default();
    // A scrape waits for its answer, so few can be under way.
    let (scrapes, scrape_requests) = mpsc::channel(4);
    if let Some(address) = options.health {
        serve_health(address, ready.clone(), stop.clone()).await?;
    }
    if let Some(address) = options.metrics {
        serve_metrics(address, move || scrape(scrapes), stop.clone()).await?;
    }
    let _secret = options.ml_secret_name.clone().map(|name| {
        let (client, namespace) = (clients.write.clone(), options.namespace.clone());
        let made = secret::ensure(client, namespace, name, options.deployment);
        AbortOnDropHandle::new(tokio::spawn(made))
    });

    let metrics = Metrics::default();
    let settings = Settings { namespace: options.namespace.clone(), seed: rand::random() };
    let inputs = inputs(&clients.watch, &options.namespace, &metrics.api);
    let dropped = metrics.events_dropped.clone();
    let mut shell = Shell {
        controller: Controller::new(settings),
        class: options.lb_class,
        resources: None,
        listed: Listed::default(),
        writer: Writer::new(clients.write.clone(), options.namespace),
        writes: JoinSet::new(),
        events: Events::start(clients.write, EVENT_SOURCE, options.pod_name, dropped),
        metrics,
        ready,
    };
    shell.run(inputs, scrape_requests, stop).await
}

/// What comes from the watches.
enum Input {
    Service(Change<SlimService>),
    Resources(Box<Resources>),
}

fn inputs(
    client: &Client,
    namespace: &str,
    metrics: &ApiMetrics,
) -> impl Stream<Item = Vec<Input>> + Unpin + use<> {
    let services = Api::<SlimService>::all(client.clone());
    let services = changes(services, watcher::Config::default(), metrics).map(Input::Service);
    let resources = resources(client, namespace, Selection::Labelled, metrics);
    let resources = resources.map(|resources| Input::Resources(Box::new(resources)));
    // Whatever is there already, so that a list or a storm of changes to the configuration is
    // looked at once.
    select_all([services.boxed(), resources.boxed()]).ready_chunks(BATCH)
}

/// A scrape in waiting: the owner of the controller answers with the text.
type Scrape = oneshot::Sender<String>;

async fn scrape(scrapes: mpsc::Sender<Scrape>) -> Option<String> {
    let (reply, text) = oneshot::channel();
    scrapes.send(reply).await.ok()?;
    text.await.ok()
}

/// How far the first lists are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Listed {
    #[default]
    Nothing,
    Services,
    /// And the controller was told so.
    Everything,
}

struct Shell {
    controller: Controller,
    class: Option<String>,
    /// Newer than what the controller knows.
    resources: Option<Box<Resources>>,
    listed: Listed,
    writer: Writer,
    writes: JoinSet<Done>,
    events: Events,
    metrics: Metrics,
    ready: Ready,
}

impl Shell {
    async fn run(
        &mut self,
        mut inputs: impl Stream<Item = Vec<Input>> + Unpin,
        mut scrapes: mpsc::Receiver<Scrape>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        info!("started");
        loop {
            let deadline = self.controller.poll_timeout().map(Instant::from_std);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.writes.join_next() => self.written(done?),
                Some(inputs) = inputs.next() => {
                    for input in inputs {
                        self.input(input);
                    }
                    self.caught_up();
                }
                Some(scrape) = scrapes.recv() => {
                    // Nobody minds when the client did not wait.
                    let _ = scrape.send(self.metrics.scrape(&self.controller));
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    let actions = self.controller.handle_timeout(now());
                    self.perform(actions);
                }
            }
        }
        info!(in_flight = self.writes.len(), "stopping");
        let arrive = async { while self.writes.join_next().await.is_some() {} };
        if timeout(FAREWELL, arrive).await.is_err() {
            warn!("writes in flight given up");
        }
        Ok(())
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Service(Change::Applied(object)) => {
                let service = Service::new(&(*object).into(), self.class.as_deref());
                if let Some(service) = service {
                    self.handle(Event::ServiceApplied(Box::new(service)));
                }
            }
            Input::Service(Change::Deleted((namespace, name))) => {
                self.handle(Event::ServiceDeleted(ServiceKey::new(namespace, name)));
            }
            Input::Service(Change::Listed) => self.listed = Listed::Services,
            Input::Resources(resources) => self.resources = Some(resources),
        }
    }

    /// Once what has come in is taken in: the configuration and the start.
    fn caught_up(&mut self) {
        if self.listed == Listed::Nothing {
            return;
        }
        let Some(resources) = self.resources.take() else { return };
        self.handle(Event::ResourcesChanged(resources));
        if self.listed == Listed::Services {
            self.listed = Listed::Everything;
            self.handle(Event::Synced);
            self.ready.set();
            info!(services = self.controller.services().count(), "everything is listed");
        }
    }

    fn written(&mut self, done: Done) {
        if let Some(error) = done.error {
            self.metrics.api.update_errors.inc();
            warn!(error, "write failed");
        }
        self.handle(done.event);
    }

    fn handle(&mut self, event: Event) {
        let actions = self.controller.handle(event, now());
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            let writer = self.writer.clone();
            match action {
                Action::PatchService { key, body } => {
                    self.writes.spawn(async move { writer.service(key, body).await });
                }
                Action::PatchPoolStatus { pool, body } => {
                    self.writes.spawn(async move { writer.pool(pool, body).await });
                }
                Action::PatchConfigurationState { body } => {
                    self.writes.spawn(async move { writer.configuration_state(body).await });
                }
                Action::PublishEvent { regarding, notice } => {
                    let object =
                        format!("{} {}/{}", regarding.kind, regarding.namespace, regarding.name);
                    match notice.kind {
                        NoticeKind::Normal => {
                            info!(object, reason = notice.reason, "{}", notice.note);
                        }
                        NoticeKind::Warning => {
                            warn!(object, reason = notice.reason, "{}", notice.note);
                        }
                    }
                    self.events.publish(reference(regarding), event(notice));
                }
            }
        }
    }
}

fn reference(regarding: Regarding) -> ObjectReference {
    ObjectReference {
        api_version: Some(regarding.api_version.to_owned()),
        kind: Some(regarding.kind.to_owned()),
        namespace: Some(regarding.namespace),
        name: Some(regarding.name),
        uid: Some(regarding.uid).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    }
}

fn event(notice: Notice) -> events::Event {
    events::Event {
        type_: match notice.kind {
            NoticeKind::Normal => EventType::Normal,
            NoticeKind::Warning => EventType::Warning,
        },
        reason: notice.reason.to_owned(),
        note: Some(notice.note),
        action: "Assign".to_owned(),
        secondary: None,
    }
}

/// The clock of the shell; follows tokio's when a test pauses it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
