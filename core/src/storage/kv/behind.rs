//! Does for the engine, on a thread behind its writes, what others would wait for when it does it all
//! at once. When a memtable is full it syncs, with its locks held, all of its journal that has gathered,
//! and frees the memtable entry by entry: every commit and every read would wait for that, tens of
//! milliseconds every few seconds. When a table is complete it syncs all of that: every log on the same
//! disk would. Used by `disk`.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::KvError;
use super::poison::Poison;

/// Written bytes after which the thread looks; far fewer than a memtable takes.
const LOOK_EVERY_BYTES: u64 = 1 << 20;

/// Pause between two looks whether a memtable that is held is let go by the engine.
const HELD_PAUSE: Duration = Duration::from_secs(1);

/// Pause between two looks at tables that grow.
const GROWING_PAUSE: Duration = Duration::from_millis(10);

/// Tables that may be growing, the newest: each of the engine's threads writes one.
const GROWING_MAX: usize = super::disk::WORKERS;

/// The engine's extension of journals; their names are numbers, the highest is written to.
const SUFFIX: &str = "jnl";

/// A memtable of the engine.
pub(super) type Memtable = Arc<dyn Any + Send + Sync>;

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Behind {
    /// Written since the thread was last told.
    written_bytes: AtomicU64,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Behind {
    /// Syncs the journals in `journals` and the tables in `tables`, and frees the memtables that `active`
    /// names in turn. A sync that fails poisons the engine: what it holds for written may never reach
    /// the disk.
    ///
    /// # Errors
    ///
    /// The system refuses a thread.
    pub(super) fn start(
        journals: PathBuf,
        tables: PathBuf,
        poison: Arc<Poison>,
        active: impl Fn() -> Memtable + Send + 'static,
    ) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("quorate-kv-sync".to_owned())
            .spawn(move || {
                let (mut held, mut growing) = (Held::default(), Growing::new(tables));
                let mut pause = None;
                while let Some(written) = wait(&woken, pause) {
                    let mut grew = false;
                    let synced = poison.guard(|| {
                        if written {
                            held.hold(active());
                            sync(&journals)?;
                        }
                        grew = growing.sync()?;
                        Ok(())
                    });
                    if synced.is_err() {
                        return;
                    }
                    held.free();
                    pause = if grew {
                        Some(GROWING_PAUSE)
                    } else {
                        held.is_any_old().then_some(HELD_PAUSE)
                    };
                }
            })?;
        Ok(Self {
            written_bytes: AtomicU64::new(0),
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    /// Notes that so many bytes were written, and wakes the thread when they have become many.
    pub(super) fn wrote(&self, bytes: u64) {
        let written = self.written_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if written >= LOOK_EVERY_BYTES
            && let Some(wake) = &self.wake
        {
            self.written_bytes.store(0, Ordering::Relaxed);
            // A full queue will be seen to after this write; a closed one means a poisoned engine.
            wake.try_send(()).ok();
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::warn!("the thread that syncs the key-value store's journal panicked");
        }
    }
}

/// Waits for writes, or for as long as `pause`. Returns whether there were any; `None` at the end.
fn wait(woken: &Receiver<()>, pause: Option<Duration>) -> Option<bool> {
    let Some(pause) = pause else {
        return woken.recv().ok().map(|()| true);
    };
    match woken.recv_timeout(pause) {
        Ok(()) => Some(true),
        Err(RecvTimeoutError::Timeout) => Some(false),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

/// Memtables, the active one last. As long as they are here, nobody else frees them.
#[derive(Default)]
struct Held(VecDeque<Memtable>);

impl Held {
    /// Whether there are others than the active one, which the engine may let go of.
    fn is_any_old(&self) -> bool {
        self.0.len() > 1
    }

    fn hold(&mut self, active: Memtable) {
        let last = self.0.back();
        if last.is_none_or(|last| !Arc::ptr_eq(last, &active)) {
            self.0.push_back(active);
        }
    }

    /// Frees what nobody else has any more.
    fn free(&mut self) {
        self.0.retain(|memtable| Arc::strong_count(memtable) > 1);
    }
}

/// The tables that the engine may be writing, and how much of them was there at the last look.
struct Growing {
    folder: PathBuf,
    bytes: BTreeMap<u64, u64>,
}

impl Growing {
    fn new(folder: PathBuf) -> Self {
        let bytes = BTreeMap::new();
        Self { folder, bytes }
    }

    /// Syncs those that have grown, and tells whether there were any. What cannot be looked at is left
    /// to the engine.
    fn sync(&mut self) -> Result<bool, KvError> {
        let mut grew = false;
        let before = std::mem::take(&mut self.bytes);
        for (number, path) in self.newest().unwrap_or_default() {
            let Ok(table) = File::open(&path) else {
                continue;
            };
            let bytes = table.metadata().map_or(0, |metadata| metadata.len());
            if before.get(&number).copied().unwrap_or(0) < bytes {
                synced(&path, table.sync_data())?;
                grew = true;
            }
            self.bytes.insert(number, bytes);
        }
        Ok(grew)
    }

    fn newest(&self) -> io::Result<BTreeMap<u64, PathBuf>> {
        let mut newest = BTreeMap::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let number = path.file_name().and_then(OsStr::to_str);
            if let Some(number) = number.and_then(|number| number.parse().ok()) {
                newest.insert(number, path);
            }
            if newest.len() > GROWING_MAX {
                newest.pop_first();
            }
        }
        Ok(newest)
    }
}

/// Syncs the journal that is written to. One that cannot be opened, as when it has just gone or for
/// want of file descriptors, is left to the engine, which syncs in its own time.
fn sync(folder: &Path) -> Result<(), KvError> {
    let opened = newest(folder).and_then(|newest| newest.map(File::open).transpose());
    match opened {
        Ok(None) => Ok(()),
        Ok(Some(journal)) => synced(folder, journal.sync_data()),
        Err(error) => {
            tracing::debug!(folder = %folder.display(), %error, "a journal was not synced early");
            Ok(())
        }
    }
}

fn synced(path: &Path, synced: io::Result<()>) -> Result<(), KvError> {
    synced.map_err(|error| KvError::Io {
        action: "sync what was written to",
        path: path.to_owned(),
        source: Arc::new(error),
    })
}

fn newest(folder: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(OsStr::to_str);
        let number = stem.and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension() == Some(OsStr::new(SUFFIX))) {
            newest = newest.max(Some((number, path)));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_of_the_highest_number_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let found = || newest(folder.path()).unwrap();
        assert_eq!(found(), None);
        for name in ["9.jnl", "10.jnl", "11.tmp", "x.jnl", "version"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(found(), Some(folder.path().join("10.jnl")));
        assert!(sync(folder.path()).is_ok());
    }

    #[test]
    fn tables_are_synced_while_they_grow_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let mut growing = Growing::new(folder.path().join("tables"));
        assert!(!growing.sync().unwrap(), "there is none");
        fs::create_dir(folder.path().join("tables")).unwrap();
        let write = |name: &str, bytes: usize| {
            fs::write(folder.path().join("tables").join(name), vec![0; bytes]).unwrap();
        };
        write("9", 0);
        write("tmp", 7);
        assert!(!growing.sync().unwrap(), "nothing was written to a table");
        for bytes in [1, 2] {
            write("9", bytes);
            assert!(growing.sync().unwrap());
            assert!(!growing.sync().unwrap());
        }
        for number in 10..10 + GROWING_MAX {
            write(&number.to_string(), 1);
        }
        assert!(growing.sync().unwrap());
        write("9", 3);
        assert!(!growing.sync().unwrap(), "newer ones are written");
        assert_eq!(growing.bytes.len(), GROWING_MAX);
    }

    #[test]
    fn a_memtable_is_held_until_the_engine_lets_go_of_it() {
        let (mut held, first) = (Held::default(), Arc::new(1));
        held.hold(Arc::clone(&first) as Memtable);
        held.hold(Arc::clone(&first) as Memtable);
        let second = Arc::new(2);
        held.hold(Arc::clone(&second) as Memtable);
        held.free();
        assert_eq!(held.0.len(), 2);
        let weak = Arc::downgrade(&first);
        drop(first);
        assert!(weak.upgrade().is_some(), "freed here, not there");
        held.free();
        assert!(weak.upgrade().is_none());
        assert_eq!(held.0.len(), 1);
    }

    #[test]
    fn what_cannot_be_opened_is_left_to_the_engine_and_a_failed_sync_is_not() {
        let poison = Arc::new(Poison::default());
        let active = || Arc::new(()) as Memtable;
        let nowhere = || PathBuf::from("/nowhere");
        let behind = Behind::start(nowhere(), nowhere(), Arc::clone(&poison), active);
        let behind = behind.unwrap();
        behind.wrote(LOOK_EVERY_BYTES);
        drop(behind);
        assert!(poison.check().is_ok());

        let failed = || synced(Path::new("/there"), Err(io::ErrorKind::Other.into()));
        poison.guard(failed).unwrap_err();
        let text = poison.check().unwrap_err().to_string();
        assert!(text.contains("sync what was written to /there"), "{text}");
    }

    #[test]
    fn the_thread_holds_the_memtable_it_is_told_of_and_ends_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let memtable: Memtable = Arc::new(());
        let (given, (told, asked)) = (Arc::clone(&memtable), sync_channel(8));
        let active = move || {
            told.send(()).unwrap();
            Arc::clone(&given)
        };
        let poison = Arc::new(Poison::default());
        let path = || folder.path().to_owned();
        let behind = Behind::start(path(), path(), poison, active).unwrap();
        behind.wrote(LOOK_EVERY_BYTES - 1);
        assert!(asked.try_recv().is_err(), "not much was written yet");
        behind.wrote(1);
        asked.recv_timeout(Duration::from_secs(10)).unwrap();
        drop(behind);
        assert_eq!(Arc::strong_count(&memtable), 1);
    }
}
