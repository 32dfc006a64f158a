//! Config + Services → who has which addresses, and why not.
//!
//! [`plan`] is the whole decision, made from nothing but its arguments: first every Service that
//! holds addresses keeps what is still allowed, the oldest first, then all are served in the same
//! order. [`Plan::revise`] is the same decision for the Services that changed and for those that
//! wait for what was freed. Held addresses stay where they are, so history matters: what holds for
//! any history is that the plan is a fixed point, i.e. [`plan`] over the statuses that it led to
//! changes nothing, and that Services added in order to an empty cluster get what [`plan`] gives
//! them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use config::{Config, PoolName};

use crate::{
    allocator::{Allocator, Assignment, Conflict},
    service::{Families, Family, FamilyError, Rank, RequestError, Role, Service, ServiceKey},
};

/// Why a Service does not have what it asks for, or why it lost what it had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no IPAddressPool")]
    NoPools,
    #[error(transparent)]
    Families(#[from] FamilyError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the requested addresses {} do not fit: the Service is {families}", list(.requested))]
    RequestedFamilies { requested: Vec<IpAddr>, families: Families },
    #[error("address {address} is in no IPAddressPool")]
    InNoPool { address: IpAddr },
    #[error("address {address} is not in IPAddressPool {pool:?} like the other one")]
    TwoPools { address: IpAddr, pool: PoolName },
    #[error(
        "the requested address {address} is in IPAddressPool {pool:?}, but the annotation \
         metallb.io/address-pool asks for {requested:?}"
    )]
    InOtherPool { address: IpAddr, pool: PoolName, requested: String },
    #[error("the annotation metallb.io/address-pool asks for {pool:?}, which does not exist")]
    UnknownPool { pool: String },
    #[error(
        "IPAddressPool {pool:?} is not for this Service: its spec.serviceAllocation names other \
         namespaces or labels"
    )]
    NotAdmitted { pool: PoolName },
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error("IPAddressPool {pool:?} has no {families} address left")]
    PoolExhausted { pool: PoolName, families: Families },
    #[error("no IPAddressPool serves this Service automatically (autoAssign, serviceAllocation)")]
    NoPoolServes,
    #[error("no available IPs: no IPAddressPool for this Service has a {families} address left")]
    Exhausted { families: Families },
    #[error("address {address} does not fit: the Service is {families}")]
    HeldFamily { address: IpAddr, families: Families },
    #[error("the status holds a second {family} address, {address}")]
    HeldTwice { address: IpAddr, family: Family },
    #[error("the Service is being deleted")]
    BeingDeleted,
}

/// What the plan says about one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Assigned(Assignment),
    /// The request cannot be met now; the Service goes on with what it holds, if anything.
    Pending {
        refusal: Refusal,
        kept: Option<Assignment>,
    },
    NotOurs,
}

impl Outcome {
    /// What the Service holds.
    pub fn assignment(&self) -> Option<&Assignment> {
        match self {
            Self::Assigned(assignment) => Some(assignment),
            Self::Pending { kept, .. } => kept.as_ref(),
            Self::NotOurs => None,
        }
    }
}

/// An outcome with its prehistory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Outcome,
    /// Why an address that the Service held was taken away, if one was.
    pub lost: Option<Refusal>,
    rank: Rank,
}

/// Who has what. Lives on and is revised as Services change.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    allocator: Allocator,
    decisions: BTreeMap<ServiceKey, Decision>,
    /// Services that could use what is freed.
    waiting: BTreeSet<Rank>,
}

/// Decides about all Services; the addresses in their status count as held.
pub fn plan(config: &Config, services: &BTreeMap<ServiceKey, Service>) -> Plan {
    Plan::default().renew(config, services)
}

impl Plan {
    pub fn decision(&self, key: &ServiceKey) -> Option<&Decision> {
        self.decisions.get(key)
    }

    pub fn decisions(&self) -> impl Iterator<Item = (&ServiceKey, &Decision)> {
        self.decisions.iter()
    }

    pub fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// The plan under another configuration: as [`plan`], but what this plan gave out counts as
    /// held even where no status shows it yet.
    pub fn renew(&self, config: &Config, services: &BTreeMap<ServiceKey, Service>) -> Self {
        let mut ranked: Vec<(Rank, &Service)> = services
            .values()
            .filter(|service| service.role == Role::Ours)
            .map(|service| (service.rank(), service))
            .collect();
        ranked.sort_by(|(a, _), (b, _)| a.cmp(b));

        let mut new = Self { allocator: Allocator::new(config), ..Self::default() };
        let mut losses = BTreeMap::new();
        for (_, service) in &ranked {
            let held = self
                .allocator
                .assignment(&service.key)
                .map_or(service.seen.addresses.as_slice(), |held| &held.addresses);
            if let Some(loss) = keep(service, held, &mut new.allocator) {
                losses.insert(&service.key, loss);
            }
        }
        new.allocator.take_freed();
        for (rank, service) in ranked {
            let mut decision = decide(service, rank, &mut new.allocator);
            if let Some(loss) = losses.remove(&service.key) {
                decision.lost = Some(loss);
            }
            new.record(decision, service);
        }
        new.serve_waiting(services, &mut BTreeSet::new());
        new
    }

