//! What people are told: one status a Service and node, and Events, each when it changes.
//!
//! Each node tells of the addresses that it answers for. Of an address that nobody answers for one
//! speaker tells: the first that lives of its candidates, else the first of all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use config::NodeName;
use ownership::{AddressState, Candidates, Stage};

use super::{Action, Planner};
use crate::{
    plan::Refusal,
    status::{
        AddressStatus, BgpStatus, Foreign, Layer2Status, Note, NoteKind, ServiceStatus, Subject,
        conflict,
    },
    view::{Cluster, DRAIN_ANNOTATION, Drain, ServiceKey, Shared},
};

/// An address that nobody answers for is spoken of after so long: at a start and at a take-over
/// that is nothing to tell.
const GRACE: Duration = Duration::from_secs(3);

/// What was told, and what may have to be.
#[derive(Debug, Default)]
pub(super) struct Telling {
    /// What the wire knows. Of most addresses it is the same.
    states: BTreeMap<IpAddr, Arc<AddressState>>,
    known: Shared<AddressState>,
    /// How many of them this node answers for.
    answered: usize,
    live: BTreeSet<NodeName>,
    interfaces: BTreeSet<String>,
    statuses: BTreeMap<ServiceKey, Arc<ServiceStatus>>,
    /// Services whose status may differ from what was last told.
    untold: BTreeSet<ServiceKey>,
    /// When the addresses of a Service have had no answer for [`GRACE`]; it is told then.
    unanswered: BTreeMap<ServiceKey, Instant>,
    by_due: BTreeSet<(Instant, ServiceKey)>,
    /// Addresses whose interfaces are missing, as was told.
    failed: BTreeSet<IpAddr>,
    /// What is to be said with the next statuses.
    notes: Vec<Note>,
    drain: Draining,
}

/// How far the drain of this node is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Draining {
    #[default]
    No,
    Begun,
    Told,
}

impl Telling {
    pub fn look_at(&mut self, key: ServiceKey) {
        self.untold.insert(key);
    }

    pub fn due(&self) -> Option<Instant> {
        self.by_due.first().map(|(due, _)| *due)
    }

    /// The speaker that tells of an address that nobody answers for: it has these candidates, if
    /// any.
    fn is_teller(&self, me: &NodeName, candidates: Option<&Candidates>) -> bool {
        let lives = |node: &&NodeName| *node == me || self.live.contains(*node);
        let first = candidates.and_then(|candidates| candidates.nodes.iter().find(lives));
        let any = || self.live.first().is_none_or(|first| me < first);
        first.map_or_else(any, |first| first == me)
    }

    fn wait(&mut self, key: &ServiceKey, until: Option<Instant>) {
        let before = match until {
            Some(until) => self.unanswered.insert(key.clone(), until),
            None => self.unanswered.remove(key),
        };
        if before == until {
            return;
        }
        if let Some(before) = before {
            self.by_due.remove(&(before, key.clone()));
        }
        if let Some(until) = until {
            self.by_due.insert((until, key.clone()));
        }
    }
}

impl Planner {
    /// Takes in what the wire knows of addresses.
    pub(super) fn learn(&mut self, states: BTreeMap<IpAddr, Option<AddressState>>) -> bool {
        let me = &self.settings.me;
        let telling = &mut self.telling;
        for (address, state) in states {
            let foreign = |state: Option<&AddressState>| state.and_then(|s| conflict(me, s));
            let before = foreign(telling.states.get(&address).map(|state| &**state));
            let now = foreign(state.as_ref());
            let answers = state.as_ref().is_some_and(|state| state.stage.answers());
            let asked = self.by_address.get(&address);
            let keys = asked.map(|asked| &*asked.services).unwrap_or_default();
            // Where another node answers now it is for that one to say what it hears.
            let elsewhere = state.as_ref().and_then(|state| state.owner.as_ref());
            let elsewhere = elsewhere.is_some_and(|owner| owner != me);
            if Foreign::is_news(before.as_ref(), now.as_ref()) && !(now.is_none() && elsewhere) {
                for key in keys {
                    let about = subject(&self.cluster, key);
                    telling.notes.push(Note::conflict(&about, address, now.as_ref(), answers));
                }
            }
            if answers {
                telling.failed.remove(&address);
            }
            telling.untold.extend(keys.iter().cloned());
            let before = match state {
                Some(state) => {
                    let state = telling.known.one(Arc::new(state));
                    telling.states.insert(address, state)
                }
                None => telling.states.remove(&address),
            };
            let answered = before.is_some_and(|before| before.stage.answers());
            telling.answered += usize::from(answers);
            telling.answered -= usize::from(answered);
        }
        !telling.untold.is_empty() || telling.drain == Draining::Begun
    }

