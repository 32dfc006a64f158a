//! The thread of BFD: one loop that waits, reads, does what is due, and sends.

use std::{
    collections::BTreeMap,
    io,
    num::{NonZeroU8, NonZeroU32},
    os::fd::AsFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bfd::{
    Action, Authentication, AuthenticationKind, Discard, Event, Received, Role, Session, Settings,
    State, Timing,
};
use config::{BfdProfile, PeerName};
use crds::BFDAuthenticationType;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::sockets::{Datagram, Entrance, Listener, MOST_HOPS, Sender};
use super::{BfdStatus, Farewell, Inbox, Letter, Path};
use crate::io::{
    clock,
    metrics::bfd::BfdMetrics,
    packet::{self, Watched},
};

/// How often one socket is read before others, and the deadlines, have their turn. More than arrive
/// in a pause of a tenth of a second from 100 peers at 10 ms, so that no peer is given up while its
/// packets wait to be read.
const READS: usize = 1024;
/// When a socket that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How old the counters that others see may be while packets come.
const COUNTED: Duration = Duration::from_secs(1);

/// A thread that wakes more often than [`CALM`] times in [`SPAN`] lets datagrams gather for
/// [`BREATH`] before it reads on: one wake for each is what makes a flood dear.
const CALM: u32 = 40;
const SPAN: Duration = Duration::from_millis(10);
const BREATH: Duration = Duration::from_micros(500);

/// See the module.
pub struct Shell {
    inbox: Arc<Inbox>,
    metrics: Arc<BfdMetrics>,
    watches: BTreeMap<Arc<Path>, Watch>,
    /// Of the sessions in `watches`: RFC 5880 section 6.3.
    by_discriminator: BTreeMap<NonZeroU32, Arc<Path>>,
    listeners: BTreeMap<Entrance, Listener>,
    /// Since when wakes are counted, and how many there were.
    wakes: (Instant, u32),
    stop: bool,
}

/// A session with everything around it.
struct Watch {
    session: Session,
    minimum_ttl: u8,
    /// Who wants to know; nobody while the session says good-bye.
    peers: BTreeMap<PeerName, watch::Sender<BfdStatus>>,
    sender: Option<Sender>,
    /// The port that the session spoke from first; afterwards it keeps it if it can.
    port: u16,
    since: Instant,
    told_at: Instant,
    /// When to try again what `problem` says.
    retry_at: Option<Instant>,
    problem: Option<String>,
}

impl Shell {
    pub fn new(inbox: Arc<Inbox>, metrics: Arc<BfdMetrics>) -> Self {
        Self {
            inbox,
            metrics,
            watches: BTreeMap::new(),
            by_discriminator: BTreeMap::new(),
            listeners: BTreeMap::new(),
            wakes: (clock::now(), 0),
            stop: false,
        }
    }

    /// Until it is told to stop.
    pub fn run(mut self) {
        while !self.stop {
            let listeners = self.listeners.values().map(AsFd::as_fd);
            let mut watched: Vec<_> =
                listeners.chain([self.inbox.wake.as_fd()]).map(Watched::new).collect();
            self.wait(&mut watched);
            // Packets before deadlines: a late thread must not take a peer for dead whose packets
            // wait to be read.
            let speaks = |watched: &Watched| watched.readable() || watched.failed();
            let speaking: Vec<Entrance> = self
                .listeners
                .keys()
                .zip(&watched)
                .filter(|(_, watched)| speaks(watched))
                .map(|(entrance, _)| entrance.clone())
                .collect();
            for entrance in speaking {
                self.read(&entrance);
            }
            if watched.last().is_some_and(speaks) {
                self.read_inbox();
            }
            self.do_what_is_due();
        }
    }

    fn wait(&mut self, watched: &mut [Watched]) {
        let next = self.watches.values().filter_map(Watch::poll_timeout).min();
        let now = clock::now();
        let mut timeout = next.map(|at| at.saturating_duration_since(now));
        let (since, count) = &mut self.wakes;
        if now.duration_since(*since) > SPAN {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count > CALM {
            let breath = timeout.map_or(BREATH, |timeout| timeout.min(BREATH));
            thread::sleep(breath);
            timeout = timeout.map(|timeout| timeout.saturating_sub(breath));
        }
        if let Err(error) = packet::wait(watched, timeout) {
            warn!(%error, "cannot wait for BFD packets");
            // The kernel is out of memory; do not make that worse.
            thread::sleep(SPAN);
        }
    }

    fn read(&mut self, entrance: &Entrance) {
        let Some(listener) = self.listeners.get_mut(entrance) else { return };
        for _ in 0..READS {
            match listener.receive() {
                Ok(Some(datagram)) => {
                    let now = clock::now();
                    match find(&self.watches, &self.by_discriminator, entrance, &datagram) {
                        Ok((path, received)) => {
                            let path = Arc::clone(path);
                            if let Some(watch) = self.watches.get_mut(&path) {
                                watch.receive(&path, received, datagram.hops, now);
                            }
                        }
                        Err(discard) => self.metrics.stray(discard),
                    }
                }
                Ok(None) => return,
                // Reading has taken the error, whatever it was.
                Err(error) => {
                    debug!(%error, "cannot receive BFD packets");
                    return;
                }
            }
        }
    }

    fn read_inbox(&mut self) {
        let now = clock::now();
        for letter in self.inbox.take() {
            match letter {
                Letter::Open { peer, path, profile, status } => {
                    // On the same path the session goes on.
                    if self.path(&peer).is_some_and(|before| before != path) {
                        self.close(&peer, Farewell::Silent, now);
                    }
                    self.open(peer, path, &profile, status, now);
                }
                Letter::Change { peer, profile } => {
                    let Some(path) = self.path(&peer) else { continue };
                    if let Some(watch) = self.watches.get_mut(&path) {
                        watch.configure(&path, &profile, now);
                    }
                }
                Letter::Close { peer, farewell } => self.close(&peer, farewell, now),
                Letter::Stop => self.stop = true,
            }
        }
        self.sweep();
    }

    fn open(
        &mut self,
        peer: PeerName,
        path: Arc<Path>,
        profile: &BfdProfile,
        status: watch::Sender<BfdStatus>,
        now: Instant,
    ) {
        // One that says good-bye has ended for the peer: another name tells it that this one is new.
        if self.watches.get(&path).is_some_and(|watch| watch.peers.is_empty()) {
            self.remove(&path);
        }
        if let Some(watch) = self.watches.get_mut(&path) {
            watch.peers.insert(peer, status);
            watch.configure(&path, profile, now);
            watch.tell(now);
            return;
        }
        let discriminator = self.discriminator();
        let mut watch = Watch::new(discriminator, profile, now);
        watch.peers.insert(peer, status);
        self.by_discriminator.insert(discriminator, Arc::clone(&path));
        self.watches.insert(path, watch);
        self.do_what_is_due();
    }

    /// Random, so that nobody who does not see our packets can guess it, and that a session after a
    /// restart is not taken for the one before.
    fn discriminator(&self) -> NonZeroU32 {
        loop {
            let random = NonZeroU32::new(rand::random());
            let free = |random: &NonZeroU32| !self.by_discriminator.contains_key(random);
            if let Some(discriminator) = random.filter(free) {
                return discriminator;
            }
        }
    }

    /// What a peer has watched.
    fn path(&self, peer: &PeerName) -> Option<Arc<Path>> {
        let mut all = self.watches.iter();
        all.find(|(_, watch)| watch.peers.contains_key(peer)).map(|(path, _)| Arc::clone(path))
    }

    fn close(&mut self, peer: &PeerName, farewell: Farewell, now: Instant) {
        let Some(path) = self.path(peer) else { return };
        let Some(watch) = self.watches.get_mut(&path) else { return };
        watch.peers.remove(peer);
        if !watch.peers.is_empty() {
            return;
        }
        match farewell {
            Farewell::AdminDown => {
                let actions = watch.session.handle(Event::Stop, now);
                watch.perform(&path, actions, now);
            }
            Farewell::Silent => self.remove(&path),
        }
    }

    fn remove(&mut self, path: &Path) {
        if let Some(watch) = self.watches.remove(path) {
            self.by_discriminator.remove(&watch.session.discriminator());
        }
    }

    /// Away with sessions that have said good-bye, and with sockets that nobody needs any more.
    fn sweep(&mut self) {
        let over: Vec<Arc<Path>> = self
            .watches
            .iter()
            .filter(|(_, watch)| watch.is_over())
            .map(|(path, _)| Arc::clone(path))
            .collect();
        for path in &over {
            self.remove(path);
        }
        let watches = &self.watches;
        self.listeners.retain(|entrance, _| watches.keys().any(|path| path.entrance == *entrance));
    }

    fn do_what_is_due(&mut self) {
        let now = clock::now();
        let mut over = false;
        for (path, watch) in &mut self.watches {
            if watch.session.poll_timeout().is_some_and(|at| at <= now) {
                let actions = watch.session.handle_timeout(now);
                watch.perform(path, actions, now);
            }
            if watch.retry_at.is_some_and(|at| at <= now) {
                watch.retry_at = None;
                let opened = listen(&mut self.listeners, &path.entrance)
                    .and_then(|()| Sender::open(path, watch.port));
                watch.start(path, opened, now);
            }
            over |= watch.is_over();
        }
        if over {
            self.sweep();
        }
    }
}

/// The session that a datagram is for.
fn find<'w, 'd>(
    watches: &'w BTreeMap<Arc<Path>, Watch>,
    by_discriminator: &'w BTreeMap<NonZeroU32, Arc<Path>>,
    entrance: &Entrance,
    datagram: &Datagram<'d>,
) -> Result<(&'w Arc<Path>, Received<'d>), Discard> {
    let received = Received::read(datagram.payload)?;
    let path = match received.packet().your_discriminator {
        Some(yours) => by_discriminator.get(&yours).filter(|path| path.entrance == *entrance),
        None => {
            let mut at_source = watches.iter().filter(|(path, watch)| {
                let interface = watch.sender.as_ref().and_then(Sender::interface);
                path.remote == datagram.source
                    && path.entrance == *entrance
                    && path.local.is_none_or(|local| local == datagram.destination)
                    && interface.is_none_or(|interface| interface == datagram.interface)
            });
            at_source.next().map(|(path, _)| path)
        }
    };
    Ok((path.ok_or(Discard::NoSession)?, received))
}

fn listen(listeners: &mut BTreeMap<Entrance, Listener>, entrance: &Entrance) -> io::Result<()> {
    if !listeners.contains_key(entrance) {
        let port = entrance.port();
        let listener = Listener::open(entrance).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; another program on this node speaks BFD",
                _ => "",
            };
            io::Error::new(error.kind(), format!("listening on UDP port {port}: {error}{hint}"))
        })?;
        listeners.insert(entrance.clone(), listener);
    }
    Ok(())
}

