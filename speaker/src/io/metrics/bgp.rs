//! What is counted of BGP sessions, asked for at every scrape. MetalLB has the names twice: with the
//! prefix of its own and FRR modes, where a peer has its port, and with that of its FRR-K8s mode,
//! where it has none; dashboards use both.

use std::{fmt::Error, sync::Arc};

use bgp::StateKind;
use config::Peer;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use super::collected::Text;
use crate::io::bgp::board::{Board, SessionView};

/// See the module.
#[derive(Debug)]
pub struct BgpMetrics(pub Arc<Board>);

type Value = fn(&SessionView) -> u64;
type Name = fn(&Peer) -> String;

const PREFIXES: [(&str, Name); 2] = [
    ("metallb", |peer| format!("{}:{}", peer.address, peer.port)),
    ("frrk8s", |peer| peer.address.to_string()),
];

const ROWS: [(&str, &str, MetricType, Value); 14] = [
    ("session_up", "1 while the session is Established", MetricType::Gauge, |view| {
        u64::from(view.state == StateKind::Established)
    }),
    ("announced_prefixes_total", "Prefixes that the peer has of us", MetricType::Gauge, |view| {
        count(view.stats.advertised_prefixes)
    }),
    ("pending_prefixes_total", "Prefixes that the peer shall have", MetricType::Gauge, |view| {
        count(view.stats.wanted_prefixes)
    }),
    (
        "received_prefixes_total",
        "Prefixes that the peer announced; none is used",
        MetricType::Gauge,
        |view| view.stats.received_prefixes,
    ),
    ("opens_sent", "OPENs sent", MetricType::Unknown, |view| view.stats.sent.open),
    ("opens_received", "OPENs received", MetricType::Unknown, |view| view.stats.received.open),
    ("notifications_sent", "NOTIFICATIONs sent", MetricType::Unknown, |view| {
        view.stats.sent.notification
    }),
    ("updates_total", "UPDATEs sent", MetricType::Unknown, |view| view.stats.sent.update),
    ("updates_total_received", "UPDATEs received", MetricType::Unknown, |view| {
        view.stats.received.update
    }),
    ("keepalives_sent", "KEEPALIVEs sent", MetricType::Unknown, |view| view.stats.sent.keepalive),
    ("keepalives_received", "KEEPALIVEs received", MetricType::Unknown, |view| {
        view.stats.received.keepalive
    }),
    ("route_refresh_sent", "ROUTE-REFRESHs sent", MetricType::Unknown, |view| {
        view.stats.sent.route_refresh
    }),
    ("total_sent", "Messages sent", MetricType::Unknown, |view| view.stats.sent.total()),
    ("total_received", "Messages received", MetricType::Unknown, |view| {
        view.stats.received.total()
    }),
];

impl Collector for BgpMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut text = Text(encoder);
        let views = self.0.views();
        if views.is_empty() {
            return Ok(());
        }
        for (prefix, name_of) in PREFIXES {
            for (name, help, kind, value) in ROWS {
                let rows = views.values().map(|view| {
                    let peer = &view.spec.peer;
                    let vrf = peer.vrf.clone().unwrap_or_else(|| "default".to_owned());
                    ([("peer", name_of(peer)), ("vrf", vrf)], value(view))
                });
                text.gauges(&format!("{prefix}_bgp_{name}"), help, kind, rows)?;
            }
        }
        Ok(())
    }
}

fn count(prefixes: usize) -> u64 {
    u64::try_from(prefixes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Instant};

    use bgp::{BfdGate, Stats};
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::{
        fixture::{parse, resources},
        planner::SessionSpec,
    };

    fn scrape(board: &Arc<Board>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(BgpMetrics(Arc::clone(board))));
        shell::metrics::scrape(&registry)
    }

    #[test]
    fn sessions_have_the_names_of_both_modes() {
        let board = Arc::new(Board::default());
        assert!(!scrape(&board).contains("bgp"), "without sessions there is nothing");
        let peer = parse(resources(), &[]).peers["tor"].clone();
        let name = peer.name.clone();
        let mut stats = Stats { advertised_prefixes: 2, wanted_prefixes: 3, ..Stats::default() };
        (stats.sent.open, stats.sent.update, stats.sent.keepalive) = (1, 4, 5);
        (stats.sent.notification, stats.sent.route_refresh) = (6, 8);
        (stats.received.open, stats.received.update, stats.received.keepalive) = (9, 10, 11);
        stats.received_prefixes = 12;
        let view = SessionView {
            spec: Arc::new(SessionSpec { peer, router_id: Ipv4Addr::LOCALHOST, bfd: None }),
            state: StateKind::Established,
            since: Instant::now(),
            stats,
            negotiated: None,
            gate: BfdGate::Open,
            bfd: None,
            held_back: None,
            problem: None,
        };
        board.put(&name, view);
        let text = scrape(&board);
        for (prefix, peer) in [("metallb", "10.1.0.1:179"), ("frrk8s", "10.1.0.1")] {
            for (metric, value) in [
                ("session_up", 1),
                ("announced_prefixes_total", 2),
                ("pending_prefixes_total", 3),
                ("received_prefixes_total", 12),
                ("opens_sent", 1),
                ("opens_received", 9),
                ("notifications_sent", 6),
                ("updates_total", 4),
                ("updates_total_received", 10),
                ("keepalives_sent", 5),
                ("keepalives_received", 11),
                ("route_refresh_sent", 8),
                ("total_sent", 24),
                ("total_received", 30),
            ] {
                let line =
                    format!("{prefix}_bgp_{metric}{{peer=\"{peer}\",vrf=\"default\"}} {value}");
                assert_eq!(
                    text.lines().filter(|known| *known == line).count(),
                    1,
                    "{line}\n{text}"
                );
            }
        }
        board.remove(&name);
        assert!(!scrape(&board).contains("10.1.0.1"), "what is gone is not shown");
    }
}
