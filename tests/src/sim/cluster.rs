//! The cluster: who is there, what is on its way, and the one clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use config::{NodeName, PeerName};
use layer2::{AnnouncerSettings, Interface, InterfaceIndex};
use ownership::AddressState;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use speaker::{
    planner::{self, Planner, PlannerConfig, SessionSpec},
    wire::{self, Wanted, Wire},
};

use super::{
    api::{Api, Change, Key, Outcome},
    checker::Checker,
    host::Host,
    queue::Queue,
    router::Router,
};

/// The interface of every node.
pub const ETH0: InterfaceIndex = InterfaceIndex(2);

/// What kind of cluster.
#[derive(Debug, Clone)]
pub struct Options {
    pub nodes: usize,
    pub hosts: u8,
    /// Share of frames and heartbeats that vanish, in percent.
    pub loss: u8,
    /// Leave out a rule on purpose, to see that the checker sees it.
    pub broken: Option<Broken>,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 3, hosts: 2, loss: 0, broken: None }
    }
}

/// A rule broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Speakers do not hear each other's claims: each believes to be alone.
    HeartbeatsUnheard,
    /// The controller forgets, at its restart, what Services hold.
    StatusUnread,
    /// Withdrawals never leave a speaker.
    RoutesKept,
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The node is gone without a word.
    Crash(usize),
    /// It is back, with a new life of its speaker.
    Boot(usize),
    /// SIGTERM: the speaker leaves in order and ends 1 s later.
    Leave(usize),
    /// The planner of a node stands still for so long; its wire goes on.
    FreezePlanner(usize, Duration),
    /// The node's interface loses its carrier; its heartbeats went the same way.
    LinkDown(usize),
    LinkUp(usize),
    /// The segment falls apart: nodes below the number here, the rest there; hosts stay with the
    /// first part.
    Split(usize),
    /// The segment is whole again.
    Heal,
    ControllerCrash,
    ControllerBoot,
    /// Requests fail and watches stand still.
    ApiDown,
    ApiUp,
    /// Every session ends and may be dialled anew.
    RouterReset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Watcher {
    Controller,
    Speaker(usize),
}

