//! The engine on disk. The only file that names fjall.
//!
//! One keyspace holds everything: with several, one damaged journal block left them at different
//! batches. fjall replays its journals when it opens, so they and the memtable are kept small.

use std::any::Any;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot,
};
use rustix::process::{Pid, setpriority_process};

use super::behind::{Behind, Memtable};
use super::poison::Poison;
use super::{Direction, Kv, KvError, Pairs, View, WriteBatch, bounds_cross};

/// Name of the one keyspace.
const KEYSPACE: &str = "state";

/// Folder of a keyspace that has its tables.
const TABLES: &str = "tables";

/// File that fjall writes last when it creates a store.
const MARKER: &str = "version";

/// Sealed memtables at which a commit waits for the flusher; at 4 fjall itself would wait inside
/// the commit, and for ever if its flusher has died.
const SEALED_MEMTABLES_MAX: usize = 3;

/// Unmerged tables at which a commit waits for the compactor (fjall: 30 runs).
const UNMERGED_TABLES_MAX: usize = 28;

/// Tables kept open at once; a program that bounds its connections leaves room for them.
const CACHED_FILES_MAX: usize = 256;

/// Threads that flush and compact. With two, both were often busy with long compactions while full
/// memtables waited to be flushed and commits waited for that.
pub(super) const WORKERS: usize = 4;

/// The name of these threads.
const WORKER_NAME: &str = "fjall:worker";

/// How much the engine's threads give way to those that clients wait for: where both want a core, they
/// get a quarter of it. Not less: they hold locks that commits wait for.
const WORKER_NICE: i32 = 5;

/// A key that is never stored: no table of the state begins so.
const NEVER_THERE: &[u8] = b"\xff nothing";

/// Free space that is left to flushes while space is given back.
const FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;

/// What a file's allocation is counted in, whatever the file system's own blocks are.
const BLOCK_BYTES: u64 = 512;

/// Pause between two looks at a flusher that is behind.
const STALL_PAUSE: Duration = Duration::from_millis(5);

/// Looks after which a flusher counts as dead: one minute.
const STALL_PAUSES_MAX: u32 = 12_000;

/// Sizes of a [`FjallKv`].
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// Memtable in bytes, default 16 MiB. A larger one means fewer, larger flushes, and a longer
    /// replay on open.
    pub memtable_bytes: u64,
    /// Journals on disk in bytes, default and minimum 64 MiB. Opening reads all of them.
    pub journal_bytes: u64,
    /// Cache of decoded blocks in bytes, default 64 MiB.
    pub cache_bytes: u64,
}

impl DiskOptions {
    /// The defaults, a little different for each member: commits wait for parts of a flush, and the
    /// members of a cluster, which have the same to flush, should not wait all at once.
    #[must_use]
    pub fn of_member(id: u64) -> DiskOptions {
        let defaults = DiskOptions::default();
        let more = id % (defaults.memtable_bytes / 3);
        DiskOptions {
            memtable_bytes: defaults.memtable_bytes + more,
            ..defaults
        }
    }
}

impl Default for DiskOptions {
    fn default() -> DiskOptions {
        const MIB: u64 = 1024 * 1024;
        DiskOptions {
            memtable_bytes: 16 * MIB,
            journal_bytes: 64 * MIB,
            cache_bytes: 64 * MIB,
        }
    }
}

/// A [`Kv`] on disk, in one folder of its own.
pub struct FjallKv {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    database: Database,
    keyspace: Keyspace,
    poison: Arc<Poison>,
    behind: Behind,
    /// Merges of all tables under way. Other merges wait for them, so that a long row of unmerged
    /// tables says nothing about the engine's health meanwhile.
    full_merges: AtomicUsize,
}

