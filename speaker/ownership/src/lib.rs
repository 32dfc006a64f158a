//! Agrees with the other speakers which node answers for an address (docs/design/0005).
//!
//! Speakers tell each other by datagrams that they live and what they hold; nobody else is asked. A
//! claim is an epoch, a node and the life of its speaker; the highest claim in force wins. Whoever
//! answers goes on answering; an address that nobody answers for is taken by the first in an order
//! that every speaker computes alike, and only after the segment was asked for it in vain.
//!
//! Pure: it takes events with the time they happened at, returns actions, and says by
//! `poll_timeout` when it wants to be woken. Datagrams are trusted as far as the caller's transport
//! vouches for their sender.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The name of a node.
pub type NodeName = Arc<str>;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Who may own an address. Shared by all addresses of which the same is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidates {
    /// The nodes that may.
    pub nodes: BTreeSet<NodeName>,
    /// The score of nodes that are preferred or shunned; a node that is not named has 0.
    pub preference: BTreeMap<NodeName, i32>,
    /// The interfaces of a node on which alone it may answer; a node that is not named may on any.
    pub interfaces: BTreeMap<NodeName, BTreeSet<String>>,
}

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

/// Who claims an address. Ordered by how strong a claim is only together with the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// At least 1; never falls.
    pub epoch: u64,
    /// The claimant.
    pub owner: NodeName,
    /// The life of the claimant's speaker in which it was claimed or taken up again.
    pub incarnation: u64,
}

/// What a speaker knows of the cluster: the first is whole, later ones may be changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The highest resource version that it is made from; 0 if none is known.
    pub version: u64,
    /// Whether addresses that are not named are wanted no longer, or as before.
    pub extent: Extent,
    /// Who may own an address; `None` if it is not to be answered for any more.
    pub addresses: BTreeMap<IpAddr, Option<Arc<Candidates>>>,
    /// All other nodes with a speaker, if that has changed.
    pub peers: Option<BTreeSet<NodeName>>,
    /// Whether this node is being drained, if that has changed.
    pub draining: Option<bool>,
}

/// How much of a view is named in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    #[default]
    Whole,
    /// What has changed.
    Changes,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// What is known of the cluster has changed.
    View(View),
    /// All interfaces of this node that can answer now, with their addresses; none: it is cut off.
    Stations(BTreeMap<String, Mac>),
    /// The gateways of this node: hosts on the segment whose silence tells that it is cut off.
    Gateways(BTreeSet<IpAddr>),
    /// A datagram arrived.
    Datagram {
        /// The node that the transport says it is from.
        from: &'a str,
        /// Its content.
        payload: &'a [u8],
    },
    /// A station of the segment that is not this node's spoke of an address that is owned here or
    /// was asked for.
    Heard {
        /// Which.
        address: IpAddr,
        /// The station.
        mac: Mac,
        /// What it said.
        form: Heard,
    },
    /// Nobody has answered for an address that was asked for, in the time given for it.
    Silence(IpAddr),
    /// The speaker is to end: hand everything over. Done when nothing is owned any more.
    Leave,
}

/// What a station says of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// That it has it: an answer or an announcement.
    Has,
    /// That it would like to have it: a probe before use.
    Probes,
}

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a datagram.
    Send {
        /// To whom.
        to: NodeName,
        /// Its content, at most 1,200 octets.
        payload: Vec<u8>,
    },
    /// From now on this node answers for these addresses: announce them.
    Own(Vec<IpAddr>),
    /// From now on it does not answer for these any more.
    Disown(Vec<IpAddr>),
    /// Neighbors may hold a stale entry for these addresses, which are owned: announce them again.
    Repeat(Vec<IpAddr>),
    /// Ask the segment for an address; answered by [`Event::Heard`] or [`Event::Silence`].
    Ask {
        /// Which.
        address: IpAddr,
        /// How.
        how: Asking,
    },
    /// The answer does not matter any more; none is expected.
    StopAsking(IpAddr),
    /// What is known of an address has changed; `None`: nothing any more.
    State(IpAddr, Option<AddressState>),
    /// A peer lives, again, or anew after a restart that was not noticed otherwise.
    PeerUp(NodeName),
    /// A peer is dead, or no peer any more.
    PeerDown(NodeName),
    /// Nothing is owned any more after [`Event::Leave`].
    Left,
}

/// How an address is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asking {
    /// Three probes, silence after 25 ms.
    Fast,
    /// As RFC 5227 section 2.1.1 has it, which takes up to 7 s.
    Thorough,
    /// One question, silence after 100 ms.
    Once,
}

/// What is known of an address on this node, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressState {
    /// Who answers, as far as is known here.
    pub owner: Option<NodeName>,
    /// How far this node is.
    pub stage: Stage,
    /// Of the best claim; 0 if there never was one.
    pub epoch: u64,
    /// A station that is no cluster node's has the address; while this node does not own it, it
    /// is not announced for that reason.
    pub conflict: Option<Mac>,
    /// Whether the answer was seen on the wire. Of interest where this node is the owner.
    pub proof: Proof,
}

/// How far a node is with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is another's, or nobody's that this node could take.
    Idle,
    /// The speaker has just started and claims nothing yet.
    Listening,
    /// The segment is being asked whether somebody answers.
    Probing,
    /// This node answers.
    Owner,
    /// This node answers until another does.
    HandingOver,
    /// This node owns it but is cut off and has stopped answering.
    Fenced,
}

impl Stage {
    /// Whether this node answers.
    pub fn answers(self) -> bool {
        match self {
            Self::Owner | Self::HandingOver => true,
            Self::Idle | Self::Listening | Self::Probing | Self::Fenced => false,
        }
    }
}

/// What another speaker saw when it asked the segment for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// Nobody has asked yet.
    NotYet,
    /// The owner answered.
    Seen {
        /// Who asked.
        by: NodeName,
    },
    /// Another station answered.
    Wrong {
        /// Who asked.
        by: NodeName,
        /// The station.
        mac: Mac,
    },
    /// Nobody answered.
    Silent {
        /// Who asked.
        by: NodeName,
    },
}

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

/// The core.
#[derive(Debug)]
pub struct Ownership {
    counters: Counters,
}

impl Ownership {
    /// A speaker that starts now. It listens before it claims anything.
    pub fn new(_settings: Settings, _now: Instant) -> Self {
        Self { counters: Counters::default() }
    }

    /// Takes an event in.
    pub fn handle(&mut self, _event: Event<'_>, _now: Instant) -> Vec<Action> {
        Vec::new()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Instant) -> Vec<Action> {
        Vec::new()
    }

    /// When `handle_timeout` has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// What is to outlive the process.
    pub fn memory(&self) -> Memory {
        Memory::default()
    }

    /// Whether [`memory`](Self::memory) has changed since this was last asked.
    pub fn take_memory_changed(&mut self) -> bool {
        false
    }

    /// The peers that live.
    pub fn live_peers(&self) -> impl Iterator<Item = &NodeName> {
        std::iter::empty()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
