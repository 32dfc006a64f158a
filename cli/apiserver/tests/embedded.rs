//! What only the embedded server has: its direct interface, switches, clock, and our rules asked
//! in process. What it shares with a real one is in `tests/src/api_suite.rs`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{pin::pin, sync::Arc, time::Duration};

use apiserver::{ApiServer, Options};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, PostParams, WatchEvent, WatchParams},
    discovery::{Discovery, verbs},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::timeout};

const SOON: Duration = Duration::from_secs(10);

fn server() -> ApiServer {
    ApiServer::new(Options { seed: 7, ..Options::default() })
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

fn pool(name: &str, addresses: &str) -> Value {
    json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
        "metadata": {"name": name, "namespace": "metallb-system"},
        "spec": {"addresses": [addresses]}})
}

#[test]
fn objects_without_a_client() {
    let now = "2026-01-02T03:04:05Z".parse().unwrap();
    let server =
        ApiServer::new(Options { now: Arc::new(move || now), seed: 7, ..Options::default() });
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
    let first = server.apply(&service).unwrap();
    assert_eq!(first["metadata"]["creationTimestamp"], "2026-01-02T03:04:05Z");
    assert_eq!(first["status"]["loadBalancer"]["ingress"][0]["ip"], "192.0.2.1");
    assert_eq!(first["spec"]["clusterIP"], "10.96.0.1");
    assert_eq!(server.apply(&service).unwrap(), first, "the same again");
    assert_eq!(server.get("v1", "Service", "default", "web").unwrap(), first);
    assert_eq!(server.list("v1", "Service", None).unwrap(), [first]);
    server.delete("v1", "Service", "default", "web").unwrap();
    assert_eq!(server.get("v1", "Service", "default", "web").unwrap_err().code, 404);
    let odd = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spek": {}});
    assert_eq!(server.apply(&odd).unwrap_err().code, 400);
}

#[test]
fn equal_seeds_give_equal_names() {
    let name = |server: &ApiServer| {
        let mut object = config_map("");
        object["metadata"] = json!({"generateName": "a-"});
        let made = server.apply(&object).unwrap();
        (made["metadata"]["name"].clone(), made["metadata"]["uid"].clone())
    };
    assert_eq!(name(&server()), name(&server()));
}

#[test]
fn cluster_addresses_and_node_ports_return_to_their_ranges() {
    let server = ApiServer::new(Options {
        service_networks: vec!["10.0.0.0/30".parse().unwrap()],
        node_ports: 30000..=30001,
        ..Options::default()
    });
    let service = |name: &str| {
        server.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]}}))
    };
    service("a").unwrap();
    let second = service("b").unwrap();
    assert_eq!(second["spec"]["clusterIP"], "10.0.0.2");
    assert_eq!(second["spec"]["ports"][0]["nodePort"], 30001);
    assert_eq!(service("c").unwrap_err().code, 422);
    server.delete("v1", "Service", "default", "a").unwrap();
    let third = service("c").unwrap();
    assert_eq!(third["spec"]["clusterIP"], "10.0.0.1");
    assert_eq!(third["spec"]["ports"][0]["nodePort"], 30000);
}

#[test]
fn our_rules_are_asked() {
    let server = server();
    server.apply(&pool("one", "192.0.2.0/25")).unwrap();
    let overlap = server.apply(&pool("two", "192.0.2.0-192.0.2.9")).unwrap_err();
    assert_eq!((overlap.code, overlap.reason), (403, "Forbidden"));
    assert!(overlap.message.contains("\"two\""), "{overlap}");
    let mut elsewhere = pool("three", "198.51.100.0/24");
    elsewhere["metadata"]["namespace"] = json!("default");
    assert_eq!(server.apply(&elsewhere).unwrap_err().code, 403);
    let profile = json!({"apiVersion": "metallb.io/v1beta1", "kind": "BFDProfile",
        "metadata": {"name": "fast", "namespace": "metallb-system"}, "spec": {}});
    let peer = json!({"apiVersion": "metallb.io/v1beta2", "kind": "BGPPeer",
        "metadata": {"name": "router", "namespace": "metallb-system"},
        "spec": {"myASN": 64512, "peerASN": 64513, "peerAddress": "192.0.2.1", "bfdProfile": "fast"}});
    server.apply(&profile).unwrap();
    server.apply(&peer).unwrap();
    let used = server.delete("metallb.io/v1beta1", "BFDProfile", "metallb-system", "fast");
    assert_eq!(used.unwrap_err().code, 403);
    let unasked = ApiServer::new(Options { admission_namespace: None, ..Options::default() });
    unasked.apply(&pool("one", "192.0.2.0/25")).unwrap();
    unasked.apply(&pool("two", "192.0.2.0/25")).unwrap();
}

