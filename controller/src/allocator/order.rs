//! The pools that serve automatically, in the order in which they are tried.

use std::collections::{BTreeMap, BTreeSet};

use super::{PoolId, free::PerFamily, pool::PoolState};
use crate::service::Family;

/// Pools with a `serviceAllocation` that serve automatically: by priority, 0 last, then by name.
#[derive(Debug, Clone, Default)]
pub struct Pinned {
    pools: Vec<PoolId>,
    /// Places in `pools` of those that name no namespace.
    any_namespace: Vec<usize>,
    /// Places in `pools` of those that name this namespace.
    by_namespace: BTreeMap<String, Vec<usize>>,
}

impl Pinned {
    pub fn new(pools: &[PoolState]) -> Self {
        let mut pinned: Vec<_> = (0..)
            .map(PoolId)
            .zip(pools)
            .filter(|(_, state)| state.pool.auto_assign)
            .filter_map(|(id, state)| Some((id, state.pool.allocation.as_ref()?)))
            .collect();
        // The sort is stable and the pools are in the order of their names.
        pinned.sort_by_key(|(_, allocation)| (allocation.priority == 0, allocation.priority));
        let mut new = Self::default();
        for (place, (id, allocation)) in pinned.into_iter().enumerate() {
            new.pools.push(id);
            if allocation.any_namespace {
                new.any_namespace.push(place);
            } else {
                for namespace in &allocation.namespaces {
                    new.by_namespace.entry(namespace.clone()).or_default().push(place);
                }
            }
        }
        new
    }

    /// Those that may be for Services of `namespace`, whose labels are not looked at.
    pub fn of(&self, namespace: &str) -> Vec<PoolId> {
        let named = self.by_namespace.get(namespace).into_iter().flatten();
        let mut places: Vec<usize> = self.any_namespace.iter().chain(named).copied().collect();
        places.sort_unstable();
        places.into_iter().map(|place| self.pools[place]).collect()
    }
}

/// Pools for everybody that serve automatically.
#[derive(Debug, Clone, Default)]
pub struct General {
    /// Those that have a free address of the family.
    pub free: PerFamily<BTreeSet<PoolId>>,
    /// Those that have one of each.
    pub both: BTreeSet<PoolId>,
    /// As `free`, without those that limit what a namespace may have.
    pub unlimited: PerFamily<BTreeSet<PoolId>>,
    /// All that limit it, full or not.
    pub limited: Vec<PoolId>,
    /// Whether there are any that do not.
    pub has_unlimited: bool,
    /// All that have reserved addresses.
    pub reserving: Vec<PoolId>,
}

impl General {
    pub fn new(pools: &[PoolState]) -> Self {
        let mut new = Self::default();
        for (id, state) in (0..).map(PoolId).zip(pools).filter(|(_, state)| state.is_general()) {
            if state.pool.max_addresses_per_namespace.is_some() {
                new.limited.push(id);
            } else {
                new.has_unlimited = true;
            }
            if state.reserved.v4.is_some() || state.reserved.v6.is_some() {
                new.reserving.push(id);
            }
            for family in Family::ALL {
                new.note(id, state, family);
            }
        }
        new
    }

    /// Looks whether a pool for everybody has free addresses.
    pub fn note(&mut self, id: PoolId, state: &PoolState, family: Family) {
        let has_free = state.has_free(family);
        if self.free[family].contains(&id) == has_free {
            return;
        }
        let unlimited = state.pool.max_addresses_per_namespace.is_none();
        if has_free {
            self.free[family].insert(id);
            if unlimited {
                self.unlimited[family].insert(id);
            }
        } else {
            self.free[family].remove(&id);
            self.unlimited[family].remove(&id);
        }
        if Family::ALL.iter().all(|family| state.has_free(*family)) {
            self.both.insert(id);
        } else {
            self.both.remove(&id);
        }
    }
}