#[derive(Debug)]
enum Message {
    /// The first list reaches a watcher.
    Listed {
        watcher: Watcher,
        life: u64,
    },
    /// The log up to here reaches a watcher.
    Watch {
        watcher: Watcher,
        life: u64,
        upto: usize,
    },
    Frame {
        to: Station,
        frame: Arc<[u8]>,
    },
    Datagram {
        to: usize,
        from: usize,
        payload: Vec<u8>,
    },
    /// The wire thread looks into its slot, which holds the newest wishes only.
    Wanted {
        node: usize,
        life: u64,
    },
    /// The planner looks at what the wire has told since it last did.
    Addresses {
        node: usize,
        life: u64,
    },
    Dialled {
        node: usize,
        life: u64,
    },
    ToRouter {
        node: usize,
        life: u64,
        bytes: Vec<u8>,
    },
    FromRouter {
        node: usize,
        life: u64,
        bytes: Vec<u8>,
    },
    SessionGone {
        node: usize,
    },
    PatchArrives {
        life: u64,
        key: Key,
        body: Box<serde_json::Value>,
    },
    PatchAnswered {
        life: u64,
        key: Key,
        result: controller::controller::WriteResult,
    },
    HostAsks {
        host: usize,
    },
    Ends {
        node: usize,
        life: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Station {
    Node(usize),
    Host(usize),
}

/// A node with its speaker, if it lives.
#[derive(Debug)]
pub struct Node {
    pub name: NodeName,
    pub mac: [u8; 6],
    pub speaker: Option<Speaker>,
    link_up: bool,
    life: u64,
}

/// One life of a speaker.
#[derive(Debug)]
pub struct Speaker {
    pub planner: Planner,
    pub wire: Wire,
    /// The addresses that the wire says it answers for.
    pub answers: BTreeSet<IpAddr>,
    /// What the wire told and the planner has not seen yet.
    told: BTreeMap<IpAddr, Option<AddressState>>,
    pub leaving: bool,
    /// What the planner wants and the wire has not seen yet.
    slot: Option<Wanted>,
    sessions: BTreeMap<PeerName, bgp::Session>,
    /// The sessions were told everything once.
    complete: bool,
    planner_rests_until: Instant,
    /// How much of the log it has read; none before its first list.
    cursor: Option<usize>,
}

#[derive(Debug)]
struct Controlling {
    core: controller::controller::Controller,
    cursor: Option<usize>,
}

/// The whole.
#[derive(Debug)]
pub struct Cluster {
    pub now: Instant,
    pub start: Instant,
    pub api: Api,
    pub nodes: Vec<Node>,
    pub hosts: Vec<Host>,
    pub router: Router,
    pub checker: Checker,
    /// What happened, for the reader of a failed seed.
    pub story: Vec<String>,
    options: Options,
    rng: StdRng,
    queue: Queue<Message>,
    controller: Option<Controlling>,
    controller_life: u64,
    api_up: bool,
    /// Deliveries to one watcher keep their order.
    watched_until: BTreeMap<Watcher, Instant>,
    log_told: usize,
    split_at: Option<usize>,
}

impl Cluster {
    pub fn new(seed: u64, options: Options) -> Self {
        let start = Instant::now();
        let nodes = (0..options.nodes)
            .map(|index| Node {
                name: NodeName::from(format!("n{}", index + 1)),
                mac: [2, 0, 0, 0, 1, number(index)],
                speaker: None,
                link_up: true,
                life: 0,
            })
            .collect();
        let mut cluster = Self {
            now: start,
            start,
            api: Api::default(),
            nodes,
            hosts: (0..options.hosts).map(|host| Host::new(100 + host)).collect(),
            router: Router::new(64_512),
            checker: Checker::default(),
            story: Vec::new(),
            options,
            rng: StdRng::seed_from_u64(seed),
            queue: Queue::default(),
            controller: None,
            controller_life: 0,
            api_up: true,
            watched_until: BTreeMap::new(),
            log_told: 0,
            split_at: None,
        };
        for host in 0..cluster.hosts.len() {
            cluster.later(Duration::from_millis(7), Message::HostAsks { host });
        }
        cluster
    }

    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub fn has_controller(&self) -> bool {
        self.controller.is_some()
    }

    /// From now on nothing is lost on the way.
    pub fn calm(&mut self) {
        self.options.loss = 0;
    }

    pub fn tell(&mut self, what: impl std::fmt::Display) {
        let line = format!("{:>9.3} ms {what}", self.elapsed().as_secs_f64() * 1000.0);
        self.story.push(line);
    }

    /// Runs for a time.
    ///
    /// # Errors
    /// The first invariant that did not hold.
    pub fn run(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        while self.step(end)? {}
        self.now = end;
        Ok(())
    }

    /// Makes something go wrong (or right again).
    pub fn fault(&mut self, fault: Fault) {
        self.tell(format_args!("{fault:?}"));
        match fault {
            Fault::Crash(node) => self.end_speaker(node),
            Fault::Boot(node) => self.boot(node),
            Fault::Leave(node) => {
                let life = self.nodes[node].life;
                if let Some(speaker) = &mut self.nodes[node].speaker {
                    speaker.leaving = true;
                    let actions = speaker.wire.handle(wire::Event::Leave, self.now);
                    self.perform_wire(node, actions);
                    self.later(Duration::from_secs(1), Message::Ends { node, life });
                }
            }
            Fault::FreezePlanner(node, time) => {
                let until = self.now + time;
                if let Some(speaker) = &mut self.nodes[node].speaker {
                    speaker.planner_rests_until = until;
                }
            }
            Fault::LinkDown(node) => self.link(node, false),
            Fault::LinkUp(node) => self.link(node, true),
            Fault::Split(at) => self.split_at = Some(at),
            Fault::Heal => self.split_at = None,
            Fault::ControllerCrash => self.controller = None,
            Fault::ControllerBoot => self.boot_controller(),
            Fault::ApiDown => self.api_up = false,
            Fault::ApiUp => self.api_up = true,
            Fault::RouterReset => {
                for node in 0..self.nodes.len() {
                    self.router.lose(node);
                    self.later(Duration::from_millis(1), Message::SessionGone { node });
                }
            }
        }
    }

    /// Does the next thing before `end`; false when there is none.
    fn step(&mut self, end: Instant) -> Result<bool, String> {
        self.tell_watchers();
        let message = self.queue.first().map(|(at, _)| at);
        let timer = self.poll_timeout();
        let Some(next) = [message, timer].into_iter().flatten().min().filter(|next| *next <= end)
        else {
            return Ok(false);
        };
        self.now = self.now.max(next);
        if let Some(message) = self.queue.pop_due(self.now) {
            self.deliver(message);
        } else {
            self.fire();
        }
        self.checker.step(&self.api)?;
        Ok(true)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let speakers = self.nodes.iter().filter_map(|node| node.speaker.as_ref());
        let timers = speakers.flat_map(|speaker| {
            let planner = speaker.planner.poll_timeout();
            let planner = planner.map(|due| due.max(speaker.planner_rests_until));
            let sessions = speaker.sessions.values().filter_map(bgp::Session::poll_timeout);
            [speaker.wire.poll_timeout(), planner].into_iter().flatten().chain(sessions)
        });
        let controller = self.controller.as_ref().and_then(|c| c.core.poll_timeout());
        timers.chain(controller).min()
    }

    fn fire(&mut self) {
        for node in 0..self.nodes.len() {
            let now = self.now;
            let Some(speaker) = &mut self.nodes[node].speaker else { continue };
            if speaker.wire.poll_timeout().is_some_and(|due| due <= now) {
                let actions = speaker.wire.handle_timeout(now);
                self.perform_wire(node, actions);
            }
            self.plan(node);
            self.fire_sessions(node);
        }
        if let Some(controller) = &mut self.controller
            && controller.core.poll_timeout().is_some_and(|due| due <= self.now)
        {
            let actions = controller.core.handle_timeout(self.now);
            self.perform_controller(actions);
        }
    }

    fn plan(&mut self, node: usize) {
        let now = self.now;
        if let Some(speaker) = &mut self.nodes[node].speaker
            && speaker.planner_rests_until <= now
        {
            let actions = speaker.planner.handle_timeout(now);
            self.perform_planner(node, actions);
        }
    }

    fn fire_sessions(&mut self, node: usize) {
        let now = self.now;
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        let mut performed = Vec::new();
        for session in speaker.sessions.values_mut() {
            if session.poll_timeout().is_some_and(|due| due <= now) {
                let actions = session.handle_timeout(now);
                performed.extend(with_updates(session, actions, now));
            }
        }
        self.perform_session(node, performed);
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Listed { watcher, life } => self.listed(watcher, life),
            Message::Watch { watcher, life, upto } => self.watched(watcher, life, upto),
            Message::Frame { to: Station::Host(host), frame } => self.hosts[host].hear(&frame),
            Message::Frame { to: Station::Node(node), frame } => {
                let event = wire::Event::Frame { interface: ETH0, frame: &frame };
                self.tell_wire(node, event);
            }
            Message::Datagram { to, from, payload } => {
                let from = self.nodes[from].name.clone();
                self.tell_wire(to, wire::Event::Datagram { from: &from, payload: &payload });
            }
            Message::Wanted { node, life } => {
                let same = self.nodes[node].life == life;
                let speaker = self.nodes[node].speaker.as_mut().filter(|_| same);
                if let Some(wanted) = speaker.and_then(|speaker| speaker.slot.take()) {
                    self.tell_wire(node, wire::Event::Wanted(wanted));
                }
            }
            Message::Addresses { node, life } => {
                let same = self.nodes[node].life == life;
                if let Some(speaker) = self.nodes[node].speaker.as_mut().filter(|_| same) {
                    let told = std::mem::take(&mut speaker.told);
                    self.tell_planner(node, planner::Event::Addresses(told));
                }
            }
            Message::Dialled { node, life } => {
                if self.nodes[node].life == life {
                    self.router.accept(node);
                    let v4 = std::net::Ipv4Addr::new(10, 0, 0, 10 + number(node));
                    let v6 = std::net::Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, 0x10);
                    let local = bgp::Local { v4: Some(v4), v6: Some(v6), link_local: None };
                    self.tell_session(node, bgp::Event::Connected(local));
                }
            }
            Message::ToRouter { node, life, bytes } => {
                if self.nodes[node].life == life {
                    match self.router.hear(node, &bytes) {
                        Ok(bytes) if bytes.is_empty() => {}
                        Ok(bytes) => {
                            let delay = self.delay(100, 500);
                            self.later(delay, Message::FromRouter { node, life, bytes });
                        }
                        Err(error) => self.checker.fail(format!("the router refuses {error}")),
                    }
                }
            }
            Message::FromRouter { node, life, bytes } => {
                if self.nodes[node].life == life {
                    self.tell_session(node, bgp::Event::Received(&bytes));
                }
            }
            Message::SessionGone { node } => self.tell_session(node, bgp::Event::Closed),
            Message::PatchArrives { life, key, body } => {
                let result = if self.api_up {
                    match self.api.patch_status(&key, &body) {
                        Outcome::Written => {
                            let service = self.api.services.get(&key);
                            let version = service.and_then(|s| s.metadata.resource_version.clone());
                            controller::controller::WriteResult::Written {
                                resource_version: version.unwrap_or_default(),
                            }
                        }
                        Outcome::Conflict => controller::controller::WriteResult::Conflict,
                        Outcome::Gone => controller::controller::WriteResult::Gone,
                    }
                } else {
                    controller::controller::WriteResult::Failed
                };
                let delay = self.delay(500, 4000);
                self.later(delay, Message::PatchAnswered { life, key, result });
            }
            Message::PatchAnswered { life, key: (namespace, name), result } => {
                let key = controller::service::ServiceKey::new(namespace, name);
                self.tell_controller(
                    life,
                    controller::controller::Event::WriteDone { key, result },
                );
            }
            Message::HostAsks { host } => self.host_asks(host),
            Message::Ends { node, life } => {
                if self.nodes[node].life == life {
                    self.end_speaker(node);
                }
            }
        }
    }

