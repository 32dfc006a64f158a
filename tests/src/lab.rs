//! The real speaker on the real kernel: three nodes with a speaker each on one Ethernet segment, a
//! client and a router beside them, and the embedded API server behind a network of its own, so
//! that what is done to the segment does not cut the speakers off from it.
//!
//! ```text
//!  client 10.0.0.100 fd00:a::64 --+-- router 10.0.0.1 fd00:a::1
//!                                 |
//!                       lan: n1 .11, n2 .12, n3 .13          eth0
//!                            |      |      |                 mgmt0
//!                management: 10.9.0.11 ...  +-- API server 10.9.0.1
//! ```
//!
//! There is no controller: tests write `Service.status` themselves. There is no kube-proxy: a node
//! holds the addresses that are announced on its loopback device, where its kernel answers pings
//! for them and nobody's ARP or NDP.

mod far;
mod neighbours;
mod pings;
mod router;
mod wiretap;

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{Once, OnceLock},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use apiserver::{ApiServer, Options};
use netlab::{End, Lab, Namespace, Process, Switch, wait_for};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::programs::built;

pub use far::{FAR, FAR_POOL, announce_far, peer_spec, wait_for_announcers, wait_for_routes};
pub use neighbours::{Capture, Form, Heard, Neighbour, arping, neighbour};
pub use pings::{Answers, Pings};
pub use router::{Dialling, Route, Router, RouterConfig, RouterKind, Transport};
pub use wiretap::Wiretap;

/// For whatever happens by itself; most of it takes well under a second on an idle machine.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Where the custom resources are.
pub const NAMESPACE: &str = "metallb-system";
/// The device of every host on the segment.
pub const DEVICE: &str = "eth0";

const API: &str = "10.9.0.1:6443";
const NODES: [u8; 3] = [1, 2, 3];
const METRICS: &str = "http://127.0.0.1:9120/metrics";

/// Everything that a test plays with.
#[derive(Debug)]
pub struct Stage {
    /// The API, spoken to in process.
    pub api: ApiServer,
    /// A host on the segment that knows nothing of Berth.
    pub client: Namespace,
    /// A host on the segment that forwards.
    pub router: Namespace,
    /// In the order of their numbers.
    pub nodes: Vec<Node>,
    /// The segment.
    pub lan: Switch,
    program: PathBuf,
    /// For the speakers, beside those that they need.
    flags: Vec<String>,
    /// Serves the API; ends with the stage.
    _runtime: Runtime,
    lab: Lab,
}

/// A machine with a speaker.
#[derive(Debug)]
pub struct Node {
    pub(crate) number: u8,
    /// Its network.
    pub namespace: Namespace,
    /// `None` until it is started and after it was killed.
    pub speaker: Option<Process>,
}

/// `spec.externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Every node announces.
    Cluster,
    /// Nodes with an endpoint announce.
    Local,
}

/// Runs a test on a stage of its own with all speakers up. When it fails, says so with the ends of
/// all logs.
pub fn on_stage(test: impl FnOnce(&mut Stage) -> Result<()>) {
    on_stage_with(&[], test);
}

/// As [`on_stage`], with more flags for the speakers.
pub fn on_stage_with(flags: &[&str], test: impl FnOnce(&mut Stage) -> Result<()>) {
    let mut stage = Stage::build(speaker).unwrap();
    stage.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    match stage.start_speakers().and_then(|()| test(&mut stage)) {
        Ok(()) => stage.close().unwrap(),
        Err(error) => panic!("{error:#}\n{}", stage.lab.log_tails(15)),
    }
}

/// Runs a measurement on a stage of its own with a given program, of which none runs yet.
///
/// # Errors
/// Those of the measurement, with the ends of all logs.
pub fn on_stage_of<T>(
    program: PathBuf,
    measure: impl FnOnce(&mut Stage) -> Result<T>,
) -> Result<T> {
    let mut stage = Stage::build(|| Ok(program))?;
    match measure(&mut stage) {
        Ok(value) => stage.close().map(|()| value),
        Err(error) => anyhow::bail!("{error:#}\n{}", stage.lab.log_tails(6)),
    }
}

