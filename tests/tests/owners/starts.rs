//! How speakers start, end and start again.

use std::time::Duration;

use tests::owners::{
    Cluster, Disk, Fault,
    checker::{at_rest, loads},
    cluster::name,
    scenario::{BOOTSTRAP, bootstrap, cluster, placement},
};

use crate::{
    DETECTION, Judged, PROBE, SLOT, judge, milliseconds, no_gap, no_moves, nodes, rests, seconds,
    settled_then, victim,
};

#[test]
fn speakers_that_start_together_divide_the_addresses_evenly() {
    for (n, within, loss, seeds, excess) in [
        (2, 40, 0, 15, 1),
        (3, 40, 0, 8, 1),
        (5, 500, 0, 4, 1),
        (3, 500, 20, 10, 1),
        (20, 500, 0, 1, 1),
        (3, 3_000, 0, 7, 1),
        (2, 3_000, 0, 7, 1),
    ] {
        let title = format!("{n} nodes start within {within} ms, {loss} % loss");
        judge(&title, seeds, &nodes(n), BOOTSTRAP + seconds(4), |seed, options| {
            let mut cluster = cluster(seed, options, 50);
            cluster.fault(Fault::Loss(loss));
            let mut body = || {
                bootstrap(&mut cluster, milliseconds(within), Disk::Lost)?;
                // Whatever is uneven is evened out at once in the first minute, one a second.
                cluster.run(BOOTSTRAP + seconds(if within > 2_000 { 60 } else { 0 }))?;
                at_rest(&cluster)?;
                let loads = loads(&cluster);
                let even = 50_usize.div_ceil(n);
                if loads.iter().any(|load| *load > even + excess) {
                    return Err(format!("{loads:?}"));
                }
                Ok(Duration::ZERO)
            };
            let judged = body();
            (Some(cluster), judged)
        });
    }
}

#[test]
fn a_speaker_that_is_back_soon_resumes_its_claims() {
    for (n, seeds) in [(2, 15), (3, 10), (5, 4)] {
        for gone in [20, 100, 130] {
            let body = settled_then(20, |cluster| gone_and_back(cluster, gone));
            let title = format!("gone for {gone} ms, with its claims");
            judge(&title, seeds, &nodes(n), milliseconds(gone + 40), body);
        }
    }
}

#[test]
fn a_speaker_that_is_back_without_its_claims_is_replaced_at_once() {
    // As long as it has not read from the API server who its peers are, it is as good as dead.
    let bound = DETECTION + PROBE + SLOT;
    for (n, seeds) in [(2, 15), (3, 10), (5, 4)] {
        let body = settled_then(20, gone_without_claims);
        judge("gone for 100 ms, without its claims", seeds, &nodes(n), bound, body);
    }
}

#[test]
fn an_old_owner_that_returns_moves_nothing() {
    for disk in [Disk::Kept, Disk::Lost, Disk::Old] {
        for (n, seeds) in [(2, 8), (3, 8), (5, 4)] {
            let body = settled_then(20, |cluster| {
                let (node, _) = victim(cluster);
                cluster.fault(Fault::Crash(node));
                cluster.run(seconds(10))?;
                at_rest(cluster)?;
                cluster.checker.reset(cluster.now);
                cluster.fault(Fault::Boot(node, disk));
                rests(cluster)?;
                no_moves(cluster)?;
                no_gap(cluster)?;
                Ok(cluster.checker.several(cluster.now))
            });
            let title = format!("one returns, disk {disk:?}");
            judge(&title, seeds, &nodes(n), Duration::ZERO, body);
        }
    }
}

#[test]
fn a_cluster_that_starts_with_old_disks_comes_to_rest() {
    for (n, seeds) in [(2, 10), (3, 8), (5, 4)] {
        let body = settled_then(20, |cluster| {
            for _ in 0..3 {
                let (node, _) = victim(cluster);
                cluster.fault(Fault::Crash(node));
                cluster.run(seconds(3))?;
                cluster.fault(Fault::Boot(node, Disk::Kept));
                cluster.run(seconds(3))?;
            }
            for node in 0..cluster.nodes.len() {
                cluster.fault(Fault::Crash(node));
            }
            cluster.run(seconds(1))?;
            for node in 0..cluster.nodes.len() {
                cluster.fault(Fault::Boot(node, Disk::Old));
            }
            rests(cluster)?;
            Ok(Duration::ZERO)
        });
        judge("all start with old disks", seeds, &nodes(n), Duration::ZERO, body);
    }
}

