//! The laboratory of the layer 2 benchmark: the nodes of [`lab`](crate::lab) in any number, with as
//! many Services as wanted, clients near and far, and the faults that can be done to them.
//!
//! ```text
//!  far 10.1.0.2 -- router .1 --+-- client 10.0.0.100, beside 10.0.0.101
//!                              |
//!                    lan: n1 .11, n2 .12 ...                eth0
//!                         |     |                           mgmt0
//!             management: 10.9.0.11 ...  +-- API server 10.9.0.1
//! ```
//!
//! Nodes reach addresses in two ways: what comes for port [`DIRECT`] is taken by a program on the
//! node, for [`TRANSLATED`] the node translates to an address of its own, as kube-proxy does.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use apiserver::{ApiServer, Options};
use netlab::{End, Lab, Namespace, Process, Switch, connect, wait_for};
use serde_json::{Value, json};
use speaker::io::packet::Tap;
use tokio::runtime::Runtime;

use super::{
    asker::{Asker, tap},
    frames::{Announcement, Announcements, Frames, Moment},
    probe::Echo,
    step,
};
use crate::lab::{DEVICE, Node, custom, filter, node_name, serve};

/// UDP port that a program on the node answers at each address.
pub const DIRECT: u16 = 7777;
/// UDP port that leads on to an address of the node.
pub const TRANSLATED: u16 = 7778;
/// Where that leads to.
const BACKEND: u16 = 7779;
const BACKEND_SOCKETS: usize = 16;
/// Of heartbeats.
pub const HEARTBEATS: u16 = 7946;

/// Addresses of Services count from here.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const ALL: &str = "198.18.0.0/15";
const METRICS: &str = "http://127.0.0.1:9120/metrics";
/// What nobody answered by then, nobody answers.
const ANSWERS: Duration = Duration::from_millis(150);
/// For tens of thousands of objects to be listed, and thousands of addresses to come to rest, with
/// their gratuitous frames paced.
const REST: Duration = Duration::from_secs(180);

/// How a segment is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// At most 9.
    pub nodes: u8,
    /// Further flags of the speakers.
    pub flags: Vec<&'static str>,
    /// Services with an address that is announced.
    pub announced: usize,
    /// Services with an address that no advertisement selects, after those.
    pub silent: usize,
    /// EndpointSlices of each Service that is announced, with one endpoint each.
    pub slices: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self { nodes: 3, flags: Vec::new(), announced: 12, silent: 0, slices: 1 }
    }
}

/// Everything that a measurement plays with.
#[derive(Debug)]
pub struct Segment {
    /// The API, spoken to in process.
    pub api: ApiServer,
    /// Two hosts on the segment.
    pub client: Namespace,
    /// See `client`.
    pub beside: Namespace,
    /// A host behind the router.
    pub far: Namespace,
    /// In the order of their numbers.
    pub nodes: Vec<Node>,
    /// The segment.
    pub lan: Switch,
    /// What the client hears.
    pub heard: Announcements,
    /// The addresses that are announced.
    pub addresses: Vec<Ipv4Addr>,
    plan: Plan,
    asker: Asker,
    echoes: Vec<Echo>,
    runtime: Runtime,
    lab: Lab,
}

/// Runs one measurement on a segment of its own.
///
/// # Errors
/// Those of the measurement, with the ends of all logs.
pub fn on_segment<T>(plan: &Plan, measure: impl FnOnce(&mut Segment) -> Result<T>) -> Result<T> {
    let mut segment = Segment::build(plan)?;
    match measure(&mut segment) {
        Ok(value) => {
            let overflows = segment.overflows()?;
            if overflows > 0 {
                step(&format!(
                    "the machine is too busy: {overflows} of the lost probes were dropped by the \
                     sockets of the benchmark itself"
                ));
            }
            segment.close().map(|()| value)
        }
        Err(error) => bail!("{error:#}\n{}", segment.lab.log_tails(6)),
    }
}

