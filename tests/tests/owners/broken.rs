//! Rules broken on purpose: the checker is worth something only if it sees what it is there to see.

use std::time::Duration;

use tests::owners::{
    Broken, Cluster, Disk, Fault, Inbox, Options, Path,
    api::Lie,
    broken::{Flag, Kind},
    scenario::{only, play, settled, taken_after},
};

use crate::{
    DETECTION, Judged, PROBE, SLOT, T,
    cuts::{datagrams_cut, one_pair_cut, split_and_healed},
    deaths::{frozen_owner, one_crash},
    milliseconds, no_gap,
    planned::planned_move,
    rests, seconds,
    starts::{gone_without_claims, rolling_restart},
    victim,
    views::{contradicting_views, old_view, quiet},
};

#[test]
fn a_rule_broken_on_purpose_is_seen() {
    let (takeover, heal) = (DETECTION + PROBE + SLOT, 2 * T + milliseconds(2));
    let none = Duration::ZERO;
    seen(Broken::NoVeto, 3, none, datagrams_cut);
    seen(Broken::StationsHidden, 3, none, datagrams_cut);
    seen(Broken::AgesHidden, 3, none, |cluster| one_pair_cut(cluster, Path::Everything));
    seen(Broken::RepeatIgnored, 3, heal, |cluster| split_and_healed(cluster, 0));
    seen(Broken::IncarnationReset, 3, milliseconds(180), gone_without_claims);
    seen(Broken::PauseHidden, 2, takeover, |cluster| frozen_owner(cluster, 5_000, Inbox::Lost));
    seen(Broken::ReceiverForged, 2, milliseconds(400), replayed_to_a_new_life);
    seen(Broken::VersionsHidden, 3, heal, old_view);
    seen(Broken::VersionsForged, 3, none, |cluster| contradicting_views(cluster, Lie::OnlyMe));
    seen(Broken::ThirdRowsHidden, 3, takeover, |cluster| one_crash(cluster, 20));
    seen(Broken::Without(Kind::Beat), 3, none, quiet);
    seen(Broken::Without(Kind::Claims), 3, takeover, |cluster| one_crash(cluster, 0));
    seen(Broken::Without(Kind::Digest), 3, heal + T, |cluster| split_and_healed(cluster, 20));
    seen(Broken::Without(Kind::Handover), 3, none, |cluster| {
        planned_move(cluster, "leave", 0).map(|_| Duration::ZERO)
    });
    seen(Broken::Without(Kind::Refusal), 3, milliseconds(200), refused);
    seen(Broken::Without(Kind::GiveBack), 3, none, rolling_restart);
    seen(Broken::Without(Kind::Dead), 22, takeover, |cluster| one_crash(cluster, 0));
    seen(Broken::Without(Kind::Wire), 3, none, quiet);
    seen(Broken::FlagHidden(Flag::Draining), 3, takeover, drained_then_crash);
}

/// Some seed of a scenario, or one played by chance, breaks a rule or the bound, and does not if the
/// rule is kept.
fn seen(broken: Broken, nodes: usize, bound: Duration, body: impl Fn(&mut Cluster) -> Judged) {
    let judged = |seed, broken| {
        // Without a gateway nobody takes itself for cut off, and both sides of a split take.
        let options = Options { nodes, broken, gateway: false, ..Options::default() };
        let judged = settled(seed, options, 20).and_then(|mut cluster| body(&mut cluster));
        judged.and_then(|figure| {
            if figure <= bound { Ok(()) } else { Err(format!("{figure:?}, bound {bound:?}")) }
        })
    };
    let played = |seed, broken| play(seed, broken, false).outcome;
    let by_scenario = (0..10).find_map(|seed| {
        let how = judged(seed, Some(broken)).err()?;
        judged(seed, None).is_ok().then_some((seed, how))
    });
    let by_chance = || {
        (0..60).find_map(|seed| {
            let how = played(seed, Some(broken)).err()?;
            played(seed, None).is_ok().then_some((seed, how))
        })
    };
    match by_scenario {
        Some((seed, how)) => println!("{broken:?}: seen in its scenario, seed {seed}: {how}"),
        None => {
            let caught = by_chance();
            println!("{broken:?}: seen by chance: {caught:?}");
            assert!(caught.is_some(), "{broken:?} was never seen");
        }
    }
}

/// The first that is asked to take an address knows better and refuses.
fn refused(cluster: &mut Cluster) -> Judged {
    let (node, its) = victim(cluster);
    let (refuser, other) = ((node + 1) % 3, (node + 2) % 3);
    cluster.fault(Fault::Lie(refuser, Some(Lie::NeverMe)));
    cluster.wanted(its.iter().map(|a| (*a, Some(only([refuser, other])))));
    let begin = cluster.now;
    while !its.is_disjoint(&cluster.answers(node)) {
        cluster.run(milliseconds(5))?;
        if cluster.now - begin > seconds(5) {
            return Err("it was never handed over".to_owned());
        }
    }
    let time = cluster.now - begin;
    no_gap(cluster)?;
    Ok(time)
}

/// An owner dies beside one that is drained.
fn drained_then_crash(cluster: &mut Cluster) -> Judged {
    let (dead, _) = victim(cluster);
    cluster.fault(Fault::Drain((dead + 1) % 3, true));
    cluster.run(seconds(1))?;
    let its = cluster.answers(dead);
    let at = cluster.now;
    cluster.fault(Fault::Crash(dead));
    rests(cluster)?;
    let taken = taken_after(cluster, &its, at);
    taken.into_iter().max().ok_or_else(|| "nothing was taken".to_owned())
}

/// Both of two nodes die, one returns, and what the other said before is played to it.
fn replayed_to_a_new_life(cluster: &mut Cluster) -> Judged {
    let (dead, _) = victim(cluster);
    cluster.fault(Fault::Crash(dead));
    cluster.fault(Fault::Crash(1 - dead));
    cluster.fault(Fault::Boot(1 - dead, Disk::Kept));
    let at = cluster.now;
    cluster.fault(Fault::Replay);
    rests(cluster)?;
    let last = cluster.checker.taken.iter().map(|(when, ..)| *when - at).max();
    last.ok_or_else(|| "nothing was taken".to_owned())
}
