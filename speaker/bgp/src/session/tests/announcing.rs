//! What an Established session announces, and when.

use super::*;

/// Everything that an update can look like, with an old and a new peer, inside and outside the AS.
#[test]
fn updates_on_the_wire() {
    let attributes = Attributes {
        local_pref: Some(300),
        med: Some(5),
        as_path_prepend: 2,
        communities: BTreeSet::from([0xfc00_0001, 0xffff_ff01]),
        extended_communities: BTreeSet::from([0x4004_fc00_4b18_9680]),
        large_communities: BTreeSet::from([(64512, 1, 2)]),
    };
    let mut wanted = announced(&["2001:db8:1::/64"]);
    wanted.insert("198.51.100.7/32".parse().unwrap(), Some(Arc::new(attributes)));
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
    let path = |head: [u8; 2], asn: &[u8], count: usize| {
        let octets = u8::try_from(2 + asn.len() * count).unwrap();
        [&head[..], &[octets, 2, u8::try_from(count).unwrap()], &asn.repeat(count)].concat()
    };
    let as_64512 = |count| path([0x40, 2], &[0, 0, 0xfc, 0], count);
    let as_trans = |count| path([0x40, 2], &[0x5b, 0xa0], count);
    let as4_path = |count| path([0xc0, 17], &[0xfa, 0x56, 0xea, 0x01], count);
    let short_64512 = |count| path([0x40, 2], &[0xfc, 0], count);
    let med = [0x80, 4, 4, 0, 0, 0, 5];
    let extended = [0xc0, 16, 8, 0x40, 0x04, 0xfc, 0x00, 0x4b, 0x18, 0x96, 0x80];
    let tail = [&communities[..], &extended].concat();
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
                update(&[&origin, &as_64512(3), &next_hop, &med, &tail, &large], &nlri),
                update(&[&mp_reach, &origin, &as_64512(1)], &[]),
            ]
            .concat(),
        ),
        (
            "eBGP, old peer",
            64512,
            64513,
            both.clone(),
            [
                update(&[&origin, &short_64512(3), &next_hop, &med, &tail, &large], &nlri),
                update(&[&mp_reach, &origin, &short_64512(1)], &[]),
            ]
            .concat(),
        ),
        (
            "eBGP, old peer, wide AS",
            4_200_000_001,
            64513,
            both.clone(),
            [
                update(
                    &[&origin, &as_trans(3), &next_hop, &med, &tail, &as4_path(3), &large],
                    &nlri,
                ),
                update(&[&mp_reach, &origin, &as_trans(1), &as4_path(1)], &[]),
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
                update(&[&origin, &empty_path, &next_hop, &med, &pref(300), &tail, &large], &nlri),
            ]
            .concat(),
        ),
    ];
    for (name, local_asn, my_as, capabilities, expected) in cases {
        let config = SessionConfig { local_asn, ..config() };
        let (mut session, now) = with_config(config, StateKind::OpenSent);
        session.handle(Event::Routes(wanted.clone()), now);
        session.handle(Event::Complete, now);
        let [high, low] = u16::to_be_bytes(my_as);
        let parameters = parameter(&capabilities);
        let length = u8::try_from(parameters.len()).unwrap();
        let open =
            message(1, &[&[4, high, low, 0, 90, 192, 0, 2, 1, length], &parameters[..]].concat());
        drive(&mut session, Event::Received(&open), now);
        let actions = drive(&mut session, Event::Received(&keepalive()), now);
        let mut expected = split(&expected);
        expected.extend(split(&end_of_rib));
        let [Action::StateChanged(StateKind::Established), Action::Send(sent)] = &actions[..]
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

/// 255 AS numbers make a segment full.
#[test]
fn a_long_path_has_two_segments() {
    let (mut session, now) = in_state(StateKind::Established);
    let attributes = Attributes { as_path_prepend: 255, ..Attributes::default() };
    let changes = Changes::from([("198.51.100.7/32".parse().unwrap(), Some(Arc::new(attributes)))]);
    let actions = drive(&mut session, Event::Routes(changes), now);
    let [Action::Send(bytes)] = &actions[..] else { panic!("{actions:?}") };
    let own = [0, 0, 0xfc, 0];
    let path = [&[0x50, 2, 4, 4, 2, 255][..], &own.repeat(255), &[2, 1], &own].concat();
    assert_eq!(bytes[27..27 + path.len()], path);
}

#[test]
fn a_peer_without_multiprotocol_gets_ipv4_alone() {
    let (mut session, now) = in_state(StateKind::OpenSent);
    session.handle(Event::Routes(announced(&["198.51.100.1/32", "2001:db8::1/128"])), now);
    session.handle(Event::Complete, now);
    drive(&mut session, Event::Received(&open(90, &[])), now);
    let actions = drive(&mut session, Event::Received(&keepalive()), now);
    assert_eq!(summary(&actions), "Established, UPDATE+UPDATE", "one route, one End-of-RIB");
    let held_back = session.held_back();
    assert_eq!(
        held_back,
        BTreeMap::from([("2001:db8::1/128".parse().unwrap(), HeldBack::FamilyNotNegotiated)])
    );
}

#[test]
fn routes_that_cannot_be_announced_are_held_back_with_a_reason() {
    let mut wanted = announced(&["198.51.100.1/32", "198.51.100.2/32", "2001:db8::1/128"]);
    let many = Attributes { communities: (0..1000).collect(), ..Attributes::default() };
    let many = Arc::new(many);
    wanted.insert("198.51.100.2/32".parse().unwrap(), Some(Arc::clone(&many)));
    let now = some_time();
    let mut session = Session::new(config(), 1);
    session.handle(Event::Start, now);
    session.handle(Event::Connected(Local { v6: None, ..LOCAL }), now);
    session.handle(Event::Routes(wanted), now);
    assert_eq!(session.held_back(), BTreeMap::new(), "nobody can say yet");
    drive(&mut session, Event::Received(&good_open()), now);
    drive(&mut session, Event::Received(&keepalive()), now);
    assert_eq!(
        session.held_back(),
        BTreeMap::from([
            ("198.51.100.2/32".parse().unwrap(), HeldBack::AttributesTooLong),
            ("2001:db8::1/128".parse().unwrap(), HeldBack::NoNextHop),
        ])
    );
    assert_eq!(session.stats().advertised_prefixes, 1);
    // What was announced and cannot be any more is withdrawn.
    let grown = Changes::from([("198.51.100.1/32".parse().unwrap(), Some(many))]);
    let actions = drive(&mut session, Event::Routes(grown), now + SECOND);
    let [Action::Send(bytes)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(*bytes, message(2, &[0, 5, 32, 198, 51, 100, 1, 0, 0]));
    assert_eq!(session.held_back().len(), 3);
}

#[test]
fn end_of_rib_waits_until_all_is_known() {
    let (mut session, now) = in_state(StateKind::Established);
    assert_eq!(session.stats().sent.update, 0, "nobody said yet what is wanted");
    let actions = drive(&mut session, Event::Routes(announced(&["198.51.100.1/32"])), now);
    assert_eq!(summary(&actions), "UPDATE", "routes do not wait");
    let actions = drive(&mut session, Event::Complete, now + SECOND);
    let expected = [message(2, &[0; 4]), message(2, &[0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1])].concat();
    assert_eq!(actions, [Action::Send(expected)]);
    assert_eq!(drive(&mut session, Event::Complete, now + 2 * SECOND), []);
    assert_eq!(drive(&mut session, Event::Routes(Changes::new()), now + 2 * SECOND), []);
}

#[test]
fn changes_in_one_window_are_sent_together() {
    let (mut session, now) = in_state(StateKind::Established);
    // Idle for long: at once.
    let now = now + SECOND;
    let actions = drive(&mut session, Event::Routes(announced(&["198.51.100.1/32"])), now);
    assert_eq!(summary(&actions), "UPDATE");
    // Within 10 ms of that: together.
    let later = now + MILLISECOND;
    assert_eq!(drive(&mut session, Event::Routes(withdrawn(&["198.51.100.1/32"])), later), []);
    let back = Event::Routes(announced(&["198.51.100.1/32", "198.51.100.2/32"]));
    assert_eq!(drive(&mut session, back, later + MILLISECOND), []);
    assert_eq!(session.poll_timeout(), Some(now + 10 * MILLISECOND));
    let actions = drive_timeout(&mut session, now + 10 * MILLISECOND);
    let [Action::Send(bytes)] = &actions[..] else { panic!("{actions:?}") };
    assert!(bytes.ends_with(&[32, 198, 51, 100, 2]), "the first never went away");
    assert_eq!(summary(&actions), "UPDATE");
    // What came and went in one window was never there.
    let now = now + 11 * MILLISECOND;
    assert_eq!(drive(&mut session, Event::Routes(announced(&["198.51.100.3/32"])), now), []);
    assert_eq!(drive(&mut session, Event::Routes(withdrawn(&["198.51.100.3/32"])), now), []);
    assert_eq!(drive_timeout(&mut session, now + SECOND), []);
}

#[test]
fn withdraws_precede_announcements() {
    let (mut session, now) = in_state(StateKind::Established);
    drive(&mut session, Event::Routes(announced(&["198.51.100.1/32"])), now);
    let mut changes = announced(&["198.51.100.0/32"]);
    changes.extend(withdrawn(&["198.51.100.1/32"]));
    let actions = drive(&mut session, Event::Routes(changes), now + SECOND);
    let [Action::Send(bytes)] = &actions[..] else { panic!("{actions:?}") };
    let messages = split(bytes);
    assert_eq!(messages.len(), 2);
    assert_eq!(messages[0], message(2, &[0, 5, 32, 198, 51, 100, 1, 0, 0]));
    assert!(messages[1].ends_with(&[32, 198, 51, 100, 0]));
}

/// LOCAL_PREF is nobody's business outside the AS, prepending nobody's inside.
#[test]
fn a_change_that_the_peer_cannot_see_is_not_sent() {
    let with = |local_pref, as_path_prepend| {
        let attributes = Attributes { local_pref, as_path_prepend, ..Attributes::default() };
        let route = ("198.51.100.1/32".parse().unwrap(), Some(Arc::new(attributes)));
        Event::Routes(Changes::from([route]))
    };
    let (mut session, now) = in_state(StateKind::Established);
    assert_eq!(summary(&drive(&mut session, with(None, 0), now)), "UPDATE");
    assert_eq!(drive(&mut session, with(Some(200), 0), now + SECOND), []);
    assert_eq!(summary(&drive(&mut session, with(None, 1), now + SECOND)), "UPDATE");

    let internal = SessionConfig { local_asn: PEER_ASN, ..config() };
    let (mut session, now) = with_config(internal, StateKind::Established);
    assert_eq!(summary(&drive(&mut session, with(None, 0), now)), "UPDATE");
    assert_eq!(drive(&mut session, with(Some(100), 3), now + SECOND), [], "100 is the default");
    assert_eq!(summary(&drive(&mut session, with(Some(101), 3), now + SECOND)), "UPDATE");
}

#[test]
fn a_refresh_repeats_the_family_between_markers() {
    let (mut session, now) = in_state(StateKind::Established);
    let request = |afi| message(5, &[0, afi, 0, 1]);
    drive(&mut session, Event::Routes(announced(&["198.51.100.1/32", "2001:db8::1/128"])), now);
    let now = now + SECOND;
    // RFC 7313 section 4: not before the End-of-RIB.
    assert_eq!(drive(&mut session, Event::Received(&request(1)), now), []);
    let actions = drive(&mut session, Event::Complete, now);
    let [Action::Send(bytes)] = &actions[..] else { panic!("{actions:?}") };
    let messages = split(bytes);
    assert_eq!(messages[0], message(2, &[0; 4]), "End-of-RIB");
    assert_eq!(messages[1][18..], [2, 0, 0, 0, 6, 0x80, 15, 3, 0, 2, 1]);
    assert_eq!(messages[2], message(5, &[0, 1, 1, 1]), "BoRR");
    assert!(messages[3].ends_with(&[32, 198, 51, 100, 1]));
    assert_eq!(messages[4], message(5, &[0, 1, 2, 1]), "EoRR");
    assert_eq!(messages.len(), 5);
    // A flood of them is answered once a window.
    let flood: Vec<u8> = (0..1000).flat_map(|_| request(2)).collect();
    assert_eq!(drive(&mut session, Event::Received(&flood), now + MILLISECOND), []);
    let actions = drive_timeout(&mut session, now + 10 * MILLISECOND);
    assert_eq!(summary(&actions), "REFRESH+UPDATE+REFRESH");
    // Families and subtypes that nobody knows, and the peer's own markers.
    for body in [[0, 25, 0, 70], [0, 1, 0, 2], [0, 1, 9, 1], [0, 1, 1, 1], [0, 1, 2, 1]] {
        let actions = drive(&mut session, Event::Received(&message(5, &body)), now + SECOND);
        assert_eq!(actions, []);
    }
}

/// Between BoRR and EoRR the peer forgets what it does not hear again, so what changed and changed
/// back must be heard too.
#[test]
fn a_change_within_a_refresh_is_in_it() {
    let (mut session, now) = in_state(StateKind::Established);
    session.handle(Event::Routes(announced(&["198.51.100.1/32", "198.51.100.2/32"])), now);
    drive(&mut session, Event::Complete, now);
    let now = now + SECOND;
    session.handle(Event::Received(&message(5, &[0, 1, 0, 1])), now);
    // Room for the marker alone.
    assert_eq!(session.transmit(now, 24), message(5, &[0, 1, 1, 1]), "BoRR");
    let other = Arc::new(Attributes { med: Some(1), ..Attributes::default() });
    let change = Changes::from([("198.51.100.1/32".parse().unwrap(), Some(other))]);
    session.handle(Event::Routes(change), now);
    session.handle(Event::Routes(announced(&["198.51.100.1/32"])), now);
    session.handle(Event::Routes(withdrawn(&["198.51.100.2/32"])), now);
    session.handle(Event::Received(&message(5, &[0, 1, 0, 1])), now);
    let rest = session.transmit(now, usize::MAX);
    let messages = split(&rest);
    assert_eq!(messages[0], message(2, &[0, 5, 32, 198, 51, 100, 2, 0, 0]));
    assert!(messages[1].ends_with(&[32, 198, 51, 100, 1]));
    assert_eq!(messages[2], message(5, &[0, 1, 2, 1]), "EoRR");
    assert_eq!(messages[3], message(5, &[0, 1, 1, 1]), "it was asked for once more meanwhile");
    assert_eq!(messages.len(), 6);
    assert!(!session.has_updates());
}

#[test]
fn announcements_keep_the_configured_distance_and_withdrawals_do_not() {
    let interval = 30 * SECOND;
    let config = SessionConfig { min_advertisement_interval: interval, ..config() };
    let (mut session, now) = with_config(config.clone(), StateKind::Established);
    let first = announced(&["198.51.100.1/32", "198.51.100.2/32"]);
    assert_eq!(summary(&drive(&mut session, Event::Routes(first), now)), "UPDATE");
    let now = now + SECOND;
    assert_eq!(drive(&mut session, Event::Routes(announced(&["198.51.100.3/32"])), now), []);
    assert!(!session.has_updates());
    let gone = Event::Routes(withdrawn(&["198.51.100.1/32"]));
    let actions = drive(&mut session, gone, now + 20 * MILLISECOND);
    assert_eq!(actions, [Action::Send(message(2, &[0, 5, 32, 198, 51, 100, 1, 0, 0]))]);
    let mut due = session.poll_timeout().unwrap();
    while !session.has_updates() {
        due = session.poll_timeout().unwrap();
        session.handle_timeout(due);
    }
    let waited = due - (now - SECOND);
    assert!(waited <= interval && waited >= interval.mul_f64(0.749), "{waited:?}");
    assert!(session.transmit(due, usize::MAX).ends_with(&[32, 198, 51, 100, 3]));
    // The setting goes, and with it the wait.
    let now = due + 20 * MILLISECOND;
    assert_eq!(drive(&mut session, Event::Routes(announced(&["198.51.100.4/32"])), now), []);
    let none = SessionConfig { min_advertisement_interval: Duration::ZERO, ..config };
    session.update_timers(&none, now);
    assert!(session.transmit(now, usize::MAX).ends_with(&[32, 198, 51, 100, 4]));
}

/// A room is never exceeded, and only the smallest ones cut a message short.
#[test]
fn rooms_are_kept() {
    let (mut session, now) = in_state(StateKind::Established);
    let prefixes: Vec<String> = (0..=255).map(|host| format!("10.0.0.{host}/32")).collect();
    let prefixes: Vec<&str> = prefixes.iter().map(String::as_str).collect();
    session.handle(Event::Routes(announced(&prefixes)), now);
    // Header 23, attributes 20, one prefix 5.
    assert!(session.transmit(now, 47).is_empty());
    assert!(session.has_updates());
    assert_eq!(session.transmit(now, 48).len(), 48);
    assert_eq!(session.transmit(now, 57).len(), 53);
    let rest = session.transmit(now, 64 * 1024);
    assert_eq!(rest.len(), 43 + 253 * 5);
    assert!(!session.has_updates());
    assert_eq!(session.stats().sent.update, 3);
    assert_eq!(session.stats().advertised_prefixes, 256);
}

/// RFC 8950 and RFC 2545: what an unnumbered session sends, octet by octet.
#[test]
fn ipv4_over_ipv6_next_hops() {
    let link_local: Ipv6Addr = "fe80::2".parse().unwrap();
    let config = SessionConfig { extended_next_hop: true, ..config() };
    let capabilities =
        [&MP_IPV4[..], &MP_IPV6, &[5, 6, 0, 1, 0, 1, 0, 2], &[65, 4, 0, 0, 0xfc, 1]].concat();
    let cases: [(Local, &[Ipv6Addr]); 3] = [
        (Local { v4: None, v6: None, link_local: Some(link_local) }, &[link_local, link_local]),
        (Local { v4: None, v6: LOCAL.v6, link_local: None }, &[LOCAL.v6.unwrap()]),
        (
            Local { v4: None, v6: LOCAL.v6, link_local: Some(link_local) },
            &[LOCAL.v6.unwrap(), link_local],
        ),
    ];
    for (local, next_hops) in cases {
        let now = some_time();
        let mut session = Session::new(config.clone(), 1);
        session.handle(Event::Start, now);
        session.handle(Event::Connected(local), now);
        session.handle(Event::Received(&open(90, &parameter(&capabilities))), now);
        session.handle(Event::Received(&keepalive()), now);
        session.handle(Event::Routes(announced(&["198.51.100.1/32"])), now);
        let octets: Vec<u8> = next_hops.iter().flat_map(Ipv6Addr::octets).collect();
        let length = u8::try_from(octets.len()).unwrap();
        let reach =
            [&[0x80, 14, length + 10, 0, 1, 1, length][..], &octets, &[0, 32, 198, 51, 100, 1]]
                .concat();
        let attributes = [&reach[..], &[0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfc, 0]].concat();
        let total = u8::try_from(attributes.len()).unwrap();
        let expected = message(2, &[&[0, 0, 0, total][..], &attributes].concat());
        assert_eq!(session.transmit(now, usize::MAX), expected);
        // It goes as it came.
        let now = now + SECOND;
        session.handle(Event::Routes(withdrawn(&["198.51.100.1/32"])), now);
        let unreach = [0x80, 15, 8, 0, 1, 1, 32, 198, 51, 100, 1];
        let expected = message(2, &[&[0, 0, 0, 11][..], &unreach].concat());
        assert_eq!(session.transmit(now, usize::MAX), expected);
    }
    // A peer that does not know it gets none.
    let now = some_time();
    let mut session = Session::new(config, 1);
    session.handle(Event::Start, now);
    session.handle(Event::Connected(Local { v4: None, ..LOCAL }), now);
    session.handle(Event::Received(&good_open()), now);
    session.handle(Event::Received(&keepalive()), now);
    session.handle(Event::Routes(announced(&["198.51.100.1/32"])), now);
    assert!(session.transmit(now, usize::MAX).is_empty());
    let held_back = session.held_back();
    assert_eq!(held_back.into_values().collect::<Vec<_>>(), [HeldBack::NoNextHop]);
}
