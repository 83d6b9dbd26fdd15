//! Etcd's answers where they are not what one would guess.

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::RangeRequest;
use quorate_proto::mvccpb::KeyValue;

use super::*;
use crate::storage::kv::MemKv;

fn request(key: &str, end: &str) -> RangeRequest {
    RangeRequest {
        key: bytes(key),
        range_end: bytes(end),
        ..RangeRequest::default()
    }
}

fn ask(kv: &dyn Kv, request: &RangeRequest) -> Result<RangeResult, Reason> {
    let query = RangeQuery::from_request(request)?;
    match range(view(kv).as_ref(), &query) {
        Ok(result) => Ok(result),
        Err(Error::Refused(reason)) => Err(reason),
        Err(Error::Storage(error)) => panic!("{error}"),
    }
}

fn keys(result: &RangeResult) -> Vec<&str> {
    result
        .kvs
        .iter()
        .map(|kv| str::from_utf8(&kv.key).unwrap())
        .collect()
}

fn current(kv: &dyn Kv, key: &str) -> KeyValue {
    key_value_at(view(kv).as_ref(), &bytes(key), 0)
        .unwrap()
        .unwrap()
}

#[test]
fn a_transaction_that_writes_adds_one_revision_and_others_none() {
    let kv = MemKv::new();
    assert_eq!(meta::current_revision(view(&kv).as_ref()).unwrap(), 1);
    assert_eq!(put(&kv, "a", "1", 0).revision, Some(2));
    assert_eq!(delete(&kv, "missing").revision, None);
    let three = write(&kv, |overlay| {
        let mut txn = overlay.begin().unwrap();
        assert_eq!(txn.revision(), 2);
        for key in ["a", "b", "c"] {
            txn.put(bytes(key), bytes("2"), 0).unwrap();
            assert_eq!(txn.revision(), 3);
        }
        txn.commit()
    });
    assert_eq!(three.revision, Some(3));
    let subs: Vec<_> = three
        .events
        .iter()
        .map(|event| event.revision.sub)
        .collect();
    assert_eq!(subs, [0, 1, 2]);
    assert_eq!(
        put(&kv, "a", "2", 0).revision,
        Some(4),
        "an unchanged value is still a write"
    );
    let a = current(&kv, "a");
    assert_eq!((a.create_revision, a.mod_revision, a.version), (2, 4, 3));
    delete(&kv, "a");
    put(&kv, "a", "", 0);
    let a = current(&kv, "a");
    assert_eq!((a.create_revision, a.mod_revision, a.version), (6, 6, 1));
}

#[test]
fn an_aborted_transaction_leaves_nothing_of_itself_and_all_of_the_others() {
    let kv = MemKv::new();
    put(&kv, "kept", "old", 5);
    let mut overlay = Overlay::new(kv.view());
    let mut txn = overlay.begin().unwrap();
    txn.put(bytes("kept"), bytes("new"), 0).unwrap();
    assert_eq!(txn.commit().revision, Some(3));
    let mut txn = overlay.begin().unwrap();
    txn.put(bytes("kept"), bytes("gone"), 9).unwrap();
    txn.put(bytes("other"), bytes("gone"), 9).unwrap();
    txn.delete_range(&KeyRange::all()).unwrap();
    txn.set(codec::auth_key(b"x"), Some(bytes("gone")));
    txn.abort();
    assert_eq!(meta::current_revision(&overlay).unwrap(), 3);
    kv.commit(overlay.into_batch()).unwrap();

    let all = ask(&kv, &request("\0", "\0")).unwrap();
    assert_eq!(keys(&all), ["kept"]);
    assert_eq!(
        (all.kvs[0].value.as_ref(), all.kvs[0].lease, all.revision),
        (&b"new"[..], 0, 3)
    );
    let view = view(&kv);
    for lease in [5, 9] {
        assert!(keys_of_lease(view.as_ref(), lease).unwrap().is_empty());
    }
    assert_eq!(view.get(&codec::auth_key(b"x")).unwrap(), None);
}

#[test]
fn keys_that_cannot_be_stored_are_refused() {
    let mut overlay = Overlay::new(MemKv::new().view());
    let mut txn = overlay.begin().unwrap();
    for (key, reason) in [(0, Reason::EmptyKey), (32_001, Reason::KeyTooLong)] {
        let refused = txn.put(vec![0; key].into(), Bytes::new(), 0);
        assert!(matches!(refused, Err(Error::Refused(r)) if r == reason));
    }
    let longest = Bytes::from(vec![0; 32_000]);
    txn.put(longest.clone(), Bytes::new(), 1).unwrap();
    txn.put(longest.clone(), Bytes::new(), 2).unwrap();
    assert_eq!(txn.commit().revision, Some(2));
    let kv = MemKv::new();
    kv.commit(overlay.into_batch())
        .expect("the longest key fits all tables");
    assert_eq!(keys_of_lease(view(&kv).as_ref(), 2).unwrap(), [longest]);
}

