//! Which instances of a large fleet a client uses: those that come first in its own order, so that one
//! instance more or less changes one place in it (rendezvous hashing, as in gRPC's random subsetting).

use super::group::Candidate;
use crate::hash::{fnv1a, mix};

/// How many instances a client uses, and which client it is.
#[derive(Debug, Clone)]
pub(super) struct Subset {
    pub(super) most: usize,
    pub(super) client: u64,
}

impl Subset {
    pub(super) fn new(most: usize, client: &str) -> Self {
        Self {
            most: most.max(1),
            client: mix(fnv1a(client.as_bytes())),
        }
    }

    /// Those of `all` that the client uses, in the same order.
    pub(super) fn of(&self, mut all: Vec<Candidate>) -> Vec<Candidate> {
        if all.len() > self.most {
            let rank = |one: &Candidate| (mix(one.incarnation.hash ^ self.client), one.place);
            all.select_nth_unstable_by_key(self.most, rank);
            all.truncate(self.most);
            all.sort_unstable_by_key(|one| one.place);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::group::tests::group;
    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("api-{n:03}")).collect()
    }

    fn subset(client: &str, of: &[String]) -> BTreeSet<String> {
        let of: Vec<_> = of.iter().map(|id| (id.as_str(), 1)).collect();
        let subset = Subset::new(10, client).of(group(&of).all);
        assert!(subset.is_sorted_by_key(|one| one.place));
        let ids = subset.iter().map(|one| one.incarnation.id.clone());
        ids.collect()
    }

    #[test]
    fn one_change_changes_one_place_at_most() {
        let all = ids(100);
        let before = subset("client-1", &all);
        assert_eq!(before.len(), 10);
        for gone in 0..100 {
            let mut rest = all.clone();
            let gone = rest.remove(gone);
            let after = subset("client-1", &rest);
            let kept = before.intersection(&after).count();
            assert_eq!(kept, 10 - usize::from(before.contains(&gone)));
        }
    }

    #[test]
    fn clients_spread_over_all() {
        let all = ids(50);
        let mut loads: BTreeMap<String, u32> = BTreeMap::new();
        for client in 0..1_000 {
            for id in subset(&format!("client-{client}"), &all) {
                *loads.entry(id).or_default() += 1;
            }
        }
        // 200 each on average; the deviation of that is about 13.
        assert_eq!(loads.len(), 50);
        assert!(
            loads.values().all(|load| load.abs_diff(200) < 60),
            "{loads:?}"
        );
    }
}
