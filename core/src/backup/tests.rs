//! What is read back from a backup shows every revision as the store does, whatever the memory for
//! ordering, and in any history.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use quorate_proto::KeyRange;
use quorate_proto::mvccpb::KeyValue;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::mvcc::history::{self, PageLimits};
use crate::mvcc::{self, EventKind, Overlay, RangeQuery, Revision, compaction, meta};
use crate::storage::bbolt::reader;
use crate::storage::codec;
use crate::storage::kv::{Kv, MemKv};

/// The items of one bucket.
type Items = Vec<(Vec<u8>, Vec<u8>)>;

pub(super) fn backup(kv: &MemKv, sort_bytes: usize) -> Backup {
    Backup {
        view: kv.view(),
        members: Vec::new(),
        removed: Vec::new(),
        sort_bytes,
        is_abandoned: Box::new(|| false),
    }
}

/// The file, with its pieces checked.
pub(super) fn file(backup: &Backup) -> Vec<u8> {
    let layout = backup.plan().unwrap();
    let mut pieces: Vec<Bytes> = Vec::new();
    backup
        .write(layout, |piece| {
            pieces.push(piece);
            Ok(())
        })
        .unwrap();
    let (last, others) = pieces.split_last().unwrap();
    assert!((1..=PIECE_BYTES).contains(&last.len()));
    assert!(others.iter().all(|piece| piece.len() == PIECE_BYTES));
    let file = pieces.concat();
    assert_eq!(file.len() as u64, layout.file_bytes());
    file
}

fn bucket(file: &[u8], name: &str) -> Items {
    let found = reader::read(file)
        .into_iter()
        .find(|bucket| bucket.0 == name.as_bytes());
    found.unwrap().1
}

/// A key of bucket `key`: its revision, and whether it marks a deletion.
fn revision_of(key: &[u8]) -> (Revision, bool) {
    let number = |at: usize| i64::from_be_bytes(key[at..at + 8].try_into().unwrap());
    assert_eq!(key[8], b'_');
    let is_tombstone = match &key[17..] {
        b"" => false,
        b"t" => true,
        other => panic!("{other:?} after a revision"),
    };
    (Revision::new(number(0), number(9)), is_tombstone)
}

/// Random transactions of several operations, over few keys.
pub(super) fn grow(kv: &MemKv, random: &mut StdRng, transactions: usize) {
    let mut overlay = Overlay::new(kv.view());
    for _ in 0..transactions {
        let mut txn = overlay.begin().unwrap();
        for _ in 0..random.random_range(1..4) {
            let key = Bytes::from(format!("key {}", random.random_range(0..30)));
            if random.random_range(0..4) == 0 {
                txn.delete_range(&KeyRange::single(key)).unwrap();
            } else {
                let length = [0, 5, 200, 6_000][random.random_range(0..4)];
                let lease = random.random_range(0..2) * 7;
                txn.put(key, vec![b'v'; length].into(), lease).unwrap();
            }
        }
        let _ = txn.commit();
    }
    kv.commit(overlay.into_batch()).unwrap();
}

/// Compacts, and removes some of what may be removed: a backup must not depend on how much.
pub(super) fn compact(kv: &MemKv, revision: i64, steps: usize) {
    let mut overlay = Overlay::new(kv.view());
    compaction::schedule(&mut overlay, revision);
    kv.commit(overlay.into_batch()).unwrap();
    for _ in 0..steps {
        let Some(cursor) = compaction::pending(&*kv.view()).unwrap() else {
            return;
        };
        let step = compaction::step(&*kv.view(), cursor, 5).unwrap();
        kv.commit(step.batch).unwrap();
    }
}

