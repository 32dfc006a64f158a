//! Bidirectional Forwarding Detection, without sockets or a clock.
//!
//! [`Session`] is one session with one peer, as a value; [`Received`] reads the control packet on the
//! wire. Asynchronous mode only: no echo, no demand mode, no simple password.
//!
//! What is left to the shell is what needs sockets: UDP port 3784 or 4784, a source port of 49152
//! and above that stays the same, the TTL check of RFC 5881 section 5, a discriminator that is
//! unique on the system, and finding the session of a packet (RFC 5880 section 6.3): by
//! [`Packet::your_discriminator`], or by interface and source address where that is 0.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod authentication;
mod discard;
mod packet;
mod session;

pub use authentication::{Authentication, AuthenticationKind, BadKey};
pub use discard::Discard;
pub use packet::{Diagnostic, Packet, Received, State};
pub use session::{Action, Counters, Event, Peer, Role, Session, Settings, Timing};
