//! Logs: one JSON object a line on standard output.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// MetalLB's values of `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    All,
    Debug,
    Info,
    Warn,
    Error,
    None,
}

/// kube logs each failed request and each watch that ends by itself; whoever asked says it better.
const WITHOUT_KUBE: &str = "kube_client::client=error,kube_client::client::builder=off,\
                            kube_client::client::tls=warn";
/// Libraries that would drown out everything else.
const WITHOUT_LIBRARIES: &str = "hyper_util=info,hyper=info,kube_runtime=info,\
                                 netlink_proto=info,rustls=info,tower=info";

/// Starts logging. `RUST_LOG` overrides the level where it is set.
pub fn init(level: LogLevel) {
    let filter = match level {
        LogLevel::All => format!("trace,{WITHOUT_KUBE},{WITHOUT_LIBRARIES}"),
        LogLevel::Debug => format!("debug,{WITHOUT_KUBE},{WITHOUT_LIBRARIES}"),
        LogLevel::Info => format!("info,{WITHOUT_KUBE}"),
        LogLevel::Warn => format!("warn,{WITHOUT_KUBE}"),
        LogLevel::Error => "error,kube_client=off".to_owned(),
        LogLevel::None => "off".to_owned(),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_env_filter(filter)
        .init();
}
