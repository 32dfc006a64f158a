//! The speaker: announces the addresses of LoadBalancer Services from one node.
//!
//! Two pure cores meet in bounded channels: the [`planner`] turns API objects into wishes, the
//! [`wire`] answers on the segment. `io` is the shell around both. See `docs/ARCHITECTURE.md`.

#[cfg(test)]
mod fixture;
pub mod io;
pub mod plan;
pub mod planner;
pub mod status;
pub mod view;
pub mod wire;

pub use planner::Planner;
pub use wire::{Memory, Report, Wanted, Wire};
