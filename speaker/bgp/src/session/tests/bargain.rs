//! Whatever happens in whatever order.

use proptest::prelude::*;

use super::*;
use crate::{BfdRule, GracefulRestart, Start};

/// The shell's side of the bargain, to see that ours is kept.
#[derive(Debug, Default, PartialEq)]
enum Wire {
    #[default]
    Down,
    Dialling,
    Up,
}

impl Wire {
    fn perform(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Connect => {
                    assert_eq!(*self, Self::Down, "one connection at a time");
                    *self = Self::Dialling;
                }
                Action::Send(bytes) => {
                    assert_eq!(*self, Self::Up, "bytes need a connection");
                    assert!(split(bytes).iter().all(|message| message.len() <= 4096));
                }
                Action::Close => *self = Self::Down,
                Action::Reject(bytes) => assert_eq!(bytes[18], 3, "a NOTIFICATION"),
                Action::StateChanged(_) => {}
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Move {
    Start,
    Stop,
    Answer,
    Accept,
    Refuse,
    Close,
    Bytes(Vec<u8>),
    Written,
    Announce(u8),
    Withdraw(u8),
    Complete,
    Transmit(usize),
    Bfd(BfdState),
    Timers(u64),
    Wait(u64),
}

fn a_move() -> impl Strategy<Value = Move> {
    let sound = prop::sample::select(vec![
        good_open(),
        open(90, &parameter(&[&MP_IPV4[..], &MP_IPV6, &[2, 0, 70, 0, 64, 2, 0x40, 9]].concat())),
        keepalive(),
        message(2, &[0; 4]),
        message(3, &[6, 2]),
        message(5, &[0, 1, 0, 1]),
        message(5, &[0, 2, 0, 1]),
    ]);
    let damaged = (sound.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(mut bytes, at, octet)| {
            let at = at.index(bytes.len());
            bytes[at] = octet;
            bytes
        },
    );
    let framed = (0..8u8, prop::collection::vec(any::<u8>(), 0..64))
        .prop_map(|(kind, body)| message(kind, &body));
    prop_oneof![
        2 => Just(Move::Start),
        1 => Just(Move::Stop),
        6 => Just(Move::Answer),
        4 => Just(Move::Accept),
        1 => Just(Move::Refuse),
        1 => Just(Move::Close),
        8 => sound.prop_map(Move::Bytes),
        2 => damaged.prop_map(Move::Bytes),
        2 => framed.prop_map(Move::Bytes),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Move::Bytes),
        1 => Just(Move::Written),
        3 => (0..8u8).prop_map(Move::Announce),
        2 => (0..8u8).prop_map(Move::Withdraw),
        1 => Just(Move::Complete),
        4 => prop::sample::select(vec![0, 40, 60, 4096, 65536]).prop_map(Move::Transmit),
        1 => Just(Move::Bfd(BfdState::Up)),
        1 => Just(Move::Bfd(BfdState::Down)),
        1 => (0..30u64).prop_map(Move::Timers),
        4 => prop_oneof![0..20u64, 0..10_000u64, 0..900_000u64].prop_map(Move::Wait),
    ]
}

fn a_config() -> impl Strategy<Value = SessionConfig> {
    let restart = |notification| GracefulRestart {
        restart_time: Duration::from_secs(15),
        notification,
        start: Start::Forwarding,
    };
    (
        prop::sample::select(vec![Mode::Active, Mode::Passive]),
        prop::option::of(any::<bool>().prop_map(restart)),
        prop::option::of(any::<bool>().prop_map(|strict| BfdRule { strict })),
        prop::sample::select(vec![0, 0, 5]),
    )
        .prop_map(|(mode, graceful_restart, bfd, interval)| SessionConfig {
            mode,
            graceful_restart,
            bfd,
            min_advertisement_interval: Duration::from_secs(interval),
            ..config()
        })
}

proptest! {
    /// Whatever happens in whatever order: no panic, no bytes without a connection, no second
    /// connection, no room exceeded, and never a state that nothing leads out of.
    #[test]
    fn any_sequence_keeps_the_bargain(
        config in a_config(),
        moves in prop::collection::vec(a_move(), 0..80),
        seed: u64,
    ) {
        let mut now = some_time();
        let mut session = Session::new(config.clone(), seed);
        let mut wire = Wire::Down;
        let mut started = false;
        for step in moves {
            let actions = match step {
                Move::Start => { started = true; session.handle(Event::Start, now) }
                Move::Stop => {
                    started = false;
                    session.handle(Event::Stop { reason: StopReason::PeerDeconfigured }, now)
                }
                Move::Answer if wire == Wire::Dialling => {
                    wire = Wire::Up;
                    session.handle(connected(), now)
                }
                Move::Accept if wire != Wire::Dialling => {
                    let mut actions = session.handle(Event::Accepted(LOCAL), now);
                    // Of two connections one is left, and so it is here.
                    if !matches!(actions[..], [Action::Reject(_)]) {
                        wire = Wire::Up;
                        let close = actions.iter().position(|action| *action == Action::Close);
                        for action in actions.drain(..close.map_or(0, |at| at + 1)) {
                            prop_assert!(!matches!(action, Action::Connect | Action::Reject(_)));
                        }
                    }
                    actions
                }
                Move::Refuse if wire == Wire::Dialling => {
                    wire = Wire::Down;
                    session.handle(Event::ConnectFailed, now)
                }
                Move::Close if wire == Wire::Up => {
                    wire = Wire::Down;
                    session.handle(Event::Closed, now)
                }
                Move::Bytes(bytes) if wire == Wire::Up => {
                    session.handle(Event::Received(&bytes), now)
                }
                Move::Written if wire == Wire::Up => session.handle(Event::Written, now),
                Move::Announce(count) | Move::Withdraw(count) => {
                    let prefixes: Vec<String> =
                        (0..count).map(|host| format!("10.0.0.{host}/32")).collect();
                    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
                    let changes = match step {
                        Move::Announce(_) => announced(&prefixes),
                        _ => withdrawn(&prefixes),
                    };
                    session.handle(Event::Routes(changes), now)
                }
                Move::Complete => session.handle(Event::Complete, now),
                Move::Bfd(state) => session.handle(Event::Bfd(state), now),
                Move::Timers(seconds) => {
                    let interval = Duration::from_secs(seconds);
                    let changed = SessionConfig {
                        hold_time: interval,
                        keepalive_time: Some(interval),
                        min_advertisement_interval: interval,
                        ..config.clone()
                    };
                    session.update_timers(&changed, now);
                    Vec::new()
                }
                Move::Transmit(room) => {
                    let due = session.has_updates();
                    let bytes = session.transmit(now, room);
                    prop_assert!(bytes.len() <= room);
                    prop_assert!(due || bytes.is_empty());
                    prop_assert!(!due || room < 4096 || !bytes.is_empty());
                    if bytes.is_empty() { vec![] } else { vec![Action::Send(bytes)] }
                }
                Move::Wait(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    session.handle_timeout(now)
                }
                Move::Answer
                | Move::Accept
                | Move::Refuse
                | Move::Close
                | Move::Written
                | Move::Bytes(_) => Vec::new(),
            };
            wire.perform(&actions);
            let again = session.handle_timeout(now);
            wire.perform(&again);
            let state = session.state();
            let down = matches!(state, StateKind::Idle | StateKind::Active);
            prop_assert_eq!(down, wire == Wire::Down);
            prop_assert_eq!(state == StateKind::Connect, wire == Wire::Dialling);
            prop_assert!(config.mode == Mode::Active || state != StateKind::Connect);
            prop_assert!(config.mode == Mode::Passive || state != StateKind::Active);
            let zero = session.negotiated().is_some_and(|agreed| agreed.hold_time.is_zero());
            let waits = started && state != StateKind::Active && !zero;
            prop_assert!(session.poll_timeout().is_some() || !waits);
            prop_assert!(session.poll_timeout().is_none_or(|at| at > now));
            prop_assert!(state == StateKind::Established || !session.has_updates());
            prop_assert_eq!(session.handle_timeout(now), []);
        }
    }

    #[test]
    fn the_size_of_the_pieces_does_not_matter(
        messages in prop::collection::vec(a_move(), 0..10),
        cuts in prop::collection::vec(1..40usize, 1..40),
    ) {
        let stream: Vec<u8> = messages
            .into_iter()
            .filter_map(|step| if let Move::Bytes(bytes) = step { Some(bytes) } else { None })
            .flatten()
            .collect();
        let (mut whole, now) = in_state(StateKind::OpenSent);
        let expected = whole.handle(Event::Received(&stream), now);
        let (mut pieces, now) = in_state(StateKind::OpenSent);
        let mut actions = Vec::new();
        let mut rest = &stream[..];
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            actions.extend(pieces.handle(Event::Received(piece), now));
            rest = after;
        }
        prop_assert_eq!(actions, expected);
    }
}
