//! The damage matrix: whatever happens to a closed log, it opens complete, is refused, or has lost
//! nothing but its very last batch, and that only if the last batch itself was damaged.

use super::{
    model::{Model, Random, feed, trace},
    *,
};
use crate::storage::wal::format::BLOCK_BYTES;

/// A closed log of several segments: its files, what it holds, what it held before the last batch.
struct Subject {
    files: Vec<(PathBuf, Vec<u8>)>,
    complete: Model,
    without_last: Model,
    /// Where the last batch begins in the last file.
    last_batch: usize,
}

fn subject(seed: u64) -> Subject {
    let (steps, _) = trace(seed, 60);
    let fs = MemFs::crashable();
    let wal = open_inline(&fs).unwrap();
    for step in &steps {
        feed(&wal, step, ignore());
    }
    // Written by now whatever the trace ends with.
    wal.save_vote(
        Vote {
            term: 500,
            node: 1,
            committed: false,
        },
        ignore(),
    )
    .unwrap();
    let without_last = Model::of(&wal);
    let last_batch = bytes_of(&fs, segments(&fs).last().unwrap()).len();
    let next = without_last.last.map_or(1, |last| last.index + 1);
    wal.append(entries(900, next..=next + 3, 700), ignore())
        .unwrap();
    let complete = Model::of(&wal);
    wal.close().unwrap();
    let paths = segments(&fs);
    let files: Vec<_> = paths
        .into_iter()
        .map(|path| (path.clone(), bytes_of(&fs, &path)))
        .collect();
    let rolled = files.last().unwrap().1.len() <= last_batch;
    Subject {
        files,
        complete,
        without_last,
        last_batch: if rolled { BLOCK_BYTES } else { last_batch },
    }
}

/// What was damaged: a file, and the bytes in it.
struct Damage {
    file: usize,
    from: usize,
    to: usize,
    what: &'static str,
}

fn damage(files: &mut [(PathBuf, Vec<u8>)], random: &mut Random) -> Damage {
    let file = random.index(files.len());
    let length = files[file].1.len();
    let size = [512, BLOCK_BYTES][random.index(2)];
    let from = random.index(length / size) * size;
    let to = from + size;
    let what = match random.below(4) {
        0 => {
            let at = random.index(length);
            files[file].1[at] ^= 1 << random.below(8);
            return Damage {
                file,
                from: at,
                to: at + 1,
                what: "bit flip",
            };
        }
        1 => {
            files[file].1[from..to].fill(0);
            "zeroed"
        }
        2 => {
            for byte in &mut files[file].1[from..to] {
                *byte = u8::try_from(random.below(256)).unwrap();
            }
            "random"
        }
        _ => {
            let source = random.index(files.len());
            let at = random.index(files[source].1.len() / size) * size;
            let block = files[source].1[at..at + size].to_vec();
            files[file].1[from..to].copy_from_slice(&block);
            "misdirected"
        }
    };
    Damage {
        file,
        from,
        to,
        what,
    }
}

fn image(files: &[(PathBuf, Vec<u8>)]) -> MemFs {
    let fs = MemFs::new();
    for (path, bytes) in files {
        fs.create(path, 0).unwrap().write_at(0, bytes).unwrap();
    }
    fs
}

#[test]
fn damage_never_loses_acknowledged_records_silently() {
    let (mut refused, mut harmless, mut cut) = (0, 0, 0);
    for seed in 0..12 {
        let subject = subject(seed);
        let mut random = Random(seed);
        for case in 0..400 {
            let mut files = subject.files.clone();
            let damage = damage(&mut files, &mut random);
            let wal = match open_inline(&image(&files)) {
                Ok(wal) => wal,
                Err(error) => {
                    assert!(error.is_damage() || matches!(error, WalError::NewerFormat { .. }));
                    refused += 1;
                    continue;
                }
            };
            let found = Model::of(&wal);
            if found == subject.complete {
                harmless += 1;
                continue;
            }
            let Damage {
                file,
                from,
                to,
                what,
            } = damage;
            let place = format!("trace {seed} case {case}: {what} {file}:{from}..{to}");
            assert_eq!(found, subject.without_last, "{place}");
            let last = files.len() - 1;
            assert!(
                file == last && to > subject.last_batch,
                "silent loss: {place}"
            );
            cut += 1;
        }
    }
    assert!(
        refused > 1000 && harmless > 100 && cut > 10,
        "{refused} {harmless} {cut}"
    );
}