#[test]
fn range_forms() {
    let kv = MemKv::new();
    for key in ["\0", "a", "aa", "b", "c"] {
        put(&kv, key, "", 0);
    }
    let cases: [(&str, &str, &[&str]); 8] = [
        ("a", "", &["a"]),
        ("a", "b", &["a", "aa"]),
        ("a", "\0", &["a", "aa", "b", "c"]),
        ("\0", "\0", &["\0", "a", "aa", "b", "c"]),
        ("\0", "", &["\0"]),
        ("b", "b", &[]),
        ("b", "a", &[]),
        ("x", "", &[]),
    ];
    for (key, end, expected) in cases {
        let result = ask(&kv, &request(key, end)).unwrap();
        assert_eq!(keys(&result), expected, "{key:?} {end:?}");
        assert_eq!(usize::try_from(result.count).unwrap(), expected.len());
    }
    assert_eq!(ask(&kv, &request("", "\0")), Err(Reason::EmptyKey));
}

/// Four keys whose orders by key, version, create, mod revision and value all differ.
fn sorted_store() -> MemKv {
    let kv = MemKv::new();
    for (key, value) in [("c", "9"), ("a", "9"), ("d", "9"), ("b", "9")] {
        put(&kv, key, value, 0);
    }
    for (key, value) in [
        ("b", "x"),
        ("b", "x"),
        ("b", "2"),
        ("a", "x"),
        ("a", "4"),
        ("d", "1"),
        ("c", "3"),
    ] {
        put(&kv, key, value, 0);
    }
    // Versions: a 3, b 4, c 2, d 2. Created c a d b at 2 to 5. Modified b 8, a 10, d 11, c 12.
    kv
}

#[test]
fn sort_orders_and_targets_as_numbers_on_the_wire() {
    let kv = sorted_store();
    let cases = [
        // (order, target, keys)
        (0, 0, Ok("abcd")),
        (1, 0, Ok("abcd")),
        (2, 0, Ok("dcba")),
        (0, 1, Ok("cdab")),
        (2, 1, Ok("bacd")),
        (0, 2, Ok("cadb")),
        (2, 2, Ok("bdac")),
        (0, 3, Ok("badc")),
        (2, 3, Ok("cdab")),
        (0, 4, Ok("dbca")),
        (2, 4, Ok("acbd")),
        (9, 4, Ok("abcd")),
        (0, 5, Err(Reason::InvalidSortOption)),
        (9, -1, Err(Reason::InvalidSortOption)),
    ];
    for (sort_order, sort_target, expected) in cases {
        let request = RangeRequest {
            sort_order,
            sort_target,
            ..request("a", "z")
        };
        let found = ask(&kv, &request).map(|result| keys(&result).concat());
        assert_eq!(
            found,
            expected.map(str::to_owned),
            "{sort_order} {sort_target}"
        );
        if let Ok(expected) = expected {
            let cut = ask(
                &kv,
                &RangeRequest {
                    limit: 2,
                    ..request
                },
            )
            .unwrap();
            // Without an order, only three are read to cut one off.
            let expected = match (sort_order, sort_target) {
                (0, 1 | 2) => "ca",
                (0, 3) => "ba",
                (0, 4) => "bc",
                _ => &expected[..2],
            };
            assert_eq!(keys(&cut).concat(), expected, "sorted first, cut after");
            assert!(cut.more && cut.count == 4);
        }
    }
    let filtered = RangeRequest {
        sort_target: 4,
        limit: 2,
        min_mod_revision: 1,
        ..request("a", "z")
    };
    let found = ask(&kv, &filtered).unwrap();
    assert_eq!(keys(&found).concat(), "db", "with a filter all are read");
    let by_value = RangeRequest {
        sort_target: 4,
        keys_only: true,
        ..request("a", "z")
    };
    let found = ask(&kv, &by_value).unwrap();
    assert_eq!(keys(&found).concat(), "dbca", "blanked after sorting");
    assert!(
        found
            .kvs
            .iter()
            .all(|kv| kv.value.is_empty() && kv.version > 1)
    );
}

