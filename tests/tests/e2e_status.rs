//! What speakers write, on a real Kubernetes: ServiceL2Status and ConfigurationState, whose they
//! are, how often they are written, and who removes them. Needs root; run with `--test-threads=1`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use netlab::{Lab, Process, wait_for};
use serde_json::{Value, json};
use tests::{
    crowd::{self, Writes},
    install::{LIMIT, NAMESPACE, POOL, Place, Workload, in_lab, install, refused_nothing},
    kube::{ControlPlane, Node},
    programs::built,
};

const ADDRESS: &str = "10.99.0.200";

/// A Service that one endpoint serves; nobody has to run there.
const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.1.9], conditions: {ready: true}, nodeName: n1}]
";

#[test]
fn statuses_are_written_once_and_go_with_their_speaker() {
    in_lab(|lab| {
        let cluster = &ControlPlane::start(lab)?;
        let nodes = [Node::join(lab, cluster, 1)?, Node::join(lab, cluster, 2)?];
        install(cluster)?;
        fs::create_dir_all(lab.directory().join("memberlist"))?;
        fs::write(lab.directory().join("memberlist/secretkey"), "the key of this laboratory")?;
        let mut speakers = Speakers::start(lab, cluster, &nodes)?;
        cluster.apply(POOL)?;
        cluster.apply(SHOP)?;

        // One write tells that the address is announced and that the other node saw it answered.
        let before = writes(cluster)?;
        give_address(cluster)?;
        let owner = seen(cluster, &speakers)?;
        let writes = writes(cluster)?.since(&before);
        for what in ["POST servicel2statuses", "PATCH servicel2statuses/status"] {
            let count = writes.count(what);
            ensure!((count - 1.0).abs() < 0.5, "{count} times {what}: {writes}");
        }
        for node in speakers.pods.keys() {
            wait_for(&format!("the ConfigurationState of {node} is its Pod's"), LIMIT, || {
                let name = format!("speaker-{node}");
                let state = cluster.get("configurationstate", NAMESPACE, &name)?;
                ensure!(owner_uid(&state)? == speakers.pods[node], "{state}");
                Ok(())
            })?;
        }

        // Its node is dead, its Pod is not gone: another one announces, and clears up.
        speakers.running.remove(&owner);
        let other = seen_by_nobody(cluster, &speakers)?;
        ensure!(other != owner, "{owner} is dead");

        // Its Pod goes: so does what it has written of the configuration.
        delete_pod(cluster, &owner)?;
        gone(cluster, "configurationstate", &format!("speaker-{owner}"))?;

        // The same in another Pod.
        speakers.start_one(lab, cluster, node(&nodes, &owner)?)?;
        ensure!(seen(cluster, &speakers)? == other, "the address moved");

        // Another Pod beside a status that the Pod before it owned.
        speakers.running.remove(&other);
        delete_pod(cluster, &other)?;
        speakers.start_one(lab, cluster, node(&nodes, &other)?)?;
        seen(cluster, &speakers)?;

        // Without an advertisement nobody announces, with one somebody does.
        cluster.kubectl(&["delete", "l2advertisement", "lan", "--namespace=metallb-system"])?;
        wait_for("nobody announces", LIMIT, || {
            let all = statuses(cluster)?;
            ensure!(all.iter().all(|status| status["status"]["node"].is_null()), "{all:?}");
            Ok(())
        })?;
        cluster.apply(POOL)?;
        let owner = seen(cluster, &speakers)?;

        // Its Node goes, while its speaker still runs.
        cluster.kubectl(&["delete", "node", &owner])?;
        wait_for("the other node announces alone", LIMIT, || {
            let now = only_status(cluster)?;
            ensure!(now["status"]["node"] != *owner, "{now}");
            Ok(())
        })?;
        refused_nothing(lab)
    });
}

/// The programs that run and the UIDs of the Pods that are said to be around them, by node.
struct Speakers {
    workload: Workload,
    running: BTreeMap<String, Process>,
    pods: BTreeMap<String, String>,
}

impl Speakers {
    fn start(lab: &Lab, cluster: &ControlPlane, nodes: &[Node]) -> Result<Self> {
        let workload = Workload::of(cluster, "daemonset", "speaker", &built()?)?;
        let mut this = Self { workload, running: BTreeMap::new(), pods: BTreeMap::new() };
        for node in nodes {
            this.start_one(lab, cluster, node)?;
        }
        Ok(this)
    }

