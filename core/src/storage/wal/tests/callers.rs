//! What callers see: reading, the ends of the log, refusals, and all of it again after reopening.

use super::*;

#[test]
fn what_was_appended_is_read_and_survives_reopening() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    let mut expected = entries(1, 0..=9, 100);
    expected[0].kind = EntryKind::Membership;
    expected[1].kind = EntryKind::Blank;
    expected.extend(entries(2, 10..=40, 1000));
    wal.append(expected.clone(), ignore()).unwrap();
    assert_eq!(all(&wal), expected, "readable before it is durable");
    let vote = Vote {
        term: 2,
        node: 3,
        committed: true,
    };
    durably(|flushed| wal.save_vote(vote, flushed)).unwrap();
    wal.save_committed(Some(id(2, 12))).unwrap();
    assert_eq!(all(&wal), expected, "from disk, where the cache ends");
    wal.close().unwrap();
    assert!(matches!(
        wal.save_vote(vote, ignore()),
        Err(WalError::Closed)
    ));

    let wal = open(&fs).unwrap();
    assert_eq!(all(&wal), expected);
    assert_eq!(wal.vote(), Some(vote));
    assert_eq!(wal.committed(), Some(id(2, 12)));
    assert_eq!(wal.log_state().last, Some(id(2, 40)));
    assert_eq!(wal.entry_id(9), Some(id(1, 9)));
    assert_eq!(wal.entry_id(10), Some(id(2, 10)));
    assert_eq!(wal.entry_id(41), None);
}

#[test]
fn reads_are_bounded_in_bytes_and_by_what_exists() {
    let fs = MemFs::new();
    let wal = open(&fs).unwrap();
    append(&wal, entries(1, 5..=60, 1000));
    assert!(!wal.is_cached(5..6), "56 kB do not fit 4 KiB");
    assert!(wal.is_cached(60..61));
    for from in [5, 20, 58] {
        let found = wal.read(from..61, 2500).unwrap();
        assert_eq!(found, entries(1, from..=from + 1, 1000), "from {from}");
        let found = wal.read(from..from + 1, 0).unwrap();
        assert_eq!(found.len(), 1, "at least one entry");
    }
    assert_eq!(
        wal.read(50..61, usize::MAX).unwrap(),
        entries(1, 50..=60, 1000)
    );
    assert_eq!(wal.read(0..7, usize::MAX).unwrap(), entries(1, 5..=6, 1000));
    assert_eq!(wal.read(60..99, usize::MAX).unwrap().len(), 1);
    assert!(wal.read(61..99, usize::MAX).unwrap().is_empty());
    assert!(wal.read(9..9, usize::MAX).unwrap().is_empty());
}

#[test]
fn truncating_then_appending_replaces_entries() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    append(&wal, entries(1, 1..=30, 700));
    wal.truncate_after(Some(id(1, 12)), ignore()).unwrap();
    assert_eq!(wal.log_state().last, Some(id(1, 12)));
    wal.append(entries(3, 13..=20, 700), ignore()).unwrap();
    wal.truncate_after(Some(id(3, 15)), ignore()).unwrap();
    append(&wal, entries(4, 16..=50, 700));
    let mut expected = entries(1, 1..=12, 700);
    expected.extend(entries(3, 13..=15, 700));
    expected.extend(entries(4, 16..=50, 700));
    assert_eq!(all(&wal), expected);
    assert_eq!(wal.entry_id(14), Some(id(3, 14)));
    drop(wal);
    let wal = open(&fs).unwrap();
    assert_eq!(all(&wal), expected);
    durably(|flushed| wal.truncate_after(None, flushed)).unwrap();
    assert_eq!(wal.log_state().last, None);
    append(&wal, entries(5, 0..=3, 10));
    drop(wal);
    assert_eq!(all(&open(&fs).unwrap()), entries(5, 0..=3, 10));
}

#[test]
fn purging_removes_segments_and_survives_reopening() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    for index in 1..=60 {
        append(&wal, vec![entry(1, index, 1000)]);
    }
    let before = segments(&fs).len();
    assert!(before > 5, "{before}");
    let bytes = wal.disk_bytes();
    let vote = Vote {
        term: 1,
        node: 9,
        committed: false,
    };
    wal.save_vote(vote, ignore()).unwrap();
    wal.purge(id(1, 40)).unwrap();
    append(&wal, vec![entry(1, 61, 10)]);
    assert!(wal.disk_bytes() < bytes);
    assert_eq!(wal.log_state().purged, Some(id(1, 40)));
    assert_eq!(all(&wal)[0].id.index, 41);
    wal.purge(id(1, 20)).unwrap();
    assert_eq!(wal.log_state().purged, Some(id(1, 40)), "never backwards");
    wal.close().unwrap();
    assert!(segments(&fs).len() < before - 3);

    let wal = open(&fs).unwrap();
    assert_eq!(wal.log_state().purged, Some(id(1, 40)));
    assert_eq!(wal.entry_id(40), Some(id(1, 40)));
    assert_eq!(wal.vote(), Some(vote));
    assert_eq!(all(&wal).len(), 21);
    wal.purge(id(2, 100)).unwrap();
    assert_eq!(wal.log_state().last, Some(id(2, 100)));
    append(&wal, vec![entry(2, 101, 10)]);
    drop(wal);
    let wal = open(&fs).unwrap();
    assert_eq!(all(&wal), vec![entry(2, 101, 10)]);
    assert_eq!(
        segments(&fs).len(),
        1,
        "only the active one has live entries"
    );
}

