//! What nodes know of who may own an address, and what they tell of its owner.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ownership::{Candidates, Proof};
use tests::owners::{
    Cluster, Disk, Fault, Inbox,
    api::Lie,
    checker::{at_rest, loads},
    cluster::name,
    scenario::{BOOTSTRAP, address, bootstrap, only},
};

use crate::{
    Judged, T, judge, milliseconds, no_gap, no_moves, nodes, rests, seconds, settled_then, victim,
};

#[test]
fn contradicting_views_play_no_ping_pong() {
    for (n, seeds) in [(2, 2), (3, 2)] {
        for lie in [Lie::OnlyMe, Lie::NeverMe] {
            let body = settled_then(10, |cluster| contradicting_views(cluster, lie));
            judge(&format!("each: {lie:?}"), seeds, &nodes(n), Duration::ZERO, body);
        }
    }
}

#[test]
fn an_owner_with_an_old_view_is_deposed_once() {
    for (n, seeds) in [(2, 4), (3, 4)] {
        let body = settled_then(10, old_view);
        judge("the owner's view is old", seeds, &nodes(n), 2 * T, body);
    }
}

#[test]
fn a_newer_view_elsewhere_deposes_nobody_by_itself() {
    // The others know less: who owns stays.
    let body = settled_then(10, |cluster| {
        let (node, its) = victim(cluster);
        for other in (0..cluster.nodes.len()).filter(|other| *other != node) {
            cluster.fault(Fault::Stale(other, seconds(60)));
        }
        let me = only([node]);
        let all: Vec<IpAddr> = cluster.api.addresses().into_keys().collect();
        cluster.wanted(all.iter().map(|a| (*a, Some(Arc::clone(&me)))));
        cluster.run(seconds(30))?;
        let lost: Vec<_> = its.difference(&cluster.answers(node)).copied().collect();
        if !lost.is_empty() {
            return Err(format!("{} lost {lost:?}", name(node)));
        }
        cluster.run(seconds(40))?;
        at_rest(cluster)?;
        no_gap(cluster)?;
        Ok(cluster.checker.several(cluster.now))
    });
    judge("the others' views are old", 4, &nodes(3), 2 * T, body);
}

#[test]
fn an_address_without_candidates_is_not_answered() {
    let body = settled_then(10, |cluster| {
        cluster.wanted((0..5).map(|number| (address(number), Some(only([])))));
        for number in 0..5 {
            cluster.checker.forget(address(number));
        }
        cluster.run(seconds(1))?;
        at_rest(cluster)?;
        let everybody = only(0..cluster.nodes.len());
        cluster.wanted((0..5).map(|a| (address(a), Some(Arc::clone(&everybody)))));
        cluster.run(seconds(1))?;
        at_rest(cluster)?;
        Ok(cluster.checker.several(cluster.now))
    });
    judge("no candidates", 4, &nodes(3), Duration::ZERO, body);
}

#[test]
fn an_address_that_comes_back_has_one_owner() {
    for (n, seeds) in [(2, 8), (3, 6), (5, 2)] {
        let body = settled_then(10, |cluster| {
            for node in 0..cluster.nodes.len() {
                let apart = seconds(3) * u32::try_from(node).unwrap();
                cluster.fault(Fault::Stale(node, apart));
            }
            let all: Vec<IpAddr> = cluster.api.addresses().into_keys().collect();
            for address in &all {
                cluster.checker.forget(*address);
            }
            cluster.wanted(all.iter().map(|address| (*address, None)));
            cluster.run(seconds(20))?;
            at_rest(cluster)?;
            let everybody = only(0..cluster.nodes.len());
            cluster.wanted(all.iter().map(|a| (*a, Some(Arc::clone(&everybody)))));
            rests(cluster)?;
            let (node, _) = victim(cluster);
            cluster.fault(Fault::Freeze(node, seconds(1), Inbox::Kept));
            rests(cluster)?;
            Ok(cluster.checker.several(cluster.now))
        });
        judge("removed and added again", seeds, &nodes(n), Duration::ZERO, body);
    }
}

