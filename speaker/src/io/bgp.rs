//! All BGP sessions of this speaker: a task for each, which owns the `bgp::Session` and its
//! connection.
//!
//! | module | holds |
//! |---|---|
//! | `driver` | one session's task |
//! | `listener` | connections from passive peers |
//! | `unnumbered` | who is at the other end of an interface |
//! | `memory` | what a speaker finds of its sessions when it starts again |
//! | `board` | what the sessions tell of themselves |

pub mod board;
mod driver;
mod listener;
mod memory;
mod unnumbered;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bgp::{Changes, Start, StopReason};
use clap::ValueEnum;
use config::{NodeName, PeerAddress, PeerName};
use ipnet::IpNet;
use tokio::{
    sync::{Notify, oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    io::{bfd::Bfd, clock, metrics::Metrics},
    planner::{
        SessionSpec,
        sessions::{Change, change},
    },
    wire::Report,
};
use board::Board;
use driver::{Driver, Surroundings};
use listener::Listeners;
use memory::{Announced, Store};

/// Longest wait for a session to say good-bye.
const FAREWELL: Duration = Duration::from_secs(1);

/// Between two writes of what is announced.
const WRITE_PAUSE: Duration = Duration::from_secs(1);
/// So long before the peers drop what they kept, they are told something.
const MARGIN: Duration = Duration::from_secs(2);

/// What peers that kept our routes are told when the API server cannot be read in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnApiUnavailable {
    /// What was announced before stays announced
    Keep,
    /// Everything is withdrawn until the API server has been read
    Withdraw,
}

/// Settings of all sessions.
#[derive(Debug, Clone)]
pub struct SessionsConfig {
    pub node: NodeName,
    /// For what the next life of the speaker is to know.
    pub run_dir: PathBuf,
    /// Where passive peers connect to.
    pub port: u16,
    pub on_api_unavailable: OnApiUnavailable,
}

/// All sessions of this speaker.
#[derive(Debug)]
pub struct Sessions {
    running: BTreeMap<PeerName, Running>,
    /// Sessions that say good-bye.
    leaving: JoinSet<()>,
    complete: bool,
    start: Start,
    on_api_unavailable: OnApiUnavailable,
    store: Store,
    /// What each session that is remembered has announced.
    announced: Announced,
    /// When that is written again.
    write_at: Option<Instant>,
    written_at: Option<Instant>,
    writing: Option<JoinHandle<()>>,
    /// Sessions that began from memory, until everything has been read.
    restored: BTreeMap<PeerName, Restored>,
    listeners: Listeners,
    /// None before the first session that has a profile.
    bfd: Option<Arc<Bfd>>,
    board: Arc<Board>,
    report: watch::Receiver<Report>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Restored {
    /// When its peer has waited for long enough; `None`: it is told already.
    until: Option<Instant>,
    /// The prefixes that were told anew; `None`: the session was not asked for yet.
    fresh: Option<BTreeSet<IpNet>>,
}

#[derive(Debug)]
struct Running {
    inbox: Arc<Inbox>,
    stop: oneshot::Sender<StopReason>,
    task: JoinHandle<()>,
}

impl Sessions {
    /// Those that an earlier life of the speaker left to peers that keep its routes, or none yet.
    pub fn new(
        config: SessionsConfig,
        report: watch::Receiver<Report>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let SessionsConfig { node, run_dir, port, on_api_unavailable } = config;
        let store = Store::new(&run_dir, node);
        let remembered = store.read();
        let mut sessions = Self {
            running: BTreeMap::new(),
            leaving: JoinSet::new(),
            complete: false,
            start: if remembered.is_some() { Start::Forwarding } else { Start::Cold },
            on_api_unavailable,
            store,
            announced: Announced::new(),
            write_at: None,
            written_at: None,
            writing: None,
            restored: BTreeMap::new(),
            listeners: Listeners::new(port),
            bfd: None,
            board: Arc::default(),
            report,
            metrics,
        };
        for (peer, (spec, routes)) in remembered.unwrap_or_default() {
            let until = clock::now() + spec.peer.restart_time.saturating_sub(MARGIN);
            sessions.open(spec);
            sessions.advertise(&peer, routes.into_iter().map(|(p, a)| (p, Some(a))).collect());
            sessions.restored.insert(peer, Restored { until: Some(until), fresh: None });
        }
        sessions
    }

