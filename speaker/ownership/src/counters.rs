//! What is counted.

use std::collections::BTreeMap;
use std::time::Duration;

/// What was counted since the speaker started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that could not be read.
    pub malformed: u64,
    /// Datagrams from a node that is no peer.
    pub strangers: u64,
    /// Datagrams of a former life of their sender, or meant for one of this node.
    pub stale: u64,
    /// Claims with an epoch that no honest history leads to.
    pub refused: u64,
    /// Peers that were taken for dead and turned out to have lived on.
    pub false_verdicts: u64,
    /// Addresses lost to a higher claim.
    pub yielded: u64,
    /// Take-overs that were put off because the segment answered.
    pub vetoes: u64,
    /// Addresses taken, by what took them from the owner before.
    pub taken: BTreeMap<Cause, u64>,
    /// Beats sent, by how late: upper bounds in microseconds.
    pub lateness: Lateness,
}

/// Why an address came to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Nobody ever had it.
    First,
    /// Its owner died.
    Death,
    /// Its owner handed it over.
    HandOver,
    /// Its owner had stopped without a word.
    Released,
    /// Its owner is no candidate any more and did not hand it over.
    Deposed,
    /// It was this node's in an earlier life.
    Resumed,
    /// It was given back after a restart.
    GivenBack,
    /// To even out.
    Rebalanced,
}

/// How late beats were sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lateness {
    /// How many were at most as late as the bound of the same place, beyond those before it.
    pub buckets: [u64; LATENESS_BOUNDS.len()],
    /// How many were later.
    pub later: u64,
    /// The sum of all.
    pub sum: Duration,
}

/// The bounds of [`Lateness`], in microseconds.
pub const LATENESS_BOUNDS: [u64; 8] = [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 40_000];
