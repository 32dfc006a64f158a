//! `berth-speaker`: announces the addresses of LoadBalancer Services from one node.

use std::{
    ffi::OsString,
    net::{AddrParseError, IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{ArgAction, Parser, ValueEnum};
use ownership::Profile;
use shell::{
    client::{connect, install_crypto, stop_on_signals},
    flags::ServingFlags,
    probes::{MetricsServer, on_all_addresses, on_loopback},
    telemetry::{self, LogLevel},
};
use speaker::{
    io::{
        Settings, allocator::use_one_arena, bgp::OnApiUnavailable, link::Exclude, memory,
        privileges, run,
    },
    plan::Options,
};
use tokio::runtime;

const EXAMPLES: &str = "\
Examples:
  As the DaemonSet runs it:
    berth-speaker --node-name \"$NODE\" --ml-bindaddr \"$POD_IP\" --ml-secret-key-path /etc/ml_secret_key

  The same where the kernel, not Kubernetes, keeps it from being root (systemd: AmbientCapabilities=CAP_NET_RAW):
    setpriv --reuid 65532 --clear-groups --inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw \
      --bounding-set=-all,+net_raw --no-new-privs berth-speaker --node-name \"$NODE\" --run-dir /var/lib/berth

  Fail-over in a tenth of a second; addresses that foreign hosts may have are probed as RFC 5227 wants it:
    berth-speaker --node-name \"$NODE\" --ml-bindaddr \"$IP\" --heartbeat-profile fast --conflict-probe rfc

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

    /// The Pod that this runs in: what it writes goes when the Pod goes
    #[arg(long, env = "METALLB_POD_NAME")]
    pod_name: Option<String>,

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

    /// For nodes that are far from each other: --heartbeat-profile=relaxed, if that is not given
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    ml_wan_config: bool,

    /// Directory with the file `secretkey` that the heartbeats are sealed with, and perhaps
    /// `secretkey-previous` that others still use; read again when they change
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
    layer2: Layer2Flags,

    #[command(flatten)]
    bgp: BgpFlags,

    #[command(flatten)]
    serving: ServingFlags,

    #[command(flatten)]
    other_ways: OtherWays,
}

/// How the speakers agree who answers for an address, and how it is announced.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Layer 2")]
struct Layer2Flags {
    /// How often speakers beat, and how many missed beats make one dead; the same on all nodes.
    /// A dead node is replaced after some 0.2, 0.1 or 1 s [default: default; relaxed with
    /// --ml-wan-config]
    #[arg(long, value_enum, value_name = "PROFILE")]
    heartbeat_profile: Option<HeartbeatProfile>,

    /// How the segment is asked for another host with the address before it is announced for the
    /// first time. A later take-over asks as with `fast`, whatever is set here
    #[arg(long, value_enum, default_value_t = ConflictProbe::Fast, value_name = "MANNER")]
    conflict_probe: ConflictProbe,

    /// Announce every owned address anew after so many seconds, for neighbors that forget or were
    /// told otherwise; 0: only when something has changed
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    gratuitous_refresh: u32,

    /// Directory where the speaker remembers what it announces, so that it can after a restart
    /// without the API server
    #[arg(long, env = "BERTH_RUN_DIR", default_value = "/run/berth", value_name = "DIRECTORY")]
    run_dir: PathBuf,

    /// Move addresses, one a second, until every node has alike many. It breaks the connections of
    /// those that move
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    rebalance: bool,

    /// Hand the addresses of a node over when it is tainted for removal or its kubelet says that it
    /// shuts down, not only on the annotation berth.io/drain: "true"
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    drain_on_taints: bool,
}

/// How the routers are spoken to.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "BGP")]
struct BgpFlags {
    /// When the node is drained: the time that routers have, after they were told by the community
    /// GRACEFUL_SHUTDOWN, before the routes are withdrawn and the sessions closed
    #[arg(long, default_value_t = 5, value_name = "SECONDS")]
    bgp_drain_time: u32,

    /// The port that peers with passive: true connect to. One below 1024 needs the capability
    /// NET_BIND_SERVICE
    #[arg(long, default_value_t = 179, value_name = "PORT")]
    bgp_listen_port: u16,

    /// What peers that kept our routes over a restart of the speaker (enableGracefulRestart) are
    /// told if the API server cannot be read before their patience ends
    #[arg(long, value_enum, default_value_t = OnApiUnavailable::Keep, value_name = "WHAT")]
    on_api_unavailable: OnApiUnavailable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HeartbeatProfile {
    /// Every 40 ms, 4 missed
    Default,
    /// Every 20 ms, 4 missed: for nodes that are never short of CPU
    Fast,
    /// Every 200 ms, 5 missed: for nodes that pause, or links that lose much
    Relaxed,
}

impl From<HeartbeatProfile> for Profile {
    fn from(profile: HeartbeatProfile) -> Self {
        match profile {
            HeartbeatProfile::Default => Self::DEFAULT,
            HeartbeatProfile::Fast => Self::FAST,
            HeartbeatProfile::Relaxed => Self::RELAXED,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConflictProbe {
    /// Three questions in 25 ms
    Fast,
    /// As RFC 5227 has it: up to 7 s
    Rfc,
    /// Not at all
    Off,
}

impl From<ConflictProbe> for ownership::ConflictProbe {
    fn from(probe: ConflictProbe) -> Self {
        match probe {
            ConflictProbe::Fast => Self::Fast,
            ConflictProbe::Rfc => Self::Rfc,
            ConflictProbe::Off => Self::Off,
        }
    }
}

impl Layer2Flags {
    fn profile(&self, network: Network) -> Profile {
        let default = match network {
            Network::Local => HeartbeatProfile::Default,
            Network::Wide => HeartbeatProfile::Relaxed,
        };
        self.heartbeat_profile.unwrap_or(default).into()
    }
}

/// What MetalLB's --ml-wan-config says of the way between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Local,
    Wide,
}

/// Accepted for compatibility: what MetalLB needs for memberlist, FRR and frr-k8s. Speakers find
/// each other by the Nodes, and BGP is spoken here.
#[derive(Debug, clap::Args)]
struct OtherWays {
    #[arg(long, env = "METALLB_HOST", hide = true)]
    host: Option<String>,

    #[arg(long, env = "METALLB_ML_LABELS", hide = true)]
    ml_labels: Option<String>,

    #[arg(long, env = "METALLB_BGP_DEBOUNCE_TIMEOUT", hide = true, value_name = "MILLISECONDS")]
    bgp_debounce_timeout: Option<String>,

    #[arg(long, env = "FRRK8S_NAMESPACE", hide = true)]
    frrk8s_namespace: Option<String>,

    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    frrk8s_secret_passthrough: bool,
}

/// Lets a group write into the run directory. What the DaemonSet's init container does: the node's
/// directory is root's, and the speaker is not root. It takes root that is of this group, and no
/// capability.
#[derive(Debug, Parser)]
struct ShareRunDirectory {
    /// The number of the group
    #[arg(long)]
    group: u32,

    /// The directory
    directory: PathBuf,
}

impl ShareRunDirectory {
    /// The first argument of a process that is to do that and nothing else.
    const COMMAND: &str = "share-run-dir";

    fn run(&self) -> Result<()> {
        let Self { group, directory } = self;
        memory::share(directory, *group)
            .with_context(|| format!("letting group {group} write into {}", directory.display()))
    }
}

fn main() -> Result<()> {
    use_one_arena();
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == ShareRunDirectory::COMMAND) {
        let command = OsString::from(ShareRunDirectory::COMMAND);
        return ShareRunDirectory::parse_from(std::iter::once(command).chain(arguments)).run();
    }
    let args = Args::parse();
    privileges::take_up()?;
    // The planner has this thread, the wire one of its own; one is enough for what waits for others.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(speak(args))
}

async fn speak(args: Args) -> Result<()> {
    install_crypto();
    telemetry::init(args.log_level);
    let access = args.serving.metrics_access()?;
    let exclude = Exclude::read(&args.exclude_interfaces)?;
    let agent = concat!("berth-speaker/", env!("CARGO_PKG_VERSION"));
    let namespace = args.namespace.filter(|namespace| !namespace.is_empty());
    let (clients, namespace) = connect(agent, namespace).await?;
    let network = if args.ml_wan_config { Network::Wide } else { Network::Local };
    let layer2 = args.layer2;
    let profile = layer2.profile(network);
    let settings = Settings {
        node: args.node_name.into(),
        namespace,
        pod: args.pod_name.filter(|name| !name.is_empty()),
        heartbeat: args.ml_bindaddr.map(|address| SocketAddr::new(address, args.ml_bindport)),
        secret_key: args.ml_secret_key_path,
        run_dir: layer2.run_dir,
        profile,
        conflict_probe: layer2.conflict_probe.into(),
        rebalance: layer2.rebalance,
        gratuitous_refresh: (layer2.gratuitous_refresh > 0)
            .then(|| Duration::from_secs(layer2.gratuitous_refresh.into())),
        exclude,
        options: Options {
            lb_class: (!args.lb_class.is_empty()).then_some(args.lb_class),
            ignore_exclude_label: args.ignore_exclude_lb,
            drain_on_taints: layer2.drain_on_taints,
        },
        bgp_drain_time: Duration::from_secs(args.bgp.bgp_drain_time.into()),
        bgp_listen_port: args.bgp.bgp_listen_port,
        on_api_unavailable: args.bgp.on_api_unavailable,
        metrics: on_all_addresses(args.port).map(|address| MetricsServer { address, access }),
        health: on_loopback(args.health_probe_port),
    };
    run(settings, clients, stop_on_signals()?).await
}

type BindAddress = Option<IpAddr>;

fn bind_address(text: &str) -> Result<BindAddress, AddrParseError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}
