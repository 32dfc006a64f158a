//! Several cores, a network between them that loses, delays and cuts, and a segment on which they
//! ask and answer, on one made-up clock and one seed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ownership::{
    Action, AddressState, Asking, Candidates, Claim, Event, Extent, Heard, Mac, Memory, NodeName,
    Ownership, Settings, View,
};

pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub struct Speaker {
    pub core: Ownership,
    pub own: BTreeSet<IpAddr>,
    pub up: BTreeSet<NodeName>,
    pub repeated: BTreeSet<IpAddr>,
    pub states: BTreeMap<IpAddr, AddressState>,
    pub left: bool,
    /// The questions that are open, by the number of their end.
    asking: BTreeMap<IpAddr, u64>,
}

/// What is under way.
enum Flight {
    Datagram { from: usize, to: usize, payload: Vec<u8> },
    Probe { from: usize, question: u64, address: IpAddr },
    Heard { to: usize, question: u64, address: IpAddr, mac: Mac },
    Silence { to: usize, question: u64, address: IpAddr },
}

pub struct Cluster {
    pub now: Instant,
    pub born: Instant,
    pub names: Vec<NodeName>,
    pub speakers: BTreeMap<usize, Speaker>,
    pub lives: u64,
    pub settings: Settings,
    pub wanted: BTreeMap<IpAddr, Arc<Candidates>>,
    pub version: u64,
    flying: BTreeMap<(Instant, u64), Flight>,
    count: u64,
    random: u64,
    /// Of datagrams, in percent.
    pub loss: u64,
    pub delay: (Duration, Duration),
    /// Datagrams from one to another are lost.
    pub cut: BTreeSet<(usize, usize)>,
    /// Frames too.
    pub apart: BTreeSet<(usize, usize)>,
    /// Hosts of the segment that are no speakers.
    pub hosts: BTreeMap<IpAddr, Mac>,
    pub gateways: BTreeSet<IpAddr>,
    pub frozen: Option<usize>,
    /// Everything that was ever sent, if it is kept.
    pub tape: Option<Vec<(usize, usize, Vec<u8>)>>,
    pub datagrams: u64,
    pub questions: u64,
    /// Addresses that had an answerer once; since when they have none; the longest such time.
    answered: BTreeSet<IpAddr>,
    silent: BTreeMap<IpAddr, Instant>,
    pub longest_gap: Duration,
    pub moves: u64,
    /// To whom a client sends: whoever announced last.
    pub client: BTreeMap<IpAddr, usize>,
}

pub fn mac(node: usize) -> Mac {
    [2, 0, 0, 0, 0, u8::try_from(node).unwrap()]
}

pub fn address(n: usize) -> IpAddr {
    let n = u32::try_from(n).unwrap();
    if n % 3 == 2 {
        Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(n)).into()
    } else {
        Ipv4Addr::from_bits(0xc633_6400 + n).into()
    }
}

impl Cluster {
    pub fn new(size: usize, addresses: usize, seed: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
        let now = Instant::now() + Duration::from_secs(3600);
        let names: Vec<NodeName> = (0..size).map(|n| format!("node-{n}").into()).collect();
        let everybody = Arc::new(Candidates {
            nodes: names.iter().cloned().collect(),
            ..Candidates::default()
        });
        let wanted = (0..addresses).map(|n| (address(n), everybody.clone())).collect();
        Self {
            now,
            born: now,
            settings: Settings::new("".into(), 0),
            names,
            speakers: BTreeMap::new(),
            lives: 0,
            wanted,
            version: 1,
            flying: BTreeMap::new(),
            count: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            loss: 0,
            delay: (Duration::from_micros(300), Duration::from_micros(600)),
            cut: BTreeSet::new(),
            apart: BTreeSet::new(),
            hosts: BTreeMap::new(),
            gateways: BTreeSet::new(),
            frozen: None,
            tape: None,
            datagrams: 0,
            questions: 0,
            answered: BTreeSet::new(),
            silent: BTreeMap::new(),
            longest_gap: Duration::ZERO,
            moves: 0,
            client: BTreeMap::new(),
        }
    }

    /// One in which everybody has started within half a second and everything is placed.
    pub fn placed(size: usize, addresses: usize, seed: u64) -> Self {
        let mut cluster = Self::new(size, addresses, seed);
        cluster.place();
        cluster
    }

    pub fn place(&mut self) {
        let size = self.names.len();
        for node in 0..size {
            self.start_with(node, self.history());
            let pause = Duration::from_millis(self.below(500 / size as u64 + 1));
            self.run(pause);
        }
        self.run(ms(3000));
        self.assert_at_rest();
        self.moves = 0;
        self.longest_gap = Duration::ZERO;
    }

