//! The one place where the speaker reads the clock. Cores get the time as an argument.

use std::time::{Instant, SystemTime};

/// The monotonic clock; tokio's, so that a paused runtime stops it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A number for this life of the process, higher than those of its lives before as long as nobody
/// sets the node's clock back by more than a life lasted: nanoseconds since 1970.
pub fn incarnation() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
