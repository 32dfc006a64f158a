//! Logs: one JSON object a line on standard output.

use std::str::FromStr;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// MetalLB's values of `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    All,
    Debug,
    Info,
    Warn,
    Error,
    None,
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            "none" => Ok(Self::None),
            other => Err(format!(
                "{other:?} is no log level: use one of all, debug, info, warn, error, none"
            )),
        }
    }
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
    // kube logs each failed request at ERROR by itself; whoever made the request says it better.
    let quiet = "kube_client::client::builder=off,hyper_util=info,hyper=info,tower=info,\
                 netlink_proto=info,rustls=info";
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{ours},{quiet}")));
    let lines = fmt::layer().json().flatten_event(true).with_current_span(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
}
