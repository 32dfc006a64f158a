use serde_json::{Value, json};

use super::*;
use crate::fixture::{meta, node, object, parse, resources, service, slice};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

struct Case {
    config: Config,
    cluster: Cluster,
    options: Options,
}

impl Case {
    fn new(change: impl FnOnce(&mut config::Resources), nodes: &[(&str, Value)]) -> Self {
        let mut all = resources();
        all.bgp_peers[0].spec.dual_stack_address_family = true;
        change(&mut all);
        let nodes: Vec<_> = NODES
            .iter()
            .enumerate()
            .map(|(index, name)| {
                let more = nodes.iter().find(|(other, _)| other == name).map(|(_, more)| more);
                node(name, &format!("10.0.0.{}", index + 1), more.unwrap_or(&Value::Null))
            })
            .collect();
        let mut cluster = Cluster::default();
        for node in &nodes {
            cluster.apply_node(node);
        }
        Self { config: parse(all, &nodes), cluster, options: Options::default() }
    }

    fn plain() -> Self {
        Self::new(|_| {}, &[])
    }

    /// Plans one Service as node `me` would.
    fn plan(&mut self, me: &str, object: &k8s_openapi::api::core::v1::Service) -> ServicePlan {
        let key = self.cluster.apply_service(object).expect("a LoadBalancer that is new");
        let me = NodeName::from(me);
        let context = Context {
            me: &me,
            config: &self.config,
            cluster: &self.cluster,
            options: &self.options,
        };
        announcements_of(&key, &self.cluster.services[&key], None, context, &mut Choices::default())
    }
}

fn candidates(plan: &ServicePlan) -> Vec<String> {
    let (_, first) = plan.candidates().next().unwrap();
    first.nodes.iter().map(ToString::to_string).collect()
}

fn prefixes(plan: &ServicePlan) -> Vec<String> {
    plan.bgp.as_ref().unwrap().prefixes().map(|(_, prefix)| prefix.to_string()).collect()
}

#[test]
fn every_node_is_a_candidate_and_every_node_sends_the_route() {
    let mut case = Case::plain();
    case.cluster.apply_slice(&slice("a", &["n2"]));
    case.cluster.apply_slice(&slice("b", &["n2"]));
    let lan = case.plan("n1", &service("a", &["10.0.0.9"], &json!({})));
    assert_eq!(candidates(&lan), NODES);
    assert_eq!(lan.bgp, Err(Refusal::NoAdvertisement { pool: "lan".into() }));
    let both = &["203.0.113.7", "2001:db8::7"];
    let routed = case.plan("n3", &service("b", both, &json!({})));
    assert_eq!(prefixes(&routed), ["203.0.113.7/32", "2001:db8::7/128"]);
    assert!(matches!(routed.layer2, Err(Refusal::NoAdvertisement { .. })));
}

#[test]
fn two_addresses_of_two_pools_are_announced_each_as_its_pool_is() {
    let mut case = Case::plain();
    case.cluster.apply_slice(&slice("a", &["n2"]));
    let plan = case.plan("n1", &service("a", &["10.0.0.9", "2001:db8::7"], &json!({})));
    assert_eq!(candidates(&plan), NODES);
    assert_eq!(plan.candidates().next().unwrap().0.to_string(), "10.0.0.9");
    assert_eq!(prefixes(&plan), ["2001:db8::7/128"]);
}

#[test]
fn local_policy_needs_an_endpoint_on_the_node() {
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    let mut case = Case::plain();
    case.cluster.apply_slice(&slice("a", &["n2", "n3"]));
    case.cluster.apply_slice(&slice("b", &["n2"]));
    let lan = case.plan("n1", &service("a", &["10.0.0.9"], &local));
    assert_eq!(candidates(&lan), ["n2", "n3"]);
    let routed = service("b", &["203.0.113.7"], &local);
    assert_eq!(case.plan("n1", &routed).bgp, Err(Refusal::NoLocalEndpoint("n1".into())));
    let mut case = Case::plain();
    case.cluster.apply_slice(&slice("b", &["n2"]));
    assert_eq!(prefixes(&case.plan("n2", &routed)), ["203.0.113.7/32"]);
}

#[test]
fn every_refusal_has_its_reason() {
    let plain = || service("a", &["10.0.0.9"], &json!({}));
    let refusal = |mut case: Case, service: k8s_openapi::api::core::v1::Service| {
        case.plan("n1", &service).layer2.unwrap_err()
    };
    let with_endpoint = |mut case: Case| {
        case.cluster.apply_slice(&slice("a", &["n1"]));
        case
    };
    assert_eq!(refusal(Case::plain(), plain()), Refusal::NoEndpoint);
    let none = service("a", &[], &json!({}));
    assert_eq!(refusal(Case::plain(), none), Refusal::NoAddress);
    let elsewhere = service("a", &["172.16.0.1"], &json!({}));
    let address = "172.16.0.1".parse().unwrap();
    assert_eq!(refusal(Case::plain(), elsewhere), Refusal::AddressInNoPool(address));
    let class = service("a", &["10.0.0.9"], &json!({"spec": {"loadBalancerClass": "other"}}));
    assert_eq!(refusal(Case::plain(), class), Refusal::OtherClass);

    let no_ad = Case::new(|all| all.l2_advertisements.clear(), &[]);
    let expected = Refusal::NoAdvertisement { pool: "lan".into() };
    assert_eq!(refusal(with_endpoint(no_ad), plain()), expected);

    let unavailable = json!({"status": {"conditions": [
        {"type": "NetworkUnavailable", "status": "True"}]}});
    let everywhere = NODES.map(|name| (name, unavailable.clone()));
    let down = Case::new(|_| {}, &everywhere);
    assert!(matches!(refusal(with_endpoint(down), plain()), Refusal::NoCandidate(why)
        if matches!(&*why, Refusal::NodeNetworkUnavailable(_))));

    let selective = |all: &mut config::Resources| {
        all.l2_advertisements[0].spec.service_selectors = object(json!([{"matchLabels": {}}]));
    };
    let shared = json!({"metadata": {"annotations": {"metallb.io/allow-shared-ip": "key"}}});
    let shared = service("a", &["10.0.0.9"], &shared);
    assert_eq!(
        refusal(with_endpoint(Case::new(selective, &[])), shared),
        Refusal::SharedAddressWithServiceSelectors
    );
}

