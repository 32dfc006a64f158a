//! The core: what is known of the cluster, what is decided, and which writes are on their way.
//!
//! A value with three verbs, [`Controller::handle`], [`Controller::handle_timeout`] and
//! [`Controller::poll_timeout`]; one exists at run time. It knows no API server: the shell (or a
//! simulator) brings events and performs actions, and reports every write with `WriteDone` (or
//! `StatusDone`, `ConfigurationStateDone`) exactly once.
//!
//! Nothing is decided before [`Event::Synced`] and the first [`Event::ResourcesChanged`] (an
//! address may be held by a Service that has not been listed yet), and nothing by a standby, which
//! only keeps what it is told: a replica decides from [`Event::Leading`] to [`Event::StandBy`].

mod hands;
mod state;
mod statuses;
mod writes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use config::{
    Candidate, Config, ConfigError, Existing, ObjectRef, Operation, Pool, Resources, admit,
};
use crds::ConfigurationStateStatus;
use serde_json::Value;

pub use self::writes::MAX_WRITES;
use self::{
    state::StateWrite,
    statuses::Statuses,
    writes::{Turn, Writes},
};
use crate::{
    plan::{Decision, Plan, Refusal},
    service::{Rank, Role, Service, ServiceKey},
    status::{self, Notice, NoticeKind, Regarding, StateSummary},
};

/// What a controller is told at its start.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where the custom resources live.
    pub namespace: String,
    /// Seed of the jitter between retries, and of pools that give out addresses at random.
    pub seed: u64,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A Service was added or changed, or a list contained it. After a relist the shell sends
    /// this for every object and `ServiceDeleted` for those that are gone.
    ServiceApplied(Box<Service>),
    ServiceDeleted(ServiceKey),
    /// Everything that the configuration is made from; whole.
    ResourcesChanged(Arc<Resources>),
    /// A custom resource of which nothing but its status changed.
    ObjectStatusChanged(Candidate),
    /// The status of the ConfigurationState [`status::CONFIGURATION_STATE`]; `None`: there is no
    /// such object. It is not written before this was told for the first time.
    ConfigurationStateSeen(Option<Box<ConfigurationStateStatus>>),
    /// The first list of every kind has been delivered. Comes once.
    Synced,
    /// From now on this replica leads, and every Service that the API server had when it won has
    /// been delivered.
    Leading,
    /// From now on it does not.
    StandBy,
    /// How `Action::PatchService` ended.
    WriteDone {
        key: ServiceKey,
        result: WriteResult,
    },
    /// How `Action::PatchStatus` ended.
    StatusDone {
        object: ObjectRef,
        result: WriteResult,
    },
    /// How `Action::PatchConfigurationState` ended.
    ConfigurationStateDone {
        result: WriteResult,
    },
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteResult {
    /// Stored; the version that the answer names.
    Written { resource_version: String },
    /// The object is newer than what the write rested on; the newer one is on its way.
    Conflict,
    /// The object is gone, was made anew, or is no LoadBalancer any more.
    Gone,
    /// The API server refuses this write, or fails over it.
    Failed,
    /// The API server is away or has too much to do, silence included: the write may have been
    /// stored or not. The time before which it does not want to be asked again.
    Unavailable { retry_after: Option<Duration> },
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Merge patch of `services/status`. The guards (uid, resourceVersion) are in the body; the
    /// shell stamps the time of a condition that has none.
    PatchService { key: ServiceKey, body: Value },
    /// Merge patch of the status of a custom resource, likewise.
    PatchStatus { object: ObjectRef, body: Value },
    /// `status` of the ConfigurationState [`status::CONFIGURATION_STATE`], made if absent.
    PatchConfigurationState { body: Value },
    /// To be logged and published; may be dropped when there are too many, is never retried.
    PublishEvent { regarding: Regarding, notice: Notice },
}

