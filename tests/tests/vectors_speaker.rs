//! Replays conformance cases of MetalLB's speaker from the folder that `BERTH_VECTORS` names;
//! without it there is nothing to do.
//!
//! A case that ends otherwise must stand in `docs/differences.md`, its id in backquotes. MetalLB
//! elects anew at every change; Berth does what the case expects in a cluster that has just been
//! made, where nobody owns anything.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use config::{
    AddressRange, BgpAdvertisement, Config, InterfaceMatch, L2Advertisement, NodeName, Pool,
    Selector,
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};
use speaker::{
    plan::{Choices, Context, Options, Refusal, announcements_of, plan, refusal_at},
    view::Cluster,
};

#[test]
fn speaker_should_announce() {
    let Some(folder) = std::env::var_os("BERTH_VECTORS") else { return };
    let text = fs::read_to_string(Path::new(&folder).join("speaker_should_announce.json"));
    let cases: Value = serde_json::from_str(&text.unwrap()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/differences.md");
    let differences = fs::read_to_string(path).unwrap_or_default();
    let (mut passed, mut intended, mut wrong) = (0, BTreeSet::new(), Vec::new());
    let mut alike = BTreeSet::new();
    for case in cases["cases"].as_array().unwrap() {
        let id = text_of(&case["id"]).to_owned();
        let expected = text_of(&case["expect"]["result"]);
        let found = should_announce(&case["input"]);
        // Whether it announces is never another, only why it does not.
        let is_listed = differences.contains(&format!("`{id}`"));
        if found == expected {
            passed += 1;
            alike.extend(is_listed.then_some(id));
        } else if !found.is_empty() && expected == "notOwner" && is_listed {
            intended.insert(id);
        } else {
            wrong.push(format!("{id}: {found:?} instead of {expected:?}"));
        }
    }
    // Several cases may have one id.
    let stale = alike.difference(&intended);
    wrong.extend(stale.map(|id| format!("{id}: stands in docs/differences.md and is none")));
    println!(
        "speaker_should_announce: {passed} passed, {} intended differences, {} wrong",
        intended.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// MetalLB applies a configuration to its Services one by one, as they are looked at again
/// (`ReprocessAll`); Berth to all at once. So routes are compared after each step with a Service, and
/// the peers after each configuration.
#[test]
fn speaker_bgp_traces() {
    let Some(folder) = std::env::var_os("BERTH_VECTORS") else { return };
    let text = fs::read_to_string(Path::new(&folder).join("speaker_bgp_traces.json"));
    let cases: Value = serde_json::from_str(&text.unwrap()).unwrap();
    let (mut steps, mut wrong) = (0, Vec::new());
    for case in list(&cases["cases"]) {
        let mut trace = Trace::default();
        for (number, step) in list(&case["steps"]).iter().enumerate() {
            trace.take(&step["op"], &step["input"]);
            let me = NodeName::from(text_of(&step["input"]["myNode"]));
            let mut found = trace.routes(&me);
            let mut expected = routes_of(&step["expect"]["bgpAds"]);
            if step["op"] == "SetConfig" {
                found.values_mut().chain(expected.values_mut()).for_each(BTreeSet::clear);
            }
            steps += 1;
            if found != expected {
                let id = text_of(&case["id"]);
                wrong.push(format!("{id}, step {number}: {found:?} instead of {expected:?}"));
            }
        }
    }
    println!("speaker_bgp_traces: {steps} steps, {} wrong", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// By the address of the peer: prefix and localPref.
type Routes = BTreeMap<String, BTreeSet<(String, u64)>>;

#[derive(Default)]
struct Trace {
    config: Config,
    cluster: Cluster,
}

impl Trace {
    fn take(&mut self, op: &Value, input: &Value) {
        let me = NodeName::from(text_of(&input["myNode"]));
        if op == "SetConfig" {
            let pools = input["config"]["Pools"]["ByName"].as_object().into_iter().flatten();
            let pools = pools.map(|(name, given)| {
                let mut given = given.clone();
                given["Name"] = json!(name);
                (name.as_str().into(), pool(&given))
            });
            let peers = input["config"]["Peers"].as_object().into_iter().flatten();
            let peers = peers.map(|(name, given)| (name.as_str(), text_of(&given["Addr"])));
            self.config =
                Config { pools: pools.collect(), peers: peers_of(&me, peers), ..Config::default() };
            return;
        }
        let name = text_of(&input["key"]);
        self.cluster.delete_service(&config::ServiceKey::new("default", name));
        if !input["svc"].is_null() {
            let mut service = input["svc"].clone();
            service["metadata"]["name"] = json!(name);
            service["metadata"]["namespace"] = json!("default");
            self.cluster.apply_service(&serde_json::from_value(service).unwrap());
        }
        for (number, slice) in list(&input["endpointSlices"]).iter().enumerate() {
            let mut slice = slice.clone();
            slice["metadata"] = json!({"name": format!("{name}-{number}"), "namespace": "default",
                                       "labels": {"kubernetes.io/service-name": name}});
            self.cluster.apply_slice(&serde_json::from_value(slice).unwrap());
        }
    }

    fn routes(&self, me: &NodeName) -> Routes {
        let options = Options::default();
        let context =
            Context { me, config: &self.config, cluster: &self.cluster, options: &options };
        let mut planned = plan(context).bgp;
        let of_peer = |peer: &config::Peer| {
            let routes = planned.remove(&peer.name).unwrap_or_default().into_iter();
            let routes = routes.map(|(prefix, attributes)| {
                (prefix.to_string(), attributes.local_pref.unwrap_or_default().into())
            });
            (peer.address.to_string(), routes.collect())
        };
        self.config.peers.values().map(of_peer).collect()
    }
}

fn routes_of(expected: &Value) -> Routes {
    let route = |route: &Value| {
        let local_pref = route["LocalPref"].as_u64().unwrap_or_default();
        (text_of(&route["Prefix"]).to_owned(), local_pref)
    };
    let peers = expected.as_object().into_iter().flatten();
    peers.map(|(peer, routes)| (peer.clone(), list(routes).iter().map(route).collect())).collect()
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn names(value: &Value) -> BTreeSet<NodeName> {
    list(value).iter().map(|name| text_of(name).into()).collect()
}

/// The reason, or nothing when the node of the case announces.
fn should_announce(input: &Value) -> &'static str {
    let me = NodeName::from(text_of(&input["myNode"]));
    let cluster = cluster(input);
    let pool = pool(&input["pool"]);
    let config = Config {
        // What is sent to which peer is not the question.
        peers: peers_of(&me, [("peer1", "192.0.2.1"), ("peer2", "192.0.2.2")].into_iter()),
        pools: [(pool.name.clone(), pool)].into(),
        ..Config::default()
    };
    let options = Options {
        ignore_exclude_label: input["ignoreExcludeLB"].as_bool().unwrap_or_default(),
        ..Options::default()
    };
    let (key, service) = cluster.services.first_key_value().unwrap();
    let context = Context { me: &me, config: &config, cluster: &cluster, options: &options };
    if input["protocol"] == "bgp" {
        let plan = announcements_of(key, service, None, context, &mut Choices::default());
        return plan.bgp_refusal().map_or("", Refusal::reason);
    }
    let address: IpAddr = text_of(&input["ips"][0]).parse().unwrap();
    let mut live = names(&input["speakers"]);
    if input["memberlistDisabled"] == true {
        live.extend(cluster.nodes.keys().cloned());
    }
    let plan = announcements_of(key, service, None, context, &mut Choices::default());
    let wanted: BTreeMap<_, _> =
        plan.candidates().map(|(address, all)| (address, Arc::clone(all))).collect();
    let owner = ownership::place(&wanted, &live).remove(&address);
    match (refusal_at(&me, address, key, service, context), owner) {
        (Some(refusal), _) => refusal.reason(),
        (None, Some(owner)) if owner == me => "",
        (None, owner) => Refusal::NotOwner(owner.unwrap_or_default()).reason(),
    }
}

fn cluster(input: &Value) -> Cluster {
    let name = text_of(&input["name"]);
    let mut cluster = Cluster::default();
    for (name, node) in input["nodes"].as_object().into_iter().flatten() {
        let mut node = node.clone();
        node["metadata"]["name"] = json!(name);
        cluster.apply_node(&serde_json::from_value(node).unwrap());
    }
    let mut service = input["svc"].clone();
    service["metadata"]["name"] = json!(name);
    service["metadata"]["namespace"] = json!("default");
    let ingress: Vec<Value> = list(&input["ips"]).iter().map(|ip| json!({"ip": ip})).collect();
    service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    cluster.apply_service(&serde_json::from_value(service).unwrap());
    for (number, slice) in list(&input["endpointSlices"]).iter().enumerate() {
        let mut slice = slice.clone();
        slice["metadata"] = json!({"name": format!("slice-{number}"), "namespace": "default",
                                   "labels": {"kubernetes.io/service-name": name}});
        cluster.apply_slice(&serde_json::from_value(slice).unwrap());
    }
    cluster
}

fn pool(given: &Value) -> Pool {
    let ranges = list(&given["CIDR"]).iter().map(|cidr| {
        let range: IpNet = text_of(cidr).parse().unwrap();
        AddressRange { first: range.network(), last: range.broadcast() }
    });
    let name = Some(text_of(&given["Name"])).filter(|name| !name.is_empty()).unwrap_or("pool");
    let mut pool = Pool::new(name, ranges.collect());
    for (number, ad) in list(&given["L2Advertisements"]).iter().enumerate() {
        let interfaces = list(&ad["Interfaces"]);
        pool.l2_advertisements.push(Arc::new(L2Advertisement {
            name: format!("ad-{number}"),
            nodes: names(&ad["Nodes"]),
            interfaces: match interfaces {
                [] => InterfaceMatch::All,
                some => InterfaceMatch::Only(some.iter().map(|i| text_of(i).into()).collect()),
            },
            service_selectors: selectors(&ad["ServiceSelectors"]),
            preference: preference(&ad["PreferredNodes"]),
        }));
    }
    for ad in list(&given["BGPAdvertisements"]) {
        let number = |field: &str| ad[field].as_u64().unwrap_or_default();
        pool.bgp_advertisements.push(Arc::new(BgpAdvertisement {
            name: text_of(&ad["Name"]).to_owned(),
            nodes: names(&ad["Nodes"]),
            aggregation_length: u8::try_from(number("AggregationLength")).unwrap(),
            aggregation_length_v6: u8::try_from(number("AggregationLengthV6")).unwrap(),
            local_pref: u32::try_from(number("LocalPref")).unwrap(),
            med: None,
            as_path_prepend: 0,
            weight_by_endpoints: false,
            keep_last_announcement: false,
            damping: false,
            communities: BTreeSet::new(),
            peers: list(&ad["Peers"]).iter().map(|peer| text_of(peer).into()).collect(),
            service_selectors: selectors(&ad["ServiceSelectors"]),
        }));
    }
    pool
}

/// Written as `key=value,…`.
fn selectors(given: &Value) -> Vec<Selector> {
    let parse = |text: &Value| {
        let labels = text_of(text).split(',').filter_map(|term| term.split_once('='));
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let selector = LabelSelector { match_labels: Some(labels), ..LabelSelector::default() };
        Selector::parse(&selector).unwrap()
    };
    list(given).iter().map(parse).collect()
}

fn preference(given: &Value) -> BTreeMap<NodeName, i32> {
    let scores = given.as_object().into_iter().flatten();
    let scores = scores.map(|(node, score)| {
        (node.as_str().into(), i32::try_from(score.as_i64().unwrap()).unwrap())
    });
    scores.collect()
}

/// Peers on this node, by name and address.
fn peers_of<'a>(
    me: &NodeName,
    peers: impl Iterator<Item = (&'a str, &'a str)>,
) -> BTreeMap<config::PeerName, config::Peer> {
    let peer = |(name, address): (&str, &str)| {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {
            "myASN": 64_513, "peerASN": 64_512, "peerAddress": address,
            "dualStackAddressFamily": true}}))
        .unwrap()
    };
    let resources = config::Resources {
        bgp_peers: peers.map(peer).collect(),
        nodes: [(me.clone(), BTreeMap::new())].into(),
        ..config::Resources::default()
    };
    let (config, _) = Config::parse(&resources, None);
    config.peers
}
