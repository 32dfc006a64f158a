//! The planner: API objects in; wishes for the wire, BGP sessions, routes and statuses out.
//!
//! One exists per speaker. [`Planner::handle`] only takes notes; the planning itself happens in
//! [`Planner::handle_timeout`], which is due at once, so that everything that arrived meanwhile is
//! planned together and a single change still leaves within the same turn of the loop. Nothing is
//! planned before every list has been read once.

pub mod sessions;
mod tell;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bgp::{Changes, StopReason};
use config::{Config, ConfigError, NodeName, PeerName, Resources};
use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use ownership::{AddressState, Candidates, Extent};

use crate::{
    plan::{Choices, Context, Options, ServicePlan, announcements_of, join_address},
    status::{Note, ServiceStatus},
    view::{Cluster, Few, Many, NodeChange, ServiceKey, compact},
    wire::Wanted,
};
use sessions::Sessions;
pub use sessions::{Change, SessionSpec, change};
use tell::Telling;

/// Settings of one planner.
#[derive(Debug, Clone)]
pub struct PlannerConfig {
    pub me: NodeName,
    /// The address that heartbeats are bound to; its family is the one spoken to the peers. None: the
    /// speaker stays alone on the segment.
    pub heartbeat: Option<IpAddr>,
    pub options: Options,
    /// `--bgp-drain-time`: between telling the peers that this node goes and going.
    pub bgp_drain_time: Duration,
}

/// What happens to the planner.
#[derive(Debug)]
pub enum Event {
    /// All custom resources and Secrets; `nodes` and `namespaces` in it are not read, the planner
    /// knows the nodes itself.
    Resources(Box<Resources>),
    ServiceApplied(Box<core::Service>),
    ServiceDeleted(ServiceKey),
    SliceApplied(Box<discovery::EndpointSlice>),
    SliceDeleted {
        namespace: String,
        name: String,
    },
    NodeApplied(Box<core::Node>),
    NodeDeleted(NodeName),
    /// A list begins that shows all objects of a kind, each as applied.
    ListBegins(Many),
    /// What that list did not show is gone.
    ListEnds(Many),
    /// The API server has come to this resource version, as the deletion of an object tells.
    Version(u64),
    /// Every list has been read once.
    Synced,
    /// The speaker is to end: its peers are left as when the node is drained.
    Leave,
    /// What the wire knows of these addresses has changed.
    Addresses(BTreeMap<IpAddr, Option<AddressState>>),
    /// The other speakers heard now.
    Live(BTreeSet<NodeName>),
    /// The names of the interfaces that can answer.
    Interfaces(BTreeSet<String>),
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Wanted(Wanted),
    /// Open the session, or replace it when it exists. It knows no routes yet.
    OpenSession(Box<SessionSpec>),
    /// Go on with the session; nothing that differs needs a reset.
    UpdateSession(Box<SessionSpec>),
    CloseSession {
        peer: PeerName,
        reason: StopReason,
    },
    /// What differs from what the session was told before.
    Advertise {
        peer: PeerName,
        changes: Changes,
    },
    /// Every list has been read, and all sessions know what they are to announce. Said once, and
    /// true of all sessions that are opened later.
    Complete,
    /// What this node does for a Service changed.
    ServiceStatus {
        service: ServiceKey,
        status: Arc<ServiceStatus>,
    },
    Note(Note),
    /// What is wrong with the configuration now; empty when nothing is.
    ConfigErrors(Vec<ConfigError>),
}

/// An address that is to be answered for, or was when the wire was last told.
#[derive(Debug, Default)]
struct Asked {
    /// By these Services, in order: the first decides where the others have nothing in common with
    /// it.
    services: Few<ServiceKey>,
    /// What the wire was told.
    told: Option<Arc<Candidates>>,
}

