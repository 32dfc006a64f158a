//! Conformance cases of the configuration parser, recorded from MetalLB's own unit tests.
//!
//! The cases are read from the directory that `BERTH_VECTORS` names (`make vectors` sets it);
//! without it the tests only say so. What Berth does otherwise on purpose is listed in
//! `docs/differences.md` by case id; the tests read the list and hold both sides of it: a case
//! that differs without being listed fails, and so does one that is listed but no longer differs.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use config::{
    BgpAdvertisement, Candidate, Config, Existing, InterfaceMatch, L2Advertisement, Labels,
    NodeName, Operation, Peer, PeerAddress, PeerAsn, Pool, Resources, Selector, admit,
};
use k8s_openapi::{
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
};
use serde_json::{Value, json};

#[test]
fn vectors_config_parse() {
    check("config_parse", |input, expect| {
        let (config, errors) = Config::parse(&resources(&input["resources"]), None);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        if expect["error"].is_string() {
            return if errors.is_empty() { Err("no error".to_owned()) } else { Ok(()) };
        }
        same("errors", &json!(errors), &json!([]))?;
        same_pools(&config, &expect["config"]["Pools"]["ByName"])?;
        same_peers(&config, &expect["config"]["Peers"])?;
        same_profiles(&config, &expect["config"]["BFDProfiles"])
    });
}

/// What one back end or another refuses. The objects of these cases hold nothing else, so they are
/// completed first.
#[test]
fn vectors_config_validate() {
    check("config_validate", |input, expect| {
        let mut objects = input["resources"].clone();
        for (plural, kind) in KINDS {
            for (i, object) in elements_mut(&mut objects[plural]).enumerate() {
                complete(kind, object, i);
            }
        }
        if elements(&objects["bgppeers"]).any(|peer| peer["spec"]["bfdProfile"] == "foo") {
            objects["bfdprofiles"] = json!([{ "metadata": { "name": "foo" } }]);
        }
        let (_, errors) = Config::parse(&resources(&objects), None);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let refused = expect["error"].is_string();
        if refused != errors.is_empty() { Ok(()) } else { Err(format!("{errors:?}")) }
    });
}

/// The cases are of the webhooks alone: which rules there are is the affair of a stand-in, which
/// refuses when it is told to. Here the objects are completed, and broken instead.
#[test]
fn vectors_webhooks() {
    check("webhooks", |input, expect| {
        let kind = input["kind"].as_str().unwrap();
        let (plural, kind) = *KINDS.iter().find(|(_, of)| *of == kind).unwrap();
        let mut existing = json!({ (plural): input["existing"]["items"] });
        for (i, object) in elements_mut(&mut existing[plural]).enumerate() {
            complete(kind, object, i);
        }
        let mut object = input["object"].clone();
        complete(kind, &mut object, 7);
        if input["validatorForcedError"] == true {
            object["spec"] = match kind {
                "IPAddressPool" => json!({ "addresses": ["x"] }),
                "BGPPeer" => json!({ "myASN": 0 }),
                "Community" => json!({ "communities": [{ "name": "x", "value": "x" }] }),
                _ => json!({ "nodeSelectors": [{}, {}] }),
            };
        }
        let operation = match input["operation"].as_str() {
            Some("CREATE") => Operation::Create,
            Some("UPDATE") => Operation::Update,
            Some("DELETE") => Operation::Delete,
            other => panic!("operation {other:?}"),
        };
        let namespace = input["metallbNamespace"].as_str().unwrap();
        let resources = resources(&existing);
        let existing = Existing { resources: &resources, held: &BTreeMap::new(), namespace };
        let candidate = Candidate::from_json(&object).unwrap().unwrap();
        match (admit(operation, &candidate, &existing), expect["error"].as_str()) {
            (Ok(warnings), None) => {
                let expected = expect["warning"].as_str().unwrap_or_default();
                same("warnings", &json!(warnings.concat()), &json!(expected))
            }
            (Err(errors), Some(expected)) => {
                let found: Vec<String> = errors.iter().map(ToString::to_string).collect();
                let told = expected == "error!" || found.iter().any(|e| e.contains(expected));
                if told { Ok(()) } else { Err(format!("{found:?}, not {expected}")) }
            }
            (found, expected) => Err(format!("{found:?}, not {expected:?}")),
        }
    });
}

