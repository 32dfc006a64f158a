//! Several speakers that agree on owners over a network that loses, delays and cuts, on one made-up
//! clock and one seed.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use layer2::ownership::{Action, Event, Recipient};
use layer2::{Candidates, NodeName, Ownership, OwnershipConfig};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Four beats of 40 ms and the slack.
const DEATH: Duration = ms(170);

struct Speaker {
    core: Ownership,
    own: BTreeSet<IpAddr>,
    up: BTreeSet<NodeName>,
    repeated: BTreeSet<IpAddr>,
}

struct Cluster {
    now: Instant,
    names: Vec<NodeName>,
    speakers: BTreeMap<usize, Speaker>,
    lives: u64,
    wanted: BTreeMap<IpAddr, Candidates>,
    flying: BTreeMap<(Instant, u64), (usize, usize, Vec<u8>)>,
    sent: u64,
    random: u64,
    /// In percent.
    loss: u64,
    delay: (Duration, Duration),
    cut: BTreeSet<(usize, usize)>,
    /// Addresses that had an answerer once; since when they have none; the longest such time.
    answered: BTreeSet<IpAddr>,
    silent: BTreeMap<IpAddr, Instant>,
    longest_gap: Duration,
    moves: u64,
}

impl Cluster {
    fn new(size: usize, addresses: usize, seed: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
        let now = Instant::now();
        let names: Vec<NodeName> = (0..size).map(|n| format!("node-{n}").into()).collect();
        let everybody =
            Candidates { nodes: names.iter().cloned().collect(), ..Candidates::default() };
        let wanted = (0..addresses).map(|n| (address(n), everybody.clone())).collect();
        Self {
            now,
            names,
            speakers: BTreeMap::new(),
            lives: 0,
            wanted,
            flying: BTreeMap::new(),
            sent: 0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            loss: 0,
            delay: (Duration::from_micros(300), Duration::from_micros(600)),
            cut: BTreeSet::new(),
            answered: BTreeSet::new(),
            silent: BTreeMap::new(),
            longest_gap: Duration::ZERO,
            moves: 0,
        }
    }

    /// One in which everybody has started within half a second and everything is placed.
    fn placed(size: usize, addresses: usize, seed: u64) -> Self {
        let mut cluster = Self::new(size, addresses, seed);
        for node in 0..size {
            cluster.start(node);
            let pause = Duration::from_millis(cluster.below(500 / size as u64 + 1));
            cluster.run(pause);
        }
        cluster.run(ms(3000));
        cluster.assert_at_rest();
        cluster
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn start(&mut self, node: usize) {
        self.lives += 1;
        let config = OwnershipConfig::new(self.names[node].clone(), self.lives);
        let core = Ownership::new(config, self.now);
        let speaker =
            Speaker { core, own: BTreeSet::new(), up: BTreeSet::new(), repeated: BTreeSet::new() };
        self.speakers.insert(node, speaker);
        let others = self.names.iter().cloned().collect();
        self.give(node, Event::Peers(others));
        self.give(node, Event::Wanted(self.wanted.clone()));
    }

    fn kill(&mut self, node: usize) {
        self.speakers.remove(&node);
        self.watch();
    }

    fn want(&mut self, wanted: BTreeMap<IpAddr, Candidates>) {
        self.wanted = wanted;
        let nodes: Vec<_> = self.speakers.keys().copied().collect();
        for node in nodes {
            self.give(node, Event::Wanted(self.wanted.clone()));
        }
    }

    fn separate(&mut self, one: &[usize], other: &[usize]) {
        for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
            self.cut.extend([(a, b), (b, a)]);
        }
    }

    fn give(&mut self, node: usize, event: Event<'_>) {
        let Some(speaker) = self.speakers.get_mut(&node) else { return };
        let actions = speaker.core.handle(event, self.now);
        self.perform(node, actions);
    }

