//! One session's task: its connection, what is not written yet, and what wakes it.

use std::{
    future::{Future, pending},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bgp::{
    BfdRule, BfdState, Event, GracefulRestart, Local, Mode, Session, SessionConfig, Start,
    StateKind, StopReason,
};
use config::{Peer, PeerAddress};
use ipnet::IpNet;
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
    time::{sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Inbox, Told,
    board::{Board, SessionView},
    unnumbered::{self, Neighbour},
};
use crate::{
    io::{
        bfd::{Bfd, BfdSpec, BfdStatus, Farewell},
        clock,
        tcp::{self, ConnectConfig, Hops, Key},
    },
    planner::SessionSpec,
    wire::Report,
};

/// One read from the connection.
const READ: usize = 64 * 1024;
/// UPDATEs are made while less than this waits to be written: so much a KEEPALIVE stands behind.
const UNSENT: usize = 64 * 1024;
/// The longest BGP message.
const MESSAGE: usize = 4096;
/// How long the list of interfaces is waited for.
const INTERFACES: Duration = Duration::from_secs(1);
/// How old the numbers of a session that is as it was may be on the board.
const VIEW_AGE: Duration = Duration::from_millis(500);

/// Connections from a passive peer; `None` where it is not passive; why there can be none.
pub(super) type Accepted = Result<Option<mpsc::Receiver<TcpStream>>, String>;

/// What a session is given beside its settings.
pub(super) struct Surroundings {
    pub accepted: Accepted,
    pub bfd: Option<Arc<Bfd>>,
    pub start: Start,
    pub board: Arc<Board>,
    pub report: watch::Receiver<Report>,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

pub(super) struct Driver {
    spec: Arc<SessionSpec>,
    session: Session,
    start: Start,
    board: Arc<Board>,
    report: watch::Receiver<Report>,
    accepted: Option<mpsc::Receiver<TcpStream>>,
    /// Who is at the other end of the interface of an unnumbered peer.
    neighbour: Option<watch::Receiver<Option<Neighbour>>>,
    bfd: Option<Watched>,
    connecting: Option<Connecting>,
    stream: Option<TcpStream>,
    /// Bytes that the connection has not taken yet.
    unsent: Vec<u8>,
    /// The session closed the connection; it goes when `unsent` is written.
    closing: bool,
    stopping: bool,
    farewell: Farewell,
    problem: Option<String>,
    /// Since when the session is in its state, as it was last told.
    since: (StateKind, Instant),
    viewed_at: Instant,
}

/// The BFD session with the peer.
struct Watched {
    all: Arc<Bfd>,
    /// None before the peer's address is known.
    status: Option<watch::Receiver<BfdStatus>>,
    failures: u64,
}

/// What woke the task.
enum Wake {
    Told,
    Stop(StopReason),
    /// Whoever owned the session is gone.
    Abandoned,
    Connected(io::Result<TcpStream>),
    Accepted(TcpStream),
    Bfd,
    Readable,
    Writable,
    Broken,
    Timeout,
}

impl Driver {
    pub fn new(spec: SessionSpec, surroundings: Surroundings) -> Self {
        let Surroundings { accepted, bfd, start, board, report } = surroundings;
        let now = clock::now();
        let (accepted, problem) = match accepted {
            Ok(accepted) => (accepted, None),
            Err(problem) => (None, Some(problem)),
        };
        let neighbour = match &spec.peer.address {
            PeerAddress::Address(_) => None,
            PeerAddress::Interface(name) => Some(unnumbered::watch(name.clone(), report.clone())),
        };
        let mut driver = Self {
            session: Session::new(session_config(&spec, start, bfd.is_some()), rand::random()),
            spec: Arc::new(spec),
            start,
            board,
            report,
            accepted,
            neighbour,
            bfd: bfd.map(|all| Watched { all, status: None, failures: 0 }),
            connecting: None,
            stream: None,
            unsent: Vec::new(),
            closing: false,
            stopping: false,
            farewell: Farewell::AdminDown,
            problem,
            since: (StateKind::Idle, now),
            viewed_at: now,
        };
        if let PeerAddress::Address(address) = driver.spec.peer.address {
            driver.watch_path(address, None);
        }
        driver
    }

    pub async fn run(mut self, inbox: Arc<Inbox>, mut stop: oneshot::Receiver<StopReason>) {
        let mut buffer = vec![0; READ];
        if let Some(problem) = &self.problem {
            warn!(peer = %self.spec.peer.name, problem, "there is no BGP session");
        }
        self.feed(Event::Start);
        loop {
            self.view();
            match self.wait(&inbox, &mut stop).await {
                Wake::Told => self.read_inbox(inbox.take()),
                Wake::Stop(reason) => {
                    self.stopping = true;
                    if reason == StopReason::Restart {
                        self.farewell = Farewell::Silent;
                    }
                    self.feed(Event::Stop { reason });
                }
                Wake::Abandoned => return,
                Wake::Connected(Ok(stream)) => {
                    self.problem = None;
                    self.connecting = None;
                    self.take(stream);
                    let local = self.local();
                    self.feed(Event::Connected(local));
                }
                Wake::Connected(Err(error)) => {
                    let peer = &self.spec.peer;
                    info!(peer = %peer.name, address = %peer.address, %error, "cannot connect");
                    self.problem = Some(error.to_string());
                    self.connecting = None;
                    self.feed(Event::ConnectFailed);
                }
                Wake::Accepted(stream) => self.accept(stream),
                Wake::Bfd => self.ask_bfd(),
                Wake::Readable => self.read(&mut buffer),
                Wake::Writable => {}
                Wake::Broken => self.broken(),
                Wake::Timeout => {
                    let actions = self.session.handle_timeout(clock::now());
                    self.perform(actions);
                }
            }
            self.send_updates();
            if self.stopping && self.stream.is_none() {
                return;
            }
        }
    }

    async fn wait(&mut self, inbox: &Inbox, stop: &mut oneshot::Receiver<StopReason>) -> Wake {
        let due = self.session.poll_timeout();
        let interest = if self.unsent.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let Self { stopping, connecting, accepted, bfd, stream, .. } = self;
        let stopping = *stopping;
        tokio::select! {
            biased;
            reason = stop, if !stopping => reason.map_or(Wake::Abandoned, Wake::Stop),
            () = changed(bfd.as_mut()), if !stopping => Wake::Bfd,
            () = inbox.changed.notified(), if !stopping => Wake::Told,
            connected = async { connecting.as_mut().expect("guarded").await },
                if connecting.is_some() => Wake::Connected(connected),
            Some(stream) = async { accepted.as_mut().expect("guarded").recv().await },
                if accepted.is_some() && !stopping => Wake::Accepted(stream),
            ready = async { stream.as_ref().expect("guarded").ready(interest).await },
                if stream.is_some() => match ready {
                    Ok(ready) if ready.is_readable() => Wake::Readable,
                    Ok(ready) if ready.is_writable() => Wake::Writable,
                    Ok(_) | Err(_) => Wake::Broken,
                },
            () = async { sleep_until(due.expect("guarded").into()).await },
                if due.is_some() => Wake::Timeout,
            else => Wake::Abandoned,
        }
    }

    /// The session's connection is this one from now on.
    fn take(&mut self, stream: TcpStream) {
        // The address of an unnumbered peer is known only now.
        if let (Some(_), Ok(SocketAddr::V6(peer))) = (&self.neighbour, stream.peer_addr()) {
            let interface = match &self.spec.peer.address {
                PeerAddress::Interface(name) => Some(name.clone()),
                PeerAddress::Address(_) => None,
            };
            self.watch_path((*peer.ip()).into(), interface);
        }
        self.stream = Some(stream);
        self.unsent.clear();
        self.closing = false;
    }

    /// Actions up to a Close are for the connection before, those behind it for this one.
    fn accept(&mut self, stream: TcpStream) {
        let before = self.stream.replace(stream);
        let local = self.local();
        let mut actions = self.session.handle(Event::Accepted(local), clock::now());
        if let Some(bytes) = actions.iter().find_map(|action| match action {
            bgp::Action::Reject(bytes) => Some(bytes),
            _ => None,
        }) {
            // Best effort: a fresh connection has room for a NOTIFICATION.
            let _ = self.stream.as_ref().map(|stream| stream.try_write(bytes));
            self.stream = before;
        } else {
            let close = actions.iter().position(|action| *action == bgp::Action::Close);
            let last = actions.drain(..close.map_or(0, |index| index + 1)).collect::<Vec<_>>();
            for action in last {
                match (action, &before) {
                    (bgp::Action::Send(bytes), Some(before)) => {
                        // Best effort: the peer has given that connection up.
                        let _ = before.try_write(&bytes);
                    }
                    (bgp::Action::StateChanged(state), _) => self.tell(state),
                    _ => {}
                }
            }
            self.unsent.clear();
            self.closing = false;
            self.problem = None;
        }
        self.perform(actions);
    }

    fn local(&self) -> Local {
        let address = self.stream.as_ref().and_then(|stream| stream.local_addr().ok());
        local(address.map(|address| address.ip()), &self.spec.peer, &self.report.borrow())
    }

    fn read_inbox(&mut self, told: Told) {
        let Told { changes, complete, settings } = told;
        if let Some((spec, bfd)) = settings {
            self.change(spec, bfd);
        }
        if !changes.is_empty() {
            self.feed(Event::Routes(changes));
        }
        if complete {
            self.feed(Event::Complete);
        }
    }

    fn change(&mut self, spec: SessionSpec, bfd: Option<Arc<Bfd>>) {
        let config = session_config(&spec, self.start, bfd.is_some());
        self.session.update_timers(&config, clock::now());
        self.spec = Arc::new(spec);
        let peer = &self.spec.peer;
        match (&mut self.bfd, bfd) {
            (Some(watched), Some(_)) => {
                if let Some(profile) = &self.spec.bfd {
                    watched.all.change(&peer.name, profile.clone());
                }
            }
            (None, Some(all)) => {
                self.bfd = Some(Watched { all, status: None, failures: 0 });
                let remote = self.stream.as_ref().and_then(|stream| stream.peer_addr().ok());
                match (&peer.address, remote) {
                    (PeerAddress::Address(address), _) => self.watch_path(*address, None),
                    (PeerAddress::Interface(name), Some(remote)) => {
                        self.watch_path(remote.ip(), Some(name.clone()));
                    }
                    (PeerAddress::Interface(_), None) => {}
                }
            }
            (Some(watched), None) => {
                watched.all.close(&peer.name, Farewell::AdminDown);
                self.bfd = None;
            }
            (None, None) => {}
        }
    }

    fn watch_path(&mut self, remote: IpAddr, interface: Option<String>) {
        let (Some(watched), Some(profile)) = (&mut self.bfd, &self.spec.bfd) else { return };
        let peer = &self.spec.peer;
        watched.status = Some(watched.all.open(BfdSpec {
            peer: peer.name.clone(),
            remote,
            local: peer.source_address,
            interface,
            vrf: peer.vrf.clone(),
            multihop: hops(&self.spec) != Hops::One && peer.ttl_security_hops != Some(1),
            profile: profile.clone(),
        }));
    }

    fn ask_bfd(&mut self) {
        let Some(Watched { status: Some(status), failures, .. }) = &mut self.bfd else { return };
        let status = status.borrow_and_update().clone();
        let failed = status.failures() > std::mem::replace(failures, status.failures());
        debug!(peer = %self.spec.peer.name, state = ?status.state, failed, "BFD");
        // It may be Up again already, but what it lost meanwhile it lost.
        if failed {
            self.feed(Event::Bfd(BfdState::Down));
        }
        if status.state == ::bfd::State::Up {
            self.feed(Event::Bfd(BfdState::Up));
        }
    }

    /// Writes what waits, and of the UPDATEs as many as the connection takes.
    fn send_updates(&mut self) {
        loop {
            let room = UNSENT.saturating_sub(self.unsent.len());
            if room >= MESSAGE {
                let updates = self.session.transmit(clock::now(), room);
                self.unsent.extend(updates);
            }
            let waiting = self.unsent.len();
            self.write();
            if self.unsent.len() == waiting || !self.session.has_updates() {
                return;
            }
        }
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
                    self.feed(Event::Written);
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
                    self.connecting = Some(self.connect());
                }
                bgp::Action::Send(bytes) => self.unsent.extend(bytes),
                bgp::Action::Close => {
                    self.connecting = None;
                    self.closing = self.stream.is_some();
                }
                // Only an accepted connection is rejected, and that is where it is done.
                bgp::Action::Reject(_) => {}
                bgp::Action::StateChanged(state) => self.tell(state),
            }
        }
    }

    fn connect(&self) -> Connecting {
        let peer = &self.spec.peer;
        let config = |address| ConnectConfig {
            peer: address,
            source: peer.source_address,
            hops: hops(&self.spec),
            device: peer.vrf.clone(),
            key: key(peer),
        };
        match (&peer.address, &self.neighbour) {
            (PeerAddress::Address(address), _) => {
                let config = config(SocketAddr::new(*address, peer.port));
                let mut report = self.report.clone();
                Box::pin(async move {
                    // Next hops are looked up among the interfaces, which are read within
                    // milliseconds of the start; a node that has none does without.
                    let interfaces = report.wait_for(|report| !report.interfaces.is_empty());
                    let _ = timeout(INTERFACES, interfaces).await;
                    tcp::connect(config).await
                })
            }
            (PeerAddress::Interface(_), None) => Box::pin(pending()),
            (PeerAddress::Interface(_), Some(neighbour)) => {
                let mut neighbour = neighbour.clone();
                let config = config(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), peer.port));
                Box::pin(async move {
                    // Whoever made the attempt gives it up in time.
                    let known = neighbour.wait_for(Option::is_some).await;
                    let Some(known) = known.ok().and_then(|known| *known) else {
                        return Err(io::Error::other("its interface is not watched any more"));
                    };
                    let peer = known.at(config.peer.port());
                    tcp::connect(ConnectConfig { peer, source: None, ..config }).await
                })
            }
        }
    }

    fn tell(&mut self, state: StateKind) {
        let peer = &self.spec.peer.name;
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
        self.since = (state, clock::now());
        self.show();
    }

    /// Brings the board up to date where something is different or the numbers are old.
    fn view(&mut self) {
        if clock::now().duration_since(self.viewed_at) >= VIEW_AGE {
            self.show();
        }
    }

    fn show(&mut self) {
        self.viewed_at = clock::now();
        let held = self.session.held_back();
        let view = SessionView {
            spec: Arc::clone(&self.spec),
            state: self.session.state(),
            since: self.since.1,
            stats: self.session.stats(),
            negotiated: self.session.negotiated().cloned(),
            gate: self.session.bfd_gate(),
            bfd: self.bfd.as_ref().map(|watched| match &watched.status {
                Some(status) => status.borrow().clone(),
                None => BfdStatus::default(),
            }),
            held_back: held.first_key_value().map(|(prefix, why)| (held.len(), *prefix, *why)),
            problem: self.problem.clone(),
        };
        self.board.put(&self.spec.peer.name, view);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let peer = &self.spec.peer.name;
        if let Some(watched) = &self.bfd {
            watched.all.close(peer, self.farewell);
        }
        self.board.remove(peer);
    }
}

