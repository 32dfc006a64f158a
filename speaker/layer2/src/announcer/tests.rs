use std::net::Ipv4Addr;

use super::*;
use crate::mld;
use crate::ndp::tests::{advertisement, solicitation};
use crate::tests::epoch;

mod answers;
mod model;
mod questions;

const ETH0: InterfaceIndex = InterfaceIndex(2);
const ETH1: InterfaceIndex = InterfaceIndex(3);
const OWN: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const CLIENT: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
const BROADCAST: [u8; 6] = [0xff; 6];

fn v4() -> IpAddr {
    "192.0.2.10".parse().unwrap()
}

fn target() -> Ipv6Addr {
    "2001:db8::10".parse().unwrap()
}

fn v6() -> IpAddr {
    target().into()
}

fn link_local() -> Ipv6Addr {
    "fe80::2".parse().unwrap()
}

fn client() -> Ipv6Addr {
    "fe80::99".parse().unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn interface(index: InterfaceIndex, name: &str, networks: &[&str]) -> Interface {
    Interface {
        index,
        name: name.into(),
        mac: [0x02, 0, 0, 0, 0, u8::try_from(index.0).unwrap()],
        up: true,
        networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        link_local: Some(link_local()),
        gateways: Vec::new(),
        arp: true,
    }
}

fn lan() -> Vec<Interface> {
    vec![
        interface(ETH0, "eth0", &["192.0.2.2/24", "2001:db8::2/64"]),
        interface(ETH1, "eth1", &["198.51.100.2/24"]),
    ]
}

fn everywhere(addresses: &[IpAddr]) -> Event<'static> {
    let on = |&address| (address, Some(InterfaceMatch::All));
    Event::Candidates(addresses.iter().map(on).collect())
}

fn nowhere(addresses: &[IpAddr]) -> Event<'static> {
    Event::Candidates(addresses.iter().map(|&address| (address, None)).collect())
}

/// One on `lan` with these candidates.
fn candidate_of(addresses: &[IpAddr], now: Instant) -> Announcer {
    let mut announcer = Announcer::new(AnnouncerSettings::default());
    announcer.handle(Event::Interfaces(lan()), now);
    announcer.handle(everywhere(addresses), now);
    announcer
}

/// One that owns `addresses` on `lan`, its series over.
fn owner_of(addresses: &[IpAddr], now: Instant) -> Announcer {
    let mut announcer = candidate_of(addresses, now);
    announcer.handle(Event::Own(addresses.to_vec()), now);
    timeline(&mut announcer, now, now + ms(6000));
    let reports_only = announcer.poll_timeout().is_none_or(|at| at > now + ms(45_000));
    assert!(reports_only, "nothing else is repeated for ever");
    announcer
}

/// 1,000 addresses of 10.0.0.0/8, and an interface in it.
fn thousand() -> (Vec<IpAddr>, Interface) {
    let address = |n: u16| IpAddr::from([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]);
    ((0..1000).map(address).collect(), interface(ETH0, "eth0", &["10.1.0.1/8"]))
}

/// One that has just been told that a thousand addresses are its own.
fn owner_of_a_thousand(start: Instant) -> (Vec<IpAddr>, Announcer) {
    let (addresses, interface) = thousand();
    let mut announcer = Announcer::new(AnnouncerSettings::default());
    announcer.handle(Event::Interfaces(vec![interface]), start);
    announcer.handle(everywhere(&addresses), start);
    announcer.handle(Event::Own(addresses.clone()), start);
    (addresses, announcer)
}

struct Arp {
    destination: [u8; 6],
    source: [u8; 6],
    operation: u8,
    sender_mac: [u8; 6],
    sender: &'static str,
    target: String,
}

impl Default for Arp {
    fn default() -> Self {
        Self {
            destination: BROADCAST,
            source: CLIENT,
            operation: 1,
            sender_mac: CLIENT,
            sender: "192.0.2.1",
            target: "192.0.2.10".into(),
        }
    }
}

impl Arp {
    fn frame(&self) -> Vec<u8> {
        let mut frame = [self.destination, self.source].concat();
        frame.extend([0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, self.operation]);
        frame.extend(self.sender_mac);
        frame.extend(self.sender.parse::<Ipv4Addr>().unwrap().octets());
        frame.extend([0; 6]);
        frame.extend(self.target.parse::<Ipv4Addr>().unwrap().octets());
        frame
    }
}

