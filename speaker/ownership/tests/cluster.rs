//! Several speakers that agree on owners over a network that loses, delays and cuts: how addresses
//! are divided, and what becomes of those of a node that dies.
#![allow(clippy::unwrap_used)]

#[path = "cluster/faults.rs"]
mod faults;
#[path = "cluster/network.rs"]
mod network;
#[path = "cluster/planned.rs"]
mod planned;
#[path = "cluster/segment.rs"]
mod segment;

use std::time::Duration;

use ownership::{Cause, ConflictProbe, Stage};

use network::{Cluster, address, ms};

/// Four beats of 40 ms, the slack, three probes, and the delays of some datagrams.
const TAKE_OVER: Duration = ms(225);

#[test]
fn a_new_cluster_divides_the_addresses_evenly() {
    for (size, seeds) in [(1, 2), (2, 20), (3, 20), (5, 10), (20, 2)] {
        for seed in 0..seeds {
            let cluster = Cluster::placed(size, 100, seed);
            assert!(cluster.spread() <= 1, "{size} nodes, seed {seed}: {}", cluster.spread());
            let taken = cluster.counted(|counters| counters.taken.values().sum());
            assert_eq!(taken, 100, "{size} nodes, seed {seed}: somebody took twice");
        }
    }
}

#[test]
fn claims_that_arrive_late_and_out_of_order_do_not_spoil_the_division() {
    for seed in 0..5 {
        let mut cluster = Cluster::new(4, 1000, seed);
        cluster.delay.1 = ms(60);
        for node in 0..4 {
            cluster.start(node);
        }
        cluster.run(ms(3000));
        cluster.assert_at_rest();
        assert!(cluster.spread() <= 1, "seed {seed}: {}", cluster.spread());
    }
}

#[test]
fn a_lone_node_answers_at_once() {
    for (probe, patience) in [(ConflictProbe::Fast, 25), (ConflictProbe::Off, 0)] {
        let mut cluster = Cluster::new(1, 5, 1);
        cluster.settings.conflict_probe = probe;
        cluster.start(0);
        cluster.run(ms(patience));
        assert_eq!(cluster.held_by(0).len(), 5, "{probe:?}");
        let now = cluster.now;
        cluster.want_more(5..6);
        cluster.run(ms(patience));
        assert_eq!(cluster.held_by(0).len(), 6, "{probe:?} {:?}", cluster.now - now);
    }
}

#[test]
fn nothing_is_claimed_while_listening() {
    let mut cluster = Cluster::new(2, 5, 1);
    cluster.start(0);
    cluster.run(ms(319));
    assert_eq!(cluster.speakers[&0].states[&address(0)].stage, Stage::Listening);
    cluster.run(ms(2000));
    assert!(cluster.held_by(0).is_empty(), "the other was never heard");
    cluster.run(ms(30));
    assert_eq!(cluster.held_by(0).len(), 5, "it is not waited for any longer");
}

#[test]
fn a_later_address_waits_for_nobody() {
    for (probe, patience) in [(ConflictProbe::Fast, 25), (ConflictProbe::Off, 0)] {
        let mut cluster = Cluster::new(4, 30, 1);
        cluster.settings.conflict_probe = probe;
        // One of four never comes.
        for node in 0..3 {
            cluster.start(node);
        }
        cluster.run(ms(4000));
        cluster.want_more(30..31);
        cluster.run(ms(patience));
        assert_eq!(cluster.answerers(address(30)).len(), 1, "{probe:?}");
    }
}

#[test]
fn a_speaker_that_starts_late_into_the_first_wait_still_gets_its_share() {
    let mut cluster = Cluster::new(3, 60, 7);
    cluster.start(0);
    cluster.run(ms(1000));
    cluster.start(1);
    cluster.run(ms(4500));
    cluster.assert_at_rest();
    assert!(cluster.spread() <= 1, "{}", cluster.spread());
}

#[test]
fn one_that_starts_a_moment_after_the_first_wait_is_evened_out_to() {
    let mut cluster = Cluster::new(2, 60, 7);
    cluster.start(0);
    cluster.run(ms(10_000));
    assert_eq!(cluster.held_by(0).len(), 60);
    cluster.start(1);
    cluster.run(ms(2_000));
    cluster.assert_at_rest();
    assert_eq!(cluster.spread(), 0);
    assert_eq!(cluster.longest_gap, Duration::ZERO);
    cluster.kill(1);
    cluster.run(ms(60_000));
    cluster.start(1);
    cluster.run(ms(10_000));
    cluster.assert_at_rest();
    assert!(cluster.held_by(1).is_empty(), "a minute later nothing moves without need");
}