impl Stage {
    fn build(program: impl FnOnce() -> Result<PathBuf>) -> Result<Self> {
        // Without root, the whole test program starts again in here, in a user namespace.
        static ROOT: Once = Once::new();
        ROOT.call_once(|| netlab::reexec_in_user_namespace().unwrap());
        let program = program()?;
        let lab = Lab::new()?;
        let (lan, management) = (lab.switch("lan")?, lab.switch("mgmt")?);
        management.namespace().add_addresses("br0", &["10.9.0.1/24"])?;
        let (client, router) = (lab.namespace("client")?, lab.namespace("router")?);
        let host = |namespace, addresses| {
            lan.plug(End { namespace, device: DEVICE, mac: None, addresses })
        };
        host(&client, &["10.0.0.100/24", "fd00:a::64/64"])?;
        host(&router, &["10.0.0.1/24", "fd00:a::1/64"])?;
        router.forward()?;

        let (api, runtime) = (ApiServer::new(Options::default()), Runtime::new()?);
        serve(&api, &runtime, management.namespace(), lab.directory())?;
        let mut nodes = Vec::new();
        for number in NODES {
            let node =
                Node { number, namespace: lab.namespace(&node_name(number))?, speaker: None };
            node.connect(&lan, &management)?;
            api.apply(&node.object())?;
            nodes.push(node);
        }
        for node in &nodes {
            node.set_key(lab.directory(), "the key of this laboratory")?;
        }
        Ok(Self {
            api,
            client,
            router,
            nodes,
            lan,
            program,
            flags: Vec::new(),
            _runtime: runtime,
            lab,
        })
    }

    fn close(self) -> Result<()> {
        drop(self.nodes);
        self.lab.close()
    }

    /// Where logs and configuration go.
    pub fn directory(&self) -> &Path {
        self.lab.directory()
    }