    fn perform(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { to, payload } => {
                    assert!(payload.len() <= 1200, "{} octets", payload.len());
                    let receivers: Vec<_> = match to {
                        Recipient::All => (0..self.names.len()).filter(|to| *to != node).collect(),
                        Recipient::Node(name) => {
                            vec![self.names.iter().position(|known| *known == name).unwrap()]
                        }
                    };
                    for receiver in receivers {
                        self.send(node, receiver, payload.clone());
                    }
                }
                Action::Own(own) => {
                    let speaker = self.speakers.get_mut(&node).unwrap();
                    self.moves += own.difference(&speaker.own).count() as u64;
                    speaker.own = own;
                    self.watch();
                }
                Action::Repeat(addresses) => {
                    let speaker = self.speakers.get_mut(&node).unwrap();
                    assert!(addresses.is_subset(&speaker.own));
                    speaker.repeated.extend(addresses);
                }
                Action::PeerUp(name) => {
                    self.speakers.get_mut(&node).unwrap().up.insert(name);
                }
                Action::PeerDown(name) => {
                    assert!(self.speakers.get_mut(&node).unwrap().up.remove(&name));
                }
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, payload: Vec<u8>) {
        let (least, most) = self.delay;
        let spread = u64::try_from((most - least).as_micros()).unwrap();
        let delay = least + Duration::from_micros(self.below(spread + 1));
        if self.below(100) >= self.loss && !self.cut.contains(&(from, to)) {
            self.sent += 1;
            self.flying.insert((self.now + delay, self.sent), (from, to, payload));
        }
    }

    fn run(&mut self, duration: Duration) {
        self.run_without(usize::MAX, duration);
    }

    /// Lets time pass for all but one.
    fn run_without(&mut self, frozen: usize, duration: Duration) {
        let end = self.now + duration;
        loop {
            let timers = self.speakers.iter().filter(|(node, _)| **node != frozen);
            let wake = timers.filter_map(|(node, s)| Some((s.core.poll_timeout()?, *node))).min();
            let arrival = self.flying.first_key_value().map(|(&(at, _), _)| at);
            let next = wake.map(|(at, _)| at).into_iter().chain(arrival).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let (_, (from, to, payload)) = self.flying.pop_first().unwrap();
                if to != frozen {
                    let from = self.names[from].clone();
                    self.give(to, Event::Datagram { from: &from, payload: &payload });
                }
            } else {
                let (_, node) = wake.unwrap();
                let actions = self.speakers.get_mut(&node).unwrap().core.handle_timeout(self.now);
                self.perform(node, actions);
            }
        }
        self.now = end;
        self.watch();
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

    fn answerers(&self, address: IpAddr) -> Vec<usize> {
        let owns = |speaker: &Speaker| speaker.own.contains(&address);
        self.speakers.iter().filter(|(_, speaker)| owns(speaker)).map(|(node, _)| *node).collect()
    }

    fn held_by(&self, node: usize) -> BTreeSet<IpAddr> {
        self.speakers.get(&node).map(|speaker| speaker.own.clone()).unwrap_or_default()
    }

    /// Exactly one answers for every address that somebody may answer for, and all know who.
    fn assert_at_rest(&self) {
        for (address, candidates) in &self.wanted {
            let answerers = self.answerers(*address);
            let expected =
                self.speakers.keys().any(|node| candidates.nodes.contains(&self.names[*node]));
            assert_eq!(answerers.len(), usize::from(expected), "{address}: {answerers:?}");
            for (node, speaker) in &self.speakers {
                let owner = answerers.first().map(|owner| &self.names[*owner]);
                assert_eq!(speaker.core.owner(*address), owner, "{address} seen by {node}");
            }
        }
        for speaker in self.speakers.values() {
            assert_eq!(speaker.core.live_peers().count(), self.speakers.len() - 1);
            assert!(speaker.core.live_peers().eq(&speaker.up));
        }
    }

    /// The most addresses that a speaker holds above the least.
    fn spread(&self) -> usize {
        let loads: Vec<_> = self.speakers.values().map(|speaker| speaker.own.len()).collect();
        loads.iter().max().unwrap() - loads.iter().min().unwrap()
    }

    fn without(&self, address: IpAddr, node: usize) -> BTreeMap<IpAddr, Candidates> {
        let mut wanted = self.wanted.clone();
        let name = &self.names[node];
        wanted.get_mut(&address).unwrap().nodes.remove(name);
        wanted
    }
}

fn address(n: usize) -> IpAddr {
    let n = u32::try_from(n).unwrap();
    if n % 3 == 2 {
        Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(n)).into()
    } else {
        Ipv4Addr::from_bits(0xc633_6400 + n).into()
    }
}