    /// What tells that the cluster is not new: it held an address once that nobody wants any more.
    fn history(&self) -> Memory {
        let claim = Claim { epoch: 1, owner: "node-0".into(), incarnation: 0 };
        Memory { claims: [(address(9999), claim)].into(), ..Memory::default() }
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    pub fn start(&mut self, node: usize) {
        self.start_with(node, Memory::default());
    }

    pub fn start_with(&mut self, node: usize, memory: Memory) {
        self.lives += 1;
        let settings = Settings {
            me: self.names[node].clone(),
            incarnation: self.lives,
            memory,
            ..self.settings.clone()
        };
        let core = Ownership::new(settings, self.now);
        let speaker = Speaker {
            core,
            own: BTreeSet::new(),
            up: BTreeSet::new(),
            repeated: BTreeSet::new(),
            states: BTreeMap::new(),
            left: false,
            asking: BTreeMap::new(),
        };
        self.speakers.insert(node, speaker);
        self.plug(node, &["eth0"]);
        self.give(node, Event::Gateways(self.gateways.clone()));
        let view = self.view();
        self.give(node, Event::View(view));
    }

    /// The interfaces of a node that can answer.
    pub fn plug(&mut self, node: usize, interfaces: &[&str]) {
        let stations = interfaces.iter().map(|name| ((*name).to_owned(), mac(node))).collect();
        self.give(node, Event::Stations(stations));
    }

    pub fn view(&self) -> View {
        View {
            version: self.version,
            extent: Extent::Whole,
            addresses: self.wanted.iter().map(|(at, who)| (*at, Some(who.clone()))).collect(),
            peers: Some(self.names.iter().cloned().collect()),
            draining: None,
        }
    }

    /// Everybody learns what is wanted now.
    pub fn publish(&mut self) {
        self.version += 1;
        let nodes: Vec<_> = self.speakers.keys().copied().collect();
        for node in nodes {
            let view = self.view();
            self.give(node, Event::View(view));
        }
    }

    /// More addresses, that all may own, are wanted.
    pub fn want_more(&mut self, which: std::ops::Range<usize>) {
        let everybody = self.names.iter().cloned().collect();
        let everybody = Arc::new(Candidates { nodes: everybody, ..Candidates::default() });
        self.wanted.extend(which.map(|n| (address(n), everybody.clone())));
        self.publish();
    }

    /// Delivers again what was once sent, to those that are up.
    pub fn play(&mut self, tape: &[(usize, usize, Vec<u8>)]) {
        for (from, to, payload) in tape {
            let from = self.names[*from].clone();
            self.give(*to, Event::Datagram { from: &from, payload });
        }
    }

    pub fn edit(&mut self, address: IpAddr, edit: impl FnOnce(&mut Candidates)) {
        edit(Arc::make_mut(self.wanted.get_mut(&address).unwrap()));
    }

    /// Ends the process; what it would find again is returned.
    pub fn kill(&mut self, node: usize) -> Memory {
        let speaker = self.speakers.remove(&node);
        // Whoever was served by it beside another, on the other side of a split, nobody tells that
        // it is gone: its neighbour entry ends, and it asks anew.
        for address in speaker.iter().flat_map(|speaker| &speaker.own) {
            if let Some(other) = self.answerers(*address).pop() {
                self.client.insert(*address, other);
            }
        }
        self.watch();
        speaker.map(|speaker| speaker.core.memory()).unwrap_or_default()
    }

    /// Datagrams are lost both ways.
    pub fn separate(&mut self, one: &[usize], other: &[usize]) {
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            self.cut.extend([(a, b), (b, a)]);
        }
    }

    /// Frames and datagrams are lost both ways.
    pub fn split(&mut self, one: &[usize], other: &[usize]) {
        self.separate(one, other);
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            self.apart.extend([(a, b), (b, a)]);
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
        self.apart.clear();
    }

    pub fn give(&mut self, node: usize, event: Event<'_>) {
        let Some(speaker) = self.speakers.get_mut(&node) else { return };
        let actions = speaker.core.handle(event, self.now);
        self.perform(node, actions);
    }

