//! Sessions that the peer dials.

use super::*;
use crate::{GracefulRestart, Start};

#[test]
fn a_passive_session_never_dials() {
    let (mut session, now) = with_config(passive(), StateKind::Established);
    assert_eq!(summary(&drive(&mut session, Event::Closed, now)), "close, Idle");
    // It fell right away: whoever dials now is not let in.
    let actions = drive(&mut session, Event::Accepted(LOCAL), now);
    assert_eq!(actions, [Action::Reject(message(3, &[6, 5]))]);
    let now = session.poll_timeout().unwrap();
    assert_eq!(summary(&drive_timeout(&mut session, now)), "Active");
    assert_eq!(session.poll_timeout(), None);
    assert_eq!(summary(&drive(&mut session, Event::Accepted(LOCAL), now)), "OPEN, OpenSent");
    // A mute connection is not waited for.
    let actions = drive_timeout(&mut session, now + DEFAULT_OPEN_TIME);
    assert_eq!(summary(&actions), "4/0 [], close, Idle");
}

/// A router that reboots dials when it is back, and waits long if it is refused.
#[test]
fn a_clean_close_lets_the_peer_in_at_once() {
    let (mut session, now) = with_config(passive(), StateKind::Established);
    let actions = drive(&mut session, Event::Closed, now + 11 * SECOND);
    assert_eq!(summary(&actions), "close, Active");
}

#[test]
fn the_newer_of_two_attempts_counts() {
    let (mut session, now) = with_config(passive(), StateKind::OpenSent);
    session.handle(Event::Received(&good_open()[..20]), now);
    let actions = drive(&mut session, Event::Accepted(LOCAL), now);
    assert_eq!(summary(&actions), "6/7 [], close, OPEN");
    let both = [good_open(), keepalive()].concat();
    let actions = drive(&mut session, Event::Received(&both), now);
    assert_eq!(summary(&actions), "KEEPALIVE, OpenConfirm, Established");
}

/// RFC 4724 section 4.2: with graceful restart the peer that dials anew has restarted.
#[test]
fn a_second_connection_replaces_an_established_one_only_with_graceful_restart() {
    let restart = GracefulRestart {
        restart_time: Duration::from_secs(15),
        notification: false,
        start: Start::Cold,
    };
    let config = SessionConfig { graceful_restart: Some(restart), ..passive() };
    // The peer does not know it.
    let (mut session, now) = with_config(config.clone(), StateKind::Established);
    let actions = drive(&mut session, Event::Accepted(LOCAL), now);
    assert_eq!(actions, [Action::Reject(message(3, &[6, 7]))]);
    assert_eq!(session.state(), StateKind::Established);

    let (mut session, now) = with_config(config, StateKind::OpenSent);
    let parameters = parameter(&[&MP_IPV4[..], &[64, 2, 0, 120]].concat());
    let both = [open(90, &parameters), keepalive()].concat();
    session.handle(Event::Received(&both), now);
    session.handle(Event::Routes(announced(&["198.51.100.1/32"])), now);
    assert!(!session.transmit(now, usize::MAX).is_empty());
    let actions = drive(&mut session, Event::Accepted(LOCAL), now);
    assert_eq!(summary(&actions), "close, OPEN, OpenSent", "the old one is told nothing");
    assert_eq!(session.stats().last_reset, Some(ResetReason::Replaced));
    assert_eq!((session.stats().flaps, session.stats().advertised_prefixes), (1, 0));
    let actions = drive(&mut session, Event::Received(&both), now);
    assert_eq!(summary(&actions), "KEEPALIVE, OpenConfirm, Established, UPDATE", "all again");
}
