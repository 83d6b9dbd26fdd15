//! One model test for both engines, and what only the engine on disk can show.

use super::*;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

type Model = BTreeMap<Bytes, Bytes>;

const SEED: u64 = 0x5eed;

fn disk(folder: &std::path::Path) -> FjallKv {
    let options = DiskOptions {
        memtable_bytes: 256 * 1024,
        ..DiskOptions::default()
    };
    if folder.join("version").exists() {
        FjallKv::open(folder, &options).unwrap()
    } else {
        FjallKv::create(folder, &options).unwrap()
    }
}

fn pairs(
    view: &dyn View,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
    way: Direction,
) -> Vec<(Bytes, Bytes)> {
    view.range(start, end, way).map(Result::unwrap).collect()
}

/// Bytes of the tables below `folder`. The journals, which stay for a while whatever is deleted, are
/// not counted.
fn tables(folder: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let bytes = entries.map(|entry| {
        if entry.file_type().unwrap().is_dir() {
            return tables(&entry.path());
        }
        let is_journal = entry.path().extension().is_some_and(|name| name == "jnl");
        if is_journal {
            0
        } else {
            entry.metadata().unwrap().len()
        }
    });
    bytes.sum()
}

fn everything(view: &dyn View) -> Vec<(Bytes, Bytes)> {
    pairs(view, Bound::Unbounded, Bound::Unbounded, Direction::Forward)
}

fn key(random: &mut StdRng) -> Bytes {
    let length = random.random_range(1..4);
    (0..length)
        .map(|_| [0u8, 1, b'a', 0xff][random.random_range(0..4)])
        .collect()
}

fn bound(random: &mut StdRng) -> Bound<Bytes> {
    match random.random_range(0..3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(key(random)),
        _ => Bound::Excluded(key(random)),
    }
}

fn batch(random: &mut StdRng, model: &mut Model) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for _ in 0..random.random_range(0..8) {
        let key = key(random);
        if random.random_bool(0.6) {
            let length = if random.random_bool(0.05) {
                20_000
            } else {
                random.random_range(0..30)
            };
            let value = Bytes::from(vec![random.random::<u8>(); length]);
            model.insert(key.clone(), value.clone());
            batch.put(key, value);
        } else {
            model.remove(&key);
            batch.delete(key);
        }
    }
    batch
}

fn compare(random: &mut StdRng, view: &dyn View, model: &Model) {
    let probe = key(random);
    assert_eq!(view.get(&probe).unwrap().as_ref(), model.get(&probe));
    let (start, end) = (bound(random), bound(random));
    let mut expected: Vec<_> = match bounds_cross(&start, &end) {
        true => Vec::new(),
        false => {
            let found = model.range((start.clone(), end.clone()));
            found
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        }
    };
    assert_eq!(
        pairs(view, start.clone(), end.clone(), Direction::Forward),
        expected
    );
    expected.reverse();
    assert_eq!(pairs(view, start, end, Direction::Reverse), expected);
}

/// Random batches against a `BTreeMap`; some views are kept and must go on showing their state.
fn run_model(kv: &dyn Kv, rounds: usize) -> Model {
    let mut random = StdRng::seed_from_u64(SEED);
    let mut model = Model::new();
    let mut kept: Vec<(Arc<dyn View>, Model)> = Vec::new();
    for round in 0..rounds {
        kv.commit(batch(&mut random, &mut model)).unwrap();
        if round % 50 == 0 {
            kv.persist().unwrap();
        }
        let view = kv.view();
        compare(&mut random, view.as_ref(), &model);
        if random.random_bool(0.1) {
            kept.push((view, model.clone()));
        }
        if kept.len() > 12 {
            kept.swap_remove(random.random_range(0..kept.len()));
        }
        if let Some((view, then)) = kept.first() {
            compare(&mut random, view.as_ref(), then);
        }
    }
    for (view, then) in &kept {
        assert!(everything(view.as_ref()).into_iter().eq(then.clone()));
    }
    model
}