    /// One more host on the segment, without addresses.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn stranger(&self, name: &str) -> Result<Namespace> {
        let namespace = self.lab.namespace(name)?;
        self.lan.plug(End { namespace: &namespace, device: DEVICE, mac: None, addresses: &[] })?;
        Ok(namespace)
    }

    /// Starts the speakers that do not run and waits until all of them hear each other.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_speakers(&mut self) -> Result<()> {
        for number in NODES {
            self.start_speaker(number)?;
        }
        let others = format!("berth_speaker_live_peers {}", self.nodes.len() - 1);
        for node in &mut self.nodes {
            let name = node_name(node.number);
            wait_for(&format!("the speaker of {name} hears the others"), LIMIT, || {
                node.speaker.as_mut().context("it was started")?.check_running()?;
                let metrics = node.namespace.run(&["curl", "-fsS", "-m", "2", METRICS])?;
                ensure!(metrics.contains(&others), "{metrics}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Starts the speaker of a node, if it does not run, and waits for nothing.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn start_speaker(&mut self, number: u8) -> Result<()> {
        let directory = self.lab.directory();
        let node = &mut self.nodes[usize::from(number) - 1];
        if node.speaker.is_none() {
            let mut speaker = node.speaker_command(&self.program, directory);
            speaker.args(&self.flags);
            node.speaker = Some(node.namespace.spawn("speaker", speaker)?);
        }
        Ok(())
    }

    /// The sum of a speaker's metrics of this name, whatever their labels.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metric(&self, number: u8, name: &str) -> Result<f64> {
        let node = &self.nodes[usize::from(number) - 1];
        let text = node.namespace.run(&["curl", "-fsS", "-m", "2", METRICS])?;
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let values = text.lines().filter(of_name).filter_map(|line| line.rsplit(' ').next());
        Ok(values.filter_map(|value| value.parse::<f64>().ok()).sum())
    }

    /// [`metric`](Self::metric) of all speakers together.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn nodes_metric(&self, name: &str) -> Result<f64> {
        NODES.into_iter().map(|number| self.metric(number, name)).sum()
    }

    /// Lets the switch filter what it passes on, by a ruleset of nftables for a chain of the hook
    /// `forward` of family `bridge`; an empty one takes all filters away.
    ///
    /// # Errors
    /// When nft does not understand it.
    pub fn filter(&self, rules: &str) -> Result<()> {
        filter(&self.lan, rules)
    }

    /// Sets or takes away an annotation of a Node.
    ///
    /// # Errors
    /// When it is refused.
    pub fn annotate(&self, number: u8, annotation: &str, value: Option<&str>) -> Result<()> {
        let mut object = self.nodes[usize::from(number) - 1].object();
        object["metadata"]["annotations"] = json!({ annotation: value });
        self.apply(&object)
    }

    /// The speakers that should run do.
    ///
    /// # Errors
    /// The log of the one that does not.
    pub fn check_speakers(&mut self) -> Result<()> {
        self.nodes
            .iter_mut()
            .filter_map(|node| node.speaker.as_mut())
            .try_for_each(|speaker| speaker.check_running())
    }

    /// The node of this name's number.
    pub fn node(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    /// Creates or changes an object, its status too.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.api.apply(object).with_context(|| {
            format!("applying {} {}", object["kind"], object["metadata"]["name"])
        })?;
        Ok(())
    }

    /// A pool named like its advertisement of `kind`.
    ///
    /// # Errors
    /// When they are refused.
    pub fn announce(&self, pool: &str, addresses: &[&str], kind: &str, spec: Value) -> Result<()> {
        self.apply(&custom("IPAddressPool", pool, json!({ "addresses": addresses })))?;
        let mut spec = spec;
        spec["ipAddressPools"] = json!([pool]);
        self.apply(&custom(kind, pool, spec))
    }

    /// A Service that has these addresses already, an endpoint on each of `endpoints`, and the
    /// addresses on every node's loopback device.
    ///
    /// # Errors
    /// When it is refused.
    pub fn expose(
        &self,
        name: &str,
        addresses: &[&str],
        policy: Policy,
        endpoints: &[u8],
    ) -> Result<()> {
        self.set_endpoints(name, endpoints)?;
        let ingress: Vec<_> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        let policy = match policy {
            Policy::Cluster => "Cluster",
            Policy::Local => "Local",
        };
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "type": "LoadBalancer", "ipFamilyPolicy": "PreferDualStack",
                "externalTrafficPolicy": policy, "selector": {"app": name},
                "ports": [{"port": 80, "protocol": "TCP"}],
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        }))?;
        for (node, address) in
            self.nodes.iter().flat_map(|node| addresses.iter().map(move |a| (node, a)))
        {
            let family = if address.contains(':') { "-6" } else { "-4" };
            let bits = if address.contains(':') { 128 } else { 32 };
            node.namespace.ip(&format!("{family} address replace {address}/{bits} dev lo"))?;
        }
        Ok(())
    }

    /// The nodes with a ready endpoint of a Service; none is a slice without any.
    ///
    /// # Errors
    /// When it is refused.
    pub fn set_endpoints(&self, service: &str, nodes: &[u8]) -> Result<()> {
        let endpoint = |number: &u8| {
            json!({
                "addresses": [format!("10.244.{number}.2")], "nodeName": node_name(*number),
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        };
        let endpoints: Vec<_> = nodes.iter().map(endpoint).collect();
        self.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": service, "namespace": "default",
                         "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        }))
    }

    /// The end of a Service and of its endpoints.
    ///
    /// # Errors
    /// When there is none.
    pub fn unexpose(&self, name: &str) -> Result<()> {
        self.api.delete("v1", "Service", "default", name)?;
        self.api.delete("discovery.k8s.io/v1", "EndpointSlice", "default", name)?;
        Ok(())
    }

    /// The nodes that say of a Service, in a ServiceL2Status or ServiceBGPStatus, that they
    /// announce it.
    ///
    /// # Errors
    /// When there is no such kind.
    pub fn announcers(&self, kind: &str, service: &str) -> Result<BTreeSet<String>> {
        let objects = self.api.list("metallb.io/v1beta1", kind, Some(NAMESPACE))?;
        let statuses = objects.iter().map(|object| &object["status"]);
        let of_service = statuses.filter(|status| status["serviceName"] == service);
        Ok(of_service.filter_map(|status| status["node"].as_str().map(str::to_owned)).collect())
    }

    /// The node that the client's kernel finds behind an address when it asks anew.
    ///
    /// # Errors
    /// When nobody answers, or none of the nodes does.
    pub fn owner(&self, address: &str) -> Result<u8> {
        self.client.ip(&format!("neighbour flush to {address} dev {DEVICE}"))?;
        self.client.run(&["ping", "-n", "-c", "1", "-W", "1", address])?;
        let mac = neighbour(&self.client, address)?.mac.context("it has no MAC address")?;
        let number = NODES.into_iter().find(|number| node_mac(*number) == mac);
        number.with_context(|| format!("{mac} is behind {address}"))
    }

    /// Waits until somebody answers for an address whom `wanted` takes.
    ///
    /// # Errors
    /// When nobody does in time.
    pub fn wait_for_owner(&self, address: &str, wanted: impl Fn(u8) -> bool) -> Result<u8> {
        wait_for(&format!("the right node answers for {address}"), LIMIT, || {
            let owner = self.owner(address)?;
            ensure!(wanted(owner), "n{owner} does");
            Ok(owner)
        })
    }

    /// The death of a node as its neighbours see it: the link goes, then the speaker.
    ///
    /// # Errors
    /// When the link cannot be cut.
    pub fn kill_node(&mut self, number: u8) -> Result<()> {
        let lan = self.lan.clone();
        let node = self.node(number);
        lan.unplug(node.end())?;
        drop(node.speaker.take());
        Ok(())
    }

    /// The end of [`kill_node`](Self::kill_node).
    ///
    /// # Errors
    /// When the speaker does not start.
    pub fn revive_node(&mut self, number: u8) -> Result<()> {
        let lan = self.lan.clone();
        lan.replug(self.node(number).end())?;
        self.start_speakers()
    }
}

impl Node {
    /// Its name here and in Kubernetes.
    pub fn name(&self) -> String {
        node_name(self.number)
    }

    /// Its addresses on the segment.
    pub fn addresses(&self) -> [String; 2] {
        [format!("10.0.0.1{}/24", self.number), format!("fd00:a::1{}/64", self.number)]
    }

    /// The key that its heartbeats are sealed with, from now on or from the start.
    ///
    /// # Errors
    /// When it cannot be written into the laboratory's folder.
    pub fn set_key(&self, directory: &Path, key: &str) -> Result<()> {
        let folder = self.key_directory(directory);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("secretkey"), key).context("writing a key")
    }

    fn key_directory(&self, directory: &Path) -> PathBuf {
        directory.join(format!("key-{}", self.name()))
    }

    /// SIGTERM; waits for the end.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop_speaker(&mut self) -> Result<()> {
        let speaker = self.speaker.take().context("the speaker runs")?;
        let status = speaker.stop()?;
        ensure!(status.success(), "the speaker of {}: {status}", self.name());
        Ok(())
    }

    /// The plug at the segment.
    pub(crate) fn end(&self) -> End<'_> {
        End { namespace: &self.namespace, device: DEVICE, mac: None, addresses: &[] }
    }

    pub(crate) fn connect(&self, lan: &Switch, management: &Switch) -> Result<()> {
        let addresses = self.addresses();
        lan.plug(End {
            mac: Some(&node_mac(self.number)),
            addresses: &addresses.each_ref().map(String::as_str),
            ..self.end()
        })?;
        management.plug(End {
            device: "mgmt0",
            addresses: &[&format!("10.9.0.1{}/24", self.number)],
            ..self.end()
        })?;
        // As every load balancer wants it: addresses on other devices are not the kernel's to
        // answer for or to ask from.
        self.namespace.sysctl("net.ipv4.conf.all.arp_ignore", 1)?;
        self.namespace.sysctl("net.ipv4.conf.all.arp_announce", 2)
    }

    pub(crate) fn object(&self) -> Value {
        let name = self.name();
        let addresses = self.addresses();
        let addresses: Vec<_> = addresses
            .iter()
            .filter_map(|network| network.split('/').next())
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"addresses": addresses,
                       "conditions": [{"type": "Ready", "status": "True"}]},
        })
    }

    /// What its speaker remembers over a restart.
    pub(crate) fn run_directory(&self, directory: &Path) -> PathBuf {
        directory.join(format!("run-{}", self.name()))
    }

    pub(crate) fn speaker_command(&self, program: &Path, directory: &Path) -> Command {
        let mut command = self.namespace.command(program);
        // The user's proxies do not exist in here.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.env("KUBECONFIG", directory.join("kubeconfig"));
        command.args(["--node-name", &self.name(), "--namespace", NAMESPACE]);
        command.args(["--ml-bindaddr", &format!("10.0.0.1{}", self.number)]);
        command.arg("--metrics-mode=plain");
        command.arg("--run-dir").arg(self.run_directory(directory));
        command.arg("--ml-secret-key-path").arg(self.key_directory(directory));
        command
    }
}