#[test]
fn limit_count_and_filters() {
    let kv = sorted_store();
    let all = request("a", "z");
    // (request, keys, more, count)
    let cases = [
        (
            RangeRequest {
                limit: 4,
                ..all.clone()
            },
            "abcd",
            false,
            4,
        ),
        (
            RangeRequest {
                limit: 3,
                ..all.clone()
            },
            "abc",
            true,
            4,
        ),
        (
            RangeRequest {
                limit: -1,
                ..all.clone()
            },
            "abcd",
            false,
            4,
        ),
        (
            RangeRequest {
                limit: 2,
                count_only: true,
                ..all.clone()
            },
            "",
            false,
            4,
        ),
        (
            RangeRequest {
                min_mod_revision: 10,
                ..all.clone()
            },
            "acd",
            false,
            4,
        ),
        (
            RangeRequest {
                max_mod_revision: 10,
                ..all.clone()
            },
            "ab",
            false,
            4,
        ),
        (
            RangeRequest {
                min_mod_revision: 10,
                limit: 3,
                ..all.clone()
            },
            "acd",
            false,
            4,
        ),
        (
            RangeRequest {
                min_mod_revision: 10,
                limit: 2,
                ..all.clone()
            },
            "ac",
            true,
            4,
        ),
        (
            RangeRequest {
                min_create_revision: 3,
                max_create_revision: 4,
                ..all.clone()
            },
            "ad",
            false,
            4,
        ),
        (
            RangeRequest {
                max_create_revision: -1,
                ..all.clone()
            },
            "",
            false,
            4,
        ),
        (
            RangeRequest {
                min_create_revision: -1,
                ..all.clone()
            },
            "abcd",
            false,
            4,
        ),
        (
            RangeRequest {
                count_only: true,
                max_mod_revision: 1,
                ..all.clone()
            },
            "",
            false,
            4,
        ),
        (
            RangeRequest {
                revision: 3,
                ..all.clone()
            },
            "ac",
            false,
            2,
        ),
    ];
    for (request, expected, more, count) in cases {
        let found = ask(&kv, &request).unwrap();
        assert_eq!(keys(&found).concat(), expected, "{request:?}");
        assert_eq!(
            (found.more, found.count, found.revision),
            (more, count, 12),
            "{request:?}"
        );
    }
}

#[test]
fn revisions_outside_history_are_refused() {
    let kv = sorted_store();
    compact(&kv, 6);
    for revision in [1, 5] {
        let old = RangeRequest {
            revision,
            ..request("a", "z")
        };
        assert_eq!(ask(&kv, &old), Err(Reason::Compacted));
    }
    for revision in [-5, 0, 6, 12] {
        let fine = RangeRequest {
            revision,
            ..request("a", "z")
        };
        assert_eq!(ask(&kv, &fine).unwrap().count, 4);
    }
    let future = RangeRequest {
        revision: 13,
        ..request("a", "z")
    };
    assert_eq!(ask(&kv, &future), Err(Reason::FutureRevision));
}

#[test]
fn bounds_of_a_compaction() {
    // (current, compacted, revision)
    let never = meta::NEVER_COMPACTED;
    assert_eq!(compaction::check(1, never, 0), Ok(()));
    assert_eq!(compaction::check(5, never, 5), Ok(()));
    assert_eq!(compaction::check(5, never, -1), Err(Reason::Compacted));
    assert_eq!(compaction::check(5, 3, 3), Err(Reason::Compacted));
    assert_eq!(compaction::check(5, 3, 0), Err(Reason::Compacted));
    assert_eq!(compaction::check(5, 3, 6), Err(Reason::FutureRevision));
    let kv = MemKv::new();
    compact(&kv, 0);
    assert_eq!(meta::compact_revision(view(&kv).as_ref()).unwrap(), 0);
    assert_eq!(
        put(&kv, "a", "", 0).revision,
        Some(2),
        "a compaction adds no revision"
    );
}

#[test]
fn leases_hold_the_keys_last_attached() {
    let kv = MemKv::new();
    let attached = |lease| keys_of_lease(view(&kv).as_ref(), lease).unwrap();
    put(&kv, "b", "", 1);
    put(&kv, "a", "", 1);
    assert_eq!(attached(1), ["a", "b"]);
    put(&kv, "a", "", 2);
    assert_eq!(
        (attached(1), attached(2)),
        (vec![bytes("b")], vec![bytes("a")])
    );
    put(&kv, "a", "", 0);
    assert!(attached(2).is_empty(), "a plain put detaches");
    delete(&kv, "b");
    assert!(attached(1).is_empty(), "so does a delete");
}

