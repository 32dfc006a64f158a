//! The decision about one Service that is ours: it keeps what is still allowed, then gets what it
//! lacks.

use std::{net::IpAddr, time::Instant};

use super::{Decision, Outcome, Refusal};
use crate::{
    allocator::{Allocator, Id, Part, Parts, PoolId, Scope, Search, Topic},
    service::{Families, Family, Service},
};

/// An address that a Service had before the decision.
#[derive(Debug)]
pub struct Held {
    address: IpAddr,
    /// The pool in error that it is from, where no other owns it.
    in_error: Option<PoolId>,
}

/// What `from` says that a Service holds, or, where it knows of nothing, what the status shows; to
/// be held in `into`.
pub fn held_now(service: &Service, from: Option<(&Allocator, Id)>, into: &Allocator) -> Vec<Held> {
    let held = |address: IpAddr, pool: Option<&str>| {
        let known = || into.pool_id(pool?).filter(|pool| into.is_in_error(*pool));
        let in_error = if into.pool_of(address).is_some() { None } else { known() };
        Held { address, in_error }
    };
    if let Some((from, id)) = from {
        let parts = from.parts(id);
        if !parts.is_empty() {
            let held = |part: Part| held(part.address, Some(from.pool_name(part.pool)));
            return parts.iter().map(held).collect();
        }
    }
    let annotation = service.seen.pool.as_deref();
    let pools = annotation.map(|text| text.split_once(',').unwrap_or((text, text)));
    let pool_of = |address: IpAddr| {
        pools.map(|(first, second)| match Family::of(address) {
            Family::V4 => first,
            Family::V6 => second,
        })
    };
    let shown = service.seen.addresses.iter();
    shown.map(|address| held(*address, pool_of(*address))).collect()
}

/// Claims what is still allowed of `held`, the first address of each family; the first reason to
/// drop one comes back.
pub fn keep(
    service: &Service,
    id: Id,
    held: &[Held],
    allocator: &mut Allocator,
    now: Instant,
) -> Option<Refusal> {
    if held.is_empty() {
        return None;
    }
    let Ok(families) = service.families else {
        allocator.release(id, now);
        return None;
    };
    let mut kept = Parts::default();
    let mut lost = None;
    for held in held {
        match may_keep(service, id, families, kept, held, allocator) {
            Ok(part) => kept.set(part),
            Err(refusal) => {
                lost.get_or_insert(refusal);
            }
        }
    }
    allocator.assign(service.tenant(id), kept, now);
    lost
}

fn may_keep(
    service: &Service,
    id: Id,
    families: Families,
    kept: Parts,
    held: &Held,
    allocator: &Allocator,
) -> Result<Part, Refusal> {
    let address = held.address;
    let family = Family::of(address);
    if !families.contain(family) {
        return Err(Refusal::HeldFamily { address, families });
    }
    if kept[family].is_some() {
        return Err(Refusal::HeldTwice { address, family });
    }
    // What a pool in error gave out is kept until it can be said whether it still has it.
    let pool = allocator.pool_of(address).or(held.in_error).ok_or(Refusal::InNoPool { address })?;
    allocator.check(service.tenant(id), address)?;
    Ok(Part { address, pool })
}

/// Decides about a Service that has claimed what it keeps, and what it is to be filed under.
pub fn decide(
    service: &Service,
    id: Id,
    lost: Option<Refusal>,
    allocator: &mut Allocator,
    now: Instant,
) -> (Decision, Vec<Topic>) {
    let kept = allocator.parts(id);
    let (target, mut topics) = match target(service, id, kept, allocator) {
        Ok(parts) => (Ok(parts), Vec::new()),
        Err(Lack { refusal, topics }) => (Err(refusal), topics),
    };
    let mut lost = lost;
    if let Ok(parts) = target {
        let moved = kept.iter().find(|part| !parts.contains(part.address));
        if let Some(Part { pool, .. }) = moved
            && !allocator.admits(pool, service.tenant(id))
        {
            let pool = allocator.pool_name(pool).clone();
            lost.get_or_insert(Refusal::NotAdmitted { pool });
        }
        allocator.assign(service.tenant(id), parts, now);
        topics = more(service, id, parts, allocator);
    }
    let holds = allocator.parts(id);
    let assignment = allocator.assignment(holds);
    let outcome = match target {
        Ok(_) => Outcome::Assigned(assignment.expect("a target is never empty")),
        Err(refusal) => Outcome::Pending { refusal, kept: assignment.map(Box::new) },
    };
    let notes = allocator.notes(holds);
    (Decision { outcome, lost: lost.map(Box::new), notes }, topics)
}