#[test]
fn memory_engine_follows_the_model() {
    let kv = MemKv::new();
    let model = run_model(&kv, 3_000);
    let bytes: usize = model
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    assert_eq!(kv.disk_bytes(), bytes as u64);
}

#[test]
fn disk_engine_follows_the_model_and_reopens_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let kv = disk(folder.path());
    let model = run_model(&kv, 1_000);
    assert!(kv.disk_bytes() > 0);
    kv.persist().unwrap();
    drop(kv);
    let kv = disk(folder.path());
    assert!(everything(kv.view().as_ref()).into_iter().eq(model));
}

#[test]
fn the_size_on_disk_is_what_was_written_before_and_after_a_restart() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let kv = disk(folder.path());
    assert!(kv.disk_bytes() < MIB, "{} when empty", kv.disk_bytes());
    for n in 0..8 {
        let mut batch = WriteBatch::new();
        let mut random = StdRng::seed_from_u64(n);
        let mut value = vec![0; 1 << 20];
        random.fill(&mut value[..]);
        batch.put(format!("key {n}"), value);
        kv.commit(batch).unwrap();
    }
    kv.persist().unwrap();
    let before = kv.disk_bytes();
    assert!((8 * MIB..20 * MIB).contains(&before), "{before}");
    drop(kv);
    let after = disk(folder.path()).disk_bytes();
    assert!((8 * MIB..20 * MIB).contains(&after), "{after}");
}

#[test]
fn space_is_given_back_with_what_is_left_unharmed() {
    const KIB: usize = 1024;
    let folder = tempfile::tempdir().unwrap();
    let options = DiskOptions {
        memtable_bytes: 256 * 1024,
        ..DiskOptions::default()
    };
    let kv = FjallKv::create(folder.path(), &options).unwrap();
    let mut random = StdRng::seed_from_u64(11);
    let mut left = Vec::new();
    for round in 0..64_u32 {
        let mut batch = WriteBatch::new();
        for row in 0..16_u32 {
            let mut value = vec![0; 8 * KIB];
            random.fill(&mut value[..]);
            let key = Bytes::from(format!("{row:02}/{round:03}"));
            batch.put(key.clone(), value.clone());
            if row == 7 {
                left.push((key, Bytes::from(value)));
            }
        }
        kv.commit(batch).unwrap();
    }
    left.sort();
    let full = tables(folder.path());
    assert!(full > 6 << 20, "{full}");
    let before = kv.view();
    let all = everything(&*before);
    let mut batch = WriteBatch::new();
    for (key, _) in &all {
        if !key.starts_with(b"07/") {
            batch.delete(key.clone());
        }
    }
    kv.commit(batch).unwrap();
    kv.reclaim().unwrap();
    assert_eq!(everything(&*before), all, "a view keeps what it shows");
    assert_eq!(everything(&*kv.view()), left);
    drop(before);

    // Commits go on while space is given back.
    std::thread::scope(|scope| {
        let reclaiming = scope.spawn(|| kv.reclaim());
        let mut written = 0;
        while !reclaiming.is_finished() || written < 100 {
            let mut batch = WriteBatch::new();
            batch.put("during", written.to_string());
            kv.commit(batch).unwrap();
            written += 1;
        }
        reclaiming.join().unwrap().unwrap();
    });
    let mut batch = WriteBatch::new();
    batch.delete("during");
    kv.commit(batch).unwrap();
    kv.reclaim().unwrap();
    let after = tables(folder.path());
    drop(kv);
    let kv = FjallKv::open(folder.path(), &options).unwrap();
    assert_eq!(everything(&*kv.view()), left);
    // A sixteenth of 8 MiB is left.
    assert!(after < 1 << 20, "{full} before, {after} after");
}

#[test]
fn space_is_given_back_after_a_restart_too() {
    let folder = tempfile::tempdir().unwrap();
    let kv = disk(folder.path());
    let mut random = StdRng::seed_from_u64(1);
    for row in 0..64_u32 {
        let mut value = vec![0; 64 * 1024];
        random.fill(&mut value[..]);
        let mut batch = WriteBatch::new();
        batch.put(format!("{row:02}"), value);
        kv.commit(batch).unwrap();
    }
    drop(kv);
    let kv = disk(folder.path());
    let mut sizes = Vec::new();
    for _ in 0..6 {
        kv.reclaim().unwrap();
        sizes.push(tables(folder.path()));
    }
    // A merge that left its tables behind would add 4 MiB.
    assert!(sizes.iter().all(|bytes| *bytes < 5 << 20), "{sizes:?}");
}

