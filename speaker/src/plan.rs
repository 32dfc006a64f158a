//! Who announces what: a plain function of the configuration and the cluster, with a reason for
//! every Service that is not announced.
//!
//! [`announcements_of`] looks at one Service; [`plan`] is that function over all of them. The planner
//! runs the first over what changed and must end where the second does.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
};

use bgp::Route;
use config::{BgpAdvertisement, Community, Config, L2Advertisement, NodeName, PeerName, Pool};
use ipnet::IpNet;
use layer2::{Candidates, InterfaceMatch};

use crate::{
    view::{Cluster, Service, ServiceKey, TrafficPolicy},
    wire::WantedAddress,
};

/// Settings of the process that decide about announcing.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--lb-class`: Services of this class only; none: Services without a class only.
    pub lb_class: Option<String>,
    /// `--ignore-exclude-lb`: announce from nodes that carry the exclude label too.
    pub ignore_exclude_label: bool,
}

/// What a decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub me: &'a NodeName,
    pub config: &'a Config,
    pub cluster: &'a Cluster,
    pub options: &'a Options,
}

/// What one Service asks of this speaker, or why nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct ServicePlan {
    /// Every address with its candidates in the whole cluster, not only on this node.
    pub layer2: Result<BTreeMap<IpAddr, WantedAddress>, Refusal>,
    /// What this node sends to each of its peers.
    pub bgp: Result<BTreeMap<PeerName, BTreeSet<Route>>, Refusal>,
}

/// What all Services together ask of this speaker.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Announcements {
    pub layer2: BTreeMap<IpAddr, WantedAddress>,
    pub bgp: BTreeMap<PeerName, BTreeSet<Route>>,
}

/// Why a Service is not announced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its loadBalancerClass is served by somebody else")]
    OtherClass,
    #[error("it has no address yet")]
    NoAddress,
    #[error("address {0} is in no IPAddressPool")]
    AddressInNoPool(IpAddr),
    #[error("no advertisement selects pool {pool:?} for this Service")]
    NoAdvertisement { pool: String },
    #[error(
        "it shares its address and an L2Advertisement of the pool has serviceSelectors, so the \
         Services of one address could end on different nodes"
    )]
    SharedAddressWithServiceSelectors,
    #[error("it has no endpoint that is ready or still serving")]
    NoEndpoint,
    #[error("externalTrafficPolicy is Local and no endpoint serves on node {0:?}")]
    NoLocalEndpoint(String),
    #[error("the network of node {0:?} is unavailable (condition NetworkUnavailable)")]
    NodeNetworkUnavailable(String),
    #[error(
        "node {0:?} carries the label node.kubernetes.io/exclude-from-external-load-balancers \
         (--ignore-exclude-lb overrides it)"
    )]
    NodeExcluded(String),
    #[error("no node qualifies: {0}")]
    NoCandidate(String),
    #[error("BGPAdvertisements {first:?} and {second:?} give {prefix} different localPref values")]
    LocalPrefConflict { first: String, second: String, prefix: IpNet },
    #[error("no BGPPeer selects node {0:?}")]
    NoPeer(String),
}

/// Plans everything anew.
pub fn plan(context: Context<'_>) -> Announcements {
    let mut whole = Announcements::default();
    let mut joined: BTreeMap<PeerName, BTreeMap<IpNet, Route>> = BTreeMap::new();
    for (key, service) in &context.cluster.services {
        let ServicePlan { layer2, bgp } = announcements_of(key, service, context);
        for (address, wanted) in layer2.unwrap_or_default() {
            join_address(whole.layer2.entry(address), wanted);
        }
        for (peer, routes) in bgp.unwrap_or_default() {
            join_routes(joined.entry(peer).or_default(), &routes);
        }
    }
    whole.bgp =
        joined.into_iter().map(|(peer, routes)| (peer, routes.into_values().collect())).collect();
    whole
}

/// Plans one Service.
pub fn announcements_of(key: &ServiceKey, service: &Service, context: Context<'_>) -> ServicePlan {
    match pools_of(service, context) {
        Ok(pools) => ServicePlan {
            layer2: layer2_of(key, service, &pools, context),
            bgp: bgp_of(key, service, &pools, context),
        },
        Err(refusal) => ServicePlan { layer2: Err(refusal.clone()), bgp: Err(refusal) },
    }
}

