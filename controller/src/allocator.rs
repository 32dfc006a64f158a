//! Which address is whose: free space by pool, tenants by address.
//!
//! Holds no opinion on what a Service should have (that is `plan`). Nothing here walks a range:
//! free space is kept as intervals, so a nearly full /8 is as quick as an empty one. Services are
//! numbers inside, so that the many maps compare no texts.

mod assignment;
mod free;
mod order;
mod pool;
mod search;
mod sharing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use config::{AddressRange, Config, Labels, Pool, PoolName, Reserved, SharingScope};
use ipnet::IpNet;

pub use self::{
    assignment::{Assignment, Id, Part, Parts, PoolId},
    free::PerFamily,
    search::{Scope, Search},
    sharing::GroupKey,
};
use self::{
    free::number,
    order::{General, Pinned},
    pool::{PoolState, Usable},
    sharing::{Group, Last, Shared, Tenancy},
};
use crate::{
    plan::Note,
    service::{Family, PackedLabels, Port, ServiceKey, Sharing},
};

/// What the allocator must know of a Service.
#[derive(Debug, Clone, Copy)]
pub struct Tenant<'a> {
    pub id: Id,
    pub key: &'a ServiceKey,
    pub labels: &'a PackedLabels,
    /// `None`: shares with nobody.
    pub sharing: Option<&'a Arc<Sharing>>,
    /// Sorted.
    pub ports: &'a [Port],
}

/// Why an address that somebody holds cannot be shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error(
        "address {address} is in use by Service {by}; to share it, both need the same \
         metallb.io/allow-shared-ip"
    )]
    Taken { address: IpAddr, by: ServiceKey },
    #[error("address {address} is shared by Service {by} under another metallb.io/allow-shared-ip")]
    OtherKey { address: IpAddr, by: ServiceKey },
    #[error(
        "address {address} cannot be shared with Service {by}: both need externalTrafficPolicy \
         Cluster, or Local and the same selector"
    )]
    OtherBackends { address: IpAddr, by: ServiceKey },
    #[error(
        "address {address} is shared by Service {by} of another namespace, which \
         spec.sharingScope of IPAddressPool {pool:?} forbids"
    )]
    OtherNamespace { address: IpAddr, pool: PoolName, by: ServiceKey },
    #[error("port {port} of the shared address {address} is in use by Service {by}")]
    Port { address: IpAddr, port: Port, by: ServiceKey },
}

/// Addresses of one pool, by family; a shared address counts once. Totals stop at `i64::MAX`.
/// Reserved addresses are available only where a pool has no others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub assigned_v4: i64,
    pub assigned_v6: i64,
    pub available_v4: i64,
    pub available_v6: i64,
}

/// What somebody may wait for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// A free address of one pool.
    Pool(PoolId, Family),
    /// A free address of any pool for everybody that limits no namespace.
    General(Family),
    /// Another address of a pool for a namespace that had all that it may have.
    Quota(PoolId, Arc<str>),
    /// A place on a shared address for this port; `None`: whatever changes on those addresses.
    Shared(GroupKey, Option<Port>),
    /// Whatever changes on this address.
    Address(IpAddr),
}

/// The state of all pools.
#[derive(Debug, Clone, Default)]
pub struct Allocator {
    seed: u64,
    pools: Vec<PoolState>,
    by_name: BTreeMap<PoolName, PoolId>,
    /// Every range of every pool, sorted.
    ranges: Vec<Span>,
    pinned: Pinned,
    general: General,
    /// Only where some of it is in a pool; else empty.
    reserved: Reserved,
    ids: BTreeMap<ServiceKey, Id>,
    /// By [`Id`].
    keys: Vec<Option<ServiceKey>>,
    unused_ids: Vec<Id>,
    /// By [`Id`].
    holdings: Vec<Holding>,
    tenancies: BTreeMap<IpAddr, Tenancy>,
    groups: BTreeMap<GroupKey, Group>,
    /// Addresses that are left alone for a while, by the end of it, and the other way round.
    cooling: BTreeSet<(Instant, IpAddr)>,
    cooling_until: BTreeMap<IpAddr, Instant>,
    opened: Vec<Topic>,
}