    // --- lives

    fn boot(&mut self, node: usize) {
        if self.nodes[node].speaker.is_some() {
            return;
        }
        self.nodes[node].life += 1;
        let life = self.nodes[node].life;
        let name = self.nodes[node].name.clone();
        let planner = Planner::new(PlannerConfig {
            me: name.clone(),
            heartbeat: Some(IpAddr::from([10, 0, 0, 10 + number(node)])),
            options: speaker::plan::Options::default(),
            bgp_drain_time: Duration::from_secs(5),
        });
        let settings = ownership::Settings::new(name, life);
        let (wire, _) = Wire::new(settings, AnnouncerSettings::default(), None, self.now);
        self.nodes[node].speaker = Some(Speaker {
            planner,
            wire,
            answers: BTreeSet::new(),
            told: BTreeMap::new(),
            leaving: false,
            slot: None,
            sessions: BTreeMap::new(),
            complete: false,
            planner_rests_until: self.now,
            cursor: None,
        });
        let interfaces = vec![self.interface(node)];
        self.tell_wire(node, wire::Event::Interfaces(interfaces));
        let delay = self.delay(1_000, 60_000);
        self.later(delay, Message::Listed { watcher: Watcher::Speaker(node), life });
    }

    fn end_speaker(&mut self, node: usize) {
        self.nodes[node].speaker = None;
        self.nodes[node].life += 1;
        self.router.lose(node);
    }

