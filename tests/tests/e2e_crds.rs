//! The CustomResourceDefinitions on a real API server, with no webhook and no Berth running: what
//! one object alone gets wrong is refused by the server itself, what MetalLB's users write is not,
//! and what was stored before there were rules can still be worked on. Needs root; run with
//! `--test-threads=1`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use netlab::Lab;
use serde_json::{Value, json};
use tests::kube::ControlPlane;

const NAMESPACE: &str = "metallb-system";
/// A BGPPeer in the version that is not stored.
const OLD_PEER: &str = "BGPPeer v1beta1";

/// A spec, and what the server says against it: parts of one line, or nothing.
struct Row {
    kind: &'static str,
    spec: Value,
    complaint: Vec<&'static str>,
}

fn good(kind: &'static str, spec: Value) -> Row {
    Row { kind, spec, complaint: Vec::new() }
}

fn bad(kind: &'static str, spec: Value, complaint: &'static [&'static str]) -> Row {
    Row { kind, spec, complaint: complaint.to_vec() }
}

#[test]
fn crd_rules_on_the_real_server() {
    in_cluster(|lab, cluster| {
        install(cluster)?;
        let mut rows = pools();
        rows.extend(advertisements());
        rows.extend(selectors());
        rows.extend(peers());
        rows.extend(others());
        let said = dry_run(lab, cluster, &rows)?;
        let mut faults = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let line = said.get(&index).map_or("", String::as_str);
            let right = match &row.complaint[..] {
                [] => line.is_empty(),
                parts => parts.iter().all(|part| line.contains(part)),
            };
            if !right {
                let spec: String = row.spec.to_string().chars().take(300).collect();
                faults.push(format!("{} {spec}\n  {line:?} without {:?}", row.kind, row.complaint));
            }
        }
        println!("{} specs, {} of them refused", rows.len(), said.len());
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    });
}

/// From MetalLB, or from a time when a rule was not there yet.
#[test]
fn what_was_stored_before_the_rules_can_be_worked_on() {
    in_cluster(|_, cluster| {
        let mut definition = json!(definition_of("ipaddresspools"));
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
            json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        cluster.apply(&definition.to_string())?;
        established(cluster)?;
        cluster.kubectl(&["create", "namespace", NAMESPACE])?;
        let pool = json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
            "metadata": { "name": "old", "namespace": NAMESPACE },
            "spec": {
                "addresses": ["nonsense"],
                "serviceAllocation": { "namespaces": ["a", "a"] },
            },
        });
        cluster.apply(&pool.to_string())?;
        cluster.apply(&json!(definition_of("ipaddresspools")).to_string())?;
        established(cluster)?;
        let patch = |more: &[&str], patch: Value| {
            let patch = patch.to_string();
            let mut arguments = vec!["patch", "ipaddresspool", "old", "--namespace", NAMESPACE];
            arguments.extend(["--type=merge", "-p", &patch]);
            arguments.extend(more);
            cluster.kubectl(&arguments)
        };
        let condition = json!({
            "type": "Accepted", "status": "False", "reason": "RangeSyntax", "message": "x",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        patch(&["--subresource=status"], json!({ "status": { "conditions": [condition] } }))?;
        patch(&[], json!({ "metadata": { "annotations": { "a": "b" } } }))?;
        patch(&[], json!({ "spec": { "autoAssign": false } }))?;
        let refusal = patch(&[], json!({ "spec": { "addresses": ["other"] } })).unwrap_err();
        ensure!(format!("{refusal:#}").contains("neither a prefix"), "{refusal:#}");
        patch(&[], json!({ "spec": { "addresses": ["192.0.2.0/24"] } })).map(drop)
    });
}

/// The definition of BGPPeer names a webhook that is not there: the stored version works.
#[test]
fn the_stored_version_of_peers_needs_no_webhook() {
    in_cluster(|_, cluster| {
        install(cluster)?;
        let peer = json!({
            "apiVersion": "metallb.io/v1beta2", "kind": "BGPPeer",
            "metadata": { "name": "router", "namespace": NAMESPACE },
            "spec": { "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" },
        });
        cluster.apply(&peer.to_string())?;
        let stored = cluster.get("bgppeers.v1beta2.metallb.io", NAMESPACE, "router")?;
        ensure!(stored["spec"]["peerPort"] == 179, "{stored}");
        let refusal = cluster.get("bgppeers.v1beta1.metallb.io", NAMESPACE, "router").unwrap_err();
        ensure!(format!("{refusal:#}").contains("conversion webhook"), "{refusal:#}");
        Ok(())
    });
}

