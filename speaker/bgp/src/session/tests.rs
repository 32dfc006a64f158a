use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::*;
use crate::{Attributes, Changes, PeerAsn};

mod announcing;
mod bargain;
mod bfd;
mod ending;
mod opening;
mod passive;
mod received;
mod restart;
mod retrying;
mod timing;

const LOCAL_ASN: u32 = 64512;
const PEER_ASN: u32 = 64513;
const PEER_ID: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn config() -> SessionConfig {
    SessionConfig::new(LOCAL_ASN, PeerAsn::Number(PEER_ASN), Ipv4Addr::new(192, 0, 2, 2))
}

/// The tests count from here; none of them looks at the clock again.
#[expect(clippy::disallowed_methods, reason = "std has no other way to make an Instant")]
fn some_time() -> Instant {
    Instant::now()
}

const LOCAL: Local = Local {
    v4: Some(Ipv4Addr::new(192, 0, 2, 2)),
    v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
    link_local: None,
};

fn connected() -> Event<'static> {
    Event::Connected(LOCAL)
}

/// Announces prefixes without attributes.
fn announced(prefixes: &[&str]) -> Changes {
    let plain = Arc::new(Attributes::default());
    prefixes.iter().map(|prefix| (prefix.parse().unwrap(), Some(Arc::clone(&plain)))).collect()
}

fn withdrawn(prefixes: &[&str]) -> Changes {
    prefixes.iter().map(|prefix| (prefix.parse().unwrap(), None)).collect()
}

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// What a shell with much room does: tells what happened and sends what there is.
fn drive(session: &mut Session, event: Event<'_>, now: Instant) -> Vec<Action> {
    let mut actions = session.handle(event, now);
    actions.extend(sent(session, now));
    actions
}

fn drive_timeout(session: &mut Session, now: Instant) -> Vec<Action> {
    let mut actions = session.handle_timeout(now);
    actions.extend(sent(session, now));
    actions
}

fn sent(session: &mut Session, now: Instant) -> Option<Action> {
    let bytes = session.transmit(now, usize::MAX);
    assert!(!session.has_updates(), "there was room for all");
    (!bytes.is_empty()).then_some(Action::Send(bytes))
}

/// A message with a good header.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap();
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

fn keepalive() -> Vec<u8> {
    message(4, &[])
}

const MP_IPV4: [u8; 6] = [1, 4, 0, 1, 0, 1];
const MP_IPV6: [u8; 6] = [1, 4, 0, 2, 0, 1];

/// AS 64513, 192.0.2.1, 90 s, both families, route refresh of both kinds, four octets.
fn good_open() -> Vec<u8> {
    let four_octet_as = [65, 4, 0, 0, 0xfc, 0x01];
    open(90, &parameter(&[&MP_IPV4[..], &MP_IPV6, &[2, 0, 70, 0], &four_octet_as].concat()))
}

fn parameter(capabilities: &[u8]) -> Vec<u8> {
    [&[2, u8::try_from(capabilities.len()).unwrap()], capabilities].concat()
}

fn open(hold_time: u16, parameters: &[u8]) -> Vec<u8> {
    let [high, low] = hold_time.to_be_bytes();
    let length = u8::try_from(parameters.len()).unwrap_or(255);
    message(1, &[&[4, 0xfc, 0x01, high, low, 192, 0, 2, 1, length], parameters].concat())
}

fn open_as(asn: u16) -> Vec<u8> {
    let [high, low] = asn.to_be_bytes();
    message(1, &[4, high, low, 0, 90, 192, 0, 2, 1, 0])
}

/// A session that was led into a state, and the time there.
fn in_state(kind: StateKind) -> (Session, Instant) {
    with_config(config(), kind)
}

fn with_config(config: SessionConfig, kind: StateKind) -> (Session, Instant) {
    let now = some_time();
    let (open, keepalive) = (good_open(), keepalive());
    let connection = match config.mode {
        Mode::Active => connected(),
        Mode::Passive => Event::Accepted(LOCAL),
    };
    let mut session = Session::new(config, 1);
    let steps = [Event::Start, connection, Event::Received(&open), Event::Received(&keepalive)];
    for step in steps {
        if session.state() < kind {
            session.handle(step, now);
        }
    }
    assert_eq!(session.state(), kind);
    (session, now)
}

/// Actions in short; `Send` shows the types of the messages, and all of a NOTIFICATION.
fn summary(actions: &[Action]) -> String {
    let shown: Vec<String> = actions
        .iter()
        .map(|action| match action {
            Action::Connect => "connect".to_owned(),
            Action::Close => "close".to_owned(),
            Action::Reject(bytes) => format!("reject {}/{}", bytes[19], bytes[20]),
            Action::StateChanged(state) => format!("{state}"),
            Action::Send(bytes) => split(bytes)
                .into_iter()
                .map(|message| match message[18] {
                    1 => "OPEN".to_owned(),
                    2 => "UPDATE".to_owned(),
                    3 => format!("{}/{} {:?}", message[19], message[20], &message[21..]),
                    4 => "KEEPALIVE".to_owned(),
                    _ => "REFRESH".to_owned(),
                })
                .collect::<Vec<_>>()
                .join("+"),
        })
        .collect();
    shown.join(", ")
}

fn split(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let length = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        let (message, rest) = bytes.split_at(length);
        messages.push(message);
        bytes = rest;
    }
    messages
}

/// A session that the peer dials.
fn passive() -> SessionConfig {
    SessionConfig { mode: Mode::Passive, ..config() }
}

