//! Clusters for scenarios, and scenarios made from a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use ownership::{Candidates, Profile};
use rand::RngExt as _;

use super::{
    api::Lie,
    broken::Broken,
    checker::at_rest,
    cluster::{Cluster, Options, name},
    fault::{Disk, Fault, Inbox, Path},
};

/// How long after the last fault a cluster is at rest: two waits of a speaker that has just started
/// (listening, then for the other candidates of what was never claimed), the grace that an owner
/// has which is no candidate any more, and the repetitions of what was lost meanwhile.
pub const REST: Duration = Duration::from_secs(8);

/// The first answer of a cluster that was never up.
pub const BOOTSTRAP: Duration = Duration::from_secs(4);

/// The address with a number.
pub fn address(number: usize) -> IpAddr {
    let [_, _, high, low] = u32::try_from(number).expect("few addresses").to_be_bytes();
    Ipv4Addr::new(10, 1, high, low).into()
}

/// Candidates: these nodes.
pub fn only(nodes: impl IntoIterator<Item = usize>) -> Arc<Candidates> {
    Arc::new(Candidates { nodes: nodes.into_iter().map(name).collect(), ..Candidates::default() })
}

/// Candidates: all nodes of a cluster.
pub fn everybody(cluster: &Cluster) -> Arc<Candidates> {
    only(0..cluster.nodes.len())
}

/// A cluster with all its addresses wanted from every node; no speaker runs yet.
pub fn cluster(seed: u64, options: Options, addresses: usize) -> Cluster {
    let mut cluster = Cluster::new(seed, options);
    let candidates = everybody(&cluster);
    cluster.wanted((0..addresses).map(|n| (address(n), Some(Arc::clone(&candidates)))));
    cluster
}

/// Starts all speakers, evenly over some time.
///
/// # Errors
/// The rule that was broken.
pub fn bootstrap(cluster: &mut Cluster, within: Duration, disk: Disk) -> Result<(), String> {
    let nodes = u32::try_from(cluster.nodes.len()).expect("few nodes");
    for node in 0..cluster.nodes.len() {
        cluster.fault(Fault::Boot(node, disk));
        cluster.run(within / nodes)?;
    }
    Ok(())
}

/// A cluster where every address has its owner, measured from now on. It is not in its first
/// minute, in which what came unevenly is evened out at once.
///
/// # Errors
/// The rule that was broken.
pub fn settled(seed: u64, options: Options, addresses: usize) -> Result<Cluster, String> {
    let mut cluster = cluster(seed, options, addresses);
    cluster.grow_old();
    bootstrap(&mut cluster, Duration::from_millis(40), Disk::Kept)?;
    cluster.run(BOOTSTRAP)?;
    at_rest(&cluster)?;
    let now = cluster.now;
    cluster.checker.reset(now);
    Ok(cluster)
}

/// What a played seed has shown.
#[derive(Debug)]
pub struct Played {
    pub cluster: Cluster,
    pub outcome: Result<(), String>,
    /// How long after the last fault everything was as it is to be at rest, and stayed so.
    pub settled_after: Duration,
}

/// Plays the scenario of a seed to its end; the story is in the cluster, if it is wanted.
pub fn play(seed: u64, broken: Option<Broken>, story: bool) -> Played {
    let draw = |choices: &[u8], shift: u32| {
        let index = usize::try_from(seed >> shift).unwrap_or_default() % choices.len();
        choices[index]
    };
    // One seed in fifty has a ring.
    let nodes = if seed % 50 == 49 { 22 } else { 2 + usize::try_from(seed % 4).expect("small") };
    let options = Options {
        nodes,
        profile: if seed % 11 == 10 { Profile::FAST } else { Profile::DEFAULT },
        gateway: draw(&[1, 1, 1, 0], 3) == 1,
        lateness: Duration::from_millis(draw(&[0, 1, 5], 2).into()),
        skew: [0, 1_000][usize::from(draw(&[0, 1], 5))],
        duplicates: draw(&[0, 0, 0, 10], 6),
        story,
        broken,
        ..Options::default()
    };
    let addresses = if nodes > 20 { 22 } else { 4 };
    let mut cluster = cluster(seed, options, addresses);
    let mut settled_after = Duration::ZERO;
    let outcome = acts(&mut cluster).and_then(|()| {
        settled_after = calm(&mut cluster)?;
        Ok(())
    });
    Played { cluster, outcome, settled_after }
}

fn acts(cluster: &mut Cluster) -> Result<(), String> {
    let within = [40, 500, 3_000][cluster.rng().random_range(0..3)];
    bootstrap(cluster, Duration::from_millis(within), Disk::Lost)?;
    cluster.run(BOOTSTRAP)?;
    for _ in 0..cluster.rng().random_range(4..=12) {
        act(cluster);
        // Faults that meet each other, and faults that find the last one settled.
        let most = if cluster.rng().random_ratio(1, 3) { 2_000 } else { 300 };
        let pause = cluster.rng().random_range(1..=most);
        cluster.run(Duration::from_millis(pause))?;
    }
    Ok(())
}

