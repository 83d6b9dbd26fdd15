use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::storage::kv::{Direction, DiskOptions, Kv, MemKv, View, WriteBatch};

fn pairs(view: &Arc<dyn View>) -> Vec<(Bytes, Bytes)> {
    let all = view.range(Bound::Unbounded, Bound::Unbounded, Direction::Forward);
    all.map(Result::unwrap).collect()
}

/// A store with small pairs, an empty value, and a value of several frames.
fn sample() -> Arc<dyn View> {
    let kv = MemKv::new();
    let mut batch = WriteBatch::new();
    for number in 0..5_000_u32 {
        batch.put(
            format!("key-{number:05}"),
            vec![b'v'; number as usize % 200],
        );
    }
    batch.put("large", vec![7; 3 * FRAME_BODY_BYTES_MAX + 11]);
    batch.put(
        "z-exact",
        vec![8; FRAME_BODY_BYTES_MAX - PAIR_HEAD_BYTES - 7],
    );
    kv.commit(batch).unwrap();
    kv.view()
}

fn frames(view: &Arc<dyn View>) -> Vec<Bytes> {
    let mut sender = Sender::new(Arc::clone(view));
    let mut frames = Vec::new();
    while let Some(frame) = sender.next_frame().unwrap() {
        assert!(frame.len() <= FRAME_HEAD_BYTES + FRAME_BODY_BYTES_MAX);
        frames.push(frame);
    }
    frames
}

fn receive(stores: &Stores, frames: &[Bytes]) -> Result<Staged, SnapshotError> {
    let mut receiver = stores.stage()?;
    for frame in frames {
        receiver.receive(frame)?;
    }
    receiver.finish(WriteBatch::new())
}

#[test]
fn a_view_arrives_whole_in_memory_and_on_disk() {
    let view = sample();
    let frames = frames(&view);
    assert!(frames.len() > 6);
    let dir = tempfile::tempdir().unwrap();
    for stores in [
        Stores::memory(),
        Stores::disk(dir.path(), DiskOptions::default()),
    ] {
        let before = stores.open().unwrap();
        let staged = receive(&stores, &frames).unwrap();
        let kv = stores.adopt(staged).unwrap();
        assert_eq!(pairs(&kv.view()), pairs(&view));
        assert!(pairs(&before.view()).is_empty(), "old readers keep theirs");
        drop((kv, before));
        stores.remove_stale().unwrap();
        assert_eq!(pairs(&stores.open().unwrap().view()), pairs(&view));
    }
}

#[test]
fn an_empty_store_and_later_marks_arrive() {
    let stores = Stores::memory();
    let mut receiver = stores.stage().unwrap();
    for frame in frames(&MemKv::new().view()) {
        receiver.receive(&frame).unwrap();
    }
    let mut marks = WriteBatch::new();
    marks.put("mark", "here");
    let staged = receiver.finish(marks).unwrap();
    assert_eq!(staged.view().get(b"mark").unwrap().unwrap(), "here");
}

#[test]
fn every_changed_byte_is_refused() {
    let frames = frames(&sample());
    for at in [0, 1, frames.len() - 2, frames.len() - 1] {
        let frame = &frames[at];
        for byte in [0, 1, 8, 9, 12, FRAME_HEAD_BYTES, frame.len() - 1] {
            let mut damaged = frames.clone();
            let mut bytes = frame.to_vec();
            bytes[byte] ^= 0x10;
            damaged[at] = Bytes::from(bytes);
            let refused = receive(&Stores::memory(), &damaged).unwrap_err();
            assert!(matches!(refused, SnapshotError::Damaged(_)), "{refused}");
        }
    }
}

#[test]
fn missing_repeated_swapped_and_late_frames_are_refused() {
    let frames = frames(&sample());
    let last = frames.len() - 1;
    let refused = |frames: &[Bytes]| receive(&Stores::memory(), frames).unwrap_err();

    for kept in [0, 1, last] {
        let refused = refused(&frames[..kept]);
        let expected = kept as u64;
        assert!(
            matches!(refused, SnapshotError::Incomplete { frames } if frames == expected),
            "{refused}"
        );
    }
    let mut missing = frames.clone();
    missing.remove(2);
    let mut repeated = frames.clone();
    repeated.insert(2, frames[1].clone());
    let mut swapped = frames.clone();
    swapped.swap(1, 2);
    let mut late = frames.clone();
    late.push(frames[0].clone());
    for wrong in [missing, repeated, swapped, late] {
        assert!(matches!(refused(&wrong), SnapshotError::Damaged(_)));
    }
    let cut = frames[0].slice(..frames[0].len() - 1);
    assert!(matches!(refused(&[cut]), SnapshotError::Damaged(_)));
    assert!(matches!(
        refused(&[Bytes::new()]),
        SnapshotError::Damaged(_)
    ));
}

#[test]
fn an_end_frame_that_counts_otherwise_is_refused() {
    let (one, other) = (MemKv::new(), MemKv::new());
    let batch: WriteBatch = [(Bytes::from("a"), Some(Bytes::from("1")))]
        .into_iter()
        .collect();
    one.commit(batch).unwrap();
    let batch: WriteBatch = [(Bytes::from("a"), Some(Bytes::from("2")))]
        .into_iter()
        .collect();
    other.commit(batch).unwrap();
    let mixed = [
        frames(&one.view())[0].clone(),
        frames(&other.view())[1].clone(),
    ];
    let refused = receive(&Stores::memory(), &mixed).unwrap_err();
    assert!(matches!(refused, SnapshotError::Damaged(_)), "{refused}");
}

#[test]
fn one_snapshot_is_received_at_a_time_and_a_dropped_one_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::disk(dir.path(), DiskOptions::default());
    let current = stores.open().unwrap();
    let folders = || std::fs::read_dir(dir.path()).unwrap().count();
    let before = folders();
    let receiver = stores.stage().unwrap();
    assert!(matches!(stores.stage(), Err(SnapshotError::Busy)));
    stores.remove_stale().unwrap();
    assert_eq!(folders(), before + 1, "what is being received is not stale");
    drop(receiver);
    assert_eq!(folders(), before);
    drop(stores.stage().unwrap());
    drop(current);
}