    pub(super) fn learn_live(&mut self, live: BTreeSet<NodeName>) -> bool {
        let telling = &mut self.telling;
        if telling.live == live {
            return false;
        }
        telling.live = live;
        // Whoever told of what nobody answers for may be another now.
        telling.untold.extend(telling.unanswered.keys().cloned());
        let refused = self.plans.iter().filter(|(_, plan)| plan.layer2.is_err());
        telling.untold.extend(refused.map(|(key, _)| key.clone()));
        !telling.untold.is_empty()
    }

    pub(super) fn learn_interfaces(&mut self, names: BTreeSet<String>) -> bool {
        let telling = &mut self.telling;
        if telling.interfaces == names {
            return false;
        }
        telling.interfaces = names;
        telling.untold.extend(telling.unanswered.keys().cloned());
        !telling.untold.is_empty()
    }

    /// The annotation or a taint of this node has changed.
    pub(super) fn drain_changed(&mut self) {
        let me = &self.settings.me;
        let drained = self.context().is_drained(me);
        let asked = self.cluster.nodes.get(me).map(|node| &node.drain);
        if let Some(Drain::Unknown(value)) = asked {
            let text = format!(
                "node {me:?} is not drained: its annotation {DRAIN_ANNOTATION} is {value:?}; set \
                 it to \"true\", or remove it"
            );
            let (about, kind) = (Subject::Node(me.clone()), NoteKind::DrainUnknown);
            self.telling.notes.push(Note { about, kind, text });
        }
        self.telling.drain = match (drained, &self.telling.drain) {
            (false, _) => Draining::No,
            (true, Draining::Told) => Draining::Told,
            (true, Draining::No | Draining::Begun) => Draining::Begun,
        };
    }

    /// Says what differs from what was said last.
    pub(super) fn tell(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some((due, key)) = self.telling.by_due.first().cloned()
            && due <= now
        {
            // It stays among the unanswered, with its time in the past.
            self.telling.by_due.pop_first();
            self.telling.untold.insert(key);
        }
        let mut notes = std::mem::take(&mut self.telling.notes);
        for key in std::mem::take(&mut self.telling.untold) {
            let status = self.status_of(&key, now, &mut notes);
            let before = self.telling.statuses.get(&key).cloned().unwrap_or_default();
            if status == *before {
                continue;
            }
            notes.extend(Note::begun(&self.settings.me, &self.subject(&key), &before, &status));
            let status = Arc::new(status);
            if *status == ServiceStatus::default() {
                self.telling.statuses.remove(&key);
            } else {
                self.telling.statuses.insert(key.clone(), Arc::clone(&status));
            }
            actions.push(Action::ServiceStatus { service: key, status });
        }
        let is_gone = self.telling.answered == 0 && !self.bgp.announce();
        if self.telling.drain == Draining::Begun && is_gone {
            self.telling.drain = Draining::Told;
            let me = &self.settings.me;
            let text = format!("node {me:?} is drained: it answers for no address any more");
            let (about, kind) = (Subject::Node(me.clone()), NoteKind::Drained);
            notes.push(Note { about, kind, text });
        }
        actions.extend(notes.into_iter().map(Action::Note));
    }

    pub(super) fn subject(&self, key: &ServiceKey) -> Subject {
        subject(&self.cluster, key)
    }

