//! The ownership protocol in its simulator, from 5 to 500 nodes: how soon a death is noticed, how
//! soon all agree on the successor, and what it costs. `make bench-owners` runs it.
//!
//! `BERTH_BENCH_NODES` is the largest cluster that is played.

use std::env;

use anyhow::{Context, Result, anyhow};
use tests::{
    bench::{Goal, Rows, step},
    owners::curve::{SIZES, point},
};

fn main() -> Result<()> {
    let most = match env::var("BERTH_BENCH_NODES") {
        Ok(text) => text.parse().context("BERTH_BENCH_NODES is a number of nodes")?,
        Err(_) => usize::MAX,
    };
    let mut rows = Rows::default();
    for (nodes, clusters) in SIZES.into_iter().filter(|(nodes, _)| *nodes <= most) {
        step(&format!("{nodes} nodes, {clusters} crashes"));
        let point = point(nodes, clusters).map_err(|error| anyhow!(error))?;
        let (rest, crash) = (point.rest_bound(), point.crash_bound());
        let name = |what: &str| format!("{nodes} nodes, {} addresses: {what}", point.addresses);
        let mut row = |what: &str, unit: &str, runs: Vec<f64>, goal: Option<Goal>| {
            rows.push(&name(what), unit, runs, goal);
        };
        // m·T and slack, and 5 ms of scheduling.
        row("death noticed", "ms", point.detection, Some(Goal::Max(175.0)));
        row("last successor announces", "ms", point.takeover, Some(Goal::Max(225.0)));
        row("all agree", "ms", point.agreement, Some(Goal::Max(230.0)));
        row("datagrams a node and second", "", point.rest, Some(Goal::Max(rest)));
        row("octets a node and second", "", point.octets, None);
        row("datagrams for a crash", "", point.crash, Some(Goal::Max(crash)));
        row("most less fewest addresses", "", point.spread, Some(Goal::Max(1.0)));
        row("more than its share after it", "", point.excess, Some(Goal::Max(1.0)));
    }
    rows.publish()
}
