//! The BGP half: which sessions to hold, which change of a BGPPeer touches one, and which prefixes
//! each is told of.
//!
//! A node that is drained says so on all its routes (GRACEFUL_SHUTDOWN, RFC 8326), takes them back
//! when the routers have had time to turn away, and closes its sessions; they come back when the
//! drain is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Instant,
};

use bgp::{Attributes, Changes, SessionConfig, StopReason};
use config::{BfdProfile, Peer, PeerAddress, PeerAsn, PeerName};
use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::{Action, Planner};
use crate::{
    plan::{ServicePlan, damping::Damping, families, joined},
    view::{Few, ServiceKey, Shared},
};

/// GRACEFUL_SHUTDOWN (RFC 8326).
const GRACEFUL_SHUTDOWN: u32 = 65535 << 16;
/// What a peer is told when its session ends because the node is drained.
const DRAINED: &str = "node is drained";
/// What a peer is told when its session ends because the speaker does.
const STOPPING: &str = "the speaker is stopping";

/// A BGP session to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionSpec {
    pub peer: Peer,
    pub router_id: Ipv4Addr,
    /// What `peer.bfd_profile` names.
    pub bfd: Option<BfdProfile>,
}

impl SessionSpec {
    /// What the session's core is configured to be, but for what only its shell knows: graceful
    /// restart and BFD.
    pub fn session_config(&self) -> SessionConfig {
        let peer = &self.peer;
        let peer_asn = match peer.peer_asn {
            PeerAsn::Number(number) => bgp::PeerAsn::Number(number),
            PeerAsn::Internal => bgp::PeerAsn::Internal,
            PeerAsn::External => bgp::PeerAsn::External,
        };
        SessionConfig {
            mode: if peer.passive { bgp::Mode::Passive } else { bgp::Mode::Active },
            hold_time: peer.hold_time,
            keepalive_time: Some(peer.keepalive_time),
            connect_time: peer.connect_time,
            families: families(peer),
            extended_next_hop: matches!(peer.address, PeerAddress::Interface(_)),
            min_advertisement_interval: peer.min_advertisement_interval,
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

/// What a session needs when what it is made of changes; the last that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Nothing,
    /// Its routes have other attributes, which is no matter of the session.
    Attributes,
    /// BFD has other intervals, or begins or ends.
    Bfd,
    /// Timers: the new values are used from now on, those of the OPEN from the next session on.
    Timers,
    /// The session ends with Cease/6 and a new one begins, because of this.
    Reset(&'static str),
}

/// See [`Change`].
pub fn change(old: &SessionSpec, new: &SessionSpec) -> Change {
    // Without `..`: for a new field it has to be said here what it needs.
    let Peer {
        name: _,
        my_asn,
        peer_asn,
        address,
        port,
        source_address,
        hold_time,
        keepalive_time,
        connect_time,
        // The one of the session is compared.
        router_id: _,
        // Whether this node is among them decides if there is a session.
        nodes: _,
        password,
        // What it holds is compared.
        bfd_profile: _,
        ebgp_multi_hop,
        graceful_restart,
        vrf,
        local_asn,
        dual_stack_address_family,
        passive,
        ttl_security_hops,
        local_pref,
        med,
        as_path_prepend,
        min_advertisement_interval,
        restart_time,
        bfd_strict,
        tcp_ao,
    } = &old.peer;
    let peer = &new.peer;
    let timers =
        (hold_time, keepalive_time, connect_time, min_advertisement_interval, restart_time)
            != (
                &peer.hold_time,
                &peer.keepalive_time,
                &peer.connect_time,
                &peer.min_advertisement_interval,
                &peer.restart_time,
            );
    let attributes =
        (local_pref, med, as_path_prepend) != (&peer.local_pref, &peer.med, &peer.as_path_prepend);
    let asns = (my_asn, peer_asn, local_asn) != (&peer.my_asn, &peer.peer_asn, &peer.local_asn);
    let place = (address, port, source_address, vrf)
        != (&peer.address, &peer.port, &peer.source_address, &peer.vrf);
    let keys = (password, tcp_ao) != (&peer.password, &peer.tcp_ao);
    let hops =
        (ebgp_multi_hop, ttl_security_hops) != (&peer.ebgp_multi_hop, &peer.ttl_security_hops);
    [
        (asns, Change::Reset("another AS number")),
        (place, Change::Reset("another address, port or VRF")),
        (old.router_id != new.router_id, Change::Reset("another router ID")),
        (keys, Change::Reset("another password")),
        (hops, Change::Reset("another number of hops")),
        (*passive != peer.passive, Change::Reset("the other side is to connect")),
        (
            *dual_stack_address_family != peer.dual_stack_address_family,
            Change::Reset("other address families"),
        ),
        (*graceful_restart != peer.graceful_restart, Change::Reset("another graceful restart")),
        (timers, Change::Timers),
        (old.bfd != new.bfd || *bfd_strict != peer.bfd_strict, Change::Bfd),
        (attributes, Change::Attributes),
    ]
    .into_iter()
    .find_map(|(differs, change)| differs.then_some(change))
    .unwrap_or(Change::Nothing)
}

/// What the planner knows of its sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    specs: BTreeMap<PeerName, SessionSpec>,
    prefixes: BTreeMap<PeerName, BTreeMap<IpNet, Asked>>,
    /// What may have to be told to a session.
    dirty: BTreeMap<PeerName, BTreeSet<IpNet>>,
    presence: Presence,
    /// The speaker ends, which is a drain of its own.
    stopping: bool,
    /// It was said that every list has been read.
    complete: bool,
    attributes: Shared<Attributes>,
    pub damping: Damping,
}

/// A prefix that is to be announced to a peer, or was when the peer was last told.
#[derive(Debug, Default)]
struct Asked {
    /// By these Services, in order.
    services: Few<ServiceKey>,
    /// What the session was told.
    told: Option<Arc<Attributes>>,
}

/// Whether this node is there for its peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Presence {
    #[default]
    Here,
    /// It is drained, and goes then.
    Leaving(Instant),
    /// It is drained and has no sessions.
    Away,
}

impl Sessions {
    pub fn index(&mut self, key: &ServiceKey, plan: &ServicePlan) {
        for (peer, prefix) in plan.bgp.iter().flat_map(|plan| plan.prefixes()) {
            let asked = self.prefixes.entry(peer.clone()).or_default().entry(prefix).or_default();
            let (before, after) =
                asked.services.split_at(asked.services.partition_point(|other| other < key));
            asked.services = before.iter().chain([key]).chain(after).cloned().collect();
            self.dirty.entry(peer.clone()).or_default().insert(prefix);
        }
    }