fn pools() -> Vec<Row> {
    const KIND: &str = "IPAddressPool";
    const SYNTAX: &str = "neither a prefix such as";
    let of = |addresses: &[&str]| json!({ "addresses": addresses });
    let many = |count: u32| {
        let entries = (0..count).map(|n| {
            let [_, a, b, c] = (n * 4).to_be_bytes();
            format!("10.{a}.{b}.{c}/30")
        });
        json!({ "addresses": entries.collect::<Vec<_>>() })
    };
    let mut rows = vec![
        good(KIND, many(1000)),
        good(KIND, many(10_000)),
        good(
            KIND,
            json!({
                "addresses": ["192.0.2.0/24"], "autoAssign": false, "avoidBuggyIPs": true,
                "serviceAllocation": { "priority": -5, "namespaces": ["a", "b"] },
                "allocationOrder": "Random", "reuseAfter": "1h30m", "sharingScope": "Namespace",
                "maxAddressesPerNamespace": 3, "removalPolicy": "Refuse",
            }),
        ),
        bad(KIND, json!({}), &["spec.addresses: Required value"]),
        bad(KIND, json!({ "addresses": [] }), &["spec.addresses", "at least 1 items"]),
        bad(KIND, of(&["192.0.2.0/24", "nonsense"]), &["spec.addresses[1]", SYNTAX]),
        bad(KIND, of(&["192.0.2.1"]), &["spec.addresses[0]", "without a prefix length"]),
        bad(KIND, of(&["2001:db8::1"]), &["spec.addresses[0]", "without a prefix length"]),
        bad(KIND, of(&["192.0.2.1-2001:db8::1"]), &["spec.addresses[0]", "both ends"]),
        bad(KIND, of(&["192.0.2.9-192.0.2.8"]), &["spec.addresses[0]", "comes after the last"]),
        bad(KIND, of(&["192.0.3.0-192.0.2.255"]), &["comes after the last"]),
        bad(
            KIND,
            json!({ "addresses": ["192.0.2.0/24"], "reuseAfter": "-1s" }),
            &["spec.reuseAfter", "below zero"],
        ),
        bad(
            KIND,
            json!({ "addresses": ["192.0.2.0/24"], "reuseAfter": "1d" }),
            &["spec.reuseAfter", "should match"],
        ),
        bad(
            KIND,
            json!({ "addresses": ["192.0.2.0/24"], "allocationOrder": "Highest" }),
            &["spec.allocationOrder: Unsupported value"],
        ),
        bad(
            KIND,
            json!({ "addresses": ["192.0.2.0/24"], "maxAddressesPerNamespace": 0 }),
            &["spec.maxAddressesPerNamespace", "greater than or equal to 1"],
        ),
        bad(
            KIND,
            json!({
                "addresses": ["192.0.2.0/24"], "serviceAllocation": { "namespaces": ["a", "a"] },
            }),
            &["spec.serviceAllocation.namespaces[1]: Duplicate value"],
        ),
    ];
    for text in [
        "192.0.2.7/24",
        "0.0.0.0/0",
        "::/0",
        "2001:DB8::/64",
        " 192.0.2.0/24 ",
        "192.0.2.1-192.0.2.1",
        " 192.0.2.1 - 192.0.2.9 ",
        "9.255.255.255-10.0.0.0",
        "0.0.0.0-255.255.255.255",
        "2001:db8::1-2001:db8::f",
    ] {
        rows.push(good(KIND, of(&[text])));
    }
    for text in ["", "-", "192.0.2.0/33", "192.0.2.1-", "192.0.2.1-9", "192.0.2.0/24-192.0.3.0/24"]
    {
        rows.push(bad(KIND, of(&[text]), &["spec.addresses[0]", SYNTAX]));
    }
    rows
}