impl Watch {
    /// It starts when its sockets are there.
    fn new(discriminator: NonZeroU32, profile: &BfdProfile, now: Instant) -> Self {
        let (settings, problem) = match settings(profile) {
            Ok(settings) => (settings, None),
            Err(problem) => (unauthenticated(profile), Some(problem)),
        };
        Self {
            session: Session::new(discriminator, settings, rand::random()),
            minimum_ttl: profile.minimum_ttl,
            peers: BTreeMap::new(),
            sender: None,
            port: rand::random(),
            since: now,
            told_at: now,
            // One whose key is unusable must not run without any.
            retry_at: problem.is_none().then_some(now),
            problem,
        }
    }

    /// It was told to go and has said good-bye.
    fn is_over(&self) -> bool {
        self.peers.is_empty() && self.session.poll_timeout().is_none()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        [self.session.poll_timeout(), self.retry_at].into_iter().flatten().min()
    }

    fn configure(&mut self, path: &Path, profile: &BfdProfile, now: Instant) {
        self.minimum_ttl = profile.minimum_ttl;
        match settings(profile) {
            Ok(settings) => {
                let actions = self.session.handle(Event::Configure(settings), now);
                self.perform(path, actions, now);
                if self.sender.is_none() {
                    self.retry_at = Some(now);
                }
                self.set_problem(path, None, now);
            }
            Err(problem) => self.set_problem(path, Some(problem), now),
        }
    }

