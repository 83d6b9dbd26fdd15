//! What was backed up is there again after a restore, in every revision; what is not whole is refused.

use std::path::{Path, PathBuf};

use prost::Message;
use quorate_proto::KeyRange;
use quorate_proto::epoch::EPOCH_KEY;
use quorate_proto::mvccpb::KeyValue;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use super::tests::{backup, compact, file, grow};
use super::*;
use crate::apply::{is_restore_unfinished, lease_record, leases_in};
use crate::lease::Lease;
use crate::mvcc::history::{self, PageLimits};
use crate::mvcc::{self, RangeQuery, compaction, hash, meta};
use crate::storage::bbolt::{PAGE_BYTES, Value, Writer};
use crate::storage::codec;
use crate::storage::kv::{Direction, Kv, MemKv};

/// The lease that [`grow`] attaches keys to.
const LEASE: i64 = 7;

fn written(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("file");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn with_checksum(file: &[u8]) -> Vec<u8> {
    [file, &Sha256::digest(file)[..]].concat()
}

/// Restores bytes that have a checksum.
fn restored(bytes: &[u8], bump: Option<i64>) -> Result<(Arc<MemKv>, Restored), SourceError> {
    let folder = tempfile::tempdir().unwrap();
    from(&written(folder.path(), bytes), false, bump)
}

fn from(
    path: &Path,
    may_lack_checksum: bool,
    bump: Option<i64>,
) -> Result<(Arc<MemKv>, Restored), SourceError> {
    let source = Source::open(path, may_lack_checksum)?;
    let kv = Arc::new(MemKv::new());
    let store: Arc<dyn Kv> = Arc::clone(&kv) as Arc<dyn Kv>;
    let done = restore(&source, &store, bump)?;
    Ok((kv, done))
}

fn grant(kv: &MemKv, lease: Lease) {
    let (key, record) = lease_record(&lease);
    kv.commit([(key, Some(record))].into_iter().collect())
        .unwrap();
}

fn lease(id: i64, remaining_ttl_seconds: i64) -> Lease {
    Lease {
        id,
        granted_ttl_seconds: 600,
        remaining_ttl_seconds,
        granted_at: 0,
    }
}

/// Both stores show the same at every revision, as reads, as events and as their hash.
fn compare(one: &MemKv, other: &MemKv) {
    let (one, other) = (one.view(), other.view());
    let now = meta::current_revision(&*one).unwrap();
    let compacted = meta::compact_revision(&*one).unwrap();
    assert_eq!(meta::current_revision(&*other).unwrap(), now);
    assert_eq!(meta::compact_revision(&*other).unwrap(), compacted);
    for at in compacted.max(1)..=now {
        let query = RangeQuery {
            revision: at,
            ..RangeQuery::new(KeyRange::all())
        };
        let shown = mvcc::range(&*one, &query).unwrap();
        assert_eq!(shown, mvcc::range(&*other, &query).unwrap(), "at {at}");
        let hashes = [&one, &other].map(|view| hash::hash_kv(&**view, at).unwrap());
        assert_eq!(hashes[0], hashes[1], "at {at}");
    }
    let limits = PageLimits {
        events_max: usize::MAX,
        bytes_max: usize::MAX,
        looked_at_max: usize::MAX,
    };
    let events = [&one, &other].map(|view| {
        let page = history::events(&**view, &KeyRange::all(), compacted, now, limits).unwrap();
        let with_previous = page.events.into_iter().map(|event| {
            let previous = history::prev_kv(&**view, &event).unwrap();
            (event.revision, event.kind, event.kv, previous)
        });
        with_previous.collect::<Vec<_>>()
    });
    assert_eq!(events[0], events[1]);
    assert_eq!(leases_in(&*one).unwrap(), leases_in(&*other).unwrap());
    for lease in leases_in(&*one).unwrap() {
        let keys = mvcc::keys_of_lease(&*one, lease.id).unwrap();
        assert_eq!(keys, mvcc::keys_of_lease(&*other, lease.id).unwrap());
    }
}

/// Everything stored, of all tables.
fn stored(kv: &MemKv) -> Vec<(Bytes, Bytes)> {
    let view = kv.view();
    let all = view.range(
        std::ops::Bound::Unbounded,
        std::ops::Bound::Unbounded,
        Direction::Forward,
    );
    all.map(|pair| pair.unwrap()).collect()
}

#[test]
fn every_history_comes_back_and_is_the_same_bytes_each_time() {
    for seed in 0..8 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let kv = MemKv::default();
        grant(&kv, lease(LEASE, 0));
        grant(&kv, lease(-5, 30));
        for round in 0..4 {
            grow(&kv, &mut random, 60);
            let bytes = with_checksum(&file(&backup(&kv, SORT_BYTES)));
            let (again, done) = restored(&bytes, None).unwrap();
            compare(&kv, &again);
            let view = again.view();
            assert!(is_restore_unfinished(&*view).unwrap());
            let keys = mvcc::range(&*view, &RangeQuery::new(KeyRange::all()));
            assert_eq!(done.keys, u64::try_from(keys.unwrap().count).unwrap());
            assert_eq!(done.revision, meta::current_revision(&*view).unwrap());
            assert_eq!(done.leases, 2);
            assert!(stored(&again) == stored(&restored(&bytes, None).unwrap().0));
            // A backup of it is the same file, but for what restoring leaves out.
            assert!(file(&backup(&again, SORT_BYTES)) == file(&backup(&kv, SORT_BYTES)));

            let now = meta::current_revision(&*kv.view()).unwrap();
            let back = [0, 1, 20][random.random_range(0..3)];
            compact(&kv, now - back, [0, 3, usize::MAX][round % 3]);
            let bytes = with_checksum(&file(&backup(&kv, SORT_BYTES)));
            compare(&kv, &restored(&bytes, None).unwrap().0);
        }
    }
}

