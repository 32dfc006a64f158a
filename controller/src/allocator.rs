//! Which address is whose: free space by pool, tenants by address.
//!
//! Holds no opinion on what a Service should have (that is `plan`). Nothing here walks a range:
//! free space is kept as intervals, so a nearly full /8 is as quick as an empty one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use config::{AddressRange, Config, Labels, Pool, PoolName};

use crate::service::{Families, Family, Port, ServiceKey, Sharing};

/// What a Service holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    pub pool: PoolName,
    /// One or two, IPv4 before IPv6.
    pub addresses: Vec<IpAddr>,
}

/// What the allocator must know of a Service.
#[derive(Debug, Clone, Copy)]
pub struct Tenant<'a> {
    pub key: &'a ServiceKey,
    pub labels: &'a Labels,
    pub sharing: &'a Sharing,
    pub ports: &'a BTreeSet<Port>,
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
    #[error("port {port} of the shared address {address} is in use by Service {by}")]
    Port { address: IpAddr, port: Port, by: ServiceKey },
}

/// Addresses of one pool, by family; a shared address counts once. Totals stop at `i64::MAX`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub assigned_v4: i64,
    pub assigned_v6: i64,
    pub available_v4: i64,
    pub available_v6: i64,
}

/// The state of all pools.
#[derive(Debug, Clone, Default)]
pub struct Allocator {
    /// In the order of their names.
    pools: Vec<PoolState>,
    by_name: BTreeMap<PoolName, usize>,
    /// Every range of every pool by its first address.
    ranges: BTreeMap<(Family, u128), Place>,
    /// Pools with a `serviceAllocation` that serve automatically: by priority, then by name.
    pinned: Vec<usize>,
    /// Pools for everybody that serve automatically and have a free address of the family.
    general: PerFamily<BTreeSet<usize>>,
    tenancies: BTreeMap<IpAddr, Tenancy>,
    holdings: BTreeMap<ServiceKey, Holding>,
    groups: BTreeMap<Sharing, Group>,
    freed: bool,
}

