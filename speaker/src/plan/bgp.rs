//! What one Service asks of each BGP peer of this node.
//!
//! The advertisements of a prefix are united (MetalLB does so with their communities) as far as they
//! agree in everything else; where they do not, the most preferred routes win and the others are
//! named. Two values of `localPref` for one route are refused, as in MetalLB.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use bgp::{Attributes, Family};
use config::{BgpAdvertisement, Community, Peer, PeerAddress, PeerName, Pool};
use ipnet::IpNet;

use super::{
    Choices, Context, LocalPrefConflict, Overruled, Refusal, ServicePlan, labels_for,
    node_qualifies,
};
use crate::view::{Few, Service, ServiceKey, TrafficPolicy};

/// RFC 4271 section 9.1.1: of a route without LOCAL_PREF, as routers take it.
const DEFAULT_LOCAL_PREF: u32 = 100;
/// RFC 6793: stands for an AS number that does not fit into two octets.
const AS_TRANS: u16 = 23456;
/// Type and sub-type of the link-bandwidth community (draft-ietf-idr-link-bandwidth).
const LINK_BANDWIDTH: u16 = 0x4004;
/// Octets per second for one endpoint: 1 Gbit/s.
const BANDWIDTH: f32 = 125_000_000.0;

/// What this node sends for one Service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BgpPlan {
    /// Those that get routes, with them, both in order.
    pub peers: Few<(PeerName, Few<Route>)>,
    /// Those that get none of the routes, or not all, and why.
    pub refused: Few<(PeerName, Refusal)>,
    /// Advertisements that are not obeyed, because others of the same routes say something else.
    pub overruled: Few<Overruled>,
    pub damping: Damped,
}

/// Whether an advertisement asks for damping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Damped {
    #[default]
    No,
    Yes,
}

/// A prefix of one Service with what it is announced with to one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub prefix: IpNet,
    pub attributes: Arc<Attributes>,
    /// With `weightByEndpoints`: how many endpoints are ready on the node, at least one.
    pub endpoints: Option<u16>,
}

impl BgpPlan {
    pub fn routes(&self, peer: &str) -> &[Route] {
        let place = self.peers.binary_search_by(|(name, _)| (**name).cmp(peer));
        place.map_or(&[], |place| &self.peers[place].1)
    }

    pub fn route(&self, peer: &str, prefix: IpNet) -> Option<&Route> {
        let routes = self.routes(peer);
        routes.binary_search_by_key(&prefix, |route| route.prefix).ok().map(|place| &routes[place])
    }

    /// Every prefix of every peer.
    pub fn prefixes(&self) -> impl Iterator<Item = (&PeerName, IpNet)> {
        let peers = self.peers.iter();
        peers.flat_map(|(peer, routes)| routes.iter().map(move |route| (peer, route.prefix)))
    }
}

/// The families that a session with this peer is for, as in MetalLB: its own, or both.
pub fn families(peer: &Peer) -> BTreeSet<Family> {
    match peer.address {
        PeerAddress::Address(IpAddr::V4(_)) if !peer.dual_stack_address_family => {
            [Family::Ipv4Unicast].into()
        }
        PeerAddress::Address(IpAddr::V6(_)) if !peer.dual_stack_address_family => {
            [Family::Ipv6Unicast].into()
        }
        PeerAddress::Address(_) | PeerAddress::Interface(_) => {
            [Family::Ipv4Unicast, Family::Ipv6Unicast].into()
        }
    }
}

/// What a prefix is announced with that all of `routes` are for: those of several Services with one
/// address, or in one aggregate. In whatever order they come, the result is the same.
pub fn joined<'a>(
    routes: impl Iterator<Item = &'a Route> + Clone,
    peer: &Peer,
) -> Option<Arc<Attributes>> {
    let best = routes.clone().map(|route| Preference::of(&route.attributes)).min()?;
    let mut winners = routes.filter(|route| Preference::of(&route.attributes) == best);
    let first = winners.next()?;
    let mut joined = Arc::clone(&first.attributes);
    let mut endpoints = first.endpoints;
    for route in winners {
        if joined != route.attributes {
            unite(Arc::make_mut(&mut joined), &route.attributes);
        }
        let sum = |a: u16| a.saturating_add(route.endpoints.unwrap_or_default());
        endpoints = endpoints.map(sum).or(route.endpoints);
    }
    if let Some(endpoints) = endpoints {
        let bandwidth = link_bandwidth(peer.local_asn.unwrap_or(peer.my_asn), endpoints);
        Arc::make_mut(&mut joined).extended_communities.insert(bandwidth);
    }
    Some(joined)
}