    pub fn unindex(&mut self, key: &ServiceKey, plan: &ServicePlan) {
        for (peer, prefix) in plan.bgp.iter().flat_map(|plan| plan.prefixes()) {
            let asked = self.prefixes.get_mut(peer).and_then(|all| all.get_mut(&prefix));
            let Some(asked) = asked else { continue };
            let others = asked.services.iter().filter(|other| *other != key);
            asked.services = others.cloned().collect();
            self.dirty.entry(peer.clone()).or_default().insert(prefix);
        }
    }

    /// When something is due that no event tells of.
    pub fn due(&self) -> Option<Instant> {
        let leaving = match self.presence {
            Presence::Leaving(until) => Some(until),
            Presence::Here | Presence::Away => None,
        };
        leaving.into_iter().chain(self.damping.due()).min()
    }

    /// The speaker is to end.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether peers get routes from this node.
    pub fn announce(&self) -> bool {
        self.presence != Presence::Away
    }

    fn has_told(&self) -> bool {
        self.prefixes.values().flat_map(BTreeMap::values).any(|asked| asked.told.is_some())
    }

    fn all_dirty(&mut self) {
        for (peer, prefixes) in &self.prefixes {
            self.dirty.insert(peer.clone(), prefixes.keys().copied().collect());
        }
    }

    /// What a session has been told goes with it.
    fn forget(&mut self, peer: &PeerName) {
        let Some(prefixes) = self.prefixes.get_mut(peer) else { return };
        prefixes.retain(|_, asked| {
            asked.told = None;
            !asked.services.is_empty()
        });
        self.dirty.insert(peer.clone(), prefixes.keys().copied().collect());
    }
}

impl Planner {
    /// Opens, changes and closes sessions.
    pub(super) fn sessions(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.be_present(now, actions);
        let wanted = self.wanted_sessions();
        let gone: Vec<PeerName> =
            self.bgp.specs.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for peer in gone {
            self.bgp.forget(&peer);
            actions.push(Action::CloseSession { peer, reason: StopReason::PeerDeconfigured });
        }
        for (name, spec) in &wanted {
            let change = self.bgp.specs.get(name).map(|old| change(old, spec));
            match change {
                Some(Change::Nothing | Change::Attributes) => {}
                Some(Change::Bfd | Change::Timers) => {
                    actions.push(Action::UpdateSession(Box::new(spec.clone())));
                }
                None | Some(Change::Reset(_)) => {
                    self.bgp.forget(name);
                    actions.push(Action::OpenSession(Box::new(spec.clone())));
                }
            }
        }
        self.bgp.specs = wanted;
    }

