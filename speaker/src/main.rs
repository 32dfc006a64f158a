//! `berth-speaker`: announces the addresses of LoadBalancer Services from one node.

use std::{
    net::{AddrParseError, IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::Result;
use clap::{ArgAction, Parser};
use shell::{
    client::{connect, install_crypto, stop_on_signals},
    flags::ServingFlags,
    probes::{MetricsServer, on_all_addresses, on_loopback},
    telemetry::{self, LogLevel},
};
use speaker::{
    io::{Settings, link::Exclude, run},
    plan::Options,
};

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

    /// Where the custom resources live [default: the namespace of the Pod or of the kubeconfig]
    #[arg(long, env = "METALLB_NAMESPACE")]
    namespace: Option<String>,

    /// Serve Services of this loadBalancerClass only; without it, Services that name none
    #[arg(long, default_value = "")]
    lb_class: String,

    /// Announce also from nodes labelled node.kubernetes.io/exclude-from-external-load-balancers
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    ignore_exclude_lb: bool,

    /// Address for the heartbeats between speakers; without it, or empty, this speaker acts alone
    #[arg(long, env = "METALLB_ML_BIND_ADDR", default_value = "", hide_default_value = true,
          value_parser = bind_address)]
    ml_bindaddr: BindAddress,

    /// UDP port for the heartbeats between speakers
    #[arg(long, env = "METALLB_ML_BIND_PORT", default_value_t = 7946)]
    ml_bindport: u16,

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

    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    log_level: LogLevel,

    #[command(flatten)]
    serving: ServingFlags,

    #[command(flatten)]
    other_ways: OtherWays,
}

/// Accepted for compatibility: what MetalLB needs for memberlist, FRR and frr-k8s. Speakers find
/// each other by the Nodes, and BGP is spoken here.
#[derive(Debug, clap::Args)]
struct OtherWays {
    #[arg(long, env = "METALLB_HOST", hide = true)]
    host: Option<String>,

    #[arg(long, env = "METALLB_POD_NAME", hide = true)]
    pod_name: Option<String>,

    #[arg(long, env = "METALLB_ML_LABELS", hide = true)]
    ml_labels: Option<String>,

    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    ml_wan_config: bool,

    #[arg(long, env = "METALLB_BGP_DEBOUNCE_TIMEOUT", hide = true, value_name = "MILLISECONDS")]
    bgp_debounce_timeout: Option<String>,

    #[arg(long, env = "FRRK8S_NAMESPACE", hide = true)]
    frrk8s_namespace: Option<String>,

    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    frrk8s_secret_passthrough: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    install_crypto();
    telemetry::init(args.log_level);
    let access = args.serving.metrics_access()?;
    let exclude = Exclude::read(&args.exclude_interfaces)?;
    let agent = concat!("berth-speaker/", env!("CARGO_PKG_VERSION"));
    let namespace = args.namespace.filter(|namespace| !namespace.is_empty());
    let (clients, namespace) = connect(agent, namespace).await?;
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
        metrics: on_all_addresses(args.port).map(|address| MetricsServer { address, access }),
        health: on_loopback(args.health_probe_port),
    };
    run(settings, clients, stop_on_signals()?).await
}

type BindAddress = Option<IpAddr>;

fn bind_address(text: &str) -> Result<BindAddress, AddrParseError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}
