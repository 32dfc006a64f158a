//! Networks that lose, cut and split.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tests::owners::{
    Cluster, Fault, Options, Path,
    cluster::name,
    scenario::{address, taken_after},
};

use crate::{
    DETECTION, Judged, PROBE, SLOT, T, drift, judge, milliseconds, no_gap, no_moves, nodes, rests,
    seconds, settled_then, victim,
};

#[test]
fn a_split_that_heals_leaves_one_that_answers() {
    for (n, loss, seeds) in [(2, 0, 12), (3, 0, 8), (5, 0, 4), (2, 20, 12), (3, 20, 8), (5, 20, 4)]
    {
        // Every question and every answer that is lost costs a beat.
        let bound = 2 * T + milliseconds(2) + if loss == 0 { Duration::ZERO } else { 8 * T };
        let body = settled_then(20, |cluster| split_and_healed(cluster, loss));
        judge(
            &format!("split and healed, {loss} % loss"),
            seeds,
            &Options { gateway: false, ..nodes(n) },
            bound,
            body,
        );
    }
}

#[test]
fn both_sides_of_a_split_serve_their_clients() {
    let body = settled_then(20, |cluster| {
        let far = BTreeSet::from([0, 1]);
        cluster.fault(Fault::Split(far.clone(), Path::Everything));
        cluster.run(seconds(3))?;
        for number in 0..20 {
            let owners = cluster.answering(address(number));
            let sides: BTreeSet<bool> = owners.iter().map(|owner| far.contains(owner)).collect();
            if owners.len() != 2 || sides.len() != 2 {
                return Err(format!("{} is answered by {owners:?}", address(number)));
            }
        }
        cluster.fault(Fault::Heal);
        rests(cluster)?;
        Ok(Duration::ZERO)
    });
    // The far side has lost its gateway, but not half of its peers.
    judge("both sides", 6, &Options { gateway: false, ..nodes(4) }, Duration::ZERO, body);
}

#[test]
fn datagrams_cut_with_the_data_path_whole_move_nothing() {
    for (n, seeds) in [(2, 3), (3, 2), (5, 1)] {
        let body = settled_then(20, datagrams_cut);
        judge("datagrams cut for 60 s", seeds, &nodes(n), Duration::ZERO, body);
    }
}

#[test]
fn one_pair_that_does_not_hear_each_other_moves_nothing() {
    for (n, path, seeds) in [
        (3, Path::Everything, 6),
        (5, Path::Everything, 3),
        (3, Path::Datagrams, 6),
        (5, Path::Datagrams, 3),
    ] {
        let body = settled_then(20, |cluster| one_pair_cut(cluster, path));
        judge(&format!("one pair cut, {path:?}"), seeds, &nodes(n), Duration::ZERO, body);
    }
}

#[test]
fn two_nodes_with_a_one_way_cut_do_not_play_ping_pong() {
    let body = settled_then(10, |cluster| {
        cluster.fault(Fault::Cut(0, 1, Path::Everything));
        cluster.run(seconds(20))?;
        let moves = cluster.checker.moves();
        if moves > 10 {
            return Err(format!("{moves} moves of 10 addresses"));
        }
        cluster.fault(Fault::Heal);
        rests(cluster)?;
        Ok(Duration::ZERO)
    });
    judge("one way cut", 9, &nodes(2), Duration::ZERO, body);
}

#[test]
fn two_that_take_the_same_address_agree() {
    for (n, loss, seeds) in [(3, 0, 15), (5, 0, 8), (3, 30, 10), (5, 30, 5)] {
        let body = settled_then(20, |cluster| several_takers(cluster, loss));
        let bound = 2 * T + milliseconds(2) + if loss == 0 { Duration::ZERO } else { 8 * T };
        judge(&format!("several takers, {loss} % loss"), seeds, &nodes(n), bound, body);
    }
}

#[test]
fn a_fifth_of_all_datagrams_lost_moves_nothing() {
    for (n, time, seeds) in [(2, 60, 3), (3, 60, 2), (5, 60, 1), (20, 10, 1), (50, 5, 1)] {
        let body = settled_then(50, |cluster| {
            cluster.fault(Fault::Loss(20));
            cluster.run(seconds(time))?;
            no_moves(cluster)?;
            cluster.fault(Fault::Loss(0));
            rests(cluster)?;
            no_moves(cluster)?;
            no_gap(cluster)?;
            Ok(cluster.checker.several(cluster.now))
        });
        judge(&format!("20 % loss for {time} s"), seeds, &nodes(n), Duration::ZERO, body);
    }
}

#[test]
fn a_node_without_its_interface_stops_at_once_and_nothing_moves_back() {
    for (n, seeds) in [(2, 10), (3, 8), (5, 3)] {
        let body = settled_then(20, |cluster| {
            let (node, its) = victim(cluster);
            let at = cluster.now;
            cluster.fault(Fault::LinkDown(node));
            cluster.run(milliseconds(1))?;
            if !cluster.answers(node).is_empty() {
                return Err(format!("{} goes on answering", name(node)));
            }
            cluster.run(seconds(5))?;
            let taken = taken_after(cluster, &its, at).into_iter().max();
            cluster.checker.reset(cluster.now);
            cluster.fault(Fault::LinkUp(node));
            rests(cluster)?;
            no_moves(cluster)?;
            taken.ok_or_else(|| "nothing was taken".to_owned())
        });
        judge("interface gone", seeds, &nodes(n), DETECTION + PROBE + SLOT, body);
    }
}