    fn boot_controller(&mut self) {
        self.controller_life += 1;
        let settings = controller::controller::Settings {
            namespace: "metallb-system".into(),
            seed: self.rng.random(),
        };
        let core = controller::controller::Controller::new(settings);
        self.controller = Some(Controlling { core, cursor: None });
        let delay = self.delay(1_000, 60_000);
        let life = self.controller_life;
        self.later(delay, Message::Listed { watcher: Watcher::Controller, life });
    }

    fn link(&mut self, node: usize, up: bool) {
        self.nodes[node].link_up = up;
        let interfaces = vec![self.interface(node)];
        self.tell_wire(node, wire::Event::Interfaces(interfaces));
    }

    fn interface(&self, node: usize) -> Interface {
        let n = 10 + number(node);
        Interface {
            index: ETH0,
            name: "eth0".into(),
            mac: self.nodes[node].mac,
            up: self.nodes[node].link_up,
            networks: vec![
                format!("10.0.0.{n}/24").parse().expect("an address"),
                format!("fd00:a::{n:x}/64").parse().expect("an address"),
            ],
            link_local: Some(format!("fe80::{n:x}").parse().expect("an address")),
            gateways: Vec::new(),
            arp: true,
        }
    }

    // --- the API server's watchers

    fn tell_watchers(&mut self) {
        if !self.api_up || self.log_told == self.api.log.len() {
            return;
        }
        self.log_told = self.api.log.len();
        let upto = self.log_told;
        let speakers = (0..self.nodes.len()).filter(|node| self.nodes[*node].speaker.is_some());
        let watchers: Vec<_> = speakers
            .map(Watcher::Speaker)
            .chain(self.controller.is_some().then_some(Watcher::Controller))
            .collect();
        for watcher in watchers {
            let at = self.now + self.delay(200, 20_000);
            let last = self.watched_until.entry(watcher).or_insert(at);
            *last = (*last).max(at);
            let at = *last;
            let life = self.life(watcher);
            self.at(at, Message::Watch { watcher, life, upto });
        }
    }