/// Two Services of one address go to one node, so only nodes that suit both are candidates.
pub(crate) fn join_address(entry: Entry<'_, IpAddr, WantedAddress>, wanted: WantedAddress) {
    match entry {
        Entry::Vacant(vacant) => {
            vacant.insert(wanted);
        }
        Entry::Occupied(mut occupied) => {
            let both: BTreeSet<_> = occupied
                .get()
                .candidates
                .nodes
                .intersection(&wanted.candidates.nodes)
                .cloned()
                .collect();
            // With nothing in common the first Service in order decides: one of them served beats none.
            if !both.is_empty() {
                occupied.get_mut().candidates.nodes = both;
            }
        }
    }
}

/// Two Services that yield one prefix share the route: communities united, the higher localPref.
pub(crate) fn join_routes<'a>(
    into: &mut BTreeMap<IpNet, Route>,
    routes: impl IntoIterator<Item = &'a Route>,
) {
    for route in routes {
        match into.entry(route.prefix) {
            Entry::Vacant(vacant) => {
                vacant.insert(route.clone());
            }
            Entry::Occupied(mut occupied) => {
                let joined = occupied.get_mut();
                joined.local_pref = joined.local_pref.max(route.local_pref);
                joined.communities.extend(&route.communities);
                joined.large_communities.extend(&route.large_communities);
            }
        }
    }
}

fn pools_of<'a>(
    service: &Service,
    context: Context<'a>,
) -> Result<BTreeMap<IpAddr, &'a Pool>, Refusal> {
    if service.class != context.options.lb_class {
        return Err(Refusal::OtherClass);
    }
    if service.addresses.is_empty() {
        return Err(Refusal::NoAddress);
    }
    service
        .addresses
        .iter()
        .map(|address| {
            context
                .config
                .pools
                .values()
                .find(|pool| pool.contains(*address))
                .map(|pool| (*address, pool))
                .ok_or(Refusal::AddressInNoPool(*address))
        })
        .collect()
}

fn layer2_of(
    key: &ServiceKey,
    service: &Service,
    pools: &BTreeMap<IpAddr, &Pool>,
    context: Context<'_>,
) -> Result<BTreeMap<IpAddr, WantedAddress>, Refusal> {
    let mut wanted = BTreeMap::new();
    let mut refusal = None;
    for (address, pool) in pools {
        match layer2_of_address(key, service, pool, context) {
            Ok(one) => {
                wanted.insert(*address, one);
            }
            Err(reason) => refusal = Some(reason),
        }
    }
    match refusal {
        Some(reason) if wanted.is_empty() => Err(reason),
        _ => Ok(wanted),
    }
}

fn layer2_of_address(
    key: &ServiceKey,
    service: &Service,
    pool: &Pool,
    context: Context<'_>,
) -> Result<WantedAddress, Refusal> {
    let ads = pool.l2_advertisements.iter().map(|ad| &**ad);
    let ads: Vec<&L2Advertisement> = ads.filter(|ad| ad.selects(&service.labels)).collect();
    if ads.is_empty() {
        return Err(Refusal::NoAdvertisement { pool: pool.name.to_string() });
    }
    if service.shares_address && ads.iter().any(|ad| !ad.service_selectors.is_empty()) {
        return Err(Refusal::SharedAddressWithServiceSelectors);
    }
    if !context.cluster.has_endpoint(key) {
        return Err(Refusal::NoEndpoint);
    }
    let local = match service.policy {
        TrafficPolicy::Cluster => None,
        TrafficPolicy::Local => Some(context.cluster.endpoint_nodes(key)),
    };
    let mut nodes = BTreeSet::new();
    let mut last_reason = "no node matches the nodeSelectors of the L2Advertisements".to_owned();
    for node in ads.iter().flat_map(|ad| &ad.nodes) {
        if local.as_ref().is_some_and(|local| !local.contains(node)) {
            last_reason = Refusal::NoLocalEndpoint(node.to_string()).to_string();
        } else if let Err(reason) = node_qualifies(node, context) {
            last_reason = reason.to_string();
        } else {
            nodes.insert(node.clone());
        }
    }
    if nodes.is_empty() {
        return Err(Refusal::NoCandidate(last_reason));
    }
    let mut preference: BTreeMap<NodeName, i32> = BTreeMap::new();
    for (node, score) in ads.iter().flat_map(|ad| &ad.preference) {
        if nodes.contains(node) {
            let sum = preference.entry(node.clone()).or_default();
            *sum = sum.saturating_add(*score);
        }
    }
    let interfaces = interfaces_of(&ads, context.me);
    Ok(WantedAddress { candidates: Candidates { nodes, preference }, interfaces })
}

