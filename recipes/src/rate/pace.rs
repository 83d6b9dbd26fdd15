//! How long the permits of a grant may be used: longer where the store is slow, so that a grant is not
//! too old to be used each time it comes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::rule::Rule;

/// Longest time that is added to a window because of a slow store.
const LONGEST: Duration = Duration::from_secs(64);

/// What a handle has learned of how fast the store grants.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// How often the rule's own time is doubled.
    doublings: AtomicU32,
}

impl Pace {
    /// How long the next grant's permits may be used, from when they are asked for.
    pub(super) fn usable(&self, rule: Rule) -> Duration {
        let doublings = self.doublings.load(Ordering::Relaxed);
        let longer = rule.usable() * (1 << doublings.min(LONGEST.as_secs().ilog2()));
        longer.min(LONGEST.max(rule.usable()))
    }

    /// A grant came too late to be used within `usable`: the next is given twice the time, up to a limit.
    pub(super) fn late(&self, usable: Duration) {
        if usable < LONGEST {
            self.doublings.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A grant took so long; where a half of its time would have been plenty, the next is given that.
    pub(super) fn in_time(&self, took: Duration, usable: Duration) {
        if took < usable / 8 {
            let fewer = |doublings: u32| doublings.checked_sub(1);
            // Refused only when there is none to take away.
            let _ = self
                .doublings
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_doubles_up_to_a_limit_and_back() {
        let (short, long) = (Duration::from_secs(4), Duration::from_secs(3600));
        let (short, long) = (Rule::new(1, short), Rule::new(1, long));
        let pace = Pace::default();
        for seconds in [1, 2, 4, 8, 16, 32, 64, 64, 64] {
            let usable = pace.usable(short);
            assert_eq!(usable, Duration::from_secs(seconds));
            pace.late(usable);
        }
        // Never shorter than the rule's own.
        assert_eq!(pace.usable(long), Duration::from_secs(360));
        for seconds in [64, 32, 16, 8, 4, 2, 1, 1] {
            let usable = pace.usable(short);
            assert_eq!(usable, Duration::from_secs(seconds));
            pace.in_time(usable / 2, usable);
            assert_eq!(pace.usable(short), usable);
            pace.in_time(Duration::ZERO, usable);
        }
    }
}
