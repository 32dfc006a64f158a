use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::{Family, PeerAsn};

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

fn connected() -> Event<'static> {
    Event::Connected {
        local_v4: Some(Ipv4Addr::new(192, 0, 2, 2)),
        local_v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
    }
}

fn routes(prefixes: &[&str]) -> BTreeSet<Route> {
    prefixes
        .iter()
        .map(|prefix| Route {
            prefix: prefix.parse().unwrap(),
            local_pref: None,
            communities: BTreeSet::new(),
            large_communities: BTreeSet::new(),
        })
        .collect()
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

/// A session that was led into a state, and the time there.
fn in_state(kind: StateKind) -> (Session, Instant) {
    with_config(config(), kind)
}

fn with_config(config: SessionConfig, kind: StateKind) -> (Session, Instant) {
    let now = some_time();
    let mut session = Session::new(config, 1);
    let (open, keepalive) = (good_open(), keepalive());
    let steps = [Event::Start, connected(), Event::Received(&open), Event::Received(&keepalive)];
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

/// Every event in every state.
#[test]
fn every_event_in_every_state() {
    use StateKind::{Connect, Established, Idle, OpenConfirm, OpenSent};

    let (open, keepalive) = (good_open(), keepalive());
    let update = message(2, &[0, 0, 0, 0]);
    let cease = message(3, &[6, 4]);
    let refresh = message(5, &[0, 1, 0, 1]);
    let shutdown = StopReason::AdministrativeShutdown { text: None };
    let stop = Event::Stop { reason: shutdown };
    let advertise = Event::Advertise(routes(&["198.51.100.1/32"]));
    let down = "close, Idle";
    let ceased = "6/2 [], close, Idle";
    let unsynchronized = "1/1 [], close, Idle";
    let rows = [
        ("start", Event::Start, ["connect, Connect", "", "", "", ""]),
        ("stop", stop, ["", down, ceased, ceased, ceased]),
        ("connected", connected(), ["close", "OPEN, OpenSent", "", "", ""]),
        ("failed", Event::ConnectFailed, ["", down, "", "", ""]),
        ("closed", Event::Closed, ["", down, down, down, down]),
        ("advertise", advertise, ["", "", "", "", "UPDATE+UPDATE+UPDATE"]),
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
        ("NOTIFICATION", Event::Received(&cease), ["", "", down, down, down]),
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
        (
            "garbage",
            Event::Received(b"GET /"),
            ["", "", unsynchronized, unsynchronized, unsynchronized],
        ),
    ];
    for (name, event, expected) in rows {
        let states = [Idle, Connect, OpenSent, OpenConfirm, Established];
        for (state, expected) in states.into_iter().zip(expected) {
            let (mut session, now) = in_state(state);
            let actions = session.handle(event.clone(), now);
            assert_eq!(summary(&actions), expected, "{name} in {state}");
        }
    }
    let late: [(StateKind, u64, &str); 5] = [
        (Idle, 3600, ""),
        (Connect, 5, "close, Idle"),
        (OpenSent, 30, "4/0 [], close, Idle"),
        (OpenConfirm, 90, "4/0 [], close, Idle"),
        (Established, 90, "4/0 [], close, Idle"),
    ];
    for (state, seconds, expected) in late {
        let (mut session, now) = in_state(state);
        let early = session.handle_timeout(now);
        assert_eq!(summary(&early), "", "nothing is due in {state}");
        let actions = session.handle_timeout(now + Duration::from_secs(seconds));
        assert_eq!(summary(&actions), expected, "{seconds} s in {state}");
    }
}

/// What a peer can do wrong, byte for byte, and the whole NOTIFICATION that it gets.
#[test]
fn malformed_messages_get_their_notification() {
    let wrong = |mut bytes: Vec<u8>, at: usize, octet: u8| {
        bytes[at] = octet;
        bytes
    };
    let long_open = |parameters: &[u8]| open(90, parameters);
    let cases: Vec<(&str, StateKind, Vec<u8>, Vec<u8>)> = vec![
        // RFC 4271 section 6.1
        ("an HTTP request", StateKind::OpenSent, b"GET / HTTP/1.1\r\n".to_vec(), vec![1, 1]),
        ("a TLS hello", StateKind::OpenSent, vec![0x16, 0x03, 0x01], vec![1, 1]),
        ("a hole in the marker", StateKind::OpenSent, wrong(good_open(), 15, 0xfe), vec![1, 1]),
        ("length 18", StateKind::OpenSent, wrong(keepalive(), 17, 18), vec![1, 2, 0, 18]),
        (
            "length 4097",
            StateKind::OpenSent,
            [&[0xff; 16][..], &[0x10, 0x01, 2]].concat(),
            vec![1, 2, 0x10, 0x01],
        ),
        ("OPEN of 28", StateKind::OpenSent, message(1, &[4; 9]), vec![1, 2, 0, 28]),
        ("UPDATE of 22", StateKind::Established, message(2, &[0; 3]), vec![1, 2, 0, 22]),
        ("NOTIFICATION of 20", StateKind::Established, message(3, &[6]), vec![1, 2, 0, 20]),
        ("KEEPALIVE of 20", StateKind::Established, message(4, &[0]), vec![1, 2, 0, 20]),
        ("ROUTE-REFRESH of 22", StateKind::Established, message(5, &[0, 1, 0]), vec![1, 2, 0, 22]),
        (
            "ROUTE-REFRESH of 24",
            StateKind::Established,
            message(5, &[0, 1, 0, 1, 0]),
            vec![1, 2, 0, 24],
        ),
        ("type 0", StateKind::OpenSent, message(0, &[]), vec![1, 3, 0]),
        ("type 6", StateKind::Established, message(6, &[]), vec![1, 3, 6]),
        // RFC 4271 section 6.2
        ("version 3", StateKind::OpenSent, wrong(good_open(), 19, 3), vec![2, 1, 0, 4]),
        ("another AS", StateKind::OpenSent, open_as(64999), vec![2, 2]),
        ("AS 0", StateKind::OpenSent, open_as(0), vec![2, 2]),
        (
            "identifier 0.0.0.0",
            StateKind::OpenSent,
            message(1, &[4, 0xfc, 1, 0, 90, 0, 0, 0, 0, 0]),
            vec![2, 3],
        ),
        ("parameter 1, authentication", StateKind::OpenSent, long_open(&[1, 0]), vec![2, 4]),
        (
            "parameters beyond the message",
            StateKind::OpenSent,
            wrong(good_open(), 28, 200),
            vec![2, 0],
        ),
        (
            "parameters short of the message",
            StateKind::OpenSent,
            wrong(good_open(), 28, 2),
            vec![2, 0],
        ),
        ("a parameter beyond its list", StateKind::OpenSent, long_open(&[2, 9, 2, 0]), vec![2, 0]),
        ("half a parameter", StateKind::OpenSent, long_open(&[2]), vec![2, 0]),
        (
            "a capability beyond its parameter",
            StateKind::OpenSent,
            long_open(&parameter(&[65, 9])),
            vec![2, 0],
        ),
        ("half a capability", StateKind::OpenSent, long_open(&parameter(&[2])), vec![2, 0]),
        (
            "an AS number of 3 octets",
            StateKind::OpenSent,
            long_open(&parameter(&[65, 3, 0, 0, 1])),
            vec![2, 0],
        ),
        (
            "extended parameters of a wrong length",
            StateKind::OpenSent,
            long_open(&[255, 0, 9, 2, 0, 0]),
            vec![2, 0],
        ),
        ("hold time 1", StateKind::OpenSent, open(1, &[]), vec![2, 6]),
        ("hold time 2", StateKind::OpenSent, open(2, &[]), vec![2, 6]),
        ("hold time 0 unasked", StateKind::OpenSent, open(0, &[]), vec![2, 6]),
        (
            "IPv4 multicast alone",
            StateKind::OpenSent,
            long_open(&parameter(&[1, 4, 0, 1, 0, 2])),
            [&[2, 7][..], &MP_IPV4, &MP_IPV6].concat(),
        ),
        // RFC 4271 section 6.3 and RFC 7606
        (
            "withdrawn beyond the message",
            StateKind::Established,
            message(2, &[0, 1, 0, 0]),
            vec![3, 1],
        ),
        (
            "attributes beyond the message",
            StateKind::Established,
            message(2, &[0, 0, 0, 1]),
            vec![3, 1],
        ),
        (
            "a withdrawn /33",
            StateKind::Established,
            message(2, &[0, 6, 33, 10, 0, 0, 0, 0, 0, 0]),
            vec![3, 10],
        ),
        (
            "an announced /24 of 2 octets",
            StateKind::Established,
            message(2, &[0, 0, 0, 0, 24, 10, 0]),
            vec![3, 10],
        ),
        // RFC 6608
        ("KEEPALIVE for OPEN", StateKind::OpenSent, keepalive(), vec![5, 1, 4]),
        ("UPDATE for KEEPALIVE", StateKind::OpenConfirm, message(2, &[0, 0, 0, 0]), vec![5, 2, 2]),
        ("a second OPEN", StateKind::Established, good_open(), vec![5, 3, 1]),
        // RFC 7313 section 5
        (
            "BoRR of 24",
            StateKind::Established,
            message(5, &[0, 1, 1, 1, 0]),
            [&[7, 1][..], &message(5, &[0, 1, 1, 1, 0])].concat(),
        ),
    ];
    for (name, state, bytes, notification) in cases {
        let (mut session, now) = in_state(state);
        let actions = session.handle(Event::Received(&bytes), now);
        let expected = [
            Action::Send(message(3, &notification)),
            Action::Close,
            Action::StateChanged(StateKind::Idle),
        ];
        assert_eq!(actions, expected, "{name}");
        assert_eq!(session.stats().sent.notification, 1, "{name}");
        assert!(matches!(session.stats().last_reset, Some(ResetReason::Protocol(_))), "{name}");
        // The same, one octet at a time.
        let (mut session, now) = in_state(state);
        let actions: Vec<Action> = bytes
            .iter()
            .flat_map(|octet| session.handle(Event::Received(std::slice::from_ref(octet)), now))
            .collect();
        assert_eq!(actions, expected, "{name} in pieces");
    }
}

fn open_as(asn: u16) -> Vec<u8> {
    let [high, low] = asn.to_be_bytes();
    message(1, &[4, high, low, 0, 90, 192, 0, 2, 1, 0])
}

#[test]
fn an_ibgp_peer_must_not_have_our_identifier() {
    let config = SessionConfig { peer_asn: PeerAsn::External, ..config() };
    let own_id = [4, 0xfc, 0x00, 0, 90, 192, 0, 2, 2, 0];
    for (peer_asn, expected) in [
        (PeerAsn::Internal, "2/3 [], close, Idle"),
        (PeerAsn::External, "2/2 [], close, Idle"),
        (PeerAsn::Number(LOCAL_ASN), "2/3 [], close, Idle"),
    ] {
        let config = SessionConfig { peer_asn, ..config.clone() };
        let (mut session, now) = with_config(config, StateKind::OpenSent);
        let actions = session.handle(Event::Received(&message(1, &own_id)), now);
        assert_eq!(summary(&actions), expected, "{peer_asn:?}");
    }
    // On eBGP the identifiers need not differ (RFC 6286).
    let (mut session, now) = in_state(StateKind::OpenSent);
    let same = message(1, &[4, 0xfc, 0x01, 0, 90, 192, 0, 2, 2, 0]);
    assert_eq!(summary(&session.handle(Event::Received(&same), now)), "KEEPALIVE, OpenConfirm");
}

#[test]
fn the_open_on_the_wire() {
    let now = some_time();
    let mut session = Session::new(config(), 1);
    session.handle(Event::Start, now);
    let actions = session.handle(connected(), now);
    let expected = [
        &[0xff; 16][..],
        &[0, 53, 1],
        &[4, 0xfc, 0x00, 0, 90, 192, 0, 2, 2, 24],
        &[2, 22],
        &[1, 4, 0, 1, 0, 1],
        &[1, 4, 0, 2, 0, 1],
        &[2, 0],
        &[65, 4, 0, 0, 0xfc, 0x00],
        &[70, 0],
    ]
    .concat();
    assert_eq!(actions, [Action::Send(expected), Action::StateChanged(StateKind::OpenSent)]);

    let four_octets = SessionConfig { local_asn: 4_200_000_001, ..config() };
    let mut session = Session::new(four_octets, 1);
    session.handle(Event::Start, now);
    let actions = session.handle(connected(), now);
    let [Action::Send(open), _] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(open[20..22], [0x5b, 0xa0], "AS_TRANS");
    assert_eq!(open[45..51], [65, 4, 0xfa, 0x56, 0xea, 0x01], "the AS number itself");
}

/// Everything that an update can look like, with an old and a new peer, inside and outside the AS.
#[test]
fn updates_on_the_wire() {
    let mut wanted = routes(&["2001:db8:1::/64"]);
    wanted.insert(Route {
        prefix: "198.51.100.7/32".parse().unwrap(),
        local_pref: Some(300),
        communities: BTreeSet::from([0xfc00_0001, 0xffff_ff01]),
        large_communities: BTreeSet::from([(64512, 1, 2)]),
    });
    let next_hop_v6 = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let mp_reach = [
        &[0x80, 14, 30, 0, 2, 1, 16][..],
        &next_hop_v6,
        &[0, 64, 0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0],
    ]
    .concat();
    let communities = [0xc0, 8, 8, 0xfc, 0, 0, 1, 0xff, 0xff, 0xff, 0x01];
    let large = [0xc0, 32, 12, 0, 0, 0xfc, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    let nlri = [32, 198, 51, 100, 7];
    let origin = [0x40, 1, 1, 0];
    let next_hop = [0x40, 3, 4, 192, 0, 2, 2];
    let end_of_rib =
        [message(2, &[0; 4]), message(2, &[0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1])].concat();
    let update = |attributes: &[&[u8]], nlri: &[u8]| {
        let attributes = attributes.concat();
        let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
        message(2, &[&[0, 0][..], &length, &attributes, nlri].concat())
    };
    let as_64512 = [0x40, 2, 6, 2, 1, 0, 0, 0xfc, 0];
    let as_trans = [0x40, 2, 4, 2, 1, 0x5b, 0xa0];
    let as4_path = [0xc0, 17, 6, 2, 1, 0xfa, 0x56, 0xea, 0x01];
    let short_64512 = [0x40, 2, 4, 2, 1, 0xfc, 0];
    let pref = |value: u32| [&[0x40, 5, 4][..], &value.to_be_bytes()].concat();
    let empty_path = [0x40, 2, 0];

    let both = [&MP_IPV4[..], &MP_IPV6].concat();
    let new = |asn: u32| [&both[..], &[65, 4], &asn.to_be_bytes()].concat();
    let cases = [
        (
            "eBGP",
            64512,
            64513,
            new(64513),
            [
                update(&[&origin, &as_64512, &next_hop, &communities, &large], &nlri),
                update(&[&mp_reach, &origin, &as_64512], &[]),
            ]
            .concat(),
        ),
        (
            "eBGP, old peer",
            64512,
            64513,
            both.clone(),
            [
                update(&[&origin, &short_64512, &next_hop, &communities, &large], &nlri),
                update(&[&mp_reach, &origin, &short_64512], &[]),
            ]
            .concat(),
        ),
        (
            "eBGP, old peer, wide AS",
            4_200_000_001,
            64513,
            both.clone(),
            [
                update(&[&origin, &as_trans, &next_hop, &communities, &as4_path, &large], &nlri),
                update(&[&mp_reach, &origin, &as_trans, &as4_path], &[]),
            ]
            .concat(),
        ),
        (
            "iBGP",
            64513,
            64513,
            new(64513),
            [
                update(&[&mp_reach, &origin, &empty_path, &pref(100)], &[]),
                update(&[&origin, &empty_path, &next_hop, &pref(300), &communities, &large], &nlri),
            ]
            .concat(),
        ),
    ];
    for (name, local_asn, my_as, capabilities, expected) in cases {
        let config = SessionConfig { local_asn, ..config() };
        let (mut session, now) = with_config(config, StateKind::OpenSent);
        session.handle(Event::Advertise(wanted.clone()), now);
        let [high, low] = u16::to_be_bytes(my_as);
        let parameters = parameter(&capabilities);
        let length = u8::try_from(parameters.len()).unwrap();
        let open =
            message(1, &[&[4, high, low, 0, 90, 192, 0, 2, 1, length], &parameters[..]].concat());
        session.handle(Event::Received(&open), now);
        let actions = session.handle(Event::Received(&keepalive()), now);
        let mut expected = split(&expected);
        expected.extend(split(&end_of_rib));
        let [Action::Send(sent), Action::StateChanged(StateKind::Established)] = &actions[..]
        else {
            panic!("{actions:?}")
        };
        // Groups come in the order of their attributes.
        let mut sent = split(sent);
        assert_eq!(sent[2..], expected[2..], "{name}: End-of-RIB");
        sent.sort_unstable();
        expected.sort_unstable();
        assert_eq!(sent, expected, "{name}");
    }
}

#[test]
fn stop_withdraws_before_the_cease() {
    let (mut session, now) = in_state(StateKind::Established);
    session.handle(Event::Advertise(routes(&["198.51.100.1/32", "2001:db8::1/128"])), now);
    let text = Some("node drained".to_owned());
    let reason = StopReason::AdministrativeShutdown { text };
    let actions = session.handle(Event::Stop { reason }, now);
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
    assert_eq!(summary(&session.handle(Event::Start, now)), "connect, Connect");
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
        let actions = session.handle(Event::Stop { reason: reason.clone() }, now);
        assert_eq!(actions[0], Action::Send(message(3, &expected)), "{reason:?}");
    }
}

#[test]
fn a_received_reason_is_shown_and_safe_to_show() {
    let cases: [(&[u8], &str); 8] = [
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
    ];
    for (body, expected) in cases {
        let (mut session, now) = in_state(StateKind::Established);
        session.handle(Event::Received(&message(3, body)), now);
        let reason = session.stats().last_reset.unwrap().to_string();
        assert_eq!(reason, format!("the peer ended the session: {expected}"));
    }
}

#[test]
fn both_encodings_of_optional_parameters_are_read() {
    let capabilities = [&MP_IPV4[..], &MP_IPV6, &[65, 4, 0, 0, 0xfc, 0x01]].concat();
    let one = parameter(&capabilities);
    let many =
        [parameter(&MP_IPV4), parameter(&MP_IPV6), parameter(&[65, 4, 0, 0, 0xfc, 0x01])].concat();
    let extended = [&[255, 0, 21, 2, 0, 18][..], &capabilities].concat();
    // More than the one-octet form can hold: 280 octets of a capability that nobody knows.
    let unknown = [&[200, 138][..], &[0; 138], &[201, 138], &[0; 138]].concat();
    let value = [&capabilities[..], &unknown].concat();
    let value_length = u16::try_from(value.len()).unwrap();
    let parameters = [&[2][..], &value_length.to_be_bytes(), &value].concat();
    let total = u16::try_from(parameters.len()).unwrap();
    let long = [&[255][..], &total.to_be_bytes(), &parameters].concat();
    for (name, parameters) in [("one", one), ("many", many), ("extended", extended), ("long", long)]
    {
        let (mut session, now) = in_state(StateKind::OpenSent);
        session.handle(Event::Received(&open(90, &parameters)), now);
        let negotiated = session.negotiated().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(negotiated.families, BTreeSet::from(Family::ALL), "{name}");
        assert!(negotiated.four_octet_as && !negotiated.route_refresh, "{name}");
        assert_eq!(negotiated.peer_router_id, PEER_ID);
    }
}

#[test]
fn a_peer_without_multiprotocol_gets_ipv4_alone() {
    let (mut session, now) = in_state(StateKind::OpenSent);
    session.handle(Event::Advertise(routes(&["198.51.100.1/32", "2001:db8::1/128"])), now);
    session.handle(Event::Received(&open(90, &[])), now);
    let actions = session.handle(Event::Received(&keepalive()), now);
    assert_eq!(summary(&actions), "UPDATE+UPDATE, Established", "one route, one End-of-RIB");
    let held_back = session.held_back();
    assert_eq!(
        held_back,
        BTreeMap::from([("2001:db8::1/128".parse().unwrap(), HeldBack::FamilyNotNegotiated)])
    );
}

#[test]
fn routes_that_cannot_be_announced_are_held_back_with_a_reason() {
    let mut wanted = routes(&["198.51.100.1/32", "2001:db8::1/128"]);
    wanted.insert(Route {
        prefix: "198.51.100.2/32".parse().unwrap(),
        local_pref: None,
        communities: (0..1000).collect(),
        large_communities: BTreeSet::new(),
    });
    let now = some_time();
    let mut session = Session::new(config(), 1);
    session.handle(Event::Start, now);
    session.handle(
        Event::Connected { local_v4: Some(Ipv4Addr::new(192, 0, 2, 2)), local_v6: None },
        now,
    );
    session.handle(Event::Advertise(wanted), now);
    assert_eq!(session.held_back(), BTreeMap::new(), "nobody can say yet");
    session.handle(Event::Received(&good_open()), now);
    session.handle(Event::Received(&keepalive()), now);
    assert_eq!(
        session.held_back(),
        BTreeMap::from([
            ("198.51.100.2/32".parse().unwrap(), HeldBack::AttributesTooLong),
            ("2001:db8::1/128".parse().unwrap(), HeldBack::NoNextHop),
        ])
    );
    assert_eq!(session.stats().advertised_prefixes, 1);
}

#[test]
fn end_of_rib_waits_for_the_first_routes() {
    let (mut session, now) = in_state(StateKind::Established);
    assert_eq!(session.stats().sent.update, 0, "nobody said yet what is wanted");
    let actions = session.handle(Event::Advertise(BTreeSet::new()), now);
    let expected = [message(2, &[0; 4]), message(2, &[0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1])].concat();
    assert_eq!(actions, [Action::Send(expected)]);
    assert_eq!(session.handle(Event::Advertise(BTreeSet::new()), now + SECOND), []);
}

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn changes_in_one_window_are_sent_together() {
    let (mut session, now) = in_state(StateKind::Established);
    session.handle(Event::Advertise(BTreeSet::new()), now);
    // Idle for long: at once.
    let now = now + SECOND;
    let actions = session.handle(Event::Advertise(routes(&["198.51.100.1/32"])), now);
    assert_eq!(summary(&actions), "UPDATE");
    // Within 10 ms of that: together.
    let later = now + MILLISECOND;
    assert_eq!(session.handle(Event::Advertise(routes(&[])), later), []);
    let back = routes(&["198.51.100.1/32", "198.51.100.2/32"]);
    assert_eq!(session.handle(Event::Advertise(back), later + MILLISECOND), []);
    assert_eq!(session.poll_timeout(), Some(now + 10 * MILLISECOND));
    let actions = session.handle_timeout(now + 10 * MILLISECOND);
    let [Action::Send(bytes)] = &actions[..] else { panic!("{actions:?}") };
    assert!(bytes.ends_with(&[32, 198, 51, 100, 2]), "the first never went away");
    assert_eq!(summary(&actions), "UPDATE");
}

#[test]
fn withdraws_precede_announcements() {
    let (mut session, now) = in_state(StateKind::Established);
    session.handle(Event::Advertise(routes(&["198.51.100.1/32"])), now);
    let actions = session.handle(Event::Advertise(routes(&["198.51.100.0/32"])), now + SECOND);
    let [Action::Send(bytes)] = &actions[..] else { panic!("{actions:?}") };
    let messages = split(bytes);
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0], message(2, &[0, 5, 32, 198, 51, 100, 1, 0, 0]));
    assert!(messages[1].ends_with(&[32, 198, 51, 100, 0]));
}

