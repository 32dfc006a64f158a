//! What `make bench-bgp` measures, in groups that can be asked for one by one: the speaker of one
//! node with a router beside it on a stage of [`lab`](crate::lab), and the engine alone beside BIRD
//! as the sender.

mod many;
mod one;

use std::{
    env,
    fs::File,
    io::{Read, Seek},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use netlab::Namespace;
use serde_json::{Value, json};

use super::{Rows, segment::programs, step};
use crate::lab::{
    Policy, RouterConfig, Stage, Transport, custom, node_name, on_stage_of, peer_spec,
};

/// How often to look at the router's table.
const LOOK: Duration = Duration::from_micros(100);
/// For whatever is measured to happen.
const PATIENCE: Duration = Duration::from_secs(60);

type Group = fn(usize, &mut Rows) -> Result<()>;

/// In the order in which they are measured.
const GROUPS: [(&str, Group); 6] = [
    ("routes", one::routes),
    ("restart", one::router_restarted),
    ("services", many::services),
    ("scale", many::scale),
    ("churn", many::churn),
    ("leak", many::leak),
];

/// Measures the groups that `BERTH_BENCH_ROWS` names, separated by commas; all without it. Runs:
/// `BERTH_BENCH_RUNS`, or 10.
///
/// Returns the rows, and what failed.
///
/// # Errors
/// When a group has an unknown name, or the number of runs is none.
pub fn measure() -> Result<(Rows, Vec<String>)> {
    let runs = match env::var("BERTH_BENCH_RUNS") {
        Ok(text) => text.parse().with_context(|| format!("BERTH_BENCH_RUNS={text}"))?,
        Err(_) => 10,
    };
    ensure!(runs > 0, "BERTH_BENCH_RUNS must be at least 1");
    let asked = env::var("BERTH_BENCH_ROWS").unwrap_or_default();
    let asked: Vec<_> = asked.split(',').filter(|name| !name.is_empty()).collect();
    let names: Vec<_> = GROUPS.iter().map(|(name, _)| *name).collect();
    for name in &asked {
        ensure!(names.contains(name), "there are no rows \"{name}\"; they are {}", names.join(","));
    }
    let (mut rows, mut failed) = (Rows::default(), Vec::new());
    for (name, group) in GROUPS {
        if asked.is_empty() || asked.contains(&name) {
            step(name);
            if let Err(error) = group(runs, &mut rows) {
                eprintln!("{name}: {error:#}");
                failed.push(name.to_owned());
            }
        }
    }
    Ok((rows, failed))
}

/// A stage with a pool of 65,536 addresses that are advertised, and no speaker yet.
fn on_bench<T>(measure: impl FnOnce(&mut Stage) -> Result<T>) -> Result<T> {
    on_stage_of(programs()?.join("berth-speaker"), |stage| {
        stage.announce("pool", &["198.18.0.0/16"], "BGPAdvertisement", json!({}))?;
        stage.apply(&custom("BGPPeer", "router", peer()))?;
        measure(stage)
    })
}

/// The router, for node 1.
fn peer() -> Value {
    let mut spec = peer_spec(RouterConfig::EXTERNAL, Transport::V4);
    spec["nodeSelectors"] = json!([{"matchLabels": {"kubernetes.io/hostname": node_name(1)}}]);
    spec
}

/// Address number `index` of the pool.
fn address(index: u16) -> String {
    let [high, low] = index.to_be_bytes();
    format!("198.18.{high}.{low}")
}

/// Services `first..last`, each with its address and an endpoint on node 1.
fn expose(stage: &Stage, first: u16, last: u16) -> Result<()> {
    for index in first..last {
        stage.expose(&format!("s{index}"), &[&address(index)], Policy::Cluster, &[1])?;
    }
    Ok(())
}

/// The IPv4 routes of a host's kernel, read without a program (proc_pid_net(5)).
#[derive(Debug)]
struct Table {
    file: File,
    text: String,
}

impl Table {
    fn of(host: &Namespace) -> Result<Self> {
        let file = host.inside(|| Ok(File::open("/proc/thread-self/net/route")?))?;
        Ok(Self { file, text: String::new() })
    }

    /// How many routes lead into the pool.
    fn len(&mut self) -> Result<usize> {
        self.text.clear();
        self.file.rewind()?;
        self.file.read_to_string(&mut self.text)?;
        // Destinations are hexadecimal, in the order of the machine.
        let of_pool = |line: &&str| line.split('\t').nth(1).is_some_and(|to| to.ends_with("12C6"));
        Ok(self.text.lines().filter(of_pool).count())
    }

    /// The time until there are so many.
    fn wait_for(&mut self, count: usize, since: Instant) -> Result<Duration> {
        loop {
            let now = self.len()?;
            if now == count {
                return Ok(since.elapsed());
            }
            ensure!(since.elapsed() < PATIENCE, "{now} routes, not {count}");
            std::thread::sleep(LOOK);
        }
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
