//! What is written to Services, and what follows from how it ended: which addresses change hands,
//! and in which order they may.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use super::{
    Action, Controller, WriteResult,
    writes::{Trouble, Turn, Write},
};
use crate::{
    service::{Role, SeenStatus, ServiceKey},
    status::{self, Regarding},
};

impl Controller {
    pub(super) fn write(&mut self, key: ServiceKey, actions: &mut Vec<Action>) {
        let patch = self.services.get(&key).and_then(|service| {
            Some((service, status::service_patch(service, self.plan.decision(&key))?))
        });
        // It may also be gone since a write of it failed.
        let Some((service, patch)) = patch else {
            self.writes.settled(&key);
            return;
        };
        if patch.result.addresses.iter().any(|address| self.is_left_by_other(*address, &key)) {
            self.writes.block(key);
            return;
        }
        let write = Write {
            resource_version: service.resource_version.clone(),
            before: service.seen.clone(),
            result: patch.result,
            stale: false,
        };
        self.writes.sent(key.clone(), write);
        actions.push(Action::PatchService { key, body: patch.body });
    }

    /// True while another Service, which is to leave `address`, still shows it (or will when its
    /// write lands): were the controller to die now, its successor would see two holders.
    /// Of two that wait for each other the later one to ask goes ahead.
    fn is_left_by_other(&self, address: IpAddr, key: &ServiceKey) -> bool {
        let in_flight = self
            .writes
            .in_flight()
            .filter(|(_, write)| write.result.addresses.contains(&address))
            .map(|(other, _)| other);
        self.shown.get(&address).into_iter().flatten().chain(in_flight).any(|other| {
            let holds =
                self.plan.assignment(other).is_some_and(|held| held.addresses().contains(&address));
            other != key && !holds && !self.writes.is_blocked(other)
        })
    }

    pub(super) fn write_done(
        &mut self,
        key: &ServiceKey,
        result: WriteResult,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(write) = self.writes.ended(key) else { return };
        if write.stale {
            // How it ended will be seen.
            if self.decides() {
                self.writes.enqueue(key.clone(), Turn::Fresh);
            }
            return;
        }
        let version = self.services.get(key).map(|service| service.resource_version.clone());
        // When a newer object has come in the meantime, it tells more than the answer does.
        let current = version.as_ref() == Some(&write.resource_version);
        match result {
            WriteResult::Written { resource_version } => {
                self.writes.answered();
                self.writes.settled(key);
                self.tell_written(key, &write, actions);
                if current && let Some(mut service) = self.unstore(key) {
                    service.seen = write.result;
                    service.resource_version = resource_version;
                    self.store(service);
                }
                self.writes.enqueue(key.clone(), Turn::Fresh);
            }
            WriteResult::Conflict | WriteResult::Gone => {
                self.writes.answered();
                if current {
                    self.writes.wait_for_newer(key.clone(), write.resource_version);
                } else {
                    self.adopt(key, &write.before, now, actions);
                    self.writes.enqueue(key.clone(), Turn::Fresh);
                }
            }
            WriteResult::Failed => self.writes.failed(key, Trouble::Here, now),
            WriteResult::Unavailable { retry_after } => {
                self.writes.failed(key, Trouble::Everywhere { retry_after }, now);
            }
        }
    }

    fn tell_written(&mut self, key: &ServiceKey, write: &Write, actions: &mut Vec<Action>) {
        let Some(service) = self.services.get(key) else { return };
        let lost = self.lost.remove(key);
        let notes = self.plan.decision(key).map_or(&[][..], |decision| &decision.notes);
        let notices =
            status::written_notices(service, &write.before, &write.result, lost.as_ref(), notes);
        actions.extend(
            notices.into_iter().map(|notice| Action::PublishEvent {
                regarding: Regarding::service(service),
                notice,
            }),
        );
    }

    /// Where a status shows addresses that the plan means for somebody else and that nobody else
    /// was sent, the status is right: it was written by the leader before us, and nothing that a
    /// Service shows may change hands because the leader did. `before` is what it showed until
    /// now: once it shows what the plan says, the plan is right.
    pub(super) fn adopt(
        &mut self,
        key: &ServiceKey,
        before: &SeenStatus,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(service) = self.services.get(key).filter(|service| service.role == Role::Ours)
        else {
            return;
        };
        let shown = &service.seen.addresses;
        let planned = self.plan.assignment(key).map_or(&[][..], |held| held.addresses());
        if shown.is_empty()
            || shown == planned
            || planned.iter().any(|address| before.addresses.contains(address))
            || self.writes.is_in_flight(key)
        {
            return;
        }
        let allocator = self.plan.allocator();
        let displaced: BTreeSet<ServiceKey> = shown
            .iter()
            .flat_map(|address| allocator.users_of(*address).map(move |holder| (address, holder)))
            .filter(|(address, holder)| *holder != key && self.is_unsent(holder, address))
            .map(|(_, holder)| holder.clone())
            .collect();
        self.plan.forget(key);
        for holder in &displaced {
            self.plan.forget(holder);
        }
        for dirty in [BTreeSet::from([key.clone()]), displaced] {
            let changed = self.plan.revise(&self.services, &dirty, now);
            self.replanned(changed, now, actions);
        }
    }

    /// Whether nobody can know that `key` is to have `address`: its status does not show it, and
    /// no write is under way.
    fn is_unsent(&self, key: &ServiceKey, address: &IpAddr) -> bool {
        let showing = self.shown.get(address);
        !showing.is_some_and(|showing| showing.contains(key)) && !self.writes.is_in_flight(key)
    }
}