/// See the module.
#[derive(Debug)]
pub struct Planner {
    settings: PlannerConfig,
    resources: Resources,
    config: Arc<Config>,
    /// What was last told; none before the first time.
    errors: Option<Vec<ConfigError>>,
    cluster: Cluster,
    /// The highest resource version seen; versions that are no numbers count as 0.
    version: u64,
    synced: bool,
    due: Option<Instant>,
    /// A label of a Node or a custom resource changed.
    config_dirty: bool,
    /// The configuration or the availability of a node changed: all Services are looked at again.
    all_dirty: bool,
    /// The addresses of a Node changed.
    addresses_dirty: bool,
    dirty: BTreeSet<ServiceKey>,
    choices: Choices,
    plans: BTreeMap<ServiceKey, ServicePlan>,
    by_address: BTreeMap<IpAddr, Asked>,
    /// The peers that the wire was told of; `None` before it was told anything.
    peers: Option<BTreeMap<NodeName, BTreeSet<IpAddr>>>,
    /// What the wire was told last.
    draining: Option<bool>,
    bgp: Sessions,
    telling: Telling,
}

impl Planner {
    pub fn new(settings: PlannerConfig) -> Self {
        Self {
            settings,
            resources: Resources::default(),
            config: Arc::default(),
            errors: None,
            cluster: Cluster::default(),
            version: 0,
            synced: false,
            due: None,
            config_dirty: true,
            all_dirty: false,
            addresses_dirty: true,
            dirty: BTreeSet::new(),
            choices: Choices::default(),
            plans: BTreeMap::new(),
            by_address: BTreeMap::new(),
            peers: None,
            draining: None,
            bgp: Sessions::default(),
            telling: Telling::default(),
        }
    }

