//! The speaker's metrics, under MetalLB's names.

use std::sync::atomic::{AtomicI64, AtomicU64};

use bgp::StateKind;
use config::PeerName;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{status::ServiceStatus, view::ServiceKey};

type Value = Gauge<i64, AtomicI64>;

/// Set by the shell, read by the HTTP server.
#[derive(Debug, Default)]
pub struct Metrics {
    session_up: Family<PeerLabel, Value>,
    prefixes: Family<PeerLabel, Value>,
    announced: Family<AnnouncedLabel, Value>,
    config_loaded: Value,
    config_stale: Value,
    heartbeat_peers: Gauge<u64, AtomicU64>,
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
        let mut add = |name: &str, help: &str, family: &Family<PeerLabel, Value>| {
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
            "metallb_k8s_client_config_loaded_bool",
            "1 once a configuration is in force",
            self.config_loaded.clone(),
        );
        registry.register(
            "metallb_k8s_client_config_stale_bool",
            "1 while an object of the configuration is in error",
            self.config_stale.clone(),
        );
        registry.register(
            "berth_speaker_live_peers",
            "Other speakers heard now",
            self.heartbeat_peers.clone(),
        );
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

    pub fn config(&self, errors: usize) {
        self.config_loaded.set(1);
        self.config_stale.set(i64::from(errors > 0));
    }

    pub fn live_peers(&self, count: usize) {
        self.heartbeat_peers.set(count as u64);
    }
}
