//! What the process asks of glibc's allocator; with another C library it is left as it is.
//!
//! Threads have arenas of their own there, and what one frees another does not use. A speaker that
//! has read tens of thousands of objects would keep a third of its memory for nothing.

use std::time::{Duration, Instant};

use tracing::debug;

/// So many objects, states and actions leave enough behind to look for it.
const MANY: usize = 4096;
/// So long after them it is looked for: what follows from them is mostly done by then.
const SOON: Duration = Duration::from_secs(10);
/// And once more, when the statuses of ten thousand Services are written, which takes a minute.
const LATER: Duration = Duration::from_secs(90);

/// One arena for all threads. To be called while there is but one.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "std does not know arenas"))]
pub fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers, and no other thread is in the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// How many octets are handed out now, with what the allocator needs for itself; 0 where it cannot
/// be asked.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "std does not count"))]
pub fn in_use() -> usize {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallinfo2(3) takes nothing, and may be called at any time.
        let info = unsafe { libc::mallinfo2() };
        info.uordblks + info.hblkhd
    }
    #[cfg(not(target_env = "gnu"))]
    0
}

/// Knows when there may be memory to give back.
#[derive(Debug, Default)]
pub struct Tidying {
    passed: usize,
    /// The latest first.
    due: Vec<Instant>,
}

impl Tidying {
    /// So much has come in, or gone out.
    pub fn passed(&mut self, count: usize, now: Instant) {
        self.passed += count;
        if self.passed >= MANY {
            self.passed = 0;
            self.due = vec![now + LATER, now + SOON];
        }
    }

    /// When there is something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.last().copied()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|due| due <= now) {
            self.due.pop();
            give_back();
            debug!(in_use = in_use(), "gave memory back");
        }
    }
}

/// Gives pages back to the kernel of which nothing is used. Takes some milliseconds, in which other
/// threads may wait for memory.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "std does not give memory back"))]
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::clock;

    #[test]
    fn memory_is_looked_for_twice_after_many() {
        let now = clock::now();
        let mut tidying = Tidying::default();
        tidying.passed(MANY - 1, now);
        assert_eq!(tidying.poll_timeout(), None, "a few are nothing");
        tidying.passed(1, now);
        for due in [SOON, LATER] {
            assert_eq!(tidying.poll_timeout(), Some(now + due));
            tidying.handle_timeout(now + due - Duration::from_millis(1));
            assert_eq!(tidying.poll_timeout(), Some(now + due), "not before its time");
            tidying.handle_timeout(now + due);
        }
        assert_eq!(tidying.poll_timeout(), None);
    }
}