async fn changed(bfd: Option<&mut Watched>) {
    match bfd {
        Some(Watched { status: Some(status), .. }) => {
            // Fails when the BFD thread is gone: it has nothing to say any more.
            if status.changed().await.is_err() {
                pending().await
            }
        }
        Some(Watched { status: None, .. }) | None => pending().await,
    }
}

fn session_config(spec: &SessionSpec, start: Start, bfd: bool) -> SessionConfig {
    let peer = &spec.peer;
    SessionConfig {
        // An unnumbered peer is dialled as soon as it is heard.
        mode: match (&peer.address, peer.passive) {
            (PeerAddress::Address(_), true) => Mode::Passive,
            (PeerAddress::Address(_), false) | (PeerAddress::Interface(_), _) => Mode::Active,
        },
        graceful_restart: peer.graceful_restart.then_some(GracefulRestart {
            restart_time: peer.restart_time,
            // Without BFD it would double the time for which a dead node is routed to.
            notification: bfd,
            start,
        }),
        bfd: bfd.then_some(BfdRule { strict: peer.bfd_strict }),
        ..spec.session_config()
    }
}

/// How far away the peer of a session may be.
pub(super) fn hops(spec: &SessionSpec) -> Hops {
    match spec.peer.ttl_security_hops {
        Some(hops) => Hops::Within(hops),
        None if spec.peer.ebgp_multi_hop || spec.is_internal() => Hops::Many,
        None => Hops::One,
    }
}

