//! What the stations of the segment say, and what their silence says.

use std::time::Duration;

use ownership::{ConflictProbe, Event, Proof, Stage, Stranger};

use crate::TAKE_OVER;
use crate::network::{Cluster, address, mac, ms};

#[test]
fn heartbeats_cut_completely_move_nothing() {
    for size in [2, 3] {
        let mut cluster = Cluster::placed(size, 20, 4);
        let all: Vec<_> = (0..size).collect();
        cluster.separate(&all, &all);
        cluster.run(ms(60_000));
        assert_eq!((cluster.moves, cluster.longest_gap), (0, Duration::ZERO));
        assert!(cluster.counted(|counters| counters.vetoes) > 100);
        cluster.heal();
        cluster.run(ms(1000));
        cluster.assert_at_rest();
        assert_eq!(cluster.moves, 0);
    }
}

#[test]
fn a_node_that_dies_while_the_heartbeats_are_cut_is_replaced() {
    let mut cluster = Cluster::placed(3, 20, 4);
    cluster.separate(&[0, 1, 2], &[0, 1, 2]);
    cluster.run(ms(5_000));
    cluster.kill(0);
    cluster.run(ms(1000));
    for address in cluster.wanted.keys() {
        assert!(!cluster.answerers(*address).is_empty());
    }
    assert!(cluster.longest_gap <= ms(230), "{:?}", cluster.longest_gap);
}

#[test]
fn owners_are_seen_to_answer() {
    let mut cluster = Cluster::placed(3, 30, 2);
    cluster.run(ms(2000));
    for (n, speaker) in &cluster.speakers {
        for address in &speaker.own {
            let proof = &speaker.states[address].proof;
            assert!(matches!(proof, Proof::Seen { by } if *by != cluster.names[*n]), "{proof:?}");
        }
    }
    // Somebody else answers in its place.
    let stolen = *cluster.held_by(0).first().unwrap();
    cluster.speakers.get_mut(&0).unwrap().own.remove(&stolen);
    cluster.hosts.insert(stolen, mac(77));
    cluster.run(ms(61_000));
    let proof = &cluster.speakers[&0].states[&stolen].proof;
    assert!(matches!(proof, Proof::Wrong { mac: wrong, .. } if *wrong == mac(77)), "{proof:?}");
    cluster.hosts.clear();
    cluster.run(ms(62_000));
    let proof = &cluster.speakers[&0].states[&stolen].proof;
    assert!(matches!(proof, Proof::Silent { .. }), "{proof:?}");
}

#[test]
fn a_foreign_host_is_not_disturbed_before_the_first_announcement() {
    let mut cluster = Cluster::placed(3, 3, 2);
    cluster.hosts.insert(address(3), mac(66));
    cluster.want_more(3..4);
    cluster.run(ms(15_000));
    assert!(cluster.answerers(address(3)).is_empty());
    let conflicts = cluster.speakers.values().map(|speaker| &speaker.states[&address(3)].conflict);
    assert!(conflicts.into_iter().any(|conflict| *conflict == stranger()));
    cluster.hosts.clear();
    cluster.run(ms(11_000));
    cluster.assert_at_rest();
    assert_eq!(cluster.answerers(address(3)).len(), 1);
    let calm = |speaker: &crate::network::Speaker| speaker.states[&address(3)].conflict.is_none();
    assert!(cluster.speakers.values().all(calm));
}

#[test]
fn a_foreign_host_does_not_keep_an_address_that_was_held() {
    let mut cluster = Cluster::placed(3, 3, 2);
    let owner = cluster.answerers(address(1))[0];
    cluster.hosts.insert(address(1), mac(66));
    cluster.kill(owner);
    cluster.run(ms(600));
    assert!(cluster.answerers(address(1)).is_empty());
    cluster.run(ms(700));
    let taker = cluster.answerers(address(1))[0];
    assert_eq!(cluster.speakers[&taker].states[&address(1)].conflict, stranger());
    cluster.hosts.clear();
    cluster.run(ms(61_000));
    cluster.assert_at_rest();
    assert_eq!(cluster.speakers[&taker].states[&address(1)].conflict, None);
}

#[test]
fn a_lost_carrier_moves_everything_and_its_return_nothing() {
    let mut cluster = Cluster::placed(3, 30, 2);
    let before = cluster.held_by(0);
    cluster.plug(0, &[]);
    assert!(cluster.held_by(0).is_empty());
    cluster.split(&[0], &[1, 2]);
    cluster.run(ms(5000));
    assert!(cluster.longest_gap <= TAKE_OVER, "{:?}", cluster.longest_gap);
    let moves = cluster.moves;
    cluster.plug(0, &["eth0"]);
    // The port forwards a second later.
    cluster.run(ms(1000));
    assert!(cluster.held_by(0).is_empty());
    cluster.heal();
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert_eq!(cluster.moves, moves);
    assert!(!before.is_empty());
}

