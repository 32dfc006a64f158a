//! The stage: the demo's network, made of namespaces.
//!
//! ```text
//!  remote 10.1.0.2 --- router 10.0.0.1 ---+--- control 10.0.0.2   API server, controller-1
//!         fd00:b::2           fd00:a::1   +--- standby 10.0.0.3   controller-2
//!                                       br0 (lan)
//!  client 10.0.0.100 ---------------------+--- n1 .11  n2 .12  n3 .13   a speaker each
//!         fd00:a::64                           |       |
//!                                              web-1   web-2            HTTP backends, in pods' places
//! ```
//!
//! The nodes stand in for machines, the namespaces behind them for pods. What a node lacks here: a kubelet, a CNI
//! plug-in (static routes instead) and kube-proxy (see [`super::proxy`]).

use std::{
    ffi::OsStr,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use netlab::{End, Lab, Namespace, Process, Switch, connect};

use super::cluster::NAMESPACE;

/// The nodes and pods keep these numbers in their names and addresses.
pub const NODES: [u8; 3] = [1, 2, 3];
/// The nodes that have a backend.
pub const BACKENDS: [u8; 2] = [1, 2];
pub const BACKEND_PORT: u16 = 8080;
/// The controllers keep these numbers in their names.
pub const CONTROLLERS: [u8; 2] = [1, 2];
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

const DEVICE: &str = "eth0";
/// Where the binaries answer their probes.
const HEALTH_PORT: u16 = 17472;
const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Stage {
    pub client: Namespace,
    pub remote: Namespace,
    pub router: Namespace,
    pub control: Namespace,
    pub nodes: Vec<Node>,
    controllers: Vec<Controller>,
    /// What else runs beside the nodes: the router's daemons.
    pub others: Vec<Process>,
    lan: Switch,
    // Last: the namespaces end with it.
    lab: Lab,
}

/// One replica of the controller, in a namespace of its own or beside the API server.
#[derive(Debug)]
struct Controller {
    namespace: Namespace,
    process: Option<Process>,
}

#[derive(Debug)]
pub struct Node {
    pub number: u8,
    pub namespace: Namespace,
    /// In the namespace behind it, if it has one.
    pub backend: Option<Process>,
    pub speaker: Option<Process>,
}

impl Stage {
    /// Makes every namespace, link, address and route.
    ///
    /// # Errors
    /// When the kernel or one of the programs `ip` and `nft` refuses.
    pub fn build() -> anyhow::Result<Self> {
        let lab = Lab::new()?;
        let lan = lab.switch("lan")?;
        let client = lab.namespace("client")?;
        let remote = lab.namespace("remote")?;
        let router = lab.namespace("router")?;
        let control = lab.namespace("control")?;
        let standby = lab.namespace("standby")?;

        plug(&lan, &router, None, &["10.0.0.1/24", "fd00:a::1/64"])?;
        plug(&lan, &control, None, &["10.0.0.2/24", "fd00:a::2/64"])?;
        plug(&lan, &standby, None, &["10.0.0.3/24", "fd00:a::3/64"])?;
        plug(&lan, &client, None, &["10.0.0.100/24", "fd00:a::64/64"])?;
        router.forward()?;
        for parameter in
            ["net.ipv4.fib_multipath_hash_policy", "net.ipv6.fib_multipath_hash_policy"]
        {
            // By ports too, so that the connections of one client spread.
            router.sysctl(parameter, 1)?;
        }
        connect(
            End {
                namespace: &router,
                device: "eth1",
                mac: None,
                addresses: &["10.1.0.1/24", "fd00:b::1/64"],
            },
            End {
                namespace: &remote,
                device: DEVICE,
                mac: None,
                addresses: &["10.1.0.2/24", "fd00:b::2/64"],
            },
        )?;
        remote.add_route("default", "10.1.0.1")?;
        remote.add_route("default", "fd00:b::1")?;

        let mut nodes = Vec::new();
        for number in NODES {
            nodes.push(Node::build(&lab, &lan, number)?);
        }
        let controllers = [control.clone(), standby]
            .map(|namespace| Controller { namespace, process: None })
            .into();
        Ok(Self {
            client,
            remote,
            router,
            control,
            nodes,
            controllers,
            others: Vec::new(),
            lan,
            lab,
        })
    }

    /// Where logs and configuration go.
    pub fn directory(&self) -> &Path {
        self.lab.directory()
    }

    /// The number of namespaces.
    pub fn namespaces(&self) -> usize {
        6 + self.nodes.len() + BACKENDS.len()
    }

    /// The last lines of everybody's log, for a failure.
    pub fn log_tails(&self) -> String {
        let of_nodes = self.nodes.iter().flat_map(|node| node.speaker.iter().chain(&node.backend));
        let controllers = self.controllers.iter().filter_map(|one| one.process.as_ref());
        self.others
            .iter()
            .chain(controllers)
            .chain(of_nodes)
            .map(|process| process.log_tail(12))
            .collect()
    }

    /// The death of a node as its neighbours see it: the link goes, then every process.
    ///
    /// # Errors
    /// When the link cannot be cut.
    pub fn kill_node(&mut self, number: u8) -> anyhow::Result<()> {
        let node = &mut self.nodes[index(number)];
        self.lan.unplug(node.lan_end())?;
        drop(node.speaker.take());
        Ok(())
    }

    /// The node's link again; its speaker is for the caller to start.
    ///
    /// # Errors
    /// When the link cannot be brought up.
    pub fn revive_node(&self, number: u8) -> anyhow::Result<()> {
        self.lan.replug(self.nodes[index(number)].lan_end())
    }

    /// Starts the node's speaker.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_speaker(
        &mut self,
        number: u8,
        kubeconfig: &Path,
        key: &Path,
    ) -> anyhow::Result<()> {
        let node = &mut self.nodes[index(number)];
        let (v4, _) = node_addresses(number);
        let mut command = command(&node.namespace, sibling("berth-speaker")?);
        command.env("KUBECONFIG", kubeconfig);
        command.args(["--node-name", &node.name(), "--namespace", NAMESPACE]);
        command.args(["--ml-bindaddr", &v4.to_string(), "--log-level", "info"]);
        command.arg("--ml-secret-key-path").arg(key);
        command.arg("--run-dir").arg(self.lab.directory().join(format!("run-{}", node.name())));
        node.speaker = Some(node.namespace.spawn("speaker", command)?);
        Ok(())
    }

    /// Waits until the node's speaker says that it is ready.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn speaker_ready(&self, number: u8, limit: Duration) -> anyhow::Result<()> {
        let node = &self.nodes[index(number)];
        until_ready(&node.namespace, limit)
            .await
            .with_context(|| format!("the speaker of {} is not ready after {limit:?}", node.name()))
    }

    /// Starts one replica of the controller.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_controller(&mut self, number: u8, kubeconfig: &Path) -> anyhow::Result<()> {
        let name = controller_name(number);
        let controller = &mut self.controllers[index(number)];
        let mut command = command(&controller.namespace, sibling("berth-controller")?);
        command.env("KUBECONFIG", kubeconfig);
        command.args(["--namespace", NAMESPACE, "--pod-name", &name]);
        // The API server asks the webhook's rules itself.
        command.arg("--webhook-mode=disabled");
        command.args(["--ml-secret-name", "memberlist", "--log-level", "info"]);
        controller.process = Some(controller.namespace.spawn(&name, command)?);
        Ok(())
    }

    /// Waits until a controller says that it is ready, as leader or as standby.
    ///
    /// # Errors
    /// When it does not within `limit`.
    pub async fn controller_ready(&self, number: u8, limit: Duration) -> anyhow::Result<()> {
        let controller = &self.controllers[index(number)];
        until_ready(&controller.namespace, limit)
            .await
            .with_context(|| format!("{} is not ready after {limit:?}", controller_name(number)))
    }

    /// Without a word, as by `kill -9`.
    pub fn kill_controller(&mut self, number: u8) {
        drop(self.controllers[index(number)].process.take());
    }

    /// Ends everything.
    ///
    /// # Errors
    /// When something of it stays.
    pub fn close(self) -> anyhow::Result<()> {
        drop((self.nodes, self.controllers, self.others));
        self.lab.close()
    }
}

