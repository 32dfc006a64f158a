//! The simulator's tests: named scenarios, and scenarios made from seeds.
//!
//! `make sim SEED=17` plays one seed and prints its story.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tests::seeds::first_failure;
use tests::sim::{
    Cluster, Fault, Options,
    checker::at_rest,
    cluster::{Broken, addresses},
    replicas,
    scenario::{REST, Shape, cluster, create, endpoints, play, play_replicas, restarts},
};

/// Seeds of a run of `make test`.
const SEEDS: u64 = 1000;
/// Seeds of the replicas, each with dozens of deaths and takeovers.
const REPLICA_SEEDS: u64 = 300;

fn settled(seed: u64, options: Options, services: u32) -> Cluster {
    let mut cluster = cluster(seed, options, services);
    holds(&mut cluster, Duration::from_secs(5));
    cluster
}

fn holds(cluster: &mut Cluster, time: Duration) {
    if let Err(error) = cluster.run(time) {
        panic!("{error}\n{}", cluster.story.join("\n"));
    }
}

fn rests(cluster: &mut Cluster) {
    holds(cluster, REST);
    if let Err(error) = at_rest(cluster) {
        panic!("{error}\n{}", cluster.story.join("\n"));
    }
}

#[test]
fn services_get_addresses_and_one_node_answers_for_each() {
    for seed in 0..20 {
        let mut cluster = settled(seed, Options::default(), 6);
        rests(&mut cluster);
        for (key, service) in &cluster.api.services {
            assert_eq!(addresses(service).len(), 1, "{key:?}");
        }
    }
}

#[test]
fn equal_seeds_give_equal_stories() {
    let story = |seed| play(seed, None).0.story;
    assert_eq!(story(7), story(7));
    assert_ne!(story(7), story(11));
}

#[test]
fn a_dead_owner_is_replaced_within_260_ms() {
    for seed in 0..100 {
        let mut cluster = settled(seed, Options::default(), 6);
        let victim = (0..3)
            .find(|node| !cluster.nodes[*node].speaker.as_ref().unwrap().answers.is_empty())
            .unwrap();
        let lost = cluster.nodes[victim].speaker.as_ref().unwrap().answers.clone();
        cluster.fault(Fault::Crash(victim));
        holds(&mut cluster, Duration::from_millis(260));
        for address in lost {
            let owners = (0..3).filter(|node| {
                let speaker = cluster.nodes[*node].speaker.as_ref();
                speaker.is_some_and(|s| s.answers.contains(&address))
            });
            assert_eq!(owners.count(), 1, "{address}, seed {seed}\n{}", cluster.story.join("\n"));
        }
        rests(&mut cluster);
    }
}

#[test]
fn a_leaving_owner_answers_until_another_does() {
    for seed in 0..50 {
        let mut cluster = settled(seed, Options::default(), 6);
        cluster.fault(Fault::Leave(1));
        for _ in 0..200 {
            holds(&mut cluster, Duration::from_millis(5));
            for service in cluster.api.services.values() {
                for address in addresses(service) {
                    let owned = cluster.nodes.iter().any(|node| {
                        node.speaker.as_ref().is_some_and(|s| s.answers.contains(&address))
                    });
                    assert!(owned, "a gap at {address}\n{}", cluster.story.join("\n"));
                }
            }
        }
        rests(&mut cluster);
    }
}

#[test]
fn a_partition_heals_without_two_answering() {
    for seed in 0..30 {
        let mut cluster = settled(seed, Options { nodes: 4, ..Options::default() }, 6);
        cluster.fault(Fault::Split(2));
        holds(&mut cluster, Duration::from_secs(3));
        cluster.fault(Fault::Heal);
        rests(&mut cluster);
    }
}

#[test]
fn a_cut_off_owner_yields_and_does_not_fight_for_it_later() {
    for seed in 0..30 {
        let mut cluster = settled(seed, Options::default(), 6);
        cluster.fault(Fault::LinkDown(0));
        holds(&mut cluster, Duration::from_secs(1));
        let speaker = cluster.nodes[0].speaker.as_ref().unwrap();
        assert!(speaker.answers.is_empty(), "{}", cluster.story.join("\n"));
        let told = cluster.story.len();
        cluster.fault(Fault::LinkUp(0));
        rests(&mut cluster);
        let moved = cluster.story[told..].iter().filter(|line| line.contains("takes")).count();
        assert_eq!(moved, 0, "nothing moves back\n{}", cluster.story.join("\n"));
    }
}

#[test]
fn the_wire_needs_no_planner_and_no_api_server() {
    for seed in 0..30 {
        let mut cluster = settled(seed, Options::default(), 6);
        cluster.fault(Fault::ApiDown);
        for node in 0..3 {
            cluster.fault(Fault::FreezePlanner(node, Duration::from_secs(60)));
        }
        cluster.fault(Fault::Crash(0));
        holds(&mut cluster, Duration::from_millis(260));
        for service in cluster.api.services.values() {
            for address in addresses(service) {
                let owners = cluster.nodes.iter().filter(|node| {
                    node.speaker.as_ref().is_some_and(|s| s.answers.contains(&address))
                });
                assert_eq!(owners.count(), 1, "{address}\n{}", cluster.story.join("\n"));
            }
        }
    }
}

