//! The cluster: nodes with their cores, what is on its way, and the one clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use ownership::{
    AddressState, Asking, Candidates, Claim, ConflictProbe, Heard, Mac, Memory, NodeName,
    Ownership, Profile,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    api::{Api, Change, Lie},
    broken::Broken,
    checker::Checker,
    fault::Inbox,
    segment::Segment,
};
use crate::sim::queue::Queue;

mod actions;
mod delivery;
mod faults;
mod frames;

/// The interface of every node.
pub const ETH0: &str = "eth0";

/// Datagrams and frames that a process finds when it goes on after standing still: what a socket's
/// buffer holds.
const INBOX: usize = 256;

/// Recorded datagrams that are kept.
const RECORDED: usize = 400;

/// Timers that fire at one instant before the core is said to spin.
const SPINS: u32 = 10_000;

/// What kind of cluster.
#[derive(Debug, Clone)]
pub struct Options {
    pub nodes: usize,
    pub hosts: usize,
    pub profile: Profile,
    pub conflict_probe: ConflictProbe,
    pub rebalance: bool,
    /// Whether there is a gateway that answers.
    pub gateway: bool,
    /// How late timers fire at most.
    pub lateness: Duration,
    /// How much faster or slower clocks run at most, in millionths.
    pub skew: u32,
    /// How many of a hundred datagrams come twice, as the transport does not let them.
    pub duplicates: u8,
    /// Whether the story is kept.
    pub story: bool,
    /// Leave out a rule on purpose, to see that the checker sees it.
    pub broken: Option<Broken>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nodes: 3,
            hosts: 2,
            profile: Profile::DEFAULT,
            conflict_probe: ConflictProbe::Fast,
            rebalance: false,
            gateway: true,
            lateness: Duration::from_millis(1),
            skew: 0,
            duplicates: 0,
            story: false,
            broken: None,
        }
    }
}

/// A node, with its speaker if that runs.
#[derive(Debug)]
pub struct Node {
    pub name: NodeName,
    pub speaker: Option<Speaker>,
    /// Which life of its speaker this is, or was the last.
    pub life: u64,
    disk: Stored,
    old_disk: Stored,
    /// What its clock counts in a million microseconds.
    rate: u32,
    /// How much time its clock has left out.
    lag: Duration,
    stale_until: Instant,
    lie: Option<Lie>,
}

/// What a speaker leaves on its disk.
#[derive(Debug, Clone, Default)]
struct Stored {
    memory: Memory,
    /// How much of the API server's history it knew.
    known: Option<usize>,
}

/// One life of a speaker.
#[derive(Debug)]
pub struct Speaker {
    pub core: Ownership,
    /// What it answers for, if it runs and its interface is there.
    pub answers: BTreeSet<IpAddr>,
    /// What it says of addresses.
    pub states: BTreeMap<IpAddr, AddressState>,
    /// The highest epoch it has named for each address.
    pub epochs: BTreeMap<IpAddr, u64>,
    /// Who may own what, as it was told.
    pub view: BTreeMap<IpAddr, Arc<Candidates>>,
    /// How much of the API server's history it knows.
    pub known: Option<usize>,
    pub draining: bool,
    pub leaving: bool,
    frozen: Option<Frozen>,
    asking: BTreeMap<IpAddr, Question>,
    /// The number of the announcement that is on for an address.
    series: BTreeMap<IpAddr, u64>,
    /// When it wants to be woken, and the number of the message that does it.
    wake: Option<(Instant, u64)>,
    saving: bool,
    left: bool,
}

/// A question that is out for an address.
#[derive(Debug)]
struct Question {
    number: u64,
    how: Asking,
    /// What was heard is told once.
    heard: Vec<(Mac, Heard)>,
}

#[derive(Debug)]
struct Frozen {
    since: Instant,
    until: Instant,
    inbox: Inbox,
    kept: Vec<Message>,
}

impl Speaker {
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }
}

#[derive(Debug, Clone)]
enum Message {
    Wake {
        node: usize,
        life: u64,
        number: u64,
    },
    Datagram {
        to: usize,
        from: usize,
        payload: Vec<u8>,
    },
    /// The node looks into what the API server has for it.
    Api {
        node: usize,
        life: u64,
    },
    /// A question is asked once.
    Question {
        node: usize,
        life: u64,
        address: IpAddr,
        number: u64,
    },
    Heard {
        node: usize,
        address: IpAddr,
        mac: Mac,
        form: Heard,
    },
    Silence {
        node: usize,
        life: u64,
        address: IpAddr,
        number: u64,
    },
    /// A frame of an announcement is sent.
    Announce {
        node: usize,
        life: u64,
        address: IpAddr,
        number: u64,
        index: usize,
    },
    Save {
        node: usize,
        life: u64,
    },
    Thaw {
        node: usize,
        life: u64,
    },
}

/// Who has to do with an address at the moment.
#[derive(Debug, Default)]
struct Concerned {
    answering: BTreeSet<usize>,
    asking: BTreeSet<usize>,
}

/// A datagram for replays.
#[derive(Debug)]
struct Recorded {
    from: usize,
    from_life: u64,
    to: usize,
    to_life: u64,
    payload: Vec<u8>,
}

impl Question {
    fn is_answered(&self) -> bool {
        self.heard.iter().any(|(_, form)| *form == Heard::Has)
    }
}