/// Why there is nothing (more) for a Service, and what would help.
struct Lack {
    refusal: Refusal,
    topics: Vec<Topic>,
}

impl<R: Into<Refusal>> From<R> for Lack {
    fn from(refusal: R) -> Self {
        Self { refusal: refusal.into(), topics: Vec::new() }
    }
}

/// What the Service should hold, given that it holds `kept`; never nothing.
fn target(service: &Service, id: Id, kept: Parts, allocator: &Allocator) -> Result<Parts, Lack> {
    let families = service.families?;
    if service.deleting {
        return if kept.is_empty() { Err(Refusal::BeingDeleted.into()) } else { Ok(kept) };
    }
    let requested = service.requested.as_ref().map_err(Clone::clone)?;
    let named = named_pools(service, allocator)?;
    if !requested.is_empty() {
        return requested_addresses(service, id, families, kept, named.as_deref(), allocator);
    }
    if named.is_none()
        && let Some(part) = kept.iter().find(|part| allocator.is_in_error(part.pool))
    {
        return Err(in_error(part.pool, allocator).into());
    }
    if !allocator.has_pools() {
        return Err(Refusal::NoPools.into());
    }
    let tenant = service.tenant(id);
    let refused = named.iter().flatten().find(|pool| !allocator.admits(**pool, tenant));
    if let Some(pool) = refused {
        return Err(Refusal::NotAdmitted { pool: allocator.pool_name(*pool).clone() }.into());
    }
    let (stays, unwelcome) = match &named {
        Some(named) => (kept.iter().filter(|part| named.contains(&part.pool)).collect(), None),
        None => {
            let admitted = |part: &Part| allocator.admits(part.pool, tenant);
            let unwelcome = kept.iter().find(|part| !admitted(part));
            (kept.iter().filter(admitted).collect(), unwelcome)
        }
    };
    let scope = named.as_deref().map_or(Scope::Automatic, Scope::Named);
    let found = search(Search::new(allocator, tenant, scope, stays), families, stays);
    // It leaves an address that is not for it any more when there is another.
    match (unwelcome, found) {
        (None, found) => found,
        (Some(part), Ok(found)) if found[Family::of(part.address)].is_some() => Ok(found),
        (Some(part), found) => {
            let topics = match found {
                Ok(found) => Search::new(allocator, tenant, scope, found)
                    .topics(&[Family::of(part.address)], 1),
                Err(lack) => lack.topics,
            };
            let pool = allocator.pool_name(part.pool).clone();
            Err(Lack { refusal: Refusal::NotAdmitted { pool }, topics })
        }
    }
}

/// Completes what stays, or finds everything.
fn search(search: Search<'_>, families: Families, stays: Parts) -> Result<Parts, Lack> {
    let missing = match (stays.v4, stays.v6) {
        (None, None) => {
            return search.find(families).ok_or_else(|| {
                let (refusal, topics) = search.refusal(families);
                Lack { refusal, topics }
            });
        }
        (Some(_), Some(_)) => return Ok(stays),
        (Some(_), None) => Family::V6,
        (None, Some(_)) => Family::V4,
    };
    if !families.contain(missing) {
        return Ok(stays);
    }
    match (search.find_second(missing), families) {
        (Some(part), _) => Ok(stays.iter().chain([part]).collect()),
        (None, Families::PreferBoth { .. }) => Ok(stays),
        (None, Families::One(_) | Families::Both) => {
            let (refusal, topics) = search.refusal(Families::One(missing));
            Err(Lack { refusal, topics })
        }
    }
}