    fn start(&mut self, path: &Path, opened: io::Result<Sender>, now: Instant) {
        match opened {
            Ok(sender) => {
                self.port = sender.port();
                debug!(peer = %path.remote, port = sender.port(), "a BFD session has its socket");
                self.sender = Some(sender);
                self.set_problem(path, None, now);
                if !self.peers.is_empty() {
                    let actions = self.session.handle(Event::Start, now);
                    self.perform(path, actions, now);
                }
            }
            Err(error) => {
                self.retry_at = Some(now + RETRY);
                self.set_problem(path, Some(error.to_string()), now);
            }
        }
    }

    fn set_problem(&mut self, path: &Path, problem: Option<String>, now: Instant) {
        if self.problem != problem {
            if let Some(problem) = &problem {
                warn!(peer = %path.remote, %problem, "BFD does not watch a peer");
            }
            self.problem = problem;
            self.tell(now);
        }
    }

    fn receive(&mut self, path: &Path, received: Received<'_>, hops: u8, now: Instant) {
        let before = (self.session.transmit_interval(), self.session.detection_time());
        let fewest = if path.entrance.multihop { self.minimum_ttl } else { MOST_HOPS };
        if hops < fewest {
            self.session.discard(Discard::Hops);
        } else {
            let actions = self.session.handle(Event::Received(received), now);
            self.perform(path, actions, now);
        }
        let after = (self.session.transmit_interval(), self.session.detection_time());
        if before != after || now.duration_since(self.told_at) >= COUNTED {
            self.tell(now);
        }
    }

