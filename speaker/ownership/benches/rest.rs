//! What a beat costs at rest: three nodes that hear each other and own all there is, with few and
//! with many addresses. `cargo bench --package ownership` prints it. The network is a queue.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ownership::{Action, Candidates, Event, Extent, NodeName, Ownership, Profile, Settings, View};

const NODES: usize = 3;

/// Until every address has its owner and its proof, and nothing is new any more.
const SETTLES: Duration = Duration::from_secs(90);

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(60);

fn main() {
    println!(
        "{NODES} nodes at rest, {} beats a second; median and 99 %\n\
         {:>10} {:>18} {:>18} {:>18} {:>18}",
        Duration::from_secs(1).as_millis() / Profile::DEFAULT.interval.as_millis(),
        "addresses",
        "a wake-up",
        "a datagram",
        "poll_timeout",
        "of a core, a node"
    );
    for addresses in [10, 1_000, 10_000] {
        let mut net = Net::new(addresses);
        net.run(SETTLES);
        net.spent = Spent::default();
        net.run(WATCHED);
        let Spent { wakes, datagrams, polls } = &mut net.spent;
        let total = wakes.total() + datagrams.total() + polls.total();
        let nodes = u32::try_from(NODES).unwrap();
        println!(
            "{addresses:>10} {:>18} {:>18} {:>18} {:>16.4} %",
            wakes.figures(),
            datagrams.figures(),
            polls.figures(),
            total.as_secs_f64() * 100.0 / f64::from(nodes) / WATCHED.as_secs_f64()
        );
    }
}

#[derive(Default)]
struct Cost(Vec<Duration>);

impl Cost {
    fn of<R>(&mut self, what: impl FnOnce() -> R) -> R {
        let begin = Instant::now();
        let result = what();
        self.0.push(begin.elapsed());
        result
    }

    /// The median and the largest but one in a hundred, which is a pause of the machine less often
    /// than the mean has one in it.
    fn figures(&mut self) -> String {
        self.0.sort_unstable();
        let at = |percent: usize| self.0[(self.0.len() - 1) * percent / 100];
        format!("{:?} {:?}", at(50), at(99))
    }

    fn total(&self) -> Duration {
        self.0.iter().sum()
    }
}

/// What is measured of the cores.
#[derive(Default)]
struct Spent {
    wakes: Cost,
    datagrams: Cost,
    polls: Cost,
}

struct Net {
    now: Instant,
    cores: Vec<Ownership>,
    wakes: Vec<Option<Instant>>,
    sent: VecDeque<(usize, usize, Vec<u8>)>,
    /// When a question has waited long enough.
    silences: BTreeMap<(usize, IpAddr), Instant>,
    spent: Spent,
}

fn name(node: usize) -> NodeName {
    format!("node-{node}").into()
}

impl Net {
    fn new(addresses: u32) -> Self {
        let now = Instant::now();
        let nodes: BTreeSet<_> = (0..NODES).map(name).collect();
        let candidates = Arc::new(Candidates { nodes: nodes.clone(), ..Candidates::default() });
        let address = |n| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n));
        let view = View {
            version: 1,
            extent: Extent::Whole,
            addresses: (0..addresses).map(|n| (address(n), Some(candidates.clone()))).collect(),
            peers: Some(nodes),
            draining: Some(false),
        };
        let core = |node| Ownership::new(Settings::new(name(node), 1), now);
        let mut net = Self {
            now,
            cores: (0..NODES).map(core).collect(),
            wakes: vec![Some(now); NODES],
            sent: VecDeque::new(),
            silences: BTreeMap::new(),
            spent: Spent::default(),
        };
        for node in 0..NODES {
            let mac = [2, 0, 0, 0, 0, u8::try_from(node).unwrap()];
            net.feed(node, Event::Stations([("eth0".to_owned(), mac)].into()));
            net.feed(node, Event::View(view.clone()));
        }
        net
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while let Some((from, to, payload)) = self.sent.pop_front() {
                let from = name(from);
                let event = Event::Datagram { from: &from, payload: &payload };
                let actions = self.spent.datagrams.of(|| self.cores[to].handle(event, self.now));
                self.perform(to, actions);
            }
            let silent = self.silences.iter().min_by_key(|(_, at)| **at);
            let silent = silent.map(|(key, at)| (*at, *key));
            let wake = (0..NODES).filter_map(|node| Some((self.wakes[node]?, node))).min();
            match (wake, silent) {
                (_, Some((at, (node, address)))) if wake.is_none_or(|(first, _)| at < first) => {
                    self.now = self.now.max(at);
                    self.silences.remove(&(node, address));
                    self.feed(node, Event::Silence(address));
                }
                (Some((at, node)), _) if at <= end => {
                    self.now = self.now.max(at);
                    let actions = self.spent.wakes.of(|| self.cores[node].handle_timeout(self.now));
                    self.perform(node, actions);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn feed(&mut self, node: usize, event: Event<'_>) {
        let actions = self.cores[node].handle(event, self.now);
        self.perform(node, actions);
    }

    fn perform(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send { to, payload } => {
                    let to = (0..NODES).find(|other| name(*other) == to).unwrap();
                    self.sent.push_back((node, to, payload));
                }
                Action::Ask { address, .. } => {
                    let at = self.now + Duration::from_millis(25);
                    self.silences.insert((node, address), at);
                }
                Action::StopAsking(address) => {
                    self.silences.remove(&(node, address));
                }
                Action::Own(_)
                | Action::Disown(_)
                | Action::Repeat(_)
                | Action::State(..)
                | Action::PeerUp(_)
                | Action::PeerDown(_)
                | Action::Left => {}
            }
        }
        self.wakes[node] = self.spent.polls.of(|| self.cores[node].poll_timeout());
    }
}