/// The folder of the programs under test: the variable `BERTH_PROGRAMS`, or where this one is.
///
/// # Errors
/// When there is no speaker in it.
pub fn programs() -> Result<PathBuf> {
    let own = env::current_exe()?.parent().context("a program lies in a folder")?.to_owned();
    let folder = env::var_os("BERTH_PROGRAMS").map_or(own, PathBuf::from);
    let speaker = folder.join("berth-speaker");
    ensure!(speaker.is_file(), "there is no {}: run `make build`", speaker.display());
    Ok(folder)
}

/// The address of Service number `index`.
pub fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + u32::try_from(index).unwrap_or(u32::MAX))
}

/// Where a probe goes.
pub fn at(addresses: &[Ipv4Addr], port: u16) -> Vec<SocketAddrV4> {
    addresses.iter().map(|address| SocketAddrV4::new(*address, port)).collect()
}

impl Segment {
    fn build(plan: &Plan) -> Result<Self> {
        let lab = Lab::new().context("network namespaces need root")?;
        let (lan, management) = (lab.switch("lan")?, lab.switch("mgmt")?);
        management.namespace().add_addresses("br0", &["10.9.0.1/24"])?;
        let (client, beside) = (lab.namespace("client")?, lab.namespace("beside")?);
        let (router, far) = (lab.namespace("router")?, lab.namespace("far")?);
        for (host, address) in
            [(&client, "10.0.0.100/24"), (&beside, "10.0.0.101/24"), (&router, "10.0.0.1/24")]
        {
            let addresses = &[address];
            lan.plug(End { namespace: host, device: DEVICE, mac: None, addresses })?;
            host.ip(&format!("route add {ALL} dev {DEVICE}"))?;
        }
        connect(
            End { namespace: &router, device: "far0", mac: None, addresses: &["10.1.0.1/24"] },
            End { namespace: &far, device: DEVICE, mac: None, addresses: &["10.1.0.2/24"] },
        )?;
        router.forward()?;
        far.add_route("default", "10.1.0.1")?;

        let api = ApiServer::new(Options {
            service_networks: vec!["10.96.0.0/12".parse()?],
            ..Options::default()
        });
        let runtime = Runtime::new()?;
        serve(&api, &runtime, management.namespace(), lab.directory())?;
        fs::create_dir(lab.directory().join("key"))?;
        fs::write(lab.directory().join("key/secretkey"), "the key of this laboratory")?;
        let mut nodes = Vec::new();
        for number in 1..=plan.nodes {
            let namespace = lab.namespace(&node_name(number))?;
            let node = Node { number, namespace, speaker: None };
            node.connect(&lan, &management)?;
            node.namespace.add_route("default", "10.0.0.1")?;
            node.namespace.ip(&format!("route add local {ALL} dev lo"))?;
            let translation = format!(
                "table ip translation {{ chain prerouting {{ type nat hook prerouting priority \
                 dstnat; ip daddr {ALL} udp dport {TRANSLATED} redirect to :{BACKEND}; }}; }}"
            );
            node.namespace.run_with_input(&["nft", "-f", "-"], &translation)?;
            api.apply(&node.object())?;
            nodes.push(node);
        }
        let heard = Announcements::start(&client, lab.directory().join("heard.pcap"))?;
        let asker = Asker::new(&client)?;
        let addresses = (0..plan.announced).map(address).collect();
        let (plan, echoes) = (plan.clone(), Vec::new());
        let this = Self {
            api,
            client,
            beside,
            far,
            nodes,
            lan,
            heard,
            addresses,
            plan,
            asker,
            echoes,
            runtime,
            lab,
        };
        this.fill()?;
        Ok(this)
    }

    fn close(self) -> Result<()> {
        drop((self.nodes, self.heard, self.echoes));
        self.runtime.shutdown_background();
        self.lab.close()
    }

    /// Where logs and captures go.
    pub fn directory(&self) -> PathBuf {
        self.lab.directory().to_owned()
    }

