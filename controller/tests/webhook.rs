//! The webhook over HTTPS, as an API server asks it, and the certificates that it trusts.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use apiserver::ApiServer;
use controller::io::{
    self, Clients, Options,
    webhook::{self, Certificates},
};
use k8s_openapi::ByteString;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use shell::{
    probes::{MetricsAccess, MetricsServer},
    tls::Tls,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "metallb-system";
const SERVICE: &str = "metallb-webhook-service";
const HOST: &str = "metallb-webhook-service.metallb-system.svc";
const SECRET: &str = "metallb-webhook-cert";
const POOLS: &str = "/validate-metallb-io-v1beta1-ipaddresspool";
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(5);

/// A replica with a webhook.
struct Replica {
    webhook: SocketAddr,
    health: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Replica {
    async fn start(server: &ApiServer, certificates: Certificates) -> Self {
        let (webhook, health) = (free_port().await, free_port().await);
        let stop = CancellationToken::new();
        let clients = Clients { watch: server.client(), write: server.client() };
        let options = Options {
            namespace: NAMESPACE.to_owned(),
            health: Some(health),
            webhook: Some(webhook::Options { address: webhook, tls: Tls::default(), certificates }),
            ..Options::default()
        };
        let task = tokio::spawn(io::run(clients, options, stop.clone()));
        Self { webhook, health, stop, task }
    }

    async fn rotated(server: &ApiServer) -> Self {
        let (secret, service) = (SECRET.to_owned(), SERVICE.to_owned());
        Self::start(server, Certificates::Rotated { secret, service }).await
    }

    async fn is_ready(&self) {
        eventually("readiness", async || {
            let answer = plain(self.health, "/readyz").await.ok()?;
            answer.contains("200 OK").then_some(())
        })
        .await;
    }

    /// As an API server would that trusts `bundle` (PEM).
    async fn ask(&self, bundle: &str, path: &str, review: &Value) -> std::io::Result<Value> {
        let body = review.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(trusting(bundle, HOST, self.webhook).await?, &request).await?;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        Ok(serde_json::from_str(body)?)
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LONG, self.task).await.unwrap().unwrap().unwrap();
    }
}

/// TLS to `address`, where a certificate for `host` is expected that `bundle` (PEM) vouches for.
async fn trusting(
    bundle: &str,
    host: &str,
    address: SocketAddr,
) -> std::io::Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(bundle.as_bytes());
    roots.add_parsable_certificates(certificates.map(Result::unwrap));
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let host = ServerName::try_from(host.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(host, stream).await
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> std::io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn plain(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    exchange(TcpStream::connect(address).await?, &request).await
}

async fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        sleep(STEP).await;
    }
}

/// With what `deploy/` brings for webhooks.
fn server() -> ApiServer {
    let server = ApiServer::new(apiserver::Options {
        // As a real one: rules are the webhook's business.
        admission_namespace: None,
        ..apiserver::Options::default()
    });
    let manifest = include_str!("../../deploy/base/60-webhook.yaml");
    for object in serde_saphyr::from_multiple::<Value>(manifest).unwrap() {
        server.apply(&object).unwrap();
    }
    server
}

/// The text that an object of the API shows as base64.
fn text(base64: &Value) -> Option<String> {
    let ByteString(octets) = serde_json::from_value(base64.clone()).ok()?;
    Some(String::from_utf8(octets).unwrap())
}

fn base64(text: &str) -> Value {
    json!(ByteString(text.as_bytes().to_vec()))
}

fn secret(server: &ApiServer) -> Option<Value> {
    server.get("v1", "Secret", NAMESPACE, SECRET).ok()
}

/// The authorities in every object that names some, if they all name the same.
fn trusted(server: &ApiServer) -> Option<String> {
    let group = "admissionregistration.k8s.io/v1";
    let kind = "ValidatingWebhookConfiguration";
    let webhooks = server.get(group, kind, "", "metallb-webhook-configuration").unwrap();
    let kind = "CustomResourceDefinition";
    let peers = server.get("apiextensions.k8s.io/v1", kind, "", "bgppeers.metallb.io").unwrap();
    let named = &peers["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"];
    let webhooks = webhooks["webhooks"].as_array().unwrap();
    assert_eq!(webhooks.len(), 6);
    let all_name_it = webhooks.iter().all(|hook| hook["clientConfig"]["caBundle"] == *named);
    text(named).filter(|bundle| all_name_it && !bundle.is_empty())
}

fn pool(name: &str, addresses: &[&str]) -> Value {
    json!({
        "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"addresses": addresses},
    })
}

fn creation(object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u1", "operation": "CREATE", "name": "pool", "namespace": NAMESPACE,
            "kind": {"group": "metallb.io", "version": "v1beta1", "kind": "IPAddressPool"},
            "resource": {"group": "metallb.io", "version": "v1beta1", "resource": "ipaddresspools"},
            "userInfo": {"username": "somebody"}, "object": object,
        },
    })
}

