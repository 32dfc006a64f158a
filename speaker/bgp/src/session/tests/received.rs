//! What a peer can send, and the NOTIFICATION that it gets for it.

use super::*;

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
        (
            "MP_UNREACH_NLRI twice",
            StateKind::Established,
            message(2, &[0, 0, 0, 12, 0x80, 15, 3, 0, 2, 1, 0x80, 15, 3, 0, 2, 1]),
            vec![3, 1],
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
        let actions = drive(&mut session, Event::Received(&bytes), now);
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
            .flat_map(|octet| {
                drive(&mut session, Event::Received(std::slice::from_ref(octet)), now)
            })
            .collect();
        assert_eq!(actions, expected, "{name} in pieces");
    }
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
        let actions = drive(&mut session, Event::Received(&message(1, &own_id)), now);
        assert_eq!(summary(&actions), expected, "{peer_asn:?}");
    }
    // On eBGP the identifiers need not differ (RFC 6286).
    let (mut session, now) = in_state(StateKind::OpenSent);
    let same = message(1, &[4, 0xfc, 0x01, 0, 90, 192, 0, 2, 2, 0]);
    assert_eq!(
        summary(&drive(&mut session, Event::Received(&same), now)),
        "KEEPALIVE, OpenConfirm"
    );
}

/// An UPDATE with these attributes, and 10.0.0.0/16 where it has NLRI.
fn update(attributes: &[&[u8]], nlri: bool) -> Vec<u8> {
    let attributes = attributes.concat();
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    let nlri: &[u8] = if nlri { &[16, 10, 0] } else { &[] };
    message(2, &[&[0, 0], &length[..], &attributes, nlri].concat())
}

