//! The only reader of time. Everything that needs to know what time it is asks here, so that a
//! simulation, or a test with tokio's paused clock, decides what the answer is.

use std::time::{Duration, UNIX_EPOCH};

pub use tokio::time::Instant;

/// The monotonic time now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch by the wall clock. For people and for names, never for a
/// decision about leases, elections or order.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
pub fn wall_millis() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
