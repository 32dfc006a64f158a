//! What is known of one peer: its life, and what it said last.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::message::{Age, Flags, Tag};
use crate::{Mac, NodeName};

/// A node that went away more than [`DEPARTURES`] times within this time comes last for as long.
const UNSTEADY: Duration = Duration::from_secs(600);
const DEPARTURES: usize = 3;

#[derive(Debug)]
pub(crate) struct Peer {
    /// As it is shared by all that speak of it.
    pub(crate) name: NodeName,
    pub(crate) tag: Tag,
    /// As it said last; kept after its death: it may answer for addresses even so.
    pub(crate) stations: BTreeMap<String, Mac>,
    /// `None` until it has been heard, or heard of.
    pub(crate) life: Option<Life>,
    pub(crate) paces: Paces,
    pub(crate) departures: VecDeque<Instant>,
}

/// How soon a peer is answered again.
#[derive(Debug, Default)]
pub(crate) struct Paces {
    /// Its greetings.
    pub(crate) greet_from: Option<Instant>,
    /// Its outdated claims.
    pub(crate) correct_from: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) incarnation: u64,
    pub(crate) sequence: u64,
    pub(crate) verdict: Verdict,
    pub(crate) since: Instant,
    /// When a datagram of it was last taken in.
    pub(crate) heard: Option<Instant>,
    /// When it is dead if it is not heard by then; `None` if others watch it.
    pub(crate) deadline: Option<Instant>,
    pub(crate) beat: Option<Heartbeat>,
    pub(crate) accusers: BTreeSet<NodeName>,
}

/// What a peer said in its last beat.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    pub(crate) at: Instant,
    pub(crate) flags: Flags,
    pub(crate) owned: u32,
    pub(crate) version: u64,
    pub(crate) ages: Vec<Age>,
    pub(crate) unsteady: Vec<Tag>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Lives,
    Dead,
}

/// What a beat changes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    /// What addresses are dealt out by.
    pub(crate) prospects: bool,
    pub(crate) stations: bool,
    pub(crate) version: bool,
    pub(crate) resumption: bool,
}

/// What a datagram told of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// A life that was not known.
    Born,
    /// The same, and the one before it fell silent without a word: it may have been cut off.
    Returned,
    /// It was taken for dead.
    Revived,
    /// It was not heard for as long as makes one dead, but others heard it.
    Again,
    /// It goes on living.
    Lives,
    /// It was overtaken and says nothing about the present.
    Overtaken,
}

impl Peer {
    pub(crate) fn new(name: NodeName, tag: Tag) -> Self {
        Self {
            name,
            tag,
            stations: BTreeMap::new(),
            life: None,
            paces: Paces::default(),
            departures: VecDeque::new(),
        }
    }

    pub(crate) fn living(&self) -> Option<&Life> {
        self.life.as_ref().filter(|life| life.verdict == Verdict::Lives)
    }

    /// The life that datagrams to it are meant for; 0 if none is known.
    pub(crate) fn incarnation(&self) -> u64 {
        self.life.as_ref().map_or(0, |life| life.incarnation)
    }

    pub(crate) fn heard(&mut self, now: Instant, deadline: Option<Instant>) {
        if let Some(life) = &mut self.life {
            life.heard = Some(now);
            life.deadline = deadline;
        }
    }

    pub(crate) fn depart(&mut self, now: Instant) {
        self.departures.push_back(now);
        if self.departures.len() > DEPARTURES + 1 {
            self.departures.pop_front();
        }
    }

    /// So many departures that it is unsteady if they were not long ago.
    pub(crate) fn is_restless(&self) -> bool {
        self.departures.len() > DEPARTURES
    }

    /// Too many departures, the first of them not long ago; the penalty runs from the last.
    pub(crate) fn is_unsteady(&self, now: Instant) -> bool {
        self.is_restless()
            && self.departures.front().zip(self.departures.back()).is_some_and(|(first, last)| {
                last.duration_since(*first) < UNSTEADY && *last + UNSTEADY > now
            })
    }
}

impl Life {
    pub(crate) fn new(incarnation: u64, sequence: u64, now: Instant) -> Self {
        Self {
            incarnation,
            sequence,
            verdict: Verdict::Lives,
            since: now,
            heard: None,
            deadline: None,
            beat: None,
            accusers: BTreeSet::new(),
        }
    }

    /// What it said of itself; one that has not yet is new.
    pub(crate) fn flags(&self) -> Flags {
        self.beat.as_ref().map_or(Flags::LISTENING | Flags::RESUMING, |beat| beat.flags)
    }

    pub(crate) fn version(&self) -> u64 {
        self.beat.as_ref().map_or(0, |beat| beat.version)
    }

    pub(crate) fn vanished(&self) -> bool {
        self.verdict == Verdict::Dead && !self.flags().has(Flags::LEAVING)
    }

    pub(crate) fn silent_since(&self, now: Instant, patience: Duration) -> bool {
        self.heard.is_some_and(|heard| heard + patience <= now)
    }
}