impl Node {
    fn build(lab: &Lab, lan: &Switch, number: u8) -> anyhow::Result<Self> {
        let namespace = lab.namespace(&node_name(number))?;
        let (v4, v6) = node_addresses(number);
        let mac = mac_text(node_mac(number));
        plug(lan, &namespace, Some(&mac), &[&format!("{v4}/24"), &format!("{v6}/64")])?;
        namespace.forward()?;
        namespace.add_route("default", &ROUTER.to_string())?;
        namespace.add_route("default", "fd00:a::1")?;

        let mut backend = None;
        if BACKENDS.contains(&number) {
            let pod = lab.namespace(&backend_name(number))?;
            let (pod_v4, pod_v6) = backend_addresses(number);
            let gateway_v4 = format!("10.244.{number}.1");
            let gateway_v6 = format!("fd44:0:0:{number}::1");
            connect(
                End {
                    namespace: &namespace,
                    device: "pod0",
                    mac: None,
                    addresses: &[&format!("{gateway_v4}/24"), &format!("{gateway_v6}/64")],
                },
                End {
                    namespace: &pod,
                    device: DEVICE,
                    mac: None,
                    addresses: &[&format!("{pod_v4}/24"), &format!("{pod_v6}/64")],
                },
            )?;
            pod.add_route("default", &gateway_v4)?;
            pod.add_route("default", &gateway_v6)?;
            let mut command = pod.command(std::env::current_exe()?);
            command.args(["backend", "--name", &backend_name(number)]);
            backend = Some(pod.spawn("backend", command)?);
        }
        for other in BACKENDS.into_iter().filter(|&other| other != number) {
            let (v4, v6) = node_addresses(other);
            namespace.add_route(&format!("10.244.{other}.0/24"), &v4.to_string())?;
            namespace.add_route(&format!("fd44:0:0:{other}::/64"), &v6.to_string())?;
        }
        Ok(Self { number, namespace, backend, speaker: None })
    }