    fn status_of(
        &mut self,
        key: &ServiceKey,
        now: Instant,
        notes: &mut Vec<Note>,
    ) -> ServiceStatus {
        let me = &self.settings.me;
        let Some(plan) = self.plans.get(key) else {
            self.telling.wait(key, None);
            return ServiceStatus::default();
        };
        let mut addresses = Vec::new();
        let mut interfaces = None;
        let mut unanswered = Vec::new();
        for (address, candidates) in plan.candidates() {
            let state = self.telling.states.get(&address);
            if let Some(told) = state.and_then(|state| AddressStatus::of(address, me, state)) {
                if told.answers() && interfaces.is_none() {
                    interfaces = Some(candidates.interfaces.get(me).cloned().unwrap_or_default());
                }
                addresses.push(told);
            } else if state.is_none_or(|state| state.stage == Stage::Idle && state.owner.is_none())
            {
                unanswered.push((address, Arc::clone(candidates)));
            }
        }
        let refused = match &plan.layer2 {
            Ok(_) => None,
            Err(refusal) => Some(refusal.reason()).filter(|_| self.tells_refusal(key, refusal)),
        };
        let service = self.cluster.services.get(key);
        let all = service.map(|service| &*service.addresses).unwrap_or_default();
        if let Some(reason) = refused {
            addresses.extend(all.iter().map(|one| AddressStatus::unanswered(*one, reason)));
        }
        let bgp = plan.routes().filter(|_| self.bgp.announce()).map(|plan| BgpStatus {
            peers: plan
                .peers
                .iter()
                .map(|(peer, routes)| {
                    (peer.clone(), routes.iter().map(|route| route.prefix).collect())
                })
                .collect(),
            addresses: all.iter().copied().filter(|address| self.is_for_bgp(*address)).collect(),
        });

        let since = self.telling.unanswered.get(key).copied();
        let until = (!unanswered.is_empty()).then(|| since.unwrap_or(now + GRACE));
        self.telling.wait(key, until);
        if until.is_some_and(|until| until <= now) {
            for (address, candidates) in unanswered {
                if self.telling.is_teller(&self.settings.me, Some(&candidates)) {
                    addresses.push(AddressStatus::unanswered(address, NOT_OWNER));
                    notes.extend(self.interfaces_missing(key, address, &candidates));
                }
            }
        }
        addresses.sort_by_key(|told| told.address);
        let layer2 = (!addresses.is_empty()).then(|| Layer2Status {
            interfaces: interfaces.unwrap_or_default(),
            addresses: addresses.into(),
        });
        ServiceStatus { layer2, bgp }
    }

    /// Whether it is for this node to tell why a Service is not announced. A pool that is for BGP
    /// alone is nothing to tell.
    fn tells_refusal(&self, key: &ServiceKey, refusal: &Refusal) -> bool {
        let by_bgp = || {
            let service = self.cluster.services.get(key);
            let mut addresses = service.iter().flat_map(|service| &*service.addresses);
            addresses.any(|address| self.is_for_bgp(*address))
        };
        match refusal {
            Refusal::OtherClass | Refusal::NoAddress => false,
            Refusal::NoAdvertisement { .. } if by_bgp() => false,
            Refusal::AddressInNoPool(_)
            | Refusal::NoAdvertisement { .. }
            | Refusal::SharedAddressWithServiceSelectors
            | Refusal::NoEndpoint
            | Refusal::NoLocalEndpoint(_)
            | Refusal::NodeNotSelected(_)
            | Refusal::NodeNetworkUnavailable(_)
            | Refusal::NodeExcluded(_)
            | Refusal::NoNode(_)
            | Refusal::NoCandidate(_)
            | Refusal::NotOwner(_)
            | Refusal::LocalPrefConflict(_)
            | Refusal::NoPeer(_)
            | Refusal::PeerNotNamed(_)
            | Refusal::PeerWithoutFamily { .. }
            | Refusal::Damped
            | Refusal::NodeDrained(_) => self.telling.is_teller(&self.settings.me, None),
        }
    }

    fn is_for_bgp(&self, address: IpAddr) -> bool {
        let pool = self.config.pools.values().find(|pool| pool.contains(address));
        pool.is_some_and(|pool| !pool.bgp_advertisements.is_empty())
    }

    /// MetalLB's words for an advertisement that names interfaces which are not here.
    fn interfaces_missing(
        &mut self,
        key: &ServiceKey,
        address: IpAddr,
        candidates: &Candidates,
    ) -> Option<Note> {
        let me = &self.settings.me;
        let named = candidates.interfaces.get(me)?;
        if named.iter().any(|name| self.telling.interfaces.contains(name)) {
            self.telling.failed.remove(&address);
            return None;
        }
        let news = self.telling.failed.insert(address);
        news.then(|| Note {
            about: self.subject(key),
            kind: NoteKind::AnnounceFailed,
            text: format!(
                "the interfaces specified by LB IP {:?} doesn't exist in assigned node {:?} with \
                 protocol \"layer2\"",
                address.to_string(),
                self.settings.me
            ),
        })
    }
}

fn subject(cluster: &Cluster, key: &ServiceKey) -> Subject {
    let uid = cluster.services.get(key).map(|service| service.uid.to_string());
    Subject::Service { key: key.clone(), uid: uid.unwrap_or_default().into() }
}

/// MetalLB's word for a node that is not to answer; here no node is.
const NOT_OWNER: &str = "notOwner";
