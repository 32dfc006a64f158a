//! The ownership protocol in its simulator: a scenario for each bound that `docs/design/0005` states,
//! scenarios made from seeds, and rules broken on purpose.
//!
//! `make owners SEEDS=10000` plays more seeds, `make owners SEED=17` one, with its story.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod broken;
mod cuts;
mod deaths;
mod planned;
mod ring;
mod seeds;
mod starts;
mod strangers;
mod views;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tests::owners::{
    Cluster, Options,
    checker::at_rest,
    scenario::{REST, address, settled},
};

/// T, m·T and slack of the default profile, and the questions that precede a take-over.
const T: Duration = Duration::from_millis(40);
const DETECTION: Duration = Duration::from_millis(4 * 40 + 10);
const PROBE: Duration = Duration::from_millis(25);
/// Of the events of one loop, each of which may be late: the options' lateness, and the datagrams.
const SLOT: Duration = Duration::from_millis(20);

type Judged = Result<Duration, String>;

/// Plays a scenario for some seeds; the first that breaks a rule, or the bound, is told.
fn judge(
    title: &str,
    seeds: u64,
    options: &Options,
    bound: Duration,
    body: impl Fn(u64, Options) -> (Option<Cluster>, Judged),
) {
    let mut worst = Duration::ZERO;
    for seed in 0..seeds {
        let (_, judged) = body(seed, options.clone());
        let judged = judged.and_then(|figure| {
            if figure <= bound { Ok(figure) } else { Err(format!("{figure:?}, bound {bound:?}")) }
        });
        match judged {
            Ok(figure) => worst = worst.max(figure),
            Err(error) => {
                let (told, _) = body(seed, Options { story: true, ..options.clone() });
                let story = told.map(|cluster| cluster.story.join("\n")).unwrap_or_default();
                panic!("{story}\n{title}, {} nodes, seed {seed}: {error}", options.nodes);
            }
        }
    }
    println!("{title}, {} nodes: {seeds} seeds, at most {worst:?} of {bound:?}", options.nodes);
}

/// A cluster where every address has its owner, and what happens to it.
fn settled_then(
    addresses: usize,
    body: impl Fn(&mut Cluster) -> Judged,
) -> impl Fn(u64, Options) -> (Option<Cluster>, Judged) {
    move |seed, options| match settled(seed, options, addresses) {
        Ok(mut cluster) => {
            let judged = body(&mut cluster);
            (Some(cluster), judged)
        }
        Err(error) => (None, Err(format!("before anything: {error}"))),
    }
}

fn nodes(nodes: usize) -> Options {
    Options { nodes, ..Options::default() }
}

fn milliseconds(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// The node that answers for the first address, and what it answers for.
fn victim(cluster: &Cluster) -> (usize, BTreeSet<IpAddr>) {
    let node = cluster.answering(address(0))[0];
    (node, cluster.answers(node))
}

fn rests(cluster: &mut Cluster) -> Result<(), String> {
    cluster.run(REST)?;
    at_rest(cluster)
}

fn no_moves(cluster: &Cluster) -> Result<(), String> {
    match cluster.checker.moves() {
        0 => Ok(()),
        moves => Err(format!("{moves} moves")),
    }
}

fn no_gap(cluster: &Cluster) -> Result<(), String> {
    let gap = cluster.checker.gap(cluster.now);
    if gap.is_zero() { Ok(()) } else { Err(format!("nobody answered for {gap:?}")) }
}

/// Some time at a random point of a beat.
fn drift(cluster: &mut Cluster) -> Result<(), String> {
    use rand::RngExt as _;
    let time = cluster.rng().random_range(0..40_000);
    cluster.run(Duration::from_micros(time))
}
