//! Which addresses a Service could have, and what it would have to wait for.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use config::{AllocationOrder, Pool};

use super::{
    Allocator, GroupKey, Part, Parts, PoolId, Tenant, Topic, free::address, sharing::Group,
};
use crate::{
    plan::{Left, Refusal},
    random::Random,
    service::{Families, Family},
};

/// Pools that a refusal names because of their reserved addresses.
const NAMED: usize = 3;

/// Where to look for addresses.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// Pools that serve the Service automatically: pinned ones by priority (0 last) and name, then
    /// those for everybody by name.
    Automatic,
    /// These, in this order. The caller has checked that they admit the Service.
    Named(&'a [PoolId]),
}

/// A look for addresses of one Service.
#[derive(Debug)]
pub struct Search<'a> {
    allocator: &'a Allocator,
    tenant: Tenant<'a>,
    scope: Scope<'a>,
    /// Pinned or named.
    listed: Vec<PoolId>,
    /// What the Service keeps in any case; whatever else it holds is given up.
    stays: Parts,
}

impl<'a> Search<'a> {
    pub fn new(
        allocator: &'a Allocator,
        tenant: Tenant<'a>,
        scope: Scope<'a>,
        stays: Parts,
    ) -> Self {
        let listed = match scope {
            Scope::Automatic => {
                let mut pinned = allocator.pinned.of(&tenant.key.namespace);
                pinned.retain(|pool| allocator.admits(*pool, tenant));
                pinned
            }
            Scope::Named(pools) => pools.to_vec(),
        };
        Self { allocator, tenant, scope, listed, stays }
    }

    /// Addresses for a Service that keeps none: for dual stack out of one pool, else out of two,
    /// else (if merely preferred) one.
    pub fn find(&self, families: Families) -> Option<Parts> {
        let one =
            |family| self.first(family, Parts::default()).map(|part| Parts::from_iter([part]));
        match families {
            Families::One(family) => one(family),
            Families::Both => self.both(),
            Families::PreferBoth { first } => {
                self.both().or_else(|| one(first)).or_else(|| one(first.other()))
            }
        }
    }

    /// An address of `family` beside the one that stays: out of the same pool, else as usual.
    pub fn find_second(&self, family: Family) -> Option<Part> {
        let mut own = self.own_pools();
        own.find_map(|pool| self.pick(pool, family, Parts::default()))
            .or_else(|| self.first(family, Parts::default()))
    }

    /// Why [`Self::find`] has found nothing for `families`, and what would help.
    pub fn refusal(&self, families: Families) -> (Refusal, Vec<Topic>) {
        match families {
            Families::One(family) => (self.exhausted(family, 1), self.topics(&[family], 1)),
            Families::Both => {
                let lacks = |family: &Family| self.first(*family, Parts::default()).is_none();
                match Family::ALL.into_iter().find(lacks) {
                    Some(family) => (self.exhausted(family, 1), self.topics(&[family], 1)),
                    // Either would be there, but one limit forbids to take both.
                    None => (self.exhausted(Family::V6, 2), self.topics(&Family::ALL, 2)),
                }
            }
            Families::PreferBoth { first } => {
                (self.exhausted(first, 1), self.topics(&Family::ALL, 1))
            }
        }
    }

