//! What is meant to move, moves without a gap; what is not, stays.

use std::time::Duration;

use ownership::{Cause, Event, Extent, View};

use crate::network::{Cluster, address, ms};

#[test]
fn one_that_leaves_hands_over_without_a_gap() {
    for loss in [0, 20] {
        for seed in 0..10 {
            let mut cluster = Cluster::placed(3, 60, seed);
            cluster.loss = loss;
            cluster.give(0, Event::Leave);
            cluster.run(ms(if loss == 0 { 30 } else { 1500 }));
            assert!(cluster.held_by(0).is_empty());
            assert!(cluster.speakers[&0].left);
            cluster.kill(0);
            assert_eq!(cluster.longest_gap, Duration::ZERO, "loss {loss}, seed {seed}");
            cluster.loss = 0;
            cluster.run(ms(1000));
            cluster.assert_at_rest();
            assert!(loss > 0 || cluster.spread() <= 1, "{}", cluster.spread());
        }
    }
}

#[test]
fn a_successor_that_gives_up_at_once_is_followed_by_another() {
    for seed in 0..10 {
        let mut cluster = Cluster::placed(3, 6, seed);
        let [first] = cluster.answerers(address(0))[..] else { panic!("seed {seed}") };
        let name = cluster.names[first].clone();
        cluster.edit(address(0), |candidates| {
            candidates.nodes.remove(&name);
        });
        cluster.publish();
        while cluster.answerers(address(0)) == [first] {
            cluster.run(ms(1));
        }
        // Its only link goes before the old owner has stopped.
        let answerers = cluster.answerers(address(0));
        let second = answerers.into_iter().find(|node| *node != first).unwrap();
        cluster.plug(second, &[]);
        for time in 0..2000 {
            cluster.run(ms(1));
            assert!(!cluster.answerers(address(0)).is_empty(), "seed {seed}, after {time} ms");
        }
        let third = (0..3).find(|node| ![first, second].contains(node)).unwrap();
        assert_eq!(cluster.answerers(address(0)), [third], "seed {seed}");
    }
}

#[test]
fn the_last_one_answers_to_the_end() {
    let mut cluster = Cluster::placed(1, 3, 1);
    cluster.give(0, Event::Leave);
    cluster.run(ms(499));
    assert_eq!(cluster.held_by(0).len(), 3);
    cluster.run(ms(2));
    assert!(cluster.held_by(0).is_empty());
    assert!(cluster.speakers[&0].left);
}

#[test]
fn a_rolling_restart_ends_where_it_began() {
    // The last time nobody waits until the one before has got everything back.
    for (size, addresses, wait) in [(3, 60, 1500), (5, 200, 1500), (5, 200, 600)] {
        let mut cluster = Cluster::placed(size, addresses, 5);
        let before: Vec<_> = (0..size).map(|node| cluster.held_by(node)).collect();
        for node in 0..size {
            cluster.give(node, Event::Leave);
            cluster.run(ms(300));
            assert!(cluster.speakers[&node].left);
            let memory = cluster.kill(node);
            cluster.run(ms(1000));
            cluster.start_with(node, memory);
            cluster.run(ms(wait));
        }
        cluster.run(ms(6000));
        cluster.assert_at_rest();
        let after: Vec<_> = (0..size).map(|node| cluster.held_by(node)).collect();
        assert_eq!(before, after);
        assert_eq!(cluster.longest_gap, Duration::ZERO);
    }
}

#[test]
fn a_drain_hands_over_and_nothing_is_asked_back_for() {
    let mut cluster = Cluster::placed(3, 30, 5);
    cluster.run(ms(60_000));
    let draining = |draining| View {
        extent: Extent::Changes,
        version: 2,
        draining: Some(draining),
        ..View::default()
    };
    cluster.give(0, Event::View(draining(true)));
    cluster.run(ms(100));
    assert!(cluster.held_by(0).is_empty());
    assert!(!cluster.speakers[&0].left);
    cluster.give(0, Event::Leave);
    let memory = cluster.kill(0);
    assert!(memory.handed_over.is_empty());
    cluster.run(ms(500));
    cluster.start_with(0, memory);
    cluster.run(ms(5000));
    cluster.assert_at_rest();
    assert!(cluster.held_by(0).is_empty());
    assert_eq!(cluster.longest_gap, Duration::ZERO);
    // The last that is left is not drained to the end.
    for node in [1, 2] {
        cluster.kill(node);
    }
    cluster.run(ms(500));
    assert_eq!(cluster.held_by(0).len(), 30);
    cluster.give(0, Event::View(draining(true)));
    cluster.run(ms(5000));
    assert_eq!(cluster.held_by(0).len(), 30, "nobody else could");
}

#[test]
fn one_that_is_no_longer_a_candidate_hands_over_without_a_gap() {
    let mut cluster = Cluster::placed(3, 9, 5);
    let old = cluster.answerers(address(4))[0];
    let name = cluster.names[old].clone();
    cluster.edit(address(4), |candidates| {
        candidates.nodes.remove(&name);
    });
    let view = cluster.view();
    cluster.give(old, Event::View(view));
    cluster.run(ms(6));
    assert_eq!(cluster.answerers(address(4)).len(), 2, "neighbors are told first");
    cluster.run(ms(9));
    assert_ne!(cluster.answerers(address(4)), [old], "the others need not know why");
    cluster.publish();
    cluster.run(ms(50));
    cluster.assert_at_rest();
    assert_ne!(cluster.answerers(address(4)), [old]);
    assert_eq!(cluster.longest_gap, Duration::ZERO);
}

