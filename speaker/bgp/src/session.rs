//! The state machine of a session: states, timers, retries.
//!
//! One a peer. Whatever happens is an [`Input`], and [`Session::step`] is the one table of states
//! and inputs. Read RFC 4271 sections 6 and 8; RFC 6608 for messages in the wrong state; RFC 4486
//! and RFC 8538 for how a session is ended on purpose; RFC 4724 section 4.2 for a peer that connects
//! while the session is up.

mod ending;
mod opening;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ending::{Retry, clean_if_lasting};
use ipnet::IpNet;
use opening::Offer;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Action, BfdGate, BfdState, Event, HeldBack, Local, MessageType, Mode, Negotiated, Notification,
    ProtocolError, ResetReason, SessionConfig, StateKind, Stats, StopReason,
    established::Established,
    message::{self, Message, Reader, RefreshSubtype, RouteRefresh},
    received::{ReceivedUpdate, Verdict},
    rib_out::{RibOut, Updates},
    state::{MIN_KEEPALIVE_TIME, State, Timers, keepalive_time},
};

/// RFC 4271 section 8.2.2 suggests four minutes; a connection that stays mute is not worth them.
pub const DEFAULT_OPEN_TIME: Duration = Duration::from_secs(30);

/// After this long Established the errors before are forgotten.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);

/// A session with one peer: [`handle`] what happens, [`handle_timeout`] when [`poll_timeout`] says
/// so, perform the actions of both, and after each of them [`transmit`] while the session
/// [`has_updates`] and the connection has room.
///
/// [`handle`]: Self::handle
/// [`handle_timeout`]: Self::handle_timeout
/// [`poll_timeout`]: Self::poll_timeout
/// [`transmit`]: Self::transmit
/// [`has_updates`]: Self::has_updates
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    state: State,
    rib: RibOut,
    /// `None` before the first word of BFD.
    bfd: Option<BfdState>,
    offer: Offer,
    /// Attempts to connect since the last that brought an OPEN.
    connect_failures: u32,
    /// Sessions that fell by an error since the last that stood.
    session_failures: u32,
    stats: Stats,
    jitter: StdRng,
}

/// All that can happen to a state.
#[derive(Debug)]
enum Input {
    Start,
    Stop(StopReason),
    Connected(Local),
    Accepted(Local),
    ConnectFailed,
    Closed,
    Written,
    Message(Message),
    Violation(ProtocolError),
    /// The wanted routes changed, or all of them are known.
    Wanted,
    BfdUp,
    /// From Up.
    BfdDown,
    /// Time went by; each state looks at its own deadlines.
    Timeout,
}