#[test]
fn a_new_cluster_divides_the_addresses_evenly() {
    for (size, seeds) in [(1, 2), (2, 20), (3, 20), (5, 10), (20, 2)] {
        for seed in 0..seeds {
            let cluster = Cluster::placed(size, 100, seed);
            assert!(cluster.spread() <= 1, "{size} nodes, seed {seed}: {}", cluster.spread());
            assert_eq!(cluster.moves, 100, "{size} nodes, seed {seed}: somebody took twice");
        }
    }
}

#[test]
fn claims_that_arrive_late_and_out_of_order_do_not_spoil_the_division() {
    for seed in 0..5 {
        let mut cluster = Cluster::new(4, 1000, seed);
        cluster.delay.1 = ms(60);
        for node in 0..4 {
            cluster.start(node);
        }
        cluster.run(ms(3000));
        cluster.assert_at_rest();
        assert!(cluster.spread() <= 1, "seed {seed}: {}", cluster.spread());
        assert_eq!(cluster.moves, 1000, "seed {seed}");
    }
}

#[test]
fn nothing_is_claimed_while_listening() {
    let mut cluster = Cluster::new(1, 5, 1);
    cluster.start(0);
    cluster.run(ms(319));
    assert!(cluster.held_by(0).is_empty());
    cluster.run(ms(2));
    assert_eq!(cluster.held_by(0).len(), 5, "there is nobody else to wait for");
}

#[test]
fn candidates_that_never_come_are_waited_for_two_seconds() {
    let mut cluster = Cluster::new(3, 30, 1);
    cluster.start(0);
    cluster.start(1);
    cluster.run(ms(2300));
    assert!(cluster.answered.is_empty());
    cluster.run(ms(100));
    cluster.assert_at_rest();
    assert_eq!(cluster.spread(), 0);
    let mut wanted = cluster.wanted.clone();
    wanted.insert(address(30), wanted[&address(0)].clone());
    cluster.want(wanted);
    assert_eq!(cluster.answerers(address(30)).len(), 1, "a later address waits for nobody");
}

#[test]
fn a_speaker_that_starts_late_into_the_first_wait_still_gets_its_share() {
    let mut cluster = Cluster::new(3, 60, 7);
    cluster.start(0);
    cluster.run(ms(1000));
    cluster.start(1);
    cluster.run(ms(2500));
    cluster.assert_at_rest();
    assert!(cluster.spread() <= 1, "the first did not wait for the second's own wait");
}

#[test]
fn a_dead_owner_is_replaced_in_time_and_evenly() {
    for (size, seed) in [(2, 1), (3, 2), (5, 3), (20, 4)] {
        let mut cluster = Cluster::placed(size, 100, seed);
        let pause = Duration::from_millis(cluster.below(40));
        cluster.run(pause);
        cluster.kill(0);
        cluster.run(ms(1000));
        cluster.assert_at_rest();
        assert!(cluster.longest_gap <= DEATH + ms(5), "{size}: {:?}", cluster.longest_gap);
        assert!(cluster.spread() <= 1, "{size}: {}", cluster.spread());
    }
}

#[test]
fn two_that_die_together_are_replaced() {
    let mut cluster = Cluster::placed(5, 100, 9);
    cluster.kill(1);
    cluster.kill(3);
    cluster.run(ms(1500));
    cluster.assert_at_rest();
    assert!(cluster.longest_gap <= DEATH + ms(165), "{:?}", cluster.longest_gap);
    assert!(cluster.spread() <= 2, "{}", cluster.spread());
}

#[test]
fn nothing_moves_back_to_one_that_returns() {
    let mut cluster = Cluster::placed(3, 30, 3);
    cluster.kill(2);
    cluster.run(ms(1000));
    let moves = cluster.moves;
    cluster.start(2);
    cluster.run(ms(3000));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, moves);
    assert!(cluster.held_by(2).is_empty());
    let mut wanted = cluster.wanted.clone();
    for n in 30..40 {
        wanted.insert(address(n), wanted[&address(0)].clone());
    }
    cluster.want(wanted);
    cluster.run(ms(500));
    cluster.assert_at_rest();
    assert_eq!(cluster.held_by(2).len(), 10, "what is new goes to the one with the least");
}

#[test]
fn one_that_restarts_at_once_is_replaced_without_waiting_for_its_death() {
    let mut cluster = Cluster::placed(3, 30, 4);
    cluster.kill(0);
    cluster.run(ms(20));
    cluster.start(0);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert!(cluster.longest_gap <= ms(30), "{:?}", cluster.longest_gap);
}

