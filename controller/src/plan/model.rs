//! The same plan by the slow way: every question is answered by looking at every address and every
//! Service. Knows no intervals, no files of who waits, and only the order Lowest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use config::{Config, Pool, PoolName, SharingScope};

use crate::{
    allocator::Assignment,
    fixture::every_address,
    service::{Families, Family, Role, Service, ServiceKey},
};

type Services = BTreeMap<ServiceKey, Service>;
type Parts = BTreeMap<Family, (IpAddr, PoolName)>;

#[derive(Debug, Clone, Default)]
pub struct Model {
    config: Config,
    held: BTreeMap<ServiceKey, Parts>,
    /// Of every Service that is ours: whether it lacks something.
    pending: BTreeMap<ServiceKey, bool>,
    cooling: BTreeMap<IpAddr, Instant>,
}

impl Model {
    /// What everybody holds, and whether it lacks something.
    pub fn result(&self) -> BTreeMap<ServiceKey, (Option<Assignment>, bool)> {
        let assignment = |key: &ServiceKey| {
            let mut parts = self.held.get(key)?.values().cloned();
            let (address, pool) = parts.next()?;
            Some(parts.fold(Assignment::new(address, pool), |all, (a, pool)| all.with(a, pool)))
        };
        self.pending
            .iter()
            .map(|(key, pending)| (key.clone(), (assignment(key), *pending)))
            .collect()
    }

    pub fn renew(&mut self, config: &Config, services: &Services, now: Instant) {
        let old = std::mem::take(self);
        self.config = config.clone();
        let ranked = ranked(services);
        for service in &ranked {
            let shown = old.held.get(&service.key).filter(|held| !held.is_empty()).cloned();
            self.keep(service, services, shown.unwrap_or_else(|| shown_by(service)));
        }
        let left = old.held.values().flat_map(|parts| parts.values().map(|(address, _)| *address));
        for address in left.chain(old.cooling.keys().copied()).collect::<BTreeSet<_>>() {
            let Some(pool) = self.pool_of(address) else { continue };
            let latest = now + pool.reuse_after;
            let until = old.cooling.get(&address).map_or(latest, |until| latest.min(*until));
            if until > now && self.users(address).is_empty() && !self.is_reserved(address) {
                self.cooling.insert(address, until);
            }
        }
        for service in ranked {
            self.decide(service, services, now);
        }
        self.serve_waiting(services, now);
    }

    pub fn revise(&mut self, services: &Services, dirty: &ServiceKey, now: Instant) {
        self.cooling.retain(|_, until| *until > now);
        match services.get(dirty).filter(|service| service.role == Role::Ours) {
            Some(service) => {
                let held = self.held.get(dirty).filter(|held| !held.is_empty()).cloned();
                let before = self.held.clone();
                self.keep(service, services, held.unwrap_or_else(|| shown_by(service)));
                self.cool_what_was_left(&before, now);
                self.decide(service, services, now);
            }
            None => {
                let before = self.held.clone();
                self.held.remove(dirty);
                self.pending.remove(dirty);
                self.cool_what_was_left(&before, now);
            }
        }
        self.serve_waiting(services, now);
    }

    /// The oldest whose decision would be another one is decided, and so on.
    fn serve_waiting(&mut self, services: &Services, now: Instant) {
        while ranked(services).into_iter().any(|service| self.decide(service, services, now)) {}
    }

    /// Whether anything is different then.
    fn decide(&mut self, service: &Service, services: &Services, now: Instant) -> bool {
        let before = (self.held.clone(), self.pending.get(&service.key).copied());
        let target = self.target(service, services);
        self.pending.insert(service.key.clone(), target.is_none());
        if let Some(target) = target {
            for (address, _) in target.values() {
                self.cooling.remove(address);
            }
            self.held.insert(service.key.clone(), target);
            self.cool_what_was_left(&before.0, now);
        }
        before != (self.held.clone(), self.pending.get(&service.key).copied())
    }

    fn cool_what_was_left(&mut self, before: &BTreeMap<ServiceKey, Parts>, now: Instant) {
        for (address, _) in before.values().flat_map(BTreeMap::values) {
            let Some(pool) = self.pool_of(*address) else { continue };
            let until = now + pool.reuse_after;
            if self.users(*address).is_empty() && until > now && !self.is_reserved(*address) {
                self.cooling.insert(*address, until);
            }
        }
    }

    fn keep(&mut self, service: &Service, services: &Services, held: Parts) {
        self.held.remove(&service.key);
        let Ok(families) = service.families else { return };
        let mut kept = Parts::new();
        for (family, (address, pool)) in held {
            let owner = match self.pool_of(address) {
                Some(owner) => Some(owner.name.clone()),
                None => Some(pool).filter(|pool| self.config.left_out_pools.contains(pool)),
            };
            if let Some(owner) = owner
                && families.contain(family)
                && self.may_stand(service, address, services)
            {
                kept.insert(family, (address, owner));
            }
        }
        for (address, _) in kept.values() {
            self.cooling.remove(address);
        }
        self.held.insert(service.key.clone(), kept);
    }

