//! Keys and records of the state: decoding never panics, what is encoded is decoded to the same, and
//! the bytes order as what they stand for. Damaged stores are refused or read, never worse.

use std::cmp::Ordering;
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::apply::{Options, State};
use quorate_core::backup::Backup;
use quorate_core::mvcc::{self, RangeQuery, compaction, hash, history};
use quorate_core::storage::codec::{
    self, EventRecord, MetaKey, Pair, PastPair, Revision, StoredEvent, Table,
};
use quorate_core::storage::kv::{Kv, MemKv, WriteBatch};
use quorate_proto::KeyRange;

use crate::Input;

/// Records of a made-up store at most.
const RECORDS_MAX: usize = 16;

/// One run.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => decode(input.rest()),
        1 => records_survive(&mut input),
        2 => keys_order(&mut input),
        _ => damaged_store(&mut input),
    }
}

fn decode(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(pair) = Pair::decode(bytes.clone()) {
        assert_eq!(Pair::decode(pair.encode()).expect("own encoding"), pair);
    }
    let began = Revision::new(3, 1);
    if let Ok(past) = PastPair::decode(bytes.clone(), began) {
        let again = PastPair::decode(past.encode(), began).expect("own encoding");
        assert_eq!(again, past);
    }
    if let Ok(events) = codec::decode_events(began, bytes.clone()) {
        assert_eq!(again(&events), events);
    }
    if let Ok((key, revision)) = codec::version_of(data) {
        assert_eq!(
            codec::version_key(&key, revision),
            data,
            "one key, one form"
        );
    }
    if let Ok(revision) = codec::event_revision(data) {
        assert_eq!(codec::event_key(revision), data, "one revision, one form");
    }
    if let Ok(key) = codec::user_key_of_lease_key(&bytes) {
        let lease = codec::lease_of(data).expect("the same check");
        assert_eq!(codec::lease_key_key(lease, &key)[1..], data[1..]);
    }
    if let Ok(number) = codec::decode_number(data) {
        assert_eq!(codec::encode_number(number), data);
    }
}

fn revision(input: &mut Input<'_>) -> Revision {
    Revision::new(
        input.extreme().cast_signed() & i64::MAX,
        input.extreme().cast_signed() & i64::MAX,
    )
}

fn pair(input: &mut Input<'_>) -> Pair {
    Pair {
        create_revision: input.extreme().cast_signed() & i64::MAX,
        mod_revision: revision(input),
        version: input.extreme().cast_signed() & i64::MAX,
        lease: input.extreme().cast_signed(),
        value: Bytes::copy_from_slice(input.piece()),
    }
}

fn records_survive(input: &mut Input<'_>) {
    let pair = pair(input);
    let decoded = Pair::decode(pair.encode()).expect("a pair of its own");
    assert_eq!(decoded, pair);
    let past = PastPair {
        end: revision(input),
        pair,
    };
    let decoded = PastPair::decode(past.encode(), past.pair.mod_revision);
    assert_eq!(decoded.expect("a past pair of its own"), past);
    let mut at = revision(input);
    let mut events = Vec::new();
    for _ in 0..=input.byte() % 4 {
        let began = |input: &mut Input<'_>| (input.byte() % 2 == 1).then(|| revision(input));
        let event = EventRecord {
            deleted: input.byte() % 2 == 1,
            replaced: began(input),
            previous: began(input),
            key: Bytes::copy_from_slice(input.piece()),
        };
        events.push((at, event));
        let Some(sub) = at.sub.checked_add(1) else {
            break;
        };
        at.sub = sub;
    }
    assert_eq!(again(&events), events);
}

/// What comes back of events that are stored.
fn again(events: &[StoredEvent]) -> Vec<StoredEvent> {
    let mut again = Vec::new();
    for (key, record) in codec::encode_events(events) {
        let first = codec::event_revision(&key).expect("own encoding");
        again.extend(codec::decode_events(first, record).expect("own encoding"));
    }
    again
}

fn keys_order(input: &mut Input<'_>) {
    let (one, other) = (input.piece(), input.piece());
    let (first, second) = (revision(input), revision(input));
    let ids = (input.extreme().cast_signed(), input.extreme().cast_signed());
    let one_key = codec::version_key(one, first);
    let other_key = codec::version_key(other, second);
    assert_eq!(
        one_key.cmp(&other_key),
        one.cmp(other).then(second.cmp(&first)),
        "versions: by key, then the newest first"
    );
    let decoded = codec::version_of(&one_key).expect("a version key of its own");
    assert_eq!(decoded, (Bytes::copy_from_slice(one), first));
    assert_eq!(
        codec::event_key(first).cmp(&codec::event_key(second)),
        first.cmp(&second)
    );
    assert_eq!(
        codec::event_revision(&codec::event_key(first)).expect("own"),
        first
    );
    assert_eq!(
        codec::key_key(one).cmp(&codec::key_key(other)),
        one.cmp(other)
    );
    let attached = codec::lease_key_key(ids.0, one).cmp(&codec::lease_key_key(ids.1, other));
    assert_eq!(attached, ids.0.cmp(&ids.1).then(one.cmp(other)));
    assert_eq!(
        codec::lease_of(&codec::lease_key(ids.0)).expect("own"),
        ids.0
    );
    bounds_hold(one, other, first);
}

