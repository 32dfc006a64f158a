//! What holds whatever comes, and whatever the wire does.

use proptest::prelude::*;

use super::*;

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
                    1 => Just(Ok(Event::Start)),
                    1 => Just(Ok(Event::Stop)),
                    1 => (10..2000u64, 1..5u8).prop_map(|(ms, mult)| Ok(retime(timing(ms, mult)))),
                    8 => a_packet().prop_map(Err),
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
            match event {
                Ok(event) => drop(session.handle(event, now)),
                // One that no packet can say: Up, and it knows no session of ours.
                Err(packet) => if let Ok(received) = Received::read(&packet.encode()) {
                    session.handle(Event::Received(received), now);
                },
            }
            now += Duration::from_millis(wait);
            session.handle_timeout(now);
            prop_assert_eq!(session.handle_timeout(now), []);
            prop_assert!(session.poll_timeout().is_none_or(|at| at > now));
        }
        let detection_time = session.detection_time();
        session.handle_timeout(now + detection_time + Duration::from_secs(3600));
        prop_assert!(!matches!(session.state(), State::Init | State::Up));
    }

    /// Over a wire that loses up to one packet less than the multiplier in a row: Up, and no false
    /// Down, ever. Then it is cut: Down within the RFC's detection time, less what the last packet
    /// that came was early (a quarter of an interval).
    #[test]
    fn a_wire_that_loses_is_not_a_wire_that_is_cut(
        seed: u64,
        loss in 0..60u32,
        multiplier in 2..6u8,
        tx in prop::sample::select(vec![10u64, 33, 100, 300]),
        rx in prop::sample::select(vec![10u64, 50, 300]),
        kind in prop::sample::select(vec![None, Some(AuthenticationKind::MeticulousKeyedSha1)]),
    ) {
        let authentication = kind.map(|kind| Authentication::new(kind, 1, b"key").unwrap());
        let ours = Settings { authentication, ..settings(timing(tx, multiplier)) };
        let theirs = Settings { timing: timing(rx, multiplier), ..ours.clone() };
        let mut lost_in_a_row = [0; 2];
        let weather: Weather = Box::new(move |end, random| {
            let row = &mut lost_in_a_row[end];
            let lost = *row + 1 < multiplier && random.random_ratio(loss, 100);
            *row = if lost { *row + 1 } else { 0 };
            (!lost).then_some(Duration::from_micros(300))
        });
        let mut path =
            Path::through([session_with(OURS, ours), session_with(THEIRS, theirs)], seed, weather);
        path.run(30_000);
        prop_assert_eq!(path.states(), [State::Up, State::Up]);
        for end in &path.ends {
            prop_assert_eq!((end.counters.up, end.counters.down), (1, 0));
            let interval = Duration::from_millis(tx.max(rx));
            prop_assert_eq!(end.detection_time(), interval * multiplier.into());
        }
        path.forget();
        let (cut_at, detection_time) = (path.now, path.ends[0].detection_time());
        path.cut = true;
        path.run(10_000);
        prop_assert_eq!(path.changes.len(), 2);
        let interval = detection_time / multiplier.into();
        for (at, _, state, diagnostic) in &path.changes {
            prop_assert_eq!(*state, State::Down);
            prop_assert_eq!(*diagnostic, Diagnostic::ControlDetectionTimeExpired);
            let after = *at - cut_at;
            // Packets lost just before the cut shorten it by up to an interval each.
            prop_assert!(after <= detection_time + Duration::from_millis(1), "{after:?}");
            if loss == 0 {
                prop_assert!(after + interval >= detection_time, "{after:?}");
            }
        }
    }

    /// Packets that overtake each other and arrive late by up to a tenth of the interval, a hundredth
    /// lost: whatever the intervals are changed to on either side, nobody goes down.
    #[test]
    fn intervals_change_on_a_bad_wire_without_a_flap(
        seed: u64,
        changes in prop::collection::vec(
            (0..2usize, prop::sample::select(vec![10u64, 20, 50, 100, 300, 1000]), 3..6u8, 0..3000u64),
            1..12,
        ),
    ) {
        // Of a multiplier of 3, one may be lost and the other two be late.
        let mut since_lost = [0; 2];
        let weather: Weather = Box::new(move |end, random| {
            since_lost[end] += 1;
            if since_lost[end] > 3 && random.random_ratio(1, 100) {
                since_lost[end] = 0;
                return None;
            }
            Some(Duration::from_micros(random.random_range(100..1000)))
        });
        let ends = [
            session(OURS, Role::Active, timing(100, 3)),
            session(THEIRS, Role::Passive, timing(50, 3)),
        ];
        let mut path = Path::through(ends, seed, weather);
        path.run(8000);
        prop_assert_eq!(path.states(), [State::Up, State::Up]);
        for (end, milliseconds, multiplier, wait) in changes {
            path.handle(end, retime(timing(milliseconds, multiplier)));
            path.run(wait);
        }
        path.run(20_000);
        prop_assert_eq!(path.states(), [State::Up, State::Up]);
        for end in &path.ends {
            prop_assert_eq!((end.counters.up, end.counters.down), (1, 0));
        }
        let [a, b] = path.ends.each_ref().map(|end| end.timing);
        let interval = a.desired_min_tx.max(b.desired_min_tx);
        let times = path.ends.each_ref().map(Session::detection_time);
        let expected = [b, a].map(|timing| interval * timing.detect_multiplier.get().into());
        prop_assert_eq!(times, expected);
    }
}
