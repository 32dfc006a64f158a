//! Many routes: what a thousand Services cost the speaker, and a hundred thousand the engine.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bgp::{Attributes, Changes, Event, PeerAsn, SessionConfig, StateKind};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use netlab::Signal;
use serde_json::Value;

use super::{PATIENCE, Table, expose, ms, on_bench};
use crate::{
    bare_speaker::BareSpeaker,
    bench::{Goal, Rows, cpu, memory},
    lab::{Router, RouterConfig, RouterKind, Stage, Transport},
    raw_peer::{Open, RawPeer, UPDATE, keepalive, update},
};

/// Addresses of routes that belong to no Service: 11.0.0.0 and on.
const FIRST: u32 = 0x0b00_0000;

/// A speaker that starts where there are 1,000 Services, gets 1,000 more, and loses the first.
pub(super) fn services(runs: usize, rows: &mut Rows) -> Result<()> {
    let [mut start, mut start_cpu, mut resident, mut more_cpu, mut withdrawn, mut updates] =
        [const { Vec::new() }; 6];
    for _ in 0..runs.div_ceil(3) {
        on_bench(|stage| {
            let _router = Router::start(stage, RouterKind::Bird, RouterConfig::EXTERNAL)?;
            let mut table = Table::of(&stage.router)?;
            expose(stage, 0, 1000)?;
            stage.start_speaker(1)?;
            table.wait_for(1000, Instant::now())?;
            let complete = Timestamp::now();
            let log =
                fs::read_to_string(stage.nodes[0].speaker.as_ref().context("it runs")?.log())?;
            start.push(
                (complete.as_microsecond() - established(&log)?.as_microsecond()) as f64 / 1e3,
            );
            let speaker = stage.nodes[0].speaker.as_ref().context("it runs")?;
            start_cpu.push(cpu(speaker)?);
            resident.push(memory(speaker, "VmRSS")?);
            let before = cpu(speaker)?;
            expose(stage, 1000, 2000)?;
            table.wait_for(2000, Instant::now())?;
            more_cpu.push((cpu(speaker)? - before) * 1e3 / 1000.0);
            let since = Instant::now();
            stage.api.delete("metallb.io/v1beta1", "BGPAdvertisement", "metallb-system", "pool")?;
            withdrawn.push(ms(table.wait_for(0, since)?));
            Ok(())
        })?;
        on_bench(|stage| {
            let peer = RawPeer::listen(&stage.router, ([10, 0, 0, 1], 179).into())?;
            expose(stage, 0, 1000)?;
            stage.start_speaker(1)?;
            let mut connection = peer.accept()?;
            connection.establish(&Open::new(RouterConfig::EXTERNAL.asn))?;
            let (mut prefixes, mut messages) = (0, 0.0);
            while prefixes < 1000 {
                let message = connection.expect(UPDATE)?;
                let attributes: usize = message.attributes()?.len();
                if attributes > 0 {
                    messages += 1.0;
                    // 5 octets each (RFC 4271 section 4.3), after the lengths and the attributes.
                    let length =
                        usize::from(u16::from_be_bytes([message.body[2], message.body[3]]));
                    prefixes += (message.body.len() - 4 - length) / 5;
                }
            }
            updates.push(messages);
            Ok(())
        })?;
    }
    let of = |what: &str| format!("start with 1,000 Services: {what}");
    rows.push(&of("all routes, from the session on"), "ms", start, Some(Goal::Median(500.0)));
    rows.metallb("[2.8 / 3.8 / 6.8 s]");
    rows.push(&of("UPDATEs"), "", updates, Some(Goal::Max(2.0)));
    rows.metallb("[1,000]");
    rows.push(&of("CPU"), "s", start_cpu, Some(Goal::Median(0.3)));
    rows.metallb("[3.7 to 6.5 s]");
    rows.push(&of("resident"), "MB", resident, Some(Goal::Max(20.0)));
    rows.metallb("[94 to 102 MB]");
    rows.push("1,000 Services more, CPU each", "ms", more_cpu, Some(Goal::Median(0.5)));
    rows.metallb("[11.7 ms]");
    rows.push("2,000 routes withdrawn at once", "ms", withdrawn, Some(Goal::Median(50.0)));
    rows.metallb("[2.86 s for 1,000]");
    Ok(())
}

