use proptest::prelude::*;

use super::*;

/// The tests count from here; none of them looks at the clock again.
#[expect(clippy::disallowed_methods, reason = "std has no other way to make an Instant")]
fn some_time() -> Instant {
    Instant::now()
}

const OURS: u32 = 0x1111;
const THEIRS: u32 = 0x2222;
const STATES: [State; 4] = [State::AdminDown, State::Down, State::Init, State::Up];

fn timing(milliseconds: u64, multiplier: u8) -> Timing {
    Timing {
        desired_min_tx: Duration::from_millis(milliseconds),
        required_min_rx: Duration::from_millis(milliseconds),
        detect_multiplier: NonZeroU8::new(multiplier).unwrap(),
    }
}

fn session(discriminator: u32, role: Role, timing: Timing) -> Session {
    let discriminator = NonZeroU32::new(discriminator).unwrap();
    Session::new(SessionConfig { discriminator, role, timing }, discriminator.get().into())
}

/// A packet of a peer that knows us, at 100 ms x 3.
fn packet(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::None,
        state,
        poll: false,
        is_final: false,
        control_plane_independent: false,
        demand: false,
        detect_multiplier: NonZeroU8::new(3).unwrap(),
        my_discriminator: NonZeroU32::new(THEIRS).unwrap(),
        your_discriminator: NonZeroU32::new(OURS),
        desired_min_tx: Duration::from_millis(100),
        required_min_rx: Duration::from_millis(100),
        required_min_echo_rx: Duration::ZERO,
    }
}

/// Ours at 100 ms x 3, led into a state by the peer's packets.
fn in_state(state: State) -> (Session, Instant) {
    let now = some_time();
    let mut session = session(OURS, Role::Active, timing(100, 3));
    let steps: &[Event] = match state {
        State::AdminDown => &[],
        State::Down => &[Event::Start],
        State::Init => &[Event::Start, Event::Received(packet(State::Down))],
        State::Up => &[Event::Start, Event::Received(packet(State::Init))],
    };
    for &step in steps {
        session.handle(step, now);
    }
    assert_eq!(session.state(), state);
    (session, now)
}

fn sent(actions: &[Action]) -> Vec<Packet> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send(payload) => Some(Packet::decode(payload).unwrap()),
            Action::StateChanged { .. } => None,
        })
        .collect()
}

/// RFC 5880 section 6.8.6, every pair.
#[test]
fn every_received_state_in_every_state() {
    use State::{AdminDown, Down, Init, Up};
    // Received: AdminDown, Down, Init, Up
    let rows = [
        (AdminDown, [AdminDown, AdminDown, AdminDown, AdminDown]),
        (Down, [Down, Init, Up, Down]),
        (Init, [Down, Init, Up, Up]),
        (Up, [Down, Down, Up, Up]),
    ];
    for (ours, expected) in rows {
        for (theirs, expected) in STATES.into_iter().zip(expected) {
            let (mut session, now) = in_state(ours);
            let actions = session.handle(Event::Received(packet(theirs)), now);
            assert_eq!(session.state(), expected, "{ours} hears {theirs}");
            let changed: Vec<Action> = actions
                .iter()
                .filter(|action| !matches!(action, Action::Send(_)))
                .copied()
                .collect();
            let diagnostic = match expected {
                Down => Diagnostic::NeighborSignaledSessionDown,
                AdminDown | Init | Up => Diagnostic::None,
            };
            let report = Action::StateChanged { state: expected, diagnostic, peer: theirs };
            let reports = if expected == ours { vec![] } else { vec![report] };
            assert_eq!(changed, reports, "{ours} hears {theirs}");
            // A change is told at once, and nothing else is.
            let told: Vec<State> = sent(&actions).iter().map(|packet| packet.state).collect();
            let tells = if expected == ours { vec![] } else { vec![expected] };
            assert_eq!(told, tells, "{ours} hears {theirs}");
        }
    }
}

