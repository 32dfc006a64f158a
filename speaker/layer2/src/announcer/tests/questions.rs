//! Asking the segment who has an address.

use super::*;

fn ask(announcer: &mut Announcer, address: IpAddr, how: Asking, now: Instant) -> Vec<Action> {
    announcer.handle(Event::Ask { address, how }, now)
}

fn gateway() -> IpAddr {
    "192.0.2.254".parse().unwrap()
}

/// The times of frames and of silence.
fn times(done: &[(u128, Action)]) -> (Vec<u128>, Option<u128>) {
    let sent = done.iter().filter(|(_, action)| matches!(action, Action::SendFrame { .. }));
    let silence = done.iter().find(|(_, action)| matches!(action, Action::Silence(_)));
    (sent.map(|(at, _)| *at).collect(), silence.map(|(at, _)| *at))
}

fn asked(address: IpAddr, how: Asking) -> Vec<(u128, Action)> {
    let start = epoch();
    let mut announcer = candidate_of(&[v4(), v6()], start);
    let at_once = ask(&mut announcer, address, how, start);
    let mut done: Vec<_> = at_once.into_iter().map(|action| (0, action)).collect();
    done.extend(run(&mut announcer, start, start + ms(60_000)));
    assert_eq!(announcer.poll_timeout(), None);
    assert_eq!(announcer.heeded().count(), 0);
    done
}

#[test]
fn silence_follows_three_probes_in_25_milliseconds() {
    for address in [v4(), v6()] {
        let done = asked(address, Asking::Fast);
        assert_eq!(times(&done), (vec![0, 8, 16], Some(25)));
        assert_eq!(done.last(), Some(&(25, Action::Silence(address))));
    }
}

#[test]
fn silence_follows_one_question_in_100_milliseconds() {
    for address in [v4(), v6(), gateway()] {
        assert_eq!(times(&asked(address, Asking::Once)), (vec![0], Some(100)));
    }
}

#[test]
fn the_thorough_way_has_the_times_of_rfc_5227() {
    let start = epoch();
    let addresses: Vec<IpAddr> = (0..250).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    let mut firsts = BTreeSet::new();
    for &address in &addresses {
        let mut announcer = candidate_of(&addresses, start);
        assert_eq!(ask(&mut announcer, address, Asking::Thorough, start), []);
        let (sent, silence) = times(&run(&mut announcer, start, start + ms(60_000)));
        let [first, second, third] = sent[..] else { panic!("{sent:?}") };
        assert!(first < 1000, "{sent:?}");
        assert!((1000..=2000).contains(&(second - first)), "{sent:?}");
        assert!((1000..=2000).contains(&(third - second)), "{sent:?}");
        assert_eq!(silence.map(|at| at - third), Some(2000));
        firsts.insert(first);
    }
    assert!(firsts.len() > 150, "they are spread");
}

#[test]
fn a_candidate_is_probed_and_nobody_learns_a_station_from_it() {
    let [(_, probe), ..] = &asked(v4(), Asking::Fast)[..] else { panic!("nothing was sent") };
    let Action::SendFrame { interface, frame } = probe else { panic!("{probe:?}") };
    assert_eq!(*interface, ETH0);
    assert_eq!(frame[..12], [BROADCAST, OWN].concat());
    assert_eq!(frame[20..22], [0, 1]);
    assert_eq!(frame[22..28], OWN);
    assert_eq!(frame[28..32], [0; 4], "from nobody");
    assert_eq!(frame[38..42], [192, 0, 2, 10]);

    let [(_, probe), ..] = &asked(v6(), Asking::Fast)[..] else { panic!("nothing was sent") };
    let Action::SendFrame { frame, .. } = probe else { panic!("{probe:?}") };
    assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0, 0, 0x10]);
    assert_eq!(frame[22..38], link_local().octets());
    assert_eq!(frame[38..54], ndp::solicited_node(target()).octets());
    assert_eq!(frame[62..78], target().octets());
}