/// What a Service that is served waits for all the same: the other address that it would prefer to
/// have as well.
fn more(service: &Service, id: Id, parts: Parts, allocator: &Allocator) -> Vec<Topic> {
    let missing = match (parts.v4, parts.v6) {
        (Some(_), None) => Family::V6,
        (None, Some(_)) => Family::V4,
        (None, None) | (Some(_), Some(_)) => return Vec::new(),
    };
    let prefers = matches!(service.families, Ok(Families::PreferBoth { .. }));
    let asks_for_one = service.requested.as_ref().is_ok_and(|requested| !requested.is_empty());
    if !prefers || asks_for_one || service.deleting {
        return Vec::new();
    }
    let Ok(named) = named_pools(service, allocator) else { return Vec::new() };
    let scope = named.as_deref().map_or(Scope::Automatic, Scope::Named);
    Search::new(allocator, service.tenant(id), scope, parts).topics(&[missing], 1)
}

/// The pools that the annotation asks for: one, or one for each family.
fn named_pools(service: &Service, allocator: &Allocator) -> Result<Option<Vec<PoolId>>, Refusal> {
    let Some(text) = &service.requested_pool else { return Ok(None) };
    let mut pools = Vec::new();
    for name in text.split(',').map(str::trim) {
        if pools.len() == 2 {
            return Err(Refusal::TooManyPools);
        }
        match allocator.pool_id(name) {
            Some(pool) if allocator.is_in_error(pool) => return Err(in_error(pool, allocator)),
            Some(pool) => pools.push(pool),
            None if !allocator.has_pools() => return Err(Refusal::NoPools),
            None => {
                return Err(Refusal::UnknownPool { pool: crate::service::shortened(name).into() });
            }
        }
    }
    Ok(Some(pools))
}

fn requested_addresses(
    service: &Service,
    id: Id,
    families: Families,
    kept: Parts,
    named: Option<&[PoolId]>,
    allocator: &Allocator,
) -> Result<Parts, Lack> {
    let requested = service.requested.as_ref().map_err(Clone::clone)?;
    let fits = match families {
        Families::One(family) => requested.iter().all(|address| Family::of(*address) == family),
        Families::Both => requested.len() == 2,
        Families::PreferBoth { .. } => true,
    };
    if !fits {
        return Err(Refusal::RequestedFamilies { requested: requested.clone(), families }.into());
    }
    let tenant = service.tenant(id);
    let mut parts = Parts::default();
    for &address in requested {
        let Some(pool) = allocator.pool_of(address) else {
            let held = kept.iter().find(|part| part.address == address);
            return Err(match held {
                Some(part) => in_error(part.pool, allocator),
                None if !allocator.has_pools() => Refusal::NoPools,
                None => Refusal::InNoPool { address },
            }
            .into());
        };
        if named.is_some_and(|named| !named.contains(&pool)) {
            let pool = allocator.pool_name(pool).clone();
            let requested = service.requested_pool.as_deref().unwrap_or_default().into();
            return Err(Refusal::InOtherPool { address, pool, requested }.into());
        }
        if !allocator.admits(pool, tenant) {
            return Err(Refusal::NotAdmitted { pool: allocator.pool_name(pool).clone() }.into());
        }
        if let Err(conflict) = allocator.check(tenant, address) {
            return Err(Lack { refusal: conflict.into(), topics: vec![Topic::Address(address)] });
        }
        parts.set(Part { address, pool });
    }
    let stays: Parts = parts.iter().filter(|part| kept.contains(part.address)).collect();
    let new: Parts = parts.iter().filter(|part| !kept.contains(part.address)).collect();
    let search = Search::new(allocator, tenant, Scope::Named(&[]), stays);
    match search.over_quota(new) {
        Some((refusal, topic)) => Err(Lack { refusal, topics: vec![topic] }),
        None => Ok(parts),
    }
}

fn in_error(pool: PoolId, allocator: &Allocator) -> Refusal {
    Refusal::PoolInError { pool: allocator.pool_name(pool).clone() }
}
