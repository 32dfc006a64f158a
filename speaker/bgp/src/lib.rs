//! A BGP speaker that originates and withdraws routes and imports none.
//!
//! [`Session`] is one session with one peer, as a value: it has no socket, no clock and no task.
//! Its shell feeds it [`Event`]s with the current time, performs the [`Action`]s that come back, and
//! asks for UPDATEs when the connection has room ([`Session::transmit`]).
//!
//! What it speaks: RFC 4271 with multiprotocol IPv4 and IPv6 unicast (RFC 4760, RFC 2545),
//! four-octet AS numbers (RFC 6793), IPv6 next hops for IPv4 (RFC 8950), graceful restart as the one
//! that restarts (RFC 4724, RFC 8538), route refresh (RFC 2918, RFC 7313), communities (RFC 1997,
//! RFC 4360, RFC 8092), the shutdown communication (RFC 9003), the send hold timer (RFC 9687) and
//! BFD's verdict (RFC 9384). What a peer announces is checked for framing, counted and dropped
//! (RFC 7606).
//!
//! | module | holds |
//! |---|---|
//! | `session` | the state machine, its timers and its retries |
//! | `state` | the states and what each owns |
//! | `established` | when an Established session may send which UPDATEs |
//! | `rib_out` | the Adj-RIB-Out: wanted against sent, and the UPDATEs between them |
//! | `message`, `received`, `capability`, `attribute` | the wire format |
//! | `error`, `notification` | what can go wrong, and its NOTIFICATION |
//! | `stats` | what a session tells of itself |

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod attribute;
mod capability;
mod error;
mod established;
#[doc(hidden)]
pub mod fuzz;
mod message;
mod notification;
mod received;
mod rib_out;
mod session;
mod state;
mod stats;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use attribute::SessionKind;
use ipnet::IpNet;

pub use error::{HeaderError, OpenError, ProtocolError, RouteRefreshError, UpdateError};
pub use established::BfdGate;
pub use message::MessageType;
pub use notification::Notification;
pub use rib_out::HeldBack;
pub use session::{DEFAULT_OPEN_TIME, Session};
pub use state::{Negotiated, NegotiatedRestart};
pub use stats::{MessageCounts, ResetReason, Stats};

/// What a session is configured to be. [`Session::update_timers`] says what of it a running session
/// takes over; a change of anything else needs a new [`Session`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// Our AS number towards this peer, not 0: in the OPEN and in AS_PATH, and what makes a session
    /// internal. Where MetalLB's `localASN` is set it is that one, and `myASN` appears nowhere
    /// (`local-as N no-prepend replace-as`).
    pub local_asn: u32,
    /// The AS number that the peer must have.
    pub peer_asn: PeerAsn,
    /// Our BGP identifier, not 0.0.0.0.
    pub router_id: Ipv4Addr,
    /// Who connects.
    pub mode: Mode,
    /// Proposed hold time in whole seconds: 0 (no keepalives, a peer that proposes 0 is accepted)
    /// or 3 to 65535. 1 and 2 are not legal on the wire and are proposed as 3.
    pub hold_time: Duration,
    /// Time between KEEPALIVEs. `None`, or more than that: a third of the negotiated hold time.
    /// Never less than 1 s (RFC 4271 section 4.4).
    pub keepalive_time: Option<Duration>,
    /// The longest wait between attempts to connect; 2 s when `None`.
    pub connect_time: Option<Duration>,
    /// How long the peer may take from the connection to its OPEN, and, where no hold time was
    /// negotiated, from there to its first KEEPALIVE.
    pub open_time: Duration,
    /// The families to offer. IPv4 alone where the peer knows no multiprotocol extension.
    pub families: BTreeSet<Family>,
    /// Offer IPv4 routes with IPv6 next hops (RFC 8950). They are sent so where both sides have it
    /// and [`Local::v4`] is `None`.
    pub extended_next_hop: bool,
    /// Offer graceful restart (RFC 4724): the peer keeps our routes while we are away.
    pub graceful_restart: Option<GracefulRestart>,
    /// The least time between two announcements (RFC 4271 section 9.2.1.1), jittered; zero for
    /// none. Withdrawals never wait for it.
    pub min_advertisement_interval: Duration,
    /// What BFD decides. `None`: there is no BFD, and [`Event::Bfd`] means nothing.
    pub bfd: Option<BfdRule>,
}

impl SessionConfig {
    /// An active session with the hold time that MetalLB's users get (90 s), both families, the
    /// timers of this crate, and without graceful restart, extended next hop and BFD.
    pub fn new(local_asn: u32, peer_asn: PeerAsn, router_id: Ipv4Addr) -> Self {
        Self {
            local_asn,
            peer_asn,
            router_id,
            mode: Mode::Active,
            hold_time: Duration::from_secs(90),
            keepalive_time: None,
            connect_time: None,
            open_time: DEFAULT_OPEN_TIME,
            families: BTreeSet::from([Family::Ipv4Unicast, Family::Ipv6Unicast]),
            extended_next_hop: false,
            graceful_restart: None,
            min_advertisement_interval: Duration::ZERO,
            bfd: None,
        }
    }

    fn kind(&self) -> SessionKind {
        let internal = match self.peer_asn {
            PeerAsn::Number(number) => number == self.local_asn,
            PeerAsn::Internal => true,
            PeerAsn::External => false,
        };
        if internal { SessionKind::Internal } else { SessionKind::External }
    }
}

