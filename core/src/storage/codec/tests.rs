//! Round trips, order and bounds of keys; round trips and damage of records.

use std::cmp::Reverse;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::storage::kv::{self, KvError};
use quorate_proto::limits::KEY_BYTES_MAX;

fn user_key(random: &mut StdRng) -> Vec<u8> {
    let length = random.random_range(0..5);
    (0..length)
        .map(|_| [0u8, 1, 2, 0xfe, 0xff][random.random_range(0..5)])
        .collect()
}

fn revision(random: &mut StdRng) -> Revision {
    let main = [0, 1, 2, 255, 256, 1 << 40, i64::MAX][random.random_range(0..7)];
    Revision::new(main, random.random_range(0..3))
}

fn bound(random: &mut StdRng) -> Bound<Vec<u8>> {
    match random.random_range(0..3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(user_key(random)),
        _ => Bound::Excluded(user_key(random)),
    }
}

fn slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    bound.as_ref().map(Vec::as_slice)
}

#[test]
fn versions_order_by_key_then_newest_first_and_read_back() {
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..50_000 {
        let a = (user_key(&mut random), revision(&mut random));
        let b = (user_key(&mut random), revision(&mut random));
        let (stored_a, stored_b) = (version_key(&a.0, a.1), version_key(&b.0, b.1));
        let expected = (&a.0, Reverse(a.1)).cmp(&(&b.0, Reverse(b.1)));
        assert_eq!(stored_a.cmp(&stored_b), expected, "{a:?} {b:?}");
        assert_eq!(version_of(&stored_a).unwrap(), (Bytes::from(a.0), a.1));
    }
}

#[test]
fn bounds_hold_exactly_the_keys_between_them() {
    let mut random = StdRng::seed_from_u64(2);
    for _ in 0..50_000 {
        let (start, end) = (bound(&mut random), bound(&mut random));
        let probe = user_key(&mut random);
        let inside = (start.clone(), end.clone()).contains(&probe);
        let context = || format!("{probe:?} in {start:?} {end:?}");
        let keys = key_bounds(slice(&start), slice(&end));
        assert_eq!(keys.contains(&key_key(&probe)), inside, "{}", context());
        let stored = version_key(&probe, revision(&mut random));
        let versions = version_bounds(slice(&start), slice(&end));
        assert_eq!(versions.contains(&stored), inside, "{}", context());
    }
    for _ in 0..20_000 {
        let (key, other) = (user_key(&mut random), user_key(&mut random));
        let (until, began) = (revision(&mut random).main, revision(&mut random));
        let found = versions_until(&key, until).contains(&version_key(&other, began));
        assert_eq!(found, key == other && began.main <= until);
    }
}

#[test]
fn tables_do_not_reach_into_each_other() {
    let key = Bytes::from(vec![0xff; 40]);
    let past = version_key(&key, Revision::new(0, 0));
    let stored = [
        (Table::Keys, key_key(&key)),
        (Table::Versions, past),
        (Table::Events, event_key(Revision::new(i64::MAX, i64::MAX))),
        (Table::Leases, lease_key(i64::MAX)),
        (Table::LeaseKeys, lease_key_key(i64::MAX, &key)),
        (Table::Auth, auth_key(&key)),
        (Table::Meta, meta_key(MetaKey::Applied)),
        (Table::Members, member_key(u64::MAX)),
        (Table::Alarms, alarm_key(u64::MAX, i32::MAX)),
    ];
    for (table, key) in &stored {
        for (other, _) in &stored {
            assert_eq!(
                table_bounds(*other).contains(key),
                table == other,
                "{table:?} {other:?}"
            );
        }
    }
    let unbounded = key_bounds(Bound::Unbounded, Bound::Unbounded);
    assert_eq!(unbounded, table_bounds(Table::Keys));
}

#[test]
fn the_longest_user_key_fits_the_engine_everywhere() {
    let zeros = vec![0; KEY_BYTES_MAX];
    assert!(version_key(&zeros, Revision::new(1, 0)).len() <= kv::KEY_BYTES_MAX);
    assert!(lease_key_key(1, &zeros).len() <= kv::KEY_BYTES_MAX);
}