impl Session {
    /// A stopped session. The seed feeds the jitter of its timers; sessions should differ in it.
    pub fn new(config: SessionConfig, seed: u64) -> Self {
        Self {
            rib: RibOut::new(&config),
            config,
            state: State::Idle { retry_at: None },
            bfd: None,
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
            Event::Connected(local) => self.advance(Input::Connected(local), now, &mut out),
            Event::Accepted(local) => self.advance(Input::Accepted(local), now, &mut out),
            Event::ConnectFailed => self.advance(Input::ConnectFailed, now, &mut out),
            Event::Closed => self.advance(Input::Closed, now, &mut out),
            Event::Received(bytes) => self.receive(bytes, now, &mut out),
            Event::Written => self.advance(Input::Written, now, &mut out),
            Event::Routes(changes) => {
                self.rib.apply(changes);
                self.advance(Input::Wanted, now, &mut out);
            }
            Event::Complete => {
                self.rib.complete();
                self.advance(Input::Wanted, now, &mut out);
            }
            Event::Bfd(state) if self.config.bfd.is_some() => {
                match (self.bfd.replace(state), state) {
                    (_, BfdState::Up) => self.advance(Input::BfdUp, now, &mut out),
                    (Some(BfdState::Up), BfdState::Down) => {
                        self.advance(Input::BfdDown, now, &mut out);
                    }
                    (Some(BfdState::Down) | None, BfdState::Down) => {}
                }
            }
            Event::Bfd(_) => {}
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

    /// Whether [`Self::transmit`] has something to send now.
    pub fn has_updates(&self) -> bool {
        self.established().is_some_and(|established| established.pace.is_open())
    }

    /// The next UPDATEs, to be written as they are and behind all that was sent before: whole
    /// messages of `room` octets in total at most. With room for 4096 octets there is one at least
    /// while [`Self::has_updates`]. What is handed out counts as sent.
    pub fn transmit(&mut self, now: Instant, room: usize) -> Vec<u8> {
        let interval = self.config.min_advertisement_interval;
        let interval = (!interval.is_zero()).then(|| self.jittered(interval));
        let State::Established(established) = &mut self.state else { return Vec::new() };
        if !established.pace.is_open() {
            return Vec::new();
        }
        let updates = self.rib.transmit(room, established.pace.allowed());
        established.pace.sent(&updates, interval, now, &self.rib);
        self.count(&updates);
        updates.bytes
    }

    /// Takes over what can change on a running session: the interval between announcements, the
    /// keepalive time and the BFD rule from now on; the connect time from the next attempt on; the
    /// hold time, the open time, the restart time and the N bit from the next OPEN on. All else in
    /// the configuration is ignored.
    pub fn update_timers(&mut self, config: &SessionConfig, now: Instant) {
        self.config.hold_time = config.hold_time;
        self.config.keepalive_time = config.keepalive_time;
        self.config.connect_time = config.connect_time;
        self.config.open_time = config.open_time;
        self.config.min_advertisement_interval = config.min_advertisement_interval;
        self.config.bfd = config.bfd;
        if let (Some(ours), Some(new)) =
            (&mut self.config.graceful_restart, config.graceful_restart)
        {
            ours.restart_time = new.restart_time;
            ours.notification = new.notification;
        }
        if config.bfd.is_none() {
            self.bfd = None;
        }
        let waits = self.bfd_gate_at_start() == BfdGate::Waiting;
        let interval = self.config.min_advertisement_interval;
        let Self { state: State::Established(established), config, rib, .. } = self else { return };
        if !waits {
            established.pace.lift_bfd(now, rib);
        }
        if interval.is_zero() {
            established.pace.lift_interval(now, rib);
        }
        let negotiated = &mut established.negotiated;
        negotiated.keepalive_time = keepalive_time(config, negotiated.hold_time);
        if let Some(at) = &mut established.timers.keepalive_at {
            *at = (*at).min(now + negotiated.keepalive_time);
        }
    }

    /// The state now.
    pub fn state(&self) -> StateKind {
        self.state.kind()
    }

    /// What was agreed on, from OpenConfirm on.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        match &self.state {
            State::Idle { .. } | State::Connect { .. } | State::Active | State::OpenSent { .. } => {
                None
            }
            State::OpenConfirm { negotiated, .. } => Some(negotiated),
            State::Established(established) => Some(&established.negotiated),
        }
    }

    /// Whether BFD keeps an Established session from announcing. Open in every other state.
    pub fn bfd_gate(&self) -> BfdGate {
        self.established().map_or(BfdGate::Open, |established| established.pace.bfd())
    }

    /// The wanted routes that an Established session cannot announce, and why. Empty in every other
    /// state.
    pub fn held_back(&self) -> BTreeMap<IpNet, HeldBack> {
        self.rib.held_back()
    }

    /// The counters now.
    pub fn stats(&self) -> Stats {
        Stats {
            established_since: self.established().map(|established| established.since),
            wanted_prefixes: self.rib.wanted(),
            advertised_prefixes: self.rib.sent(),
            ..self.stats.clone()
        }
    }

