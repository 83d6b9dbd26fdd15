//! Instances among which one is chosen, and how large a share of the work each may have at a moment:
//! its weight, less while it is new, nothing while it is ejected.

use std::sync::Arc;
use std::time::Duration;

use super::draw::Random;
use super::incarnation::Incarnation;

/// The share of an instance of weight 1 that is neither new nor ejected.
pub(super) const WHOLE: u64 = 1_024;

/// The smallest part of its share that a new instance has: a tenth.
const NEW_LEAST: u64 = WHOLE / 10;

/// What a choice depends on, besides the instances.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    /// Since the balancer's start.
    pub(super) now: Duration,
    pub(super) key: Option<u64>,
    pub(super) random: &'a Random,
    /// Of the whole balancer.
    pub(super) outstanding: u32,
    /// Whether any instance may be ejected.
    pub(super) any_ejected: bool,
    /// How long an instance counts as new.
    pub(super) slow_start: Duration,
    /// How fast latencies are forgotten.
    pub(super) decay: Duration,
}

/// One that can be chosen.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) incarnation: Arc<Incarnation>,
    /// At least 1.
    pub(super) weight: u32,
    /// Its place in the table.
    pub(super) place: usize,
}

/// Those among which one is chosen, by id.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) all: Vec<Candidate>,
    pub(super) heaviest: u32,
    /// When the last of them is not new any more, and when the first is not.
    none_new_from: Duration,
    some_old_from: Duration,
}

impl Group {
    pub(super) fn new(all: Vec<Candidate>, slow_start: Duration) -> Self {
        let old_from = |one: &Candidate| match one.incarnation.joined {
            Some(joined) => joined.saturating_add(slow_start),
            None => Duration::ZERO,
        };
        Self {
            heaviest: all.iter().map(|one| one.weight).max().unwrap_or(1),
            none_new_from: all.iter().map(old_from).max().unwrap_or_default(),
            some_old_from: all.iter().map(old_from).min().unwrap_or_default(),
            all,
        }
    }

    /// The one of this id.
    pub(super) fn find(&self, id: &str) -> Option<&Candidate> {
        let at = self
            .all
            .binary_search_by(|one| one.incarnation.id.as_str().cmp(id));
        self.all.get(at.ok()?)
    }

    /// How much of the work the one at `index` may have now, relative to the others; 0: none.
    pub(super) fn share(&self, index: usize, ask: &Ask<'_>) -> u64 {
        let one = &self.all[index];
        if ask.any_ejected && one.incarnation.is_ejected(ask.now) {
            return 0;
        }
        let part = match one.incarnation.joined {
            Some(joined) if self.some_are_new(ask) => {
                warmth(ask.now.saturating_sub(joined), ask.slow_start)
            }
            _ => WHOLE,
        };
        u64::from(one.weight) * part
    }

    /// The largest share that one of them has now; 0 when there is none to be chosen.
    pub(super) fn largest(&self, ask: &Ask<'_>) -> u64 {
        match self.is_plain(ask) {
            true if self.all.is_empty() => 0,
            true => u64::from(self.heaviest) * WHOLE,
            false => (0..self.all.len())
                .map(|index| self.share(index, ask))
                .max()
                .unwrap_or(0),
        }
    }

    /// The sum of the shares now, without the one at `except`.
    pub(super) fn sum(&self, except: Option<usize>, ask: &Ask<'_>) -> u64 {
        (0..self.all.len())
            .filter(|index| Some(*index) != except)
            .map(|index| self.share(index, ask))
            .fold(0, u64::saturating_add)
    }

    /// Whether shares are just the weights.
    fn is_plain(&self, ask: &Ask<'_>) -> bool {
        !ask.any_ejected && !self.some_are_new(ask)
    }

    /// Whether there are new ones, and others that they could be spared for.
    fn some_are_new(&self, ask: &Ask<'_>) -> bool {
        ask.now >= self.some_old_from && ask.now < self.none_new_from
    }
}

/// The part of its share that an instance of this age has.
fn warmth(age: Duration, slow_start: Duration) -> u64 {
    if age >= slow_start {
        return WHOLE;
    }
    let part = age.as_nanos() * u128::from(WHOLE) / slow_start.as_nanos();
    u64::try_from(part).unwrap_or(WHOLE).max(NEW_LEAST)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::keys::Revision;

    /// A group of instances with these ids and weights, that were there before.
    pub(crate) fn group(of: &[(&str, u32)]) -> Group {
        let candidate = |(place, (id, weight)): (usize, &(&str, u32))| Candidate {
            incarnation: Arc::new(Incarnation::new(id, Revision(1), None)),
            weight: *weight,
            place,
        };
        let all = of.iter().enumerate().map(candidate).collect();
        Group::new(all, Duration::ZERO)
    }

    pub(crate) fn ask(random: &Random) -> Ask<'_> {
        Ask {
            now: Duration::from_secs(1),
            key: None,
            random,
            outstanding: 0,
            any_ejected: false,
            slow_start: Duration::ZERO,
            decay: Duration::from_secs(10),
        }
    }

    #[test]
    fn new_ones_warm_up_beside_old_ones() {
        let window = Duration::from_secs(100);
        let all = ["a", "b"].into_iter().zip([None, Some(window)]);
        let all = all.enumerate().map(|(place, (id, joined))| Candidate {
            incarnation: Arc::new(Incarnation::new(id, Revision(1), joined)),
            weight: 2,
            place,
        });
        let group = Group::new(all.collect(), window);
        let random = Random::new(1);
        let mut ask = ask(&random);
        ask.slow_start = window;
        let mut shares = |seconds| {
            ask.now = Duration::from_secs(seconds);
            (group.share(0, &ask), group.share(1, &ask))
        };
        assert_eq!(shares(100), (2 * WHOLE, 2 * NEW_LEAST));
        assert_eq!(shares(150), (2 * WHOLE, WHOLE));
        assert_eq!(shares(200), (2 * WHOLE, 2 * WHOLE));
        // Nobody is old: nobody is spared.
        let young = Group::new(vec![group.all[1].clone()], window);
        ask.now = window;
        assert_eq!(young.share(0, &ask), 2 * WHOLE);
    }
}
