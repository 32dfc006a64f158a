//! The core: what is known of the cluster, what is decided, and which writes are on their way.
//!
//! A value with three verbs, [`Controller::handle`], [`Controller::handle_timeout`] and
//! [`Controller::poll_timeout`]; one exists at run time. It knows no API server: the shell (or a
//! simulator) brings events and performs actions, and reports every write with `WriteDone` (or
//! `PoolStatusDone`, `ConfigurationStateDone`) exactly once.
//!
//! Nothing is decided before [`Event::Synced`] and the first [`Event::ResourcesChanged`]: an
//! address may be held by a Service that has not been listed yet.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use config::{Config, ConfigError, Pool, PoolName, Resources};
use kube::ResourceExt as _;
use serde_json::Value;

use crate::{
    allocator::Counters,
    plan::{Decision, Plan, Refusal},
    service::{Rank, Role, SeenStatus, Service, ServiceKey},
    status::{self, Notice, NoticeKind, Regarding},
};

/// Service writes in flight at once. More gain nothing against a real API server.
pub const MAX_WRITES: usize = 16;
/// Pool status writes in flight at once: they must not crowd out Services.
const MAX_POOL_WRITES: usize = 4;
/// A failed write is tried again after this, doubled up to the limit, plus up to half at random.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// After `MAX_WRITES` failures in a row there is one attempt each so long, whoever's turn it is.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Counters of pools are written so long after a change, to take its successors along, ...
const POOL_STATUS_DELAY: Duration = Duration::from_millis(100);
/// ... and not more often than this.
const POOL_STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What a controller is told at its start.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where the custom resources live.
    pub namespace: String,
    /// Seed of the jitter between retries.
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
    ResourcesChanged(Box<Resources>),
    /// The first list of every kind has been delivered. Comes once.
    Synced,
    /// How `Action::PatchService` ended.
    WriteDone {
        key: ServiceKey,
        result: WriteResult,
    },
    /// How `Action::PatchPoolStatus` ended.
    PoolStatusDone {
        pool: PoolName,
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
    /// Anything else, silence included: it may have been stored or not.
    Failed,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Merge patch of `services/status`. The guards (uid, resourceVersion) are in the body.
    PatchService { key: ServiceKey, body: Value },
    /// Merge patch of `ipaddresspools/status`.
    PatchPoolStatus { pool: PoolName, body: Value },
    /// `status` of the ConfigurationState [`status::CONFIGURATION_STATE`], made if absent.
    PatchConfigurationState { body: Value },
    /// To be logged and published; may be dropped when there are too many, is never retried.
    PublishEvent { regarding: Regarding, notice: Notice },
}

/// The controller without its surroundings.
#[derive(Debug)]
pub struct Controller {
    namespace: String,
    random: u64,
    synced: bool,
    config: Option<Config>,
    errors: Vec<ConfigError>,
    /// By kind and name: to point at the very object that an Event is about.
    uids: BTreeMap<(&'static str, String), String>,
    /// Ours, and those of other types that still show what they had from us.
    services: BTreeMap<ServiceKey, Service>,
    /// Which Services show an address in their status, whoever it belongs to by now.
    shown: BTreeMap<IpAddr, BTreeSet<ServiceKey>>,
    plan: Plan,
    /// Why a Service lost an address; told when the loss is written.
    lost: BTreeMap<ServiceKey, Refusal>,
    /// The refusal that each Service was last told.
    told: BTreeMap<ServiceKey, Notice>,
    writes: Writes,
    pools: PoolStatuses,
    state: StateWrite,
}

impl Controller {
    pub fn new(settings: Settings) -> Self {
        Self {
            namespace: settings.namespace,
            random: settings.seed,
            synced: false,
            config: None,
            errors: Vec::new(),
            uids: BTreeMap::new(),
            services: BTreeMap::new(),
            shown: BTreeMap::new(),
            plan: Plan::default(),
            lost: BTreeMap::new(),
            told: BTreeMap::new(),
            writes: Writes::default(),
            pools: PoolStatuses::default(),
            state: StateWrite::default(),
        }
    }