#[test]
fn a_refresh_repeats_the_family_between_markers() {
    let (mut session, now) = in_state(StateKind::Established);
    let wanted = routes(&["198.51.100.1/32", "2001:db8::1/128"]);
    session.handle(Event::Advertise(wanted), now);
    let now = now + SECOND;
    let request = |afi| message(5, &[0, afi, 0, 1]);
    let actions = session.handle(Event::Received(&request(1)), now);
    let [Action::Send(bytes)] = &actions[..] else { panic!("{actions:?}") };
    let messages = split(bytes);
    assert_eq!(messages.len(), 3);
    assert_eq!(messages[0], message(5, &[0, 1, 1, 1]), "BoRR");
    assert!(messages[1].ends_with(&[32, 198, 51, 100, 1]));
    assert_eq!(messages[2], message(5, &[0, 1, 2, 1]), "EoRR");
    // A flood of them is answered once a window.
    let flood: Vec<u8> = (0..1000).flat_map(|_| request(2)).collect();
    assert_eq!(session.handle(Event::Received(&flood), now + MILLISECOND), []);
    let actions = session.handle_timeout(now + 10 * MILLISECOND);
    assert_eq!(summary(&actions), "REFRESH+UPDATE+REFRESH");
    // Families and subtypes that nobody knows, and the peer's own markers.
    for body in [[0, 25, 0, 70], [0, 1, 0, 2], [0, 1, 9, 1], [0, 1, 1, 1], [0, 1, 2, 1]] {
        assert_eq!(session.handle(Event::Received(&message(5, &body)), now + SECOND), []);
    }
}

