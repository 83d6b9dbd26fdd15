//! Both file systems keep the same contract; the one in memory also simulates honestly.

use std::{io::ErrorKind, path::Path};

use super::{Block, Fs, MemFs, RealFs};

fn keeps_the_contract(fs: &dyn Fs, dir: &Path) {
    fs.create_dir(dir).unwrap();
    fs.create_dir(dir).unwrap();
    let (a, b) = (dir.join("a"), dir.join("b"));
    let file = fs.create(&a, 0).unwrap();
    assert_eq!(
        fs.create(&a, 0).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    file.write_at(10, b"hello").unwrap();
    file.sync_data().unwrap();
    assert_eq!(file.len().unwrap(), 15);
    let mut buffer = [9; 8];
    assert_eq!(file.read_at(8, &mut buffer).unwrap(), 7, "up to the end");
    assert_eq!(&buffer, b"\0\0hello\x09");
    assert_eq!(file.read_at(99, &mut buffer).unwrap(), 0);

    fs.create(&b, 0).unwrap().write_at(0, b"old").unwrap();
    fs.rename(&a, &b).unwrap();
    fs.sync_dir(dir).unwrap();
    assert_eq!(fs.list(dir).unwrap(), ["b"]);
    assert_eq!(fs.open(&a).unwrap_err().kind(), ErrorKind::NotFound);
    let again = fs.open(&b).unwrap();
    again.set_len(12).unwrap();
    assert_eq!(file.len().unwrap(), 12, "the same file");
    fs.remove(&b).unwrap();
    assert_eq!(fs.remove(&b).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        file.read_at(10, &mut buffer).unwrap(),
        2,
        "open handles go on"
    );

    let lock = fs.lock_dir(dir).unwrap();
    assert_eq!(fs.lock_dir(dir).unwrap_err().kind(), ErrorKind::WouldBlock);
    drop(lock);
    fs.lock_dir(dir).unwrap();
}

#[test]
fn a_disk_and_memory_keep_one_contract() {
    let home = tempfile::tempdir().unwrap();
    keeps_the_contract(&RealFs, &home.path().join("x/y"));
    keeps_the_contract(&MemFs::new(), Path::new("/x/y"));
    keeps_the_contract(&MemFs::crashable(), Path::new("/x/y"));
}

#[test]
fn preallocated_files_have_their_length() {
    let home = tempfile::tempdir().unwrap();
    let file = RealFs
        .create(&home.path().join("a"), (2 << 20) + 5)
        .unwrap();
    assert_eq!(file.len().unwrap(), (2 << 20) + 5);
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_parts_of_the_rest() {
    let dir = Path::new("/d");
    let path = dir.join("a");
    let fs = MemFs::crashable();
    let file = fs.create(&path, 0).unwrap();
    file.write_at(0, &[1; 4096]).unwrap();
    file.sync_data().unwrap();
    assert!((0..50).any(|seed| fs.power_cut(seed, Block::Page).open(&path).is_err()));
    fs.sync_dir(dir).unwrap();
    file.write_at(0, &[2; 3 * 4096]).unwrap();
    let mut kept = std::collections::BTreeSet::new();
    for seed in 0..300 {
        let file = fs.power_cut(seed, Block::Page).open(&path).unwrap();
        let mut bytes = vec![0; 3 * 4096];
        file.read_at(0, &mut bytes).unwrap();
        let pages = [bytes[0], bytes[4096], bytes[8192]];
        assert!(
            bytes[..4096].iter().all(|byte| *byte == pages[0]),
            "pages are whole"
        );
        assert!(pages[0] != 0, "the synced page is there, new or old");
        kept.insert(pages);
    }
    assert_eq!(kept.len(), 8, "every subset of the three pages: {kept:?}");
    file.sync_data().unwrap();
    let synced = fs.power_cut(1, Block::Sector).open(&path).unwrap();
    assert_eq!(synced.len().unwrap(), 3 * 4096);
}

#[test]
fn a_failed_sync_is_never_made_good_by_a_later_one() {
    let dir = Path::new("/d");
    let path = dir.join("a");
    let fs = MemFs::crashable();
    let file = fs.create(&path, 0).unwrap();
    fs.sync_dir(dir).unwrap();
    file.write_at(0, b"lost").unwrap();
    fs.fail_sync(1);
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    assert_eq!(file.len().unwrap(), 4, "still readable");
    let empty = |seed| {
        fs.power_cut(seed, Block::Page)
            .open(&path)
            .unwrap()
            .is_empty()
            .unwrap()
    };
    assert!((0..50).any(empty));
}

#[test]
fn a_full_disk_takes_no_more() {
    let fs = MemFs::new();
    fs.set_capacity(Some(100));
    let file = fs.create(Path::new("/d/a"), 0).unwrap();
    file.write_at(0, &[1; 80]).unwrap();
    let error = file.write_at(80, &[1; 21]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    file.write_at(70, &[2; 30]).unwrap();
}