/// What refers to objects that may still come is taken away before an object is checked: only what
/// is left may be refused.
#[test]
fn vectors_config_reset_transient() {
    check("config_reset_transient", |input, expect| {
        let resources = Resources::default();
        let existing = Existing { resources: &resources, held: &BTreeMap::new(), namespace: "ns" };
        for (plural, kind) in KINDS {
            let left = elements(&expect["result"][plural]);
            for (object, left) in elements(&input["resources"][plural]).zip(left) {
                let mut object = object.clone();
                complete(kind, &mut object, 0);
                object["metadata"]["namespace"] = "ns".into();
                let candidate = Candidate::from_json(&object).unwrap().unwrap();
                let refused = admit(Operation::Create, &candidate, &existing).err();
                let refused: Vec<String> =
                    refused.iter().flatten().map(|e| e.field().to_owned()).collect();
                let texts = object["spec"]["communities"].as_array().into_iter().flatten();
                let expected: Vec<String> = texts
                    .enumerate()
                    .filter(|(_, text)| text.is_string())
                    .filter(|(_, text)| elements(&left["spec"]["communities"]).any(|l| l == *text))
                    .map(|(i, _)| format!("spec.communities[{i}]"))
                    .collect();
                same(kind, &json!(refused), &json!(expected))?;
            }
        }
        Ok(())
    });
}

/// Each case is a pool with some advertisements and one more, which is dropped or not.
#[test]
fn vectors_config_l2_dedup() {
    check("config_l2_dedup", |input, expect| {
        let before: Vec<&Value> = elements(&input["advs"]).collect();
        let all: Vec<&Value> = before.iter().copied().chain([&input["toCheck"]]).collect();
        if all.iter().any(|adv| {
            adv["AllInterfaces"] == true && elements(&adv["Interfaces"]).next().is_some()
        }) {
            // No object can say both at once.
            return Ok(());
        }
        let attached = |advertisements: &[&Value]| {
            let (config, errors) = Config::parse(&l2_resources(advertisements), None);
            assert_eq!(errors, []);
            config.pools["p"].l2_advertisements.len()
        };
        let dropped = attached(&all) == attached(&before);
        same("dropped", &json!(dropped), &expect["result"])
    });
}

#[test]
fn vectors_config_preferred_scores() {
    check("config_preferred_scores", |input, expect| {
        let mut resources = Resources { pools: vec![pool("p")], ..Resources::default() };
        let eligible: BTreeSet<&str> = texts(&input["eligible"]).collect();
        for node in elements(&input["nodes"]) {
            let (name, mut labels) = name_and_labels(node);
            let may = if eligible.contains(name.as_str()) { "yes" } else { "no" };
            labels.insert("eligible".to_owned(), may.to_owned());
            resources.nodes.insert(name.into(), labels);
        }
        let spec = json!({
            "nodeSelectors": [{ "matchLabels": { "eligible": "yes" } }],
            "preferredNodeSelectors": elements(&input["preferred"]).collect::<Vec<_>>(),
        });
        let advertisement = crds::L2Advertisement::new("a", serde_json::from_value(spec).unwrap());
        resources.l2_advertisements.push(advertisement);
        let (config, errors) = Config::parse(&resources, None);
        same("has errors", &json!(!errors.is_empty()), &json!(expect["error"].is_string()))?;
        let found = config.pools["p"].l2_advertisements.first().map(|a| a.preference.clone());
        let found: BTreeMap<String, i32> =
            found.into_iter().flatten().map(|(node, weight)| (node.to_string(), weight)).collect();
        let expected =
            if expect["result"].is_null() { json!({}) } else { expect["result"].clone() };
        same("scores", &json!(found), &expected)
    });
}

