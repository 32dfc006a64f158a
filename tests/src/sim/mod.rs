//! A simulated cluster: one controller, some speakers, hosts, a router and an Ethernet segment, on
//! one clock, from one seed; and ([`replicas`]) several controllers by themselves.
//!
//! The cores are the product's own ([`controller::Controller`], [`speaker::Planner`],
//! [`speaker::Wire`], [`bgp::Session`]); their shells, the API server, the wire and the router are
//! stood in for here. Equal seeds give equal runs. [`checker`] holds the invariants that are asserted
//! after every step.

pub mod api;
pub mod checker;
pub mod cluster;
pub mod host;
pub(crate) mod queue;
pub mod replicas;
pub mod router;
pub mod scenario;

pub use cluster::{Cluster, Fault, Options};