#[test]
fn preferred_nodes_own_and_shunned_ones_wait() {
    for (n, seeds) in [(3, 6), (5, 3)] {
        judge("preference", seeds, &nodes(n), Duration::ZERO, |seed, options| {
            let mut cluster = Cluster::new(seed, options);
            let candidates = Arc::new(Candidates {
                preference: BTreeMap::from([(name(0), 10), (name(1), -10)]),
                ..Candidates::clone(&only(0..n))
            });
            cluster.wanted((0..12).map(|a| (address(a), Some(Arc::clone(&candidates)))));
            let mut body = || {
                bootstrap(&mut cluster, milliseconds(300), Disk::Lost)?;
                cluster.run(BOOTSTRAP)?;
                at_rest(&cluster)?;
                let first = loads(&cluster);
                cluster.fault(Fault::Crash(0));
                rests(&mut cluster)?;
                let second = loads(&cluster);
                if first[0] == 12 && second[1] == 0 {
                    Ok(Duration::ZERO)
                } else {
                    Err(format!("{first:?}, without the preferred one {second:?}"))
                }
            };
            let judged = body();
            (Some(cluster), judged)
        });
    }
}

#[test]
fn a_node_without_the_named_interface_is_no_candidate() {
    judge("interfaces", 6, &nodes(3), Duration::ZERO, |seed, options| {
        let mut cluster = Cluster::new(seed, options);
        let named = |interface: &str| Arc::from([interface.to_owned()]);
        let candidates = Arc::new(Candidates {
            interfaces: BTreeMap::from([(name(0), named("eth7")), (name(1), named("eth0"))]),
            ..Candidates::clone(&only(0..3))
        });
        cluster.wanted((0..12).map(|a| (address(a), Some(Arc::clone(&candidates)))));
        let mut body = || {
            bootstrap(&mut cluster, milliseconds(300), Disk::Lost)?;
            cluster.run(BOOTSTRAP)?;
            at_rest(&cluster)?;
            let loads = loads(&cluster);
            if loads[0] == 0 && loads[1].abs_diff(loads[2]) <= 1 {
                Ok(Duration::ZERO)
            } else {
                Err(format!("{loads:?}"))
            }
        };
        let judged = body();
        (Some(cluster), judged)
    });
}

#[test]
fn at_rest_nothing_moves_and_every_answer_is_proved() {
    for (n, seeds) in [(2, 2), (3, 2), (5, 1), (22, 1)] {
        judge("at rest", seeds, &nodes(n), Duration::ZERO, settled_then(20, quiet));
    }
}

pub fn contradicting_views(cluster: &mut Cluster, lie: Lie) -> Judged {
    for node in 0..cluster.nodes.len() {
        cluster.fault(Fault::Lie(node, Some(lie)));
    }
    cluster.run(seconds(130))?;
    let moves = cluster.checker.moves();
    if moves > 10 {
        return Err(format!("{moves} moves of 10 addresses"));
    }
    for node in 0..cluster.nodes.len() {
        cluster.fault(Fault::Lie(node, None));
    }
    rests(cluster)?;
    Ok(cluster.checker.gap(cluster.now))
}

pub fn old_view(cluster: &mut Cluster) -> Judged {
    let (node, its) = victim(cluster);
    let others = only((0..cluster.nodes.len()).filter(|other| *other != node));
    cluster.fault(Fault::Stale(node, seconds(90)));
    cluster.wanted(its.iter().map(|a| (*a, Some(Arc::clone(&others)))));
    cluster.run(seconds(10))?;
    if !its.is_disjoint(&cluster.answers(node)) {
        return Err(format!("{} was not deposed", name(node)));
    }
    cluster.run(seconds(100))?;
    let moves = usize::try_from(cluster.checker.moves()).unwrap();
    if moves > its.len() {
        return Err(format!("{moves} moves of {} addresses", its.len()));
    }
    at_rest(cluster)?;
    no_gap(cluster)?;
    Ok(cluster.checker.several(cluster.now))
}

/// Nothing happens, and every owner's answers are seen.
pub fn quiet(cluster: &mut Cluster) -> Judged {
    cluster.run(seconds(60))?;
    at_rest(cluster)?;
    no_moves(cluster)?;
    for speaker in cluster.nodes.iter().filter_map(|node| node.speaker.as_ref()) {
        for address in &speaker.answers {
            if !matches!(speaker.states[address].proof, Proof::Seen { .. }) {
                return Err(format!("{address}: {:?}", speaker.states[address].proof));
            }
        }
    }
    Ok(Duration::ZERO)
}
