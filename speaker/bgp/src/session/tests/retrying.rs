//! How long a session waits before it tries again.

use super::*;

#[test]
fn refused_connections_are_retried_by_the_table() {
    let expected = [200, 500, 1000, 2000, 2000, 2000, 2000];
    assert_waits(config(), &expected, |session, now| session.handle(Event::ConnectFailed, now));
    let slow = SessionConfig { connect_time: Some(60 * SECOND), ..config() };
    let expected = [200, 500, 1000, 2000, 4000, 60_000, 60_000];
    assert_waits(slow, &expected, |session, now| session.handle(Event::ConnectFailed, now));
    let quick = SessionConfig { connect_time: Some(SECOND), ..config() };
    let expected = [200, 500, 1000, 1000, 1000, 1000];
    assert_waits(quick, &expected, |session, now| session.handle(Event::ConnectFailed, now));
    // A router that accepts and closes is not ready either.
    let expected = [200, 500, 1000, 2000, 2000];
    assert_waits(config(), &expected, |session, now| {
        session.handle(connected(), now);
        session.handle(Event::Closed, now)
    });
}

#[test]
fn sessions_that_fall_meet_back_off() {
    let expected = [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000];
    assert_waits(config(), &expected, |session, now| {
        session.handle(connected(), now);
        session.handle(Event::Received(&open_as(1)), now)
    });
    // Right after its OPEN, and right after Established.
    assert_waits(config(), &expected, |session, now| {
        session.handle(connected(), now);
        session.handle(Event::Received(&good_open()), now);
        session.handle(Event::Closed, now)
    });
    assert_waits(config(), &expected, |session, now| {
        session.handle(connected(), now);
        session.handle(Event::Received(&[good_open(), keepalive()].concat()), now);
        session.handle(Event::Received(&message(3, &[6, 4])), now)
    });
}

#[test]
fn a_clean_close_is_retried_at_once_and_a_long_session_forgives() {
    let (mut session, now) = in_state(StateKind::Established);
    let later = now + 11 * SECOND;
    session.handle(Event::Closed, later);
    assert_wait(&session, later, 200);

    let (mut session, mut now) = in_state(StateKind::Connect);
    let establish = |session: &mut Session, now| {
        session.handle(connected(), now);
        session.handle(Event::Received(&[good_open(), keepalive()].concat()), now);
        assert_eq!(session.state(), StateKind::Established);
    };
    for (lasted, wait) in [(1, 1000), (1, 2000), (299, 4000), (300, 1000), (1, 2000)] {
        establish(&mut session, now);
        now += Duration::from_secs(lasted);
        // "Maximum number of prefixes": not a clean close, however long it took.
        session.handle(Event::Received(&message(3, &[6, 1])), now);
        assert_wait(&session, now, wait);
        now += 60 * SECOND;
        assert_eq!(summary(&session.handle_timeout(now)), "connect, Connect");
    }
}

/// Each time that the session dials, `fail` it, and look at the wait.
fn assert_waits(
    config: SessionConfig,
    milliseconds: &[u64],
    fail: impl Fn(&mut Session, Instant) -> Vec<Action>,
) {
    let (mut session, mut now) = with_config(config, StateKind::Connect);
    for &wait in milliseconds {
        let actions = fail(&mut session, now);
        assert!(actions.contains(&Action::StateChanged(StateKind::Idle)), "{actions:?}");
        assert_wait(&session, now, wait);
        now = session.poll_timeout().unwrap();
        assert_eq!(summary(&session.handle_timeout(now)), "connect, Connect");
    }
}

fn assert_wait(session: &Session, now: Instant, milliseconds: u64) {
    let wait = session.poll_timeout().unwrap() - now;
    let longest = Duration::from_millis(milliseconds);
    assert!(wait <= longest && wait >= longest.mul_f64(0.749), "{wait:?} of {longest:?}");
}
