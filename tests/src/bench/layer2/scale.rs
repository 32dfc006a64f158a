//! Many Services: starts, take-overs, one more among thousands, and the wire beside a long list.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use crds::ServiceL2Status;
use futures::StreamExt;
use kube::{
    Api,
    runtime::{watcher, watcher::Event},
};
use netlab::wait_for;

use super::{Scale, ms};
use crate::{
    bench::{
        Goal, Rows, count, cpu,
        frames::{Moment, firsts},
        memory, percentile,
        probe::Probes,
        segment::{DIRECT, HEARTBEATS, Plan, Segment, at, on_segment},
        step,
    },
    lab::{LIMIT, NAMESPACE},
};

/// Of the default profile.
const BEAT: Duration = Duration::from_millis(40);
/// How late a heartbeat may be, in milliseconds.
const LATE: f64 = 10.0;
const LATENESS: &str = "berth_speaker_heartbeat_lateness_seconds_bucket";
/// Objects that watches have told of.
const LISTED: &str = "metallb_k8s_client_updates_total";
/// The API server needs some 30 ms for each page of 500.
const TO_LIST: Duration = Duration::from_secs(180);
/// The repetitions of a gratuitous frame take 5 s.
const START: Duration = Duration::from_secs(10);
const AT_REST: Duration = Duration::from_secs(20);
const SAMPLES: usize = 100;

/// All speakers killed and started again while nobody can ask the API server.
pub fn started_without_api(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let (mut times, mut moved) = (Vec::new(), Vec::new());
    on_segment(&Plan::default(), |segment| {
        for _ in 0..scale.runs {
            let before = segment.start_speakers()?;
            segment.api.set_available(false);
            std::thread::sleep(Duration::from_millis(500));
            for node in &mut segment.nodes {
                drop(node.speaker.take());
            }
            let begin = Moment::now();
            for number in 1..=3 {
                segment.start_speaker(number)?;
            }
            let first = announced(segment, begin, before.len())?;
            let last = first.values().map(|(at, _)| *at).fold(0.0, f64::max);
            let after = segment.at_rest()?;
            segment.api.set_available(true);
            let elsewhere = before.iter().filter(|(address, node)| after[*address] != **node);
            let elsewhere = elsewhere.count();
            step(&format!("all addresses after {last:.0} ms, {elsewhere} elsewhere"));
            times.push(last);
            moved.push(count(elsewhere));
        }
        Ok(())
    })?;
    let name = "all speakers started while the API server is away: all addresses announced";
    rows.push(name, "ms", times, None);
    rows.metallb("[exits at once]");
    let name = "all speakers started while the API server is away: elsewhere than before";
    rows.push(name, "", moved, Some(Goal::Max(0.0)));
    Ok(())
}

/// When, in milliseconds since then, and by whom each address was first announced to all; waits
/// until so many were.
fn announced(
    segment: &mut Segment,
    begin: Moment,
    number: usize,
) -> Result<BTreeMap<Ipv4Addr, (f64, u8)>> {
    wait_for(&format!("{number} addresses are announced"), LIMIT, || {
        let first = firsts(segment.heard.since(begin)?, begin, |heard| heard.gratuitous);
        ensure!(first.len() >= number, "{} are", first.len());
        Ok(first)
    })
}

/// A node with 1,000 addresses dies, and one takes them all.
pub fn take_over(scale: &Scale, rows: &mut Rows) -> Result<()> {
    const ADDRESSES: usize = 1000;
    const PROBED: usize = 100;
    let plan = Plan { nodes: 2, announced: ADDRESSES, ..Plan::default() };
    let (mut times, mut left) = (Vec::new(), Vec::new());
    on_segment(&plan, |segment| {
        let probed: Vec<_> =
            segment.addresses.iter().copied().step_by(ADDRESSES / PROBED).collect();
        segment.serve_probes(&probed)?;
        for _ in 0..scale.runs {
            let (victim, survivor) = all_with_one(segment)?;
            let probes =
                Probes::start(&segment.client, &at(&probed, DIRECT), Duration::from_millis(10))?;
            let begin = Moment::now();
            segment.cut(victim)?;
            let taken = wait_for("all addresses are taken over", LIMIT, || {
                let first = firsts(segment.heard.since(begin)?, begin, |heard| {
                    heard.node == survivor && heard.gratuitous
                });
                ensure!(first.len() == ADDRESSES, "{} are", first.len());
                Ok(first.into_values().map(|(at, _)| at).fold(0.0, f64::max))
            });
            std::thread::sleep(Duration::from_millis(500));
            let elsewhere = probes.latest().iter().filter(|node| **node != survivor).count();
            probes.stop();
            segment.uncut(victim)?;
            let taken = taken?;
            step(&format!("n{survivor} took all in {taken:.0} ms, {elsewhere} clients left"));
            times.push(taken);
            left.push(count(elsewhere));
        }
        Ok(())
    })?;
    let name = "1,000 addresses taken over: last first gratuitous frame";
    rows.push(name, "ms", times, Some(Goal::Median(1200.0)));
    let name = "1,000 addresses taken over: flows not moved, of 100";
    rows.push(name, "", left, Some(Goal::Max(0.0)));
    Ok(())
}

