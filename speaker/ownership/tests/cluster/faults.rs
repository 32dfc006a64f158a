//! Deaths, cuts, loss, pauses, old disks, recordings, and many nodes or addresses.

use std::collections::BTreeMap;
use std::time::Duration;

use ownership::{Claim, Event, Memory};

use crate::TAKE_OVER;
use crate::network::{Cluster, address, ms};

#[test]
fn two_that_die_together_are_replaced() {
    for seed in 0..5 {
        let mut cluster = Cluster::placed(5, 100, seed);
        cluster.kill(1);
        cluster.kill(3);
        cluster.run(ms(1500));
        cluster.assert_at_rest();
        assert!(cluster.longest_gap <= TAKE_OVER + ms(160), "{:?}", cluster.longest_gap);
        assert!(cluster.spread() <= 2, "{}", cluster.spread());
    }
}

#[test]
fn a_successor_that_dies_while_it_asks_is_replaced() {
    for seed in 0..6 {
        let mut cluster = Cluster::placed(3, 30, seed);
        cluster.kill(0);
        cluster.run(ms(180));
        cluster.kill(1);
        cluster.run(ms(1000));
        cluster.assert_at_rest();
        assert!(cluster.longest_gap <= ms(225 + 160), "{:?}", cluster.longest_gap);
    }
}

#[test]
fn disks_that_are_hours_old_do_no_harm() {
    for seed in 0..10 {
        let mut cluster = Cluster::placed(3, 30, seed);
        // Another history, with higher epochs, of the node itself and of others.
        let claims = (0..30).map(|n| {
            let owner = cluster.names[n % 3].clone();
            (address(n), Claim { epoch: 100 + n as u64, owner, incarnation: 1 })
        });
        let memory = Memory { claims: claims.collect(), ..Memory::default() };
        cluster.kill(0);
        cluster.run(ms(1000));
        cluster.longest_gap = Duration::ZERO;
        cluster.moves = 0;
        cluster.start_with(0, memory.clone());
        cluster.run(ms(3000));
        cluster.assert_at_rest();
        assert_eq!((cluster.moves, cluster.longest_gap), (0, Duration::ZERO), "seed {seed}");
        for node in 0..3 {
            cluster.kill(node);
        }
        cluster.run(ms(10));
        for node in 0..3 {
            cluster.start_with(node, memory.clone());
        }
        cluster.run(ms(5000));
        cluster.assert_at_rest();
        assert!(cluster.spread() <= 1, "seed {seed}: {}", cluster.spread());
    }
}

#[test]
fn a_healed_split_is_settled_in_time() {
    for loss in [0, 20] {
        for (size, seed) in [(2, 1), (3, 2), (5, 3)] {
            let mut cluster = Cluster::placed(size, 60, seed);
            let (one, other): (Vec<_>, Vec<_>) = (0..size).partition(|node| node % 2 == 0);
            cluster.split(&one, &other);
            cluster.run(ms(5000));
            for address in cluster.wanted.keys() {
                assert_eq!(cluster.answerers(*address).len(), 2, "both sides serve their clients");
            }
            cluster.loss = loss;
            cluster.heal();
            cluster.run(ms(if loss == 0 { 100 } else { 500 }));
            for address in cluster.wanted.keys() {
                assert_eq!(cluster.answerers(*address).len(), 1);
            }
            cluster.loss = 0;
            cluster.run(ms(700));
            cluster.assert_at_rest();
            assert_eq!(cluster.longest_gap, Duration::ZERO);
            // Whoever stays tells the neighbors of the other side.
            for speaker in cluster.speakers.values() {
                assert!(speaker.own.is_subset(&speaker.repeated));
            }
            let moves = cluster.moves;
            cluster.run(ms(5000));
            assert_eq!(cluster.moves, moves);
        }
    }
}

#[test]
fn a_pause_of_ones_own_is_nobodys_death() {
    for (pause, keeps) in [(70, true), (100, true), (160, true), (300, false), (5000, false)] {
        let mut cluster = Cluster::placed(3, 30, 8);
        let before = cluster.held_by(0);
        cluster.run_without(0, ms(pause));
        cluster.run(ms(400));
        cluster.assert_at_rest();
        let after = cluster.held_by(0);
        assert!(after.is_subset(&before), "{pause} ms: the one that slept took something");
        assert_eq!(after == before, keeps, "{pause} ms");
        assert_eq!(cluster.speakers[&0].core.counters().false_verdicts, 0);
    }
}