    fn life(&self, watcher: Watcher) -> u64 {
        match watcher {
            Watcher::Controller => self.controller_life,
            Watcher::Speaker(node) => self.nodes[node].life,
        }
    }

    fn listed(&mut self, watcher: Watcher, life: u64) {
        if self.life(watcher) != life {
            return;
        }
        if !self.api_up {
            return self.later(Duration::from_millis(300), Message::Listed { watcher, life });
        }
        let everything = self.api.list();
        let upto = self.api.log.len();
        for change in everything {
            self.feed(watcher, change);
        }
        match watcher {
            Watcher::Controller => {
                if let Some(controller) = &mut self.controller {
                    controller.cursor = Some(upto);
                }
                self.tell_controller(life, controller::controller::Event::Synced);
                self.tell_controller(life, controller::controller::Event::Leading);
            }
            Watcher::Speaker(node) => {
                if let Some(speaker) = &mut self.nodes[node].speaker {
                    speaker.cursor = Some(upto);
                }
                self.tell_planner(node, planner::Event::Synced);
            }
        }
    }

    fn watched(&mut self, watcher: Watcher, life: u64, upto: usize) {
        if self.life(watcher) != life {
            return;
        }
        let cursor = match watcher {
            Watcher::Controller => self.controller.as_mut().map(|c| &mut c.cursor),
            Watcher::Speaker(node) => self.nodes[node].speaker.as_mut().map(|s| &mut s.cursor),
        };
        let Some(Some(cursor)) = cursor.map(Option::as_mut) else { return };
        if *cursor >= upto {
            return;
        }
        let news = self.api.log[*cursor..upto].to_vec();
        *cursor = upto;
        for change in news {
            self.feed(watcher, change);
        }
    }

    fn feed(&mut self, watcher: Watcher, change: Change) {
        match watcher {
            Watcher::Controller => self.feed_controller(change),
            Watcher::Speaker(node) => self.feed_speaker(node, change),
        }
    }

