//! What the speaker counts, under MetalLB's names where it has one.

pub mod bfd;
pub mod bgp;
mod collected;

use std::sync::Arc;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use shell::metrics::ApiMetrics;

use bfd::BfdMetrics;
use collected::Collected;

/// Set by the shell, read by the HTTP server.
#[derive(Debug, Default)]
pub struct Metrics {
    pub collected: Arc<Collected>,
    pub bfd: Arc<BfdMetrics>,
    heartbeat_peers: Gauge,
    pub api: ApiMetrics,
    /// Events that were not published: too many, or refused.
    pub events_dropped: Counter,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Arc::clone(&self.collected)));
        registry.register_collector(Box::new(Arc::clone(&self.bfd)));
        registry.register(
            "berth_speaker_live_peers",
            "Other speakers heard now",
            self.heartbeat_peers.clone(),
        );
        registry.register(
            "berth_speaker_events_dropped",
            "Events that were not published",
            self.events_dropped.clone(),
        );
        self.api.register(registry);
    }

    pub fn live_peers(&self, count: usize) {
        self.heartbeat_peers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
