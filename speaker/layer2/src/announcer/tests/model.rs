//! What is kept in step change by change is the same as if it were made anew after each.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Two of them share a group.
const ADDRESSES: [&str; 6] =
    ["192.0.2.10", "198.51.100.10", "203.0.113.10", "2001:db8::10", "2001:db8::1:0:10", "fe80::10"];

const SERIES_MS: [u64; 7] = [0, 10, 50, 200, 1000, 2000, 5000];

#[derive(Debug, Clone)]
enum Change {
    Candidates(Vec<(usize, Option<InterfaceMatch>)>),
    Own(Vec<usize>),
    Disown(Vec<usize>),
    Interfaces(Vec<Interface>),
    Repeat(Vec<usize>),
    Ask(usize),
    StopAsking(usize),
}

/// All that was said, and nothing that follows from it.
#[derive(Default)]
struct Model {
    candidates: BTreeMap<IpAddr, InterfaceMatch>,
    /// What an owned address was told when it was a candidate.
    kept: BTreeMap<IpAddr, InterfaceMatch>,
    owned: BTreeSet<IpAddr>,
    interfaces: Vec<Interface>,
    /// When the series of a station began.
    begun: BTreeMap<(IpAddr, InterfaceIndex), ([u8; 6], Instant)>,
    /// When its group was reported last, if that was after the series.
    reported: BTreeMap<(IpAddr, InterfaceIndex), Instant>,
    asked: BTreeMap<IpAddr, Instant>,
    /// Told once more in this step.
    repeated: BTreeSet<(IpAddr, InterfaceIndex)>,
}

/// What is seen from outside.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    /// Of a group, and of which ICMPv6 type.
    Report(Instant, Ipv6Addr, InterfaceIndex, u8),
    Gratuitous(Instant, IpAddr, InterfaceIndex, u8),
    Question(Instant, IpAddr, InterfaceIndex),
    Silence(Instant, IpAddr),
}

impl Model {
    fn on(&self, address: IpAddr) -> Option<&InterfaceMatch> {
        self.candidates.get(&address).or_else(|| self.kept.get(&address))
    }

    fn places(&self, address: IpAddr) -> BTreeMap<InterfaceIndex, [u8; 6]> {
        let link_local = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
        let Some(on) = self.on(address).filter(|_| !link_local) else { return BTreeMap::new() };
        let holds =
            |interface: &Interface| interface.networks.iter().any(|net| net.contains(&address));
        let homeless = !self.interfaces.iter().any(holds);
        let chosen = |interface: &&Interface| match on {
            InterfaceMatch::All => homeless || holds(interface),
            InterfaceMatch::Only(names) => names.contains(&interface.name),
        };
        self.interfaces
            .iter()
            .filter(|interface| interface.up && interface.arp)
            .filter(chosen)
            .map(|interface| (interface.index, interface.mac))
            .collect()
    }

    fn asked_on(&self, address: IpAddr) -> BTreeSet<InterfaceIndex> {
        if self.on(address).is_some() {
            return self.places(address).into_keys().collect();
        }
        let near = |interface: &&Interface| {
            interface.up
                && interface.arp
                && interface.networks.iter().any(|net| net.contains(&address))
        };
        self.interfaces.iter().filter(near).map(|interface| interface.index).collect()
    }

    fn groups(&self) -> BTreeSet<(InterfaceIndex, Ipv6Addr)> {
        let all = self.candidates.keys().chain(self.kept.keys());
        all.filter_map(|address| match address {
            IpAddr::V6(v6) => Some((address, ndp::solicited_node(*v6))),
            IpAddr::V4(_) => None,
        })
        .flat_map(|(address, group)| {
            self.places(*address).into_keys().map(move |index| (index, group))
        })
        .collect()
    }

    fn apply(&mut self, change: &Change, all: &[IpAddr], now: Instant) {
        match change {
            Change::Candidates(changes) => {
                for (address, on) in changes {
                    match on {
                        Some(on) => self.candidates.insert(all[*address], on.clone()),
                        None => self.candidates.remove(&all[*address]),
                    };
                }
            }
            Change::Own(some) => self.owned.extend(some.iter().map(|n| all[*n])),
            Change::Disown(some) => {
                for n in some {
                    self.owned.remove(&all[*n]);
                }
            }
            Change::Interfaces(interfaces) => self.interfaces.clone_from(interfaces),
            Change::Repeat(some) => {
                let some: BTreeSet<_> = some.iter().map(|n| all[*n]).collect();
                let stations = self.begun.keys().copied();
                self.repeated = stations.filter(|(address, _)| some.contains(address)).collect();
            }
            Change::Ask(n) => {
                self.asked.insert(all[*n], now);
            }
            Change::StopAsking(n) => {
                self.asked.remove(&all[*n]);
            }
        }
        for address in all {
            match self.candidates.get(address).cloned() {
                _ if !self.owned.contains(address) => self.kept.remove(address),
                Some(on) => self.kept.insert(*address, on),
                None => None,
            };
        }
        let stations: BTreeMap<_, _> = self
            .owned
            .iter()
            .flat_map(|&a| self.places(a).into_iter().map(move |(i, mac)| ((a, i), mac)))
            .collect();
        self.begun.retain(|station, (mac, _)| stations.get(station) == Some(mac));
        self.reported.retain(|station, _| self.begun.contains_key(station));
        for (station, mac) in stations {
            self.begun.entry(station).or_insert((mac, now));
        }
    }

