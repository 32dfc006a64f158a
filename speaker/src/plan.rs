//! Who announces what: a plain function of the configuration and the cluster, with a reason for
//! every Service that is not announced.
//!
//! [`announcements_of`] looks at one Service; [`plan`] is that function over all of them. The planner
//! runs the first over what changed and must end where the second does.

mod bgp;
pub mod damping;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use config::{Config, L2Advertisement, Labels, NodeName, PeerName, Pool, PoolName, Selector};
use ipnet::IpNet;
use ownership::Candidates;

pub use ::bgp::Attributes;
pub use bgp::{BgpPlan, Damped, Route, families, joined};

use crate::view::{Cluster, Drain, Few, Service, ServiceKey, Shared, TrafficPolicy};

/// Settings of the process that decide about announcing.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--lb-class`: Services of this class only; none: Services without a class only.
    pub lb_class: Option<String>,
    /// `--ignore-exclude-lb`: announce from nodes that carry the exclude label too.
    pub ignore_exclude_label: bool,
    /// `--drain-on-taints`: a taint that precedes the end of a node, and a kubelet that says that
    /// its host shuts down, drain it like the annotation.
    pub drain_on_taints: bool,
}

/// What a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub me: &'a NodeName,
    pub config: &'a Config,
    pub cluster: &'a Cluster,
    pub options: &'a Options,
}

impl Context<'_> {
    /// Whether the addresses of a node are to go elsewhere.
    pub fn is_drained(&self, node: &str) -> bool {
        self.cluster.nodes.get(node).is_some_and(|node| {
            node.drain == Drain::Yes || self.options.drain_on_taints && node.ending.is_some()
        })
    }
}

/// See [`ServicePlan::layer2`].
pub type Layer2Plan = Result<Few<(IpAddr, Arc<Candidates>)>, Refusal>;

/// What one Service asks of this speaker, or why nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePlan {
    /// Every address with its candidates in the whole cluster, not only on this node; in order.
    pub layer2: Layer2Plan,
    /// What this node sends to each of its peers.
    pub bgp: Result<Box<BgpPlan>, Refusal>,
}

impl ServicePlan {
    /// The addresses that are announced by layer 2, with their candidates.
    pub fn candidates(&self) -> impl Iterator<Item = (IpAddr, &Arc<Candidates>)> {
        let all = self.layer2.iter().flatten();
        all.map(|(address, candidates)| (*address, candidates))
    }

    /// What this node sends to its peers, if to any.
    pub fn routes(&self) -> Option<&BgpPlan> {
        self.bgp.as_deref().ok().filter(|plan| !plan.peers.is_empty())
    }

    /// Why this node sends it to no peer.
    pub fn bgp_refusal(&self) -> Option<&Refusal> {
        match &self.bgp {
            Ok(plan) if plan.peers.is_empty() => plan.refused.first().map(|(_, refusal)| refusal),
            Ok(_) => None,
            Err(refusal) => Some(refusal),
        }
    }
}

/// What all Services together ask of this speaker.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Announcements {
    pub layer2: BTreeMap<IpAddr, Arc<Candidates>>,
    pub bgp: BTreeMap<PeerName, BTreeMap<IpNet, Arc<Attributes>>>,
}

/// Candidates that were worked out before: thousands of Services have the same. Holds for one
/// configuration and one state of the nodes.
#[derive(Debug, Default)]
pub struct Choices {
    /// By pool, and those of its advertisements that select the Service.
    known: BTreeMap<(PoolName, Vec<usize>), Result<Arc<Candidates>, Refusal>>,
    shared: Shared<Candidates>,
    attributes: Shared<Attributes>,
}

impl Choices {
    /// The configuration is another, or a node is.
    pub fn forget(&mut self) {
        self.known.clear();
    }

    /// The copy that all addresses have that are said the same of.
    pub(crate) fn one(&mut self, candidates: Arc<Candidates>) -> Arc<Candidates> {
        self.shared.one(candidates)
    }
}

