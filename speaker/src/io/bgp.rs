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
    sync::{oneshot, watch},
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
    /// The newest set of routes; none before the first. A session that is behind needs only that.
    routes: watch::Sender<Option<BTreeSet<Route>>>,
    stop: oneshot::Sender<StopReason>,
    task: JoinHandle<()>,
}

impl Sessions {
    pub fn new(report: watch::Receiver<Report>, metrics: Arc<Metrics>) -> Self {
        Self { running: BTreeMap::new(), report, metrics }
    }

    /// Starts a session; one that runs for the same peer ends first, so that the router never sees
    /// two.
    pub fn open(&mut self, spec: SessionSpec) {
        let name = spec.peer.name.clone();
        if spec.peer.bfd_profile.is_some() {
            warn!(peer = %name, "the session runs without BFD: it is not supported yet");
        }
        if spec.peer.vrf.is_some() {
            warn!(peer = %name, "the session runs outside the VRF: VRFs are not supported yet");
        }
        let old = self.running.remove(&name);
        let (routes, newest) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let driver = Driver::new(spec, self.report.clone(), Arc::clone(&self.metrics));
        let task = tokio::spawn(async move {
            if let Some(old) = old {
                old.stop(StopReason::ConfigurationChange).await;
            }
            driver.run(newest, stopped).await;
        });
        self.running.insert(name, Running { routes, stop, task });
    }

    /// Ends a session with a Cease; nobody waits for it.
    pub fn close(&mut self, peer: &PeerName, reason: StopReason) {
        if let Some(running) = self.running.remove(peer) {
            tokio::spawn(running.stop(reason));
        }
    }

    /// Ends all sessions at once, and waits until it is said, at most 1 s.
    pub async fn close_all(&mut self, text: &str) {
        let reason = StopReason::AdministrativeShutdown { text: Some(text.to_owned()) };
        let running = std::mem::take(&mut self.running).into_values();
        futures::future::join_all(running.map(|r| r.stop(reason.clone()))).await;
    }

    pub fn advertise(&self, peer: &PeerName, routes: BTreeSet<Route>) {
        if let Some(running) = self.running.get(peer) {
            running.routes.send_replace(Some(routes));
        }
    }
}

impl Running {
    async fn stop(mut self, reason: StopReason) {
        // Fails only when the task is gone, and then there is nothing to stop.
        let _ = self.stop.send(reason);
        if timeout(FAREWELL, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

type Newest = watch::Receiver<Option<BTreeSet<Route>>>;
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
    stopping: bool,
}

/// What woke the task.
enum Wake {
    Routes,
    Stop(StopReason),
    /// Whoever owned the session is gone.
    Abandoned,
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
            stopping: false,
        }
    }

    async fn run(mut self, mut routes: Newest, mut stop: oneshot::Receiver<StopReason>) {
        let mut buffer = vec![0; READ];
        self.feed(Event::Start);
        loop {
            match self.wait(&mut routes, &mut stop).await {
                Wake::Routes => {
                    let newest = routes.borrow_and_update().clone().unwrap_or_default();
                    self.metrics.bgp_wanted(&self.spec.peer.name, newest.len());
                    self.feed(Event::Advertise(newest));
                }
                Wake::Stop(reason) => {
                    self.stopping = true;
                    self.feed(Event::Stop { reason });
                }
                Wake::Abandoned => return,
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
            if self.stopping && self.stream.is_none() {
                self.metrics.bgp_gone(&self.spec.peer.name);
                return;
            }
        }
    }

    async fn wait(
        &mut self,
        routes: &mut Newest,
        stop: &mut oneshot::Receiver<StopReason>,
    ) -> Wake {
        let due = self.session.poll_timeout();
        let interest = if self.unsent.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        tokio::select! {
            biased;
            reason = stop, if !self.stopping => reason.map_or(Wake::Abandoned, Wake::Stop),
            // While bytes wait, new routes wait too: a slow peer then costs one set.
            Ok(()) = routes.changed(), if self.unsent.is_empty() && !self.stopping => Wake::Routes,
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
            else => Wake::Abandoned,
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

#[cfg(test)]
mod tests {
    use layer2::{Interface, InterfaceIndex};

    use super::*;

    fn report(networks: &[&str]) -> Report {
        let interface = Interface {
            index: InterfaceIndex(2),
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 1, 1],
            up: true,
            networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
            link_local: None,
            gateways: Vec::new(),
            arp: true,
        };
        Report { interfaces: vec![interface], ..Report::default() }
    }

    #[test]
    fn the_other_familys_next_hop_is_of_the_same_interface() {
        let both = report(&["10.0.0.11/24", "fe80::1/64", "fd00:a::11/64"]);
        let v4 = Some("10.0.0.11".parse().unwrap());
        let v6 = Some("fd00:a::11".parse().unwrap());
        assert_eq!(next_hops(Some("10.0.0.11".parse().unwrap()), &both), (v4, v6));
        assert_eq!(next_hops(Some("fd00:a::11".parse().unwrap()), &both), (v4, v6));
        let elsewhere = Some("192.0.2.1".parse().unwrap());
        assert_eq!(next_hops(elsewhere, &both), (Some("192.0.2.1".parse().unwrap()), None));
        assert_eq!(next_hops(None, &both), (None, None));
    }
}
