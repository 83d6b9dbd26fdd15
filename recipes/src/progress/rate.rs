//! Speed and remaining time: a moving average of the rate with its mean deviation, both weighted by
//! time, so that reports at uneven intervals count for what they cover.

use std::time::Duration;

use crate::clock::Instant;

/// How long a change of speed takes to show.
const MEMORY: Duration = Duration::from_secs(10);

/// Samples shorter than this are joined with the next one: over a moment, any rate is noise.
const SAMPLE_LEAST: Duration = Duration::from_millis(100);

/// Samples before a rate is told.
const SAMPLES_LEAST: u32 = 3;

/// Longest time that is told as remaining; beyond that, nothing is.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// When something will be done, as a range, counted from the view it stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eta {
    /// If it goes as fast as it does in its fast moments.
    pub earliest: Duration,
    /// If it goes on as on average.
    pub likely: Duration,
    /// If it goes as slowly as it does in its slow moments.
    pub latest: Duration,
}

impl Eta {
    /// The time for `remaining` units; `None` while the speed says nothing.
    pub(super) fn of(remaining: u64, speed: Speed) -> Option<Self> {
        let units = to_f64(remaining);
        let time = |rate: f64| {
            let time = Duration::try_from_secs_f64(units / rate).ok();
            time.filter(|time| *time <= LONGEST)
        };
        let likely = time(speed.rate)?;
        // Slower than a fifth of the average is not told as a limit: it would mean nothing.
        let slowest = (speed.rate - speed.spread).max(speed.rate / 5.0);
        Some(Self {
            earliest: time(speed.rate + speed.spread)?,
            likely,
            latest: time(slowest)?,
        })
    }

    /// The same, some time later.
    pub(super) fn after(self, elapsed: Duration) -> Self {
        Self {
            earliest: self.earliest.saturating_sub(elapsed),
            likely: self.likely.saturating_sub(elapsed),
            latest: self.latest.saturating_sub(elapsed),
        }
    }

    /// When both are done.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            earliest: self.earliest.max(other.earliest),
            likely: self.likely.max(other.likely),
            latest: self.latest.max(other.latest),
        }
    }
}

/// A rate in units a second, and by how much it usually differs from that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    pub(super) rate: f64,
    pub(super) spread: f64,
}

/// Estimates a [`Speed`] from how much was done when.
#[derive(Debug)]
pub(super) struct Estimator {
    last: Instant,
    done: u64,
    samples: u32,
    speed: Speed,
}

impl Estimator {
    pub(super) fn new(now: Instant, done: u64) -> Self {
        Self {
            last: now,
            done,
            samples: 0,
            speed: Speed {
                rate: 0.0,
                spread: 0.0,
            },
        }
    }

    /// Notes that `done` was reached by `now`.
    pub(super) fn note(&mut self, now: Instant, done: u64) {
        let elapsed = now.saturating_duration_since(self.last);
        if elapsed < SAMPLE_LEAST || done < self.done {
            return;
        }
        let rate = to_f64(done - self.done) / elapsed.as_secs_f64();
        self.samples = self.samples.saturating_add(1);
        // The first samples count alike; later ones by the time they cover.
        let by_time = 1.0 - (-elapsed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        let weight = by_time.max(1.0 / f64::from(self.samples));
        let Speed { rate: was, spread } = self.speed;
        let mean = was + weight * (rate - was);
        let off = if self.samples == 1 {
            0.0
        } else {
            (rate - mean).abs()
        };
        self.speed = Speed {
            rate: mean,
            spread: spread + weight * (off - spread),
        };
        (self.last, self.done) = (now, done);
    }

    /// The speed, once there are enough samples.
    pub(super) fn speed(&self) -> Option<Speed> {
        (self.samples >= SAMPLES_LEAST).then_some(self.speed)
    }
}

/// Exact up to 2^53, which is more units than anything has; near enough beyond.
pub(super) fn to_f64(n: u64) -> f64 {
    let (high, low) = (n >> 32, n & 0xffff_ffff);
    let part = |n: u64| f64::from(u32::try_from(n).expect("32 bits"));
    part(high) * 4_294_967_296.0 + part(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_steady_rate_is_found_and_gives_a_narrow_range() {
        let start = clock::now();
        let mut estimator = Estimator::new(start, 0);
        for n in 1..=20_u32 {
            assert_eq!(estimator.speed().is_some(), n > 3);
            estimator.note(start + n * Duration::from_millis(500), u64::from(n) * 50);
        }
        let eta = Eta::of(1_000, estimator.speed().unwrap()).unwrap();
        for time in [eta.earliest, eta.likely, eta.latest] {
            assert!((9.5..10.5).contains(&time.as_secs_f64()), "{eta:?}");
        }
        assert_eq!(eta.after(Duration::from_secs(60)).latest, Duration::ZERO);
    }

    #[test]
    fn an_uneven_rate_gives_a_wide_range_around_the_likely_time() {
        let start = clock::now();
        let mut estimator = Estimator::new(start, 0);
        let mut done = 0;
        for n in 1..=40_u32 {
            done += if n % 2 == 0 { 150 } else { 50 };
            estimator.note(start + n * Duration::from_secs(1), done);
        }
        let eta = Eta::of(1_000, estimator.speed().unwrap()).unwrap();
        assert!(eta.earliest < eta.likely && eta.likely < eta.latest);
        assert!((8.0..13.0).contains(&eta.likely.as_secs_f64()), "{eta:?}");
        assert!(eta.latest.as_secs_f64() > 15.0, "{eta:?}");
    }

    #[test]
    fn standing_still_gives_no_time() {
        let start = clock::now();
        let mut estimator = Estimator::new(start, 7);
        for n in 1..=5_u32 {
            estimator.note(start + n * Duration::from_secs(1), 7);
        }
        assert_eq!(Eta::of(10, estimator.speed().unwrap()), None);
        assert_eq!(to_f64(u64::from(u32::MAX) + 1), 4_294_967_296.0);
    }
}
