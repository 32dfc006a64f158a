//! The status of every custom resource: whether it is accepted, and how full a pool is. Changes
//! are collected, so that thousands of assignments cost a handful of writes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use config::{Candidate, ConfigError, ObjectRef, PoolName, Resources};
use crds::{AcceptanceStatus, IPAddressPool};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;

use super::{Action, WriteResult};
use crate::{
    allocator::Counters,
    status::{self, ACCEPTED, Acceptance},
};

/// Writes in flight at once: they must not crowd out Services.
const MAX_WRITES: usize = 4;
/// Written so long after a change, to take its successors along, ...
const DELAY: Duration = Duration::from_millis(100);
/// ... and not more often than this.
const INTERVAL: Duration = Duration::from_secs(1);
/// A write that failed is tried again after `INTERVAL`, doubled up to this.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Of objects that nothing is wrong with.
static GOOD: Acceptance = Acceptance::GOOD;

pub(super) const POOL: &str = "IPAddressPool";

/// What is known of the status of one object.
#[derive(Debug, Clone, Default)]
struct Object {
    uid: String,
    generation: Option<i64>,
    conditions: Vec<Condition>,
    counters: Option<Counters>,
    /// Set while writes fail: the time of the next one, and how many failed.
    retry: Option<(Instant, u32)>,
}

/// What a write in flight will have made of an object.
#[derive(Debug)]
struct Sent {
    acceptance: Acceptance,
    generation: Option<i64>,
    counters: Option<Counters>,
}

#[derive(Debug, Default)]
pub(super) struct Statuses {
    objects: BTreeMap<ObjectRef, Object>,
    /// Those that something is wrong with.
    acceptances: BTreeMap<ObjectRef, Acceptance>,
    /// To be written as soon as there is room, pools with these counters.
    dirty: BTreeMap<ObjectRef, Option<Counters>>,
    in_flight: BTreeMap<ObjectRef, Sent>,
    flush_at: Option<Instant>,
    last_flush: Option<Instant>,
}

impl Statuses {
    /// Every object there is, and all that is wrong with them.
    pub fn seen(&mut self, resources: &Resources, errors: &[ConfigError]) {
        let mut old = std::mem::take(&mut self.objects);
        let mut all = objects(resources);
        for (object, new) in &mut all {
            if let Some(old) = old.remove(object) {
                // The status of what cannot be read is known from our own writes only.
                if resources.unreadable.contains_key(object) {
                    *new = old;
                } else {
                    new.retry = old.retry;
                }
            }
        }
        self.objects = all;
        self.acceptances = Acceptance::of(errors);
    }

    /// One object whose status alone changed.
    pub fn status_seen(&mut self, candidate: &Candidate) {
        let (object, new) = object(candidate);
        if let Some(known) = self.objects.get_mut(&object) {
            let retry = known.retry;
            *known = Object { retry, ..new };
        }
    }

    pub fn uid(&self, object: &ObjectRef) -> String {
        self.objects.get(object).map(|object| object.uid.clone()).unwrap_or_default()
    }

    /// Whether the object's condition names this error.
    pub fn tells(&self, error: &ConfigError) -> bool {
        let conditions = self.objects.get(&error.object()).map(|object| &object.conditions);
        let condition = conditions.and_then(|all| all.iter().find(|c| c.type_ == ACCEPTED));
        let line = Acceptance::line(error);
        condition.is_some_and(|shown| shown.message.lines().any(|shown| shown == line))
    }

    /// Something may have to be written.
    pub fn changed(&mut self, now: Instant) {
        let earliest = self.last_flush.map_or(now, |last| last + INTERVAL);
        self.flush_at.get_or_insert_with(|| earliest.max(now + DELAY));
    }

    pub fn done(&mut self, object: &ObjectRef, result: &WriteResult, now: Instant) {
        let Some(sent) = self.in_flight.remove(object) else { return };
        let Some(known) = self.objects.get_mut(object) else { return };
        match result {
            WriteResult::Written { .. } => {
                known.retry = None;
                show(&mut known.conditions, &sent);
                known.counters = sent.counters.or(known.counters);
                // It may have changed again meanwhile.
                self.changed(now);
            }
            // The newer object is on its way, or none.
            WriteResult::Conflict | WriteResult::Gone => known.retry = None,
            WriteResult::Failed | WriteResult::Unavailable { .. } => {
                let attempts = known.retry.map_or(0, |(_, attempts)| attempts);
                let wait = INTERVAL.saturating_mul(1 << attempts.min(16)).min(LAST_RETRY);
                known.retry = Some((now + wait, attempts + 1));
                self.dirty.insert(object.clone(), sent.counters);
            }
        }
    }

