//! The planner: API objects in; wishes for the wire, BGP sessions, routes and statuses out.
//!
//! One exists per speaker. [`Planner::handle`] only takes notes; the planning itself happens in
//! [`Planner::handle_timeout`], which is due at once, so that everything that arrived meanwhile is
//! planned together and a single change still leaves within the same turn of the loop. Nothing is
//! planned before every list has been read once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use bgp::{Route, SessionConfig};
use config::{Config, ConfigError, NodeName, Peer, PeerAddress, PeerAsn, PeerName, Resources};
use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use sha2::{Digest, Sha256};

use crate::{
    plan::{Context, Options, ServicePlan, announcements_of, join_address, join_routes},
    status::{Note, ServiceStatus},
    view::{Cluster, ServiceKey},
    wire::{Report, Wanted, WantedAddress},
};

/// Settings of one planner.
#[derive(Debug, Clone)]
pub struct PlannerConfig {
    pub me: NodeName,
    /// The address that heartbeats are bound to; its family is the one spoken to the peers. None: the
    /// speaker stays alone on the segment.
    pub heartbeat: Option<IpAddr>,
    pub options: Options,
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
    /// Every list has been read once.
    Synced,
    /// The wire's state changed.
    Wire(Report),
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Wanted(Wanted),
    /// Open the session, or replace it when it exists; every part of it that differs needs a reset.
    OpenSession(Box<SessionSpec>),
    CloseSession(PeerName),
    /// The whole set of routes for a peer with a session.
    Advertise {
        peer: PeerName,
        routes: BTreeSet<Route>,
    },
    /// What this node does for a Service changed.
    ServiceStatus {
        service: ServiceKey,
        status: ServiceStatus,
    },
    Note(Note),
    /// What is wrong with the configuration now; empty when nothing is.
    ConfigErrors(Vec<ConfigError>),
}

/// A BGP session to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionSpec {
    pub peer: Peer,
    pub address: IpAddr,
    pub router_id: Ipv4Addr,
}

impl SessionSpec {
    /// What the session's core is configured to be.
    pub fn session_config(&self) -> SessionConfig {
        let peer = &self.peer;
        let peer_asn = match peer.peer_asn {
            PeerAsn::Number(number) => bgp::PeerAsn::Number(number),
            PeerAsn::Internal => bgp::PeerAsn::Internal,
            PeerAsn::External => bgp::PeerAsn::External,
        };
        SessionConfig {
            hold_time: peer.hold_time,
            keepalive_time: Some(peer.keepalive_time),
            connect_time: peer.connect_time,
            ..SessionConfig::new(peer.local_asn.unwrap_or(peer.my_asn), peer_asn, self.router_id)
        }
    }

    /// A session within one AS is not bound to one hop.
    pub fn is_internal(&self) -> bool {
        match self.peer.peer_asn {
            PeerAsn::Number(number) => number == self.peer.my_asn,
            PeerAsn::Internal => true,
            PeerAsn::External => false,
        }
    }
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
    report: Report,
    synced: bool,
    due: Option<Instant>,
    config_dirty: bool,
    dirty: BTreeSet<ServiceKey>,
    plans: BTreeMap<ServiceKey, ServicePlan>,
    /// Which Services ask for an address, and which for a prefix at a peer.
    by_address: BTreeMap<IpAddr, BTreeSet<ServiceKey>>,
    by_prefix: BTreeMap<PeerName, BTreeMap<IpNet, BTreeMap<ServiceKey, Route>>>,
    wanted: Wanted,
    wire_told: bool,
    sessions: BTreeMap<PeerName, SessionSpec>,
    advertised: BTreeMap<PeerName, BTreeSet<Route>>,
    statuses: BTreeMap<ServiceKey, ServiceStatus>,
    /// Services whose status may differ from what was last told.
    untold: BTreeSet<ServiceKey>,
}

impl Planner {
    pub fn new(settings: PlannerConfig) -> Self {
        Self {
            settings,
            resources: Resources::default(),
            config: Arc::default(),
            errors: None,
            cluster: Cluster::default(),
            report: Report::default(),
            synced: false,
            due: None,
            config_dirty: true,
            dirty: BTreeSet::new(),
            plans: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_prefix: BTreeMap::new(),
            wanted: Wanted::default(),
            wire_told: false,
            sessions: BTreeMap::new(),
            advertised: BTreeMap::new(),
            statuses: BTreeMap::new(),
            untold: BTreeSet::new(),
        }
    }

