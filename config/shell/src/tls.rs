//! TLS as both daemons serve it: what is offered, a certificate that is replaced while it is
//! served, and a server on which one silent client holds up nobody.
//!
//! HTTP/1.1 only: API servers and Prometheus speak it, and one connection a request suffices.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{
    NamedGroup, ProtocolVersion, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Connections at once. Three API servers keep some 150 that are idle; more clients wait.
const MAX_CONNECTIONS: usize = 512;
/// A handshake takes a few milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From one request to the next. Longer than Go's clients keep an idle connection (90 s), so that
/// it is never closed under a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// After a failed `accept`, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often the files of a certificate are looked at. The kubelet takes a minute to bring new ones.
const FILE_INTERVAL: Duration = Duration::from_secs(5);
/// The files of a certificate, as in a Secret of type `kubernetes.io/tls`.
pub const CERTIFICATE_FILE: &str = "tls.crt";
pub const KEY_FILE: &str = "tls.key";

static SINCE_TLS13: &[&SupportedProtocolVersion] = &[&TLS13];
static SINCE_TLS12: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// Which versions, ciphers and key exchanges are offered; TLS 1.3 and all of them by default.
#[derive(Debug, Clone)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    versions: &'static [&'static SupportedProtocolVersion],
}

/// The oldest version that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinVersion {
    Tls12,
    Tls13,
}

impl Default for Tls {
    fn default() -> Self {
        Self { provider: Arc::new(ring::default_provider()), versions: SINCE_TLS13 }
    }
}

impl Tls {
    /// `suites` are IANA's names of TLS 1.2 cipher suites (those of TLS 1.3 cannot be chosen),
    /// `curves` the numbers or names of Go's `tls.CurveID`, best first. Empty: all. One that is
    /// not implemented here is left out with a warning.
    ///
    /// # Errors
    /// When suites are given with TLS 1.3 alone, or when none of the suites or curves is left.
    pub fn new(min: MinVersion, suites: &[String], curves: &[String]) -> Result<Self> {
        let mut provider = ring::default_provider();
        if !suites.is_empty() {
            ensure!(
                min == MinVersion::Tls12,
                "--tls-cipher-suites cannot be used with TLS 1.3, whose cipher suites are fixed: \
                 leave it out, or add --tls-min-version=VersionTLS12"
            );
            choose_suites(&mut provider, suites)?;
        }
        if !curves.is_empty() {
            choose_curves(&mut provider, curves)?;
        }
        let versions = match min {
            MinVersion::Tls12 => SINCE_TLS12,
            MinVersion::Tls13 => SINCE_TLS13,
        };
        Ok(Self { provider: Arc::new(provider), versions })
    }

    fn server_config(&self, certificate: &Certificate) -> Result<ServerConfig> {
        Ok(ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(self.versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(certificate.clone())))
    }
}

/// The certificate that a server shows; clones are one. A handshake fails while there is none.
#[derive(Debug, Clone, Default)]
pub struct Certificate(watch::Sender<Option<Arc<CertifiedKey>>>);

impl Certificate {
    /// One that nobody vouches for, made for this life of the process.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn self_signed(names: &[&str]) -> Result<Self> {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let made =
            rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
        let certificate = Self::default();
        certificate
            .replace(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())?;
        Ok(certificate)
    }

    /// Shows another one from the next handshake on: the chain and the key of its first
    /// certificate, both PEM.
    ///
    /// # Errors
    /// When they cannot be read or do not belong together; the one before stays.
    pub fn replace(&self, chain: &[u8], key: &[u8]) -> Result<()> {
        self.0.send_replace(Some(Arc::new(certified_key(chain, key)?)));
        Ok(())
    }

    /// Waits until there is one.
    pub async fn available(&self) {
        // Cannot fail: the sender is `self`.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.borrow().clone()
    }
}

/// Reads a chain and the key of its first certificate.
///
/// # Errors
/// When they cannot be read or do not belong together.
pub fn certified_key(chain: &[u8], key: &[u8]) -> Result<CertifiedKey> {
    let chain = certificates(chain)?;
    let key = PrivateKeyDer::from_pem_slice(key).context("the private key cannot be read")?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .context("the certificate and the private key do not belong together")
}

/// The certificates of a PEM text, at least one.
///
/// # Errors
/// When it has none or one cannot be read.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .context("the certificate cannot be read")?;
    ensure!(!chain.is_empty(), "there is no certificate in the text");
    Ok(chain)
}

