//! Berth on a real Kubernetes: a real API server and kube-proxy, the two programs as
//! `deploy/install.yaml` describes them, and a client on the nodes' network that knows nothing but
//! the address. Needs root; run with `--test-threads=1`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use netlab::{End, Lab, Namespace, Process, wait_for};
use serde_json::json;
use tests::{
    install::{
        BAD_ADVERTISEMENT, Controller, LIMIT, POOL, Place, Workload, external_addresses, in_lab,
        install, refused_nothing,
    },
    kube::{ControlPlane, Node, Pod, PodSpec, Readiness, build, fetch},
    programs::built,
};

/// For all checks of the API suite together.
const SUITE_LIMIT: Duration = Duration::from_secs(180);
const CLIENT: [&str; 2] = ["10.99.0.100", "fd99::100"];

const SHOP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

const INGRESS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: ingress}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: skipper, namespace: ingress}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: skipper}
rules:
- apiGroups: ["", networking.k8s.io, discovery.k8s.io]
  resources: [services, endpoints, secrets, ingresses, endpointslices]
  verbs: [get, list]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: skipper}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: skipper}
subjects: [{kind: ServiceAccount, name: skipper, namespace: ingress}]
---
apiVersion: v1
kind: Service
metadata: {name: skipper, namespace: ingress}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: skipper}
  ports: [{name: http, port: 80, targetPort: 9090}]