/// What the segments to and from a peer are signed with.
pub(super) fn key(peer: &Peer) -> Option<Key> {
    let password = peer.password.clone()?;
    Some(match peer.tcp_ao {
        Some(option) => Key::Ao(option, password),
        None => Key::Md5(password),
    })
}

/// Our address on the session for its own family; for the other one a global address of the same
/// interface (RFC 2545 section 3 wants a next hop that the peer can reach). The link-local one where
/// the session is between link-local addresses or the peer is on the same network.
fn local(address: Option<IpAddr>, peer: &Peer, report: &Report) -> Local {
    let interface = report.interfaces.iter().find(|interface| {
        let mut networks = interface.networks.iter();
        match (&peer.address, address) {
            // Every interface may have the same link-local address.
            (PeerAddress::Interface(name), _) => *interface.name == **name,
            (PeerAddress::Address(_), Some(IpAddr::V6(v6))) if v6.is_unicast_link_local() => {
                interface.link_local == Some(v6)
            }
            (PeerAddress::Address(_), _) => networks.any(|network| Some(network.addr()) == address),
        }
    });
    let networks = interface.into_iter().flat_map(|interface| &interface.networks);
    let mut local = Local::default();
    for address in address.into_iter().chain(networks.clone().map(IpNet::addr)) {
        match address {
            IpAddr::V4(v4) => local.v4 = local.v4.or(Some(v4)),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => {}
            IpAddr::V6(v6) => local.v6 = local.v6.or(Some(v6)),
        }
    }
    let own = interface.and_then(|interface| interface.link_local);
    local.link_local = match (address, &peer.address) {
        (Some(IpAddr::V6(v6)), _) if v6.is_unicast_link_local() => Some(v6),
        (Some(IpAddr::V6(_)), PeerAddress::Address(remote)) => {
            let shared = networks.clone().any(|network| network.contains(remote));
            own.filter(|_| shared)
        }
        (_, PeerAddress::Interface(_)) => own,
        (Some(IpAddr::V4(_)) | None, PeerAddress::Address(_)) => None,
    };
    local
}