#[test]
fn a_packet_for_another_session_changes_nothing() {
    let (mut session, now) = in_state(State::Up);
    let stray = Packet { your_discriminator: NonZeroU32::new(99), ..packet(State::Down) };
    assert_eq!(session.handle(Event::Received(stray), now), []);
    assert_eq!(session.state(), State::Up);
}

/// Two sessions over a path of 1 ms, with a tap on it.
struct Path {
    ends: [Session; 2],
    now: Instant,
    /// When it arrives, for whom, what.
    in_flight: Vec<(Instant, usize, Packet)>,
    /// When it was sent, by whom, what.
    tap: Vec<(Instant, usize, Packet)>,
    changes: Vec<(Instant, usize, State, Diagnostic)>,
    cut: bool,
}

impl Path {
    fn new(ends: [Session; 2]) -> Self {
        let mut path = Self {
            ends,
            now: some_time(),
            in_flight: Vec::new(),
            tap: Vec::new(),
            changes: Vec::new(),
            cut: false,
        };
        path.handle(0, Event::Start);
        path.handle(1, Event::Start);
        path
    }

    fn handle(&mut self, end: usize, event: Event) {
        let actions = self.ends[end].handle(event, self.now);
        self.perform(end, &actions);
    }

    fn perform(&mut self, end: usize, actions: &[Action]) {
        for packet in sent(actions) {
            self.tap.push((self.now, end, packet));
            if !self.cut {
                self.in_flight.push((self.now + Duration::from_millis(1), 1 - end, packet));
            }
        }
        for action in actions {
            if let Action::StateChanged { state, diagnostic, .. } = action {
                self.changes.push((self.now, end, *state, *diagnostic));
            }
        }
    }

    fn run(&mut self, milliseconds: u64) {
        let until = self.now + Duration::from_millis(milliseconds);
        loop {
            let timers = self.ends.iter().filter_map(Session::poll_timeout);
            let arrivals = self.in_flight.iter().map(|(at, _, _)| *at);
            let Some(next) = timers.chain(arrivals).min().filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            let now = self.now;
            for (_, end, packet) in
                self.in_flight.extract_if(.., |(at, _, _)| *at <= now).collect::<Vec<_>>()
            {
                self.handle(end, Event::Received(packet));
            }
            for end in 0..2 {
                let actions = self.ends[end].handle_timeout(now);
                self.perform(end, &actions);
            }
        }
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }

    /// Milliseconds between the periodic packets of one end.
    fn intervals(&self, end: usize) -> Vec<f64> {
        let times: Vec<Instant> = self
            .tap
            .iter()
            .filter(|(_, sender, packet)| *sender == end && !packet.is_final)
            .map(|(at, _, _)| *at)
            .collect();
        times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1000.0).collect()
    }

    fn forget(&mut self) {
        self.tap.clear();
        self.changes.clear();
    }
}

fn pair(ours: Timing, theirs: Timing) -> Path {
    Path::new([session(OURS, Role::Active, ours), session(THEIRS, Role::Active, theirs)])
}

#[test]
fn two_sessions_come_up_and_speed_up() {
    let mut path = pair(timing(100, 3), timing(50, 3));
    path.run(1100);
    assert_eq!(path.states(), [State::Up, State::Up]);
    assert!(path.tap.iter().all(|(_, _, packet)| {
        packet.state == State::Up || packet.desired_min_tx >= Duration::from_secs(1)
    }));
    let polls = path.tap.iter().filter(|(_, end, packet)| *end == 0 && packet.poll).count();
    let finals = path.tap.iter().filter(|(_, end, packet)| *end == 1 && packet.is_final).count();
    assert!(polls >= 1 && finals == polls, "{polls} polls, {finals} finals");
    assert!(path.tap.iter().all(|(_, _, packet)| !(packet.poll && packet.is_final)));
    path.forget();
    path.run(20_000);
    assert!(path.tap.iter().all(|(_, _, packet)| !packet.poll && !packet.is_final));
    for end in 0..2 {
        // The slower of what one sends and the other takes, less up to a quarter.
        let intervals = path.intervals(end);
        assert!(intervals.len() > 190);
        assert!(intervals.iter().all(|interval| (75.0..=100.0).contains(interval)));
        let mean = intervals.iter().sum::<f64>() / 200.0_f64.max(intervals.len() as f64);
        assert!((80.0..95.0).contains(&mean), "{mean}");
        assert_eq!(path.ends[end].detection_time(), Duration::from_millis(300));
    }
    assert_eq!(path.changes, []);
}

