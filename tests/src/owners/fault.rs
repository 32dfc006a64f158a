//! What can go wrong, and right again.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use ownership::Candidates;

use super::api::Lie;

/// One thing that happens to a cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The speaker, or its node, is gone without a word.
    Crash(usize),
    /// A speaker starts, with what its disk has.
    Boot(usize, Disk),
    /// SIGTERM; the process ends when everything is handed over.
    Leave(usize),
    /// The node is drained, or no longer.
    Drain(usize, bool),
    /// The process stands still for so long.
    Freeze(usize, Duration, Inbox),
    /// The node's only interface is gone.
    LinkDown(usize),
    LinkUp(usize),
    /// These nodes do not reach the others.
    Split(BTreeSet<usize>, Path),
    /// What the first sends does not reach the second.
    Cut(usize, usize, Path),
    /// All cuts and splits are over.
    Heal,
    /// From now on so many of a hundred datagrams are lost.
    Loss(u8),
    /// From now on datagrams are late by up to this much.
    Delay(Duration),
    /// From now on so many of a hundred frames are lost.
    FrameLoss(u8),
    /// The node hears nothing of the API server for so long.
    Stale(usize, Duration),
    /// What the node reads is bent from the next change on.
    Lie(usize, Option<Lie>),
    /// Whether the gateway answers.
    Gateway(bool),
    /// A foreign host answers for an address, or no longer.
    Foreign(IpAddr, bool),
    /// Who may own an address; none: it is wanted no longer.
    Wanted(IpAddr, Option<Arc<Candidates>>),
    /// What is on a node's disk says that it owns everything, with this epoch.
    Forge(usize, u64),
    /// Recorded datagrams of former lives are sent again.
    Replay,
}

/// What a new life of a speaker finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// What the last one left.
    Kept,
    /// Nothing.
    Lost,
    /// What some earlier one left.
    Old,
}

/// What becomes of what arrives while a process stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbox {
    Kept,
    Lost,
}

/// What a cut goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Only what speakers send each other.
    Datagrams,
    /// The data path too.
    Everything,
}
