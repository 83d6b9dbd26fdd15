//! The writer: group commit, the order of callbacks, and failing for good.

use std::sync::Mutex;

use super::*;

/// What callbacks reported, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(usize, bool)>>>);

impl Log {
    fn note(&self, number: usize) -> FlushCallback {
        let log = Arc::clone(&self.0);
        Box::new(move |result| log.lock().unwrap().push((number, result.is_ok())))
    }

    fn seen(&self) -> Vec<(usize, bool)> {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn all_that_waits_shares_one_sync() {
    let fs = MemFs::new();
    let options = WalOptions {
        segment_bytes: 1 << 20,
        ..options()
    };
    let wal = Wal::open(Arc::new(fs.clone()), dir(), options).unwrap();
    let log = Log::default();
    let hold = fs.hold_syncs();
    wal.append(vec![entry(1, 1, 10)], log.note(0)).unwrap();
    hold.wait_for_sync();
    let before = fs.syncs();
    for number in 1..=500 {
        let index = number as u64 + 1;
        wal.append(vec![entry(1, index, 10)], log.note(number))
            .unwrap();
    }
    assert_eq!(log.seen(), [], "nothing is acknowledged before its sync");
    assert_eq!(*wal.flushed().borrow(), super::super::Position(0));
    let end = wal.position();
    drop(hold);
    wal.close().unwrap();
    assert_eq!(fs.syncs() - before, 2, "the held one, and one for the 500");
    let expected: Vec<_> = (0..=500).map(|number| (number, true)).collect();
    assert_eq!(log.seen(), expected, "in order");
    assert_eq!(*wal.flushed().borrow(), end);
}

#[test]
fn votes_and_entries_keep_their_order() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    let log = Log::default();
    let hold = fs.hold_syncs();
    for term in 1..=20 {
        let vote = Vote {
            term,
            node: term % 3,
            committed: false,
        };
        let number = usize::try_from(term).unwrap() * 2;
        wal.save_vote(vote, log.note(number)).unwrap();
        wal.append(vec![entry(term, term, 20)], log.note(number + 1))
            .unwrap();
    }
    drop(hold);
    drop(wal);
    assert_eq!(
        log.seen(),
        (2..=41).map(|number| (number, true)).collect::<Vec<_>>()
    );
    let wal = open(&fs).unwrap();
    assert_eq!(wal.vote().map(|vote| vote.term), Some(20));
    assert_eq!(wal.log_state().last, Some(id(20, 20)));
}

#[test]
fn the_committed_pointer_costs_no_sync() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    append(&wal, entries(1, 1..=3, 10));
    let (before, position) = (fs.syncs(), wal.position());
    for index in 1..=3 {
        assert_eq!(wal.save_committed(Some(id(1, index))).unwrap(), position);
    }
    append(&wal, vec![entry(1, 4, 10)]);
    assert_eq!(fs.syncs() - before, 1);
    let image = fs.power_cut(0, crate::storage::fs::Block::Page);
    assert_eq!(open(&image).unwrap().committed(), Some(id(1, 3)));
}

#[tokio::test]
async fn waiting_for_a_position_ends_with_its_sync_or_with_the_failure() {
    let fs = MemFs::new();
    let wal = open(&fs).unwrap();
    let hold = fs.hold_syncs();
    let first = wal.append(vec![entry(1, 1, 10)], ignore()).unwrap();
    let waiting = wal.wait_flushed(first);
    tokio::pin!(waiting);
    assert!(futures::poll!(&mut waiting).is_pending());
    drop(hold);
    waiting.await.unwrap();
    wal.wait_flushed(first).await.unwrap();

    fs.fail_sync(1);
    let second = wal.append(vec![entry(1, 2, 10)], ignore()).unwrap();
    assert!(second > first);
    let error = wal.wait_flushed(second).await.unwrap_err();
    assert!(matches!(error, WalError::Poisoned(_)));
    wal.wait_flushed(first).await.unwrap();
}

