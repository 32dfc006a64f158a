//! What a session tells of itself, for people and for metrics.

use std::time::Instant;

use thiserror::Error;

use crate::{MessageType, Notification, ProtocolError, StateKind};

/// Counters since the session was made, unless they say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Messages sent.
    pub sent: MessageCounts,
    /// Messages received and understood.
    pub received: MessageCounts,
    /// Received UPDATEs whose routes count as withdrawn, as their attributes were malformed (RFC
    /// 7606).
    pub malformed_updates: u64,
    /// Received UPDATEs with a malformed attribute that no route depends on.
    pub discarded_attributes: u64,
    /// Prefixes announced to us since the session was last Established; none of them is kept.
    pub received_prefixes: u64,
    /// Prefixes withdrawn, since then.
    pub received_withdrawals: u64,
    /// Times that Established was reached.
    pub established: u64,
    /// Times that it was lost, for whatever reason.
    pub flaps: u64,
    /// Since when the session is Established.
    pub established_since: Option<Instant>,
    /// Routes that the peer shall have.
    pub wanted_prefixes: usize,
    /// Routes that the peer has of us now.
    pub advertised_prefixes: usize,
    /// Why the session, or the attempt at one, ended the last time.
    pub last_reset: Option<ResetReason>,
    /// When that was.
    pub last_reset_at: Option<Instant>,
    /// Why the session was Established no more, the last time.
    pub last_loss: Option<ResetReason>,
}

/// Messages by type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MessageCounts {
    /// OPEN.
    pub open: u64,
    /// UPDATE.
    pub update: u64,
    /// NOTIFICATION.
    pub notification: u64,
    /// KEEPALIVE.
    pub keepalive: u64,
    /// ROUTE-REFRESH.
    pub route_refresh: u64,
}

impl MessageCounts {
    /// Of all types.
    pub fn total(&self) -> u64 {
        let Self { open, update, notification, keepalive, route_refresh } = self;
        open + update + notification + keepalive + route_refresh
    }

    pub(crate) fn count(&mut self, kind: MessageType) {
        let counter = match kind {
            MessageType::Open => &mut self.open,
            MessageType::Update => &mut self.update,
            MessageType::Notification => &mut self.notification,
            MessageType::Keepalive => &mut self.keepalive,
            MessageType::RouteRefresh => &mut self.route_refresh,
        };
        *counter += 1;
    }
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResetReason {
    /// The peer refused the connection or cannot be reached.
    #[error("the peer could not be connected")]
    ConnectFailed,
    /// Nobody answered.
    #[error("the peer did not answer the attempt to connect")]
    ConnectTimedOut,
    /// Without a NOTIFICATION.
    #[error("the connection was closed in state {0}")]
    Closed(StateKind),
    /// The peer said why.
    #[error("the peer ended the session: {0}")]
    NotificationReceived(Notification),
    /// We said why.
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
    /// BFD went from Up to Down.
    #[error("BFD lost the peer")]
    BfdDown,
    /// The peer connected anew while the session was up.
    #[error("the peer opened another connection")]
    Replaced,
    /// [`Event::Stop`](crate::Event::Stop).
    #[error("the session was stopped")]
    Stopped,
}
