//! Everything that spans crates: the simulator, and the harnesses of the lab and end-to-end tests.

#![allow(clippy::unwrap_used, clippy::panic)]

pub mod api_suite;
pub mod bare_speaker;
pub mod bench;
pub mod bfd_stage;
pub mod crowd;
pub mod install;
pub mod kube;
pub mod lab;
pub mod owners;
pub mod programs;
pub mod raw_peer;
pub mod seeds;
pub mod sim;
