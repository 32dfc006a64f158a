//! Agrees with the other speakers which node answers for an address (docs/design/0005).
//!
//! Speakers tell each other by datagrams that they live and what they hold; nobody else is asked. A
//! claim is an epoch, a node and the life of its speaker; the highest claim in force wins. Whoever
//! answers goes on answering; an address that nobody answers for is taken by the first in an order
//! that every speaker computes alike, and only after the segment was asked for it in vain.
//!
//! Pure: it takes events with the time they happened at, returns actions, and says by
//! `poll_timeout` when it wants to be woken. Datagrams are trusted as far as the caller's transport
//! vouches for their sender.
//!
//! | module | what it knows |
//! |---|---|
//! | `core` | the parts, and the order of a step |
//! | `message` | the datagrams |
//! | `table`, `claim` | what is claimed by whom, which claim is stronger, whether tables differ |
//! | `peers`, `peer`, `ring`, `roll` | who lives, by whose word |
//! | `receive`, `beats`, `repair` | what goes to and comes from the peers |
//! | `life`, `asking`, `timers` | one address: vacant, asked for, owned, given up |
//! | `placement`, `place`, `estate`, `spread` | which node is to have which address |
//! | `offer`, `home` | handing over, and getting back |
//! | `start`, `isolation` | when this node must not trust what it hears |
//! | `proof` | whether owners are seen to answer |
#![forbid(unsafe_code)]
#![deny(missing_docs)]

use std::sync::Arc;

pub use self::core::Ownership;
pub use claim::{Claim, rank};
pub use counters::{Cause, Counters, LATENESS_BOUNDS, Lateness};
pub use event::{Action, AddressState, Asking, Event, Heard, Proof, Stage, Stranger};
pub use place::place;
pub use settings::{ConflictProbe, Memory, Profile, Settings};
pub use view::{Candidates, Extent, View};

mod asking;
mod beats;
mod claim;
mod core;
mod counters;
mod estate;
mod event;
mod home;
mod isolation;
mod life;
mod message;
mod offer;
mod outbox;
mod peer;
mod peers;
mod place;
mod placement;
mod proof;
mod receive;
mod repair;
mod ring;
mod roll;
mod settings;
mod spread;
mod start;
mod table;
mod timers;
mod view;

/// The name of a node.
pub type NodeName = Arc<str>;

/// An Ethernet address.
pub type Mac = [u8; 6];