    /// Takes in what happened; the actions are to be performed in their order.
    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::ServiceApplied(service) => self.service_applied(*service, now, &mut actions),
            Event::ServiceDeleted(key) => self.service_deleted(&key, now, &mut actions),
            Event::ResourcesChanged(resources) => {
                self.resources_changed(&resources, now, &mut actions);
            }
            Event::Synced => {
                self.synced = true;
                self.replan(now, &mut actions);
            }
            Event::WriteDone { key, result } => self.write_done(&key, result, now, &mut actions),
            Event::PoolStatusDone { pool, result } => self.pools.done(&pool, &result, now),
            Event::ConfigurationStateDone { result } => self.state.done(&result, now),
        }
        self.pump(now, &mut actions);
        actions
    }

    /// Does what is due at `now`; nothing when nothing is.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.pump(now, &mut actions);
        actions
    }

    /// When to call [`Self::handle_timeout`] if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.writes.poll_timeout(), self.pools.poll_timeout(), self.state.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether decisions are made: everything is listed and a configuration was read.
    pub fn is_ready(&self) -> bool {
        self.synced && self.config.is_some()
    }

    /// The configuration in force, once there is one.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// What is wrong with the objects that the configuration was made from.
    pub fn config_errors(&self) -> &[ConfigError] {
        &self.errors
    }

    pub fn decision(&self, key: &ServiceKey) -> Option<&Decision> {
        self.plan.decision(key)
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The Services that are known here: ours, and those that still show what they had from us.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.keys()
    }

    /// Services with a write that is on its way or waits for its turn.
    pub fn unwritten(&self) -> usize {
        self.writes.in_flight.len() + self.writes.queued.len() + self.writes.retries.len()
    }

    fn service_applied(&mut self, service: Service, now: Instant, actions: &mut Vec<Action>) {
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
        self.store(service);
        if self.is_ready() {
            self.writes.enqueue(key.clone(), Turn::Fresh);
            self.revise(&key, now, actions);
        }
    }

    fn service_deleted(&mut self, key: &ServiceKey, now: Instant, actions: &mut Vec<Action>) {
        if self.unstore(key).is_none() {
            return;
        }
        self.writes.forget(key);
        self.lost.remove(key);
        self.told.remove(key);
        if self.is_ready() {
            self.revise(key, now, actions);
        }
    }

    fn resources_changed(
        &mut self,
        resources: &Resources,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.uids = uids(resources);
        let (config, errors) = Config::parse(resources, self.config.as_ref());
        for error in errors.iter().filter(|error| !self.errors.contains(error)) {
            actions.push(self.config_error(error));
        }
        self.errors = errors;
        self.pools.seen(resources);
        let same = self.config.as_ref().is_some_and(|old| same_pools(old, &config));
        self.config = Some(config);
        if same {
            self.pools.changed(now);
        } else {
            self.replan(now, actions);
        }
    }

    fn config_error(&self, error: &ConfigError) -> Action {
        let object = error.object();
        let uid = self.uids.get(&(object.kind, object.name.clone())).cloned();
        Action::PublishEvent {
            regarding: Regarding {
                api_version: if object.kind == "BGPPeer" {
                    "metallb.io/v1beta2"
                } else {
                    "metallb.io/v1beta1"
                },
                kind: object.kind,
                namespace: self.namespace.clone(),
                name: object.name.clone(),
                uid: uid.unwrap_or_default(),
            },
            notice: Notice {
                kind: NoticeKind::Warning,
                reason: "ConfigurationError",
                note: error.to_string(),
            },
        }
    }

    /// The whole plan anew.
    fn replan(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let Some(config) = self.config.as_ref().filter(|_| self.synced) else { return };
        self.plan = self.plan.renew(config, &self.services);
        let mut ranks: Vec<Rank> = self.services.values().map(Service::rank).collect();
        ranks.sort();
        for Rank { key, .. } in ranks {
            self.decided(&key, actions);
            self.writes.enqueue(key, Turn::Backlog);
        }
        self.pools.changed(now);
    }

    /// The plan for one Service that changed, and for those that waited for what it leaves.
    fn revise(&mut self, key: &ServiceKey, now: Instant, actions: &mut Vec<Action>) {
        for key in self.plan.revise(&self.services, &BTreeSet::from([key.clone()])) {
            self.decided(&key, actions);
            self.writes.enqueue(key, Turn::Backlog);
            self.pools.changed(now);
        }
    }

    fn decided(&mut self, key: &ServiceKey, actions: &mut Vec<Action>) {
        let Some(service) = self.services.get(key) else { return };
        let Some(decision) = self.plan.decision(key) else { return };
        if let Some(lost) = &decision.lost {
            self.lost.insert(key.clone(), lost.clone());
        }
        match status::refusal_notice(key, &decision.outcome) {
            Some(notice) => {
                if self.told.get(key) != Some(&notice) {
                    self.told.insert(key.clone(), notice.clone());
                    let regarding = Regarding::service(service);
                    actions.push(Action::PublishEvent { regarding, notice });
                }
            }
            None => {
                self.told.remove(key);
            }
        }
    }

    fn write_done(
        &mut self,
        key: &ServiceKey,
        result: WriteResult,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(write) = self.writes.in_flight.remove(key) else { return };
        self.writes.unblock();
        let version = self.services.get(key).map(|service| service.resource_version.clone());
        // When a newer object has come in the meantime, it tells more than the answer does.
        let current = version.as_ref() == Some(&write.resource_version);
        match result {
            WriteResult::Written { resource_version } => {
                self.writes.succeeded(key);
                if let Some(service) = self.services.get(key) {
                    let lost = self.lost.remove(key);
                    let before = &write.before;
                    let notices =
                        status::written_notices(service, before, &write.result, lost.as_ref());
                    actions.extend(notices.into_iter().map(|notice| Action::PublishEvent {
                        regarding: Regarding::service(service),
                        notice,
                    }));
                }
                if current && let Some(mut service) = self.unstore(key) {
                    service.seen = write.result;
                    service.resource_version = resource_version;
                    self.store(service);
                }
                self.writes.enqueue(key.clone(), Turn::Fresh);
            }
            WriteResult::Conflict | WriteResult::Gone if current => {
                self.writes.outdated.insert(key.clone(), write.resource_version);
            }
            WriteResult::Conflict | WriteResult::Gone => {
                self.writes.enqueue(key.clone(), Turn::Fresh);
            }
            WriteResult::Failed => {
                let jitter = self.next_random();
                self.writes.failed(key, jitter, now);
            }
        }
    }

    fn pump(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.is_ready() {
            return;
        }
        self.writes.wake(now);
        while self.writes.may_send(now)
            && let Some(key) = self.writes.next()
        {
            self.write(key, actions);
        }
        self.pools.pump(self.plan.allocator().counters(), now, actions);
        self.state.pump(&self.errors, now, actions);
    }

    fn write(&mut self, key: ServiceKey, actions: &mut Vec<Action>) {
        let Some(service) = self.services.get(&key) else { return };
        let Some(patch) = status::service_patch(service, self.plan.decision(&key)) else {
            self.writes.succeeded(&key);
            return;
        };
        if patch.result.addresses.iter().any(|address| self.is_left_by_other(*address, &key)) {
            self.writes.blocked.insert(key);
            return;
        }
        let write = Write {
            resource_version: service.resource_version.clone(),
            before: service.seen.clone(),
            result: patch.result,
        };
        self.writes.in_flight.insert(key.clone(), write);
        actions.push(Action::PatchService { key, body: patch.body });
    }

    /// True while another Service, which is to leave `address`, still shows it (or will when its
    /// write lands): were the controller to die now, its successor would see two holders.
    /// Of two that wait for each other the later one to ask goes ahead.
    fn is_left_by_other(&self, address: IpAddr, key: &ServiceKey) -> bool {
        let in_flight = self
            .writes
            .in_flight
            .iter()
            .filter(|(_, write)| write.result.addresses.contains(&address))
            .map(|(other, _)| other);
        self.shown.get(&address).into_iter().flatten().chain(in_flight).any(|other| {
            let holds = self
                .plan
                .allocator()
                .assignment(other)
                .is_some_and(|held| held.addresses.contains(&address));
            other != key && !holds && !self.writes.blocked.contains(other)
        })
    }

    fn store(&mut self, service: Service) {
        self.unstore(&service.key);
        for address in &service.seen.addresses {
            self.shown.entry(*address).or_default().insert(service.key.clone());
        }
        self.services.insert(service.key.clone(), service);
    }

    fn unstore(&mut self, key: &ServiceKey) -> Option<Service> {
        let service = self.services.remove(key)?;
        for address in &service.seen.addresses {
            if let Some(keys) = self.shown.get_mut(address) {
                keys.remove(key);
                if keys.is_empty() {
                    self.shown.remove(address);
                }
            }
        }
        self.writes.unblock();
        Some(service)
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Whether a Service is served before those that wait already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// It changed just now, and somebody looks at it.
    Fresh,
    Backlog,
}

