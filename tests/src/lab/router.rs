//! A routing daemon beside the nodes: one way of starting five of them and of asking what they have.
//!
//! Each runs in the foreground inside the router's namespace and ends with its [`Router`]. What
//! differs from daemon to daemon is in a file of its own each; what they answer is brought into one
//! form here, [`Route`], so that a test asks all of them the same question.

mod bird;
mod exabgp;
mod frr;
mod gobgp;
mod openbgpd;

use std::{
    collections::BTreeSet,
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use netlab::{Namespace, Process, Signal, wait_for};
use serde_json::Value;

use crate::lab::{LIMIT, NODES, Stage};

/// A routing daemon in the router's namespace, with a session to each node.
#[derive(Debug)]
pub struct Router {
    daemon: Box<dyn Daemon>,
    site: Site,
    processes: Vec<Process>,
}

/// Which daemon it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterKind {
    /// BIRD 2.
    Bird,
    /// zebra and bgpd of FRRouting, and bfdd where it has something to do.
    Frr,
    /// GoBGP; its routes go into no kernel.
    GoBgp,
    /// ExaBGP, whose JSON is collected; its routes go into no kernel.
    ExaBgp,
    /// OpenBGPD's portable edition; its routes go into no kernel.
    OpenBgpd,
}

/// What a session's addresses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// 10.0.0.0/24.
    V4,
    /// fd00:a::/64.
    V6,
}

/// Who opens the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialling {
    /// The nodes, as they do unless told otherwise.
    Nodes,
    /// The router; it listens as well.
    Router,
}

/// Whom the router's sessions are for, and how. The lines are in the daemon's own language.
#[derive(Debug, Clone, Copy)]
pub struct RouterConfig<'a> {
    /// The router's own AS number.
    pub asn: u32,
    /// That of the nodes.
    pub node_asn: u32,
    /// TCP MD5, on all sessions.
    pub password: Option<&'a str>,
    /// One session to each node for each of them.
    pub transports: &'a [Transport],
    /// Who opens the connections.
    pub dialling: Dialling,
    /// For each neighbour.
    pub neighbour_lines: &'a [&'a str],
    /// For the daemon, or for its BGP instance where it has such a thing.
    pub lines: &'a [&'a str],
    /// For its network devices, where another program than that of BGP sees to them.
    pub device_lines: &'a [&'a str],
    /// For its BFD; without any there is none.
    pub bfd_lines: &'a [&'a str],
}

impl RouterConfig<'_> {
    /// eBGP over IPv4, and nothing else.
    pub const EXTERNAL: Self = Self {
        asn: 64513,
        node_asn: 64512,
        password: None,
        transports: &[Transport::V4],
        dialling: Dialling::Nodes,
        neighbour_lines: &[],
        lines: &[],
        device_lines: &[],
        bfd_lines: &[],
    };
}

/// One path as a router has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The other end of the session that it came by.
    pub from: IpAddr,
    /// The global one first, then a link-local one where there is such.
    pub next_hops: Vec<IpAddr>,
    /// AS numbers, nearest first.
    pub as_path: Vec<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF; some daemons show a default on eBGP.
    pub local_pref: Option<u32>,
    /// RFC 1997.
    pub communities: BTreeSet<(u16, u16)>,
    /// RFC 8092.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
    /// RFC 4360, as `rt:64512:7` where it is a route target.
    pub extended_communities: BTreeSet<String>,
    /// Kept only for a speaker that restarts (RFC 4724).
    pub stale: bool,
}

impl Transport {
    /// The address of a node on it.
    pub fn node(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => IpAddr::from([10, 0, 0, 10 + number]),
            Self::V6 => IpAddr::from([0xfd00, 0xa, 0, 0, 0, 0, 0, 0x10 + u16::from(number)]),
        }
    }

    /// The address of the router on it.
    pub fn router(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::from([10, 0, 0, 1]),
            Self::V6 => IpAddr::from([0xfd00, 0xa, 0, 0, 0, 0, 0, 1]),
        }
    }
}

/// Where a daemon runs, and what it was told.
#[derive(Debug)]
struct Site {
    namespace: Namespace,
    folder: PathBuf,
    sessions: Vec<Neighbour>,
}