    fn feed_speaker(&mut self, node: usize, change: Change) {
        let event = match change {
            Change::Service(service) => planner::Event::ServiceApplied(service),
            Change::ServiceGone((namespace, name)) => {
                planner::Event::ServiceDeleted(speaker::view::ServiceKey::new(namespace, name))
            }
            Change::Slice(slice) => planner::Event::SliceApplied(slice),
            Change::SliceGone((namespace, name)) => {
                planner::Event::SliceDeleted { namespace, name }
            }
            Change::Node(object) => planner::Event::NodeApplied(object),
            Change::NodeGone(name) => planner::Event::NodeDeleted(name),
            Change::Resources(resources) => planner::Event::Resources(resources),
        };
        self.tell_planner(node, event);
    }

    fn feed_controller(&mut self, change: Change) {
        let event = match change {
            Change::Service(mut service) => {
                if self.options.broken == Some(Broken::StatusUnread) && self.controller_life > 1 {
                    service.status = None;
                }
                let Some(view) = controller::service::Service::new(&service, None) else { return };
                controller::controller::Event::ServiceApplied(Box::new(view))
            }
            Change::ServiceGone((namespace, name)) => {
                controller::controller::Event::ServiceDeleted(controller::service::ServiceKey::new(
                    namespace, name,
                ))
            }
            Change::Resources(mut resources) => {
                resources.namespaces.insert("default".into(), config::Labels::new());
                controller::controller::Event::ResourcesChanged(Arc::new(*resources))
            }
            Change::Slice(_) | Change::SliceGone(_) | Change::Node(_) | Change::NodeGone(_) => {
                return;
            }
        };
        self.tell_controller(self.controller_life, event);
    }

    // --- into the cores, and what comes out

    fn tell_controller(&mut self, life: u64, event: controller::controller::Event) {
        if life != self.controller_life {
            return;
        }
        if let Some(controller) = &mut self.controller {
            let actions = controller.core.handle(event, self.now);
            self.perform_controller(actions);
        }
    }

    fn perform_controller(&mut self, actions: Vec<controller::controller::Action>) {
        let life = self.controller_life;
        for action in actions {
            match action {
                controller::controller::Action::PatchService { key, body } => {
                    let key = (key.namespace.to_string(), key.name.to_string());
                    let delay = self.delay(300, 3_000);
                    self.later(delay, Message::PatchArrives { life, key, body: Box::new(body) });
                }
                controller::controller::Action::PatchStatus { object, .. } => {
                    let result = controller::controller::WriteResult::Written {
                        resource_version: "0".into(),
                    };
                    self.tell_controller(
                        life,
                        controller::controller::Event::StatusDone { object, result },
                    );
                }
                controller::controller::Action::PatchConfigurationState { .. } => {
                    let result = controller::controller::WriteResult::Written {
                        resource_version: "0".into(),
                    };
                    let event = controller::controller::Event::ConfigurationStateDone { result };
                    self.tell_controller(life, event);
                }
                controller::controller::Action::PublishEvent { .. } => {}
            }
        }
    }

    fn tell_planner(&mut self, node: usize, event: planner::Event) {
        let now = self.now;
        if let Some(speaker) = &mut self.nodes[node].speaker {
            let actions = speaker.planner.handle(event, now);
            self.perform_planner(node, actions);
        }
    }

