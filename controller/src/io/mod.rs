//! The shell: one task that owns the [`Controller`], brings it what the watches report and
//! performs what it asks for. The only place with a clock, sockets and a client.
//!
//! Nothing here decides. An API server that is away stops neither the process nor what the
//! speakers announce: watches and writes go on when it is back.

mod events;
mod http;
mod metrics;
mod secret;
mod slim;
mod watch;
mod write;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _};
use kube::{Client, runtime::watcher};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    events::Publisher,
    http::Scrape,
    metrics::Metrics,
    slim::SlimService,
    watch::{Store, Taken},
    write::{Done, Writer},
};
use crate::{
    controller::{Action, Controller, Event, Settings},
    service::{Service, ServiceKey},
    status::NoticeKind,
};

/// Our name in managedFields, as User-Agent and as the source of Events.
pub const FIELD_MANAGER: &str = "berth-controller";
/// No request lasts longer; an API server that hangs looks like one that is away.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
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

/// One client for watches, which may be silent for a minute, and one for everything else.
#[derive(Clone)]
pub struct Clients {
    pub watch: Client,
    pub write: Client,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
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
    let ready = Arc::new(AtomicBool::new(false));
    // A scrape waits for its answer, so few can be under way.
    let (scrapes, scrape_requests) = mpsc::channel(4);
    let mut servers = JoinSet::new();
    if let Some(address) = options.health {
        servers.spawn(http::serve_health(address, ready.clone(), stop.clone()));
    }
    if let Some(address) = options.metrics {
        servers.spawn(http::serve_metrics(address, scrapes, stop.clone()));
    }
    if let Some(name) = options.ml_secret_name.clone() {
        let (client, namespace) = (clients.write.clone(), options.namespace.clone());
        servers.spawn(async move {
            secret::ensure(client, namespace, name, options.deployment).await;
            Ok(())
        });
    }

    let metrics = Arc::new(Metrics::default());
    let settings = Settings { namespace: options.namespace.clone(), seed: rand::random() };
    let mut shell = Shell {
        controller: Controller::new(settings),
        class: options.lb_class,
        store: Store::default(),
        relisted: None,
        services_listed: false,
        started: false,
        resources_changed: false,
        writer: Writer::new(clients.write.clone(), options.namespace.clone()),
        writes: JoinSet::new(),
        publisher: Publisher::start(clients.write, options.pod_name, metrics.clone()),
        metrics,
        ready,
    };
    let inputs = watch::inputs(&clients.watch, &options.namespace);
    shell.run(inputs, scrape_requests, servers, stop).await
}

struct Shell {
    controller: Controller,
    class: Option<String>,
    store: Store,
    /// During a list of Services: those known before that it has not shown yet.
    relisted: Option<BTreeSet<ServiceKey>>,
    services_listed: bool,
    /// `Synced` was sent.
    started: bool,
    resources_changed: bool,
    writer: Writer,
    writes: JoinSet<Done>,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
}

impl Shell {
    async fn run(
        &mut self,
        mut inputs: impl futures::Stream<Item = watch::Input> + Unpin,
        mut scrapes: mpsc::Receiver<Scrape>,
        mut servers: JoinSet<anyhow::Result<()>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        info!("started");
        loop {
            let deadline = self.controller.poll_timeout().map(Instant::from_std);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.writes.join_next() => self.written(done?),
                Some(input) = inputs.next() => {
                    self.input(input);
                    // Whatever is there already, so that a list or a storm of changes to the
                    // configuration is looked at once.
                    for _ in 0..BATCH {
                        match inputs.next().now_or_never() {
                            Some(Some(input)) => self.input(input),
                            Some(None) | None => break,
                        }
                    }
                    self.caught_up();
                }
                Some(scrape) = scrapes.recv() => {
                    // Nobody minds when the client did not wait.
                    let _ = scrape.send(self.metrics.scrape(&self.controller));
                }
                Some(ended) = servers.join_next() => ended??,
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

    fn input(&mut self, input: watch::Input) {
        self.metrics.updates.inc();
        match self.store.take(input) {
            Taken::Service(event) => self.service(*event),
            Taken::Changed => self.resources_changed = true,
            Taken::Same => {}
            Taken::Failed { kind, error } => {
                self.metrics.update_errors.inc();
                warn!(kind, %error, "watch failed and is tried again");
            }
        }
    }

    fn service(&mut self, event: watcher::Event<SlimService>) {
        match event {
            watcher::Event::Apply(object) => self.service_applied(object),
            watcher::Event::InitApply(object) => self.service_applied(object),
            watcher::Event::Delete(object) => {
                if let Some(service) = Service::new(&object.into(), self.class.as_deref()) {
                    self.handle(Event::ServiceDeleted(service.key));
                }
            }
            watcher::Event::Init => {
                self.relisted = Some(self.controller.services().cloned().collect());
            }
            watcher::Event::InitDone => {
                self.services_listed = true;
                for key in self.relisted.take().unwrap_or_default() {
                    self.handle(Event::ServiceDeleted(key));
                }
            }
        }
    }

    fn service_applied(&mut self, object: SlimService) {
        let Some(service) = Service::new(&object.into(), self.class.as_deref()) else { return };
        if let Some(relisted) = &mut self.relisted {
            relisted.remove(&service.key);
        }
        self.handle(Event::ServiceApplied(Box::new(service)));
    }

    /// Once what has come in is taken in: the configuration and the start.
    fn caught_up(&mut self) {
        if !self.store.is_listed() || !self.services_listed {
            return;
        }
        if std::mem::take(&mut self.resources_changed) {
            self.handle(Event::ResourcesChanged(Box::new(self.store.resources())));
        }
        if !std::mem::replace(&mut self.started, true) {
            self.handle(Event::Synced);
            self.ready.store(true, Ordering::Relaxed);
            info!(services = self.controller.services().count(), "everything is listed");
        }
    }

    fn written(&mut self, done: Done) {
        if let Some(error) = done.error {
            self.metrics.update_errors.inc();
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
                    self.publisher.publish(regarding, notice);
                }
            }
        }
    }
}

/// The clock of the shell; follows tokio's when a test pauses it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