    /// Takes an event in. The actions come from [`Self::handle_timeout`].
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let changed = match event {
            Event::Resources(resources) => {
                self.resources = *resources;
                self.config_dirty = true;
                true
            }
            Event::ServiceApplied(object) => {
                let key = self.cluster.apply_service(&object);
                self.mark(key)
            }
            Event::ServiceDeleted(key) => {
                let known = self.cluster.delete_service(&key);
                self.mark(known.then_some(key))
            }
            Event::SliceApplied(object) => {
                let keys = self.cluster.apply_slice(&object);
                self.mark(keys)
            }
            Event::SliceDeleted { namespace, name } => {
                let key = self.cluster.delete_slice(&namespace, &name);
                self.mark(key)
            }
            Event::NodeApplied(object) => {
                let changed = self.cluster.apply_node(&object);
                self.config_dirty |= changed;
                changed
            }
            Event::NodeDeleted(name) => {
                let changed = self.cluster.delete_node(&name);
                self.config_dirty |= changed;
                changed
            }
            Event::Synced => !std::mem::replace(&mut self.synced, true),
            Event::Wire(report) => {
                let moved = self.report.owned.symmetric_difference(&report.owned);
                let keys = moved.filter_map(|address| self.by_address.get(address)).flatten();
                self.untold.extend(keys.cloned());
                self.report = report;
                !self.untold.is_empty()
            }
        };
        if changed && self.synced {
            self.due.get_or_insert(now);
        }
        Vec::new()
    }

    /// Plans what is dirty.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.due = None;
        let mut actions = Vec::new();
        if std::mem::take(&mut self.config_dirty) {
            self.parse_config(&mut actions);
        }
        let touched = self.plan_dirty(&mut actions);
        self.want(&touched.addresses, &mut actions);
        self.sessions(&mut actions);
        self.advertise(&touched.peers, &mut actions);
        self.tell_statuses(&mut actions);
        actions
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    fn mark(&mut self, keys: impl IntoIterator<Item = ServiceKey>) -> bool {
        let mut any = false;
        for key in keys {
            self.dirty.insert(key);
            any = true;
        }
        any
    }

    fn parse_config(&mut self, actions: &mut Vec<Action>) {
        self.resources.nodes = self
            .cluster
            .nodes
            .iter()
            .map(|(name, node)| (name.clone(), node.labels.clone()))
            .collect();
        let (config, errors) = Config::parse(&self.resources, Some(&self.config));
        // A node's condition or label decides too, so a changed node makes all Services dirty even
        // where the parsed configuration stays the same.
        self.dirty.extend(self.cluster.services.keys().cloned());
        self.dirty.extend(self.plans.keys().cloned());
        self.config = Arc::new(config);
        if self.errors.as_ref() != Some(&errors) {
            self.errors = Some(errors.clone());
            actions.push(Action::ConfigErrors(errors));
        }
    }

    fn plan_dirty(&mut self, actions: &mut Vec<Action>) -> Touched {
        let mut touched = Touched::default();
        let config = Arc::clone(&self.config);
        for key in std::mem::take(&mut self.dirty) {
            let context = Context {
                me: &self.settings.me,
                config: &config,
                cluster: &self.cluster,
                options: &self.settings.options,
            };
            let new = self
                .cluster
                .services
                .get(&key)
                .map(|service| announcements_of(&key, service, context));
            if self.plans.get(&key) == new.as_ref() {
                continue;
            }
            if let Some(old) = self.plans.remove(&key) {
                self.unindex(&key, &old, &mut touched);
            }
            if let Some(new) = new {
                self.index(&key, &new, &mut touched);
                actions.extend(Note::refused(&key, self.uid(&key), &new).map(Action::Note));
                self.plans.insert(key.clone(), new);
            }
            self.untold.insert(key);
        }
        touched
    }

    fn unindex(&mut self, key: &ServiceKey, plan: &ServicePlan, touched: &mut Touched) {
        for address in plan.layer2.iter().flat_map(BTreeMap::keys) {
            touched.addresses.insert(*address);
            if let Some(keys) = self.by_address.get_mut(address) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        for (peer, routes) in plan.bgp.iter().flatten() {
            touched.peers.insert(peer.clone());
            let Some(prefixes) = self.by_prefix.get_mut(peer) else { continue };
            for route in routes {
                if let Some(services) = prefixes.get_mut(&route.prefix) {
                    services.remove(key);
                    if services.is_empty() {
                        prefixes.remove(&route.prefix);
                    }
                }
            }
        }
    }

    fn index(&mut self, key: &ServiceKey, plan: &ServicePlan, touched: &mut Touched) {
        for address in plan.layer2.iter().flat_map(BTreeMap::keys) {
            touched.addresses.insert(*address);
            self.by_address.entry(*address).or_default().insert(key.clone());
        }
        for (peer, routes) in plan.bgp.iter().flatten() {
            touched.peers.insert(peer.clone());
            let prefixes = self.by_prefix.entry(peer.clone()).or_default();
            for route in routes {
                prefixes.entry(route.prefix).or_default().insert(key.clone(), route.clone());
            }
        }
    }

    fn want(&mut self, addresses: &BTreeSet<IpAddr>, actions: &mut Vec<Action>) {
        // Also an empty set is told once: it is then known that there is nothing to own.
        let mut changed = !std::mem::replace(&mut self.wire_told, true);
        for address in addresses {
            match self.wanted_address(*address) {
                Some(new) => {
                    changed |= self.wanted.addresses.get(address) != Some(&new);
                    self.wanted.addresses.insert(*address, new);
                }
                None => changed |= self.wanted.addresses.remove(address).is_some(),
            }
        }
        let peers = self.peers();
        if peers != self.wanted.peers {
            self.wanted.peers = peers;
            changed = true;
        }
        if changed {
            actions.push(Action::Wanted(self.wanted.clone()));
        }
    }

    fn wanted_address(&self, address: IpAddr) -> Option<WantedAddress> {
        let mut joined = BTreeMap::new();
        for key in self.by_address.get(&address)? {
            let asked = self.plans.get(key).and_then(|p| p.layer2.as_ref().ok()?.get(&address));
            if let Some(asked) = asked {
                join_address(joined.entry(address), asked.clone());
            }
        }
        joined.remove(&address)
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

    fn sessions(&mut self, actions: &mut Vec<Action>) {
        let router_id = self.router_id();
        let wanted: BTreeMap<PeerName, SessionSpec> = self
            .config
            .peers
            .values()
            .filter(|peer| peer.nodes.contains(&self.settings.me))
            .filter_map(|peer| match peer.address {
                PeerAddress::Address(address) => Some(SessionSpec {
                    peer: peer.clone(),
                    address,
                    router_id: peer.router_id.unwrap_or(router_id),
                }),
                PeerAddress::Interface(_) => None,
            })
            .map(|spec| (spec.peer.name.clone(), spec))
            .collect();
        for name in self.sessions.keys().filter(|name| !wanted.contains_key(*name)) {
            actions.push(Action::CloseSession(name.clone()));
            self.advertised.remove(name);
        }
        for (name, spec) in &wanted {
            if self.sessions.get(name) != Some(spec) {
                // The new session knows no routes yet.
                self.advertised.remove(name);
                actions.push(Action::OpenSession(Box::new(spec.clone())));
            }
        }
        self.sessions = wanted;
    }

    fn advertise(&mut self, touched: &BTreeSet<PeerName>, actions: &mut Vec<Action>) {
        for peer in self.sessions.keys() {
            let known = self.advertised.contains_key(peer);
            if known && !touched.contains(peer) {
                continue;
            }
            let mut joined = BTreeMap::new();
            for services in self.by_prefix.get(peer).into_iter().flat_map(BTreeMap::values) {
                join_routes(&mut joined, services.values());
            }
            let routes: BTreeSet<Route> = joined.into_values().collect();
            // Also an empty set is told once: only then may the session say End-of-RIB.
            if self.advertised.get(peer) != Some(&routes) {
                self.advertised.insert(peer.clone(), routes.clone());
                actions.push(Action::Advertise { peer: peer.clone(), routes });
            }
        }
    }

    /// The node's first IPv4 address; a node without one gets a number from its name, as an
    /// identifier need only be unique and not 0 (RFC 6286).
    fn router_id(&self) -> Ipv4Addr {
        let own = self.cluster.nodes.get(&self.settings.me).and_then(|node| {
            node.internal_addresses.iter().find_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            })
        });
        own.unwrap_or_else(|| {
            let digest = Sha256::digest(self.settings.me.as_bytes());
            Ipv4Addr::new(digest[0], digest[1], digest[2], digest[3] | 1)
        })
    }

    fn tell_statuses(&mut self, actions: &mut Vec<Action>) {
        let me = &self.settings.me;
        for key in std::mem::take(&mut self.untold) {
            let plan = self.plans.get(&key);
            let now = plan
                .map(|plan| ServiceStatus::of(me, plan, &self.report.owned))
                .unwrap_or_default();
            let before = self.statuses.get(&key).cloned().unwrap_or_default();
            if now == before {
                continue;
            }
            let uid = self.uid(&key).to_owned();
            actions
                .extend(Note::begun(me, &key, &uid, &before, &now).into_iter().map(Action::Note));
            if now == ServiceStatus::default() {
                self.statuses.remove(&key);
            } else {
                self.statuses.insert(key.clone(), now.clone());
            }
            actions.push(Action::ServiceStatus { service: key, status: now });
        }
    }

    fn uid(&self, key: &ServiceKey) -> &str {
        self.cluster.services.get(key).map_or("", |service| &service.uid)
    }
}

/// What a round of planning touched.
#[derive(Debug, Default)]
struct Touched {
    addresses: BTreeSet<IpAddr>,
    peers: BTreeSet<PeerName>,
}

#[cfg(test)]
mod tests;