/// A Service write on its way.
#[derive(Debug)]
struct Write {
    /// Of the object that the write rests on.
    resource_version: String,
    before: SeenStatus,
    result: SeenStatus,
}

#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    attempts: u32,
}

/// Which Services are to be compared with their status, and when.
#[derive(Debug, Default)]
struct Writes {
    fresh: VecDeque<ServiceKey>,
    backlog: VecDeque<ServiceKey>,
    /// What is in `fresh` or `backlog`.
    queued: BTreeSet<ServiceKey>,
    in_flight: BTreeMap<ServiceKey, Write>,
    retries: BTreeMap<ServiceKey, Retry>,
    /// The API server knows a newer object than this version: nothing to do until it comes.
    outdated: BTreeMap<ServiceKey, String>,
    /// Wait until another Service's status lets go of an address.
    blocked: BTreeSet<ServiceKey>,
    failures_in_a_row: usize,
    probe_at: Option<Instant>,
}

impl Writes {
    fn enqueue(&mut self, key: ServiceKey, turn: Turn) {
        let waits = self.in_flight.contains_key(&key)
            || self.retries.contains_key(&key)
            || self.outdated.contains_key(&key);
        if waits || !self.queued.insert(key.clone()) {
            return;
        }
        self.blocked.remove(&key);
        match turn {
            Turn::Fresh => self.fresh.push_back(key),
            Turn::Backlog => self.backlog.push_back(key),
        }
    }