/// Runs `case` on the input and the expectation of every case of a file.
fn check(file: &str, case: impl Fn(&Value, &Value) -> Result<(), String>) {
    let Some(directory) = std::env::var_os("BERTH_VECTORS").map(PathBuf::from) else {
        println!("BERTH_VECTORS is not set: the cases of {file} are skipped");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let listed = fs::read_to_string(root.join("docs/differences.md")).unwrap();
    let text = fs::read_to_string(directory.join(format!("{file}.json"))).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let mut faults = Vec::new();
    let mut count = 0;
    for value in elements(&cases["cases"]) {
        let id = value["id"].as_str().unwrap();
        let result = case(&value["input"], &value["expect"]);
        match (result, listed.contains(&format!("`{id}`"))) {
            (Ok(()), false) | (Err(_), true) => count += 1,
            (Err(difference), false) => faults.push(format!("{id}: {difference}")),
            (Ok(()), true) => faults.push(format!("{id}: listed in differences.md, but the same")),
        }
    }
    println!("{file}: {count} cases");
    assert!(count > 0 && faults.is_empty(), "{file}:\n{}", faults.join("\n"));
}

/// Plural and kind.
const KINDS: [(&str, &str); 6] = [
    ("ipaddresspools", "IPAddressPool"),
    ("l2advertisements", "L2Advertisement"),
    ("bgpadvertisements", "BGPAdvertisement"),
    ("bgppeers", "BGPPeer"),
    ("bfdprofiles", "BFDProfile"),
    ("communities", "Community"),
];

fn resources(objects: &Value) -> Resources {
    let secrets = objects["passwordsecrets"].as_object().into_iter().flatten();
    Resources {
        pools: list(&objects["ipaddresspools"]),
        l2_advertisements: list(&objects["l2advertisements"]),
        bgp_advertisements: list(&objects["bgpadvertisements"]),
        bgp_peers: list(&objects["bgppeers"]),
        bfd_profiles: list(&objects["bfdprofiles"]),
        communities: list(&objects["communities"]),
        secrets: secrets.map(|(name, secret)| (name.clone(), password_secret(secret))).collect(),
        nodes: elements(&objects["nodes"])
            .map(name_and_labels)
            .map(|(name, labels)| (NodeName::from(name), labels))
            .collect(),
        namespaces: elements(&objects["namespaces"]).map(name_and_labels).collect(),
        ..Resources::default()
    }
}

/// What every good object of its kind has, where this one has it not.
fn complete(kind: &str, object: &mut Value, index: usize) {
    let version = if kind == "BGPPeer" { "v1beta2" } else { "v1beta1" };
    object["apiVersion"] = format!("metallb.io/{version}").into();
    object["kind"] = kind.into();
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = format!("o{index}").into();
    }
    if object["spec"].is_null() {
        object["spec"] = json!({});
    }
    let spec = &mut object["spec"];
    if kind == "IPAddressPool" && spec["addresses"].is_null() {
        spec["addresses"] = json!([format!("192.0.{index}.0/24")]);
    }
    if kind == "BGPPeer" {
        if spec["myASN"] == 0 {
            spec["myASN"] = 64500.into();
        }
        if spec["peerASN"].is_null() {
            spec["peerASN"] = 64501.into();
        }
        if spec["peerAddress"].is_null() && spec["interface"].is_null() {
            spec["peerAddress"] = format!("192.0.2.{index}").into();
        }
    }
}

fn list<T: serde::de::DeserializeOwned>(objects: &Value) -> Vec<T> {
    elements(objects)
        .map(|object| {
            let mut object = object.clone();
            let members = object.as_object_mut().unwrap();
            // What an API server fills in.
            members.entry("metadata").or_insert_with(|| json!({}));
            members.entry("spec").or_insert_with(|| json!({}));
            serde_json::from_value(object).unwrap()
        })
        .collect()
}