/// A custom resource of the newest version of its kind.
pub fn custom(kind: &str, name: &str, spec: Value) -> Value {
    let version = if kind == "BGPPeer" { "v1beta2" } else { "v1beta1" };
    json!({
        "apiVersion": format!("metallb.io/{version}"), "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
    })
}

/// The name of a node.
pub fn node_name(number: u8) -> String {
    format!("n{number}")
}

/// The MAC address of a node on the segment.
pub fn node_mac(number: u8) -> String {
    format!("02:00:00:00:01:{number:02x}")
}

/// The gateways that a host's kernel sends an address to.
///
/// # Errors
/// When its table cannot be read.
pub fn gateways(host: &Namespace, address: &str) -> Result<BTreeSet<IpAddr>> {
    let family = if address.contains(':') { "-6" } else { "-4" };
    let listing = host.run(&["ip", family, "route", "show", "exact", address])?;
    let words: Vec<_> = listing.split_whitespace().collect();
    // `via ADDRESS`, or `via inet6 ADDRESS` where the families differ.
    let vias = words.windows(3).filter(|window| window[0] == "via");
    Ok(vias.filter_map(|via| via[1].parse().or_else(|_| via[2].parse()).ok()).collect())
}

/// The addresses of some nodes in the family of `address`.
pub fn node_addresses(numbers: &[u8], address: &str) -> BTreeSet<IpAddr> {
    let prefix = if address.contains(':') { "fd00:a::1" } else { "10.0.0.1" };
    numbers.iter().filter_map(|number| format!("{prefix}{number}").parse().ok()).collect()
}

