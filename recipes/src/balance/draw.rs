//! Drawing instances at random, in proportion to their shares; and the better one of two drawn.

use std::sync::atomic::{AtomicU64, Ordering};

use super::group::{Ask, Candidate, Group};
use crate::hash::mix;

/// Draws that may be refused before the shares are summed up.
const DRAWS: usize = 8;

/// Random numbers for all threads without a lock: SplitMix64, whose state is a counter.
#[derive(Debug)]
pub(super) struct Random(AtomicU64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub(super) fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        mix(self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
    }

    /// A number below `end`; 0 for none.
    fn below(&self, end: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(end);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    fn index(&self, count: usize) -> usize {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        usize::try_from(self.below(count)).unwrap_or(0)
    }
}

impl Group {
    /// The index of one that is drawn by share, other than `except`.
    pub(super) fn draw(&self, except: Option<usize>, ask: &Ask<'_>) -> Option<usize> {
        if self.all.is_empty() {
            return None;
        }
        let most = u64::from(self.heaviest) * super::group::WHOLE;
        for _ in 0..DRAWS {
            let index = ask.random.index(self.all.len());
            if Some(index) != except && ask.random.below(most) < self.share(index, ask) {
                return Some(index);
            }
        }
        let mut at = ask.random.below(self.sum(except, ask));
        for index in 0..self.all.len() {
            let share = self.share(index, ask);
            if Some(index) == except || share == 0 {
                continue;
            }
            if at < share {
                return Some(index);
            }
            at -= share;
        }
        None
    }

    /// Of two drawn the one with fewer picks outstanding for its share.
    pub(super) fn less_outstanding(&self, ask: &Ask<'_>) -> Option<&Candidate> {
        let load = |index: usize| u128::from(self.all[index].incarnation.outstanding());
        self.better_of_two(ask, |a, b| {
            let share = |index| u128::from(self.share(index, ask));
            load(a) * share(b) <= load(b) * share(a)
        })
    }

    /// Of two drawn the one that costs less for its share.
    pub(super) fn less_costly(&self, ask: &Ask<'_>) -> Option<&Candidate> {
        let load = |index: usize| {
            let one = &self.all[index].incarnation;
            let latency = *one.latency();
            latency.load(one.outstanding(), ask.now, ask.decay)
        };
        self.better_of_two(ask, |a, b| {
            let weight = |index: usize| f64::from(self.all[index].weight);
            load(a) * weight(b) <= load(b) * weight(a)
        })
    }

    fn better_of_two(
        &self,
        ask: &Ask<'_>,
        first_is_better: impl Fn(usize, usize) -> bool,
    ) -> Option<&Candidate> {
        let first = self.draw(None, ask)?;
        let chosen = match self.draw(Some(first), ask) {
            Some(second) if !first_is_better(first, second) => second,
            _ => first,
        };
        Some(&self.all[chosen])
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::tests::{ask, group};
    use super::*;

    #[test]
    fn draws_follow_the_weights() {
        let group = group(&[("a", 1), ("b", 2), ("c", 5)]);
        let random = Random::new(7);
        let mut counts = [0_u32; 3];
        for _ in 0..80_000 {
            counts[group.draw(None, &ask(&random)).unwrap()] += 1;
        }
        for (count, fair) in counts.into_iter().zip([10_000, 20_000, 50_000]) {
            assert!(count.abs_diff(fair) < 600, "{counts:?}");
        }
        // Among very different weights, where draws are refused most of the time.
        let group = super::super::group::tests::group(&[("a", 1_000_000), ("b", 1), ("c", 3)]);
        let mut counts = [0_u32; 3];
        for _ in 0..8_000 {
            counts[group.draw(Some(0), &ask(&random)).unwrap()] += 1;
        }
        assert!(
            counts[0] == 0 && counts[1].abs_diff(2_000) < 250,
            "{counts:?}"
        );
    }

    #[test]
    fn the_less_loaded_of_two_is_taken() {
        let group = group(&[("a", 1), ("b", 1)]);
        let random = Random::new(7);
        group.all[0].incarnation.begin();
        for _ in 0..100 {
            let one = group.less_outstanding(&ask(&random)).unwrap();
            assert_eq!(one.place, 1);
        }
        // Twice the weight, so as loaded with two as the other with one.
        let group = super::super::group::tests::group(&[("a", 2), ("b", 1)]);
        for _ in 0..3 {
            group.all[0].incarnation.begin();
        }
        group.all[1].incarnation.begin();
        let one = group.less_outstanding(&ask(&random)).unwrap();
        assert_eq!(one.place, 1, "3 of 2 is more than 1 of 1");
        group.all[0].incarnation.end();
        group.all[0].incarnation.end();
        let one = group.less_outstanding(&ask(&random)).unwrap();
        assert_eq!(one.place, 0, "1 of 2 is less than 1 of 1");
    }
}