fn advertisements() -> Vec<Row> {
    const BGP: &str = "BGPAdvertisement";
    const L2: &str = "L2Advertisement";
    const SYNTAX: &str = "neither a community nor the name of one";
    let names: Vec<String> = (0..2000).map(|n| format!("pool-with-a-long-name-{n}")).collect();
    let mut rows = vec![
        good(BGP, json!({})),
        good(L2, json!({})),
        good(BGP, json!({ "ipAddressPools": names, "peers": names })),
        good(L2, json!({ "ipAddressPools": names, "interfaces": ["eth0", "eth0"] })),
        good(BGP, json!({ "aggregationLength": 24, "aggregationLengthV6": 64, "localPref": 100 })),
        good(L2, json!({ "preferredNodeSelectors": [{ "weight": 1, "preference": {} }] })),
        bad(BGP, json!({ "ipAddressPools": ["a", "a"] }), &["spec.ipAddressPools[1]: Duplicate"]),
        bad(L2, json!({ "ipAddressPools": ["a", "a"] }), &["spec.ipAddressPools[1]: Duplicate"]),
        bad(BGP, json!({ "peers": ["a", "a"] }), &["spec.peers[1]: Duplicate"]),
        bad(BGP, json!({ "communities": ["1:1", "1:1"] }), &["spec.communities[1]: Duplicate"]),
        bad(BGP, json!({ "aggregationLength": 0 }), &["spec.aggregationLength", "to 1"]),
        bad(BGP, json!({ "aggregationLength": 33 }), &["spec.aggregationLength", "to 32"]),
        bad(BGP, json!({ "aggregationLengthV6": 129 }), &["spec.aggregationLengthV6", "to 128"]),
        bad(
            BGP,
            json!({ "aggregationLength": 24, "serviceSelectors": [{}] }),
            &["spec: Invalid value", "mutually exclusive"],
        ),
        bad(BGP, json!({ "localPref": -1 }), &["spec.localPref", "to 0"]),
        bad(
            L2,
            json!({ "preferredNodeSelectors": [{ "weight": 101, "preference": {} }] }),
            &["spec.preferredNodeSelectors[0].weight", "to 100"],
        ),
    ];
    for text in [
        "0:0",
        "65535:65535",
        "00001:1",
        "large:4294967295:0:1",
        "no-export",
        "large",
        "rt:1:2",
        "soo:192.0.2.1:2",
        "ext:0x0002FBF400000064",
    ] {
        rows.push(good(BGP, json!({ "communities": [text] })));
    }
    for text in ["1:", ":1", "1:65536", "-1:1", "1:2:3", "large:1:2", "large:1:2:4294967296", "a:b"]
    {
        rows.push(bad(BGP, json!({ "communities": [text] }), &["spec.communities[0]", SYNTAX]));
    }
    rows
}

fn selectors() -> Vec<Row> {
    const KIND: &str = "L2Advertisement";
    const VALUES: &str = "In and NotIn need at least one value";
    let of = |selectors: Value| json!({ "nodeSelectors": selectors });
    let expression = |key: &str, operator: &str, values: Value| json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]);
    let nodes: Vec<String> = (0..3000).map(|n| format!("node-{n}.example.org")).collect();
    let by_name: Vec<Value> = nodes
        .iter()
        .map(|name| json!({ "matchLabels": { "kubernetes.io/hostname": name } }))
        .collect();
    vec![
        good(KIND, of(json!([{}]))),
        good(KIND, of(json!(by_name))),
        good(KIND, of(expression("kubernetes.io/hostname", "In", json!(nodes)))),
        good(KIND, of(expression("a", "Exists", json!([])))),
        good(
            KIND,
            of(json!([{ "matchExpressions": [{ "key": "a", "operator": "DoesNotExist" }] }])),
        ),
        bad(KIND, of(json!([{}, {}])), &["spec.nodeSelectors[1]: Duplicate value"]),
        bad(
            KIND,
            of(expression("a", "Like", json!(["b"]))),
            &["spec.nodeSelectors[0].matchExpressions[0].operator: Unsupported value"],
        ),
        bad(KIND, of(expression("a", "In", json!([]))), &[VALUES]),
        bad(KIND, of(expression("a", "Exists", json!(["b"]))), &[VALUES]),
        bad(
            KIND,
            of(expression("a", "In", json!(["b", "b"]))),
            &["matchExpressions[0].values[1]: Duplicate value"],
        ),
        bad(KIND, of(expression("-", "Exists", json!([]))), &["[0].key", "should match"]),
        bad(KIND, of(expression("a", "In", json!(["ä"]))), &["values[0]", "should match"]),
        bad(
            KIND,
            of(json!([{ "matchLabels": { "a": "x".repeat(64) } }])),
            &["spec.nodeSelectors[0].matchLabels.a", "63"],
        ),
        bad(
            KIND,
            of(json!([{ "matchExpressions": [
                { "key": "a", "operator": "Exists" }, { "key": "a", "operator": "Exists" },
            ] }])),
            &["spec.nodeSelectors[0].matchExpressions[1]: Duplicate value"],
        ),
    ]
}

