//! Echo requests to an address, and what became of them.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Result, ensure};
use netlab::{Namespace, Process, wait_for};

use crate::lab::LIMIT;

/// Echo requests to an address, one every 5 ms as far as the kernel's clock is that fine.
#[derive(Debug)]
pub struct Pings {
    process: Process,
}

/// What became of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answers {
    /// Echo requests up to the last that was answered.
    pub sent: usize,
    /// Those among them that were not answered.
    pub lost: usize,
    /// The longest time between two answers.
    pub longest_gap: Duration,
}

impl Pings {
    /// Starts, and waits for the first answers.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn start(host: &Namespace, address: &str) -> Result<Self> {
        let mut command = host.command("ping");
        // Bounded, should nobody end it.
        command.args(["-D", "-n", "-i", "0.005", "-w", "60", address]);
        let process = host.spawn(&format!("ping-{}", address.replace(':', "-")), command)?;
        let this = Self { process };
        this.wait_for_more()?;
        Ok(this)
    }

    /// Waits until some fifty more were answered.
    ///
    /// # Errors
    /// When they are not.
    pub fn wait_for_more(&self) -> Result<()> {
        let before = self.arrivals()?.len();
        wait_for("pings are answered", LIMIT, || {
            let now = self.arrivals()?.len();
            ensure!(now >= before + 50, "{before} answers, then {now}");
            Ok(())
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn stop(self) -> Result<Answers> {
        let arrivals = self.arrivals()?;
        let sent = arrivals.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let answered: BTreeSet<_> = arrivals.iter().map(|(number, _)| *number).collect();
        let mut times: Vec<_> = arrivals.iter().map(|(_, at)| *at).collect();
        times.sort_by(f64::total_cmp);
        let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        // Another of the same name starts with an empty log.
        let log = self.process.log().to_owned();
        self.process.kill();
        fs::remove_file(log)?;
        let longest_gap = Duration::from_secs_f64(longest);
        Ok(Answers { sent, lost: sent - answered.len(), longest_gap })
    }

    /// The number of each request that was answered, and when, in seconds.
    fn arrivals(&self) -> Result<Vec<(usize, f64)>> {
        let text = fs::read_to_string(self.process.log())?;
        let arrival = |line: &str| {
            let (time, rest) = line.strip_prefix('[')?.split_once(']')?;
            let number = rest.split_once("bytes from")?.1.split_once("icmp_seq=")?.1;
            let number = number.split_whitespace().next()?;
            Some((number.parse().ok()?, time.parse().ok()?))
        };
        Ok(text.lines().filter_map(arrival).collect())
    }
}