    /// A runtime for what is watched in process.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Datagrams that came faster than whoever they were for read them: the probers, and what
    /// answers them. Heartbeats would be counted as well.
    fn overflows(&self) -> Result<u64> {
        let hosts = [&self.client, &self.beside, &self.far].into_iter();
        let mut overflows = 0;
        for host in hosts.chain(self.nodes.iter().map(|node| &node.namespace)) {
            let text = host.run(&["cat", "/proc/net/snmp"])?;
            let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
            let (names, values) = (lines.next().unwrap_or_default(), lines.next());
            let mut both = names.split(' ').zip(values.unwrap_or_default().split(' '));
            let value = both.find(|(name, _)| *name == "RcvbufErrors");
            overflows += value.context("UDP is counted")?.1.parse::<u64>()?;
        }
        Ok(overflows)
    }

    fn fill(&self) -> Result<()> {
        let Plan { announced, silent, slices, .. } = self.plan;
        let last = |count: usize| address(count.max(1) - 1);
        let room = last(announced + 1000);
        let range = format!("{FIRST}-{room}");
        self.api.apply(&custom("IPAddressPool", "loud", json!({ "addresses": [range] })))?;
        let spec = json!({ "ipAddressPools": ["loud"], "interfaces": [DEVICE] });
        self.api.apply(&custom("L2Advertisement", "loud", spec))?;
        if silent > 0 {
            let begin = Ipv4Addr::from(u32::from(room) + 1);
            let range = format!("{begin}-{}", last(announced + 1000 + silent));
            self.api.apply(&custom("IPAddressPool", "quiet", json!({ "addresses": [range] })))?;
        }
        for index in 0..announced + silent {
            let name = service_name(index);
            let (place, slices) =
                if index < announced { (index, slices) } else { (index + 1000, 0) };
            for slice in 0..slices {
                self.api.apply(&endpoint_slice(&name, slice, self.plan.nodes))?;
            }
            self.api.apply(&service(&name, address(place)))?;
        }
        Ok(())
    }

    /// One more Service with an endpoint, without an address yet; what gives it the next address
    /// when it is applied, and that address.
    ///
    /// # Errors
    /// When it is refused.
    pub fn one_more(&mut self) -> Result<(Value, Ipv4Addr)> {
        let next = self.addresses.len();
        let (name, address) = (format!("more-{next:05}"), address(next));
        self.addresses.push(address);
        self.api.apply(&endpoint_slice(&name, 0, self.plan.nodes))?;
        let whole = service(&name, address);
        let mut pending = whole.clone();
        pending["status"] = Value::Null;
        self.api.apply(&pending)?;
        Ok((whole, address))
    }

    /// Lets all nodes answer probes to these addresses, and to none of an earlier call.
    ///
    /// # Errors
    /// When a socket cannot be bound.
    pub fn serve_probes(&mut self, addresses: &[Ipv4Addr]) -> Result<()> {
        self.echoes.clear();
        for node in &self.nodes {
            let own = Ipv4Addr::new(10, 0, 0, 10 + node.number);
            let backend = SocketAddrV4::new(own, BACKEND);
            let backends = std::iter::repeat_n(backend, BACKEND_SOCKETS);
            let sockets = at(addresses, DIRECT).into_iter().chain(backends);
            self.echoes.push(Echo::start(&node.namespace, node.number, sockets)?);
        }
        Ok(())
    }

