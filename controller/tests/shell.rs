//! The shell against the embedded API server.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use apiserver::ApiServer;
use controller::io::{self, Clients, Options};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "metallb-system";
/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(5);

/// A controller that runs against a server.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(server: &ApiServer, options: Options) -> Self {
        let stop = CancellationToken::new();
        let clients = Clients { watch: server.client(), write: server.client() };
        let options = Options { namespace: NAMESPACE.to_owned(), ..options };
        let task = tokio::spawn(io::run(clients, options, stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LONG, self.task).await.unwrap().unwrap().unwrap();
    }
}

/// Takes what the rules of `config` refuse, as a cluster without a webhook does.
fn server() -> ApiServer {
    ApiServer::new(apiserver::Options {
        seed: 1,
        admission_namespace: None,
        ..apiserver::Options::default()
    })
}

fn pool(name: &str, addresses: &[&str]) -> Value {
    json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
           "metadata": {"namespace": NAMESPACE, "name": name}, "spec": {"addresses": addresses}})
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
           "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})
}

fn stored(server: &ApiServer, name: &str) -> Value {
    server.get("v1", "Service", "default", name).unwrap()
}

fn addresses(service: &Value) -> Vec<&str> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    ingress.into_iter().flatten().filter_map(|entry| entry["ip"].as_str()).collect()
}

fn pool_of(service: &Value) -> Option<&str> {
    service["metadata"]["annotations"]["metallb.io/ip-allocated-from-pool"].as_str()
}

/// Looks until `found` finds something.
async fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come about");
        sleep(STEP).await;
    }
}

async fn has_address(server: &ApiServer, name: &str) -> Value {
    eventually(&format!("the address of {name}"), || {
        Some(stored(server, name)).filter(|service| !addresses(service).is_empty())
    })
    .await
}

fn reasons(server: &ApiServer, object: &str) -> Vec<String> {
    server
        .list("events.k8s.io/v1", "Event", None)
        .unwrap()
        .iter()
        .filter(|event| event["regarding"]["name"] == object)
        .map(|event| event["reason"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn services_get_and_keep_addresses() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.1-192.0.2.2"])).unwrap();
    server.apply(&service("early")).unwrap();
    let running = Running::start(&server, Options::default());

    let early = has_address(&server, "early").await;
    assert_eq!(addresses(&early), ["192.0.2.1"]);
    assert_eq!(pool_of(&early), Some("pool"));
    assert_eq!(early["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");

    server.apply(&service("late")).unwrap();
    assert_eq!(addresses(&has_address(&server, "late").await), ["192.0.2.2"]);
    eventually("the Event", || {
        reasons(&server, "late").contains(&"IPAllocated".into()).then_some(())
    })
    .await;

    server.apply(&service("waiting")).unwrap();
    eventually("the refusal", || {
        reasons(&server, "waiting").contains(&"AllocationFailed".into()).then_some(())
    })
    .await;
    let counters = eventually("the counters", || {
        let pool = server.get("metallb.io/v1beta1", "IPAddressPool", NAMESPACE, "pool").unwrap();
        Some(pool["status"].clone()).filter(|status| status["assignedIPv4"] == 2)
    })
    .await;
    assert_eq!(counters["availableIPv4"], 0);

    server.delete("v1", "Service", "default", "early").unwrap();
    assert_eq!(addresses(&has_address(&server, "waiting").await), ["192.0.2.1"]);

    // A restart, with a Service that is new: it is served, nothing else is written.
    running.stop().await;
    let before = [stored(&server, "late"), stored(&server, "waiting")];
    server.apply(&pool("second", &["198.51.100.1/32"])).unwrap();
    server.apply(&service("new")).unwrap();
    let running = Running::start(&server, Options::default());
    assert_eq!(addresses(&has_address(&server, "new").await), ["198.51.100.1"]);
    assert_eq!([stored(&server, "late"), stored(&server, "waiting")], before);
    running.stop().await;
}

#[tokio::test]
async fn a_type_change_takes_everything_back() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.1/32"])).unwrap();
    server.apply(&service("web")).unwrap();
    let running = Running::start(&server, Options::default());
    has_address(&server, "web").await;
    let mut cluster_ip = service("web");
    cluster_ip["spec"]["type"] = json!("ClusterIP");
    server.apply(&cluster_ip).unwrap();
    eventually("the clean Service", || {
        let service = stored(&server, "web");
        (addresses(&service).is_empty() && pool_of(&service).is_none()).then_some(())
    })
    .await;
    server.apply(&service("other")).unwrap();
    assert_eq!(addresses(&has_address(&server, "other").await), ["192.0.2.1"]);
    running.stop().await;
}

#[tokio::test]
async fn a_bad_pool_is_shown_and_the_good_one_serves() {
    let server = server();
    server.apply(&pool("bad", &["192.0.2.9-192.0.2.1"])).unwrap();
    server.apply(&pool("good", &["192.0.2.1/32"])).unwrap();
    server.apply(&service("web")).unwrap();
    let running = Running::start(&server, Options::default());
    assert_eq!(pool_of(&has_address(&server, "web").await), Some("good"));
    let state = |wanted: &'static str| {
        let server = server.clone();
        move || {
            let state = server
                .get("metallb.io/v1beta1", "ConfigurationState", NAMESPACE, "controller")
                .ok()?;
            Some(state).filter(|state| state["status"]["result"] == wanted)
        }
    };
    let invalid = eventually("Invalid", state("Invalid")).await;
    let summary = invalid["status"]["errorSummary"].as_str().unwrap();
    assert!(summary.contains("\"bad\"") && summary.contains("spec.addresses[0]"), "{summary}");
    assert_eq!(invalid["metadata"]["labels"]["metallb.io/component-type"], "controller");
    eventually("the Event on the pool", || {
        reasons(&server, "bad").contains(&"ConfigurationError".into()).then_some(())
    })
    .await;
    server.apply(&pool("bad", &["192.0.2.9/32"])).unwrap();
    eventually("Valid", state("Valid")).await;
    running.stop().await;
}

#[tokio::test]
async fn an_api_server_that_was_away_is_caught_up_with() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.0/24"])).unwrap();
    server.apply(&service("before")).unwrap();
    let running = Running::start(&server, Options::default());
    has_address(&server, "before").await;
    server.set_available(false);
    server.apply(&service("meanwhile")).unwrap();
    server.delete("v1", "Service", "default", "before").unwrap();
    // What it missed is no longer there to be resumed from.
    server.expire_watches();
    server.set_available(true);
    has_address(&server, "meanwhile").await;
    let mut wants = service("wants");
    wants["spec"]["loadBalancerIP"] = json!("192.0.2.0");
    server.apply(&wants).unwrap();
    assert_eq!(addresses(&has_address(&server, "wants").await), ["192.0.2.0"]);
    running.stop().await;
}

