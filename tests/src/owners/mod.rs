//! A simulated segment with nothing but [`ownership::Ownership`] on its nodes: faster than
//! [`crate::sim`], so that ten thousand histories are played in minutes, and clusters of hundreds of
//! nodes at all.
//!
//! The core is the product's own; datagrams, the segment with its hosts and their neighbor tables,
//! disks, clocks and the API server's changes are stood in for here. Equal seeds give equal runs.
//! Sealing is not simulated: what the transport promises (no forged sender, no datagram twice to one
//! life of a receiver, unless [`Options::duplicates`] asks for it) is promised here too.

pub mod api;
pub mod broken;
pub mod checker;
pub mod cluster;
pub mod curve;
pub mod fault;
pub mod scenario;
pub mod segment;

pub use broken::Broken;
pub use cluster::{Cluster, Options};
pub use fault::{Disk, Fault, Inbox, Path};
