//! A node with the speaker's BFD engine and a router with somebody else's, for the lab tests of BFD.
//!
//! ```text
//!  neighbours:  node 10.0.0.11 fd00:a::11 ---------------------- 10.0.0.1 fd00:a::1 router
//!  a hop apart: node 10.1.0.11 fd00:b::11 --- a forwarding host --- 10.2.0.1 fd00:c::1 router
//! ```
//!
//! The engine runs in the test itself, on its thread inside the node's namespace: it needs neither an
//! API server nor a BGP session.

use std::{
    fs,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ::bfd::State;
use anyhow::{Context, Result, ensure};
use config::{BfdAuthentication, BfdProfile, Password};
use crds::BFDAuthenticationType;
use netlab::{End, Lab, Namespace, Process, connect, wait_for};
use socket2::{Domain, Protocol, Socket, Type};
use speaker::io::{
    bfd::{Bfd, BfdSpec, BfdStatus},
    metrics::bfd::BfdMetrics,
};
use tokio::sync::watch;

use crate::lab::{DEVICE, LIMIT};

/// Debian's place for FRR's daemons, which are on nobody's PATH.
const FRR: &str = "/usr/lib/frr";

/// The two hosts and what is between them.
#[derive(Debug)]
pub struct Stage {
    /// Where our engine runs.
    pub node: Namespace,
    /// Where the other one runs.
    pub router: Namespace,
    lab: Lab,
}

/// What is between node and router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// A cable.
    Cable,
    /// A host that forwards.
    Hop,
}

/// Runs a test on a stage of its own. When it fails, says so with the ends of all logs.
pub fn on_stage(distance: Distance, test: impl FnOnce(&Stage) -> Result<()>) {
    let stage = Stage::build(distance).unwrap();
    match test(&stage) {
        Ok(()) => stage.lab.close().unwrap(),
        Err(error) => panic!("{error:#}\n{}", stage.lab.log_tails(25)),
    }
}

impl Stage {
    /// The link-local address of the node's device.
    pub const NODE: &str = "fe80::ff:fe00:b";
    /// That of the router's.
    pub const ROUTER: &str = "fe80::ff:fe00:1";

    fn build(distance: Distance) -> Result<Self> {
        // Without root, the whole test program starts again in here, in a user namespace.
        static ROOT: Once = Once::new();
        ROOT.call_once(|| netlab::reexec_in_user_namespace().unwrap());
        let lab = Lab::new()?;
        let (node, router) = (lab.namespace("node")?, lab.namespace("router")?);
        let end = |namespace, mac, addresses| End {
            namespace,
            device: DEVICE,
            mac: Some(mac),
            addresses,
        };
        let (of_node, of_router) = ("02:00:00:00:00:0b", "02:00:00:00:00:01");
        match distance {
            Distance::Cable => connect(
                end(&node, of_node, &["10.0.0.11/24", "fd00:a::11/64"]),
                end(&router, of_router, &["10.0.0.1/24", "fd00:a::1/64"]),
            )?,
            Distance::Hop => {
                let between = lab.namespace("between")?;
                between.forward()?;
                let side =
                    |device, addresses| End { namespace: &between, device, mac: None, addresses };
                connect(
                    end(&node, of_node, &["10.1.0.11/24", "fd00:b::11/64"]),
                    side("left", &["10.1.0.254/24", "fd00:b::254/64"]),
                )?;
                connect(
                    side("right", &["10.2.0.254/24", "fd00:c::254/64"]),
                    end(&router, of_router, &["10.2.0.1/24", "fd00:c::1/64"]),
                )?;
                for (host, gateways) in [
                    (&node, ["10.1.0.254", "fd00:b::254"]),
                    (&router, ["10.2.0.254", "fd00:c::254"]),
                ] {
                    for gateway in gateways {
                        host.add_route("default", gateway)?;
                    }
                }
            }
        }
        Ok(Self { node, router, lab })
    }

    /// Our engine on a host.
    ///
    /// # Errors
    /// When it does not start.
    pub fn engine(host: &Namespace) -> Result<Bfd> {
        host.inside(|| Ok(Bfd::start(Arc::new(BfdMetrics::default()))?))
    }

