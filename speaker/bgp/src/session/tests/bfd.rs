//! What BFD decides: when routes are announced and when a session ends.

use super::*;
use crate::BfdRule;

const UP: Event<'static> = Event::Bfd(BfdState::Up);
const DOWN: Event<'static> = Event::Bfd(BfdState::Down);
const ROUTE: &[&str] = &["198.51.100.1/32"];

fn with_bfd(strict: bool) -> SessionConfig {
    SessionConfig { bfd: Some(BfdRule { strict }), ..config() }
}

#[test]
fn down_after_up_ends_the_session() {
    for state in [StateKind::OpenSent, StateKind::OpenConfirm, StateKind::Established] {
        let (mut session, now) = with_config(with_bfd(false), state);
        assert_eq!(drive(&mut session, DOWN, now), [], "it was never Up");
        assert_eq!(drive(&mut session, UP, now), []);
        assert_eq!(drive(&mut session, UP, now), []);
        assert_eq!(summary(&drive(&mut session, DOWN, now)), "6/10 [], close, Idle");
        assert_eq!(session.stats().last_reset.unwrap().to_string(), "BFD lost the peer");
    }
    // It was Up, but not since.
    let (mut session, now) = with_config(with_bfd(false), StateKind::Established);
    session.handle(UP, now);
    session.handle(DOWN, now);
    let now = session.poll_timeout().unwrap();
    session.handle_timeout(now);
    session.handle(connected(), now);
    session.handle(Event::Received(&[good_open(), keepalive()].concat()), now);
    assert_eq!(drive(&mut session, DOWN, now), []);
    assert_eq!(session.state(), StateKind::Established);
}

#[test]
fn without_a_rule_bfd_means_nothing() {
    let (mut session, now) = in_state(StateKind::Established);
    session.handle(UP, now);
    assert_eq!(drive(&mut session, DOWN, now), []);
}

#[test]
fn a_strict_session_waits_for_bfd() {
    let (mut session, now) = with_config(with_bfd(true), StateKind::Established);
    assert_eq!(session.bfd_gate(), BfdGate::Waiting);
    session.handle(Event::Complete, now);
    assert_eq!(drive(&mut session, Event::Routes(announced(ROUTE)), now), []);
    assert_eq!(session.poll_timeout(), Some(now + 10 * SECOND));
    let actions = drive(&mut session, UP, now + 3 * SECOND);
    assert_eq!(summary(&actions), "UPDATE+UPDATE+UPDATE", "the route, and two End-of-RIB");
    assert_eq!(session.bfd_gate(), BfdGate::Open);
}

#[test]
fn a_strict_session_waits_ten_seconds() {
    let (mut session, now) = with_config(with_bfd(true), StateKind::Established);
    session.handle(Event::Routes(announced(ROUTE)), now);
    assert_eq!(drive_timeout(&mut session, now + 9 * SECOND), []);
    assert_eq!(summary(&drive_timeout(&mut session, now + 10 * SECOND)), "UPDATE");
    assert_eq!(session.bfd_gate(), BfdGate::Overdue);
    drive(&mut session, UP, now + 11 * SECOND);
    assert_eq!(session.bfd_gate(), BfdGate::Open);
}

#[test]
fn who_is_not_strict_or_has_bfd_does_not_wait() {
    let (mut session, now) = with_config(with_bfd(false), StateKind::Established);
    assert_eq!(summary(&drive(&mut session, Event::Routes(announced(ROUTE)), now)), "UPDATE");

    let (mut session, now) = with_config(with_bfd(true), StateKind::OpenConfirm);
    session.handle(UP, now);
    session.handle(Event::Routes(announced(ROUTE)), now);
    let actions = drive(&mut session, Event::Received(&keepalive()), now);
    assert_eq!(summary(&actions), "Established, UPDATE");

    // Strict no more, or no BFD at all.
    for rule in [Some(BfdRule { strict: false }), None] {
        let (mut session, now) = with_config(with_bfd(true), StateKind::Established);
        session.handle(Event::Routes(announced(ROUTE)), now);
        assert!(!session.has_updates());
        session.update_timers(&SessionConfig { bfd: rule, ..config() }, now);
        assert!(session.has_updates());
        assert_eq!(session.bfd_gate(), BfdGate::Open);
    }
}