#[test]
fn resetting_discards_everything_but_the_vote() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    append(&wal, entries(1, 1..=50, 1000));
    append(&wal, entries(2, 51..=90, 1000));
    let vote = Vote {
        term: 8,
        node: 1,
        committed: true,
    };
    wal.save_vote(vote, ignore()).unwrap();
    // Behind the end, and with another term than the log has there.
    durably(|flushed| wal.reset_to(id(7, 60), flushed)).unwrap();
    assert!(all(&wal).is_empty());
    wal.close().unwrap();
    assert_eq!(segments(&fs).len(), 1);
    let wal = open(&fs).unwrap();
    let state = wal.log_state();
    assert_eq!(
        (state.purged, state.last),
        (Some(id(7, 60)), Some(id(7, 60)))
    );
    assert_eq!(wal.committed(), Some(id(7, 60)));
    assert_eq!(wal.vote(), Some(vote));
    append(&wal, vec![entry(8, 61, 5)]);
}

#[test]
fn contradictions_are_refused_and_change_nothing() {
    let wal = open(&MemFs::new()).unwrap();
    append(&wal, entries(2, 1..=5, 10));
    let gap = wal.append(vec![entry(2, 6, 1), entry(2, 8, 1)], ignore());
    assert!(matches!(gap, Err(WalError::Invalid(_))));
    let older = wal.append(vec![entry(1, 6, 1)], ignore());
    assert!(matches!(older, Err(WalError::Invalid(_))));
    let unknown = wal.truncate_after(Some(id(1, 3)), ignore());
    assert!(matches!(unknown, Err(WalError::Invalid(_))));
    assert!(matches!(wal.purge(id(3, 3)), Err(WalError::Invalid(_))));
    assert_eq!(all(&wal), entries(2, 1..=5, 10));
    append(&wal, vec![entry(2, 6, 1)]);
}

#[test]
fn a_log_is_open_once_and_for_its_owner_only() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    assert!(matches!(open(&fs), Err(WalError::Locked { .. })));
    drop(wal);
    for identity in [
        Identity {
            cluster_id: 8,
            ..IDENTITY
        },
        Identity {
            member_id: 4,
            ..IDENTITY
        },
    ] {
        let options = WalOptions {
            identity,
            ..options()
        };
        let error = Wal::open(Arc::new(fs.clone()), dir(), options).unwrap_err();
        assert!(
            matches!(
                error,
                WalError::WrongIdentity {
                    found: IDENTITY,
                    ..
                }
            ),
            "{error}"
        );
    }
    open(&fs).unwrap();
}

#[test]
fn a_real_disk_keeps_it_too() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("member/wal");
    let fs: Arc<dyn Fs> = Arc::new(crate::storage::fs::RealFs);
    let options = WalOptions {
        segment_bytes: 256 << 10,
        ..options()
    };
    let wal = Wal::open(Arc::clone(&fs), &dir, options.clone()).unwrap();
    let locked = Wal::open(Arc::clone(&fs), &dir, options.clone());
    assert!(matches!(locked, Err(WalError::Locked { .. })));
    for index in 1..=300 {
        append(&wal, vec![entry(1, index, 3000)]);
    }
    wal.purge(id(1, 100)).unwrap();
    append(&wal, vec![entry(1, 301, 1 << 20)]);
    let disk_bytes = wal.disk_bytes();
    wal.close().unwrap();
    let files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap())
        .collect();
    let on_disk: u64 = files
        .iter()
        .map(|file| file.metadata().unwrap().len())
        .sum();
    assert_eq!(disk_bytes, on_disk, "{files:?}");

    let wal = Wal::open(Arc::clone(&fs), &dir, options.clone()).unwrap();
    let mut expected = entries(1, 101..=300, 3000);
    expected.push(entry(1, 301, 1 << 20));
    assert_eq!(all(&wal), expected);
    drop(wal);

    // A file that is shorter than it was created lost its end.
    let last = files
        .iter()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some());
    let last = last.max().unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
    file.set_len(100 << 10).unwrap();
    let error = Wal::open(fs, &dir, options).unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains("was cut to"),
        "{error}"
    );
}
