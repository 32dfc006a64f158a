//! What the controller counts, under MetalLB's names (so that its alerts and dashboards go on to
//! work), as OpenMetrics text.

use std::{fmt::Debug, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

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
    config_loaded: Gauge,
    config_stale: Gauge,
    unwritten: Gauge,
    /// Objects that a watch reported.
    pub updates: Counter<u64, AtomicU64>,
    /// Writes and watches that failed.
    pub update_errors: Counter<u64, AtomicU64>,
    /// Events that were not published: too many, or refused.
    pub events_dropped: Counter<u64, AtomicU64>,
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

        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let config_loaded =
            gauge("metallb_k8s_client_config_loaded_bool", "1 once a configuration was read");
        let config_stale = gauge(
            "metallb_k8s_client_config_stale_bool",
            "1 while an object is left out of the configuration or kept in an older form",
        );
        let unwritten = gauge(
            "berth_controller_unwritten_services",
            "Services whose status is being written or waits for it",
        );
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let updates = counter("metallb_k8s_client_updates", "Objects that a watch reported");
        let update_errors =
            counter("metallb_k8s_client_update_errors", "Watches and writes that failed");
        let events_dropped =
            counter("berth_controller_events_dropped", "Events that were not published");
        Self {
            registry,
            addresses,
            ipv4_addresses,
            ipv6_addresses,
            in_use,
            ipv4_in_use,
            ipv6_in_use,
            services,
            config_loaded,
            config_stale,
            unwritten,
            updates,
            update_errors,
            events_dropped,
        }
    }
}

impl Metrics {
    /// The text of a scrape.
    pub fn scrape(&self, controller: &Controller) -> String {
        self.refresh(controller);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a String cannot fail");
        text
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
        self.config_loaded.set(i64::from(controller.config().is_some()));
        self.config_stale.set(i64::from(!controller.config_errors().is_empty()));
        self.unwritten.set(i64::try_from(controller.unwritten()).unwrap_or(i64::MAX));
    }
}
