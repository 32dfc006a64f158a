//! What a peer can do wrong, each with exactly one NOTIFICATION.
//!
//! Read RFC 4271 section 6, RFC 5492 section 5, RFC 6608, RFC 7313 section 5 and RFC 7606 section 3.

use std::{collections::BTreeSet, net::Ipv4Addr, time::Duration};

use thiserror::Error;

use crate::{
    Family, Notification, StateKind,
    capability::Capabilities,
    message::MessageType,
    notification::{
        FINITE_STATE_MACHINE, HOLD_TIMER_EXPIRED, MESSAGE_HEADER, OPEN, ROUTE_REFRESH,
        SEND_HOLD_TIMER_EXPIRED, UPDATE,
    },
};

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
    /// Nothing could be written for the send hold time (RFC 9687).
    #[error("the peer took nothing of what was sent for {} s", .0.as_secs())]
    SendHoldTimerExpired(Duration),
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
    /// MP_REACH_NLRI or MP_UNREACH_NLRI is there twice.
    #[error("the attribute {0} twice")]
    RepeatedAttribute(u8),
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
                UpdateError::MalformedAttributeList | UpdateError::RepeatedAttribute(_) => {
                    Self::new(UPDATE, 1, Vec::new())
                }
                UpdateError::InvalidNetworkField => Self::new(UPDATE, 10, Vec::new()),
            },
            ProtocolError::RouteRefresh(RouteRefreshError::InvalidLength { message }) => {
                Self::new(ROUTE_REFRESH, 1, message.clone())
            }
            ProtocolError::HoldTimerExpired(_) => Self::new(HOLD_TIMER_EXPIRED, 0, Vec::new()),
            ProtocolError::SendHoldTimerExpired(_) => {
                Self::new(SEND_HOLD_TIMER_EXPIRED, 0, Vec::new())
            }
            ProtocolError::UnexpectedMessage { state, message } => {
                let subcode = match state {
                    // Without a connection no message arrives; 0 is "unspecific".
                    StateKind::Idle | StateKind::Connect | StateKind::Active => 0,
                    StateKind::OpenSent => 1,
                    StateKind::OpenConfirm => 2,
                    StateKind::Established => 3,
                };
                Self::new(FINITE_STATE_MACHINE, subcode, vec![message.code()])
            }
        }
    }
}
