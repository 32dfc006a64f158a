//! All BFD sessions of this speaker, on one thread of their own that nothing but packets, deadlines
//! and word from here wakes.
//!
//! A session belongs to a path, not to a peer: peers that differ only in their ports share one, with
//! the profile that was given last. What follows when a session goes down is the BGP sessions' matter.

mod shell;
mod sockets;

use std::{
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use bfd::{Counters, Diagnostic, State};
use config::{BfdProfile, PeerName};
use tokio::sync::watch;
use tracing::debug;

use self::shell::Shell;
use self::sockets::{Entrance, Family};
use super::{
    clock,
    metrics::bfd::{BfdMetrics, Labels},
    packet::{self, Wake},
};

/// The sessions. The thread ends with it, and says nothing to the peers.
#[derive(Debug)]
pub struct Bfd {
    inbox: Arc<Inbox>,
    metrics: Arc<BfdMetrics>,
}

/// A session that a BGP peer wants.
#[derive(Debug, Clone)]
pub struct BfdSpec {
    pub peer: PeerName,
    /// Its address.
    pub remote: IpAddr,
    /// The address to speak from; the kernel's choice if none.
    pub local: Option<IpAddr>,
    /// The device that the peer is behind. Link-local addresses need it; not for multihop.
    pub interface: Option<String>,
    /// The VRF's device.
    pub vrf: Option<String>,
    /// The peer may be behind routers (RFC 5883): another port, and TTLs down to the profile's.
    pub multihop: bool,
    pub profile: BfdProfile,
}

/// What to say to a peer whose session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// That it ends on purpose, for a detection time: nothing is wrong with the path.
    AdminDown,
    /// Nothing; the peer takes the path for broken after its detection time.
    Silent,
}

/// How a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BfdStatus {
    pub state: State,
    /// Since when it is in that state.
    pub since: Instant,
    /// Why it is not Up, or was not the last time.
    pub diagnostic: Diagnostic,
    /// What the peer said last of itself.
    pub remote_state: State,
    /// See `remote_state`.
    pub remote_diagnostic: Diagnostic,
    /// How often packets are sent, before jitter; `None`: not at all.
    pub transmit_interval: Option<Duration>,
    /// How long the peer may be silent.
    pub detection_time: Duration,
    /// As of the last change of the above, and not more than some seconds old while packets come.
    /// A change of them alone wakes nobody.
    pub counters: Counters,
    /// Why there are no packets, in words for people.
    pub problem: Option<String>,
}

impl BfdStatus {
    /// Whether the session was ever Up. One that never was says nothing about the path: the peer may
    /// have no BFD.
    pub fn was_up(&self) -> bool {
        self.counters.up > 0
    }

    /// How often the path was found broken: Up was lost, and nobody had meant it. Who relies on the
    /// path gives it up each time that this is higher than before, even when it is Up again already
    /// (RFC 5882 section 4.2).
    pub fn failures(&self) -> u64 {
        self.counters.failures
    }
}

impl Default for BfdStatus {
    /// Of a session that has not begun.
    fn default() -> Self {
        Self {
            state: State::Down,
            since: clock::now(),
            diagnostic: Diagnostic::None,
            remote_state: State::Down,
            remote_diagnostic: Diagnostic::None,
            transmit_interval: None,
            detection_time: Duration::ZERO,
            counters: Counters::default(),
            problem: None,
        }
    }
}

impl Bfd {
    /// Starts the thread. Sockets are opened for sessions, in the network namespace of the caller.
    ///
    /// # Errors
    /// When the kernel gives no thread or no file descriptor.
    pub fn start(metrics: Arc<BfdMetrics>) -> io::Result<Self> {
        let inbox = Arc::new(Inbox { letters: Mutex::default(), wake: Wake::new()? });
        let shell = Shell::new(Arc::clone(&inbox), Arc::clone(&metrics));
        thread::Builder::new().name("bfd".to_owned()).spawn(move || {
            match packet::raise_priority() {
                Ok(priority) => debug!(?priority, "the BFD thread goes before others"),
                Err(error) => debug!(%error, "the BFD thread is scheduled like any other"),
            }
            shell.run();
        })?;
        Ok(Self { inbox, metrics })
    }

    /// Begins a session; one that the same peer has ends without a word. The receiver tells of every
    /// change of state, intervals or problem, and closes when the session was closed.
    pub fn open(&self, spec: BfdSpec) -> watch::Receiver<BfdStatus> {
        let (sender, receiver) = watch::channel(BfdStatus::default());
        let BfdSpec { peer, profile, .. } = spec.clone();
        let path = Arc::new(Path::of(spec));
        self.metrics.opened(Arc::clone(&peer), path.labels(), receiver.clone());
        self.inbox.put(Letter::Open { peer, path, profile, status: sender });
        receiver
    }

    /// Other intervals, role, TTL or authentication, without a flap as far as the peer plays along.
    pub fn change(&self, peer: &PeerName, profile: BfdProfile) {
        self.inbox.put(Letter::Change { peer: Arc::clone(peer), profile });
    }

    /// Ends a session. Other peers on the same path keep theirs.
    pub fn close(&self, peer: &PeerName, farewell: Farewell) {
        self.metrics.closed(peer);
        self.inbox.put(Letter::Close { peer: Arc::clone(peer), farewell });
    }
}

impl Drop for Bfd {
    fn drop(&mut self) {
        self.inbox.put(Letter::Stop);
    }
}

/// What a session watches. There is one for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Path {
    entrance: Entrance,
    remote: IpAddr,
    local: Option<IpAddr>,
    interface: Option<String>,
}

impl Path {
    fn of(spec: BfdSpec) -> Self {
        let BfdSpec { peer: _, remote, local, interface, vrf, multihop, profile: _ } = spec;
        let family = match remote {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        Self { entrance: Entrance { family, multihop, vrf }, remote, local, interface }
    }

    fn labels(&self) -> Labels {
        let peer = match (&self.interface, self.remote) {
            (Some(interface), IpAddr::V6(remote)) if remote.is_unicast_link_local() => {
                format!("{remote}%{interface}")
            }
            _ => self.remote.to_string(),
        };
        Labels { peer, vrf: self.entrance.vrf.clone().unwrap_or_else(|| "default".to_owned()) }
    }
}

/// Word to the thread, in order.
#[derive(Debug)]
struct Inbox {
    letters: Mutex<Vec<Letter>>,
    wake: Wake,
}

#[derive(Debug)]
enum Letter {
    Open { peer: PeerName, path: Arc<Path>, profile: BfdProfile, status: watch::Sender<BfdStatus> },
    Change { peer: PeerName, profile: BfdProfile },
    Close { peer: PeerName, farewell: Farewell },
    Stop,
}

impl Inbox {
    fn put(&self, letter: Letter) {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).push(letter);
        self.wake.wake();
    }

    fn take(&self) -> Vec<Letter> {
        self.wake.clear();
        std::mem::take(&mut self.letters.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