fn long_and_bad_keys(kv: &dyn Kv) {
    let long = Bytes::from(vec![0xab; KEY_BYTES_MAX]);
    let mut batch = WriteBatch::new();
    batch.put(long.clone(), "at the limit");
    kv.commit(batch).unwrap();
    for bad in [Bytes::new(), Bytes::from(vec![0xab; KEY_BYTES_MAX + 1])] {
        let mut batch = WriteBatch::new();
        batch.delete(long.clone());
        batch.put(bad, "never");
        let refused = kv.commit(batch).unwrap_err();
        assert!(matches!(refused, KvError::KeyLength { .. }), "{refused}");
    }
    assert_eq!(kv.view().get(&long).unwrap().unwrap(), "at the limit");
    assert_eq!(everything(kv.view().as_ref()).len(), 1);
    let mut batch = WriteBatch::new();
    batch.put("b", "1");
    batch.put("a", "2");
    batch.delete("b");
    batch.put("a", "3");
    assert_eq!(batch.len(), 4);
    kv.commit(batch).expect("a refused batch does not poison");
    assert_eq!(kv.view().get(b"a").unwrap().unwrap(), "3");
    assert_eq!(kv.view().get(b"b").unwrap(), None);
}

#[test]
fn keys_up_to_the_limit_are_stored_and_others_refused_whole() {
    long_and_bad_keys(&MemKv::new());
    let folder = tempfile::tempdir().unwrap();
    long_and_bad_keys(&disk(folder.path()));
}

#[test]
fn create_and_open_do_not_stand_in_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let options = DiskOptions::default();
    assert!(matches!(
        FjallKv::open(folder, &options),
        Err(KvError::Open { .. })
    ));
    let kv = FjallKv::create(folder, &options).unwrap();
    assert!(
        matches!(FjallKv::open(folder, &options), Err(KvError::Open { .. })),
        "in use"
    );
    let view = kv.view();
    drop(kv);
    assert!(
        FjallKv::open(folder, &options).is_err(),
        "a view keeps the engine open"
    );
    drop(view);
    assert!(matches!(
        FjallKv::create(folder, &options),
        Err(KvError::Open { .. })
    ));
    FjallKv::open(folder, &options).unwrap();
}

#[test]
fn a_damaged_store_is_an_error_not_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let kv = disk(folder.path());
    let mut batch = WriteBatch::new();
    for number in 0..2_000u32 {
        batch.put(number.to_be_bytes().to_vec(), vec![7u8; 300]);
    }
    kv.commit(batch).unwrap();
    kv.persist().unwrap();
    drop(kv);
    std::fs::write(folder.path().join("version"), b"not ours").unwrap();
    let refused = FjallKv::open(folder.path(), &DiskOptions::default()).unwrap_err();
    assert!(matches!(refused, KvError::Open { .. }), "{refused}");
}

/// Files as a killed process leaves them: without a close, without a sync.
#[test]
fn a_killed_process_loses_no_committed_batch() {
    let folder = tempfile::tempdir().unwrap();
    let kv = FjallKv::create(folder.path(), &DiskOptions::default()).unwrap();
    for number in 0..50u8 {
        let mut batch = WriteBatch::new();
        batch.put(vec![1, number], vec![number; 5_000]);
        batch.put("applied", vec![number]);
        kv.commit(batch).unwrap();
    }
    let left = tempfile::tempdir().unwrap();
    copy(folder.path(), left.path());
    let copy = FjallKv::open(left.path(), &DiskOptions::default()).unwrap();
    assert_eq!(
        everything(copy.view().as_ref()),
        everything(kv.view().as_ref())
    );
    assert_eq!(copy.view().get(b"applied").unwrap().unwrap(), &[49][..]);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}