/// The controller without its surroundings.
#[derive(Debug)]
pub struct Controller {
    namespace: String,
    synced: bool,
    leading: bool,
    resources: Arc<Resources>,
    config: Option<Config>,
    errors: Vec<ConfigError>,
    summary: StateSummary,
    /// The errors that an Event was published for, or that the object shows.
    told_errors: BTreeSet<String>,
    /// Ours, and those of other types that still show what they had from us.
    /// Boxed: the nodes of the map are half empty.
    services: BTreeMap<ServiceKey, Box<Service>>,
    /// Which Services show an address in their status, whoever it belongs to by now.
    shown: BTreeMap<IpAddr, Vec<ServiceKey>>,
    plan: Plan,
    /// Why a Service lost an address; told when the loss is written.
    lost: BTreeMap<ServiceKey, Refusal>,
    /// The refusal that each Service was last told.
    told: BTreeMap<ServiceKey, Notice>,
    writes: Writes,
    statuses: Statuses,
    state: StateWrite,
}

impl Controller {
    pub fn new(settings: Settings) -> Self {
        Self {
            namespace: settings.namespace,
            synced: false,
            leading: false,
            resources: Arc::default(),
            config: None,
            errors: Vec::new(),
            summary: StateSummary::of(&[]),
            told_errors: BTreeSet::new(),
            services: BTreeMap::new(),
            shown: BTreeMap::new(),
            plan: Plan::new(settings.seed),
            lost: BTreeMap::new(),
            told: BTreeMap::new(),
            writes: Writes::new(settings.seed),
            statuses: Statuses::default(),
            state: StateWrite::default(),
        }
    }