    /// BIRD on the router, with this in its `protocol bfd`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn bird(&self, lines: &str) -> Result<Daemon> {
        let folder = self.lab.directory().join("bird");
        fs::create_dir_all(&folder)?;
        let mut daemon =
            Daemon { host: self.router.clone(), folder, asks: "birdc", processes: Vec::new() };
        daemon.write_bird(lines)?;
        let mut command = self.router.command("bird");
        command.arg("-f").arg("-c").arg(daemon.folder.join("bird.conf"));
        command.arg("-s").arg(daemon.folder.join("ctl"));
        command.arg("-P").arg(daemon.folder.join("pid"));
        daemon.spawn("bird", command, "show status")?;
        Ok(daemon)
    }

    /// FRR's bfdd on the router, with this under `bfd`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn frr(&self, lines: &str) -> Result<Daemon> {
        let folder = self.lab.directory().join("frr");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("zebra.conf"), "")?;
        fs::write(folder.join("bfdd.conf"), format!("bfd\n{lines}\n"))?;
        let owned = Command::new("chown").args(["-R", "frr:"]).arg(&folder).status()?;
        ensure!(owned.success(), "giving {} to the user frr", folder.display());
        let mut daemon =
            Daemon { host: self.router.clone(), folder, asks: "vtysh", processes: Vec::new() };
        for (name, question) in
            [("zebra", "show ip route connected"), ("bfdd", "show bfd peers json")]
        {
            let file = |extension: &str| daemon.folder.join(format!("{name}.{extension}"));
            let mut command = self.router.command(Path::new(FRR).join(name));
            command.arg("-f").arg(file("conf")).arg("-i").arg(file("pid"));
            command.arg("-z").arg(daemon.folder.join("zserv"));
            command.arg("--vty_socket").arg(&daemon.folder).args(["--log", "stdout"]);
            if name == "bfdd" {
                command.arg("--bfdctl").arg(daemon.folder.join("control"));
            }
            daemon.spawn(name, command, question)?;
        }
        Ok(daemon)
    }

    /// Loses this share of the BFD packets that reach a host.
    ///
    /// # Errors
    /// When nft does not understand it.
    pub fn lose(&self, host: &Namespace, percent: u8) -> Result<()> {
        let rule = format!("udp dport {{ 3784, 4784 }} numgen random mod 100 < {percent} drop");
        let script = format!(
            "table inet lab {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}\n"
        );
        host.run_with_input(&["nft", "-f", "-"], &script).map(drop)
    }
}

/// A routing daemon with its BFD.
#[derive(Debug)]
pub struct Daemon {
    host: Namespace,
    folder: PathBuf,
    /// The program that asks it.
    asks: &'static str,
    processes: Vec<Process>,
}

impl Daemon {
    fn spawn(&mut self, name: &str, command: Command, question: &str) -> Result<()> {
        let mut process = self.host.spawn(name, command)?;
        wait_for(&format!("{name} answers"), LIMIT, || {
            process.check_running()?;
            self.ask(&[question])
        })?;
        self.processes.push(process);
        Ok(())
    }

    fn write_bird(&self, lines: &str) -> Result<()> {
        let text = format!(
            "router id 10.0.0.1;\nlog stderr all;\nprotocol device {{ scan time 1; }}\n\
             protocol bfd {{\n{lines}\n}}\n"
        );
        fs::write(self.folder.join("bird.conf"), text).context("writing bird.conf")
    }

    /// Lets BIRD run with this from now on.
    ///
    /// # Errors
    /// When it does not like it.
    pub fn reconfigure_bird(&self, lines: &str) -> Result<()> {
        self.write_bird(lines)?;
        let answer = self.ask(&["configure"])?;
        ensure!(answer.contains("Reconfigur"), "{answer}");
        Ok(())
    }

    /// What it says to some commands in its own language.
    ///
    /// # Errors
    /// When it does not understand, or does not answer.
    pub fn ask(&self, commands: &[&str]) -> Result<String> {
        let mut words = vec![self.asks.to_owned()];
        if self.asks == "birdc" {
            words.extend(["-s".to_owned(), self.folder.join("ctl").display().to_string()]);
            let commands = commands.iter().flat_map(|command| command.split_whitespace());
            words.extend(commands.map(str::to_owned));
        } else {
            words.extend(["--vty_socket".to_owned(), self.folder.display().to_string()]);
            let commands = commands.iter().flat_map(|command| ["-c", command]);
            words.extend(commands.map(str::to_owned));
        }
        self.host.run(&words)
    }

    /// The name and version of the program that speaks BFD.
    ///
    /// # Errors
    /// When it does not say.
    pub fn version(&self) -> Result<String> {
        if self.asks == "birdc" {
            let answer = self.ask(&["show status"])?;
            return Ok(answer.split(" ready").next().unwrap_or_default().to_owned());
        }
        let answer = self.ask(&["show version"])?;
        Ok(answer.split(" (").next().unwrap_or_default().trim().to_owned())
    }

    /// SIGKILL.
    pub fn kill(self) {
        drop(self.processes);
    }
}