#[test]
fn an_offer_is_taken_back_when_its_reason_has_gone() {
    let mut cluster = Cluster::placed(2, 2, 5);
    let old = cluster.answerers(address(0))[0];
    let names = cluster.names.clone();
    cluster.edit(address(0), |candidates| {
        candidates.nodes.clear();
        candidates.nodes.insert("elsewhere".into());
    });
    cluster.publish();
    cluster.run(ms(400));
    assert_eq!(cluster.answerers(address(0)), [old], "nobody can take it");
    cluster.edit(address(0), |candidates| candidates.nodes.extend(names));
    cluster.publish();
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.answerers(address(0)), [old]);
    assert_eq!(cluster.longest_gap, Duration::ZERO);
}

#[test]
fn an_address_that_no_node_may_have_is_let_go() {
    let mut cluster = Cluster::placed(2, 2, 5);
    cluster.edit(address(0), |candidates| candidates.nodes.clear());
    cluster.publish();
    cluster.run(ms(100));
    assert_eq!(cluster.answerers(address(0)), [] as [usize; 0]);
}

#[test]
fn an_address_that_nobody_wants_any_more_is_taken_by_nobody() {
    let mut cluster = Cluster::placed(3, 9, 6);
    let old = cluster.answerers(address(0))[0];
    cluster.wanted.remove(&address(0));
    cluster.version += 1;
    let view = cluster.view();
    // The owner hears of it first.
    cluster.give(old, Event::View(view));
    assert!(cluster.answerers(address(0)).is_empty());
    cluster.run(ms(1000));
    cluster.publish();
    cluster.run(ms(3000));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, 0);
    // Wanted again, it goes on with the epoch that it had.
    cluster.want_more(0..1);
    cluster.run(ms(200));
    cluster.assert_at_rest();
    assert_eq!(cluster.speakers[&0].states[&address(0)].epoch, 3);
}

#[test]
fn a_named_interface_that_vanishes_is_a_reason_to_hand_over() {
    let mut cluster = Cluster::new(3, 9, 2);
    let names = cluster.names.clone();
    for n in 0..9 {
        let lan = names.iter().map(|name| (name.clone(), ["lan".to_owned()].into())).collect();
        cluster.edit(address(n), |candidates| candidates.interfaces = lan);
    }
    for node in 0..3 {
        cluster.start(node);
        cluster.plug(node, if node == 2 { &["eth0"] } else { &["eth0", "lan"] });
    }
    cluster.run(ms(3000));
    assert_eq!([0, 1, 2].map(|node| cluster.held_by(node).len() / 4), [1, 1, 0]);
    cluster.plug(0, &["eth0"]);
    cluster.run(ms(100));
    cluster.assert_at_rest();
    assert_eq!(cluster.held_by(1).len(), 9);
    assert_eq!(cluster.longest_gap, Duration::ZERO);
}

#[test]
fn evening_out_on_request_moves_one_a_second() {
    let mut cluster = Cluster::new(3, 30, 3);
    cluster.settings.rebalance = true;
    cluster.place();
    cluster.kill(2);
    cluster.run(ms(1000));
    let (moves, gap) = (cluster.moves, cluster.longest_gap);
    cluster.start(2);
    cluster.run(ms(4000));
    let moved = cluster.moves - moves;
    assert!((3..=8).contains(&moved), "{moved}: one a second from each of two");
    cluster.run(ms(10_000));
    cluster.assert_at_rest();
    assert_eq!(cluster.spread(), 0);
    assert_eq!(cluster.moves - moves, 10, "as few as possible");
    assert_eq!(cluster.longest_gap, gap, "without a gap");
}

#[test]
fn an_owner_with_an_old_view_is_deposed_by_a_newer_one_only() {
    let mut cluster = Cluster::placed(3, 9, 5);
    let old = cluster.answerers(address(4))[0];
    let name = cluster.names[old].clone();
    cluster.edit(address(4), |candidates| {
        candidates.nodes.remove(&name);
    });
    let others: Vec<_> = (0..3).filter(|node| *node != old).collect();
    // The same version: they contradict each other, and nothing moves.
    for node in &others {
        let view = cluster.view();
        cluster.give(*node, Event::View(view));
    }
    cluster.run(ms(10_000));
    assert_eq!(cluster.answerers(address(4)), [old]);
    cluster.version += 1;
    for node in &others {
        let view = cluster.view();
        cluster.give(*node, Event::View(view));
    }
    cluster.run(ms(1900));
    assert_eq!(cluster.answerers(address(4)), [old], "it has its time");
    cluster.run(ms(300));
    assert_eq!(cluster.answerers(address(4)).len(), 1);
    assert_ne!(cluster.answerers(address(4)), [old]);
    assert_eq!(cluster.longest_gap, Duration::ZERO);
    assert_eq!(cluster.moves, 1);
    cluster.run(ms(60_000));
    assert_eq!(cluster.moves, 1);
    assert_eq!(
        cluster.counted(|counters| counters.taken.get(&Cause::Deposed).copied().unwrap_or(0)),
        1
    );
}