#[test]
fn an_isolated_node_takes_nothing_and_fences_itself() {
    let body = settled_then(20, isolated);
    judge("isolated", 6, &nodes(3), Duration::ZERO, body);
}

#[test]
fn a_gateway_that_falls_silent_moves_nothing() {
    let body = settled_then(20, |cluster| {
        cluster.fault(Fault::Gateway(false));
        cluster.run(seconds(10))?;
        no_moves(cluster)?;
        no_gap(cluster)?;
        let (dead, its) = victim(cluster);
        let at = cluster.now;
        cluster.fault(Fault::Crash(dead));
        cluster.run(seconds(2))?;
        let taken = taken_after(cluster, &its, at);
        if taken.len() < its.len() {
            return Err("with a silent gateway nobody takes over".to_owned());
        }
        rests(cluster)?;
        Ok(taken.into_iter().max().unwrap())
    });
    // One of four is less than half of the peers.
    judge("gateway silent", 4, &nodes(4), DETECTION + PROBE + SLOT, body);
}

#[test]
fn answers_that_are_lost_or_late_cost_moves_but_no_rule() {
    let body = settled_then(10, |cluster| {
        cluster.fault(Fault::FrameLoss(30));
        cluster.fault(Fault::Split(BTreeSet::from([0]), Path::Datagrams));
        cluster.run(seconds(20))?;
        cluster.fault(Fault::FrameLoss(0));
        cluster.fault(Fault::Heal);
        rests(cluster)?;
        Ok(Duration::ZERO)
    });
    judge("datagrams cut, 30 % of frames lost", 4, &nodes(3), Duration::ZERO, body);
}

pub fn split_and_healed(cluster: &mut Cluster, loss: u8) -> Judged {
    drift(cluster)?;
    cluster.fault(Fault::Loss(loss));
    cluster.fault(Fault::Split(BTreeSet::from([0]), Path::Everything));
    cluster.run(seconds(5))?;
    let healed = cluster.now;
    cluster.fault(Fault::Heal);
    let mut last = Duration::ZERO;
    while cluster.now - healed < milliseconds(1_000) {
        cluster.run(milliseconds(1))?;
        if (0..20).any(|number| cluster.answering(address(number)).len() != 1) {
            last = cluster.now - healed;
        }
    }
    let now = cluster.now;
    cluster.checker.reset(now);
    cluster.fault(Fault::Loss(0));
    rests(cluster)?;
    no_moves(cluster)?;
    Ok(last)
}

pub fn datagrams_cut(cluster: &mut Cluster) -> Judged {
    for from in 0..cluster.nodes.len() {
        for to in 0..cluster.nodes.len() {
            if from != to {
                cluster.fault(Fault::Cut(from, to, Path::Datagrams));
            }
        }
    }
    cluster.run(seconds(60))?;
    no_moves(cluster)?;
    cluster.fault(Fault::Heal);
    rests(cluster)?;
    no_moves(cluster)?;
    no_gap(cluster)?;
    Ok(cluster.checker.several(cluster.now))
}

pub fn one_pair_cut(cluster: &mut Cluster, path: Path) -> Judged {
    let (node, _) = victim(cluster);
    let other = (node + 1) % cluster.nodes.len();
    cluster.fault(Fault::Cut(node, other, path));
    cluster.fault(Fault::Cut(other, node, path));
    cluster.run(seconds(10))?;
    cluster.fault(Fault::Heal);
    rests(cluster)?;
    no_moves(cluster)?;
    no_gap(cluster)?;
    Ok(cluster.checker.several(cluster.now))
}

fn several_takers(cluster: &mut Cluster, loss: u8) -> Judged {
    let (dead, _) = victim(cluster);
    let all: Vec<usize> = (0..cluster.nodes.len()).filter(|node| *node != dead).collect();
    cluster.fault(Fault::Crash(dead));
    // The survivors do not hear each other while they take, nor do their frames arrive.
    for from in &all {
        for to in &all {
            if from != to {
                cluster.fault(Fault::Cut(*from, *to, Path::Everything));
            }
        }
    }
    cluster.run(milliseconds(600))?;
    cluster.fault(Fault::Loss(loss));
    cluster.fault(Fault::Heal);
    let healed = cluster.now;
    let mut last = Duration::ZERO;
    while cluster.now - healed < milliseconds(1_000) {
        cluster.run(milliseconds(1))?;
        if (0..20).any(|number| cluster.answering(address(number)).len() != 1) {
            last = cluster.now - healed;
        }
    }
    cluster.fault(Fault::Loss(0));
    rests(cluster)?;
    Ok(last)
}

fn isolated(cluster: &mut Cluster) -> Judged {
    // Cut off from all, and from the gateway: the rest of the segment is on the other side.
    let (node, _) = victim(cluster);
    let its = cluster.answers(node);
    cluster.fault(Fault::Split(BTreeSet::from([node]), Path::Everything));
    cluster.run(milliseconds(1_500))?;
    let more: Vec<IpAddr> = cluster.answers(node).difference(&its).copied().collect();
    if !more.is_empty() {
        return Err(format!("cut off, {} takes {more:?}", name(node)));
    }
    cluster.run(seconds(2))?;
    if !cluster.answers(node).is_empty() {
        return Err(format!("{} did not fence itself", name(node)));
    }
    cluster.checker.reset(cluster.now);
    cluster.fault(Fault::Heal);
    rests(cluster)?;
    no_moves(cluster)?;
    Ok(cluster.checker.several(cluster.now))
}