#[test]
fn a_single_packet_of_margin_jitters_less() {
    let mut path = pair(timing(100, 1), timing(100, 1));
    path.run(2000);
    path.forget();
    path.run(20_000);
    assert_eq!(path.changes, [], "no flap");
    assert!(path.intervals(0).iter().all(|interval| (75.0..=90.0).contains(interval)));
}

#[test]
fn a_cut_path_is_detected_within_the_detection_time() {
    let mut path = pair(timing(100, 3), timing(100, 3));
    path.run(3000);
    path.forget();
    let cut_at = path.now;
    path.cut = true;
    path.run(1000);
    assert_eq!(path.changes.len(), 2);
    for (at, _, state, diagnostic) in &path.changes {
        let after = (*at - cut_at).as_millis();
        assert!((200..=301).contains(&after), "{after} ms");
        assert_eq!((*state, *diagnostic), (State::Down, Diagnostic::ControlDetectionTimeExpired));
    }
    // Slow again, and without the name of a peer that may not come back under it.
    path.forget();
    path.run(10_000);
    assert!(path.tap.iter().all(|(_, _, packet)| packet.your_discriminator.is_none()));
    assert!(path.intervals(0).iter().all(|interval| (750.0..=1000.0).contains(interval)));
    path.cut = false;
    path.run(2100);
    assert_eq!(path.states(), [State::Up, State::Up]);
}

#[test]
fn intervals_change_without_a_flap() {
    let mut path = pair(timing(100, 3), timing(100, 3));
    path.run(3000);
    path.forget();
    for milliseconds in [1000, 20, 300, 10, 100] {
        path.handle(0, Event::Configure(timing(milliseconds, 3)));
        path.run(100);
        path.handle(1, Event::Configure(timing(milliseconds, 3)));
        path.run(5000);
        let expected = Duration::from_millis(3 * milliseconds);
        assert_eq!(path.ends[0].detection_time(), expected);
        assert_eq!(path.ends[1].detection_time(), expected);
    }
    assert_eq!(path.changes, []);
}

#[test]
fn a_slower_rate_waits_for_the_final() {
    let (mut session, now) = in_state(State::Up);
    session.handle(Event::Received(Packet { is_final: true, ..packet(State::Up) }), now);
    let actions = session.handle(Event::Configure(timing(1000, 3)), now);
    assert!(sent(&actions)[0].poll);
    let wait = session.transmission.unwrap().interval;
    assert_eq!(wait, Duration::from_millis(100), "the peer may not know yet");
    // Changed again before the answer: that one may be to the older packet.
    session.handle(Event::Configure(timing(2000, 3)), now);
    let answer = Event::Received(Packet { is_final: true, ..packet(State::Up) });
    session.handle(answer, now);
    assert_eq!(session.transmission.unwrap().interval, Duration::from_millis(100));
    session.handle(answer, now);
    assert_eq!(session.transmission.unwrap().interval, Duration::from_millis(2000));
}

#[test]
fn stop_tells_the_peer_and_falls_silent() {
    let mut path = pair(timing(100, 3), timing(100, 3));
    path.run(3000);
    path.forget();
    path.handle(0, Event::Stop);
    path.run(10_000);
    assert_eq!(path.states(), [State::AdminDown, State::Down]);
    let told: Vec<_> = path.tap.iter().filter(|(_, end, _)| *end == 0).collect();
    assert!(told.len() >= 3, "{} packets", told.len());
    assert!(told.iter().all(|(_, _, packet)| {
        packet.state == State::AdminDown && packet.diagnostic == Diagnostic::AdministrativelyDown
    }));
    assert_eq!(path.ends[0].poll_timeout(), None);
    let (_, _, state, diagnostic) = path.changes[1];
    assert_eq!((state, diagnostic), (State::Down, Diagnostic::NeighborSignaledSessionDown));
    path.handle(0, Event::Start);
    path.run(2100);
    assert_eq!(path.states(), [State::Up, State::Up]);
}

