//! NOTIFICATION messages and the errors that end in one.
//!
//! Each error names what the peer did wrong and converts to exactly one NOTIFICATION. Read RFC 4271
//! sections 4.5 and 6, RFC 5492 section 5, RFC 6608, RFC 4486, RFC 9003 and RFC 7313 section 5.

use std::{collections::BTreeSet, fmt, net::Ipv4Addr};

use thiserror::Error;

use crate::{Family, StateKind, StopReason, capability::Capabilities, message::MessageType};

/// Why one side ends a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// Details; their form depends on the code.
    pub data: Vec<u8>,
}

const MESSAGE_HEADER: u8 = 1;
const OPEN: u8 = 2;
const UPDATE: u8 = 3;
const HOLD_TIMER_EXPIRED: u8 = 4;
const FINITE_STATE_MACHINE: u8 = 5;
const CEASE: u8 = 6;
const ROUTE_REFRESH: u8 = 7;

const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
const PEER_DECONFIGURED: u8 = 3;
const ADMINISTRATIVE_RESET: u8 = 4;
const OTHER_CONFIGURATION_CHANGE: u8 = 6;

/// One length octet bounds the text (RFC 9003 section 2).
const MAX_TEXT: usize = 255;

impl Notification {
    fn new(code: u8, subcode: u8, data: Vec<u8>) -> Self {
        Self { code, subcode, data }
    }

    /// The shutdown communication, made safe to log: whatever could steer a terminal or hide text
    /// is replaced. `None` where the NOTIFICATION carries none, or one that is longer than itself.
    pub fn text(&self) -> Option<String> {
        if self.code != CEASE
            || !matches!(self.subcode, ADMINISTRATIVE_SHUTDOWN | ADMINISTRATIVE_RESET)
        {
            return None;
        }
        let (&length, rest) = self.data.split_first()?;
        let text = rest.get(..usize::from(length)).filter(|text| !text.is_empty())?;
        Some(String::from_utf8_lossy(text).chars().map(printable).collect())
    }

    /// The peer does not know an optional parameter, or asks for fewer capabilities (RFC 5492
    /// sections 3 and 5): a plainer OPEN may do better.
    pub(crate) fn declines_our_open(&self) -> bool {
        self.code == OPEN && matches!(self.subcode, 4 | 7)
    }

    /// A Cease that asks for no patience: not "maximum number of prefixes", not "out of resources".
    pub(crate) fn is_clean_close(&self) -> bool {
        self.code == CEASE && !matches!(self.subcode, 1 | 8)
    }
}

fn printable(c: char) -> char {
    // Line and paragraph separators and the bidirectional controls reorder or break a log line.
    let steers =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || steers { char::REPLACEMENT_CHARACTER } else { c }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match names(self.code, self.subcode) {
            (code, Some(subcode)) => write!(f, "{code}: {subcode}")?,
            (code, None) => f.write_str(code)?,
        }
        write!(f, " ({}/{})", self.code, self.subcode)?;
        if let Some(text) = self.text() {
            write!(f, ", saying \"{text}\"")?;
        }
        Ok(())
    }
}