/// Why a Service is not announced, or not from one node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its loadBalancerClass is served by somebody else")]
    OtherClass,
    #[error("it has no address yet")]
    NoAddress,
    #[error("address {0} is in no IPAddressPool")]
    AddressInNoPool(IpAddr),
    #[error("no advertisement selects pool {pool:?} for this Service")]
    NoAdvertisement { pool: PoolName },
    #[error(
        "it shares its address and an L2Advertisement of the pool has serviceSelectors, so the \
         Services of one address could end on different nodes"
    )]
    SharedAddressWithServiceSelectors,
    #[error("it has no endpoint that is ready or still serving")]
    NoEndpoint,
    #[error("externalTrafficPolicy is Local and no endpoint serves on node {0:?}")]
    NoLocalEndpoint(NodeName),
    #[error("no advertisement of its pool for this Service selects node {0:?}")]
    NodeNotSelected(NodeName),
    #[error("the network of node {0:?} is unavailable (condition NetworkUnavailable)")]
    NodeNetworkUnavailable(NodeName),
    #[error(
        "node {0:?} carries the label node.kubernetes.io/exclude-from-external-load-balancers \
         (--ignore-exclude-lb overrides it)"
    )]
    NodeExcluded(NodeName),
    #[error("no advertisement of pool {0:?} for this Service selects a node")]
    NoNode(PoolName),
    #[error("no node qualifies: {0}")]
    NoCandidate(Box<Self>),
    #[error("node {0:?} answers for it")]
    NotOwner(NodeName),
    #[error(
        "BGPAdvertisements {:?} and {:?} give {} different localPref values",
        .0.first, .0.second, .0.prefix
    )]
    LocalPrefConflict(Box<LocalPrefConflict>),
    #[error("no BGPPeer selects node {0:?}")]
    NoPeer(NodeName),
    #[error("no BGPAdvertisement of its pool for this Service names BGPPeer {0:?}")]
    PeerNotNamed(PeerName),
    #[error(
        "BGPPeer {peer:?} is reached over {}, so {prefix} is not announced to it; set its \
         dualStackAddressFamily",
        other_family(prefix)
    )]
    PeerWithoutFamily { peer: PeerName, prefix: IpNet },
    #[error(
        "its routes went more than three times in a minute, and a BGPAdvertisement has damping; \
         they come back when it has been quiet"
    )]
    Damped,
    #[error("node {0:?} is drained")]
    NodeDrained(NodeName),
}

/// An advertisement whose routes another one has as well, more preferred.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overruled {
    pub prefix: IpNet,
    /// The one that is obeyed.
    pub by: String,
    pub name: String,
}

impl fmt::Display for Overruled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BGPAdvertisements {:?} and {:?} give {} different attributes; the first is preferred, \
             so what the second says is not announced; make them equal, or keep the two apart",
            self.by, self.name, self.prefix
        )
    }
}

/// Two advertisements that cannot both be obeyed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPrefConflict {
    pub first: String,
    pub second: String,
    pub prefix: IpNet,
}

impl Refusal {
    /// The word that MetalLB has for it, in its logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::OtherClass => "notLoadBalancer",
            Self::NoAddress => "noIPAllocated",
            Self::AddressInNoPool(_) => "ipNotAllowed",
            Self::NoAdvertisement { .. }
            | Self::NodeNotSelected(_)
            | Self::NoNode(_)
            | Self::NoPeer(_) => "noMatchingAdvertisement",
            Self::SharedAddressWithServiceSelectors => "sharedIPWithServiceSelector",
            Self::NoEndpoint => "noEndpoints",
            Self::NoLocalEndpoint(_) => "noLocalEndpoints",
            Self::NodeNetworkUnavailable(_) => "nodeNetworkUnavailable",
            Self::NodeExcluded(_) => "nodeLabeledExcludeBalancers",
            Self::NoCandidate(why) => why.reason(),
            Self::NotOwner(_) => "notOwner",
            Self::LocalPrefConflict(_) => "conflictingAdvertisements",
            Self::PeerNotNamed(_) => "noMatchingAdvertisement",
            Self::PeerWithoutFamily { .. } => "peerWithoutFamily",
            Self::Damped => "damped",
            Self::NodeDrained(_) => "nodeDrained",
        }
    }
}

/// Plans everything anew.
pub fn plan(context: Context<'_>) -> Announcements {
    let mut whole = Announcements::default();
    let mut routes: BTreeMap<PeerName, BTreeMap<IpNet, Vec<Route>>> = BTreeMap::new();
    let mut choices = Choices::default();
    for (key, service) in &context.cluster.services {
        let plan = announcements_of(key, service, None, context, &mut choices);
        for (address, wanted) in plan.candidates() {
            join_address(whole.layer2.entry(address), wanted);
        }
        for (peer, of_service) in plan.routes().into_iter().flat_map(|plan| &plan.peers) {
            let of_peer = routes.entry(peer.clone()).or_default();
            for route in of_service {
                of_peer.entry(route.prefix).or_default().push(route.clone());
            }
        }
    }
    for (name, prefixes) in routes {
        let Some(peer) = context.config.peers.get(&name) else { continue };
        let prefixes = prefixes.iter();
        let joined =
            prefixes.filter_map(|(prefix, all)| Some((*prefix, joined(all.iter(), peer)?)));
        whole.bgp.insert(name, joined.collect());
    }
    whole
}