/// Makes one of two nodes own everything while both run: the one with less crashes and comes back
/// without knowing anything. Returns the owner and the other.
fn all_with_one(segment: &mut Segment) -> Result<(u8, u8)> {
    let owners = segment.start_speakers()?;
    let (most, its) = Segment::busiest(&owners);
    let other = 3 - most;
    if its.len() < owners.len() {
        segment.node(other).speaker.take().context("it runs")?.kill();
        segment.at_rest()?;
        segment.forget(other)?;
        let owners = segment.start_speakers()?;
        let (owner, its) = Segment::busiest(&owners);
        ensure!(
            owner == most && its.len() == owners.len(),
            "n{owner} has {} of {} addresses after n{other} has come back",
            its.len(),
            owners.len()
        );
    }
    Ok((most, other))
}

/// Three speakers that know nothing start at the same moment.
pub fn common_start(scale: &Scale, rows: &mut Rows) -> Result<()> {
    const SERVICES: usize = 1000;
    let plan = Plan { announced: SERVICES, ..Plan::default() };
    let (mut twice, mut used, mut written, mut last) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    on_segment(&plan, |segment| {
        let writes = Arc::new(AtomicUsize::new(0));
        count_status_writes(segment, Arc::clone(&writes));
        for _ in 0..scale.runs {
            for number in 1..=3 {
                drop(segment.node(number).speaker.take());
                segment.forget(number)?;
            }
            for status in segment.api.list("metallb.io/v1beta1", "ServiceL2Status", None)? {
                let name = status["metadata"]["name"].as_str().context("it has a name")?;
                segment.api.delete("metallb.io/v1beta1", "ServiceL2Status", NAMESPACE, name)?;
            }
            std::thread::sleep(Duration::from_secs(1));
            writes.store(0, Ordering::Relaxed);
            let begin = Moment::now();
            for number in 1..=3 {
                segment.start_speaker(number)?;
            }
            let first = announced(segment, begin, SERVICES)?;
            std::thread::sleep(START.saturating_sub(begin.instant.elapsed()));
            let mut nodes: BTreeMap<Ipv4Addr, BTreeSet<u8>> = BTreeMap::new();
            for heard in segment.heard.since(begin)?.iter().filter(|heard| heard.gratuitous) {
                nodes.entry(heard.address).or_default().insert(heard.node);
            }
            let by_two = nodes.values().filter(|nodes| nodes.len() > 1).count();
            let seconds = segment.speakers().map(cpu).collect::<Result<Vec<_>>>()?;
            let statuses = writes.load(Ordering::Relaxed);
            let all = first.values().map(|(at, _)| *at).fold(0.0, f64::max);
            step(&format!(
                "{by_two} announced by two, CPU {seconds:?} s, {statuses} writes, all announced \
                 after {all:.0} ms"
            ));
            twice.push(count(by_two));
            used.push(seconds.into_iter().fold(0.0, f64::max));
            written.push(count(statuses) / count(SERVICES));
            last.push(all);
        }
        Ok(())
    })?;
    let name = "3 speakers start together, 1,000 Services: addresses announced by two";
    rows.push(name, "", twice, Some(Goal::Max(0.0)));
    rows.metallb("[0, 20 and 205]");
    let name = "3 speakers start together: CPU of the busiest in the first 10 s";
    rows.push(name, "s", used, Some(Goal::Median(0.3)));
    rows.metallb("[1.8 to 2.4 s]");
    let name = "3 speakers start together: status writes an address, beside its creation";
    rows.push(name, "", written, Some(Goal::Max(1.0)));
    rows.metallb("[2, and 2 to 3 Events]");
    rows.push("3 speakers start together: last address announced", "ms", last, None);
    Ok(())
}