/// The registered names of code and subcode.
fn names(code: u8, subcode: u8) -> (&'static str, Option<&'static str>) {
    let (name, subcodes): (_, &[&str]) = match code {
        MESSAGE_HEADER => (
            "Message Header Error",
            &["Connection Not Synchronized", "Bad Message Length", "Bad Message Type"],
        ),
        OPEN => (
            "OPEN Message Error",
            &[
                "Unsupported Version Number",
                "Bad Peer AS",
                "Bad BGP Identifier",
                "Unsupported Optional Parameter",
                "Authentication Failure",
                "Unacceptable Hold Time",
                "Unsupported Capability",
                "",
                "",
                "",
                "Role Mismatch",
            ],
        ),
        UPDATE => (
            "UPDATE Message Error",
            &[
                "Malformed Attribute List",
                "Unrecognized Well-known Attribute",
                "Missing Well-known Attribute",
                "Attribute Flags Error",
                "Attribute Length Error",
                "Invalid ORIGIN Attribute",
                "AS Routing Loop",
                "Invalid NEXT_HOP Attribute",
                "Optional Attribute Error",
                "Invalid Network Field",
                "Malformed AS_PATH",
            ],
        ),
        HOLD_TIMER_EXPIRED => ("Hold Timer Expired", &[]),
        FINITE_STATE_MACHINE => (
            "Finite State Machine Error",
            &[
                "Unexpected Message in OpenSent State",
                "Unexpected Message in OpenConfirm State",
                "Unexpected Message in Established State",
            ],
        ),
        CEASE => (
            "Cease",
            &[
                "Maximum Number of Prefixes Reached",
                "Administrative Shutdown",
                "Peer De-configured",
                "Administrative Reset",
                "Connection Rejected",
                "Other Configuration Change",
                "Connection Collision Resolution",
                "Out of Resources",
                "Hard Reset",
                "BFD Down",
            ],
        ),
        ROUTE_REFRESH => ("ROUTE-REFRESH Message Error", &["Invalid Message Length"]),
        8 => ("Send Hold Timer Expired", &[]),
        _ => ("Unknown Error", &[]),
    };
    let index = usize::from(subcode).checked_sub(1);
    (name, index.and_then(|index| subcodes.get(index)).copied().filter(|name| !name.is_empty()))
}

/// What a peer did wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// A message whose header is wrong.
    #[error("the peer sent {0}")]
    Header(#[from] HeaderError),
    /// An OPEN that we cannot agree to.
    #[error("the peer sent an OPEN with {0}")]
    Open(#[from] OpenError),
    /// An UPDATE whose parts cannot be told apart.
    #[error("the peer sent an UPDATE with {0}")]
    Update(#[from] UpdateError),
    /// A malformed ROUTE-REFRESH.
    #[error("the peer sent a ROUTE-REFRESH with {0}")]
    RouteRefresh(#[from] RouteRefreshError),
    /// Nothing was heard for the hold time, or no OPEN in the time allowed for it.
    #[error("the peer was silent for too long in state {0}")]
    HoldTimerExpired(StateKind),
    /// A message that has no place in the state it came in.
    #[error("the peer sent {message} in state {state}")]
    UnexpectedMessage {
        /// The state of the session.
        state: StateKind,
        /// The type of the message.
        message: MessageType,
    },
}

/// RFC 4271 section 6.1.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The first octets are no marker; often the other end does not speak BGP at all.
    #[error("bytes that are no BGP message (its marker is missing)")]
    NotSynchronized,
    /// The length is out of the range of BGP, or of its message type.
    #[error("a message with a bad length of {0} octets")]
    BadLength(u16),
    /// The type is not registered.
    #[error("a message of the unknown type {0}")]
    BadType(u8),
}

/// RFC 4271 section 6.2.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The version is not 4.
    #[error("BGP version {0}, not 4")]
    UnsupportedVersion(u8),
    /// The AS number is 0 (RFC 7607) or not the configured one.
    #[error("AS number {0}, which is not the configured one")]
    BadPeerAs(u32),
    /// The BGP identifier is 0, or ours on an iBGP session (RFC 6286).
    #[error("an unacceptable BGP identifier, {0}")]
    BadIdentifier(Ipv4Addr),
    /// An optional parameter other than capabilities.
    #[error("the unsupported optional parameter {0}")]
    UnsupportedParameter(u8),
    /// Optional parameters that do not add up.
    #[error("malformed optional parameters")]
    MalformedParameters,
    /// 1 or 2 s; or 0, where we want one.
    #[error("an unacceptable hold time of {0} s")]
    UnacceptableHoldTime(u16),
    /// No family in common.
    #[error("none of the address families that are configured")]
    UnsupportedCapability(
        /// The capabilities that are missing, as they go into the NOTIFICATION.
        Vec<u8>,
    ),
}

impl OpenError {
    /// The peer offers none of these families.
    pub(crate) fn missing_families(families: &BTreeSet<Family>) -> Self {
        let missing =
            Capabilities { multiprotocol: Some(families.clone()), ..Capabilities::default() };
        Self::UnsupportedCapability(missing.encode())
    }
}

/// RFC 4271 section 6.3, as far as RFC 7606 left it: only what hides where the routes are.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UpdateError {
    /// The lengths of withdrawn routes and attributes exceed the message.
    #[error("lengths that exceed the message")]
    MalformedAttributeList,
    /// Withdrawn routes or NLRI that are no list of prefixes.
    #[error("a malformed list of prefixes")]
    InvalidNetworkField,
}