/// See [`Stage::filter`].
pub(crate) fn filter(lan: &Switch, rules: &str) -> Result<()> {
    let script = format!(
        "table bridge lab {{}}\ndelete table bridge lab\ntable bridge lab {{ chain pass {{ \
         type filter hook forward priority 0; {rules}\n}}\n}}\n"
    );
    lan.namespace().run_with_input(&["nft", "-f", "-"], &script).map(drop)
}

/// Puts the API behind a socket in the management network, and writes a kubeconfig for it.
pub(crate) fn serve(
    api: &ApiServer,
    runtime: &Runtime,
    namespace: &Namespace,
    folder: &Path,
) -> Result<()> {
    let listener = namespace.inside(|| Ok(TcpListener::bind(API)?))?;
    listener.set_nonblocking(true)?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let api = api.clone();
    runtime.spawn(async move { api.serve(listener, std::future::pending()).await });
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": format!("http://{API}")}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
    });
    fs::write(folder.join("kubeconfig"), kubeconfig.to_string()).context("writing a kubeconfig")
}

/// `berth-speaker` as the sources were when the first test began.
fn speaker() -> Result<PathBuf> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    match PROGRAM.get() {
        Some(program) => Ok(program.clone()),
        None => {
            let program = built()?.join("berth-speaker");
            Ok(PROGRAM.get_or_init(|| program).clone())
        }
    }
}