    fn asked_after(&self, now: Instant) -> impl Iterator<Item = IpAddr> {
        let going_on = move |begun: &Instant| *begun + ms(25) > now;
        self.asked.iter().filter(move |(_, begun)| going_on(begun)).map(|(address, _)| *address)
    }

    /// What is seen until `to`, `from` included, of what goes on.
    fn see(&mut self, from: Instant, to: Instant) -> Vec<Seen> {
        let mut seen = Vec::new();
        let inside = |at: &Instant| (from..to).contains(at);
        for (&(address, interface), &(_, begun)) in &self.begun {
            let repeated = self.repeated.remove(&(address, interface)).then_some(from);
            let series = SERIES_MS.map(|after| begun + ms(after));
            // Of the same moment they are one.
            let times: BTreeSet<_> = series.into_iter().filter(inside).chain(repeated).collect();
            let forms = if address.is_ipv4() { 2 } else { 1 };
            let frames =
                |at| (0..forms).map(move |form| Seen::Gratuitous(at, address, interface, form));
            seen.extend(times.iter().copied().flat_map(frames));
            let IpAddr::V6(v6) = address else { continue };
            let group = ndp::solicited_node(v6);
            let reported =
                self.reported.entry((address, interface)).or_insert_with(|| begun + ms(5000));
            *reported = repeated.map_or(*reported, |at| at.max(*reported));
            let mut reports = times;
            let period = ms(45_000) + crate::pace::part(ms(30_000), 0, address, 0);
            while *reported + period < to {
                *reported += period;
                reports.insert(*reported);
            }
            let frames = |at| [131, 143].map(|kind| Seen::Report(at, group, interface, kind));
            seen.extend(reports.into_iter().flat_map(frames));
        }
        for (&address, &begun) in &self.asked {
            for at in [0, 8, 16].map(|after| begun + ms(after)).iter().filter(|at| inside(at)) {
                let on = self.asked_on(address).into_iter();
                seen.extend(on.map(|interface| Seen::Question(*at, address, interface)));
            }
            seen.extend(Some(begun + ms(25)).filter(inside).map(|at| Seen::Silence(at, address)));
        }
        self.asked.retain(|_, begun| *begun + ms(25) >= to);
        seen.sort();
        seen
    }
}

fn addresses() -> Vec<IpAddr> {
    ADDRESSES.iter().map(|address| address.parse().unwrap()).collect()
}

fn some() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(0..ADDRESSES.len(), 1..4)
}

fn matches() -> impl Strategy<Value = Option<InterfaceMatch>> {
    let only = |names: &[&str]| {
        Some(InterfaceMatch::Only(names.iter().map(|name| (*name).to_owned()).collect()))
    };
    select(vec![
        None,
        Some(InterfaceMatch::All),
        Some(InterfaceMatch::All),
        only(&["eth0"]),
        only(&["eth1", "eth2"]),
    ])
}

fn interfaces() -> impl Strategy<Value = Vec<Interface>> {
    let one = |index: u32| {
        let networks = select(vec![
            vec!["192.0.2.2/24", "2001:db8::2/64"],
            vec!["198.51.100.2/24"],
            vec!["192.0.2.3/24", "198.51.100.3/24"],
            vec![],
        ]);
        (networks, any::<[bool; 2]>(), 0..10_u8).prop_map(move |(networks, mac_and_arp, state)| {
            let mut one = interface(InterfaceIndex(index), &format!("eth{index}"), &networks);
            one.mac[4] = u8::from(mac_and_arp[0]);
            one.arp = mac_and_arp[1] || state < 8;
            one.up = state < 7;
            (state < 9).then_some(one)
        })
    };
    (one(0), one(1), one(2)).prop_map(|(a, b, c)| [a, b, c].into_iter().flatten().collect())
}

fn change() -> impl Strategy<Value = Change> {
    let candidates = proptest::collection::vec((0..ADDRESSES.len(), matches()), 1..4);
    prop_oneof![
        4 => candidates.prop_map(Change::Candidates),
        3 => some().prop_map(Change::Own),
        2 => some().prop_map(Change::Disown),
        2 => interfaces().prop_map(Change::Interfaces),
        1 => some().prop_map(Change::Repeat),
        2 => (0..ADDRESSES.len()).prop_map(Change::Ask),
        1 => (0..ADDRESSES.len()).prop_map(Change::StopAsking),
    ]
}

