//! Torn tails and holes, foreign and missing files, values that pose as records.

use std::io;

use super::*;
use crate::storage::wal::format::{BATCH_HEADER_BYTES, BLOCK_BYTES, SegmentHeader};

/// A log with one batch an entry, entries 1..=count, closed.
fn log(count: u64) -> MemFs {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    for index in 1..=count {
        append(&wal, vec![entry(1, index, 100)]);
    }
    wal.close().unwrap();
    fs
}

fn zero(fs: &MemFs, path: &Path, block: usize, bytes: usize) {
    let from = block * BLOCK_BYTES;
    fs.damage(path, |file| file[from..from + bytes].fill(0))
        .unwrap();
}

#[test]
fn a_torn_tail_is_cut() {
    let fs = log(4);
    let path = segments(&fs)[0].clone();
    // The header of the last batch reached the disk, its record did not.
    let record = 4 * BLOCK_BYTES + BATCH_HEADER_BYTES;
    fs.damage(&path, |file| file[record..record + 20].fill(7))
        .unwrap();
    let wal = open(&fs).unwrap();
    assert_eq!(all(&wal), entries(1, 1..=3, 100));
    let after = bytes_of(&fs, &path);
    assert!(
        after[4 * BLOCK_BYTES..].iter().all(|byte| *byte == 0),
        "zeroed"
    );
    append(&wal, vec![entry(2, 4, 100)]);
    drop(wal);
    assert_eq!(all(&open(&fs).unwrap()).last(), Some(&entry(2, 4, 100)));
}

#[test]
fn a_hole_is_refused() {
    for (block, bytes) in [(1, 512), (2, 4096), (3, 1)] {
        let fs = log(4);
        let path = segments(&fs)[0].clone();
        zero(&fs, &path, block, bytes);
        let before = bytes_of(&fs, &path);
        let error = open(&fs).unwrap_err();
        let WalError::Hole {
            file,
            offset,
            batch,
            later_offset,
            later_batch,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!((file, *offset), (&path, (block * BLOCK_BYTES) as u64));
        assert_eq!(*batch, block as u64);
        assert_eq!((*later_batch, *later_offset), (*batch + 1, *offset + 4096));
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains("add it as a new member"), "{text}");
        assert_eq!(bytes_of(&fs, &path), before, "evidence is not touched");
    }
}

#[test]
fn a_hole_before_another_segment_is_refused() {
    let fs = log(20);
    let paths = segments(&fs);
    assert!(paths.len() >= 3);
    // The last batch of the first segment.
    let length = bytes_of(&fs, &paths[0]).len();
    let last = length / BLOCK_BYTES - 1;
    zero(&fs, &paths[0], last, 64);
    let error = open(&fs).unwrap_err();
    assert!(
        matches!(&error, WalError::Hole { later_file, .. } if *later_file == paths[1]),
        "{error}"
    );
}

#[test]
fn missing_segments_are_named() {
    let count = segments(&log(30)).len();
    assert!(count >= 4);
    for missing in 0..count {
        let fs = log(30);
        let path = segments(&fs)[missing].clone();
        fs.remove(&path).unwrap();
        match open(&fs) {
            Err(WalError::MissingSegment { file, .. }) => assert_eq!(file, path),
            other => panic!("segment {missing}: {other:?}"),
        }
    }
}

#[test]
fn what_a_removal_left_behind_is_removed() {
    let fs = log(30);
    let old = bytes_of(&fs, &segments(&fs)[0]);
    let first = segments(&fs)[0].clone();
    let wal = open(&fs).unwrap();
    wal.purge(id(1, 25)).unwrap();
    append(&wal, vec![entry(1, 31, 10)]);
    wal.close().unwrap();
    assert!(!segments(&fs).contains(&first));
    fs.create(&first, 0).unwrap().write_at(0, &old).unwrap();
    let wal = open(&fs).unwrap();
    assert_eq!(all(&wal).len(), 6);
    wal.close().unwrap();
    assert!(!segments(&fs).contains(&first));
}

#[test]
fn copies_and_cuts_of_segments_are_refused() {
    let fs = log(30);
    let paths = segments(&fs);
    let copy = bytes_of(&fs, &paths[1]);
    fs.damage(&paths[2], |file| *file = copy.clone()).unwrap();
    let error = open(&fs).unwrap_err();
    assert!(error.to_string().contains("a copy of segment"), "{error}");

    let fs = log(30);
    let next = dir().join(format!("{:016x}.wal", paths.len() + 1));
    fs.create(&next, 0).unwrap().write_at(0, &copy).unwrap();
    assert!(open(&fs).unwrap_err().is_damage());

    let fs = log(30);
    fs.damage(&paths[1], |file| file.truncate(3 * BLOCK_BYTES))
        .unwrap();
    assert!(matches!(open(&fs), Err(WalError::Hole { .. })));

    let fs = log(30);
    fs.damage(&paths[1], |file| file.truncate(10)).unwrap();
    assert!(matches!(open(&fs), Err(WalError::Corrupt { .. })));
}