/// Bounds over user keys mean the same over stored ones.
fn bounds_hold(start: &[u8], end: &[u8], revision: Revision) {
    use std::ops::Bound::{Excluded, Included};
    use std::ops::RangeBounds;
    for probe in [start, end] {
        let key = codec::version_key(probe, revision);
        for bounds in [
            (Included(start), Excluded(end)),
            (Excluded(start), Included(end)),
        ] {
            let inside = RangeBounds::<[u8]>::contains(&bounds, probe);
            let stored = codec::version_bounds(bounds.0, bounds.1);
            assert_eq!(stored.contains(&key), inside, "versions of {probe:02x?}");
            let stored = codec::key_bounds(bounds.0, bounds.1);
            assert_eq!(stored.contains(&codec::key_key(probe)), inside);
        }
    }
    let until = codec::versions_until(start, revision.main);
    assert!(until.contains(&codec::version_key(start, revision)));
    let other = codec::version_key(end, revision);
    assert_eq!(until.contains(&other), start.cmp(end) == Ordering::Equal);
}

/// A store whose keys are possible and whose records are anything.
fn damaged_store(input: &mut Input<'_>) {
    let kv = Arc::new(MemKv::new());
    let mut batch = WriteBatch::new();
    let mut keys = Vec::new();
    for _ in 0..RECORDS_MAX {
        if input.is_empty() {
            break;
        }
        let key = stored_key(input);
        batch.put(key, record(input));
        keys.push(Bytes::copy_from_slice(input.bytes(2)));
    }
    kv.commit(batch).expect("keys of a possible length");
    let view = kv.view();
    let everything = KeyRange::all();
    let revision = input.extreme().cast_signed();
    for revision in [0, 1, 2, revision] {
        let query = RangeQuery {
            revision,
            ..RangeQuery::new(everything.clone())
        };
        drop(mvcc::range(&*view, &query));
        drop(hash::hash_kv(&*view, revision));
        for key in &keys {
            drop(mvcc::key_value_at(&*view, key, revision));
        }
    }
    let limits = history::PageLimits {
        events_max: 8,
        bytes_max: 1024,
        looked_at_max: 16,
    };
    if let Ok(page) = history::events(&*view, &everything, 0, revision, limits) {
        for event in &page.events {
            drop(history::prev_kv(&*view, event));
        }
    }
    drop(mvcc::keys_of_leases(&*view, &[1, 2, 200].into()));
    if let Ok(Some(mut cursor)) = compaction::pending(&*view) {
        for _ in 0..RECORDS_MAX {
            match compaction::step(&*view, cursor, 4) {
                Ok(compaction::Step {
                    next: Some(next), ..
                }) => cursor = next,
                _ => break,
            }
        }
    }
    let backup = Backup {
        view,
        members: Vec::new(),
        removed: Vec::new(),
        sort_bytes: 100,
        is_abandoned: Box::new(|| false),
    };
    if let Ok(layout) = backup.plan() {
        let mut bytes = 0;
        let written = backup.write(layout, |piece| {
            bytes += piece.len() as u64;
            Ok(())
        });
        written.expect("what can be planned can be written");
        assert_eq!(bytes, layout.file_bytes());
    }
    drop(State::open(kv, &Options::default()));
}

fn stored_key(input: &mut Input<'_>) -> Bytes {
    let revision = |input: &mut Input<'_>| {
        let number = i64::from(input.byte());
        Revision::new(number / 4, number % 4)
    };
    match input.byte() % 12 {
        0 => codec::key_key(input.bytes(2)),
        1 => codec::version_key(input.bytes(2), revision(input)),
        2 => codec::event_key(revision(input)),
        3 => codec::lease_key(i64::from(input.byte())),
        4 => codec::lease_key_key(1, input.bytes(2)),
        5 => codec::meta_key(MetaKey::CurrentRevision),
        6 => codec::meta_key(MetaKey::CompactRevision),
        7 => codec::meta_key(MetaKey::CompactionProgress),
        8 => codec::member_key(u64::from(input.byte())),
        9 => codec::alarm_key(u64::from(input.byte()), i32::from(input.byte())),
        10 => codec::meta_key(MetaKey::Applied),
        // Anything in any table.
        _ => {
            let table = input.byte() % (Table::Alarms as u8) + 1;
            [&[table], input.piece()].concat().into()
        }
    }
}

fn record(input: &mut Input<'_>) -> Bytes {
    match input.byte() % 5 {
        0 => codec::encode_number(i64::from(input.byte())),
        1 => pair(input).encode(),
        2 => PastPair {
            pair: pair(input),
            end: revision(input),
        }
        .encode(),
        3 => codec::encode_number(input.extreme().cast_signed()),
        _ => Bytes::copy_from_slice(input.piece()),
    }
}
