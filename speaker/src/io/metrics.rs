//! What the speaker counts, under MetalLB's names where it has one.

use bgp::StateKind;
use config::PeerName;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use shell::metrics::ApiMetrics;

use crate::{status::ServiceStatus, view::ServiceKey};

/// Set by the shell, read by the HTTP server.
#[derive(Debug, Default)]
pub struct Metrics {
    session_up: Family<PeerLabel, Gauge>,
    prefixes: Family<PeerLabel, Gauge>,
    announced: Family<AnnouncedLabel, Gauge>,
    heartbeat_peers: Gauge,
    pub api: ApiMetrics,
    /// Events that were not published: too many, or refused.
    pub events_dropped: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnnouncedLabel {
    service: String,
    protocol: String,
    node: String,
}

impl Metrics {
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, family: &Family<PeerLabel, Gauge>| {
            registry.register(name, help, family.clone());
        };
        add("metallb_bgp_session_up", "1 while the session is Established", &self.session_up);
        add("metallb_bgp_announced_prefixes_total", "Routes wanted at the peer", &self.prefixes);
        registry.register(
            "metallb_speaker_announced",
            "Services that this node announces",
            self.announced.clone(),
        );
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

    pub fn service(&self, node: &str, service: &ServiceKey, status: &ServiceStatus) {
        for (protocol, announced) in
            [("layer2", status.layer2.is_some()), ("bgp", status.bgp.is_some())]
        {
            let label = AnnouncedLabel {
                service: service.to_string(),
                protocol: protocol.to_owned(),
                node: node.to_owned(),
            };
            if announced {
                self.announced.get_or_create(&label).set(1);
            } else {
                self.announced.remove(&label);
            }
        }
    }

    pub fn live_peers(&self, count: usize) {
        self.heartbeat_peers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
