//! What comes of a frame that somebody sends unasked.

use proptest::prelude::*;

use super::*;

#[test]
fn requests_probes_and_unicast_requests_are_answered_to_the_sender_alone() {
    let mut announcer = owner_of(&[v4()], epoch());
    for (destination, sender) in
        [(BROADCAST, "192.0.2.1"), (OWN, "192.0.2.1"), (BROADCAST, "0.0.0.0"), (OWN, "0.0.0.0")]
    {
        let request = Arp { destination, sender, ..Arp::default() }.frame();
        let answer = answers(&mut announcer, ETH0, &request);
        assert_eq!(answer.len(), 1);
        assert_eq!(answer[0][..12], [CLIENT, OWN].concat());
        assert_eq!(answer[0][20..22], [0, 2]);
        assert_eq!(answer[0][22..32], [0x02, 0, 0, 0, 0, 0x02, 192, 0, 2, 10]);
        assert_eq!(answer[0][32..38], CLIENT);
        assert_eq!(answer[0][38..42], request[28..32], "to {sender}");
    }
    let counters = announcer.counters().addresses[&v4()];
    assert_eq!((counters.requests_received, counters.responses_sent), (4, 4));
}

#[test]
fn padding_and_a_jumbo_frame_change_nothing() {
    for length in [60, 1514, 9014] {
        let mut announcer = owner_of(&[v4(), v6()], epoch());
        let mut request = Arp::default().frame();
        request.resize(length, 0xa5);
        assert_eq!(answers(&mut announcer, ETH0, &request).len(), 1);
        let packet = solicitation(client(), target(), target(), &[]);
        let mut solicitation = ipv6_frame(OWN, packet);
        solicitation.resize(length.max(100), 0xa5);
        assert_eq!(answers(&mut announcer, ETH0, &solicitation).len(), 1);
    }
}

#[test]
fn solicitations_are_answered_in_every_form() {
    let mut announcer = owner_of(&[v6()], epoch());
    let group = ndp::solicited_node(target());
    let multicast = [0x33, 0x33, 0xff, 0, 0, 0x10];
    let station = [1, 1, 0x02, 0, 0, 0, 0, 0x77];
    let all = [0x33, 0x33, 0, 0, 0, 1];
    let global: Ipv6Addr = "2001:db8::99".parse().unwrap();
    let none = Ipv6Addr::UNSPECIFIED;
    let named = [0x02, 0, 0, 0, 0, 0x77];
    let cases = [
        ("by multicast", multicast, client(), group, &station[..], named, client(), 0x60),
        ("from a global address", multicast, global, group, &station, named, global, 0x60),
        ("by unicast", OWN, client(), target(), &station, named, client(), 0x60),
        ("by unicast, no station", OWN, client(), target(), &[], CLIENT, client(), 0x60),
        ("by multicast, no station", multicast, client(), group, &[], CLIENT, client(), 0x60),
        ("duplicate address detection", multicast, none, group, &[], all, ndp::ALL_NODES, 0x20),
    ];
    for (name, to, source, destination, options, answer_to, answer_destination, flags) in cases {
        let packet = solicitation(source, destination, target(), options);
        let answer = answers(&mut announcer, ETH0, &ipv6_frame(to, packet));
        assert_eq!(answer.len(), 1, "{name}: {:?}", ignored(&announcer));
        assert_eq!(answer[0][..6], answer_to, "{name}");
        assert_eq!(answer[0][6..12], OWN, "{name}");
        assert_eq!(answer[0][21], 255, "{name}: the hop limit");
        assert_eq!(answer[0][22..38], link_local().octets(), "{name}");
        assert_eq!(answer[0][38..54], answer_destination.octets(), "{name}");
        assert_eq!(answer[0][58], flags, "{name}");
        assert_eq!(answer[0][62..78], target().octets(), "{name}");
        assert_eq!(answer[0][78..], [2, 1, 0x02, 0, 0, 0, 0, 0x02], "{name}");
    }
}

#[test]
fn an_interface_without_link_local_advertises_from_the_address_itself_until_it_has_one() {
    let mut announcer = owner_of(&[v6()], epoch());
    let mut interfaces = lan();
    let solicit = ipv6_frame(OWN, solicitation(client(), target(), target(), &[]));
    for (link_local, source) in [(None, target()), (Some(link_local()), link_local())] {
        interfaces[0].link_local = link_local;
        announcer.handle(Event::Interfaces(interfaces.clone()), epoch());
        let answer = answers(&mut announcer, ETH0, &solicit);
        assert_eq!(answer[0][22..38], source.octets());
    }
}