/// Whether FRR is installed and may run.
pub fn has_frr() -> bool {
    let there = crate::lab::RouterKind::Frr.is_available() && Path::new(FRR).join("bfdd").exists();
    if !there {
        println!("FRR's bfdd is not here, or may not run: the part with it is missing");
    }
    there
}

/// Some milliseconds in both directions.
pub fn profile(milliseconds: u64, multiplier: u8) -> BfdProfile {
    BfdProfile {
        name: "lab".to_owned(),
        receive_interval: Duration::from_millis(milliseconds),
        transmit_interval: Duration::from_millis(milliseconds),
        detect_multiplier: multiplier,
        echo_interval: Duration::from_millis(50),
        echo_mode: false,
        passive_mode: false,
        minimum_ttl: 254,
        authentication: None,
    }
}

/// A key with ID 1.
pub fn authentication(kind: BFDAuthenticationType, key: &str) -> Option<BfdAuthentication> {
    Some(BfdAuthentication { kind, key_id: 1, key: Password(key.to_owned()) })
}

/// A session with a neighbour at 100 ms x 3, named by its address.
pub fn spec(remote: &str) -> BfdSpec {
    let address: IpAddr = remote.parse().expect("an address");
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    BfdSpec {
        peer: remote.into(),
        remote: address,
        local: None,
        interface: link_local.then(|| DEVICE.to_owned()),
        vrf: None,
        multihop: false,
        profile: profile(100, 3),
    }
}

/// Waits until a session is as wanted.
///
/// # Errors
/// How it is, when it is not in time.
pub fn wait_until(
    what: &str,
    session: &watch::Receiver<BfdStatus>,
    wanted: impl Fn(&BfdStatus) -> bool,
) -> Result<BfdStatus> {
    wait_for(what, LIMIT, || {
        let status = session.borrow().clone();
        ensure!(wanted(&status), "{status:?}");
        Ok(status)
    })
}

/// Waits until a session is Up.
///
/// # Errors
/// As [`wait_until`].
pub fn wait_until_up(session: &watch::Receiver<BfdStatus>) -> Result<BfdStatus> {
    wait_until("the session is Up", session, |status| status.state == State::Up)
}

/// Hears the BFD packets that reach a host or leave it.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    listener: JoinHandle<Vec<Sighting>>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// When.
    pub at: Instant,
    /// Where it is from.
    pub source: IpAddr,
    /// Its TTL or hop limit.
    pub hops: u8,
    /// Its TOS octet or traffic class.
    pub class: u8,
    /// Its UDP ports.
    pub ports: (u16, u16),
    /// The BFD packet.
    pub payload: Vec<u8>,
}

impl Tap {
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
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let listener = std::thread::spawn(move || {
            let (mut seen, mut frame) = (Vec::new(), [0; 2048]);
            loop {
                match socket.read(&mut frame) {
                    Ok(length) => seen.extend(Sighting::in_frame(&frame[..length])),
                    // Nothing more has come by the end.
                    Err(_) if stopped.load(Ordering::Relaxed) => return seen,
                    Err(_) => {}
                }
            }
        });
        Ok(Self { stop, listener })
    }

    /// Ends it; what was heard from a host, in order.
    ///
    /// # Panics
    /// When the thread that listens has.
    pub fn stop(self, source: &str) -> Vec<Sighting> {
        self.stop.store(true, Ordering::Relaxed);
        let source: IpAddr = source.parse().expect("an address");
        let mut all = self.listener.join().expect("it only collects");
        all.retain(|sighting| sighting.source == source);
        all
    }
}

impl Sighting {
    fn in_frame(frame: &[u8]) -> Option<Self> {
        let at = Instant::now();
        let (source, hops, class, udp) = match frame.get(12..14)? {
            // RFC 791 without options: TOS at 1, TTL at 8, protocol at 9, source at 12.
            [0x08, 0x00] if frame.get(14) == Some(&0x45) && frame.get(23) == Some(&17) => {
                let source = <[u8; 4]>::try_from(frame.get(26..30)?).ok()?;
                (source.into(), *frame.get(22)?, *frame.get(15)?, frame.get(34..)?)
            }
            // RFC 8200: class across 0 and 1, next header at 6, hop limit at 7, source at 8.
            [0x86, 0xdd] if frame.get(20) == Some(&17) => {
                let source = <[u8; 16]>::try_from(frame.get(22..38)?).ok()?;
                let class = frame.get(14)? << 4 | frame.get(15)? >> 4;
                (source.into(), *frame.get(21)?, class, frame.get(54..)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
        let ports = (port(0)?, port(2)?);
        let payload = udp.get(8..usize::from(port(4)?))?.to_vec();
        let bfd = [3784, 4784].contains(&ports.1);
        bfd.then_some(Self { at, source, hops, class, ports, payload })
    }
}
