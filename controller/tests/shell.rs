//! The shell against the embedded API server.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use apiserver::ApiServer;
use controller::{
    election::Settings,
    io::{self, Clients, Options, lease::LeaseOptions},
};
use serde_json::{Value, json};
use shell::probes::{MetricsAccess, MetricsServer};
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

fn lease(pod: &str) -> Option<LeaseOptions> {
    Some(LeaseOptions {
        namespace: NAMESPACE.to_owned(),
        name: "metallb-controller".to_owned(),
        settings: Settings::new(pod.to_owned()),
    })
}

fn replica(server: &ApiServer, pod: &str) -> Running {
    Running::start(server, Options { lease: lease(pod), ..Options::default() })
}

fn holder(server: &ApiServer) -> Option<String> {
    let lease = server.get("coordination.k8s.io/v1", "Lease", NAMESPACE, "metallb-controller");
    lease.ok()?["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

async fn is_led_by(server: &ApiServer, pod: &str) {
    eventually(&format!("the leadership of {pod}"), || {
        (holder(server).as_deref() == Some(pod)).then_some(())
    })
    .await;
}

/// Every address with the Service that shows it.
fn owners(server: &ApiServer) -> BTreeMap<String, String> {
    let mut owners = BTreeMap::new();
    for service in server.list("v1", "Service", Some("default")).unwrap() {
        let name = service["metadata"]["name"].as_str().unwrap().to_owned();
        for address in addresses(&service) {
            let other = owners.insert(address.to_owned(), name.clone());
            assert_eq!(other, None, "{address} belongs to {name} too");
        }
    }
    owners
}

#[tokio::test]
async fn a_killed_leader_is_followed_within_three_seconds() {
    let server = server();
    server.apply(&pool("pool", &["10.0.0.0/16"])).unwrap();
    let first = replica(&server, "first");
    is_led_by(&server, "first").await;
    let second = replica(&server, "second");
    for index in 0..50 {
        server.apply(&service(&format!("early{index}"))).unwrap();
    }
    has_address(&server, "early40").await;
    // In the middle of the work, and without a word.
    first.task.abort();
    let killed = Instant::now();
    let before = owners(&server);
    server.apply(&service("late")).unwrap();
    has_address(&server, "late").await;
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(took > Duration::from_millis(1500), "the Lease was not waited for: {took:?}");
    has_address(&server, "early49").await;
    let after = owners(&server);
    assert_eq!(after.len(), 51);
    for (address, service) in before {
        assert_eq!(after.get(&address), Some(&service), "{address} changed hands");
    }
    second.stop().await;
}

#[tokio::test]
async fn a_leader_that_is_stopped_hands_over_at_once() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.0/24"])).unwrap();
    let first = replica(&server, "first");
    is_led_by(&server, "first").await;
    let second = replica(&server, "second");
    server.apply(&service("early")).unwrap();
    let early = has_address(&server, "early").await;
    sleep(Duration::from_millis(500)).await;
    let stopped = Instant::now();
    first.stop().await;
    server.apply(&service("late")).unwrap();
    has_address(&server, "late").await;
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(stored(&server, "early"), early, "nothing else is written");
    second.stop().await;
    assert_eq!(holder(&server).as_deref(), Some(""));
}

#[tokio::test]
async fn a_frozen_api_server_gives_no_address_to_two() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.0/24"])).unwrap();
    let replicas = [replica(&server, "first"), replica(&server, "second")];
    server.apply(&service("before")).unwrap();
    has_address(&server, "before").await;
    // Longer than any request is waited for, and than the Lease lasts.
    server.set_latency(Duration::from_secs(10));
    for index in 0..20 {
        server.apply(&service(&format!("meanwhile{index}"))).unwrap();
    }
    sleep(Duration::from_secs(4)).await;
    server.set_latency(Duration::ZERO);
    for index in 0..20 {
        has_address(&server, &format!("meanwhile{index}")).await;
    }
    assert_eq!(owners(&server).len(), 21);
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn a_deleted_lease_and_state_come_back() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.0/24"])).unwrap();
    let running = replica(&server, "only");
    is_led_by(&server, "only").await;
    let state =
        || server.get("metallb.io/v1beta1", "ConfigurationState", NAMESPACE, "controller").ok();
    eventually("the state", state).await;
    server.delete("coordination.k8s.io/v1", "Lease", NAMESPACE, "metallb-controller").unwrap();
    server.delete("metallb.io/v1beta1", "ConfigurationState", NAMESPACE, "controller").unwrap();
    is_led_by(&server, "only").await;
    eventually("the state", state).await;
    server.apply(&service("web")).unwrap();
    has_address(&server, "web").await;
    running.stop().await;
}

#[tokio::test]
async fn a_request_that_cannot_be_met_is_a_condition() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.1/32"])).unwrap();
    let running = Running::start(&server, Options::default());
    let mut asks = service("web");
    asks["spec"]["loadBalancerIP"] = json!("203.0.113.1");
    server.apply(&asks).unwrap();
    let condition = eventually("the condition", || {
        stored(&server, "web")["status"]["conditions"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!(condition["type"], "metallb.io/AddressAssigned");
    assert_eq!(condition["reason"], "AddressInNoPool");
    assert!(condition["lastTransitionTime"].as_str().unwrap().ends_with('Z'), "{condition}");
    asks["spec"]["loadBalancerIP"] = json!("192.0.2.1");
    server.apply(&asks).unwrap();
    let service = has_address(&server, "web").await;
    assert_eq!(service["status"].get("conditions"), None, "{service}");
    let accepted = eventually("the pool's condition", || {
        let pool = server.get("metallb.io/v1beta1", "IPAddressPool", NAMESPACE, "pool").unwrap();
        pool["status"]["conditions"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!((&accepted["type"], &accepted["status"]), (&json!("Accepted"), &json!("True")));
    assert_eq!(accepted["observedGeneration"], 1);
    running.stop().await;
}

#[tokio::test]
async fn at_rest_nothing_is_written() {
    let server = server();
    server.apply(&pool("pool", &["192.0.2.0/30"])).unwrap();
    server.apply(&pool("bad", &["192.0.2.9-192.0.2.1"])).unwrap();
    for index in 0..6 {
        server.apply(&service(&format!("s{index}"))).unwrap();
    }
    let everything = || {
        let mut all = server.list("v1", "Service", None).unwrap();
        for kind in ["IPAddressPool", "ConfigurationState"] {
            all.extend(server.list("metallb.io/v1beta1", kind, None).unwrap());
        }
        all
    };
    let running = Running::start(&server, Options::default());
    eventually("the counters", || {
        let pool = server.get("metallb.io/v1beta1", "IPAddressPool", NAMESPACE, "pool").unwrap();
        (pool["status"]["assignedIPv4"] == 4).then_some(())
    })
    .await;
    sleep(Duration::from_millis(1500)).await;
    let before = everything();
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(everything(), before);
    // Nor by the next one.
    running.stop().await;
    let running = Running::start(&server, Options::default());
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(everything(), before);
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
    let server_of_metrics = MetricsServer { address: metrics, access: MetricsAccess::Plain };
    let options =
        Options { health: Some(health), metrics: Some(server_of_metrics), ..Options::default() };
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
