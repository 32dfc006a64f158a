//! The state machine of a session and its timers. Read RFC 5880 sections 6.2 and 6.8.

use std::{
    num::{NonZeroU8, NonZeroU32},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{Diagnostic, Packet, State};

/// What a session is configured to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// Our name for the session: random, not 0, another one after each restart.
    pub discriminator: NonZeroU32,
    /// Who speaks first.
    pub role: Role,
    /// Intervals and multiplier; they may change while the session runs.
    pub timing: Timing,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Look for the peer.
    Start,
    /// AdminDown: tell the peer for a detection time, then be silent.
    Stop,
    /// Other intervals; announced with a Poll sequence, without a flap.
    Configure(Timing),
    /// A packet for this session.
    Received(Packet),
}

/// What a session asks of its shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The payload of a datagram to the peer.
    Send([u8; 24]),
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
    config: SessionConfig,
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
    /// When AdminDown was told for long enough.
    silent_at: Option<Instant>,
    jitter: StdRng,
}

/// What the last packet of the peer said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Peer {
    discriminator: Option<NonZeroU32>,
    state: State,
    demand: bool,
    detect_multiplier: NonZeroU8,
    desired_min_tx: Duration,
    required_min_rx: Duration,
}

/// RFC 5880 section 6.8.1.
const UNHEARD: Peer = Peer {
    discriminator: None,
    state: State::Down,
    demand: false,
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
    /// A session in AdminDown, silent. The seed feeds the jitter; sessions should differ in it.
    pub fn new(config: SessionConfig, seed: u64) -> Self {
        let in_force = announced(&config, State::AdminDown);
        Self {
            config,
            state: State::AdminDown,
            diagnostic: Diagnostic::None,
            peer: UNHEARD,
            in_force,
            poll: Poll::Off,
            transmission: None,
            detect_at: None,
            silent_at: None,
            jitter: StdRng::seed_from_u64(seed),
        }
    }

    /// What happened, and what to do about it.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
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
                let multiplier = self.config.timing.detect_multiplier.get();
                self.silent_at = Some(now + interval * multiplier.into());
                self.send_if_allowed(now, &mut out);
            }
            Event::Start | Event::Stop => {}
            Event::Configure(timing) => self.configure(timing, now, &mut out),
            Event::Received(packet) => self.receive(&packet, now, &mut out),
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
        if self.silent_at.is_some_and(|at| at <= now) {
            self.silent_at = None;
            self.transmission = None;
        }
        if self.transmission.is_some_and(|transmission| transmission.at <= now) {
            self.send_if_allowed(now, &mut out);
        }
        out
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let transmission = self.transmission.map(|transmission| transmission.at);
        [transmission, self.detect_at, self.silent_at].into_iter().flatten().min()
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.state
    }

    /// How long the peer may be silent: its multiplier times the slower of what it sends and what
    /// we take (RFC 5880 section 6.8.4).
    pub fn detection_time(&self) -> Duration {
        let interval = self.in_force.required_min_rx.max(self.peer.desired_min_tx);
        interval * self.peer.detect_multiplier.get().into()
    }

    /// Puts other intervals in force; where both sides are up it polls for the peer's consent to
    /// those that could make one side expect more than the other sends.
    fn configure(&mut self, timing: Timing, now: Instant, out: &mut Vec<Action>) {
        if self.config.timing == timing {
            return;
        }
        self.config.timing = timing;
        let announced = announced(&self.config, self.state);
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

    fn receive(&mut self, packet: &Packet, now: Instant, out: &mut Vec<Action>) {
        let for_another = packet.your_discriminator.is_some_and(|d| d != self.config.discriminator);
        if for_another || self.state == State::AdminDown {
            return;
        }
        self.peer = Peer {
            discriminator: Some(packet.my_discriminator),
            state: packet.state,
            demand: packet.demand,
            detect_multiplier: packet.detect_multiplier,
            desired_min_tx: packet.desired_min_tx,
            required_min_rx: packet.required_min_rx,
        };
        if packet.is_final {
            match self.poll {
                Poll::Off => {}
                Poll::Running => {
                    self.poll = Poll::Off;
                    self.in_force = announced(&self.config, self.state);
                }
                Poll::Outdated => self.poll = Poll::Running,
            }
        }
        let before = self.state;
        if let Some((state, diagnostic)) = next_state(self.state, packet.state) {
            self.enter(state, diagnostic, out);
        }
        self.detect_at = Some(now + self.detection_time());
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
        self.state = state;
        self.diagnostic = diagnostic;
        match state {
            State::AdminDown | State::Down | State::Init => {
                self.poll = Poll::Off;
                self.in_force = announced(&self.config, state);
            }
            State::Up => {
                let announced = announced(&self.config, state);
                // From the slow interval to the configured one.
                self.in_force.desired_min_tx = announced.desired_min_tx;
                self.poll = Poll::Running;
            }
        }
        out.push(Action::StateChanged { state, diagnostic, peer: self.peer.state });
    }

    /// How often to send, without jitter; `None`: not at all (RFC 5880 section 6.8.7).
    fn interval(&self) -> Option<Duration> {
        let heard = self.peer.discriminator.is_some();
        let both_up = self.state == State::Up && self.peer.state == State::Up;
        let waits = match self.config.role {
            Role::Active => false,
            Role::Passive => !heard,
        };
        let silenced = self.peer.demand && both_up && self.poll == Poll::Off;
        let told_enough = self.state == State::AdminDown && self.silent_at.is_none();
        if waits || silenced || told_enough || self.peer.required_min_rx.is_zero() {
            return None;
        }
        Some(self.in_force.desired_min_tx.max(self.peer.required_min_rx))
    }

    fn send_if_allowed(&mut self, now: Instant, out: &mut Vec<Action>) {
        self.schedule(now);
        if self.transmission.is_some() {
            self.send(Answer::Periodic, out);
        }
    }

    fn schedule(&mut self, now: Instant) {
        self.transmission = self
            .interval()
            .map(|interval| Transmission { at: now + self.jittered(interval), interval });
    }

    /// Follows a changed interval. Never later than it was: packets that change it back and forth
    /// could silence us.
    fn reschedule(&mut self, now: Instant) {
        let before = self.transmission;
        if before.map(|transmission| transmission.interval) == self.interval() {
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
        let most = if self.config.timing.detect_multiplier.get() == 1 { 0.9 } else { 1.0 };
        interval.mul_f64(self.jitter.random_range(0.75..=most))
    }

    fn send(&self, answer: Answer, out: &mut Vec<Action>) {
        let announced = announced(&self.config, self.state);
        let packet = Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: answer == Answer::Periodic && self.poll != Poll::Off,
            is_final: answer == Answer::Final,
            // The session dies with the process.
            control_plane_independent: false,
            demand: false,
            detect_multiplier: self.config.timing.detect_multiplier,
            my_discriminator: self.config.discriminator,
            your_discriminator: self.peer.discriminator,
            desired_min_tx: announced.desired_min_tx,
            required_min_rx: announced.required_min_rx,
            required_min_echo_rx: Duration::ZERO,
        };
        out.push(Action::Send(packet.encode()));
    }
}

/// The intervals that our packets carry in a state.
fn announced(config: &SessionConfig, state: State) -> Intervals {
    let Timing { desired_min_tx, required_min_rx, detect_multiplier: _ } = config.timing;
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
