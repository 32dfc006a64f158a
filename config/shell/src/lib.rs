//! What the shells of the two daemons share: the API client, watches, Events, logs and probes.
//!
//! All of it is input and output; no decision is taken here.

pub mod authorize;
pub mod client;
pub mod events;
pub mod flags;
pub mod metrics;
pub mod probes;
pub mod resources;
pub mod slim;
pub mod state;
pub mod telemetry;
pub mod tls;
pub mod watch;