#[test]
fn what_is_only_to_be_known_is_asked_from_an_address_of_the_node() {
    let foreign: IpAddr = "203.0.113.1".parse().unwrap();
    let mut interfaces = lan();
    interfaces[0].gateways = vec![gateway(), foreign, "fe80::1".parse().unwrap()];
    // An address that moves, as somebody has put it on the interface too.
    interfaces[0].networks.insert(0, "192.0.2.10/24".parse().unwrap());
    let mut bare = interfaces.clone();
    bare[0].networks.clear();
    let cases = [
        ("a gateway", &interfaces, gateway(), ETH0, Some([192, 0, 2, 2])),
        ("a gateway beyond", &interfaces, foreign, ETH0, Some([192, 0, 2, 2])),
        ("a neighbor", &interfaces, "198.51.100.9".parse().unwrap(), ETH1, Some([198, 51, 100, 2])),
        ("a candidate", &interfaces, v4(), ETH0, Some([192, 0, 2, 2])),
        ("a gateway, no address", &bare, gateway(), ETH0, Some([0; 4])),
        ("a link-local gateway", &interfaces, "fe80::1".parse().unwrap(), ETH0, None),
    ];
    for (name, interfaces, address, at, sender) in cases {
        let mut announcer = candidate_of(&[v4()], epoch());
        announcer.handle(Event::Interfaces(interfaces.clone()), epoch());
        let actions = ask(&mut announcer, address, Asking::Once, epoch());
        let [Action::SendFrame { interface, frame }] = &actions[..] else {
            panic!("{name}: {actions:?}")
        };
        assert_eq!(*interface, at, "{name}");
        match sender {
            Some(sender) => assert_eq!(frame[28..32], sender, "{name}"),
            None => assert_eq!(frame[22..38], link_local().octets(), "{name}"),
        }
        assert_eq!(announcer.counters().probes_sent, 1, "{name}");
    }
}

