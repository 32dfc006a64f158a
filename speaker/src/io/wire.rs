//! The wire's shell: the thread that owns the [`Wire`], its packet sockets and the heartbeat socket.
//!
//! It waits for nothing but the next frame, datagram, word from the planner, or deadline. Of the
//! planner's wishes only the newest counts, so a slow planner and a slow wire never wait for each
//! other. On the way of an answer nothing is locked or logged.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use layer2::{Interface, InterfaceIndex, NodeName};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::clock;
use super::heartbeat::{Boot, Heartbeat, Keys, Received, Refusal, Seal};
use super::packet::{self, PacketSocket, Tap, Wake, Watched};
use crate::wire::{Action, Event, Report, Wanted, Wire};

/// What a speaker's wire needs to know.
#[derive(Debug, Clone)]
pub struct WireConfig {
    pub me: NodeName,
    /// Higher at each start of this node's speaker.
    pub incarnation: u64,
    /// Where heartbeats are heard; `None`: this speaker acts alone. The other speakers use the same
    /// port.
    pub bind: Option<SocketAddr>,
    /// The mounted Secret that heartbeats are sealed with.
    pub secret_key: Option<PathBuf>,
}

/// The planner's end of the wire. The thread ends with it.
#[derive(Debug)]
pub struct WireHandle(Arc<Inbox>);

impl WireHandle {
    /// Replaces what was wanted before.
    pub fn wanted(&self, wanted: Wanted) {
        self.0.put(|letters| letters.wanted = Some(wanted));
    }

    /// Replaces the interfaces known before.
    pub fn interfaces(&self, interfaces: Vec<Interface>) {
        self.0.put(|letters| letters.interfaces = Some(interfaces));
    }

    /// Hands over what is owned; done when [`Report::left`] says so.
    pub fn leave(&self) {
        self.0.put(|letters| letters.leave = true);
    }
}

impl Drop for WireHandle {
    fn drop(&mut self) {
        self.0.put(|letters| letters.stop = true);
    }
}

/// The newest of each kind of word to the thread.
#[derive(Debug)]
struct Inbox {
    letters: Mutex<Letters>,
    wake: Wake,
}

#[derive(Debug, Default)]
struct Letters {
    wanted: Option<Wanted>,
    interfaces: Option<Vec<Interface>>,
    leave: bool,
    stop: bool,
}

impl Inbox {
    fn put(&self, write: impl FnOnce(&mut Letters)) {
        write(&mut self.open());
        self.wake.wake();
    }

    fn take(&self) -> Letters {
        self.wake.clear();
        std::mem::take(&mut self.open())
    }