    fn perform_planner(&mut self, node: usize, actions: Vec<planner::Action>) {
        let life = self.nodes[node].life;
        for action in actions {
            match action {
                planner::Action::Wanted(wanted) => {
                    let delay = self.delay(10, 2_000);
                    if let Some(speaker) = &mut self.nodes[node].speaker {
                        match &mut speaker.slot {
                            Some(waiting) => waiting.merge(wanted),
                            none => *none = Some(wanted),
                        }
                    }
                    self.later(delay, Message::Wanted { node, life });
                }
                planner::Action::OpenSession(spec) => self.open_session(node, &spec),
                planner::Action::UpdateSession(_) => {}
                planner::Action::CloseSession { peer, reason: _ } => {
                    if let Some(speaker) = &mut self.nodes[node].speaker {
                        speaker.sessions.remove(&peer);
                    }
                    self.router.lose(node);
                }
                planner::Action::Advertise { peer: _, changes } => {
                    self.tell_session(node, bgp::Event::Routes(changes));
                }
                planner::Action::Complete => {
                    if let Some(speaker) = &mut self.nodes[node].speaker {
                        speaker.complete = true;
                    }
                    self.tell_session(node, bgp::Event::Complete);
                }
                planner::Action::ServiceStatus { .. }
                | planner::Action::Note(_)
                | planner::Action::ConfigErrors(_) => {}
            }
        }
    }

    fn open_session(&mut self, node: usize, spec: &SessionSpec) {
        let mut session = bgp::Session::new(spec.session_config(), self.rng.random());
        let actions = session.handle(bgp::Event::Start, self.now);
        if let Some(speaker) = &mut self.nodes[node].speaker {
            if speaker.complete {
                session.handle(bgp::Event::Complete, self.now);
            }
            speaker.sessions.insert(spec.peer.name.clone(), session);
        }
        self.perform_session(node, actions);
    }

    /// There is one router, hence one session a node.
    fn tell_session(&mut self, node: usize, event: bgp::Event<'_>) {
        let now = self.now;
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        let Some(session) = speaker.sessions.values_mut().next() else { return };
        let actions = session.handle(event, now);
        let actions = with_updates(session, actions, now);
        self.perform_session(node, actions);
    }

    fn perform_session(&mut self, node: usize, actions: Vec<bgp::Action>) {
        let life = self.nodes[node].life;
        for action in actions {
            match action {
                bgp::Action::Connect => {
                    let delay = self.delay(200, 2_000);
                    self.later(delay, Message::Dialled { node, life });
                }
                bgp::Action::Send(bytes) => {
                    if self.options.broken == Some(Broken::RoutesKept) && withdraws(&bytes) {
                        continue;
                    }
                    // One connection keeps its order: no jitter.
                    let delay = Duration::from_micros(300);
                    self.later(delay, Message::ToRouter { node, life, bytes });
                }
                bgp::Action::Close => self.router.lose(node),
                // Nobody dials a speaker.
                bgp::Action::Reject(_) | bgp::Action::StateChanged(_) => {}
            }
        }
    }

    fn tell_wire(&mut self, node: usize, event: wire::Event<'_>) {
        let now = self.now;
        if let Some(speaker) = &mut self.nodes[node].speaker {
            let actions = speaker.wire.handle(event, now);
            self.perform_wire(node, actions);
        }
    }

    fn perform_wire(&mut self, node: usize, actions: Vec<wire::Action>) {
        // The order of the actions is the order of what happened: a state before a frame means
        // that the frame rests on it.
        for action in actions {
            match action {
                wire::Action::SendFrame { interface: _, frame } => self.send_frame(node, frame),
                wire::Action::JoinGroup { .. } | wire::Action::LeaveGroup { .. } => {}
                wire::Action::SendDatagram { to, address: _, payload } => {
                    self.send_datagram(node, &to, payload);
                }
                wire::Action::Addresses(states) => self.told(node, states),
                wire::Action::Report(_) => {}
            }
        }
    }

    fn told(&mut self, node: usize, states: BTreeMap<IpAddr, Option<AddressState>>) {
        let life = self.nodes[node].life;
        let at = self.elapsed().as_secs_f64() * 1000.0;
        if let Some(speaker) = &mut self.nodes[node].speaker {
            for (&address, state) in &states {
                if !state.as_ref().is_some_and(|state| state.stage.answers()) {
                    speaker.answers.remove(&address);
                } else if speaker.answers.insert(address) {
                    self.story.push(format!("{at:>9.3} ms n{} takes {address}", node + 1));
                }
            }
            speaker.told.extend(states);
        }
        let delay = self.delay(10, 500);
        self.later(delay, Message::Addresses { node, life });
    }