#[test]
fn an_address_is_asked_for_on_each_interface_where_it_would_be_announced() {
    let foreign: IpAddr = "203.0.113.1".parse().unwrap();
    let only = InterfaceMatch::Only(["eth1".into()].into());
    for (on, expected) in [(InterfaceMatch::All, vec![ETH0, ETH1]), (only, vec![ETH1])] {
        let mut announcer = candidate_of(&[], epoch());
        announcer.handle(Event::Candidates([(foreign, Some(on))].into()), epoch());
        let sent: Vec<_> = ask(&mut announcer, foreign, Asking::Fast, epoch())
            .into_iter()
            .map(|action| match action {
                Action::SendFrame { interface, .. } => interface,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sent, expected);
    }
}

#[test]
fn an_address_that_can_be_asked_for_nowhere_is_met_with_silence() {
    let foreign: IpAddr = "203.0.113.1".parse().unwrap();
    let strange: IpAddr = "fe80::77".parse().unwrap();
    for address in [foreign, strange] {
        let done = asked(address, Asking::Fast);
        assert_eq!(times(&done), (vec![], Some(25)), "{address}");
    }
}

#[test]
fn who_has_it_is_heard_and_then_there_are_no_more_probes_and_no_silence() {
    let vip = "192.0.2.10";
    let own = link_local();
    let reply = Arp { operation: 2, destination: OWN, sender: vip, ..Arp::default() };
    let request = Arp { sender: vip, target: "192.0.2.7".into(), ..Arp::default() };
    let named = [2, 1, 0x02, 0, 0, 0, 0, 0x99];
    let to_all = advertisement(client(), ndp::ALL_NODES, 0x20, target(), &named);
    let cases = [
        (v4(), reply.frame()),
        (v4(), request.frame()),
        (v6(), ipv6_frame(OWN, advertisement(client(), own, 0x60, target(), &named))),
        (v6(), ipv6_frame(OWN, advertisement(target(), own, 0x40, target(), &[]))),
        (v6(), ipv6_frame([0x33, 0x33, 0, 0, 0, 1], to_all)),
    ];
    for (address, frame) in cases {
        let start = epoch();
        let mut announcer = candidate_of(&[v4(), v6()], start);
        ask(&mut announcer, address, Asking::Fast, start);
        let answer = |announcer: &mut Announcer, interface, at| {
            announcer.handle(Event::Frame { interface, frame: &frame }, start + ms(at))
        };
        assert_eq!(answer(&mut announcer, ETH1, 1), [], "another segment");
        let heard = Action::Heard { address, interface: ETH0, mac: CLIENT, form: Heard::Has };
        assert_eq!(answer(&mut announcer, ETH0, 2), [heard]);
        assert_eq!(answer(&mut announcer, ETH0, 3), [], "it is known");
        let mut second = frame.clone();
        second[11] = 0x98;
        assert_eq!(run(&mut announcer, start, start + ms(60_000)), []);
        assert_eq!(announcer.heeded().count(), 0, "the question is over");
        assert_eq!(answer(&mut announcer, ETH0, 100), [], "nobody asks any more");
    }
}

#[test]
fn two_stations_that_have_it_are_both_heard() {
    let start = epoch();
    let mut announcer = candidate_of(&[v4()], start);
    ask(&mut announcer, v4(), Asking::Fast, start);
    for (last, expected) in [(0x98, 1), (0x99, 1), (0x98, 0)] {
        let station = [0x02, 0, 0, 0, 0, last];
        let reply = Arp {
            operation: 2,
            destination: OWN,
            source: station,
            sender_mac: station,
            sender: "192.0.2.10",
            ..Arp::default()
        };
        let event = Event::Frame { interface: ETH0, frame: &reply.frame() };
        assert_eq!(announcer.handle(event, start + ms(1)).len(), expected);
    }
}

#[test]
fn a_flood_of_answers_is_reported_eight_times() {
    let start = epoch();
    let mut announcer = candidate_of(&[v4()], start);
    ask(&mut announcer, v4(), Asking::Fast, start);
    let heard: usize = (0..200)
        .map(|n| {
            let station = [0x06, 0, 0, 0, 0, n];
            let (source, sender_mac) = (station, station);
            let claim = Arp { source, sender_mac, sender: "192.0.2.10", ..Arp::default() };
            let event = Event::Frame { interface: ETH0, frame: &claim.frame() };
            announcer.handle(event, start + ms(1)).len()
        })
        .sum();
    assert_eq!(heard, 8);
    assert_eq!(announcer.counters().ignored[&Ignored::HeardTooOften], 192);
}

#[test]
fn who_would_like_to_have_it_is_heard_and_the_question_goes_on() {
    let probe = Arp { sender: "0.0.0.0", ..Arp::default() }.frame();
    let group = ndp::solicited_node(target());
    let detection = solicitation(Ipv6Addr::UNSPECIFIED, group, target(), &[]);
    let cases = [(v4(), probe), (v6(), ipv6_frame([0x33, 0x33, 0xff, 0, 0, 0x10], detection))];
    for (address, frame) in cases {
        let start = epoch();
        let mut announcer = candidate_of(&[v4(), v6()], start);
        ask(&mut announcer, address, Asking::Fast, start);
        let event = Event::Frame { interface: ETH0, frame: &frame };
        let heard = Action::Heard { address, interface: ETH0, mac: CLIENT, form: Heard::Probes };
        assert_eq!(announcer.handle(event, start + ms(1)), [heard]);
        let done = run(&mut announcer, start, start + ms(60_000));
        assert_eq!(times(&done), (vec![8, 16], Some(25)));
    }
}

#[test]
fn two_speakers_that_ask_hear_each_other_and_the_owner() {
    let start = epoch();
    let speaker = |last: u8| {
        let mut interfaces = lan();
        interfaces[0].mac[5] = last;
        interfaces[0].link_local = Some(format!("fe80::{last:x}").parse().unwrap());
        let mut announcer = Announcer::new(AnnouncerSettings::default());
        announcer.handle(Event::Interfaces(interfaces), start);
        announcer.handle(everywhere(&[v4(), v6()]), start);
        announcer
    };
    let (mut first, mut second, mut owner) = (speaker(0x11), speaker(0x12), speaker(0x13));
    owner.handle(Event::Own(vec![v4(), v6()]), start);
    let give = |announcer: &mut Announcer, frame: &[u8]| {
        announcer.handle(Event::Frame { interface: ETH0, frame }, start)
    };
    for address in [v4(), v6()] {
        ask(&mut second, address, Asking::Fast, start);
        let probes = frames(ask(&mut first, address, Asking::Fast, start));
        let heard = |last: u8, form| Action::Heard {
            address,
            interface: ETH0,
            mac: [2, 0, 0, 0, 0, last],
            form,
        };
        assert_eq!(give(&mut second, &probes[0]), [heard(0x11, Heard::Probes)]);
        let answers = give(&mut owner, &probes[0]);
        assert_eq!(answers.len(), 2);
        assert_eq!(answers[1], heard(0x11, Heard::Probes));
        let Action::SendFrame { frame, .. } = &answers[0] else { panic!("{answers:?}") };
        assert_eq!(give(&mut first, frame), [heard(0x13, Heard::Has)]);

        // Whoever only wants to know is no rival.
        let question = frames(ask(&mut second, address, Asking::Once, start));
        assert_eq!(frames(give(&mut owner, &question[0])).len(), 1);
        assert_eq!(give(&mut first, &question[0]), []);
    }
}

#[test]
fn a_question_is_stopped_or_begun_anew() {
    let start = epoch();
    let mut announcer = candidate_of(&[v4()], start);
    ask(&mut announcer, v4(), Asking::Fast, start);
    run(&mut announcer, start, start + ms(10));
    ask(&mut announcer, v4(), Asking::Fast, start + ms(12));
    let done = run(&mut announcer, start, start + ms(60_000));
    assert_eq!(times(&done), (vec![20, 28], Some(37)));

    ask(&mut announcer, v4(), Asking::Once, start);
    announcer.handle(Event::StopAsking(v4()), start);
    assert_eq!(announcer.poll_timeout(), None);
    ask(&mut announcer, v4(), Asking::Thorough, start);
    announcer.handle(Event::StopAsking(v4()), start);
    assert_eq!(announcer.poll_timeout(), None);
}

#[test]
fn a_thousand_addresses_are_asked_for_within_a_second_and_the_first_as_fast_as_one() {
    let start = epoch();
    let (addresses, interface) = thousand();
    let mut announcer = Announcer::new(AnnouncerSettings::default());
    announcer.handle(Event::Interfaces(vec![interface]), start);
    announcer.handle(everywhere(&addresses), start);
    let mut done = Vec::new();
    for &address in addresses.iter().rev() {
        let at_once = ask(&mut announcer, address, Asking::Fast, start);
        done.extend(at_once.into_iter().map(|action| (0, action)));
    }
    done.extend(run(&mut announcer, start, start + ms(60_000)));
    assert_eq!(announcer.counters().probes_sent, 3000);
    let mut probes = BTreeMap::<_, Vec<u128>>::new();
    let mut silences = Vec::new();
    for (at, action) in done {
        match action {
            Action::SendFrame { frame, .. } => {
                probes.entry(frame[38..42].to_vec()).or_default().push(at);
            }
            Action::Silence(address) => {
                let IpAddr::V4(address) = address else { unreachable!() };
                let sent = &probes[&address.octets()[..]];
                assert!(sent.windows(2).all(|pair| pair[1] - pair[0] >= 8), "{sent:?}");
                assert!(at >= sent[2] + 9, "{at} after {sent:?}");
                silences.push(at);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(silences.len(), 1000);
    assert_eq!(silences[0], 25);
    assert!(silences[999] < 1000, "{}", silences[999]);
    let sent: Vec<u128> = probes.into_values().flatten().collect();
    for from in (0..500).step_by(10) {
        let count = sent.iter().filter(|at| (from..from + 100).contains(*at)).count();
        assert!(count <= 1100, "{count} within 100 ms");
    }
}

#[test]
fn a_gateway_is_asked_before_everything_that_waits() {
    let start = epoch();
    let (addresses, mut interface) = thousand();
    let gateway = IpAddr::from([10, 2, 2, 2]);
    interface.gateways = vec![gateway];
    let mut announcer = Announcer::new(AnnouncerSettings::default());
    announcer.handle(Event::Interfaces(vec![interface]), start);
    announcer.handle(everywhere(&addresses), start);
    for &address in &addresses {
        ask(&mut announcer, address, Asking::Fast, start);
    }
    ask(&mut announcer, gateway, Asking::Once, start);
    let next = frames(announcer.handle_timeout(start + ms(1)));
    assert_eq!(next[0][38..42], [10, 2, 2, 2]);
    assert_eq!(next[0][28..32], [10, 1, 0, 1]);
}
