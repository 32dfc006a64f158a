//! The state machine of a session: states, timers, retries.
//!
//! One a peer. Whatever happens is an [`Input`], and [`Session::step`] is the one table of states
//! and inputs. Read RFC 4271 sections 6 and 8; RFC 6608 for messages in the wrong state; RFC 4486
//! for how a session is ended on purpose.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use thiserror::Error;

use crate::{
    Action, Event, HeldBack, MessageType, Negotiated, Notification, ProtocolError, Route,
    SessionConfig, StateKind, StopReason,
    attribute::two_octets,
    capability::Capabilities,
    message::{self, Message, Open, Reader, ReceivedUpdate, RefreshSubtype, RouteRefresh},
    rib_out::{NextHops, RefreshMarkers, RibOut, Updates},
    state::{Established, Link, MIN_KEEPALIVE_TIME, State, Timers, proposed_hold_time},
};

/// RFC 4271 section 8.2.2 suggests four minutes; a connection that stays mute is not worth them.
pub const DEFAULT_OPEN_TIME: Duration = Duration::from_secs(30);

/// How long an attempt to connect may go unanswered.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The waits after the first attempts that failed. A router that starts is not ready by a second
/// or two, and one that reboots must not cost minutes.
const CONNECT_WAITS: [Duration; 5] = [
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// The wait after all later ones, unless the configuration has another.
const DEFAULT_CONNECT_TIME: Duration = Duration::from_secs(5);
/// The wait after the peer took leave in good order.
const CLEAN_CLOSE_WAIT: Duration = Duration::from_millis(200);
/// A session must have been up for this long for its end to count as good order.
const MIN_ESTABLISHED: Duration = Duration::from_secs(10);
/// The longest wait after errors; the first is 1 s and each next one doubles.
const MAX_BACK_OFF: Duration = Duration::from_secs(60);
/// After this long Established the errors before are forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// Changes within this time of the last UPDATEs are sent together.
const COALESCING_WINDOW: Duration = Duration::from_millis(10);

/// A session with one peer: [`handle`](Self::handle) what happens, [`handle_timeout`] when
/// [`poll_timeout`] says so, and perform the actions of both.
///
/// [`handle_timeout`]: Self::handle_timeout
/// [`poll_timeout`]: Self::poll_timeout
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    state: State,
    /// `None` until the first [`Event::Advertise`]: End-of-RIB must not be sent before it.
    wanted: Option<BTreeSet<Route>>,
    offer: Offer,
    /// Attempts to connect since the last that brought an OPEN.
    connect_failures: u32,
    /// Sessions that fell by an error since the last that stood.
    session_failures: u32,
    stats: Stats,
    jitter: StdRng,
}

/// Counters since the session was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stats {
    /// Messages sent.
    pub sent: MessageCounts,
    /// Messages received and understood.
    pub received: MessageCounts,
    /// Received UPDATEs whose attributes were malformed in a way that RFC 7606 lets pass.
    pub malformed_updates: u64,
    /// Times that Established was reached.
    pub established: u64,
    /// Routes that the peer has of us now.
    pub advertised_prefixes: usize,
    /// Why the session, or the attempt at one, ended the last time.
    pub last_reset: Option<ResetReason>,
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
    /// [`Event::Stop`].
    #[error("the session was stopped")]
    Stopped,
}

/// All that can happen to a state.
#[derive(Debug)]
enum Input {
    Start,
    Stop(StopReason),
    Connected(NextHops),
    ConnectFailed,
    Closed,
    Message(Message),
    Violation(ProtocolError),
    /// The wanted routes changed.
    Advertised,
    /// Time went by; each state looks at its own deadlines.
    Timeout,
}

/// How much an OPEN offers. RFC 5492 section 3: a peer that declines may take a plainer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offer {
    All,
    Essential,
    Nothing,
}

/// How long to wait before the next attempt to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// The peer is not ready.
    Unreachable,
    /// The peer took leave.
    CleanClose,
    /// Something is wrong that will not go away at once.
    BackOff,
}

impl Session {
    /// A stopped session. The seed feeds the jitter of its timers; sessions should differ in it.
    pub fn new(config: SessionConfig, seed: u64) -> Self {
        Self {
            config,
            state: State::Idle { retry_at: None },
            wanted: None,
            offer: Offer::All,
            connect_failures: 0,
            session_failures: 0,
            stats: Stats::default(),
            jitter: StdRng::seed_from_u64(seed),
        }
    }