fn password_secret(secret: &Value) -> config::Secret {
    let secret: Secret = serde_json::from_value(secret.clone()).unwrap();
    config::Secret {
        kind: secret.type_.unwrap_or_default(),
        password: secret
            .data
            .and_then(|mut data| data.remove("password"))
            .map(|bytes| String::from_utf8(bytes.0).unwrap().into()),
    }
}

fn name_and_labels(object: &Value) -> (String, Labels) {
    let metadata = &object["metadata"];
    let labels = metadata["labels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()));
    (metadata["name"].as_str().unwrap().to_owned(), labels.collect())
}

fn pool(name: &str) -> crds::IPAddressPool {
    let addresses = vec!["192.0.2.0/24".to_owned()];
    crds::IPAddressPool::new(name, crds::IPAddressPoolSpec { addresses, ..Default::default() })
}

/// Objects whose parsed form is `advertisements`.
fn l2_resources(advertisements: &[&Value]) -> Resources {
    let mut resources = Resources { pools: vec![pool("p")], ..Resources::default() };
    for (i, advertisement) in advertisements.iter().enumerate() {
        for node in texts(&advertisement["Nodes"]) {
            let labels = Labels::from([("name".to_owned(), node.to_owned())]);
            resources.nodes.insert(node.into(), labels);
        }
        let nodes = texts(&advertisement["Nodes"]).chain(["none"]);
        let preferred = advertisement["PreferredNodes"].as_object().into_iter().flatten();
        let selectors: Vec<LabelSelector> =
            texts(&advertisement["ServiceSelectors"]).map(selector_of).collect();
        let spec = json!({
            "nodeSelectors": nodes
                .map(|node| json!({ "matchLabels": { "name": node } }))
                .collect::<Vec<_>>(),
            "interfaces": texts(&advertisement["Interfaces"]).collect::<Vec<_>>(),
            "serviceSelectors": selectors,
            "preferredNodeSelectors": preferred
                .map(|(node, weight)| {
                    json!({ "weight": weight, "preference": { "matchLabels": { "name": node } } })
                })
                .collect::<Vec<_>>(),
        });
        let name = format!("a{i}");
        let spec = serde_json::from_value(spec).unwrap();
        resources.l2_advertisements.push(crds::L2Advertisement::new(&name, spec));
    }
    resources
}

fn same_pools(config: &Config, expected: &Value) -> Result<(), String> {
    let expected = expected.as_object().unwrap();
    let names: Vec<&str> = config.pools.keys().map(|name| &**name).collect();
    same("pools", &json!(names), &json!(expected.keys().collect::<Vec<_>>()))?;
    for pool in config.pools.values() {
        let expected = &expected[&*pool.name];
        same_pool(pool, expected).map_err(|error| format!("pool {}: {error}", pool.name))?;
    }
    Ok(())
}

fn same_pool(pool: &Pool, expected: &Value) -> Result<(), String> {
    let prefixes: Vec<String> =
        pool.ranges.iter().flat_map(|range| range.prefixes()).map(|p| p.to_string()).collect();
    same("CIDR", &json!(prefixes), &expected["CIDR"])?;
    same("AutoAssign", &json!(pool.auto_assign), &expected["AutoAssign"])?;
    same("AvoidBuggyIPs", &json!(pool.avoid_buggy_ips), &expected["AvoidBuggyIPs"])?;
    let allocation = &expected["ServiceAllocations"];
    same("pinned", &json!(pool.allocation.is_some()), &json!(!allocation.is_null()))?;
    if let Some(found) = &pool.allocation {
        same("Priority", &json!(found.priority), &allocation["Priority"])?;
        same("Namespaces", &json!(found.namespaces), &sorted(&allocation["Namespaces"]))?;
        same_selectors(&found.service_selectors, &allocation["ServiceSelectors"])?;
    }
    let l2: Vec<&Value> = elements(&expected["L2Advertisements"]).collect();
    same("number of L2Advertisements", &json!(pool.l2_advertisements.len()), &json!(l2.len()))?;
    for (found, expected) in pool.l2_advertisements.iter().zip(l2) {
        same_l2(found, expected)?;
    }
    let bgp: Vec<&Value> = elements(&expected["BGPAdvertisements"]).collect();
    same("number of BGPAdvertisements", &json!(pool.bgp_advertisements.len()), &json!(bgp.len()))?;
    for (found, expected) in pool.bgp_advertisements.iter().zip(bgp) {
        same_bgp(found, expected)?;
    }
    Ok(())
}

fn same_l2(found: &L2Advertisement, expected: &Value) -> Result<(), String> {
    same("Nodes", &json!(node_names(&found.nodes)), &sorted(&expected["Nodes"]))?;
    let all = found.interfaces == InterfaceMatch::All;
    same("AllInterfaces", &json!(all), &expected["AllInterfaces"])?;
    if let InterfaceMatch::Only(names) = &found.interfaces {
        same("Interfaces", &json!(names), &sorted(&expected["Interfaces"]))?;
    }
    same_selectors(&found.service_selectors, &expected["ServiceSelectors"])
}

fn same_bgp(found: &BgpAdvertisement, expected: &Value) -> Result<(), String> {
    same("Name", &json!(found.name), &expected["Name"])?;
    same("Nodes", &json!(node_names(&found.nodes)), &sorted(&expected["Nodes"]))?;
    same("Peers", &json!(node_names(&found.peers)), &sorted(&expected["Peers"]))?;
    same("length", &json!(found.aggregation_length), &expected["AggregationLength"])?;
    same("v6 length", &json!(found.aggregation_length_v6), &expected["AggregationLengthV6"])?;
    same("LocalPref", &json!(found.local_pref), &expected["LocalPref"])?;
    let communities: BTreeSet<String> = found.communities.iter().map(ToString::to_string).collect();
    same("Communities", &json!(communities), &sorted(&expected["Communities"]))?;
    same_selectors(&found.service_selectors, &expected["ServiceSelectors"])
}

fn same_peers(config: &Config, expected: &Value) -> Result<(), String> {
    let expected = expected.as_object().unwrap();
    let names: Vec<&str> = config.peers.keys().map(|name| &**name).collect();
    same("peers", &json!(names), &json!(expected.keys().collect::<Vec<_>>()))?;
    for peer in config.peers.values() {
        let expected = &expected[&*peer.name];
        same_peer(peer, expected).map_err(|error| format!("peer {}: {error}", peer.name))?;
    }
    Ok(())
}

fn same_peer(peer: &Peer, expected: &Value) -> Result<(), String> {
    let (asn, dynamic) = match peer.peer_asn {
        PeerAsn::Number(asn) => (asn, ""),
        PeerAsn::Internal => (0, "internal"),
        PeerAsn::External => (0, "external"),
    };
    same("MyASN", &json!(peer.my_asn), &expected["MyASN"])?;
    same("ASN", &json!(asn), &expected["ASN"])?;
    same("DynamicASN", &json!(dynamic), &expected["DynamicASN"])?;
    same("LocalASN", &json!(peer.local_asn.unwrap_or_default()), &expected["LocalASN"])?;
    match &peer.address {
        PeerAddress::Address(address) => same("Addr", &json!(address), &expected["Addr"])?,
        PeerAddress::Interface(name) => same("Iface", &json!(name), &expected["Iface"])?,
    }
    let port = if expected["Port"] == 0 { json!(179) } else { expected["Port"].clone() };
    same("Port", &json!(peer.port), &port)?;
    same("SrcAddr", &json!(peer.source_address), &expected["SrcAddr"])?;
    same("RouterID", &json!(peer.router_id), &expected["RouterID"])?;
    let time = |time| crds::Duration::from(time).to_string();
    // Where neither is given MetalLB leaves both to the back end.
    if !expected["HoldTime"].is_null() {
        same("HoldTime", &json!(time(peer.hold_time)), &expected["HoldTime"])?;
        same("KeepaliveTime", &json!(time(peer.keepalive_time)), &expected["KeepaliveTime"])?;
    }
    same("ConnectTime", &json!(peer.connect_time.map(time)), &expected["ConnectTime"])?;
    same("EBGPMultiHop", &json!(peer.ebgp_multi_hop), &expected["EBGPMultiHop"])?;
    let graceful = &expected["EnableGracefulRestart"];
    same("EnableGracefulRestart", &json!(peer.graceful_restart), graceful)?;
    let dual = &expected["DualStackAddressFamily"];
    same("DualStackAddressFamily", &json!(peer.dual_stack_address_family), dual)?;
    same("VRF", &json!(peer.vrf.clone().unwrap_or_default()), &expected["VRF"])?;
    same(
        "BFDProfile",
        &json!(peer.bfd_profile.clone().unwrap_or_default()),
        &expected["BFDProfile"],
    )?;
    let password = ["Password", "SecretPassword"].map(|key| expected[key].as_str().unwrap());
    let found = peer.password.as_ref().map_or("", |password| &password.0);
    same("password", &json!(found), &json!(password.concat()))
}

fn same_profiles(config: &Config, expected: &Value) -> Result<(), String> {
    let expected = expected.as_object().unwrap();
    let names: Vec<&String> = config.bfd_profiles.keys().collect();
    same("profiles", &json!(names), &json!(expected.keys().collect::<Vec<_>>()))?;
    for (name, found) in &config.bfd_profiles {
        let found = json!({
            "Name": found.name,
            "ReceiveInterval": found.receive_interval.as_millis(),
            "TransmitInterval": found.transmit_interval.as_millis(),
            "DetectMultiplier": found.detect_multiplier,
            "EchoInterval": found.echo_interval.as_millis(),
            "EchoMode": found.echo_mode,
            "PassiveMode": found.passive_mode,
            "MinimumTTL": found.minimum_ttl,
        });
        for (key, value) in expected[name].as_object().unwrap() {
            same(key, &found[key], value)?;
        }
    }
    Ok(())
}

/// In any order; MetalLB writes "everything" where there are no selectors, which means the same.
fn same_selectors(found: &[Selector], expected: &Value) -> Result<(), String> {
    let found: BTreeSet<Selector> = found.iter().cloned().collect();
    let expected: BTreeSet<Selector> = texts(expected)
        .filter(|text| !text.is_empty())
        .map(|text| Selector::parse(&selector_of(text)).unwrap())
        .collect();
    if found == expected { Ok(()) } else { Err(format!("selectors: {found:?}, not {expected:?}")) }
}

/// Reads what Kubernetes prints of a selector: `a=b` and `a in (b,c)`, one requirement only.
fn selector_of(text: &str) -> LabelSelector {
    if let Some((key, value)) = text.split_once('=') {
        let labels = Labels::from([(key.to_owned(), value.to_owned())]);
        return LabelSelector { match_labels: Some(labels), ..Default::default() };
    }
    let (key, values) = text.split_once(" in ").unwrap_or_else(|| panic!("selector {text:?}"));
    let values = values.trim_matches(['(', ')']).split(',').map(str::to_owned).collect();
    let requirement = LabelSelectorRequirement {
        key: key.to_owned(),
        operator: "In".to_owned(),
        values: Some(values),
    };
    LabelSelector { match_expressions: Some(vec![requirement]), ..Default::default() }
}

fn same(what: &str, found: &Value, expected: &Value) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found}, not {expected}")) }
}

fn node_names<'a>(names: impl IntoIterator<Item = &'a NodeName>) -> Vec<&'a str> {
    names.into_iter().map(|name| &**name).collect()
}

fn sorted(list: &Value) -> Value {
    json!(texts(list).collect::<BTreeSet<_>>())
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    elements(list).map(|element| element.as_str().unwrap())
}

fn elements_mut(list: &mut Value) -> impl Iterator<Item = &mut Value> {
    list.as_array_mut().into_iter().flatten()
}

fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