impl Allocator {
    /// The pools of `config`, nothing given out.
    pub fn new(config: &Config) -> Self {
        let mut allocator = Self::default();
        for (index, pool) in config.pools.values().enumerate() {
            for (range, AddressRange { first, .. }) in pool.ranges.iter().enumerate() {
                let place = Place { pool: index, range };
                allocator.ranges.insert((Family::of(*first), number(*first)), place);
            }
            if pool.auto_assign && pool.allocation.is_some() {
                allocator.pinned.push(index);
            }
            allocator.by_name.insert(pool.name.clone(), index);
            allocator.pools.push(PoolState::new(pool));
            for family in Family::ALL {
                allocator.note_free_space(index, family);
            }
        }
        let pools = &allocator.pools;
        // The sort is stable and the pools are in the order of their names.
        allocator.pinned.sort_by_key(|index| {
            let priority = pools[*index].pool.allocation.as_ref().map_or(0, |a| a.priority);
            (priority == 0, priority)
        });
        allocator
    }

    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.by_name.get(name).map(|index| &self.pools[*index].pool)
    }

    /// The pool that owns `address`; addresses left out by `avoidBuggyIPs` have no owner.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.place_of(address).map(|place| &self.pools[place.pool].pool)
    }

    pub fn assignment(&self, key: &ServiceKey) -> Option<&Assignment> {
        self.holdings.get(key).map(|holding| &holding.assignment)
    }

    pub fn counters(&self) -> impl Iterator<Item = (&PoolName, Counters)> {
        self.pools.iter().map(|state| (&state.pool.name, state.counters()))
    }

    /// Whether `tenant` may stand on `address` beside those that do already.
    ///
    /// # Errors
    /// The first reason against it.
    pub fn check(&self, tenant: Tenant<'_>, address: IpAddr) -> Result<(), Conflict> {
        let Some(tenancy) = self.tenancies.get(&address) else { return Ok(()) };
        let Some(by) = tenancy.users.iter().find(|user| *user != tenant.key) else {
            return Ok(());
        };
        let by = by.clone();
        if tenant.sharing.key.is_empty() || tenancy.sharing.key.is_empty() {
            return Err(Conflict::Taken { address, by });
        }
        if tenant.sharing.key != tenancy.sharing.key {
            return Err(Conflict::OtherKey { address, by });
        }
        if tenant.sharing.backend != tenancy.sharing.backend {
            return Err(Conflict::OtherBackends { address, by });
        }
        for port in tenant.ports {
            if let Some(by) = tenancy.ports.get(port).filter(|by| *by != tenant.key) {
                return Err(Conflict::Port { address, port: *port, by: by.clone() });
            }
        }
        Ok(())
    }

    /// Addresses for `tenant` out of one named pool: in the order of its ranges, the lowest first.
    pub fn find_in(
        &self,
        tenant: Tenant<'_>,
        pool: &str,
        families: Families,
    ) -> Option<Assignment> {
        let pool = *self.by_name.get(pool)?;
        choices(families).iter().find_map(|wanted| self.find_all(tenant, pool, wanted))
    }

    /// Addresses for `tenant` out of any pool that serves it automatically: pinned pools by
    /// priority (0 last) and name, then those for everybody by name.
    pub fn find(&self, tenant: Tenant<'_>, families: Families) -> Option<Assignment> {
        let admits =
            |pool: &&usize| self.pools[**pool].pool.admits(&tenant.key.namespace, tenant.labels);
        let pinned: Vec<usize> = self.pinned.iter().filter(admits).copied().collect();
        choices(families)
            .iter()
            .find_map(|wanted| pinned.iter().find_map(|pool| self.find_all(tenant, *pool, wanted)))
            .or_else(|| {
                choices(families).iter().find_map(|wanted| self.find_general(tenant, wanted))
            })
    }

    /// True when some pool serves `tenant` automatically, full or not.
    pub fn serves(&self, tenant: Tenant<'_>) -> bool {
        self.pools.iter().any(|state| {
            state.pool.auto_assign && state.pool.admits(&tenant.key.namespace, tenant.labels)
        })
    }

    /// Gives `assignment` to `tenant` in place of what it held. The caller has checked every
    /// address; all are of `assignment.pool`.
    pub fn assign(&mut self, tenant: Tenant<'_>, assignment: Assignment) {
        let holding =
            Holding { assignment, sharing: tenant.sharing.clone(), ports: tenant.ports.clone() };
        if self.holdings.get(tenant.key) == Some(&holding) {
            return;
        }
        self.release(tenant.key);
        for address in &holding.assignment.addresses {
            self.take(tenant, *address);
        }
        // Those who wait may share what a full pool would not give them.
        self.freed |= !tenant.sharing.key.is_empty();
        self.holdings.insert(tenant.key.clone(), holding);
    }

    /// Takes back what `key` holds.
    pub fn release(&mut self, key: &ServiceKey) -> Option<Assignment> {
        let holding = self.holdings.remove(key)?;
        for address in &holding.assignment.addresses {
            self.give_back(key, &holding, *address);
        }
        self.freed = true;
        Some(holding.assignment)
    }

    /// Whether anything that others may use (an address, or a place on a shared one) has come up
    /// since the last call.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    fn find_general(&self, tenant: Tenant<'_>, wanted: &[Family]) -> Option<Assignment> {
        let mut shared = BTreeSet::new();
        if let Some(group) = self.group(tenant.sharing) {
            let general = |pool: &usize| self.pools[*pool].is_general();
            shared.extend(group.pools().into_iter().filter(general));
        }
        let first = wanted.first()?;
        self.general[*first].union(&shared).find_map(|pool| self.find_all(tenant, *pool, wanted))
    }

    fn find_all(&self, tenant: Tenant<'_>, pool: usize, wanted: &[Family]) -> Option<Assignment> {
        let addresses = wanted
            .iter()
            .map(|family| self.lowest(tenant, pool, *family))
            .collect::<Option<Vec<_>>>()?;
        Some(Assignment { pool: self.pools[pool].pool.name.clone(), addresses })
    }

    /// The lowest address of the first range that is free, or that `tenant` may share.
    fn lowest(&self, tenant: Tenant<'_>, pool: usize, family: Family) -> Option<IpAddr> {
        let state = &self.pools[pool];
        let free = state.free_ranges[family]
            .first()
            .and_then(|range| Some((*range, state.free[*range].lowest()?)));
        let shared = self.group(tenant.sharing).and_then(|group| {
            if group.is_full_for(tenant.ports) {
                return None;
            }
            let members = group.members.range((pool, 0, 0)..=(pool, usize::MAX, u128::MAX));
            members
                .map(|(_, range, number)| (*range, *number))
                .filter(|(range, _)| state.family(*range) == family)
                .take_while(|at| free.is_none_or(|free| *at < free))
                .find(|(_, number)| self.check(tenant, address(family, *number)).is_ok())
        });
        shared.or(free).map(|(_, number)| address(family, number))
    }

    fn group(&self, sharing: &Sharing) -> Option<&Group> {
        if sharing.key.is_empty() { None } else { self.groups.get(sharing) }
    }

    fn place_of(&self, address: IpAddr) -> Option<Place> {
        let at = (Family::of(address), number(address));
        let ((family, _), place) = self.ranges.range(..=at).next_back()?;
        let state = &self.pools[place.pool];
        (*family == at.0
            && state.pool.ranges[place.range].contains(address)
            && !(state.free[place.range].skip_buggy && is_buggy(at.1)))
        .then_some(*place)
    }

    fn take(&mut self, tenant: Tenant<'_>, address: IpAddr) {
        let Some(place) = self.place_of(address) else { return };
        let tenancy = self.tenancies.entry(address).or_default();
        let new = tenancy.users.is_empty();
        tenancy.users.insert(tenant.key.clone());
        tenancy.sharing = tenant.sharing.clone();
        tenancy.ports.extend(tenant.ports.iter().map(|port| (*port, tenant.key.clone())));
        if !tenant.sharing.key.is_empty() {
            let group = self.groups.entry(tenant.sharing.clone()).or_default();
            group.members.insert((place.pool, place.range, number(address)));
            for port in tenant.ports {
                *group.used.entry(*port).or_default() += 1;
            }
        }
        if new {
            let family = Family::of(address);
            let state = &mut self.pools[place.pool];
            state.free[place.range].take(number(address));
            state.assigned[family] += 1;
            self.note_range(place, family);
        }
    }

    fn give_back(&mut self, key: &ServiceKey, holding: &Holding, address: IpAddr) {
        let Some(place) = self.place_of(address) else { return };
        let Some(tenancy) = self.tenancies.get_mut(&address) else { return };
        tenancy.users.remove(key);
        for port in &holding.ports {
            tenancy.ports.remove(port);
        }
        let last = tenancy.users.is_empty();
        if let Some(group) = self.groups.get_mut(&holding.sharing) {
            for port in &holding.ports {
                if let Some(count) = group.used.get_mut(port) {
                    *count -= 1;
                }
            }
            if last {
                group.members.remove(&(place.pool, place.range, number(address)));
            }
            if group.members.is_empty() {
                self.groups.remove(&holding.sharing);
            }
        }
        if last {
            self.tenancies.remove(&address);
            let family = Family::of(address);
            let state = &mut self.pools[place.pool];
            state.free[place.range].give(number(address));
            state.assigned[family] -= 1;
            self.note_range(place, family);
        }
    }

    fn note_range(&mut self, place: Place, family: Family) {
        let state = &mut self.pools[place.pool];
        if state.free[place.range].lowest().is_some() {
            state.free_ranges[family].insert(place.range);
        } else {
            state.free_ranges[family].remove(&place.range);
        }
        self.note_free_space(place.pool, family);
    }

    fn note_free_space(&mut self, pool: usize, family: Family) {
        let state = &self.pools[pool];
        if state.is_general() && !state.free_ranges[family].is_empty() {
            self.general[family].insert(pool);
        } else {
            self.general[family].remove(&pool);
        }
    }
}

