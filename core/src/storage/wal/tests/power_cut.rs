//! Power cuts after every change a trace makes on disk, with random parts of what was not synced.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::{
    model::{Model, Random, feed, trace},
    *,
};
use crate::storage::fs::Block;

/// Images to take of each state of the disk.
const IMAGES: u64 = 20;

/// Runs a trace in groups that share a sync, cuts the power at every change of the disk, and gives
/// each image to `check`, with the number of changes that were acknowledged before.
fn cut_everywhere(seed: u64, check: impl Fn(&MemFs, usize, &[Model]) + Send + Sync + 'static) {
    let (steps, models) = trace(seed, 60);
    let fs = MemFs::crashable();
    let acked = Arc::new(AtomicUsize::new(0));
    let hook = {
        let (acked, models) = (Arc::clone(&acked), models);
        let (fs, dice) = (fs.clone(), Mutex::new(Random(seed)));
        move || {
            let acked = acked.load(Ordering::SeqCst);
            for image in 0..IMAGES {
                let seed = dice.lock().unwrap().below(1 << 40);
                let block = if image % 2 == 0 {
                    Block::Page
                } else {
                    Block::Sector
                };
                check(&fs.power_cut(seed, block), acked, &models);
            }
        }
    };
    fs.on_change(hook);
    let wal = open(&fs).unwrap();
    let mut random = Random(seed ^ 0xff);
    let mut number = 0;
    while number < steps.len() {
        let hold = fs.hold_syncs();
        for _ in 0..=random.below(4) {
            let Some(step) = steps.get(number) else { break };
            number += 1;
            let (acked, number) = (Arc::clone(&acked), number);
            let on_flushed = move |result: std::io::Result<()>| {
                result.unwrap();
                acked.fetch_max(number, Ordering::SeqCst);
            };
            feed(&wal, step, Box::new(on_flushed));
        }
        drop(hold);
        let flushed = wal.position();
        while *wal.flushed().borrow() < flushed {
            std::thread::yield_now();
        }
    }
    let closed = wal.close();
    fs.on_change(|| {});
    closed.unwrap();
}

#[test]
fn a_power_cut_loses_nothing_acknowledged_and_is_never_refused() {
    let states = Arc::new(AtomicUsize::new(0));
    let torn = Arc::new(AtomicUsize::new(0));
    for seed in 0..4 {
        let (states, torn) = (Arc::clone(&states), Arc::clone(&torn));
        cut_everywhere(seed, move |image, acked, models| {
            let state = states.fetch_add(1, Ordering::Relaxed);
            let wal =
                open_inline(image).unwrap_or_else(|error| panic!("refused, trace {seed}: {error}"));
            let found = Model::of(&wal);
            let at = models.iter().rposition(|model| *model == found);
            let at = at.unwrap_or_else(|| panic!("no prefix, trace {seed}: {found:?}"));
            assert!(
                at >= acked,
                "trace {seed}: {acked} acknowledged, found {at}"
            );
            torn.fetch_add(usize::from(at > acked), Ordering::Relaxed);
            // What opening reports must itself survive the next power cut, and be appendable.
            if state % 4 == 0 {
                let again = image.power_cut(state as u64, Block::Sector);
                drop(wal);
                let wal = open_inline(&again).unwrap();
                assert_eq!(Model::of(&wal), found, "trace {seed}, cut again");
                let index = found.last.map_or(1, |last| last.index + 1);
                append(&wal, vec![entry(1000, index, 5000)]);
                drop(wal);
                let wal = open_inline(&again).unwrap();
                assert_eq!(all(&wal).last(), Some(&entry(1000, index, 5000)));
            }
        });
    }
    let states = states.load(Ordering::Relaxed);
    assert!(states >= 10_000, "{states} states");
    assert!(
        torn.load(Ordering::Relaxed) > 100,
        "unsynced changes must sometimes survive"
    );
}