/// Plans one Service; `before` is what was last planned for it, which `keepLastAnnouncement` keeps.
pub fn announcements_of(
    key: &ServiceKey,
    service: &Service,
    before: Option<&ServicePlan>,
    context: Context<'_>,
    choices: &mut Choices,
) -> ServicePlan {
    match pools_of(service, context) {
        Ok(pools) => ServicePlan {
            layer2: layer2_of(key, service, &pools, context, choices),
            bgp: bgp::bgp_of(key, service, &pools, before, context, choices),
        },
        Err(refusal) => ServicePlan { layer2: Err(refusal.clone()), bgp: Err(refusal) },
    }
}

/// Why a node may not answer for one address of a Service; `None`: it may.
pub fn refusal_at(
    node: &NodeName,
    address: IpAddr,
    key: &ServiceKey,
    service: &Service,
    context: Context<'_>,
) -> Option<Refusal> {
    let refused = || {
        if service.class.as_deref() != context.options.lb_class.as_deref() {
            return Err(Refusal::OtherClass);
        }
        let pool = pool_of(address, context)?;
        let ads = advertised(key, service, pool, context)?;
        if !ads.iter().any(|index| pool.l2_advertisements[*index].nodes.contains(node)) {
            return Err(Refusal::NodeNotSelected(node.clone()));
        }
        node_qualifies(node, context)?;
        match service.policy {
            TrafficPolicy::Local if !context.cluster.endpoint_nodes(key).contains(node) => {
                Err(Refusal::NoLocalEndpoint(node.clone()))
            }
            TrafficPolicy::Local | TrafficPolicy::Cluster => Ok(()),
        }
    };
    refused().err()
}

/// Two Services of one address go to one node, so only nodes that suit both are candidates.
pub(crate) fn join_address(entry: Entry<'_, IpAddr, Arc<Candidates>>, wanted: &Arc<Candidates>) {
    match entry {
        Entry::Vacant(vacant) => {
            vacant.insert(Arc::clone(wanted));
        }
        Entry::Occupied(occupied) if Arc::ptr_eq(occupied.get(), wanted) => {}
        Entry::Occupied(mut occupied) => {
            let both: BTreeSet<_> =
                occupied.get().nodes.intersection(&wanted.nodes).cloned().collect();
            // With nothing in common the first Service in order decides: one of them served beats none.
            if !both.is_empty() && both != occupied.get().nodes {
                Arc::make_mut(occupied.get_mut()).nodes = both;
            }
        }
    }
}

fn pools_of<'a>(
    service: &Service,
    context: Context<'a>,
) -> Result<Vec<(IpAddr, &'a Pool)>, Refusal> {
    if service.class.as_deref() != context.options.lb_class.as_deref() {
        return Err(Refusal::OtherClass);
    }
    if service.addresses.is_empty() {
        return Err(Refusal::NoAddress);
    }
    let addresses = service.addresses.iter();
    addresses.map(|address| pool_of(*address, context).map(|pool| (*address, pool))).collect()
}

fn pool_of(address: IpAddr, context: Context<'_>) -> Result<&Pool, Refusal> {
    let mut pools = context.config.pools.values();
    pools.find(|pool| pool.contains(address)).ok_or(Refusal::AddressInNoPool(address))
}

fn layer2_of(
    key: &ServiceKey,
    service: &Service,
    pools: &[(IpAddr, &Pool)],
    context: Context<'_>,
    choices: &mut Choices,
) -> Layer2Plan {
    let mut wanted = Vec::new();
    let mut refusal = None;
    for (address, pool) in pools {
        match layer2_of_address(key, service, pool, context, choices) {
            Ok(one) => wanted.push((*address, one)),
            Err(reason) => refusal = Some(reason),
        }
    }
    match refusal {
        Some(reason) if wanted.is_empty() => Err(reason),
        _ => Ok(wanted.into_iter().collect()),
    }
}

fn layer2_of_address(
    key: &ServiceKey,
    service: &Service,
    pool: &Pool,
    context: Context<'_>,
    choices: &mut Choices,
) -> Result<Arc<Candidates>, Refusal> {
    let ads = advertised(key, service, pool, context)?;
    let choice = (pool.name.clone(), ads);
    let everywhere = match choices.known.get(&choice) {
        Some(known) => known.clone(),
        None => {
            let worked_out =
                qualified(pool, &choice.1, context).map(|all| choices.one(Arc::new(all)));
            choices.known.insert(choice, worked_out.clone());
            worked_out
        }
    };
    match service.policy {
        TrafficPolicy::Cluster => everywhere,
        TrafficPolicy::Local => {
            let everywhere = everywhere?;
            let local = only_on(&everywhere, context.cluster.endpoint_nodes(key))?;
            Ok(choices.one(Arc::new(local)))
        }
    }
}

