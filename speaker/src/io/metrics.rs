//! What the speaker counts, under MetalLB's names where it has one.

mod collected;

use std::sync::Arc;

use bgp::StateKind;
use config::PeerName;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use shell::metrics::ApiMetrics;

use collected::Collected;

/// Set by the shell, read by the HTTP server.
#[derive(Debug, Default)]
pub struct Metrics {
    session_up: Family<PeerLabel, Gauge>,
    prefixes: Family<PeerLabel, Gauge>,
    pub collected: Arc<Collected>,
    heartbeat_peers: Gauge,
    pub api: ApiMetrics,
    /// Events that were not published: too many, or refused.
    pub events_dropped: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, family: &Family<PeerLabel, Gauge>| {
            registry.register(name, help, family.clone());
        };
        add("metallb_bgp_session_up", "1 while the session is Established", &self.session_up);
        add("metallb_bgp_announced_prefixes_total", "Routes wanted at the peer", &self.prefixes);
        registry.register_collector(Box::new(Arc::clone(&self.collected)));
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

    pub fn bgp_state(&self, peer: &PeerName, state: StateKind) {
        let up = i64::from(state == StateKind::Established);
        self.session_up.get_or_create(&PeerLabel { peer: peer.to_string() }).set(up);
    }

    pub fn bgp_wanted(&self, peer: &PeerName, routes: usize) {
        let routes = i64::try_from(routes).unwrap_or(i64::MAX);
        self.prefixes.get_or_create(&PeerLabel { peer: peer.to_string() }).set(routes);
    }

    pub fn bgp_gone(&self, peer: &PeerName) {
        let label = PeerLabel { peer: peer.to_string() };
        self.session_up.remove(&label);
        self.prefixes.remove(&label);
    }

    pub fn live_peers(&self, count: usize) {
        self.heartbeat_peers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