#[test]
fn odd_objects_are_refused() {
    let server = server();
    let odd = [
        json!(null),
        json!(1),
        json!("text"),
        json!([]),
        json!(["text", {"metadata": 1}]),
        json!({"": {"a": []}}),
        json!({"ports": "x", "loadBalancer": {"ingress": {"ip": 1}}, "name": [], "labels": [1]}),
        json!({"ports": [null, 1, {"port": {}}], "clusterIPs": {}, "addresses": {"a": "b"}}),
    ];
    let kinds = [
        ("v1", "Service"),
        ("v1", "Namespace"),
        ("v1", "Secret"),
        ("v1", "Event"),
        ("events.k8s.io/v1", "Event"),
        ("coordination.k8s.io/v1", "Lease"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("metallb.io/v1beta1", "IPAddressPool"),
        ("metallb.io/v1beta1", "BGPPeer"),
        ("metallb.io/v1beta2", "BGPPeer"),
    ];
    for (api_version, kind) in kinds {
        for field in ["metadata", "spec", "status", "data", "ports", "regarding", "addressType"] {
            for value in &odd {
                let mut object = json!({"apiVersion": api_version, "kind": kind,
                    "metadata": {"name": "odd", "namespace": "metallb-system"}});
                object[field] = value.clone();
                // Either answer will do, as long as there is one.
                let created = server.apply(&object);
                let changed = server.apply(&object);
                if let (Err(error), Err(_)) = (created, changed) {
                    assert!((400..500).contains(&error.code), "{object}: {error}");
                }
            }
        }
    }
    assert!(server.list("v1", "Service", None).is_ok());
}

#[tokio::test]
async fn kinds_are_discovered() {
    let discovery = Discovery::new(server().client()).run().await.unwrap();
    let ours = discovery.get("metallb.io").unwrap();
    let kinds = ours.versioned_resources("v1beta1");
    let (resource, capabilities) = kinds.iter().find(|(r, _)| r.kind == "IPAddressPool").unwrap();
    assert_eq!(resource.plural, "ipaddresspools");
    assert!(capabilities.supports_operation(verbs::WATCH));
    let (peer, _) = ours.recommended_kind("BGPPeer").unwrap();
    assert_eq!(peer.version, "v1beta2");
    assert!(discovery.get("events.k8s.io").is_some());
}

#[test]
fn a_namespace_takes_its_objects_along() {
    let server = server();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    server.apply(&namespace).unwrap();
    for (name, finalizers) in [("free", json!([])), ("held", json!(["example.com/hold"]))] {
        let mut object = config_map(name);
        object["metadata"]["namespace"] = json!("shop");
        object["metadata"]["finalizers"] = finalizers;
        server.apply(&object).unwrap();
    }
    server.delete("v1", "Namespace", "", "shop").unwrap();
    let names = |kind: &str| {
        let found = server.list("v1", kind, None).unwrap();
        found.iter().map(|o| o["metadata"]["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("ConfigMap"), ["held"]);
    let dying = server.get("v1", "Namespace", "", "shop").unwrap();
    assert_eq!(dying["status"]["phase"], "Terminating");
    let mut late = config_map("late");
    late["metadata"]["namespace"] = json!("shop");
    assert_eq!(server.apply(&late).unwrap_err().code, 403);
    let mut released = config_map("held");
    released["metadata"]["namespace"] = json!("shop");
    released["metadata"]["finalizers"] = Value::Null;
    server.apply(&released).unwrap();
    assert!(names("ConfigMap").is_empty());
    assert_eq!(server.get("v1", "Namespace", "", "shop").unwrap_err().code, 404);
}

#[tokio::test]
async fn a_watcher_lists_again_after_410() {
    let server = server();
    server.apply(&config_map("a")).unwrap();
    let api: Api<ConfigMap> = Api::default_namespaced(server.client());
    let mut events = pin!(watcher(api, watcher::Config::default()));
    assert!(matches!(events.next().await, Some(Ok(Event::Init))));
    assert!(matches!(events.next().await, Some(Ok(Event::InitApply(_)))));
    assert!(matches!(events.next().await, Some(Ok(Event::InitDone))));
    server.apply(&config_map("b")).unwrap();
    assert!(matches!(events.next().await, Some(Ok(Event::Apply(b))) if b.name_any() == "b"));
    server.expire_watches();
    let error = events.next().await.unwrap().unwrap_err();
    assert!(error.to_string().contains("too old resource version"), "{error}");
    let mut seen = Vec::new();
    loop {
        match events.next().await.unwrap().unwrap() {
            Event::InitApply(object) => seen.push(object.name_any()),
            Event::InitDone => break,
            Event::Init | Event::Apply(_) | Event::Delete(_) => {}
        }
    }
    assert_eq!(seen, ["a", "b"]);
}

#[tokio::test]
async fn a_watch_that_lags_behind_the_log_ends() {
    let server = ApiServer::new(Options { watch_window: 5, ..Options::default() });
    let api: Api<ConfigMap> = Api::default_namespaced(server.client());
    let events = api.watch(&WatchParams::default(), "0").await.unwrap();
    for index in 0..20 {
        server.apply(&config_map(&format!("c{index}"))).unwrap();
    }
    let seen = timeout(SOON, events.try_collect::<Vec<_>>()).await.unwrap().unwrap();
    assert!(seen.len() < 20, "{}", seen.len());
}

#[tokio::test]
async fn quiet_watches_get_bookmarks() {
    let bookmark_interval = Duration::from_millis(20);
    let server = ApiServer::new(Options { bookmark_interval, ..Options::default() });
    let api: Api<ConfigMap> = Api::default_namespaced(server.client());
    let version = api.list(&Default::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut events = pin!(api.watch(&WatchParams::default(), &version).await.unwrap());
    let mut other = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
    other["metadata"]["labels"] = json!({"a": "b"});
    server.apply(&other).unwrap();
    loop {
        let event = timeout(SOON, events.next()).await.unwrap().unwrap().unwrap();
        let WatchEvent::Bookmark(bookmark) = event else { panic!("{event:?}") };
        if bookmark.metadata.resource_version > version {
            break;
        }
    }
}

#[tokio::test]
async fn switched_off_it_refuses_and_cuts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = server();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener, async { stopped.await.unwrap_or_default() }).await }
    });
    let remote =
        Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
    for client in [server.client(), remote] {
        let nodes: Api<Node> = Api::all(client);
        let events = nodes.watch(&WatchParams::default(), "0").await.unwrap();
        server.set_available(false);
        // The stream breaks off: kube reports that as an error or as the end.
        let rest = timeout(SOON, events.collect::<Vec<_>>()).await.unwrap();
        assert!(rest.iter().all(|event| !matches!(event, Ok(WatchEvent::Error(_)))));
        assert!(nodes.list(&Default::default()).await.is_err());
        server.set_available(true);
        nodes.list(&Default::default()).await.unwrap();
    }
    stop.send(()).unwrap();
    timeout(SOON, serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn latency_delays_requests() {
    let server = server();
    server.set_latency(Duration::from_secs(3600));
    let nodes: Api<Node> = Api::all(server.client());
    let list = timeout(Duration::from_millis(20), nodes.list(&Default::default())).await;
    assert!(list.is_err());
}

#[tokio::test]
async fn many_writers_lose_nothing() {
    let server = server();
    let services: Api<Service> = Api::default_namespaced(server.client());
    let writers = (0..50).map(|index| {
        let services = services.clone();
        tokio::spawn(async move {
            let service = json!({"metadata": {"name": format!("s{index}")},
                "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
            let service: Service = serde_json::from_value(service).unwrap();
            services.create(&PostParams::default(), &service).await.unwrap();
        })
    });
    futures::future::try_join_all(writers).await.unwrap();
    let stored = server.list("v1", "Service", None).unwrap();
    let mut addresses: Vec<_> = stored.iter().map(|s| s["spec"]["clusterIP"].to_string()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 50);
    services.delete_collection(&DeleteParams::default(), &Default::default()).await.unwrap();
    assert!(server.list("v1", "Service", None).unwrap().is_empty());
}