/// The union over the advertisements that hold on this node.
fn interfaces_of(ads: &[&L2Advertisement], me: &NodeName) -> InterfaceMatch {
    let mut names = BTreeSet::new();
    for ad in ads.iter().filter(|ad| ad.nodes.contains(me)) {
        match &ad.interfaces {
            config::InterfaceMatch::All => return InterfaceMatch::All,
            config::InterfaceMatch::Only(some) => names.extend(some.iter().cloned()),
        }
    }
    InterfaceMatch::Only(names)
}

fn node_qualifies(name: &NodeName, context: Context<'_>) -> Result<(), Refusal> {
    // A node that has not been seen yet is judged when it is.
    let Some(node) = context.cluster.nodes.get(name) else { return Ok(()) };
    if node.network_unavailable {
        return Err(Refusal::NodeNetworkUnavailable(name.to_string()));
    }
    if node.excluded() && !context.options.ignore_exclude_label {
        return Err(Refusal::NodeExcluded(name.to_string()));
    }
    Ok(())
}

fn bgp_of(
    key: &ServiceKey,
    service: &Service,
    pools: &BTreeMap<IpAddr, &Pool>,
    context: Context<'_>,
) -> Result<BTreeMap<PeerName, BTreeSet<Route>>, Refusal> {
    let me = context.me;
    let mut ads_of: BTreeMap<IpAddr, Vec<&BgpAdvertisement>> = BTreeMap::new();
    for (address, pool) in pools {
        let ads: Vec<_> = pool
            .bgp_advertisements
            .iter()
            .map(|ad| &**ad)
            .filter(|ad| ad.nodes.contains(me) && ad.selects(&service.labels))
            .collect();
        if !ads.is_empty() {
            ads_of.insert(*address, ads);
        }
    }
    if ads_of.is_empty() {
        let pool = pools.values().next().map(|pool| pool.name.to_string()).unwrap_or_default();
        return Err(Refusal::NoAdvertisement { pool });
    }
    node_qualifies(me, context)?;
    match service.policy {
        TrafficPolicy::Cluster if !context.cluster.has_endpoint(key) => {
            return Err(Refusal::NoEndpoint);
        }
        TrafficPolicy::Local if !context.cluster.endpoint_nodes(key).contains(me) => {
            return Err(Refusal::NoLocalEndpoint(me.to_string()));
        }
        TrafficPolicy::Cluster | TrafficPolicy::Local => {}
    }
    let mine: BTreeSet<&PeerName> =
        context.config.peers.values().filter(|p| p.nodes.contains(me)).map(|p| &p.name).collect();
    if mine.is_empty() {
        return Err(Refusal::NoPeer(me.to_string()));
    }
    let mut routes: BTreeMap<PeerName, BTreeMap<IpNet, Route>> = BTreeMap::new();
    for (address, ads) in &ads_of {
        for peer in &mine {
            let heard: Vec<_> =
                ads.iter().filter(|ad| ad.peers.is_empty() || ad.peers.contains(*peer)).collect();
            for (index, ad) in heard.iter().enumerate() {
                let route = route_of(*address, ad);
                let conflict = heard[..index].iter().find(|other| {
                    other.local_pref != ad.local_pref
                        && route_of(*address, other).prefix == route.prefix
                });
                if let Some(other) = conflict {
                    return Err(Refusal::LocalPrefConflict {
                        first: other.name.clone(),
                        second: ad.name.clone(),
                        prefix: route.prefix,
                    });
                }
                join_routes(routes.entry((*peer).clone()).or_default(), [&route]);
            }
        }
    }
    Ok(routes.into_iter().map(|(peer, routes)| (peer, routes.into_values().collect())).collect())
}

fn route_of(address: IpAddr, ad: &BgpAdvertisement) -> Route {
    let length = match address {
        IpAddr::V4(_) => ad.aggregation_length,
        IpAddr::V6(_) => ad.aggregation_length_v6,
    };
    let prefix = IpNet::new(address, length).unwrap_or_else(|_| IpNet::from(address)).trunc();
    let mut route = Route {
        prefix,
        local_pref: (ad.local_pref != 0).then_some(ad.local_pref),
        communities: BTreeSet::new(),
        large_communities: BTreeSet::new(),
    };
    for community in &ad.communities {
        match *community {
            Community::Standard(a, b) => {
                route.communities.insert(u32::from(a) << 16 | u32::from(b));
            }
            Community::Large(a, b, c) => {
                route.large_communities.insert((a, b, c));
            }
        }
    }
    route
}

#[cfg(test)]
mod tests;