#[test]
fn a_failed_sync_poisons_for_ever() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    append(&wal, entries(1, 1..=3, 10));
    let log = Log::default();
    let hold = fs.hold_syncs();
    fs.fail_sync(1);
    wal.append(vec![entry(1, 4, 10)], log.note(4)).unwrap();
    hold.wait_for_sync();
    wal.append(vec![entry(1, 5, 10)], log.note(5)).unwrap();
    let syncs = fs.syncs();
    drop(hold);
    let error = wal.close().unwrap_err();
    assert!(matches!(error, WalError::Poisoned(_)));
    assert_eq!(log.seen(), [(4, false), (5, false)]);
    assert_eq!(fs.syncs(), syncs + 1, "a failed sync is not tried again");
    assert!(wal.failure().borrow().is_some());
    let refused = wal.append(vec![entry(1, 6, 10)], ignore());
    assert!(matches!(refused, Err(WalError::Poisoned(_))));

    // The next process may find entry 4, which the kernel still shows; if it says so, it must have
    // made it durable, though the pages passed for clean.
    drop(wal);
    let wal = open(&fs).unwrap();
    let found = all(&wal).len();
    assert!(found >= 3);
    for seed in 0..50 {
        let image = fs.power_cut(seed, crate::storage::fs::Block::Page);
        assert_eq!(all(&open(&image).unwrap()).len(), found, "seed {seed}");
    }
}

#[test]
fn a_full_disk_poisons_and_keeps_what_was_acknowledged() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    fs.set_capacity(Some(200 << 10));
    let mut acked = 0;
    let error = loop {
        match durably(|flushed| wal.append(vec![entry(1, acked + 1, 1000)], flushed)) {
            Ok(_) => acked += 1,
            Err(error) => break error,
        }
    };
    assert!(acked > 30);
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    drop(wal);
    fs.set_capacity(None);
    let wal = open(&fs).unwrap();
    let found = wal.log_state().last.unwrap().index;
    assert!(found >= acked, "{found} of {acked}");
    append(&wal, vec![entry(1, found + 1, 10)]);
}

#[test]
fn the_queue_is_bounded() {
    let fs = MemFs::new();
    let options = WalOptions {
        queue_bytes_max: 10_000,
        ..options()
    };
    let wal = Wal::open(Arc::new(fs.clone()), dir(), options).unwrap();
    let hold = fs.hold_syncs();
    let mut accepted = 0;
    let error = loop {
        match wal.append(vec![entry(1, accepted + 1, 1000)], ignore()) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(
            error,
            WalError::Full {
                bytes_max: 10_000,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(accepted, 9);
    assert_eq!(wal.log_state().last, Some(id(1, 9)));
    drop(hold);
    durably(|flushed| {
        wal.save_vote(
            Vote {
                term: 1,
                node: 1,
                committed: false,
            },
            flushed,
        )
    })
    .unwrap();
    append(&wal, vec![entry(1, 10, 1000)]);
}

#[test]
fn a_batch_larger_than_a_segment_fits() {
    let fs = MemFs::crashable();
    let wal = open(&fs).unwrap();
    append(&wal, vec![entry(1, 1, 100)]);
    append(&wal, vec![entry(1, 2, 500_000)]);
    append(&wal, vec![entry(1, 3, 100)]);
    drop(wal);
    let wal = open(&fs).unwrap();
    assert_eq!(
        all(&wal)
            .iter()
            .map(|entry| entry.payload.len())
            .sum::<usize>(),
        500_200
    );
}

#[test]
fn the_last_handle_may_be_dropped_in_a_callback() {
    let fs = MemFs::new();
    let wal = open(&fs).unwrap();
    let hold = fs.hold_syncs();
    let (done, flushed) = mpsc::channel();
    let clone = wal.clone();
    let callback = Box::new(move |_| {
        drop(clone);
        done.send(()).unwrap();
    });
    wal.append(vec![entry(1, 1, 10)], callback).unwrap();
    let drop_late = std::thread::spawn(move || drop(wal));
    drop(hold);
    flushed.recv().unwrap();
    drop_late.join().unwrap();
}