    fn perform(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            let Some(speaker) = self.speakers.get_mut(&node) else { return };
            match action {
                Action::Send { to, payload } => {
                    assert!(payload.len() <= 1200, "{} octets", payload.len());
                    let to = self.names.iter().position(|known| *known == to).unwrap();
                    self.send(node, to, payload);
                }
                Action::Own(addresses) => {
                    for address in addresses {
                        assert!(speaker.own.insert(address), "owned already");
                        self.client.insert(address, node);
                        self.moves += 1;
                    }
                    self.watch();
                }
                Action::Disown(addresses) => {
                    for address in addresses {
                        assert!(speaker.own.remove(&address), "never owned");
                    }
                    self.watch();
                }
                Action::Repeat(addresses) => {
                    for address in addresses {
                        assert!(speaker.own.contains(&address));
                        speaker.repeated.insert(address);
                        self.client.insert(address, node);
                    }
                }
                Action::PeerUp(name) => {
                    speaker.up.insert(name);
                }
                Action::PeerDown(name) => assert!(speaker.up.remove(&name)),
                Action::Ask { address, how } => self.ask(node, address, how),
                Action::StopAsking(address) => {
                    assert!(
                        speaker.asking.remove(&address).is_some(),
                        "{address} is not asked for"
                    );
                }
                Action::State(address, Some(state)) => {
                    let before = speaker.states.insert(address, state.clone());
                    assert_ne!(before, Some(state), "no news");
                }
                Action::State(address, None) => {
                    assert!(speaker.states.remove(&address).is_some());
                }
                Action::Left => {
                    assert!(!speaker.left, "said before");
                    speaker.left = true;
                }
            }
        }
    }

    fn fly(&mut self, after: Duration, flight: Flight) {
        self.count += 1;
        self.flying.insert((self.now + after, self.count), flight);
    }

    fn send(&mut self, from: usize, to: usize, payload: Vec<u8>) {
        self.datagrams += 1;
        if let Some(tape) = &mut self.tape {
            tape.push((from, to, payload.clone()));
        }
        let (least, most) = self.delay;
        let spread = u64::try_from((most - least).as_micros()).unwrap();
        let delay = least + Duration::from_micros(self.below(spread + 1));
        if self.below(100) >= self.loss && !self.cut.contains(&(from, to)) {
            self.fly(delay, Flight::Datagram { from, to, payload });
        }
    }

    fn ask(&mut self, node: usize, address: IpAddr, how: Asking) {
        self.count += 1;
        self.questions += 1;
        let question = self.count;
        let asking = &mut self.speakers.get_mut(&node).unwrap().asking;
        assert!(asking.insert(address, question).is_none(), "{address} is asked for already");
        let (probes, end): (&[u64], _) = match how {
            Asking::Fast => (&[0, 8, 16], ms(25)),
            Asking::Thorough => (&[200, 1400, 2900], ms(4900)),
            Asking::Once => (&[0], ms(100)),
        };
        for at in probes {
            self.fly(ms(*at), Flight::Probe { from: node, question, address });
        }
        self.fly(end, Flight::Silence { to: node, question, address });
    }

    /// A probe is on the segment: whoever has the address answers, whoever asks for it notes it.
    fn probe(&mut self, from: usize, question: u64, address: IpAddr) {
        if !self.is_asking(from, question, address) {
            return;
        }
        let near: Vec<_> = self
            .speakers
            .keys()
            .copied()
            .filter(|node| *node != from && self.frozen != Some(*node))
            .filter(|node| !self.apart.contains(&(from, *node)))
            .collect();
        for node in near {
            let speaker = &self.speakers[&node];
            if speaker.own.contains(&address) && !self.apart.contains(&(node, from)) {
                let mac = mac(node);
                self.fly(ms(1), Flight::Heard { to: from, question, address, mac });
            } else if speaker.asking.contains_key(&address) {
                let mac = mac(from);
                self.give(
                    node,
                    Event::Heard { address, interface: "eth0", mac, form: Heard::Probes },
                );
            }
        }
        let gateway = self.gateways.contains(&address).then_some([2, 9, 9, 9, 9, 9]);
        let cut_off = self.apart.contains(&(from, usize::MAX));
        if let Some(mac) = self.hosts.get(&address).copied().or(gateway).filter(|_| !cut_off) {
            self.fly(ms(1), Flight::Heard { to: from, question, address, mac });
        }
    }

    fn is_asking(&self, node: usize, question: u64, address: IpAddr) -> bool {
        self.speakers
            .get(&node)
            .is_some_and(|speaker| speaker.asking.get(&address) == Some(&question))
    }

    fn arrive(&mut self, flight: Flight) {
        match flight {
            Flight::Datagram { to, .. } if self.frozen == Some(to) => {}
            Flight::Datagram { from, to, payload } => {
                let from = self.names[from].clone();
                self.give(to, Event::Datagram { from: &from, payload: &payload });
            }
            Flight::Probe { from, question, address } => self.probe(from, question, address),
            Flight::Heard { to, question, address, mac } => {
                if self.is_asking(to, question, address) && self.frozen != Some(to) {
                    self.speakers.get_mut(&to).unwrap().asking.remove(&address);
                    // It is known from now on that somebody answered; the asker may stop asking
                    // all the same.
                    self.speakers.get_mut(&to).unwrap().asking.insert(address, 0);
                    self.give(
                        to,
                        Event::Heard { address, interface: "eth0", mac, form: Heard::Has },
                    );
                    let asking = &mut self.speakers.get_mut(&to).unwrap().asking;
                    if asking.get(&address) == Some(&0) {
                        asking.remove(&address);
                    }
                }
            }
            Flight::Silence { to, question, address } => {
                if self.is_asking(to, question, address) {
                    self.speakers.get_mut(&to).unwrap().asking.remove(&address);
                    self.give(to, Event::Silence(address));
                }
            }
        }
    }

    pub fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            let timers = self.speakers.iter().filter(|(node, _)| self.frozen != Some(**node));
            let wake = timers.filter_map(|(node, s)| Some((s.core.poll_timeout()?, *node))).min();
            let arrival = self.flying.first_key_value().map(|(&(at, _), _)| at);
            let next = wake.map(|(at, _)| at).into_iter().chain(arrival).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, flight) = self.flying.pop_first().unwrap();
                self.arrive(flight);
            } else {
                let (_, node) = wake.unwrap();
                let actions = self.speakers.get_mut(&node).unwrap().core.handle_timeout(self.now);
                self.perform(node, actions);
            }
        }
        self.now = end;
        self.watch();
    }

    /// Lets time pass for all but one.
    pub fn run_without(&mut self, node: usize, duration: Duration) {
        self.frozen = Some(node);
        self.run(duration);
        self.frozen = None;
    }

    fn watch(&mut self) {
        let answered: BTreeSet<_> =
            self.speakers.values().flat_map(|speaker| &speaker.own).copied().collect();
        for address in self.wanted.keys() {
            if answered.contains(address) {
                self.answered.insert(*address);
                if let Some(since) = self.silent.remove(address) {
                    self.longest_gap = self.longest_gap.max(self.now - since);
                }
            } else if self.answered.contains(address) {
                let since = self.silent.entry(*address).or_insert(self.now);
                self.longest_gap = self.longest_gap.max(self.now - *since);
            }
        }
    }

    pub fn answerers(&self, address: IpAddr) -> Vec<usize> {
        let owns = |speaker: &Speaker| speaker.own.contains(&address);
        self.speakers.iter().filter(|(_, speaker)| owns(speaker)).map(|(node, _)| *node).collect()
    }

    pub fn held_by(&self, node: usize) -> BTreeSet<IpAddr> {
        self.speakers.get(&node).map(|speaker| speaker.own.clone()).unwrap_or_default()
    }

    pub fn owner(&self, node: usize, address: IpAddr) -> Option<&NodeName> {
        self.speakers[&node].states.get(&address)?.owner.as_ref()
    }

    /// Exactly one answers for every address that somebody may answer for, all know who, and so
    /// do the clients.
    pub fn assert_at_rest(&self) {
        for (address, candidates) in &self.wanted {
            let answerers = self.answerers(*address);
            let expected =
                self.speakers.keys().any(|node| candidates.nodes.contains(&self.names[*node]));
            assert_eq!(answerers.len(), usize::from(expected), "{address}: {answerers:?}");
            for node in self.speakers.keys() {
                let owner = answerers.first().map(|owner| &self.names[*owner]);
                assert_eq!(self.owner(*node, *address), owner, "{address} seen by {node}");
            }
            if let Some(owner) = answerers.first() {
                assert_eq!(self.client.get(address), Some(owner), "{address} in the client");
            }
        }
        for (node, speaker) in &self.speakers {
            assert_eq!(speaker.core.live_peers().count(), self.speakers.len() - 1, "{node}");
            assert!(speaker.core.live_peers().eq(&speaker.up), "{node}");
            let claims = |speaker: &Speaker| {
                let mut claims = speaker.core.memory().claims;
                claims.retain(|address, _| self.wanted.contains_key(address));
                claims
            };
            for (other, rows) in &self.speakers {
                assert!(claims(rows) == claims(speaker), "tables of {node} and {other}");
            }
        }
    }

    /// The most addresses that a speaker holds above the least.
    pub fn spread(&self) -> usize {
        let loads: Vec<_> = self.speakers.values().map(|speaker| speaker.own.len()).collect();
        loads.iter().max().unwrap() - loads.iter().min().unwrap()
    }

    pub fn counted(&self, count: impl Fn(&ownership::Counters) -> u64) -> u64 {
        self.speakers.values().map(|speaker| count(speaker.core.counters())).sum()
    }
}
