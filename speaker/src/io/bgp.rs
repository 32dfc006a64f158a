//! One task for each BGP session: it owns the `bgp::Session` and its connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bgp::{Event, Route, Session, StateKind, StopReason};
use config::PeerName;
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep_until, timeout},
};
use tracing::{info, warn};

use crate::{
    io::{
        clock,
        metrics::Metrics,
        tcp::{self, ConnectConfig},
    },
    planner::SessionSpec,
    wire::Report,
};

/// Wanted sets waiting for a session; each is whole, so a session that is behind needs only the
/// last, and the planner never waits longer than the task needs to take one.
const QUEUE: usize = 4;
/// Longest wait for a session to say good-bye.
const FAREWELL: Duration = Duration::from_secs(1);
/// One read from the connection.
const READ: usize = 64 * 1024;

/// All sessions of this speaker.
#[derive(Debug)]
pub struct Sessions {
    running: BTreeMap<PeerName, Running>,
    report: watch::Receiver<Report>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Running {
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Command {
    Advertise(BTreeSet<Route>),
    Stop(StopReason),
}

impl Sessions {
    pub fn new(report: watch::Receiver<Report>, metrics: Arc<Metrics>) -> Self {
        Self { running: BTreeMap::new(), report, metrics }
    }

    /// Starts a session; one that runs for the same peer is closed first, so that the router never
    /// sees two.
    pub async fn open(&mut self, spec: SessionSpec) {
        self.close(&spec.peer.name, StopReason::ConfigurationChange).await;
        let name = spec.peer.name.clone();
        if spec.peer.bfd_profile.is_some() {
            warn!(peer = %name, "the session runs without BFD: it is not supported yet");
        }
        if spec.peer.vrf.is_some() {
            warn!(peer = %name, "the session runs outside the VRF: VRFs are not supported yet");
        }
        let (commands, receiver) = mpsc::channel(QUEUE);
        let driver = Driver::new(spec, self.report.clone(), Arc::clone(&self.metrics));
        let task = tokio::spawn(driver.run(receiver));
        self.running.insert(name, Running { commands, task });
    }

    /// Ends a session with a Cease, and waits until it is said, at most 1 s.
    pub async fn close(&mut self, peer: &PeerName, reason: StopReason) {
        if let Some(running) = self.running.remove(peer) {
            running.stop(reason).await;
        }
    }

    /// Ends all sessions at once.
    pub async fn close_all(&mut self, text: &str) {
        let reason = StopReason::AdministrativeShutdown { text: Some(text.to_owned()) };
        let running = std::mem::take(&mut self.running).into_values();
        futures::future::join_all(running.map(|r| r.stop(reason.clone()))).await;
    }

    pub async fn advertise(&self, peer: &PeerName, routes: BTreeSet<Route>) {
        if let Some(running) = self.running.get(peer) {
            // Fails only when the task is gone, and then there is nobody to tell.
            let _ = running.commands.send(Command::Advertise(routes)).await;
        }
    }
}

impl Running {
    async fn stop(mut self, reason: StopReason) {
        let _ = self.commands.send(Command::Stop(reason)).await;
        if timeout(FAREWELL, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

struct Driver {
    spec: SessionSpec,
    session: Session,
    report: watch::Receiver<Report>,
    metrics: Arc<Metrics>,
    connecting: Option<Connecting>,
    stream: Option<TcpStream>,
    /// Bytes that the connection has not taken yet.
    unsent: Vec<u8>,
    /// The session closed the connection; it goes when `unsent` is written.
    closing: bool,
    /// The newest routes, held back while bytes wait, so that a slow peer costs one set.
    routes: Option<BTreeSet<Route>>,
    stopping: bool,
}

/// What woke the task.
enum Wake {
    Command(Option<Command>),
    Connected(io::Result<TcpStream>),
    Readable,
    Writable,
    Broken,
    Timeout,
}

impl Driver {
    fn new(spec: SessionSpec, report: watch::Receiver<Report>, metrics: Arc<Metrics>) -> Self {
        let session = Session::new(spec.session_config(), rand::random());
        Self {
            spec,
            session,
            report,
            metrics,
            connecting: None,
            stream: None,
            unsent: Vec::new(),
            closing: false,
            routes: None,
            stopping: false,
        }
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut buffer = vec![0; READ];
        self.feed(Event::Start);
        loop {
            match self.wait(&mut commands).await {
                Wake::Command(Some(Command::Advertise(routes))) => self.routes = Some(routes),
                Wake::Command(Some(Command::Stop(reason))) => {
                    self.stopping = true;
                    self.feed(Event::Stop { reason });
                }
                Wake::Command(None) => return,
                Wake::Connected(Ok(stream)) => self.connected(stream),
                Wake::Connected(Err(error)) => {
                    info!(peer = %self.spec.peer.name, address = %self.spec.address, %error, "cannot connect");
                    self.connecting = None;
                    self.feed(Event::ConnectFailed);
                }
                Wake::Readable => self.read(&mut buffer),
                Wake::Writable => {}
                Wake::Broken => self.broken(),
                Wake::Timeout => {
                    let actions = self.session.handle_timeout(clock::now());
                    self.perform(actions);
                }
            }
            self.write();
            if self.unsent.is_empty()
                && let Some(routes) = self.routes.take()
            {
                self.metrics.bgp_wanted(&self.spec.peer.name, routes.len());
                self.feed(Event::Advertise(routes));
                self.write();
            }
            if self.stopping && self.stream.is_none() {
                self.metrics.bgp_gone(&self.spec.peer.name);
                return;
            }
        }
    }

    async fn wait(&mut self, commands: &mut mpsc::Receiver<Command>) -> Wake {
        let due = self.session.poll_timeout();
        let interest = if self.unsent.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        tokio::select! {
            biased;
            command = commands.recv(), if !self.stopping => Wake::Command(command),
            connected = async { self.connecting.as_mut().expect("guarded").await },
                if self.connecting.is_some() => Wake::Connected(connected),
            ready = async { self.stream.as_ref().expect("guarded").ready(interest).await },
                if self.stream.is_some() => match ready {
                    Ok(ready) if ready.is_readable() => Wake::Readable,
                    Ok(ready) if ready.is_writable() => Wake::Writable,
                    Ok(_) | Err(_) => Wake::Broken,
                },
            () = async { sleep_until(due.expect("guarded").into()).await },
                if due.is_some() => Wake::Timeout,
        }
    }

    fn connected(&mut self, stream: TcpStream) {
        self.connecting = None;
        let local = stream.local_addr().map(|address| address.ip()).ok();
        self.stream = Some(stream);
        self.unsent.clear();
        self.closing = false;
        let (local_v4, local_v6) = next_hops(local, &self.report.borrow());
        self.feed(Event::Connected { local_v4, local_v6 });
    }

    fn read(&mut self, buffer: &mut [u8]) {
        let Some(stream) = &self.stream else { return };
        match stream.try_read(buffer) {
            Ok(0) => self.broken(),
            Ok(length) if !self.closing => self.feed(Event::Received(&buffer[..length])),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.broken(),
        }
    }

    fn write(&mut self) {
        while let (Some(stream), false) = (&self.stream, self.unsent.is_empty()) {
            match stream.try_write(&self.unsent) {
                Ok(length) => {
                    self.unsent.drain(..length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.broken(),
            }
        }
        if self.closing && self.unsent.is_empty() {
            self.stream = None;
            self.closing = false;
        }
    }

    fn broken(&mut self) {
        self.stream = None;
        self.unsent.clear();
        if !std::mem::take(&mut self.closing) {
            self.feed(Event::Closed);
        }
    }

    fn feed(&mut self, event: Event<'_>) {
        let actions = self.session.handle(event, clock::now());
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<bgp::Action>) {
        for action in actions {
            match action {
                bgp::Action::Connect => {
                    // A connection that still drains belongs to a session that is over.
                    self.stream = None;
                    self.closing = false;
                    self.connecting = Some(Box::pin(tcp::connect(connect_config(&self.spec))));
                }
                bgp::Action::Send(bytes) => self.unsent.extend(bytes),
                bgp::Action::Close => {
                    self.connecting = None;
                    self.closing = self.stream.is_some();
                }
                bgp::Action::StateChanged(state) => self.tell(state),
            }
        }
    }

    fn tell(&self, state: StateKind) {
        let peer = &self.spec.peer.name;
        self.metrics.bgp_state(peer, state);
        let stats = self.session.stats();
        match (state, &stats.last_reset) {
            (StateKind::Established, _) => info!(%peer, "BGP session established"),
            (StateKind::Idle, Some(reset)) => warn!(%peer, %reset, "BGP session down"),
            _ => info!(%peer, %state, "BGP session"),
        }
        let held = self.session.held_back();
        if let Some((prefix, reason)) = held.first_key_value() {
            warn!(%peer, %prefix, %reason, others = held.len() - 1, "route held back");
        }
    }
}

fn connect_config(spec: &SessionSpec) -> ConnectConfig {
    let peer = &spec.peer;
    ConnectConfig {
        peer: SocketAddr::new(spec.address, peer.port),
        source: peer.source_address,
        multihop: peer.ebgp_multi_hop || spec.is_internal(),
        password: peer.password.clone(),
    }
}

/// Our address on the session for its own family; for the other one a global address of the same
/// interface (RFC 2545 section 3 wants a next hop that the peer can reach).
fn next_hops(
    local: Option<IpAddr>,
    report: &Report,
) -> (Option<std::net::Ipv4Addr>, Option<std::net::Ipv6Addr>) {
    let networks = report
        .interfaces
        .iter()
        .map(|interface| &interface.networks)
        .find(|networks| networks.iter().any(|network| Some(network.addr()) == local));
    let beside = networks.into_iter().flatten().map(ipnet::IpNet::addr);
    let (mut v4, mut v6) = (None, None);
    for address in local.into_iter().chain(beside) {
        match address {
            IpAddr::V4(address) => v4 = v4.or(Some(address)),
            IpAddr::V6(address) if !address.is_unicast_link_local() => v6 = v6.or(Some(address)),
            IpAddr::V6(_) => {}
        }
    }
    (v4, v6)
}
