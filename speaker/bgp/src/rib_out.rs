//! The Adj-RIB-Out of one established session: which routes the peer has, and the UPDATEs from
//! there to those it shall have.
//!
//! It is a state and not a queue. A route that came and went between two calls of
//! [`RibOut::synchronize`] was never there, and a slow peer costs no more than one set of routes.
//! Read RFC 4271 sections 4.3 and 9.2, RFC 7606 section 5.1 and RFC 4724 section 2.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;
use thiserror::Error;

use crate::{
    Family, Route, SessionConfig,
    attribute::{self, AsNumbers, Attributes, PathContext, SessionKind},
    message::{self, MAX_MESSAGE, RefreshSubtype, RouteRefresh, UPDATE_OVERHEAD},
    state::Negotiated,
};

/// LOCAL_PREF of iBGP routes that ask for none.
const DEFAULT_LOCAL_PREF: u32 = 100;

/// Why a wanted route is not announced on an established session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum HeldBack {
    /// The session was configured without the family.
    #[error("its address family is not configured for this peer")]
    FamilyNotConfigured,
    /// The peer did not offer the family.
    #[error("the peer does not take its address family")]
    FamilyNotNegotiated,
    /// No address of ours can be the next hop.
    #[error("this node has no address of its family towards the peer that could be the next hop")]
    NoNextHop,
    /// An UPDATE of 4096 octets cannot hold the attributes and one prefix.
    #[error("its communities do not fit into a BGP message")]
    AttributesTooLong,
}

/// Our addresses on the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NextHops {
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
}

/// Encoded messages and what they hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Updates {
    pub(crate) bytes: Vec<u8>,
    /// UPDATE messages in `bytes`.
    pub(crate) updates: u64,
    /// ROUTE-REFRESH messages in `bytes`.
    pub(crate) refreshes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RibOut {
    context: PathContext,
    next_hops: NextHops,
    /// Whether each family may be announced.
    families: BTreeMap<Family, Result<(), HeldBack>>,
    /// What the peer has, with the attributes shared among the routes that were sent together.
    sent: BTreeMap<IpNet, Arc<Attributes>>,
    /// Families whose initial routes were not sent yet.
    end_of_rib_due: BTreeSet<Family>,
}

impl RibOut {
    pub(crate) fn new(
        config: &SessionConfig,
        negotiated: &Negotiated,
        next_hops: NextHops,
    ) -> Self {
        let kind = if negotiated.peer_asn == config.local_asn {
            SessionKind::Internal
        } else {
            SessionKind::External
        };
        let as_numbers =
            if negotiated.four_octet_as { AsNumbers::FourOctets } else { AsNumbers::TwoOctets };
        let may_announce = |family| {
            let has_next_hop = match family {
                Family::Ipv4Unicast => next_hops.v4.is_some(),
                Family::Ipv6Unicast => next_hops.v6.is_some(),
            };
            if !config.families.contains(&family) {
                Err(HeldBack::FamilyNotConfigured)
            } else if !negotiated.families.contains(&family) {
                Err(HeldBack::FamilyNotNegotiated)
            } else if !has_next_hop {
                Err(HeldBack::NoNextHop)
            } else {
                Ok(())
            }
        };
        Self {
            context: PathContext { local_asn: config.local_asn, kind, as_numbers },
            next_hops,
            families: Family::ALL
                .into_iter()
                .map(|family| (family, may_announce(family)))
                .collect(),
            sent: BTreeMap::new(),
            end_of_rib_due: negotiated.families.clone(),
        }
    }

    /// How many routes the peer has.
    pub(crate) fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether the route can be announced.
    pub(crate) fn admits(&self, route: &Route) -> Result<(), HeldBack> {
        let family = Family::of(&route.prefix);
        self.families.get(&family).copied().unwrap_or(Err(HeldBack::FamilyNotConfigured))?;
        let octets = 4 * route.communities.len() + 12 * route.large_communities.len();
        if octets > MAX_COMMUNITY_OCTETS { Err(HeldBack::AttributesTooLong) } else { Ok(()) }
    }

    /// Makes the wanted routes those that the peer has. Withdraws come first: they free the slots
    /// of a router whose next-hop tables are full. The first call ends with an End-of-RIB for each
    /// negotiated family, also where there was nothing to announce.
    pub(crate) fn synchronize(&mut self, wanted: &BTreeSet<Route>) -> Updates {
        let admitted: BTreeMap<IpNet, &Route> = wanted
            .iter()
            .filter(|route| self.admits(route).is_ok())
            .map(|route| (route.prefix.trunc(), route))
            .collect();
        let mut gone = Vec::new();
        self.sent.retain(|prefix, _| {
            let stays = admitted.contains_key(prefix);
            if !stays {
                gone.push(*prefix);
            }
            stays
        });
        let mut changed: BTreeMap<Attributes, Vec<IpNet>> = BTreeMap::new();
        for (prefix, route) in admitted {
            if !self.sent.get(&prefix).is_some_and(|sent| self.is_sent_as(route, sent)) {
                changed.entry(self.attributes(route)).or_default().push(prefix);
            }
        }
        let mut out = Updates::default();
        withdraw(&gone, &mut out);
        for (attributes, prefixes) in changed {
            self.announce(&attributes, &prefixes, &mut out);
            let attributes = Arc::new(attributes);
            self.sent.extend(prefixes.into_iter().map(|prefix| (prefix, Arc::clone(&attributes))));
        }
        for family in std::mem::take(&mut self.end_of_rib_due) {
            out.push(match family {
                Family::Ipv4Unicast => message::update(&[], &[], &[]),
                Family::Ipv6Unicast => {
                    message::update(&[], &attribute::mp_unreach(family, &[]), &[])
                }
            });
        }
        out
    }