#[test]
fn events_and_leases_order_by_number_and_read_back() {
    let mut random = StdRng::seed_from_u64(3);
    let ids = [i64::MIN, -2, -1, 0, 1, 255, 256, i64::MAX];
    for _ in 0..10_000 {
        let (a, b) = (revision(&mut random), revision(&mut random));
        assert_eq!(event_key(a).cmp(&event_key(b)), a.cmp(&b));
        assert_eq!(event_revision(&event_key(a)).unwrap(), a);
        let (x, y) = (
            ids[random.random_range(0..8)],
            ids[random.random_range(0..8)],
        );
        assert_eq!(lease_key(x).cmp(&lease_key(y)), x.cmp(&y));
        let user_key = user_key(&mut random);
        let attached = lease_key_key(x, &user_key);
        assert_eq!(lease_of(&attached).unwrap(), x);
        assert_eq!(user_key_of_lease_key(&attached).unwrap(), user_key);
        assert_eq!(lease_key_bounds(y).contains(&attached), x == y);
    }
}

#[test]
fn records_read_back_and_damage_is_an_error() {
    let pair = Pair {
        create_revision: 2,
        mod_revision: Revision::new(i64::MAX, 7),
        version: 300,
        lease: -5,
        value: Bytes::from_static(b"\0value"),
    };
    let began = pair.mod_revision;
    assert_eq!(Pair::decode(pair.encode()).unwrap(), pair);
    let past = PastPair {
        pair,
        end: Revision::new(9, 1),
    };
    assert_eq!(PastPair::decode(past.encode(), began).unwrap(), past);
    assert_eq!(decode_number(&encode_number(-1)).unwrap(), -1);

    let corrupt = |result: Result<(), KvError>| matches!(result, Err(KvError::Corrupt { .. }));
    for record in [
        &b""[..],
        b"\x02\x01\x01\x01\x01\x01",
        b"\x01",
        b"\x01\x01\x01\x01\xff",
    ] {
        let record = Bytes::from_static(record);
        assert!(
            corrupt(Pair::decode(record.clone()).map(drop)),
            "{record:?}"
        );
        assert!(
            corrupt(PastPair::decode(record.clone(), began).map(drop)),
            "{record:?}"
        );
        assert!(
            corrupt(decode_events(began, record.clone()).map(drop)),
            "{record:?}"
        );
    }
    assert!(corrupt(decode_number(b"1234567").map(drop)));
    let whole = version_key(b"a\0b", Revision::new(1, 2));
    for cut in 0..whole.len() {
        assert!(corrupt(version_of(&whole[..cut]).map(drop)), "{cut}");
    }
    assert!(corrupt(lease_of(b"\x04abc").map(drop)));
}

/// Events of all kinds, in order.
fn some_events(random: &mut StdRng, count: usize) -> Vec<StoredEvent> {
    let mut at = revision(random);
    let some = |random: &mut StdRng| random.random_bool(0.5).then(|| revision(random));
    let events = (0..count).map(|_| {
        let replaced = some(random);
        let event = EventRecord {
            deleted: random.random_bool(0.5),
            key: user_key(random).into(),
            replaced,
            previous: if random.random_bool(0.5) {
                replaced
            } else {
                some(random)
            },
        };
        let this = at;
        at = match at.main.checked_add(random.random_range(0..300)) {
            Some(main) if main > at.main => Revision::new(main, random.random_range(0..3)),
            _ => Revision::new(at.main, at.sub + 1),
        };
        (this, event)
    });
    events.collect()
}

#[test]
fn events_read_back_from_as_few_records_as_hold_them() {
    let mut random = StdRng::seed_from_u64(7);
    for _ in 0..300 {
        let count = random.random_range(0..200);
        let mut events = some_events(&mut random, count);
        if random.random_bool(0.2) && count > 0 {
            // The longest key there is.
            events[count / 2].1.key = vec![b'k'; KEY_BYTES_MAX].into();
        }
        let mut again: Vec<StoredEvent> = Vec::new();
        for (key, record) in encode_events(&events) {
            let several = decode_events(event_revision(&key).unwrap(), record.clone()).unwrap();
            assert!(several.len() <= 64);
            assert!(
                record.len() <= 4_096 || several.len() == 1,
                "{}",
                record.len()
            );
            // Damage is found, or is another event.
            let cut = random.random_range(0..record.len());
            if let Ok(fewer) = decode_events(several[0].0, record.slice(..cut)) {
                assert_eq!(fewer, several[..fewer.len()]);
            }
            again.extend(several);
        }
        assert_eq!(again, events);
    }
    let keys = (0..64_i64).map(|at| {
        let event = EventRecord {
            deleted: false,
            key: Bytes::from_static(b"key"),
            replaced: None,
            previous: None,
        };
        (Revision::new(at, 0), event)
    });
    assert_eq!(encode_events(&keys.collect::<Vec<_>>()).count(), 1);
}

