//! Which keys hang on which lease: scans of the table `lease_keys`. Used by `apply` when leases end,
//! and by whoever shows a lease.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::storage::codec;
use crate::storage::kv::{Direction, KvError, View};

/// Keys of other leases that a scan passes over in a row before it looks the next lease up anew:
/// about as many as that costs.
const PASSED_OVER_MAX: usize = 32;

/// The keys attached to a lease, in key order.
///
/// # Errors
///
/// Storage failures.
pub fn keys_of_lease(view: &dyn View, lease: i64) -> Result<Vec<Bytes>, KvError> {
    let (start, end) = codec::lease_key_bounds(lease);
    let attached = view.range(start, end, Direction::Forward);
    attached
        .map(|pair| codec::user_key_of_lease_key(&pair?.0))
        .collect()
}

/// The keys attached to each of many leases, in key order; a lease without keys is not in the map.
/// Where the leases lie close together one scan finds the keys of all: much cheaper than looking
/// each of them up.
///
/// # Errors
///
/// Storage failures.
pub fn keys_of_leases(
    view: &dyn View,
    leases: &BTreeSet<i64>,
) -> Result<BTreeMap<i64, Vec<Bytes>>, KvError> {
    let mut attached: BTreeMap<i64, Vec<Bytes>> = BTreeMap::new();
    let Some(&last) = leases.last() else {
        return Ok(attached);
    };
    let (_, end) = codec::lease_key_bounds(last);
    let mut next = leases.first().copied();
    while let Some(first) = next.take() {
        let (start, _) = codec::lease_key_bounds(first);
        let mut passed_over = 0;
        for pair in view.range(start, end.clone(), Direction::Forward) {
            let (stored, _) = pair?;
            let lease = codec::lease_of(&stored)?;
            if leases.contains(&lease) {
                let key = codec::user_key_of_lease_key(&stored)?;
                attached.entry(lease).or_default().push(key);
                passed_over = 0;
            } else {
                passed_over += 1;
                if passed_over > PASSED_OVER_MAX {
                    next = leases.range(lease..).next().copied();
                    break;
                }
            }
        }
    }
    Ok(attached)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::storage::kv::{Kv, MemKv, WriteBatch};

    #[test]
    fn one_scan_finds_what_looking_up_each_lease_finds() {
        let mut random = StdRng::seed_from_u64(5);
        let kv = MemKv::new();
        let mut batch = WriteBatch::new();
        for lease in [i64::MIN, -7, -1, i64::MAX].into_iter().chain(1..400) {
            for key in 0..random.random_range(0..4_u8) {
                batch.put(codec::lease_key_key(lease, &[key, 0]), Bytes::new());
            }
        }
        kv.commit(batch).unwrap();
        let view = kv.view();
        for round in 0..200 {
            let few = random.random_range(1..if round % 2 == 0 { 8 } else { 300 });
            let mut leases: BTreeSet<i64> = (0..few)
                .map(|_| random.random_range(-10..410_i64))
                .collect();
            if random.random_bool(0.3) {
                leases.extend([i64::MIN, i64::MAX]);
            }
            let expected: BTreeMap<i64, Vec<Bytes>> = leases
                .iter()
                .map(|lease| (*lease, keys_of_lease(&*view, *lease).unwrap()))
                .filter(|(_, keys)| !keys.is_empty())
                .collect();
            assert_eq!(keys_of_leases(&*view, &leases).unwrap(), expected);
        }
        assert!(keys_of_leases(&*view, &BTreeSet::new()).unwrap().is_empty());
    }
}
