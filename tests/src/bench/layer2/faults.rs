//! What breaks by itself: nodes, speakers, heartbeats, the segment, the API server.

use std::{
    net::Ipv4Addr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use netlab::wait_for;

use super::{Scale, ms};
use crate::{
    bench::{
        Goal, Rows, count,
        frames::{Moment, firsts},
        keepalived as vrrp,
        probe::Probes,
        segment::{DIRECT, HEARTBEATS, Plan, Segment, at, moves, on_segment},
        step,
    },
    lab::LIMIT,
};

const FLOWS: usize = 8;
const MILLISECOND: Duration = Duration::from_millis(1);
/// Between two probes where not the outage is measured but what is lost.
const PACE: Duration = Duration::from_millis(5);
/// What MetalLB needs when a node crashes.
const CRASH: &str = "[5,265 / 6,151 / 6,495 ms]";
/// The same while nobody can ask the API server.
const CRASH_WITHOUT_API: &str = "[5,255 / 5,668 / 5,882 ms]";

/// How a node dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// Its plug is pulled.
    Cut,
    /// It stands still: carrier stays, and nothing comes or goes.
    Frozen,
}

impl Death {
    fn begin(self, segment: &mut Segment, node: u8) -> Result<()> {
        match self {
            Self::Cut => segment.cut(node),
            Self::Frozen => {
                let port = format!("\"n{node}-eth0\"");
                segment.filter(&format!("iifname {port} drop\noifname {port} drop"))?;
                signal(segment, node, "STOP")
            }
        }
    }

    fn end(self, segment: &mut Segment, node: u8) -> Result<()> {
        match self {
            Self::Cut => segment.uncut(node),
            Self::Frozen => {
                signal(segment, node, "CONT")?;
                segment.filter("")
            }
        }
    }
}

/// To a speaker, or to keepalived and its child.
fn signal(segment: &Segment, node: u8, signal: &str) -> Result<()> {
    let group = format!("-{}", segment.speaker(node)?.pid());
    let sent = Command::new("sh").args(["-c", "kill -s \"$0\" -- \"$1\"", signal, &group]).status();
    ensure!(sent?.success(), "SIG{signal} to the processes of n{node}");
    Ok(())
}

/// Some flows to these addresses, whatever their number.
fn flows(addresses: &[Ipv4Addr], number: usize) -> Vec<std::net::SocketAddrV4> {
    at(addresses, DIRECT).into_iter().cycle().take(number).collect()
}

/// Lets the owner of most addresses die and come back: how long the client had no answer.
fn outage(segment: &mut Segment, death: Death) -> Result<f64> {
    let owners = segment.owners(&segment.addresses.clone())?;
    let (victim, mine) = Segment::busiest(&owners);
    let probes = Probes::start(&segment.client, &flows(&mine, FLOWS), MILLISECOND)?;
    std::thread::sleep(Duration::from_millis(300));
    death.begin(segment, victim)?;
    let moved = wait_for("another node answers all flows", LIMIT, || {
        ensure!(!probes.latest().contains(&victim), "{:?}", probes.latest());
        Ok(())
    });
    std::thread::sleep(Duration::from_millis(100));
    let outcome = probes.stop();
    death.end(segment, victim)?;
    moved?;
    let gap = ms(outcome.longest_gap);
    step(&format!("{death:?} n{victim}: {gap:.0} ms, {} of {} lost", outcome.lost, outcome.sent));
    Ok(gap)
}

fn outages(segment: &mut Segment, death: Death, runs: usize) -> Result<Vec<f64>> {
    segment.serve_probes(&segment.addresses.clone())?;
    let mut gaps = Vec::new();
    for _ in 0..runs {
        segment.start_speakers()?;
        gaps.push(outage(segment, death)?);
    }
    Ok(gaps)
}

/// A row for the median and one for the worst run.
fn push_outages(rows: &mut Rows, name: &str, gaps: Vec<f64>, metallb: &str) {
    let worst = gaps.iter().copied().fold(0.0, f64::max);
    rows.push(name, "ms", gaps, Some(Goal::Median(200.0)));
    rows.metallb(metallb);
    rows.push(&format!("{name}, worst run"), "ms", vec![worst], Some(Goal::Max(260.0)));
}

pub fn cut(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let gaps = on_segment(&Plan::default(), |segment| outages(segment, Death::Cut, scale.runs))?;
    push_outages(rows, "node cut off: client outage", gaps, CRASH);
    Ok(())
}

pub fn frozen(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let gaps = on_segment(&Plan::default(), |segment| outages(segment, Death::Frozen, scale.runs))?;
    push_outages(rows, "node frozen: client outage", gaps, CRASH);
    Ok(())
}

