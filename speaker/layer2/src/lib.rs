//! Layer 2: which node answers for an address on a segment, and the frames with which it does so.
//!
//! Two cores that meet in the caller: [`Ownership`] agrees with its peers who owns an address,
//! [`Announcer`] speaks ARP and NDP for the addresses owned. Neither has a socket, a thread or a
//! clock: both take events with the time they happened at and return actions, and say by
//! `poll_timeout` when they want to be woken.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod announcer;
pub mod interface;
pub mod ownership;

mod arp;
mod ethernet;
mod message;
mod ndp;
mod pace;

pub use announcer::Announcer;
pub use interface::{Interface, InterfaceIndex, InterfaceMatch};
pub use ownership::{Candidates, NodeName, Ownership, OwnershipConfig};

#[cfg(test)]
mod tests {
    use std::time::Instant;

    /// An instant to count from.
    #[expect(clippy::disallowed_methods, reason = "where a test's own time starts")]
    pub(crate) fn epoch() -> Instant {
        Instant::now()
    }
}
