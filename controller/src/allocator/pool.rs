//! One pool: its free space, what of it is reserved, and how much each namespace has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
    sync::Arc,
};

use config::{AddressRange, Pool, Reserved};

use super::{
    Counters,
    free::{FreeList, PerFamily, number, size},
};
use crate::{
    random::Random,
    service::{Family, ServiceKey},
};

/// Attempts to hit a free address by chance, before the next one above the last attempt is taken.
/// With one address in five free, one allocation in a thousand gets that far.
const ATTEMPTS: u32 = 32;
/// Node addresses that a message names.
const NAMED: usize = 3;

#[derive(Debug, Clone)]
pub struct PoolState {
    /// Without advertisements: they do not matter here.
    pub pool: Pool,
    /// The pool exists but is left out of the configuration: it has no ranges, and keeps what it
    /// gave out.
    pub in_error: bool,
    /// Whose the reserved addresses are, where they leave the free space.
    pub reserved: PerFamily<Option<Arc<str>>>,
    /// Addresses in their cool-down.
    pub cooling: PerFamily<usize>,
    /// By index of the range.
    free: Vec<FreeList>,
    /// Indices of the ranges that have a free address.
    free_ranges: PerFamily<BTreeSet<usize>>,
    /// The ranges of a family, each with how many addresses there are up to its end.
    sizes: PerFamily<Vec<(u128, usize)>>,
    /// Addresses that can be given out without being asked for.
    usable: PerFamily<i64>,
    usable_assigned: PerFamily<i64>,
    assigned: PerFamily<i64>,
    /// Addresses that each namespace has; only counted where there is a limit.
    namespaces: BTreeMap<Arc<str>, u32>,
}

impl PoolState {
    /// Reserved addresses leave the free space of a family, unless it has no others.
    pub fn new(pool: &Pool, reserved: &Reserved) -> Self {
        let pool =
            Pool { l2_advertisements: Vec::new(), bgp_advertisements: Vec::new(), ..pool.clone() };
        let mut state = Self {
            in_error: false,
            reserved: PerFamily::default(),
            cooling: PerFamily::default(),
            free: Vec::new(),
            free_ranges: PerFamily::default(),
            sizes: PerFamily::default(),
            usable: PerFamily::default(),
            usable_assigned: PerFamily::default(),
            assigned: PerFamily::default(),
            namespaces: BTreeMap::new(),
            pool,
        };
        for (index, range) in state.pool.ranges.iter().enumerate() {
            let sizes = &mut state.sizes[Family::of(range.first)];
            let before = sizes.last().map_or(0, |(before, _)| *before);
            let all = size(number(range.first), number(range.last), false);
            sizes.push((before.saturating_add(all), index));
            state.free.push(FreeList::new(range, state.pool.avoid_buggy_ips));
        }
        for family in Family::ALL {
            state.reserve(family, reserved);
            let lists = state.pool.ranges.iter().zip(&state.free).enumerate();
            for (index, (range, list)) in lists {
                if Family::of(range.first) != family {
                    continue;
                }
                let free = i64::try_from(list.size()).unwrap_or(i64::MAX);
                state.usable[family] = state.usable[family].saturating_add(free);
                if list.lowest().is_some() {
                    state.free_ranges[family].insert(index);
                }
            }
        }
        state
    }

    /// A pool that is left out because it is in error.
    pub fn in_error(name: &str) -> Self {
        let pool = Pool { auto_assign: false, ..Pool::new(name, Vec::new()) };
        Self { in_error: true, ..Self::new(&pool, &Reserved::default()) }
    }

    /// Serves everybody automatically.
    pub fn is_general(&self) -> bool {
        self.pool.auto_assign && self.pool.allocation.is_none()
    }

    pub fn has_free(&self, family: Family) -> bool {
        !self.free_ranges[family].is_empty()
    }

    pub fn has_family(&self, family: Family) -> bool {
        !self.sizes[family].is_empty()
    }

    /// The lowest free address of the first range that has one, with the index of the range.
    pub fn lowest(&self, family: Family) -> Option<(usize, u128)> {
        let range = *self.free_ranges[family].first()?;
        Some((range, self.free[range].lowest()?))
    }

    /// Any free address, each as likely as the other while a fair part of the pool is free.
    pub fn random(&self, family: Family, mut random: Random) -> Option<(usize, u128)> {
        let first_free = *self.free_ranges[family].first()?;
        let sizes = &self.sizes[family];
        let (total, _) = *sizes.last()?;
        let mut at = (first_free, 0);
        for _ in 0..ATTEMPTS {
            let offset = (u128::from(random.next()) << 64 | u128::from(random.next())) % total;
            let (end, range) = sizes[sizes.partition_point(|(end, _)| *end <= offset)];
            let last = number(self.pool.ranges[range].last);
            at = (range, last - (end - offset - 1));
            if self.free[range].contains(at.1) {
                return Some(at);
            }
        }
        let here = self.free[at.0].next_from(at.1).map(|number| (at.0, number));
        here.or_else(|| {
            let next = self.free_ranges[family].range(at.0 + 1..).next().copied();
            let range = next.unwrap_or(first_free);
            Some((range, self.free[range].lowest()?))
        })
    }