/// RFC 7313 section 5.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RouteRefreshError {
    /// A beginning or end of refresh of another length than 23 octets.
    #[error("a bad length")]
    InvalidLength {
        /// The whole message.
        message: Vec<u8>,
    },
}

impl From<&ProtocolError> for Notification {
    fn from(error: &ProtocolError) -> Self {
        match error {
            ProtocolError::Header(error) => match error {
                HeaderError::NotSynchronized => Self::new(MESSAGE_HEADER, 1, Vec::new()),
                HeaderError::BadLength(length) => {
                    Self::new(MESSAGE_HEADER, 2, length.to_be_bytes().to_vec())
                }
                HeaderError::BadType(kind) => Self::new(MESSAGE_HEADER, 3, vec![*kind]),
            },
            ProtocolError::Open(error) => match error {
                OpenError::MalformedParameters => Self::new(OPEN, 0, Vec::new()),
                OpenError::UnsupportedVersion(_) => Self::new(OPEN, 1, vec![0, 4]),
                OpenError::BadPeerAs(_) => Self::new(OPEN, 2, Vec::new()),
                OpenError::BadIdentifier(_) => Self::new(OPEN, 3, Vec::new()),
                OpenError::UnsupportedParameter(_) => Self::new(OPEN, 4, Vec::new()),
                OpenError::UnacceptableHoldTime(_) => Self::new(OPEN, 6, Vec::new()),
                OpenError::UnsupportedCapability(data) => Self::new(OPEN, 7, data.clone()),
            },
            ProtocolError::Update(error) => match error {
                UpdateError::MalformedAttributeList => Self::new(UPDATE, 1, Vec::new()),
                UpdateError::InvalidNetworkField => Self::new(UPDATE, 10, Vec::new()),
            },
            ProtocolError::RouteRefresh(RouteRefreshError::InvalidLength { message }) => {
                Self::new(ROUTE_REFRESH, 1, message.clone())
            }
            ProtocolError::HoldTimerExpired(_) => Self::new(HOLD_TIMER_EXPIRED, 0, Vec::new()),
            ProtocolError::UnexpectedMessage { state, message } => {
                let subcode = match state {
                    // Without a connection no message arrives; 0 is "unspecific".
                    StateKind::Idle | StateKind::Connect => 0,
                    StateKind::OpenSent => 1,
                    StateKind::OpenConfirm => 2,
                    StateKind::Established => 3,
                };
                Self::new(FINITE_STATE_MACHINE, subcode, vec![message.code()])
            }
        }
    }
}

impl From<&StopReason> for Notification {
    fn from(reason: &StopReason) -> Self {
        match reason {
            StopReason::AdministrativeShutdown { text } => Self::new(
                CEASE,
                ADMINISTRATIVE_SHUTDOWN,
                text.as_deref().map(communication).unwrap_or_default(),
            ),
            StopReason::PeerDeconfigured => Self::new(CEASE, PEER_DECONFIGURED, Vec::new()),
            StopReason::ConfigurationChange => {
                Self::new(CEASE, OTHER_CONFIGURATION_CHANGE, Vec::new())
            }
        }
    }
}

/// The length octet and as many whole characters as fit.
fn communication(text: &str) -> Vec<u8> {
    let end = (0..=text.len().min(MAX_TEXT)).rfind(|&end| text.is_char_boundary(end)).unwrap_or(0);
    let length = u8::try_from(end).expect("the text was cut to 255 octets");
    let mut data = vec![length];
    data.extend_from_slice(&text.as_bytes()[..end]);
    data
}