    /// Starts one speaker, without waiting for it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_speaker(&mut self, number: u8) -> Result<()> {
        let (program, directory) = (programs()?.join("berth-speaker"), self.directory());
        let node = &mut self.nodes[usize::from(number) - 1];
        let mut command = node.speaker_command(&program, &directory);
        command.args(&self.plan.flags);
        node.speaker = Some(node.namespace.spawn("speaker", command)?);
        Ok(())
    }

    /// Starts the speakers that do not run, and waits until all of them hear each other and each
    /// address has one owner.
    ///
    /// # Errors
    /// When that does not come to be.
    pub fn start_speakers(&mut self) -> Result<BTreeMap<Ipv4Addr, u8>> {
        for number in 1..=self.plan.nodes {
            if self.node(number).speaker.is_none() {
                self.start_speaker(number)?;
            }
        }
        self.at_rest()
    }

    /// Forgets what a speaker that does not run has kept.
    ///
    /// # Errors
    /// When its folder cannot be removed.
    pub fn forget(&self, number: u8) -> Result<()> {
        let folder = self.nodes[usize::from(number) - 1].run_directory(self.lab.directory());
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The node of this number.
    pub fn node(&mut self, number: u8) -> &mut Node {
        &mut self.nodes[usize::from(number) - 1]
    }

    /// The speaker of a node.
    ///
    /// # Errors
    /// When none was started.
    pub fn speaker(&self, number: u8) -> Result<&Process> {
        let node = &self.nodes[usize::from(number) - 1];
        node.speaker.as_ref().with_context(|| format!("{} has a speaker", node.name()))
    }

    /// All speakers that were started.
    pub fn speakers(&self) -> impl Iterator<Item = &Process> {
        self.nodes.iter().filter_map(|node| node.speaker.as_ref())
    }

    /// What a speaker says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self, number: u8) -> Result<String> {
        let node = &self.nodes[usize::from(number) - 1];
        node.namespace.run(&["curl", "-fsS", "-m", "2", METRICS])
    }

    /// Waits until all speakers that run hear each other.
    ///
    /// # Errors
    /// When one has ended, or they do not.
    pub fn all_hear(&mut self) -> Result<()> {
        let running: Vec<_> =
            self.nodes.iter().filter(|node| node.speaker.is_some()).map(|n| n.number).collect();
        let others = format!("berth_speaker_live_peers {}", running.len().saturating_sub(1));
        for number in running {
            wait_for(&format!("the speaker of n{number} hears the others"), REST, || {
                let speaker = self.node(number).speaker.as_mut();
                speaker.context("it was started")?.check_running()?;
                ensure!(self.metrics(number)?.contains(&others), "it does not");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits until all speakers hear each other, nobody announces anything any more for half a
    /// second, and each address has one owner; returns those.
    ///
    /// # Errors
    /// When that does not come to be.
    pub fn at_rest(&mut self) -> Result<BTreeMap<Ipv4Addr, u8>> {
        self.all_hear()?;
        let all = self.addresses.clone();
        wait_for("each address has one owner", REST, || self.owners(&all))?;
        self.wait_for_silence(Duration::from_millis(500))?;
        self.owners(&all)
    }

    /// Waits until nothing is announced to all for so long.
    ///
    /// # Errors
    /// When that does not come to be.
    pub fn wait_for_silence(&mut self, time: Duration) -> Result<()> {
        let deadline = Instant::now() + REST;
        loop {
            let begin = Moment::now();
            std::thread::sleep(time);
            if !self.heard.since(begin)?.iter().any(|heard| heard.gratuitous) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "gratuitous frames without an end");
        }
    }

    /// The one owner of each of these addresses.
    ///
    /// # Errors
    /// When one has none, or several.
    pub fn owners(&mut self, addresses: &[Ipv4Addr]) -> Result<BTreeMap<Ipv4Addr, u8>> {
        let (mut owners, mut wrong) = (BTreeMap::new(), Vec::new());
        for (address, answerers) in self.answerers(addresses)? {
            match *answerers.iter().collect::<Vec<_>>() {
                [owner] => drop(owners.insert(address, *owner)),
                _ => wrong.push(format!("{address}: {answerers:?}")),
            }
        }
        let some: Vec<_> = wrong.iter().take(3).cloned().collect();
        ensure!(wrong.is_empty(), "{} without one owner: {}", wrong.len(), some.join(", "));
        Ok(owners)
    }

    /// Asks for each of these addresses once: who answers.
    ///
    /// # Errors
    /// When the questions cannot be sent.
    pub fn answerers(
        &mut self,
        addresses: &[Ipv4Addr],
    ) -> Result<BTreeMap<Ipv4Addr, BTreeSet<u8>>> {
        let begin = Moment::now();
        self.ask(addresses)?;
        std::thread::sleep(ANSWERS);
        let mut found: BTreeMap<_, BTreeSet<u8>> =
            addresses.iter().map(|address| (*address, BTreeSet::new())).collect();
        for heard in self.heard.since(begin)?.iter().filter(|heard| !heard.gratuitous) {
            found.entry(heard.address).or_default().insert(heard.node);
        }
        Ok(found)
    }

    /// Asks for each of these addresses once, from the client, as one that nobody has seen before.
    ///
    /// # Errors
    /// When a question cannot be sent.
    pub fn ask(&mut self, addresses: &[Ipv4Addr]) -> Result<()> {
        self.asker.ask(addresses)
    }

    /// Pulls a node's plug on the segment: carrier goes on both sides.
    ///
    /// # Errors
    /// When the link cannot be cut.
    pub fn cut(&mut self, number: u8) -> Result<()> {
        let lan = self.lan.clone();
        lan.unplug(self.node(number).end())
    }

    /// The end of [`cut`](Self::cut).
    ///
    /// # Errors
    /// When the link does not come up.
    pub fn uncut(&mut self, number: u8) -> Result<()> {
        let lan = self.lan.clone();
        lan.replug(self.node(number).end())
    }

    /// As [`Stage::filter`](crate::lab::Stage::filter).
    ///
    /// # Errors
    /// When nft does not understand it.
    pub fn filter(&self, rules: &str) -> Result<()> {
        filter(&self.lan, rules)
    }

    /// Captures at a node or host.
    ///
    /// # Errors
    /// As [`Frames::start`].
    pub fn capture(&self, host: &Namespace, name: &str, filter: &str) -> Result<Frames> {
        Frames::start(host, DEVICE, filter, self.lab.directory().join(format!("{name}.pcap")))
    }

    /// One more host on the segment, without an address, that can send frames.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn stranger(&self, name: &str) -> Result<Tap> {
        let namespace = self.lab.namespace(name)?;
        self.lan.plug(End { namespace: &namespace, device: DEVICE, mac: None, addresses: &[] })?;
        tap(&namespace)
    }

    /// Who has most of the addresses, and which.
    pub fn busiest(owners: &BTreeMap<Ipv4Addr, u8>) -> (u8, Vec<Ipv4Addr>) {
        let mut by_node: BTreeMap<u8, Vec<Ipv4Addr>> = BTreeMap::new();
        for (address, node) in owners {
            by_node.entry(*node).or_default().push(*address);
        }
        by_node.into_iter().max_by_key(|(_, addresses)| addresses.len()).unwrap_or_default()
    }
}

/// How often an address was announced by another node than the time before, given who had it at
/// first.
pub fn moves(owners: &BTreeMap<Ipv4Addr, u8>, heard: &[Announcement]) -> usize {
    let (mut now, mut moves) = (owners.clone(), 0);
    for heard in heard.iter().filter(|heard| heard.gratuitous) {
        if now.insert(heard.address, heard.node).is_some_and(|before| before != heard.node) {
            moves += 1;
        }
    }
    moves
}

fn service_name(index: usize) -> String {
    format!("service-{index:06}")
}

fn service(name: &str, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "selector": {"app": name},
            "allocateLoadBalancerNodePorts": false,
            "ports": [{"port": DIRECT, "protocol": "UDP"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": address}]}},
    })
}

fn endpoint_slice(service: &str, number: usize, nodes: u8) -> Value {
    let node = u8::try_from(number % usize::from(nodes)).unwrap_or_default() + 1;
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-{number}"), "namespace": "default",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [format!("10.244.{node}.2")], "nodeName": node_name(node),
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }],
        "ports": [{"name": "", "port": BACKEND, "protocol": "UDP"}],
    })
}
