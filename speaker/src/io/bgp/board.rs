//! What the sessions tell of themselves: each writes its own entry, statuses and metrics read all.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bgp::{BfdGate, HeldBack, Negotiated, StateKind, Stats};
use config::PeerName;
use ipnet::IpNet;
use tokio::sync::Notify;

use crate::{io::bfd::BfdStatus, planner::SessionSpec};

/// The newest view of every session.
#[derive(Debug, Default)]
pub struct Board {
    views: Mutex<BTreeMap<PeerName, SessionView>>,
    changed: Notify,
}

/// One session as it is.
#[derive(Debug, Clone)]
pub struct SessionView {
    /// What it is configured to be. Its password is not for printing.
    pub spec: Arc<SessionSpec>,
    pub state: StateKind,
    /// Since when it is in that state.
    pub since: Instant,
    pub stats: Stats,
    /// From OpenConfirm on.
    pub negotiated: Option<Negotiated>,
    /// Whether BFD keeps an Established session from announcing.
    pub gate: BfdGate,
    /// None where no BFD profile is named.
    pub bfd: Option<BfdStatus>,
    /// Routes that an Established session cannot announce: how many, the first of them and why.
    pub held_back: Option<(usize, IpNet, HeldBack)>,
    /// What stands in the way of connecting, in words for people.
    pub problem: Option<String>,
}

impl Board {
    /// All sessions there are now.
    pub fn views(&self) -> BTreeMap<PeerName, SessionView> {
        self.lock().clone()
    }

    /// Waits until a session has another state, or is gone, since the last call. For one reader.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes the reader only when something is different that a person would look at.
    pub(in crate::io) fn put(&self, peer: &PeerName, view: SessionView) {
        let old = self.lock().insert(peer.clone(), view.clone());
        let same = old.is_some_and(|old| {
            old.state == view.state
                && old.gate == view.gate
                && old.problem == view.problem
                && old.held_back == view.held_back
                && old.bfd.map(|bfd| bfd.state) == view.bfd.map(|bfd| bfd.state)
                && old.stats.last_reset_at == view.stats.last_reset_at
                && old.stats.advertised_prefixes == view.stats.advertised_prefixes
        });
        if !same {
            self.changed.notify_one();
        }
    }

    pub(in crate::io) fn remove(&self, peer: &PeerName) {
        self.lock().remove(peer);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PeerName, SessionView>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