impl Allocator {
    /// The pools of `config`, nothing given out.
    pub fn new(config: &Config, seed: u64) -> Self {
        let mut allocator = Self { seed, ..Self::default() };
        let left_out = config.left_out_pools.iter().map(|name| PoolState::in_error(name));
        let pools = config.pools.values().map(|pool| PoolState::new(pool, &config.reserved));
        let mut pools: Vec<PoolState> = pools.chain(left_out).collect();
        pools.sort_by(|a, b| a.pool.name.cmp(&b.pool.name));
        for (id, state) in (0..).map(PoolId).zip(&pools) {
            for (range, &AddressRange { first, last }) in state.pool.ranges.iter().enumerate() {
                allocator.ranges.push(Span { first, last, pool: id, range });
            }
            allocator.by_name.insert(state.pool.name.clone(), id);
        }
        allocator.ranges.sort_unstable_by_key(|span| span.first);
        allocator.reserved = reserved_inside(&allocator.ranges, &config.reserved);
        allocator.pinned = Pinned::new(&pools);
        allocator.general = General::new(&pools);
        allocator.pools = pools;
        allocator
    }

    /// A pool that is in force.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        let state = self.state(*self.by_name.get(name)?);
        (!state.in_error).then_some(&state.pool)
    }

    /// The pool of this name, in force or in error.
    pub fn pool_id(&self, name: &str) -> Option<PoolId> {
        self.by_name.get(name).copied()
    }

    /// The pool in force that owns `address`; those left out by `avoidBuggyIPs` have no owner.
    pub fn pool_of(&self, address: IpAddr) -> Option<PoolId> {
        self.place_of(address).map(|(pool, _)| pool)
    }

    pub fn pool_name(&self, pool: PoolId) -> &PoolName {
        &self.state(pool).pool.name
    }

    /// Whether the pool exists, but is left out because it is in error.
    pub fn is_in_error(&self, pool: PoolId) -> bool {
        self.state(pool).in_error
    }

    /// Whether any pool is in force.
    pub fn has_pools(&self) -> bool {
        self.pools.iter().any(|state| !state.in_error)
    }

    /// Counters of every pool in force, and of those in error what is still held of them.
    pub fn counters(&self) -> impl Iterator<Item = (&PoolName, Counters)> {
        self.pools.iter().map(|state| (&state.pool.name, state.counters()))
    }

    /// Every held address with a Service that uses it; a shared one comes once for each user.
    pub fn held(&self) -> impl Iterator<Item = (IpAddr, &ServiceKey)> {
        self.tenancies.iter().flat_map(|(address, tenancy)| {
            tenancy.users().filter_map(|user| Some((*address, self.key(user)?)))
        })
    }

    /// Who uses `address`.
    pub fn users_of(&self, address: IpAddr) -> impl Iterator<Item = &ServiceKey> {
        let users = self.tenancies.get(&address).into_iter().flat_map(Tenancy::users);
        users.filter_map(|user| self.key(user))
    }

    /// What a Service is to be told about its addresses.
    pub fn notes(&self, parts: Parts) -> Vec<Note> {
        let mut notes = Vec::new();
        for Part { address, .. } in parts.iter() {
            if let Some((node, kind)) = self.reserved.nodes.get(&address) {
                let (node, kind) = (node.clone(), kind.clone());
                notes.push(Note::NodeAddress { address, node, kind });
            }
            if let Some(range) = self.service_range(address) {
                notes.push(Note::ServiceRange { address, range });
            }
        }
        notes
    }

    /// The number of a Service, a new one if it has none.
    pub fn register(&mut self, key: &ServiceKey) -> Id {
        if let Some(id) = self.ids.get(key) {
            return *id;
        }
        let id = self.unused_ids.pop().unwrap_or_else(|| {
            self.keys.push(None);
            self.holdings.push(Holding::default());
            let last = u32::try_from(self.keys.len() - 1).expect("fewer than 2^32 Services");
            Id(last)
        });
        self.keys[id.index()] = Some(key.clone());
        self.ids.insert(key.clone(), id);
        id
    }

    /// [`Self::register`] for many at once, in the order of their keys, before any other; their
    /// numbers count up from 0.
    pub fn register_all<'a>(&mut self, keys: impl Iterator<Item = &'a ServiceKey>) {
        self.keys = keys.map(|key| Some(key.clone())).collect();
        self.holdings = vec![Holding::default(); self.keys.len()];
        self.ids = (0..).map(Id).zip(&self.keys).filter_map(numbered).collect();
    }

    pub fn id(&self, key: &ServiceKey) -> Option<Id> {
        self.ids.get(key).copied()
    }

    pub fn key(&self, id: Id) -> Option<&ServiceKey> {
        self.keys.get(id.index())?.as_ref()
    }

    /// Every Service, in the order of the keys.
    pub fn registered(&self) -> impl Iterator<Item = (&ServiceKey, Id)> {
        self.ids.iter().map(|(key, id)| (key, *id))
    }

    /// Takes back the number of a Service that holds nothing.
    pub fn forget(&mut self, id: Id) {
        if let Some(key) = self.keys.get_mut(id.index()).and_then(Option::take) {
            self.ids.remove(&key);
            self.unused_ids.push(id);
        }
    }

    /// What a Service holds.
    pub fn parts(&self, id: Id) -> Parts {
        self.holdings.get(id.index()).map(|holding| holding.parts).unwrap_or_default()
    }

    /// `parts` with the names of the pools; `None` for no address.
    pub fn assignment(&self, parts: Parts) -> Option<Assignment> {
        let mut named = parts.iter().map(|part| (part.address, self.pool_name(part.pool).clone()));
        let (address, pool) = named.next()?;
        let first = Assignment::new(address, pool);
        Some(named.fold(first, |all, (address, pool)| all.with(address, pool)))
    }

    /// Whether `tenant` may have addresses of `pool`.
    pub fn admits(&self, pool: PoolId, tenant: Tenant<'_>) -> bool {
        let pool = &self.state(pool).pool;
        let Some(allocation) = &pool.allocation else { return true };
        let labels = if allocation.service_selectors.is_empty() {
            Labels::new()
        } else {
            tenant.labels.unpack()
        };
        pool.admits(&tenant.key.namespace, &labels)
    }

    /// Whether `tenant` may stand on `address` beside those that do already.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn check(&self, tenant: Tenant<'_>, address: IpAddr) -> Result<(), Conflict> {
        let Some(tenancy) = self.tenancies.get(&address) else { return Ok(()) };
        let mut others = tenancy.users().filter(|user| *user != tenant.id);
        let Some(by) = others.find_map(|other| self.key(other)).cloned() else { return Ok(()) };
        let (Some(sharing), Tenancy::Shared(shared)) = (tenant.sharing, tenancy) else {
            return Err(Conflict::Taken { address, by });
        };
        if sharing.key != shared.sharing.key {
            return Err(Conflict::OtherKey { address, by });
        }
        if sharing.backend != shared.sharing.backend {
            return Err(Conflict::OtherBackends { address, by });
        }
        if by.namespace != tenant.key.namespace
            && let Some(pool) = self.pool_of(address).map(|pool| &self.state(pool).pool)
            && pool.sharing_scope == SharingScope::Namespace
        {
            return Err(Conflict::OtherNamespace { address, pool: pool.name.clone(), by });
        }
        let in_use = tenant.ports.iter().find_map(|port| {
            let user = shared.ports.get(port).filter(|user| **user != tenant.id)?;
            Some((*port, self.key(*user)?.clone()))
        });
        match in_use {
            Some((port, by)) => Err(Conflict::Port { address, port, by }),
            None => Ok(()),
        }
    }

    /// Gives `parts` to `tenant` in place of what it held. The caller has checked every address.
    pub fn assign(&mut self, tenant: Tenant<'_>, parts: Parts, now: Instant) {
        let held = &self.holdings[tenant.id.index()];
        if held.parts == parts && held.is_shared_as(tenant) {
            return;
        }
        self.release(tenant.id, now);
        for part in parts.iter() {
            self.take(tenant, part);
        }
        let shared = tenant.sharing.map(|sharing| {
            Box::new(SharedAs { sharing: sharing.clone(), ports: tenant.ports.into() })
        });
        self.holdings[tenant.id.index()] = Holding { parts, shared };
    }

    /// Takes back what a Service holds.
    pub fn release(&mut self, id: Id, now: Instant) {
        self.give_all_back(id, Some(now));
    }

    /// Takes back what a Service holds and never showed to anybody: nothing has to cool down.
    pub fn undo(&mut self, id: Id) {
        self.give_all_back(id, None);
    }

    /// When [`Self::thaw`] has something to do.
    pub fn next_thaw(&self) -> Option<Instant> {
        self.cooling.first().map(|(at, _)| *at)
    }

    /// Addresses whose cool-down ends by `now` are free again.
    pub fn thaw(&mut self, now: Instant) {
        while let Some((at, address)) = self.cooling.first().copied().filter(|(at, _)| *at <= now) {
            self.cooling.remove(&(at, address));
            self.cooling_until.remove(&address);
            if let Some((pool, range)) = self.place_of(address) {
                let family = Family::of(address);
                self.pools[pool.index()].cooling[family] -= 1;
                self.free(pool, range, address);
            }
        }
    }

    /// The addresses that are left alone, and nothing else.
    pub fn only_cooling(&self) -> Self {
        Self {
            seed: self.seed,
            cooling: self.cooling.clone(),
            cooling_until: self.cooling_until.clone(),
            ..Self::default()
        }
    }

    /// Notes, where there are no pools, that `address` is to be left alone.
    pub fn note_cooling(&mut self, address: IpAddr, until: Instant, now: Instant) {
        self.thaw(now);
        if let Some(old) = self.cooling_until.insert(address, until) {
            self.cooling.remove(&(old, address));
        }
        self.cooling.insert((until, address));
    }

    /// Leaves alone what `old` left alone, and what somebody held there and nobody holds here.
    pub fn cool_down_after(&mut self, old: &Self, now: Instant) {
        let mut cooling = Vec::new();
        for address in old.tenancies.keys().chain(old.cooling_until.keys()) {
            let Some((pool, range)) = self.place_of(*address) else { continue };
            let reuse_after = self.state(pool).pool.reuse_after;
            if reuse_after.is_zero() || self.tenancies.contains_key(address) {
                continue;
            }
            let latest = now + reuse_after;
            let until = old.cooling_until.get(address).map_or(latest, |until| latest.min(*until));
            if until > now && self.usable(pool, *address) == Usable::Yes {
                cooling.push((pool, range, *address, until));
            }
        }
        for (pool, range, address, until) in cooling {
            self.pools[pool.index()].withhold(range, address);
            self.note_general(pool, Family::of(address));
            self.cool(pool, address, until);
        }
    }

    /// What has come up since the last call that others may use. [`Topic::Shared`] comes without
    /// a port and stands for all ports of its group.
    pub fn take_opened(&mut self) -> Vec<Topic> {
        std::mem::take(&mut self.opened)
    }

    /// Whether those who wait for `topic` may still find something.
    pub fn is_open(&self, topic: &Topic) -> bool {
        match topic {
            Topic::Pool(pool, family) => self.state(*pool).has_free(*family),
            Topic::General(family) => !self.general.unlimited[*family].is_empty(),
            Topic::Quota(pool, namespace) => {
                let state = self.state(*pool);
                let limit = state.pool.max_addresses_per_namespace;
                limit.is_none_or(|limit| state.held_by(namespace) < limit)
            }
            Topic::Shared(group, Some(port)) => {
                self.groups.get(group).is_some_and(|group| !group.is_full(*port))
            }
            Topic::Shared(_, None) | Topic::Address(_) => true,
        }
    }

    fn state(&self, pool: PoolId) -> &PoolState {
        &self.pools[pool.index()]
    }

    fn place_of(&self, address: IpAddr) -> Option<(PoolId, usize)> {
        let above = self.ranges.partition_point(|span| span.first <= address);
        let span = self.ranges[..above].last().filter(|span| address <= span.last)?;
        self.state(span.pool).owns(span.range, address).then_some((span.pool, span.range))
    }

    fn service_range(&self, address: IpAddr) -> Option<IpNet> {
        self.reserved.service_ranges.iter().find(|range| range.contains(&address)).copied()
    }

    /// Whether `address` of `pool` may be given to a Service that takes any.
    fn usable(&self, pool: PoolId, address: IpAddr) -> Usable {
        let state = self.state(pool);
        let reserved = state.reserved[Family::of(address)].is_some()
            && (self.reserved.nodes.contains_key(&address)
                || self.service_range(address).is_some());
        if reserved || state.in_error { Usable::No } else { Usable::Yes }
    }

    /// The group of those who share addresses of `pool` as this Service does.
    fn group_key(&self, pool: PoolId, sharing: &Arc<Sharing>, namespace: &Arc<str>) -> GroupKey {
        let namespace = match self.state(pool).pool.sharing_scope {
            SharingScope::Cluster => None,
            SharingScope::Namespace => Some(namespace.clone()),
        };
        GroupKey { sharing: sharing.clone(), namespace }
    }

    /// Whether somebody of this namespace other than `id` stands on `address`.
    fn has_neighbour(&self, id: Id, namespace: &str, address: IpAddr) -> bool {
        let users = self.tenancies.get(&address).into_iter().flat_map(Tenancy::users);
        users
            .filter(|user| *user != id)
            .any(|user| self.key(user).is_some_and(|key| *key.namespace == *namespace))
    }

    fn take(&mut self, tenant: Tenant<'_>, Part { address, pool }: Part) {
        let limited = self.state(pool).pool.max_addresses_per_namespace.is_some();
        if limited && !self.has_neighbour(tenant.id, &tenant.key.namespace, address) {
            self.pools[pool.index()].count(tenant.key);
        }
        let range = self.place_of(address).map(|(_, range)| range);
        let new = match (self.tenancies.get_mut(&address), tenant.sharing) {
            (Some(Tenancy::Shared(shared)), Some(_)) => {
                shared.users.insert(tenant.id);
                shared.ports.extend(tenant.ports.iter().map(|port| (*port, tenant.id)));
                false
            }
            (_, Some(sharing)) => {
                let shared = Shared {
                    sharing: sharing.clone(),
                    users: BTreeSet::from([tenant.id]),
                    ports: tenant.ports.iter().map(|port| (*port, tenant.id)).collect(),
                };
                self.tenancies.insert(address, Tenancy::Shared(Box::new(shared)));
                true
            }
            (_, None) => {
                self.tenancies.insert(address, Tenancy::Alone(tenant.id));
                true
            }
        };
        if new {
            if let Some(until) = self.cooling_until.remove(&address) {
                self.cooling.remove(&(until, address));
                self.pools[pool.index()].cooling[Family::of(address)] -= 1;
            }
            let usable = self.usable(pool, address);
            self.pools[pool.index()].take(range, address, usable);
            self.note_general(pool, Family::of(address));
        }
        if let (Some(sharing), Some(range)) = (tenant.sharing, range) {
            let key = self.group_key(pool, sharing, &tenant.key.namespace);
            let group = self.groups.entry(key.clone()).or_default();
            group.enter((pool.0, range, number(address)), tenant.ports);
            self.opened.push(Topic::Shared(key, None));
        }
    }

    fn give_all_back(&mut self, id: Id, left: Option<Instant>) {
        let Some(holding) = self.holdings.get_mut(id.index()).map(std::mem::take) else { return };
        for part in holding.parts.iter() {
            self.give_back(id, &holding, part, left);
        }
    }

    /// `left`: when the Service stopped to use the address, if it ever did.
    fn give_back(
        &mut self,
        id: Id,
        holding: &Holding,
        Part { address, pool }: Part,
        left: Option<Instant>,
    ) {
        let Some(tenancy) = self.tenancies.get_mut(&address) else { return };
        let last = match tenancy {
            Tenancy::Alone(_) => Last::Yes,
            Tenancy::Shared(shared) => {
                shared.users.remove(&id);
                shared.ports.retain(|_, user| *user != id);
                if shared.users.is_empty() { Last::Yes } else { Last::No }
            }
        };
        if last == Last::Yes {
            self.tenancies.remove(&address);
        }
        let place = self.place_of(address);
        let key = self.keys[id.index()].clone();
        if let (Some(key), Some(shared), Some((_, range))) = (&key, &holding.shared, place) {
            let group_key = self.group_key(pool, &shared.sharing, &key.namespace);
            if let Some(group) = self.groups.get_mut(&group_key) {
                group.leave((pool.0, range, number(address)), &shared.ports, last);
                if group.members.is_empty() {
                    self.groups.remove(&group_key);
                }
            }
            self.opened.push(Topic::Shared(group_key, None));
        }
        let limited = self.state(pool).pool.max_addresses_per_namespace.is_some();
        if let Some(key) = key.filter(|_| limited)
            && !self.has_neighbour(id, &key.namespace, address)
        {
            self.pools[pool.index()].uncount(&key);
            self.opened.push(Topic::Quota(pool, key.namespace));
        }
        self.opened.push(Topic::Address(address));
        if last == Last::Yes {
            let usable = self.usable(pool, address);
            self.pools[pool.index()].leave(address, usable);
            if let (Some((_, range)), Usable::Yes) = (place, usable) {
                let reuse_after = self.state(pool).pool.reuse_after;
                match left {
                    Some(left) if !reuse_after.is_zero() => {
                        self.cool(pool, address, left + reuse_after);
                    }
                    Some(_) | None => self.free(pool, range, address),
                }
            }
        }
    }

    fn cool(&mut self, pool: PoolId, address: IpAddr, until: Instant) {
        self.cooling.insert((until, address));
        self.cooling_until.insert(address, until);
        self.pools[pool.index()].cooling[Family::of(address)] += 1;
    }

    fn free(&mut self, pool: PoolId, range: usize, address: IpAddr) {
        let family = Family::of(address);
        self.pools[pool.index()].free(range, address);
        self.note_general(pool, family);
        self.opened.push(Topic::Pool(pool, family));
        if self.general.unlimited[family].contains(&pool) {
            self.opened.push(Topic::General(family));
        }
    }

    fn note_general(&mut self, pool: PoolId, family: Family) {
        let state = &self.pools[pool.index()];
        if state.is_general() {
            self.general.note(pool, state, family);
        }
    }
}

