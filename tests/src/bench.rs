//! What the benchmarks share: rows of figures, the table and the file that they go to, and what a
//! process has used. Measures nothing itself and asserts nothing.

pub mod asker;
pub mod bgp;
pub mod frames;
pub mod keepalived;
pub mod layer2;
pub mod probe;
pub mod segment;

use std::{env, fs, path::Path};

use anyhow::{Context, Result};
use netlab::Process;
use serde_json::{Value, json};

/// What is measured, in the form that `make bench` keeps.
#[derive(Debug, Default)]
pub struct Rows(Vec<Value>);

/// At most how much it should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// The median of the runs.
    Median(f64),
    /// Each run.
    Max(f64),
}

impl Rows {
    /// A row with at least one run.
    pub fn push(&mut self, name: &str, unit: &str, mut runs: Vec<f64>, goal: Option<Goal>) {
        runs.sort_by(f64::total_cmp);
        let (min, median, max) = (runs[0], median(&runs), runs[runs.len() - 1]);
        let (goal, met) = match goal {
            None => (None, None),
            Some(Goal::Median(goal)) => (Some(goal), Some(median <= goal)),
            Some(Goal::Max(goal)) => (Some(goal), Some(max <= goal)),
        };
        self.0.push(json!({
            "name": name, "unit": unit, "runs": runs.len(), "min": min, "median": median,
            "max": max, "goal": goal, "met": met,
        }));
    }

    /// Says beside the last row what MetalLB needs for the same, as measured once elsewhere.
    pub fn metallb(&mut self, figures: &str) {
        if let Some(row) = self.0.last_mut() {
            row["metallb"] = json!(figures);
        }
    }

    /// Prints the table. With the variable `BERTH_BENCH_FILE` set, the rows also go to that file,
    /// in the place of those of the same names; what else is in it stays, and is printed too.
    ///
    /// # Errors
    /// When the file holds something else, or cannot be written.
    pub fn publish(self) -> Result<()> {
        let rows = match env::var("BERTH_BENCH_FILE") {
            Ok(file) => merged(Path::new(&file), self.0)?,
            Err(_) => self.0,
        };
        print_table(&rows);
        Ok(())
    }
}

/// Tells how far it is: a run takes minutes.
pub fn step(what: &str) {
    let program = env::current_exe().ok();
    let name = program.as_ref().and_then(|path| path.file_name()).unwrap_or_default();
    eprintln!("{}: {what}", name.to_string_lossy());
}

/// CPU time that a process has used, in seconds: proc(5), `utime` and `stime`, in ticks of 10 ms.
///
/// # Errors
/// When it has ended.
pub fn cpu(process: &Process) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid()))?;
    let (_, fields) = stat.rsplit_once(')').context("the name comes in brackets")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

/// A size from proc(5) `status`, in megabytes of 10^6 octets.
///
/// # Errors
/// When it has ended, or there is no such field.
pub fn memory(process: &Process, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()).context(field.to_owned())?;
    Ok(kib.parse::<f64>()? * 1024.0 / 1e6)
}

/// Of at least one value.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50)
}

/// Nearest rank, of at least one value.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values[rank.max(1) - 1]
}

/// A number of things as a figure.
pub fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

fn merged(file: &Path, new: Vec<Value>) -> Result<Vec<Value>> {
    let mut all: Vec<Value> = match fs::read_to_string(file) {
        Ok(text) => serde_json::from_str(&text).with_context(|| file.display().to_string())?,
        Err(_) => Vec::new(),
    };
    all.retain(|old| !new.iter().any(|new| new["name"] == old["name"]));
    all.extend(new);
    fs::write(file, serde_json::to_string_pretty(&all)?)
        .with_context(|| format!("writing {}", file.display()))?;
    Ok(all)
}

fn print_table(rows: &[Value]) {
    let number = |value: &Value| match value.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() < 1e6 => format!("{number:.0}"),
        Some(number) => format!("{number:.2}"),
        None => String::new(),
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let longest = rows.iter().map(|row| text(&row["name"]).chars().count()).max();
    let width = longest.unwrap_or_default().max(60);
    println!(
        "\n{:<width$} {:>5} {:>10} {:>10} {:>10} {:<6} {:>8}",
        "", "runs", "min", "median", "max", "", "goal"
    );
    for row in rows {
        let verdict = match row["met"].as_bool() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let line = format!(
            "{:<width$} {:>5} {:>10} {:>10} {:>10} {:<6} {:>8} {verdict:<6} {}",
            text(&row["name"]),
            row["runs"].to_string(),
            number(&row["min"]),
            number(&row["median"]),
            number(&row["max"]),
            text(&row["unit"]),
            number(&row["goal"]),
            text(&row["metallb"]),
        );
        println!("{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_for_each_run_is_missed_by_one() {
        let mut rows = Rows::default();
        rows.push("a", "ms", vec![3.0, 1.0, 2.0], Some(Goal::Median(2.0)));
        rows.push("b", "", vec![0.0, 0.0, 1.0], Some(Goal::Max(0.0)));
        rows.push("c", "", vec![0.0], None);
        rows.metallb("[7]");
        let Rows(rows) = rows;
        assert_eq!(
            rows[0],
            json!({"name": "a", "unit": "ms", "runs": 3, "min": 1.0, "median": 2.0, "max": 3.0,
                   "goal": 2.0, "met": true})
        );
        assert_eq!((&rows[1]["median"], &rows[1]["met"]), (&json!(0.0), &json!(false)));
        assert_eq!((&rows[2]["met"], &rows[2]["metallb"]), (&Value::Null, &json!("[7]")));
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), 100.0);
        assert_eq!(percentile(&values, 99), 198.0);
        assert_eq!(percentile(&[4.0], 99), 4.0);
    }
}
