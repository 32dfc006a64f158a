//! Layer 2: the frames with which a node answers for an address on a segment.
//!
//! [`Announcer`] speaks ARP and NDP for the addresses that it is told this node owns, and asks the
//! segment who has one. It has no socket, no thread and no clock: it takes events with the time they
//! happened at, returns actions, and says by `poll_timeout` when it wants to be woken.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod announcer;
pub mod interface;

mod arp;
mod ethernet;
mod mld;
mod ndp;
mod pace;

pub use announcer::{Announcer, AnnouncerSettings};
pub use interface::{Interface, InterfaceIndex, InterfaceMatch};

#[cfg(test)]
mod tests {
    use std::{sync::OnceLock, time::Instant};

    /// An instant to count from, the same in one process: no test may depend on how long it takes.
    #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
    pub(crate) fn epoch() -> Instant {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        *EPOCH.get_or_init(Instant::now)
    }
}