    /// Everything that the peer has of a family, once more; between markers where both sides know
    /// RFC 7313.
    pub(crate) fn resend(&self, family: Family, markers: RefreshMarkers) -> Updates {
        let mut groups: BTreeMap<&Attributes, Vec<IpNet>> = BTreeMap::new();
        for (prefix, attributes) in &self.sent {
            if Family::of(prefix) == family {
                groups.entry(attributes).or_default().push(*prefix);
            }
        }
        let mut out = Updates::default();
        out.mark(family, RefreshSubtype::Begin, markers);
        for (attributes, prefixes) in groups {
            self.announce(attributes, &prefixes, &mut out);
        }
        out.mark(family, RefreshSubtype::End, markers);
        out
    }

    /// Takes everything back.
    pub(crate) fn withdraw_all(&mut self) -> Updates {
        let gone: Vec<IpNet> = std::mem::take(&mut self.sent).into_keys().collect();
        let mut out = Updates::default();
        withdraw(&gone, &mut out);
        out
    }

    fn attributes(&self, route: &Route) -> Attributes {
        Attributes {
            local_pref: self.local_pref(route),
            communities: route.communities.clone(),
            large_communities: route.large_communities.clone(),
        }
    }

    fn is_sent_as(&self, route: &Route, sent: &Attributes) -> bool {
        sent.local_pref == self.local_pref(route)
            && sent.communities == route.communities
            && sent.large_communities == route.large_communities
    }

    fn local_pref(&self, route: &Route) -> Option<u32> {
        match self.context.kind {
            SessionKind::Internal => Some(route.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)),
            SessionKind::External => None,
        }
    }

    /// Prefixes of one set of attributes, in as few messages as hold them.
    fn announce(&self, attributes: &Attributes, prefixes: &[IpNet], out: &mut Updates) {
        let (v4, v6) = by_family(prefixes);
        if let (Some(next_hop), [_, ..]) = (self.next_hops.v4, v4) {
            let attributes = self.context.ipv4(attributes, next_hop);
            let room = MAX_MESSAGE - UPDATE_OVERHEAD - attributes.len();
            pack(v4, room, |nlri| out.push(message::update(&[], &attributes, nlri)));
        }
        if let (Some(next_hop), [_, ..]) = (self.next_hops.v6, v6) {
            let attributes = self.context.multiprotocol(attributes);
            let overhead = attribute::MAX_ATTRIBUTE_HEADER + attribute::MP_REACH_OVERHEAD;
            let room = MAX_MESSAGE - UPDATE_OVERHEAD - overhead - attributes.len();
            pack(v6, room, |nlri| {
                let reach = attribute::mp_reach(Family::Ipv6Unicast, IpAddr::V6(next_hop), nlri);
                // First, so that a router finds it whatever it thinks of the rest.
                out.push(message::update(&[], &[reach, attributes.clone()].concat(), &[]));
            });
        }
    }
}

/// Whether a resent family stands between BoRR and EoRR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefreshMarkers {
    Plain,
    Enhanced,
}

/// What communities may take of an UPDATE. All else in it needs 109 octets at most: lengths and
/// header 23, an MP_REACH_NLRI with one prefix 42, ORIGIN 4, AS_PATH 9, LOCAL_PREF 7, AS4_PATH 9,
/// headers of the two communities attributes 8, NEXT_HOP 7.
const MAX_COMMUNITY_OCTETS: usize = MAX_MESSAGE - 109;

impl Updates {
    fn push(&mut self, update: Vec<u8>) {
        self.bytes.extend(update);
        self.updates += 1;
    }

    fn mark(&mut self, family: Family, subtype: RefreshSubtype, markers: RefreshMarkers) {
        match markers {
            RefreshMarkers::Plain => {}
            RefreshMarkers::Enhanced => {
                self.bytes.extend(RouteRefresh { family, subtype }.encode());
                self.refreshes += 1;
            }
        }
    }
}

fn withdraw(prefixes: &[IpNet], out: &mut Updates) {
    let (v4, v6) = by_family(prefixes);
    pack(v4, MAX_MESSAGE - UPDATE_OVERHEAD, |withdrawn| {
        out.push(message::update(withdrawn, &[], &[]));
    });
    let overhead = attribute::MAX_ATTRIBUTE_HEADER + attribute::MP_UNREACH_OVERHEAD;
    pack(v6, MAX_MESSAGE - UPDATE_OVERHEAD - overhead, |withdrawn| {
        let unreach = attribute::mp_unreach(Family::Ipv6Unicast, withdrawn);
        out.push(message::update(&[], &unreach, &[]));
    });
}

/// Splits sorted prefixes: IPv4 sorts before IPv6.
fn by_family(prefixes: &[IpNet]) -> (&[IpNet], &[IpNet]) {
    prefixes.split_at(prefixes.partition_point(|prefix| matches!(prefix, IpNet::V4(_))))
}

/// Encodes prefixes and hands them on in pieces that fill the room as far as they go.
fn pack(prefixes: &[IpNet], room: usize, mut emit: impl FnMut(&[u8])) {
    let mut encoded = Vec::with_capacity(room);
    for prefix in prefixes {
        if encoded.len() + attribute::prefix_octets(prefix) > room {
            emit(&encoded);
            encoded.clear();
        }
        attribute::push_prefix(&mut encoded, prefix);
    }
    if !encoded.is_empty() {
        emit(&encoded);
    }
}