/// Its checksum holds: only a program that is wrong, or somebody with a purpose, writes that.
#[test]
fn a_header_that_contradicts_itself_is_refused() {
    let contradictions: [fn(&mut SegmentHeader); 4] = [
        |header| header.points.purged = Some(id(1, 3)),
        |header| header.points.committed = Some(id(1, u64::MAX)),
        |header| header.first_batch = 0,
        |header| header.first_batch = u64::MAX,
    ];
    for contradict in contradictions {
        let fs = log(2);
        let path = segments(&fs)[0].clone();
        fs.damage(&path, |file| {
            let mut header = SegmentHeader::decode(&file[..BLOCK_BYTES]).unwrap();
            contradict(&mut header);
            file[..BLOCK_BYTES].copy_from_slice(&header.encode());
        })
        .unwrap();
        let error = open(&fs).unwrap_err();
        assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
    }
}

#[test]
fn an_older_log_of_the_same_member_does_not_fit_in() {
    let other = MemFs::crashable();
    let options = WalOptions {
        salt_seed: 99,
        ..options()
    };
    let wal = Wal::open(Arc::new(other.clone()), dir(), options).unwrap();
    for index in 1..=30 {
        append(&wal, vec![entry(1, index, 50)]);
    }
    drop(wal);
    let fs = log(30);
    let paths = segments(&fs);
    let old = bytes_of(&other, &paths[1]);
    fs.damage(&paths[1], |file| *file = old).unwrap();
    let error = open(&fs).unwrap_err();
    assert!(error.to_string().contains("does not continue"), "{error}");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let fs = log(1);
    fs.damage(&segments(&fs)[0], |file| file[8] = 2).unwrap();
    let error = open(&fs).unwrap_err();
    assert!(
        matches!(
            error,
            WalError::NewerFormat {
                found: 2,
                supported: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn values_cannot_pose_as_records() {
    // A client reads another member's disk, say, and stores what a later batch looks like there.
    let foreign = log(9);
    let foreign = bytes_of(&foreign, &segments(&foreign)[0]);
    let options = WalOptions {
        salt_seed: 4711,
        ..options()
    };
    let fs = MemFs::crashable();
    let wal = Wal::open(Arc::new(fs.clone()), dir(), options.clone()).unwrap();
    append(&wal, vec![entry(1, 1, 10)]);
    // Every alignment is covered: headers and records begin at multiples of eight.
    let mut payload = Vec::new();
    for shift in (0..BLOCK_BYTES).step_by(8) {
        payload.extend_from_slice(&foreign[5 * BLOCK_BYTES..5 * BLOCK_BYTES + 256]);
        payload.resize(payload.len().next_multiple_of(BLOCK_BYTES) + shift, 0);
    }
    payload.resize(payload.len().next_multiple_of(BLOCK_BYTES) + 99, 1);
    let bait = Entry {
        payload: payload.into(),
        ..entry(1, 2, 0)
    };
    append(&wal, vec![bait.clone()]);
    wal.close().unwrap();
    let reopened = Wal::open(Arc::new(fs.clone()), dir(), options.clone()).unwrap();
    assert!(all(&reopened)[1] == bait);
    drop(reopened);
    // Its batch is torn: what is inside it must not count as a later batch.
    let path = segments(&fs).last().unwrap().clone();
    let torn = bytes_of(&fs, &path).len() - BLOCK_BYTES;
    fs.damage(&path, |file| file[torn..].fill(0)).unwrap();
    let reopened = Wal::open(Arc::new(fs), dir(), options).unwrap();
    assert_eq!(reopened.log_state().last, Some(id(1, 1)));
}

#[test]
fn damage_under_an_open_log_is_an_error_not_an_entry() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    append(&wal, entries(1, 1..=10, 2000));
    assert!(!wal.is_cached(1..2));
    let path = segments(&fs)[0].clone();
    fs.damage(&path, |file| file[BLOCK_BYTES + 300] ^= 1)
        .unwrap();
    let error = wal.read(1..3, usize::MAX).unwrap_err();
    assert!(
        matches!(&error, WalError::Corrupt { file, .. } if *file == path),
        "{error}"
    );
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidData);
    let cached = wal.read(10..11, usize::MAX).unwrap();
    assert_eq!(cached, [entry(1, 10, 2000)]);
}

#[test]
fn preparations_that_were_not_finished_are_removed() {
    let fs = log(2);
    let spare = dir().join("9.spare");
    fs.create(&spare, 0).unwrap();
    open(&fs).unwrap().close().unwrap();
    assert!(fs.open(&spare).is_err());
}