impl FjallKv {
    /// Creates a store in `folder`, which must not hold one yet, and syncs it.
    ///
    /// # Errors
    ///
    /// [`KvError::Open`] if there is one already, or it cannot be written.
    pub fn create(folder: &Path, options: &DiskOptions) -> Result<FjallKv, KvError> {
        if folder.join(MARKER).exists() {
            return Err(open_error(folder, "holds a store already"));
        }
        let kv = Self::open_or_create(folder, options)?;
        kv.persist()?;
        Ok(kv)
    }

    /// Opens the store in `folder` as its last run left it: a prefix of the committed batches.
    /// Which prefix is for the caller to find out, from the applied log id stored in it.
    ///
    /// # Errors
    ///
    /// [`KvError::Open`] if there is none, another process has it, or it does not hold together.
    pub fn open(folder: &Path, options: &DiskOptions) -> Result<FjallKv, KvError> {
        if !folder.join(MARKER).exists() {
            return Err(open_error(
                folder,
                "holds no store, although it should: the state was removed or damaged. Put the \
                 folder back, or replace the member: remove its data folder and add it as a new one",
            ));
        }
        Self::open_or_create(folder, options)
    }

    /// Refuses a folder that holds a store with anything in it.
    ///
    /// # Errors
    ///
    /// [`KvError::Open`] if it does, or if that cannot be told.
    pub fn expect_empty(folder: &Path, options: &DiskOptions) -> Result<(), KvError> {
        if !folder.join(MARKER).exists() {
            return Ok(());
        }
        let kv = Self::open_or_create(folder, options)?;
        let first = || kv.inner.keyspace.first_key_value();
        match catch_unwind(AssertUnwindSafe(first)) {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => {}
            Err(panic) => return Err(open_error(folder, &panic_text(panic.as_ref()))),
        }
        Err(open_error(
            folder,
            "holds a state, but the file CURRENT, which names the state in use, is missing. Put the \
             file back: its only line is the name of the folder in use",
        ))
    }

    fn open_or_create(folder: &Path, options: &DiskOptions) -> Result<FjallKv, KvError> {
        let opened = catch_unwind(AssertUnwindSafe(|| -> Result<FjallKv, fjall::Error> {
            let database = Database::builder(folder)
                .cache_size(options.cache_bytes)
                .max_journaling_size(options.journal_bytes.max(64 * 1024 * 1024))
                .worker_threads(WORKERS)
                .max_cached_files(Some(CACHED_FILES_MAX))
                .open()?;
            let keyspace = database.keyspace(KEYSPACE, || {
                KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes)
            })?;
            let poison = Arc::new(Poison::default());
            let of = keyspace.clone();
            // By the first look its threads are there, and named.
            let give_way = Once::new();
            let active = move || {
                give_way.call_once(give_way_to_others);
                of.tree.active_memtable() as Memtable
            };
            let tables = keyspace.path().join(TABLES);
            let behind = Behind::start(folder.to_owned(), tables, Arc::clone(&poison), active)?;
            let inner = Arc::new(Inner {
                folder: folder.to_owned(),
                database,
                keyspace,
                poison,
                behind,
                full_merges: AtomicUsize::new(0),
            });
            Ok(FjallKv { inner })
        }));
        let kv = match opened {
            Ok(Ok(kv)) => kv,
            Ok(Err(error)) => return Err(open_error(folder, &error.to_string())),
            Err(panic) => return Err(open_error(folder, &panic_text(panic.as_ref()))),
        };
        kv.verify().map_err(|cause| open_error(folder, &cause))?;
        Ok(kv)
    }

    /// Looks whether what was opened can be ours.
    fn verify(&self) -> Result<(), String> {
        let keyspaces = self.inner.database.keyspace_count();
        if keyspaces != 1 {
            return Err(format!("{keyspaces} keyspaces instead of 1"));
        }
        let read = catch_unwind(AssertUnwindSafe(|| {
            let ends = [
                self.inner.keyspace.first_key_value(),
                self.inner.keyspace.last_key_value(),
            ];
            ends.into_iter()
                .flatten()
                .try_for_each(|pair| pair.into_inner().map(drop))
        }));
        match read {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(panic) => Err(panic_text(panic.as_ref())),
        }
    }
}