/// Which sets of families satisfy `families`, the best first.
fn choices(families: Families) -> &'static [&'static [Family]] {
    const V4: &[Family] = &[Family::V4];
    const V6: &[Family] = &[Family::V6];
    const BOTH: &[Family] = &Family::ALL;
    match families {
        Families::One(Family::V4) => &[V4],
        Families::One(Family::V6) => &[V6],
        Families::Both => &[BOTH],
        Families::PreferBoth { first: Family::V4 } => &[BOTH, V4, V6],
        Families::PreferBoth { first: Family::V6 } => &[BOTH, V6, V4],
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    pool: usize,
    range: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Holding {
    assignment: Assignment,
    sharing: Sharing,
    ports: BTreeSet<Port>,
}

/// Everybody on one address; with more than one user all have the same `sharing`.
#[derive(Debug, Clone, Default)]
struct Tenancy {
    users: BTreeSet<ServiceKey>,
    sharing: Sharing,
    ports: BTreeMap<Port, ServiceKey>,
}

/// The addresses that are shared under one key and backend.
#[derive(Debug, Clone, Default)]
struct Group {
    /// Pool, range, address: the order in which they are tried.
    members: BTreeSet<(usize, usize, u128)>,
    /// On how many of the members a port is in use.
    used: BTreeMap<Port, usize>,
}

impl Group {
    /// True when one of `ports` is in use on every member: thousands of Services with one key and
    /// one port must not look at each other's addresses in turn.
    fn is_full_for(&self, ports: &BTreeSet<Port>) -> bool {
        ports.iter().any(|port| self.used.get(port) == Some(&self.members.len()))
    }

    fn pools(&self) -> Vec<usize> {
        let mut pools = Vec::new();
        let mut next = self.members.first();
        while let Some((pool, _, _)) = next {
            pools.push(*pool);
            next = self.members.range((pool + 1, 0, 0)..).next();
        }
        pools
    }
}

#[derive(Debug, Clone)]
struct PoolState {
    /// Without advertisements: they do not matter here.
    pool: Pool,
    /// By index of the range.
    free: Vec<FreeList>,
    /// Indices of the ranges that have a free address.
    free_ranges: PerFamily<BTreeSet<usize>>,
    assigned: PerFamily<i64>,
    total: PerFamily<i64>,
}

impl PoolState {
    fn new(pool: &Pool) -> Self {
        let pool =
            Pool { l2_advertisements: Vec::new(), bgp_advertisements: Vec::new(), ..pool.clone() };
        let free: Vec<FreeList> =
            pool.ranges.iter().map(|range| FreeList::new(range, pool.avoid_buggy_ips)).collect();
        let mut free_ranges = PerFamily::<BTreeSet<usize>>::default();
        let mut total = PerFamily::<i64>::default();
        for (index, range) in pool.ranges.iter().enumerate() {
            let family = Family::of(range.first);
            if free[index].lowest().is_some() {
                free_ranges[family].insert(index);
            }
            total[family] = total[family].saturating_add(size(range, pool.avoid_buggy_ips));
        }
        Self { pool, free, free_ranges, assigned: PerFamily::default(), total }
    }

    fn is_general(&self) -> bool {
        self.pool.auto_assign && self.pool.allocation.is_none()
    }

    fn family(&self, range: usize) -> Family {
        Family::of(self.pool.ranges[range].first)
    }

    fn counters(&self) -> Counters {
        let available = |family| self.total[family].saturating_sub(self.assigned[family]);
        Counters {
            assigned_v4: self.assigned[Family::V4],
            assigned_v6: self.assigned[Family::V6],
            available_v4: available(Family::V4),
            available_v6: available(Family::V6),
        }
    }
}

/// Addresses of `range` that can be given out, at most `i64::MAX`.
fn size(range: &AddressRange, avoid_buggy_ips: bool) -> i64 {
    let (first, last) = (number(range.first), number(range.last));
    let all = (last - first).saturating_add(1);
    // How many numbers below `end` are `rest` modulo 256.
    let below = |end: u128, rest: u128| end / 256 + u128::from(end % 256 > rest);
    let buggy = |rest| below(last + 1, rest) - below(first, rest);
    let usable = if avoid_buggy_ips && range.is_ipv4() { all - buggy(0) - buggy(255) } else { all };
    i64::try_from(usable).unwrap_or(i64::MAX)
}

/// Free addresses of one range as disjoint intervals, first address to last, both included.
#[derive(Debug, Clone)]
struct FreeList {
    intervals: BTreeMap<u128, u128>,
    /// Leave out numbers that end in 0 or 255. No interval begins or ends with one, so that the
    /// lowest free address is always the start of the first interval.
    skip_buggy: bool,
}

impl FreeList {
    fn new(range: &AddressRange, avoid_buggy_ips: bool) -> Self {
        let skip_buggy = avoid_buggy_ips && range.is_ipv4();
        let mut list = Self { intervals: BTreeMap::new(), skip_buggy };
        list.insert(number(range.first), number(range.last));
        list
    }

    fn lowest(&self) -> Option<u128> {
        self.intervals.first_key_value().map(|(first, _)| *first)
    }

    fn take(&mut self, number: u128) {
        let Some((&first, &last)) = self.intervals.range(..=number).next_back() else { return };
        if number > last {
            return;
        }
        self.intervals.remove(&first);
        if first < number {
            self.insert(first, number - 1);
        }
        if number < last {
            self.insert(number + 1, last);
        }
    }

    fn give(&mut self, number: u128) {
        let (mut first, mut last) = (number, number);
        if let Some((&before, &end)) = self.intervals.range(..number).next_back()
            && number.checked_sub(1) == Some(end)
        {
            first = before;
        }
        let after = number.checked_add(1);
        if let Some(end) = after.and_then(|after| self.intervals.remove(&after)) {
            last = end;
        }
        self.insert(first, last);
    }

    fn insert(&mut self, mut first: u128, mut last: u128) {
        if self.skip_buggy {
            while first <= last && is_buggy(first) {
                first += 1;
            }
            while last > first && is_buggy(last) {
                last -= 1;
            }
        }
        if first <= last {
            self.intervals.insert(first, last);
        }
    }
}

/// True for IPv4 addresses that end in .0 or .255.
fn is_buggy(number: u128) -> bool {
    matches!(number % 256, 0 | 255)
}

/// One value for each family.
#[derive(Debug, Clone, Default)]
struct PerFamily<T> {
    v4: T,
    v6: T,
}

impl<T> std::ops::Index<Family> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> std::ops::IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => {
            let number = u32::try_from(number).expect("made from an IPv4 address");
            IpAddr::V4(Ipv4Addr::from(number))
        }
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests;
