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

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    net::{IpAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Once, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use apiserver::{ApiServer, Options};
use netlab::{End, Lab, Namespace, Process, Switch, wait_for};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Runtime;

use crate::programs::built;

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
    let mut stage = Stage::build().unwrap();
    stage.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    match stage.start_speakers().and_then(|()| test(&mut stage)) {
        Ok(()) => stage.close().unwrap(),
        Err(error) => panic!("{error:#}\n{}", stage.lab.log_tails(15)),
    }
}

impl Stage {
    fn build() -> Result<Self> {
        // Without root, the whole test program starts again in here, in a user namespace.
        static ROOT: Once = Once::new();
        ROOT.call_once(|| netlab::reexec_in_user_namespace().unwrap());
        let program = speaker()?;
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

/// An entry of a kernel's neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// `None` while it is being asked for, or nobody answered.
    pub mac: Option<String>,
    /// NUD state, such as `REACHABLE`.
    pub state: String,
}

/// What a host knows of an address on the segment.
///
/// # Errors
/// When it has no entry.
pub fn neighbour(host: &Namespace, address: &str) -> Result<Neighbour> {
    let entry = host.run(&["ip", "neighbour", "show", "to", address, "dev", DEVICE])?;
    let words: Vec<_> = entry.split_whitespace().collect();
    let mac = words.iter().position(|word| *word == "lladdr").and_then(|at| words.get(at + 1));
    let state = words.last().with_context(|| format!("there is no entry for {address}"))?;
    Ok(Neighbour { mac: mac.map(|mac| (*mac).to_owned()), state: (*state).to_owned() })
}

/// The answers to an `arping` with these arguments, by MAC address; its exit code is not looked at.
///
/// # Errors
/// When it cannot be started.
pub fn arping(host: &Namespace, arguments: &str) -> Result<BTreeSet<String>> {
    let mut command = host.command("arping");
    let output = command.args(["-I", DEVICE]).args(arguments.split_whitespace()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let bracketed = text.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    Ok(bracketed.map(str::to_ascii_lowercase).collect())
}

/// Echo requests to an address, one every 5 ms as far as the kernel's clock is that fine.
#[derive(Debug)]
pub struct Pings {
    process: Process,
}

/// What became of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answers {
    /// Echo requests up to the last that was answered.
    pub sent: usize,
    /// Those among them that were not answered.
    pub lost: usize,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

impl Pings {
    /// Starts, and waits for the first answers.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn start(host: &Namespace, address: &str) -> Result<Self> {
        let mut command = host.command("ping");
        // Bounded, should nobody end it.
        command.args(["-D", "-n", "-i", "0.005", "-w", "60", address]);
        let process = host.spawn(&format!("ping-{}", address.replace(':', "-")), command)?;
        let this = Self { process };
        this.wait_for_more()?;
        Ok(this)
    }

    /// Waits until some fifty more were answered.
    ///
    /// # Errors
    /// When they are not.
    pub fn wait_for_more(&self) -> Result<()> {
        let before = self.arrivals()?.len();
        wait_for("pings are answered", LIMIT, || {
            let now = self.arrivals()?.len();
            ensure!(now >= before + 50, "{before} answers, then {now}");
            Ok(())
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn stop(self) -> Result<Answers> {
        let arrivals = self.arrivals()?;
        let sent = arrivals.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let answered: BTreeSet<_> = arrivals.iter().map(|(number, _)| *number).collect();
        let mut times: Vec<_> = arrivals.iter().map(|(_, at)| *at).collect();
        times.sort_by(f64::total_cmp);
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        // Another of the same name starts with an empty log.
        let log = self.process.log().to_owned();
        self.process.kill();
        fs::remove_file(log)?;
        let longest_gap = Duration::from_secs_f64(longest);
        Ok(Answers { sent, lost: sent - answered.len(), longest_gap })
    }

    /// The number of each request that was answered, and when, in seconds.
    fn arrivals(&self) -> Result<Vec<(usize, f64)>> {
        let text = fs::read_to_string(self.process.log())?;
        let arrival = |line: &str| {
            let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
            let number = rest.split_once("bytes from")?.1.split_once("icmp_seq=")?.1;
            let number = number.split_whitespace().next()?;
            Some((number.parse().ok()?, time.parse().ok()?))
        };
        Ok(text.lines().filter_map(arrival).collect())
    }
}

/// Hears what is said on the segment about who has which address.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    listener: JoinHandle<Vec<(Instant, Heard)>>,
}

/// One of the frames that Linux learns from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The Ethernet header's addresses.
    pub source: String,
    /// See `source`.
    pub destination: String,
    /// The address in question.
    pub address: IpAddr,
    /// The MAC address that it is said to have.
    pub mac: String,
    /// How it is said.
    pub form: Form,
}

/// The forms of such frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An ARP request of a station for its own address (RFC 5227 section 3).
    GratuitousRequest,
    /// An ARP reply, asked for or not.
    Reply,
    /// A neighbour advertisement with the option that names the MAC address (RFC 4861 section 4.4).
    Advertisement {
        /// Somebody had asked.
        solicited: bool,
        /// What the hearer knew before is to be replaced.
        overriding: bool,
    },
}

impl Capture {
    /// Hears from when this returns on.
    ///
    /// # Errors
    /// When the kernel gives no packet socket.
    pub fn start(host: &Namespace) -> Result<Self> {
        let mut socket = host.inside(|| {
            // ETH_P_ALL of packet(7), in network byte order.
            let all = Protocol::from(i32::from(3_u16.to_be()));
            Ok(Socket::new(Domain::PACKET, Type::RAW, Some(all))?)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let listener = std::thread::spawn(move || {
            let (mut heard, mut frame) = (Vec::new(), [0; 2048]);
            loop {
                match socket.read(&mut frame) {
                    Ok(length) => {
                        let now = Instant::now();
                        heard.extend(Heard::in_frame(&frame[..length]).map(|heard| (now, heard)));
                    }
                    // Nothing more has come by the end.
                    Err(_) if stopped.load(Ordering::Relaxed) => return heard,
                    Err(_) => {}
                }
            }
        });
        Ok(Self { stop, listener })
    }

    /// Ends it; what was heard, in order.
    pub fn stop(self) -> Vec<Heard> {
        self.stop_and_time().into_iter().map(|(_, heard)| heard).collect()
    }

    /// As [`stop`](Self::stop), with the times.
    pub fn stop_and_time(self) -> Vec<(Instant, Heard)> {
        self.stop.store(true, Ordering::Relaxed);
        self.listener.join().unwrap()
    }
}

impl Heard {
    pub(crate) fn in_frame(frame: &[u8]) -> Option<Self> {
        let mac = |at: usize| {
            let octets = frame.get(at..at + 6)?.iter();
            Some(octets.map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":"))
        };
        let octet = |at: usize| frame.get(at).copied();
        let v4 = |at: usize| Some(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?.into());
        let (address, named, form) = match frame.get(12..14)? {
            // RFC 826: operation at 20, sender's MAC at 22 and IP at 28, target's IP at 38.
            [0x08, 0x06] => match octet(21)? {
                1 if v4(28)? == v4(38)? => (v4(28)?, mac(22)?, Form::GratuitousRequest),
                2 => (v4(28)?, mac(22)?, Form::Reply),
                _ => return None,
            },
            // ICMPv6 type 136, flags, target, and the option of type 2 and length 1.
            [0x86, 0xdd]
                if octet(20)? == 58 && octet(54)? == 136 && frame.get(78..80)? == [2, 1] =>
            {
                let target = <[u8; 16]>::try_from(frame.get(62..78)?).ok()?;
                let flags = octet(58)?;
                let (solicited, overriding) = (flags & 0x40 != 0, flags & 0x20 != 0);
                (target.into(), mac(80)?, Form::Advertisement { solicited, overriding })
            }
            _ => return None,
        };
        Some(Self { source: mac(6)?, destination: mac(0)?, address, mac: named, form })
    }
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

/// A routing daemon in the router's namespace, with a passive session to each node.
#[derive(Debug)]
pub struct Router {
    kind: RouterKind,
    namespace: Namespace,
    folder: PathBuf,
    processes: Vec<Process>,
}

/// Which daemon it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterKind {
    /// BIRD 2.
    Bird,
    /// zebra and bgpd of FRRouting.
    Frr,
}

/// Whom the router's sessions are for.
#[derive(Debug, Clone, Copy)]
pub struct RouterConfig<'a> {
    /// The router's own AS number.
    pub asn: u32,
    /// That of the nodes.
    pub node_asn: u32,
    /// TCP MD5, on all sessions.
    pub password: Option<&'a str>,
}

/// Debian's place for FRR's daemons, which are on nobody's PATH.
const FRR: &str = "/usr/lib/frr";

impl Router {
    /// Starts it on a stage.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(stage: &Stage, kind: RouterKind, config: RouterConfig<'_>) -> Result<Self> {
        let folder = stage.directory().join("router");
        fs::create_dir(&folder)?;
        match kind {
            RouterKind::Bird => fs::write(folder.join("bird.conf"), bird_configuration(config))?,
            RouterKind::Frr => {
                fs::write(folder.join("zebra.conf"), "")?;
                fs::write(folder.join("bgpd.conf"), frr_configuration(config))?;
                // The daemons give up root for a user of their own.
                let owned = Command::new("chown").args(["-R", "frr:"]).arg(&folder).status()?;
                ensure!(owned.success(), "giving {} to the user frr", folder.display());
            }
        }
        let namespace = stage.router.clone();
        // Flows to one address are to spread, and a route with one next hop is no multipath.
        namespace.sysctl("net.ipv4.fib_multipath_hash_policy", 1)?;
        let mut this = Self { kind, namespace, folder, processes: Vec::new() };
        this.run()?;
        Ok(this)
    }