#[test]
fn the_exclude_label_takes_a_node_out_unless_overridden() {
    let label = json!({"metadata": {"labels": {
        "node.kubernetes.io/exclude-from-external-load-balancers": ""}}});
    let mut case = Case::new(|_| {}, &[("n2", label)]);
    case.cluster.apply_slice(&slice("a", &["n1"]));
    case.cluster.apply_slice(&slice("b", &["n1"]));
    case.cluster.apply_slice(&slice("c", &["n1"]));
    let lan = case.plan("n1", &service("a", &["10.0.0.9"], &json!({})));
    assert_eq!(candidates(&lan), ["n1", "n3"]);
    let routed = case.plan("n2", &service("b", &["203.0.113.7"], &json!({})));
    assert_eq!(routed.bgp, Err(Refusal::NodeExcluded("n2".into())));
    case.options.ignore_exclude_label = true;
    let routed = case.plan("n2", &service("c", &["203.0.113.7"], &json!({})));
    assert_eq!(prefixes(&routed), ["203.0.113.7/32"]);
}

#[test]
fn advertisements_unite_interfaces_preferences_and_communities() {
    let mut case = Case::new(
        |all| {
            let hostname = |name: &str| json!([{"matchLabels": {"kubernetes.io/hostname": name}}]);
            all.l2_advertisements = vec![
                object(json!({"metadata": meta("one"), "spec": {
                    "interfaces": ["eth0"], "nodeSelectors": hostname("n1"),
                    "preferredNodeSelectors": [{"weight": 10, "preference": {}}]}})),
                object(json!({"metadata": meta("two"), "spec": {
                    "interfaces": ["eth1"], "nodeSelectors": hostname("n1"),
                    "preferredNodeSelectors": [{"weight": 5, "preference": {}}]}})),
                object(json!({"metadata": meta("three"), "spec": {
                    "nodeSelectors": hostname("n2")}})),
            ];
            all.bgp_advertisements = vec![
                object(json!({"metadata": meta("one"), "spec": {"communities": ["65000:1"]}})),
                object(json!({"metadata": meta("two"), "spec": {
                    "communities": ["large:1:2:3"], "aggregationLength": 32}})),
                object(json!({"metadata": meta("wide"), "spec": {
                    "ipAddressPools": ["routed"],
                    "aggregationLength": 24, "aggregationLengthV6": 64}})),
            ];
        },
        &[],
    );
    case.cluster.apply_slice(&slice("a", &["n1"]));
    case.cluster.apply_slice(&slice("b", &["n1"]));
    let lan = case.plan("n1", &service("a", &["10.0.0.9"], &json!({})));
    let (_, wanted) = lan.candidates().next().unwrap();
    assert_eq!(candidates(&lan), ["n1", "n2"]);
    assert_eq!(
        wanted.interfaces,
        [("n1".into(), ["eth0".into(), "eth1".into()].into())].into(),
        "on n2 any"
    );
    assert_eq!(wanted.preference, [("n1".into(), 15)].into());
}

#[test]
fn advertisements_reach_only_the_peers_they_name() {
    let mut case = Case::new(
        |all| {
            all.bgp_advertisements[0].spec.peers = vec!["tor".into()];
            all.bgp_peers.push(object(json!({"metadata": meta("other"), "spec": {
                "myASN": 64_513, "peerASN": 64_514, "peerAddress": "10.1.0.2"}})));
        },
        &[],
    );
    case.cluster.apply_slice(&slice("a", &["n1"]));
    let plan = case.plan("n1", &service("a", &["203.0.113.7"], &json!({})));
    let plan = plan.bgp.unwrap();
    assert_eq!(plan.peers.iter().map(|(peer, _)| &**peer).collect::<Vec<_>>(), ["tor"]);
    assert_eq!(*plan.refused, [("other".into(), Refusal::PeerNotNamed("other".into()))]);
}

#[test]
fn services_of_one_address_go_where_both_may() {
    let mut case = Case::plain();
    let local = json!({"spec": {"externalTrafficPolicy": "Local"}});
    case.cluster.apply_slice(&slice("a", &["n1", "n2"]));
    case.cluster.apply_slice(&slice("b", &["n2", "n3"]));
    case.cluster.apply_service(&service("a", &["10.0.0.9"], &local));
    case.cluster.apply_service(&service("b", &["10.0.0.9"], &local));
    let me = NodeName::from("n1");
    let context =
        Context { me: &me, config: &case.config, cluster: &case.cluster, options: &case.options };
    let whole = plan(context);
    let wanted = &whole.layer2[&"10.0.0.9".parse::<IpAddr>().unwrap()];
    assert_eq!(wanted.nodes, [NodeName::from("n2")].into());
}
