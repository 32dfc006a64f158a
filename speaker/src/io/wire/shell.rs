//! The thread of the wire: one loop that waits, reads, does what is due, and performs actions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use layer2::{Interface, InterfaceIndex};
use tokio::sync::watch;
use tracing::{debug, error, warn};

use super::taps::{Protocol, Taps};
use super::{Inbox, Letters, Outbox, WireCounters};
use crate::io::clock;
use crate::io::heartbeat::seal::Refusal;
use crate::io::heartbeat::{Heartbeat, Received};
use crate::io::memory::Keeper;
use crate::io::packet::{self, Frames, Watched};
use crate::wire::{Action, Event, Report, Wire};

/// How often one socket is read before others, and the deadlines, have their turn; a flood gets no
/// more than that.
const READS: usize = 4;
/// Datagrams read likewise. More than arrive in a pause of half a second (50 peers, 25 beats per
/// second each), so that no peer is given up while its beats wait to be read.
const DATAGRAMS: usize = 1024;
/// When an interface that could not be opened is tried again, should netlink not speak of it before.
const RETRY: Duration = Duration::from_secs(5);

/// A thread that wakes more often than [`CALM`] times in [`SPAN`] has much to read, be it a flood or a
/// thousand addresses that are announced: it then lets frames gather for [`BREATH`] before it reads
/// on, until it has had less to do for a [`SPAN`]. One wake for each frame costs more than the frames.
const CALM: u32 = 5;
const SPAN: Duration = Duration::from_millis(10);
const BREATH: Duration = Duration::from_millis(1);

/// How long the addresses that matter must stay the same until the filters are made for them: a
/// thousand that come one by one are not to cost a thousand filters.
const SETTLED: Duration = Duration::from_millis(50);
/// How often what is to be remembered is handed on, at most. It is copied whole.
const REMEMBER: Duration = Duration::from_millis(200);

type Datagram = [u8; 65536];

/// See the module.
pub struct Shell {
    wire: Wire,
    ends: Ends,
    taps: Taps,
    /// As netlink has told.
    interfaces: Vec<Interface>,
    retry_at: Option<Instant>,
    /// Which addresses the filters were last opened for, and when they are closed around them.
    heeded: u64,
    close_filters_at: Option<Instant>,
    /// When there may be something to remember, and it is time.
    remember_at: Option<Instant>,
    remembered_at: Option<Instant>,
    owned: BTreeSet<IpAddr>,
    /// Of a loop that comes back later than this nobody knows why, nor what others did meanwhile.
    /// What neighbors asked before is not answered: the address may be another's by now.
    pause: Duration,
    wakes: Wakes,
    complaints: Complaints,
    planned: bool,
    stop: bool,
}

/// Where the thread's news come from and go to.
pub struct Ends {
    pub heartbeat: Option<Heartbeat>,
    pub inbox: Arc<Inbox>,
    pub reports: watch::Sender<Report>,
    pub outbox: Arc<Outbox>,
    pub keeper: Keeper,
}

/// Where something to read comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Heartbeat,
    Frames(InterfaceIndex, Protocol),
    Inbox,
}

impl Shell {
    /// `actions` are the first of the wire; it beats at this `interval`.
    pub fn new(wire: Wire, actions: Vec<Action>, ends: Ends, interval: Duration) -> Self {
        let planned = ends.heartbeat.as_ref().is_some_and(Heartbeat::has_peers);
        let mut shell = Self {
            wire,
            ends,
            taps: Taps::default(),
            interfaces: Vec::new(),
            retry_at: None,
            heeded: 0,
            close_filters_at: None,
            remember_at: None,
            remembered_at: None,
            owned: BTreeSet::new(),
            pause: interval,
            wakes: Wakes { since: clock::now(), count: 0, many: false },
            complaints: Complaints::default(),
            planned,
            stop: false,
        };
        shell.perform(actions);
        shell
    }