    pub fn name(&self) -> String {
        node_name(self.number)
    }

    fn lan_end(&self) -> End<'_> {
        End { namespace: &self.namespace, device: DEVICE, mac: None, addresses: &[] }
    }
}

fn index(number: u8) -> usize {
    usize::from(number) - 1
}

async fn until_ready(namespace: &Namespace, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while let Err(error) = namespace.inside(is_ready) {
        if Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Asks the readiness probe of the namespace that this thread is in.
fn is_ready() -> anyhow::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, HEALTH_PORT))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    anyhow::ensure!(
        answer.starts_with("HTTP/1.1 200"),
        "/readyz: {}",
        answer.lines().next().unwrap_or_default()
    );
    Ok(())
}

pub fn node_name(number: u8) -> String {
    format!("n{number}")
}

pub fn controller_name(number: u8) -> String {
    format!("controller-{number}")
}

pub fn backend_name(number: u8) -> String {
    format!("web-{number}")
}

pub fn node_addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, 0x10 + u16::from(number));
    (Ipv4Addr::new(10, 0, 0, 10 + number), v6)
}

pub fn backend_addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd44, 0, 0, u16::from(number), 0, 0, 0, 2);
    (Ipv4Addr::new(10, 244, number, 2), v6)
}

/// The node whose network card has this address.
pub fn node_with_mac(mac: [u8; 6]) -> Option<u8> {
    NODES.into_iter().find(|&number| node_mac(number) == mac)
}

/// The node that has this address on the LAN.
pub fn node_with_address(address: IpAddr) -> Option<u8> {
    NODES.into_iter().find(|&number| {
        let (v4, v6) = node_addresses(number);
        address == v4 || address == v6
    })
}

fn node_mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, number]
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn plug(
    lan: &Switch,
    namespace: &Namespace,
    mac: Option<&str>,
    addresses: &[&str],
) -> anyhow::Result<()> {
    lan.plug(End { namespace, device: DEVICE, mac, addresses })
}

/// The binary of this name that lies beside this program.
///
/// # Errors
/// When there is none, with what to do about it.
pub fn sibling(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("finding this program")?;
    let path = here.with_file_name(name);
    anyhow::ensure!(
        path.is_file(),
        "{name} is not beside {}: build it with `make build` and run the `berth` of the same folder",
        here.display()
    );
    Ok(path)
}

/// A program in a namespace, with its environment free of the user's proxies, which do not exist in there.
pub fn command(namespace: &Namespace, program: impl AsRef<OsStr>) -> std::process::Command {
    let mut command = namespace.command(program);
    for variable in
        ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
    {
        command.env_remove(variable);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_by_its_mac_and_by_its_addresses() {
        for number in NODES {
            let (v4, v6) = node_addresses(number);
            assert_eq!(node_with_address(v4.into()), Some(number));
            assert_eq!(node_with_address(v6.into()), Some(number));
            assert_eq!(node_with_mac(node_mac(number)), Some(number));
        }
        assert_eq!(node_with_address(ROUTER.into()), None);
        assert_eq!(mac_text(node_mac(3)), "02:00:00:00:01:03");
    }
}