#[test]
fn malformed_attributes_are_counted_and_survived() {
    let (mut session, now) = in_state(StateKind::Established);
    // An attribute of 9 octets where 1 is; NLRI that is sound.
    let body = [0, 0, 0, 4, 0x40, 1, 9, 0, 24, 10, 0, 0];
    assert_eq!(session.handle(Event::Received(&message(2, &body)), now), []);
    // ORIGIN 7: known to nobody, but its length is good.
    let body = [0, 0, 0, 4, 0x40, 1, 1, 7, 24, 10, 0, 0];
    assert_eq!(session.handle(Event::Received(&message(2, &body)), now), []);
    assert_eq!(session.stats().malformed_updates, 1);
    assert_eq!(session.stats().received.update, 2);
}

#[test]
fn refused_connections_are_retried_by_the_table() {
    let expected = [200, 500, 1000, 2000, 4000, 5000, 5000, 5000];
    assert_waits(config(), &expected, |session, now| session.handle(Event::ConnectFailed, now));
    let slow = SessionConfig { connect_time: Some(60 * SECOND), ..config() };
    let expected = [200, 500, 1000, 2000, 4000, 60_000, 60_000];
    assert_waits(slow, &expected, |session, now| session.handle(Event::ConnectFailed, now));
    let quick = SessionConfig { connect_time: Some(SECOND), ..config() };
    let expected = [200, 500, 1000, 1000, 1000, 1000];
    assert_waits(quick, &expected, |session, now| session.handle(Event::ConnectFailed, now));
    // A router that accepts and closes is not ready either.
    let expected = [200, 500, 1000, 2000, 4000, 5000];
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

#[test]
fn a_peer_that_declines_gets_a_plainer_open() {
    let now = some_time();
    let (mut session, _) = in_state(StateKind::Connect);
    let mut offers = Vec::new();
    let mut at = now;
    for refusal in [[2, 7], [2, 4], [2, 4], [6, 5]] {
        let actions = session.handle(connected(), at);
        let [Action::Send(open), _] = &actions[..] else { panic!("{actions:?}") };
        offers.push(open[28]);
        session.handle(Event::Received(&message(3, &refusal)), at);
        at = session.poll_timeout().unwrap();
        session.handle_timeout(at);
    }
    assert_eq!(offers, [24, 20, 0, 0], "all, without route refresh, without capabilities");
}

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
            session.handle(Event::Received(&keepalive()), now);
            now = session.poll_timeout().unwrap();
            assert_eq!(summary(&session.handle_timeout(now)), "KEEPALIVE");
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
    session.handle(Event::Received(&open(0, &[])), now);
    assert_eq!(session.poll_timeout(), Some(now + DEFAULT_OPEN_TIME), "it must come up, though");
    session.handle(Event::Received(&keepalive()), now);
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
        assert!(session.handle_timeout(now).len() <= 1, "alive at {seconds} s");
        session.handle(Event::Received(&bytes), now);
    }
    assert_eq!(session.state(), StateKind::Established);
    session.handle_timeout(now + 209 * SECOND);
    assert_eq!(session.state(), StateKind::Established);
    session.handle_timeout(now + 210 * SECOND);
    assert_eq!(session.state(), StateKind::Idle);
    let reason = session.stats().last_reset.unwrap();
    assert_eq!(reason.to_string(), "the peer was silent for too long in state Established");
}

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
    Refuse,
    Close,
    Bytes(Vec<u8>),
    Advertise(u8),
    Wait(u64),
}