    /// Decides anew about `dirty` (the oldest first; those missing from `services` are gone) and
    /// about those that wait for what was freed. Returns whose decision changed.
    pub fn revise(
        &mut self,
        services: &BTreeMap<ServiceKey, Service>,
        dirty: &BTreeSet<ServiceKey>,
    ) -> BTreeSet<ServiceKey> {
        let mut changed = BTreeSet::new();
        let mut ranked = BTreeSet::new();
        for key in dirty {
            match services.get(key) {
                Some(service) if service.role == Role::Ours => {
                    ranked.insert(service.rank());
                }
                Some(_) | None => {
                    self.allocator.release(key);
                    if let Some(decision) = self.decisions.remove(key) {
                        self.waiting.remove(&decision.rank);
                        changed.insert(key.clone());
                    }
                }
            }
        }
        for rank in ranked {
            self.decide_again(services, rank, &mut changed);
        }
        self.serve_waiting(services, &mut changed);
        changed
    }

    /// Ends: a Service leaves an address only for the one that it asks for, and then stays there.
    fn serve_waiting(
        &mut self,
        services: &BTreeMap<ServiceKey, Service>,
        changed: &mut BTreeSet<ServiceKey>,
    ) {
        while self.allocator.take_freed() {
            for rank in self.waiting.clone() {
                self.decide_again(services, rank, changed);
            }
        }
    }

    fn decide_again(
        &mut self,
        services: &BTreeMap<ServiceKey, Service>,
        rank: Rank,
        changed: &mut BTreeSet<ServiceKey>,
    ) {
        let Some(service) = services.get(&rank.key) else { return };
        let decision = decide(service, rank, &mut self.allocator);
        if self.decisions.get(&service.key) != Some(&decision) {
            changed.insert(service.key.clone());
        }
        self.record(decision, service);
    }

    fn record(&mut self, decision: Decision, service: &Service) {
        if let Some(old) = self.decisions.get(&service.key) {
            self.waiting.remove(&old.rank);
        }
        if could_use_more(&decision.outcome, service) {
            self.waiting.insert(decision.rank.clone());
        }
        self.decisions.insert(service.key.clone(), decision);
    }
}

fn could_use_more(outcome: &Outcome, service: &Service) -> bool {
    match outcome {
        Outcome::Assigned(held) => {
            held.addresses.len() < 2
                && matches!(service.families, Ok(Families::PreferBoth { .. }))
                && service.requested.as_ref().is_ok_and(Vec::is_empty)
        }
        Outcome::Pending { .. } => true,
        Outcome::NotOurs => false,
    }
}

/// Decides about one Service that is ours: it keeps what is still allowed, then gets what it lacks.
fn decide(service: &Service, rank: Rank, allocator: &mut Allocator) -> Decision {
    let held = allocator
        .assignment(&service.key)
        .map_or_else(|| service.seen.addresses.clone(), |held| held.addresses.clone());
    let lost = keep(service, &held, allocator);
    let kept = allocator.assignment(&service.key).cloned();
    let outcome = match target(service, kept.as_ref(), allocator) {
        Ok(assignment) => {
            allocator.assign(service.tenant(), assignment.clone());
            Outcome::Assigned(assignment)
        }
        Err(refusal) => Outcome::Pending { refusal, kept },
    };
    Decision { outcome, lost, rank }
}

/// Claims what is still allowed of `held`, the first address of each family; the first reason to
/// drop one comes back.
fn keep(service: &Service, held: &[IpAddr], allocator: &mut Allocator) -> Option<Refusal> {
    let Ok(families) = service.families else {
        allocator.release(&service.key);
        return None;
    };
    let mut kept: Option<Assignment> = None;
    let mut lost = None;
    for &address in held {
        match may_keep(service, families, kept.as_ref(), address, allocator) {
            Ok(pool) => kept
                .get_or_insert_with(|| Assignment { pool, addresses: Vec::new() })
                .addresses
                .push(address),
            Err(refusal) => {
                lost.get_or_insert(refusal);
            }
        }
    }
    match kept {
        Some(mut assignment) => {
            assignment.addresses.sort();
            allocator.assign(service.tenant(), assignment);
        }
        None => {
            allocator.release(&service.key);
        }
    }
    lost
}

