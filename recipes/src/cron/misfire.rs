//! What is due, given what was started last and the time: without a clock and without a store.

use std::time::Duration;

use super::schedule::{Schedule, Slot};
use crate::error::{Error, Result};

/// What becomes of times at which a job was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Misfire {
    /// Nothing: only what is not later than the [tolerance](super::Cron::tolerance) is started.
    Skip,
    /// The newest of them is started, once for all, as soon as possible.
    #[default]
    RunOnce,
    /// The newest of them are started, one after the other, the oldest first.
    RunAll {
        /// Most that are made up for; 1 to 1000. Older ones are not started any more.
        most: u32,
    },
}

/// Most times that are made up for.
const MOST_MAX: u32 = 1_000;

impl Misfire {
    pub(super) fn validate(self) -> Result<()> {
        match self {
            Self::RunAll { most } if !(1..=MOST_MAX).contains(&most) => Err(Error::Invalid(
                format!("{most} missed times to be made up for: 1 to {MOST_MAX} can be"),
            )),
            _ => Ok(()),
        }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// This is to be started.
    Start(Slot),
    /// Nothing before this time; nothing at all without one.
    Wait(Option<Slot>),
}

/// Judges the time `now_ms`, when `last` was started last.
pub(super) fn due(
    schedule: &Schedule,
    (misfire, tolerance): (Misfire, Duration),
    last: Slot,
    now_ms: u64,
) -> Due {
    let now = Slot::at_millis(now_ms);
    let wait = || Due::Wait(schedule.next_after(last.max(now)));
    let Some(newest) = schedule.last_until(now).filter(|newest| *newest > last) else {
        return wait();
    };
    match misfire {
        Misfire::Skip => {
            let late = Duration::from_millis(now_ms.saturating_sub(newest.millis()));
            match late <= tolerance {
                true => Due::Start(newest),
                false => wait(),
            }
        }
        Misfire::RunOnce => Due::Start(newest),
        Misfire::RunAll { most } => {
            let before = |at: &Slot| schedule.last_until(Slot(at.0 - 1));
            let missed = std::iter::successors(Some(newest), before);
            let missed = missed.take_while(|at| *at > last);
            let oldest = missed
                .take(usize::try_from(most).unwrap_or(usize::MAX))
                .last();
            oldest.map_or_else(wait, Due::Start)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 10 s; what is due at that second, when that one was started last.
    fn at(misfire: Misfire, last: i64, now: i64) -> Due {
        let schedule = "*/10 * * * * *".parse().unwrap();
        let tolerance = Duration::from_secs(3);
        let now_ms = Slot(now).millis() + 500;
        due(&schedule, (misfire, tolerance), Slot(last), now_ms)
    }

    #[test]
    fn each_policy_starts_what_it_says() {
        let (start, wait) = (|at| Due::Start(Slot(at)), |at| Due::Wait(Some(Slot(at))));
        for policy in [Misfire::Skip, Misfire::RunOnce, Misfire::RunAll { most: 3 }] {
            assert_eq!(at(policy, 100, 101), wait(110));
            assert_eq!(at(policy, 100, 110), start(110));
            assert_eq!(at(policy, 100, 112), start(110));
            // Somebody's clock is ahead.
            assert_eq!(at(policy, 200, 110), wait(210));
        }
        assert_eq!(at(Misfire::Skip, 100, 113), wait(120));
        assert_eq!(at(Misfire::Skip, 100, 182), start(180));
        assert_eq!(at(Misfire::RunOnce, 100, 189), start(180));
        let all = Misfire::RunAll { most: 3 };
        assert_eq!(at(all, 100, 189), start(160));
        assert_eq!(at(all, 160, 189), start(170));
        assert_eq!(at(all, 170, 195), start(180));
        assert_eq!(at(all, 180, 195), start(190));
        assert_eq!(at(all, 190, 195), wait(200));
    }

    #[test]
    fn what_cannot_be_made_up_for_is_refused() {
        for most in [0, 1_001] {
            let policy = Misfire::RunAll { most };
            assert!(matches!(policy.validate(), Err(Error::Invalid(_))));
        }
        Misfire::RunAll { most: 1_000 }.validate().unwrap();
    }
}
