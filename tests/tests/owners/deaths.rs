//! What becomes of the addresses of nodes that die, or stand still.

use std::time::Duration;

use ownership::Profile;
use tests::owners::{Cluster, Fault, Inbox, Options, checker::loads, scenario::taken_after};

use crate::{
    DETECTION, Judged, PROBE, SLOT, T, drift, judge, milliseconds, no_moves, nodes, rests, seconds,
    settled_then, victim,
};

#[test]
fn a_dead_owner_is_replaced_within_225_ms() {
    for (n, loss, seeds) in
        [(2, 0, 15), (3, 0, 10), (5, 0, 8), (20, 0, 2), (50, 0, 1), (3, 20, 10), (5, 20, 6)]
    {
        // A Claims datagram that is lost or a beat that is: one more each.
        let bound = if loss == 0 { DETECTION + PROBE + SLOT } else { milliseconds(260) };
        let title = format!("one crash, {loss} % loss");
        let body = settled_then(if n < 20 { 50 } else { 200 }, |cluster| one_crash(cluster, loss));
        judge(&title, seeds, &nodes(n), bound, body);
    }
}

#[test]
fn the_datagrams_that_a_death_costs_are_bounded() {
    for (n, k) in [(5, 100), (20, 200)] {
        let body = settled_then(k, |cluster| {
            cluster.checker.reset(cluster.now);
            cluster.run(seconds(1))?;
            let rest = cluster.checker.datagrams();
            let (dead, its) = victim(cluster);
            cluster.fault(Fault::Crash(dead));
            cluster.checker.reset(cluster.now);
            cluster.run(seconds(1))?;
            let spent = cluster.checker.datagrams();
            // Beats of the dead are spared, those to it go on.
            let bound = its.len().min(n) * n + n * 4;
            let more = usize::try_from(spent.saturating_sub(rest * (n as u64 - 1) / n as u64));
            match more {
                Ok(more) if more <= bound => Ok(Duration::ZERO),
                _ => Err(format!(
                    "{more:?} datagrams for {} addresses, bound {bound}: {:?}",
                    its.len(),
                    cluster.checker.kinds
                )),
            }
        });
        judge("datagrams of one crash", 3, &nodes(n), Duration::ZERO, body);
    }
}

#[test]
fn two_that_die_together_are_replaced_within_225_ms() {
    for (n, seeds) in [(3, 10), (5, 6)] {
        let body = settled_then(50, |cluster| {
            drift(cluster)?;
            let (first, mut its) = victim(cluster);
            let second = (first + 1) % cluster.nodes.len();
            its.extend(cluster.answers(second));
            let at = cluster.now;
            cluster.fault(Fault::Crash(first));
            cluster.fault(Fault::Crash(second));
            cluster.run(seconds(1))?;
            let taken = taken_after(cluster, &its, at);
            rests(cluster)?;
            taken.into_iter().max().ok_or_else(|| "nothing was taken".to_owned())
        });
        judge("two crash at once", seeds, &nodes(n), DETECTION + PROBE + SLOT, body);
    }
}

#[test]
fn a_successor_that_dies_unnoticed_costs_four_beats_more() {
    for (n, seeds) in [(3, 10), (5, 6)] {
        let body = settled_then(30, |cluster| {
            drift(cluster)?;
            let (first, mut its) = victim(cluster);
            let at = cluster.now;
            cluster.fault(Fault::Crash(first));
            // The other dies while it asks, or has just taken.
            use rand::RngExt as _;
            let later = cluster.rng().random_range(0..230);
            cluster.run(milliseconds(later))?;
            let second = (first + 1) % cluster.nodes.len();
            its.extend(cluster.answers(second));
            cluster.fault(Fault::Crash(second));
            cluster.run(seconds(2))?;
            rests(cluster)?;
            let last = cluster.checker.taken.iter().map(|(when, ..)| *when - at).max();
            last.map(|last| last.saturating_sub(milliseconds(later)))
                .ok_or_else(|| "nothing was taken".to_owned())
        });
        judge("the successor dies too", seeds, &nodes(n), DETECTION + PROBE + SLOT + 4 * T, body);
    }
}

