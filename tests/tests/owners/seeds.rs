//! Scenarios made from seeds.

use std::sync::atomic::{AtomicU64, Ordering};

use tests::{owners::scenario::play, seeds::first_failure};

/// Seeds of a run of `make test`.
const SEEDS: u64 = 400;

#[test]
fn equal_seeds_give_equal_stories() {
    let story = |seed| play(seed, None, true).cluster.story;
    assert_eq!(story(7), story(7));
    assert_ne!(story(7), story(11));
}

/// Plays seeds on every core; the first that breaks a rule is printed with its story.
#[test]
fn random_seeds_break_no_rule() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let wanted = number("BERTH_OWNERS_SEED");
    let count = number("BERTH_OWNERS_SEEDS").unwrap_or(SEEDS);
    let seeds = wanted.map_or(0..count, |seed| seed..seed + 1);
    let (datagrams, slowest) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = first_failure(seeds.clone(), |seed| {
        let played = play(seed, None, wanted.is_some());
        datagrams.fetch_add(played.cluster.checker.datagrams(), Ordering::Relaxed);
        let settled = u64::try_from(played.settled_after.as_millis()).unwrap();
        slowest.fetch_max(settled, Ordering::Relaxed);
        if wanted.is_some() {
            println!("{}", played.cluster.story.join("\n"));
        }
        played.outcome.err()
    });
    if let Some((seed, error)) = failed {
        let story = play(seed, None, true).cluster.story.join("\n");
        panic!("{story}\nseed {seed}: {error}\nplay it again: make owners SEED={seed}");
    }
    println!(
        "{} seeds, {} datagrams, at rest at most {} ms after the last fault, 0 violations",
        seeds.end - seeds.start,
        datagrams.into_inner(),
        slowest.into_inner()
    );
}
