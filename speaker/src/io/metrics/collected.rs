//! What is counted elsewhere and asked for at every scrape, so that nothing is kept twice.

use std::{
    collections::BTreeMap,
    fmt::{Debug, Error},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use config::NodeName;
use layer2::announcer::AddressCounters;
use ownership::LATENESS_BOUNDS;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
};

use crate::{
    io::wire::WireCounters,
    status::{ServiceStatus, Step},
    view::ServiceKey,
};

/// See the module.
#[derive(Debug, Default)]
pub struct Collected(Mutex<Sources>);

#[derive(Debug, Default)]
struct Sources {
    node: NodeName,
    statuses: BTreeMap<ServiceKey, Arc<ServiceStatus>>,
    wire: WireCounters,
}

impl Collected {
    pub fn service(&self, node: &NodeName, service: &ServiceKey, status: &Arc<ServiceStatus>) {
        let mut sources = self.open();
        sources.node.clone_from(node);
        if **status == ServiceStatus::default() {
            sources.statuses.remove(service);
        } else {
            sources.statuses.insert(service.clone(), Arc::clone(status));
        }
    }

    pub fn wire(&self, counters: WireCounters) {
        self.open().wire = counters;
    }

    fn open(&self) -> MutexGuard<'_, Sources> {
        // Each part is whole or was not touched, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let sources = self.open();
        let mut text = Text(encoder);
        sources.announced(&mut text)?;
        sources.frames(&mut text)?;
        sources.ownership(&mut text)?;
        sources.heartbeats(&mut text)
    }
}

impl Sources {
    fn announced(&self, text: &mut Text<'_>) -> Result<(), Error> {
        let mut rows = Vec::new();
        let mut conflicts = 0;
        for (service, status) in &self.statuses {
            let layer2 = status.answered().map(|address| ("layer2", address));
            let bgp = status.bgp.iter().flat_map(|bgp| &bgp.addresses);
            for (protocol, address) in layer2.chain(bgp.map(|address| ("bgp", *address))) {
                let labels = [
                    ("service", service.to_string()),
                    ("protocol", protocol.to_owned()),
                    ("node", self.node.to_string()),
                    ("ip", address.to_string()),
                ];
                rows.push((labels, 1));
            }
            let told = status.layer2.iter().flat_map(|layer2| &layer2.addresses);
            conflicts += told.filter(|told| told.step == Step::Conflict).count();
        }
        text.gauges(
            "metallb_speaker_announced",
            "Services that this node announces, by address",
            MetricType::Gauge,
            rows,
        )?;
        text.gauge(
            "berth_layer2_conflicts",
            "Addresses not announced because a foreign station has them",
            conflicts,
        )
    }

    fn frames(&self, text: &mut Text<'_>) -> Result<(), Error> {
        let counters = &self.wire.announcer;
        // MetalLB's names lack the _total that counters have to have in this format.
        let mut by_address = |name, help, value: fn(&AddressCounters) -> u64| {
            let rows = counters.addresses.iter();
            let rows = rows.map(|(ip, counters)| ([("ip", ip.to_string())], value(counters)));
            text.gauges(name, help, MetricType::Unknown, rows)
        };
        by_address(
            "metallb_layer2_requests_received",
            "ARP requests and neighbor solicitations for an address that this node owned",
            |counters| counters.requests_received,
        )?;
        by_address(
            "metallb_layer2_responses_sent",
            "Answers to ARP requests and neighbor solicitations",
            |counters| counters.responses_sent,
        )?;
        by_address(
            "metallb_layer2_gratuitous_sent",
            "Gratuitous ARP frames and unsolicited neighbor advertisements",
            |counters| counters.gratuitous_sent,
        )?;
        text.counter(
            "berth_layer2_conflicts_heard",
            "Frames in which another station said that it has an address that this node owned",
            counters.addresses.values().map(|counters| counters.conflicts_heard).sum(),
        )?;
        text.counter(
            "berth_layer2_listener_reports_sent",
            "Multicast listener reports (MLD) for the solicited-node groups of owned addresses",
            counters.reports_sent,
        )?;
        text.counter(
            "berth_layer2_probes_sent",
            "Frames sent to ask the segment for addresses",
            counters.probes_sent,
        )?;
        text.counters(
            "berth_layer2_frames_ignored",
            "Frames of which nothing came",
            "reason",
            counters.ignored.iter().map(|(reason, count)| (word(reason), *count)),
        )?;
        text.counter(
            "berth_layer2_frames_dropped",
            "Frames that the kernel threw away because they came faster than they were read",
            self.wire.frames_dropped,
        )?;
        text.counter(
            "berth_layer2_frames_unsent",
            "Frames that the kernel did not take",
            self.wire.frames_unsent,
        )
    }

    fn ownership(&self, text: &mut Text<'_>) -> Result<(), Error> {
        let counters = &self.wire.ownership;
        text.gauge(
            "berth_layer2_addresses_owned",
            "Addresses that this node answers for",
            self.wire.owned,
        )?;
        text.counters(
            "berth_layer2_failovers",
            "Addresses that came to this node",
            "cause",
            counters.taken.iter().map(|(cause, count)| (word(cause), *count)),
        )?;
        text.counter(
            "berth_layer2_vetoes",
            "Take-overs put off because the segment answered",
            counters.vetoes,
        )?;
        text.counter(
            "berth_layer2_false_verdicts",
            "Speakers taken for dead that turned out to have lived on",
            counters.false_verdicts,
        )?;
        text.counter("berth_layer2_yielded", "Addresses lost to a higher claim", counters.yielded)
    }