/// The places in the pool's list of the advertisements that are for this Service.
fn advertised(
    key: &ServiceKey,
    service: &Service,
    pool: &Pool,
    context: Context<'_>,
) -> Result<Vec<usize>, Refusal> {
    if !context.cluster.has_endpoint(key) {
        return Err(Refusal::NoEndpoint);
    }
    let all = &pool.l2_advertisements;
    let labels = labels_for(service, all.iter().map(|ad| &ad.service_selectors));
    let ads: Vec<usize> = (0..all.len()).filter(|index| all[*index].selects(&labels)).collect();
    if ads.is_empty() {
        return Err(Refusal::NoAdvertisement { pool: pool.name.clone() });
    }
    if service.shares_address && ads.iter().any(|index| !all[*index].service_selectors.is_empty()) {
        return Err(Refusal::SharedAddressWithServiceSelectors);
    }
    Ok(ads)
}

/// The labels of a Service, if anybody asks for them.
fn labels_for<'a>(
    service: &Service,
    mut selectors: impl Iterator<Item = &'a Vec<Selector>>,
) -> Labels {
    if selectors.any(|any| !any.is_empty()) { service.labels.unpack() } else { Labels::new() }
}

/// The nodes of these advertisements that may announce, wherever the endpoints are.
fn qualified(pool: &Pool, ads: &[usize], context: Context<'_>) -> Result<Candidates, Refusal> {
    let ads: Vec<&L2Advertisement> =
        ads.iter().map(|index| &*pool.l2_advertisements[*index]).collect();
    let mut nodes = BTreeSet::new();
    let mut last_reason = Refusal::NoNode(pool.name.clone());
    for node in ads.iter().flat_map(|ad| &ad.nodes) {
        match node_qualifies(node, context) {
            Ok(()) => {
                nodes.insert(node.clone());
            }
            Err(reason) => last_reason = reason,
        }
    }
    if nodes.is_empty() {
        return Err(Refusal::NoCandidate(Box::new(last_reason)));
    }
    let mut preference: BTreeMap<NodeName, i32> = BTreeMap::new();
    for (node, score) in ads.iter().flat_map(|ad| &ad.preference) {
        if nodes.contains(node) {
            let sum = preference.entry(node.clone()).or_default();
            *sum = sum.saturating_add(*score);
        }
    }
    let interfaces =
        nodes.iter().filter_map(|node| Some((node.clone(), interfaces_of(&ads, node)?)));
    let interfaces = interfaces.collect();
    Ok(Candidates { nodes, preference, interfaces })
}

fn only_on(all: &Candidates, local: BTreeSet<NodeName>) -> Result<Candidates, Refusal> {
    let nodes: BTreeSet<NodeName> =
        local.into_iter().filter(|node| all.nodes.contains(node)).collect();
    if nodes.is_empty() {
        let somewhere = all.nodes.first().cloned().unwrap_or_default();
        return Err(Refusal::NoCandidate(Box::new(Refusal::NoLocalEndpoint(somewhere))));
    }
    let preference = nodes.iter().filter_map(|node| all.preference.get_key_value(node));
    let interfaces = nodes.iter().filter_map(|node| all.interfaces.get_key_value(node));
    Ok(Candidates {
        preference: preference.map(|(node, score)| (node.clone(), *score)).collect(),
        interfaces: interfaces.map(|(node, names)| (node.clone(), names.clone())).collect(),
        nodes,
    })
}

/// The union over the advertisements that hold on a node; `None`: any.
fn interfaces_of(ads: &[&L2Advertisement], node: &NodeName) -> Option<Arc<[String]>> {
    let mut names = BTreeSet::new();
    for ad in ads.iter().filter(|ad| ad.nodes.contains(node)) {
        match &ad.interfaces {
            config::InterfaceMatch::All => return None,
            config::InterfaceMatch::Only(some) => names.extend(some.iter().cloned()),
        }
    }
    Some(names.into_iter().collect())
}

fn node_qualifies(name: &NodeName, context: Context<'_>) -> Result<(), Refusal> {
    // A node that has not been seen yet is judged when it is.
    let Some(node) = context.cluster.nodes.get(name) else { return Ok(()) };
    if node.network_unavailable {
        return Err(Refusal::NodeNetworkUnavailable(name.clone()));
    }
    if node.excluded() && !context.options.ignore_exclude_label {
        return Err(Refusal::NodeExcluded(name.clone()));
    }
    Ok(())
}

/// What a session has that is not for this prefix.
fn other_family(prefix: &IpNet) -> &'static str {
    match prefix {
        IpNet::V4(_) => "IPv6",
        IpNet::V6(_) => "IPv4",
    }
}

#[cfg(test)]
mod tests;
