//! Segment files: their names, their creation (prepared aside, synced, renamed), their removal. The
//! disk work that must not delay a sync happens on a thread of its own.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use tracing::warn;

use super::{
    error::WalError,
    format::{Salt, SegmentHeader},
    ledger::Points,
    types::{WalOptions, WriterMode},
};
use crate::storage::fs::{File, Fs};

/// The extension of segments.
const SUFFIX: &str = ".wal";
/// The extension of files that are being prepared; they are removed at open.
const SPARE_SUFFIX: &str = ".spare";
/// Removals and preparations that may wait; the writer waits beyond it.
const JOBS_MAX: usize = 64;

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) salt: Salt,
    bytes: AtomicU64,
}

impl Segment {
    pub(super) fn new(
        path: PathBuf,
        file: Arc<dyn File>,
        header: &SegmentHeader,
        bytes: u64,
    ) -> Self {
        Self {
            number: header.number,
            path,
            file,
            salt: Salt::new(header.salt),
            bytes: AtomicU64::new(bytes),
        }
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The file reaches at least to `end`.
    pub(super) fn grew_to(&self, end: u64) {
        self.bytes.fetch_max(end, Ordering::Relaxed);
    }
}

/// The path of segment `number`.
pub(super) fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{SUFFIX}"))
}

/// The number in a segment's file name.
pub(super) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (digits.len() == 16 && !digits.contains('+')).then_some(number)
}

/// Whether a file is a left-over of a preparation.
pub(super) fn is_spare(name: &str) -> bool {
    name.ends_with(SPARE_SUFFIX)
}

/// What the first batch of a new segment follows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    pub(super) number: u64,
    pub(super) first_batch: u64,
    pub(super) chain: u32,
    pub(super) points: Points,
}

/// Turns a prepared file into a segment. When this returns, the segment is durable, name and all.
pub(super) fn create_segment(
    fs: &dyn Fs,
    dir: &Path,
    options: &WalOptions,
    (spare, file): (PathBuf, Arc<dyn File>),
    start: &Start,
) -> Result<Segment, WalError> {
    let path = segment_path(dir, start.number);
    let failed = |action| {
        let path = path.clone();
        move |error| WalError::io(action, path, error)
    };
    let file_bytes = file.len().map_err(failed("measure"))?;
    let header = SegmentHeader {
        identity: options.identity,
        number: start.number,
        salt: salt(options.salt_seed, start.number),
        first_batch: start.first_batch,
        file_bytes,
        chain: start.chain,
        points: start.points,
    };
    file.write_at(0, &header.encode())
        .map_err(failed("write"))?;
    file.sync_data().map_err(failed("sync"))?;
    fs.rename(&spare, &path).map_err(failed("rename"))?;
    fs.sync_dir(dir).map_err(failed("sync the directory of"))?;
    let bytes = file_bytes.max(super::format::BLOCK);
    Ok(Segment::new(path, file, &header, bytes))
}

/// A segment's salt, from the seed of this open (splitmix64).
fn salt(seed: u64, number: u64) -> u64 {
    let mut z = seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Debug)]
enum Job {
    Prepare(PathBuf),
    Remove(Vec<PathBuf>),
}

type Prepared = Result<Arc<dyn File>, WalError>;

/// Prepares files for coming segments and removes dead segments, in the background.
#[derive(Debug)]
pub(super) struct Files {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    segment_bytes: u64,
    prepared: u64,
    pending: Option<PathBuf>,
    worker: Option<Worker>,
}

#[derive(Debug)]
struct Worker {
    jobs: mpsc::SyncSender<Job>,
    files: mpsc::Receiver<Prepared>,
    thread: thread::JoinHandle<()>,
}

impl Files {
    pub(super) fn new(fs: Arc<dyn Fs>, dir: &Path, options: &WalOptions) -> Result<Self, WalError> {
        let segment_bytes = options.segment_bytes;
        let worker = match options.writer {
            WriterMode::Caller => None,
            WriterMode::Thread => Some(Worker::start(Arc::clone(&fs), segment_bytes, dir)?),
        };
        Ok(Self {
            fs,
            dir: dir.to_owned(),
            segment_bytes,
            prepared: 0,
            pending: None,
            worker,
        })
    }