/// Shows what is in the files `tls.crt` and `tls.key` of `directory`, from now on and whenever they
/// change, until `stop`. What cannot be used is logged, and the one before stays.
pub fn follow_files(directory: PathBuf, certificate: Certificate, stop: CancellationToken) {
    let follow = async move {
        let mut last = None;
        loop {
            let found = read_files(&directory);
            if last.as_ref() != Some(&found) {
                take_files(&directory, &found, &certificate);
                last = Some(found);
            }
            sleep(FILE_INTERVAL).await;
        }
    };
    tokio::spawn(stop.run_until_cancelled_owned(follow));
}

/// Serves `router` on `listener` until `stop`; requests that are under way then are finished.
///
/// # Errors
/// When the versions and ciphers do not go together.
pub fn serve(
    listener: TcpListener,
    tls: &Tls,
    certificate: &Certificate,
    router: Router,
    stop: CancellationToken,
) -> Result<()> {
    let config = tls.server_config(certificate).context("these TLS settings are of no use")?;
    tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(config)), router, stop));
    Ok(())
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = async { (place.await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let served = connection(stream, acceptor.clone(), router.clone(), stop.clone());
                tokio::spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) => {
                debug!(%error, "a connection was not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) {
    // Answers are small and complete: nothing is gained by waiting for more.
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake not finished in time"),
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection broke off");
    }
}

/// Chain and key, or why there are none.
type Files = Result<(Vec<u8>, Vec<u8>), (PathBuf, io::ErrorKind)>;

fn read_files(directory: &Path) -> Files {
    let read = |name| {
        let path = directory.join(name);
        std::fs::read(&path).map_err(|error| (path, error.kind()))
    };
    Ok((read(CERTIFICATE_FILE)?, read(KEY_FILE)?))
}

fn take_files(directory: &Path, found: &Files, certificate: &Certificate) {
    let directory = directory.display();
    match found {
        Ok((chain, key)) => match certificate.replace(chain, key) {
            Ok(()) => info!(%directory, "serving the certificate of these files"),
            Err(error) => {
                warn!(%directory, error = format!("{error:#}"), "cannot use these files");
            }
        },
        Err((path, error)) => {
            warn!(path = %path.display(), %error, "waiting for the files of the certificate");
        }
    }
}

fn choose_suites(provider: &mut CryptoProvider, wanted: &[String]) -> Result<()> {
    let names: Vec<_> = provider
        .cipher_suites
        .iter()
        .filter(|suite| suite.version().version == ProtocolVersion::TLSv1_2)
        .map(|suite| format!("{:?}", suite.suite()))
        .collect();
    warn_of_others("--tls-cipher-suites", wanted, |name| names.iter().any(|known| known == name));
    provider.cipher_suites.retain(|suite| {
        suite.version().version == ProtocolVersion::TLSv1_3
            || wanted.contains(&format!("{:?}", suite.suite()))
    });
    ensure!(
        provider.cipher_suites.iter().any(|s| s.version().version == ProtocolVersion::TLSv1_2),
        "none of --tls-cipher-suites is implemented here; there are {}",
        names.join(", ")
    );
    Ok(())
}

fn choose_curves(provider: &mut CryptoProvider, wanted: &[String]) -> Result<()> {
    let all = std::mem::take(&mut provider.kx_groups);
    let known = |name: &str| {
        let group = group(name)?;
        all.iter().find(|known| known.name() == group).copied()
    };
    warn_of_others("--tls-curve-preferences", wanted, |name| known(name).is_some());
    provider.kx_groups = wanted.iter().filter_map(|name| known(name)).collect();
    ensure!(
        !provider.kx_groups.is_empty(),
        "none of --tls-curve-preferences is implemented here; there are 29 (X25519), \
         23 (CurveP256) and 24 (CurveP384)"
    );
    Ok(())
}

/// By Go's number or name.
fn group(name: &str) -> Option<NamedGroup> {
    Some(match name {
        "23" | "CurveP256" => NamedGroup::secp256r1,
        "24" | "CurveP384" => NamedGroup::secp384r1,
        "29" | "X25519" => NamedGroup::X25519,
        _ => return None,
    })
}

fn warn_of_others(flag: &str, wanted: &[String], is_known: impl Fn(&str) -> bool) {
    for name in wanted.iter().filter(|name| !is_known(name)) {
        warn!(flag, name, "not implemented here and left out");
    }
}

#[cfg(test)]
mod tests;