fn may_keep(
    service: &Service,
    families: Families,
    kept: Option<&Assignment>,
    address: IpAddr,
    allocator: &Allocator,
) -> Result<PoolName, Refusal> {
    let family = Family::of(address);
    if !families.contain(family) {
        return Err(Refusal::HeldFamily { address, families });
    }
    if kept.is_some_and(|kept| kept.addresses.iter().any(|other| Family::of(*other) == family)) {
        return Err(Refusal::HeldTwice { address, family });
    }
    let pool = allocator.pool_of(address).ok_or(Refusal::InNoPool { address })?;
    if let Some(kept) = kept.filter(|kept| kept.pool != pool.name) {
        return Err(Refusal::TwoPools { address, pool: kept.pool.clone() });
    }
    if !pool.admits(&service.key.namespace, &service.labels) {
        return Err(Refusal::NotAdmitted { pool: pool.name.clone() });
    }
    allocator.check(service.tenant(), address)?;
    Ok(pool.name.clone())
}

/// What the Service should hold, given that it holds `kept`.
fn target(
    service: &Service,
    kept: Option<&Assignment>,
    allocator: &Allocator,
) -> Result<Assignment, Refusal> {
    let families = service.families?;
    if service.deleting {
        return kept.cloned().ok_or(Refusal::BeingDeleted);
    }
    let requested = service.requested.as_ref().map_err(Clone::clone)?;
    if allocator.counters().next().is_none() {
        return Err(Refusal::NoPools);
    }
    let tenant = service.tenant();
    if let Some(requested_pool) = &service.requested_pool {
        let pool = allocator
            .pool(requested_pool)
            .ok_or_else(|| Refusal::UnknownPool { pool: requested_pool.clone() })?;
        if !requested.is_empty() {
            return requested_addresses(service, families, requested, allocator);
        }
        if !pool.admits(&service.key.namespace, &service.labels) {
            return Err(Refusal::NotAdmitted { pool: pool.name.clone() });
        }
        let held_there = kept.filter(|kept| kept.pool == pool.name);
        held_there
            .and_then(|kept| completed(service, families, kept, allocator))
            .or_else(|| allocator.find_in(tenant, requested_pool, families))
            .ok_or_else(|| Refusal::PoolExhausted { pool: pool.name.clone(), families })
    } else if !requested.is_empty() {
        requested_addresses(service, families, requested, allocator)
    } else {
        kept.and_then(|kept| completed(service, families, kept, allocator))
            .or_else(|| allocator.find(tenant, families))
            .ok_or_else(|| {
                if allocator.serves(tenant) {
                    Refusal::Exhausted { families }
                } else {
                    Refusal::NoPoolServes
                }
            })
    }
}

fn requested_addresses(
    service: &Service,
    families: Families,
    requested: &[IpAddr],
    allocator: &Allocator,
) -> Result<Assignment, Refusal> {
    let fits = match families {
        Families::One(family) => requested.iter().all(|address| Family::of(*address) == family),
        Families::Both => requested.len() == 2,
        Families::PreferBoth { .. } => true,
    };
    if !fits {
        return Err(Refusal::RequestedFamilies { requested: requested.to_vec(), families });
    }
    let mut pool = None;
    for &address in requested {
        let owner = allocator.pool_of(address).ok_or(Refusal::InNoPool { address })?;
        if let Some(name) = service.requested_pool.as_ref().filter(|name| **name != *owner.name) {
            let (pool, requested) = (owner.name.clone(), name.clone());
            return Err(Refusal::InOtherPool { address, pool, requested });
        }
        let first = pool.get_or_insert_with(|| owner.name.clone());
        if *first != owner.name {
            return Err(Refusal::TwoPools { address, pool: first.clone() });
        }
        if !owner.admits(&service.key.namespace, &service.labels) {
            return Err(Refusal::NotAdmitted { pool: owner.name.clone() });
        }
        allocator.check(service.tenant(), address)?;
    }
    let pool = pool.ok_or(Refusal::NoPools)?;
    Ok(Assignment { pool, addresses: requested.to_vec() })
}

/// `kept` with the family that it lacks, out of the same pool. `None` when the Service must look
/// for a whole new assignment.
fn completed(
    service: &Service,
    families: Families,
    kept: &Assignment,
    allocator: &Allocator,
) -> Option<Assignment> {
    let [only] = kept.addresses.as_slice() else { return Some(kept.clone()) };
    let missing = match families {
        Families::One(_) => return Some(kept.clone()),
        Families::Both | Families::PreferBoth { .. } => Families::One(Family::of(*only).other()),
    };
    match allocator.find_in(service.tenant(), &kept.pool, missing) {
        Some(found) => {
            let mut all = kept.clone();
            all.addresses.extend(found.addresses);
            all.addresses.sort();
            Some(all)
        }
        None => match families {
            Families::PreferBoth { .. } => Some(kept.clone()),
            Families::One(_) | Families::Both => None,
        },
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
