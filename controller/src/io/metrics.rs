//! What the controller counts, under MetalLB's names where it has one.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use shell::metrics::{ApiMetrics, scrape};

use crate::controller::Controller;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool: String,
}

type PerPool = Family<PoolLabel, Gauge>;

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
    pub api: ApiMetrics,
    /// Events that were not published: too many, or refused.
    pub events_dropped: Counter,
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

        let unwritten = Gauge::default();
        registry.register(
            "berth_controller_unwritten_services",
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
            api,
            events_dropped,
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
        for (_, decision) in controller.plan().decisions() {
            if let Some(held) = decision.outcome.assignment() {
                self.services.get_or_create(&PoolLabel { pool: held.pool.to_string() }).inc();
            }
        }
        if controller.config().is_some() {
            self.api.configured(controller.config_errors().len());
        }
        self.unwritten.set(i64::try_from(controller.unwritten()).unwrap_or(i64::MAX));
    }
}