    fn start_one(&mut self, lab: &Lab, cluster: &ControlPlane, node: &Node) -> Result<()> {
        wait_for("the speakers' service account", LIMIT, || {
            cluster.get("serviceaccount", NAMESPACE, "default")
        })?;
        let name = format!("speaker-{}", node.name());
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "namespace": NAMESPACE, "name": name },
            "spec": {
                "nodeName": node.name(),
                "hostNetwork": true,
                "containers": [{ "name": "speaker", "image": "none" }],
            },
        });
        cluster.apply(&pod.to_string())?;
        let pod = cluster.get("pod", NAMESPACE, &name)?;
        let uid = pod["metadata"]["uid"].as_str().context("a Pod has a UID")?;
        self.pods.insert(node.name().to_owned(), uid.to_owned());
        let place = Place { pod: &name, node: node.name(), address: &node.address() };
        let command = self.workload.command(lab, cluster, node.namespace(), place)?;
        let process = node.namespace().spawn("berth-speaker", command)?;
        self.running.insert(node.name().to_owned(), process);
        Ok(())
    }
}

fn node<'n>(nodes: &'n [Node], name: &str) -> Result<&'n Node> {
    nodes.iter().find(|node| node.name() == name).with_context(|| name.to_owned())
}

/// What the controller would do.
fn give_address(cluster: &ControlPlane) -> Result<()> {
    let status = json!({ "status": { "loadBalancer": { "ingress": [{ "ip": ADDRESS }] } } });
    let patch = status.to_string();
    let arguments = ["patch", "service/web", "--namespace=shop", "--subresource=status"];
    cluster.kubectl(&[&arguments[..], &["--type=merge", "-p", &patch]].concat()).map(drop)
}

fn delete_pod(cluster: &ControlPlane, node: &str) -> Result<()> {
    let name = format!("speaker-{node}");
    let arguments = ["delete", "pod", &name, "--namespace=metallb-system"];
    cluster.kubectl(&[&arguments[..], &["--force", "--grace-period=0"]].concat())?;
    gone(cluster, "pod", &name)
}

fn gone(cluster: &ControlPlane, kind: &str, name: &str) -> Result<()> {
    wait_for(&format!("the {kind} {name} is gone"), LIMIT, || {
        let left = cluster.kubectl(&[
            "get",
            kind,
            name,
            "--namespace=metallb-system",
            "--ignore-not-found",
            "--output=name",
        ])?;
        ensure!(left.trim().is_empty(), left);
        Ok(())
    })
}

fn statuses(cluster: &ControlPlane) -> Result<Vec<Value>> {
    let arguments = ["get", "servicel2status", "--namespace=metallb-system", "--output=json"];
    let mut list: Value = serde_json::from_str(&cluster.kubectl(&arguments)?)?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

fn only_status(cluster: &ControlPlane) -> Result<Value> {
    let all = statuses(cluster)?;
    let [status] = &all[..] else { anyhow::bail!("{} statuses: {all:?}", all.len()) };
    Ok(status.clone())
}

/// Waits until the one status is that of a speaker that runs, owned by its Pod, and the other node
/// has seen the address answered; the node.
fn seen(cluster: &ControlPlane, speakers: &Speakers) -> Result<String> {
    wait_for("the address is seen to answer", LIMIT, || {
        let status = only_status(cluster)?;
        let owner = owner_of(&status, speakers)?;
        let address = &status["status"]["addresses"][0];
        ensure!(address["address"] == ADDRESS && address["state"] == "Seen", "{status}");
        ensure!(address["seenBy"].is_string() && address["seenBy"] != *owner, "{status}");
        Ok(owner)
    })
}

/// As [`seen`] where no other node is left.
fn seen_by_nobody(cluster: &ControlPlane, speakers: &Speakers) -> Result<String> {
    wait_for("the address is announced", LIMIT, || {
        let status = only_status(cluster)?;
        let owner = owner_of(&status, speakers)?;
        ensure!(status["status"]["addresses"][0]["state"] == "Announced", "{status}");
        Ok(owner)
    })
}

fn owner_of(status: &Value, speakers: &Speakers) -> Result<String> {
    let owner = status["status"]["node"].as_str().with_context(|| status.to_string())?;
    ensure!(speakers.running.contains_key(owner), "{owner} does not run: {status}");
    ensure!(owner_uid(status)? == speakers.pods[owner], "not of the Pod: {status}");
    Ok(owner.to_owned())
}

fn owner_uid(object: &Value) -> Result<&str> {
    let owner = &object["metadata"]["ownerReferences"][0];
    ensure!(owner["kind"] == "Pod", "{object}");
    owner["uid"].as_str().with_context(|| object.to_string())
}

fn writes(cluster: &ControlPlane) -> Result<Writes> {
    crowd::inside(cluster.segment().namespace(), || async {
        Writes::of(&crowd::client(&cluster.kubeconfig()).await?).await
    })
}