    /// Sends what is due. `pools` are all pools with their counters.
    pub fn pump<'a>(
        &mut self,
        pools: impl Iterator<Item = (&'a PoolName, Counters)>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            self.last_flush = Some(now);
            self.compare(&pools.map(|(name, counters)| (&**name, counters)).collect());
        }
        let mut later = BTreeMap::new();
        while self.in_flight.len() < MAX_WRITES
            && let Some((object, counters)) = self.dirty.pop_first()
        {
            let Some(known) = self.objects.get(&object) else { continue };
            if known.retry.is_some_and(|(at, _)| now < at) || self.in_flight.contains_key(&object) {
                later.insert(object, counters);
                continue;
            }
            let acceptance = self.acceptances.get(&object).unwrap_or(&GOOD);
            if is_shown(known, acceptance, counters) {
                continue;
            }
            let body =
                status::object_status(acceptance, known.generation, &known.conditions, counters);
            let acceptance = acceptance.clone();
            let sent = Sent { acceptance, generation: known.generation, counters };
            self.in_flight.insert(object.clone(), sent);
            actions.push(Action::PatchStatus { object, body });
        }
        self.dirty.append(&mut later);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let retries = self.dirty.keys().filter(|object| !self.in_flight.contains_key(*object));
        let retries = retries.filter_map(|object| self.objects.get(object)?.retry);
        let retry = retries.map(|(at, _)| at).min().filter(|_| self.in_flight.len() < MAX_WRITES);
        [self.flush_at, retry].into_iter().flatten().min()
    }

    /// Nothing is to be written any more.
    pub fn stop(&mut self) {
        self.dirty.clear();
        self.flush_at = None;
        for object in self.objects.values_mut() {
            object.retry = None;
        }
    }

    fn compare(&mut self, pools: &BTreeMap<&str, Counters>) {
        for (object, known) in &self.objects {
            let acceptance = self.acceptances.get(object).unwrap_or(&GOOD);
            let counters =
                if object.kind == POOL { pools.get(&*object.name).copied() } else { None };
            if !is_shown(known, acceptance, counters) {
                self.dirty.insert(object.clone(), counters);
            }
        }
    }
}

fn is_shown(known: &Object, acceptance: &Acceptance, counters: Option<Counters>) -> bool {
    let condition = known.conditions.iter().find(|condition| condition.type_ == ACCEPTED);
    (counters.is_none() || known.counters == counters)
        && condition.is_some_and(|seen| acceptance.is_shown(seen, known.generation))
}

/// What `sent` makes of the conditions. The time of a transition comes with the object.
fn show(conditions: &mut Vec<Condition>, sent: &Sent) {
    let place = conditions.iter_mut().find(|condition| condition.type_ == ACCEPTED);
    let status = sent.acceptance.status();
    let since = place.as_ref().filter(|old| old.status == status);
    let shown = Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: sent.acceptance.reason.to_owned(),
        message: sent.acceptance.message.clone(),
        observed_generation: sent.generation,
        last_transition_time: since
            .map_or(Time(Timestamp::UNIX_EPOCH), |old| old.last_transition_time.clone()),
    };
    match place {
        Some(place) => *place = shown,
        None => conditions.push(shown),
    }
}

fn objects(resources: &Resources) -> BTreeMap<ObjectRef, Object> {
    let pools = resources.pools.iter().map(pool);
    let l2 = resources.l2_advertisements.iter().map(|o| other("L2Advertisement", o, &o.status));
    let bgp = resources.bgp_advertisements.iter().map(|o| other("BGPAdvertisement", o, &o.status));
    let peers = resources.bgp_peers.iter().map(|o| other("BGPPeer", o, &o.status));
    let profiles = resources.bfd_profiles.iter().map(|o| other("BFDProfile", o, &o.status));
    let communities = resources.communities.iter().map(|o| other("Community", o, &o.status));
    let unreadable = resources.unreadable.keys().map(|object| (object.clone(), Object::default()));
    let read = pools.chain(l2).chain(bgp).chain(peers).chain(profiles).chain(communities);
    // What can be read now and what could be once may both be there.
    unreadable.chain(read).collect()
}

fn object(candidate: &Candidate) -> (ObjectRef, Object) {
    match candidate {
        Candidate::Pool(object) => pool(object),
        Candidate::L2Advertisement(o) => other("L2Advertisement", &**o, &o.status),
        Candidate::BgpAdvertisement(o) => other("BGPAdvertisement", &**o, &o.status),
        Candidate::BgpPeer(o) => other("BGPPeer", &**o, &o.status),
        Candidate::BfdProfile(o) => other("BFDProfile", &**o, &o.status),
        Candidate::Community(o) => other("Community", &**o, &o.status),
    }
}

fn pool(object: &IPAddressPool) -> (ObjectRef, Object) {
    let status = object.status.as_ref();
    let counters = status.map(|status| Counters {
        assigned_v4: status.assigned_ipv4,
        assigned_v6: status.assigned_ipv6,
        available_v4: status.available_ipv4,
        available_v6: status.available_ipv6,
    });
    let conditions = status.map(|status| &*status.conditions).unwrap_or_default();
    read(POOL, object, conditions, counters)
}

fn other<K: ResourceExt>(
    kind: &'static str,
    object: &K,
    status: &Option<AcceptanceStatus>,
) -> (ObjectRef, Object) {
    let conditions = status.as_ref().map(|status| &*status.conditions).unwrap_or_default();
    read(kind, object, conditions, None)
}

fn read<K: ResourceExt>(
    kind: &'static str,
    object: &K,
    conditions: &[Condition],
    counters: Option<Counters>,
) -> (ObjectRef, Object) {
    let name = object.name_any();
    let object = Object {
        uid: object.uid().unwrap_or_default(),
        generation: object.meta().generation,
        conditions: conditions.to_vec(),
        counters,
        retry: None,
    };
    (ObjectRef { kind, name }, object)
}