    /// Takes an event in. The actions come from [`Self::handle_timeout`].
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let changed = match event {
            Event::Resources(resources) => {
                self.resources = *resources;
                let all = metadata(&self.resources).map(version_of).max();
                self.version = self.version.max(all.unwrap_or_default());
                self.config_dirty = true;
                true
            }
            Event::ServiceApplied(object) => {
                self.saw(&object.metadata);
                let key = self.cluster.apply_service(&object);
                self.mark(key)
            }
            Event::ServiceDeleted(key) => {
                let known = self.cluster.delete_service(&key);
                self.mark(known.then_some(key))
            }
            Event::SliceApplied(object) => {
                self.saw(&object.metadata);
                let keys = self.cluster.apply_slice(&object);
                self.mark(keys)
            }
            Event::SliceDeleted { namespace, name } => {
                let key = self.cluster.delete_slice(&namespace, &name);
                self.mark(key)
            }
            Event::NodeApplied(object) => {
                self.saw(&object.metadata);
                let change = self.cluster.apply_node(&object);
                let name = object.metadata.name.as_deref().unwrap_or_default();
                self.node_changed(name, change)
            }
            Event::NodeDeleted(name) => {
                let change = self.cluster.delete_node(&name);
                self.node_changed(&name, change)
            }
            Event::ListBegins(of) => {
                self.cluster.begin_list(of);
                false
            }
            Event::ListEnds(of) => {
                let keys = self.cluster.end_list(of);
                self.mark(keys)
            }
            Event::Version(version) => {
                self.version = self.version.max(version);
                false
            }
            Event::Synced => {
                self.synced = true;
                true
            }
            Event::Leave => {
                self.bgp.stop();
                true
            }
            Event::Addresses(states) => self.learn(states),
            Event::Live(live) => self.learn_live(live),
            Event::Interfaces(names) => self.learn_interfaces(names),
        };
        if changed && self.synced {
            self.due.get_or_insert(now);
        }
        Vec::new()
    }

    /// Plans what is dirty.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        if self.poll_timeout().is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.due = None;
        let mut actions = Vec::new();
        if std::mem::take(&mut self.config_dirty) {
            self.parse_config(&mut actions);
        }
        if std::mem::take(&mut self.all_dirty) {
            self.choices.forget();
            self.dirty.extend(self.cluster.services.keys().cloned());
            self.dirty.extend(self.plans.keys().cloned());
        }
        self.dirty.extend(self.bgp.damping.released(now));
        let touched = self.plan_dirty(now, &mut actions);
        self.want(&touched, &mut actions);
        self.sessions(now, &mut actions);
        self.advertise(&mut actions);
        self.tell(now, &mut actions);
        actions
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.due, self.telling.due(), self.bgp.due()].into_iter().flatten().min()
    }

    /// Whether this node is drained or about to end, so that no other speaker takes this one's place.
    pub fn node_goes(&self) -> bool {
        let me = self.cluster.nodes.get(&self.settings.me);
        self.context().is_drained(&self.settings.me) || me.is_some_and(|me| me.ending.is_some())
    }

    /// Whether no peer has anything of this node any more, after [`Event::Leave`].
    pub fn has_left(&self) -> bool {
        !self.synced || !self.bgp.announce()
    }

    fn saw(&mut self, metadata: &ObjectMeta) {
        self.version = self.version.max(version_of(metadata));
    }

    fn mark(&mut self, keys: impl IntoIterator<Item = ServiceKey>) -> bool {
        let mut any = false;
        for key in keys {
            self.dirty.insert(key);
            any = true;
        }
        any
    }

    fn node_changed(&mut self, name: &str, change: NodeChange) -> bool {
        self.config_dirty |= change.labels;
        self.all_dirty |= change.availability;
        self.addresses_dirty |= change.addresses;
        if change.drain && *name == *self.settings.me {
            self.drain_changed();
        }
        change.any()
    }

    fn context(&self) -> Context<'_> {
        Context {
            me: &self.settings.me,
            config: &self.config,
            cluster: &self.cluster,
            options: &self.settings.options,
        }
    }

    fn parse_config(&mut self, actions: &mut Vec<Action>) {
        self.resources.nodes = self
            .cluster
            .nodes
            .iter()
            .map(|(name, node)| (name.clone(), node.labels.clone()))
            .collect();
        let (config, errors) = Config::parse(&self.resources, Some(&self.config));
        // Most changes of a Node's labels are of no selector's interest.
        self.all_dirty |= config.pools != self.config.pools || config.peers != self.config.peers;
        self.config = Arc::new(config);
        if self.errors.as_ref() != Some(&errors) {
            self.errors = Some(errors.clone());
            actions.push(Action::ConfigErrors(errors));
        }
    }

    /// Returns the addresses that may have to be answered for otherwise.
    fn plan_dirty(&mut self, now: Instant, actions: &mut Vec<Action>) -> BTreeSet<IpAddr> {
        let mut touched = BTreeSet::new();
        let mut choices = std::mem::take(&mut self.choices);
        for key in std::mem::take(&mut self.dirty) {
            let service = self.cluster.services.get(&key);
            let before = self.plans.get(&key);
            let mut new = service.map(|service| {
                announcements_of(&key, service, before, self.context(), &mut choices)
            });
            if let Some(new) = &mut new {
                self.bgp.damping.damp(&key, before, new, now);
            }
            if before == new.as_ref() {
                continue;
            }
            // The copy that the Services have too.
            let known = self.cluster.services.get_key_value(&key).map(|(known, _)| known.clone());
            let key = known.unwrap_or(key);
            if let Some(old) = self.plans.remove(&key) {
                self.unindex(&key, &old, &mut touched);
            }
            if let Some(new) = new {
                self.index(&key, &new, &mut touched);
                actions.extend(Note::refused(&self.subject(&key), &new).map(Action::Note));
                self.plans.insert(key.clone(), new);
            }
            self.telling.look_at(key);
        }
        self.choices = choices;
        touched
    }

    fn unindex(&mut self, key: &ServiceKey, plan: &ServicePlan, touched: &mut BTreeSet<IpAddr>) {
        for (address, _) in plan.candidates() {
            touched.insert(address);
            if let Some(asked) = self.by_address.get_mut(&address) {
                let others = asked.services.iter().filter(|other| *other != key);
                asked.services = others.cloned().collect();
            }
        }
        self.bgp.unindex(key, plan);
    }

    fn index(&mut self, key: &ServiceKey, plan: &ServicePlan, touched: &mut BTreeSet<IpAddr>) {
        for (address, _) in plan.candidates() {
            touched.insert(address);
            let keys = &mut self.by_address.entry(address).or_default().services;
            let (before, after) = keys.split_at(keys.partition_point(|other| other < key));
            *keys = before.iter().chain([key]).chain(after).cloned().collect();
        }
        self.bgp.index(key, plan);
    }

    fn want(&mut self, addresses: &BTreeSet<IpAddr>, actions: &mut Vec<Action>) {
        // In order, so that a map of all of it is built without gaps.
        let mut changes = Vec::new();
        for address in addresses {
            let new = self.wanted_address(*address);
            let Some(asked) = self.by_address.get_mut(address) else { continue };
            let before = std::mem::replace(&mut asked.told, new.clone());
            if new.is_none() {
                self.by_address.remove(address);
            }
            if before != new {
                changes.push((*address, new));
            }
        }
        // Also an empty set is told once: it is then known that there is nothing to own.
        let extent = if self.peers.is_none() { Extent::Whole } else { Extent::Changes };
        if extent == Extent::Whole {
            compact(&mut self.plans);
            compact(&mut self.by_address);
        }
        let mut peers = None;
        if std::mem::take(&mut self.addresses_dirty) {
            let now = self.peers();
            if self.peers.as_ref() != Some(&now) {
                self.peers = Some(now.clone());
                peers = Some(now);
            }
        }
        let drained = Some(self.context().is_drained(&self.settings.me));
        let draining = drained.filter(|_| self.draining != drained);
        self.draining = drained;
        if extent == Extent::Whole || peers.is_some() || draining.is_some() || !changes.is_empty() {
            let version = self.version;
            let addresses = changes.into_iter().collect();
            let wanted = Wanted { version, extent, addresses, peers, draining };
            actions.push(Action::Wanted(wanted));
        }
    }

    fn wanted_address(&mut self, address: IpAddr) -> Option<Arc<Candidates>> {
        let mut joined = BTreeMap::new();
        for key in &self.by_address.get(&address)?.services {
            let asked = self.plans.get(key)?.candidates().find(|(asked, _)| *asked == address);
            if let Some((_, asked)) = asked {
                join_address(joined.entry(address), asked);
            }
        }
        joined.remove(&address).map(|joined| self.choices.one(joined))
    }

    /// The other nodes, by their addresses of the heartbeats' family.
    fn peers(&self) -> BTreeMap<NodeName, BTreeSet<IpAddr>> {
        let Some(bound) = self.settings.heartbeat else { return BTreeMap::new() };
        self.cluster
            .nodes
            .iter()
            .filter(|(name, _)| **name != self.settings.me)
            .map(|(name, node)| {
                let same = |address: &&IpAddr| address.is_ipv4() == bound.is_ipv4();
                (name.clone(), node.internal_addresses.iter().filter(same).copied().collect())
            })
            .filter(|(_, addresses): &(_, BTreeSet<_>)| !addresses.is_empty())
            .collect()
    }
}

/// The metadata of all custom resources.
fn metadata(resources: &Resources) -> impl Iterator<Item = &ObjectMeta> {
    let Resources {
        pools,
        l2_advertisements,
        bgp_advertisements,
        bgp_peers,
        bfd_profiles,
        communities,
        secrets: _,
        nodes: _,
        namespaces: _,
        node_addresses: _,
        service_ranges: _,
        unreadable: _,
    } = resources;
    let pools = pools.iter().map(|object| &object.metadata);
    pools
        .chain(l2_advertisements.iter().map(|object| &object.metadata))
        .chain(bgp_advertisements.iter().map(|object| &object.metadata))
        .chain(bgp_peers.iter().map(|object| &object.metadata))
        .chain(bfd_profiles.iter().map(|object| &object.metadata))
        .chain(communities.iter().map(|object| &object.metadata))
}

/// 0 for one that is no number, which an API server may give.
fn version_of(metadata: &ObjectMeta) -> u64 {
    let version = metadata.resource_version.as_deref();
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
