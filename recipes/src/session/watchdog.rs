//! A limit on how long the program may go without a sign of life, so that a lease is not renewed for ever
//! on behalf of code that hangs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Moment};

/// When the program last gave a sign of life, and how long that is good for.
#[derive(Debug)]
pub(super) struct Watchdog {
    limit: Duration,
    fed: Mutex<Moment>,
}

impl Watchdog {
    pub(super) fn new(limit: Duration, now: Moment) -> Self {
        Self {
            limit,
            fed: Mutex::new(now),
        }
    }

    pub(super) fn feed(&self, now: Moment) {
        *self.fed.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Time until it is too late for the next sign.
    pub(super) fn left(&self, clock: &dyn Clock) -> Duration {
        let fed = *self.fed.lock().unwrap_or_else(PoisonError::into_inner);
        self.limit.saturating_sub(fed.elapsed(clock))
    }
}
