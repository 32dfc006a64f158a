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

    second.metadata.labels =
        Some([("kubernetes.io/service-name".to_owned(), "b".to_owned())].into());
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
    assert_eq!(cluster.apply_node(&node("n1", "10.0.0.1", &more)), NodeChange::ALL);
    let same = cluster.apply_node(&node("n1", "10.0.0.1", &more));
    assert_eq!(same, NodeChange::default());
    let known = &cluster.nodes["n1"];
    assert!(known.network_unavailable && !known.excluded());
    assert_eq!(known.internal_addresses.len(), 1);
    assert_eq!(known.ending, None, "not ready is not the end");
    assert_eq!(cluster.delete_node("n1"), NodeChange::ALL);
    assert_eq!(cluster.delete_node("n1"), NodeChange::default());
}

#[test]
fn a_change_of_a_node_says_what_it_is() {
    let exclude = "node.kubernetes.io/exclude-from-external-load-balancers";
    let none = NodeChange::default();
    let condition = |name: &str, status: &str| json!({"status": {"conditions": [{"type": name, "status": status}]}});
    for (more, expected, what) in [
        (condition("MemoryPressure", "True"), none, "a heartbeat of the kubelet"),
        (json!({"spec": {"unschedulable": true}}), none, "a cordon"),
        (
            json!({"metadata": {"labels": {"a": "b"}}}),
            NodeChange { labels: true, ..none },
            "a label",
        ),
        (
            json!({"metadata": {"labels": {exclude: ""}}}),
            NodeChange { labels: true, availability: true, ..none },
            "the exclude label",
        ),
        (
            condition("NetworkUnavailable", "True"),
            NodeChange { availability: true, ..none },
            "the network",
        ),
        (
            json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]}}),
            NodeChange { addresses: true, ..none },
            "an address",
        ),
        (
            json!({"metadata": {"annotations": {DRAIN_ANNOTATION: "true"}}}),
            NodeChange { drain: true, ..none },
            "a drain",
        ),
    ] {
        let mut cluster = Cluster::default();
        cluster.apply_node(&node("n1", "10.0.0.1", &json!({})));
        assert_eq!(cluster.apply_node(&node("n1", "10.0.0.1", &more)), expected, "{what}");
        assert_eq!(expected.any(), expected != none);
    }
}

#[test]
fn the_end_of_a_node_is_seen_coming() {
    let taint = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
    let ready = |status: &str, reason: &str, message: &str| {
        json!({"status": {"conditions": [
            {"type": "Ready", "status": status, "reason": reason, "message": message}]}})
    };
    for (more, ends) in [
        (taint("node.kubernetes.io/out-of-service"), true),
        (taint("ToBeDeletedByClusterAutoscaler"), true),
        (taint("karpenter.sh/disrupted"), true),
        (taint("karpenter.sh/disruption"), true),
        (taint("node.cloudprovider.kubernetes.io/shutdown"), true),
        (taint("node.kubernetes.io/unschedulable"), false),
        (taint("node.kubernetes.io/not-ready"), false),
        (json!({"spec": {"unschedulable": true}}), false),
        (ready("False", "KubeletNotReady", "node is shutting down"), true),
        (ready("True", "KubeletReady", "node is shutting down"), false),
        (ready("False", "KubeletNotReady", "PLEG is not healthy"), false),
        (ready("Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status."), false),
    ] {
        let mut cluster = Cluster::default();
        cluster.apply_node(&node("n1", "10.0.0.1", &more));
        assert_eq!(cluster.nodes["n1"].ending.is_some(), ends, "{more}");
    }
}

#[test]
fn only_true_drains() {
    for (annotations, expected) in [
        (json!({DRAIN_ANNOTATION: "true"}), Drain::Yes),
        (json!({DRAIN_ANNOTATION: "false"}), Drain::Unknown("false".to_owned())),
        (json!({DRAIN_ANNOTATION: "True"}), Drain::Unknown("True".to_owned())),
        (json!({DRAIN_ANNOTATION: ""}), Drain::Unknown(String::new())),
        (json!({}), Drain::No),
    ] {
        let mut cluster = Cluster::default();
        let more = json!({"metadata": {"annotations": annotations}});
        cluster.apply_node(&node("n1", "10.0.0.1", &more));
        assert_eq!(cluster.nodes["n1"].drain, expected);
    }
}

#[test]
fn what_a_list_does_not_show_is_gone() {
    let mut cluster = Cluster::default();
    for name in ["a", "b", "c"] {
        cluster.apply_service(&service(name, &["10.0.0.1"], &json!({})));
        cluster.apply_slice(&slice(name, &["n1"]));
    }
    cluster.begin_list(Many::Services);
    cluster.begin_list(Many::EndpointSlices);
    assert_eq!(cluster.apply_service(&service("b", &["10.0.0.1"], &json!({}))), None);
    assert!(cluster.apply_slice(&slice("a", &["n1"])).is_empty());
    assert!(cluster.delete_service(&key("c")));
    assert_eq!(cluster.services.len(), 2, "nothing goes before the list is complete");
    assert_eq!(cluster.end_list(Many::Services), [key("a")]);
    let mut gone = cluster.end_list(Many::EndpointSlices);
    gone.sort();
    assert_eq!(gone, [key("b"), key("c")]);
    assert!(cluster.has_endpoint(&key("a")) && !cluster.has_endpoint(&key("b")));
    assert!(cluster.end_list(Many::Services).is_empty(), "no list was begun");
}
