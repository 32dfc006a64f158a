//! Foreign hosts, and recordings of former lives.

use std::time::Duration;

use tests::owners::{
    Cluster, Disk, Fault,
    checker::at_rest,
    scenario::{address, bootstrap, cluster, taken_after},
};

use crate::{
    DETECTION, Judged, PROBE, SLOT, judge, milliseconds, no_gap, no_moves, nodes, rests, seconds,
    settled_then, victim,
};

#[test]
fn an_address_that_a_foreign_host_has_is_not_announced() {
    judge("foreign host", 8, &nodes(3), Duration::ZERO, |seed, options| {
        let mut cluster = cluster(seed, options, 5);
        cluster.fault(Fault::Foreign(address(2), true));
        let mut body = || {
            bootstrap(&mut cluster, milliseconds(300), Disk::Lost)?;
            cluster.run(seconds(20))?;
            at_rest(&cluster)?;
            if !cluster.answering(address(2)).is_empty() {
                return Err("it is announced".to_owned());
            }
            let told =
                cluster.nodes.iter().filter_map(|node| node.speaker.as_ref()).any(|s| {
                    s.states.get(&address(2)).is_some_and(|state| state.conflict.is_some())
                });
            if !told {
                return Err("nobody tells of the conflict".to_owned());
            }
            cluster.fault(Fault::Foreign(address(2), false));
            cluster.run(seconds(60))?;
            at_rest(&cluster)?;
            Ok(Duration::ZERO)
        };
        let judged = body();
        (Some(cluster), judged)
    });
}

#[test]
fn a_foreign_host_does_not_keep_a_held_address_from_its_next_owner() {
    let body = settled_then(6, |cluster| {
        let (dead, its) = victim(cluster);
        for address in &its {
            cluster.fault(Fault::Foreign(*address, true));
        }
        cluster.run(seconds(3))?;
        let at = cluster.now;
        cluster.fault(Fault::Crash(dead));
        cluster.run(seconds(3))?;
        let taken = taken_after(cluster, &its, at);
        if taken.len() < its.len() {
            return Err("the foreign host has won".to_owned());
        }
        Ok(taken.into_iter().max().unwrap())
    });
    // Three vetoes, 200 ms apart.
    let bound = DETECTION + 3 * (PROBE + milliseconds(200)) + PROBE + SLOT;
    judge("foreign host, the owner dies", 6, &nodes(3), bound, body);
}

#[test]
fn recordings_of_former_lives_move_nothing() {
    for (n, seeds) in [(3, 6), (5, 3)] {
        let body = settled_then(20, replayed);
        judge("replay", seeds, &nodes(n), DETECTION + PROBE + SLOT, body);
    }
}

fn replayed(cluster: &mut Cluster) -> Judged {
    for node in 0..cluster.nodes.len() {
        cluster.fault(Fault::Crash(node));
        cluster.run(milliseconds(600))?;
        cluster.fault(Fault::Boot(node, Disk::Lost));
        cluster.run(seconds(2))?;
    }
    rests(cluster)?;
    cluster.checker.reset(cluster.now);
    cluster.fault(Fault::Replay);
    cluster.run(seconds(2))?;
    no_moves(cluster)?;
    no_gap(cluster)?;
    rests(cluster)?;
    let (dead, its) = victim(cluster);
    let at = cluster.now;
    cluster.fault(Fault::Crash(dead));
    cluster.fault(Fault::Replay);
    rests(cluster)?;
    let taken = taken_after(cluster, &its, at);
    taken.into_iter().max().ok_or_else(|| "nothing was taken".to_owned())
}