fn numbered((id, key): (Id, &Option<ServiceKey>)) -> Option<(ServiceKey, Id)> {
    Some((key.clone()?, id))
}

#[derive(Debug, Clone, Copy)]
struct Span {
    first: IpAddr,
    last: IpAddr,
    pool: PoolId,
    range: usize,
}

#[derive(Debug, Clone, Default)]
struct Holding {
    parts: Parts,
    /// Only of Services that share.
    shared: Option<Box<SharedAs>>,
}

impl Holding {
    fn is_shared_as(&self, tenant: Tenant<'_>) -> bool {
        match (&self.shared, tenant.sharing) {
            (None, None) => true,
            (Some(shared), Some(sharing)) => {
                shared.sharing == *sharing && *shared.ports == *tenant.ports
            }
            (None, Some(_)) | (Some(_), None) => self.parts.is_empty(),
        }
    }
}

#[derive(Debug, Clone)]
struct SharedAs {
    sharing: Arc<Sharing>,
    ports: Box<[Port]>,
}

/// Empty where no range has any of it, so that nobody need look.
fn reserved_inside(ranges: &[Span], reserved: &Reserved) -> Reserved {
    let inside = |address: &IpAddr| {
        let above = ranges.partition_point(|span| span.first <= *address);
        ranges[..above].last().is_some_and(|span| *address <= span.last)
    };
    let overlaps = |net: &IpNet| {
        ranges.iter().any(|span| {
            let range = AddressRange { first: span.first, last: span.last };
            range.overlaps(&AddressRange { first: net.network(), last: net.broadcast() })
        })
    };
    let nodes = reserved.nodes.iter().filter(|(address, _)| inside(address));
    Reserved {
        nodes: nodes.map(|(address, holder)| (*address, holder.clone())).collect(),
        service_ranges: reserved
            .service_ranges
            .iter()
            .filter(|net| overlaps(net))
            .copied()
            .collect(),
    }
}

#[cfg(test)]
mod tests;
