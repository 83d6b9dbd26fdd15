//! The same instance for the same key: weighted rendezvous hashing (Thaler and Ravishankar, 1998), with
//! loads bounded as in "Consistent hashing with bounded loads" (Mirrokni, Thorup and Zadimoghaddam, 2016).

use super::group::{Ask, Candidate, Group};
use crate::hash::mix;

impl Group {
    /// The instance that comes first in the key's own order among those with room. One has room while it
    /// has fewer picks outstanding than `bound` times its part, by weight, of all, this one included.
    ///
    /// One instance more or less moves only the keys that fall to it. Costs time in proportion to the
    /// number of instances.
    pub(super) fn hashed(&self, key: u64, bound: f64, ask: &Ask<'_>) -> Option<&Candidate> {
        let there = |(index, _): &(usize, &Candidate)| self.share(*index, ask) > 0;
        let all = || self.all.iter().enumerate().filter(there);
        let weights: f64 = all().map(|(_, one)| f64::from(one.weight)).sum();
        let each = bound * (f64::from(ask.outstanding) + 1.0) / weights;
        let mut first: Option<(f64, &Candidate)> = None;
        let mut first_with_room: Option<(f64, &Candidate)> = None;
        for (_, one) in all() {
            let rank = rank(one, key);
            let room = (each * f64::from(one.weight)).ceil();
            if f64::from(one.incarnation.outstanding()) < room {
                keep_smaller(&mut first_with_room, rank, one);
            }
            keep_smaller(&mut first, rank, one);
        }
        // There is room somewhere, unless picks begin while this looks.
        first_with_room.or(first).map(|(_, one)| one)
    }
}

fn keep_smaller<'a>(best: &mut Option<(f64, &'a Candidate)>, rank: f64, one: &'a Candidate) {
    if best.is_none_or(|(least, _)| rank < least) {
        *best = Some((rank, one));
    }
}

/// Where an instance stands in the key's order: exponentially distributed at the rate of its weight, so
/// the smallest is at each in proportion to its weight.
fn rank(one: &Candidate, key: u64) -> f64 {
    // 53 bits, which a float holds exactly; never 0.
    let drawn = (mix(one.incarnation.hash ^ mix(key)) >> 11) | 1;
    let (high, low) = (drawn >> 32, drawn & 0xffff_ffff);
    let float = |part: u64| f64::from(u32::try_from(part).unwrap_or(u32::MAX));
    let unit = (float(high) * 4_294_967_296.0 + float(low)) / 9_007_199_254_740_992.0;
    -unit.ln() / f64::from(one.weight)
}

#[cfg(test)]
mod tests {
    use super::super::draw::Random;
    use super::super::group::tests::{ask, group};

    fn owners(of: &[(&str, u32)], keys: u64) -> Vec<String> {
        let group = group(of);
        let random = Random::new(1);
        (0..keys)
            .map(|key| group.hashed(key, f64::INFINITY, &ask(&random)).unwrap())
            .map(|one| one.incarnation.id.clone())
            .collect()
    }

    #[test]
    fn one_change_moves_only_what_falls_to_it() {
        let few = [("a", 1), ("b", 1), ("c", 1), ("d", 1)];
        let many = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)];
        let (before, after) = (owners(&few, 10_000), owners(&many, 10_000));
        let mut moved = 0_u32;
        for (was, is) in before.iter().zip(&after) {
            if was != is {
                assert_eq!(is, "e");
                moved += 1;
            }
        }
        assert!(moved.abs_diff(2_000) < 150, "{moved}");
    }

    #[test]
    fn keys_fall_by_weight() {
        let owners = owners(&[("a", 1), ("b", 2), ("c", 1)], 20_000);
        let heavy = owners.iter().filter(|id| *id == "b").count();
        assert!(heavy.abs_diff(10_000) < 300, "{heavy}");
    }

    #[test]
    fn no_load_exceeds_the_bound() {
        let group = group(&[("a", 1), ("b", 1), ("c", 2), ("d", 1)]);
        let random = Random::new(1);
        let mut ask = ask(&random);
        for outstanding in 0..1_000 {
            ask.outstanding = outstanding;
            // The worst case: all of one key.
            group.hashed(42, 1.25, &ask).unwrap().incarnation.begin();
            for one in &group.all {
                let fair = f64::from(outstanding + 1) / 5.0 * f64::from(one.weight);
                let load = f64::from(one.incarnation.outstanding());
                assert!(load <= (1.25 * fair).ceil(), "{load} of {fair}");
            }
        }
    }
}
