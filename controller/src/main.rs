//! `berth-controller`: flags, clients, logs, signals. Everything else is in the library.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use controller::io::{self, Clients, FIELD_MANAGER, Options};
use http::{HeaderValue, header::USER_AGENT};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// A watch is made anew each minute; a client that watches must wait longer than that.
const WATCH_READ_TIMEOUT: Duration = Duration::from_secs(75);
const WRITE_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Assigns addresses from IPAddressPools to Services of type LoadBalancer.
///
/// The cluster is found by KUBECONFIG or ~/.kube/config, or from within a Pod by its service
/// account. Flags and variables are those of MetalLB's controller.
#[derive(Debug, Parser)]
#[command(
    name = "berth-controller",
    version,
    after_help = "Example, on a machine with a kubeconfig:\n  \
                  berth-controller --namespace metallb-system --port 9120 --log-level debug"
)]
struct Arguments {
    /// Metrics over plain HTTP on all addresses, path /metrics; 0: none
    #[arg(long, default_value_t = 9120)]
    port: u16,

    /// /healthz and /readyz over plain HTTP on all addresses; 0: none
    #[arg(long, default_value_t = 17472)]
    health_probe_port: u16,

    /// Where the custom resources live [default: the namespace of the Pod or of the kubeconfig]
    #[arg(long, env = "METALLB_NAMESPACE")]
    namespace: Option<String>,

    /// Make this Secret for the speakers when there is none; empty: do not
    #[arg(long, env = "METALLB_ML_SECRET_NAME", default_value = "")]
    ml_secret_name: String,

    /// The Deployment that the Secret is removed with
    #[arg(long, env = "METALLB_DEPLOYMENT")]
    deployment: Option<String>,

    /// Named in Events as the reporting instance
    #[arg(long, env = "METALLB_POD_NAME")]
    pod_name: Option<String>,

    /// Serve only Services of this spec.loadBalancerClass; empty: those without one
    #[arg(long, default_value = "")]
    lb_class: String,

    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,

    /// Accepted for compatibility; there is no webhook yet
    #[arg(long, value_enum, default_value_t = WebhookMode::Enabled)]
    webhook_mode: WebhookMode,

    /// Accepted for compatibility; there is no webhook yet
    #[arg(long)]
    disable_cert_rotation: bool,

    /// Accepted for compatibility; there is no webhook yet
    #[arg(long, value_name = "DIRECTORY")]
    cert_dir: Option<String>,

    /// Accepted for compatibility; there is no webhook yet
    #[arg(long, value_name = "NAME")]
    cert_service_name: Option<String>,

    /// Accepted for compatibility; there is no webhook yet
    #[arg(long, value_name = "NAME")]
    webhook_secret: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogLevel {
    All,
    Debug,
    Info,
    Warn,
    Error,
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WebhookMode {
    Enabled,
    Disabled,
    Onlywebhook,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    log_to_stdout(arguments.log_level);
    // The owner of the controller is one task; a second thread would only add waking up.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::infer().await.context("no cluster: neither a kubeconfig nor a Pod")?;
    let options = Options {
        namespace: arguments.namespace.unwrap_or_else(|| config.default_namespace.clone()),
        lb_class: not_empty(arguments.lb_class),
        ml_secret_name: not_empty(arguments.ml_secret_name),
        deployment: arguments.deployment.and_then(not_empty),
        pod_name: arguments.pod_name.and_then(not_empty),
        health: all_addresses(arguments.health_probe_port),
        metrics: all_addresses(arguments.port),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        api_server = %config.cluster_url,
        namespace = options.namespace,
        "berth-controller"
    );
    let clients = Clients {
        watch: client(config.clone(), WATCH_READ_TIMEOUT)?,
        write: client(config, WRITE_READ_TIMEOUT)?,
    };
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        }
    });
    io::run(clients, options, stop).await
}

fn client(mut config: Config, read_timeout: Duration) -> anyhow::Result<Client> {
    config.read_timeout = Some(read_timeout);
    let agent = format!("{FIELD_MANAGER}/{}", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::try_from(agent)?));
    Ok(Client::try_from(config)?)
}

fn not_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn all_addresses(port: u16) -> Option<SocketAddr> {
    (port != 0).then(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
}

fn log_to_stdout(level: LogLevel) {
    let level = match level {
        LogLevel::All => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
        LogLevel::None => "off",
    };
    // kube logs every failed request as an error of its own; they are logged here where they matter.
    let filter = EnvFilter::new(format!("{level},kube_client::client::builder=off"));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
}
