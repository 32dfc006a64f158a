//! What both daemons count, under MetalLB's names, so that its alerts and dashboards go on to
//! work; and the text of a scrape.

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// The traffic with the API server and what came of it. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct ApiMetrics {
    /// Objects that a watch reported.
    pub updates: Counter,
    /// Watches and writes that failed.
    pub update_errors: Counter,
    config_loaded: Gauge,
    config_stale: Gauge,
}

impl ApiMetrics {
    /// Makes them part of every scrape of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        counter("metallb_k8s_client_updates", "Objects that a watch reported", &self.updates);
        counter(
            "metallb_k8s_client_update_errors",
            "Watches and writes that failed",
            &self.update_errors,
        );
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(name, help, gauge.clone());
        };
        gauge(
            "metallb_k8s_client_config_loaded_bool",
            "1 once a configuration was read",
            &self.config_loaded,
        );
        gauge(
            "metallb_k8s_client_config_stale_bool",
            "1 while an object is left out of the configuration or kept in an older form",
            &self.config_stale,
        );
    }

    /// A configuration is in force; `errors` of its objects are left out or kept in an older form.
    pub fn configured(&self, errors: usize) {
        self.config_loaded.set(1);
        self.config_stale.set(i64::from(errors > 0));
    }
}

/// The registry as OpenMetrics text.
pub fn scrape(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).expect("writing to a String cannot fail");
    text
}
