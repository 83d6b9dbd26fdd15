//! Which member each partition falls to: rendezvous hashing (Thaler and Ravishankar, "Using name-based
//! mappings to increase hit rates", 1998) with loads that differ by one at most. The same members give
//! the same shares in every process and every version, so nothing here may ever change.

use crate::hash::{fnv1a, mix};

/// Which member each of the partitions falls to, by index. Partitions choose in the order of their
/// numbers, each among the members that have room the one with which its weight is greatest. There is
/// room for `partitions / members`, rounded down, and for one more at as many members as are needed.
///
/// One member more or less moves about as many partitions as that member has, and at most a few times
/// as many. Costs time in proportion to partitions times members.
pub(super) fn assign<'a>(
    partitions: u32,
    members: impl IntoIterator<Item = &'a str>,
) -> Vec<&'a str> {
    struct Candidate<'a> {
        id: &'a str,
        hash: u64,
        load: usize,
    }
    let candidate = |id: &'a str| Candidate {
        id,
        hash: fnv1a(id.as_bytes()),
        load: 0,
    };
    let mut members: Vec<_> = members.into_iter().map(candidate).collect();
    if members.is_empty() {
        return Vec::new();
    }
    let count = usize::try_from(partitions).unwrap_or(usize::MAX);
    let (full, mut larger) = (count / members.len(), count % members.len());
    let mut shares = Vec::with_capacity(count);
    for partition in 0..partitions {
        let key = mix(u64::from(partition) + 1);
        let has_room = |load: usize| load < full || (load == full && larger > 0);
        let chosen = members
            .iter_mut()
            .filter(|member| has_room(member.load))
            .max_by_key(|member| (mix(member.hash ^ key), member.id))
            .expect("the rooms of all are as many as the partitions");
        larger -= usize::from(chosen.load == full);
        chosen.load += 1;
        shares.push(chosen.id);
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn names(range: std::ops::Range<u64>) -> Vec<String> {
        range
            .map(|n| format!("{:x}/{:016x}", mix(n), mix(!n)))
            .collect()
    }

    fn shares(partitions: u32, members: &[String]) -> Vec<&str> {
        assign(partitions, members.iter().map(String::as_str))
    }

    #[test]
    fn everything_is_shared_out_evenly() {
        for members in 1..20 {
            let members = names(0..members);
            for partitions in [1, 2, 7, 16, 100, 1_024] {
                let shares = shares(partitions, &members);
                assert_eq!(shares.len(), usize::try_from(partitions).unwrap());
                let mut loads: BTreeMap<&str, usize> =
                    members.iter().map(|id| (id.as_str(), 0)).collect();
                for id in shares {
                    *loads.get_mut(id).unwrap() += 1;
                }
                let (least, most) = (loads.values().min(), loads.values().max());
                assert!(
                    most.unwrap() - least.unwrap() <= 1,
                    "{partitions} {loads:?}"
                );
            }
        }
        assert!(assign(5, []).is_empty());
    }

    #[test]
    fn few_move_when_one_comes_or_goes() {
        for count in [2, 3, 5, 10] {
            let all = names(0..count + 1);
            let before = shares(240, &all[1..]);
            let after = shares(240, &all);
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            let fair = 240 / all.len();
            assert!(
                moved >= fair && moved <= 2 * fair,
                "{moved} moved for {fair}"
            );
        }
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        let (mut members, ours) = (names(0..7), names(0..7));
        members.reverse();
        assert_eq!(shares(64, &members), shares(64, &ours));
    }

    /// Members of different versions must agree.
    #[test]
    fn shares_never_change() {
        let shares = assign(12, ["a/1", "b/2", "c/3"]);
        let text: String = shares.iter().map(|id| &id[..1]).collect();
        assert_eq!(text, "accbbcbcbaaa");
    }
}