    /// Tells the sessions of the prefixes that differ from what they were told last, and once that
    /// this is all there is.
    pub(super) fn advertise(&mut self, actions: &mut Vec<Action>) {
        let Self { bgp, plans, .. } = self;
        let leaving = matches!(bgp.presence, Presence::Leaving(_));
        for (name, dirty) in std::mem::take(&mut bgp.dirty) {
            let Some(prefixes) = bgp.prefixes.get_mut(&name) else { continue };
            let peer = bgp.specs.get(&name).map(|spec| &spec.peer);
            let mut changes = Changes::new();
            for prefix in dirty {
                let Some(asked) = prefixes.get_mut(&prefix) else { continue };
                let routes = asked.services.iter();
                let routes = routes
                    .filter_map(|key| plans.get(key)?.bgp.as_ref().ok()?.route(&name, prefix));
                let mut new = peer.and_then(|peer| joined(routes, peer));
                if let (true, Some(attributes)) = (leaving, &mut new) {
                    Arc::make_mut(attributes).communities.insert(GRACEFUL_SHUTDOWN);
                }
                let new = new.map(|attributes| bgp.attributes.one(attributes));
                if asked.told != new {
                    asked.told.clone_from(&new);
                    changes.insert(prefix, new);
                }
                if asked.services.is_empty() {
                    prefixes.remove(&prefix);
                }
            }
            if prefixes.is_empty() {
                bgp.prefixes.remove(&name);
            }
            if !changes.is_empty() {
                actions.push(Action::Advertise { peer: name, changes });
            }
        }
        if !std::mem::replace(&mut bgp.complete, true) {
            actions.push(Action::Complete);
        }
    }

    fn wanted_sessions(&self) -> BTreeMap<PeerName, SessionSpec> {
        if !self.bgp.announce() {
            return BTreeMap::new();
        }
        let router_id = self.router_id();
        let peers = self.config.peers.iter();
        let mine = peers.filter(|(_, peer)| peer.nodes.contains(&self.settings.me));
        let spec = |peer: &Peer| SessionSpec {
            router_id: peer.router_id.unwrap_or(router_id),
            bfd: peer.bfd_profile.as_ref().and_then(|n| self.config.bfd_profiles.get(n)).cloned(),
            peer: peer.clone(),
        };
        mine.map(|(name, peer)| (name.clone(), spec(peer))).collect()
    }

    fn be_present(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let drained = self.bgp.stopping || self.context().is_drained(&self.settings.me);
        let before = self.bgp.presence;
        let bgp = &mut self.bgp;
        bgp.presence = match (drained, before) {
            (false, _) => Presence::Here,
            (true, Presence::Here) if bgp.has_told() => {
                Presence::Leaving(now + self.settings.bgp_drain_time)
            }
            (true, Presence::Leaving(until)) if until > now => before,
            (true, Presence::Here | Presence::Leaving(_) | Presence::Away) => Presence::Away,
        };
        if bgp.presence == before {
            return;
        }
        if bgp.presence == Presence::Away {
            for (peer, prefixes) in &bgp.prefixes {
                let told = prefixes.iter().filter(|(_, asked)| asked.told.is_some());
                let changes: Changes = told.map(|(prefix, _)| (*prefix, None)).collect();
                if !changes.is_empty() {
                    actions.push(Action::Advertise { peer: peer.clone(), changes });
                }
            }
            for peer in std::mem::take(&mut bgp.specs).into_keys() {
                bgp.forget(&peer);
                let text = if bgp.stopping { STOPPING } else { DRAINED };
                let text = Some(text.to_owned());
                let reason = StopReason::AdministrativeShutdown { text };
                actions.push(Action::CloseSession { peer, reason });
            }
        } else {
            bgp.all_dirty();
        }
        if Presence::Away == bgp.presence || Presence::Away == before {
            let announced = self.plans.iter().filter(|(_, plan)| plan.routes().is_some());
            announced.for_each(|(key, _)| self.telling.look_at(key.clone()));
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

#[cfg(test)]
mod tests;
