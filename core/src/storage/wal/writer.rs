//! The writer: takes all that waits as one batch, writes it with one write, syncs it with one
//! `fdatasync`, then answers. The only code that changes segments after recovery.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use tracing::{error, info};

use super::{
    error::WalError,
    format::{
        BATCH_HEADER_BYTES, BLOCK, BLOCK_BYTES, BatchHeader, align, encode_entry, encode_record,
        is_count,
    },
    recovery::Tail,
    segment::{Files, Start, create_segment},
    shared::{Change, Placed, Queued, Shared},
    types::WalOptions,
};
use crate::storage::fs::{DirLock, Fs};

/// The batch buffer gives memory above this size back after a larger batch.
const BUFFER_KEPT_BYTES: usize = 32 << 20;

/// What fills the rest of a batch's last block.
const PADDING: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Writes batches to the active segment. Lives on the writer thread (or in the callers' threads).
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    options: WalOptions,
    tail: Tail,
    files: Files,
    buffer: Vec<u8>,
    stopped: bool,
    // Last: the directory is ours until everything above is closed.
    _lock: Box<dyn DirLock>,
}

impl Writer {
    pub(super) fn new(
        fs: Arc<dyn Fs>,
        dir: &Path,
        options: WalOptions,
        shared: Arc<Shared>,
        tail: Tail,
        lock: Box<dyn DirLock>,
    ) -> Result<Self, WalError> {
        let files = Files::new(Arc::clone(&fs), dir, &options)?;
        Ok(Self {
            shared,
            fs,
            dir: dir.to_owned(),
            options,
            tail,
            files,
            buffer: Vec::new(),
            stopped: false,
            _lock: lock,
        })
    }

    /// Removes segments that recovery found dead.
    pub(super) fn remove(&self, dead: Vec<PathBuf>) {
        if !dead.is_empty() {
            self.files.remove(dead);
        }
    }

    /// Writes batches as they come, until the log is closed or poisoned.
    pub(super) fn run(mut self) {
        let _guard = PanicGuard(Arc::clone(&self.shared), self.dir.clone());
        while let Some(batch) = self.shared.take(self.options.batch_bytes_max, true) {
            self.write(batch);
        }
    }

    /// Writes what waits now.
    pub(super) fn drain(&mut self) {
        while let Some(batch) = self.shared.take(self.options.batch_bytes_max, false) {
            self.write(batch);
        }
    }

    fn write(&mut self, batch: Vec<Queued>) {
        let written = if self.stopped {
            Err(WalError::Closed)
        } else {
            self.write_batch(&batch)
        };
        match written {
            Ok(placed) => {
                let dead = self.shared.complete(&batch, placed);
                self.remove(dead);
                for callback in batch.into_iter().filter_map(|queued| queued.callback) {
                    callback(Ok(()));
                }
                self.buffer.shrink_to(BUFFER_KEPT_BYTES);
            }
            Err(cause) => self.fail(cause, batch),
        }
    }

    fn fail(&mut self, cause: WalError, batch: Vec<Queued>) {
        self.stopped = true;
        error!(dir = %self.dir.display(), error = %cause, "the log failed, this member must stop");
        let cause = Arc::new(cause);
        let waiting = self.shared.poison(&cause);
        let callbacks = batch.into_iter().chain(waiting);
        for callback in callbacks.filter_map(|queued| queued.callback) {
            callback(Err(Arc::clone(&cause).into_io()));
        }
    }

    /// One batch on disk. `None`: there was nothing to write.
    fn write_batch(&mut self, batch: &[Queued]) -> Result<Option<Placed>, WalError> {
        let records: usize = batch
            .iter()
            .map(|queued| queued.change.encoded_bytes())
            .sum();
        if records == 0 {
            return Ok(None);
        }
        let end = self.tail.offset + (BATCH_HEADER_BYTES + records) as u64;
        // Room is left for the block that seals the segment.
        if self.tail.offset > BLOCK && align(end) + BLOCK > self.options.segment_bytes {
            self.roll()?;
        }
        let offset = self.tail.offset;
        let end = offset + (BATCH_HEADER_BYTES + records) as u64;
        self.encode(batch, end)?;
        let active = &self.tail.active;
        let failed = |action| WalError::io_of(action, &active.path);
        active
            .file
            .write_at(offset, &self.buffer)
            .map_err(failed("write"))?;
        active.file.sync_data().map_err(failed("sync"))?;
        active.grew_to(align(end));
        self.tail.offset = align(end);
        self.tail.next_batch += 1;
        if self.tail.offset > self.options.segment_bytes / 2 {
            self.files.prepare();
        }
        Ok(Some(Placed {
            segment: self.tail.active.number,
            offset,
            end,
        }))
    }