    fn heartbeats(&self, text: &mut Text<'_>) -> Result<(), Error> {
        let heartbeat = &self.wire.heartbeat;
        let counters = &self.wire.ownership;
        text.counter("berth_speaker_heartbeats_sent", "Datagrams sent", heartbeat.sent)?;
        text.counter(
            "berth_speaker_heartbeats_unsent",
            "Datagrams that the kernel did not take",
            heartbeat.unsent,
        )?;
        text.counter(
            "berth_speaker_heartbeats_received",
            "Datagrams that were believed",
            heartbeat.received,
        )?;
        let inside = [
            ("malformed_content", counters.malformed),
            ("no_peer", counters.strangers),
            ("stale", counters.stale),
            ("impossible_epoch", counters.refused),
        ];
        let outside = heartbeat.refused.iter().map(|(why, count)| (why.reason(), *count));
        let rows = outside.chain(inside).map(|(reason, count)| (reason.to_owned(), count));
        text.counters(
            "berth_speaker_heartbeats_refused",
            "Datagrams from other speakers that were not believed",
            "reason",
            rows,
        )?;
        let lateness = &counters.lateness;
        let bounds = LATENESS_BOUNDS.iter().map(|micros| std::time::Duration::from_micros(*micros));
        let bounds = bounds.map(|bound| bound.as_secs_f64()).chain([f64::INFINITY]);
        let counts = lateness.buckets.iter().copied().chain([lateness.later]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let name = "berth_speaker_heartbeat_lateness_seconds";
        let help = "How late heartbeats were sent";
        let mut encoder = text.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        encoder.encode_histogram::<NoLabelSet>(lateness.sum.as_secs_f64(), count, &buckets, None)
    }
}

pub(super) struct Text<'a>(pub(super) DescriptorEncoder<'a>);

impl Text<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: usize) -> Result<(), Error> {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> Result<(), Error> {
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in rows {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            encoder.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), Error> {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        encoder.encode_counter(&value, NO_EXEMPLAR)
    }

    pub(super) fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        rows: impl Iterator<Item = (String, u64)>,
    ) -> Result<(), Error> {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in rows {
            encoder.encode_family(&[(label, value)])?.encode_counter(&count, NO_EXEMPLAR)?;
        }
        Ok(())
    }
}

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

/// The name of a variant as a label: `HandOver` becomes `hand_over`.
pub(super) fn word(variant: &impl Debug) -> String {
    let mut word = String::new();
    for letter in format!("{variant:?}").chars() {
        if letter.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(letter.to_ascii_lowercase());
    }
    word
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use layer2::announcer::Ignored;
    use ownership::Cause;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::status::{AddressStatus, Layer2Status};

    fn scrape(collected: &Arc<Collected>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(collected)));
        shell::metrics::scrape(&registry)
    }

    #[test]
    fn a_scrape_has_the_numbers_under_their_names() {
        let collected = Arc::new(Collected::default());
        let address = "192.0.2.1".parse().unwrap();
        let step = Step::Seen;
        let told = AddressStatus { address, step, seen_by: None, reason: None, foreign: None };
        let layer2 = Layer2Status { addresses: [told].into(), ..Layer2Status::default() };
        let status = Arc::new(ServiceStatus { layer2: Some(layer2), bgp: None });
        let key = ServiceKey::new("shop", "web");
        collected.service(&"n1".into(), &key, &status);
        let mut wire = WireCounters { owned: 1, ..WireCounters::default() };
        let counters = AddressCounters { gratuitous_sent: 7, ..AddressCounters::default() };
        wire.announcer.addresses = [(address, counters)].into();
        wire.announcer.ignored = [(Ignored::MalformedArp, 3)].into();
        wire.ownership.taken = [(Cause::HandOver, 2)].into();
        wire.ownership.lateness.buckets[0] = 4;
        wire.ownership.lateness.later = 1;
        wire.ownership.lateness.sum = Duration::from_millis(50);
        wire.ownership.stale = 5;
        collected.wire(wire);

        let text = scrape(&collected);
        for line in [
            "metallb_speaker_announced{service=\"shop/web\",protocol=\"layer2\",node=\"n1\",\
             ip=\"192.0.2.1\"} 1",
            "metallb_layer2_gratuitous_sent{ip=\"192.0.2.1\"} 7",
            "metallb_layer2_requests_received{ip=\"192.0.2.1\"} 0",
            "berth_layer2_frames_ignored_total{reason=\"malformed_arp\"} 3",
            "berth_layer2_failovers_total{cause=\"hand_over\"} 2",
            "berth_layer2_addresses_owned 1",
            "berth_layer2_conflicts 0",
            "berth_speaker_heartbeats_refused_total{reason=\"stale\"} 5",
            "berth_speaker_heartbeat_lateness_seconds_sum 0.05",
            "berth_speaker_heartbeat_lateness_seconds_count 5",
            "berth_speaker_heartbeat_lateness_seconds_bucket{le=\"0.0001\"} 4",
            "berth_speaker_heartbeat_lateness_seconds_bucket{le=\"0.04\"} 4",
            "berth_speaker_heartbeat_lateness_seconds_bucket{le=\"+Inf\"} 5",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }

        collected.service(&"n1".into(), &key, &Arc::default());
        collected.wire(WireCounters::default());
        assert!(!scrape(&collected).contains("192.0.2.1"), "what is gone is not shown");
    }
}