/// What the removal of history leaves behind once it is through is all that is restored.
#[test]
fn nothing_is_kept_that_compaction_would_remove() {
    let mut random = StdRng::seed_from_u64(3);
    let kv = MemKv::default();
    grow(&kv, &mut random, 200);
    compact(&kv, 150, usize::MAX);
    let bytes = with_checksum(&file(&backup(&kv, SORT_BYTES)));
    let (again, _) = restored(&bytes, None).unwrap();
    let before = stored(&again);
    while let Some(cursor) = compaction::pending(&*again.view()).unwrap() {
        let step = compaction::step(&*again.view(), cursor, 1_000).unwrap();
        again.commit(step.batch).unwrap();
    }
    let progress = codec::meta_key(codec::MetaKey::CompactionProgress);
    let after = stored(&again)
        .into_iter()
        .filter(|(key, _)| *key != progress);
    assert_eq!(before, after.collect::<Vec<_>>());
}

#[test]
fn with_a_bump_the_past_is_compacted_and_the_present_as_it_was() {
    let mut random = StdRng::seed_from_u64(5);
    let kv = MemKv::default();
    grant(&kv, lease(LEASE, 0));
    grow(&kv, &mut random, 100);
    let bytes = with_checksum(&file(&backup(&kv, SORT_BYTES)));
    let (bumped, done) = restored(&bytes, Some(1_000_000)).unwrap();
    let now = meta::current_revision(&*kv.view()).unwrap();
    assert_eq!(done.revision, now + 1_000_000);
    assert_eq!(done.compact_revision, done.revision);
    let view = bumped.view();
    let all = RangeQuery::new(KeyRange::all());
    let shown = mvcc::range(&*view, &all).unwrap();
    assert_eq!(shown.kvs, mvcc::range(&*kv.view(), &all).unwrap().kvs);
    assert_eq!(shown.revision, done.revision);
    let (start, end) = codec::table_bounds(codec::Table::Versions);
    assert!(view.range(start, end, Direction::Forward).next().is_none());
    let (start, end) = codec::table_bounds(codec::Table::Events);
    assert!(view.range(start, end, Direction::Forward).next().is_none());
    // And on from there.
    grow(&bumped, &mut random, 20);
    let bytes = with_checksum(&file(&backup(&bumped, SORT_BYTES)));
    compare(&bumped, &restored(&bytes, None).unwrap().0);
    let error = restored(&bytes, Some(i64::MAX - 5)).unwrap_err();
    assert!(matches!(error, SourceError::Unsupported { .. }), "{error}");
}

