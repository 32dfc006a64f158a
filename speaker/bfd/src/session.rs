//! The state machine of a session and its timers. Read RFC 5880 sections 6.2 and 6.8.

use std::{
    collections::BTreeMap,
    num::{NonZeroU8, NonZeroU32},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Authentication, Diagnostic, Discard, Packet, Received, State, authentication::Authenticator,
};

/// What a session is configured to be. All of it may change while the session runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who speaks first.
    pub role: Role,
    /// Intervals and multiplier.
    pub timing: Timing,
    /// `None`: authenticated packets are discarded. Both ends have to change it within a detection
    /// time.
    pub authentication: Option<Authentication>,
}

/// How often packets come and how many may be missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The shortest time between the packets that we want to send; not 0.
    pub desired_min_tx: Duration,
    /// The shortest time between packets that we can take; zero: the peer shall send none.
    pub required_min_rx: Duration,
    /// How many of our packets the peer may miss.
    pub detect_multiplier: NonZeroU8,
}

/// RFC 5880 section 6.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sends from the start.
    Active,
    /// Sends when the peer was heard.
    Passive,
}

/// What a shell tells its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// Look for the peer.
    Start,
    /// AdminDown: tell the peer for a detection time, then be silent.
    Stop,
    /// Other settings; intervals are announced with a Poll sequence, without a flap.
    Configure(Settings),
    /// A packet for this session.
    Received(Received<'a>),
}

/// What a session asks of its shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The payload of a datagram to the peer.
    Send(Vec<u8>),
    /// The state changed.
    StateChanged {
        /// The new one.
        state: State,
        /// Why.
        diagnostic: Diagnostic,
        /// What the peer said last. A session that went down because the peer is in AdminDown says
        /// nothing about the path: its clients take no action (RFC 5882 section 4.2).
        peer: State,
    },
}

/// A session with one peer: [`handle`](Self::handle) what happens, [`handle_timeout`] when
/// [`poll_timeout`] says so, and perform the actions of both.
///
/// [`handle_timeout`]: Self::handle_timeout
/// [`poll_timeout`]: Self::poll_timeout
#[derive(Debug)]
pub struct Session {
    discriminator: NonZeroU32,
    role: Role,
    timing: Timing,
    authenticator: Option<Authenticator>,
    state: State,
    diagnostic: Diagnostic,
    peer: Peer,
    /// The intervals that hold now. During a Poll sequence they may differ from those that our
    /// packets announce (RFC 5880 section 6.8.3).
    in_force: Intervals,
    poll: Poll,
    /// When to send, and the interval that this was computed from. `None`: nothing to send.
    transmission: Option<Transmission>,
    /// When the peer, unless it is heard, is gone.
    detect_at: Option<Instant>,
    /// When the peer was silent for so long that it may start anew with its sequence numbers.
    forget_sequence_at: Option<Instant>,
    /// When AdminDown was told for long enough.
    silent_at: Option<Instant>,
    counters: Counters,
    random: StdRng,
}

/// What the last packet of the peer said; after a detection time without one, what RFC 5880 section
/// 6.8.1 says of a peer that was never heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its name for the session; `None` while it is not heard.
    pub discriminator: Option<NonZeroU32>,
    /// Its state.
    pub state: State,
    /// Why its session went down the last time.
    pub diagnostic: Diagnostic,
    /// How many of its packets we may miss.
    pub detect_multiplier: NonZeroU8,
    /// The shortest time between its packets that it wants.
    pub desired_min_tx: Duration,
    /// The shortest time between our packets that it can take; zero: send none.
    pub required_min_rx: Duration,
}

/// What was counted since the session was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets sent.
    pub sent: u64,
    /// Packets received that were believed.
    pub received: u64,
    /// How often the session came Up.
    pub up: u64,
    /// How often it left Up, for whatever reason.
    pub down: u64,
    /// How often it left Up for a reason that speaks of the path: not because one of the two sides
    /// went to AdminDown (RFC 5882 section 4.2).
    pub failures: u64,
    /// Packets among the received that asked for demand mode. It is not obeyed: periodic packets are
    /// what detects the failure of the way back.
    pub demand: u64,
    /// Packets that were not believed.
    pub discarded: BTreeMap<Discard, u64>,
}