#[test]
fn a_node_that_is_cut_off_takes_nothing_stops_and_comes_back_with_what_is_its_own() {
    for size in [2, 3, 5] {
        let mut cluster = Cluster::new(size, 30, 3);
        cluster.gateways = [address(7000)].into();
        cluster.place();
        let before = cluster.held_by(0);
        let others: Vec<_> = (1..size).chain([usize::MAX]).collect();
        cluster.split(&[0], &others);
        cluster.run(ms(1900));
        assert_eq!(cluster.held_by(0), before, "{size}: it takes nothing and goes on");
        cluster.run(ms(600));
        assert!(cluster.held_by(0).is_empty(), "{size}: it stops");
        let stage = cluster.speakers[&0].states[before.first().unwrap()].stage;
        assert_eq!(stage, Stage::Fenced);
        let moves = cluster.moves;
        cluster.heal();
        cluster.run(ms(1000));
        cluster.assert_at_rest();
        assert_eq!(cluster.moves, moves, "{size}: all was taken meanwhile");
    }
}

#[test]
fn one_of_two_that_is_left_alone_takes_over_if_its_gateway_answers_or_there_is_none() {
    for gateways in [vec![], vec![address(7000)]] {
        let mut cluster = Cluster::new(2, 10, 3);
        cluster.gateways = gateways.into_iter().collect();
        cluster.place();
        cluster.kill(0);
        cluster.run(ms(500));
        cluster.assert_at_rest();
        assert!(cluster.longest_gap <= TAKE_OVER, "{:?}", cluster.longest_gap);
    }
}

#[test]
fn a_gateway_that_dies_with_half_of_the_nodes_does_not_stop_the_others_for_long() {
    let mut cluster = Cluster::new(4, 40, 3);
    cluster.gateways = [address(7000)].into();
    cluster.place();
    cluster.gateways.clear();
    for node in [2, 3] {
        cluster.kill(node);
    }
    cluster.run(ms(4000));
    cluster.assert_at_rest();
    assert!(cluster.longest_gap < ms(2500), "{:?}", cluster.longest_gap);
}

#[test]
fn a_sole_candidate_answers_although_it_is_cut_off() {
    let mut cluster = Cluster::new(2, 2, 3);
    cluster.gateways = [address(7000)].into();
    let me = cluster.names[0].clone();
    cluster.edit(address(0), |candidates| candidates.nodes = [me].into());
    cluster.place();
    cluster.split(&[0], &[1, usize::MAX]);
    cluster.run(ms(5000));
    assert_eq!(cluster.held_by(0), [address(0)].into());
}

#[test]
fn the_thorough_question_precedes_first_claims_only() {
    let mut cluster = Cluster::new(3, 9, 5);
    cluster.settings.conflict_probe = ConflictProbe::Rfc;
    for node in 0..3 {
        cluster.start(node);
    }
    cluster.run(ms(5000));
    assert!(cluster.answerers(address(0)).is_empty());
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert!(cluster.spread() <= 1);
    cluster.kill(0);
    cluster.run(ms(1000));
    cluster.assert_at_rest();
    assert!(cluster.longest_gap <= TAKE_OVER, "{:?}", cluster.longest_gap);
}

#[test]
fn an_announcement_of_another_is_answered_every_ten_seconds() {
    let mut cluster = Cluster::placed(2, 2, 5);
    let owner = cluster.answerers(address(0))[0];
    let has = || Event::Heard {
        address: address(0),
        interface: "eth0",
        mac: mac(66),
        form: ownership::Heard::Has,
    };
    let mut repeats = 0;
    for _ in 0..250 {
        cluster.speakers.get_mut(&owner).unwrap().repeated.clear();
        cluster.give(owner, has());
        repeats += cluster.speakers[&owner].repeated.len();
        cluster.run(ms(100));
    }
    assert_eq!(repeats, 3);
    assert_eq!(cluster.speakers[&owner].states[&address(0)].conflict, stranger());
    cluster.run(ms(60_000));
    assert_eq!(cluster.speakers[&owner].states[&address(0)].conflict, None);
}

/// As it is heard here.
fn stranger() -> Option<Stranger> {
    Some(Stranger { mac: mac(66), interface: "eth0".into() })
}