/// An IPv6 packet as the client sends it.
fn ipv6_frame(destination: [u8; 6], packet: Vec<u8>) -> Vec<u8> {
    [&destination[..], &CLIENT, &[0x86, 0xdd], &packet].concat()
}

/// What comes of a frame long after everything else.
fn receive(announcer: &mut Announcer, interface: InterfaceIndex, frame: &[u8]) -> Vec<Action> {
    announcer.handle(Event::Frame { interface, frame }, epoch() + ms(100_000))
}

fn answers(announcer: &mut Announcer, interface: InterfaceIndex, frame: &[u8]) -> Vec<Vec<u8>> {
    frames(receive(announcer, interface, frame))
}

fn frames(actions: Vec<Action>) -> Vec<Vec<u8>> {
    actions
        .into_iter()
        .filter_map(|action| match action {
            Action::SendFrame { frame, .. } => Some(frame),
            Action::JoinGroup { .. }
            | Action::LeaveGroup { .. }
            | Action::Heard { .. }
            | Action::Silence(_) => None,
        })
        .collect()
}

fn ignored(announcer: &Announcer) -> Vec<Ignored> {
    announcer.counters().ignored.keys().copied().collect()
}

/// Runs all timers until `end` and says what came of them and when, in milliseconds from `start` on.
fn run(announcer: &mut Announcer, start: Instant, end: Instant) -> Vec<(u128, Action)> {
    let mut done = Vec::new();
    while let Some(at) = announcer.poll_timeout().filter(|at| *at <= end) {
        let actions = announcer.handle_timeout(at);
        done.extend(actions.into_iter().map(|action| ((at - start).as_millis(), action)));
    }
    done
}

