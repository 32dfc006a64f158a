//! The way down: what the peer is told, and how long the next attempt waits.
//!
//! Read RFC 4271 sections 6 and 8.1.1, RFC 4486 and RFC 9384.

use std::time::{Duration, Instant};

use super::Session;
use crate::{
    Action, MessageType, Mode, Notification, ProtocolError, ResetReason, StateKind,
    message::{self, Message},
    state::State,
};

/// How long an attempt to connect may go unanswered: the second SYN is sent after 1 s, and a third
/// would be after 3 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The waits after the first attempts that failed, where they are not more than all later ones.
const CONNECT_WAITS: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// The wait after all later ones, unless the configuration has another. With the time that an attempt
/// takes, a router that was away for long has its session within 3 s after its port opens.
const DEFAULT_CONNECT_TIME: Duration = Duration::from_secs(2);
/// The wait after the peer took leave in good order.
const CLEAN_CLOSE_WAIT: Duration = Duration::from_millis(200);
/// A session must have been up for this long for its end to count as good order.
const MIN_ESTABLISHED: Duration = Duration::from_secs(10);
/// The longest wait after errors; the first is 1 s and each next one doubles.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);
/// How long to wait before the next attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// The peer is not ready.
    Unreachable,
    /// The peer took leave.
    CleanClose,
    /// Something is wrong that will not go away at once.
    BackOff,
}

impl Session {
    /// Dials, or waits for the peer to.
    pub(super) fn try_anew(&self, now: Instant, out: &mut Vec<Action>) -> State {
        match self.config.mode {
            Mode::Active => {
                out.push(Action::Connect);
                State::Connect { give_up_at: now + CONNECT_TIMEOUT }
            }
            Mode::Passive => State::Active,
        }
    }

    pub(super) fn notify(&mut self, notification: &Notification, out: &mut Vec<Action>) {
        self.send(MessageType::Notification, message::notification(notification), out);
    }

    pub(super) fn reject(&mut self, notification: &Notification, out: &mut Vec<Action>) {
        self.stats.sent.count(MessageType::Notification);
        out.push(Action::Reject(message::notification(notification)));
    }

    pub(super) fn stopped(&mut self, now: Instant, out: &mut Vec<Action>) -> State {
        self.reset(ResetReason::Stopped, now);
        out.push(Action::Close);
        State::Idle { retry_at: None }
    }

    /// Tells the peer what it did wrong and ends the session.
    pub(super) fn violated(
        &mut self,
        error: ProtocolError,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> State {
        self.notify(&Notification::from(&error), out);
        self.fall(error.into(), Retry::BackOff, now, out)
    }

    pub(super) fn unexpected(
        &mut self,
        state: StateKind,
        message: &Message,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> State {
        let message = message.kind();
        self.violated(ProtocolError::UnexpectedMessage { state, message }, now, out)
    }

    pub(super) fn lost_by_bfd(&mut self, now: Instant, out: &mut Vec<Action>) -> State {
        self.notify(&Notification::bfd_down(), out);
        self.fall(ResetReason::BfdDown, Retry::BackOff, now, out)
    }

    pub(super) fn fall(
        &mut self,
        reason: ResetReason,
        retry: Retry,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> State {
        self.reset(reason, now);
        out.push(Action::Close);
        let wait = match (retry, self.config.mode) {
            (Retry::Unreachable | Retry::CleanClose, Mode::Passive) => {
                return self.try_anew(now, out);
            }
            (Retry::Unreachable, Mode::Active) => {
                let longest = self.config.connect_time.unwrap_or(DEFAULT_CONNECT_TIME);
                let step = usize::try_from(self.connect_failures).unwrap_or(usize::MAX);
                self.connect_failures = self.connect_failures.saturating_add(1);
                CONNECT_WAITS.get(step).copied().unwrap_or(longest).min(longest)
            }
            (Retry::CleanClose, Mode::Active) => CLEAN_CLOSE_WAIT,
            (Retry::BackOff, Mode::Active | Mode::Passive) => {
                // 2^6 s exceeds the longest wait already.
                let doubled = Duration::from_secs(1 << self.session_failures.min(6));
                self.session_failures = self.session_failures.saturating_add(1);
                doubled.min(MAX_BACK_OFF)
            }
        };
        State::Idle { retry_at: Some(now + self.jittered(wait)) }
    }

    pub(super) fn reset(&mut self, reason: ResetReason, now: Instant) {
        self.stats.last_reset = Some(reason);
        self.stats.last_reset_at = Some(now);
    }
}

/// A peer that comes up and leaves again and again is not in good order.
pub(super) fn clean_if_lasting(since: Instant, now: Instant) -> Retry {
    if now.saturating_duration_since(since) >= MIN_ESTABLISHED {
        Retry::CleanClose
    } else {
        Retry::BackOff
    }
}
