//! Taking turns: each as often as its share says, evenly spread, without a lock. Stride scheduling
//! (Waldspurger and Weihl, 1995) in the form without state of its own that gRPC's weighted round robin has.

use std::sync::atomic::{AtomicU64, Ordering};

use super::group::{Ask, Candidate, Group};

/// A counter of turns. Round r asks all by id; one with share s of the largest S takes its turn in the s of S
/// rounds in which `s·r mod S` wraps around. So any S rounds have exactly s turns of it, any picks of one
/// after the other included, and equal shares take turns in order.
#[derive(Debug, Default)]
pub(super) struct Stride(AtomicU64);

impl Stride {
    /// Goes on in another group with the one whose turn it was in the one before.
    pub(super) fn resume(&self, before: &Group, now: &Group) -> Self {
        let (old, new) = (len(before), len(now));
        let next = self.0.load(Ordering::Relaxed);
        if old == 0 || new == 0 {
            return Self(AtomicU64::new(next));
        }
        let turn = usize::try_from(next % old).unwrap_or(0);
        let id = &before.all[turn].incarnation.id;
        let turn = now.all.partition_point(|one| one.incarnation.id < *id);
        let turn = u64::try_from(turn).unwrap_or(0);
        let round = next / old;
        Self(AtomicU64::new(round.wrapping_mul(new).wrapping_add(turn)))
    }

    /// The next whose turn it is. Asks about as many as there are for one of the largest share, all of
    /// them at most, unless others choose at the same time.
    pub(super) fn choose<'a>(&self, group: &'a Group, ask: &Ask<'_>) -> Option<&'a Candidate> {
        let largest = group.largest(ask);
        if largest == 0 {
            return None;
        }
        let count = len(group);
        for _ in 0..count.saturating_mul(4) {
            let next = self.0.fetch_add(1, Ordering::Relaxed);
            let (round, turn) = (next / count, next % count);
            let index = usize::try_from(turn).unwrap_or(0);
            if takes_turn(group.share(index, ask), largest, round, turn) {
                return Some(&group.all[index]);
            }
        }
        // Others have taken every turn of the largest.
        let any = (0..group.all.len()).find(|index| group.share(*index, ask) > 0);
        any.map(|index| &group.all[index])
    }
}

/// Whether an instance takes its turn in this round. Phases differ, by the golden ratio, so that small
/// ones do not come all in the same round.
fn takes_turn(share: u64, largest: u64, round: u64, turn: u64) -> bool {
    let phase = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let phase = (u128::from(phase) * u128::from(largest)) >> 64;
    let at = (u128::from(share) * u128::from(round) + phase) % u128::from(largest);
    share > 0 && at + u128::from(share) >= u128::from(largest)
}

fn len(group: &Group) -> u64 {
    u64::try_from(group.all.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::draw::Random;
    use super::super::group::tests::{ask, group};
    use super::*;

    fn turns(stride: &Stride, group: &Group, count: usize) -> String {
        let random = Random::new(1);
        (0..count)
            .map(|_| {
                let one = stride.choose(group, &ask(&random)).unwrap();
                one.incarnation.id.as_str()
            })
            .collect()
    }

    #[test]
    fn any_picks_in_a_row_have_the_exact_proportions() {
        let group = group(&[("a", 5), ("b", 1), ("c", 1), ("d", 3)]);
        let stride = Stride::default();
        for _ in 0..23 {
            // Windows of ten at all offsets.
            let ten = turns(&stride, &group, 10);
            let counts = ["a", "b", "c", "d"].map(|id| ten.matches(id).count());
            assert_eq!(counts, [5, 1, 1, 3], "{ten}");
            assert!(!ten.contains("aaa"), "spread out: {ten}");
            turns(&stride, &group, 1);
        }
    }

    #[test]
    fn the_turn_survives_other_members() {
        let before = group(&[("a", 1), ("c", 1), ("e", 1)]);
        let stride = Stride::default();
        assert_eq!(turns(&stride, &before, 4), "acea");
        let after = group(&[("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)]);
        let stride = stride.resume(&before, &after);
        assert_eq!(turns(&stride, &after, 3), "cde");
        assert_eq!(turns(&stride, &after, 2), "ab");
        let fewer = group(&[("a", 1), ("e", 1)]);
        let stride = stride.resume(&after, &fewer);
        assert_eq!(turns(&stride, &fewer, 3), "eae");
        let none = group(&[]);
        let stride = stride.resume(&fewer, &none);
        assert!(stride.choose(&none, &ask(&Random::new(1))).is_none());
    }

    #[test]
    fn very_different_weights_cost_no_more_than_two_rounds() {
        let group = group(&[("a", 1), ("b", 1_000_000)]);
        let stride = Stride::default();
        let all = turns(&stride, &group, 1_000);
        assert!(all.matches('a').count() <= 1);
        assert!(stride.0.load(Ordering::Relaxed) <= 2_001);
    }
}
