//! When an instance that fails is left alone for a while: the rule, and what is known of one instance.
//! Decided by what the balancer's own picks have reported, as Envoy's outlier detection does.

use std::time::Duration;

/// When instances that fail are left alone for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ejection {
    /// So many failures in a row eject an instance. At least 1.
    pub failures: u32,
    /// For how long the first time; the n-th time n times as long. One time is forgiven for every such
    /// length in which it was not ejected.
    pub time: Duration,
    /// For how long at most.
    pub time_most: Duration,
    /// At most this part of the instances that take work are ejected at a time: 0.0 to 1.0. One of
    /// several may always be.
    pub part_most: f64,
}

impl Default for Ejection {
    /// After 5 failures, for 30 s, 60 s, … 300 s, at most half of them.
    fn default() -> Self {
        Self {
            failures: 5,
            time: Duration::from_secs(30),
            time_most: Duration::from_secs(300),
            part_most: 0.5,
        }
    }
}

impl Ejection {
    /// How many of `count` instances may be ejected at a time.
    pub(super) fn most_of(&self, count: usize) -> usize {
        match count {
            0 | 1 => 0,
            // Counts of instances are far below 2^32.
            _ => (1..=count)
                .rev()
                .find(|most| part(*most, count) <= self.part_most)
                .unwrap_or(1),
        }
    }
}

fn part(of: usize, count: usize) -> f64 {
    let float = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    float(of) / float(count)
}

/// What one instance's picks have reported. Times count from the balancer's start.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: u32,
    /// How often it was ejected, less what is forgiven.
    times: u32,
    /// The last ejection: from, until.
    ejected: Option<(Duration, Duration)>,
    /// Back from an ejection without a success since: the first failure ejects it again.
    on_probation: bool,
}

impl Health {
    /// Takes in a failure of a pick made at `picked`. Returns whether the instance should be ejected.
    pub(super) fn failure(&mut self, rule: &Ejection, picked: Duration) -> bool {
        // What was picked before the end of an ejection says nothing new.
        if self.ejected.is_some_and(|(_, until)| picked < until) {
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        self.is_due(rule)
    }

    /// Whether the failures up to now are enough.
    pub(super) fn is_due(&self, rule: &Ejection) -> bool {
        self.failures
            >= if self.on_probation {
                1
            } else {
                rule.failures.max(1)
            }
    }

    /// Takes in a success of a pick made at `picked`. Returns whether that ends an ejection early.
    pub(super) fn success(&mut self, picked: Duration, now: Duration) -> bool {
        match &mut self.ejected {
            Some((since, until)) if now < *until => {
                // Picked in spite of the ejection, for want of others.
                let heals = picked > *since;
                if heals {
                    *until = now;
                    self.on_probation = false;
                }
                heals
            }
            Some((_, until)) if picked < *until => false,
            _ => {
                self.failures = 0;
                self.on_probation = false;
                false
            }
        }
    }

    /// Ejects the instance. Returns until when.
    pub(super) fn eject(&mut self, rule: &Ejection, now: Duration) -> Duration {
        if let Some((_, until)) = self.ejected {
            let well = now.saturating_sub(until).as_nanos();
            let forgiven = well / rule.time.as_nanos().max(1);
            let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
            self.times = self.times.saturating_sub(forgiven);
        }
        self.times = self.times.saturating_add(1);
        let length = rule.time.saturating_mul(self.times).min(rule.time_most);
        let until = now.saturating_add(length);
        self.failures = 0;
        self.on_probation = true;
        self.ejected = Some((now, until));
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn times_grow_and_are_forgiven() {
        let rule = Ejection::default();
        let mut health = Health::default();
        for at in 1..5 {
            assert!(!health.failure(&rule, s(at)));
        }
        assert!(!health.success(s(5), s(5)), "no ejection to end");
        for at in 6..10 {
            assert!(!health.failure(&rule, s(at)), "in a row");
        }
        assert!(health.failure(&rule, s(10)));
        assert_eq!(health.eject(&rule, s(10)), s(40));
        assert!(!health.failure(&rule, s(39)), "picked before it was back");
        assert!(health.failure(&rule, s(41)), "on probation");
        assert_eq!(health.eject(&rule, s(41)), s(101), "twice as long");
        assert!(!health.success(s(102), s(103)));
        assert!(!health.failure(&rule, s(104)), "a success ends probation");
        for _ in 0..3 {
            assert!(!health.failure(&rule, s(105)));
        }
        assert!(health.failure(&rule, s(162)));
        assert_eq!(health.eject(&rule, s(162)), s(192), "two were forgiven");
        for _ in 0..50 {
            health.eject(&rule, s(192));
        }
        assert_eq!(health.eject(&rule, s(192)), s(492), "at most");
    }

    #[test]
    fn a_success_during_an_ejection_ends_it() {
        let rule = Ejection::default();
        let mut health = Health::default();
        health.eject(&rule, s(10));
        assert!(!health.success(s(9), s(11)), "picked before");
        assert!(health.success(s(11), s(12)));
        assert!(!health.failure(&rule, s(13)), "and it is not on probation");
    }

    #[test]
    fn only_a_part_is_ejected() {
        let rule = Ejection::default();
        let most: Vec<_> = (0..7).map(|count| rule.most_of(count)).collect();
        assert_eq!(most, [0, 0, 1, 1, 2, 2, 3]);
        let none = Ejection {
            part_most: 0.0,
            ..rule
        };
        assert_eq!((none.most_of(1), none.most_of(100)), (0, 1));
        let all = Ejection {
            part_most: 1.0,
            ..rule
        };
        assert_eq!(all.most_of(3), 3);
    }
}
