//! The Adj-RIB-Out of one session: which routes the peer shall have, which it has, and the UPDATEs
//! that lead from there to here.
//!
//! It is a state and not a queue. A route that came and went before [`RibOut::transmit`] got to it
//! was never there; a slow peer costs one entry a prefix. A change costs one look-up in each map, and
//! what is sent is taken from the front of sets that are sorted already.
//! Read RFC 4271 sections 4.3 and 9.2, RFC 7606 section 5.1, RFC 4724 section 2 and RFC 7313
//! section 4.

mod peer;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnet::IpNet;
use peer::{Peer, Refresh, RefreshMarkers};
use thiserror::Error;

use crate::{
    Attributes, Changes, Family, Local, Negotiated, SessionConfig,
    attribute::{self, AsNumbers, PathContext},
    message::{MAX_MESSAGE, RefreshSubtype, RouteRefresh},
};

/// Why a wanted route is not announced on an Established session.
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

/// Encoded messages and what they hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Updates {
    pub(crate) bytes: Vec<u8>,
    /// UPDATE messages in `bytes`.
    pub(crate) updates: u64,
    /// ROUTE-REFRESH messages in `bytes`.
    pub(crate) refreshes: u64,
    /// Whether a prefix is announced.
    pub(crate) announces: bool,
}

/// What may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowed {
    Withdrawals,
    All,
}

#[derive(Debug)]
pub(crate) struct RibOut {
    context: PathContext,
    routes: BTreeMap<IpNet, Entry>,
    /// Entries of `routes` that are wanted.
    wanted: usize,
    /// All attributes in use, each once, so that two of them are equal where they are the same.
    known: BTreeSet<Arc<Attributes>>,
    /// How many of `known` were in use when that was last looked at.
    in_use: usize,
    /// Everything that is wanted was told.
    complete: bool,
    /// `None` between two connections.
    peer: Option<Peer>,
}

/// One prefix. Without a connection nothing was sent.
#[derive(Debug, Default)]
struct Entry {
    wanted: Option<Arc<Attributes>>,
    sent: Option<Arc<Attributes>>,
}

impl RibOut {
    /// Without a connection.
    pub(crate) fn new(config: &SessionConfig) -> Self {
        let context = PathContext {
            local_asn: config.local_asn,
            kind: config.kind(),
            as_numbers: AsNumbers::FourOctets,
        };
        Self {
            context,
            routes: BTreeMap::new(),
            wanted: 0,
            known: BTreeSet::new(),
            in_use: 0,
            complete: false,
            peer: None,
        }
    }

    /// How many routes the peer has.
    pub(crate) fn sent(&self) -> usize {
        self.peer.as_ref().map_or(0, |peer| peer.sent)
    }

    /// How many routes it shall have.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    /// The wanted routes that cannot be announced on this connection, and why.
    pub(crate) fn held_back(&self) -> BTreeMap<IpNet, HeldBack> {
        let Some(peer) = &self.peer else { return BTreeMap::new() };
        let wanted = self.routes.iter().filter_map(|(p, entry)| Some((p, entry.wanted.as_ref()?)));
        wanted
            .filter_map(|(prefix, attributes)| {
                Some((*prefix, peer.admits(prefix, attributes).err()?))
            })
            .collect()
    }

    pub(crate) fn apply(&mut self, changes: Changes) {
        // A change of many prefixes is mostly one of the same attributes.
        let mut last: Option<(Arc<Attributes>, Wanted)> = None;
        for (prefix, given) in changes {
            let wanted = match (&last, given) {
                (_, None) => None,
                (Some((same, wanted)), Some(given)) if Arc::ptr_eq(same, &given) => {
                    Some(wanted.clone())
                }
                (_, Some(given)) => {
                    let wanted = self.meet(&given);
                    last = Some((given, wanted.clone()));
                    Some(wanted)
                }
            };
            self.set(prefix.trunc(), wanted);
        }
        self.forget_unused();
    }

