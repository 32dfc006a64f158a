//! Assigns addresses from IPAddressPools to Services of type LoadBalancer.
//!
//! `service` reads, `plan` decides (with the books of `allocator`), `status` says it in the words
//! of the API, `controller` keeps the order of things; none of them knows a clock, a socket or a
//! client. `io` does.

pub mod allocator;
pub mod certificates;
pub mod controller;
pub mod election;
#[cfg(test)]
mod fixture;
pub mod io;
pub mod plan;
mod random;
pub mod service;
pub mod status;