/// Everything is made well, and the cluster comes to rest. Returns after what time it was.
///
/// # Errors
/// The rule that was broken.
fn calm(cluster: &mut Cluster) -> Result<Duration, String> {
    for fault in [
        Fault::Heal,
        Fault::Loss(0),
        Fault::Delay(Duration::ZERO),
        Fault::FrameLoss(0),
        Fault::Gateway(cluster.options.gateway),
    ] {
        cluster.fault(fault);
    }
    for node in 0..cluster.nodes.len() {
        cluster.fault(Fault::LinkUp(node));
        cluster.fault(Fault::Stale(node, Duration::ZERO));
        cluster.fault(Fault::Lie(node, None));
        if cluster.api.draining(node) {
            cluster.fault(Fault::Drain(node, false));
        }
    }
    // Whoever leaves may end first, and what stands still go on.
    cluster.run(Duration::from_secs(6))?;
    for node in 0..cluster.nodes.len() {
        if cluster.nodes[node].speaker.as_ref().is_some_and(|speaker| speaker.leaving) {
            cluster.fault(Fault::Crash(node));
        }
        cluster.fault(Fault::Boot(node, Disk::Kept));
    }
    // A view that nobody is behind is no view: one more change reaches all.
    let last = address(10_000);
    let everybody = everybody(cluster);
    cluster.fault(Fault::Wanted(last, Some(everybody)));
    let begin = cluster.now;
    let mut wrong = begin;
    while cluster.now < begin + REST {
        cluster.run(Duration::from_millis(20))?;
        if at_rest(cluster).is_err() {
            wrong = cluster.now;
        }
    }
    at_rest(cluster)?;
    Ok(wrong - begin)
}

fn act(cluster: &mut Cluster) {
    let nodes = cluster.nodes.len();
    let node = cluster.rng().random_range(0..nodes);
    let other = (node + cluster.rng().random_range(1..nodes)) % nodes;
    let time = Duration::from_millis(cluster.rng().random_range(20..1_500));
    let path = if cluster.rng().random() { Path::Datagrams } else { Path::Everything };
    let disk = [Disk::Kept, Disk::Lost, Disk::Old][cluster.rng().random_range(0..3)];
    let number = address(cluster.rng().random_range(0..4));
    match cluster.rng().random_range(0..31) {
        0..=2 => cluster.fault(Fault::Crash(node)),
        3..=6 => {
            let down = (0..nodes).find(|node| cluster.nodes[*node].speaker.is_none());
            cluster.fault(Fault::Boot(down.unwrap_or(node), disk));
        }
        7 => {
            cluster.fault(Fault::Crash(node));
            cluster.fault(Fault::Boot(node, disk));
        }
        8 => cluster.fault(Fault::Leave(node)),
        9 => {
            let draining = cluster.rng().random();
            cluster.fault(Fault::Drain(node, draining));
        }
        10 | 11 => {
            let inbox = if cluster.rng().random() { Inbox::Kept } else { Inbox::Lost };
            cluster.fault(Fault::Freeze(node, time, inbox));
        }
        12 => cluster.fault(Fault::LinkDown(node)),
        13 => cluster.fault(Fault::LinkUp(node)),
        14 | 15 => {
            let far = (0..nodes).filter(|_| cluster.rng().random()).collect();
            cluster.fault(Fault::Split(far, path));
        }
        16 | 17 => cluster.fault(Fault::Cut(node, other, path)),
        18 => {
            cluster.fault(Fault::Cut(node, other, path));
            cluster.fault(Fault::Cut(other, node, path));
        }
        19..=21 => cluster.fault(Fault::Heal),
        22 => {
            let loss = [0, 5, 20][cluster.rng().random_range(0..3)];
            cluster.fault(Fault::Loss(loss));
        }
        23 => {
            let interval = cluster.options.profile.interval;
            let delay = interval * cluster.rng().random_range(0..=3);
            cluster.fault(Fault::Delay(delay));
        }
        24 => cluster.fault(Fault::Stale(node, time * 100)),
        25 => {
            let there = cluster.rng().random();
            cluster.fault(Fault::Gateway(there));
        }
        26 => cluster.fault(Fault::Replay),
        27 | 28 => {
            let mut some: BTreeSet<usize> = (0..nodes).filter(|_| cluster.rng().random()).collect();
            some.insert(other);
            cluster.fault(Fault::Wanted(number, Some(only(some))));
        }
        29 => {
            let lie = [None, Some(Lie::OnlyMe), Some(Lie::NeverMe)];
            let lie = lie[cluster.rng().random_range(0..3)];
            cluster.fault(Fault::Lie(node, lie));
        }
        _ => {
            let there = cluster.api.addresses().contains_key(&number);
            let all = everybody(cluster);
            if there {
                cluster.checker.forget(number);
            }
            cluster.fault(Fault::Wanted(number, (!there).then_some(all)));
        }
    }
}

/// Who answered for what at a time, to tell what has moved since.
pub fn placement(cluster: &Cluster) -> BTreeMap<IpAddr, Vec<usize>> {
    let addresses = cluster.api.addresses().into_keys();
    addresses.map(|address| (address, cluster.answering(address))).collect()
}

/// When each of these addresses was first answered for after a time by somebody new.
pub fn taken_after(cluster: &Cluster, addresses: &BTreeSet<IpAddr>, at: Instant) -> Vec<Duration> {
    let mut first: BTreeMap<IpAddr, Instant> = BTreeMap::new();
    for (when, address, _) in &cluster.checker.taken {
        if *when >= at && addresses.contains(address) {
            first.entry(*address).or_insert(*when);
        }
    }
    first.into_values().map(|when| when - at).collect()
}