/// When the speaker's session came up, by its own log.
fn established(log: &str) -> Result<Timestamp> {
    let line = log.lines().find(|line| line.contains("BGP session established"));
    let line: Value = serde_json::from_str(line.context("a session")?)?;
    Ok(line["timestamp"].as_str().context("a time")?.parse()?)
}

/// 10,000 and 100,000 routes of the engine alone, and of BIRD in its place.
pub(super) fn scale(runs: usize, rows: &mut Rows) -> Result<()> {
    for (routes, messages) in [(10_000, 13.0), (100_000, 130.0)] {
        let [mut ours, mut birds, mut updates] = [const { Vec::new() }; 3];
        for _ in 0..runs.div_ceil(3) {
            on_bench(|stage| {
                let mut router = Router::start(stage, RouterKind::Bird, RouterConfig::EXTERNAL)?;
                let mut speaker = engine(stage)?;
                speaker.change(announced(routes, 0))?;
                speaker.tell(Event::Complete)?;
                let is_up =
                    |speaker: &BareSpeaker| Ok(speaker.session().state() == StateKind::Established);
                speaker.run_until(PATIENCE, is_up)?;
                let since = Instant::now();
                speaker.run_until(PATIENCE, has(&router, routes))?;
                ours.push(ms(since.elapsed()));
                let sent = u32::try_from(speaker.session().stats().sent.update)?;
                updates.push(f64::from(sent));
                drop(speaker);
                router.stop()?;
                router.run()?;
                birds.push(ms(sent_by_bird(stage, &router, routes)?));
                Ok(())
            })?;
        }
        rows.push(&format!("{routes} routes until BIRD has them"), "ms", ours, None);
        rows.push(&format!("{routes} routes: UPDATEs"), "", updates, Some(Goal::Max(messages)));
        rows.push(&format!("{routes} routes, sent by BIRD 2"), "ms", birds, None);
    }
    Ok(())
}

/// 100,000 changes, ten times over, while the router is frozen: what the sender keeps of it.
pub(super) fn churn(_: usize, rows: &mut Rows) -> Result<()> {
    const ROUTES: u32 = 100_000;
    let (mut growth, mut updates) = (Vec::new(), Vec::new());
    on_bench(|stage| {
        let router = Router::start(stage, RouterKind::Bird, RouterConfig::EXTERNAL)?;
        let mut speaker = engine(stage)?;
        speaker.change(announced(ROUTES, 0))?;
        speaker.tell(Event::Complete)?;
        speaker.run_until(PATIENCE, has(&router, ROUTES))?;
        let before = own_memory()?;
        router.signal(Signal::Stop)?;
        for round in 1..=10 {
            speaker.change(announced(ROUTES, round))?;
            // What the kernel's buffers take goes; the rest stays with the session.
            let until = Instant::now() + Duration::from_millis(100);
            speaker.run_until(PATIENCE, |_| Ok(Instant::now() >= until))?;
        }
        growth.push(own_memory()? - before);
        router.signal(Signal::Continue)?;
        speaker.run_until(PATIENCE, |speaker| Ok(speaker.is_written()))?;
        updates.push(f64::from(u32::try_from(speaker.session().stats().sent.update)?));
        Ok(())
    })?;
    rows.push("1,000,000 changes for a frozen router: memory", "MB", growth, Some(Goal::Max(20.0)));
    // The kernel's buffers take some of the states between; each would be 126 messages.
    rows.push("… UPDATEs in all, of 1,386 for every state", "", updates, None);
    Ok(())
}