const UNHEARD: Peer = Peer {
    discriminator: None,
    state: State::Down,
    diagnostic: Diagnostic::None,
    detect_multiplier: NonZeroU8::MIN,
    desired_min_tx: Duration::ZERO,
    required_min_rx: Duration::from_micros(1),
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Intervals {
    desired_min_tx: Duration,
    required_min_rx: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Poll {
    Off,
    /// Our packets ask for a Final.
    Running,
    /// Likewise, but what they announce changed meanwhile: the Final may answer an older packet, so
    /// another sequence has to follow.
    Outdated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Transmission {
    at: Instant,
    interval: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// A packet of our own accord.
    Periodic,
    /// The answer to a poll.
    Final,
}

/// The shortest interval that a session may announce while it is not Up (RFC 5880 section 6.8.3).
const SLOW: Duration = Duration::from_secs(1);

impl Session {
    /// A session in AdminDown, silent. `discriminator` is our name for it: random, and another one
    /// after each restart. The seed feeds the jitter and the first sequence number.
    pub fn new(discriminator: NonZeroU32, settings: Settings, seed: u64) -> Self {
        let Settings { role, timing, authentication } = settings;
        let mut random = StdRng::seed_from_u64(seed);
        let authenticator = authentication
            .map(|authentication| Authenticator::new(authentication, random.random()));
        Self {
            discriminator,
            role,
            timing,
            authenticator,
            state: State::AdminDown,
            diagnostic: Diagnostic::None,
            peer: UNHEARD,
            in_force: announced(timing, State::AdminDown),
            poll: Poll::Off,
            transmission: None,
            detect_at: None,
            forget_sequence_at: None,
            silent_at: None,
            counters: Counters::default(),
            random,
        }
    }

    /// What happened, and what to do about it.
    pub fn handle(&mut self, event: Event<'_>, now: Instant) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Start if self.state == State::AdminDown => {
                self.silent_at = None;
                self.peer = UNHEARD;
                self.enter(State::Down, Diagnostic::None, &mut out);
                self.send_if_allowed(now, &mut out);
            }
            Event::Stop if self.state != State::AdminDown => {
                self.detect_at = None;
                self.enter(State::AdminDown, Diagnostic::AdministrativelyDown, &mut out);
                // The peer goes by this interval as soon as it has heard it.
                let interval = self.in_force.desired_min_tx.max(self.peer.required_min_rx);
                let multiplier = self.timing.detect_multiplier.get();
                self.silent_at = Some(now + interval * multiplier.into());
                self.send_if_allowed(now, &mut out);
            }
            Event::Start | Event::Stop => {}
            Event::Configure(settings) => self.configure(settings, now, &mut out),
            Event::Received(received) => match self.refuse(&received) {
                None => self.receive(received.packet(), now, &mut out),
                Some(discard) => self.discard(discard),
            },
        }
        out
    }

    /// Does what is due; nothing where nothing is.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut out = Vec::new();
        if self.detect_at.is_some_and(|at| at <= now) {
            self.detect_at = None;
            // The peer may come back under another name.
            self.peer = UNHEARD;
            if matches!(self.state, State::Init | State::Up) {
                self.enter(State::Down, Diagnostic::ControlDetectionTimeExpired, &mut out);
                self.send_if_allowed(now, &mut out);
            }
        }
        if self.forget_sequence_at.is_some_and(|at| at <= now) {
            self.forget_sequence_at = None;
            if let Some(authenticator) = &mut self.authenticator {
                authenticator.forget_sequence();
            }
        }
        if self.silent_at.is_some_and(|at| at <= now) {
            self.silent_at = None;
            self.transmission = None;
        }
        if self.transmission.is_some_and(|transmission| transmission.at <= now) {
            self.send_if_allowed(now, &mut out);
        }
        out
    }

    /// Counts a packet for this session that the shell has refused.
    pub fn discard(&mut self, reason: Discard) {
        *self.counters.discarded.entry(reason).or_default() += 1;
    }

    /// When to call [`Self::handle_timeout`] next. `None`: never, unless something happens; a session
    /// that was stopped is over then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let transmission = self.transmission.map(|transmission| transmission.at);
        let all = [transmission, self.detect_at, self.forget_sequence_at, self.silent_at];
        all.into_iter().flatten().min()
    }

    /// Our name for the session.
    pub fn discriminator(&self) -> NonZeroU32 {
        self.discriminator
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why the session is not up, or was not the last time.
    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    /// What the peer said last.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How often we send, before jitter; `None`: not at all (RFC 5880 section 6.8.7).
    pub fn transmit_interval(&self) -> Option<Duration> {
        let waits = match self.role {
            Role::Active => false,
            Role::Passive => self.peer.discriminator.is_none(),
        };
        let told_enough = self.state == State::AdminDown && self.silent_at.is_none();
        if waits || told_enough || self.peer.required_min_rx.is_zero() {
            return None;
        }
        Some(self.in_force.desired_min_tx.max(self.peer.required_min_rx))
    }

    /// How long the peer may be silent: its multiplier times the slower of what it sends and what
    /// we take (RFC 5880 section 6.8.4).
    pub fn detection_time(&self) -> Duration {
        let interval = self.in_force.required_min_rx.max(self.peer.desired_min_tx);
        interval * self.peer.detect_multiplier.get().into()
    }

    fn configure(&mut self, settings: Settings, now: Instant, out: &mut Vec<Action>) {
        let Settings { role, timing, authentication } = settings;
        self.role = role;
        if self.authenticator.as_ref().map(Authenticator::authentication) != authentication.as_ref()
        {
            self.forget_sequence_at = None;
            let first = self.random.random();
            self.authenticator =
                authentication.map(|authentication| Authenticator::new(authentication, first));
        }
        self.retime(timing, now, out);
    }

    /// Puts other intervals in force; where both sides are up it polls for the peer's consent to
    /// those that could make one side expect more than the other sends.
    fn retime(&mut self, timing: Timing, now: Instant, out: &mut Vec<Action>) {
        if self.timing == timing {
            return;
        }
        self.timing = timing;
        let announced = announced(timing, self.state);
        if self.state != State::Up {
            self.in_force = announced;
            return;
        }
        self.in_force = Intervals {
            desired_min_tx: self.in_force.desired_min_tx.min(announced.desired_min_tx),
            required_min_rx: self.in_force.required_min_rx.max(announced.required_min_rx),
        };
        self.poll = match self.poll {
            Poll::Off => Poll::Running,
            Poll::Running | Poll::Outdated => Poll::Outdated,
        };
        self.send_if_allowed(now, out);
    }

    /// Why a packet must not be believed. Nothing changes but the sequence number of one that is.
    fn refuse(&mut self, received: &Received<'_>) -> Option<Discard> {
        let yours = received.packet().your_discriminator;
        if yours.is_some_and(|yours| yours != self.discriminator) {
            return Some(Discard::NoSession);
        }
        if self.state == State::AdminDown {
            return Some(Discard::AdminDown);
        }
        match &mut self.authenticator {
            None => received.signed().map(|_| Discard::Authenticated),
            Some(authenticator) => authenticator.verify(received).err(),
        }
    }

    fn receive(&mut self, packet: &Packet, now: Instant, out: &mut Vec<Action>) {
        self.counters.received += 1;
        self.counters.demand += u64::from(packet.demand);
        self.peer = Peer {
            discriminator: Some(packet.my_discriminator),
            state: packet.state,
            diagnostic: packet.diagnostic,
            detect_multiplier: packet.detect_multiplier,
            desired_min_tx: packet.desired_min_tx,
            required_min_rx: packet.required_min_rx,
        };
        if packet.is_final {
            match self.poll {
                Poll::Off => {}
                Poll::Running => {
                    self.poll = Poll::Off;
                    self.in_force = announced(self.timing, self.state);
                }
                Poll::Outdated => self.poll = Poll::Running,
            }
        }
        let before = self.state;
        if let Some((state, diagnostic)) = next_state(self.state, packet.state) {
            self.enter(state, diagnostic, out);
        }
        let detection_time = self.detection_time();
        self.detect_at = Some(now + detection_time);
        if self.authenticator.is_some() {
            // RFC 5880 section 6.8.1, bfd.AuthSeqKnown.
            self.forget_sequence_at = Some(now + 2 * detection_time);
        }
        if packet.poll {
            self.send(Answer::Final, out);
            self.schedule(now);
        } else if self.state != before {
            // The sooner the peer knows, the sooner both are up.
            self.send_if_allowed(now, out);
        } else {
            self.reschedule(now);
        }
    }

    fn enter(&mut self, state: State, diagnostic: Diagnostic, out: &mut Vec<Action>) {
        if self.state == State::Up {
            self.counters.down += 1;
            let on_purpose = state == State::AdminDown
                || diagnostic == Diagnostic::NeighborSignaledSessionDown
                    && self.peer.state == State::AdminDown;
            self.counters.failures += u64::from(!on_purpose);
        }
        self.state = state;
        self.diagnostic = diagnostic;
        match state {
            State::AdminDown | State::Down | State::Init => {
                self.poll = Poll::Off;
                self.in_force = announced(self.timing, state);
            }
            State::Up => {
                self.counters.up += 1;
                let announced = announced(self.timing, state);
                // From the slow interval to the configured one.
                self.in_force.desired_min_tx = announced.desired_min_tx;
                self.poll = Poll::Running;
            }
        }
        out.push(Action::StateChanged { state, diagnostic, peer: self.peer.state });
    }

    fn send_if_allowed(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.schedule(now);
        if self.transmission.is_some() {
            self.send(Answer::Periodic, out);
        }
    }

    fn schedule(&mut self, now: Instant) {
        self.transmission = self
            .transmit_interval()
            .map(|interval| Transmission { at: now + self.jittered(interval), interval });
    }

    /// Follows a changed interval. Never later than it was: packets that change it back and forth
    /// could silence us.
    fn reschedule(&mut self, now: Instant) {
        let before = self.transmission;
        if before.map(|transmission| transmission.interval) == self.transmit_interval() {
            return;
        }
        self.schedule(now);
        if let (Some(before), Some(after)) = (before, &mut self.transmission) {
            after.at = after.at.min(before.at);
        }
    }

    /// Three quarters of the interval to all of it; to nine tenths where a single packet that is
    /// late takes the session down (RFC 5880 section 6.8.7).
    fn jittered(&mut self, interval: Duration) -> Duration {
        let most = if self.timing.detect_multiplier.get() == 1 { 0.9 } else { 1.0 };
        interval.mul_f64(self.random.random_range(0.75..=most))
    }

    fn send(&mut self, answer: Answer, out: &mut Vec<Action>) {
        let announced = announced(self.timing, self.state);
        let packet = Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: answer == Answer::Periodic && self.poll != Poll::Off,
            is_final: answer == Answer::Final,
            // The session dies with the process.
            control_plane_independent: false,
            demand: false,
            detect_multiplier: self.timing.detect_multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.peer.discriminator,
            desired_min_tx: announced.desired_min_tx,
            required_min_rx: announced.required_min_rx,
            required_min_echo_rx: Duration::ZERO,
        };
        self.counters.sent += 1;
        out.push(Action::Send(match &mut self.authenticator {
            None => packet.encode().to_vec(),
            Some(authenticator) => authenticator.sign(&packet),
        }));
    }
}

/// The intervals that our packets carry in a state.
fn announced(timing: Timing, state: State) -> Intervals {
    let Timing { desired_min_tx, required_min_rx, detect_multiplier: _ } = timing;
    let desired_min_tx = match state {
        State::AdminDown | State::Down | State::Init => desired_min_tx.max(SLOW),
        State::Up => desired_min_tx,
    };
    Intervals { desired_min_tx, required_min_rx }
}

/// Where a packet takes the session, `None` where it stays (RFC 5880 section 6.8.6).
fn next_state(ours: State, theirs: State) -> Option<(State, Diagnostic)> {
    match (ours, theirs) {
        (State::Down, State::Down) => Some((State::Init, Diagnostic::None)),
        (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
            Some((State::Up, Diagnostic::None))
        }
        (State::Init, State::AdminDown) | (State::Up, State::AdminDown | State::Down) => {
            Some((State::Down, Diagnostic::NeighborSignaledSessionDown))
        }
        (State::AdminDown, State::AdminDown | State::Down | State::Init | State::Up)
        | (State::Down, State::AdminDown | State::Up)
        | (State::Init, State::Down)
        | (State::Up, State::Init | State::Up) => None,
    }
}

#[cfg(test)]
mod tests;