/// One session as the router sees it.
#[derive(Debug, Clone)]
struct Neighbour {
    /// For daemons that name their sessions.
    name: String,
    transport: Transport,
    address: IpAddr,
}

/// What differs from daemon to daemon.
trait Daemon: fmt::Debug + Send {
    /// Writes its files.
    fn configure(&self, site: &Site, config: &RouterConfig<'_>) -> Result<()>;
    /// Starts its programs, in order, and waits until they listen.
    fn run(&self, site: &Site) -> Result<Vec<Process>>;
    /// What it says to a question in its own language.
    fn ask(&self, site: &Site, question: &str) -> Result<String>;
    /// Its name and version.
    fn version(&self, site: &Site) -> Result<String>;
    /// The other ends of the sessions that are up.
    fn established(&self, site: &Site) -> Result<BTreeSet<IpAddr>>;
    /// All paths to a prefix.
    fn routes(&self, site: &Site, prefix: &IpNet) -> Result<Vec<Route>>;
    /// How many prefixes of both families came from there and are still wanted.
    fn prefixes(&self, site: &Site, neighbour: IpAddr) -> Result<u64>;
    /// Why a session ended the last time, in its words; empty if it never did.
    fn last_reset(&self, site: &Site, neighbour: IpAddr) -> Result<String>;
}

impl RouterKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Bird, Self::Frr, Self::GoBgp, Self::ExaBgp, Self::OpenBgpd];

    /// Whether it is installed and may run: two of them insist on users of their own, which there
    /// are not in a user namespace.
    pub fn is_available(self) -> bool {
        match self {
            Self::Bird => is_program("bird"),
            Self::Frr => frr::is_available(),
            Self::GoBgp => is_program("gobgpd"),
            Self::ExaBgp => is_program("exabgp"),
            Self::OpenBgpd => openbgpd::is_available(),
        }
    }

    fn daemon(self) -> Box<dyn Daemon> {
        match self {
            Self::Bird => Box::new(bird::Bird),
            Self::Frr => Box::new(frr::Frr),
            Self::GoBgp => Box::new(gobgp::GoBgp),
            Self::ExaBgp => Box::new(exabgp::ExaBgp),
            Self::OpenBgpd => Box::new(openbgpd::OpenBgpd),
        }
    }
}