#[test]
fn a_rolling_restart_leaves_no_gap_and_the_placement_it_found() {
    for (n, seeds) in [(2, 8), (3, 6), (5, 2)] {
        let body = settled_then(25, rolling_restart);
        judge("rolling restart", seeds, &nodes(n), Duration::ZERO, body);
    }
}

#[test]
fn a_node_that_comes_and_goes_is_taken_last() {
    let body = settled_then(20, |cluster| {
        let (node, _) = victim(cluster);
        for _ in 0..5 {
            cluster.fault(Fault::Crash(node));
            cluster.run(seconds(2))?;
            cluster.fault(Fault::Boot(node, Disk::Lost));
            cluster.run(seconds(5))?;
            // It is to own something when it goes.
            let other = (node + 1) % 3;
            cluster.fault(Fault::Drain(other, true));
            cluster.run(seconds(2))?;
            cluster.fault(Fault::Drain(other, false));
            cluster.run(seconds(2))?;
        }
        rests(cluster)?;
        let before = cluster.answers(node);
        cluster.fault(Fault::Crash((node + 1) % 3));
        rests(cluster)?;
        if cluster.answers(node) == before {
            Ok(Duration::ZERO)
        } else {
            Err(format!("{} takes more: {:?}", name(node), loads(cluster)))
        }
    });
    judge("comes and goes", 3, &nodes(3), Duration::ZERO, body);
}

#[test]
fn a_disk_with_epochs_that_no_history_leads_to_moves_nothing() {
    for (n, seeds) in [(2, 4), (3, 4)] {
        let body = settled_then(10, |cluster| {
            let (node, _) = victim(cluster);
            cluster.fault(Fault::Crash(node));
            cluster.run(seconds(2))?;
            at_rest(cluster)?;
            cluster.fault(Fault::Forge(node, 1 << 60));
            cluster.checker.reset(cluster.now);
            cluster.fault(Fault::Boot(node, Disk::Kept));
            rests(cluster)?;
            no_moves(cluster)?;
            no_gap(cluster)?;
            Ok(cluster.checker.several(cluster.now))
        });
        judge("a forged disk", seeds, &nodes(n), Duration::ZERO, body);
    }
}

pub fn gone_and_back(cluster: &mut Cluster, gone: u64) -> Judged {
    let (node, _) = victim(cluster);
    cluster.fault(Fault::Crash(node));
    cluster.run(milliseconds(gone))?;
    cluster.fault(Fault::Boot(node, Disk::Kept));
    rests(cluster)?;
    no_moves(cluster)?;
    Ok(cluster.checker.gap(cluster.now))
}

pub fn gone_without_claims(cluster: &mut Cluster) -> Judged {
    let (node, _) = victim(cluster);
    cluster.fault(Fault::Crash(node));
    cluster.run(milliseconds(100))?;
    cluster.fault(Fault::Boot(node, Disk::Lost));
    rests(cluster)?;
    Ok(cluster.checker.gap(cluster.now))
}

pub fn rolling_restart(cluster: &mut Cluster) -> Judged {
    let before = placement(cluster);
    for node in 0..cluster.nodes.len() {
        cluster.fault(Fault::Leave(node));
        cluster.run(seconds(3))?;
        if cluster.nodes[node].speaker.is_some() {
            return Err(format!("{} does not end", name(node)));
        }
        cluster.fault(Fault::Boot(node, Disk::Kept));
        cluster.run(seconds(4))?;
    }
    rests(cluster)?;
    no_gap(cluster)?;
    if placement(cluster) != before {
        return Err(format!("the placement changed: {:?}", loads(cluster)));
    }
    Ok(Duration::ZERO)
}