    fn next(&mut self) -> Option<ServiceKey> {
        let key = self.fresh.pop_front().or_else(|| self.backlog.pop_front())?;
        self.queued.remove(&key);
        Some(key)
    }

    fn may_send(&self, now: Instant) -> bool {
        match self.probe_at {
            Some(at) => self.in_flight.is_empty() && at <= now,
            None => self.in_flight.len() < MAX_WRITES,
        }
    }

    fn newer_seen(&mut self, key: &ServiceKey, resource_version: &str) {
        if self.outdated.get(key).is_some_and(|version| version != resource_version) {
            self.outdated.remove(key);
        }
    }

    fn unblock(&mut self) {
        for key in std::mem::take(&mut self.blocked) {
            self.enqueue(key, Turn::Fresh);
        }
    }

    fn succeeded(&mut self, key: &ServiceKey) {
        self.retries.remove(key);
        self.failures_in_a_row = 0;
        self.probe_at = None;
    }

    fn failed(&mut self, key: &ServiceKey, random: u64, now: Instant) {
        self.failures_in_a_row += 1;
        if self.failures_in_a_row >= MAX_WRITES {
            self.probe_at = Some(now + PROBE_INTERVAL);
        }
        let attempts = self.retries.get(key).map_or(1, |retry| retry.attempts + 1);
        let delay = FIRST_RETRY.saturating_mul(1 << (attempts - 1).min(16)).min(LAST_RETRY);
        let at = now + delay + delay.mul_f64(0.5 * random as f64 / u64::MAX as f64);
        self.retries.insert(key.clone(), Retry { at, attempts });
    }

    /// Puts what is due back into the queue.
    fn wake(&mut self, now: Instant) {
        let due: Vec<ServiceKey> = self
            .retries
            .iter()
            .filter(|(key, retry)| retry.at <= now && !self.in_flight.contains_key(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            if self.queued.insert(key.clone()) {
                self.backlog.push_back(key);
            }
        }
    }

    fn forget(&mut self, key: &ServiceKey) {
        self.retries.remove(key);
        self.outdated.remove(key);
        self.blocked.remove(key);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let idle =
            |key: &ServiceKey| !self.in_flight.contains_key(key) && !self.queued.contains(key);
        let retry =
            self.retries.iter().filter(|(key, _)| idle(key)).map(|(_, retry)| retry.at).min();
        let probe = self.probe_at.filter(|_| !self.queued.is_empty() && self.in_flight.is_empty());
        [retry, probe].into_iter().flatten().min()
    }
}

/// Counters of pools, written together.
#[derive(Debug, Default)]
struct PoolStatuses {
    /// As the API server shows them.
    seen: BTreeMap<PoolName, Counters>,
    in_flight: BTreeMap<PoolName, Counters>,
    flush_at: Option<Instant>,
    last_flush: Option<Instant>,
}

impl PoolStatuses {
    fn seen(&mut self, resources: &Resources) {
        self.seen = resources
            .pools
            .iter()
            .filter_map(|pool| {
                let status = pool.status.as_ref()?;
                let counters = Counters {
                    assigned_v4: status.assigned_ipv4,
                    assigned_v6: status.assigned_ipv6,
                    available_v4: status.available_ipv4,
                    available_v6: status.available_ipv6,
                };
                Some((pool.name_any().into(), counters))
            })
            .collect();
    }