#[test]
fn what_comes_to_nothing_is_counted_by_reason() {
    let request = Arp::default().frame();
    let with = |arp: Arp| arp.frame();
    let mut vlan = request.clone();
    vlan.splice(12..12, [0x81, 0x00, 0x00, 0x64]);
    let mut priority = request.clone();
    priority.splice(12..12, [0x81, 0x00, 0x60, 0x00]);
    let group = [0x03, 0, 0, 0, 0, 0x99];
    let solicit = |options: &[u8]| {
        let packet = solicitation(client(), ndp::solicited_node(target()), target(), options);
        ipv6_frame([0x33, 0x33, 0xff, 0, 0, 0x10], packet)
    };
    let mut forwarded = solicit(&[]);
    forwarded[21] = 254;
    let mut spoofed = solicit(&[]);
    spoofed[6..12].copy_from_slice(&group);
    let other = "192.0.2.11".to_string();
    let reply =
        Arp { operation: 2, destination: OWN, target: "192.0.2.2".into(), ..Arp::default() };
    let cases = [
        ("other address", ETH0, with(Arp { target: other, ..Arp::default() }), Ignored::NotOwned),
        ("other interface", ETH1, request.clone(), Ignored::NotHere),
        ("no interface", InterfaceIndex(9), request.clone(), Ignored::UnknownInterface),
        ("cut", ETH0, request[..41].to_vec(), Ignored::Truncated),
        ("cut in the header", ETH0, request[..13].to_vec(), Ignored::Truncated),
        ("nothing", ETH0, Vec::new(), Ignored::Truncated),
        ("VLAN", ETH0, vlan, Ignored::OtherProtocol),
        ("priority tag", ETH0, priority, Ignored::OtherProtocol),
        (
            "to another",
            ETH0,
            with(Arp { destination: CLIENT, ..Arp::default() }),
            Ignored::OtherDestination,
        ),
        ("from here", ETH0, with(Arp { source: OWN, ..Arp::default() }), Ignored::OwnFrame),
        ("as if here", ETH0, with(Arp { sender_mac: OWN, ..Arp::default() }), Ignored::OwnFrame),
        (
            "as if from eth1",
            ETH0,
            with(Arp { sender_mac: [2, 0, 0, 0, 0, 3], ..Arp::default() }),
            Ignored::OwnFrame,
        ),
        ("from a group", ETH0, with(Arp { source: group, ..Arp::default() }), Ignored::NoStation),
        ("from all", ETH0, with(Arp { source: BROADCAST, ..Arp::default() }), Ignored::NoStation),
        ("from none", ETH0, with(Arp { source: [0; 6], ..Arp::default() }), Ignored::NoStation),
        (
            "answer to a group",
            ETH0,
            with(Arp { sender_mac: group, ..Arp::default() }),
            Ignored::MalformedArp,
        ),
        (
            "answer to all",
            ETH0,
            with(Arp { sender_mac: BROADCAST, ..Arp::default() }),
            Ignored::MalformedArp,
        ),
        ("a reply", ETH0, reply.frame(), Ignored::Unheeded),
        ("forwarded", ETH0, forwarded, Ignored::HopLimit),
        ("solicitation from a group", ETH0, spoofed, Ignored::NoStation),
        ("solicitation as if here", ETH0, solicit(&[1, 1, 2, 0, 0, 0, 0, 2]), Ignored::OwnFrame),
        (
            "solicitation for a group",
            ETH0,
            solicit(&[1, 1, 0x33, 0x33, 0, 0, 0, 1]),
            Ignored::MalformedSolicitation,
        ),
    ];
    for (name, interface, frame, reason) in cases {
        let mut announcer = owner_of(&[v4(), v6()], epoch());
        assert_eq!(receive(&mut announcer, interface, &frame), [], "{name}");
        assert_eq!(announcer.counters().ignored, [(reason, 1)].into(), "{name}");
    }
}

#[test]
fn nothing_is_answered_before_and_after_it_is_owned() {
    let request = Arp::default().frame();
    let mut announcer = candidate_of(&[v4()], epoch());
    assert!(answers(&mut announcer, ETH0, &request).is_empty());
    announcer.handle(Event::Own(vec![v4()]), epoch());
    assert_eq!(answers(&mut announcer, ETH0, &request).len(), 1);
    announcer.handle(nowhere(&[v4()]), epoch());
    assert_eq!(answers(&mut announcer, ETH0, &request).len(), 1, "it is being handed over");
    announcer.handle(Event::Disown(vec![v4()]), epoch());
    assert!(answers(&mut announcer, ETH0, &request).is_empty());
    assert!(announcer.counters().addresses.is_empty());
    assert!(announcer.addresses.is_empty());
}

