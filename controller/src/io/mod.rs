//! The shell: one task, the [`owner`], holds the [`Controller`], brings it what the watches report
//! and performs what it asks for; others keep the Lease, the certificates and the listeners. The
//! only place with a clock, sockets and a client.
//!
//! Nothing here decides. An API server that is away stops neither the process nor what the
//! speakers announce: watches and writes go on when it is back.

mod certificates;
pub mod lease;
mod metrics;
mod owner;
mod secret;
pub mod webhook;
mod write;

use std::net::SocketAddr;

pub use shell::client::Clients;
use shell::{
    events::Events,
    probes::{MetricsServer, Pulse, Ready, serve_health, serve_metrics},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::{
    lease::{Candidacy, LeaseOptions},
    metrics::Metrics,
    owner::{Owner, Questions},
    write::Writer,
};
use crate::controller::{Controller, Settings};

/// Our name in managedFields and as User-Agent.
pub const FIELD_MANAGER: &str = "berth-controller";
/// The source of Events, by MetalLB's name, which users filter by.
const EVENT_SOURCE: &str = "metallb-controller";

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
    /// Named as the reporting instance of Events; owns the ConfigurationState.
    pub pod_name: Option<String>,
    pub health: Option<SocketAddr>,
    pub metrics: Option<MetricsServer>,
    pub webhook: Option<webhook::Options>,
    /// How replicas choose who writes; `None`: this is the only one.
    pub lease: Option<LeaseOptions>,
    pub duty: Duty,
}

/// What the leader does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Duty {
    /// Everything.
    #[default]
    All,
    /// It keeps the certificates of the webhook, and writes nothing else.
    Certificates,
}

/// Runs until `stop`, and until what is under way then has arrived and the Lease is given back.
///
/// # Errors
/// When a port cannot be bound, or a task of the shell died.
pub async fn run(
    clients: Clients,
    options: Options,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut candidacy = match options.lease {
        Some(lease) => Candidacy::start(clients.write.clone(), lease),
        None => Candidacy::unopposed(),
    };
    let ready = Ready::default();
    let listed = ready.waits_for("the first list of every kind");
    // Whoever asks waits for the answer, so few can be under way.
    let (scrapes, scrape_requests) = mpsc::channel(4);
    let (pulse, pulses) = Pulse::new();
    let (admissions, admission_requests) = mpsc::channel(4);
    let questions = Questions { scrapes: scrape_requests, pulses, admissions: admission_requests };
    if let Some(address) = options.health {
        serve_health(address, ready.clone(), Some(pulse), stop.clone()).await?;
    }
    if let Some(server) = options.metrics {
        let client = clients.write.clone();
        serve_metrics(server, client, move || scrape(scrapes), stop.clone()).await?;
    }
    let (leads, leading) = watch::channel(false);
    let _secret = options.ml_secret_name.filter(|_| options.duty == Duty::All).map(|name| {
        let (client, namespace) = (clients.write.clone(), options.namespace.clone());
        let made = secret::ensure(client, namespace, name, options.deployment, leading.clone());
        AbortOnDropHandle::new(tokio::spawn(made))
    });

    let metrics = Metrics::default();
    if let Some(webhook) = options.webhook {
        let context = webhook::Context {
            namespace: &options.namespace,
            clients: &clients,
            metrics: &metrics.api,
            ready: &ready,
            stop: &stop,
        };
        webhook::serve(webhook, context, leading, admissions).await?;
    }
    // Where the Lease is free, what is listed from here on needs not be listed again.
    stop.run_until_cancelled(candidacy.looked()).await;
    let settings = Settings { namespace: options.namespace.clone(), seed: rand::random() };
    let dropped = metrics.events_dropped.clone();
    let events =
        Events::start(clients.write.clone(), EVENT_SOURCE, options.pod_name.clone(), dropped);
    let writer = Writer::new(clients.write, options.namespace.clone(), options.pod_name);
    let owner = Owner {
        controller: Controller::new(settings),
        duty: options.duty,
        class: options.lb_class,
        watched: clients.watch,
        namespace: options.namespace,
        writer,
        events,
        metrics,
        leads,
        listed: Some(listed),
    };
    owner.run(candidacy, questions, stop).await
}

/// A scrape in waiting: the owner of the controller answers with the text.
type Scrape = oneshot::Sender<String>;

async fn scrape(scrapes: mpsc::Sender<Scrape>) -> Option<String> {
    let (reply, text) = oneshot::channel();
    scrapes.send(reply).await.ok()?;
    text.await.ok()
}

/// The clock of the shell; follows tokio's when a test pauses it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}
