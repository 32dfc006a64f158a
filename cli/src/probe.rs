//! The demo's client: HTTP requests through one address, a new connection each, at a steady pace, and the longest time
//! for which none was answered. Bounded in count, in time and in connections under way. Not a load generator.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::backend::Answer;

/// A connection whose first packet is lost is tried again by the kernel after a second. Giving up sooner keeps such a
/// late success from being counted for the moment at which it was started.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(800);
/// Requests under way at most: those of one `REQUEST_TIMEOUT` at the shortest interval.
const IN_FLIGHT_LIMIT: usize = 800;
const REPORT_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// The address and port to send to
    #[arg(long)]
    target: SocketAddr,
    /// Milliseconds from one request to the next
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    interval: u64,
    /// Requests to send at most
    #[arg(long, default_value_t = 12_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    count: u32,
    /// Stop when standard input is closed
    #[arg(long)]
    until_closed: bool,
}

/// What was seen so far. One is printed as a line of JSON every 50 ms, and a last one at the end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub sent: usize,
    pub answered: usize,
    /// Requests that failed or were not answered in time; those still under way are not among them.
    pub lost: usize,
    /// From the start of one answered request to the start of the next answered one.
    pub longest_gap_ms: f64,
    /// From the start of the last answered request to now.
    pub silent_ms: f64,
    /// Answers by backend.
    pub backends: BTreeMap<String, usize>,
    /// The client's address as the last backend saw it.
    pub client: Option<String>,
}

/// Sends `count` requests, fewer if it is told to stop, and prints reports.
///
/// # Errors
/// When standard output is closed.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let (results, mut answered) = mpsc::channel(IN_FLIGHT_LIMIT);
    let mut log = Log::default();
    let mut pace = interval(Duration::from_millis(options.interval));
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut reports = interval(REPORT_INTERVAL);
    reports.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut stop = std::pin::pin!(closed_stdin());
    let mut sending = true;

    while sending || log.in_flight() > 0 {
        tokio::select! {
            () = &mut stop, if sending && options.until_closed => sending = false,
            _ = pace.tick(), if sending && log.in_flight() < IN_FLIGHT_LIMIT => {
                let index = log.send(Instant::now());
                sending = log.requests.len() < options.count as usize;
                let (target, results) = (options.target, results.clone());
                tokio::spawn(async move {
                    let outcome = timeout(REQUEST_TIMEOUT, request(target)).await;
                    // The receiver outlives every request: the loop ends when none is under way.
                    let _ = results.send((index, outcome.ok().and_then(Result::ok))).await;
                });
            }
            Some((index, outcome)) = answered.recv() => log.finish(index, outcome),
            _ = reports.tick() => print(&log.report(Instant::now()))?,
        }
    }
    print(&log.report(Instant::now()))
}

/// Ends when standard input does, which is how the demo says "enough". A dead parent closes it too.
async fn closed_stdin() {
    let (done, wait) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = done.send(());
    });
    let _ = wait.await;
}

async fn request(target: SocketAddr) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(target).await?;
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut response = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut response).await?;
    let body = response.windows(4).position(|w| w == b"\r\n\r\n").map(|at| &response[at + 4..]);
    Ok(serde_json::from_slice(body.unwrap_or_default())?)
}

fn print(report: &Report) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(report)?)?;
    Ok(out.flush()?)
}

/// Every request of one run, in the order of their starts.
#[derive(Debug, Default)]
struct Log {
    requests: Vec<Request>,
    finished: usize,
    backends: BTreeMap<String, usize>,
    client: Option<String>,
}

#[derive(Debug)]
struct Request {
    started: Instant,
    answered: bool,
}

impl Log {
    fn in_flight(&self) -> usize {
        self.requests.len() - self.finished
    }

    fn send(&mut self, now: Instant) -> usize {
        self.requests.push(Request { started: now, answered: false });
        self.requests.len() - 1
    }

    fn finish(&mut self, index: usize, answer: Option<Answer>) {
        self.finished += 1;
        if let Some(answer) = answer {
            self.requests[index].answered = true;
            *self.backends.entry(answer.backend).or_default() += 1;
            self.client = Some(answer.client);
        }
    }

    fn report(&self, now: Instant) -> Report {
        let answered: Vec<Instant> =
            self.requests.iter().filter(|r| r.answered).map(|r| r.started).collect();
        let gap = answered.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        let silent = answered.last().map(|&last| now - last).unwrap_or_default();
        Report {
            sent: self.requests.len(),
            answered: answered.len(),
            lost: self.finished - answered.len(),
            longest_gap_ms: gap.as_secs_f64() * 1e3,
            silent_ms: silent.as_secs_f64() * 1e3,
            backends: self.backends.clone(),
            client: self.client.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(backend: &str) -> Option<Answer> {
        Some(Answer { backend: backend.to_owned(), client: "10.0.0.100".to_owned() })
    }

    #[test]
    fn the_longest_gap_runs_from_start_to_start_of_answered_requests() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut log = Log::default();
        for ms in [0, 5, 10, 15, 20, 25, 30] {
            log.send(at(ms));
        }
        // Finished in another order than started; 10 to 20 are lost.
        for (index, ok) in [(0, true), (5, true), (1, true), (3, false), (2, false), (4, false)] {
            log.finish(index, if ok { answer("web-1") } else { None });
        }
        let report = log.report(at(40));
        assert_eq!((report.sent, report.answered, report.lost), (7, 3, 3));
        assert_eq!(report.longest_gap_ms, 20.0);
        assert_eq!(report.silent_ms, 15.0);
        assert_eq!(log.in_flight(), 1);
    }

    #[test]
    fn nothing_answered_is_no_gap_but_silence_shows_in_the_counts() {
        let start = Instant::now();
        let mut log = Log::default();
        log.send(start);
        log.finish(0, None);
        let report = log.report(start + Duration::from_secs(1));
        assert_eq!((report.answered, report.lost, report.longest_gap_ms), (0, 1, 0.0));
    }
}
