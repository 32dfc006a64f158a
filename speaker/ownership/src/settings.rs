//! What a speaker is told when it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::{Claim, NodeName};

/// How often speakers beat, the same on all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// The time between two beats (T), more than zero.
    pub interval: Duration,
    /// How many missed beats make a peer dead (m), at least 1.
    pub misses: u32,
}

impl Profile {
    /// 40 ms, 4 beats.
    pub const DEFAULT: Self = Self { interval: Duration::from_millis(40), misses: 4 };
    /// 20 ms, 4 beats.
    pub const FAST: Self = Self { interval: Duration::from_millis(20), misses: 4 };
    /// 200 ms, 5 beats.
    pub const RELAXED: Self = Self { interval: Duration::from_millis(200), misses: 5 };
}

/// How the segment is asked before an address is announced for the first time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConflictProbe {
    /// As before every take-over: [`Asking::Fast`].
    #[default]
    Fast,
    /// [`Asking::Thorough`].
    Rfc,
    /// Not at all.
    Off,
}

/// What a speaker needs to know of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// This node.
    pub me: NodeName,
    /// Which life of the speaker this is; each one's is higher than that of the one before.
    pub incarnation: u64,
    /// How often it beats.
    pub profile: Profile,
    /// What precedes a first announcement.
    pub conflict_probe: ConflictProbe,
    /// Whether addresses move, one a second, until all candidates have alike many.
    pub rebalance: bool,
    /// What an earlier life has left.
    pub memory: Memory,
}

impl Settings {
    /// A speaker with the default profile that remembers nothing.
    pub fn new(me: NodeName, incarnation: u64) -> Self {
        Self {
            me,
            incarnation,
            profile: Profile::DEFAULT,
            conflict_probe: ConflictProbe::Fast,
            rebalance: false,
            memory: Memory::default(),
        }
    }
}

/// What outlives the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// The best claim seen for each address.
    pub claims: BTreeMap<IpAddr, Claim>,
    /// What was handed over because the speaker was to end, with no drain going on, at most ten
    /// minutes ago: it is asked back for.
    pub handed_over: BTreeSet<IpAddr>,
}