    /// What `service` should hold; `None`: it cannot have what it asks for.
    fn target(&self, service: &Service, services: &Services) -> Option<Parts> {
        let families = service.families.ok()?;
        let kept = self.held.get(&service.key).cloned().unwrap_or_default();
        if service.deleting {
            return (!kept.is_empty()).then_some(kept);
        }
        let requested = service.requested.as_ref().ok()?;
        let named: Option<Vec<&Pool>> = match &service.requested_pool {
            Some(text) => {
                let names: Vec<&str> = text.split(',').map(str::trim).collect();
                let pools = names.iter().map(|name| self.config.pools.get(*name));
                Some(pools.collect::<Option<_>>().filter(|_| names.len() <= 2)?)
            }
            None => None,
        };
        if !requested.is_empty() {
            return self.requested(service, services, families, &kept, named.as_deref());
        }
        let in_error = |pool: &PoolName| self.config.left_out_pools.contains(pool);
        if named.is_none() && kept.values().any(|(_, pool)| in_error(pool)) {
            return None;
        }
        if named.iter().flatten().any(|pool| !admits(pool, service)) {
            return None;
        }
        let stays: Parts = kept
            .iter()
            .filter(|(_, (_, pool))| match &named {
                Some(named) => named.iter().any(|named| named.name == *pool),
                None => admits(&self.config.pools[pool], service),
            })
            .map(|(family, part)| (*family, part.clone()))
            .collect();
        let candidates = named.clone().unwrap_or_else(|| self.automatic(service));
        let target = self.complete(service, services, families, &stays, &candidates)?;
        let all_replaced = kept.keys().all(|family| target.contains_key(family));
        (named.is_some() || all_replaced).then_some(target)
    }

    fn complete(
        &self,
        service: &Service,
        services: &Services,
        families: Families,
        stays: &Parts,
        candidates: &[&Pool],
    ) -> Option<Parts> {
        let wanted: Vec<Family> =
            Family::ALL.into_iter().filter(|family| families.contain(*family)).collect();
        let missing: Vec<Family> =
            wanted.iter().copied().filter(|family| !stays.contains_key(family)).collect();
        let pick = |pools: &[&Pool], family, picked: &Parts| {
            pools.iter().find_map(|pool| {
                let address = self.pick(service, services, pool, family, stays, picked)?;
                Some((address, pool.name.clone()))
            })
        };
        if let [missing] = missing[..]
            && let Some((_, pool)) = stays.values().next()
        {
            let own = &self.config.pools[pool];
            let pools: Vec<&Pool> = [own].into_iter().chain(candidates.iter().copied()).collect();
            return match (pick(&pools, missing, &Parts::new()), families) {
                (Some(part), _) => {
                    let mut all = stays.clone();
                    all.insert(missing, part);
                    Some(all)
                }
                (None, Families::PreferBoth { .. }) => Some(stays.clone()),
                (None, Families::One(_) | Families::Both) => None,
            };
        }
        if missing.is_empty() {
            return Some(stays.clone());
        }
        let pair = |pools: &[&Pool], first: Family| {
            let one = Parts::from([(first, pick(pools, first, &Parts::new())?)]);
            let other = pick(pools, first.other(), &one)?;
            Some(one.into_iter().chain([(first.other(), other)]).collect())
        };
        let both = || {
            let one_pool = candidates.iter().find_map(|pool| pair(&[pool], Family::V4));
            let two_pools =
                || pair(candidates, Family::V4).or_else(|| pair(candidates, Family::V6));
            one_pool.or_else(two_pools)
        };
        let one =
            |family| pick(candidates, family, &Parts::new()).map(|part| [(family, part)].into());
        match families {
            Families::One(family) => one(family),
            Families::Both => both(),
            Families::PreferBoth { first } => {
                both().or_else(|| one(first)).or_else(|| one(first.other()))
            }
        }
    }

    fn requested(
        &self,
        service: &Service,
        services: &Services,
        families: Families,
        kept: &Parts,
        named: Option<&[&Pool]>,
    ) -> Option<Parts> {
        let requested = service.requested.as_ref().ok()?;
        let fits = match families {
            Families::One(family) => requested.iter().all(|a| Family::of(*a) == family),
            Families::Both => requested.len() == 2,
            Families::PreferBoth { .. } => true,
        };
        let mut target = Parts::new();
        for address in requested {
            let pool = self.pool_of(*address)?;
            let allowed = named.is_none_or(|named| named.iter().any(|n| n.name == pool.name))
                && admits(pool, service)
                && self.may_stand(service, *address, services);
            if !allowed {
                return None;
            }
            target.insert(Family::of(*address), (*address, pool.name.clone()));
        }
        let is_new = |(_, part): &(&Family, &(IpAddr, PoolName))| {
            !kept.values().any(|kept| kept == *part) && !self.has_neighbour(service, part.0)
        };
        let within = target
            .iter()
            .filter(is_new)
            .all(|(_, (_, pool))| self.room(service, &self.config.pools[pool], &target) >= 0);
        (fits && within).then_some(target)
    }