/// Replays the items as etcd does and compares every revision with what the store says.
fn check(kv: &MemKv, items: &Items) {
    let view = kv.view();
    let now = meta::current_revision(&*view).unwrap();
    let compacted = meta::compact_revision(&*view).unwrap();
    let mut pairs = BTreeMap::new();
    let mut events = Vec::new();
    let mut items = items.iter().peekable();
    for at in compacted.max(1)..=now {
        while let Some((key, value)) = items.next_if(|item| revision_of(&item.0).0.main <= at) {
            let (revision, is_tombstone) = revision_of(key);
            let kv = KeyValue::decode(value.as_slice()).unwrap();
            if is_tombstone {
                assert!(revision.main >= compacted, "an old deletion at {revision}");
                pairs.remove(&kv.key);
            } else {
                assert_eq!(kv.mod_revision, revision.main);
                pairs.insert(kv.key.clone(), kv.clone());
            }
            if revision.main >= compacted {
                events.push((revision, is_tombstone, kv));
            }
        }
        let query = RangeQuery {
            revision: at,
            ..RangeQuery::new(KeyRange::all())
        };
        let shown = mvcc::range(&*view, &query).unwrap().kvs;
        assert_eq!(
            pairs.values().cloned().collect::<Vec<_>>(),
            shown,
            "at {at}"
        );
    }
    assert!(items.next().is_none());
    let limits = PageLimits {
        events_max: usize::MAX,
        bytes_max: usize::MAX,
        looked_at_max: usize::MAX,
    };
    let all = history::events(&*view, &KeyRange::all(), compacted, now, limits).unwrap();
    let expected = all.events.into_iter().map(|event| {
        let is_tombstone = event.kind == EventKind::Delete;
        let mut kv = event.kv;
        if is_tombstone {
            kv.mod_revision = 0;
        }
        (event.revision, is_tombstone, kv)
    });
    assert_eq!(events, expected.collect::<Vec<_>>());
}

#[test]
fn every_revision_reads_back_in_order_whatever_the_memory() {
    for seed in 0..6 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let kv = MemKv::default();
        for round in 0..4 {
            grow(&kv, &mut random, 60);
            let whole = file(&backup(&kv, SORT_BYTES));
            check(&kv, &bucket(&whole, "key"));
            for sort_bytes in [0, 300, 20_000] {
                let same = file(&backup(&kv, sort_bytes)) == whole;
                assert!(same, "with {sort_bytes} bytes to sort in");
            }
            let now = meta::current_revision(&*kv.view()).unwrap();
            let back = [0, 1, 20][random.random_range(0..3)];
            compact(&kv, now - back, [0, 3, usize::MAX][round % 3]);
            check(&kv, &bucket(&file(&backup(&kv, 5_000)), "key"));
        }
    }
}

#[test]
fn a_fresh_store_has_all_buckets_and_no_history() {
    let file = file(&backup(&MemKv::default(), SORT_BYTES));
    let buckets = reader::read(&file);
    let names: Vec<_> = buckets
        .iter()
        .map(|(name, items)| (name.as_slice(), items.len()))
        .collect();
    let expected: [(&[u8], usize); 10] = [
        (b"alarm", 0),
        (b"auth", 1),
        (b"authRoles", 0),
        (b"authUsers", 0),
        (b"cluster", 1),
        (b"key", 0),
        (b"lease", 0),
        (b"members", 0),
        (b"members_removed", 0),
        (b"meta", 1),
    ];
    assert_eq!(names, expected);
}

#[test]
fn what_does_not_hold_together_is_no_backup() {
    let mut random = StdRng::seed_from_u64(1);
    let kv = MemKv::default();
    grow(&kv, &mut random, 20);
    let (start, end) = codec::table_bounds(codec::Table::Events);
    let (event, record) = {
        let view = kv.view();
        view.range(start, end, crate::storage::kv::Direction::Forward)
            .next()
            .unwrap()
            .unwrap()
    };
    let change = |record: Option<Bytes>| {
        let batch = [(event.clone(), record)].into_iter().collect();
        kv.commit(batch).unwrap();
    };
    change(None);
    assert!(matches!(
        backup(&kv, SORT_BYTES).plan(),
        Err(BackupError::Storage(_))
    ));
    change(Some(record));
    assert!(backup(&kv, SORT_BYTES).plan().is_ok());

    let users = [(codec::auth_key(b"u"), Some(Bytes::from_static(b"root")))];
    kv.commit(users.into_iter().collect()).unwrap();
    assert!(matches!(
        backup(&kv, SORT_BYTES).plan(),
        Err(BackupError::Unsupported(_))
    ));
}

#[test]
fn a_file_that_does_not_come_out_as_planned_is_an_error() {
    let mut random = StdRng::seed_from_u64(2);
    let kv = MemKv::default();
    grow(&kv, &mut random, 40);
    let small = backup(&kv, SORT_BYTES).plan().unwrap();
    grow(&kv, &mut random, 200);
    let large = backup(&kv, SORT_BYTES);
    let layout = large.plan().unwrap();
    assert_ne!(small, layout);
    assert!(matches!(
        large.write(small, |_| Ok(())),
        Err(BackupError::Mismatch(_))
    ));

    let refused = large.write(layout, |_| Err(quorate_proto::Reason::Stopped.into()));
    assert!(matches!(refused, Err(BackupError::NotTaken(_))));
    let abandoned = Backup {
        is_abandoned: Box::new(|| true),
        ..large
    };
    assert!(matches!(abandoned.plan(), Err(BackupError::Abandoned)));
}
