use serde_json::json;

use super::*;
use crate::fixture::{node, object, service, slice};

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", name)
}

#[test]
fn only_load_balancers_count() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.apply_service(&service("a", &["10.0.0.1"], &json!({}))), Some(key("a")));
    assert_eq!(cluster.apply_service(&service("a", &["10.0.0.1"], &json!({}))), None, "the same");
    let other = service("a", &[], &json!({"spec": {"type": "ClusterIP"}}));
    assert_eq!(cluster.apply_service(&other), Some(key("a")), "it is gone");
    assert!(cluster.services.is_empty());
}

#[test]
fn text_that_is_no_address_is_passed_over() {
    let mut cluster = Cluster::default();
    cluster.apply_service(&service("a", &["somewhere", "10.0.0.1", "2001:db8::1"], &json!({})));
    assert_eq!(cluster.services[&key("a")].addresses.len(), 2);
}

#[test]
fn endpoints_serve_by_their_conditions() {
    let cases = [
        (json!({}), true, "nothing said counts as ready"),
        (json!({"ready": true}), true, "ready"),
        (json!({"ready": false}), false, "not ready"),
        (json!({"ready": false, "serving": true, "terminating": true}), true, "still serving"),
        (json!({"ready": false, "serving": false, "terminating": true}), false, "ended"),
    ];
    for (conditions, serves, what) in cases {
        let mut cluster = Cluster::default();
        cluster.apply_slice(&object(json!({
            "metadata": {"name": "x", "namespace": "default",
                         "labels": {"kubernetes.io/service-name": "a"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.0.1"], "nodeName": "n1", "conditions": conditions}],
        })));
        assert_eq!(cluster.has_endpoint(&key("a")), serves, "{what}");
        assert_eq!(cluster.endpoint_nodes(&key("a")).contains("n1"), serves, "{what}");
    }
}

#[test]
fn an_endpoint_without_a_node_serves_for_cluster_only() {
    let mut cluster = Cluster::default();
    cluster.apply_slice(&object(json!({
        "metadata": {"name": "x", "namespace": "default",
                     "labels": {"kubernetes.io/service-name": "a"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.9"]}],
    })));
    assert!(cluster.has_endpoint(&key("a")));
    assert!(cluster.endpoint_nodes(&key("a")).is_empty());
}

#[test]
fn slices_add_up_and_may_change_their_service() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.apply_slice(&slice("a", &["n1"])), [key("a")]);
    assert!(cluster.apply_slice(&slice("a", &["n1"])).is_empty(), "the same");
    let mut second = slice("a", &["n2"]);
    second.metadata.name = Some("a-y".into());
    assert_eq!(cluster.apply_slice(&second), [key("a")]);
    assert_eq!(cluster.endpoint_nodes(&key("a")).len(), 2);

    second.metadata.labels = Some([(SERVICE_LABEL.to_owned(), "b".to_owned())].into());
    assert_eq!(cluster.apply_slice(&second), [key("a"), key("b")]);
    assert_eq!(cluster.endpoint_nodes(&key("a")).len(), 1);
    second.metadata.labels = None;
    assert_eq!(cluster.apply_slice(&second), [key("b")]);
    assert!(!cluster.has_endpoint(&key("b")));
    assert_eq!(cluster.delete_slice("default", "a-x"), Some(key("a")));
    assert_eq!(cluster.delete_slice("default", "a-x"), None);
    assert!(!cluster.has_endpoint(&key("a")));
}

#[test]
fn nodes_tell_their_addresses_and_troubles() {
    let mut cluster = Cluster::default();
    let more = json!({"status": {"conditions": [
        {"type": "Ready", "status": "False"}, {"type": "NetworkUnavailable", "status": "True"}]}});
    assert!(cluster.apply_node(&node("n1", "10.0.0.1", &more)));
    assert!(!cluster.apply_node(&node("n1", "10.0.0.1", &more)), "the same");
    let known = &cluster.nodes["n1"];
    assert!(known.network_unavailable && !known.excluded());
    assert_eq!(known.internal_addresses.len(), 1);
    assert!(cluster.delete_node("n1"));
    assert!(!cluster.delete_node("n1"));
}