const ALL_IN_ONE: history::PageLimits = history::PageLimits {
    events_max: 100,
    bytes_max: 1 << 20,
    looked_at_max: 100,
};

fn events(kv: &dyn Kv, first: i64) -> Vec<(Event, Option<KeyValue>)> {
    let view = view(kv);
    let page = history::events(view.as_ref(), &KeyRange::all(), first, i64::MAX, ALL_IN_ONE);
    let events = page.unwrap().events.into_iter();
    events
        .map(|event| {
            (
                event.clone(),
                history::prev_kv(view.as_ref(), &event).unwrap(),
            )
        })
        .collect()
}

#[test]
fn events_at_the_compact_revision_stay_but_lose_what_was_before() {
    let kv = MemKv::new();
    put(&kv, "a", "1", 0);
    put(&kv, "a", "2", 0);
    delete(&kv, "a");
    put(&kv, "a", "3", 0);
    compact(&kv, 3);
    let seen = events(&kv, 3);
    assert_eq!(seen[0].0.kv.value, "2");
    assert_eq!(
        seen[0].1, None,
        "the pair before the compact revision is gone"
    );
    assert_eq!(
        seen[1].0.kv,
        KeyValue {
            key: bytes("a"),
            mod_revision: 4,
            ..KeyValue::default()
        }
    );
    assert_eq!(seen[1].1.as_ref().unwrap().value, "2");
    assert_eq!((seen[2].0.kv.version, &seen[2].1), (1, &None));
    compact(&kv, 4);
    let seen = events(&kv, 4);
    assert_eq!((seen[0].0.kind, &seen[0].1), (EventKind::Delete, &None));
    assert_eq!(seen.len(), 2);
    let old = history::events(view(&kv).as_ref(), &KeyRange::all(), 3, 9, ALL_IN_ONE);
    assert!(matches!(old, Err(Error::Refused(Reason::Compacted))));
}

/// A put and a delete of one key in one transaction: a request without bounds can do it.
#[test]
fn a_key_changed_twice_in_one_transaction() {
    let kv = MemKv::new();
    put(&kv, "a", "1", 0);
    let twice = write(&kv, |overlay| {
        let mut txn = overlay.begin().unwrap();
        txn.put(bytes("a"), bytes("2"), 0).unwrap();
        txn.delete_range(&KeyRange::all()).unwrap();
        txn.put(bytes("b"), bytes("3"), 0).unwrap();
        txn.delete_range(&KeyRange::all()).unwrap();
        txn.commit()
    });
    assert_eq!((twice.revision, twice.events.len()), (Some(3), 4));
    put(&kv, "c", "", 0);
    let check = |kv: &dyn Kv| {
        let at_three = RangeRequest {
            revision: 3,
            ..request("\0", "\0")
        };
        assert_eq!(ask(kv, &at_three).unwrap().count, 0);
        let seen = events(kv, 3);
        let values: Vec<_> = seen
            .iter()
            .map(|(event, _)| event.kv.value.as_ref())
            .collect();
        assert_eq!(
            values,
            [&b"2"[..], b"", b"3", b"", b""],
            "also at the compact revision"
        );
    };
    check(&kv);
    let previous: Vec<_> = events(&kv, 3).into_iter().map(|(_, prev)| prev).collect();
    let one = Some(
        key_value_at(view(&kv).as_ref(), &bytes("a"), 2)
            .unwrap()
            .unwrap(),
    );
    assert_eq!(
        previous,
        [one.clone(), one, None, None, None],
        "what was before the transaction"
    );
    compact(&kv, 3);
    check(&kv);
    compact(&kv, 4);
    let view = view(&kv);
    let (start, end) = codec::table_bounds(codec::Table::Versions);
    let left = view
        .range(start, end, crate::storage::kv::Direction::Forward)
        .count();
    assert_eq!(
        left, 0,
        "the next compaction removes what the first had to keep"
    );
}

#[test]
fn the_hash_is_part_of_the_protocol_between_members() {
    let kv = MemKv::new();
    let hash = |revision| hash::hash_kv(view(&kv).as_ref(), revision).unwrap();
    assert_eq!(hash(0).hash, 0);
    put(&kv, "a", "1", 7);
    delete(&kv, "a");
    assert_eq!(
        (hash(2).hash, hash(0).hash),
        (2_134_636_973, 4_209_660_818),
        "fixed by the first release"
    );
    assert_eq!(hash(-3), hash(3), "negative means current");
    compact(&kv, 3);
    assert_eq!(hash(3).hash, 0, "nothing visible, no event after it");
    assert_eq!(hash(0).compact_revision, 3);
}