#[test]
fn loss_of_a_fifth_moves_nothing() {
    for size in [2, 3, 5] {
        let mut cluster = Cluster::placed(size, 50, 3);
        cluster.loss = 20;
        cluster.run(ms(60_000));
        assert_eq!(cluster.moves, 0, "{size}");
        cluster.loss = 0;
        cluster.run(ms(200));
        cluster.assert_at_rest();
    }
}

#[test]
fn loss_of_a_fifth_from_the_start_ends_with_one_owner() {
    for seed in 0..20 {
        let size = 2 + usize::try_from(seed % 4).unwrap();
        let mut cluster = Cluster::new(size, 50, seed);
        cluster.loss = 20;
        for node in 0..size {
            cluster.start(node);
        }
        cluster.run(ms(5000));
        cluster.loss = 0;
        cluster.run(ms(640));
        cluster.assert_at_rest();
        assert!(cluster.spread() <= 1, "seed {seed}: {}", cluster.spread());
    }
}

#[test]
fn one_pair_that_cannot_hear_each_other_moves_nothing() {
    for (size, data) in [(3, false), (3, true), (5, true)] {
        let mut cluster = Cluster::placed(size, 50, 3);
        if data {
            cluster.split(&[0], &[1]);
        } else {
            cluster.separate(&[0], &[1]);
        }
        cluster.run(ms(10_000));
        assert_eq!(cluster.moves, 0, "{size}, {data}");
        assert_eq!(cluster.counted(|counters| counters.false_verdicts), 0);
        cluster.heal();
        cluster.run(ms(1000));
        cluster.assert_at_rest();
        // The neighbors on the other side of the cut may have learnt anything meanwhile.
        for node in [0, 1] {
            assert_eq!(cluster.speakers[&node].repeated, cluster.held_by(node));
        }
    }
}

#[test]
fn recordings_move_nothing() {
    let mut cluster = Cluster::placed(3, 30, 9);
    cluster.tape = Some(Vec::new());
    cluster.kill(0);
    cluster.run(ms(1000));
    cluster.start(0);
    cluster.run(ms(2000));
    let tape = cluster.tape.take().unwrap();
    cluster.moves = 0;
    // In these lives, out of order, from others too.
    cluster.play(&tape);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, 0);
    // In other lives.
    for node in 0..3 {
        cluster.kill(node);
        cluster.start(node);
        cluster.run(ms(1000));
    }
    cluster.run(ms(3000));
    cluster.moves = 0;
    cluster.play(&tape);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, 0);
    // A dead node is not kept alive by what it once said.
    cluster.kill(1);
    cluster.longest_gap = Duration::ZERO;
    for _ in 0..5 {
        cluster.play(&tape);
        cluster.run(ms(50));
    }
    assert!(cluster.longest_gap <= TAKE_OVER, "{:?}", cluster.longest_gap);
}

#[test]
fn any_mix_of_faults_ends_with_one_owner() {
    for seed in 0..200 {
        let size = 3 + usize::try_from(seed % 5).unwrap();
        let mut cluster = Cluster::placed(size, 40, seed);
        let mut disks: BTreeMap<usize, Memory> = BTreeMap::new();
        println!("seed {seed}");
        for _ in 0..12 {
            cluster.loss = cluster.below(3) * 10;
            cluster.delay.1 = Duration::from_millis(1 + cluster.below(120));
            let node = usize::try_from(cluster.below(size as u64)).unwrap();
            let other = usize::try_from(cluster.below(size as u64)).unwrap();
            let fault = cluster.below(10);
            println!("{fault} {node} {other} at {:?}", cluster.now - cluster.born);
            match fault {
                0 => {
                    disks.insert(node, cluster.kill(node));
                }
                1 | 2 => {
                    let memory = disks.get(&node).cloned().unwrap_or_default();
                    cluster.kill(node);
                    cluster.start_with(node, memory);
                }
                3 if node != other => cluster.separate(&[node], &[other]),
                4 if node != other => cluster.split(&[node], &[other]),
                5 => {
                    cluster.cut.insert((node, other));
                }
                6 => cluster.heal(),
                7 => {
                    let pause = Duration::from_millis(cluster.below(800));
                    cluster.run_without(node, pause);
                }
                8 => cluster
                    .plug(node, if cluster.lives.is_multiple_of(2) { &[] } else { &["eth0"] }),
                _ => {
                    let n = usize::try_from(cluster.below(40)).unwrap();
                    let name = cluster.names[other].clone();
                    let before = cluster.wanted.clone();
                    cluster.edit(address(n), |candidates| {
                        candidates.nodes.remove(&name);
                    });
                    cluster.version += 1;
                    let view = cluster.view();
                    cluster.give(node, Event::View(view));
                    cluster.wanted = before;
                }
            }
            let pause = Duration::from_millis(cluster.below(600));
            cluster.run(pause);
        }
        cluster.loss = 0;
        cluster.delay.1 = ms(1);
        cluster.heal();
        for node in 0..size {
            cluster.plug(node, &["eth0"]);
        }
        cluster.publish();
        cluster.run(ms(5000));
        cluster.assert_at_rest();
    }
}