#[test]
fn one_that_leaves_hands_over_without_a_gap() {
    for loss in [0, 20] {
        for seed in 0..10 {
            let mut cluster = Cluster::placed(3, 60, seed);
            cluster.loss = loss;
            cluster.give(0, Event::Leave);
            cluster.run(ms(501));
            assert!(cluster.held_by(0).is_empty());
            cluster.kill(0);
            assert_eq!(cluster.longest_gap, Duration::ZERO, "loss {loss}, seed {seed}");
            cluster.loss = 0;
            cluster.run(ms(1000));
            cluster.assert_at_rest();
            assert!(loss > 0 || cluster.spread() <= 1, "{}", cluster.spread());
        }
    }
}

#[test]
fn the_last_one_answers_to_the_end() {
    let mut cluster = Cluster::placed(1, 3, 1);
    cluster.give(0, Event::Leave);
    cluster.run(ms(499));
    assert_eq!(cluster.held_by(0).len(), 3);
    cluster.run(ms(2));
    assert!(cluster.held_by(0).is_empty());
}

#[test]
fn one_that_is_no_longer_a_candidate_hands_over_without_a_gap() {
    let mut cluster = Cluster::placed(3, 9, 5);
    let old = cluster.answerers(address(4))[0];
    let wanted = cluster.without(address(4), old);
    cluster.give(old, Event::Wanted(wanted.clone()));
    cluster.run(ms(10));
    assert_ne!(cluster.answerers(address(4)), [old], "the others need not know why");
    cluster.want(wanted);
    cluster.run(ms(50));
    cluster.assert_at_rest();
    assert_ne!(cluster.answerers(address(4)), [old]);
    assert_eq!(cluster.longest_gap, Duration::ZERO);
}

#[test]
fn an_offer_is_taken_back_when_its_reason_has_gone() {
    let mut cluster = Cluster::placed(2, 2, 5);
    let old = cluster.answerers(address(0))[0];
    let before = cluster.wanted.clone();
    // Nobody is a candidate: nobody can take it.
    let mut wanted = before.clone();
    wanted.get_mut(&address(0)).unwrap().nodes.clear();
    cluster.want(wanted);
    cluster.run(ms(400));
    cluster.give(old, Event::Wanted(before.clone()));
    cluster.run(ms(2));
    cluster.want(before);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.answerers(address(0)), [old]);
    assert_eq!(cluster.longest_gap, Duration::ZERO);
}

#[test]
fn an_address_that_nobody_wants_any_more_is_taken_by_nobody() {
    let mut cluster = Cluster::placed(3, 9, 6);
    let old = cluster.answerers(address(0))[0];
    let moves = cluster.moves;
    let mut wanted = cluster.wanted.clone();
    wanted.remove(&address(0));
    // The owner hears of it first.
    cluster.give(old, Event::Wanted(wanted.clone()));
    assert!(cluster.answerers(address(0)).is_empty());
    cluster.run(ms(250));
    cluster.want(wanted);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, moves);
}

#[test]
fn preferred_nodes_come_first() {
    let mut cluster = Cluster::new(3, 9, 6);
    for candidates in cluster.wanted.values_mut() {
        candidates.preference.insert(cluster.names[1].clone(), 100);
    }
    for node in 0..3 {
        cluster.start(node);
    }
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.held_by(1).len(), 9);
    cluster.kill(1);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert!(cluster.spread() <= 1);
}

#[test]
fn addresses_that_come_one_by_one_are_spread() {
    for seed in 0..5 {
        let mut cluster = Cluster::placed(3, 1, seed);
        let everybody = cluster.wanted[&address(0)].clone();
        for n in 0..60 {
            let mut wanted = cluster.wanted.clone();
            // Not in the order of the addresses.
            wanted.insert(address(1 + n * 37 % 61), everybody.clone());
            cluster.want(wanted);
            let pause = Duration::from_millis(cluster.below(50));
            cluster.run(pause);
        }
        cluster.run(ms(500));
        cluster.assert_at_rest();
        assert!(cluster.spread() <= 1, "seed {seed}: {}", cluster.spread());
    }
}