    /// Until it is told to stop. What is to be remembered is written when it returns.
    pub fn run(mut self) {
        let mut frames = Frames::default();
        let mut datagram: Box<Datagram> = Box::new([0; 65536]);
        while !self.stop {
            let (sources, mut watched) = self.sources();
            // Until the inbox brings other interfaces the same sockets are watched.
            let mut same = true;
            while same {
                let paused = self.wait(&mut watched) > self.pause;
                for (source, watched) in sources.iter().zip(&watched) {
                    if watched.readable() || watched.failed() {
                        match *source {
                            Source::Heartbeat => self.read_datagrams(&mut datagram),
                            Source::Frames(interface, protocol) => {
                                if watched.failed() {
                                    self.taps.take_error(interface, protocol);
                                }
                                if paused {
                                    self.taps.discard(interface, protocol, &mut frames);
                                } else {
                                    self.read_frames(interface, protocol, &mut frames);
                                }
                            }
                            Source::Inbox => same = self.read_inbox(),
                        }
                    }
                }
                same &= self.do_what_is_due();
            }
        }
        if let Some(memory) = self.wire.memory() {
            self.ends.keeper.keep(memory);
        }
        self.ends.keeper.finish();
    }

    /// What to watch, in the order of reading: heartbeats before deadlines can declare anybody dead,
    /// lost interfaces before netlink's word on them.
    fn sources(&self) -> (Vec<Source>, Vec<Watched>) {
        let heartbeat =
            self.ends.heartbeat.iter().map(|heartbeat| (Source::Heartbeat, heartbeat.as_fd()));
        let taps = self.taps.sockets();
        let taps = taps.map(|(interface, protocol, fd)| (Source::Frames(interface, protocol), fd));
        let inbox = std::iter::once((Source::Inbox, self.ends.inbox.wake.as_fd()));
        let all = heartbeat.chain(taps).chain(inbox);
        all.map(|(source, fd)| (source, Watched::new(fd))).unzip()
    }

    /// How late that is for what was due first.
    fn wait(&mut self, watched: &mut [Watched]) -> Duration {
        let own = [self.retry_at, self.close_filters_at, self.remember_at];
        let next = own.into_iter().flatten().chain(self.wire.poll_timeout()).min();
        let now = clock::now();
        let mut timeout = next.map(|at| at.saturating_duration_since(now));
        if self.wakes.are_many(now) {
            let breath = timeout.map_or(BREATH, |timeout| timeout.min(BREATH));
            thread::sleep(breath);
            timeout = timeout.map(|timeout| timeout.saturating_sub(breath));
        }
        if let Err(error) = packet::wait(watched, timeout) {
            self.complaints.about("poll", || warn!(%error, "cannot wait for packets"));
            // The kernel is out of memory; do not make that worse.
            thread::sleep(SPAN);
        }
        next.map_or(Duration::ZERO, |at| clock::now().saturating_duration_since(at))
    }