#[test]
fn an_address_that_is_owned_before_it_is_a_candidate_is_answered_once_it_is() {
    let request = Arp::default().frame();
    let mut announcer = Announcer::new(AnnouncerSettings::default());
    announcer.handle(Event::Own(vec![v4()]), epoch());
    announcer.handle(Event::Interfaces(lan()), epoch());
    assert!(answers(&mut announcer, ETH0, &request).is_empty());
    assert_eq!(frames(announcer.handle(everywhere(&[v4()]), epoch())).len(), 2);
    assert_eq!(answers(&mut announcer, ETH0, &request).len(), 1);
}

#[test]
fn a_second_station_is_reported_while_the_address_is_owned() {
    let all = [0x33, 0x33, 0, 0, 0, 1];
    let claim = |options: &[u8]| {
        ipv6_frame(all, advertisement(client(), ndp::ALL_NODES, 0x20, target(), options))
    };
    let solicit = |source, target, options: &[u8]| {
        let group = ndp::solicited_node(target);
        ipv6_frame([0x33, 0x33, 0xff, 0, 0, 0x10], solicitation(source, group, target, options))
    };
    let vip = "192.0.2.10";
    let gratuitous_reply = Arp { operation: 2, sender: vip, ..Arp::default() };
    let other = || "192.0.2.1".to_string();
    let (has, probes) = (Heard::Has, Heard::Probes);
    let named = [0x02, 0, 0, 0, 0, 0x77];
    let none = Ipv6Addr::UNSPECIFIED;
    let cases = [
        (v4(), Arp { sender: vip, ..Arp::default() }.frame(), CLIENT, has),
        (v4(), gratuitous_reply.frame(), CLIENT, has),
        (v4(), Arp { sender: vip, target: other(), ..Arp::default() }.frame(), CLIENT, has),
        (v4(), Arp { sender: "0.0.0.0", ..Arp::default() }.frame(), CLIENT, probes),
        (v6(), claim(&[]), CLIENT, has),
        (v6(), claim(&[2, 1, 0x02, 0, 0, 0, 0, 0x77]), named, has),
        (v6(), solicit(target(), client(), &[1, 1, 0x02, 0, 0, 0, 0, 0x77]), named, has),
        (v6(), solicit(none, target(), &[]), CLIENT, probes),
        (v6(), solicit(client(), target(), &[14, 1, 1, 2, 3, 4, 5, 6]), CLIENT, probes),
    ];
    for (address, frame, mac, form) in cases {
        let mut announcer = owner_of(&[v4(), v6()], epoch());
        let heard = Action::Heard { address, interface: ETH0, mac, form };
        let actions = receive(&mut announcer, ETH0, &frame);
        assert!(actions.contains(&heard), "{actions:?} for {frame:02x?}");
        let answered = usize::from(form == probes);
        assert_eq!(actions.len(), 1 + answered, "a probe is answered, a claim is not");
        let counters = announcer.counters().addresses[&address];
        assert_eq!(counters.conflicts_heard, u64::from(form == has));

        let mut elsewhere = owner_of(&[v4(), v6()], epoch());
        assert_eq!(receive(&mut elsewhere, ETH1, &frame), [], "another segment");
        let mut candidate = candidate_of(&[v4(), v6()], epoch());
        assert_eq!(receive(&mut candidate, ETH0, &frame), [], "not owned");
    }
}

#[test]
fn its_own_frames_are_never_heard() {
    let start = epoch();
    let mut announcer = candidate_of(&[v4(), v6()], start);
    let mut sent = frames(announcer.handle(Event::Own(vec![v4(), v6()]), start));
    for address in [v4(), v6()] {
        let ask = Event::Ask { address, how: Asking::Fast };
        sent.extend(frames(announcer.handle(ask, start)));
    }
    assert_eq!(sent.len(), 7);
    for frame in sent {
        for interface in [ETH0, ETH1] {
            assert_eq!(receive(&mut announcer, interface, &frame), []);
        }
    }
    // Listener reports are not even read.
    let reasons = [(Ignored::OwnFrame, 10), (Ignored::NoNeighborDiscovery, 4)];
    assert_eq!(announcer.counters().ignored, reasons.into());
}

#[test]
fn a_second_station_that_shouts_is_reported_ten_times_a_second() {
    let start = epoch();
    let mut announcer = owner_of(&[v4()], start);
    let claim = Arp { sender: "192.0.2.10", ..Arp::default() }.frame();
    let heard: usize = (0..1000)
        .map(|n| {
            let event = Event::Frame { interface: ETH0, frame: &claim };
            announcer.handle(event, start + ms(n)).len()
        })
        .sum();
    assert_eq!(heard, 10);
    assert_eq!(announcer.counters().ignored[&Ignored::HeardTooOften], 990);
    assert_eq!(announcer.counters().addresses[&v4()].conflicts_heard, 1000);
}