#[test]
fn a_healed_split_is_settled_in_time() {
    for (size, seed) in [(2, 1), (3, 2), (5, 3)] {
        let mut cluster = Cluster::placed(size, 60, seed);
        let (one, other): (Vec<_>, Vec<_>) = (0..size).partition(|node| node % 2 == 0);
        cluster.separate(&one, &other);
        cluster.run(ms(5000));
        for address in cluster.wanted.keys() {
            assert_eq!(cluster.answerers(*address).len(), 2, "both sides serve their clients");
        }
        cluster.cut.clear();
        cluster.run(ms(100));
        cluster.assert_at_rest();
        assert_eq!(cluster.longest_gap, Duration::ZERO);
        // Whoever stays tells the neighbors of the other side.
        for speaker in cluster.speakers.values() {
            assert_eq!(speaker.repeated, speaker.own);
        }
        let moves = cluster.moves;
        cluster.run(ms(5000));
        assert_eq!(cluster.moves, moves);
    }
}

#[test]
fn a_pause_of_ones_own_is_nobodys_death() {
    for pause in [100, 160, 1000, 5000] {
        let mut cluster = Cluster::placed(3, 30, 8);
        let before = cluster.held_by(0);
        cluster.run_without(0, ms(pause));
        cluster.run(ms(200));
        cluster.assert_at_rest();
        let after = cluster.held_by(0);
        assert!(after.is_subset(&before), "{pause} ms: the one that slept took something");
        assert_eq!(after == before, pause < 170, "{pause} ms");
        assert_eq!(cluster.speakers[&0].core.counters().false_verdicts, 0);
        assert_eq!(cluster.longest_gap, Duration::ZERO);
    }
}

#[test]
fn a_newcomer_learns_thousands_of_addresses_before_it_may_claim() {
    let mut cluster = Cluster::placed(2, 4000, 8);
    assert!(cluster.spread() <= 1);
    let moves = cluster.moves;
    cluster.names.push("node-2".into());
    for candidates in cluster.wanted.values_mut() {
        candidates.nodes.insert("node-2".into());
    }
    let wanted = cluster.wanted.clone();
    cluster.want(wanted);
    for node in 0..2 {
        cluster.give(node, Event::Peers(cluster.names.iter().cloned().collect()));
    }
    cluster.start(2);
    cluster.run(ms(400));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, moves);
    cluster.kill(0);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert!(cluster.longest_gap <= DEATH + ms(5), "{:?}", cluster.longest_gap);
    assert_eq!(cluster.held_by(2).len(), 2000, "the survivor has its share already");
}

#[test]
fn loss_of_a_fifth_ends_with_one_owner() {
    for seed in 0..20 {
        let size = 2 + usize::try_from(seed % 4).unwrap();
        let mut cluster = Cluster::new(size, 50, seed);
        cluster.loss = 20;
        for node in 0..size {
            cluster.start(node);
        }
        cluster.run(ms(5000));
        cluster.loss = 0;
        cluster.run(ms(640));
        cluster.assert_at_rest();
    }
}

#[test]
fn any_mix_of_faults_ends_with_one_owner() {
    for seed in 0..200 {
        let size = 3 + usize::try_from(seed % 5).unwrap();
        let mut cluster = Cluster::placed(size, 40, seed);
        for _ in 0..12 {
            cluster.loss = cluster.below(3) * 10;
            cluster.delay.1 = Duration::from_millis(1 + cluster.below(120));
            let node = usize::try_from(cluster.below(size as u64)).unwrap();
            let other = usize::try_from(cluster.below(size as u64)).unwrap();
            match cluster.below(8) {
                0 => cluster.kill(node),
                1 | 2 => cluster.start(node),
                3 if node != other => cluster.separate(&[node], &[other]),
                4 => {
                    cluster.cut.insert((node, other));
                }
                5 => cluster.cut.clear(),
                6 => {
                    let pause = Duration::from_millis(cluster.below(800));
                    cluster.run_without(node, pause);
                }
                _ => {
                    let n = usize::try_from(cluster.below(40)).unwrap();
                    cluster.give(node, Event::Wanted(cluster.without(address(n), other)));
                }
            }
            let pause = Duration::from_millis(cluster.below(600));
            cluster.run(pause);
        }
        cluster.loss = 0;
        cluster.delay.1 = ms(1);
        cluster.cut.clear();
        let wanted = cluster.wanted.clone();
        cluster.want(wanted);
        cluster.run(ms(3500));
        println!("seed {seed}");
        cluster.assert_at_rest();
    }
}