#[test]
fn a_file_with_a_checksum_is_whole_or_refused() {
    let mut random = StdRng::seed_from_u64(9);
    let kv = MemKv::default();
    grow(&kv, &mut random, 60);
    let bytes = with_checksum(&file(&backup(&kv, SORT_BYTES)));
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..1_500 {
        let mut damaged = bytes.clone();
        let at = random.random_range(0..damaged.len());
        damaged[at] ^= 1 << random.random_range(0..8);
        let path = written(folder.path(), &damaged);
        // Also when it may lack a checksum: it does not.
        let error = Source::open(&path, random.random()).unwrap_err();
        assert!(matches!(error, SourceError::Checksum { .. }), "{error}");
    }
    for length in (0..bytes.len()).step_by(501) {
        let path = written(folder.path(), &bytes[..length]);
        assert!(Source::open(&path, false).is_err(), "{length}");
        assert!(Source::open(&path, true).is_err(), "{length}");
    }
    let path = written(folder.path(), &bytes[..bytes.len() - 32]);
    let error = Source::open(&path, false).unwrap_err();
    assert!(error.to_string().contains("--skip-hash-check"), "{error}");
    compare(&kv, &from(&path, true, None).unwrap().0);
}

/// Without a checksum, as copied from a member's folder: damage is told, or what is restored holds
/// together.
#[test]
fn a_damaged_file_without_a_checksum_is_refused_or_restores_a_sound_store() {
    let mut random = StdRng::seed_from_u64(10);
    let kv = MemKv::default();
    grant(&kv, lease(LEASE, 0));
    grow(&kv, &mut random, 80);
    compact(&kv, 30, usize::MAX);
    let whole = file(&backup(&kv, SORT_BYTES));
    let folder = tempfile::tempdir().unwrap();
    let (mut told, mut sound) = (0, 0);
    for seed in 0..2_500 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut damaged = whole.clone();
        for _ in 0..random.random_range(1..3) {
            let page = random.random_range(0..damaged.len() / PAGE_BYTES) * PAGE_BYTES;
            let reach = [100, PAGE_BYTES][random.random_range(0..2)];
            let at = page + random.random_range(0..reach);
            damaged[at] = random.random();
        }
        match from(&written(folder.path(), &damaged), true, None) {
            Err(error) => {
                assert!(error.to_string().contains("file"), "{error}");
                told += 1;
            }
            Ok((kv, _)) => {
                let planned = backup(&kv, SORT_BYTES).plan();
                assert!(planned.is_ok(), "seed {seed}: {planned:?}");
                sound += 1;
            }
        }
    }
    println!("{told} told, {sound} sound");
    assert!(told > 500 && sound > 100);
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

/// A file made of these buckets beside an empty `key`, unless that is among them.
fn made_of(buckets: &[(&str, &[Pair])]) -> Vec<u8> {
    let mut buckets = buckets.to_vec();
    if !buckets.iter().any(|(name, _)| *name == "key") {
        buckets.push(("key", &[]));
    }
    buckets.sort();
    let (mut writer, mut body) = (Writer::new(), Vec::new());
    for (name, items) in buckets {
        writer.bucket(name.as_bytes()).unwrap();
        for (key, value) in items {
            writer.put(key, Value::Bytes(value)).unwrap();
            body.append(writer.written());
        }
    }
    let layout = writer.finish().unwrap();
    body.append(writer.written());
    with_checksum(&[layout.head(), body].concat())
}

