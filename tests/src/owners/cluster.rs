//! The cluster: nodes with their cores, what is on its way, and the one clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use ownership::{
    Action, AddressState, Asking, Candidates, Claim, ConflictProbe, Event, Heard, Mac, Memory,
    NodeName, Ownership, Profile, Settings,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    api::{Api, Change, Lie},
    broken::{self, Broken},
    checker::Checker,
    fault::{Disk, Fault, Inbox, Path},
    segment::{GATEWAY, SERIES, Segment, Station, questions},
};
use crate::sim::queue::Queue;

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

    /// Makes something go wrong, or right again.
    pub fn fault(&mut self, fault: Fault) {
        self.tell(format_args!("-- {fault:?}"));
        match fault {
            Fault::Crash(node) => self.end(node),
            Fault::Boot(node, disk) => self.boot(node, disk),
            Fault::Leave(node) => {
                if let Some(speaker) = &mut self.nodes[node].speaker
                    && !speaker.leaving
                {
                    speaker.leaving = true;
                    self.feed(node, Event::Leave);
                }
            }
            Fault::Drain(node, draining) => self.change(Change::Draining(node, draining)),
            Fault::Freeze(node, time, inbox) => self.freeze(node, time, inbox),
            Fault::LinkDown(node) => {
                if self.segment.links_down.insert(node) {
                    self.links_changed(node);
                }
            }
            Fault::LinkUp(node) => {
                if self.segment.links_down.remove(&node) {
                    self.links_changed(node);
                }
            }
            Fault::Split(nodes, path) => self.segment.split(nodes, path == Path::Everything),
            Fault::Cut(from, to, path) => self.segment.cut(from, to, path == Path::Everything),
            Fault::Heal => self.segment.heal(),
            Fault::Loss(percent) => self.loss = percent,
            Fault::FrameLoss(percent) => self.frame_loss = percent,
            Fault::Delay(delay) => self.delay = delay,
            Fault::Stale(node, time) => self.nodes[node].stale_until = self.now + time,
            Fault::Lie(node, lie) => self.lie(node, lie),
            Fault::Gateway(answers) => self.segment.gateway_answers = answers,
            Fault::Foreign(address, there) => self.foreign(address, there),
            Fault::Wanted(address, candidates) => {
                self.change(Change::Address(address, candidates));
            }
            Fault::Forge(node, epoch) => {
                let Node { name, disk, .. } = &mut self.nodes[node];
                for claim in disk.memory.claims.values_mut() {
                    claim.epoch = epoch;
                    claim.owner = Arc::clone(name);
                }
            }
            Fault::Replay => self.replay(),
        }
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

    /// What the node knows is read once more, bent.
    fn lie(&mut self, node: usize, lie: Option<Lie>) {
        self.nodes[node].lie = lie;
        let known = self.nodes[node].speaker.as_ref().and_then(|speaker| speaker.known);
        if let Some(known) = known {
            self.show_whole(node, known);
        }
    }

    fn boot(&mut self, node: usize, disk: Disk) {
        if self.nodes[node].speaker.is_some() {
            return;
        }
        let now = self.local(node);
        let this = &mut self.nodes[node];
        if this.life == 0 || self.options.broken != Some(Broken::IncarnationReset) {
            this.life += 1;
        }
        let stored = match disk {
            Disk::Kept => this.disk.clone(),
            Disk::Lost => Stored::default(),
            Disk::Old => this.old_disk.clone(),
        };
        this.disk = stored.clone();
        let settings = Settings {
            me: Arc::clone(&this.name),
            incarnation: incarnation(node, this.life),
            profile: self.options.profile,
            conflict_probe: self.options.conflict_probe,
            rebalance: self.options.rebalance,
            memory: stored.memory,
        };
        this.speaker = Some(Speaker {
            core: Ownership::new(settings, now),
            answers: BTreeSet::new(),
            states: BTreeMap::new(),
            epochs: BTreeMap::new(),
            view: BTreeMap::new(),
            known: None,
            draining: false,
            leaving: false,
            frozen: None,
            asking: BTreeMap::new(),
            series: BTreeMap::new(),
            wake: None,
            saving: false,
            left: false,
        });
        let life = this.life;
        self.show_stations(node);
        self.feed(node, Event::Gateways(BTreeSet::from([GATEWAY])));
        if let Some(known) = stored.known {
            self.show_whole(node, known);
        }
        let delay = self.between(50_000, 300_000);
        self.queue.put(self.now + delay, Message::Api { node, life });
    }

    fn show_stations(&mut self, node: usize) {
        let mut stations = BTreeMap::new();
        if !self.segment.links_down.contains(&node) {
            stations.insert(ETH0.to_owned(), Station::Node(node).mac());
        }
        self.feed(node, Event::Stations(stations));
    }

    fn show_whole(&mut self, node: usize, known: usize) {
        let names = self.nodes.iter().map(|node| Arc::clone(&node.name));
        let me = Arc::clone(&self.nodes[node].name);
        let peers = names.filter(|name| *name != me).collect();
        let view = self.api.whole(node, peers, known);
        self.show(node, view, known);
    }

    fn show(&mut self, node: usize, mut view: ownership::View, known: usize) {
        let this = &mut self.nodes[node];
        if let Some(lie) = this.lie {
            lie.bend(&this.name, &mut view);
        }
        let Some(speaker) = &mut this.speaker else { return };
        speaker.known = Some(known);
        speaker.draining = view.draining.unwrap_or(speaker.draining);
        if view.extent == ownership::Extent::Whole {
            speaker.view.clear();
        }
        for (address, candidates) in &view.addresses {
            match candidates {
                Some(candidates) => speaker.view.insert(*address, Arc::clone(candidates)),
                None => speaker.view.remove(address),
            };
        }
        if self.options.broken == Some(Broken::VersionsHidden) {
            view.version = 7;
        }
        self.tell(format_args!("{} knows version {}", name(node), view.version));
        self.feed(node, Event::View(view));
    }

    /// The process is gone.
    fn end(&mut self, node: usize) {
        let Some(speaker) = self.nodes[node].speaker.take() else { return };
        for address in speaker.answers {
            self.set_answering(node, address, false);
        }
        for address in speaker.asking.into_keys() {
            self.concerned.entry(address).or_default().asking.remove(&node);
        }
    }

    fn freeze(&mut self, node: usize, time: Duration, inbox: Inbox) {
        let (since, until, life) = (self.now, self.now + time, self.nodes[node].life);
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        if speaker.frozen.is_some() {
            return;
        }
        speaker.frozen = Some(Frozen { since, until, inbox, kept: Vec::new() });
        for address in speaker.answers.clone() {
            self.set_answering(node, address, false);
        }
        self.queue.put(until, Message::Thaw { node, life });
    }

    fn thaw(&mut self, node: usize) {
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        let Some(frozen) = speaker.frozen.take_if(|frozen| frozen.until <= self.now) else {
            return;
        };
        if self.options.broken == Some(Broken::PauseHidden) {
            self.nodes[node].lag += self.now - frozen.since;
        }
        self.tell(format_args!("-- {} goes on", name(node)));
        let timers_first = self.rng.random();
        if timers_first {
            self.wake(node);
        }
        for message in frozen.kept {
            self.deliver(message);
        }
        if !timers_first {
            self.wake(node);
        }
        self.settle(node);
        // It is one loop: frames are answered after what the pause has made due.
        for address in self.answers(node) {
            self.set_answering(node, address, self.is_well(node));
        }
    }

    fn links_changed(&mut self, node: usize) {
        for address in self.answers(node) {
            self.set_answering(node, address, self.is_well(node));
        }
        self.show_stations(node);
    }

    fn foreign(&mut self, address: IpAddr, there: bool) {
        if !there {
            self.segment.foreign.remove(&address);
        } else if self.segment.foreign.insert(address) {
            self.broadcast(Station::Foreign, address);
        }
    }

    fn replay(&mut self) {
        for recorded in std::mem::take(&mut self.recorded) {
            let Recorded { from, from_life, to, to_life, mut payload } = recorded;
            if self.options.broken == Some(Broken::ReceiverForged) {
                broken::readdress(&mut payload, incarnation(to, self.nodes[to].life));
            }
            // Within one life of both, the transport's window does not let it pass.
            if self.nodes[from].life != from_life || self.nodes[to].life != to_life {
                let at = self.now + self.between(300, 1_000_000);
                self.queue.put(at, Message::Datagram { to, from, payload });
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        let Some(message) = self.kept_by_frozen(message) else { return };
        match message {
            Message::Wake { node, life, number } => {
                let Some(speaker) = self.living(node, life) else { return };
                if speaker.wake.is_some_and(|(_, expected)| expected == number) {
                    speaker.wake = None;
                    self.wake(node);
                    self.settle(node);
                }
            }
            Message::Datagram { to, from, payload } => {
                let from = Arc::clone(&self.nodes[from].name);
                self.feed(to, Event::Datagram { from: &from, payload: &payload });
            }
            Message::Api { node, life } => {
                if self.living(node, life).is_some() {
                    self.look_at_api(node, life);
                }
            }
            Message::Question { node, life, address, number } => {
                if let Some(question) = self.asked(node, life, address, number)
                    && !question.is_answered()
                {
                    let how = question.how;
                    self.question(node, address, how);
                }
            }
            Message::Heard { node, address, mac, form } => {
                let Some(speaker) = &mut self.nodes[node].speaker else { return };
                let asked = speaker.asking.get_mut(&address).is_some_and(|question| {
                    let new = !question.heard.contains(&(mac, form));
                    question.heard.push((mac, form));
                    new
                });
                if asked || speaker.answers.contains(&address) {
                    self.feed(node, Event::Heard { address, mac, form });
                }
            }
            Message::Silence { node, life, address, number } => {
                let asked = self.asked(node, life, address, number);
                if let Some(answered) = asked.map(|question| question.is_answered()) {
                    self.stop_asking(node, address);
                    if !answered {
                        self.feed(node, Event::Silence(address));
                    }
                }
            }
            Message::Announce { node, life, address, number, index } => {
                self.announce(node, life, address, number, index);
            }
            Message::Save { node, life } => {
                if let Some(speaker) = self.living(node, life) {
                    speaker.saving = false;
                    self.save(node);
                }
            }
            Message::Thaw { node, life } => {
                if self.living(node, life).is_some() {
                    self.thaw(node);
                }
            }
        }
    }

    /// The message, unless it waits in, or is lost to, a process that stands still.
    fn kept_by_frozen(&mut self, message: Message) -> Option<Message> {
        let node = match &message {
            Message::Datagram { to, .. } => *to,
            Message::Wake { node, .. }
            | Message::Api { node, .. }
            | Message::Question { node, .. }
            | Message::Heard { node, .. }
            | Message::Silence { node, .. }
            | Message::Announce { node, .. }
            | Message::Save { node, .. } => *node,
            Message::Thaw { .. } => return Some(message),
        };
        let speaker = self.nodes[node].speaker.as_mut();
        let Some(frozen) = speaker.and_then(|speaker| speaker.frozen.as_mut()) else {
            return Some(message);
        };
        let keeps = match &message {
            // Of the process itself: late, but not lost.
            Message::Silence { .. } | Message::Api { .. } | Message::Save { .. } => true,
            Message::Datagram { .. } | Message::Heard { .. } => {
                frozen.inbox == Inbox::Kept && frozen.kept.len() < INBOX
            }
            Message::Question { .. } | Message::Announce { .. } | Message::Wake { .. } => false,
            Message::Thaw { .. } => unreachable!("passed above"),
        };
        if keeps {
            frozen.kept.push(message);
        }
        None
    }

    fn living(&mut self, node: usize, life: u64) -> Option<&mut Speaker> {
        let this = &mut self.nodes[node];
        this.speaker.as_mut().filter(|_| this.life == life)
    }

    /// A question, if it is still out.
    fn asked(
        &mut self,
        node: usize,
        life: u64,
        address: IpAddr,
        number: u64,
    ) -> Option<&mut Question> {
        let question = self.living(node, life)?.asking.get_mut(&address)?;
        (question.number == number).then_some(question)
    }

    fn wake(&mut self, node: usize) {
        let now = self.local(node);
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        speaker.wake = None;
        if speaker.core.poll_timeout().is_some_and(|due| due <= now) {
            let actions = speaker.core.handle_timeout(now);
            self.perform(node, actions);
        }
        self.spins =
            if self.spins.0 == self.now { (self.now, self.spins.1 + 1) } else { (self.now, 0) };
        if self.spins.1 > SPINS {
            self.checker.broken(format!("{} spins", name(node)));
        }
    }

    fn feed(&mut self, node: usize, event: Event<'_>) {
        let now = self.local(node);
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        let actions = speaker.core.handle(event, now);
        self.perform(node, actions);
        self.settle(node);
    }

    /// Sees to what a core wants besides its actions.
    fn settle(&mut self, node: usize) {
        let Node { life, rate, lag, .. } = self.nodes[node];
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        if speaker.left {
            self.tell(format_args!("{} has left", name(node)));
            self.save(node);
            self.end(node);
            return;
        }
        if speaker.core.take_memory_changed() && !speaker.saving {
            speaker.saving = true;
            let delay = Duration::from_micros(self.rng.random_range(1_000..1_000_000));
            self.queue.put(self.now + delay, Message::Save { node, life });
        }
        if speaker.is_frozen() {
            return;
        }
        let due = speaker.core.poll_timeout().map(|due| {
            let local = due.saturating_duration_since(self.start);
            let real = if rate == 1_000_000 {
                local
            } else {
                // A nanosecond later rather than earlier than the core's clock says.
                local * 1_000_000 / rate + Duration::from_nanos(2)
            };
            (self.start + real + lag).max(self.now)
        });
        if let Some(due) = due
            && speaker.wake.is_none_or(|(at, _)| due < at)
        {
            self.numbers += 1;
            speaker.wake = Some((due, self.numbers));
            // Most are on time.
            let most = u64::try_from(self.options.lateness.as_micros()).unwrap_or(u64::MAX);
            let most = if self.rng.random_ratio(1, 50) { most } else { most / 10 };
            let late = Duration::from_micros(self.rng.random_range(0..=most));
            self.queue.put(due + late, Message::Wake { node, life, number: self.numbers });
        }
    }

    fn save(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        if let Some(speaker) = &this.speaker {
            // Old is what the first change but one hundred or so has left.
            if this.old_disk.known.is_none() || self.rng.random_ratio(1, 8) {
                this.old_disk = this.disk.clone();
            }
            this.disk = Stored { memory: speaker.core.memory(), known: speaker.known };
        }
    }

    fn look_at_api(&mut self, node: usize, life: u64) {
        let stale_until = self.nodes[node].stale_until;
        if stale_until > self.now {
            self.queue.put(stale_until, Message::Api { node, life });
            return;
        }
        let upto = self.api.len();
        let known = self.nodes[node].speaker.as_ref().and_then(|speaker| speaker.known);
        match known {
            None => self.show_whole(node, upto),
            Some(known) if known < upto => {
                let view = self.api.changes(node, known, upto);
                self.show(node, view, upto);
            }
            Some(_) => {}
        }
        if let Some(speaker) = self.living(node, life)
            && !speaker.saving
        {
            speaker.saving = true;
            let delay = self.between(1_000, 1_000_000);
            self.queue.put(self.now + delay, Message::Save { node, life });
        }
    }

    fn perform(&mut self, node: usize, actions: Vec<Action>) {
        let (mut touched, mut begun) = (BTreeSet::new(), Vec::new());
        for action in actions {
            match action {
                Action::Send { to, payload } => self.send(node, &to, payload),
                Action::Own(addresses) => {
                    for address in addresses {
                        touched.insert(address);
                        begun.push(address);
                        self.own(node, address);
                    }
                }
                Action::Disown(addresses) => {
                    for address in addresses {
                        touched.insert(address);
                        self.disown(node, address);
                    }
                }
                Action::Repeat(addresses) => {
                    for address in addresses {
                        if self.options.broken != Some(Broken::RepeatIgnored) {
                            self.tell(format_args!("{} repeats {address}", name(node)));
                            self.begin_series(node, address);
                        }
                    }
                }
                Action::Ask { address, how } => self.ask(node, address, how),
                Action::StopAsking(address) => self.stop_asking(node, address),
                Action::State(address, state) => {
                    touched.insert(address);
                    self.state(node, address, state);
                }
                Action::PeerUp(peer) => {
                    self.tell(format_args!("{} hears {peer}", name(node)));
                }
                Action::PeerDown(peer) => {
                    self.tell(format_args!("{} takes {peer} for dead", name(node)));
                    self.checker.verdicts.push((self.now, node, index(&peer)));
                }
                Action::Left => {
                    if let Some(speaker) = &mut self.nodes[node].speaker {
                        speaker.left = true;
                    }
                }
            }
        }
        let this = &self.nodes[node];
        if let Some(speaker) = &this.speaker {
            for address in touched {
                self.checker.consistent(&this.name, speaker, address);
            }
        }
        for address in begun {
            self.checker.may_own(this, address);
        }
    }

    fn send(&mut self, from: usize, to: &NodeName, mut payload: Vec<u8>) {
        let to = index(to);
        self.checker.sent(from, &payload);
        if self.options.broken.is_some_and(|broken| !broken.lets_pass(&mut payload))
            || !self.segment.datagram_passes(from, to)
        {
            return;
        }
        if self.recorded.len() < RECORDED && self.rng.random_ratio(1, 32) {
            let (from_life, to_life) = (self.nodes[from].life, self.nodes[to].life);
            let payload = payload.clone();
            self.recorded.push(Recorded { from, from_life, to, to_life, payload });
        }
        if self.loss > 0 && self.rng.random_range(0..100) < self.loss {
            return;
        }
        if self.options.duplicates > 0 && self.rng.random_range(0..100) < self.options.duplicates {
            let at = self.now + self.latency();
            self.queue.put(at, Message::Datagram { to, from, payload: payload.clone() });
        }
        let at = self.now + self.latency();
        self.queue.put(at, Message::Datagram { to, from, payload });
    }

    fn own(&mut self, node: usize, address: IpAddr) {
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        if !speaker.answers.insert(address) {
            self.checker.broken(format!("{} owns {address} twice", name(node)));
            return;
        }
        self.tell(format_args!("{} owns {address}", name(node)));
        self.checker.taken(self.now, address, node);
        if self.segment.foreign.contains(&address) {
            self.checker.owned_beside_a_foreign_host(&name(node), address);
        }
        self.set_answering(node, address, self.is_well(node));
        self.begin_series(node, address);
    }

    fn disown(&mut self, node: usize, address: IpAddr) {
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        if !speaker.answers.remove(&address) {
            self.checker.broken(format!("{} gives up {address}, not its own", name(node)));
        }
        speaker.series.remove(&address);
        self.set_answering(node, address, false);
        let now = self.answering(address);
        self.tell(format_args!("{} stops {address}; left: {now:?}", name(node)));
    }

    fn state(&mut self, node: usize, address: IpAddr, state: Option<AddressState>) {
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        let Some(state) = state else {
            speaker.states.remove(&address);
            return;
        };
        let highest = speaker.epochs.entry(address).or_default();
        if state.epoch < *highest {
            let fell = format!("{}: {address} from {highest} to {}", name(node), state.epoch);
            self.checker.broken(format!("an epoch fell at {fell}"));
        } else {
            *highest = state.epoch;
        }
        if self.options.story {
            let owner = state.owner.as_deref().unwrap_or("nobody");
            let conflict = state.conflict;
            let line = format!(
                "{}: {address} {:?}, {owner}'s at {}{}",
                name(node),
                state.stage,
                state.epoch,
                conflict.map(|mac| format!(", conflict with {mac:02x?}")).unwrap_or_default()
            );
            self.tell(format_args!("{line}"));
        }
        if let Some(speaker) = &mut self.nodes[node].speaker {
            speaker.states.insert(address, state);
        }
    }

    fn set_answering(&mut self, node: usize, address: IpAddr, answers: bool) {
        let concerned = self.concerned.entry(address).or_default();
        let changed = if answers {
            concerned.answering.insert(node)
        } else {
            concerned.answering.remove(&node)
        };
        if changed {
            self.checker.answering(address, concerned.answering.len(), self.now);
        }
    }

    fn ask(&mut self, node: usize, address: IpAddr, how: Asking) {
        self.numbers += 1;
        let (number, life) = (self.numbers, self.nodes[node].life);
        self.tell(format_args!("{} asks for {address}", name(node)));
        if let Some(speaker) = &mut self.nodes[node].speaker {
            speaker.asking.insert(address, Question { number, how, heard: Vec::new() });
        }
        self.concerned.entry(address).or_default().asking.insert(node);
        let (probes, wait) = questions(how);
        for probe in probes {
            let at = self.now + Duration::from_millis(*probe);
            self.queue.put(at, Message::Question { node, life, address, number });
        }
        let end = self.now + Duration::from_millis(wait);
        self.queue.put(end, Message::Silence { node, life, address, number });
    }

    fn stop_asking(&mut self, node: usize, address: IpAddr) {
        if let Some(speaker) = &mut self.nodes[node].speaker {
            speaker.asking.remove(&address);
        }
        self.concerned.entry(address).or_default().asking.remove(&node);
    }

    /// One broadcast question: who has the address answers, who asks for it hears.
    fn question(&mut self, asker: usize, address: IpAddr, how: Asking) {
        let me = Station::Node(asker);
        if address == GATEWAY {
            if self.segment.gateway_answers {
                self.reply(Station::Gateway, asker, address);
            }
            return;
        }
        if self.segment.foreign.contains(&address) && self.passes(me, Station::Foreign) {
            self.reply(Station::Foreign, asker, address);
        }
        let Some(concerned) = self.concerned.get(&address) else { return };
        let answering: Vec<usize> = concerned.answering.iter().copied().collect();
        let all: Vec<usize> = concerned.answering.union(&concerned.asking).copied().collect();
        for other in all {
            if other == asker || !self.passes(me, Station::Node(other)) {
                continue;
            }
            // A single question names an address of the asker's own, and is no probe.
            if how != Asking::Once {
                let at = self.now + self.between(50, 300);
                let mac = me.mac();
                let form = Heard::Probes;
                self.queue.put(at, Message::Heard { node: other, address, mac, form });
            }
            if answering.contains(&other) && self.options.broken != Some(Broken::NoVeto) {
                self.reply(Station::Node(other), asker, address);
            }
        }
    }

    fn reply(&mut self, from: Station, asker: usize, address: IpAddr) {
        if self.passes(from, Station::Node(asker)) {
            let at = self.now + self.between(100, 600);
            let mac = from.mac();
            let form = Heard::Has;
            self.queue.put(at, Message::Heard { node: asker, address, mac, form });
        }
    }

    fn begin_series(&mut self, node: usize, address: IpAddr) {
        self.numbers += 1;
        let (number, life) = (self.numbers, self.nodes[node].life);
        if let Some(speaker) = &mut self.nodes[node].speaker {
            speaker.series.insert(address, number);
        }
        self.announce(node, life, address, number, 0);
    }

    fn announce(&mut self, node: usize, life: u64, address: IpAddr, number: u64, index: usize) {
        let on = self.living(node, life).map(|speaker| speaker.series.get(&address));
        if on.flatten() != Some(&number) {
            return;
        }
        if self.is_well(node) {
            self.broadcast(Station::Node(node), address);
        }
        if let Some(next) = SERIES.get(index + 1) {
            let at = self.now + *next - SERIES[index];
            let message = Message::Announce { node, life, address, number, index: index + 1 };
            self.queue.put(at, message);
        }
    }

    /// A gratuitous frame: hosts believe it, nodes that are concerned hear it.
    fn broadcast(&mut self, from: Station, address: IpAddr) {
        let mac = from.mac();
        for host in 0..self.segment.tables.len() {
            if self.passes(from, Station::Host(host)) {
                self.segment.tables[host].insert(address, mac);
            }
        }
        let Some(concerned) = self.concerned.get(&address) else { return };
        let all: Vec<usize> = concerned.answering.union(&concerned.asking).copied().collect();
        for other in all {
            if from != Station::Node(other) && self.passes(from, Station::Node(other)) {
                let at = self.now + self.between(50, 300);
                let form = Heard::Has;
                self.queue.put(at, Message::Heard { node: other, address, mac, form });
            }
        }
    }

    /// Whether a frame arrives, this time.
    fn passes(&mut self, from: Station, to: Station) -> bool {
        self.segment.frame_passes(from, to)
            && (self.frame_loss == 0 || self.rng.random_range(0..100) >= self.frame_loss)
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