pub fn fast(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let plan = Plan { flags: vec!["--heartbeat-profile", "fast"], ..Plan::default() };
    for (death, name) in [
        (Death::Cut, "node cut off, fast profile: client outage"),
        (Death::Frozen, "node frozen, fast profile: client outage"),
    ] {
        let gaps = on_segment(&plan, |segment| outages(segment, death, scale.runs))?;
        rows.push(name, "ms", gaps, Some(Goal::Median(110.0)));
    }
    Ok(())
}

pub fn keepalived(scale: &Scale, rows: &mut Rows) -> Result<()> {
    for interval in ["1", "0.1"] {
        for (death, what) in [(Death::Cut, "cut off"), (Death::Frozen, "frozen")] {
            let gaps = on_segment(&Plan::default(), |segment| {
                segment.serve_probes(&segment.addresses.clone())?;
                vrrp::start(segment, interval)?;
                let mut gaps = Vec::new();
                for _ in 0..scale.few() {
                    vrrp::at_rest(segment)?;
                    gaps.push(outage(segment, death)?);
                    // For whoever was away to hear that there is another.
                    std::thread::sleep(Duration::from_millis(1500));
                }
                Ok(gaps)
            })?;
            let name = format!("keepalived, VRRPv3 {interval} s, node {what}: client outage");
            rows.push(&name, "ms", gaps, None);
        }
    }
    Ok(())
}

pub fn without_api(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let gaps = on_segment(&Plan::default(), |segment| {
        segment.serve_probes(&segment.addresses.clone())?;
        let mut gaps = Vec::new();
        for _ in 0..scale.runs {
            segment.start_speakers()?;
            segment.api.set_available(false);
            std::thread::sleep(Duration::from_secs(1));
            let gap = outage(segment, Death::Cut);
            segment.api.set_available(true);
            gaps.push(gap?);
        }
        Ok(gaps)
    })?;
    let name = "API server away, node cut off: client outage";
    push_outages(rows, name, gaps, CRASH_WITHOUT_API);
    Ok(())
}

pub fn kill(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let (mut lost, mut silence) = (Vec::new(), Vec::new());
    on_segment(&Plan::default(), |segment| {
        segment.serve_probes(&segment.addresses.clone())?;
        for _ in 0..scale.runs {
            let owners = segment.start_speakers()?;
            let (victim, mine) = Segment::busiest(&owners);
            let probes = Probes::start(&segment.client, &flows(&mine, FLOWS), PACE)?;
            std::thread::sleep(Duration::from_millis(500));
            let begin = Moment::now();
            segment.node(victim).speaker.take().context("it runs")?.kill();
            // 4,800 probes altogether.
            std::thread::sleep(Duration::from_millis(2500));
            let outcome = probes.stop();
            let first = firsts(segment.heard.since(begin)?, begin, |heard| heard.node != victim);
            let again: Vec<_> = mine.iter().filter_map(|address| first.get(address)).collect();
            ensure!(again.len() == mine.len(), "{} of {} again", again.len(), mine.len());
            let last = again.into_iter().map(|(at, _)| *at).fold(0.0, f64::max);
            step(&format!("n{victim}: {} of {} lost, {last:.0} ms", outcome.lost, outcome.sent));
            lost.push(count(outcome.lost));
            silence.push(last);
        }
        Ok(())
    })?;
    rows.push("speaker killed: lost of 4,800 probes", "", lost, Some(Goal::Max(0.0)));
    rows.metallb("[168 to 1,861 of 112,000]");
    let name = "speaker killed: until another announces the last of its addresses";
    rows.push(name, "ms", silence, Some(Goal::Max(260.0)));
    rows.metallb("[5,139 to 6,074 ms]");
    Ok(())
}

pub fn returns(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let (mut lost, mut moved) = (Vec::new(), Vec::new());
    on_segment(&Plan::default(), |segment| {
        segment.serve_probes(&segment.addresses.clone())?;
        for _ in 0..scale.runs {
            let owners = segment.start_speakers()?;
            let (victim, mine) = Segment::busiest(&owners);
            segment.cut(victim)?;
            segment.node(victim).speaker.take().context("it runs")?.kill();
            let before = segment.at_rest()?;
            let probes = Probes::start(&segment.client, &flows(&mine, FLOWS), PACE)?;
            std::thread::sleep(Duration::from_millis(500));
            let begin = Moment::now();
            segment.uncut(victim)?;
            let after = segment.start_speakers()?;
            std::thread::sleep(Duration::from_secs(3));
            let outcome = probes.stop();
            let elsewhere = before.iter().filter(|(address, node)| after[*address] != **node);
            let moves = moves(&before, segment.heard.since(begin)?).max(elsewhere.count());
            let (lost_now, sent) = (outcome.lost, outcome.sent);
            step(&format!("n{victim} is back: {moves} moves, {lost_now} of {sent} lost"));
            moved.push(count(moves));
            lost.push(count(lost_now));
        }
        Ok(())
    })?;
    rows.push("old owner returns: addresses that move", "", moved, Some(Goal::Max(0.0)));
    rows.metallb("[all]");
    rows.push("old owner returns: lost probes", "", lost, Some(Goal::Max(0.0)));
    rows.metallb("[0 to 256]");
    Ok(())
}