/// RFC 7606 section 7, one defect each: the session stays, the routes count as withdrawn or the
/// attribute as absent.
#[test]
fn malformed_attributes_are_counted_and_survived() {
    const ORIGIN: &[u8] = &[0x40, 1, 1, 0];
    const PATH: &[u8] = &[0x40, 2, 6, 2, 1, 0, 0, 0xfc, 1];
    const NEXT_HOP: &[u8] = &[0x40, 3, 4, 192, 0, 2, 1];
    let good = [ORIGIN, PATH, NEXT_HOP];
    let v6_next_hop = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let reach = |rest: &[u8]| {
        let length = u8::try_from(4 + 16 + rest.len()).unwrap();
        [&[0x80, 14, length, 0, 2, 1, 16], &v6_next_hop[..], rest].concat()
    };
    let reached = reach(&[0, 32, 0x20, 0x01, 0x0d, 0xb8, 0]);
    let one = |attribute: &[u8]| update(&[&good.concat(), attribute], true);
    // Announced, withdrawn; malformed, discarded.
    let sound = (1, 0, 0, 0);
    let withdraw = (0, 1, 1, 0);
    let discard = (1, 0, 0, 1);
    let cases = [
        ("sound", update(&good, true), sound),
        ("End-of-RIB", message(2, &[0; 4]), (0, 0, 0, 0)),
        ("two withdrawn", message(2, &[0, 6, 16, 10, 1, 16, 10, 2, 0, 0]), (0, 2, 0, 0)),
        ("ORIGIN 3", update(&[&[0x40, 1, 1, 3], PATH, NEXT_HOP], true), withdraw),
        ("ORIGIN of 2", update(&[&[0x40, 1, 2, 0, 0], PATH, NEXT_HOP], true), withdraw),
        ("ORIGIN as optional", update(&[&[0xc0, 1, 1, 0], PATH, NEXT_HOP], true), withdraw),
        ("no ORIGIN", update(&[PATH, NEXT_HOP], true), withdraw),
        ("no AS_PATH", update(&[ORIGIN, NEXT_HOP], true), withdraw),
        ("no NEXT_HOP", update(&[ORIGIN, PATH], true), withdraw),
        ("an empty path", update(&[ORIGIN, &[0x40, 2, 0], NEXT_HOP], true), sound),
        (
            "a segment of type 5",
            update(&[ORIGIN, &[0x40, 2, 6, 5, 1, 0, 0, 0, 1], NEXT_HOP], true),
            withdraw,
        ),
        ("an empty segment", update(&[ORIGIN, &[0x40, 2, 2, 2, 0], NEXT_HOP], true), withdraw),
        (
            "a segment beyond its path",
            update(&[ORIGIN, &[0x40, 2, 6, 2, 2, 0, 0, 0, 1], NEXT_HOP], true),
            withdraw,
        ),
        (
            "half a segment",
            update(&[ORIGIN, &[0x40, 2, 7, 2, 1, 0, 0, 0, 1, 2], NEXT_HOP], true),
            withdraw,
        ),
        ("NEXT_HOP of 5", update(&[ORIGIN, PATH, &[0x40, 3, 5, 192, 0, 2, 1, 0]], true), withdraw),
        ("MED of 3", one(&[0x80, 4, 3, 0, 0, 0]), withdraw),
        ("LOCAL_PREF, from outside", one(&[0x40, 5, 4, 0, 0, 0, 1]), discard),
        ("ATOMIC_AGGREGATE of 1", one(&[0x40, 6, 1, 0]), discard),
        ("AGGREGATOR of 6", one(&[0xc0, 7, 6, 0, 1, 1, 1, 1, 1]), discard),
        ("AGGREGATOR of 8", one(&[0xc0, 7, 8, 0, 0, 0, 1, 1, 1, 1, 1]), sound),
        ("communities of 3", one(&[0xc0, 8, 3, 0, 0, 0]), withdraw),
        ("no community", one(&[0xc0, 8, 0]), withdraw),
        ("ORIGINATOR_ID, from outside", one(&[0x80, 9, 4, 1, 1, 1, 1]), discard),
        ("CLUSTER_LIST, from outside", one(&[0x80, 10, 4, 1, 1, 1, 1]), discard),
        ("extended communities of 7", one(&[0xc0, 16, 7, 0, 0, 0, 0, 0, 0, 0]), withdraw),
        ("AS4_PATH that is none", one(&[0xc0, 17, 2, 2, 1]), discard),
        ("AS4_AGGREGATOR of 7", one(&[0xc0, 18, 7, 0, 0, 0, 1, 1, 1, 1]), discard),
        (
            "large communities of 11",
            one(&[0xc0, 32, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            withdraw,
        ),
        ("communities twice", one(&[0xc0, 8, 4, 0, 0, 0, 1, 0xc0, 8, 4, 0, 0, 0, 1]), discard),
        ("an unknown optional attribute", one(&[0xc0, 99, 1, 0]), sound),
        ("an unknown well-known attribute", one(&[0x40, 99, 1, 0]), withdraw),
        ("an attribute beyond the list", one(&[0x40, 1, 9, 0]), withdraw),
        ("half an attribute", one(&[0x40]), withdraw),
        ("a long header", one(&[0xd0, 8, 0, 4, 0, 0, 0, 1]), sound),
        ("IPv6", update(&[&reached, ORIGIN, PATH], false), (2, 0, 0, 0)),
        ("IPv6, no AS_PATH", update(&[&reached, ORIGIN], false), (0, 2, 1, 0)),
        ("IPv6 of 129 bits", update(&[&reach(&[0, 129]), ORIGIN, PATH], false), (0, 0, 1, 0)),
        (
            "a next hop of 4",
            update(&[&[0x80, 14, 9, 0, 2, 1, 4, 1, 2, 3, 4, 0], ORIGIN, PATH], false),
            (0, 0, 1, 0),
        ),
        (
            "a next hop beyond the attribute",
            update(&[&[0x80, 14, 4, 0, 2, 1, 16], ORIGIN, PATH], false),
            (0, 0, 1, 0),
        ),
        ("MP_UNREACH of 2", update(&[&[0x80, 15, 2, 0, 2]], false), (0, 0, 1, 0)),
        ("IPv6 withdrawn", update(&[&[0x80, 15, 4, 0, 2, 1, 0]], false), (0, 1, 0, 0)),
        (
            "a family that nobody knows",
            update(&[&[0x80, 15, 4, 0, 25, 70, 9]], false),
            (0, 0, 0, 0),
        ),
    ];
    for (name, bytes, expected) in cases {
        let (mut session, now) = in_state(StateKind::Established);
        assert_eq!(drive(&mut session, Event::Received(&bytes), now), [], "{name}");
        let stats = session.stats();
        let seen = (
            stats.received_prefixes,
            stats.received_withdrawals,
            stats.malformed_updates,
            stats.discarded_attributes,
        );
        assert_eq!(seen, expected, "{name}");
        assert_eq!(stats.received.update, 1, "{name}");
    }
}

/// AS numbers of two octets, and a peer of our own AS.
#[test]
fn attributes_are_read_as_the_peer_writes_them() {
    let (mut session, now) = in_state(StateKind::OpenSent);
    session.handle(Event::Received(&[open(90, &[]), keepalive()].concat()), now);
    let short = [0x40, 1, 1, 0, 0x40, 2, 4, 2, 1, 0xfc, 1, 0x40, 3, 4, 192, 0, 2, 1];
    session.handle(Event::Received(&update(&[&short], true)), now);
    assert_eq!(session.stats().received_prefixes, 1);

    let internal = SessionConfig { local_asn: PEER_ASN, ..config() };
    let (mut session, now) = with_config(internal, StateKind::Established);
    let inside = [&[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4, 192, 0, 2, 1][..]].concat();
    for (attribute, malformed) in [
        (&[0x40, 5, 4, 0, 0, 0, 100][..], 0),
        (&[0x40, 5, 3, 0, 0, 0], 1),
        (&[0x80, 9, 4, 1, 1, 1, 1], 1),
        (&[0x80, 10, 0], 2),
    ] {
        session.handle(Event::Received(&update(&[&inside, attribute], true)), now);
        assert_eq!(session.stats().malformed_updates, malformed, "{attribute:?}");
    }
    assert_eq!(session.stats().discarded_attributes, 0);
}

/// A full table costs nothing but the time to read it, and the counts are those of the session.
#[test]
fn leaked_routes_are_counted_and_dropped() {
    let (mut session, now) = in_state(StateKind::Established);
    let one = [0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfc, 1, 0x40, 3, 4, 192, 0, 2, 1];
    let length = u16::try_from(one.len()).unwrap().to_be_bytes();
    let nlri = [24, 10, 0, 0].repeat(1000);
    let full = message(2, &[&[0, 0], &length[..], &one, &nlri].concat());
    for _ in 0..100 {
        session.handle(Event::Received(&full), now);
    }
    assert_eq!(session.stats().received_prefixes, 100_000);
    assert_eq!(session.poll_timeout().map(|at| at > now), Some(true));
    session.handle(Event::Closed, now);
    let now = session.poll_timeout().unwrap();
    session.handle_timeout(now);
    session.handle(connected(), now);
    session.handle(Event::Received(&[good_open(), keepalive()].concat()), now);
    assert_eq!(session.stats().received_prefixes, 0);
    assert_eq!((session.stats().established, session.stats().flaps), (2, 1));
}