#[test]
fn a_dead_owner_is_replaced_in_time_and_evenly() {
    for (size, seed) in [(2, 1), (3, 2), (5, 3), (20, 4)] {
        for loss in [0, 10] {
            let mut cluster = Cluster::placed(size, 100, seed);
            cluster.loss = loss;
            let pause = Duration::from_millis(cluster.below(40));
            cluster.run(pause);
            cluster.kill(0);
            cluster.run(ms(1000));
            cluster.loss = 0;
            cluster.run(ms(200));
            cluster.assert_at_rest();
            assert!(cluster.longest_gap <= TAKE_OVER, "{size}: {:?}", cluster.longest_gap);
            assert!(cluster.spread() <= 1, "{size}: {}", cluster.spread());
        }
    }
}

#[test]
fn nothing_moves_back_to_one_that_returns() {
    let mut cluster = Cluster::placed(3, 30, 3);
    cluster.run(ms(60_000));
    cluster.kill(2);
    cluster.run(ms(1000));
    let moves = cluster.moves;
    cluster.start(2);
    cluster.run(ms(3000));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, moves);
    assert!(cluster.held_by(2).is_empty());
    cluster.want_more(30..40);
    cluster.run(ms(500));
    cluster.assert_at_rest();
    assert_eq!(cluster.held_by(2).len(), 10, "what is new goes to the one with the least");
}

#[test]
fn one_that_restarts_without_its_claims_is_replaced_without_waiting_for_its_death() {
    for seed in 0..5 {
        let mut cluster = Cluster::placed(3, 30, seed);
        cluster.kill(0);
        cluster.run(ms(100));
        cluster.start(0);
        cluster.run(ms(1000));
        cluster.assert_at_rest();
        assert!(cluster.longest_gap <= ms(100 + 40 + 40), "{:?}", cluster.longest_gap);
    }
}

#[test]
fn one_that_restarts_with_its_claims_takes_them_up_again() {
    for loss in [0, 20] {
        for seed in 0..10 {
            let mut cluster = Cluster::placed(3, 30, seed);
            cluster.loss = loss;
            let memory = cluster.kill(0);
            cluster.run(ms(100));
            let before = cluster.moves;
            cluster.start_with(0, memory);
            cluster.run(ms(1000));
            cluster.loss = 0;
            cluster.run(ms(1000));
            cluster.assert_at_rest();
            assert_eq!(cluster.held_by(0).len(), 10);
            if loss == 0 {
                assert_eq!(cluster.moves - before, 10);
                assert!(cluster.longest_gap <= ms(100 + 40), "{:?}", cluster.longest_gap);
            }
            let resumed = cluster.speakers[&0].core.counters().taken[&Cause::Resumed];
            assert_eq!(resumed, 10);
        }
    }
}

#[test]
fn preferred_nodes_come_first() {
    let mut cluster = Cluster::new(3, 9, 6);
    let preferred = cluster.names[1].clone();
    for n in 0..9 {
        let preferred = preferred.clone();
        cluster.edit(address(n), |candidates| {
            candidates.preference.insert(preferred, 100);
        });
    }
    for node in 0..3 {
        cluster.start(node);
    }
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.held_by(1).len(), 9);
    cluster.run(ms(5000));
    assert_eq!(cluster.held_by(1).len(), 9, "evening out does not spoil it");
    cluster.kill(1);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert!(cluster.spread() <= 1);
}

#[test]
fn addresses_that_come_one_by_one_are_spread() {
    for seed in 0..5 {
        let mut cluster = Cluster::placed(3, 1, seed);
        cluster.run(ms(60_000));
        for n in 0..60 {
            // Not in the order of the addresses.
            let n = 1 + n * 37 % 61;
            cluster.want_more(n..n + 1);
            let pause = Duration::from_millis(cluster.below(50));
            cluster.run(pause);
        }
        cluster.run(ms(500));
        cluster.assert_at_rest();
        assert!(cluster.spread() <= 1, "seed {seed}: {}", cluster.spread());
    }
}
