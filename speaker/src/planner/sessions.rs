//! The BGP half: which sessions to hold, and what to say on each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use bgp::Route;
use config::{PeerAddress, PeerName};
use sha2::{Digest as _, Sha256};

use super::{Action, Planner, SessionSpec};
use crate::plan::join_routes;

impl Planner {
    pub(super) fn sessions(&mut self, actions: &mut Vec<Action>) {
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

    pub(super) fn advertise(&mut self, touched: &BTreeSet<PeerName>, actions: &mut Vec<Action>) {
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
}