fn peers() -> Vec<Row> {
    const KIND: &str = "BGPPeer";
    let with = |changes: Value| {
        let mut spec = json!({ "myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1" });
        for (name, value) in changes.as_object().unwrap() {
            spec[name] = value.clone();
        }
        spec
    };
    let mut rows = vec![
        good(
            KIND,
            with(json!({
                "sourceAddress": "2001:db8::1", "routerID": "192.0.2.9", "peerPort": 1179,
                "holdTime": "1m30s", "keepaliveTime": "30s", "connectTime": "10s",
                "passwordSecret": { "name": "key" }, "password": "", "bfdProfile": "fast",
                "ebgpMultiHop": true, "vrf": "red", "localASN": 5, "enableGracefulRestart": true,
            })),
        ),
        good(KIND, json!({ "myASN": 1, "dynamicASN": "internal", "interface": "eth0" })),
        good(
            KIND,
            json!({ "myASN": 1, "dynamicASN": "external", "peerASN": 0, "interface": "eth0",
                    "peerAddress": "", "ebgpMultiHop": true }),
        ),
        good(KIND, with(json!({ "peerASN": 64500 }))),
        good(KIND, with(json!({ "holdTime": "0s", "keepaliveTime": "0s" }))),
        good(KIND, with(json!({ "keepaliveTime": "1s" }))),
        bad(KIND, with(json!({ "myASN": 0 })), &["spec.myASN", "to 1"]),
        bad(KIND, with(json!({ "dynamicASN": "internal" })), &["exactly one of peerASN"]),
        bad(KIND, with(json!({ "peerASN": 0 })), &["exactly one of peerASN"]),
        bad(KIND, with(json!({ "interface": "eth0" })), &["exactly one of peerAddress"]),
        bad(KIND, with(json!({ "peerAddress": "" })), &["exactly one of peerAddress"]),
        bad(KIND, with(json!({ "dynamicASN": "both" })), &["spec.dynamicASN: Unsupported"]),
        bad(KIND, with(json!({ "peerAddress": "x" })), &["spec.peerAddress", "not an IP address"]),
        bad(KIND, with(json!({ "sourceAddress": "x" })), &["spec.sourceAddress", "not an IP"]),
        bad(KIND, with(json!({ "routerID": "2001:db8::1" })), &["spec.routerID", "IPv4"]),
        bad(KIND, with(json!({ "peerPort": 0 })), &["spec.peerPort", "to 1"]),
        bad(KIND, with(json!({ "ebgpMultiHop": true, "peerASN": 64500 })), &["our own AS"]),
        bad(
            KIND,
            with(json!({ "password": "x", "passwordSecret": { "name": "key" } })),
            &["both password and passwordSecret"],
        ),
        bad(KIND, with(json!({ "password": "x".repeat(81) })), &["spec.password", "80"]),
        bad(KIND, with(json!({ "connectTime": "500ms" })), &["spec.connectTime", "1 seconds"]),
        bad(KIND, with(json!({ "connectTime": "1500ms" })), &["spec.connectTime", "whole number"]),
        bad(KIND, with(json!({ "keepaliveTime": "-1s" })), &["spec.keepaliveTime", "below zero"]),
    ];
    for (changes, complaint) in [
        (json!({ "peerAddress": "x" }), "not an IP address"),
        (json!({ "holdTime": "2s" }), "not within 3s to 65535s"),
        (json!({ "holdTime": "9s", "keepaliveTime": "10s" }), "keepaliveTime is more than"),
        (json!({ "ebgpMultiHop": true, "peerASN": 64500 }), "our own AS"),
    ] {
        rows.push(Row { kind: OLD_PEER, spec: with(changes), complaint: vec![complaint] });
    }
    for hold in ["2s", "500ms", "65536s", "-3s"] {
        let complaint = &["spec.holdTime", "not within 3s to 65535s"];
        rows.push(bad(KIND, with(json!({ "holdTime": hold })), complaint));
    }
    for times in [
        json!({ "holdTime": "9s", "keepaliveTime": "10s" }),
        json!({ "holdTime": "0s", "keepaliveTime": "1s" }),
        json!({ "keepaliveTime": "999ms" }),
        json!({ "keepaliveTime": "21846s" }),
    ] {
        rows.push(bad(KIND, with(times), &["keepaliveTime is more than holdTime"]));
    }
    rows
}

