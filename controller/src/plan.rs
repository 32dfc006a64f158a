//! Config + Services → who has which addresses, and why not.
//!
//! [`plan`] is the whole decision, made from nothing but its arguments: first every Service that
//! holds addresses keeps what is still allowed, the oldest first, then all are served in the same
//! order. [`Plan::revise`] is the same decision for the Services that changed and for those that
//! wait for what was freed. Held addresses stay where they are, so history matters: what holds for
//! any history is that the plan is a fixed point, i.e. [`plan`] over the statuses that it led to
//! changes nothing, and that Services added in order to an empty cluster get what [`plan`] gives
//! them.

mod decide;
mod refusal;
mod waiting;

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Instant,
};

use config::Config;

pub use self::refusal::{Change, Left, Note, Refusal};
use self::{
    decide::{decide, held_now, keep},
    waiting::{Waiter, Waiting, Wake},
};
use crate::{
    allocator::{Allocator, Assignment, Id, Topic},
    service::{Role, Service, ServiceKey},
};

/// What the plan says about one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Assigned(Assignment),
    /// The request cannot be met now; the Service goes on with what it holds, if anything.
    Pending {
        refusal: Refusal,
        kept: Option<Box<Assignment>>,
    },
    NotOurs,
}

impl Outcome {
    /// What the Service holds.
    pub fn assignment(&self) -> Option<&Assignment> {
        match self {
            Self::Assigned(assignment) => Some(assignment),
            Self::Pending { kept, .. } => kept.as_deref(),
            Self::NotOurs => None,
        }
    }
}

/// An outcome with its prehistory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Outcome,
    /// Why an address that the Service held was taken away, if one was.
    pub lost: Option<Box<Refusal>>,
    /// What else the Service should be told.
    pub notes: Vec<Note>,
}

/// Who has what. Lives on and is revised as Services change.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    seed: u64,
    allocator: Allocator,
    /// By number of the Service.
    decisions: Vec<Option<Decision>>,
    waiting: Waiting,
    /// How many decisions were made: what an event costs.
    #[cfg(test)]
    decided: usize,
}

/// Decides about all Services; the addresses in their status count as held.
pub fn plan<S: Borrow<Service>>(
    config: &Config,
    services: &BTreeMap<ServiceKey, S>,
    now: Instant,
) -> Plan {
    Plan::default().renew(config, services, now)
}