#[tokio::test]
async fn the_secret_of_the_speakers_is_made_once() {
    let server = server();
    let options =
        || Options { ml_secret_name: Some("memberlist".to_owned()), ..Options::default() };
    let secret = || server.get("v1", "Secret", NAMESPACE, "memberlist").ok();
    let running = Running::start(&server, options());
    let made = eventually("the Secret", secret).await;
    assert!(made["data"]["secretkey"].as_str().unwrap().len() > 128);
    running.stop().await;
    server.apply(&pool("pool", &["192.0.2.1/32"])).unwrap();
    server.apply(&service("web")).unwrap();
    let running = Running::start(&server, options());
    has_address(&server, "web").await;
    assert_eq!(secret(), Some(made));
    running.stop().await;
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.0/24"])).unwrap();
    server.apply(&service("web")).unwrap();
    let (health, metrics) = (free_port().await, free_port().await);
    server.set_available(false);
    let options = Options { health: Some(health), metrics: Some(metrics), ..Options::default() };
    let running = Running::start(&server, options);
    wait_for(health, "/healthz", "200 OK").await;
    wait_for(health, "/readyz", "503").await;
    server.set_available(true);
    wait_for(health, "/readyz", "200 OK").await;
    has_address(&server, "web").await;
    for line in [
        "metallb_allocator_addresses_in_use_total{pool=\"pool\"} 1",
        "metallb_allocator_addresses_total{pool=\"pool\"} 256",
        "metallb_allocator_services_allocated_total{pool=\"pool\"} 1",
        "metallb_k8s_client_config_loaded_bool 1",
        "metallb_k8s_client_config_stale_bool 0",
        "# TYPE metallb_k8s_client_updates counter",
    ] {
        wait_for(metrics, "/metrics", line).await;
    }
    running.stop().await;
}

async fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

async fn wait_for(address: SocketAddr, path: &str, text: &str) {
    let end = Instant::now() + LONG;
    loop {
        let answer = fetch(address, path).await.unwrap_or_default();
        if answer.contains(text) {
            return;
        }
        assert!(Instant::now() < end, "no {text:?} at {path}: {answer}");
        sleep(STEP).await;
    }
}

async fn fetch(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
