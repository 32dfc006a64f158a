//! Flags that manifests written for MetalLB may carry and that mean nothing to Berth.

use clap::Args;

/// Accepted for compatibility and without effect: Berth serves its metrics over plain HTTP and
/// has no profiler.
#[derive(Debug, Clone, Args)]
pub struct NoEffect {
    #[arg(long, hide = true, value_name = "ADDRESS")]
    pub pprof_bind_address: Option<String>,

    #[arg(long, hide = true, value_name = "VERSION")]
    pub tls_min_version: Option<String>,

    #[arg(long, hide = true, value_name = "NAMES")]
    pub tls_cipher_suites: Option<String>,

    #[arg(long, hide = true, value_name = "IDS")]
    pub tls_curve_preferences: Option<String>,

    #[arg(long, hide = true, value_name = "DIRECTORY")]
    pub metrics_cert_dir: Option<String>,
}