fn revision_key(main: i64, sub: i64) -> Vec<u8> {
    [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat()
}

/// A put of key `k`: its revision, create revision and version.
fn put(main: i64, create_revision: i64, version: i64) -> Pair {
    let pair = KeyValue {
        key: "k".into(),
        value: main.to_string().into(),
        create_revision,
        mod_revision: main,
        version,
        lease: 0,
    };
    (revision_key(main, 0), pair.encode_to_vec())
}

fn tombstone(main: i64, key: &'static str) -> Pair {
    let pair = KeyValue {
        key: key.into(),
        ..KeyValue::default()
    };
    let mut stored = revision_key(main, 0);
    stored.push(b't');
    (stored, pair.encode_to_vec())
}

fn compacted_at(main: i64) -> Vec<Pair> {
    vec![(b"scheduledCompactRev".to_vec(), revision_key(main, 0))]
}

#[test]
fn a_compaction_that_was_interrupted_counts_as_done() {
    // 3 and 4 were removed already; 6 is what is visible at 8; 7 is a leftover of another key.
    let other = KeyValue {
        key: "other".into(),
        create_revision: 7,
        mod_revision: 7,
        version: 1,
        ..KeyValue::default()
    };
    let history = [
        put(5, 3, 3),
        put(6, 3, 4),
        (revision_key(7, 0), other.encode_to_vec()),
        tombstone(8, "other"),
        put(9, 3, 5),
        tombstone(10, "k"),
    ];
    let bytes = made_of(&[("key", &history), ("meta", &compacted_at(8))]);
    let (kv, done) = restored(&bytes, None).unwrap();
    assert_eq!(
        (done.revision, done.compact_revision, done.keys),
        (10, 8, 0)
    );
    let at = |revision| {
        let query = RangeQuery {
            revision,
            ..RangeQuery::new(KeyRange::all())
        };
        mvcc::range(&*kv.view(), &query).map(|found| {
            let versions = found.kvs.iter().map(|kv| kv.version);
            versions.collect::<Vec<_>>()
        })
    };
    assert!(at(7).is_err());
    assert_eq!(at(8).unwrap(), [4]);
    assert_eq!(at(9).unwrap(), [5]);
    assert_eq!(at(10).unwrap(), [0; 0]);
    assert!(backup(&kv, SORT_BYTES).plan().is_ok());
    // A deletion at the compact revision whose pair is gone, as newer etcds keep it.
    let bytes = made_of(&[
        ("key", &[tombstone(8, "gone"), put(9, 9, 1)]),
        ("meta", &compacted_at(8)),
    ]);
    assert_eq!(restored(&bytes, None).unwrap().1.keys, 1);
}

#[test]
fn revisions_go_on_after_compactions_and_bumps_that_are_above_the_last_change() {
    let bytes = made_of(&[("key", &[put(4, 4, 1)]), ("meta", &compacted_at(90))]);
    let done = restored(&bytes, None).unwrap().1;
    assert_eq!((done.revision, done.compact_revision), (90, 90));
    // What `etcdutl snapshot restore --bump-revision` leaves: a revision without a pair.
    let bumped = (revision_key(50, 0), Vec::new());
    let bytes = made_of(&[
        ("key", &[put(4, 4, 1), bumped.clone(), put(51, 4, 2)]),
        ("meta", &compacted_at(50)),
    ]);
    let (kv, done) = restored(&bytes, None).unwrap();
    assert_eq!((done.revision, done.keys), (51, 1));
    assert!(backup(&kv, SORT_BYTES).plan().is_ok());
    let bytes = made_of(&[("key", &[put(4, 4, 1), bumped])]);
    assert_eq!(restored(&bytes, None).unwrap().1.revision, 50);
    assert_eq!(restored(&made_of(&[]), None).unwrap().1.revision, 1);
}

#[test]
fn what_contradicts_itself_is_refused() {
    let pair = |change: fn(&mut KeyValue)| {
        let mut pair = KeyValue {
            key: "k".into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            ..KeyValue::default()
        };
        change(&mut pair);
        (revision_key(2, 0), pair.encode_to_vec())
    };
    for (history, said) in [
        (vec![(b"x".to_vec(), vec![1])], "is no revision"),
        (
            vec![([&revision_key(2, 0)[..], b"x"].concat(), vec![1])],
            "is no revision",
        ),
        (vec![(revision_key(-2, 0), vec![1])], "is no revision"),
        (vec![(revision_key(2, 0), vec![0xff])], "no pair"),
        (vec![pair(|pair| pair.key = "".into())], "a key of 0 bytes"),
        (
            vec![pair(|pair| pair.key = vec![7; 40_000].into())],
            "a key of 40000 bytes",
        ),
        (vec![pair(|pair| pair.mod_revision = 3)], "cannot be"),
        (vec![pair(|pair| pair.create_revision = 3)], "cannot be"),
        (vec![pair(|pair| pair.create_revision = 0)], "cannot be"),
        (vec![pair(|pair| pair.version = 0)], "cannot be"),
        (vec![put(2, 2, 2)], "does not continue"),
        (vec![put(2, 2, 1), put(3, 2, 3)], "does not continue"),
        (vec![put(2, 2, 1), put(3, 3, 1)], "does not continue"),
        (
            vec![put(2, 2, 1), tombstone(3, "k"), put(4, 2, 2)],
            "does not continue",
        ),
        (vec![tombstone(3, "k")], "not there"),
    ] {
        let error = restored(&made_of(&[("key", &history)]), None).unwrap_err();
        assert!(matches!(error, SourceError::Content { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(said) && text.contains("bucket \"key\""),
            "{said}: {text}"
        );
    }
    let broken = (b"finishedCompactRev".to_vec(), vec![1, 2]);
    let error = restored(&made_of(&[("meta", &[broken])]), None).unwrap_err();
    assert!(error.to_string().contains("compact revision"), "{error}");
    for (key, value) in [
        (vec![1], vec![]),
        (5_i64.to_be_bytes().to_vec(), vec![8, 6, 16, 60]),
        (5_i64.to_be_bytes().to_vec(), vec![8, 5]),
        (0_i64.to_be_bytes().to_vec(), vec![16, 60]),
    ] {
        let error = restored(&made_of(&[("lease", &[(key, value)])]), None).unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
    }
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let item = |key: &str, value: u8| vec![(key.as_bytes().to_vec(), vec![value])];
    for (bucket, items, said) in [
        ("auth", item("authEnabled", 1), "users or roles"),
        ("authUsers", item("root", 1), "users or roles"),
        ("authRoles", item("root", 1), "users or roles"),
        ("zebras", item("a", 1), "not known"),
    ] {
        let error = restored(&made_of(&[(bucket, &items)]), None).unwrap_err();
        assert!(matches!(error, SourceError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
    let items = item("authEnabled", 0);
    assert!(restored(&made_of(&[("auth", &items)]), None).is_ok());
    let epoch = |value: &str| {
        let pair = KeyValue {
            key: EPOCH_KEY.into(),
            value: value.to_owned().into(),
            create_revision: 2,
            mod_revision: 2,
            version: 1,
            lease: 0,
        };
        let history = [(revision_key(2, 0), pair.encode_to_vec())];
        restored(&made_of(&[("key", &history)]), None)
    };
    assert!(epoch("17").is_ok() && epoch("no number").is_ok());
    let error = epoch(&u64::MAX.to_string()).unwrap_err();
    assert!(error.to_string().contains("epoch"), "{error}");
}

#[test]
fn keys_of_a_lease_that_is_not_there_stay_as_they_are() {
    let pair = KeyValue {
        key: "k".into(),
        create_revision: 2,
        mod_revision: 2,
        version: 1,
        lease: 9,
        ..KeyValue::default()
    };
    let history = [(revision_key(2, 0), pair.encode_to_vec())];
    let (kv, done) = restored(&made_of(&[("key", &history)]), None).unwrap();
    assert_eq!(done.leases, 0);
    let shown = mvcc::range(&*kv.view(), &RangeQuery::new(KeyRange::all())).unwrap();
    assert_eq!(shown.kvs, [pair]);
    assert!(mvcc::keys_of_lease(&*kv.view(), 9).unwrap().is_empty());
}

#[test]
fn the_status_counts_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let version = (b"storageVersion".to_vec(), b"3.6.0".to_vec());
    let bytes = made_of(&[("key", &[put(4, 4, 1), put(5, 4, 2)]), ("meta", &[version])]);
    let status = BackupStatus::of(&written(folder.path(), &bytes)).unwrap();
    assert_eq!((status.revision, status.total_key), (5, 3));
    assert_eq!(status.total_size, bytes.len() as u64 - 32);
    assert_eq!(status.version, "3.6.0");
    let hashed = [put(4, 4, 1), put(5, 4, 2)].map(|(key, value)| [key, value].concat());
    let hashed = [
        b"key",
        &hashed.concat()[..],
        b"meta",
        b"storageVersion3.6.0",
    ]
    .concat();
    assert_eq!(status.hash, crc32c::crc32c(&hashed));
    let json = serde_json::to_string(&status).unwrap();
    assert!(json.contains("\"totalKey\":3"), "{json}");
    assert!(BackupStatus::of(&written(folder.path(), b"no")).is_err());
    assert!(BackupStatus::of(&folder.path().join("nowhere")).is_err());
}