    fn read_datagrams(&mut self, buffer: &mut Datagram) {
        let Some(heartbeat) = &mut self.ends.heartbeat else { return };
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
                    self.complaints.about(reason.reason(), || {
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

    fn read_frames(&mut self, interface: InterfaceIndex, protocol: Protocol, frames: &mut Frames) {
        for _ in 0..READS {
            let Some(read) = self.taps.read(interface, protocol, frames) else { return };
            let all = read.len() < Frames::COUNT;
            let now = clock::now();
            let mut actions = Vec::new();
            for frame in read {
                actions.append(&mut self.wire.handle(Event::Frame { interface, frame }, now));
            }
            self.perform(actions);
            if all {
                return;
            }
        }
    }

    /// Whether the sockets are still the same.
    fn read_inbox(&mut self) -> bool {
        let Letters { wanted, interfaces, keys, counters, leave, stop } = self.ends.inbox.take();
        let same = interfaces.is_none();
        if let Some(interfaces) = interfaces {
            self.interfaces = interfaces;
            self.set_interfaces();
        }
        if let (Some(heartbeat), Some(keys)) = (&mut self.ends.heartbeat, keys) {
            heartbeat.set_keys(&keys);
        }
        if let Some(wanted) = wanted {
            self.planned = true;
            if let (Some(heartbeat), Some(peers)) = (&mut self.ends.heartbeat, &wanted.peers) {
                heartbeat.set_peers(peers.clone());
            }
            let actions = self.wire.handle(Event::Wanted(wanted), clock::now());
            self.perform(actions);
        }
        if leave {
            let actions = self.wire.handle(Event::Leave, clock::now());
            self.perform(actions);
        }
        for asker in counters {
            // Who no longer waits needs no answer.
            let _ = asker.send(self.counters());
        }
        self.stop |= stop;
        same && !self.stop
    }

    fn counters(&mut self) -> WireCounters {
        let heartbeat = self.ends.heartbeat.as_ref();
        WireCounters {
            ownership: self.wire.ownership().counters().clone(),
            announcer: self.wire.announcer().counters().clone(),
            heartbeat: heartbeat.map(|heartbeat| heartbeat.counters().clone()).unwrap_or_default(),
            frames_dropped: self.taps.dropped(),
            frames_unsent: self.taps.unsent(),
            owned: self.owned.len(),
        }
    }

    /// Brings the sockets in line with the interfaces, and tells the wire.
    fn set_interfaces(&mut self) {
        let mut interfaces = self.interfaces.clone();
        self.retry_at = None;
        self.taps.follow(&mut interfaces, |interface, error| {
            self.retry_at = Some(clock::now() + RETRY);
            self.complaints.about("open", || {
                error!(
                    interface = interface.name,
                    %error,
                    "cannot answer for addresses on this interface (layer 2 needs CAP_NET_RAW)"
                );
            });
        });
        let actions = self.wire.handle(Event::Interfaces(interfaces), clock::now());
        self.perform(actions);
    }

    /// Whether the sockets are still the same.
    fn do_what_is_due(&mut self) -> bool {
        let now = clock::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.wire.poll_timeout()) {
            let actions = self.wire.handle_timeout(now);
            self.perform(actions);
        }
        if due(self.close_filters_at) {
            self.close_filters_at = None;
            self.taps.close_filters(&self.wire.announcer().heeded().collect());
        }
        if due(self.remember_at) {
            self.remember_at = None;
            self.remembered_at = Some(now);
            if let Some(memory) = self.wire.memory() {
                self.ends.keeper.keep(memory);
            }
        }
        let retry = due(self.retry_at);
        if retry {
            self.set_interfaces();
        }
        !retry
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let now = clock::now();
        let heeded = self.wire.announcer().heeded_version();
        if heeded != self.heeded {
            // Before the first question goes out, or its answer would not come in.
            self.heeded = heeded;
            self.taps.open_filters();
            self.close_filters_at = Some(now + SETTLED);
        }
        let remember_at = self.remembered_at.map_or(now, |at| now.max(at + REMEMBER));
        self.remember_at.get_or_insert(remember_at);
        for action in actions {
            match action {
                Action::SendFrame { interface, frame } => {
                    if let Err(error) = self.taps.send(interface, &frame) {
                        self.complaints.about("frame", || {
                            warn!(interface = interface.0, %error, "cannot send a frame");
                        });
                    }
                }
                Action::JoinGroup { interface, group } => {
                    if let Err(error) = self.taps.join(interface, group) {
                        self.complaints.about("join", || {
                            warn!(interface = interface.0, %group, %error, "cannot join a group");
                        });
                    }
                }
                Action::LeaveGroup { interface, group } => {
                    if let Err(error) = self.taps.leave(interface, group) {
                        debug!(interface = interface.0, %group, %error, "cannot leave a group");
                    }
                }
                Action::SendDatagram { to, address, payload } => {
                    let Some(heartbeat) = &mut self.ends.heartbeat else { continue };
                    if let Err(error) = heartbeat.send(&to, address, &payload) {
                        self.complaints.about("datagram", || {
                            warn!(node = %to, %error, "cannot send a heartbeat");
                        });
                    }
                }
                Action::Addresses(states) => {
                    for (address, state) in &states {
                        if state.as_ref().is_some_and(|state| state.stage.answers()) {
                            self.owned.insert(*address);
                        } else {
                            self.owned.remove(address);
                        }
                    }
                    self.ends.outbox.put(states);
                }
                Action::Report(report) => {
                    self.ends.reports.send_replace(report);
                }
            }
        }
    }
}

/// How often the thread woke since then.
#[derive(Debug)]
struct Wakes {
    since: Instant,
    count: u32,
    /// In the span before this one.
    many: bool,
}

impl Wakes {
    /// Counts one more.
    fn are_many(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) > SPAN {
            *self = Self { since: now, count: 0, many: self.count > CALM };
        }
        self.count += 1;
        self.many || self.count > CALM
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