---
apiVersion: v1
kind: Service
metadata: {name: red, namespace: ingress}
spec: {selector: {app: red}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: blue, namespace: ingress}
spec: {selector: {app: blue}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: red, namespace: ingress}
spec:
  rules:
  - http: {paths: [{path: /red, pathType: Prefix, backend: {service: {name: red, port: {number: 80}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: blue, namespace: ingress}
spec:
  rules:
  - http: {paths: [{path: /blue, pathType: Prefix, backend: {service: {name: blue, port: {number: 80}}}}]}
"#;

#[test]
fn berth_on_a_real_control_plane() {
    on_stage(|lab, stage| {
        let cluster = &stage.cluster;
        let _berth = Berth::install(lab, cluster, &mut stage.nodes)?;
        cluster.apply(POOL)?;
        let refusal = cluster.apply(BAD_ADVERTISEMENT).unwrap_or_else(|error| format!("{error:#}"));
        ensure!(
            refusal.contains("aggregationLength are mutually exclusive"),
            "the schema should refuse: {refusal}"
        );
        cluster.apply(SHOP)?;
        let mut backends = Vec::new();
        for node in &mut stage.nodes {
            let name = format!("web-{}", node.name());
            let labels = &[("app", "web")];
            let name = PodSpec { namespace: "shop", name: &name, labels, ports: &[] };
            backends.push(Pod::run_backend(lab, cluster, node, name)?);
        }
        let addresses = external_addresses(cluster, "shop", "web")?;

        // Policy Cluster: every backend, and the node's address in place of the client's.
        for address in &addresses {
            wait_for(&format!("both backends answer at {address}"), LIMIT, || {
                let answers = sample(&stage.client, address)?;
                let pods: BTreeSet<_> = answers.iter().map(|answer| answer.pod.as_str()).collect();
                ensure!(pods == BTreeSet::from(["web-n1", "web-n2"]), "{answers:?}");
                ensure!(answers.iter().all(|answer| !answer.keeps_the_client()), "{answers:?}");
                Ok(())
            })?;
        }

        // Policy Local: only the pod of the node that announces, and the client's own address.
        let policy = json!({ "spec": { "externalTrafficPolicy": "Local" } }).to_string();
        cluster.kubectl(&["patch", "service", "web", "--namespace=shop", "-p", &policy])?;
        for address in &addresses {
            let owner = local_owner(stage, address, &["n1", "n2"])?;
            // The owner's only pod goes away: the other node must take over.
            let index = stage.nodes.iter().position(|node| node.name() == owner);
            let (pod, _) = &backends[index.context("the owner is one of the nodes")?];
            pod.set_ready(cluster, Readiness::NotReady)?;
            let other = if owner == "n1" { "n2" } else { "n1" };
            local_owner(stage, address, &[other])?;
            pod.set_ready(cluster, Readiness::Ready)?;
        }

        // Before the next step: an API server that has just started refuses everything for a moment.
        refused_nothing(lab)?;

        // Without the API server: what is announced stays announced, also to who asks anew.
        stage.cluster.kill_apiserver();
        for address in &addresses {
            stage.client.ip(&format!("neighbour flush to {address}"))?;
            sample(&stage.client, address).context("while the API server is away")?;
        }
        stage.cluster.restart_apiserver()?;
        let cluster = &stage.cluster;

        // The Service goes: nobody answers for its addresses any more.
        let probe = ["arping", "-c", "1", "-w", "1", "-I", "eth0", addresses[0].as_str()];
        stage.client.run(&probe)?;
        cluster.kubectl(&["delete", "service", "web", "--namespace=shop"])?;
        wait_for("nobody answers for the address", LIMIT, || match stage.client.run(&probe) {
            Ok(answer) => bail!("{answer}"),
            Err(_) => Ok(()),
        })
    });
}

#[test]
fn ingress_controller_behind_a_berth_address() {
    on_stage(|lab, stage| {
        let cluster = &stage.cluster;
        let _berth = Berth::install(lab, cluster, &mut stage.nodes)?;
        cluster.apply(POOL)?;
        cluster.apply(INGRESS)?;
        let name = |name, labels| PodSpec { namespace: "ingress", name, labels, ports: &[] };
        let [first, second] = &mut stage.nodes;
        let _red = Pod::run_backend(lab, cluster, first, name("red-pod", &[("app", "red")]))?;
        let _blue = Pod::run_backend(lab, cluster, second, name("blue-pod", &[("app", "blue")]))?;
        let pod = Pod::run(lab, cluster, second, name("skipper", &[("app", "skipper")]))?;
        let mut skipper = start_skipper(lab, cluster, &pod)?;
        for address in external_addresses(cluster, "ingress", "skipper")? {
            for color in ["red", "blue"] {
                let url = format!("http://{}/{color}", in_url(&address));
                wait_for(&format!("the {color} backend answers at {url}"), LIMIT, || {
                    skipper.check_running()?;
                    let answer = fetch(&stage.client, &url)?;
                    ensure!(answer.starts_with(&format!("{color}-pod ")), answer);
                    Ok(())
                })?;
            }
        }
        refused_nothing(lab)
    });
}

/// The same checks hold on the API server that is built into Berth, in a test of the workspace.
#[test]
fn api_behaviour_of_the_real_server() {
    in_lab(|lab| {
        let cluster = ControlPlane::start(lab)?;
        let namespace = cluster.segment().namespace();
        let mut suite = namespace.command(env!("CARGO_BIN_EXE_api-suite"));
        suite.env("KUBECONFIG", cluster.kubeconfig());
        let mut suite = namespace.spawn("api-suite", suite)?;
        let end =
            wait_for("the suite has ended", SUITE_LIMIT, || suite.ended()?.context("it has not"))?;
        ensure!(end.success(), "{}", suite.log_tail(100));
        Ok(())
    });
}

/// A control plane with two nodes, and a client on their network.
struct Stage {
    cluster: ControlPlane,
    nodes: [Node; 2],
    client: Namespace,
}

impl Stage {
    fn build(lab: &Lab) -> Result<Self> {
        let cluster = ControlPlane::start(lab)?;
        let nodes = [Node::join(lab, &cluster, 1)?, Node::join(lab, &cluster, 2)?];
        let client = lab.namespace("client")?;
        let [v4, v6] = CLIENT;
        cluster.segment().plug(End {
            namespace: &client,
            device: "eth0",
            mac: None,
            addresses: &[&format!("{v4}/24"), &format!("{v6}/64")],
        })?;
        Ok(Self { cluster, nodes, client })
    }
}

/// Runs a test on a new stage.
fn on_stage(test: impl FnOnce(&Lab, &mut Stage) -> Result<()>) {
    in_lab(|lab| test(lab, &mut Stage::build(lab)?));
}

/// The two programs as `deploy/install.yaml` describes them: a controller in a pod of the first
/// node, and a speaker on each.
struct Berth {
    _controller: Controller,
    _speakers: Vec<Process>,
}

impl Berth {
    fn install(lab: &Lab, cluster: &ControlPlane, nodes: &mut [Node]) -> Result<Self> {
        let programs = built()?;
        install(cluster)?;
        let mut controller = Controller::start(lab, cluster, &mut nodes[0], &programs)?;
        // The Secret that the speakers share is the controller's work.
        let secret = wait_for("the memberlist Secret", LIMIT, || {
            controller.check_running()?;
            let path = "--output=go-template={{.data.secretkey | base64decode}}";
            cluster.kubectl(&["get", "secret", "memberlist", "--namespace=metallb-system", path])
        })?;
        let mount = lab.directory().join("memberlist");
        fs::create_dir_all(&mount)?;
        fs::write(mount.join("secretkey"), secret)?;
        let speaker = Workload::of(cluster, "daemonset", "speaker", &programs)?;
        let mut _speakers = Vec::new();
        for node in nodes {
            let pod = format!("speaker-{}", node.name());
            let place = Place { pod: &pod, node: node.name(), address: &node.address() };
            let command = speaker.command(lab, cluster, node.namespace(), place)?;
            _speakers.push(node.namespace().spawn("berth-speaker", command)?);
        }
        Ok(Self { _controller: controller, _speakers })
    }
}

fn start_skipper(lab: &Lab, cluster: &ControlPlane, pod: &Pod) -> Result<Process> {
    let token = lab.directory().join("skipper.token");
    fs::write(&token, cluster.token("ingress", "skipper")?)?;
    let mut command = pod.namespace().command(build("skipper")?);
    command
        .args(["-kubernetes", "-enable-kubernetes-endpointslices", "-address=:9090"])
        .arg(format!("-kubernetes-url={}", cluster.url()))
        .arg(format!("-kubernetes-token-file={}", token.display()))
        .args(["-kubernetes-https-redirect=false", "-source-poll-timeout=200"])
        // Outside a cluster it trusts what Go programs trust.
        .env("SSL_CERT_FILE", cluster.certificate());
    let mut process = pod.namespace().spawn("skipper", command)?;
    let health = format!("http://{}:9090/kube-system/healthz", pod.address());
    wait_for("Skipper has its routes", LIMIT, || {
        process.check_running()?;
        fetch(pod.namespace(), &health)
    })?;
    pod.set_ready(cluster, Readiness::Ready)?;
    Ok(process)
}

/// What a backend answered.
#[derive(Debug)]
struct Answer {
    pod: String,
    client: String,
}

impl Answer {
    fn keeps_the_client(&self) -> bool {
        CLIENT.contains(&self.client.as_str())
    }
}

/// Enough requests to meet both of two backends: 30 misses in a row do not happen.
fn sample(client: &Namespace, address: &str) -> Result<Vec<Answer>> {
    let request = |_| {
        let body = fetch(client, &format!("http://{}/", in_url(address)))?;
        let (pod, client) = body.split_once(' ').with_context(|| body.clone())?;
        Ok(Answer { pod: pod.to_owned(), client: client.to_owned() })
    };
    (0..30).map(request).collect()
}

/// With `externalTrafficPolicy: Local`: waits until all answers come from the pod of one of the
/// `allowed` nodes, keep the client's address, and that node is the one that the client sends to.
fn local_owner(stage: &Stage, address: &str, allowed: &[&str]) -> Result<String> {
    wait_for(&format!("one of {allowed:?} alone serves {address}"), LIMIT, || {
        let answers = sample(&stage.client, address)?;
        let pods: BTreeSet<_> = answers.iter().map(|answer| answer.pod.clone()).collect();
        ensure!(answers.iter().all(Answer::keeps_the_client), "{answers:?}");
        let neighbour = stage.client.run(&["ip", "neighbour", "show", "to", address])?;
        let owners = stage.nodes.iter().filter(|node| neighbour.contains(&node.mac()));
        let owners: Vec<_> = owners.map(Node::name).collect();
        let [owner] = owners[..] else { bail!("{neighbour}") };
        ensure!(allowed.contains(&owner), "{owner} has {address}");
        ensure!(pods == BTreeSet::from([format!("web-{owner}")]), "{owner} has it: {answers:?}");
        Ok(owner.to_owned())
    })
}

fn in_url(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}