/// The whole.
#[derive(Debug)]
pub struct Cluster {
    pub now: Instant,
    pub start: Instant,
    pub nodes: Vec<Node>,
    pub segment: Segment,
    pub api: Api,
    pub checker: Checker,
    /// What happened, for the reader of a failed seed.
    pub story: Vec<String>,
    pub options: Options,
    rng: StdRng,
    queue: Queue<Message>,
    concerned: BTreeMap<IpAddr, Concerned>,
    recorded: Vec<Recorded>,
    loss: u8,
    frame_loss: u8,
    delay: Duration,
    numbers: u64,
    spins: (Instant, u32),
}

impl Cluster {
    /// Nodes whose speakers do not run yet.
    pub fn new(seed: u64, options: Options) -> Self {
        let start = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let nodes = (0..options.nodes).map(|index| Node {
            name: name(index),
            speaker: None,
            life: 0,
            disk: Stored::default(),
            old_disk: Stored::default(),
            rate: 1_000_000 - options.skew + rng.random_range(0..=2 * options.skew),
            lag: Duration::ZERO,
            stale_until: start,
            lie: None,
        });
        Self {
            now: start,
            start,
            nodes: nodes.collect(),
            segment: Segment::new(options.hosts, options.gateway),
            api: Api::default(),
            checker: Checker::new(start, options.nodes),
            story: Vec::new(),
            options,
            rng,
            queue: Queue::default(),
            concerned: BTreeMap::new(),
            recorded: Vec::new(),
            loss: 0,
            frame_loss: 0,
            delay: Duration::ZERO,
            numbers: 0,
            spins: (start, 0),
        }
    }

    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub fn tell(&mut self, what: std::fmt::Arguments<'_>) {
        if self.options.story {
            let line = format!("{:>10.3} ms {what}", self.elapsed().as_secs_f64() * 1000.0);
            self.story.push(line);
        }
    }

    /// Runs for a time.
    ///
    /// # Errors
    /// The first rule that was broken.
    pub fn run(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        while let Some((at, _)) = self.queue.first()
            && at <= end
        {
            self.now = self.now.max(at);
            if let Some(message) = self.queue.pop_due(self.now) {
                self.deliver(message);
            }
            self.checker.verdict()?;
        }
        self.now = end;
        Ok(())
    }

    /// Whether the node's speaker runs, is not standing still, and has its interface.
    pub fn is_well(&self, node: usize) -> bool {
        let speaker = self.nodes[node].speaker.as_ref();
        speaker.is_some_and(|speaker| !speaker.is_frozen())
            && !self.segment.links_down.contains(&node)
    }

    /// Who answers for an address.
    pub fn answering(&self, address: IpAddr) -> Vec<usize> {
        let concerned = self.concerned.get(&address);
        concerned.map(|c| c.answering.iter().copied().collect()).unwrap_or_default()
    }

    /// What a node answers for.
    pub fn answers(&self, node: usize) -> BTreeSet<IpAddr> {
        let speaker = self.nodes[node].speaker.as_ref();
        speaker.map(|speaker| speaker.answers.clone()).unwrap_or_default()
    }

    /// When the node hears of the API server again.
    pub fn is_stale(&self, node: usize) -> bool {
        self.nodes[node].stale_until > self.now
    }

    pub fn has_lie(&self) -> bool {
        self.nodes.iter().any(|node| node.lie.is_some())
    }

    /// Leaves on every disk that the cluster once had an address that is not wanted any more: it is
    /// no new cluster, whose first minute is special.
    pub fn grow_old(&mut self) {
        let claim = Claim { epoch: 1, owner: Arc::from("former"), incarnation: 1 };
        for node in &mut self.nodes {
            node.disk.memory.claims.insert(Ipv4Addr::new(10, 2, 0, 1).into(), claim.clone());
        }
    }

    /// Several changes that reach a node together.
    pub fn wanted(&mut self, all: impl IntoIterator<Item = (IpAddr, Option<Arc<Candidates>>)>) {
        for (address, candidates) in all {
            self.api.put(Change::Address(address, candidates));
        }
        self.tell_nodes();
    }

    fn change(&mut self, change: Change) {
        self.api.put(change);
        self.tell_nodes();
    }

    fn tell_nodes(&mut self) {
        for node in 0..self.nodes.len() {
            let life = self.nodes[node].life;
            let delay = self.between(1_000, 30_000);
            self.queue.put(self.now + delay, Message::Api { node, life });
        }
    }

    fn latency(&mut self) -> Duration {
        let mut latency = self.between(300, 600);
        if !self.delay.is_zero() && self.rng.random_ratio(1, 4) {
            let most = u64::try_from(self.delay.as_micros()).unwrap_or(u64::MAX);
            latency += self.between(0, most);
        }
        latency
    }

    /// Some time between two numbers of microseconds.
    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(least..=most))
    }

    fn local(&self, node: usize) -> Instant {
        let elapsed = self.elapsed() - self.nodes[node].lag;
        match self.nodes[node].rate {
            1_000_000 => self.start + elapsed,
            rate => self.start + elapsed * rate / 1_000_000,
        }
    }
}

/// What a node is called.
pub fn name(index: usize) -> NodeName {
    Arc::from(format!("n{}", index + 1))
}

/// The incarnation of a node's speaker in one of its lives.
fn incarnation(node: usize, life: u64) -> u64 {
    life * 1_000 + u64::try_from(node).expect("few nodes")
}

fn index(name: &str) -> usize {
    let number = name.strip_prefix('n').and_then(|number| number.parse::<usize>().ok());
    number.and_then(|number| number.checked_sub(1)).expect("the names of nodes are made above")
}
