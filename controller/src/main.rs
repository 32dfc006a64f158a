//! `berth-controller`: flags. Everything else is in the library and in `shell`.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Parser, ValueEnum};
use controller::{
    election::{Settings, SettingsError},
    io::{
        self, Duty, FIELD_MANAGER, Options,
        lease::LeaseOptions,
        webhook::{self, Certificates},
    },
};
use shell::{
    client::{connect, install_crypto, stop_on_signals},
    flags::ServingFlags,
    probes::{MetricsServer, on_all_addresses},
    telemetry::{self, LogLevel},
    tls::Tls,
};

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
    /// Port of /metrics on all addresses; 0: none
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

    #[command(flatten)]
    election: ElectionFlags,

    #[command(flatten)]
    serving: ServingFlags,

    #[command(flatten)]
    webhook: WebhookFlags,
}

/// Of several replicas one writes, the leader; the others are ready to take over.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Leader election")]
struct ElectionFlags {
    /// `false`: this is the only replica, and there is no Lease
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = true, default_missing_value = "true")]
    leader_elect: bool,

    /// Without a sign of life of the leader for so long another replica takes over; in the Lease
    /// in whole seconds, rounded up
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "DURATION")]
    leader_election_lease_duration: Duration,

    /// A leader that could not renew the Lease for so long stops to write
    #[arg(long, default_value = "1400ms", value_parser = duration, value_name = "DURATION")]
    leader_election_renew_deadline: Duration,

    /// Between two renewals, and between two looks of the others
    #[arg(long, default_value = "300ms", value_parser = duration, value_name = "DURATION")]
    leader_election_retry_period: Duration,

    /// Name of the Lease; with --webhook-mode=onlywebhook, followed by "-webhook"
    #[arg(long, default_value = "metallb-controller", value_name = "NAME")]
    leader_election_id: String,

    /// Namespace of the Lease [default: that of the custom resources]
    #[arg(long, value_name = "NAMESPACE")]
    leader_election_namespace: Option<String>,
}

impl ElectionFlags {
    /// `pod_name`: by which people know this replica.
    fn settings(&self, pod_name: Option<&str>) -> Result<Settings, SettingsError> {
        // Two processes of one name, such as a container that was restarted, are not the same.
        let random: u64 = rand::random();
        let settings = Settings {
            identity: format!("{}_{random:016x}", pod_name.unwrap_or(FIELD_MANAGER)),
            lease_duration: self.leader_election_lease_duration,
            renew_deadline: self.leader_election_renew_deadline,
            retry_period: self.leader_election_retry_period,
        };
        settings.check()?;
        Ok(settings)
    }

    fn lease(self, settings: Settings, namespace: &str, duty: Duty) -> Option<LeaseOptions> {
        let name = match duty {
            Duty::All => self.leader_election_id,
            // Whoever keeps certificates only must not keep others from assigning addresses.
            Duty::Certificates => format!("{}-webhook", self.leader_election_id),
        };
        let given = self.leader_election_namespace.and_then(not_empty);
        let namespace = given.unwrap_or_else(|| namespace.to_owned());
        self.leader_elect.then_some(LeaseOptions { namespace, name, settings })
    }
}

/// As Go writes durations: "2s", "1.4s", "300ms".
fn duration(text: &str) -> Result<Duration, crds::DurationError> {
    crds::Duration::from(text).parse()
}

/// What API servers ask before they store an object, and to show a BGPPeer in another version.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Webhook")]
struct WebhookFlags {
    /// `disabled`: neither webhook nor certificates; `onlywebhook`: no addresses are assigned
    #[arg(long, value_enum, default_value_t = WebhookMode::Enabled, hide_possible_values = true,
          value_name = "enabled|disabled|onlywebhook")]
    webhook_mode: WebhookMode,

    /// Port of the webhook on all addresses, HTTPS
    #[arg(long, default_value_t = 9443)]
    webhook_port: u16,

    /// The Service by which API servers reach the webhook
    #[arg(long, default_value = "metallb-webhook-service", value_name = "NAME")]
    cert_service_name: String,

    /// The Secret with the certificates of the webhook, which are made and renewed here
    #[arg(long, default_value = "metallb-webhook-cert", value_name = "NAME")]
    webhook_secret: String,

    /// Make no certificates: serve those in --cert-dir, and leave caBundle to whoever made them
    #[arg(long, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    disable_cert_rotation: bool,

    /// Directory with tls.crt and tls.key for --disable-cert-rotation, read again when they change
    /// [default: k8s-webhook-server/serving-certs in the directory for temporary files]
    #[arg(long, value_name = "DIRECTORY")]
    cert_dir: Option<String>,

    /// Accepted for compatibility and without effect: HTTP/1.1 alone is served
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    webhook_http2: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WebhookMode {
    Enabled,
    Disabled,
    Onlywebhook,
}

impl WebhookFlags {
    fn duty(&self) -> Duty {
        match self.webhook_mode {
            WebhookMode::Enabled | WebhookMode::Disabled => Duty::All,
            WebhookMode::Onlywebhook => Duty::Certificates,
        }
    }

    fn options(self, tls: Tls) -> Option<webhook::Options> {
        let address = match self.webhook_mode {
            WebhookMode::Enabled | WebhookMode::Onlywebhook => on_all_addresses(self.webhook_port)?,
            WebhookMode::Disabled => return None,
        };
        let certificates = if self.disable_cert_rotation {
            let directory = self.cert_dir.and_then(not_empty).map(PathBuf::from);
            Certificates::Files(directory.unwrap_or_else(|| {
                std::env::temp_dir().join("k8s-webhook-server").join("serving-certs")
            }))
        } else {
            let (secret, service) = (self.webhook_secret, self.cert_service_name);
            Certificates::Rotated { secret, service }
        };
        Some(webhook::Options { address, tls, certificates })
    }
}

// The owner of the controller is one task; a second thread would only add waking up.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    install_crypto();
    telemetry::init(arguments.log_level);
    let (tls, access) = (arguments.serving.tls()?, arguments.serving.metrics_access()?);
    let pod_name = arguments.pod_name.and_then(not_empty);
    let settings = arguments.election.settings(pod_name.as_deref())?;
    let agent = format!("{FIELD_MANAGER}/{}", env!("CARGO_PKG_VERSION"));
    let (clients, namespace) = connect(&agent, arguments.namespace.and_then(not_empty)).await?;
    let duty = arguments.webhook.duty();
    let options = Options {
        lease: arguments.election.lease(settings, &namespace, duty),
        duty,
        namespace,
        lb_class: not_empty(arguments.lb_class),
        ml_secret_name: not_empty(arguments.ml_secret_name),
        deployment: arguments.deployment.and_then(not_empty),
        pod_name,
        health: on_all_addresses(arguments.health_probe_port),
        metrics: on_all_addresses(arguments.port).map(|address| MetricsServer { address, access }),
        webhook: arguments.webhook.options(tls),
    };
    io::run(clients, options, stop_on_signals()?).await
}

fn not_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