#[test]
fn stations_that_claim_everything_are_reported_200_times_a_second() {
    let start = epoch();
    let (addresses, mut announcer) = owner_of_a_thousand(start);
    let mut claim_all = |now| {
        let claim = |address: &IpAddr| {
            let mut frame = Arp::default().frame();
            let IpAddr::V4(address) = address else { unreachable!() };
            frame[28..32].copy_from_slice(&address.octets());
            frame
        };
        let heard = addresses.iter().map(claim).map(|frame| {
            announcer.handle(Event::Frame { interface: ETH0, frame: &frame }, now).len()
        });
        heard.sum::<usize>()
    };
    assert_eq!(claim_all(start), 200);
    assert_eq!(claim_all(start + ms(500)), 100);
}

#[test]
fn one_that_floods_is_held_back_and_others_are_not() {
    let start = epoch();
    let mut announcer = owner_of(&[v4()], start);
    let mut ask = |sender_mac: [u8; 6], now: Instant| {
        let frame = Arp { sender_mac, source: sender_mac, ..Arp::default() }.frame();
        announcer.handle(Event::Frame { interface: ETH0, frame: &frame }, now).len()
    };
    let flood: usize = (0..1000).map(|_| ask(CLIENT, start)).sum();
    assert_eq!(flood, 100);
    assert_eq!(ask([0x02, 0, 0, 0, 0, 0x98], start), 1);
    let later: usize = (0..1000).map(|n| ask(CLIENT, start + ms(n))).sum();
    assert_eq!(later, 49);
    assert_eq!(announcer.counters().addresses[&v4()].responses_sent, 150);
}

#[test]
fn a_router_may_ask_for_everything_at_once() {
    let all: Vec<IpAddr> = (1..=250).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    let mut announcer = owner_of(&all, epoch());
    for address in &all {
        let target = address.to_string();
        let request = Arp { sender: "192.0.2.254", target, ..Arp::default() }.frame();
        let sent = answers(&mut announcer, ETH0, &request);
        assert_eq!(sent.len(), 1, "{address}");
    }
}

#[test]
fn a_speaker_that_probes_for_everything_again_and_again_is_answered() {
    let start = epoch();
    let (addresses, mut announcer) = owner_of_a_thousand(start);
    for round in 0..10 {
        for address in &addresses {
            let target = address.to_string();
            let probe = Arp { sender: "0.0.0.0", target, ..Arp::default() }.frame();
            for _ in 0..3 {
                let event = Event::Frame { interface: ETH0, frame: &probe };
                let sent = frames(announcer.handle(event, start + ms(200 * round)));
                assert_eq!(sent.len(), 1, "{address} in round {round}");
            }
        }
    }
    let flood = Arp { sender: "0.0.0.0", target: "10.0.0.1".into(), ..Arp::default() }.frame();
    let mut one = || {
        let event = Event::Frame { interface: ETH0, frame: &flood };
        frames(announcer.handle(event, start + ms(3000))).len()
    };
    let sent: usize = (0..1000).map(|_| one()).sum();
    assert_eq!(sent, 12, "but nobody who probes for one without end");
}

proptest! {
    #[test]
    fn noise_is_never_answered(
        mut frame in proptest::collection::vec(any::<u8>(), 0..120),
        kind in 0..3_u8,
    ) {
        if frame.len() > 60 && kind > 0 {
            frame[..6].fill(0xff);
            let head: &[u8] = match kind {
                1 => &[0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01],
                _ => &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 58, 255],
            };
            frame[12..22].copy_from_slice(head);
        }
        let mut announcer = owner_of(&[v4(), v6()], epoch());
        prop_assert_eq!(receive(&mut announcer, ETH0, &frame), []);
        prop_assert_eq!(announcer.counters().ignored.values().sum::<u64>(), 1);
    }

    #[test]
    fn a_solicitation_with_any_options_is_answered_only_if_owned(
        options in proptest::collection::vec(any::<u8>(), 0..80),
        owned in any::<bool>(),
    ) {
        let mut announcer = owner_of(&[if owned { v6() } else { v4() }], epoch());
        let packet = solicitation(client(), target(), target(), &options);
        let sound = ndp::decode(&packet).is_ok();
        let count = answers(&mut announcer, ETH0, &ipv6_frame(OWN, packet)).len();
        prop_assert_eq!(count, usize::from(owned && sound));
    }
}
