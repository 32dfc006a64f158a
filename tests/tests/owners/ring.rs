//! More nodes than hear each other.

use std::time::Duration;

use tests::owners::{Disk, Fault, Inbox, Path, scenario::taken_after};

use crate::{
    DETECTION, PROBE, SLOT, T, cuts::one_pair_cut, deaths::frozen_owner, drift, judge,
    milliseconds, no_moves, nodes, rests, seconds, settled_then, victim,
};

#[test]
fn in_a_ring_a_split_heals_and_a_pair_that_is_cut_moves_nothing() {
    let options = nodes(22);
    judge(
        "one pair cut",
        2,
        &options,
        Duration::ZERO,
        settled_then(44, |cluster| one_pair_cut(cluster, Path::Everything)),
    );
    judge(
        "datagrams cut",
        1,
        &options,
        Duration::ZERO,
        settled_then(44, |cluster| {
            cluster.fault(Fault::Split((0..11).collect(), Path::Datagrams));
            cluster.run(seconds(20))?;
            no_moves(cluster)?;
            cluster.fault(Fault::Heal);
            rests(cluster)?;
            no_moves(cluster)?;
            Ok(cluster.checker.several(cluster.now))
        }),
    );
    judge(
        "split and healed",
        2,
        &options,
        Duration::ZERO,
        settled_then(44, |cluster| {
            cluster.fault(Fault::Split((0..11).collect(), Path::Everything));
            cluster.run(seconds(5))?;
            cluster.fault(Fault::Heal);
            rests(cluster)?;
            Ok(Duration::ZERO)
        }),
    );
}

#[test]
fn in_a_ring_dead_and_frozen_owners_are_replaced_in_time() {
    let (options, bound) = (nodes(22), DETECTION + PROBE + SLOT);
    judge(
        "frozen",
        2,
        &options,
        bound,
        settled_then(44, |cluster| frozen_owner(cluster, 1_000, Inbox::Kept)),
    );
    judge(
        "two neighbors die",
        2,
        &options,
        bound + 4 * T,
        settled_then(44, |cluster| {
            drift(cluster)?;
            let (first, mut its) = victim(cluster);
            let at = cluster.now;
            for dead in [first, (first + 1) % 22, (first + 2) % 22] {
                its.extend(cluster.answers(dead));
                cluster.fault(Fault::Crash(dead));
            }
            rests(cluster)?;
            let taken = taken_after(cluster, &its, at);
            taken.into_iter().max().ok_or_else(|| "nothing was taken".to_owned())
        }),
    );
}

#[test]
fn in_a_ring_nodes_come_and_go() {
    judge(
        "churn",
        2,
        &nodes(24),
        Duration::ZERO,
        settled_then(48, |cluster| {
            for node in 0..24 {
                cluster.fault(Fault::Crash(node));
                cluster.run(milliseconds(150))?;
                cluster.fault(Fault::Boot((node + 20) % 24, Disk::Kept));
            }
            for node in 0..24 {
                cluster.fault(Fault::Boot(node, Disk::Kept));
            }
            rests(cluster)?;
            Ok(Duration::ZERO)
        }),
    );
}