/// When frames were sent, and where.
fn timeline(
    announcer: &mut Announcer,
    start: Instant,
    end: Instant,
) -> Vec<(u128, InterfaceIndex)> {
    run(announcer, start, end)
        .into_iter()
        .map(|(at, action)| match action {
            Action::SendFrame { interface, .. } => (at, interface),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn an_address_is_announced_where_its_subnet_is_or_everywhere_or_where_it_is_told() {
    let foreign: IpAddr = "203.0.113.1".parse().unwrap();
    let only = |name: &str| InterfaceMatch::Only([name.into()].into());
    let mut down = lan();
    down[0].up = false;
    let mut silent = lan();
    silent[0].arp = false;
    let cases = [
        (v4(), InterfaceMatch::All, lan(), vec![ETH0]),
        (foreign, InterfaceMatch::All, lan(), vec![ETH0, ETH1]),
        (v4(), only("eth1"), lan(), vec![ETH1]),
        (v4(), only("eth9"), lan(), vec![]),
        (v4(), InterfaceMatch::All, down, vec![]),
        (v4(), InterfaceMatch::All, silent, vec![]),
        (link_local().into(), InterfaceMatch::All, lan(), vec![]),
    ];
    for (address, on, interfaces, expected) in cases {
        let mut announcer = Announcer::new(AnnouncerSettings::default());
        announcer.handle(Event::Interfaces(interfaces), epoch());
        announcer.handle(Event::Candidates([(address, Some(on.clone()))].into()), epoch());
        announcer.handle(Event::Own(vec![address]), epoch());
        let places: Vec<_> = announcer.addresses[&address].stations.keys().copied().collect();
        assert_eq!(places, expected, "{address} on {on:?}");
    }
}

#[test]
fn a_gained_address_is_announced_in_both_forms_on_schedule() {
    let start = epoch();
    let mut announcer = candidate_of(&[v4(), v6()], start);
    assert_eq!(announcer.poll_timeout(), None);
    let at_once = frames(announcer.handle(Event::Own(vec![v4(), v6()]), start));
    assert_eq!(at_once.len(), 5);
    assert_eq!(at_once[0][20..22], [0, 1], "the request form first");
    assert_eq!(at_once[1][..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(at_once[1][58], 0x20);
    assert_eq!(at_once[2][20..22], [0, 2]);
    let group = "ff02::1:ff00:10".parse().unwrap();
    let own = MacAddr::from(OWN);
    let listener = mld::Listener { own, source: Some(link_local()), group };
    assert_eq!(at_once[3..], [listener.report_v1(), listener.report_v2()]);
    assert!(announcer.handle_timeout(start).is_empty(), "nothing is due");
    let later = timeline(&mut announcer, start, start + ms(40_000));
    let expected: Vec<_> =
        [10, 50, 200, 1000, 2000, 5000].into_iter().flat_map(|at| [(at, ETH0); 5]).collect();
    assert_eq!(later, expected);
    assert_eq!(announcer.counters().addresses[&v4()].gratuitous_sent, 14);
    assert_eq!(announcer.counters().addresses[&v6()].gratuitous_sent, 7);
    assert_eq!(announcer.counters().reports_sent, 14);
}

#[test]
fn groups_are_reported_often_enough_for_a_switch_that_forgets() {
    let start = epoch();
    let address = |n: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n]);
    let addresses: Vec<_> = (0..500).map(address).collect();
    let mut announcer = candidate_of(&addresses, start);
    announcer.handle(Event::Own(addresses.clone()), start);
    run(&mut announcer, start, start + ms(10_000));
    let mut seconds = BTreeMap::<_, u32>::new();
    let mut reported = BTreeMap::<_, Vec<_>>::new();
    for (at, action) in run(&mut announcer, start, start + ms(600_000)) {
        let Action::SendFrame { frame, .. } = action else { panic!("{action:?}") };
        let group = match frame[62] {
            131 => &frame[70..86],
            143 => &frame[74..90],
            other => panic!("type {other}"),
        };
        reported.entry((frame[62], group.to_vec())).or_default().push(at);
        *seconds.entry(at / 1000).or_default() += 1;
    }
    assert_eq!(reported.len(), 1000, "each group in both versions");
    for times in reported.values() {
        assert!(times[0] < 82_000, "{times:?}");
        assert!(times.windows(2).all(|two| (45_000..=76_000).contains(&(two[1] - two[0]))));
        // RFC 3810 section 9.4: 260 s, in which three are sent.
        assert!(times.windows(4).all(|four| four[3] - four[0] < 260_000));
    }
    let most = seconds.values().max().copied().unwrap_or_default();
    assert!(most < 100, "1,000 a minute are 17 a second, not {most}");
    announcer.handle(Event::Disown(addresses), start + ms(600_000));
    assert_eq!(announcer.poll_timeout(), None);
}

#[test]
fn a_series_starts_again_with_the_link_the_station_a_new_interface_and_on_request() {
    let mut announcer = owner_of(&[v4()], epoch());
    let start = epoch() + ms(60_000);
    let mut interfaces = lan();
    let mut change = |announcer: &mut Announcer, change: fn(&mut Vec<Interface>)| {
        change(&mut interfaces);
        announcer.handle(Event::Interfaces(interfaces.clone()), start)
    };
    assert!(change(&mut announcer, |all| all[0].name = "renamed".into()).is_empty());
    assert!(change(&mut announcer, |all| all[0].link_local = None).is_empty());
    assert!(change(&mut announcer, |all| all[0].up = false).is_empty());
    assert_eq!(change(&mut announcer, |all| all[0].up = true).len(), 2);
    let moved = frames(change(&mut announcer, |all| all[0].mac[5] = 0x55));
    assert_eq!(moved[0][6..12], [0x02, 0, 0, 0, 0, 0x55]);
    assert_eq!(moved[0][22..28], [0x02, 0, 0, 0, 0, 0x55]);
    let added = change(&mut announcer, |all| {
        all.push(interface(InterfaceIndex(4), "eth2", &["192.0.2.3/24"]));
    });
    assert_eq!(added.len(), 2);
    assert!(
        added
            .iter()
            .all(|action| matches!(action, Action::SendFrame { interface: InterfaceIndex(4), .. }))
    );
    assert!(announcer.handle(Event::Own(vec![v4()]), start).is_empty(), "nothing new");
    let repeated = announcer.handle(Event::Repeat(vec![v4(), v6()]), start);
    assert_eq!(frames(repeated).len(), 4);
}

#[test]
fn a_repetition_is_one_announcement_beside_the_series() {
    let start = epoch();
    let mut announcer = candidate_of(&[v4()], start);
    announcer.handle(Event::Own(vec![v4()]), start);
    timeline(&mut announcer, start, start + ms(500));
    let sent = |announcer: &Announcer| announcer.counters().addresses[&v4()].gratuitous_sent;
    let before = sent(&announcer);
    let repeat = |announcer: &mut Announcer, at| {
        frames(announcer.handle(Event::Repeat(vec![v4()]), start + ms(at))).len()
    };
    assert_eq!(repeat(&mut announcer, 500), 2);
    timeline(&mut announcer, start, start + ms(60_000));
    assert_eq!(sent(&announcer) - before, 2 + 6, "what was left of the series: 1, 2 and 5 s");
    assert_eq!(repeat(&mut announcer, 60_000), 2);
    assert_eq!(announcer.poll_timeout(), None, "and nothing after it");
}

#[test]
fn a_series_stops_at_once_when_the_address_is_lost() {
    for lose in [
        Event::Disown(vec![v4(), v6()]),
        Event::Interfaces(Vec::new()),
        Event::Candidates([v4(), v6()].map(|a| (a, Some(InterfaceMatch::Only([].into())))).into()),
    ] {
        let start = epoch();
        let mut announcer = candidate_of(&[v4(), v6()], start);
        announcer.handle(Event::Own(vec![v4(), v6()]), start);
        timeline(&mut announcer, start, start + ms(20));
        assert!(announcer.poll_timeout().is_some());
        let case = format!("{lose:?}");
        assert!(frames(announcer.handle(lose, start + ms(50))).is_empty(), "{case}");
        assert_eq!(announcer.poll_timeout(), None, "{case}");
        assert!(announcer.handle_timeout(start + ms(5000)).is_empty(), "{case}");
    }
}

#[test]
fn nothing_is_sent_for_an_address_that_was_lost_while_its_frames_waited() {
    let start = epoch();
    let (addresses, mut announcer) = owner_of_a_thousand(start);
    announcer.handle(Event::Disown(addresses[500..].to_vec()), start);
    let lost: BTreeSet<_> = addresses[500..].iter().map(ToString::to_string).collect();
    for (_, action) in run(&mut announcer, start, start + ms(60_000)) {
        let Action::SendFrame { frame, .. } = action else { panic!("{action:?}") };
        let address = Ipv4Addr::from(<[u8; 4]>::try_from(&frame[28..32]).unwrap());
        assert!(!lost.contains(&address.to_string()), "{address}");
    }
}

#[test]
fn a_thousand_addresses_are_paced_and_each_is_told_of_before_any_is_repeated() {
    let start = epoch();
    let (addresses, interface) = thousand();
    let mut announcer = Announcer::new(AnnouncerSettings::default());
    announcer.handle(Event::Interfaces(vec![interface]), start);
    announcer.handle(everywhere(&addresses), start);
    let burst = announcer.handle(Event::Own(addresses), start);
    assert_eq!(burst.len(), 200);
    let mut first = frames(burst);
    while let Some(at) = announcer.poll_timeout().filter(|at| *at <= start + ms(820)) {
        first.extend(frames(announcer.handle_timeout(at)));
    }
    let told: BTreeSet<_> = first.iter().map(|frame| frame[28..32].to_vec()).collect();
    assert_eq!(told.len(), 1000, "all within a second");
    let rest = timeline(&mut announcer, start, start + ms(60_000));
    for second in 1..20 {
        let sent = rest.iter().filter(|(at, _)| at / 1000 == second).count();
        assert!(sent <= 1200, "{sent} frames in second {second}");
    }
    let counters = announcer.counters();
    assert!(counters.addresses.values().all(|address| address.gratuitous_sent >= 6));
}

#[test]
fn one_more_address_does_not_wait_for_the_repetitions_of_a_thousand() {
    let start = epoch();
    let (addresses, interface) = thousand();
    let more = IpAddr::from([10, 9, 9, 9]);
    let mut announcer = Announcer::new(AnnouncerSettings::default());
    announcer.handle(Event::Interfaces(vec![interface]), start);
    announcer.handle(everywhere(&addresses), start);
    announcer.handle(everywhere(&[more]), start);
    announcer.handle(Event::Own(addresses.clone()), start);
    run(&mut announcer, start, start + ms(1000));
    announcer.handle(Event::Repeat(addresses), start + ms(1000));
    let mut sent = frames(announcer.handle(Event::Own(vec![more]), start + ms(1000)));
    let soon = run(&mut announcer, start, start + ms(1002));
    sent.extend(frames(soon.into_iter().map(|(_, action)| action).collect()));
    assert!(sent.iter().any(|frame| frame[28..32] == [10, 9, 9, 9]));
}

#[test]
fn the_address_that_is_asked_for_most_is_announced_first() {
    let start = epoch();
    let addresses: Vec<IpAddr> = (1..=3).map(|n| IpAddr::from([192, 0, 2, n])).collect();
    let mut announcer = candidate_of(&addresses, start);
    for (target, times) in [("192.0.2.3", 5), ("192.0.2.2", 9)] {
        let frame = Arp { target: target.into(), sender: "192.0.2.77", ..Arp::default() }.frame();
        for _ in 0..times {
            assert!(receive(&mut announcer, ETH0, &frame).is_empty());
        }
    }
    let sent = frames(announcer.handle(Event::Own(addresses), start));
    let order: Vec<_> = sent.iter().map(|frame| frame[31]).collect();
    assert_eq!(order, [2, 3, 1, 2, 3, 1]);
}

#[test]
fn a_refresh_is_spread_and_goes_on_as_long_as_the_address_is_owned() {
    let start = epoch();
    let (addresses, interface) = thousand();
    let settings = AnnouncerSettings { refresh: Some(ms(60_000)), seed: 7 };
    let mut announcer = Announcer::new(settings);
    announcer.handle(Event::Interfaces(vec![interface]), start);
    announcer.handle(everywhere(&addresses), start);
    announcer.handle(Event::Own(addresses.clone()), start);
    timeline(&mut announcer, start, start + ms(10_000));
    let mut seconds = BTreeMap::<_, u32>::new();
    for (at, _) in timeline(&mut announcer, start, start + ms(130_000)) {
        *seconds.entry(at / 1000).or_default() += 1;
    }
    // 1,000 addresses in two forms each minute are 33 frames a second.
    for second in 10..130 {
        let sent = seconds.get(&second).copied().unwrap_or_default();
        assert!((5..80).contains(&sent), "{sent} frames in second {second}");
    }
    announcer.handle(Event::Disown(addresses), start + ms(130_000));
    assert_eq!(announcer.poll_timeout(), None);
}

#[test]
fn groups_are_joined_for_candidates_and_shared() {
    let start = epoch();
    let neighbour: IpAddr = "2001:db8::1:0:10".parse().unwrap();
    let mut announcer = Announcer::new(AnnouncerSettings::default());
    announcer.handle(Event::Interfaces(lan()), start);
    let group = "ff02::1:ff00:10".parse().unwrap();
    let join = Action::JoinGroup { interface: ETH0, group };
    let leave = Action::LeaveGroup { interface: ETH0, group };
    let mut handle = |event| announcer.handle(event, start);
    assert_eq!(handle(everywhere(&[v4(), v6()])), std::slice::from_ref(&join));
    let instead = [(v6(), None), (neighbour, Some(InterfaceMatch::Only(["eth0".into()].into())))];
    assert!(handle(Event::Candidates(instead.into())).is_empty(), "one goes, one comes");
    assert!(handle(everywhere(&[v6()])).is_empty());
    assert!(handle(nowhere(&[neighbour])).is_empty());
    assert_eq!(handle(Event::Interfaces(vec![])), std::slice::from_ref(&leave));
    assert_eq!(handle(Event::Interfaces(lan())), std::slice::from_ref(&join));
    let owned = frames(handle(Event::Own(vec![v6()])));
    assert_eq!(owned.len(), 3);
    assert!(handle(nowhere(&[v6()])).is_empty(), "it is owned still");
    assert_eq!(handle(Event::Disown(vec![v6()])), [leave]);
}

#[test]
fn what_is_heeded_is_owned_or_asked_for() {
    let start = epoch();
    let gateway: IpAddr = "192.0.2.254".parse().unwrap();
    let mut announcer = candidate_of(&[v4(), v6()], start);
    let mut version = announcer.heeded_version();
    let ask = |address| Event::Ask { address, how: Asking::Fast };
    let cases = [
        (Event::Own(vec![v4()]), vec![v4()], true),
        (Event::Own(vec![v4()]), vec![v4()], false),
        (ask(gateway), vec![v4(), gateway], true),
        (ask(gateway), vec![v4(), gateway], false),
        (ask(v4()), vec![v4(), gateway], true),
        (Event::StopAsking(gateway), vec![v4()], true),
        (Event::StopAsking(gateway), vec![v4()], false),
        (Event::Disown(vec![v4(), v6()]), vec![v4()], true),
        (Event::Disown(vec![v4(), v6()]), vec![v4()], false),
    ];
    for (event, expected, changed) in cases {
        let case = format!("{event:?}");
        announcer.handle(event, start);
        assert_eq!(announcer.heeded().collect::<Vec<_>>(), expected, "{case}");
        assert_eq!(announcer.heeded_version() != version, changed, "{case}");
        version = announcer.heeded_version();
    }
    run(&mut announcer, start, start + ms(100));
    assert_eq!(announcer.heeded().count(), 0, "the question has had its time");
    assert_ne!(announcer.heeded_version(), version);
}