    /// Fills the buffer with a batch whose records end at `end`, padded to whole blocks.
    fn encode(&mut self, batch: &[Queued], end: u64) -> Result<(), WalError> {
        let Tail {
            active,
            offset,
            next_batch,
            chain,
            ledger,
        } = &mut self.tail;
        let (salt, number, first) = (active.salt, *next_batch, *chain);
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.resize(BATCH_HEADER_BYTES, 0);
        let mut records = 0_u32;
        for queued in batch {
            match &queued.change {
                Change::Append(entries) => {
                    for entry in entries {
                        ledger.append(entry.id).map_err(WalError::Invalid)?;
                        *chain = encode_entry(buffer, salt, number, *chain, entry);
                        records += 1;
                    }
                }
                Change::Record(record) => {
                    ledger.apply(record).map_err(WalError::Invalid)?;
                    *chain = encode_record(buffer, salt, number, *chain, record);
                    records += 1;
                }
            }
        }
        let bytes = buffer.len() as u64;
        assert_eq!(*offset + bytes, end, "a record has its announced size");
        let length = u32::try_from(buffer.len() - BATCH_HEADER_BYTES)
            .expect("the queue's limit is far below 4 GiB");
        let header = BatchHeader {
            number,
            offset: *offset,
            length,
            records,
            chain: first,
            next_segment: None,
        };
        buffer[..BATCH_HEADER_BYTES].copy_from_slice(&header.encode(salt));
        let padding = usize::try_from(align(bytes) - bytes).expect("less than a block");
        buffer.extend_from_slice(&PADDING[..padding]);
        Ok(())
    }

    /// Begins the next segment, then seals the old one, so that a log whose last segment is lost
    /// does not pass for a shorter one.
    fn roll(&mut self) -> Result<(), WalError> {
        let number = self.tail.active.number + 1;
        if !is_count(number) || !is_count(self.tail.next_batch) {
            return Err(WalError::Corrupt {
                file: self.tail.active.path.clone(),
                offset: self.tail.offset,
                what: "no segment can follow this one".into(),
            });
        }
        let spare = self.files.take()?;
        let start = Start {
            number,
            first_batch: self.tail.next_batch,
            chain: self.tail.chain,
            points: self.tail.ledger.points(),
        };
        let next = create_segment(&*self.fs, &self.dir, &self.options, spare, &start)?;
        let next = Arc::new(next);
        let old = std::mem::replace(&mut self.tail.active, Arc::clone(&next));
        let offset = std::mem::replace(&mut self.tail.offset, BLOCK);
        self.shared.add_segment(&next);
        let seal = BatchHeader {
            number: start.first_batch,
            offset,
            length: 0,
            records: 0,
            chain: start.chain,
            next_segment: Some(next.number),
        };
        let failed = |action| WalError::io_of(action, &old.path);
        old.file
            .write_at(offset, &seal.encode(old.salt))
            .map_err(failed("seal"))?;
        old.file.sync_data().map_err(failed("sync"))?;
        old.grew_to(offset + BATCH_HEADER_BYTES as u64);
        info!(
            segment = next.number,
            first_batch = start.first_batch,
            "began a log segment"
        );
        Ok(())
    }
}

/// A writer that panics must not leave callers waiting for ever.
struct PanicGuard(Arc<Shared>, PathBuf);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            let panic = io::Error::other("the writer thread panicked");
            let cause = Arc::new(WalError::io("write to", &self.1, panic));
            for queued in self.0.poison(&cause) {
                if let Some(callback) = queued.callback {
                    callback(Err(Arc::clone(&cause).into_io()));
                }
            }
        }
    }
}