    /// What the sessions tell of themselves.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// Starts a session; one that runs for the same peer ends first, so that the router never sees
    /// two. One that began from memory and is the same goes on.
    pub fn open(&mut self, spec: SessionSpec) {
        let name = spec.peer.name.clone();
        if let (Some(restored), Some((old, _))) =
            (self.restored.get_mut(&name), self.announced.get(&name))
            && !matches!(change(old, &spec), Change::Reset(_))
        {
            restored.fresh = Some(BTreeSet::new());
            return self.update(spec);
        }
        self.restored.remove(&name);
        self.remember(&spec);
        if let Some((_, routes)) = self.announced.get_mut(&name) {
            routes.clear();
        }
        let old = self.running.remove(&name);
        let inbox = Arc::new(Inbox::default());
        if self.complete {
            inbox.tell(|told| told.complete = true);
        }
        let mine = Arc::clone(&inbox);
        let (stop, stopped) = oneshot::channel();
        let surroundings = Surroundings {
            accepted: self.expect(&spec),
            bfd: self.bfd_for(&spec),
            start: self.start,
            board: Arc::clone(&self.board),
            report: self.report.clone(),
        };
        let task = tokio::spawn(async move {
            if let Some(old) = old {
                old.stop(StopReason::ConfigurationChange).await;
            }
            Driver::new(spec, surroundings).run(mine, stopped).await;
        });
        self.running.insert(name, Running { inbox, stop, task });
    }

    /// Goes on with a session under other settings.
    pub fn update(&mut self, spec: SessionSpec) {
        self.remember(&spec);
        let bfd = self.bfd_for(&spec);
        if let Some(running) = self.running.get(&spec.peer.name) {
            running.inbox.tell(|told| told.settings = Some((spec, bfd)));
        }
    }

    /// Ends a session with a Cease; nobody waits for it.
    pub fn close(&mut self, peer: &PeerName, reason: StopReason) {
        self.forget(peer);
        if let Some(running) = self.running.remove(peer) {
            self.leaving.spawn(running.stop(reason));
        }
        while self.leaving.try_join_next().is_some() {}
        self.listeners.tidy();
    }

    /// Waits until the sessions that were closed have said so, at most 1 s.
    pub async fn left(&mut self) {
        self.write().await;
        while self.leaving.join_next().await.is_some() {}
    }

    /// Closes the sessions whose peers keep our routes until this speaker is back, and says whether
    /// there are others.
    pub async fn close_restartable(&mut self) -> bool {
        self.write().await;
        let views = self.board.views();
        let restartable = |peer: &PeerName| {
            let negotiated = views.get(peer).and_then(|view| view.negotiated.as_ref());
            negotiated.is_some_and(|negotiated| negotiated.graceful_restart.is_some())
        };
        let running = std::mem::take(&mut self.running).into_iter();
        let (closing, staying): (Vec<_>, Vec<_>) = running.partition(|(peer, _)| restartable(peer));
        self.running = staying.into_iter().collect();
        for (peer, _) in &closing {
            info!(%peer, "BGP session ends without a word: the peer keeps its routes meanwhile");
        }
        let stops = closing.into_iter().map(|(_, running)| running.stop(StopReason::Restart));
        futures::future::join_all(stops).await;
        !self.running.is_empty()
    }

    /// Tells a session of routes that its peer shall have, or not any more.
    pub fn advertise(&mut self, peer: &PeerName, changes: Changes) {
        if let Some(fresh) = self.restored.get_mut(peer).and_then(|r| r.fresh.as_mut()) {
            fresh.extend(changes.keys());
        }
        if let Some((_, routes)) = self.announced.get_mut(peer) {
            for (prefix, attributes) in &changes {
                match attributes {
                    Some(attributes) => routes.insert(*prefix, Arc::clone(attributes)),
                    None => routes.remove(prefix),
                };
            }
            self.write_soon();
        }
        if let Some(running) = self.running.get(peer) {
            running.inbox.tell(|told| told.changes.extend(changes));
        }
    }

    /// All sessions know what they are to announce. What those from memory announce beside it is
    /// withdrawn, and those that nobody asked for end.
    pub fn complete(&mut self) {
        self.complete = true;
        for (peer, restored) in std::mem::take(&mut self.restored) {
            match restored.fresh {
                Some(fresh) => {
                    let routes = self.announced.get(&peer).map(|(_, routes)| routes.keys());
                    let stale = routes.into_iter().flatten().filter(|p| !fresh.contains(*p));
                    let stale = stale.map(|prefix| (*prefix, None)).collect();
                    self.advertise(&peer, stale);
                }
                None => self.close(&peer, StopReason::PeerDeconfigured),
            }
        }
        for running in self.running.values() {
            running.inbox.tell(|told| told.complete = true);
        }
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.restored.values().filter_map(|restored| restored.until);
        waiting.chain(self.write_at).min()
    }