    fn perform(&mut self, path: &Path, actions: Vec<Action>, now: Instant) {
        let mut changed = false;
        for action in actions {
            match action {
                Action::Send(payload) => {
                    let sent = self.sender.as_ref().map(|sender| sender.send(&payload));
                    if let Some(Err(error)) = sent {
                        debug!(peer = %path.remote, %error, "cannot send a BFD packet");
                        if device_is_gone(&error) {
                            self.sender = None;
                            self.retry_at = Some(now + RETRY);
                        }
                    }
                }
                Action::StateChanged { state, diagnostic, peer } => {
                    changed = true;
                    self.since = now;
                    let Path { remote, interface, .. } = path;
                    match state {
                        State::Up => info!(peer = %remote, interface, "BFD: Up"),
                        State::Down if peer == State::AdminDown => {
                            info!(peer = %remote, interface, "BFD: the peer is in AdminDown");
                        }
                        State::Down => {
                            info!(peer = %remote, interface, reason = %diagnostic, "BFD: Down");
                        }
                        State::AdminDown | State::Init => {
                            debug!(peer = %remote, interface, %state, "BFD");
                        }
                    }
                }
            }
        }
        if changed {
            self.tell(now);
        }
    }

    /// Shows how the session is; wakes those who watch only if more has changed than counters.
    fn tell(&mut self, now: Instant) {
        self.told_at = now;
        let peer = self.session.peer();
        let status = BfdStatus {
            state: self.session.state(),
            since: self.since,
            diagnostic: self.session.diagnostic(),
            remote_state: peer.state,
            remote_diagnostic: peer.diagnostic,
            transmit_interval: self.session.transmit_interval(),
            detection_time: self.session.detection_time(),
            counters: self.session.counters().clone(),
            problem: self.problem.clone(),
        };
        for watcher in self.peers.values() {
            watcher.send_if_modified(|shown| {
                let counters = shown.counters.clone();
                let same = BfdStatus { counters, ..status.clone() } == *shown;
                *shown = status.clone();
                !same
            });
        }
    }
}

fn device_is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL | libc::EINVAL)
    )
}

/// What a profile says of a session, or why its key cannot be used.
fn settings(profile: &BfdProfile) -> Result<Settings, String> {
    let Some(wanted) = &profile.authentication else { return Ok(unauthenticated(profile)) };
    let kind = match wanted.kind {
        BFDAuthenticationType::KeyedMD5 => AuthenticationKind::KeyedMd5,
        BFDAuthenticationType::MeticulousKeyedMD5 => AuthenticationKind::MeticulousKeyedMd5,
        BFDAuthenticationType::KeyedSHA1 => AuthenticationKind::KeyedSha1,
        BFDAuthenticationType::MeticulousKeyedSHA1 => AuthenticationKind::MeticulousKeyedSha1,
    };
    let authentication = Authentication::new(kind, wanted.key_id, wanted.key.0.as_bytes())
        .map_err(|error| format!("BFDProfile {}: {error}", profile.name))?;
    Ok(Settings { authentication: Some(authentication), ..unauthenticated(profile) })
}

fn unauthenticated(profile: &BfdProfile) -> Settings {
    Settings {
        role: if profile.passive_mode { Role::Passive } else { Role::Active },
        timing: Timing {
            desired_min_tx: profile.transmit_interval,
            required_min_rx: profile.receive_interval,
            detect_multiplier: NonZeroU8::new(profile.detect_multiplier).unwrap_or(NonZeroU8::MIN),
        },
        authentication: None,
    }
}