#[test]
fn the_passive_end_waits_to_be_called() {
    let passive = |discriminator| session(discriminator, Role::Passive, timing(100, 3));
    let mut path = Path::new([passive(OURS), passive(THEIRS)]);
    path.run(10_000);
    assert_eq!(path.tap.len(), 0);
    let mut path = Path::new([passive(OURS), session(THEIRS, Role::Active, timing(100, 3))]);
    path.run(3000);
    assert_eq!(path.states(), [State::Up, State::Up]);
}

#[test]
fn a_peer_that_takes_no_packets_gets_none() {
    let (mut session, now) = in_state(State::Up);
    let deaf = Packet { required_min_rx: Duration::ZERO, ..packet(State::Up) };
    session.handle(Event::Received(deaf), now);
    assert_eq!(session.transmission, None);
    // A poll is answered all the same, and demand mode leaves the polls alone.
    let actions = session.handle(Event::Received(Packet { poll: true, ..deaf }), now);
    assert!(sent(&actions)[0].is_final);
    let demand = Packet { demand: true, is_final: true, ..packet(State::Up) };
    session.handle(Event::Received(demand), now);
    assert_eq!(session.transmission, None);
    let actions = session.handle(Event::Configure(timing(200, 3)), now);
    assert!(sent(&actions)[0].poll);
}

fn a_packet() -> impl Strategy<Value = Packet> {
    let intervals = prop::sample::select(vec![0, 1, 10_000, 100_000, 1_000_000, u32::MAX]);
    let discriminators = prop::sample::select(vec![None, Some(OURS), Some(77)]);
    (
        prop::sample::select(STATES.to_vec()),
        any::<[bool; 3]>(),
        prop::sample::select(vec![1, 3, 255]),
        discriminators,
        intervals.clone(),
        intervals,
    )
        .prop_map(|(state, [poll, is_final, demand], multiplier, yours, tx, rx)| Packet {
            poll,
            is_final,
            demand,
            detect_multiplier: NonZeroU8::new(multiplier).unwrap(),
            your_discriminator: yours.and_then(NonZeroU32::new),
            desired_min_tx: Duration::from_micros(tx.into()),
            required_min_rx: Duration::from_micros(rx.into()),
            ..packet(state)
        })
}

proptest! {
    /// Whatever comes in whatever order: nothing panics, deadlines that were served do not come
    /// back at once, and a session that hears nothing for its detection time is not up.
    #[test]
    fn any_sequence_keeps_the_timers_sane(
        steps in prop::collection::vec(
            (
                prop_oneof![
                    1 => Just(Event::Start),
                    1 => Just(Event::Stop),
                    1 => (10..2000u64, 1..5u8).prop_map(|(ms, mult)| Event::Configure(timing(ms, mult))),
                    8 => a_packet().prop_map(Event::Received),
                ],
                0..2000u64,
            ),
            0..40,
        ),
    ) {
        let mut now = some_time();
        let mut session = session(OURS, Role::Active, timing(100, 3));
        session.handle(Event::Start, now);
        for (event, wait) in steps {
            session.handle(event, now);
            now += Duration::from_millis(wait);
            session.handle_timeout(now);
            prop_assert_eq!(session.handle_timeout(now), []);
            prop_assert!(session.poll_timeout().is_none_or(|at| at > now));
        }
        let detection_time = session.detection_time();
        session.handle_timeout(now + detection_time + Duration::from_secs(3600));
        prop_assert!(!matches!(session.state(), State::Init | State::Up));
    }
}