/// 100,000 routes that a router sends to the speaker, which wants none.
pub(super) fn leak(runs: usize, rows: &mut Rows) -> Result<()> {
    let mut growth = Vec::new();
    for _ in 0..runs.div_ceil(3) {
        on_bench(|stage| {
            let peer = RawPeer::listen(&stage.router, ([10, 0, 0, 1], 179).into())?;
            expose(stage, 0, 1)?;
            stage.start_speaker(1)?;
            let mut connection = peer.accept()?;
            connection.establish(&Open::new(RouterConfig::EXTERNAL.asn))?;
            connection.check_established()?;
            let speaker = stage.nodes[0].speaker.as_ref().context("it runs")?;
            let before = memory(speaker, "VmRSS")?;
            let attributes =
                [0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfc, 1, 0x40, 3, 4, 10, 0, 0, 1];
            let prefixes: Vec<_> = (0..100_000).map(|n| (FIRST + n).to_be_bytes()).collect();
            for some in prefixes.chunks(800) {
                let nlri: Vec<_> = some.iter().flat_map(|p| [&[32], &p[..]].concat()).collect();
                connection.send(&update(&[], &attributes, &nlri))?;
            }
            connection.send(&keepalive())?;
            connection.check_established()?;
            thread::sleep(Duration::from_secs(1));
            growth.push(memory(speaker, "VmRSS")? - before);
            Ok(())
        })?;
    }
    rows.push("100,000 routes leaked to the speaker: memory", "MB", growth, Some(Goal::Max(5.0)));
    Ok(())
}

/// A session of the engine alone, from node 1.
fn engine(stage: &Stage) -> Result<BareSpeaker> {
    let RouterConfig { asn, node_asn, .. } = RouterConfig::EXTERNAL;
    let config = SessionConfig::new(node_asn, PeerAsn::Number(asn), [10, 0, 0, 11].into());
    let host = &stage.nodes[0].namespace;
    let mut speaker = BareSpeaker::new(host, ([10, 0, 0, 1], 179).into(), config, None);
    speaker.tell(Event::Start)?;
    Ok(speaker)
}

fn announced(count: u32, med: u32) -> Changes {
    let attributes = Arc::new(Attributes { med: Some(med), ..Attributes::default() });
    let prefix = |number| IpNet::from(IpAddr::from(Ipv4Addr::from(FIRST + number)));
    (0..count).map(|number| (prefix(number), Some(Arc::clone(&attributes)))).collect()
}

/// Whether the router has so many prefixes, asked when all is written, and seldom: to be asked costs
/// it time too.
fn has(router: &Router, count: u32) -> impl FnMut(&BareSpeaker) -> Result<bool> + '_ {
    let mut asked = Instant::now();
    move |speaker| {
        if !speaker.is_written() || asked.elapsed() < Duration::from_millis(10) {
            return Ok(false);
        }
        let now = router.prefixes(Transport::V4.node(1))?;
        asked = Instant::now();
        Ok(now == u64::from(count))
    }
}

/// BIRD on node 1 in the place of the engine: the time from its session on.
fn sent_by_bird(stage: &Stage, router: &Router, routes: u32) -> Result<Duration> {
    let RouterConfig { asn, node_asn, .. } = RouterConfig::EXTERNAL;
    let folder = stage.directory().join("sender");
    fs::create_dir_all(&folder)?;
    let prefixes = (0..routes).map(|number| Ipv4Addr::from(FIRST + number));
    let list: String = prefixes.map(|prefix| format!("route {prefix}/32 unreachable;\n")).collect();
    let file = |name: &str| folder.join(name);
    fs::write(
        file("bird.conf"),
        format!(
            "router id 10.0.0.11;\nlog stderr all;\nprotocol device {{}}\n\
             protocol static {{ ipv4;\n{list}}}\n\
             protocol bgp uplink {{ local 10.0.0.11 as {node_asn}; neighbor 10.0.0.1 as {asn};\n\
             connect delay time 0; connect retry time 1; direct;\n\
             ipv4 {{ import none; export all; next hop self; }}; }}\n"
        ),
    )?;
    let host = &stage.nodes[0].namespace;
    let mut command = host.command("bird");
    command.arg("-f").arg("-c").arg(file("bird.conf"));
    command.arg("-s").arg(file("ctl")).arg("-P").arg(file("pid"));
    let sender = host.spawn("bird", command)?;
    let deadline = Instant::now() + PATIENCE;
    let mut up = None;
    loop {
        anyhow::ensure!(Instant::now() < deadline, "BIRD's routes did not come");
        if up.is_none() && !router.established()?.is_empty() {
            up = Some(Instant::now());
        }
        if router.prefixes(Transport::V4.node(1))? == u64::from(routes) {
            sender.kill();
            return Ok(up.unwrap_or_else(Instant::now).elapsed());
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Resident memory of this program, in megabytes of 10^6 octets (proc_pid_status(5)).
fn own_memory() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?;
    Ok(kib.parse::<f64>()? * 1024.0 / 1e6)
}