/// Who connects. Only one side does, so that nothing can collide (RFC 4271 section 6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// We dial and take no connection.
    Active,
    /// The peer dials, we never do.
    Passive,
}

/// Graceful restart as the restarting speaker (RFC 4724); as one that imports nothing we keep
/// nothing for a peer that restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GracefulRestart {
    /// How long the peer keeps our routes while we are away; whole seconds, 1 to 4095.
    pub restart_time: Duration,
    /// The N bit (RFC 8538): the peer keeps them over a NOTIFICATION and an expired hold timer too.
    pub notification: bool,
    /// Whether the packets to our routes were forwarded while we were away.
    pub start: Start,
}

/// How this speaker came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The node is new or was rebooted: what the peer kept of us is void.
    Cold,
    /// The speaker alone was away: R and F are set until the session is Established.
    Forwarding,
}

/// What BFD decides on a session that has it (RFC 5882 section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BfdRule {
    /// Announce nothing until BFD is Up, for at most 10 s.
    pub strict: bool,
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

/// What a prefix is announced with. The next hop is our own address on the session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Attributes {
    /// LOCAL_PREF, sent on iBGP only; 100 when `None`.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// How many times more than once our AS number stands in AS_PATH; not on iBGP, where a router
    /// would take it for a loop.
    pub as_path_prepend: u8,
    /// RFC 1997.
    pub communities: BTreeSet<u32>,
    /// RFC 4360: type, subtype and value in one number.
    pub extended_communities: BTreeSet<u64>,
    /// RFC 8092: global administrator, local data 1, local data 2.
    pub large_communities: BTreeSet<(u32, u32, u32)>,
}

/// Prefixes and what to announce them with from now on; `None` withdraws. Host bits are ignored.
/// Later changes replace earlier ones, so that they can be merged while nobody reads them.
pub type Changes = BTreeMap<IpNet, Option<Arc<Attributes>>>;

/// What a shell tells its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// Connect, or wait for the peer to, and again after every end until [`Event::Stop`].
    Start,
    /// Withdraw everything, say why, close, and stay down.
    Stop {
        /// Told to the peer.
        reason: StopReason,
    },
    /// The connection that [`Action::Connect`] asked for is there.
    Connected(Local),
    /// The peer connected to us. See [`Action::Reject`] for a connection that is one too many.
    Accepted(Local),
    /// The connection that [`Action::Connect`] asked for did not come about.
    ConnectFailed,
    /// The connection ended: closed by the peer, or broken.
    Closed,
    /// A piece of the byte stream, of any length. Bytes of a connection that [`Action::Close`] or
    /// [`Event::Closed`] ended must not be handed over.
    Received(&'a [u8]),
    /// The connection took bytes. Without it for the send hold time (RFC 9687: the larger of 8
    /// minutes and twice the hold time) an Established session falls.
    Written,
    /// Routes that the peer shall have, and such that it shall not have any more. What is wanted is
    /// kept over every reconnect.
    Routes(Changes),
    /// All that is wanted was told at least once: from now on End-of-RIB may be sent.
    Complete,
    /// The state of the BFD session with this peer changed. A peer that is AdminDown is neither.
    Bfd(BfdState),
}

/// Our addresses on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Local {
    /// Next hop of IPv4 routes: our address on the session, or on its interface.
    pub v4: Option<Ipv4Addr>,
    /// Next hop of IPv6 routes: our global address on the session, or on its interface.
    pub v6: Option<Ipv6Addr>,
    /// Our link-local address, where the peer is on the same link (RFC 2545 section 3): a second
    /// next hop beside `v6`, and the only one without.
    pub link_local: Option<Ipv6Addr>,
}

/// What BFD says of the way to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BfdState {
    /// Packets get there.
    Up,
    /// They do not, or not yet.
    Down,
}

/// What a session asks of its shell, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Dial the peer; answer with [`Event::Connected`] or [`Event::ConnectFailed`].
    Connect,
    /// Write these bytes.
    Send(Vec<u8>),
    /// Give up the attempt to connect, or close the connection once all that was sent before is
    /// written. Nothing to do where there is neither. In the answer to [`Event::Accepted`] it is
    /// the connection before, and what is sent from then on is for the accepted one.
    Close,
    /// Write these bytes to the connection that was just accepted and close it; the one before, if
    /// there is one, stays.
    Reject(Vec<u8>),
    /// The state changed; [`Session::stats`] has the reason of the last reset.
    StateChanged(StateKind),
}

/// The states of RFC 4271 section 8.2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StateKind {
    /// Stopped, or waiting to try again.
    Idle,
    /// Dialling.
    Connect,
    /// Waiting for the peer to connect.
    Active,
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
            Self::Active => "Active",
            Self::OpenSent => "OpenSent",
            Self::OpenConfirm => "OpenConfirm",
            Self::Established => "Established",
        })
    }
}

/// Why a session is stopped, as its Cease says (RFC 4486). Where both sides have the N bit the
/// first two are wrapped in a Hard Reset (RFC 8538 section 3.1), or the peer would keep the routes.
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
    /// This speaker will be back in a moment. Where graceful restart was negotiated nothing is said
    /// and nothing withdrawn, so that the peer keeps our routes; elsewhere this is an
    /// [`AdministrativeShutdown`](Self::AdministrativeShutdown) without a text.
    Restart,
}