    fn established(&self) -> Option<&Established> {
        match &self.state {
            State::Established(established) => Some(established),
            State::Idle { .. }
            | State::Connect { .. }
            | State::Active
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
        let lasted = |established: &Established| now >= established.since + FORGIVEN_AFTER;
        if self.established().is_some_and(lasted) {
            self.session_failures = 0;
        }
        let before = self.state.kind();
        let state = std::mem::replace(&mut self.state, State::Idle { retry_at: None });
        self.state = self.step(state, input, now, out);
        let after = self.state.kind();
        if before != after {
            if before == StateKind::Established {
                self.stats.flaps += 1;
                self.stats.last_loss.clone_from(&self.stats.last_reset);
                self.rib.disconnected();
            }
            out.push(Action::StateChanged(after));
        }
    }

    fn step(&mut self, state: State, input: Input, now: Instant, out: &mut Vec<Action>) -> State {
        match (state, input) {
            (State::Idle { retry_at: None }, Input::Start) => {
                self.offer = Offer::All;
                self.connect_failures = 0;
                self.session_failures = 0;
                self.try_anew(now, out)
            }
            (State::Idle { retry_at: Some(at) }, Input::Timeout) if at <= now => {
                self.try_anew(now, out)
            }
            (State::Idle { .. }, Input::Stop(_)) => State::Idle { retry_at: None },
            (state @ (State::Idle { .. } | State::Active), Input::Connected(_)) => {
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
                | Input::Timeout,
            ) => state,

            (State::Connect { .. }, Input::Connected(local)) => self.open(local, now, out),
            (State::Connect { .. }, Input::ConnectFailed | Input::Closed) => {
                self.fall(ResetReason::ConnectFailed, Retry::Unreachable, now, out)
            }
            (State::Connect { give_up_at }, Input::Timeout) if give_up_at <= now => {
                self.fall(ResetReason::ConnectTimedOut, Retry::Unreachable, now, out)
            }
            (State::Connect { .. } | State::Active, Input::Stop(_)) => self.stopped(now, out),
            (
                state @ State::Connect { .. },
                Input::Start | Input::Message(_) | Input::Violation(_) | Input::Timeout,
            ) => state,

            (State::Active, Input::Accepted(local)) => self.open(local, now, out),
            (
                State::Active,
                Input::Start
                | Input::ConnectFailed
                | Input::Closed
                | Input::Message(_)
                | Input::Violation(_)
                | Input::Timeout,
            ) => State::Active,

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
            (state @ State::OpenSent { .. }, Input::Timeout) => state,

            (
                State::OpenConfirm { link, negotiated, timers: _ },
                Input::Message(Message::Keepalive),
            ) => self.establish(link, negotiated, now),
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

            (State::OpenSent { .. } | State::OpenConfirm { .. }, Input::Accepted(local))
                if self.config.mode == Mode::Passive =>
            {
                // Whoever dials again has given the first attempt up.
                self.notify(&Notification::connection_collision(), out);
                out.push(Action::Close);
                self.open(local, now, out)
            }
            (State::OpenSent { .. }, Input::Stop(StopReason::Restart))
                if self.config.graceful_restart.is_some() =>
            {
                self.stopped(now, out)
            }
            (State::OpenConfirm { negotiated, .. }, Input::Stop(StopReason::Restart))
                if negotiated.graceful_restart.is_some() =>
            {
                self.stopped(now, out)
            }
            (State::OpenSent { .. } | State::OpenConfirm { .. }, Input::Stop(reason)) => {
                self.notify(&Notification::from(&reason), out);
                self.stopped(now, out)
            }
            (
                State::OpenSent { .. } | State::OpenConfirm { .. },
                Input::Message(Message::Notification(notification)),
            ) => {
                self.offer = self.plainer_offer(&notification);
                let reason = ResetReason::NotificationReceived(notification);
                self.fall(reason, Retry::BackOff, now, out)
            }

            (State::Established(established), input) => {
                self.step_established(established, input, now, out)
            }

            (State::OpenSent { .. } | State::OpenConfirm { .. }, Input::BfdDown) => {
                self.lost_by_bfd(now, out)
            }
            (State::OpenSent { .. } | State::OpenConfirm { .. }, Input::Violation(error)) => {
                self.violated(error, now, out)
            }
            (
                state @ (State::OpenSent { .. } | State::OpenConfirm { .. }),
                Input::Message(message),
            ) => self.unexpected(state.kind(), &message, now, out),
            (state, Input::Accepted(_)) => {
                self.reject(&Notification::connection_rejected(), out);
                state
            }
            (
                state @ (State::OpenSent { .. } | State::OpenConfirm { .. }),
                Input::Start | Input::Connected(_) | Input::ConnectFailed,
            ) => state,
            (state, Input::Written | Input::Wanted | Input::BfdUp | Input::BfdDown) => state,
        }
    }

    fn step_established(
        &mut self,
        mut established: Box<Established>,
        input: Input,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> State {
        match input {
            Input::Message(Message::Keepalive) => established.heard(now),
            Input::Message(Message::Update(update)) => {
                established.heard(now);
                self.received(update);
            }
            Input::Message(Message::RouteRefresh(refresh)) => {
                if let Some(RouteRefresh { family, subtype: RefreshSubtype::Request }) = refresh
                    && established.negotiated.route_refresh
                    && established.negotiated.families.contains(&family)
                {
                    self.rib.refresh(family);
                    established.pace.advance(now, &self.rib);
                }
                // Begin and end bracket the peer's routes, of which we keep none.
            }
            Input::Message(Message::Notification(notification)) => {
                let retry = if notification.is_clean_close() {
                    clean_if_lasting(established.since, now)
                } else {
                    Retry::BackOff
                };
                return self.fall(ResetReason::NotificationReceived(notification), retry, now, out);
            }
            Input::Message(message @ Message::Open(_)) => {
                return self.unexpected(StateKind::Established, &message, now, out);
            }
            Input::Violation(error) => return self.violated(error, now, out),
            Input::Written => established.written(now),
            Input::Wanted => established.pace.advance(now, &self.rib),
            Input::BfdUp => established.pace.lift_bfd(now, &self.rib),
            Input::BfdDown => return self.lost_by_bfd(now, out),
            Input::Timeout => {
                if is_due(established.timers.hold_at, now) {
                    let error = ProtocolError::HoldTimerExpired(StateKind::Established);
                    return self.violated(error, now, out);
                }
                if established.is_send_hold_over(now) {
                    let time = established.send_hold_time();
                    return self.violated(ProtocolError::SendHoldTimerExpired(time), now, out);
                }
                established.timers =
                    self.keep_alive(established.timers, &established.negotiated, now, out);
                established.pace.advance(now, &self.rib);
            }
            Input::Closed => {
                let retry = clean_if_lasting(established.since, now);
                return self.fall(ResetReason::Closed(StateKind::Established), retry, now, out);
            }
            Input::Accepted(local) => match self.config.mode {
                Mode::Passive if established.negotiated.graceful_restart.is_some() => {
                    // The peer was away and came back before anybody noticed. It is told nothing on
                    // a connection that it has forgotten (RFC 4724 section 4.2).
                    self.reset(ResetReason::Replaced, now);
                    out.push(Action::Close);
                    return self.open(local, now, out);
                }
                Mode::Passive => self.reject(&Notification::connection_collision(), out),
                Mode::Active => self.reject(&Notification::connection_rejected(), out),
            },
            Input::Stop(StopReason::Restart)
                if established.negotiated.graceful_restart.is_some() =>
            {
                return self.stopped(now, out);
            }
            Input::Stop(reason) => {
                // Some routers keep routes over a Cease; a withdraw is understood by all.
                let updates = self.rib.withdraw_all();
                self.count(&updates);
                if !updates.bytes.is_empty() {
                    out.push(Action::Send(updates.bytes));
                }
                let cease = Notification::from(&reason);
                let for_good = match reason {
                    StopReason::AdministrativeShutdown { .. }
                    | StopReason::PeerDeconfigured
                    | StopReason::Restart => true,
                    StopReason::ConfigurationChange => false,
                };
                let cease = if for_good && established.negotiated.needs_hard_reset() {
                    cease.into_hard_reset()
                } else {
                    cease
                };
                self.notify(&cease, out);
                return self.stopped(now, out);
            }
            Input::Start | Input::Connected(_) | Input::ConnectFailed => {}
        }
        State::Established(established)
    }

    fn bfd_gate_at_start(&self) -> BfdGate {
        let strict = self.config.bfd.is_some_and(|rule| rule.strict);
        if strict && self.bfd != Some(BfdState::Up) { BfdGate::Waiting } else { BfdGate::Open }
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

    fn received(&mut self, update: ReceivedUpdate) {
        let ReceivedUpdate { announced, withdrawn, verdict } = update;
        self.stats.received_prefixes += announced;
        self.stats.received_withdrawals += withdrawn;
        match verdict {
            Verdict::Sound => {}
            Verdict::AttributeDiscard => self.stats.discarded_attributes += 1,
            Verdict::TreatAsWithdraw => self.stats.malformed_updates += 1,
        }
    }

    fn count(&mut self, updates: &Updates) {
        self.stats.sent.update += updates.updates;
        self.stats.sent.route_refresh += updates.refreshes;
    }

    fn send(&mut self, kind: MessageType, bytes: Vec<u8>, out: &mut Vec<Action>) {
        self.stats.sent.count(kind);
        out.push(Action::Send(bytes));
    }

    /// RFC 4271 section 10: three quarters of a time to all of it.
    fn jittered(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.jitter.random_range(0.75..=1.0))
    }
}

fn is_due(deadline: Option<Instant>, now: Instant) -> bool {
    deadline.is_some_and(|at| at <= now)
}

#[cfg(test)]
mod tests;
