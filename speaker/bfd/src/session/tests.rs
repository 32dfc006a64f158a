mod properties;

use super::*;
use crate::AuthenticationKind;

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

fn settings(timing: Timing) -> Settings {
    Settings { role: Role::Active, timing, authentication: None }
}

fn session(discriminator: u32, role: Role, timing: Timing) -> Session {
    session_with(discriminator, Settings { role, ..settings(timing) })
}

fn session_with(discriminator: u32, settings: Settings) -> Session {
    Session::new(NonZeroU32::new(discriminator).unwrap(), settings, discriminator.into())
}

fn retime(timing: Timing) -> Event<'static> {
    Event::Configure(settings(timing))
}

/// What the session does with a packet that is not authenticated.
fn hear(session: &mut Session, packet: Packet, now: Instant) -> Vec<Action> {
    session.handle(Event::Received(Received::read(&packet.encode()).unwrap()), now)
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
    let heard = match state {
        State::AdminDown | State::Down => None,
        State::Init => Some(State::Down),
        State::Up => Some(State::Init),
    };
    if state != State::AdminDown {
        session.handle(Event::Start, now);
    }
    if let Some(heard) = heard {
        hear(&mut session, packet(heard), now);
    }
    assert_eq!(session.state(), state);
    (session, now)
}

fn sent(actions: &[Action]) -> Vec<Packet> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Send(payload) => Some(*Received::read(payload).unwrap().packet()),
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
            let actions = hear(&mut session, packet(theirs), now);
            assert_eq!(session.state(), expected, "{ours} hears {theirs}");
            let changed: Vec<Action> = actions
                .iter()
                .filter(|action| !matches!(action, Action::Send(_)))
                .cloned()
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

/// RFC 5880 section 6.8.6: one packet for each reason of the session's own; nothing changes but a
/// count. The reasons that need no session are `packet`'s, those of digests `authentication`'s.
#[test]
fn what_is_discarded_changes_nothing() {
    let secret = |kind, id, secret: &[u8]| Some(Authentication::new(kind, id, secret).unwrap());
    let sha1 = AuthenticationKind::MeticulousKeyedSha1;
    let signed = |authentication: &Option<Authentication>, packet: Packet| match authentication {
        None => packet.encode().to_vec(),
        Some(authentication) => {
            let sequence = if packet.state == State::Init { 6 } else { 7 };
            Authenticator::new(authentication.clone(), sequence).sign(&packet)
        }
    };
    let stray = Packet { your_discriminator: NonZeroU32::new(99), ..packet(State::Down) };
    let right = secret(sha1, 1, b"right");
    let cases = [
        (None, None, stray, Discard::NoSession),
        (None, right.clone(), packet(State::Down), Discard::Authenticated),
        (right.clone(), None, packet(State::Down), Discard::NotAuthenticated),
        (
            right.clone(),
            secret(AuthenticationKind::KeyedSha1, 1, b"right"),
            packet(State::Down),
            Discard::AuthenticationType,
        ),
        (right.clone(), secret(sha1, 2, b"right"), packet(State::Down), Discard::KeyId),
        (right.clone(), secret(sha1, 1, b"wrong"), packet(State::Down), Discard::Digest),
        // The number that brought it Up, again.
        (right.clone(), right, packet(State::Init), Discard::Sequence),
    ];
    for (ours, theirs, packet_of_theirs, discard) in cases {
        let now = some_time();
        let mut session = session_with(
            OURS,
            Settings { authentication: ours.clone(), ..settings(timing(100, 3)) },
        );
        session.handle(Event::Start, now);
        let up = signed(&ours, packet(State::Init));
        session.handle(Event::Received(Received::read(&up).unwrap()), now);
        assert_eq!(session.state(), State::Up, "{discard:?}");
        let before = format!("{session:?}");
        let octets = signed(&theirs, packet_of_theirs);
        let later = now + Duration::from_millis(50);
        let actions = session.handle(Event::Received(Received::read(&octets).unwrap()), later);
        assert_eq!(actions, [], "{discard:?}");
        assert_eq!(session.counters.discarded, BTreeMap::from([(discard, 1)]));
        session.counters.discarded.clear();
        assert_eq!(format!("{session:?}"), before, "{discard:?}");
    }
    let (mut session, now) = in_state(State::AdminDown);
    assert_eq!(hear(&mut session, packet(State::Down), now), []);
    assert_eq!(session.counters.discarded, BTreeMap::from([(Discard::AdminDown, 1)]));
}

/// What the wire does with a datagram of one of its ends: loses it, or brings it after a while.
type Weather = Box<dyn FnMut(usize, &mut StdRng) -> Option<Duration>>;

