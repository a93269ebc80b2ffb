//! The only place that reads the time.
//!
//! `Instant` is for leases, timers and latencies inside this process; [`UnixMillis`] is for what is stored or
//! told to a peer (expiry, delay, publish time) and must mean the same after a restart.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The moment `delay` after this one, saturating.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time from `earlier` to this moment; zero if this moment is the earlier one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// The monotonic time of this process.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall clock, as stored and as told to peers.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
pub fn unix_now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
