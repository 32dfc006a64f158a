//! What somebody wants: nodes drained, speakers ended and restarted, with 1,000 addresses on five
//! nodes.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Scale, ms};
use crate::bench::{
    Goal, Rows, count,
    probe::{Outcome, Probes},
    segment::{DIRECT, Plan, Segment, TRANSLATED, at, on_segment},
    step,
};

const ADDRESSES: usize = 1000;
/// More would be too many for the neighbour tables, whose limit all namespaces share.
const PROBED: usize = 40;
const PACE: Duration = Duration::from_millis(5);
/// As long as it takes three clients to send 120,000 probes to so many addresses.
const TIME: Duration = Duration::from_secs(5);
/// For what was handed over at a restart to be given back.
const GIVING_BACK: Duration = Duration::from_secs(15);
const CLIENTS: [&str; 3] = ["client on the LAN", "client behind a router", "DNAT"];
const DRAIN: &str = "berth.io/drain";

type Owners = BTreeMap<Ipv4Addr, u8>;

/// Flows of all three clients.
struct Clients([Probes; 3]);

impl Clients {
    fn start(segment: &Segment, addresses: &[Ipv4Addr]) -> Result<Self> {
        let direct = at(addresses, DIRECT);
        let near = Probes::start(&segment.client, &direct, PACE)?;
        let far = Probes::start(&segment.far, &direct, PACE)?;
        let translated = Probes::start(&segment.client, &at(addresses, TRANSLATED), PACE)?;
        Ok(Self([near, far, translated]))
    }

    fn stop(self) -> [Outcome; 3] {
        self.0.map(Probes::stop)
    }
}

/// What some runs of one event have lost, by client.
#[derive(Default)]
struct Series {
    lost: [Vec<f64>; 3],
    gaps: Vec<f64>,
}

impl Series {
    fn add(&mut self, what: &str, outcomes: &[Outcome; 3]) {
        let sent: usize = outcomes.iter().map(|outcome| outcome.sent).sum();
        let lost = outcomes.each_ref().map(|outcome| outcome.lost);
        let gap = outcomes.iter().map(|outcome| outcome.longest_gap).max().unwrap_or_default();
        step(&format!("{what}: of {sent} probes lost {lost:?}, longest gap {:.0} ms", ms(gap)));
        for (series, lost) in self.lost.iter_mut().zip(lost) {
            series.push(count(lost));
        }
        self.gaps.push(ms(gap));
    }

    fn push(self, rows: &mut Rows, name: &str) {
        for (client, lost) in CLIENTS.into_iter().zip(self.lost) {
            let name = format!("{name}: lost probes, {client}");
            rows.push(&name, "", lost, Some(Goal::Max(0.0)));
        }
        rows.push(&format!("{name}: longest gap of all flows"), "ms", self.gaps, None);
    }
}

pub fn moves(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let plan = Plan { nodes: 5, announced: ADDRESSES, ..Plan::default() };
    let (mut drains, mut ends, mut rolls) =
        (Series::default(), Series::default(), Series::default());
    let mut elsewhere = Vec::new();
    on_segment(&plan, |segment| {
        segment.start_speakers()?;
        for _ in 0..scale.runs {
            drain(segment, &mut drains)?;
        }
        for _ in 0..scale.runs {
            end(segment, &mut ends)?;
        }
        for _ in 0..scale.few() {
            elsewhere.push(roll(segment, &mut rolls)?);
        }
        Ok(())
    })?;
    drains.push(rows, "node drained, 1,000 addresses");
    ends.push(rows, "speaker ended by SIGTERM, 1,000 addresses");
    rows.metallb("[4.0 / 5.6 / 160 ms, 0 to 1,767 lost]");
    rolls.push(rows, "rolling restart of 5 speakers, 1,000 addresses");
    let name = "rolling restart: addresses elsewhere than before";
    rows.push(name, "", elsewhere, Some(Goal::Max(0.0)));
    Ok(())
}

/// Some of the addresses of the node that has most.
fn busiest(segment: &mut Segment) -> Result<(u8, Vec<Ipv4Addr>)> {
    let (node, mut its) = Segment::busiest(&segment.at_rest()?);
    its.truncate(PROBED);
    segment.serve_probes(&its)?;
    Ok((node, its))
}

fn drain(segment: &mut Segment, series: &mut Series) -> Result<()> {
    let (node, its) = busiest(segment)?;
    let clients = Clients::start(segment, &its)?;
    let begin = Instant::now();
    annotate(segment, node, json!("true"))?;
    std::thread::sleep(TIME.saturating_sub(begin.elapsed()));
    let outcomes = clients.stop();
    let after = segment.at_rest()?;
    annotate(segment, node, Value::Null)?;
    let left = after.values().filter(|owner| **owner == node).count();
    ensure!(left == 0, "n{node} is drained and has {left} addresses");
    series.add(&format!("n{node} drained"), &outcomes);
    Ok(())
}

fn annotate(segment: &Segment, node: u8, value: Value) -> Result<()> {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{node}")},
    });
    object["metadata"]["annotations"][DRAIN] = value;
    segment.api.apply(&object)?;
    Ok(())
}

fn end(segment: &mut Segment, series: &mut Series) -> Result<()> {
    let (node, its) = busiest(segment)?;
    let clients = Clients::start(segment, &its)?;
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(500));
    segment.node(node).stop_speaker()?;
    std::thread::sleep(Duration::from_secs(1));
    segment.start_speaker(node)?;
    std::thread::sleep(TIME.saturating_sub(begin.elapsed()));
    series.add(&format!("n{node} ended and started"), &clients.stop());
    Ok(())
}

/// How many addresses are elsewhere afterwards.
fn roll(segment: &mut Segment, series: &mut Series) -> Result<f64> {
    let before = segment.at_rest()?;
    let step_by = ADDRESSES / PROBED;
    let its: Vec<_> = before.keys().copied().step_by(step_by).collect();
    segment.serve_probes(&its)?;
    let clients = Clients::start(segment, &its)?;
    for index in 0..segment.nodes.len() {
        let number = segment.nodes[index].number;
        segment.node(number).stop_speaker().context("the rolling restart")?;
        segment.start_speaker(number)?;
        segment.all_hear()?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let deadline = Instant::now() + GIVING_BACK;
    let mut away = elsewhere(&before, &segment.at_rest()?);
    while away > 0 && Instant::now() < deadline {
        away = elsewhere(&before, &segment.at_rest()?);
    }
    series.add(&format!("rolling restart, {away} elsewhere"), &clients.stop());
    Ok(count(away))
}

fn elsewhere(before: &Owners, after: &Owners) -> usize {
    before.iter().filter(|(address, node)| after.get(*address) != Some(*node)).count()
}