pub(super) fn bgp_of(
    key: &ServiceKey,
    service: &Service,
    pools: &[(IpAddr, &Pool)],
    before: Option<&ServicePlan>,
    context: Context<'_>,
    choices: &mut Choices,
) -> Result<Box<BgpPlan>, Refusal> {
    let me = context.me;
    let mut ads_of = advertisements(service, pools, context)?;
    for (address, ads) in &ads_of {
        if let Some(conflict) = local_pref_conflict(*address, ads) {
            return Err(Refusal::LocalPrefConflict(Box::new(conflict)));
        }
    }
    node_qualifies(me, context)?;
    let unserved = match service.policy {
        TrafficPolicy::Cluster if !context.cluster.has_endpoint(key) => Some(Refusal::NoEndpoint),
        TrafficPolicy::Local if !context.cluster.endpoint_nodes(key).contains(me) => {
            Some(Refusal::NoLocalEndpoint(me.clone()))
        }
        TrafficPolicy::Cluster | TrafficPolicy::Local => None,
    };
    let mut kept = None;
    if let Some(unserved) = unserved {
        let last = before.and_then(|before| before.bgp.as_deref().ok());
        let Some(last) = last.filter(|_| !context.cluster.has_endpoint(key)) else {
            return Err(unserved);
        };
        ads_of.iter_mut().for_each(|(_, ads)| ads.retain(|ad| ad.keep_last_announcement));
        if ads_of.iter().all(|(_, ads)| ads.is_empty()) {
            return Err(unserved);
        }
        kept = Some((last, unserved));
    }
    let mine: Vec<&Peer> =
        context.config.peers.values().filter(|peer| peer.nodes.contains(me)).collect();
    if mine.is_empty() {
        return Err(Refusal::NoPeer(me.clone()));
    }
    let all = ads_of.iter().flat_map(|(_, ads)| ads);
    let damping = if all.clone().any(|ad| ad.damping) { Damped::Yes } else { Damped::No };
    let weighted = all.clone().any(|ad| ad.weight_by_endpoints);
    let mut peers = Vec::new();
    let (mut refused, mut overruled) = (Vec::new(), Vec::new());
    for peer in mine {
        let mut asked: BTreeMap<IpNet, Vec<Asked<'_>>> = BTreeMap::new();
        for (address, ads) in &ads_of {
            let weight =
                weighted.then(|| context.cluster.ready_endpoints(key, me, *address).max(1));
            for ad in ads.iter().filter(|ad| ad.is_for(&peer.name)) {
                let endpoints = weight.filter(|_| ad.weight_by_endpoints);
                let asked = asked.entry(prefix_of(*address, ad)).or_default();
                asked.push(Asked { ad, attributes: attributes_of(ad, peer), endpoints });
            }
        }
        if asked.is_empty() {
            refused.push((peer.name.clone(), Refusal::PeerNotNamed(peer.name.clone())));
            continue;
        }
        let families = families(peer);
        let other_family = asked.keys().find(|prefix| !families.contains(&Family::of(prefix)));
        if let Some(prefix) = other_family.copied() {
            let refusal = Refusal::PeerWithoutFamily { peer: peer.name.clone(), prefix };
            refused.push((peer.name.clone(), refusal));
            asked.retain(|prefix, _| families.contains(&Family::of(prefix)));
        }
        if let Some((last, _)) = &kept {
            asked.retain(|prefix, _| last.route(&peer.name, *prefix).is_some());
        }
        let routes: Few<Route> = asked
            .into_iter()
            .map(|(prefix, asked)| united(prefix, asked, choices, &mut overruled))
            .collect();
        if !routes.is_empty() {
            peers.push((peer.name.clone(), routes));
        }
    }
    if let (true, Some((_, unserved))) = (peers.is_empty(), kept) {
        return Err(unserved);
    }
    overruled.sort();
    overruled.dedup();
    Ok(Box::new(BgpPlan {
        peers: peers.into_iter().collect(),
        refused: refused.into_iter().collect(),
        overruled: overruled.into_iter().collect(),
        damping,
    }))
}

/// What one advertisement asks of one peer for one prefix.
struct Asked<'a> {
    ad: &'a BgpAdvertisement,
    attributes: Attributes,
    endpoints: Option<u16>,
}

/// What decides between routes that differ in more than communities; the smallest is preferred.
/// What is equal in it may be united.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    local_pref: Reverse<u32>,
    as_path_prepend: u8,
    med: u32,
    /// Given or not: what means the same is still not written the same.
    given: (bool, bool),
}

impl Preference {
    fn of(attributes: &Attributes) -> Self {
        let Attributes {
            local_pref,
            med,
            as_path_prepend,
            communities: _,
            extended_communities: _,
            large_communities: _,
        } = attributes;
        Self {
            local_pref: Reverse(local_pref.unwrap_or(DEFAULT_LOCAL_PREF)),
            as_path_prepend: *as_path_prepend,
            med: med.unwrap_or_default(),
            given: (local_pref.is_some(), med.is_some()),
        }
    }
}

type AdvertisementsOf<'a> = Vec<(IpAddr, Vec<&'a BgpAdvertisement>)>;

