//! A station that asks far too much, and one that asks as a neighbour does.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Result;
use speaker::io::packet::Tap;

use super::Scale;
use crate::bench::{
    Goal, Rows,
    asker::{question, tap},
    count, cpu, percentile,
    segment::{Plan, Segment, on_segment},
    step,
};

/// A second.
const RATE: u32 = 50_000;
const TIME: Duration = Duration::from_secs(5);
/// Frames sent at once, before the next look at the clock.
const BATCH: u32 = 50;
/// Between two questions of the neighbour.
const PACE: Duration = Duration::from_millis(20);
/// What a question without an answer costs a neighbour, in milliseconds (`retrans_time_ms`).
const RETRY: f64 = 1000.0;
const ADDRESSES: usize = 100;
const NOBODYS: Ipv4Addr = Ipv4Addr::new(198, 19, 250, 1);
/// The neighbour that was there before.
const NEIGHBOUR: [u8; 6] = [0x02, 0xbe, 0xff, 0, 0, 1];
const NEIGHBOURS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 249);
/// How long before the first flood it asks for the first time: a speaker takes who was answered ten
/// seconds before a flood for a neighbour.
const ACQUAINTANCE: Duration = Duration::from_secs(11);

/// What the station asks for, and under which names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One MAC address, an address that no speaker has.
    ForNobodys,
    /// One MAC address, addresses that speakers have.
    ForOwned,
    /// As before, with 4,096 MAC addresses in turn.
    Spoofed,
}

/// Who else asks meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asking {
    /// One that asked before the flood, each time under the same MAC address.
    Neighbour,
    /// Each time one that has never asked.
    Newcomers,
}

pub fn flood(scale: &Scale, rows: &mut Rows) -> Result<()> {
    let plan = Plan { announced: ADDRESSES, ..Plan::default() };
    on_segment(&plan, |segment| {
        segment.start_speakers()?;
        let station = segment.stranger("station")?;
        let neighbour = tap(&segment.client)?;
        neighbour.send(&question(NEIGHBOUR, NEIGHBOURS_ADDRESS, segment.addresses[0]))?;
        std::thread::sleep(ACQUAINTANCE);
        for (kind, asking, name) in [
            (Kind::ForNobodys, Asking::Neighbour, "50 kpps ARP for nobody's address"),
            (Kind::ForOwned, Asking::Neighbour, "50 kpps ARP for owned addresses, one sender"),
            (Kind::Spoofed, Asking::Neighbour, "50 kpps ARP for owned addresses, 4,096 senders"),
            (Kind::Spoofed, Asking::Newcomers, "50 kpps ARP for owned addresses, 4,096 senders"),
        ] {
            let (mut shares, mut times, mut unanswered) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..scale.few() {
                let run = run(segment, &station, kind, &neighbour, asking)?;
                shares.push(run.share);
                unanswered.push(count(run.unanswered));
                times.extend(run.times);
                segment.at_rest()?;
            }
            // Who is many stations at once is told from a neighbour by nothing but that those were
            // there before.
            let goal = |goal: f64| (asking == Asking::Neighbour).then_some(Goal::Max(goal));
            let who = match asking {
                Asking::Neighbour => "a neighbour",
                Asking::Newcomers => "a newcomer",
            };
            rows.push(&format!("{name}, {who} asks: CPU of a speaker"), "%", shares, goal(20.0));
            let name_of_times = format!("{name}: a question of {who} answered, p99");
            rows.push(&name_of_times, "ms", vec![percentile(&times, 99)], goal(5.0));
            let name = format!("{name}: of 250 questions of {who} unanswered");
            rows.push(&name, "", unanswered, goal(0.0));
        }
        Ok(())
    })
}

struct Run {
    /// CPU of the busiest speaker, in % of a core.
    share: f64,
    /// Milliseconds from a question to its answer, as the neighbour's kernel saw both; without an
    /// answer, to the next question that Linux would ask.
    times: Vec<f64>,
    unanswered: usize,
}

fn run(
    segment: &mut Segment,
    station: &Tap,
    kind: Kind,
    neighbour: &Tap,
    asking: Asking,
) -> Result<Run> {
    let (wanted, others) = (segment.addresses[0], segment.addresses[1..].to_vec());
    let filter = format!(
        "arp and ((arp[6:2] = 1 and dst host {wanted}) or (arp[6:2] = 2 and src host {wanted}))"
    );
    let client = segment.client.clone();
    let mut frames = segment.capture(&client, "neighbour", &filter)?;
    let before = segment.speakers().map(cpu).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    let sent = std::thread::scope(|scope| -> Result<u32> {
        let flood = scope.spawn(|| send(station, kind, &others, begin));
        let mut due = begin + PACE;
        while due < begin + TIME {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            match asking {
                Asking::Neighbour => {
                    neighbour.send(&question(NEIGHBOUR, NEIGHBOURS_ADDRESS, wanted))?;
                }
                Asking::Newcomers => segment.ask(&[wanted])?,
            }
            due += PACE;
        }
        Ok(flood.join().unwrap_or_default())
    })?;
    let elapsed = begin.elapsed().as_secs_f64();
    let after = segment.speakers().map(cpu).collect::<Result<Vec<_>>>()?;
    let shares =
        before.iter().zip(&after).map(|(before, after)| 100.0 * (after - before) / elapsed);
    let share = shares.fold(0.0, f64::max);
    std::thread::sleep(Duration::from_millis(300));

    let (mut asked, mut times, mut unanswered) = (BTreeMap::new(), Vec::new(), 0);
    for (at, frame) in frames.read()? {
        let (Some(destination), Some(source)) = (frame.get(..6), frame.get(6..12)) else {
            continue;
        };
        match frame.get(21) {
            // The one before it of the same station has had its time.
            Some(1) => {
                unanswered += usize::from(asked.insert(source.to_vec(), at).is_some());
            }
            Some(2) => {
                let since = asked.remove(destination);
                times.extend(
                    since.map(|since| Duration::from_nanos(at - since).as_secs_f64() * 1e3),
                );
            }
            _ => {}
        }
    }
    unanswered += asked.len();
    let rate = f64::from(sent) / elapsed;
    step(&format!(
        "{kind:?}, {asking:?}: {rate:.0} a second, CPU {share:.1} %, {} answered and {unanswered} \
         not",
        times.len(),
    ));
    times.extend(std::iter::repeat_n(RETRY, unanswered));
    Ok(Run { share, times, unanswered })
}

/// Sends until the time is over; how many.
fn send(station: &Tap, kind: Kind, owned: &[Ipv4Addr], begin: Instant) -> u32 {
    let senders = match kind {
        Kind::ForNobodys | Kind::ForOwned => 1,
        Kind::Spoofed => 4096,
    };
    let frames: Vec<_> = (0..senders)
        .map(|sender: u16| {
            let [high, low] = sender.to_be_bytes();
            let address = match kind {
                Kind::ForNobodys => NOBODYS,
                Kind::ForOwned | Kind::Spoofed => owned[usize::from(sender) % owned.len()],
            };
            question([0x02, 0xf1, 0, 0, high, low], Ipv4Addr::new(10, 0, 0, 251), address)
        })
        .collect();
    let mut sent = 0;
    for frame in frames.iter().cycle() {
        if sent % BATCH == 0 {
            let due = begin + Duration::from_secs(1) / RATE * sent;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if begin.elapsed() > TIME {
                break;
            }
        }
        // A full queue is the switch's business.
        let _ = station.send(frame);
        sent += 1;
    }
    sent
}