/// Two sessions and the path between them, with a tap on it.
struct Path {
    ends: [Session; 2],
    now: Instant,
    weather: Weather,
    random: StdRng,
    /// When it arrives, for whom, what.
    in_flight: Vec<(Instant, usize, Vec<u8>)>,
    /// When it was sent, by whom, what.
    tap: Vec<(Instant, usize, Packet)>,
    changes: Vec<(Instant, usize, State, Diagnostic)>,
    cut: bool,
}

impl Path {
    /// Of 1 ms.
    fn new(ends: [Session; 2]) -> Self {
        Self::through(ends, 0, Box::new(|_, _| Some(Duration::from_millis(1))))
    }

    fn through(ends: [Session; 2], seed: u64, weather: Weather) -> Self {
        let mut path = Self {
            ends,
            now: some_time(),
            weather,
            random: StdRng::seed_from_u64(seed),
            in_flight: Vec::new(),
            tap: Vec::new(),
            changes: Vec::new(),
            cut: false,
        };
        path.handle(0, Event::Start);
        path.handle(1, Event::Start);
        path
    }

    fn handle(&mut self, end: usize, event: Event<'_>) {
        let actions = self.ends[end].handle(event, self.now);
        self.perform(end, actions);
    }

    fn perform(&mut self, end: usize, actions: Vec<Action>) {
        for packet in sent(&actions) {
            self.tap.push((self.now, end, packet));
        }
        for action in actions {
            match action {
                Action::Send(payload) => {
                    let delay = (self.weather)(end, &mut self.random);
                    if let (Some(delay), false) = (delay, self.cut) {
                        self.in_flight.push((self.now + delay, 1 - end, payload));
                    }
                }
                Action::StateChanged { state, diagnostic, .. } => {
                    self.changes.push((self.now, end, state, diagnostic));
                }
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
            let mut arrived: Vec<_> =
                self.in_flight.extract_if(.., |(at, _, _)| *at <= now).collect();
            arrived.sort_by_key(|(at, _, _)| *at);
            for (_, end, payload) in arrived {
                self.handle(end, Event::Received(Received::read(&payload).unwrap()));
            }
            for end in 0..2 {
                let actions = self.ends[end].handle_timeout(now);
                self.perform(end, actions);
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
        path.handle(0, retime(timing(milliseconds, 3)));
        path.run(100);
        path.handle(1, retime(timing(milliseconds, 3)));
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
    let answer = Packet { is_final: true, ..packet(State::Up) };
    hear(&mut session, answer, now);
    let actions = session.handle(retime(timing(1000, 3)), now);
    assert!(sent(&actions)[0].poll);
    let wait = session.transmission.unwrap().interval;
    assert_eq!(wait, Duration::from_millis(100), "the peer may not know yet");
    // Changed again before the answer: that one may be to the older packet.
    session.handle(retime(timing(2000, 3)), now);
    hear(&mut session, answer, now);
    assert_eq!(session.transmission.unwrap().interval, Duration::from_millis(100));
    hear(&mut session, answer, now);
    assert_eq!(session.transmission.unwrap().interval, Duration::from_millis(2000));
}

#[test]
fn a_shorter_detection_time_waits_for_the_final() {
    let (mut session, now) = in_state(State::Up);
    let answer = Packet { is_final: true, desired_min_tx: Duration::ZERO, ..packet(State::Up) };
    hear(&mut session, answer, now);
    session.handle(retime(timing(20, 3)), now);
    assert_eq!(session.detection_time(), Duration::from_millis(300), "the peer may not know yet");
    hear(&mut session, answer, now);
    assert_eq!(session.detection_time(), Duration::from_millis(60));
    // Faster sending and a longer detection time need nobody's consent.
    session.handle(retime(timing(500, 3)), now);
    assert_eq!(session.detection_time(), Duration::from_millis(1500));
    assert_eq!(session.transmission.unwrap().interval, Duration::from_millis(100));
}

/// Either side, up or down, and the multiplier: each is announced by a poll, once.
#[test]
fn each_change_is_polled_for() {
    let mut path = pair(timing(100, 3), timing(100, 3));
    path.run(3000);
    let with = |tx, rx, multiplier| Timing {
        desired_min_tx: Duration::from_millis(tx),
        ..timing(rx, multiplier)
    };
    for (tx, rx, multiplier) in
        [(200, 100, 3), (200, 50, 3), (200, 400, 3), (30, 400, 3), (30, 400, 5), (30, 400, 2)]
    {
        path.forget();
        path.handle(0, retime(with(tx, rx, multiplier)));
        path.run(2000);
        let polls: Vec<_> = path.tap.iter().filter(|(_, _, packet)| packet.poll).collect();
        assert_eq!(polls.len(), 1, "{tx} {rx} {multiplier}");
        assert_eq!(polls[0].2.detect_multiplier.get(), multiplier);
        assert_eq!(path.ends[1].peer().detect_multiplier.get(), multiplier);
        let detection = Duration::from_millis(tx.max(100)) * multiplier.into();
        assert_eq!(path.ends[1].detection_time(), detection);
        assert_eq!(path.changes, []);
        path.handle(0, retime(with(tx, rx, multiplier)));
        path.run(1000);
        assert_eq!(path.tap.iter().filter(|(_, _, packet)| packet.poll).count(), 1);
    }
}

#[test]
fn a_peer_that_starts_anew_is_noticed_and_comes_back() {
    for authentication in [
        None,
        Some(Authentication::new(AuthenticationKind::MeticulousKeyedMd5, 9, b"key").unwrap()),
    ] {
        let settings = Settings { authentication, ..settings(timing(100, 3)) };
        let mut path = Path::new([
            session_with(OURS, settings.clone()),
            session_with(THEIRS, settings.clone()),
        ]);
        path.run(3000);
        assert_eq!(path.states(), [State::Up, State::Up]);
        path.forget();
        path.ends[1] = session_with(0x3333, settings);
        path.handle(1, Event::Start);
        path.run(5000);
        assert_eq!(path.states(), [State::Up, State::Up]);
        assert_eq!(path.ends[0].peer().discriminator, NonZeroU32::new(0x3333));
        let Counters { up, down, failures, .. } = path.ends[0].counters;
        assert_eq!((up, down, failures), (2, 1, 1));
    }
}

/// RFC 5882 section 4.2: AdminDown is no word about the path.
#[test]
fn only_what_speaks_of_the_path_is_a_failure() {
    for (theirs, failures) in [(State::AdminDown, 0), (State::Down, 1)] {
        let (mut session, now) = in_state(State::Up);
        hear(&mut session, packet(theirs), now);
        assert_eq!(session.state(), State::Down);
        assert_eq!(session.peer().state, theirs);
        assert_eq!((session.counters.down, session.counters.failures), (1, failures));
    }
    let (mut session, now) = in_state(State::Up);
    session.handle(Event::Stop, now);
    assert_eq!((session.counters.down, session.counters.failures), (1, 0));
    let (mut session, now) = in_state(State::Up);
    session.handle_timeout(now + Duration::from_secs(10));
    assert_eq!((session.counters.down, session.counters.failures), (1, 1));
    // Never Up: nothing to lose.
    let (mut session, now) = in_state(State::Init);
    session.handle_timeout(now + Duration::from_secs(10));
    assert_eq!((session.state(), session.counters.failures), (State::Down, 0));
}

#[test]
fn sequence_numbers_are_forgotten_after_two_detection_times() {
    let key = Authentication::new(AuthenticationKind::MeticulousKeyedSha1, 1, b"key").unwrap();
    let authentication = Some(key.clone());
    let now = some_time();
    let mut ours = session_with(OURS, Settings { authentication, ..settings(timing(100, 3)) });
    ours.handle(Event::Start, now);
    let mut hear = |sequence, milliseconds| {
        let octets = Authenticator::new(key.clone(), sequence).sign(&packet(State::Down));
        let at = now + Duration::from_millis(milliseconds);
        ours.handle_timeout(at);
        ours.handle(Event::Received(Received::read(&octets).unwrap()), at);
        ours.counters.discarded.get(&Discard::Sequence).copied().unwrap_or_default()
    };
    // The detection time is 300 ms.
    assert_eq!(hear(1_000_000, 0), 0);
    assert_eq!(hear(5, 599), 1);
    assert_eq!(hear(5, 600), 1);
    assert_eq!(hear(4, 600), 2);
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
    hear(&mut session, deaf, now);
    assert_eq!(session.transmission, None);
    // A poll is answered all the same.
    let actions = hear(&mut session, Packet { poll: true, ..deaf }, now);
    assert!(sent(&actions)[0].is_final);
}

#[test]
fn a_wish_for_demand_mode_is_counted_and_not_obeyed() {
    let (mut session, now) = in_state(State::Up);
    let demand = Packet { demand: true, is_final: true, ..packet(State::Up) };
    hear(&mut session, demand, now);
    assert_eq!(session.transmission.unwrap().interval, Duration::from_millis(100));
    assert_eq!(session.counters.demand, 1);
    let actions = session.handle_timeout(now + Duration::from_millis(100));
    assert!(matches!(sent(&actions)[..], [Packet { demand: false, .. }]));
}

#[test]
fn every_packet_has_the_bits_of_asynchronous_mode() {
    let mut path = pair(timing(100, 3), timing(50, 3));
    path.run(5000);
    for (_, _, packet) in &path.tap {
        assert!(!packet.demand && !packet.control_plane_independent);
        assert!(!(packet.poll && packet.is_final));
        assert_eq!(packet.required_min_echo_rx, Duration::ZERO);
        let second = packet.encode()[1];
        assert!(packet.state != State::Up || [0xc0, 0xe0, 0xd0].contains(&second), "{second:x}");
    }
}
