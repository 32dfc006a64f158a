//! One connection: what it allows, and what has to be sent on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;

use super::{Entry, HeldBack, is_same};
use crate::{
    Attributes, Family, Local, Negotiated, SessionConfig,
    attribute::{AsNumbers, Form, NextHop, PathContext},
};

/// The connection, and what has to be sent on it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) context: PathContext,
    pub(super) ipv4: Result<NextHop, HeldBack>,
    pub(super) ipv6: Result<NextHop, HeldBack>,
    pub(super) markers: RefreshMarkers,
    /// Routes that the peer has.
    pub(super) sent: usize,
    pub(super) withdraw: BTreeSet<IpNet>,
    pub(super) announce: BTreeMap<Arc<Attributes>, BTreeSet<IpNet>>,
    /// Prefixes in `announce` of each family.
    pub(super) unsent: BTreeMap<Family, usize>,
    pub(super) refreshes: BTreeMap<Family, Refresh>,
    /// Families whose initial routes were not all sent yet.
    pub(super) end_of_rib: BTreeSet<Family>,
}

/// Whether a family that is sent again stands between BoRR and EoRR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefreshMarkers {
    Plain,
    Enhanced,
}

/// A family that the peer asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refresh {
    /// Its BoRR was not sent yet.
    Asked,
    /// Its EoRR was not sent yet, or without markers: not all of it.
    Running,
    /// Running, and to be done once more.
    AskedAgain,
}

impl Peer {
    pub(super) fn new(
        context: PathContext,
        config: &SessionConfig,
        negotiated: &Negotiated,
        local: &Local,
    ) -> Self {
        let as_numbers =
            if negotiated.four_octet_as { AsNumbers::FourOctets } else { AsNumbers::TwoOctets };
        let over_ipv6 = match (local.v6, local.link_local) {
            (Some(global), link_local) => Some(NextHop::V6 { global, link_local }),
            // Without a global address the link-local one takes both places, as FRR has it.
            (None, Some(address)) => {
                Some(NextHop::V6 { global: address, link_local: Some(address) })
            }
            (None, None) => None,
        };
        let over_ipv4 = local
            .v4
            .map(NextHop::V4)
            .or_else(|| over_ipv6.filter(|_| negotiated.extended_next_hop));
        let next_hop = |family: Family, next_hop: Option<NextHop>| {
            if !config.families.contains(&family) {
                Err(HeldBack::FamilyNotConfigured)
            } else if !negotiated.families.contains(&family) {
                Err(HeldBack::FamilyNotNegotiated)
            } else {
                next_hop.ok_or(HeldBack::NoNextHop)
            }
        };
        Self {
            context: PathContext { as_numbers, ..context },
            ipv4: next_hop(Family::Ipv4Unicast, over_ipv4),
            ipv6: next_hop(Family::Ipv6Unicast, over_ipv6),
            markers: if negotiated.enhanced_route_refresh {
                RefreshMarkers::Enhanced
            } else {
                RefreshMarkers::Plain
            },
            sent: 0,
            withdraw: BTreeSet::new(),
            announce: BTreeMap::new(),
            unsent: BTreeMap::new(),
            refreshes: BTreeMap::new(),
            end_of_rib: negotiated.families.clone(),
        }
    }

    pub(super) fn next_hop(&self, prefix: &IpNet) -> Result<NextHop, HeldBack> {
        match Family::of(prefix) {
            Family::Ipv4Unicast => self.ipv4,
            Family::Ipv6Unicast => self.ipv6,
        }
    }

    pub(super) fn admits(&self, prefix: &IpNet, attributes: &Attributes) -> Result<(), HeldBack> {
        self.next_hop(prefix)?;
        if self.context.fits(attributes) { Ok(()) } else { Err(HeldBack::AttributesTooLong) }
    }

    pub(super) fn form(&self, family: Family) -> Form {
        match (family, self.ipv4) {
            (Family::Ipv4Unicast, Ok(next_hop)) => next_hop.form(),
            (Family::Ipv4Unicast, Err(_)) => Form::Plain,
            (Family::Ipv6Unicast, _) => Form::Multiprotocol,
        }
    }

    /// The first routes of the connection, in order: sets that are made at once are made fast.
    pub(super) fn announce_all<'a>(
        &mut self,
        routes: impl Iterator<Item = (IpNet, &'a Arc<Attributes>)>,
    ) {
        let mut groups: BTreeMap<&Arc<Attributes>, Vec<IpNet>> = BTreeMap::new();
        for (prefix, attributes) in routes.filter(|(prefix, _)| self.next_hop(prefix).is_ok()) {
            groups.entry(attributes).or_default().push(prefix);
        }
        groups.retain(|attributes, _| self.context.fits(attributes));
        for (attributes, prefixes) in groups {
            for prefix in &prefixes {
                *self.unsent.entry(Family::of(prefix)).or_default() += 1;
            }
            self.announce.insert(Arc::clone(attributes), prefixes.into_iter().collect());
        }
    }

    pub(super) fn announce(&mut self, prefix: IpNet, attributes: &Arc<Attributes>) {
        if self.announce.entry(Arc::clone(attributes)).or_default().insert(prefix) {
            *self.unsent.entry(Family::of(&prefix)).or_default() += 1;
        }
    }

    /// What was sent of a family was not. What is wanted otherwise than it was sent waits already.
    pub(super) fn announce_again(&mut self, family: Family, routes: &BTreeMap<IpNet, Entry>) {
        let routes = routes.iter().filter(|(prefix, _)| Family::of(prefix) == family);
        for (prefix, entry) in routes {
            if let Some(wanted) = &entry.wanted
                && is_same(entry.sent.as_ref(), Some(wanted))
            {
                self.announce(*prefix, wanted);
            }
        }
    }

    /// The prefix is not to be announced with these attributes any more.
    pub(super) fn keep_quiet(&mut self, prefix: &IpNet, attributes: &Arc<Attributes>) {
        let Some(group) = self.announce.get_mut(attributes) else { return };
        if group.remove(prefix) {
            if group.is_empty() {
                self.announce.remove(attributes);
            }
            if let Some(unsent) = self.unsent.get_mut(&Family::of(prefix)) {
                *unsent -= 1;
            }
        }
    }

    pub(super) fn is_refreshing(&self, family: Family) -> bool {
        matches!(self.refreshes.get(&family), Some(Refresh::Running | Refresh::AskedAgain))
    }

    pub(super) fn marker_is_due(&self) -> bool {
        match self.markers {
            RefreshMarkers::Plain => false,
            RefreshMarkers::Enhanced => {
                self.refresh_to_start().is_some() || self.refresh_to_end().is_some()
            }
        }
    }

    /// RFC 7313 section 4: no BoRR before the End-of-RIB of the family.
    pub(super) fn refresh_to_start(&self) -> Option<Family> {
        let mut asked = self.refreshes.iter().filter(|(_, state)| **state == Refresh::Asked);
        asked.find(|(family, _)| !self.end_of_rib.contains(family)).map(|(family, _)| *family)
    }

    pub(super) fn refresh_to_end(&self) -> Option<Family> {
        let families = self.refreshes.keys().copied();
        let mut running = families.filter(|family| self.is_refreshing(*family));
        running.find(|family| self.unsent.get(family).is_none_or(|unsent| *unsent == 0))
    }
}