#[test]
fn events_that_cannot_be_are_refused() {
    let first = Revision::new(3, 1);
    let refused = |record: &'static [u8], said: &str| {
        let error = decode_events(first, Bytes::from_static(record)).unwrap_err();
        assert!(error.to_string().contains(said), "{record:?}: {error}");
    };
    refused(b"", "empty");
    refused(b"\x03\0\x01\0\x01k", "unknown format 3");
    refused(b"\x02", "too short");
    refused(b"\x02\0\x01\0", "too short");
    refused(b"\x02\0\x01\0\x02k", "too short for a key");
    refused(b"\x02\0\x01\x10\x01k", "unknown kind 16");
    refused(b"\x02\0\x01\x0c\0\0\x01k", "unknown kind 12");
    refused(b"\x02\0\x02\0\x01k", "out of order");
    refused(b"\x02\x01\x01\0\x01k", "out of order");
    refused(b"\x02\0\x01\0\x01k\0\x01\0\x01k", "out of order");
    let backwards = b"\x02\0\x01\0\x01k\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01\0\x01k";
    refused(backwards, "out of order");
    let beyond = b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x01\0\x01k";
    refused(beyond, "beyond all");
    refused(b"\x01\x02\0\0\0\0", "unknown kind 2");
    let mut many = b"\x02\0\x01\0\0".to_vec();
    for _ in 0..64 {
        many.extend_from_slice(b"\x01\0\0\0");
    }
    let error = decode_events(first, many.into()).unwrap_err().to_string();
    assert!(error.contains("events from 3.1: more than 64"), "{error}");
}

/// These bytes are on disks: a change of them needs a new format number and a way to read the old.
#[test]
fn the_format_is_fixed() {
    let began = Revision::new(3, 1);
    assert_eq!(key_key(b"a\0"), &b"\x01a\0"[..]);
    let version =
        b"\x02a\0\xff\0\x01\xff\xff\xff\xff\xff\xff\xff\xfc\xff\xff\xff\xff\xff\xff\xff\xfe";
    assert_eq!(version_key(b"a\0", began), &version[..]);
    assert_eq!(
        event_key(began),
        &b"\x03\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01"[..]
    );
    assert_eq!(lease_key(1), &b"\x04\x80\0\0\0\0\0\0\x01"[..]);
    assert_eq!(
        lease_key_key(-1, b"k"),
        &b"\x05\x7f\xff\xff\xff\xff\xff\xff\xffk"[..]
    );
    assert_eq!(auth_key(b"u"), "\x06u");
    assert_eq!(meta_key(MetaKey::Applied), "\x07applied");
    assert_eq!(member_key(2), &b"\x08\0\0\0\0\0\0\0\x02"[..]);
    assert_eq!(alarm_key(2, 1), &b"\x09\0\0\0\0\0\0\0\x02\0\0\0\x01"[..]);

    let pair = Pair {
        create_revision: 2,
        mod_revision: began,
        version: 300,
        lease: 7,
        value: Bytes::from_static(b"v"),
    };
    assert_eq!(pair.encode(), &b"\x01\x02\x03\x01\xac\x02\x07v"[..]);
    let past = PastPair {
        pair,
        end: Revision::new(9, 4),
    };
    assert_eq!(past.encode(), &b"\x01\x02\xac\x02\x07\x09\x04v"[..]);
    let event = |deleted, key, replaced, previous| EventRecord {
        deleted,
        key: Bytes::from_static(key),
        replaced,
        previous,
    };
    let events = [
        (began, event(true, b"k", Some(began), None)),
        (Revision::new(3, 2), event(false, b"", None, None)),
        (
            Revision::new(303, 0),
            event(false, b"ab", None, Some(began)),
        ),
        (
            Revision::new(304, 0),
            event(true, b"a", Some(began), Some(began)),
        ),
    ];
    let stored =
        b"\x02\0\x01\x0b\x03\x01\x01k\0\x02\0\0\xac\x02\0\x04\x03\x01\x02ab\x01\0\x03\x03\x01\x01a";
    let found: Vec<_> = encode_events(&events).collect();
    assert_eq!(found, [(event_key(began), Bytes::from_static(stored))]);
    // Stores of old have each event in a record of its own.
    let single = decode_events(began, Bytes::from_static(b"\x01\x01\x03\x01\0\0k"));
    assert_eq!(single.unwrap(), events[..1]);
}