    fn open(&self) -> MutexGuard<'_, Letters> {
        // A letter is whole or not there, whoever panicked.
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread. The receiver holds the newest report; it closes when the thread ends.
///
/// # Errors
/// When the heartbeat address cannot be bound or the secret key not be read; both are named.
pub fn spawn(config: WireConfig) -> io::Result<(WireHandle, watch::Receiver<Report>)> {
    let heartbeat = open_heartbeat(&config)?;
    let inbox = Arc::new(Inbox { letters: Mutex::default(), wake: Wake::new()? });
    let (reports, report) = watch::channel(Report::default());
    let handle = WireHandle(Arc::clone(&inbox));
    thread::Builder::new().name("wire".to_owned()).spawn(move || {
        match packet::raise_priority() {
            Ok(priority) => debug!(?priority, "the wire thread goes before others"),
            Err(error) => debug!(%error, "the wire thread is scheduled like any other"),
        }
        let wire = Wire::new(config.me, config.incarnation, clock::now());
        Shell::new(wire, heartbeat, inbox, reports).run();
    })?;
    Ok((handle, report))
}

fn open_heartbeat(config: &WireConfig) -> io::Result<Option<Heartbeat>> {
    let Some(address) = config.bind else {
        warn!("no address for heartbeats: this speaker takes every address that it may announce");
        return Ok(None);
    };
    if matches!(address.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        warn!(
            %address,
            "heartbeats are off, as a link-local address cannot carry them: this speaker takes \
             every address that it may announce; set --ml-bindaddr to another address of this node"
        );
        return Ok(None);
    }
    let keys = match &config.secret_key {
        Some(path) => Keys::read(path)?,
        None => None,
    };
    if keys.is_none() {
        warn!(
            "no secret key: heartbeats are not sealed, and whoever sends from a node's address can \
             take addresses over; set --ml-secret-key-path"
        );
    }
    let boot = Boot { incarnation: config.incarnation, random: random()? };
    let heartbeat = Heartbeat::bind(address, Seal::new(config.me.clone(), boot, keys.as_ref()))?;
    info!(%address, sealed = keys.is_some(), "heartbeats");
    Ok(Some(heartbeat))
}

fn random() -> io::Result<u64> {
    let mut octets = [0; 8];
    SystemRandom::new()
        .fill(&mut octets)
        .map_err(|_| io::Error::other("the kernel gives no random numbers"))?;
    Ok(u64::from_be_bytes(octets))
}

/// Frames read from one socket before others, and the deadlines, have their turn; a flood gets no
/// more than that.
const FRAMES: usize = 256;
/// Datagrams read likewise. More than arrive in a pause of half a second (50 peers, 25 beats per
/// second each), so that no peer is given up while its beats wait to be read.
const DATAGRAMS: usize = 1024;
/// When an interface that could not be opened is tried again, should netlink not speak of it before.
const RETRY: Duration = Duration::from_secs(5);

/// A thread that wakes more often than [`CALM`] times in [`SPAN`] is being flooded: it then lets frames
/// gather for [`BREATH`] before it reads on. One wake for each frame is what makes a flood dear.
const CALM: u32 = 20;
const SPAN: Duration = Duration::from_millis(10);
const BREATH: Duration = Duration::from_micros(500);

/// The largest frame of neighbor discovery that makes sense fits.
type Frame = [u8; 2048];
type Datagram = [u8; 65536];

struct Shell {
    wire: Wire,
    heartbeat: Option<Heartbeat>,
    inbox: Arc<Inbox>,
    reports: watch::Sender<Report>,
    /// As netlink has told.
    interfaces: Vec<Interface>,
    taps: BTreeMap<InterfaceIndex, OpenTap>,
    retry_at: Option<Instant>,
    /// Since when wakes are counted, and how many there were.
    wakes: (Instant, u32),
    complaints: Complaints,
    planned: bool,
    stop: bool,
}

struct OpenTap {
    tap: Tap,
    /// Its interface was lost. The sockets hear again when it only went down, and never when it was
    /// replaced by another of the same index; so they are opened anew at netlink's next word.
    lost: bool,
}

/// Where something to read comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Heartbeat,
    Arp(InterfaceIndex),
    Ndp(InterfaceIndex),
    Inbox,
}

impl Shell {
    fn new(
        wire: Wire,
        heartbeat: Option<Heartbeat>,
        inbox: Arc<Inbox>,
        reports: watch::Sender<Report>,
    ) -> Self {
        Self {
            wire,
            heartbeat,
            inbox,
            reports,
            interfaces: Vec::new(),
            taps: BTreeMap::new(),
            retry_at: None,
            wakes: (clock::now(), 0),
            complaints: Complaints::default(),
            planned: false,
            stop: false,
        }
    }

    fn run(mut self) {
        let mut frame: Frame = [0; 2048];
        let mut datagram: Box<Datagram> = Box::new([0; 65536]);
        while !self.stop {
            let (sources, mut watched) = self.sources();
            // Until the inbox brings other interfaces the same sockets are watched.
            let mut same = true;
            while same {
                self.wait(&mut watched);
                for (source, watched) in sources.iter().zip(&watched) {
                    if watched.readable() || watched.failed() {
                        match *source {
                            Source::Heartbeat => self.read_datagrams(&mut datagram),
                            Source::Arp(interface) => {
                                self.read_frames(interface, Tap::arp, watched, &mut frame);
                            }
                            Source::Ndp(interface) => {
                                self.read_frames(interface, Tap::ndp, watched, &mut frame);
                            }
                            Source::Inbox => same = self.read_inbox(),
                        }
                    }
                }
                same &= self.do_what_is_due();
            }
        }
    }

