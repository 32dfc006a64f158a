//! `berth probe` as a child process in a client's namespace.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::Context;
use netlab::Namespace;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::Instant,
};

use super::stage::command;
use crate::probe::Report;

/// From one try to the next, while waiting for the first answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Sends requests until it is stopped or dropped.
#[derive(Debug)]
pub struct Prober {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    last: Report,
}

impl Prober {
    /// # Errors
    /// When the process does not start.
    pub fn start(client: &Namespace, target: SocketAddr, count: u32) -> anyhow::Result<Self> {
        let mut probe = command(client, std::env::current_exe()?);
        probe.args(["probe", "--until-closed", "--target", &target.to_string()]);
        probe.args(["--count", &count.to_string()]);
        let mut child = Command::from(probe)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting the prober")?;
        let stdout = child.stdout.take().context("the prober has no output")?;
        Ok(Self { child, lines: BufReader::new(stdout).lines(), last: Report::default() })
    }

    /// Waits for a report that `wanted` takes.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub async fn until(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&Report) -> bool,
    ) -> anyhow::Result<&Report> {
        let deadline = Instant::now() + limit;
        loop {
            let next = tokio::time::timeout_at(deadline, self.next()).await;
            let seen = || format!("not seen within {limit:?}; the last report was {:?}", self.last);
            match next {
                Ok(Ok(true)) if wanted(&self.last) => return Ok(&self.last),
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => anyhow::bail!(seen()),
                Ok(Err(error)) => return Err(error.context(seen())),
            }
        }
    }

    /// What is known so far.
    pub fn report(&self) -> &Report {
        &self.last
    }

    /// Sends no more, and lets the requests under way come to their ends; the whole account.
    ///
    /// # Errors
    /// When the prober's reports cannot be read.
    pub async fn stop(mut self) -> anyhow::Result<Report> {
        drop(self.child.stdin.take());
        self.finish().await
    }

    /// Waits until all requests are sent and have come to their ends; the whole account.
    ///
    /// # Errors
    /// When the prober's reports cannot be read.
    pub async fn finish(mut self) -> anyhow::Result<Report> {
        while self.next().await? {}
        self.child.wait().await?;
        Ok(self.last)
    }

    /// Reads one report; `false` at the end.
    async fn next(&mut self) -> anyhow::Result<bool> {
        let Some(line) = self.lines.next_line().await? else { return Ok(false) };
        self.last = serde_json::from_str(&line).context("reading the prober's report")?;
        Ok(true)
    }
}

/// Requests one page, again and again until there is an answer.
///
/// # Errors
/// When there is none within `limit`.
pub async fn fetch(
    client: &Namespace,
    target: SocketAddr,
    limit: Duration,
) -> anyhow::Result<Report> {
    let deadline = Instant::now() + limit;
    loop {
        let report = Prober::start(client, target, 1)?.finish().await?;
        if report.answered > 0 {
            return Ok(report);
        }
        anyhow::ensure!(
            Instant::now() < deadline,
            "no answer from http://{target} to {} within {limit:?}",
            client.name()
        );
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