pub fn beats_cut(scale: &Scale, rows: &mut Rows) -> Result<()> {
    without_beats(scale, rows, "heartbeats cut", &format!("udp dport {HEARTBEATS} drop"))
}

pub fn beats_lost(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let rule = format!("udp dport {HEARTBEATS} numgen random mod 100 < 20 drop");
    without_beats(scale, rows, "20 % of heartbeats lost", &rule)
}

fn without_beats(scale: &Scale, rows: &mut Rows, name: &str, rule: &str) -> Result<()> {
    let (mut lost, mut moved) = (Vec::new(), Vec::new());
    on_segment(&Plan::default(), |segment| {
        let all = segment.addresses.clone();
        segment.serve_probes(&all)?;
        for _ in 0..scale.fewest() {
            let before = segment.start_speakers()?;
            let targets = flows(&all, all.len());
            let probes = Probes::start(&segment.client, &targets, Duration::from_millis(20))?;
            let begin = Moment::now();
            segment.filter(rule)?;
            std::thread::sleep(scale.window);
            let moves = moves(&before, segment.heard.since(begin)?);
            segment.filter("")?;
            let outcome = probes.stop();
            step(&format!("{name}: {moves} moves, {} of {} lost", outcome.lost, outcome.sent));
            moved.push(count(moves));
            lost.push(count(outcome.lost));
        }
        Ok(())
    })?;
    let seconds = scale.window.as_secs();
    rows.push(&format!("{name}, {seconds} s: moves"), "", moved, Some(Goal::Max(0.0)));
    rows.push(&format!("{name}, {seconds} s: lost probes"), "", lost, None);
    Ok(())
}

/// n1 and a client on one side, the other nodes and the other client on the other. No gateway: it
/// would be on one side only, and the other side would know itself to be cut off.
pub fn split(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let (mut outages, mut unserved, mut healed) = (Vec::new(), Vec::new(), Vec::new());
    on_segment(&Plan::default(), |segment| {
        let all = segment.addresses.clone();
        segment.serve_probes(&all)?;
        for node in &segment.nodes {
            node.namespace.ip("route delete default")?;
        }
        let targets = flows(&all, all.len());
        let here = "{ \"n1-eth0\", \"client-eth0\" }";
        let apart =
            format!("iifname {here} oifname != {here} drop\niifname != {here} oifname {here} drop");
        for _ in 0..scale.runs {
            segment.start_speakers()?;
            let near = Probes::start(&segment.client, &targets, MILLISECOND)?;
            let beside = Probes::start(&segment.beside, &targets, MILLISECOND)?;
            segment.filter(&apart)?;
            let begin = Instant::now();
            let wrong = || {
                let near = near.latest().iter().filter(|node| **node != 1).count();
                near + beside.latest().iter().filter(|node| **node == 1).count()
            };
            while wrong() > 0 && begin.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(PACE);
            }
            std::thread::sleep(Duration::from_secs(1));
            let wrong = wrong();
            let gap = near.stop().longest_gap.max(beside.stop().longest_gap);

            // Flows that nobody answers would never be under way.
            let served = wrong == 0;
            let watch = |segment: &Segment| -> Result<_> {
                let near = Probes::start(&segment.client, &targets, MILLISECOND)?;
                Ok([near, Probes::start(&segment.beside, &targets, MILLISECOND)?])
            };
            let probes = served.then(|| watch(segment)).transpose()?;
            let heal = Instant::now();
            segment.filter("")?;
            std::thread::sleep(Duration::from_secs(2));
            let outcomes = probes.map(|probes| probes.map(Probes::stop));
            let owners = segment.at_rest()?;
            let mut last = Duration::ZERO;
            for outcome in outcomes.iter().flatten() {
                for (turns, address) in outcome.turns.iter().zip(&all) {
                    let (since, node) = turns.last().context("each flow was answered")?;
                    ensure!(*node == owners[address], "a client was left with n{node}");
                    last = last.max(since.saturating_duration_since(heal));
                }
            }
            let (gap, last) = (ms(gap), ms(last));
            step(&format!("split: {gap:.0} ms, {wrong} not served; healed in {last:.0} ms"));
            outages.push(gap);
            unserved.push(count(wrong));
            if served {
                healed.push(last);
            }
        }
        Ok(())
    })?;
    rows.push("segment split: client outage", "ms", outages, None);
    let name = "segment split: flows that their own side does not answer";
    rows.push(name, "", unserved, Some(Goal::Max(0.0)));
    if !healed.is_empty() {
        let name = "segment healed: until all clients are with one owner";
        rows.push(name, "ms", healed, Some(Goal::Max(100.0)));
    }
    Ok(())
}