    fn changed(&mut self, now: Instant) {
        let earliest = self.last_flush.map_or(now, |last| last + POOL_STATUS_INTERVAL);
        self.flush_at.get_or_insert_with(|| earliest.max(now + POOL_STATUS_DELAY));
    }

    fn done(&mut self, pool: &PoolName, result: &WriteResult, now: Instant) {
        let Some(counters) = self.in_flight.remove(pool) else { return };
        match result {
            WriteResult::Written { .. } => {
                self.seen.insert(pool.clone(), counters);
            }
            WriteResult::Gone => {}
            WriteResult::Conflict | WriteResult::Failed => self.changed(now),
        }
    }

    fn pump<'a>(
        &mut self,
        counters: impl Iterator<Item = (&'a PoolName, Counters)>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if self.flush_at.is_none_or(|at| now < at) || self.in_flight.len() >= MAX_POOL_WRITES {
            return;
        }
        self.flush_at = None;
        self.last_flush = Some(now);
        for (pool, counters) in counters {
            if self.seen.get(pool) == Some(&counters) || self.in_flight.contains_key(pool) {
                continue;
            }
            if self.in_flight.len() == MAX_POOL_WRITES {
                // The rest as soon as one of these is done.
                self.flush_at = Some(now);
                return;
            }
            self.in_flight.insert(pool.clone(), counters);
            let body = status::pool_status(counters);
            actions.push(Action::PatchPoolStatus { pool: pool.clone(), body });
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.flush_at.filter(|_| self.in_flight.len() < MAX_POOL_WRITES)
    }
}

/// The ConfigurationState as it was last written.
#[derive(Debug, Default)]
struct StateWrite {
    written: Option<Value>,
    in_flight: Option<Value>,
    retry_at: Option<Instant>,
}

impl StateWrite {
    fn done(&mut self, result: &WriteResult, now: Instant) {
        let body = self.in_flight.take();
        match result {
            WriteResult::Written { .. } => {
                self.written = body;
                self.retry_at = None;
            }
            WriteResult::Conflict | WriteResult::Gone | WriteResult::Failed => {
                self.retry_at = Some(now + POOL_STATUS_INTERVAL);
            }
        }
    }

    fn pump(&mut self, errors: &[ConfigError], now: Instant, actions: &mut Vec<Action>) {
        if self.in_flight.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        let body = status::configuration_state(errors);
        if self.written.as_ref() != Some(&body) {
            self.in_flight = Some(body.clone());
            actions.push(Action::PatchConfigurationState { body });
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.in_flight.is_none())
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
    };
    a.pools.len() == b.pools.len()
        && a.pools.iter().zip(&b.pools).all(|((x, a), (y, b))| x == y && same(a, b))
}

fn uids(resources: &Resources) -> BTreeMap<(&'static str, String), String> {
    fn of<'a, K: kube::ResourceExt + 'a>(
        kind: &'static str,
        objects: &'a [K],
    ) -> impl Iterator<Item = ((&'static str, String), String)> + 'a {
        objects.iter().map(move |object| {
            ((kind, object.name_any()), object.meta().uid.clone().unwrap_or_default())
        })
    }
    of("IPAddressPool", &resources.pools)
        .chain(of("L2Advertisement", &resources.l2_advertisements))
        .chain(of("BGPAdvertisement", &resources.bgp_advertisements))
        .chain(of("BGPPeer", &resources.bgp_peers))
        .chain(of("BFDProfile", &resources.bfd_profiles))
        .chain(of("Community", &resources.communities))
        .collect()
}

#[cfg(test)]
mod tests;