    /// Whether `address` is of this range, and not left out by `avoidBuggyIPs`.
    pub fn owns(&self, range: usize, address: IpAddr) -> bool {
        self.pool.ranges[range].contains(address)
            && !(self.pool.avoid_buggy_ips && config::is_buggy(address))
    }

    /// A Service has `address` now, which nobody had before.
    pub fn take(&mut self, range: Option<usize>, address: IpAddr, usable: Usable) {
        let family = Family::of(address);
        self.assigned[family] += 1;
        self.usable_assigned[family] += i64::from(usable == Usable::Yes);
        if let Some(range) = range {
            self.free[range].take(number(address));
            self.note(range, family);
        }
    }

    /// Nobody has `address` any more. It is free only after [`Self::free`].
    pub fn leave(&mut self, address: IpAddr, usable: Usable) {
        let family = Family::of(address);
        self.assigned[family] -= 1;
        self.usable_assigned[family] -= i64::from(usable == Usable::Yes);
    }

    /// `address` can be given out.
    pub fn free(&mut self, range: usize, address: IpAddr) {
        self.free[range].give(number(address));
        self.note(range, Family::of(address));
    }

    /// `address` cannot be given out for now.
    pub fn withhold(&mut self, range: usize, address: IpAddr) {
        self.free[range].take(number(address));
        self.note(range, Family::of(address));
    }

    /// Addresses that `namespace` has, where there is a limit.
    pub fn held_by(&self, namespace: &str) -> u32 {
        self.namespaces.get(namespace).copied().unwrap_or_default()
    }

    /// Counts an address that `key`'s namespace has from now on.
    pub fn count(&mut self, key: &ServiceKey) {
        *self.namespaces.entry(key.namespace.clone()).or_default() += 1;
    }

    /// Takes back [`Self::count`].
    pub fn uncount(&mut self, key: &ServiceKey) {
        if let Some(count) = self.namespaces.get_mut(&key.namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&key.namespace);
            }
        }
    }

    pub fn counters(&self) -> Counters {
        let available = |family| self.usable[family].saturating_sub(self.usable_assigned[family]);
        Counters {
            assigned_v4: self.assigned[Family::V4],
            assigned_v6: self.assigned[Family::V6],
            available_v4: available(Family::V4),
            available_v6: available(Family::V6),
        }
    }

    fn note(&mut self, range: usize, family: Family) {
        if self.free[range].lowest().is_some() {
            self.free_ranges[family].insert(range);
        } else {
            self.free_ranges[family].remove(&range);
        }
    }

    /// Takes reserved addresses out of the free space, if others are left then.
    fn reserve(&mut self, family: Family, reserved: &Reserved) {
        let mut free = self.free.clone();
        let mut nodes = Vec::new();
        let mut service_ranges = BTreeSet::new();
        for (range, list) in self.pool.ranges.iter().zip(&mut free) {
            if Family::of(range.first) != family {
                continue;
            }
            let before = nodes.len();
            let inside = reserved.nodes.range(range.first..=range.last);
            nodes.extend(inside.filter(|(address, _)| list.contains(number(**address))));
            for (address, _) in &nodes[before..] {
                list.subtract(number(**address), number(**address));
            }
            for net in &reserved.service_ranges {
                let net = AddressRange { first: net.network(), last: net.broadcast() };
                if net.overlaps(range) {
                    list.subtract(number(net.first), number(net.last));
                    service_ranges.insert(net);
                }
            }
        }
        if nodes.is_empty() && service_ranges.is_empty() {
            return;
        }
        let of_family = |(range, _): &(&AddressRange, &FreeList)| Family::of(range.first) == family;
        let mut lists = self.pool.ranges.iter().zip(&free).filter(of_family);
        if lists.all(|(_, list)| list.lowest().is_none()) {
            return;
        }
        let name = &self.pool.name;
        let mut text = String::new();
        if !nodes.is_empty() {
            let (count, verb) = if nodes.len() == 1 {
                ("1 address".to_owned(), "belongs")
            } else {
                (format!("{} addresses", nodes.len()), "belong")
            };
            let holders: Vec<String> = nodes
                .iter()
                .take(NAMED)
                .map(|(address, (node, kind))| format!("{address}: {kind} of {node}"))
                .collect();
            let more = if nodes.len() > NAMED { ", …" } else { "" };
            let holders = holders.join(", ");
            // Writing to a String cannot fail.
            let _ = write!(text, "{count} of {name:?} {verb} to nodes ({holders}{more})");
        }
        for range in service_ranges {
            let and = if text.is_empty() { "" } else { " and " };
            let _ = write!(text, "{and}{range} is for cluster IPs");
        }
        text.push_str(", to be had on request only");
        self.reserved[family] = Some(text.into());
        self.free = free;
    }
}

/// Whether an address may be given to a Service that takes any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usable {
    Yes,
    /// It is reserved, or its pool is in error.
    No,
}
