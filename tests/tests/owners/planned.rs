//! Moves that are wanted.

use std::{sync::Arc, time::Duration};

use tests::owners::{
    Cluster, Fault, Options,
    checker::{at_rest, loads},
    cluster::name,
    scenario::only,
};

use crate::{
    DETECTION, Judged, PROBE, SLOT, judge, milliseconds, no_gap, nodes, rests, seconds,
    settled_then, victim,
};

#[test]
fn a_planned_move_has_no_instant_without_an_answer() {
    for (n, loss, seeds) in [(2, 0, 12), (3, 0, 8), (5, 0, 4), (2, 30, 12), (3, 30, 8), (5, 30, 4)]
    {
        let bound = if loss == 0 { milliseconds(25) } else { milliseconds(250) };
        for how in ["drain", "leave", "no candidate"] {
            let body = settled_then(20, |cluster| planned_move(cluster, how, loss));
            let title = format!("{how}, {loss} % loss, both answer");
            judge(&title, seeds, &nodes(n), bound, body);
        }
    }
}

#[test]
fn the_old_owner_dies_during_a_hand_over() {
    for (n, seeds) in [(2, 15), (3, 10), (5, 4)] {
        let body = settled_then(20, |cluster| {
            use rand::RngExt as _;
            let (node, _) = victim(cluster);
            cluster.fault(Fault::Drain(node, true));
            let later = cluster.rng().random_range(0..60_000);
            cluster.run(Duration::from_micros(later))?;
            cluster.fault(Fault::Crash(node));
            rests(cluster)?;
            Ok(cluster.checker.gap(cluster.now))
        });
        let bound = DETECTION + PROBE + SLOT;
        judge("hand-over, the old owner dies", seeds, &nodes(n), bound, body);
    }
}

#[test]
fn the_new_owner_dies_during_a_hand_over() {
    for (n, seeds) in [(3, 15), (5, 6)] {
        let body = settled_then(20, |cluster| {
            use rand::RngExt as _;
            let (node, _) = victim(cluster);
            cluster.fault(Fault::Drain(node, true));
            let later = cluster.rng().random_range(0..60_000);
            cluster.run(Duration::from_micros(later))?;
            let successor = (node + 1) % cluster.nodes.len();
            cluster.fault(Fault::Crash(successor));
            rests(cluster)?;
            Ok(cluster.checker.gap(cluster.now))
        });
        let bound = DETECTION + PROBE + SLOT;
        judge("hand-over, the new owner dies", seeds, &nodes(n), bound, body);
    }
}

#[test]
fn thousands_of_addresses_are_handed_over_without_a_gap() {
    let body = settled_then(3_000, |cluster| {
        let (node, _) = victim(cluster);
        cluster.fault(Fault::Leave(node));
        cluster.run(seconds(10))?;
        if cluster.nodes[node].speaker.is_some() {
            return Err(format!("{} has {} left", name(node), cluster.answers(node).len()));
        }
        at_rest(cluster)?;
        no_gap(cluster)?;
        Ok(Duration::ZERO)
    });
    judge("3,000 addresses, one leaves", 1, &nodes(3), Duration::ZERO, body);
}

#[test]
fn a_drained_cluster_goes_on_answering() {
    let body = settled_then(10, |cluster| {
        for node in 0..cluster.nodes.len() {
            cluster.fault(Fault::Drain(node, true));
            cluster.run(seconds(1))?;
        }
        rests(cluster)?;
        no_gap(cluster)?;
        cluster.fault(Fault::Drain(1, false));
        rests(cluster)?;
        no_gap(cluster)?;
        let owners = loads(cluster);
        if owners[1] == 10 { Ok(Duration::ZERO) } else { Err(format!("{owners:?}")) }
    });
    judge("all are drained", 6, &nodes(3), Duration::ZERO, body);
}

#[test]
fn on_request_addresses_are_evened_out_without_a_gap() {
    let options = Options { rebalance: true, ..nodes(3) };
    let body = settled_then(30, |cluster| {
        let (node, _) = victim(cluster);
        cluster.fault(Fault::Drain(node, true));
        cluster.run(seconds(3))?;
        cluster.fault(Fault::Drain(node, false));
        cluster.run(seconds(20))?;
        at_rest(cluster)?;
        no_gap(cluster)?;
        let loads = loads(cluster);
        if loads.iter().max().unwrap() - loads.iter().min().unwrap() > 1 {
            return Err(format!("{loads:?}"));
        }
        Ok(Duration::ZERO)
    });
    judge("evened out", 4, &options, Duration::ZERO, body);
}

pub fn planned_move(cluster: &mut Cluster, how: &str, loss: u8) -> Judged {
    cluster.fault(Fault::Loss(loss));
    let (node, its) = victim(cluster);
    let others = only((0..cluster.nodes.len()).filter(|other| *other != node));
    match how {
        "drain" => cluster.fault(Fault::Drain(node, true)),
        "leave" => cluster.fault(Fault::Leave(node)),
        _ => cluster.wanted(its.iter().map(|a| (*a, Some(Arc::clone(&others))))),
    }
    cluster.run(seconds(5))?;
    if !its.is_disjoint(&cluster.answers(node)) {
        return Err(format!("{} still answers", name(node)));
    }
    cluster.fault(Fault::Loss(0));
    rests(cluster)?;
    no_gap(cluster)?;
    Ok(cluster.checker.several(cluster.now))
}