/// Lowers the priority of the engine's threads. Where that is not possible they do no harm, only a
/// flush is felt more.
fn give_way_to_others() {
    let lowered = (|| {
        for task in std::fs::read_dir("/proc/self/task")? {
            let task = task?;
            // One of another engine in this process may have ended meanwhile.
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let id = task.file_name().to_str().and_then(|id| id.parse().ok());
            if name.trim_end() == WORKER_NAME
                && let Some(id) = id.and_then(Pid::from_raw)
            {
                // It may have ended meanwhile.
                setpriority_process(Some(id), WORKER_NICE).ok();
            }
        }
        io::Result::Ok(())
    })();
    if let Err(error) = lowered {
        tracing::debug!(%error, "the priority of the key-value store's threads stays");
    }
}

impl Inner {
    fn write(&self, batch: WriteBatch) -> Result<(), KvError> {
        self.wait_for_flusher()?;
        let mut ours = self.database.batch();
        let mut bytes = 0;
        for (key, value) in batch.into_final_ops() {
            bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
            match value {
                Some(value) => ours.insert(&self.keyspace, key, value),
                None => ours.remove(&self.keyspace, key),
            }
        }
        caught(|| ours.commit())?;
        self.behind.wrote(bytes as u64);
        Ok(())
    }

    /// Waits while flushes and merges are behind.
    fn wait_for_flusher(&self) -> Result<(), KvError> {
        self.wait_until(|| {
            self.keyspace.sealed_memtable_count() < SEALED_MEMTABLES_MAX
                && self.keyspace.l0_table_count() < UNMERGED_TABLES_MAX
        })
    }

    /// Waits for the engine's own threads, but not for ever: ones that do nothing are a failure.
    fn wait_until(&self, is_there: impl Fn() -> bool) -> Result<(), KvError> {
        let (mut pauses, mut last) = (0, None);
        while !is_there() {
            let tables = self.keyspace.l0_table_count();
            let seen = Some((self.keyspace.sealed_memtable_count(), tables));
            if last != seen {
                (pauses, last) = (0, seen);
            }
            if pauses == STALL_PAUSES_MAX {
                return Err(KvError::Engine {
                    cause: "its flusher made no progress for a minute".to_owned(),
                });
            }
            if pauses == 0 {
                tracing::debug!("waiting for the key-value store's flusher");
            }
            // Tells whether the flusher died: fjall then refuses all writes.
            caught(|| self.database.persist(PersistMode::Buffer))?;
            thread::park_timeout(STALL_PAUSE);
            pauses += u32::from(self.full_merges.load(Ordering::Relaxed) == 0);
        }
        Ok(())
    }

    /// Flushes what is in memory, deletions with it, and merges all tables. Their files go with the
    /// flush after that: only then does the engine look which of its versions nobody reads.
    fn reclaim(&self) -> Result<(), KvError> {
        self.flush()?;
        self.expect_room(self.keyspace.disk_space())?;
        self.full_merges.fetch_add(1, Ordering::Relaxed);
        let merged = caught(|| self.keyspace.major_compact());
        self.full_merges.fetch_sub(1, Ordering::Relaxed);
        merged?;
        self.flush()
    }

    /// Refuses what would fill the disk: a flush that then fails would be the end of the engine.
    fn expect_room(&self, bytes: u64) -> Result<(), KvError> {
        let unknown = |error: io::Error| KvError::Engine {
            cause: format!("the free space of the disk is not known: {error}"),
        };
        let disk = rustix::fs::statvfs(&self.folder).map_err(|error| unknown(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= bytes.saturating_add(FREE_BYTES_MIN) {
            return Ok(());
        }
        Err(KvError::DiskFull {
            cause: format!("up to {bytes} bytes would be written anew, and {free} are free"),
        })
    }

    /// Flushes the memtable, and lets go of what no view needs any more.
    fn flush(&self) -> Result<(), KvError> {
        let mut batch = WriteBatch::new();
        // An empty memtable would not be flushed.
        batch.delete(NEVER_THERE);
        self.poison.guard(|| self.write(batch))?;
        caught(|| self.keyspace.rotate_memtable().map(drop))?;
        self.wait_until(|| self.keyspace.sealed_memtable_count() == 0)
    }
}

impl fmt::Debug for FjallKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FjallKv")
            .field("folder", &self.inner.keyspace.path())
            .finish()
    }
}