    /// What to watch, in the order of reading: heartbeats before deadlines can declare anybody dead,
    /// lost interfaces before netlink's word on them.
    fn sources(&self) -> (Vec<Source>, Vec<Watched>) {
        let heartbeat =
            self.heartbeat.iter().map(|heartbeat| (Source::Heartbeat, heartbeat.as_fd()));
        let taps = self.taps.iter().flat_map(|(&interface, OpenTap { tap, .. })| {
            [
                (Source::Arp(interface), tap.arp().as_fd()),
                (Source::Ndp(interface), tap.ndp().as_fd()),
            ]
        });
        let inbox = std::iter::once((Source::Inbox, self.inbox.wake.as_fd()));
        let all = heartbeat.chain(taps).chain(inbox);
        all.map(|(source, fd)| (source, Watched::new(fd))).unzip()
    }

    fn wait(&mut self, watched: &mut [Watched]) {
        let next = self.wire.poll_timeout().into_iter().chain(self.retry_at).min();
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
            self.complaints.about("poll", || warn!(%error, "cannot wait for packets"));
            // The kernel is out of memory; do not make that worse.
            thread::sleep(SPAN);
        }
    }

    fn read_datagrams(&mut self, buffer: &mut Datagram) {
        let Some(heartbeat) = &mut self.heartbeat else { return };
        let mut actions = Vec::new();
        for _ in 0..DATAGRAMS {
            match heartbeat.receive(buffer) {
                Ok(Received::Nothing) => break,
                Ok(Received::Datagram { from, payload }) => {
                    let event = Event::Datagram { from, payload };
                    actions.append(&mut self.wire.handle(event, clock::now()));
                }
                // Nobody is known before the planner has said who is there.
                Ok(Received::Refused { reason: Refusal::Stranger, .. }) if !self.planned => {}
                Ok(Received::Refused { source, reason }) => {
                    self.complaints.about(kind(reason), || {
                        warn!(%source, %reason, "heartbeat refused");
                    });
                }
                // An error of the socket, such as one that ICMP brought; reading has taken it.
                Err(error) => {
                    self.complaints.about("receive", || warn!(%error, "cannot receive heartbeats"));
                    break;
                }
            }
        }
        self.perform(actions);
    }

    fn read_frames(
        &mut self,
        interface: InterfaceIndex,
        socket: fn(&Tap) -> &PacketSocket,
        watched: &Watched,
        buffer: &mut Frame,
    ) {
        for _ in 0..FRAMES {
            let Some(open) = self.taps.get_mut(&interface) else { return };
            let socket = socket(&open.tap);
            if watched.failed()
                && let Some(error) = socket.take_error()
            {
                open.lost = true;
                debug!(interface = interface.0, %error, "packet socket");
            }
            match socket.receive(buffer) {
                Ok(Some(frame)) => {
                    let event = Event::Frame { interface, frame };
                    let actions = self.wire.handle(event, clock::now());
                    self.perform(actions);
                }
                Ok(None) => return,
                Err(error) => {
                    open.lost = true;
                    debug!(interface = interface.0, %error, "packet socket");
                    return;
                }
            }
        }
    }

    /// Whether the sockets are still the same.
    fn read_inbox(&mut self) -> bool {
        let letters = self.inbox.take();
        let mut same = true;
        if let Some(interfaces) = letters.interfaces {
            self.interfaces = interfaces;
            self.set_interfaces();
            same = false;
        }
        if let Some(wanted) = letters.wanted {
            self.planned = true;
            if let Some(heartbeat) = &mut self.heartbeat {
                heartbeat.set_peers(wanted.peers.clone());
            }
            let actions = self.wire.handle(Event::Wanted(wanted), clock::now());
            self.perform(actions);
        }
        if letters.leave {
            let actions = self.wire.handle(Event::Leave, clock::now());
            self.perform(actions);
        }
        self.stop |= letters.stop;
        same && !self.stop
    }

    /// Opens and closes sockets to match the interfaces, and tells the wire. One that cannot be
    /// opened counts as down, so that nobody relies on its answers.
    fn set_interfaces(&mut self) {
        let mut interfaces = self.interfaces.clone();
        self.taps.retain(|index, _| interfaces.iter().any(|interface| interface.index == *index));
        self.retry_at = None;
        for interface in &mut interfaces {
            if self.taps.get(&interface.index).is_some_and(|open| !open.lost) {
                continue;
            }
            let before = self.taps.remove(&interface.index);
            match reopen(interface.index, before) {
                Ok(tap) => {
                    self.taps.insert(interface.index, OpenTap { tap, lost: false });
                }
                Err(error) => {
                    interface.up = false;
                    self.retry_at = Some(clock::now() + RETRY);
                    self.complaints.about("open", || {
                        error!(
                            interface = interface.name,
                            %error,
                            "cannot answer for addresses on this interface (layer 2 needs CAP_NET_RAW)"
                        );
                    });
                }
            }
        }
        let actions = self.wire.handle(Event::Interfaces(interfaces), clock::now());
        self.perform(actions);
    }

    /// Whether the sockets are still the same.
    fn do_what_is_due(&mut self) -> bool {
        let now = clock::now();
        if self.wire.poll_timeout().is_some_and(|at| at <= now) {
            let actions = self.wire.handle_timeout(now);
            self.perform(actions);
        }
        let retry = self.retry_at.is_some_and(|at| at <= now);
        if retry {
            self.set_interfaces();
        }
        !retry
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::SendFrame { interface, frame } => {
                    // An interface that has just gone needs no answers.
                    let Some(open) = self.taps.get(&interface) else { continue };
                    if let Err(error) = open.tap.send(&frame) {
                        self.complaints.about("frame", || {
                            warn!(interface = interface.0, %error, "cannot send a frame");
                        });
                    }
                }
                Action::JoinGroup { interface, group } => {
                    let Some(open) = self.taps.get_mut(&interface) else { continue };
                    if let Err(error) = open.tap.join(group) {
                        self.complaints.about("join", || {
                            warn!(interface = interface.0, %group, %error, "cannot join a group");
                        });
                    }
                }
                Action::LeaveGroup { interface, group } => {
                    let Some(open) = self.taps.get_mut(&interface) else { continue };
                    if let Err(error) = open.tap.leave(group) {
                        debug!(interface = interface.0, %group, %error, "cannot leave a group");
                    }
                }
                Action::SendDatagram { to, address, payload } => {
                    let Some(heartbeat) = &mut self.heartbeat else { continue };
                    if let Err(error) = heartbeat.send(&to, address, &payload) {
                        self.complaints.about("datagram", || {
                            warn!(node = %to, %error, "cannot send a heartbeat");
                        });
                    }
                }
                Action::Report(report) => {
                    self.reports.send_replace(report);
                }
            }
        }
    }
}