impl Plan {
    /// No pools and no Services. `seed` decides what pools with `allocationOrder: Random` give:
    /// the same seed, the same plan.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    pub fn decision(&self, key: &ServiceKey) -> Option<&Decision> {
        self.decisions.get(self.allocator.id(key)?.index())?.as_ref()
    }

    /// In the order of the keys.
    pub fn decisions(&self) -> impl Iterator<Item = (&ServiceKey, &Decision)> {
        self.allocator
            .registered()
            .filter_map(|(key, id)| Some((key, self.decisions.get(id.index())?.as_ref()?)))
    }

    /// What a Service holds.
    pub fn assignment(&self, key: &ServiceKey) -> Option<&Assignment> {
        self.decision(key)?.outcome.assignment()
    }

    /// The Services that do not have what they ask for, and why.
    pub fn pending(&self) -> impl Iterator<Item = (&ServiceKey, &Refusal)> {
        self.decisions().filter_map(|(key, decision)| match &decision.outcome {
            Outcome::Pending { refusal, .. } => Some((key, refusal)),
            Outcome::Assigned(_) | Outcome::NotOurs => None,
        })
    }

    /// Every held address with a Service that uses it, in the order of the addresses; a shared
    /// address comes once for each user.
    pub fn held(&self) -> impl Iterator<Item = (IpAddr, &ServiceKey)> {
        self.allocator.held()
    }

    pub fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// As at the start: the next [`Self::renew`] takes for held what statuses show, and nothing
    /// else. What this plan left alone is left alone.
    #[must_use]
    pub fn restarted(&self) -> Self {
        let allocator = self.allocator.only_cooling();
        Self { seed: self.seed, allocator, ..Self::default() }
    }

    /// Of a plan that is [`Self::restarted`]: a Service gave up `address`, which is to be left alone
    /// until then.
    pub fn note_cooling(&mut self, address: IpAddr, until: Instant, now: Instant) {
        self.allocator.note_cooling(address, until, now);
    }

    /// Drops what was decided about a Service and is written nowhere: the next decision starts
    /// from its status.
    pub fn forget(&mut self, key: &ServiceKey) {
        let Some(id) = self.allocator.id(key) else { return };
        self.allocator.undo(id);
        self.allocator.forget(id);
        self.waiting.remove(id);
        self.decisions[id.index()] = None;
    }

    /// When to call [`Self::handle_timeout`] if nothing happens before: a cool-down ends then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.allocator.next_thaw()
    }

    /// Serves those that wait for addresses whose cool-down has ended by `now`. Returns whose
    /// decision changed.
    pub fn handle_timeout<S: Borrow<Service>>(
        &mut self,
        services: &BTreeMap<ServiceKey, S>,
        now: Instant,
    ) -> BTreeSet<ServiceKey> {
        self.revise(services, &BTreeSet::new(), now)
    }

    /// The plan under another configuration: as [`plan`], but what this plan gave out counts as
    /// held even where no status shows it yet, and what it left alone is left alone.
    pub fn renew<S: Borrow<Service>>(
        &self,
        config: &Config,
        services: &BTreeMap<ServiceKey, S>,
        now: Instant,
    ) -> Self {
        let mut new = Self {
            seed: self.seed,
            allocator: Allocator::new(config, self.seed),
            ..Self::default()
        };
        let ours = || {
            services.values().map(S::borrow).filter(|service: &&Service| service.role == Role::Ours)
        };
        new.allocator.register_all(ours().map(|service| &service.key));
        let ids = new.allocator.registered().map(|(_, id)| id);
        let mut ranked: Vec<(Id, &Service)> = ids.zip(ours()).collect();
        // The sort is stable and the Services are in the order of their keys.
        ranked.sort_by_key(|(_, service)| service.created);

        let mut losses = BTreeMap::new();
        for (id, service) in &ranked {
            let old = self.allocator.id(&service.key).map(|old| (&self.allocator, old));
            let held = held_now(service, old, &new.allocator);
            if let Some(loss) = keep(service, *id, &held, &mut new.allocator, now) {
                losses.insert(*id, loss);
            }
        }
        new.allocator.cool_down_after(&self.allocator, now);
        new.allocator.take_opened();
        new.decisions.resize(ranked.len(), None);
        for (id, service) in ranked {
            new.decide(service, id, losses.remove(&id), now);
        }
        new.serve_waiting(services, now, &mut BTreeSet::new());
        new
    }

    /// Decides anew about `dirty` (the oldest first; those missing from `services` are gone) and
    /// about those that wait for what was freed. Returns whose decision changed.
    pub fn revise<S: Borrow<Service>>(
        &mut self,
        services: &BTreeMap<ServiceKey, S>,
        dirty: &BTreeSet<ServiceKey>,
        now: Instant,
    ) -> BTreeSet<ServiceKey> {
        self.allocator.thaw(now);
        let mut changed = BTreeSet::new();
        let mut ranked = Vec::new();
        for key in dirty {
            match services.get(key).map(S::borrow) {
                Some(service) if service.role == Role::Ours => ranked.push(service),
                Some(_) | None => {
                    let Some(id) = self.allocator.id(key) else { continue };
                    self.allocator.release(id, now);
                    self.allocator.forget(id);
                    self.waiting.remove(id);
                    if self.decisions.get_mut(id.index()).and_then(Option::take).is_some() {
                        changed.insert(key.clone());
                    }
                }
            }
        }
        ranked.sort_by_key(|service| service.created);
        for service in ranked {
            let id = self.allocator.register(&service.key);
            if self.decisions.len() <= id.index() {
                self.decisions.resize(id.index() + 1, None);
            }
            self.decide_again(service, id, now, &mut changed);
        }
        self.serve_waiting(services, now, &mut changed);
        changed
    }

    /// Ends: a Service leaves an address only for the one that it asks for, and then stays there.
    fn serve_waiting<S: Borrow<Service>>(
        &mut self,
        services: &BTreeMap<ServiceKey, S>,
        now: Instant,
        changed: &mut BTreeSet<ServiceKey>,
    ) {
        let mut wake = Wake::default();
        loop {
            for opened in self.allocator.take_opened() {
                wake.open(&opened, &self.waiting);
            }
            let is_open = |topic: &Topic| self.allocator.is_open(topic);
            let Some(waiter) = wake.next(&self.waiting, is_open) else { return };
            if let Some(service) = services.get(&waiter.rank.key).map(S::borrow) {
                self.decide_again(service, waiter.id, now, changed);
            }
        }
    }

    fn decide_again(
        &mut self,
        service: &Service,
        id: Id,
        now: Instant,
        changed: &mut BTreeSet<ServiceKey>,
    ) {
        let held = held_now(service, Some((&self.allocator, id)), &self.allocator);
        let lost = keep(service, id, &held, &mut self.allocator, now);
        if self.decide(service, id, lost, now) {
            changed.insert(service.key.clone());
        }
    }

    /// Whether the decision is another one than before.
    fn decide(&mut self, service: &Service, id: Id, lost: Option<Refusal>, now: Instant) -> bool {
        #[cfg(test)]
        {
            self.decided += 1;
        }
        let (decision, topics) = decide(service, id, lost, &mut self.allocator, now);
        if topics.is_empty() {
            self.waiting.remove(id);
        } else {
            self.waiting.file(Waiter::new(service, id), topics);
        }
        let place = &mut self.decisions[id.index()];
        let changed = place.as_ref() != Some(&decision);
        *place = Some(decision);
        changed
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