    /// All that is wanted was told.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    /// From now on there is a peer, which has none of our routes.
    pub(crate) fn connected(
        &mut self,
        config: &SessionConfig,
        negotiated: &Negotiated,
        local: &Local,
    ) {
        let mut peer = Peer::new(self.context, config, negotiated, local);
        let wanted = self.routes.iter().filter_map(|(p, entry)| Some((*p, entry.wanted.as_ref()?)));
        peer.announce_all(wanted);
        self.peer = Some(peer);
    }

    pub(crate) fn disconnected(&mut self) {
        self.peer = None;
        self.routes.retain(|_, entry| {
            entry.sent = None;
            entry.wanted.is_some()
        });
        self.forget_unused();
    }

    /// The peer wants to have a family once more.
    pub(crate) fn refresh(&mut self, family: Family) {
        let Some(peer) = &mut self.peer else { return };
        let state = match (peer.markers, peer.refreshes.get(&family)) {
            (RefreshMarkers::Plain, _) => {
                peer.announce_again(family, &self.routes);
                Refresh::Running
            }
            (RefreshMarkers::Enhanced, None | Some(Refresh::Asked)) => Refresh::Asked,
            (RefreshMarkers::Enhanced, Some(Refresh::Running | Refresh::AskedAgain)) => {
                Refresh::AskedAgain
            }
        };
        peer.refreshes.insert(family, state);
    }

    /// Whether [`Self::transmit`] has something to send.
    pub(crate) fn has_work(&self, allowed: Allowed) -> bool {
        let Some(peer) = &self.peer else { return false };
        let announcements = match allowed {
            Allowed::Withdrawals => false,
            Allowed::All => {
                !peer.announce.is_empty()
                    || peer.marker_is_due()
                    || (self.complete && !peer.end_of_rib.is_empty())
            }
        };
        announcements || !peer.withdraw.is_empty()
    }

