//! The crate's only reader of time. Sessions decide by a [`Clock`], which a simulation can put in the
//! place of the system's; envelopes ask for a date to show. With tokio's paused clock everything here
//! answers what the test decides.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::sync::Notify;

/// The wall time at which a [`LateClock`] begins.
const LATE_ORIGIN_MILLIS: u64 = 1_700_000_000_000;

/// The longest time to live of a lease, in seconds.
const LEASE_SECONDS_MAX: u64 = 9_000_000_000;

/// Longer than any program runs, and few enough seconds for every clock and timer.
const NEVER: Duration = Duration::from_secs(30 * 365 * 86_400);

/// A moment of the monotonic clock.
pub use tokio::time::Instant;

/// What a session decides by: when to renew its lease, and until when it may believe in it.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The monotonic time now.
    fn now(&self) -> Instant;

    /// How long the machine has been suspended since it booted, as far as that is known. The monotonic
    /// clock stands still meanwhile and a lease does not.
    fn suspended(&self) -> Duration;

    /// Completes when [`Clock::now`] has reached `at`.
    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()>;

    /// Milliseconds since the Unix epoch by the wall clock, by which delayed items of a queue are due.
    fn wall_millis(&self) -> u64 {
        wall_millis()
    }
}

/// A moment by a clock, from which the time that the machine sleeps is counted as well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    at: Instant,
    suspended: Duration,
}

impl Moment {
    /// Now.
    pub(crate) fn now(clock: &dyn Clock) -> Self {
        Self {
            at: clock.now(),
            suspended: clock.suspended(),
        }
    }

    /// Time since then.
    pub(crate) fn elapsed(&self, clock: &dyn Clock) -> Duration {
        let awake = clock.now().saturating_duration_since(self.at);
        awake + clock.suspended().saturating_sub(self.suspended)
    }
}

/// The system's clock, or tokio's where a test has paused that.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        now()
    }

    fn suspended(&self) -> Duration {
        suspended()
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(at))
    }
}

/// A clock that can be stopped, and is late from then on: for tests of what a holder may believe, while
/// the store's time goes on. No real clock does that; a process that is stopped between a look at its
/// clock and a write is in the same place.
#[derive(Debug)]
pub struct LateClock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    origin: Instant,
    pace: Mutex<Pace>,
    /// Wakes the sleepers in the order in which they came.
    changed: Arc<Notify>,
}

#[derive(Debug, Clone, Copy)]
enum Pace {
    /// As fast as time, so much behind it.
    Runs(Duration),
    /// Shows this moment.
    Stands(Instant),
}

impl Pace {
    fn now(self) -> Instant {
        match self {
            Self::Runs(late) => now().checked_sub(late).unwrap_or_else(now),
            Self::Stands(at) => at,
        }
    }
}

impl Default for LateClock {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                origin: now(),
                pace: Mutex::new(Pace::Runs(Duration::ZERO)),
                changed: Arc::new(Notify::new()),
            }),
        }
    }
}

impl LateClock {
    /// Stops the clock.
    pub fn stop(&self) {
        self.shared.change(|pace| Pace::Stands(pace.now()));
    }

    /// Lets the clock go on from where it stands.
    pub fn go_on(&self) {
        self.shared
            .change(|pace| Pace::Runs(now().saturating_duration_since(pace.now())));
    }
}

impl Shared {
    fn pace(&self) -> Pace {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(Pace) -> Pace) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        *pace = change(*pace);
        drop(pace);
        self.changed.notify_waiters();
    }
}

impl Clock for LateClock {
    fn now(&self) -> Instant {
        self.shared.pace().now()
    }

    /// A date in 2023 when the clock was made.
    fn wall_millis(&self) -> u64 {
        let since = self.now().saturating_duration_since(self.shared.origin);
        u64::try_from(since.as_millis()).map_or(u64::MAX, |since| LATE_ORIGIN_MILLIS + since)
    }

    fn suspended(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            loop {
                // Counts from here on, so that no change is missed.
                let changed = Arc::clone(&shared.changed).notified_owned();
                let pace = shared.pace();
                let due = match pace {
                    _ if pace.now() >= at => return,
                    Pace::Runs(late) => Some(at + late),
                    Pace::Stands(_) => None,
                };
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = until(due) => {}
                }
            }
        })
    }
}

/// Completes at `deadline`; never without one.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Completes after `length`; at once for no time at all.
pub(crate) async fn pause(length: Duration) {
    if !length.is_zero() {
        tokio::time::sleep(length).await;
    }
}

/// The monotonic time now.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this module is the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Rounded up to whole seconds, in which stores count the time of leases; at most the longest that etcd
/// grants, some 285 years.
pub(crate) fn whole_seconds(length: Duration) -> Duration {
    let more = u64::from(length.subsec_nanos() > 0);
    let seconds = length.as_secs().saturating_add(more);
    Duration::from_secs(seconds.min(LEASE_SECONDS_MAX))
}

/// So long after `start`, or never where there is no such moment.
pub(crate) fn after(start: Instant, length: Duration) -> Instant {
    let end = start.checked_add(length.min(NEVER));
    end.unwrap_or(start)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_late_clock_stands_and_goes_on_from_there() {
        let clock = Arc::new(LateClock::default());
        let start = clock.now();
        let second = Duration::from_secs(1);
        clock.sleep_until(start + second).await;
        assert_eq!(clock.now(), start + second);
        clock.stop();
        tokio::time::sleep(5 * second).await;
        assert_eq!(clock.now(), start + second);
        let asleep = clock.sleep_until(start + 2 * second);
        let limit = tokio::time::timeout(3 * second, asleep).await;
        assert!(limit.is_err(), "it stands");
        clock.go_on();
        let real = now();
        clock.sleep_until(start + 2 * second).await;
        assert_eq!((clock.now(), now()), (start + 2 * second, real + second));
    }
}
