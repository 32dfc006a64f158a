//! What the controller counts, under MetalLB's names where it has one.

use std::collections::BTreeMap;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use shell::metrics::{ApiMetrics, scrape};

use crate::{allocator::Assignment, controller::Controller, plan::Outcome};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

type PerPool = Family<PoolLabel, Gauge>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    addresses: PerPool,
    ipv4_addresses: PerPool,
    ipv6_addresses: PerPool,
    in_use: PerPool,
    ipv4_in_use: PerPool,
    ipv6_in_use: PerPool,
    services: PerPool,
    unwritten: Gauge,
    pending: Family<ReasonLabel, Gauge>,
    pub api: ApiMetrics,
    /// Events that were not published: too many, told already, or refused.
    pub events_dropped: Counter,
    pub leader: Gauge,
    /// How often this replica came to lead.
    pub terms: Counter,
    /// How long it takes to take in one event and to decide.
    pub decide_seconds: Histogram,
    /// How long a write of a status takes, until its answer.
    pub write_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let mut per_pool = |name: &str, help: &str| {
            let family = PerPool::default();
            registry.register(format!("metallb_allocator_{name}"), help, family.clone());
            family
        };
        let addresses = per_pool("addresses_total", "Addresses of the pool");
        let ipv4_addresses = per_pool("ipv4_addresses_total", "IPv4 addresses of the pool");
        let ipv6_addresses = per_pool("ipv6_addresses_total", "IPv6 addresses of the pool");
        let in_use = per_pool("addresses_in_use_total", "Addresses in use");
        let ipv4_in_use = per_pool("ipv4_addresses_in_use_total", "IPv4 addresses in use");
        let ipv6_in_use = per_pool("ipv6_addresses_in_use_total", "IPv6 addresses in use");
        let services = per_pool("services_allocated_total", "Services with addresses of the pool");

        let leader = Gauge::default();
        registry.register("berth_controller_leader", "1 while this replica leads", leader.clone());
        let terms = Counter::default();
        registry.register(
            "berth_controller_leadership_changes",
            "How often this replica came to lead",
            terms.clone(),
        );
        // From 10 µs to 2.6 s.
        let decide_seconds = Histogram::new(exponential_buckets(0.000_01, 4.0, 10));
        registry.register(
            "berth_controller_plan_seconds",
            "Time to take in one event and to decide what follows",
            decide_seconds.clone(),
        );
        // From 1 ms to 8.2 s.
        let write_seconds = Histogram::new(exponential_buckets(0.001, 2.0, 14));
        registry.register(
            "berth_controller_write_seconds",
            "Time from the wish to write a status to its answer",
            write_seconds.clone(),
        );
        let pending = Family::<ReasonLabel, Gauge>::default();
        registry.register(
            "berth_controller_pending_services",
            "Services whose request is not met, by the reason in their condition",
            pending.clone(),
        );
        let unwritten = Gauge::default();
        registry.register(
            "berth_controller_queue_depth",
            "Services whose status is being written or waits for it",
            unwritten.clone(),
        );
        let events_dropped = Counter::default();
        registry.register(
            "berth_controller_events_dropped",
            "Events that were not published",
            events_dropped.clone(),
        );
        let api = ApiMetrics::default();
        api.register(&mut registry);
        Self {
            registry,
            addresses,
            ipv4_addresses,
            ipv6_addresses,
            in_use,
            ipv4_in_use,
            ipv6_in_use,
            services,
            unwritten,
            pending,
            api,
            events_dropped,
            leader,
            terms,
            decide_seconds,
            write_seconds,
        }
    }
}

impl Metrics {
    /// The text of a scrape.
    pub fn scrape(&self, controller: &Controller) -> String {
        self.refresh(controller);
        scrape(&self.registry)
    }

    fn refresh(&self, controller: &Controller) {
        let per_pool = [
            &self.addresses,
            &self.ipv4_addresses,
            &self.ipv6_addresses,
            &self.in_use,
            &self.ipv4_in_use,
            &self.ipv6_in_use,
            &self.services,
        ];
        // Pools that are gone must not be shown any more.
        for family in per_pool {
            family.clear();
        }
        for (pool, counters) in controller.plan().allocator().counters() {
            let (used4, used6) = (counters.assigned_v4, counters.assigned_v6);
            let total4 = used4.saturating_add(counters.available_v4);
            let total6 = used6.saturating_add(counters.available_v6);
            let values = [
                total4.saturating_add(total6),
                total4,
                total6,
                used4.saturating_add(used6),
                used4,
                used6,
                0,
            ];
            let label = PoolLabel { pool: pool.to_string() };
            for (family, value) in per_pool.iter().zip(values) {
                family.get_or_create(&label).set(value);
            }
        }
        // Counted here first: a label is looked up once for each pool, not for each Service.
        let mut services: BTreeMap<&str, i64> = BTreeMap::new();
        let mut pending: BTreeMap<&'static str, i64> = BTreeMap::new();
        for (_, decision) in controller.plan().decisions() {
            for pool in decision.outcome.assignment().into_iter().flat_map(Assignment::pools) {
                *services.entry(pool).or_default() += 1;
            }
            if let Outcome::Pending { refusal, .. } = &decision.outcome {
                *pending.entry(refusal.reason()).or_default() += 1;
            }
        }
        for (pool, count) in services {
            self.services.get_or_create(&PoolLabel { pool: pool.to_owned() }).set(count);
        }
        self.pending.clear();
        for (reason, count) in pending {
            self.pending.get_or_create(&ReasonLabel { reason }).set(count);
        }
        if controller.config().is_some() {
            self.api.configured(controller.config_errors().len());
        }
        self.unwritten.set(i64::try_from(controller.unwritten()).unwrap_or(i64::MAX));
    }
}
