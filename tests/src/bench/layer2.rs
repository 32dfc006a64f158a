//! What `make bench-layer2` measures, in groups that can be asked for one by one. Each builds a
//! [`segment`](super::segment) of its own, brings it back to rest after each run, and takes it down.

mod faults;
mod flood;
mod planned;
mod scale;

use std::{env, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Rows, step};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Of what takes a few seconds.
    pub runs: usize,
    /// How long heartbeats are cut or lost.
    pub window: Duration,
}

type Group = fn(&Scale, &mut Rows) -> Result<()>;

/// In the order in which they are measured.
const GROUPS: [(&str, Group); 17] = [
    ("cut", faults::cut),
    ("frozen", faults::frozen),
    ("fast", faults::fast),
    ("keepalived", faults::keepalived),
    ("api", faults::without_api),
    ("kill", faults::kill),
    ("returns", faults::returns),
    ("cutbeats", faults::beats_cut),
    ("loss", faults::beats_lost),
    ("split", faults::split),
    ("away", scale::started_without_api),
    ("planned", planned::moves),
    ("takeover", scale::take_over),
    ("flood", flood::flood),
    ("start", scale::common_start),
    ("full", scale::full),
    ("relist", scale::relist),
];

impl Scale {
    /// From `BERTH_BENCH_RUNS` and `BERTH_BENCH_WINDOW` (seconds); 10 and 60 without.
    ///
    /// # Errors
    /// When one is no number, or there is nothing to measure.
    pub fn from_environment() -> Result<Self> {
        let number = |name: &str, default: u32| match env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
            Err(_) => Ok(default),
        };
        let runs = usize::try_from(number("BERTH_BENCH_RUNS", 10)?)?;
        ensure!(runs > 0, "BERTH_BENCH_RUNS must be at least 1");
        let window = Duration::from_secs(number("BERTH_BENCH_WINDOW", 60)?.into());
        Ok(Self { runs, window })
    }

    /// Of what takes long, and of what is not ours.
    fn few(&self) -> usize {
        self.runs.div_ceil(3)
    }

    /// Of what takes a minute and more.
    fn fewest(&self) -> usize {
        self.runs.div_ceil(10)
    }
}

/// Measures the groups that `BERTH_BENCH_ROWS` names, separated by commas; all without it.
///
/// Returns the rows, and what failed.
///
/// # Errors
/// When a group has an unknown name.
pub fn measure(scale: &Scale) -> Result<(Rows, Vec<String>)> {
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
            if let Err(error) = group(scale, &mut rows) {
                eprintln!("{name}: {error:#}");
                failed.push(name.to_owned());
            }
        }
    }
    Ok((rows, failed))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