#[tokio::test]
async fn replicas_share_a_certificate_that_api_servers_are_told_to_trust() {
    let server = server();
    server.apply(&pool("there", &["192.0.2.0/24"])).unwrap();
    let replicas = [Replica::rotated(&server).await, Replica::rotated(&server).await];
    let bundle = eventually("caBundle", async || trusted(&server)).await;
    assert_eq!(text(&secret(&server).unwrap()["data"]["ca.crt"]), Some(bundle.clone()));
    for replica in &replicas {
        replica.is_ready().await;
        let overlapping = pool("new", &["192.0.2.128/25", "192.0.2.0/26"]);
        let answer = replica.ask(&bundle, POOLS, &creation(&overlapping)).await.unwrap();
        assert_eq!(answer["response"]["allowed"], false, "{answer}");
        let message = answer["response"]["status"]["message"].as_str().unwrap();
        assert!(message.contains("spec.addresses[0]: 192.0.2.128/25 overlaps"), "{message}");
        assert!(message.contains("\n") && message.contains("spec.addresses[1]"), "all: {message}");
        let good = creation(&pool("new", &["198.51.100.0/24"]));
        let answer = replica.ask(&bundle, POOLS, &good).await.unwrap();
        assert_eq!(answer["response"]["allowed"], true);
        let conversion = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "request": {"uid": "u2", "desiredAPIVersion": "metallb.io/v1beta1", "objects": []},
        });
        let answer = replica.ask(&bundle, "/convert", &conversion).await.unwrap();
        assert_eq!(answer["response"]["result"]["status"], "Success");
    }
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn what_somebody_breaks_is_mended() {
    let server = server();
    let replica = Replica::rotated(&server).await;
    let first = eventually("caBundle", async || trusted(&server)).await;

    // Somebody applies the manifest anew, or another tool writes its own.
    for broken in [json!(null), base64("other")] {
        let mut peers = server
            .get("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", "bgppeers.metallb.io")
            .unwrap();
        peers["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"] = broken;
        server.apply(&peers).unwrap();
        assert_eq!(eventually("caBundle again", async || trusted(&server)).await, first);
    }

    // The Secret is garbage: another one is made, told, and served.
    let mut garbage = secret(&server).unwrap();
    garbage["data"]["tls.crt"] = base64("garbage");
    server.apply(&garbage).unwrap();
    let second =
        eventually("another bundle", async || trusted(&server).filter(|bundle| *bundle != first))
            .await;
    let review = creation(&pool("new", &["192.0.2.0/24"]));
    let answer = eventually("the other certificate", async || {
        replica.ask(&second, POOLS, &review).await.ok()
    })
    .await;
    assert_eq!(answer["response"]["allowed"], true);
    assert!(replica.ask(&first, POOLS, &review).await.is_err(), "the old one is trusted no more");

    // And when it is deleted.
    server.delete("v1", "Secret", NAMESPACE, SECRET).unwrap();
    eventually("a third bundle", async || trusted(&server).filter(|bundle| *bundle != second))
        .await;
    replica.stop().await;
}

#[tokio::test]
async fn somebody_elses_secret_is_left_alone_and_the_process_is_not_ready() {
    let server = server();
    let foreign = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "data": {"tls.crt": "", "tls.key": ""},
    });
    server.apply(&foreign).unwrap();
    let before = secret(&server);
    let replica = Replica::rotated(&server).await;
    eventually("the reason", async || {
        let answer = plain(replica.health, "/readyz").await.ok()?;
        let waits = answer.contains("503") && answer.contains("the certificate of the webhook");
        (waits && !answer.contains("first list")).then_some(())
    })
    .await;
    assert_eq!(secret(&server), before);
    replica.stop().await;
}

/// A certificate for `host` in files; PEM.
fn files(directory: &str, host: &str) -> (PathBuf, String) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(directory);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("tls.crt"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    (directory, made.cert.pem())
}

#[tokio::test]
async fn files_are_served_and_nothing_is_told() {
    let (directory, certificate) = files("webhook", HOST);
    let server = server();
    let replica = Replica::start(&server, Certificates::Files(directory)).await;
    replica.is_ready().await;
    let review = creation(&pool("new", &["nonsense"]));
    let answer = replica.ask(&certificate, POOLS, &review).await.unwrap();
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!((secret(&server), trusted(&server)), (None, None));
    replica.stop().await;
}

#[tokio::test]
async fn metrics_are_for_tokens_that_the_api_server_knows() {
    let server = server();
    let (directory, certificate) = files("metrics", "metrics.test");
    let (address, stop) = (free_port().await, CancellationToken::new());
    let access = MetricsAccess::Secure { tls: Tls::default(), cert_dir: Some(directory) };
    let options = Options {
        namespace: NAMESPACE.to_owned(),
        metrics: Some(MetricsServer { address, access }),
        ..Options::default()
    };
    let clients = Clients { watch: server.client(), write: server.client() };
    let task = tokio::spawn(io::run(clients, options, stop.clone()));
    let get = async |header: &str| {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: metrics.test\r\n{header}Connection: close\r\n\r\n"
        );
        let stream = trusting(&certificate, "metrics.test", address).await.ok()?;
        exchange(stream, &request).await.ok()
    };
    let refused = eventually("an answer", async || get("").await).await;
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("ServiceAccount"), "{refused}");
    let scrape = get("Authorization: Bearer anything\r\n").await.unwrap();
    assert!(scrape.starts_with("HTTP/1.1 200"), "{scrape}");
    assert!(scrape.contains("metallb_k8s_client_config_loaded_bool"), "{scrape}");
    server.set_available(false);
    let scrape = get("Authorization: Bearer anything\r\n").await.unwrap();
    assert!(scrape.starts_with("HTTP/1.1 200"), "remembered: {scrape}");
    let refused = get("Authorization: Bearer other\r\n").await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    stop.cancel();
    timeout(LONG, task).await.unwrap().unwrap().unwrap();
}
