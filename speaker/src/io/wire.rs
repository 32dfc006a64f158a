//! The wire's shell: the thread that owns the [`Wire`], its packet sockets and the heartbeat socket.
//!
//! It waits for nothing but the next frame, datagram, word from the planner, or deadline. Of the
//! planner's wishes only the newest counts, so a slow planner and a slow wire never wait for each
//! other. On the way of an answer nothing is locked or logged. What touches files is another thread's
//! ([`super::memory`]).

mod shell;
mod taps;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use layer2::{AnnouncerSettings, Interface, announcer};
use ownership::AddressState;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use self::shell::{Ends, Shell};
use super::clock;
use super::heartbeat::seal::{Boot, Seal};
use super::heartbeat::{self, Heartbeat, KeyFiles, Keys};
use super::memory::{Keeper, Life, Store};
use super::packet::{self, Wake};
use crate::wire::{Report, Wanted, Wire};

/// What a speaker's wire needs to know.
#[derive(Debug, Clone)]
pub struct WireConfig {
    /// Memory, and an incarnation that is too low, come from the run directory.
    pub ownership: ownership::Settings,
    pub announcer: AnnouncerSettings,
    /// Where it is remembered what was wanted and owned.
    pub run_dir: PathBuf,
    /// Where heartbeats are heard; `None`: this speaker acts alone. The other speakers use the same
    /// port.
    pub bind: Option<SocketAddr>,
    /// The mounted Secret that heartbeats are sealed with, if it is there. It may come later.
    pub secret_key: PathBuf,
}

/// The planner's end of the wire. The thread ends with it.
#[derive(Debug)]
pub struct WireHandle(Arc<Inbox>);

impl WireHandle {
    /// Adds to what was wanted before.
    pub fn wanted(&self, wanted: Wanted) {
        self.0.put(|letters| match &mut letters.wanted {
            Some(waiting) => waiting.merge(wanted),
            none => *none = Some(wanted),
        });
    }

    /// Replaces the interfaces known before.
    pub fn interfaces(&self, interfaces: Vec<Interface>) {
        self.0.put(|letters| letters.interfaces = Some(interfaces));
    }

    /// Hands over what is owned; done when [`Report::left`] says so.
    pub fn leave(&self) {
        self.0.put(|letters| letters.leave = true);
    }

    /// Ends the thread; done, and everything remembered, when [`Told::report`] closes.
    pub fn stop(&self) {
        self.0.put(|letters| letters.stop = true);
    }

    /// What was counted so far; `None` when the thread has ended.
    pub fn counters(&self) -> impl Future<Output = Option<WireCounters>> + Send + use<> {
        let (asker, answer) = oneshot::channel();
        self.0.put(|letters| letters.counters.push(asker));
        // A thread that has ended leaves the letter where it is.
        async { timeout(ANSWER, answer).await.ok()?.ok() }
    }
}

/// Longest wait for an answer that takes the thread some microseconds.
const ANSWER: Duration = Duration::from_secs(1);

/// What was counted since the thread started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireCounters {
    pub ownership: ownership::Counters,
    pub announcer: announcer::Counters,
    pub heartbeat: heartbeat::Counters,
    /// Frames that the kernel threw away, as they came faster than they were read.
    pub frames_dropped: u64,
    /// Frames that the kernel did not take, or whose interface had gone.
    pub frames_unsent: u64,
    /// Addresses that this node answers for now.
    pub owned: usize,
}

impl Drop for WireHandle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the wire has told of addresses, until the planner looks: the newest of each.
#[derive(Debug, Default)]
pub struct Outbox {
    states: Mutex<BTreeMap<IpAddr, Option<AddressState>>>,
    news: Notify,
}

impl Outbox {
    /// Waits until there is something to [`take`](Self::take).
    pub async fn changed(&self) {
        self.news.notified().await;
    }

    pub fn take(&self) -> BTreeMap<IpAddr, Option<AddressState>> {
        std::mem::take(&mut self.open())
    }

    fn put(&self, states: BTreeMap<IpAddr, Option<AddressState>>) {
        self.open().extend(states);
        self.news.notify_one();
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Option<AddressState>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
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
    keys: Option<Keys>,
    counters: Vec<oneshot::Sender<WireCounters>>,
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

/// What comes from the thread.
#[derive(Debug, Clone)]
pub struct Told {
    /// The newest report; closes when the thread ends.
    pub report: watch::Receiver<Report>,
    pub addresses: Arc<Outbox>,
}

/// Starts the thread, with what an earlier one has remembered.
///
/// # Errors
/// When the heartbeat address cannot be bound or the secret key not be read; both are named.
pub fn spawn(config: WireConfig) -> io::Result<(WireHandle, Told)> {
    let WireConfig { mut ownership, announcer, run_dir, bind, secret_key } = config;
    let store = Store::new(run_dir, ownership.me.clone());
    let remembered = store.read().unwrap_or_default();
    let next = remembered.incarnation.saturating_add(1);
    ownership.incarnation = ownership.incarnation.max(next);
    ownership.memory.clone_from(&remembered.ownership);
    let wanted = remembered.wanted.clone();
    let life = Life { node: ownership.me.clone(), incarnation: ownership.incarnation };

    let mut key_files = KeyFiles::open(secret_key)?;
    let mut heartbeat = open_heartbeat(bind, &life, key_files.keys())?;
    if let (Some(heartbeat), Some(peers)) =
        (&mut heartbeat, wanted.as_ref().and_then(|wanted| wanted.peers.as_ref()))
    {
        heartbeat.set_peers(peers.clone());
    }

    let inbox = Arc::new(Inbox { letters: Mutex::default(), wake: Wake::new()? });
    let keys = Arc::clone(&inbox);
    let keeper = Keeper::start(store, life, remembered, move || match key_files.changed() {
        Ok(None) => {}
        Ok(Some(new)) => {
            info!(previous = new.previous.is_some(), "heartbeats have another secret key");
            keys.put(|letters| letters.keys = Some(new));
        }
        Err(error) => warn!(%error, "the secret key stays as it was"),
    })?;
    let (reports, report) = watch::channel(Report::default());
    let outbox = Arc::new(Outbox::default());
    let told = Told { report, addresses: Arc::clone(&outbox) };
    let handle = WireHandle(Arc::clone(&inbox));
    thread::Builder::new().name("wire".to_owned()).spawn(move || {
        match packet::raise_priority() {
            Ok(priority) => debug!(?priority, "the wire thread goes before others"),
            Err(error) => debug!(%error, "the wire thread is scheduled like any other"),
        }
        let interval = ownership.profile.interval;
        let (wire, actions) = Wire::new(ownership, announcer, wanted, clock::now());
        let ends = Ends { heartbeat, inbox, reports, outbox, keeper };
        Shell::new(wire, actions, ends, interval).run();
    })?;
    Ok((handle, told))
}

fn open_heartbeat(
    bind: Option<SocketAddr>,
    life: &Life,
    keys: Option<&Keys>,
) -> io::Result<Option<Heartbeat>> {
    let Some(address) = bind else {
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
    if keys.is_none() {
        warn!(
            "no secret key: heartbeats are not sealed, and whoever sends from a node's address can \
             take addresses over; set --ml-secret-key-path"
        );
    }
    let boot = Boot { incarnation: life.incarnation, random: random()? };
    let heartbeat = Heartbeat::bind(address, Seal::new(life.node.clone(), boot, keys))?;
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
