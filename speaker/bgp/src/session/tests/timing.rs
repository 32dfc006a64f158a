//! Hold timer, keepalives and send hold timer.

use super::*;

#[test]
fn keepalives_keep_their_distance() {
    for (hold, configured, longest) in
        [(90, None, 30.0), (9, None, 3.0), (3, None, 1.0), (90, Some(10), 10.0), (9, Some(5), 3.0)]
    {
        let config = SessionConfig {
            hold_time: Duration::from_secs(hold),
            keepalive_time: configured.map(Duration::from_secs),
            ..config()
        };
        let (mut session, mut now) = with_config(config, StateKind::Established);
        let mut seen = Vec::new();
        let mut last = now;
        while seen.len() < 200 {
            drive(&mut session, Event::Received(&keepalive()), now);
            drive(&mut session, Event::Written, now);
            now = session.poll_timeout().unwrap();
            assert_eq!(summary(&drive_timeout(&mut session, now)), "KEEPALIVE");
            seen.push((now - last).as_secs_f64());
            last = now;
        }
        let shortest = f64::max(0.75 * longest, 1.0);
        let in_range = |interval: &f64| (shortest - 0.001..=longest + 0.001).contains(interval);
        assert!(seen.iter().all(in_range), "hold {hold}: {seen:?}");
    }
}

#[test]
fn hold_time_zero_switches_the_timers_off() {
    let config = SessionConfig { hold_time: Duration::ZERO, ..config() };
    let (mut session, now) = with_config(config.clone(), StateKind::OpenSent);
    drive(&mut session, Event::Received(&open(0, &[])), now);
    assert_eq!(session.poll_timeout(), Some(now + DEFAULT_OPEN_TIME), "it must come up, though");
    drive(&mut session, Event::Received(&keepalive()), now);
    assert_eq!(session.poll_timeout(), None);
    // Ours is 0, theirs is not: the smaller one counts.
    let (session, _) = with_config(config, StateKind::Established);
    assert_eq!(session.negotiated().unwrap().hold_time, Duration::ZERO);
}

#[test]
fn only_keepalives_and_updates_hold_the_session() {
    let (mut session, now) = in_state(StateKind::Established);
    for (seconds, bytes) in
        [(60, keepalive()), (120, message(2, &[0; 4])), (180, message(5, &[0, 25, 0, 70]))]
    {
        let now = now + Duration::from_secs(seconds);
        assert!(drive_timeout(&mut session, now).len() <= 1, "alive at {seconds} s");
        drive(&mut session, Event::Received(&bytes), now);
    }
    assert_eq!(session.state(), StateKind::Established);
    drive_timeout(&mut session, now + 209 * SECOND);
    assert_eq!(session.state(), StateKind::Established);
    drive_timeout(&mut session, now + 210 * SECOND);
    assert_eq!(session.state(), StateKind::Idle);
    let reason = session.stats().last_reset.unwrap();
    assert_eq!(reason.to_string(), "the peer was silent for too long in state Established");
}

#[test]
fn a_peer_that_takes_nothing_is_given_up() {
    for (hold, expected) in [(90, 480), (3, 480), (300, 600)] {
        let expected = Duration::from_secs(expected);
        let config = SessionConfig { hold_time: Duration::from_secs(hold), ..config() };
        let (mut session, start) = with_config(config, StateKind::OpenSent);
        session.handle(Event::Received(&[open(300, &[]), keepalive()].concat()), start);
        // It speaks, and it took something for a minute.
        let speak = |session: &mut Session, now, took: bool| {
            session.handle(Event::Received(&keepalive()), now);
            if took {
                session.handle(Event::Written, now);
            }
            session.handle_timeout(now)
        };
        let mut now = start;
        while now < start + 60 * SECOND {
            now += SECOND;
            speak(&mut session, now, true);
        }
        let last = now;
        let end = loop {
            now += SECOND;
            let actions = speak(&mut session, now, false);
            if session.state() != StateKind::Established {
                break actions;
            }
        };
        assert_eq!(now - last, expected, "hold time {hold}");
        assert!(summary(&end).ends_with("8/0 [], close, Idle"), "{end:?}");
        let reason = session.stats().last_reset.unwrap().to_string();
        let seconds = expected.as_secs();
        assert_eq!(reason, format!("the peer took nothing of what was sent for {seconds} s"));
    }
}

#[test]
fn timers_change_on_a_running_session() {
    let (mut session, now) = in_state(StateKind::Established);
    let quick = SessionConfig {
        hold_time: 9 * SECOND,
        keepalive_time: Some(2 * SECOND),
        connect_time: Some(SECOND),
        ..config()
    };
    session.update_timers(&quick, now);
    assert_eq!(session.state(), StateKind::Established);
    // The new keepalive time is kept from now on, the hold time is that of the OPENs.
    let negotiated = session.negotiated().unwrap();
    assert_eq!((negotiated.keepalive_time, negotiated.hold_time), (2 * SECOND, 90 * SECOND));
    let due = session.poll_timeout().unwrap();
    assert!(due <= now + 2 * SECOND);
    assert_eq!(summary(&drive_timeout(&mut session, due)), "KEEPALIVE");
    // The next OPEN has the new hold time.
    session.handle(Event::Closed, due);
    let now = session.poll_timeout().unwrap();
    session.handle_timeout(now);
    let actions = drive(&mut session, connected(), now);
    let [Action::Send(open), _] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(open[22..24], [0, 9]);
}
