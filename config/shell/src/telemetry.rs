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

/// Starts logging. `RUST_LOG` overrides the level where it is set.
pub fn init(level: LogLevel) {
    let ours = match level {
        LogLevel::All => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
        LogLevel::None => "off",
    };
    let others = match level {
        // Libraries that would drown out everything else.
        LogLevel::All | LogLevel::Debug => {
            ",hyper_util=info,hyper=info,tower=info,netlink_proto=info,rustls=info"
        }
        LogLevel::Info | LogLevel::Warn | LogLevel::Error | LogLevel::None => "",
    };
    // kube logs each failed request at ERROR by itself; whoever made the request says it better.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new(format!("{ours},kube_client::client::builder=off{others}"))
    });
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_env_filter(filter)
        .init();
}