    /// Whether announcements wait.
    pub(crate) fn has_announcements(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| !peer.announce.is_empty())
    }

    /// The next messages, `room` octets at most: withdrawals, as they free the slots of a router
    /// whose tables are full, announcements, and each negotiated family's End-of-RIB, also where
    /// there was nothing to announce. A message is cut short only where nothing else would fit.
    pub(crate) fn transmit(&mut self, room: usize, allowed: Allowed) -> Updates {
        let mut out = Updates::default();
        while self.withdraw_some(room, &mut out) {}
        let all_withdrawn = self.peer.as_ref().is_some_and(|peer| peer.withdraw.is_empty());
        // The end of one thing may be what another waited for.
        let mut before = None;
        while allowed == Allowed::All && all_withdrawn && before != Some(out.bytes.len()) {
            before = Some(out.bytes.len());
            self.start_refreshes(room, &mut out);
            while self.announce_some(room, &mut out) {}
            self.end_families(room, &mut out);
        }
        out
    }

    /// Takes everything back that the peer has; to be followed by [`Self::disconnected`].
    pub(crate) fn withdraw_all(&mut self) -> Updates {
        if let Some(peer) = &mut self.peer {
            let sent = self.routes.iter().filter(|(_, entry)| entry.sent.is_some());
            peer.withdraw = sent.map(|(prefix, _)| *prefix).collect();
        }
        self.transmit(usize::MAX, Allowed::Withdrawals)
    }

    /// The one copy of these attributes, as they count towards the peer.
    fn meet(&mut self, given: &Arc<Attributes>) -> Wanted {
        let attributes = self.context.on_the_wire(given);
        let attributes = match self.known.get(&attributes) {
            Some(known) => Arc::clone(known),
            None => {
                self.known.insert(Arc::clone(&attributes));
                attributes
            }
        };
        let fits = self.peer.as_ref().is_none_or(|peer| peer.context.fits(&attributes));
        Wanted { attributes, fits }
    }

    fn set(&mut self, prefix: IpNet, wanted: Option<Wanted>) {
        let attributes = wanted.as_ref().map(|wanted| &wanted.attributes);
        if attributes.is_none() && !self.routes.contains_key(&prefix) {
            return;
        }
        let entry = self.routes.entry(prefix).or_default();
        if is_same(entry.wanted.as_ref(), attributes) {
            return;
        }
        let before = std::mem::replace(&mut entry.wanted, attributes.cloned());
        self.wanted += usize::from(attributes.is_some());
        self.wanted -= usize::from(before.is_some());
        if let Some(peer) = &mut self.peer {
            if let Some(before) = before {
                peer.keep_quiet(&prefix, &before);
            }
            peer.withdraw.remove(&prefix);
            match wanted.filter(|wanted| wanted.fits && peer.next_hop(&prefix).is_ok()) {
                Some(Wanted { attributes, .. }) => {
                    let known = is_same(entry.sent.as_ref(), Some(&attributes));
                    // Within a refresh the peer forgets what it does not hear again.
                    if !known || peer.is_refreshing(Family::of(&prefix)) {
                        peer.announce(prefix, &attributes);
                    }
                }
                None if entry.sent.is_some() => {
                    peer.withdraw.insert(prefix);
                }
                None => {}
            }
        }
        if entry.wanted.is_none() && entry.sent.is_none() {
            self.routes.remove(&prefix);
        }
    }

    /// One message of withdrawals; `false` where none is left, or none fits.
    fn withdraw_some(&mut self, room: usize, out: &mut Updates) -> bool {
        let Some(peer) = &mut self.peer else { return false };
        let Some(family) = peer.withdraw.first().map(Family::of) else { return false };
        let form = peer.form(family);
        let overhead = attribute::withdrawal_overhead(form);
        let Some(count) = out.fill(&peer.withdraw, family, overhead, room) else { return false };
        let mut encoded = Vec::with_capacity(MAX_MESSAGE);
        for _ in 0..count {
            let Some(prefix) = peer.withdraw.pop_first() else { break };
            attribute::push_prefix(&mut encoded, &prefix);
            peer.sent -= 1;
            if let Some(entry) = self.routes.get_mut(&prefix) {
                entry.sent = None;
                if entry.wanted.is_none() {
                    self.routes.remove(&prefix);
                }
            }
        }
        out.push(&attribute::withdrawal(family, form, &encoded));
        true
    }

    /// One message of announcements; `false` where none is left, or none fits.
    fn announce_some(&mut self, room: usize, out: &mut Updates) -> bool {
        let Some(peer) = &mut self.peer else { return false };
        let context = peer.context;
        let Some(mut group) = peer.announce.first_entry() else { return false };
        let Some(family) = group.get().first().map(Family::of) else { return false };
        let next_hop = match family {
            Family::Ipv4Unicast => peer.ipv4,
            Family::Ipv6Unicast => peer.ipv6,
        };
        let Ok(next_hop) = next_hop else { return false };
        let attributes = Arc::clone(group.key());
        let overhead = attribute::announcement_overhead(&context, &attributes, next_hop);
        let Some(count) = out.fill(group.get(), family, overhead, room) else { return false };
        let mut encoded = Vec::with_capacity(MAX_MESSAGE);
        for _ in 0..count {
            let Some(prefix) = group.get_mut().pop_first() else { break };
            attribute::push_prefix(&mut encoded, &prefix);
            if let Some(entry) = self.routes.get_mut(&prefix)
                && entry.sent.replace(Arc::clone(&attributes)).is_none()
            {
                peer.sent += 1;
            }
        }
        if group.get().is_empty() {
            group.remove();
        }
        if let Some(unsent) = peer.unsent.get_mut(&family) {
            *unsent -= count;
        }
        out.push(&attribute::announcement(&context, &attributes, family, next_hop, &encoded));
        out.announces = true;
        true
    }

    /// Makes families that the peer asked for again such that were not sent yet.
    fn start_refreshes(&mut self, room: usize, out: &mut Updates) {
        let Some(peer) = &mut self.peer else { return };
        while let Some(family) = peer.refresh_to_start() {
            if !out.mark(family, RefreshSubtype::Begin, peer.markers, room) {
                return;
            }
            peer.refreshes.insert(family, Refresh::Running);
            peer.announce_again(family, &self.routes);
        }
    }

    /// Closes the families of which everything was sent.
    fn end_families(&mut self, room: usize, out: &mut Updates) {
        let Some(peer) = &mut self.peer else { return };
        while let Some(family) = peer.refresh_to_end() {
            if !out.mark(family, RefreshSubtype::End, peer.markers, room) {
                return;
            }
            match peer.refreshes.remove(&family) {
                Some(Refresh::AskedAgain) => {
                    peer.refreshes.insert(family, Refresh::Asked);
                }
                Some(Refresh::Asked | Refresh::Running) | None => {}
            }
        }
        while let Some(family) = peer.end_of_rib.first().copied()
            && self.complete
            && peer.announce.is_empty()
        {
            let message = attribute::end_of_rib(family);
            if out.bytes.len() + message.len() > room {
                return;
            }
            out.push(&message);
            peer.end_of_rib.remove(&family);
        }
    }

    /// Drops attributes that no route has, once there are many of them.
    fn forget_unused(&mut self) {
        if self.known.len() > 2 * self.in_use + 16 {
            // One is ours, the others are those of the routes.
            self.known.retain(|attributes| Arc::strong_count(attributes) > 1);
            self.in_use = self.known.len();
        }
    }
}