#[test]
fn with_two_nodes_and_no_gateway_the_other_takes_over() {
    let options = Options { gateway: false, ..nodes(2) };
    let body = settled_then(20, |cluster| {
        drift(cluster)?;
        let (dead, its) = victim(cluster);
        let at = cluster.now;
        cluster.fault(Fault::Crash(dead));
        rests(cluster)?;
        let taken = taken_after(cluster, &its, at);
        taken.into_iter().max().ok_or_else(|| "nothing was taken".to_owned())
    });
    judge("no gateway, one dies", 10, &options, DETECTION + PROBE + SLOT, body);
}

#[test]
fn the_fast_profile_replaces_a_dead_owner_within_125_ms() {
    let options = Options { profile: Profile::FAST, ..nodes(3) };
    let body = settled_then(20, |cluster| {
        let (dead, its) = victim(cluster);
        let at = cluster.now;
        cluster.fault(Fault::Crash(dead));
        rests(cluster)?;
        let taken = taken_after(cluster, &its, at);
        taken.into_iter().max().ok_or_else(|| "nothing was taken".to_owned())
    });
    judge("one crash, fast profile", 10, &options, milliseconds(80 + 10 + 25 + 10), body);
}

#[test]
fn a_frozen_owner_is_replaced_and_never_answers_beside_its_successor() {
    for (time, inbox) in
        [(300, Inbox::Kept), (300, Inbox::Lost), (5_000, Inbox::Kept), (5_000, Inbox::Lost)]
    {
        for (n, seeds) in [(2, 8), (3, 8), (5, 3)] {
            let body = settled_then(20, |cluster| frozen_owner(cluster, time, inbox));
            let title = format!("frozen for {time} ms, inbox {inbox:?}");
            judge(&title, seeds, &nodes(n), DETECTION + PROBE + SLOT, body);
        }
    }
}

#[test]
fn a_short_pause_of_everybody_moves_nothing() {
    let body = settled_then(20, |cluster| {
        for round in 0..10 {
            for node in 0..cluster.nodes.len() {
                let time = milliseconds(60 + 7 * round);
                cluster.fault(Fault::Freeze(node, time, Inbox::Kept));
            }
            cluster.run(seconds(1))?;
        }
        rests(cluster)?;
        no_moves(cluster)?;
        Ok(cluster.checker.several(cluster.now))
    });
    judge("all stand still for 60 to 123 ms", 6, &nodes(3), Duration::ZERO, body);
}

pub fn one_crash(cluster: &mut Cluster, loss: u8) -> Judged {
    drift(cluster)?;
    cluster.fault(Fault::Loss(loss));
    let (dead, its) = victim(cluster);
    let at = cluster.now;
    let before = loads(cluster);
    cluster.fault(Fault::Crash(dead));
    cluster.run(seconds(1))?;
    let taken = taken_after(cluster, &its, at);
    if taken.len() < its.len() {
        return Err(format!("{} of {} are nobody's", its.len() - taken.len(), its.len()));
    }
    evenly(cluster, &before, dead, its.len(), 1)?;
    rests(cluster)?;
    Ok(taken.into_iter().max().unwrap())
}

/// Each survivor got no more than its share of what was lost, and some.
fn evenly(
    cluster: &Cluster,
    before: &[usize],
    dead: usize,
    lost: usize,
    excess: usize,
) -> Result<(), String> {
    let share = (lost + before.iter().sum::<usize>() - before[dead]).div_ceil(before.len() - 1);
    let loads = loads(cluster);
    for (node, load) in loads.iter().enumerate() {
        if node != dead && *load > before[node].max(share) + excess {
            return Err(format!("uneven: {before:?} became {loads:?}"));
        }
    }
    Ok(())
}

pub fn frozen_owner(cluster: &mut Cluster, time: u64, inbox: Inbox) -> Judged {
    drift(cluster)?;
    let (node, its) = victim(cluster);
    let at = cluster.now;
    cluster.fault(Fault::Freeze(node, milliseconds(time), inbox));
    rests(cluster)?;
    let several = cluster.checker.several(cluster.now);
    if !several.is_zero() {
        return Err(format!("two answered for {several:?}"));
    }
    let taken = taken_after(cluster, &its, at);
    taken.into_iter().max().ok_or_else(|| "nothing was taken".to_owned())
}