/// Every event in every state, for both modes. Of RFC 4271's events 1 to 28 those that do not exist
/// here are about DelayOpen, the automatic stop by prefix count, and a connection that the TCP stack
/// asks us to confirm.
#[test]
fn every_event_in_every_state() {
    use StateKind::{Active, Connect, Established, Idle, OpenConfirm, OpenSent};

    let (open, keepalive) = (good_open(), keepalive());
    let update = message(2, &[0, 0, 0, 0]);
    let cease = message(3, &[6, 4]);
    let refresh = message(5, &[0, 1, 0, 1]);
    let stop = |reason| Event::Stop { reason };
    let shutdown = stop(StopReason::AdministrativeShutdown { text: None });
    let routes = Event::Routes(announced(&["198.51.100.1/32"]));
    let [up, down] = [BfdState::Up, BfdState::Down].map(Event::Bfd);
    let gone = "close, Idle";
    let ceased = "6/2 [], close, Idle";
    let garbled = "1/1 [], close, Idle";
    let rejected = "reject 6/5";
    let rows = [
        ("start", Event::Start, ["connect, Connect", "", "", "", ""]),
        ("stop", shutdown.clone(), ["", gone, ceased, ceased, ceased]),
        ("restart", stop(StopReason::Restart), ["", gone, ceased, ceased, ceased]),
        ("connected", connected(), ["close", "OPEN, OpenSent", "", "", ""]),
        ("accepted", Event::Accepted(LOCAL), [rejected; 5]),
        ("failed", Event::ConnectFailed, ["", gone, "", "", ""]),
        ("closed", Event::Closed, ["", gone, gone, gone, gone]),
        ("written", Event::Written, [""; 5]),
        ("routes", routes.clone(), ["", "", "", "", "UPDATE"]),
        ("complete", Event::Complete, ["", "", "", "", "UPDATE+UPDATE"]),
        ("BFD up", up.clone(), [""; 5]),
        ("BFD down", down.clone(), [""; 5]),
        (
            "OPEN",
            Event::Received(&open),
            ["", "", "KEEPALIVE, OpenConfirm", "5/2 [1], close, Idle", "5/3 [1], close, Idle"],
        ),
        (
            "UPDATE",
            Event::Received(&update),
            ["", "", "5/1 [2], close, Idle", "5/2 [2], close, Idle", ""],
        ),
        ("NOTIFICATION", Event::Received(&cease), ["", "", gone, gone, gone]),
        (
            "KEEPALIVE",
            Event::Received(&keepalive),
            ["", "", "5/1 [4], close, Idle", "Established", ""],
        ),
        (
            "ROUTE-REFRESH",
            Event::Received(&refresh),
            ["", "", "5/1 [5], close, Idle", "5/2 [5], close, Idle", ""],
        ),
        ("garbage", Event::Received(b"GET /"), ["", "", garbled, garbled, garbled]),
    ];
    for (name, event, expected) in rows {
        let states = [Idle, Connect, OpenSent, OpenConfirm, Established];
        for (state, expected) in states.into_iter().zip(expected) {
            let (mut session, now) = in_state(state);
            let actions = drive(&mut session, event.clone(), now);
            assert_eq!(summary(&actions), expected, "{name} in {state}");
        }
    }
    let anew = "6/7 [], close, OPEN";
    let rows = [
        ("start", Event::Start, ["Active", "", "", "", ""]),
        ("stop", shutdown, ["", gone, ceased, ceased, ceased]),
        ("connected", connected(), ["close", "close", "", "", ""]),
        (
            "accepted",
            Event::Accepted(LOCAL),
            [rejected, "OPEN, OpenSent", anew, "6/7 [], close, OPEN, OpenSent", "reject 6/7"],
        ),
        ("failed", Event::ConnectFailed, [""; 5]),
        ("closed", Event::Closed, ["", "", "close, Active", gone, gone]),
        ("written", Event::Written, [""; 5]),
        ("routes", routes, ["", "", "", "", "UPDATE"]),
        ("complete", Event::Complete, ["", "", "", "", "UPDATE+UPDATE"]),
        ("BFD up", up, [""; 5]),
        ("BFD down", down, [""; 5]),
        ("garbage", Event::Received(b"GET /"), ["", "", garbled, garbled, garbled]),
    ];
    for (name, event, expected) in rows {
        let states = [Idle, Active, OpenSent, OpenConfirm, Established];
        for (state, expected) in states.into_iter().zip(expected) {
            let (mut session, now) = with_config(passive(), state);
            let actions = drive(&mut session, event.clone(), now);
            assert_eq!(summary(&actions), expected, "{name} in {state}, passive");
        }
    }
    let late = [
        (Idle, 3600, ""),
        (Connect, 5, gone),
        (OpenSent, 30, "4/0 [], close, Idle"),
        (OpenConfirm, 90, "4/0 [], close, Idle"),
        (Established, 90, "4/0 [], close, Idle"),
    ];
    for (state, seconds, expected) in late {
        let (mut session, now) = in_state(state);
        let early = drive_timeout(&mut session, now);
        assert_eq!(summary(&early), "", "nothing is due in {state}");
        let actions = drive_timeout(&mut session, now + Duration::from_secs(seconds));
        assert_eq!(summary(&actions), expected, "{seconds} s in {state}");
    }
    let (mut session, now) = with_config(passive(), Active);
    assert_eq!(session.poll_timeout(), None, "the peer has all the time");
    assert_eq!(drive_timeout(&mut session, now + 3600 * SECOND), []);
}