    /// Whether FRR is installed and may run: zebra insists on users of its own.
    pub fn has_frr() -> bool {
        let owner = Command::new("chown").args(["frr:", "/proc/self/nothing"]).output();
        // "No such file" is what a chown that knows the user and may use it says.
        let user = owner.is_ok_and(|out| !String::from_utf8_lossy(&out.stderr).contains("invalid"));
        let all_ids = fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| map.split_whitespace().last().is_some_and(|count| count != "1"));
        user && all_ids && ["zebra", "bgpd"].iter().all(|name| Path::new(FRR).join(name).exists())
    }

    /// Ends it in order, so that it takes its routes out of the kernel, and starts it again.
    ///
    /// # Errors
    /// When it does not end or not start.
    pub fn restart(&mut self) -> Result<()> {
        for process in self.processes.drain(..).rev() {
            process.stop()?;
        }
        self.run()
    }

    /// What it says about something, in its own language.
    ///
    /// # Errors
    /// When it does not understand, or does not answer.
    pub fn ask(&self, question: &str) -> Result<String> {
        let folder = self.folder.to_string_lossy();
        match self.kind {
            RouterKind::Bird => {
                let mut program =
                    vec!["birdc".to_owned(), "-s".to_owned(), format!("{folder}/ctl")];
                program.extend(question.split_whitespace().map(str::to_owned));
                self.namespace.run(&program)
            }
            RouterKind::Frr => {
                self.namespace.run(&["vtysh", "--vty_socket", &folder, "-c", question])
            }
        }
    }

    /// All that it has logged.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn log(&self) -> Result<String> {
        let logs = self.processes.iter().map(|process| fs::read_to_string(process.log()));
        Ok(logs.collect::<std::io::Result<Vec<_>>>()?.concat())
    }

    fn run(&mut self) -> Result<()> {
        let file = |name: &str| self.folder.join(name);
        match self.kind {
            RouterKind::Bird => {
                let mut command = self.namespace.command("bird");
                command.arg("-f").arg("-c").arg(file("bird.conf"));
                command.arg("-s").arg(file("ctl")).arg("-P").arg(file("pid"));
                self.processes.push(self.namespace.spawn("bird", command)?);
            }
            RouterKind::Frr => {
                for name in ["zebra", "bgpd"] {
                    let mut command = self.namespace.command(Path::new(FRR).join(name));
                    command.arg("-f").arg(file(&format!("{name}.conf")));
                    command.arg("-i").arg(file(&format!("{name}.pid")));
                    command.arg("-z").arg(file("zserv")).arg("--vty_socket").arg(&self.folder);
                    command.args(["--log", "stdout"]);
                    self.processes.push(self.namespace.spawn(name, command)?);
                    // Sessions that come before bgpd knows zebra's interfaces are reset, or wait
                    // for their next hops.
                    let question = match name {
                        "zebra" => "show ip route connected",
                        _ => "show bgp summary",
                    };
                    wait_for(&format!("{name} answers"), LIMIT, || {
                        let shown = self.ask(question)?;
                        ensure!(name == "bgpd" || shown.contains("10.0.0.0/24"), "{shown}");
                        Ok(())
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn bird_configuration(config: RouterConfig<'_>) -> String {
    let RouterConfig { asn, node_asn, password } = config;
    let password = password.map(|key| format!("password \"{key}\";")).unwrap_or_default();
    let mut text =
        "router id 10.0.0.1;\nlog stderr all;\nprotocol device { scan time 1; }\n".to_owned();
    for family in ["ipv4", "ipv6"] {
        text += &format!(
            "protocol kernel {{ merge paths on; {family} {{ import none; export all; }}; }}\n"
        );
    }
    for number in NODES {
        text += &format!(
            "protocol bgp n{number} {{\n\
             local 10.0.0.1 as {asn}; neighbor 10.0.0.1{number} as {node_asn};\n\
             direct; passive on; {password}\n\
             ipv4 {{ import all; export none; }}; ipv6 {{ import all; export none; }};\n}}\n"
        );
    }
    text
}

fn frr_configuration(config: RouterConfig<'_>) -> String {
    let RouterConfig { asn, node_asn, password } = config;
    let mut text = format!(
        "frr defaults datacenter\ndebug bgp neighbor-events\nrouter bgp {asn}\n bgp router-id 10.0.0.1\n \
         no bgp ebgp-requires-policy\n"
    );
    for number in NODES {
        let neighbor = format!(" neighbor 10.0.0.1{number}");
        text += &format!("{neighbor} remote-as {node_asn}\n{neighbor} passive\n");
        if let Some(password) = password {
            text += &format!("{neighbor} password {password}\n");
        }
    }
    for family in ["ipv4", "ipv6"] {
        text += &format!(" address-family {family} unicast\n  maximum-paths 16\n");
        for number in NODES {
            text += &format!("  neighbor 10.0.0.1{number} activate\n");
        }
        text += " exit-address-family\n";
    }
    text
}