#[test]
fn a_restarted_controller_changes_nothing() {
    for seed in 0..30 {
        let mut cluster = settled(seed, Options::default(), 9);
        let before: Vec<_> = cluster.api.services.values().map(addresses).collect();
        let writes = cluster.api.writes;
        cluster.fault(Fault::ControllerCrash);
        holds(&mut cluster, Duration::from_secs(1));
        cluster.fault(Fault::ControllerBoot);
        rests(&mut cluster);
        let after: Vec<_> = cluster.api.services.values().map(addresses).collect();
        assert_eq!(before, after);
        assert_eq!(writes, cluster.api.writes, "a restart writes nothing");
    }
}

#[test]
fn a_local_service_follows_its_endpoint() {
    for seed in 0..30 {
        let mut cluster = settled(seed, Options::default(), 0);
        let shape = Shape { local: true, ..Shape::default() };
        let routed = Shape { local: true, routed: true, dual: true, ..Shape::default() };
        let keys = [create(&mut cluster, 1, shape), create(&mut cluster, 2, routed)];
        for node in [0, 2, 1] {
            for key in &keys {
                endpoints(&mut cluster, key, &[node]);
            }
            rests(&mut cluster);
        }
        for key in &keys {
            endpoints(&mut cluster, key, &[]);
        }
        rests(&mut cluster);
        assert!(cluster.router.routes().is_empty());
    }
}

#[test]
fn a_router_that_resets_gets_everything_again() {
    for seed in 0..30 {
        let mut cluster = settled(seed, Options::default(), 0);
        for number in 1..6 {
            create(&mut cluster, number, Shape { routed: true, dual: true, ..Shape::default() });
        }
        holds(&mut cluster, Duration::from_secs(2));
        cluster.fault(Fault::RouterReset);
        rests(&mut cluster);
        assert_eq!(cluster.router.routes().len(), 10);
    }
}

/// Plays seeds on every core; the first that breaks a rule is printed with its story.
#[test]
fn random_seeds_break_no_rule() {
    let wanted = std::env::var("BERTH_SIM_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let seeds = wanted.map_or(0..SEEDS, |seed| seed..seed + 1);
    let answers = AtomicU64::new(0);
    let failed = first_failure(seeds.clone(), |seed| {
        let (cluster, outcome) = play(seed, None);
        answers.fetch_add(cluster.checker.answers, Ordering::Relaxed);
        if wanted.is_some() {
            println!("{}", cluster.story.join("\n"));
        }
        outcome.err().map(|error| (error, cluster.story.join("\n")))
    });
    if let Some((seed, (error, story))) = failed {
        panic!("{story}\nseed {seed}: {error}\nplay it again: make sim SEED={seed}");
    }
    println!(
        "{} seeds, {} frames judged, 0 violations",
        seeds.end - seeds.start,
        answers.into_inner()
    );
}

/// The checker is worth something only if it sees what it is there to see.
#[test]
fn a_rule_broken_on_purpose_is_seen() {
    for broken in [Broken::HeartbeatsUnheard, Broken::StatusUnread] {
        let caught = (0..60).filter(|seed| play(*seed, Some(broken)).1.is_err()).count();
        println!("{broken:?}: seen in {caught} of 60 seeds");
        assert!(caught > 0, "{broken:?} was never seen");
    }
    let broken = Some(Broken::RoutesKept);
    let mut cluster = settled(1, Options { broken, ..Options::default() }, 0);
    let key = create(&mut cluster, 1, Shape { routed: true, ..Shape::default() });
    rests(&mut cluster);
    cluster.api.delete_service(&key);
    holds(&mut cluster, REST);
    let error = at_rest(&cluster).unwrap_err();
    println!("{broken:?}: {error}");
    assert!(error.contains("the router has"), "{error}");
}

#[test]
fn replicas_never_give_an_address_twice_or_take_one_away() {
    let violations: Vec<String> = (0..REPLICA_SEEDS)
        .filter_map(|seed| {
            let (all, outcome) = play_replicas(seed, None);
            let error = outcome.err()?;
            Some(format!("seed {seed}: {error}\n{}", all.story.join("\n")))
        })
        .collect();
    assert!(violations.is_empty(), "{} of {REPLICA_SEEDS}: {}", violations.len(), violations[0]);
}

#[test]
fn a_hundred_restarts_at_random_moments_move_nothing() {
    for (seed, count) in [(1, 1), (2, 1), (3, 2), (4, 3)] {
        let (all, outcome) = restarts(seed, count, 100);
        if let Err(error) = outcome {
            panic!("{count} replicas, seed {seed}: {error}\n{}", all.story.join("\n"));
        }
        println!("{count} replicas: 100 restarts, {} writes", all.api.writes);
    }
}

#[test]
fn broken_rules_of_replicas_are_seen() {
    for broken in [
        replicas::Broken::EverybodyLeads,
        replicas::Broken::NoListOnTakeover,
        replicas::Broken::WritesPastDeadline,
    ] {
        let caught = (0..REPLICA_SEEDS).find(|seed| play_replicas(*seed, Some(broken)).1.is_err());
        println!("{broken:?}: seed {caught:?}");
        assert!(caught.is_some(), "{broken:?} went unseen");
    }
}