    /// What happened, and what to do about it.
    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Start => self.advance(Input::Start, now, &mut out),
            Event::Stop { reason } => self.advance(Input::Stop(reason), now, &mut out),
            Event::Connected { local_v4, local_v6 } => {
                let next_hops = NextHops { v4: local_v4, v6: local_v6 };
                self.advance(Input::Connected(next_hops), now, &mut out);
            }
            Event::ConnectFailed => self.advance(Input::ConnectFailed, now, &mut out),
            Event::Closed => self.advance(Input::Closed, now, &mut out),
            Event::Received(bytes) => self.receive(bytes, now, &mut out),
            Event::Advertise(routes) => {
                self.wanted = Some(routes);
                self.advance(Input::Advertised, now, &mut out);
            }
        }
        out
    }

    /// Does what is due; nothing where nothing is.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut out = Vec::new();
        self.advance(Input::Timeout, now, &mut out);
        out
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.state.deadline()
    }

    /// The state now.
    pub fn state(&self) -> StateKind {
        self.state.kind()
    }

    /// What was agreed on, from OpenConfirm on.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        match &self.state {
            State::Idle { .. } | State::Connect { .. } | State::OpenSent { .. } => None,
            State::OpenConfirm { negotiated, .. } => Some(negotiated),
            State::Established(established) => Some(&established.negotiated),
        }
    }

    /// Since when the session is Established.
    pub fn established_since(&self) -> Option<Instant> {
        self.established().map(|established| established.since)
    }

    /// The wanted routes that an Established session does not announce, and why. Empty in every
    /// other state.
    pub fn held_back(&self) -> BTreeMap<IpNet, HeldBack> {
        let Some(established) = self.established() else { return BTreeMap::new() };
        let routes = self.wanted.iter().flatten();
        routes
            .filter_map(|route| Some((route.prefix, established.rib_out.admits(route).err()?)))
            .collect()
    }

    /// The counters now.
    pub fn stats(&self) -> Stats {
        let advertised_prefixes =
            self.established().map_or(0, |established| established.rib_out.len());
        Stats { advertised_prefixes, ..self.stats.clone() }
    }

    fn established(&self) -> Option<&Established> {
        match &self.state {
            State::Established(established) => Some(established),
            State::Idle { .. }
            | State::Connect { .. }
            | State::OpenSent { .. }
            | State::OpenConfirm { .. } => None,
        }
    }

    fn receive(&mut self, bytes: &[u8], now: Instant, out: &mut Vec<Action>) {
        if let Some(reader) = self.state.reader() {
            reader.push(bytes);
        }
        // A message may end the connection, and the rest of its bytes with it.
        while let Some(next) = self.state.reader().map(Reader::next) {
            match next {
                Ok(Some(message)) => {
                    self.stats.received.count(message.kind());
                    self.advance(Input::Message(message), now, out);
                }
                Ok(None) => break,
                Err(violation) => self.advance(Input::Violation(violation), now, out),
            }
        }
    }

    fn advance(&mut self, input: Input, now: Instant, out: &mut Vec<Action>) {
        if self.established_since().is_some_and(|since| now >= since + FORGIVEN_AFTER) {
            self.session_failures = 0;
        }
        let before = self.state.kind();
        let state = std::mem::replace(&mut self.state, State::Idle { retry_at: None });
        self.state = self.step(state, input, now, out);
        let after = self.state.kind();
        if before != after {
            out.push(Action::StateChanged(after));
        }
    }

    fn step(&mut self, state: State, input: Input, now: Instant, out: &mut Vec<Action>) -> State {
        match (state, input) {
            (State::Idle { retry_at: None }, Input::Start) => {
                self.offer = Offer::All;
                self.connect_failures = 0;
                self.session_failures = 0;
                self.dial(now, out)
            }
            (State::Idle { retry_at: Some(at) }, Input::Timeout) if at <= now => {
                self.dial(now, out)
            }
            (State::Idle { .. }, Input::Stop(_)) => State::Idle { retry_at: None },
            (state @ State::Idle { .. }, Input::Connected(_)) => {
                // It came about while the shell was being told to give it up.
                out.push(Action::Close);
                state
            }
            (
                state @ State::Idle { .. },
                Input::Start
                | Input::ConnectFailed
                | Input::Closed
                | Input::Message(_)
                | Input::Violation(_)
                | Input::Advertised
                | Input::Timeout,
            ) => state,

            (State::Connect { .. }, Input::Connected(next_hops)) => self.open(next_hops, now, out),
            (State::Connect { .. }, Input::ConnectFailed | Input::Closed) => {
                self.fall(ResetReason::ConnectFailed, Retry::Unreachable, now, out)
            }
            (State::Connect { give_up_at }, Input::Timeout) if give_up_at <= now => {
                self.fall(ResetReason::ConnectTimedOut, Retry::Unreachable, now, out)
            }
            (State::Connect { .. }, Input::Stop(_)) => self.stopped(out),
            (
                state @ State::Connect { .. },
                Input::Start
                | Input::Message(_)
                | Input::Violation(_)
                | Input::Advertised
                | Input::Timeout,
            ) => state,

            (State::OpenSent { link, .. }, Input::Message(Message::Open(open))) => {
                self.confirm(link, &open, now, out)
            }
            (State::OpenSent { give_up_at, .. }, Input::Timeout) if give_up_at <= now => {
                let error = ProtocolError::HoldTimerExpired(StateKind::OpenSent);
                self.violated(error, now, out)
            }
            (State::OpenSent { .. }, Input::Closed) => {
                // This is how a router turns away a peer that it is not ready for.
                let reason = ResetReason::Closed(StateKind::OpenSent);
                self.fall(reason, Retry::Unreachable, now, out)
            }
            (
                state @ State::OpenSent { .. },
                Input::Start
                | Input::Connected(_)
                | Input::ConnectFailed
                | Input::Advertised
                | Input::Timeout,
            ) => state,

            (
                State::OpenConfirm { link, negotiated, timers: _ },
                Input::Message(Message::Keepalive),
            ) => self.establish(link, negotiated, now, out),
            (State::OpenConfirm { link, negotiated, timers }, Input::Timeout) => {
                if is_due(timers.hold_at, now) {
                    let error = ProtocolError::HoldTimerExpired(StateKind::OpenConfirm);
                    return self.violated(error, now, out);
                }
                let timers = self.keep_alive(timers, &negotiated, now, out);
                State::OpenConfirm { link, negotiated, timers }
            }
            (State::OpenConfirm { .. }, Input::Closed) => {
                let reason = ResetReason::Closed(StateKind::OpenConfirm);
                self.fall(reason, Retry::BackOff, now, out)
            }
            (
                state @ State::OpenConfirm { .. },
                Input::Start | Input::Connected(_) | Input::ConnectFailed | Input::Advertised,
            ) => state,

            (State::Established(mut established), Input::Message(Message::Keepalive)) => {
                established.heard(now);
                State::Established(established)
            }
            (State::Established(mut established), Input::Message(Message::Update(update))) => {
                let ReceivedUpdate { malformed_attributes } = update;
                self.stats.malformed_updates += u64::from(malformed_attributes);
                established.heard(now);
                State::Established(established)
            }
            (
                State::Established(mut established),
                Input::Message(Message::RouteRefresh(Some(refresh))),
            ) => {
                self.refresh(&mut established, refresh, now, out);
                State::Established(established)
            }
            (State::Established(mut established), Input::Advertised) => {
                self.flush_soon(&mut established, now, out);
                State::Established(established)
            }
            (State::Established(mut established), Input::Timeout) => {
                if is_due(established.timers.hold_at, now) {
                    let error = ProtocolError::HoldTimerExpired(StateKind::Established);
                    return self.violated(error, now, out);
                }
                established.timers =
                    self.keep_alive(established.timers, &established.negotiated, now, out);
                if is_due(established.flush_at, now) {
                    self.flush(&mut established, now, out);
                }
                State::Established(established)
            }
            (State::Established(established), Input::Closed) => {
                let retry = clean_if_lasting(established.since, now);
                self.fall(ResetReason::Closed(StateKind::Established), retry, now, out)
            }
            (
                State::Established(established),
                Input::Message(Message::Notification(notification)),
            ) => {
                let retry = if notification.is_clean_close() {
                    clean_if_lasting(established.since, now)
                } else {
                    Retry::BackOff
                };
                self.fall(ResetReason::NotificationReceived(notification), retry, now, out)
            }
            (State::Established(mut established), Input::Stop(reason)) => {
                // Some routers keep routes over a Cease; a withdraw is understood by all.
                self.send_updates(established.rib_out.withdraw_all(), out);
                self.cease(&reason, out)
            }
            (
                state @ State::Established(_),
                Input::Start
                | Input::Connected(_)
                | Input::ConnectFailed
                | Input::Message(Message::RouteRefresh(None)),
            ) => state,

            (State::OpenSent { .. } | State::OpenConfirm { .. }, Input::Stop(reason)) => {
                self.cease(&reason, out)
            }
            (
                State::OpenSent { .. } | State::OpenConfirm { .. },
                Input::Message(Message::Notification(notification)),
            ) => {
                if notification.declines_our_open() {
                    self.offer = self.offer.plainer();
                }
                let reason = ResetReason::NotificationReceived(notification);
                self.fall(reason, Retry::BackOff, now, out)
            }
            (
                State::OpenSent { .. } | State::OpenConfirm { .. } | State::Established(_),
                Input::Violation(error),
            ) => self.violated(error, now, out),
            (
                state
                @ (State::OpenSent { .. } | State::OpenConfirm { .. } | State::Established(_)),
                Input::Message(message),
            ) => {
                let error = ProtocolError::UnexpectedMessage {
                    state: state.kind(),
                    message: message.kind(),
                };
                self.violated(error, now, out)
            }
        }
    }

    fn dial(&mut self, now: Instant, out: &mut Vec<Action>) -> State {
        out.push(Action::Connect);
        State::Connect { give_up_at: now + CONNECT_TIMEOUT }
    }

    fn open(&mut self, next_hops: NextHops, now: Instant, out: &mut Vec<Action>) -> State {
        let open = Open {
            my_as: two_octets(self.config.local_asn),
            hold_time: proposed_hold_time(&self.config),
            identifier: self.config.router_id,
            capabilities: self.capabilities(),
        };
        self.send(MessageType::Open, open.encode(), out);
        State::OpenSent {
            link: Link { reader: Reader::default(), next_hops },
            give_up_at: now + self.config.open_time,
        }
    }

    fn capabilities(&self) -> Capabilities {
        let essential = Capabilities {
            multiprotocol: Some(self.config.families.clone()),
            four_octet_as: Some(self.config.local_asn),
            ..Capabilities::default()
        };
        match self.offer {
            Offer::All => {
                Capabilities { route_refresh: true, enhanced_route_refresh: true, ..essential }
            }
            Offer::Essential => essential,
            Offer::Nothing => Capabilities::default(),
        }
    }

    fn confirm(&mut self, link: Link, open: &Open, now: Instant, out: &mut Vec<Action>) -> State {
        let negotiated = match Negotiated::from_open(&self.config, &self.capabilities(), open) {
            Ok(negotiated) => negotiated,
            Err(error) => return self.violated(error.into(), now, out),
        };
        self.connect_failures = 0;
        self.send(MessageType::Keepalive, message::keepalive(), out);
        let mut timers = self.timers(&negotiated, now);
        // Without a hold time a peer could stay here for ever.
        timers.hold_at.get_or_insert(now + self.config.open_time);
        State::OpenConfirm { link, negotiated, timers }
    }

    fn establish(
        &mut self,
        link: Link,
        negotiated: Negotiated,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> State {
        self.stats.established += 1;
        let mut established = Box::new(Established {
            rib_out: RibOut::new(&self.config, &negotiated, link.next_hops),
            timers: self.timers(&negotiated, now),
            link,
            negotiated,
            since: now,
            flushed_at: None,
            flush_at: None,
            refresh: BTreeSet::new(),
        });
        self.flush(&mut established, now, out);
        State::Established(established)
    }

    fn timers(&mut self, negotiated: &Negotiated, now: Instant) -> Timers {
        if negotiated.hold_time.is_zero() {
            return Timers { hold_at: None, keepalive_at: None };
        }
        Timers {
            hold_at: Some(now + negotiated.hold_time),
            keepalive_at: Some(now + self.keepalive_interval(negotiated)),
        }
    }

    fn keepalive_interval(&mut self, negotiated: &Negotiated) -> Duration {
        self.jittered(negotiated.keepalive_time).max(MIN_KEEPALIVE_TIME)
    }

    fn keep_alive(
        &mut self,
        timers: Timers,
        negotiated: &Negotiated,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> Timers {
        if !is_due(timers.keepalive_at, now) {
            return timers;
        }
        self.send(MessageType::Keepalive, message::keepalive(), out);
        Timers { keepalive_at: Some(now + self.keepalive_interval(negotiated)), ..timers }
    }

    fn refresh(
        &mut self,
        established: &mut Established,
        refresh: RouteRefresh,
        now: Instant,
        out: &mut Vec<Action>,
    ) {
        let RouteRefresh { family, subtype } = refresh;
        match subtype {
            RefreshSubtype::Request => {
                let negotiated = &established.negotiated;
                if negotiated.route_refresh && negotiated.families.contains(&family) {
                    established.refresh.insert(family);
                    self.flush_soon(established, now, out);
                }
            }
            // They bracket the peer's routes, of which we keep none.
            RefreshSubtype::Begin | RefreshSubtype::End => {}
        }
    }

    /// At once where nothing was sent lately, or else together with what comes in the meantime.
    fn flush_soon(&mut self, established: &mut Established, now: Instant, out: &mut Vec<Action>) {
        match established.flushed_at.map(|at| at + COALESCING_WINDOW) {
            Some(open_until) if open_until > now => established.flush_at = Some(open_until),
            Some(_) | None => self.flush(established, now, out),
        }
    }

    fn flush(&mut self, established: &mut Established, now: Instant, out: &mut Vec<Action>) {
        established.flush_at = None;
        let refresh = std::mem::take(&mut established.refresh);
        // Before the first wanted routes a refresh has nothing to repeat.
        let Some(wanted) = &self.wanted else { return };
        let mut updates = vec![established.rib_out.synchronize(wanted)];
        let markers = if established.negotiated.enhanced_route_refresh {
            RefreshMarkers::Enhanced
        } else {
            RefreshMarkers::Plain
        };
        updates
            .extend(refresh.into_iter().map(|family| established.rib_out.resend(family, markers)));
        for updates in updates {
            if !updates.bytes.is_empty() {
                established.flushed_at = Some(now);
                self.send_updates(updates, out);
            }
        }
    }

    fn send_updates(&mut self, updates: Updates, out: &mut Vec<Action>) {
        self.stats.sent.update += updates.updates;
        self.stats.sent.route_refresh += updates.refreshes;
        if !updates.bytes.is_empty() {
            out.push(Action::Send(updates.bytes));
        }
    }

    fn send(&mut self, kind: MessageType, bytes: Vec<u8>, out: &mut Vec<Action>) {
        self.stats.sent.count(kind);
        out.push(Action::Send(bytes));
    }

    fn cease(&mut self, reason: &StopReason, out: &mut Vec<Action>) -> State {
        let bytes = message::notification(&Notification::from(reason));
        self.send(MessageType::Notification, bytes, out);
        self.stopped(out)
    }

    fn stopped(&mut self, out: &mut Vec<Action>) -> State {
        self.stats.last_reset = Some(ResetReason::Stopped);
        out.push(Action::Close);
        State::Idle { retry_at: None }
    }

    /// Tells the peer what it did wrong and ends the session.
    fn violated(&mut self, error: ProtocolError, now: Instant, out: &mut Vec<Action>) -> State {
        let bytes = message::notification(&Notification::from(&error));
        self.send(MessageType::Notification, bytes, out);
        self.fall(error.into(), Retry::BackOff, now, out)
    }

    fn fall(
        &mut self,
        reason: ResetReason,
        retry: Retry,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> State {
        self.stats.last_reset = Some(reason);
        out.push(Action::Close);
        let wait = match retry {
            Retry::Unreachable => {
                let longest = self.config.connect_time.unwrap_or(DEFAULT_CONNECT_TIME);
                let step = usize::try_from(self.connect_failures).unwrap_or(usize::MAX);
                self.connect_failures = self.connect_failures.saturating_add(1);
                CONNECT_WAITS.get(step).copied().unwrap_or(longest).min(longest)
            }
            Retry::CleanClose => CLEAN_CLOSE_WAIT,
            Retry::BackOff => {
                // 2^6 s exceeds the longest wait already.
                let doubled = Duration::from_secs(1 << self.session_failures.min(6));
                self.session_failures = self.session_failures.saturating_add(1);
                doubled.min(MAX_BACK_OFF)
            }
        };
        State::Idle { retry_at: Some(now + self.jittered(wait)) }
    }

    /// RFC 4271 section 10: three quarters of a time to all of it.
    fn jittered(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.jitter.random_range(0.75..=1.0))
    }
}

impl Established {
    fn heard(&mut self, now: Instant) {
        if let Some(hold_at) = &mut self.timers.hold_at {
            *hold_at = now + self.negotiated.hold_time;
        }
    }
}

impl MessageCounts {
    fn count(&mut self, kind: MessageType) {
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

impl Offer {
    fn plainer(self) -> Self {
        match self {
            Self::All => Self::Essential,
            Self::Essential | Self::Nothing => Self::Nothing,
        }
    }
}

fn is_due(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|at| at <= now)
}

/// A peer that comes up and leaves again and again is not in good order.
fn clean_if_lasting(since: Instant, now: Instant) -> Retry {
    if now.saturating_duration_since(since) >= MIN_ESTABLISHED {
        Retry::CleanClose
    } else {
        Retry::BackOff
    }
}

#[cfg(test)]
mod tests;
