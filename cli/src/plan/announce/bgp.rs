//! What each node announces to its BGP peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use config::{Community, NodeName, Peer, PeerName, ServiceKey};
use ipnet::IpNet;
use speaker::plan::{
    Attributes, Choices, Context, Refusal, Route, ServicePlan, announcements_of, joined,
};

use super::{Announcement, BGP, Unannounced, Way};

/// What one node announces.
#[derive(Debug)]
pub struct Routed<'a> {
    node: &'a NodeName,
    peers: Vec<&'a Peer>,
    /// Those with an address in a pool that a BGPAdvertisement selects, and these addresses.
    services: BTreeMap<&'a ServiceKey, (BTreeSet<IpAddr>, ServicePlan)>,
    routes: BTreeMap<(&'a PeerName, IpNet), Arc<Attributes>>,
    is_drained: bool,
}

/// By every node, if anything is for BGP.
pub fn routed(context: Context<'_>) -> BTreeMap<NodeName, Routed<'_>> {
    let mut services = BTreeMap::new();
    for (key, service) in &context.cluster.services {
        let addresses = service.addresses.iter().copied();
        let addresses: BTreeSet<IpAddr> =
            addresses.filter(|address| is_for_bgp(*address, context)).collect();
        if !addresses.is_empty() {
            services.insert(key, (service, addresses));
        }
    }
    if services.is_empty() {
        return BTreeMap::new();
    }
    let of_node = |node| {
        let context = Context { me: node, ..context };
        let mut choices = Choices::default();
        let services = services.iter().map(|(key, (service, addresses))| {
            let plan = announcements_of(key, service, None, context, &mut choices);
            (*key, (addresses.clone(), plan))
        });
        (node.clone(), Routed::new(context, services.collect()))
    };
    context.cluster.nodes.keys().map(of_node).collect()
}

impl<'a> Routed<'a> {
    fn new(
        context: Context<'a>,
        services: BTreeMap<&'a ServiceKey, (BTreeSet<IpAddr>, ServicePlan)>,
    ) -> Self {
        let peers = context.config.peers.values().filter(|peer| peer.nodes.contains(context.me));
        let peers: Vec<&Peer> = peers.collect();
        let mut routes = BTreeMap::new();
        for peer in &peers {
            let mut all: BTreeMap<IpNet, Vec<&Route>> = BTreeMap::new();
            for route in services.values().filter_map(|(_, plan)| plan.bgp.as_ref().ok()) {
                for route in route.routes(&peer.name) {
                    all.entry(route.prefix).or_default().push(route);
                }
            }
            routes.extend(all.into_iter().filter_map(|(prefix, all)| {
                Some(((&peer.name, prefix), joined(all.into_iter(), peer)?))
            }));
        }
        let is_drained = context.is_drained(context.me);
        Self { node: context.me, peers, services, routes, is_drained }
    }

    /// Of one address of a Service.
    pub fn tell(
        &self,
        key: &ServiceKey,
        address: IpAddr,
        announced: &mut Vec<Announcement>,
        unannounced: &mut Vec<Unannounced>,
    ) {
        let Some((addresses, plan)) = self.services.get(key) else { return };
        if !addresses.contains(&address) {
            return;
        }
        let not = |peer: Option<&PeerName>, refusal: &Refusal| Unannounced {
            service: key.to_string(),
            address: Some(address),
            node: Some(self.node.to_string()),
            protocol: BGP,
            peer: peer.map(ToString::to_string),
            reason: refusal.reason(),
            message: refusal.to_string(),
        };
        let plan = match &plan.bgp {
            Ok(_) if self.is_drained => {
                return unannounced.push(not(None, &Refusal::NodeDrained(self.node.clone())));
            }
            Ok(plan) => plan,
            Err(refusal) => return unannounced.push(not(None, refusal)),
        };
        for peer in &self.peers {
            let routes = plan.routes(&peer.name).iter().map(|route| route.prefix);
            let routes = routes.filter(|prefix| prefix.contains(&address)).filter_map(|prefix| {
                let attributes = self.routes.get(&(&peer.name, prefix))?;
                Some((prefix, attributes))
            });
            let before = announced.len();
            announced.extend(routes.map(|(prefix, attributes)| Announcement {
                service: key.to_string(),
                address,
                protocol: BGP,
                node: self.node.to_string(),
                way: way(&peer.name, prefix, attributes),
            }));
            if announced.len() == before {
                let refused = plan.refused.iter().find(|(name, _)| *name == peer.name);
                let unnamed = || Refusal::PeerNotNamed(peer.name.clone());
                let refusal = refused.map_or_else(unnamed, |(_, refusal)| refusal.clone());
                unannounced.push(not(Some(&peer.name), &refusal));
            }
        }
    }
}

fn is_for_bgp(address: IpAddr, context: Context<'_>) -> bool {
    let pool = context.config.pools.values().find(|pool| pool.contains(address));
    pool.is_some_and(|pool| !pool.bgp_advertisements.is_empty())
}

fn way(peer: &PeerName, prefix: IpNet, attributes: &Attributes) -> Way {
    let halves = |community: &u32| {
        let [a, b, c, d] = community.to_be_bytes();
        Community::Standard(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    };
    let standard = attributes.communities.iter().map(halves);
    let large = attributes.large_communities.iter().map(|(a, b, c)| Community::Large(*a, *b, *c));
    let extended = attributes.extended_communities.iter().copied().map(Community::Extended);
    let communities = standard.chain(large).chain(extended);
    Way::Bgp {
        peer: peer.to_string(),
        prefix,
        local_pref: attributes.local_pref,
        med: attributes.med,
        as_path_prepend: attributes.as_path_prepend,
        communities: communities.map(|community| community.to_string()).collect(),
    }
}