    fn spare_path(&mut self) -> PathBuf {
        self.prepared += 1;
        self.dir.join(format!("{}{SPARE_SUFFIX}", self.prepared))
    }

    /// Begins to prepare the file of the next segment, unless that is under way.
    pub(super) fn prepare(&mut self) {
        if self.pending.is_some() || self.worker.is_none() {
            return;
        }
        let path = self.spare_path();
        if let Some(worker) = &self.worker
            && worker.jobs.send(Job::Prepare(path.clone())).is_ok()
        {
            self.pending = Some(path);
        }
    }

    /// The file for the next segment: the prepared one, or one made now.
    pub(super) fn take(&mut self) -> Result<(PathBuf, Arc<dyn File>), WalError> {
        if let Some(path) = self.pending.take()
            && let Some(worker) = &self.worker
        {
            match worker.files.recv() {
                Ok(Ok(file)) => return Ok((path, file)),
                // That file was never part of the log: another one may be tried, once.
                Ok(Err(error)) => warn!(%error, "preparing a log segment failed"),
                Err(_) => warn!("the thread that prepares log segments is gone"),
            }
        }
        let path = self.spare_path();
        let file = prepare(&*self.fs, &path, self.segment_bytes)?;
        Ok((path, file))
    }

    /// Removes dead segments, in the order given. A failure is only logged: the segment is found
    /// dead, and removed, at the next open.
    pub(super) fn remove(&self, paths: Vec<PathBuf>) {
        match &self.worker {
            Some(worker) => {
                if worker.jobs.send(Job::Remove(paths)).is_err() {
                    warn!("the thread that removes log segments is gone");
                }
            }
            None => remove(&*self.fs, &self.dir, &paths),
        }
    }
}

impl Drop for Files {
    /// Waits for what is under way, and removes a prepared file that was not used.
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            drop(worker.jobs);
            if worker.thread.join().is_err() {
                warn!("the thread that prepares log segments panicked");
            }
        }
        if let Some(path) = self.pending.take()
            && let Err(error) = self.fs.remove(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %path.display(), %error, "a prepared log segment was left behind");
        }
    }
}

impl Worker {
    fn start(fs: Arc<dyn Fs>, segment_bytes: u64, dir: &Path) -> Result<Self, WalError> {
        let (jobs, todo) = mpsc::sync_channel(JOBS_MAX);
        let (done, files) = mpsc::sync_channel(1);
        let folder = dir.to_owned();
        let thread = thread::Builder::new()
            .name("quorate-wal-dir".into())
            .spawn(move || {
                for job in todo {
                    match job {
                        Job::Prepare(path) => {
                            // Nobody waits for it any more when the log is being closed.
                            let _ = done.send(prepare(&*fs, &path, segment_bytes));
                        }
                        Job::Remove(paths) => remove(&*fs, &folder, &paths),
                    }
                }
            })
            .map_err(|error| WalError::io("start a thread for", dir, error))?;
        Ok(Self {
            jobs,
            files,
            thread,
        })
    }
}

/// Creates a file for a segment: full length, synced.
pub(super) fn prepare(fs: &dyn Fs, path: &Path, bytes: u64) -> Prepared {
    let made = fs.create(path, bytes).and_then(|file| {
        file.sync_data()?;
        Ok(file)
    });
    made.map_err(|error| {
        // Give back what a full disk granted; the file has no place in the log.
        if let Err(error) = fs.remove(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %path.display(), %error, "a prepared log segment was left behind");
        }
        WalError::io("create", path, error)
    })
}

fn remove(fs: &dyn Fs, dir: &Path, paths: &[PathBuf]) {
    for path in paths {
        if let Err(error) = fs.remove(path) {
            warn!(path = %path.display(), %error, "a dead log segment was left behind");
        }
    }
    if let Err(error) = fs.sync_dir(dir) {
        warn!(dir = %dir.display(), %error, "the removal of log segments may not last");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_number() {
        let path = segment_path(Path::new("d"), 0x1f);
        assert_eq!(path, Path::new("d/000000000000001f.wal"));
        assert_eq!(segment_number("000000000000001f.wal"), Some(0x1f));
        for name in [
            "1f.wal",
            "LOCK",
            "000000000000001f.spare",
            "+00000000000001f.wal",
        ] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }
}
