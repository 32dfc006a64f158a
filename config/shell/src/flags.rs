//! Flags that both daemons have: how metrics are served, and TLS.

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{
    probes::MetricsAccess,
    tls::{MinVersion, Tls},
};

/// How `/metrics` is served, and what TLS offers wherever this process serves it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Metrics and TLS")]
pub struct ServingFlags {
    /// How /metrics is served: `secure` by HTTPS to bearer tokens that may get the path /metrics
    /// (TokenReview, SubjectAccessReview), `plain` by HTTP to everybody
    #[arg(long, value_enum, default_value_t = MetricsMode::Secure, hide_possible_values = true,
          value_name = "secure|plain")]
    metrics_mode: MetricsMode,

    /// Directory with tls.crt and tls.key for /metrics, read again when they change [default: a
    /// self-signed certificate, made at the start]
    #[arg(long, value_name = "DIRECTORY")]
    metrics_cert_dir: Option<String>,

    /// Oldest TLS version of the servers of this process
    #[arg(long, value_enum, default_value_t = TlsVersion::Tls13, value_name = "VERSION")]
    tls_min_version: TlsVersion,

    /// TLS 1.2 cipher suites by IANA's names, separated by commas; not with VersionTLS13, whose
    /// suites are fixed [default: all that are implemented]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    tls_cipher_suites: Vec<String>,

    /// Key exchanges by Go's tls.CurveID, best first, separated by commas: 29 (X25519), 23
    /// (CurveP256), 24 (CurveP384) [default: all, in this order]
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    tls_curve_preferences: Vec<String>,

    /// Accepted for compatibility and without effect: there is no profiler, and the metrics of the
    /// runtime are not shown
    #[arg(long, hide = true, value_name = "ADDRESS")]
    pprof_bind_address: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MetricsMode {
    Secure,
    Plain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TlsVersion {
    #[value(name = "VersionTLS12")]
    Tls12,
    #[value(name = "VersionTLS13")]
    Tls13,
}

impl ServingFlags {
    /// # Errors
    /// When the flags contradict each other or leave nothing to offer.
    pub fn tls(&self) -> Result<Tls> {
        let min = match self.tls_min_version {
            TlsVersion::Tls12 => MinVersion::Tls12,
            TlsVersion::Tls13 => MinVersion::Tls13,
        };
        Tls::new(min, &named(&self.tls_cipher_suites), &named(&self.tls_curve_preferences))
    }

    /// # Errors
    /// As [`Self::tls`].
    pub fn metrics_access(&self) -> Result<MetricsAccess> {
        let cert_dir = self.metrics_cert_dir.as_ref().filter(|directory| !directory.is_empty());
        Ok(match self.metrics_mode {
            MetricsMode::Plain => MetricsAccess::Plain,
            MetricsMode::Secure => {
                MetricsAccess::Secure { tls: self.tls()?, cert_dir: cert_dir.map(Into::into) }
            }
        })
    }
}

/// Without the empty ones: an empty flag is as good as none.
fn named(names: &[String]) -> Vec<String> {
    names.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        serving: ServingFlags,
    }

    fn access(flags: &[&str]) -> Result<MetricsAccess> {
        Program::try_parse_from([&["program"], flags].concat())?.serving.metrics_access()
    }

    #[test]
    fn metrics_are_secure_unless_said_otherwise() {
        assert!(matches!(access(&[]).unwrap(), MetricsAccess::Secure { cert_dir: None, .. }));
        let flags = ["--metrics-cert-dir=/etc/certs", "--metrics-mode=secure"];
        assert!(matches!(access(&flags).unwrap(), MetricsAccess::Secure { cert_dir: Some(_), .. }));
        assert!(matches!(
            access(&["--metrics-cert-dir="]).unwrap(),
            MetricsAccess::Secure { cert_dir: None, .. }
        ));
        assert!(matches!(access(&["--metrics-mode=plain"]).unwrap(), MetricsAccess::Plain));
    }

    #[test]
    fn tls_flags_are_refused_in_words_or_taken() {
        const SUITES: &str = "--tls-cipher-suites=TLS_RSA_WITH_AES_128_CBC_SHA,\
                              TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256";
        for (flags, refusal) in [
            (&["--tls-min-version=VersionTLS12"][..], None),
            (&["--tls-min-version=VersionTLS12", SUITES], None),
            (&["--tls-cipher-suites=", "--tls-curve-preferences="], None),
            (&["--tls-curve-preferences=23, CurveP384,4588"], None),
            (&[SUITES], Some("--tls-cipher-suites cannot be used with TLS 1.3")),
            (
                &["--tls-min-version=VersionTLS12", "--tls-cipher-suites=TLS_NULL"],
                Some("none of --tls-cipher-suites is implemented here; there are TLS_ECDHE"),
            ),
            (&["--tls-curve-preferences=25"], Some("none of --tls-curve-preferences")),
            (&["--tls-min-version=VersionTLS10"], Some("possible values: VersionTLS12")),
        ] {
            let refused = access(flags).err().map(|error| error.to_string());
            match (refused, refusal) {
                (None, None) => {}
                (Some(refused), Some(words)) if refused.contains(words) => {}
                (refused, refusal) => panic!("{flags:?}: {refused:?} instead of {refusal:?}"),
            }
        }
    }
}
