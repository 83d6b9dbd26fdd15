//! The crate's only reader of time: sessions ask it for their deadlines, envelopes for a date to
//! show. With tokio's paused clock, or inside a simulation, it answers what the test decides.

use std::time::{Duration, UNIX_EPOCH};

pub(crate) use tokio::time::Instant;

/// The monotonic time now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch by the wall clock: for people, never for a decision.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
pub(crate) fn wall_millis() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// How long this machine has been suspended since it booted. The monotonic clock stands still
/// meanwhile and a lease does not, so a session takes the growth of this off its time left.
#[cfg(target_os = "linux")]
#[must_use]
pub(crate) fn suspended() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = |id| {
        let t = clock_gettime(id);
        let seconds = u64::try_from(t.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(t.tv_nsec).unwrap_or(0);
        Duration::new(seconds, nanos)
    };
    // The two are read one after the other: a difference under a millisecond is only that.
    let monotonic = read(ClockId::Monotonic);
    let gap = read(ClockId::Boottime).saturating_sub(monotonic);
    Duration::from_millis(u64::try_from(gap.as_millis()).unwrap_or(u64::MAX))
}

/// How long this machine has been suspended: not known on this system, so never.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub(crate) fn suspended() -> Duration {
    Duration::ZERO
}