/// For each address that has some: the advertisements that are for this node and this Service.
fn advertisements<'a>(
    service: &Service,
    pools: &[(IpAddr, &'a Pool)],
    context: Context<'_>,
) -> Result<AdvertisementsOf<'a>, Refusal> {
    let all = pools.iter().flat_map(|(_, pool)| &pool.bgp_advertisements);
    let labels = labels_for(service, all.map(|ad| &ad.service_selectors));
    let of_pool = |pool: &'a Pool| {
        let ads = pool.bgp_advertisements.iter().map(|ad| &**ad);
        ads.filter(|ad| ad.nodes.contains(context.me) && ad.selects(&labels)).collect::<Vec<_>>()
    };
    let ads_of = pools.iter().map(|(address, pool)| (*address, of_pool(pool)));
    let ads_of: AdvertisementsOf<'a> = ads_of.filter(|(_, ads)| !ads.is_empty()).collect();
    if ads_of.is_empty() {
        let pool = pools.first().map(|(_, pool)| pool.name.clone()).unwrap_or_default();
        return Err(Refusal::NoAdvertisement { pool });
    }
    Ok(ads_of)
}

fn local_pref_conflict(address: IpAddr, ads: &[&BgpAdvertisement]) -> Option<LocalPrefConflict> {
    let share_peers = |a: &BgpAdvertisement, b: &BgpAdvertisement| {
        a.peers.is_empty() || b.peers.is_empty() || !a.peers.is_disjoint(&b.peers)
    };
    ads.iter().enumerate().find_map(|(index, ad)| {
        let prefix = prefix_of(address, ad);
        let other = ads[..index].iter().find(|other| {
            other.local_pref != ad.local_pref
                && prefix_of(address, other) == prefix
                && share_peers(other, ad)
        })?;
        Some(LocalPrefConflict { first: other.name.clone(), second: ad.name.clone(), prefix })
    })
}

fn prefix_of(address: IpAddr, ad: &BgpAdvertisement) -> IpNet {
    let length = match address {
        IpAddr::V4(_) => ad.aggregation_length,
        IpAddr::V6(_) => ad.aggregation_length_v6,
    };
    IpNet::new(address, length).unwrap_or_else(|_| IpNet::from(address)).trunc()
}

/// What the advertisement leaves open is as the peer says.
fn attributes_of(ad: &BgpAdvertisement, peer: &Peer) -> Attributes {
    let prepend = if ad.as_path_prepend == 0 { peer.as_path_prepend } else { ad.as_path_prepend };
    let mut attributes = Attributes {
        local_pref: Some(ad.local_pref).filter(|value| *value != 0).or(peer.local_pref),
        med: ad.med.or(peer.med),
        as_path_prepend: prepend,
        ..Attributes::default()
    };
    for community in &ad.communities {
        match *community {
            Community::Standard(a, b) => {
                attributes.communities.insert(u32::from(a) << 16 | u32::from(b));
            }
            Community::Large(a, b, c) => {
                attributes.large_communities.insert((a, b, c));
            }
            Community::Extended(octets) => {
                attributes.extended_communities.insert(octets);
            }
        }
    }
    attributes
}

fn united(
    prefix: IpNet,
    asked: Vec<Asked<'_>>,
    choices: &mut Choices,
    overruled: &mut Vec<Overruled>,
) -> Route {
    let best = asked.iter().map(|asked| Preference::of(&asked.attributes)).min();
    let (winners, losers): (Vec<_>, Vec<_>) =
        asked.into_iter().partition(|asked| Some(Preference::of(&asked.attributes)) == best);
    if let (Some(winner), Some(loser)) = (winners.first(), losers.first()) {
        overruled.push(Overruled {
            prefix,
            by: winner.ad.name.clone(),
            name: loser.ad.name.clone(),
        });
    }
    let mut attributes = Attributes::default();
    let mut endpoints = None;
    for (place, asked) in winners.into_iter().enumerate() {
        if place == 0 {
            attributes = asked.attributes;
        } else {
            unite(&mut attributes, &asked.attributes);
        }
        endpoints = endpoints.max(asked.endpoints);
    }
    Route { prefix, attributes: choices.attributes.one(Arc::new(attributes)), endpoints }
}

fn unite(into: &mut Attributes, other: &Attributes) {
    into.communities.extend(&other.communities);
    into.extended_communities.extend(&other.extended_communities);
    into.large_communities.extend(&other.large_communities);
}

fn link_bandwidth(asn: u32, endpoints: u16) -> u64 {
    let asn = u16::try_from(asn).unwrap_or(AS_TRANS);
    let bandwidth = f32::from(endpoints) * BANDWIDTH;
    u64::from(LINK_BANDWIDTH) << 48 | u64::from(asn) << 32 | u64::from(bandwidth.to_bits())
}

#[cfg(test)]
mod tests;