    /// Takes in what happened; the actions are to be performed in their order.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::ServiceApplied(service) => self.service_applied(service, now, &mut actions),
            Event::ServiceDeleted(key) => self.service_deleted(&key, now, &mut actions),
            Event::ResourcesChanged(resources) => {
                self.resources_changed(resources, now, &mut actions);
            }
            Event::ObjectStatusChanged(object) => {
                self.statuses.status_seen(&object);
                self.statuses.changed(now);
            }
            Event::ConfigurationStateSeen(status) => self.state.seen(status),
            Event::Synced => {
                self.synced = true;
                self.begin(now, &mut actions);
            }
            Event::Leading => {
                self.leading = true;
                self.begin(now, &mut actions);
            }
            Event::StandBy => self.stand_by(),
            Event::WriteDone { key, result } => self.write_done(&key, result, now, &mut actions),
            Event::StatusDone { object, result } => self.statuses.done(&object, &result, now),
            Event::ConfigurationStateDone { result } => self.state.done(&result, now),
        }
        self.pump(now, &mut actions);
        actions
    }

    /// Does what is due at `now`; nothing when nothing is.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.decides() && self.plan.poll_timeout().is_some_and(|at| at <= now) {
            let changed = self.plan.handle_timeout(&self.services, now);
            self.replanned(changed, now, &mut actions);
        }
        self.pump(now, &mut actions);
        actions
    }

    /// When to call [`Self::handle_timeout`] if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.decides() {
            return None;
        }
        let timeouts = [
            self.writes.poll_timeout(),
            self.statuses.poll_timeout(),
            self.state.poll_timeout(),
            self.plan.poll_timeout(),
        ];
        timeouts.into_iter().flatten().min()
    }

    /// Whether everything is listed and a configuration was read: as leader it decides, as standby
    /// it could at once.
    pub fn is_ready(&self) -> bool {
        self.synced && self.config.is_some()
    }

    pub fn is_leading(&self) -> bool {
        self.leading
    }

    /// The configuration in force, once there is one.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// What is wrong with the objects that the configuration was made from.
    pub fn config_errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// Whether `operation` may be done to `candidate`, judged by what is known here; see
    /// [`config::admit`].
    ///
    /// # Errors
    /// Every rule that the candidate breaks. Otherwise, what its author should know all the same.
    pub fn admit(
        &self,
        operation: Operation,
        candidate: &Candidate,
    ) -> Result<Vec<String>, Vec<ConfigError>> {
        let existing =
            Existing { resources: &self.resources, held: &self.shown, namespace: &self.namespace };
        admit(operation, candidate, &existing)
    }

    pub fn decision(&self, key: &ServiceKey) -> Option<&Decision> {
        self.plan.decision(key)
    }

    /// What the leader decided; empty on a standby.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether [`Self::services`] has it.
    pub fn knows(&self, key: &ServiceKey) -> bool {
        self.services.contains_key(key)
    }

    /// The Services that are known here: ours, and those that still show what they had from us.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// Services with a write that is on its way or waits for its turn.
    pub fn unwritten(&self) -> usize {
        self.writes.len()
    }

    /// Whether statuses are waiting for the API server, rather than for a failure to pass.
    pub fn has_backlog(&self) -> bool {
        self.writes.has_backlog()
    }

    fn decides(&self) -> bool {
        self.is_ready() && self.leading
    }

    /// Decides for the first time, if it may: what statuses show is held, and nothing else.
    fn begin(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.decides() {
            self.replan(now, actions);
            self.tell_errors(actions);
        }
    }

    fn stand_by(&mut self) {
        self.leading = false;
        self.plan = self.plan.restarted();
        self.lost.clear();
        self.told.clear();
        self.told_errors.clear();
        self.writes.stop();
        self.statuses.stop();
        self.state.stop();
    }

    fn service_applied(&mut self, service: Box<Service>, now: Instant, actions: &mut Vec<Action>) {
        let relevant = match service.role {
            Role::Ours => true,
            Role::NotLoadBalancer => status::service_patch(&service, None).is_some(),
            Role::OtherClass => false,
        };
        if !relevant {
            self.service_deleted(&service.key, now, actions);
            return;
        }
        let key = service.key.clone();
        self.writes.newer_seen(&key, &service.resource_version);
        let old = self.store(service);
        if !self.decides() {
            if let Some(old) = old {
                self.note_cooling(&old.seen.addresses, now);
            }
            return;
        }
        self.writes.enqueue(key.clone(), Turn::Fresh);
        let before = old.as_ref().map(|old| old.seen.clone()).unwrap_or_default();
        if !old.is_some_and(|old| self.is_echo(*old, &key)) {
            self.adopt(&key, &before, now, actions);
            self.revise(&key, now, actions);
        }
    }

    /// Whether `old` differs from the Service that took its place only in what we wrote to it:
    /// then there is nothing to decide.
    fn is_echo(&self, old: Service, key: &ServiceKey) -> bool {
        let Some(new) = self.services.get(key) else { return false };
        let wanted = self.plan.assignment(key).map_or(&[][..], |held| held.addresses());
        let old = Service {
            resource_version: new.resource_version.clone(),
            seen: if new.seen.addresses == wanted { new.seen.clone() } else { old.seen },
            ..old
        };
        old == **new
    }

    fn service_deleted(&mut self, key: &ServiceKey, now: Instant, actions: &mut Vec<Action>) {
        let Some(old) = self.unstore(key) else { return };
        self.writes.forget(key);
        self.lost.remove(key);
        self.told.remove(key);
        if self.decides() {
            self.revise(key, now, actions);
        } else {
            self.note_cooling(&old.seen.addresses, now);
        }
    }

    /// A standby sees that a Service does not show `addresses` any more: should it come to lead,
    /// they are left alone as long as they would have been.
    fn note_cooling(&mut self, addresses: &[IpAddr], now: Instant) {
        let Some(config) = &self.config else { return };
        let pools = || config.pools.values().filter(|pool| !pool.reuse_after.is_zero());
        for address in addresses.iter().filter(|address| !self.shown.contains_key(address)) {
            if let Some(pool) = pools().find(|pool| pool.contains(*address)) {
                self.plan.note_cooling(*address, now + pool.reuse_after, now);
            }
        }
    }

    fn resources_changed(
        &mut self,
        resources: Arc<Resources>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let (config, errors) = Config::parse(&resources, self.config.as_ref());
        self.summary = StateSummary::of(&errors);
        self.errors = errors;
        self.statuses.seen(&resources, &self.errors);
        self.resources = resources;
        let same = self.config.as_ref().is_some_and(|old| same_pools(old, &config));
        self.config = Some(config);
        if self.decides() {
            if !same {
                self.replan(now, actions);
            }
            self.statuses.changed(now);
            self.tell_errors(actions);
        }
    }

    /// Publishes the errors that are new, unless the object shows them: then somebody did.
    fn tell_errors(&mut self, actions: &mut Vec<Action>) {
        let mut told = BTreeSet::new();
        for error in &self.errors {
            let text = error.to_string();
            if !self.told_errors.contains(&text) && !self.statuses.tells(error) {
                actions.push(self.config_error(error, text.clone()));
            }
            told.insert(text);
        }
        self.told_errors = told;
    }

    fn config_error(&self, error: &ConfigError, note: String) -> Action {
        let object = error.object();
        Action::PublishEvent {
            regarding: Regarding {
                api_version: if object.kind == "BGPPeer" {
                    "metallb.io/v1beta2"
                } else {
                    "metallb.io/v1beta1"
                },
                kind: object.kind,
                namespace: self.namespace.clone(),
                uid: self.statuses.uid(&object),
                name: object.name,
            },
            notice: Notice { kind: NoticeKind::Warning, reason: "ConfigurationError", note },
        }
    }

    /// The whole plan anew.
    fn replan(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(config) = &self.config else { return };
        self.plan = self.plan.renew(config, &self.services, now);
        let mut ranks: Vec<Rank> = self.services.values().map(|service| service.rank()).collect();
        ranks.sort();
        for Rank { key, .. } in ranks {
            self.decided(&key, actions);
            self.writes.enqueue(key, Turn::Backlog);
        }
        self.statuses.changed(now);
    }

    /// The plan for one Service that changed, and for those that waited for what it leaves.
    fn revise(&mut self, key: &ServiceKey, now: Instant, actions: &mut Vec<Action>) {
        let changed = self.plan.revise(&self.services, &BTreeSet::from([key.clone()]), now);
        self.replanned(changed, now, actions);
    }

    fn replanned(
        &mut self,
        changed: BTreeSet<ServiceKey>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        for key in changed {
            self.decided(&key, actions);
            self.writes.enqueue(key, Turn::Backlog);
            self.statuses.changed(now);
        }
    }

    fn decided(&mut self, key: &ServiceKey, actions: &mut Vec<Action>) {
        let Some(service) = self.services.get(key) else { return };
        let Some(decision) = self.plan.decision(key) else { return };
        if let Some(lost) = &decision.lost {
            self.lost.insert(key.clone(), (**lost).clone());
        }
        match status::refusal_notice(key, &decision.outcome) {
            Some(notice) => {
                let shown = status::is_told(service, &decision.outcome);
                if self.told.insert(key.clone(), notice.clone()).as_ref() != Some(&notice) && !shown
                {
                    let regarding = Regarding::service(service);
                    actions.push(Action::PublishEvent { regarding, notice });
                }
            }
            None => {
                self.told.remove(key);
            }
        }
    }

    fn pump(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.decides() {
            return;
        }
        self.writes.wake(now);
        while let Some(key) = self.writes.next(now) {
            self.write(key, actions);
        }
        self.statuses.pump(self.plan.allocator().counters(), now, actions);
        self.state.pump(&self.summary, now, actions);
    }

    /// In the place of the one that is returned.
    fn store(&mut self, service: Box<Service>) -> Option<Box<Service>> {
        let old = self.unstore(&service.key);
        for address in &service.seen.addresses {
            // Nearly always one: a set would take ten times the space.
            let showing = self.shown.entry(*address).or_insert_with(|| Vec::with_capacity(1));
            if !showing.contains(&service.key) {
                showing.push(service.key.clone());
            }
        }
        self.services.insert(service.key.clone(), service);
        old
    }

    fn unstore(&mut self, key: &ServiceKey) -> Option<Box<Service>> {
        let service = self.services.remove(key)?;
        for address in &service.seen.addresses {
            if let Some(keys) = self.shown.get_mut(address) {
                keys.retain(|other| other != key);
                if keys.is_empty() {
                    self.shown.remove(address);
                }
            }
        }
        self.writes.unblock();
        Some(service)
    }
}

/// Whether two configurations hand out the same addresses to the same Services; advertisements
/// and peers do not matter.
fn same_pools(a: &Config, b: &Config) -> bool {
    let same = |a: &Pool, b: &Pool| {
        a.ranges == b.ranges
            && a.auto_assign == b.auto_assign
            && a.avoid_buggy_ips == b.avoid_buggy_ips
            && a.allocation == b.allocation
            && a.order == b.order
            && a.reuse_after == b.reuse_after
            && a.sharing_scope == b.sharing_scope
            && a.max_addresses_per_namespace == b.max_addresses_per_namespace
    };
    a.reserved == b.reserved
        && a.left_out_pools == b.left_out_pools
        && a.pools.len() == b.pools.len()
        && a.pools.iter().zip(&b.pools).all(|((x, a), (y, b))| x == y && same(a, b))
}

#[cfg(test)]
mod tests;
