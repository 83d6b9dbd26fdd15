//! Batches on the local disk, one file each, oldest first. A file comes to be as a whole, by a rename, and is
//! synced, so a crash leaves it out or has it. One user of a folder at a time, by a lock on a file.
//!
//! Nothing here is asynchronous: the agent calls it where blocking is allowed.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::batch::Batch;

/// The number of the first file of an empty spool: there is room before it.
const FIRST: u64 = 1 << 48;

const EXTENSION: &str = "batch";

/// A folder of batches.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    bytes_max: u64,
    bytes: u64,
    entries: VecDeque<Entry>,
    _lock: File,
}

/// One file.
#[derive(Debug, Clone, Copy)]
struct Entry {
    number: u64,
    bytes: u64,
}

/// What came of moving batches to the disk.
pub(super) struct Spilled {
    /// Lines that were dropped for want of room.
    pub(super) dropped: u64,
    /// Batches that the disk did not take, in their order.
    pub(super) left: VecDeque<Batch>,
    pub(super) outcome: io::Result<()>,
}

impl Spool {
    /// Opens the folder, and makes it if it is not there.
    ///
    /// # Errors
    /// The disk's; [`io::ErrorKind::WouldBlock`] when somebody else uses it.
    pub(super) fn open(folder: &Path, bytes_max: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lock = File::create(folder.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::Error::new(
                io::ErrorKind::WouldBlock,
                "another agent uses the folder of the spool",
            ),
        })?;
        let mut entries = Vec::new();
        for file in fs::read_dir(folder)? {
            let file = file?;
            let path = file.path();
            let is_batch = path.extension().is_some_and(|known| known == EXTENSION);
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let number = stem.and_then(|stem| u64::from_str_radix(stem, 16).ok());
            if let Some(number) = number.filter(|_| is_batch) {
                let bytes = file.metadata()?.len();
                entries.push(Entry { number, bytes });
            }
        }
        entries.sort_by_key(|entry| entry.number);
        Ok(Self {
            folder: folder.to_owned(),
            bytes_max,
            bytes: entries.iter().map(|entry| entry.bytes).sum(),
            entries: entries.into(),
            _lock: lock,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keeps a batch behind all others; gives it back when there is no room.
    ///
    /// # Errors
    /// The disk's; the batch is not kept then.
    pub(super) fn push(&mut self, batch: &Batch) -> io::Result<bool> {
        let number = self.entries.back().map_or(FIRST, |last| last.number + 1);
        let Some(entry) = self.write(number, batch)? else {
            return Ok(false);
        };
        self.entries.push_back(entry);
        Ok(true)
    }

    /// Keeps a batch before all others, whatever room there is.
    ///
    /// # Errors
    /// As [`Spool::push`].
    pub(super) fn push_front(&mut self, batch: &Batch) -> io::Result<()> {
        let number = self.entries.front().map_or(FIRST, |first| first.number - 1);
        let most = std::mem::replace(&mut self.bytes_max, u64::MAX);
        let written = self.write(number, batch);
        self.bytes_max = most;
        self.entries.extend(written?);
        self.entries.rotate_right(1);
        Ok(())
    }

    fn write(&mut self, number: u64, batch: &Batch) -> io::Result<Option<Entry>> {
        let text = serde_json::to_vec(batch).map_err(io::Error::other)?;
        let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        if self.bytes.saturating_add(bytes) > self.bytes_max {
            return Ok(None);
        }
        let fresh = self.folder.join("fresh");
        let mut file = File::create(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&fresh, self.path(number))?;
        File::open(&self.folder)?.sync_all()?;
        self.bytes += bytes;
        Ok(Some(Entry { number, bytes }))
    }

    /// A batch by its place, the oldest first; it stays until [`Spool::remove`]. One that is damaged is put aside
    /// under another name, and one whose file is gone is forgotten: see [`is_lost`].
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn read(&mut self, place: usize) -> io::Result<Option<Batch>> {
        let Some(entry) = self.entries.get(place).copied() else {
            return Ok(None);
        };
        let path = self.path(entry.number);
        let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        match read {
            Ok(batch) => Ok(Some(batch)),
            Err(error) => {
                if !is_lost(&error) {
                    return Err(error);
                }
                if error.kind() != io::ErrorKind::NotFound {
                    fs::rename(&path, path.with_extension("damaged"))?;
                }
                self.forget(place);
                Err(error)
            }
        }
    }

    /// Removes a batch by its place.
    ///
    /// # Errors
    /// The disk's; the batch is not given again then, but by a spool that is opened later.
    pub(super) fn remove(&mut self, place: usize) -> io::Result<()> {
        let Some(entry) = self.entries.get(place) else {
            return Ok(());
        };
        let removed = fs::remove_file(self.path(entry.number));
        self.forget(place);
        removed
    }

    fn forget(&mut self, place: usize) {
        if let Some(entry) = self.entries.remove(place) {
            self.bytes -= entry.bytes;
        }
    }

    /// Moves batches to the disk: `back` before all that is there, `over` behind it. Where there is no room, the oldest
    /// from the place `droppable` on make some.
    pub(super) fn spill(
        &mut self,
        back: Vec<Batch>,
        over: Vec<Batch>,
        droppable: Option<usize>,
    ) -> Spilled {
        let (mut back, mut over) = (VecDeque::from(back), VecDeque::from(over));
        let mut dropped = 0;
        let mut work = || -> io::Result<()> {
            while let Some(batch) = back.back() {
                self.push_front(batch)?;
                back.pop_back();
            }
            while let Some(batch) = over.front() {
                let mut kept = self.push(batch)?;
                while let Some(oldest) = droppable.filter(|at| !kept && *at < self.len()) {
                    match self.read(oldest) {
                        Ok(old) => {
                            dropped += old.map_or(0, |old| old.count());
                            self.remove(oldest)?;
                        }
                        Err(error) if is_lost(&error) => dropped += 1,
                        Err(error) => return Err(error),
                    }
                    kept = self.push(batch)?;
                }
                if !kept {
                    dropped += batch.count();
                }
                over.pop_front();
            }
            Ok(())
        };
        let outcome = work();
        back.append(&mut over);
        Spilled {
            dropped,
            left: back,
            outcome,
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:016x}.{EXTENSION}"))
    }
}

/// Whether a batch that failed to be read is not there any more, so that there is no use in reading it again.
pub(super) fn is_lost(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first: u64) -> Batch {
        Batch {
            source: "s".to_owned(),
            run: "r".to_owned(),
            first,
            lines: vec!["x".repeat(100)],
        }
    }

    #[test]
    fn batches_outlive_their_user_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        let mut spool = Spool::open(&path, 1 << 20).unwrap();
        for first in 1..4 {
            assert!(spool.push(&batch(first)).unwrap());
        }
        spool.push_front(&batch(0)).unwrap();
        let busy = Spool::open(&path, 1).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
        let bytes = spool.bytes();
        drop(spool);
        fs::write(path.join("fresh"), "{").unwrap();
        let mut spool = Spool::open(&path, 1 << 20).unwrap();
        assert_eq!(spool.bytes(), bytes);
        for first in 0..4 {
            assert_eq!(spool.read(0).unwrap(), Some(batch(first)));
            spool.remove(0).unwrap();
        }
        assert!(spool.is_empty() && spool.bytes() == 0);
        assert_eq!(spool.read(0).unwrap(), None);
    }

    #[test]
    fn a_full_spool_takes_nothing_and_damage_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path(), 400).unwrap();
        assert!(spool.push(&batch(0)).unwrap());
        assert!(spool.push(&batch(1)).unwrap());
        assert!(!spool.push(&batch(2)).unwrap());
        let first = spool.path(spool.entries[0].number);
        fs::write(&first, "{\"source\":").unwrap();
        let damaged = spool.read(0).unwrap_err();
        assert!(is_lost(&damaged), "{damaged}");
        assert_eq!(spool.read(0).unwrap(), Some(batch(1)));
        assert!(first.with_extension("damaged").exists());
        let gone = spool.path(spool.entries[0].number);
        fs::remove_file(&gone).unwrap();
        let gone = spool.read(0).unwrap_err();
        assert!(is_lost(&gone), "{gone}");
        assert!(spool.is_empty() && spool.bytes() == 0);
    }
}