fn others() -> Vec<Row> {
    const SYNTAX: &str = "value is no community";
    let alias = |value: &str| json!({ "communities": [{ "name": "a", "value": value }] });
    let many: Vec<Value> =
        (0..1000).map(|n| json!({ "name": format!("alias-{n}"), "value": "1:2" })).collect();
    let mut rows = vec![
        good("Community", json!({})),
        good("Community", json!({ "communities": many })),
        good("Community", alias("65535:0")),
        good("Community", alias("large:1:2:4294967295")),
        bad("Community", json!({ "communities": [{ "name": "a" }] }), &[SYNTAX]),
        bad(
            "Community",
            json!({ "communities": [
                { "name": "a", "value": "1:1" }, { "name": "a", "value": "1:2" },
            ] }),
            &["spec.communities[1]: Duplicate value"],
        ),
        good("BFDProfile", json!({})),
        good("BFDProfile", json!({ "echoMode": true, "minimumTtl": 254, "detectMultiplier": 2 })),
    ];
    for value in ["no-export", "rt:1:2", "soo:192.0.2.1:2", "ext:0x0002fbf400000064"] {
        rows.push(good("Community", alias(value)));
    }
    for value in ["no-import", "1:65536", "1", "large:1:2:x", "rt:1", "ext:0x1"] {
        rows.push(bad("Community", alias(value), &["spec.communities[0]", SYNTAX]));
    }
    for (field, value) in [
        ("receiveInterval", 9),
        ("transmitInterval", 60_001),
        ("echoInterval", 0),
        ("detectMultiplier", 256),
        ("minimumTtl", 255),
    ] {
        let mut spec = json!({});
        spec[field] = value.into();
        rows.push(bad("BFDProfile", spec, &["spec.", "should be"]));
    }
    rows
}

/// What the server says against each of the rows, by its index.
fn dry_run(lab: &Lab, cluster: &ControlPlane, rows: &[Row]) -> Result<BTreeMap<usize, String>> {
    let objects: Vec<Value> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let (kind, version) = match row.kind {
                "BGPPeer" => ("BGPPeer", "v1beta2"),
                OLD_PEER => ("BGPPeer", "v1beta1"),
                kind => (kind, "v1beta1"),
            };
            json!({
                "apiVersion": format!("metallb.io/{version}"), "kind": kind,
                "metadata": { "name": format!("row-{index}"), "namespace": NAMESPACE },
                "spec": row.spec,
            })
        })
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
    let file = lab.directory().join("rows.json");
    fs::write(&file, list)?;
    let file = format!("--filename={}", file.display());
    let Err(told) = cluster.kubectl(&["create", "--dry-run=server", "--validate=ignore", &file])
    else {
        return Ok(BTreeMap::new());
    };
    let told = told.root_cause().to_string();
    let mut said: BTreeMap<usize, String> = BTreeMap::new();
    let mut current = None;
    for line in told.lines().filter(|line| !line.contains("is deprecated")) {
        if let Some((_, rest)) = line.split_once("\"row-") {
            current = Some(rest.split('"').next().context("a name ends")?.parse()?);
        }
        let index = current.with_context(|| told.clone())?;
        said.entry(index).or_default().push_str(line);
    }
    Ok(said)
}

fn install(cluster: &ControlPlane) -> Result<()> {
    let definitions: Vec<Value> = crds::all().iter().map(|definition| json!(definition)).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": definitions });
    cluster.apply(&list.to_string())?;
    established(cluster)?;
    cluster.kubectl(&["create", "namespace", NAMESPACE]).map(drop)
}

fn established(cluster: &ControlPlane) -> Result<()> {
    let wait = ["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"];
    cluster.kubectl(&wait).map(drop)
}

fn definition_of(
    plural: &str,
) -> k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition {
    crds::all().into_iter().find(|definition| definition.spec.names.plural == plural).unwrap()
}

fn in_cluster(test: impl FnOnce(&Lab, &ControlPlane) -> Result<()>) {
    let lab = Lab::new().unwrap();
    let result = ControlPlane::start(&lab).and_then(|cluster| test(&lab, &cluster));
    if let Err(error) = result {
        panic!("{error:#}");
    }
    lab.close().unwrap();
}
