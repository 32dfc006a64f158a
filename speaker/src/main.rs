//! `berth-speaker`: announces the addresses of LoadBalancer Services from one node.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use shell::{
    client::{connect, install_crypto},
    telemetry::{self, LogLevel},
};
use speaker::{
    io::{Settings, link::Exclude, run},
    plan::Options,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

const EXAMPLES: &str = "\
Examples:
  As the DaemonSet runs it:
    berth-speaker --node-name \"$NODE\" --ml-bindaddr \"$POD_IP\" --ml-secret-key-path /etc/ml_secret_key

  By hand against a cluster, layer 2 on this host only:
    KUBECONFIG=~/.kube/config berth-speaker --node-name \"$(hostname)\" --namespace metallb-system

The flags and variables are MetalLB's where the meaning is the same.";

/// Announces the addresses of LoadBalancer Services from this node: by ARP and NDP on the segment,
/// and by BGP to routers.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Args {
    /// Name of the Node that this speaker runs on
    #[arg(long, env = "METALLB_NODE_NAME")]
    node_name: String,

    /// Namespace of the custom resources; that of the pod when not given
    #[arg(long, env = "METALLB_NAMESPACE")]
    namespace: Option<String>,

    /// Name of this speaker's pod (accepted for compatibility)
    #[arg(long, env = "METALLB_POD_NAME", hide = true)]
    pod_name: Option<String>,

    /// Serve Services of this loadBalancerClass only; without it, Services that name none
    #[arg(long, default_value = "")]
    lb_class: String,

    /// Announce also from nodes labelled node.kubernetes.io/exclude-from-external-load-balancers
    #[arg(long)]
    ignore_exclude_lb: bool,

    /// Address for the heartbeats between speakers; without it this speaker acts alone
    #[arg(long, env = "METALLB_ML_BIND_ADDR")]
    ml_bindaddr: Option<IpAddr>,

    /// UDP port for the heartbeats between speakers
    #[arg(long, env = "METALLB_ML_BIND_PORT", default_value_t = 7946)]
    ml_bindport: u16,

    /// Pod labels of the speakers (accepted for compatibility; speakers find each other by Nodes)
    #[arg(long, env = "METALLB_ML_LABELS", hide = true)]
    ml_labels: Option<String>,

    /// Directory with the file `secretkey` that the heartbeats are sealed with
    #[arg(long, env = "METALLB_ML_SECRET_KEY_PATH", default_value = "/etc/ml_secret_key")]
    ml_secret_key_path: PathBuf,

    /// File with the interfaces that never announce
    #[arg(long, default_value = "/etc/metallb/excludel2.yaml")]
    exclude_interfaces: PathBuf,

    /// Port of /metrics on every address; 0 turns it off
    #[arg(long, default_value_t = 9120)]
    port: u16,

    /// Port of /healthz and /readyz on 127.0.0.1; 0 turns them off
    #[arg(long, default_value_t = 17472)]
    health_probe_port: u16,

    /// all, debug, info, warn, error or none
    #[arg(long, default_value = "info")]
    log_level: LogLevel,

    /// No effect (accepted for compatibility)
    #[arg(long, env = "METALLB_HOST", hide = true)]
    host: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    install_crypto();
    telemetry::init(args.log_level);
    let namespace = shell::client::namespace(args.namespace)?;
    let exclude = Exclude::read(&args.exclude_interfaces)?;
    let agent = concat!("berth-speaker/", env!("CARGO_PKG_VERSION"));
    let clients = connect(agent).await?;
    info!(node = args.node_name, namespace, version = env!("CARGO_PKG_VERSION"), "starting");

    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });

    let on = |address: IpAddr, port: u16| (port != 0).then(|| SocketAddr::new(address, port));
    let settings = Settings {
        node: args.node_name.into(),
        namespace,
        heartbeat: args.ml_bindaddr.map(|address| SocketAddr::new(address, args.ml_bindport)),
        secret_key: args.ml_secret_key_path.exists().then_some(args.ml_secret_key_path),
        exclude,
        options: Options {
            lb_class: (!args.lb_class.is_empty()).then_some(args.lb_class),
            ignore_exclude_label: args.ignore_exclude_lb,
        },
        metrics: on(IpAddr::V4(Ipv4Addr::UNSPECIFIED), args.port),
        health: on(IpAddr::V4(Ipv4Addr::LOCALHOST), args.health_probe_port),
    };
    run(settings, clients, stop).await
}