/// Counts from now on.
fn count_status_writes(segment: &Segment, writes: Arc<AtomicUsize>) {
    let api = segment.api.clone();
    segment.runtime().spawn(async move {
        let statuses = Api::<ServiceL2Status>::all(api.client());
        let mut events = std::pin::pin!(watcher(statuses, watcher::Config::default()));
        while let Some(event) = events.next().await {
            // An API server drops the status of an object that is created: making it is a write of
            // its own, of which there is one an object, and no status write.
            if let Ok(Event::Apply(written)) = event
                && written.status.is_some_and(|status| status.node.is_some())
            {
                writes.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
}

/// 10,000 Services with five EndpointSlices each: what a speaker needs, and how long one more takes.
pub fn full(_: &Scale, rows: &mut Rows) -> Result<()> {
    let plan = Plan { announced: 10_000, slices: 5, ..Plan::default() };
    on_segment(&plan, |segment| {
        let writes = Arc::new(AtomicUsize::new(0));
        count_status_writes(segment, Arc::clone(&writes));
        segment.start_speakers()?;
        // The last of the gratuitous frames, and of what is told of addresses that were seen.
        segment.wait_for_silence(Duration::from_secs(6))?;
        let mut known = 0;
        while known != writes.load(Ordering::Relaxed) {
            known = writes.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_secs(6));
        }
        let before = segment.speakers().map(cpu).collect::<Result<Vec<_>>>()?;
        std::thread::sleep(AT_REST);
        let after = segment.speakers().map(cpu).collect::<Result<Vec<_>>>()?;
        let share =
            |(before, after): (&f64, &f64)| 100.0 * (after - before) / AT_REST.as_secs_f64();
        let shares = before.iter().zip(&after).map(share).collect();
        let sizes = segment.speakers().map(|speaker| memory(speaker, "VmRSS"));
        let sizes = sizes.collect::<Result<Vec<_>>>()?;
        let peaks = segment.speakers().map(|speaker| memory(speaker, "VmHWM"));
        let peaks = peaks.collect::<Result<Vec<_>>>()?;
        let name = "10,000 Services, 50,000 EndpointSlices: resident memory, each speaker";
        rows.push(name, "MB", sizes, Some(Goal::Max(25.0)));
        rows.metallb("[5,000 Services: 150 MB]");
        rows.push("10,000 Services, 50,000 EndpointSlices: peak memory", "MB", peaks, None);
        let name = "10,000 Services, 50,000 EndpointSlices: CPU at rest";
        rows.push(name, "%", shares, Some(Goal::Max(1.0)));

        let times = one_more(segment)?;
        let name = "10,000 Services: status written to first frame";
        rows.push(name, "ms", times.clone(), Some(Goal::Median(35.0)));
        rows.push(&format!("{name}, p99"), "ms", vec![percentile(&times, 99)], None);
        Ok(())
    })?;
    let plan = Plan { flags: vec!["--conflict-probe", "off"], slices: 1, ..plan };
    on_segment(&plan, |segment| {
        segment.start_speakers()?;
        segment.wait_for_silence(Duration::from_secs(6))?;
        let times = one_more(segment)?;
        let name = "10,000 Services, no conflict probe: status written to first frame";
        rows.push(name, "ms", times.clone(), Some(Goal::Median(5.0)));
        rows.metallb("[7.2 / 9.4 ms with 1,000]");
        let p99 = percentile(&times, 99);
        rows.push(&format!("{name}, p99"), "ms", vec![p99], Some(Goal::Max(20.0)));
        Ok(())
    })
}

/// One Service after the other gets its address: milliseconds from just before the write of the
/// status to the first frame at the client.
fn one_more(segment: &mut Segment) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for _ in 0..SAMPLES {
        let (whole, address) = segment.one_more()?;
        std::thread::sleep(Duration::from_millis(100));
        let begin = Moment::now();
        segment.api.apply(&whole)?;
        times.push(wait_for(&format!("{address} is announced"), LIMIT, || {
            let mut heard = segment.heard.since(begin)?.iter();
            let first = heard.find(|heard| heard.address == address && heard.gratuitous);
            Ok(begin.ms_to(first.context("it is not")?.at))
        })?);
    }
    Ok(times)
}

/// How late heartbeats are while 100,000 Services are listed anew.
pub fn relist(scale: &Scale, rows: &mut Rows) -> Result<()> {
    const SERVICES: usize = 100_000;
    const LOUD: usize = 1000;
    let plan = Plan { nodes: 2, announced: LOUD, silent: SERVICES - LOUD, ..Plan::default() };
    let (mut late, mut latest, mut counted) = (Vec::new(), Vec::new(), Vec::new());
    on_segment(&plan, |segment| {
        step("starting with 100,000 Services");
        segment.start_speakers()?;
        let filter = format!("udp and dst port {HEARTBEATS} and src host 10.0.0.11");
        let neighbour = segment.node(2).namespace.clone();
        let mut beats = segment.capture(&neighbour, "beats", &filter)?;
        for _ in 0..scale.few() {
            let before = segment.metrics(1)?;
            let (buckets, used) = (lateness(&before), cpu(segment.speaker(1)?)?);
            beats.read()?;
            let begin = Instant::now();
            segment.api.expire_watches();
            let listed = value(&before, LISTED) + count(SERVICES);
            wait_for("all Services are listed anew", TO_LIST, || {
                let now = value(&segment.metrics(1)?, LISTED);
                ensure!(now >= listed, "{now} of {listed} objects");
                Ok(())
            })?;
            let time = begin.elapsed().as_secs_f64();
            let at: Vec<u64> = beats.read()?.into_iter().map(|(at, _)| at).collect();
            let gaps = at.windows(2).map(|pair| Duration::from_nanos(pair[1] - pair[0]));
            let lateness_of: Vec<_> = gaps.map(|gap| ms(gap.saturating_sub(BEAT))).collect();
            ensure!(!lateness_of.is_empty(), "n1 sent no heartbeat");
            let (p99, worst) = (percentile(&lateness_of, 99), percentile(&lateness_of, 100));
            let used = cpu(segment.speaker(1)?)? - used;
            step(&format!(
                "{} beats, p99 {p99:.1} ms late, worst {worst:.1} ms; the list took {time:.1} s, \
                 and n1 {used:.1} s of CPU",
                at.len()
            ));
            late.push(p99);
            latest.push(worst);
            counted.extend(p99_between(&buckets, &lateness(&segment.metrics(1)?)));
        }
        Ok(())
    })?;
    let name = "100,000 Services listed anew: lateness of a heartbeat on the wire, p99";
    rows.push(name, "ms", late, Some(Goal::Max(LATE)));
    rows.push("100,000 Services listed anew: latest heartbeat", "ms", latest, None);
    ensure!(!counted.is_empty(), "there is no {LATENESS}");
    let name = "100,000 Services listed anew: lateness by its histogram, p99 at most";
    rows.push(name, "ms", counted, Some(Goal::Max(LATE)));
    Ok(())
}

/// A counter without labels.
fn value(metrics: &str, name: &str) -> f64 {
    let value = |line: &str| line.strip_prefix(name)?.trim().parse::<f64>().ok();
    metrics.lines().find_map(value).unwrap_or_default()
}

/// The cumulative buckets of the histogram, by their bound in milliseconds as it is written.
fn lateness(metrics: &str) -> Vec<(f64, f64)> {
    let bucket = |line: &str| {
        let rest = line.strip_prefix(LATENESS)?;
        let bound = rest.split("le=\"").nth(1)?.split('"').next()?;
        let count = rest.rsplit(' ').next()?.parse().ok()?;
        Some((bound.parse::<f64>().unwrap_or(f64::INFINITY) * 1e3, count))
    };
    metrics.lines().filter_map(bucket).collect()
}

/// The bound that 99 of 100 of those between two readings keep; none without any.
fn p99_between(before: &[(f64, f64)], after: &[(f64, f64)]) -> Option<f64> {
    let new: Vec<_> =
        before.iter().zip(after).map(|((bound, old), (_, new))| (*bound, new - old)).collect();
    let (_, all) = *new.last()?;
    let bound = new.iter().find(|(_, count)| *count >= 0.99 * all).map(|(bound, _)| *bound);
    bound.filter(|_| all > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_histogram_is_read_between_two_moments() {
        let text = |a: u32, b: u32, c: u32| {
            format!(
                "# HELP {LATENESS} x\n{LATENESS}{{le=\"0.001\"}} {a}\n\
                 {LATENESS}{{le=\"0.01\"}} {b}\n{LATENESS}{{le=\"+Inf\"}} {c}\nother 3\n"
            )
        };
        let (before, after) = (lateness(&text(10, 10, 20)), lateness(&text(108, 110, 120)));
        assert_eq!(before, [(1.0, 10.0), (10.0, 10.0), (f64::INFINITY, 20.0)]);
        assert_eq!(p99_between(&before, &after), Some(10.0));
        assert_eq!(p99_between(&before, &before), None);
        assert_eq!(p99_between(&[], &[]), None);
    }
}