fn event(change: &Change, all: &[IpAddr]) -> Event<'static> {
    let named = |some: &[usize]| some.iter().map(|n| all[*n]).collect();
    match change {
        Change::Candidates(changes) => {
            Event::Candidates(changes.iter().map(|(n, on)| (all[*n], on.clone())).collect())
        }
        Change::Own(some) => Event::Own(named(some)),
        Change::Disown(some) => Event::Disown(named(some)),
        Change::Interfaces(interfaces) => Event::Interfaces(interfaces.clone()),
        Change::Repeat(some) => Event::Repeat(named(some)),
        Change::Ask(n) => Event::Ask { address: all[*n], how: Asking::Fast },
        Change::StopAsking(n) => Event::StopAsking(all[*n]),
    }
}

/// Reads back what was sent.
fn seen(
    at: Instant,
    actions: Vec<Action>,
    groups: &mut BTreeSet<(InterfaceIndex, Ipv6Addr)>,
) -> Vec<Seen> {
    let mut seen = Vec::new();
    for action in actions {
        match action {
            Action::JoinGroup { interface, group } => assert!(groups.insert((interface, group))),
            Action::LeaveGroup { interface, group } => assert!(groups.remove(&(interface, group))),
            Action::Silence(address) => seen.push(Seen::Silence(at, address)),
            Action::Heard { .. } => panic!("nobody speaks"),
            Action::SendFrame { interface, frame } => {
                let v4 = || IpAddr::from(<[u8; 4]>::try_from(&frame[38..42]).unwrap());
                let v6 = || IpAddr::from(<[u8; 16]>::try_from(&frame[62..78]).unwrap());
                seen.push(match (&frame[12..14], frame[20..22] == [0, 2]) {
                    ([0x08, 0x06], true) => Seen::Gratuitous(at, v4(), interface, 1),
                    ([0x08, 0x06], false) if frame[28..32] == frame[38..42] => {
                        Seen::Gratuitous(at, v4(), interface, 0)
                    }
                    ([0x08, 0x06], false) => Seen::Question(at, v4(), interface),
                    _ if frame[20] == 0 => {
                        let kind = frame[62];
                        let start = if kind == 131 { 70 } else { 74 };
                        let group = <[u8; 16]>::try_from(&frame[start..start + 16]).unwrap();
                        Seen::Report(at, group.into(), interface, kind)
                    }
                    _ if frame[54] == 136 => Seen::Gratuitous(at, v6(), interface, 0),
                    _ => Seen::Question(at, v6(), interface),
                });
            }
        }
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changes_add_up_to_the_whole(
        changes in proptest::collection::vec(
            (change(), select(vec![0, 5, 8, 12, 60, 700, 3000])),
            1..25,
        ),
    ) {
        let all = addresses();
        let mut now = epoch();
        let (mut model, mut groups) = (Model::default(), BTreeSet::new());
        let mut announcer = Announcer::new(AnnouncerSettings::default());
        for (step, (change, pause)) in changes.into_iter().enumerate() {
            model.apply(&change, &all, now);
            let mut observed = seen(now, announcer.handle(event(&change, &all), now), &mut groups);
            prop_assert_eq!(&groups, &model.groups(), "{:?}", change);

            let heeded: BTreeSet<_> = announcer.heeded().collect();
            let expected = model.owned.iter().copied().chain(model.asked_after(now)).collect();
            prop_assert_eq!(heeded, expected, "{:?}", change);
            let known: BTreeSet<_> = announcer.addresses.keys().copied().collect();
            let expected = model.candidates.keys().chain(&model.owned).copied();
            prop_assert_eq!(known, expected.collect(), "{:?}", change);

            // A client of its own for each step, so that none is held back.
            let station = [0x06, 0, 0, 0, 0, u8::try_from(step).unwrap()];
            for &address in &all {
                for index in (0..3).map(InterfaceIndex) {
                    let frame = request(station, address);
                    let event = Event::Frame { interface: index, frame: &frame };
                    let answered = !frames(announcer.handle(event, now)).is_empty();
                    let expected =
                        model.owned.contains(&address) && model.places(address).contains_key(&index);
                    prop_assert_eq!(answered, expected, "{} after {:?}", address, change);
                }
            }

            let end = now + ms(pause);
            while let Some(at) = announcer.poll_timeout().filter(|at| *at < end) {
                observed.extend(seen(at, announcer.handle_timeout(at), &mut groups));
            }
            observed.sort();
            // What happens in this very millisecond is in any case before the next change.
            let until = end.max(now + Duration::from_nanos(1));
            prop_assert_eq!(observed, model.see(now, until), "after {:?}", change);
            now = until;
        }
    }
}

fn request(station: [u8; 6], address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(_) => Arp {
            source: station,
            sender_mac: station,
            sender: "192.0.2.77",
            target: address.to_string(),
            ..Arp::default()
        }
        .frame(),
        IpAddr::V6(address) => {
            let mut frame = ipv6_frame(
                [0x33, 0x33, 0xff, 0, 0, 0x10],
                solicitation(client(), ndp::solicited_node(address), address, &[]),
            );
            frame[6..12].copy_from_slice(&station);
            frame
        }
    }
}
