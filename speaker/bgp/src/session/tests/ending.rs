//! How sessions are ended, and what a peer's reason looks like.

use super::*;

#[test]
fn stop_withdraws_before_the_cease() {
    let (mut session, now) = in_state(StateKind::Established);
    drive(&mut session, Event::Routes(announced(&["198.51.100.1/32", "2001:db8::1/128"])), now);
    let text = Some("node drained".to_owned());
    let reason = StopReason::AdministrativeShutdown { text };
    let actions = drive(&mut session, Event::Stop { reason }, now);
    let withdraw_v4 = message(2, &[0, 5, 32, 198, 51, 100, 1, 0, 0]);
    let v6 =
        [0x80, 15, 20, 0, 2, 1, 128, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let withdraw_v6 = message(2, &[&[0, 0, 0, 23][..], &v6].concat());
    assert_eq!(
        actions,
        [
            Action::Send([withdraw_v4, withdraw_v6].concat()),
            Action::Send(message(3, b"\x06\x02\x0cnode drained")),
            Action::Close,
            Action::StateChanged(StateKind::Idle),
        ]
    );
    assert_eq!(session.poll_timeout(), None, "a stopped session stays down");
    assert_eq!(summary(&drive(&mut session, Event::Start, now)), "connect, Connect");
}

#[test]
fn every_reason_to_stop_has_its_cease() {
    let text = |text: &str| StopReason::AdministrativeShutdown { text: Some(text.to_owned()) };
    let umlauts = "ä".repeat(200);
    let cases = [
        (StopReason::AdministrativeShutdown { text: None }, vec![6, 2]),
        (StopReason::PeerDeconfigured, vec![6, 3]),
        (StopReason::ConfigurationChange, vec![6, 6]),
        (text("bye"), vec![6, 2, 3, b'b', b'y', b'e']),
        // 255 octets would end in half a character.
        (text(&umlauts), [&[6, 2, 254], "ä".repeat(127).as_bytes()].concat()),
    ];
    for (reason, expected) in cases {
        let (mut session, now) = in_state(StateKind::OpenConfirm);
        let actions = drive(&mut session, Event::Stop { reason: reason.clone() }, now);
        assert_eq!(actions[0], Action::Send(message(3, &expected)), "{reason:?}");
    }
}

#[test]
fn a_received_reason_is_shown_and_safe_to_show() {
    let cases: [(&[u8], &str); 13] = [
        (&[6, 4], "Cease: Administrative Reset (6/4)"),
        (b"\x06\x02\x05hello", "Cease: Administrative Shutdown (6/2), saying \"hello\""),
        (
            b"\x06\x02\x05\x1b[2J\n",
            "Cease: Administrative Shutdown (6/2), saying \"\u{fffd}[2J\u{fffd}\"",
        ),
        (b"\x06\x02\x03\xe2\x80\xae", "Cease: Administrative Shutdown (6/2), saying \"\u{fffd}\""),
        (
            b"\x06\x02\x02\xff\xfe",
            "Cease: Administrative Shutdown (6/2), saying \"\u{fffd}\u{fffd}\"",
        ),
        (b"\x06\x02\x09short", "Cease: Administrative Shutdown (6/2)"),
        (&[6, 99], "Cease (6/99)"),
        (&[77, 1], "Unknown Error (77/1)"),
        (&[6, 10], "Cease: BFD Down (6/10)"),
        (&[6, 9], "Cease: Hard Reset (6/9)"),
        (
            b"\x06\x09\x06\x02\x03bye",
            "Cease: Hard Reset (6/9) because of Cease: Administrative Shutdown (6/2), saying \"bye\"",
        ),
        (&[6, 9, 6, 9, 6, 9, 6, 2], "Cease: Hard Reset (6/9)"),
        (&[8, 0], "Send Hold Timer Expired (8/0)"),
    ];
    for (body, expected) in cases {
        let (mut session, now) = in_state(StateKind::Established);
        drive(&mut session, Event::Received(&message(3, body)), now);
        let reason = session.stats().last_reset.unwrap().to_string();
        assert_eq!(reason, format!("the peer ended the session: {expected}"));
    }
}
