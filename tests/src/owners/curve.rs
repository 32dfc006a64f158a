//! How the protocol behaves from five to hundreds of nodes: one crash in each of some clusters.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use rand::RngExt as _;

use super::{
    broken::Kind,
    checker::{at_rest, loads},
    cluster::{Cluster, Options, name},
    fault::Fault,
    scenario::{address, settled, taken_after},
};

/// The sizes of the table, with the number of clusters of each that are played.
pub const SIZES: [(usize, u64); 7] =
    [(5, 20), (10, 10), (20, 10), (50, 10), (100, 10), (200, 3), (500, 1)];

/// How long a cluster is watched at rest, and after the crash.
const WATCHED: Duration = Duration::from_secs(2);

/// What was measured in clusters of one size; one value a crash, but for the verdicts.
#[derive(Debug, Default)]
pub struct Point {
    pub nodes: usize,
    pub addresses: usize,
    /// From the crash to the verdict, of every speaker that came to one; milliseconds.
    pub detection: Vec<f64>,
    /// From the crash to the last first gratuitous frame of the successors; milliseconds.
    pub takeover: Vec<f64>,
    /// From the crash until every speaker knows the new owner of every address; milliseconds.
    pub agreement: Vec<f64>,
    /// Datagrams a node and second, at rest.
    pub rest: Vec<f64>,
    /// Their octets, a node and second, without what seals them and their headers.
    pub octets: Vec<f64>,
    /// Datagrams within two seconds of the crash besides beats, which go on.
    pub crash: Vec<f64>,
    /// The most addresses of a node less the fewest, before the crash.
    pub spread: Vec<f64>,
    /// The most by which a survivor has more than its share after the crash.
    pub excess: Vec<f64>,
}

impl Point {
    /// The most datagrams that a crash should cost: every claimer tells every node, and watchers
    /// tell every node three times.
    pub fn crash_bound(&self) -> f64 {
        let lost = self.addresses.div_ceil(self.nodes) + 1;
        let notices = if self.nodes > 20 { 12 * self.nodes } else { 0 };
        number(lost.min(self.nodes) * self.nodes + notices)
    }

    /// The most datagrams a node and second at rest, of the profile with 25 beats a second.
    pub fn rest_bound(&self) -> f64 {
        let watchers = if self.nodes > 20 { 4 } else { self.nodes - 1 };
        // Something is left for proofs and comparisons.
        number(watchers * 25) * 1.05 + 2.0
    }
}

/// Plays the clusters of one size.
///
/// # Errors
/// The rule that was broken.
pub fn point(nodes: usize, clusters: u64) -> Result<Point, String> {
    let addresses = (2 * nodes).max(100);
    let mut point = Point { nodes, addresses, ..Point::default() };
    for seed in 0..clusters {
        let mut cluster =
            settled(seed, Options { nodes, hosts: 1, ..Options::default() }, addresses)?;
        measure(&mut cluster, &mut point).map_err(|error| format!("{nodes}, {seed}: {error}"))?;
    }
    Ok(point)
}

fn measure(cluster: &mut Cluster, point: &mut Point) -> Result<(), String> {
    cluster.run(WATCHED)?;
    point.rest.push(cluster.checker.rate(cluster.now));
    let seconds = WATCHED.as_secs_f64();
    point.octets.push(total(cluster.checker.octets) / seconds / number(point.nodes));
    let before = loads(cluster);
    let spread = before.iter().max().zip(before.iter().min()).map_or(0, |(max, min)| max - min);
    point.spread.push(number(spread));

    let late = cluster.rng().random_range(0..40_000);
    cluster.run(Duration::from_micros(late))?;
    let dead = cluster.answering(address(0))[0];
    let lost = cluster.answers(dead);
    let at = cluster.now;
    cluster.checker.reset(at);
    cluster.fault(Fault::Crash(dead));
    point.agreement.push(milliseconds(agreement(cluster, dead, &lost, at)?));
    cluster.run(WATCHED.saturating_sub(cluster.now - at))?;
    let beats = cluster.checker.kinds.get(&(Kind::Beat as u8)).copied().unwrap_or_default();
    point.crash.push(total(cluster.checker.datagrams() - beats));
    for (when, _, verdict) in &cluster.checker.verdicts {
        if *verdict == dead {
            point.detection.push(milliseconds(*when - at));
        }
    }
    let taken = taken_after(cluster, &lost, at);
    point.takeover.push(milliseconds(taken.into_iter().max().unwrap_or_default()));
    let after = loads(cluster);
    let fair = point.addresses.div_ceil(point.nodes - 1);
    let excess = (0..point.nodes)
        .filter(|node| *node != dead)
        .map(|node| after[node].saturating_sub(before[node].max(fair)))
        .max();
    point.excess.push(number(excess.unwrap_or_default()));
    at_rest(cluster)
}

/// Runs until every speaker names the same, new owner of every lost address.
fn agreement(
    cluster: &mut Cluster,
    dead: usize,
    lost: &BTreeSet<IpAddr>,
    at: Instant,
) -> Result<Duration, String> {
    let mut open: Vec<IpAddr> = lost.iter().copied().collect();
    while !open.is_empty() {
        if cluster.now - at > WATCHED {
            return Err(format!("no agreement on {open:?}"));
        }
        cluster.run(Duration::from_millis(1))?;
        open.retain(|address| !agreed(cluster, dead, *address));
    }
    Ok(cluster.now - at)
}

fn agreed(cluster: &Cluster, dead: usize, address: IpAddr) -> bool {
    let [owner] = cluster.answering(address)[..] else { return false };
    let owner = Some(name(owner));
    let mut speakers = cluster.nodes.iter().filter_map(|node| node.speaker.as_ref());
    speakers.all(|speaker| {
        let state = speaker.states.get(&address);
        state.is_some_and(|state| state.owner == owner && state.owner != Some(name(dead)))
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn total(count: u64) -> f64 {
    usize::try_from(count).map_or(f64::INFINITY, number)
}

fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