    /// The first address of `pool`, in its order, that `service` can have.
    fn pick(
        &self,
        service: &Service,
        services: &Services,
        pool: &Pool,
        family: Family,
        stays: &Parts,
        picked: &Parts,
    ) -> Option<IpAddr> {
        let with = |address: IpAddr| {
            let mut with: Parts = stays.clone();
            with.extend(picked.clone());
            with.insert(family, (address, pool.name.clone()));
            with
        };
        every_address(pool).into_iter().filter(|address| Family::of(*address) == family).find(
            |address| {
                let free = self.users(*address).is_empty()
                    && !self.cooling.contains_key(address)
                    && !self.is_reserved(*address);
                let shared = service.sharing.is_some() && !self.users(*address).is_empty();
                (free || shared)
                    && self.may_stand(service, *address, services)
                    && (self.room(service, pool, &with(*address)) >= 0
                        || self.has_neighbour(service, *address))
            },
        )
    }

    /// How many addresses of `pool` the namespace could have besides, if `service` had `with`.
    fn room(&self, service: &Service, pool: &Pool, with: &Parts) -> i64 {
        let Some(limit) = pool.max_addresses_per_namespace else { return i64::MAX };
        let others = self
            .held
            .iter()
            .filter(|(key, _)| key.namespace == service.key.namespace && **key != service.key);
        let held: BTreeSet<IpAddr> = others
            .flat_map(|(_, parts)| parts.values())
            .chain(with.values())
            .filter(|(_, owner)| *owner == pool.name)
            .map(|(address, _)| *address)
            .collect();
        i64::from(limit) - i64::try_from(held.len()).unwrap()
    }

    /// Whether somebody else of the namespace stands on `address`.
    fn has_neighbour(&self, service: &Service, address: IpAddr) -> bool {
        let mut others = self.users(address).into_iter().filter(|user| **user != service.key);
        others.any(|user| user.namespace == service.key.namespace)
    }

    fn automatic(&self, service: &Service) -> Vec<&Pool> {
        let mut pools: Vec<&Pool> = self
            .config
            .pools
            .values()
            .filter(|pool| pool.auto_assign && admits(pool, service))
            .collect();
        pools.sort_by_key(|pool| match &pool.allocation {
            Some(allocation) => (0, allocation.priority == 0, allocation.priority),
            None => (1, false, 0),
        });
        pools
    }

    fn may_stand(&self, service: &Service, address: IpAddr, services: &Services) -> bool {
        let scope = self.pool_of(address).map_or(SharingScope::Cluster, |pool| pool.sharing_scope);
        self.users(address).into_iter().filter(|user| **user != service.key).all(|user| {
            let other = &services[user];
            let ports = service.ports.iter().any(|port| other.ports.contains(port));
            let foreign =
                scope == SharingScope::Namespace && user.namespace != service.key.namespace;
            service.sharing.is_some() && service.sharing == other.sharing && !ports && !foreign
        })
    }

    fn users(&self, address: IpAddr) -> Vec<&ServiceKey> {
        let has = |parts: &Parts| parts.values().any(|(held, _)| *held == address);
        self.held.iter().filter(|(_, parts)| has(parts)).map(|(key, _)| key).collect()
    }

    fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.config.pools.values().find(|pool| pool.contains(address))
    }

    /// Reserved, and its pool has others of the family.
    fn is_reserved(&self, address: IpAddr) -> bool {
        let reserved = |address: &IpAddr| {
            let reserved = &self.config.reserved;
            reserved.nodes.contains_key(address)
                || reserved.service_ranges.iter().any(|range| range.contains(address))
        };
        let others = || {
            self.pool_of(address).is_some_and(|pool| {
                let mut all = every_address(pool).into_iter();
                all.any(|other| Family::of(other) == Family::of(address) && !reserved(&other))
            })
        };
        reserved(&address) && others()
    }
}

fn admits(pool: &Pool, service: &Service) -> bool {
    pool.admits(&service.key.namespace, &service.labels.unpack())
}

fn ranked(services: &Services) -> Vec<&Service> {
    let mut ranked: Vec<&Service> =
        services.values().filter(|service| service.role == Role::Ours).collect();
    ranked.sort_by_key(|service| service.rank());
    ranked
}

/// The first address of each family in the status.
fn shown_by(service: &Service) -> Parts {
    let mut shown = Parts::new();
    for address in &service.seen.addresses {
        let text = service.seen.pool.clone().unwrap_or_default();
        let (v4, v6) = text.split_once(',').unwrap_or((&text, &text));
        let family = Family::of(*address);
        let pool = if family == Family::V4 { v4 } else { v6 };
        shown.entry(family).or_insert_with(|| (*address, pool.into()));
    }
    shown
}
