//! A BGP speaker that originates and withdraws routes and imports none.
//!
//! [`Session`] is one session with one peer, as a value: it has no socket, no clock and no task.
//! Its shell feeds it [`Event`]s with the current time and performs the [`Action`]s that come back.
//! The session only dials. It never listens, so there is one connection a peer, no Active state and
//! no collision to resolve (RFC 4271 section 6.8).
//!
//! What it speaks: RFC 4271 with multiprotocol IPv4 and IPv6 unicast (RFC 4760, RFC 2545),
//! four-octet AS numbers (RFC 6793), route refresh (RFC 2918, RFC 7313), communities (RFC 1997, RFC
//! 8092) and the shutdown communication (RFC 9003). What a peer announces is checked for framing
//! and dropped (RFC 7606).
//!
//! | module | holds |
//! |---|---|
//! | `session` | the state machine, its timers and its retries |
//! | `state` | the states and what each owns |
//! | `rib_out` | the Adj-RIB-Out: wanted against sent, and the UPDATEs between them |
//! | `message`, `capability`, `attribute` | the wire format |
//! | `notification` | what can go wrong, and its NOTIFICATION |

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod attribute;
mod capability;
mod message;
mod notification;
mod rib_out;
mod session;
mod state;

use std::{
    collections::BTreeSet,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;

pub use message::MessageType;
pub use notification::{
    HeaderError, Notification, OpenError, ProtocolError, RouteRefreshError, UpdateError,
};
pub use rib_out::HeldBack;
pub use session::{DEFAULT_OPEN_TIME, MessageCounts, ResetReason, Session, Stats};
pub use state::Negotiated;

/// What a session is configured to be. A change of any field needs a new [`Session`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// Our AS number, not 0.
    pub local_asn: u32,
    /// The AS number that the peer must have.
    pub peer_asn: PeerAsn,
    /// Our BGP identifier, not 0.0.0.0.
    pub router_id: Ipv4Addr,
    /// Proposed hold time in whole seconds: 0 (no keepalives, a peer that proposes 0 is accepted)
    /// or 3 to 65535. 1 and 2 are not legal on the wire and are proposed as 3.
    pub hold_time: Duration,
    /// Time between KEEPALIVEs. `None`, or more than that: a third of the negotiated hold time.
    /// Never less than 1 s (RFC 4271 section 4.4).
    pub keepalive_time: Option<Duration>,
    /// The longest wait between attempts to connect; 5 s when `None`.
    pub connect_time: Option<Duration>,
    /// How long the peer may take from the connection to its OPEN, and, where no hold time was
    /// negotiated, from there to its first KEEPALIVE.
    pub open_time: Duration,
    /// The families to offer. IPv4 alone where the peer knows no multiprotocol extension.
    pub families: BTreeSet<Family>,
}

impl SessionConfig {
    /// A session with the hold time that MetalLB's users get (90 s), both families, and the timers
    /// of this crate.
    pub fn new(local_asn: u32, peer_asn: PeerAsn, router_id: Ipv4Addr) -> Self {
        Self {
            local_asn,
            peer_asn,
            router_id,
            hold_time: Duration::from_secs(90),
            keepalive_time: None,
            connect_time: None,
            open_time: DEFAULT_OPEN_TIME,
            families: BTreeSet::from([Family::Ipv4Unicast, Family::Ipv6Unicast]),
        }
    }
}

/// The AS number expected in the peer's OPEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAsn {
    /// Exactly this one.
    Number(u32),
    /// Ours, whatever it is.
    Internal,
    /// Any but ours.
    External,
}

impl PeerAsn {
    fn accepts(self, peer: u32, local: u32) -> bool {
        match self {
            Self::Number(number) => peer == number,
            Self::Internal => peer == local,
            Self::External => peer != local,
        }
    }
}

/// An address family with SAFI 1, unicast (RFC 4760).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// AFI 1, SAFI 1.
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    Ipv6Unicast,
}

impl Family {
    const ALL: [Self; 2] = [Self::Ipv4Unicast, Self::Ipv6Unicast];

    /// The family that a prefix is announced in.
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::Ipv4Unicast,
            IpNet::V6(_) => Self::Ipv6Unicast,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4Unicast => "IPv4 unicast",
            Self::Ipv6Unicast => "IPv6 unicast",
        })
    }
}

/// A route to announce. Its next hop is our own address on the session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Host bits are ignored.
    pub prefix: IpNet,
    /// LOCAL_PREF, sent on iBGP only; 100 when `None`.
    pub local_pref: Option<u32>,
    /// RFC 1997.
    pub communities: BTreeSet<u32>,
    /// RFC 8092: global administrator, local data 1, local data 2.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
}

/// What a shell tells its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// Connect, and reconnect until [`Event::Stop`].
    Start,
    /// Withdraw everything, say why, close, and stay down.
    Stop {
        /// Told to the peer.
        reason: StopReason,
    },
    /// The connection that [`Action::Connect`] asked for is there.
    Connected {
        /// Next hop of IPv4 routes: our address on the session, or on its interface.
        local_v4: Option<Ipv4Addr>,
        /// Next hop of IPv6 routes: our global address on the session, or on its interface.
        local_v6: Option<Ipv6Addr>,
    },
    /// The connection that [`Action::Connect`] asked for did not come about.
    ConnectFailed,
    /// The connection ended: closed by the peer, or broken.
    Closed,
    /// A piece of the byte stream, of any length. Bytes of a connection that [`Action::Close`] or
    /// [`Event::Closed`] ended must not be handed over.
    Received(&'a [u8]),
    /// All routes that the peer shall have; where two have the same prefix, the later one in the
    /// set's order. They are kept over a reconnect. A shell that still has bytes of this session
    /// to write keeps the newest set back until they are written: a slow peer then costs one set.
    Advertise(BTreeSet<Route>),
}

/// What a session asks of its shell, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial the peer; answer with [`Event::Connected`] or [`Event::ConnectFailed`].
    Connect,
    /// Write these bytes.
    Send(Vec<u8>),
    /// Give up the attempt to connect, or close the connection once all that was sent before is
    /// written. Nothing to do where there is neither.
    Close,
    /// The state changed; [`Session::stats`] has the reason of the last reset.
    StateChanged(StateKind),
}

/// The states of RFC 4271 section 8.2.2, but Active: that is for those who listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateKind {
    /// Stopped, or waiting to try again.
    Idle,
    /// Dialling.
    Connect,
    /// Connected; waiting for the peer's OPEN.
    OpenSent,
    /// Waiting for the peer to confirm our OPEN.
    OpenConfirm,
    /// Routes are announced.
    Established,
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "Idle",
            Self::Connect => "Connect",
            Self::OpenSent => "OpenSent",
            Self::OpenConfirm => "OpenConfirm",
            Self::Established => "Established",
        })
    }
}

/// Why a session is stopped, as its Cease says (RFC 4486).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// Cease/2: this speaker goes away.
    AdministrativeShutdown {
        /// For the peer's log; at most 255 octets of it are sent (RFC 9003).
        text: Option<String>,
    },
    /// Cease/3: the peer is no longer configured.
    PeerDeconfigured,
    /// Cease/6: the session comes back with other settings.
    ConfigurationChange,
}
