//! What is counted of BFD sessions, asked for at every scrape. MetalLB has two sets of names: those of
//! its FRR mode and, with another prefix, those of its FRR-K8s mode; dashboards use both.

use std::{
    collections::BTreeMap,
    fmt::Error,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bfd::{Discard, State};
use config::PeerName;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};
use tokio::sync::watch;

use super::collected::{Text, word};
use crate::io::bfd::BfdStatus;

/// See the module.
#[derive(Debug, Default)]
pub struct BfdMetrics {
    sessions: Mutex<BTreeMap<PeerName, (Labels, watch::Receiver<BfdStatus>)>>,
    /// Datagrams that were for no session, or cannot be said to have been for one.
    strays: Mutex<BTreeMap<Discard, u64>>,
}

/// As MetalLB's FRR modes have them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// The peer's address; with a `%` and the interface where it means nothing without one.
    pub peer: String,
    /// `default` outside of any.
    pub vrf: String,
}

impl BfdMetrics {
    /// Shows a session from now on.
    pub fn opened(&self, peer: PeerName, labels: Labels, status: watch::Receiver<BfdStatus>) {
        open(&self.sessions).insert(peer, (labels, status));
    }

    /// Shows it no longer.
    pub fn closed(&self, peer: &PeerName) {
        open(&self.sessions).remove(peer);
    }

    /// Counts a datagram that belongs to no session.
    pub fn stray(&self, discard: Discard) {
        *open(&self.strays).entry(discard).or_default() += 1;
    }
}

fn open<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one of one entry.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Value = fn(&BfdStatus) -> u64;

const ROWS: [(&str, &str, MetricType, Value); 5] = [
    ("session_up", "1 while the session is Up", MetricType::Gauge, |status| {
        u64::from(status.state == State::Up)
    }),
    ("control_packet_input", "Control packets received", MetricType::Unknown, |status| {
        status.counters.received
    }),
    ("control_packet_output", "Control packets sent", MetricType::Unknown, |status| {
        status.counters.sent
    }),
    ("session_up_events", "How often the session came up", MetricType::Unknown, |status| {
        status.counters.up
    }),
    ("session_down_events", "How often the session went down", MetricType::Unknown, |status| {
        status.counters.down
    }),
];

impl Collector for BfdMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut text = Text(encoder);
        // Peers that differ in their ports share a session.
        let sessions: BTreeMap<Labels, BfdStatus> = open(&self.sessions)
            .values()
            .map(|(labels, status)| (labels.clone(), status.borrow().clone()))
            .collect();
        if !sessions.is_empty() {
            for prefix in ["metallb", "frrk8s"] {
                for (name, help, kind, value) in ROWS {
                    let rows = sessions.iter().map(|(Labels { peer, vrf }, status)| {
                        ([("peer", peer.clone()), ("vrf", vrf.clone())], value(status))
                    });
                    text.gauges(&format!("{prefix}_bfd_{name}"), help, kind, rows)?;
                }
            }
        }
        let mut discarded = open(&self.strays).clone();
        for (discard, count) in sessions.values().flat_map(|status| &status.counters.discarded) {
            *discarded.entry(*discard).or_default() += count;
        }
        text.counters(
            "berth_bfd_packets_discarded",
            "BFD packets that were not believed",
            "reason",
            discarded.iter().map(|(reason, count)| (word(reason), *count)),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::registry::Registry;

    use super::*;

    fn scrape(metrics: &Arc<BfdMetrics>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(metrics)));
        shell::metrics::scrape(&registry)
    }

    #[test]
    fn sessions_have_the_names_of_both_modes() {
        let metrics = Arc::new(BfdMetrics::default());
        let mut status = BfdStatus { state: State::Up, ..BfdStatus::default() };
        (status.counters.received, status.counters.sent) = (7, 9);
        (status.counters.up, status.counters.down) = (2, 1);
        status.counters.discarded = [(Discard::Hops, 3)].into();
        let (_tx, receiver) = watch::channel(status);
        let labels = Labels { peer: "192.0.2.1".to_owned(), vrf: "default".to_owned() };
        // Two peers at one address share their session.
        for peer in ["one", "other"] {
            metrics.opened(peer.into(), labels.clone(), receiver.clone());
        }
        metrics.stray(Discard::Hops);
        metrics.stray(Discard::NoSession);
        let text = scrape(&metrics);
        for prefix in ["metallb", "frrk8s"] {
            for line in [
                "session_up{peer=\"192.0.2.1\",vrf=\"default\"} 1",
                "control_packet_input{peer=\"192.0.2.1\",vrf=\"default\"} 7",
                "control_packet_output{peer=\"192.0.2.1\",vrf=\"default\"} 9",
                "session_up_events{peer=\"192.0.2.1\",vrf=\"default\"} 2",
                "session_down_events{peer=\"192.0.2.1\",vrf=\"default\"} 1",
            ] {
                let line = format!("{prefix}_bfd_{line}");
                assert_eq!(
                    text.lines().filter(|known| *known == line).count(),
                    1,
                    "{line}\n{text}"
                );
            }
        }
        for line in [
            "berth_bfd_packets_discarded_total{reason=\"hops\"} 4",
            "berth_bfd_packets_discarded_total{reason=\"no_session\"} 1",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
        for peer in ["one", "other"] {
            metrics.closed(&peer.into());
        }
        assert!(!scrape(&metrics).contains("192.0.2.1"), "what is gone is not shown");
    }
}