#[cfg(test)]
mod tests {
    use layer2::{Interface, InterfaceIndex};

    use super::*;
    use crate::fixture::{parse, resources};

    fn report(networks: &[&str]) -> Report {
        let interface = Interface {
            index: InterfaceIndex(2),
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 1, 1],
            up: true,
            networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
            link_local: Some("fe80::1".parse().unwrap()),
            gateways: Vec::new(),
            arp: true,
        };
        Report { interfaces: vec![interface], ..Report::default() }
    }

    fn peer(address: PeerAddress) -> Peer {
        let config = parse(resources(), &[]);
        Peer { address, ..config.peers["tor"].clone() }
    }

    #[test]
    fn next_hops_are_of_the_interface_of_the_session() {
        let both = report(&["10.0.0.11/24", "fd00:a::11/64"]);
        let (v4, v6) = ("10.0.0.11".parse().ok(), "fd00:a::11".parse().ok());
        let link_local = "fe80::1".parse().ok();
        let by = |address: &str| PeerAddress::Address(address.parse().unwrap());
        let unnumbered = PeerAddress::Interface("eth0".to_owned());
        let elsewhere = "192.0.2.1".parse().ok();
        let rows = [
            ("10.0.0.11", by("10.0.0.1"), Local { v4, v6, link_local: None }),
            ("fd00:a::11", by("fd00:a::1"), Local { v4, v6, link_local }),
            ("fd00:a::11", by("fd00:b::1"), Local { v4, v6, link_local: None }),
            ("fe80::1", by("fe80::2"), Local { v4, v6, link_local }),
            ("fe80::1", unnumbered, Local { v4, v6, link_local }),
            ("192.0.2.1", by("10.0.0.1"), Local { v4: elsewhere, v6: None, link_local: None }),
        ];
        for (own, address, expected) in rows {
            let found = local(own.parse().ok(), &peer(address.clone()), &both);
            assert_eq!(found, expected, "{own} towards {address}");
        }
        assert_eq!(local(None, &peer(by("10.0.0.1")), &both), Local::default());
    }

    #[test]
    fn a_peer_says_how_far_it_is_and_how_it_is_signed_for() {
        let spec = |alter: fn(&mut Peer)| {
            let mut peer = peer(PeerAddress::Address([10, 0, 0, 1].into()));
            alter(&mut peer);
            SessionSpec { peer, router_id: [10, 0, 0, 11].into(), bfd: None }
        };
        let one = spec(|_| {});
        assert_eq!((hops(&one), key(&one.peer).is_some()), (Hops::One, false));
        assert_eq!(hops(&spec(|peer| peer.ebgp_multi_hop = true)), Hops::Many);
        assert_eq!(hops(&spec(|peer| peer.peer_asn = config::PeerAsn::Internal)), Hops::Many);
        let secure = spec(|peer| {
            (peer.ebgp_multi_hop, peer.ttl_security_hops) = (true, Some(3));
            peer.password = Some(config::Password("x".to_owned()));
        });
        assert_eq!(hops(&secure), Hops::Within(3));
        assert!(matches!(key(&secure.peer), Some(Key::Md5(_))));
        let config = session_config(&one, Start::Cold, true);
        assert_eq!((config.graceful_restart, config.bfd), (None, Some(BfdRule { strict: true })));
        let restartable = spec(|peer| peer.graceful_restart = true);
        let restart = session_config(&restartable, Start::Forwarding, false).graceful_restart;
        assert!(restart.is_some_and(|restart| !restart.notification));
    }
}