    // --- the segment

    fn send_frame(&mut self, from: usize, frame: Vec<u8>) {
        if let Some(speaker) = &self.nodes[from].speaker {
            self.checker.spoken(&self.nodes[from].name, &speaker.answers, &frame);
        }
        let to: [u8; 6] = frame[..6].try_into().expect("a frame has a destination");
        self.broadcast(Station::Node(from), to, &frame.into());
    }

    fn host_asks(&mut self, host: usize) {
        let addresses: BTreeSet<IpAddr> = self.api.services.values().flat_map(addresses).collect();
        for address in addresses {
            let frame = self.hosts[host].ask(address);
            let to = frame[..6].try_into().expect("a frame has a destination");
            self.broadcast(Station::Host(host), to, &frame.into());
        }
        self.later(Duration::from_millis(500), Message::HostAsks { host });
    }

    fn broadcast(&mut self, from: Station, to: [u8; 6], frame: &Arc<[u8]>) {
        let nodes = (0..self.nodes.len()).map(Station::Node);
        let stations: Vec<_> = nodes.chain((0..self.hosts.len()).map(Station::Host)).collect();
        for station in stations {
            let mac = match station {
                Station::Node(node) => self.nodes[node].mac,
                Station::Host(host) => self.hosts[host].mac,
            };
            let meant = to[0] & 1 == 1 || to == mac;
            if station != from && meant && self.reaches(from, station) && !self.lost() {
                let delay = self.delay(20, 200);
                self.later(delay, Message::Frame { to: station, frame: Arc::clone(frame) });
            }
        }
    }

    fn send_datagram(&mut self, from: usize, to: &NodeName, payload: Vec<u8>) {
        let Some(to) = self.nodes.iter().position(|node| node.name == *to) else { return };
        let deaf = self.options.broken == Some(Broken::HeartbeatsUnheard);
        if !deaf && self.reaches(Station::Node(from), Station::Node(to)) && !self.lost() {
            let delay = self.delay(50, 400);
            self.later(delay, Message::Datagram { to, from, payload });
        }
    }

    fn reaches(&self, a: Station, b: Station) -> bool {
        let cut = |station| matches!(station, Station::Node(node) if !self.nodes[node].link_up);
        if cut(a) || cut(b) {
            return false;
        }
        let Some(at) = self.split_at else { return true };
        let first = |station| match station {
            Station::Node(node) => node < at,
            Station::Host(_) => true,
        };
        first(a) == first(b)
    }

    fn lost(&mut self) -> bool {
        let loss = u32::from(self.options.loss);
        loss > 0 && self.rng.random_ratio(loss, 100)
    }

    // --- the queue

    /// Between the two, in microseconds.
    fn delay(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_micros(self.rng.random_range(least..=most))
    }

    fn later(&mut self, delay: Duration, message: Message) {
        self.at(self.now + delay, message);
    }

    fn at(&mut self, at: Instant, message: Message) {
        self.queue.put(at, message);
    }
}

/// The addresses that a Service has.
pub fn addresses(service: &k8s_openapi::api::core::v1::Service) -> BTreeSet<IpAddr> {
    service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default()
        .iter()
        .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
        .collect()
}

/// True for an UPDATE that takes back IPv4 routes.
fn withdraws(bytes: &[u8]) -> bool {
    bytes.get(18) == Some(&2) && bytes.get(19..21).is_some_and(|length| length != [0, 0])
}

fn number(index: usize) -> u8 {
    u8::try_from(index + 1).expect("a small cluster")
}

/// What a session asks for, and all its UPDATEs: the connection takes whatever it is given.
fn with_updates(
    session: &mut bgp::Session,
    mut actions: Vec<bgp::Action>,
    now: Instant,
) -> Vec<bgp::Action> {
    while session.has_updates() {
        actions.push(bgp::Action::Send(session.transmit(now, 64 * 1024)));
    }
    session.handle(bgp::Event::Written, now);
    actions
}
