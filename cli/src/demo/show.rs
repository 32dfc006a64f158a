//! What the user sees: a line when a step begins and one when it ends, and a table of it all.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

/// Columns that most terminals have.
const TABLE_WIDTH: u16 = 118;

/// Progress goes to standard error as it happens; the results are for standard output.
#[derive(Debug)]
pub struct Show {
    colour: bool,
    begun: Option<(String, Instant)>,
    results: Results,
    printed: bool,
}

#[derive(Debug, Default, Serialize)]
struct Results {
    steps: Vec<Step>,
    measurements: Vec<Measurement>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: String,
    seen: String,
    milliseconds: f64,
}

/// One quantity, measured several times.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measurement {
    pub name: String,
    pub unit: &'static str,
    pub runs: usize,
    pub min: f64,
    pub median: f64,
    pub max: f64,
    /// What the largest must not exceed; none is set for most.
    pub goal: Option<f64>,
    pub met: Option<bool>,
}

impl Measurement {
    /// `None` if nothing was measured.
    pub fn of(name: &str, values: &[f64]) -> Option<Self> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        let name = name.to_owned();
        let runs = values.len();
        Some(Self { name, unit: "ms", runs, min, median, max, goal: None, met: None })
    }

    /// The same, with what the largest must not exceed.
    pub fn with_goal(self, goal: f64) -> Self {
        Self { goal: Some(goal), met: Some(self.max <= goal), ..self }
    }
}

impl Show {
    pub fn new() -> Self {
        Self {
            colour: std::io::stderr().is_terminal(),
            begun: None,
            results: Results::default(),
            printed: false,
        }
    }

    /// Something to know that is not a step.
    pub fn note(&self, text: &str) {
        eprintln!("{text}");
    }

    pub fn begin(&mut self, name: &str) {
        eprintln!("{} {name}", self.paint("36", "…"));
        self.begun = Some((name.to_owned(), Instant::now()));
    }

    /// Ends the step that was begun last: it was seen to work, and `seen` says what was seen.
    pub fn done(&mut self, seen: impl Into<String>) {
        let Some((name, since)) = self.begun.take() else { return };
        let (seen, took) = (seen.into(), since.elapsed());
        eprintln!(
            "{} {seen} {}",
            self.paint("32", "✓"),
            self.paint("2", &format!("({})", rounded(took)))
        );
        self.results.steps.push(Step { name, seen, milliseconds: took.as_secs_f64() * 1e3 });
    }

    /// A step that was not tried, and why.
    pub fn left_out(&mut self, name: &str, why: &str) {
        eprintln!("{} {name}: {why}", self.paint("33", "-"));
        self.results.steps.push(Step {
            name: name.to_owned(),
            seen: why.to_owned(),
            milliseconds: 0.0,
        });
    }

    /// The step that was begun last did not work.
    pub fn failed(&mut self, error: &anyhow::Error) {
        let step = self.begun.take().map(|(name, _)| name).unwrap_or_default();
        eprintln!("{} {step}: {error:#}", self.paint("31", "✗"));
    }

    pub fn measured(&mut self, measurement: Option<Measurement>) {
        self.results.measurements.extend(measurement);
    }

    /// The rows of a benchmark, as JSON.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write_measurements(&self, file: &Path) -> anyhow::Result<()> {
        let rows = serde_json::to_string_pretty(&self.results.measurements)?;
        std::fs::write(file, rows).with_context(|| format!("writing {}", file.display()))
    }

    /// Prints everything seen to standard output.
    ///
    /// # Errors
    /// When that is closed.
    pub fn print(&mut self, json: bool) -> anyhow::Result<()> {
        let text = if json { serde_json::to_string_pretty(&self.results)? } else { self.table() };
        writeln!(std::io::stdout(), "{text}")?;
        self.printed = true;
        Ok(())
    }

    /// Whether the story came to its end.
    pub fn is_printed(&self) -> bool {
        self.printed
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header(["step", "seen", "took"]);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(TABLE_WIDTH);
        for step in &self.results.steps {
            let took = rounded(Duration::from_secs_f64(step.milliseconds / 1e3));
            table.add_row([step.name.as_str(), step.seen.as_str(), took.as_str()]);
        }
        align_right(&mut table, 2);
        let mut text = table.to_string();
        if !self.results.measurements.is_empty() {
            let mut table = Table::new();
            table.load_style(UTF8_FULL_CONDENSED);
            table.set_header(["measured, in ms", "runs", "min", "median", "max"]);
            for m in &self.results.measurements {
                let number = |value: f64| format!("{value:.1}");
                let row = [
                    m.name.clone(),
                    m.runs.to_string(),
                    number(m.min),
                    number(m.median),
                    number(m.max),
                ];
                table.add_row(row);
            }
            (1..5).for_each(|column| align_right(&mut table, column));
            text.push('\n');
            text.push_str(&table.to_string());
        }
        text
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// For people: whole milliseconds, or seconds with one digit.
pub fn rounded(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        format!("{:.0} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

fn align_right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_of_the_sorted_values() {
        for (values, expected) in [
            (vec![], None),
            (vec![3.0], Some((3.0, 3.0, 3.0))),
            (vec![9.0, 1.0, 2.0], Some((1.0, 2.0, 9.0))),
            (vec![4.0, 1.0, 2.0, 9.0], Some((1.0, 3.0, 9.0))),
        ] {
            let got = Measurement::of("x", &values).map(|m| (m.min, m.median, m.max));
            assert_eq!(got, expected, "{values:?}");
        }
    }

    #[test]
    fn the_table_has_every_step_and_measurement() {
        let mut show = Show::new();
        show.begin("the network");
        show.done("10 namespaces");
        show.measured(Measurement::of("outage", &[100.0, 200.0]));
        let table = show.table();
        for text in ["the network", "10 namespaces", "outage", "150.0"] {
            assert!(table.contains(text), "{text} is not in\n{table}");
        }
        let json = serde_json::to_value(&show.results).unwrap();
        assert_eq!(json["measurements"][0]["median"], 150.0);
    }
}