impl Router {
    /// Starts it on a stage.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(stage: &Stage, kind: RouterKind, config: RouterConfig<'_>) -> Result<Self> {
        Self::start_in(&stage.router, &stage.directory().join("router"), kind, config)
    }

    /// Starts it in any namespace, with its files in a folder that is made or emptied.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_in(
        namespace: &Namespace,
        folder: &Path,
        kind: RouterKind,
        config: RouterConfig<'_>,
    ) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir(folder)?;
        // Flows to one address are to spread, and a route with one next hop is no multipath.
        namespace.sysctl("net.ipv4.fib_multipath_hash_policy", 1)?;
        let pairs = config.transports.iter().flat_map(|t| NODES.iter().map(move |n| (*t, *n)));
        let sessions = pairs.map(|(transport, number)| {
            let suffix = match transport {
                Transport::V4 => "",
                Transport::V6 => "v6",
            };
            let name = format!("n{number}{suffix}");
            Neighbour { name, transport, address: transport.node(number) }
        });
        let site = Site {
            namespace: namespace.clone(),
            folder: folder.to_owned(),
            sessions: sessions.collect(),
        };
        let daemon = kind.daemon();
        daemon.configure(&site, &config)?;
        let mut this = Self { daemon, site, processes: Vec::new() };
        this.run()?;
        Ok(this)
    }

    /// Ends it in order, so that it takes its routes out of the kernel.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<()> {
        for process in self.processes.drain(..).rev() {
            process.stop()?;
        }
        Ok(())
    }

    /// Starts it again after [`stop`](Self::stop).
    ///
    /// # Errors
    /// When it does not start.
    pub fn run(&mut self) -> Result<()> {
        self.processes = self.daemon.run(&self.site)?;
        Ok(())
    }

    /// [`stop`](Self::stop) and [`run`](Self::run).
    ///
    /// # Errors
    /// As these.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.run()
    }

    /// Writes another configuration, which it reads when it starts or is asked to.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn rewrite(&self, config: RouterConfig<'_>) -> Result<()> {
        self.daemon.configure(&self.site, &config)
    }

    /// Freezes or thaws all of its programs.
    ///
    /// # Errors
    /// When one has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.processes.iter().try_for_each(|process| process.signal(signal))
    }

    /// What it says about something, in its own language.
    ///
    /// # Errors
    /// When it does not understand, or does not answer.
    pub fn ask(&self, question: &str) -> Result<String> {
        self.daemon.ask(&self.site, question)
    }

    /// Its name and version.
    ///
    /// # Errors
    /// When it does not say.
    pub fn version(&self) -> Result<String> {
        self.daemon.version(&self.site)
    }

    /// The other ends of the sessions that are up.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn established(&self) -> Result<BTreeSet<IpAddr>> {
        self.daemon.established(&self.site)
    }

    /// Waits until exactly these sessions are up.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn wait_for_established(&self, neighbours: &BTreeSet<IpAddr>) -> Result<()> {
        wait_for(&format!("the router has sessions with {neighbours:?}"), LIMIT, || {
            let now = self.established()?;
            ensure!(now == *neighbours, "{now:?}");
            Ok(())
        })
    }

    /// All paths to an address's host route or to a prefix, in order.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn routes(&self, prefix: &str) -> Result<Vec<Route>> {
        let prefix = match prefix.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => prefix.parse().with_context(|| format!("{prefix} is no prefix"))?,
        };
        let mut routes = self.daemon.routes(&self.site, &prefix)?;
        routes.sort();
        Ok(routes)
    }

    /// How many prefixes of both families the router has from a node.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn prefixes(&self, neighbour: IpAddr) -> Result<u64> {
        self.daemon.prefixes(&self.site, neighbour)
    }

    /// Why the session with a node ended the last time, in the daemon's words; empty if it never
    /// did.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn last_reset(&self, neighbour: IpAddr) -> Result<String> {
        self.daemon.last_reset(&self.site, neighbour)
    }

    /// All that it has logged.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn log(&self) -> Result<String> {
        let logs = self.processes.iter().map(|process| fs::read_to_string(process.log()));
        Ok(logs.collect::<std::io::Result<Vec<_>>>()?.concat())
    }
}

impl Site {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Starts a daemon and waits until it answers.
    fn spawn<T>(
        &self,
        name: &str,
        command: std::process::Command,
        answers: impl Fn() -> Result<T>,
    ) -> Result<Process> {
        let mut process = self.namespace.spawn(name, command)?;
        wait_for(&format!("{name} answers"), LIMIT, || {
            process.check_running()?;
            answers()
        })?;
        Ok(process)
    }
}

/// Whether a program of this name is on the PATH or where Debian has daemons.
fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.any(|folder| folder.join(name).exists())
}

/// A number in a JSON object.
fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| number.try_into().ok())
}

/// `64512:100`, or a name that routers have for one.
fn community(text: &str) -> Result<(u16, u16)> {
    let known: String = text.chars().filter(char::is_ascii_alphabetic).collect();
    match known.to_ascii_lowercase().as_str() {
        "gracefulshutdown" => return Ok((65535, 0)),
        "noexport" => return Ok((65535, 65281)),
        "noadvertise" => return Ok((65535, 65282)),
        "noexportsubconfed" | "localas" => return Ok((65535, 65283)),
        "nopeer" => return Ok((65535, 65284)),
        "blackhole" => return Ok((65535, 666)),
        _ => {}
    }
    let (high, low) = text.split_once(':').with_context(|| format!("no community: {text}"))?;
    Ok((high.trim().parse()?, low.trim().parse()?))
}

/// `64512:1:2`.
fn large_community(text: &str) -> Result<(u32, u32, u32)> {
    let parts: Vec<_> =
        text.split(':').map(|part| part.trim().parse()).collect::<Result<_, _>>()?;
    let [global, first, second] = parts[..] else {
        anyhow::bail!("no large community: {text}");
    };
    Ok((global, first, second))
}

/// AS numbers between blanks.
fn as_path(text: &str) -> Vec<u32> {
    text.split_whitespace().filter_map(|asn| asn.parse().ok()).collect()
}

/// The elements of a JSON array; none where there is no array.
fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The texts in a JSON array.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    elements(value).filter_map(Value::as_str)
}