#[test]
fn above_twenty_nodes_a_few_watch_each() {
    let mut cluster = Cluster::placed(25, 100, 3);
    assert!(cluster.spread() <= 2, "{}", cluster.spread());
    cluster.run(ms(1000));
    let before = cluster.datagrams;
    cluster.run(ms(1000));
    let each = (cluster.datagrams - before) / 25;
    assert!((100..=110).contains(&each), "{each} datagrams a second");
    // A crash.
    cluster.kill(3);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert!(cluster.longest_gap <= ms(240), "{:?}", cluster.longest_gap);
    // It returns, and nothing moves.
    let moves = cluster.moves;
    cluster.start(3);
    cluster.run(ms(2000));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, moves);
    // Loss.
    cluster.loss = 20;
    cluster.run(ms(20_000));
    cluster.loss = 0;
    assert_eq!(cluster.moves, moves);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    // A hand-over.
    cluster.longest_gap = Duration::ZERO;
    cluster.give(7, Event::Leave);
    cluster.run(ms(100));
    assert!(cluster.speakers[&7].left);
    cluster.kill(7);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.longest_gap, Duration::ZERO);
}

#[test]
fn a_split_ring_heals() {
    let mut cluster = Cluster::placed(24, 48, 3);
    let (one, other): (Vec<_>, Vec<_>) = (0..24).partition(|node| *node < 14);
    cluster.split(&one, &other);
    cluster.run(ms(5000));
    for address in cluster.wanted.keys() {
        assert_eq!(cluster.answerers(*address).len(), 2, "both sides serve their clients");
    }
    cluster.heal();
    cluster.run(ms(300));
    for address in cluster.wanted.keys() {
        assert_eq!(cluster.answerers(*address).len(), 1);
    }
    cluster.run(ms(1000));
    cluster.assert_at_rest();
}

#[test]
fn one_that_comes_and_goes_comes_last() {
    let mut cluster = Cluster::placed(3, 30, 3);
    for _ in 0..4 {
        cluster.kill(2);
        cluster.run(ms(500));
        cluster.start(2);
        cluster.run(ms(3000));
    }
    cluster.want_more(30..60);
    cluster.run(ms(500));
    cluster.assert_at_rest();
    assert!(cluster.held_by(2).is_empty(), "although it has the least");
    cluster.run(Duration::from_secs(601));
    cluster.want_more(60..70);
    cluster.run(ms(500));
    cluster.assert_at_rest();
    assert_eq!(cluster.held_by(2).len(), 10);
}

#[test]
fn a_claim_that_was_lost_costs_a_few_datagrams_among_thousands() {
    let mut cluster = Cluster::placed(3, 3000, 3);
    let memory = cluster.speakers[&0].core.memory();
    assert_eq!(memory.claims.len(), 3001);
    cluster.loss = 100;
    cluster.want_more(3000..3003);
    cluster.run(ms(70));
    cluster.loss = 0;
    let (before, beats) = ((cluster.datagrams, cluster.questions), 3 * 2 * 25);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    // One for each question that was asked to see owners answer is not counted.
    let extra = cluster.datagrams - before.0 - beats - (cluster.questions - before.1);
    assert!(extra < 40, "{extra}");
}

#[test]
fn thousands_of_addresses_cost_nothing_at_rest() {
    let mut cluster = Cluster::placed(3, 10_000, 3);
    assert!(cluster.spread() <= 1);
    // Until every owner was seen to answer, 2,000 a second.
    cluster.run(ms(6000));
    let before = (cluster.datagrams, cluster.questions);
    cluster.run(ms(10_000));
    // 25 beats a second to each of two, and what was seen on the wire.
    let datagrams = cluster.datagrams - before.0;
    let questions = cluster.questions - before.1;
    assert!(questions <= 10 * 10 + 3, "{questions}");
    assert!(datagrams - questions <= 3 * 2 * 25 * 10 + 3, "{datagrams} {questions}");
    assert_eq!(cluster.moves, 0);
}
