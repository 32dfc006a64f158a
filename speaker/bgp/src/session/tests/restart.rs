//! Graceful restart: what an OPEN says of us, and how a session ends with it.

use super::*;
use crate::{GracefulRestart, Start};

fn restarting(start: Start, notification: bool) -> SessionConfig {
    let restart = GracefulRestart { restart_time: Duration::from_secs(15), notification, start };
    SessionConfig { graceful_restart: Some(restart), ..config() }
}

/// The peer's OPEN with graceful restart, and its KEEPALIVE.
fn helper(notification: bool) -> Vec<u8> {
    let head = if notification { 0x40 } else { 0 };
    let capabilities = [&MP_IPV4[..], &MP_IPV6, &[65, 4, 0, 0, 0xfc, 1, 64, 2, head, 120]].concat();
    [open(90, &parameter(&capabilities)), keepalive()].concat()
}

fn established(config: SessionConfig, peer: &[u8]) -> (Session, Instant) {
    let (mut session, now) = with_config(config, StateKind::OpenSent);
    session.handle(Event::Received(peer), now);
    session.handle(Event::Routes(announced(&["198.51.100.1/32"])), now);
    drive(&mut session, Event::Complete, now);
    assert_eq!(session.state(), StateKind::Established);
    (session, now)
}

/// Flags and time of the capability in the OPEN, and the flags of its families.
fn offered(actions: &[Action]) -> ([u8; 2], [u8; 2]) {
    let [Action::Send(open), _] = actions else { panic!("{actions:?}") };
    let at = open.windows(2).position(|head| head == [64, 10]).unwrap() + 2;
    let value = &open[at..at + 10];
    ([value[0], value[1]], [value[5], value[9]])
}

#[test]
fn the_flags_tell_how_we_came_to_be() {
    let cases = [
        (Start::Cold, false, [0, 15], [0, 0]),
        (Start::Cold, true, [0x40, 15], [0, 0]),
        (Start::Forwarding, false, [0x80, 15], [0x80, 0x80]),
        (Start::Forwarding, true, [0xc0, 15], [0x80, 0x80]),
    ];
    for (start, notification, head, families) in cases {
        let (mut session, mut now) =
            with_config(restarting(start, notification), StateKind::Connect);
        // Until it is Established the speaker has just started.
        for _ in 0..3 {
            let actions = drive(&mut session, connected(), now);
            assert_eq!(offered(&actions), (head, families), "{start:?}");
            session.handle(Event::Closed, now);
            now = session.poll_timeout().unwrap();
            session.handle_timeout(now);
        }
        session.handle(connected(), now);
        session.handle(Event::Received(&helper(notification)), now);
        assert_eq!(session.state(), StateKind::Established);
        session.handle(Event::Closed, now);
        now = session.poll_timeout().unwrap();
        session.handle_timeout(now);
        // From then on it is the session that was away, and packets were forwarded.
        let actions = drive(&mut session, connected(), now);
        assert_eq!(offered(&actions), ([head[0] & 0x40, 15], [0x80, 0x80]), "{start:?}");
    }
}

#[test]
fn a_restart_says_nothing() {
    let stop = || Event::Stop { reason: StopReason::Restart };
    let (mut session, now) = established(restarting(Start::Cold, false), &helper(false));
    assert_eq!(
        drive(&mut session, stop(), now),
        [Action::Close, Action::StateChanged(StateKind::Idle)]
    );
    assert_eq!(session.poll_timeout(), None);
    // Before the session is up there may still be routes of the speaker before.
    let (mut session, now) = with_config(restarting(Start::Forwarding, false), StateKind::OpenSent);
    assert_eq!(summary(&drive(&mut session, stop(), now)), "close, Idle");
    session.handle(Event::Start, now);
    session.handle(connected(), now);
    let open_alone = helper(false);
    session.handle(Event::Received(&open_alone[..open_alone.len() - 19]), now);
    assert_eq!(session.state(), StateKind::OpenConfirm);
    assert_eq!(summary(&drive(&mut session, stop(), now)), "close, Idle");
    // A peer that does not keep routes is told.
    for config in [config(), restarting(Start::Cold, false)] {
        let (mut session, now) = established(config, &[good_open(), keepalive()].concat());
        assert_eq!(summary(&drive(&mut session, stop(), now)), "UPDATE, 6/2 [], close, Idle");
    }
}

#[test]
fn leaving_for_good_is_a_hard_reset_where_notifications_are_graceful() {
    let text = |text: &str| StopReason::AdministrativeShutdown { text: Some(text.to_owned()) };
    let cases = [
        (text("bye"), vec![6, 2, 3, b'b', b'y', b'e'], vec![6, 9, 6, 2, 3, b'b', b'y', b'e']),
        (StopReason::PeerDeconfigured, vec![6, 3], vec![6, 9, 6, 3]),
        (StopReason::ConfigurationChange, vec![6, 6], vec![6, 6]),
    ];
    for (reason, soft, hard) in cases {
        // Only where both sides have it.
        for (ours, theirs) in [(false, false), (false, true), (true, false), (true, true)] {
            let (mut session, now) = established(restarting(Start::Cold, ours), &helper(theirs));
            let stop = Event::Stop { reason: reason.clone() };
            let actions = drive(&mut session, stop, now);
            let [Action::Send(withdrawal), Action::Send(cease), Action::Close, _] = &actions[..]
            else {
                panic!("{actions:?}")
            };
            assert_eq!(*withdrawal, message(2, &[0, 5, 32, 198, 51, 100, 1, 0, 0]));
            let expected = if ours && theirs { &hard } else { &soft };
            assert_eq!(*cease, message(3, expected), "{reason:?}, {ours}, {theirs}");
        }
    }
}

/// Initial routes, End-of-RIB, and nothing before [`Event::Complete`]: also after a restart.
#[test]
fn end_of_rib_is_sent_on_every_session_once_all_is_known() {
    let (mut session, now) = established(restarting(Start::Forwarding, false), &helper(false));
    session.handle(Event::Closed, now);
    let now = session.poll_timeout().unwrap();
    session.handle_timeout(now);
    session.handle(connected(), now);
    let actions = drive(&mut session, Event::Received(&helper(false)), now);
    assert_eq!(summary(&actions), "KEEPALIVE, OpenConfirm, Established, UPDATE+UPDATE+UPDATE");
}

#[test]
fn the_restart_time_can_change_without_a_reset() {
    let (mut session, now) = established(restarting(Start::Cold, false), &helper(false));
    let mut changed = restarting(Start::Forwarding, true);
    if let Some(restart) = &mut changed.graceful_restart {
        restart.restart_time = Duration::from_secs(4095);
    }
    session.update_timers(&changed, now);
    assert_eq!(session.state(), StateKind::Established);
    session.handle(Event::Closed, now);
    let now = session.poll_timeout().unwrap();
    session.handle_timeout(now);
    // N is new as well; how we came to be is not a setting.
    let actions = drive(&mut session, connected(), now);
    assert_eq!(offered(&actions), ([0x4f, 0xff], [0x80, 0x80]));
}
