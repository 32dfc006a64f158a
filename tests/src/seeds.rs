//! Plays many seeds of a simulator.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Plays seeds on every core until one fails; what the lowest that did has to say.
///
/// # Panics
/// When `play` does.
pub fn first_failure<T: Send + Ord>(
    seeds: Range<u64>,
    play: impl Fn(u64) -> Option<T> + Sync,
) -> Option<(u64, T)> {
    let next = AtomicU64::new(seeds.start);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds.end {
            return None;
        }
        if let Some(failure) = play(seed) {
            next.store(seeds.end, Ordering::Relaxed);
            return Some((seed, failure));
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| match worker.join() {
            Ok(failure) => failure,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().min()
    })
}