impl Kv for FjallKv {
    fn view(&self) -> Arc<dyn View> {
        let snapshot = self.inner.database.snapshot();
        Arc::new(DiskView {
            snapshot,
            inner: Arc::clone(&self.inner),
        })
    }

    fn commit(&self, batch: WriteBatch) -> Result<(), KvError> {
        batch.check()?;
        self.inner.poison.guard(|| self.inner.write(batch))
    }

    fn persist(&self) -> Result<(), KvError> {
        self.inner
            .poison
            .guard(|| caught(|| self.inner.database.persist(PersistMode::SyncAll)))
    }

    fn reclaim(&self) -> Result<(), KvError> {
        self.inner.poison.check()?;
        self.inner.reclaim()
    }

    fn disk_bytes(&self) -> u64 {
        allocated_bytes(&self.inner.folder).unwrap_or_else(|error| {
            tracing::warn!(%error, "size of the key-value store unknown, tables only");
            self.inner.keyspace.disk_space()
        })
    }
}

/// What the files below `folder` take on the disk. The engine's own figure counts its journal at the
/// length that is set aside for it, tens of MiB of which nothing may be written yet.
fn allocated_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    // What a compaction has replaced meanwhile is not there any more.
    let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if is_gone(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => bytes += metadata.blocks() * BLOCK_BYTES,
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}

/// One state of a [`FjallKv`]; keeps the engine open.
struct DiskView {
    snapshot: Snapshot,
    inner: Arc<Inner>,
}

impl fmt::Debug for DiskView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskView")
            .field("folder", &self.inner.keyspace.path())
            .finish()
    }
}

impl View for DiskView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let value = self
            .snapshot
            .get(&self.inner.keyspace, key)
            .map_err(engine_error)?;
        Ok(value.map(Bytes::from))
    }

    fn range(&self, start: Bound<Bytes>, end: Bound<Bytes>, direction: Direction) -> Pairs<'_> {
        if bounds_cross(&start, &end) {
            return Box::new(std::iter::empty());
        }
        let found = self
            .snapshot
            .range::<Bytes, _>(&self.inner.keyspace, (start, end));
        let owned = |pair: fjall::Guard| {
            let (key, value) = pair.into_inner().map_err(engine_error)?;
            Ok((Bytes::from(key), Bytes::from(value)))
        };
        match direction {
            Direction::Forward => Box::new(found.map(owned)),
            Direction::Reverse => Box::new(found.rev().map(owned)),
        }
    }
}

/// Runs a write of the engine and turns a panic in it into an error.
fn caught(write: impl FnOnce() -> Result<(), fjall::Error>) -> Result<(), KvError> {
    match catch_unwind(AssertUnwindSafe(write)) {
        Ok(done) => done.map_err(engine_error),
        Err(panic) => Err(KvError::Engine {
            cause: panic_text(panic.as_ref()),
        }),
    }
}

fn engine_error(error: fjall::Error) -> KvError {
    let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
    let cause = error.to_string();
    match error {
        fjall::Error::Io(io) if full(&io) => KvError::DiskFull { cause },
        _ => KvError::Engine { cause },
    }
}

fn open_error(folder: &Path, cause: &str) -> KvError {
    KvError::Open {
        path: folder.to_owned(),
        cause: cause.to_owned(),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the engine panicked: {}", text.unwrap_or("no message"))
}
