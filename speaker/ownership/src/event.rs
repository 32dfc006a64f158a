//! What goes into the core and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::{Mac, NodeName, View};

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
        /// The name of the interface that it was heard on.
        interface: &'a str,
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressState {
    /// Who answers, as far as is known here.
    pub owner: Option<NodeName>,
    /// How far this node is.
    pub stage: Stage,
    /// Of the best claim; 0 if there never was one.
    pub epoch: u64,
    /// A station that is no cluster node's has the address; while this node does not own it, it
    /// is not announced for that reason.
    pub conflict: Option<Stranger>,
    /// Whether the answer was seen on the wire. Of interest where this node is the owner.
    pub proof: Proof,
}

/// A station that is no cluster node's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stranger {
    /// Which.
    pub mac: Mac,
    /// The interface that it was heard on first.
    pub interface: Box<str>,
}

/// How far a node is with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
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
