//! `berth-controller`: flags. Everything else is in the library and in `shell`.

use clap::{ArgAction, Parser, ValueEnum};
use controller::io::{self, FIELD_MANAGER, Options};
use shell::{
    client::{connect, install_crypto, stop_on_signals},
    flags::NoEffect,
    probes::on_all_addresses,
    telemetry::{self, LogLevel},
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

    #[command(flatten)]
    no_effect: NoEffect,

    #[command(flatten)]
    webhook: Webhook,
}

/// Accepted for compatibility: there is no webhook yet.
#[derive(Debug, clap::Args)]
struct Webhook {
    #[arg(long, hide = true, value_enum, default_value_t = WebhookMode::Enabled)]
    webhook_mode: WebhookMode,

    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    webhook_http2: bool,

    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, action = ArgAction::Set,
          default_value_t = false, default_missing_value = "true")]
    disable_cert_rotation: bool,

    #[arg(long, hide = true, value_name = "DIRECTORY")]
    cert_dir: Option<String>,

    #[arg(long, hide = true, value_name = "NAME")]
    cert_service_name: Option<String>,

    #[arg(long, hide = true, value_name = "NAME")]
    webhook_secret: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum WebhookMode {
    Enabled,
    Disabled,
    Onlywebhook,
}

// The owner of the controller is one task; a second thread would only add waking up.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    install_crypto();
    telemetry::init(arguments.log_level);
    let agent = format!("{FIELD_MANAGER}/{}", env!("CARGO_PKG_VERSION"));
    let (clients, namespace) = connect(&agent, arguments.namespace.and_then(not_empty)).await?;
    let options = Options {
        namespace,
        lb_class: not_empty(arguments.lb_class),
        ml_secret_name: not_empty(arguments.ml_secret_name),
        deployment: arguments.deployment.and_then(not_empty),
        pod_name: arguments.pod_name.and_then(not_empty),
        health: on_all_addresses(arguments.health_probe_port),
        metrics: on_all_addresses(arguments.port),
    };
    io::run(clients, options, stop_on_signals()?).await
}

fn not_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}
