//! The one place where the speaker reads the clock. Cores get the time as an argument.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

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

/// A point in the life of the node, that a later process understands and nobody's `date` moves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moment {
    /// Which start of the node (random(4)); empty if the kernel does not tell.
    pub boot: String,
    /// Since then, sleep included.
    pub uptime: Duration,
}

impl Moment {
    pub fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let uptime = read("/proc/uptime");
        let seconds = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok());
        Self {
            boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            uptime: seconds
                .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                .unwrap_or_default(),
        }
    }

    /// How long `earlier` is ago; `None` if that is unknown, as the node was started anew since.
    pub fn since(&self, earlier: &Self) -> Option<Duration> {
        let same = !self.boot.is_empty() && self.boot == earlier.boot;
        if same { self.uptime.checked_sub(earlier.uptime) } else { None }
    }
}