    /// Does what is due: writes what is to be remembered, and tells the peers that have waited for
    /// long enough for an API server that is away.
    pub fn handle_timeout(&mut self, now: Instant) {
        let waited = |restored: &Restored| restored.until.is_some_and(|until| until <= now);
        let due = self.restored.iter().filter(|(_, restored)| waited(restored));
        for peer in due.map(|(peer, _)| peer.clone()).collect::<Vec<_>>() {
            warn!(%peer, then = ?self.on_api_unavailable, "the API server cannot be read");
            if self.on_api_unavailable == OnApiUnavailable::Withdraw
                && let Some((_, routes)) = self.announced.get(&peer)
            {
                let gone = routes.keys().map(|prefix| (*prefix, None)).collect();
                self.advertise(&peer, gone);
            }
            if let Some(restored) = self.restored.get_mut(&peer) {
                restored.until = None;
            }
            if let Some(running) = self.running.get(&peer) {
                running.inbox.tell(|told| told.complete = true);
            }
        }
        if self.write_at.is_some_and(|at| at <= now) {
            // One at a time, so that the newest stands in the end.
            if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
                self.write_at = Some(now + WRITE_PAUSE);
            } else {
                self.write_at = None;
                self.written_at = Some(now);
                let (store, announced) = (self.store.clone(), self.announced.clone());
                self.writing = Some(tokio::task::spawn_blocking(move || store.write(&announced)));
            }
        }
    }

    /// Writes what is to be remembered, if that is not what is written.
    async fn write(&mut self) {
        if let Some(writing) = self.writing.take() {
            // Fails only if it panicked, which has been told.
            let _ = writing.await;
        }
        if self.write_at.take().is_some() {
            self.store.write(&self.announced);
        }
    }

    /// The first change is written at once, as the speaker may be killed any time; those that follow
    /// are gathered.
    fn write_soon(&mut self) {
        let paused = self.written_at.map(|at| at + WRITE_PAUSE);
        self.write_at.get_or_insert_with(|| clock::now().max(paused.unwrap_or_else(clock::now)));
    }

    fn remember(&mut self, spec: &SessionSpec) {
        let name = &spec.peer.name;
        if memory::is_remembered(spec) {
            let (_, routes) = self.announced.remove(name).unzip();
            self.announced.insert(name.clone(), (spec.clone(), routes.unwrap_or_default()));
            self.write_soon();
        } else {
            self.forget(name);
        }
    }

    fn forget(&mut self, peer: &PeerName) {
        self.restored.remove(peer);
        if self.announced.remove(peer).is_some() {
            self.write_soon();
        }
    }

    fn expect(&mut self, spec: &SessionSpec) -> driver::Accepted {
        self.listeners.tidy();
        let peer = &spec.peer;
        match &peer.address {
            PeerAddress::Address(address) if peer.passive => {
                let (hops, key) = (driver::hops(spec), driver::key(peer));
                let vrf = peer.vrf.as_deref();
                self.listeners
                    .expect(*address, vrf, hops, key.as_ref())
                    .map(Some)
                    .map_err(|error| error.to_string())
            }
            PeerAddress::Address(_) | PeerAddress::Interface(_) => Ok(None),
        }
    }

    fn bfd_for(&mut self, spec: &SessionSpec) -> Option<Arc<Bfd>> {
        spec.bfd.as_ref()?;
        if self.bfd.is_none() {
            match Bfd::start(Arc::clone(&self.metrics.bfd)) {
                Ok(bfd) => self.bfd = Some(Arc::new(bfd)),
                Err(error) => warn!(%error, "there is no BFD: its thread cannot be started"),
            }
        }
        self.bfd.clone()
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

/// What a session has not read yet, merged: a prefix that came and went meanwhile costs nothing.
#[derive(Debug, Default)]
struct Inbox {
    told: Mutex<Told>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Told {
    changes: Changes,
    complete: bool,
    settings: Option<(SessionSpec, Option<Arc<Bfd>>)>,
}

impl Inbox {
    fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    fn take(&self) -> Told {
        std::mem::take(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