fn a_move() -> impl Strategy<Value = Move> {
    let sound = prop::sample::select(vec![
        good_open(),
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
        1 => Just(Move::Refuse),
        1 => Just(Move::Close),
        8 => sound.prop_map(Move::Bytes),
        2 => damaged.prop_map(Move::Bytes),
        2 => framed.prop_map(Move::Bytes),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Move::Bytes),
        3 => any::<u8>().prop_map(Move::Advertise),
        4 => prop_oneof![0..20u64, 0..10_000u64, 0..400_000u64].prop_map(Move::Wait),
    ]
}

proptest! {
    /// Whatever happens in whatever order: no panic, no bytes without a connection, no second
    /// connection, and never a state that nothing leads out of.
    #[test]
    fn any_sequence_keeps_the_bargain(moves in prop::collection::vec(a_move(), 0..60), seed: u64) {
        let mut now = some_time();
        let mut session = Session::new(config(), seed);
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
                Move::Advertise(count) => {
                    let prefixes: Vec<String> =
                        (0..count % 8).map(|host| format!("10.0.0.{host}/32")).collect();
                    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
                    session.handle(Event::Advertise(routes(&prefixes)), now)
                }
                Move::Wait(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    session.handle_timeout(now)
                }
                Move::Answer | Move::Refuse | Move::Close | Move::Bytes(_) => Vec::new(),
            };
            wire.perform(&actions);
            prop_assert_eq!(session.state() == StateKind::Idle, wire == Wire::Down);
            prop_assert_eq!(session.state() == StateKind::Connect, wire == Wire::Dialling);
            prop_assert_eq!(session.poll_timeout().is_some(), started);
            let again = session.handle_timeout(now);
            wire.perform(&again);
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