    /// What would help to find an address of one of `families`, where a pool limits its namespaces
    /// `count` of them.
    pub fn topics(&self, families: &[Family], count: i64) -> Vec<Topic> {
        let allocator = self.allocator;
        let mut topics = Vec::new();
        for pool in self.own_pools().chain(self.watched()) {
            let state = allocator.state(pool);
            let families = families.iter().filter(|family| state.has_family(**family));
            let room = self.room(pool, Parts::default());
            if room < count && families.clone().next().is_some() {
                topics.push(Topic::Quota(pool, self.tenant.key.namespace.clone()));
            }
            // Where only one of two is allowed, the other may come from elsewhere.
            if room > 0 {
                topics.extend(families.map(|family| Topic::Pool(pool, *family)));
            }
        }
        if matches!(self.scope, Scope::Automatic) && allocator.general.has_unlimited {
            topics.extend(families.iter().map(|family| Topic::General(*family)));
        }
        for key in self.group_keys() {
            let full = match allocator.groups.get(&key) {
                Some(group) => group.full_port(self.tenant.ports),
                None => self.tenant.ports.first().copied(),
            };
            topics.push(Topic::Shared(key, full));
        }
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// Why the Service cannot have `parts` besides what it keeps, if the limit of a pool forbids
    /// it, and what would help.
    pub fn over_quota(&self, parts: Parts) -> Option<(Refusal, Topic)> {
        let over = |part: &Part| self.is_counted(part) && self.room(part.pool, parts) < 0;
        let pool = parts.iter().find(over)?.pool;
        let Pool { name, max_addresses_per_namespace, .. } = &self.allocator.state(pool).pool;
        let refusal = Refusal::Quota { pool: name.clone(), limit: (*max_addresses_per_namespace)? };
        Some((refusal, Topic::Quota(pool, self.tenant.key.namespace.clone())))
    }

    /// How many more addresses of `pool` the Service may have, once it has `picked`.
    fn room(&self, pool: PoolId, picked: Parts) -> i64 {
        let state = self.allocator.state(pool);
        let Some(limit) = state.pool.max_addresses_per_namespace else { return i64::MAX };
        let counts = |part: &Part| part.pool == pool && self.is_counted(part);
        let held = self.allocator.parts(self.tenant.id);
        let given_up = held.iter().filter(|part| !self.stays.contains(part.address));
        let given_up = given_up.filter(counts).count();
        let picked = picked.iter().filter(counts).count();
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        i64::from(limit) - i64::from(state.held_by(&self.tenant.key.namespace)) + signed(given_up)
            - signed(picked)
    }

    /// Whether the namespace has the address only if this Service has it.
    fn is_counted(&self, part: &Part) -> bool {
        let Tenant { id, key, .. } = self.tenant;
        !self.allocator.has_neighbour(id, &key.namespace, part.address)
    }

    fn both(&self) -> Option<Parts> {
        self.one_pool()
            .or_else(|| self.two_pools(Family::V4))
            .or_else(|| self.two_pools(Family::V6))
    }

    fn one_pool(&self) -> Option<Parts> {
        let both = |pool: PoolId| {
            let v4 = self.pick(pool, Family::V4, Parts::default())?;
            let v6 = self.pick(pool, Family::V6, Parts::from_iter([v4]))?;
            Some(Parts::from_iter([v4, v6]))
        };
        self.listed
            .iter()
            .find_map(|pool| both(*pool))
            .or_else(|| self.general(&self.allocator.general.both, both))
    }

    /// The best of `first`, and the best of the other family that goes with it.
    fn two_pools(&self, first: Family) -> Option<Parts> {
        let one = self.first(first, Parts::default())?;
        let other = self.first(first.other(), Parts::from_iter([one]))?;
        Some(Parts::from_iter([one, other]))
    }

    fn first(&self, family: Family, picked: Parts) -> Option<Part> {
        let from = |pool| self.pick(pool, family, picked);
        self.listed
            .iter()
            .find_map(|pool| from(*pool))
            .or_else(|| self.general(&self.allocator.general.free[family], from))
    }

    /// What `from` finds first in the pools for everybody: in those of `free`, and where an
    /// address is shared.
    fn general<T>(&self, free: &BTreeSet<PoolId>, from: impl Fn(PoolId) -> Option<T>) -> Option<T> {
        match self.scope {
            Scope::Named(_) => return None,
            Scope::Automatic => {}
        }
        let mut shared: BTreeSet<PoolId> = BTreeSet::new();
        for key in self.group_keys() {
            let pools = self.allocator.groups.get(&key).into_iter().flat_map(Group::pools);
            let general = |pool: &PoolId| self.allocator.state(*pool).is_general();
            shared.extend(pools.map(PoolId).filter(general));
        }
        if shared.is_empty() {
            return free.iter().find_map(|pool| from(*pool));
        }
        free.union(&shared).find_map(|pool| from(*pool))
    }

    /// The lowest (or a random) address of `pool` that is free, or that the Service may share.
    fn pick(&self, pool: PoolId, family: Family, picked: Parts) -> Option<Part> {
        let state = self.allocator.state(pool);
        let room = self.room(pool, picked);
        let free = match state.pool.order {
            _ if room <= 0 => None,
            AllocationOrder::Lowest => state.lowest(family),
            AllocationOrder::Random => state.random(family, self.random(pool, family)),
        };
        let below = match state.pool.order {
            AllocationOrder::Lowest => free,
            AllocationOrder::Random => None,
        };
        let (_, number) = self.shared(pool, family, room, below).or(free)?;
        Some(Part { address: address(family, number), pool })
    }

    /// The lowest address of `pool`, below `below`, on which the Service may stand with others.
    fn shared(
        &self,
        pool: PoolId,
        family: Family,
        room: i64,
        below: Option<(usize, u128)>,
    ) -> Option<(usize, u128)> {
        let (allocator, tenant) = (self.allocator, self.tenant);
        let key = allocator.group_key(pool, tenant.sharing?, &tenant.key.namespace);
        let group = allocator.groups.get(&key)?;
        if group.full_port(tenant.ports).is_some() {
            return None;
        }
        let ranges = &allocator.state(pool).pool.ranges;
        let upper = below.map_or(Bound::Included((pool.0, usize::MAX, u128::MAX)), |(range, n)| {
            Bound::Excluded((pool.0, range, n))
        });
        let members = group.members.range((Bound::Included((pool.0, 0, 0)), upper));
        members
            .map(|(_, range, number)| (*range, *number))
            .filter(|(range, _)| Family::of(ranges[*range].first) == family)
            .find(|(_, number)| {
                let address = address(family, *number);
                let neighbour =
                    || allocator.has_neighbour(tenant.id, &tenant.key.namespace, address);
                (room > 0 || neighbour()) && allocator.check(tenant, address).is_ok()
            })
    }

    /// Pools of what stays.
    fn own_pools(&self) -> impl Iterator<Item = PoolId> + use<> {
        self.stays.iter().map(|part| part.pool)
    }

    /// Pools that are watched one by one.
    fn watched(&self) -> impl Iterator<Item = PoolId> {
        let limited: &[PoolId] = match self.scope {
            Scope::Automatic => &self.allocator.general.limited,
            Scope::Named(_) => &[],
        };
        self.listed.iter().chain(limited).copied()
    }

    fn group_keys(&self) -> impl Iterator<Item = GroupKey> {
        let namespace = &self.tenant.key.namespace;
        self.tenant.sharing.into_iter().flat_map(move |sharing| {
            [None, Some(namespace.clone())]
                .map(|namespace| GroupKey { sharing: Arc::clone(sharing), namespace })
        })
    }

    /// Why there is no address of `family`, or, where a pool limits its namespaces, not `count`.
    fn exhausted(&self, family: Family, count: i64) -> Refusal {
        let allocator = self.allocator;
        let limit_of = |pool: PoolId| {
            let state = allocator.state(pool);
            let limit = state.pool.max_addresses_per_namespace?;
            let reached = self.room(pool, Parts::default()) < count && state.has_family(family);
            reached.then(|| (state.pool.name.clone(), limit))
        };
        let mut others = false;
        let mut quota = None;
        for pool in self.watched() {
            match limit_of(pool) {
                Some(reached) => {
                    quota.get_or_insert(reached);
                }
                None => others |= allocator.state(pool).has_family(family),
            }
        }
        let general = matches!(self.scope, Scope::Automatic) && allocator.general.has_unlimited;
        if let Some((pool, limit)) = &quota
            && !others
            && !general
        {
            return Refusal::Quota { pool: pool.clone(), limit: *limit };
        }
        let (in_general, reserving): (_, &[PoolId]) = match self.scope {
            Scope::Automatic => (true, &allocator.general.reserving),
            Scope::Named(_) => (false, &[]),
        };
        let cools = |pool: PoolId| allocator.state(pool).cooling[family] > 0;
        let cooling = !allocator.cooling.is_empty()
            && (self.listed.iter().any(|pool| cools(*pool))
                || in_general
                    && allocator
                        .pools
                        .iter()
                        .any(|state| state.is_general() && state.cooling[family] > 0));
        let reserved: Vec<&str> = self
            .listed
            .iter()
            .chain(reserving)
            .filter_map(|pool| allocator.state(*pool).reserved[family].as_deref())
            .take(NAMED)
            .collect();
        let left = Left {
            reserved: (!reserved.is_empty()).then(|| reserved.join("; ").into()),
            quota: quota.map(|(pool, _)| pool),
            cooling,
        };
        match self.scope {
            Scope::Named(pools) => {
                let pools = pools.iter().map(|pool| allocator.pool_name(*pool).clone()).collect();
                Refusal::PoolExhausted { pools, family, left }
            }
            Scope::Automatic
                if self.listed.is_empty() && !general && allocator.general.limited.is_empty() =>
            {
                Refusal::NoPoolServes
            }
            Scope::Automatic => Refusal::Exhausted { family, left },
        }
    }

    /// From a hash (FNV-1a) of the seed and of who asks where.
    fn random(&self, pool: PoolId, family: Family) -> Random {
        let key = self.tenant.key;
        let words = [&*key.namespace, "/", &*key.name, "/", self.allocator.pool_name(pool)];
        let family = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        let mut hash = 0xCBF2_9CE4_8422_2325 ^ self.allocator.seed;
        for byte in words.iter().flat_map(|word| word.bytes()).chain([family]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        Random::new(hash)
    }
}