/// Opens the sockets of an interface, with the groups of those before them.
fn reopen(interface: InterfaceIndex, before: Option<OpenTap>) -> io::Result<Tap> {
    let mut tap = Tap::open(interface)?;
    for group in before.iter().flat_map(|before| before.tap.groups()) {
        tap.join(*group)?;
    }
    Ok(tap)
}

fn kind(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Malformed => "malformed",
        Refusal::Stranger => "stranger",
        Refusal::Plain => "plain",
        Refusal::Sealed => "sealed",
        Refusal::WrongKey => "wrong key",
        Refusal::Replayed => "replayed",
    }
}

/// Errors that can come with every packet, of which a log is to show one now and then.
#[derive(Debug, Default)]
struct Complaints(BTreeMap<&'static str, Complaint>);

#[derive(Debug)]
struct Complaint {
    again_at: Instant,
    kept_back: u64,
}

impl Complaints {
    /// How long one kind of error stays silent after it was logged.
    const PAUSE: Duration = Duration::from_secs(10);

    fn about(&mut self, kind: &'static str, log: impl FnOnce()) {
        let now = clock::now();
        let complaint = self.0.entry(kind).or_insert(Complaint { again_at: now, kept_back: 0 });
        if now < complaint.again_at {
            complaint.kept_back += 1;
            return;
        }
        if complaint.kept_back > 0 {
            warn!(kind, times = complaint.kept_back, "the following also happened before");
        }
        *complaint = Complaint { again_at: now + Self::PAUSE, kept_back: 0 };
        log();
    }
}