/// Attributes and whether the peer can take them.
#[derive(Debug, Clone)]
struct Wanted {
    attributes: Arc<Attributes>,
    fits: bool,
}

impl Updates {
    fn push(&mut self, update: &[u8]) {
        self.bytes.extend_from_slice(update);
        self.updates += 1;
    }

    /// `false` where there is no room for the marker.
    fn mark(
        &mut self,
        family: Family,
        subtype: RefreshSubtype,
        markers: RefreshMarkers,
        room: usize,
    ) -> bool {
        match markers {
            RefreshMarkers::Plain => true,
            RefreshMarkers::Enhanced => {
                let message = RouteRefresh { family, subtype }.encode();
                let fits = self.bytes.len() + message.len() <= room;
                if fits {
                    self.bytes.extend(message);
                    self.refreshes += 1;
                }
                fits
            }
        }
    }

    /// How many prefixes of the family, which is the first one's, the next message takes. It is
    /// full or holds all of them, unless it is the first one and the room is small.
    fn fill(
        &self,
        prefixes: &BTreeSet<IpNet>,
        family: Family,
        overhead: usize,
        room: usize,
    ) -> Option<usize> {
        let room = room.saturating_sub(self.bytes.len()).min(MAX_MESSAGE);
        let prefixes = || prefixes.iter().take_while(|prefix| Family::of(prefix) == family);
        let (count, octets) = fitting(prefixes(), MAX_MESSAGE.saturating_sub(overhead));
        let count = if overhead + octets <= room {
            count
        } else if self.bytes.is_empty() {
            fitting(prefixes(), room.saturating_sub(overhead)).0
        } else {
            0
        };
        (count > 0).then_some(count)
    }
}

/// How many prefixes fit, and what they take.
fn fitting<'a>(prefixes: impl Iterator<Item = &'a IpNet>, room: usize) -> (usize, usize) {
    let (mut count, mut octets) = (0, 0);
    for prefix in prefixes {
        let more = octets + attribute::prefix_octets(prefix);
        if more > room {
            break;
        }
        (count, octets) = (count + 1, more);
    }
    (count, octets)
}

fn is_same(one: Option<&Arc<Attributes>>, other: Option<&Arc<Attributes>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    }
}
