//! The latency of one instance as the peak-sensitive policy sees it: up to a peak at once, down slowly.

use std::time::Duration;

/// An exponentially weighted moving average that never lags behind a rise.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Latency {
    /// In seconds, as it was at `at`; 0: not known.
    cost: f64,
    at: Duration,
}

/// What an instance costs whose latency is not known, while its first picks are outstanding: it is tried
/// once, and not by everybody before the first answer. In seconds.
const UNKNOWN: f64 = 1_000.0;

impl Latency {
    /// Takes in one measurement.
    pub(super) fn observe(&mut self, length: Duration, now: Duration, decay: Duration) {
        let length = length.as_secs_f64();
        let old = self.fade(now, decay);
        self.cost = match length > self.cost {
            true => length,
            false => self.cost * old + length * (1.0 - old),
        };
        self.at = now.max(self.at);
    }

    /// As [`Latency::observe`], of something that took at least so long.
    pub(super) fn observe_least(&mut self, length: Duration, now: Duration, decay: Duration) {
        let known = Duration::try_from_secs_f64(self.cost).unwrap_or(Duration::MAX);
        self.observe(length.max(known), now, decay);
    }

    /// What one more pick would cost beside those outstanding. An old latency counts for less and less,
    /// so that an instance that was slow is tried again.
    pub(super) fn load(&self, outstanding: u32, now: Duration, decay: Duration) -> f64 {
        let cost = self.cost * self.fade(now, decay);
        match outstanding {
            0 => cost,
            _ if self.cost == 0.0 => UNKNOWN * f64::from(outstanding),
            _ => cost * (f64::from(outstanding) + 1.0),
        }
    }

    fn fade(&self, now: Duration, decay: Duration) -> f64 {
        let since = now.saturating_sub(self.at).as_secs_f64();
        match decay.is_zero() {
            true => 0.0,
            false => (-since / decay.as_secs_f64()).exp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECAY: Duration = Duration::from_secs(10);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn peaks_count_at_once_and_fade() {
        let mut latency = Latency::default();
        assert!(latency.load(0, ms(0), DECAY) < 1e-9, "is tried first");
        assert!(latency.load(1, ms(0), DECAY) > 100.0, "and not twice");
        latency.observe(ms(10), ms(0), DECAY);
        latency.observe(ms(900), ms(100), DECAY);
        assert!((latency.load(0, ms(100), DECAY) - 0.9).abs() < 1e-9);
        assert!((latency.load(2, ms(100), DECAY) - 2.7).abs() < 1e-9);
        latency.observe(ms(10), ms(200), DECAY);
        let now = latency.load(0, ms(200), DECAY);
        assert!(now > 0.85 && now < 0.9, "{now}");
        latency.observe_least(ms(1), ms(200), DECAY);
        assert!((latency.load(0, ms(200), DECAY) - now).abs() < 1e-6);
        let later = latency.load(0, ms(10_200), DECAY);
        assert!(later > 0.36 * now && later < 0.37 * now, "{later}");
    }
}
