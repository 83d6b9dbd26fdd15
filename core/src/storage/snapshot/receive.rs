//! [`Receiver`]: frames into a store of their own.

use bytes::{Buf, Bytes, BytesMut};

use super::stores::Staged;
use super::{
    DATA, END, FRAME_BODY_BYTES_MAX, FRAME_HEAD_BYTES, PAIR_HEAD_BYTES, SnapshotError,
    VALUE_BYTES_MAX, frame_checksum,
};
use crate::storage::kv::{KEY_BYTES_MAX, WriteBatch};

/// Bytes of pairs written to the store in one batch, at least one pair.
const BATCH_BYTES: usize = 1 << 20;

/// Pairs written to the store in one batch at most.
const BATCH_PAIRS_MAX: usize = 4_096;

/// Writes the frames of a snapshot to a staged store, checking each. Dropping it before
/// [`finish`](Receiver::finish) removes what it wrote.
#[derive(Debug)]
pub struct Receiver {
    staged: Staged,
    /// Bytes that came and are no whole pair yet.
    waiting: BytesMut,
    batch: WriteBatch,
    batch_bytes: usize,
    last_key: Bytes,
    frames: u64,
    pairs: u64,
    bytes: u64,
    checksum: u32,
    is_done: bool,
}

impl Receiver {
    /// A receiver that writes to `staged`, which is empty.
    pub(super) fn new(staged: Staged) -> Self {
        Self {
            staged,
            waiting: BytesMut::new(),
            batch: WriteBatch::new(),
            batch_bytes: 0,
            last_key: Bytes::new(),
            frames: 0,
            pairs: 0,
            bytes: 0,
            checksum: 0,
            is_done: false,
        }
    }

    /// Takes the next frame. Blocks: it writes to the store.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Damaged`] if it is not the frame that has to come next, unharmed;
    /// [`SnapshotError::Kv`] if the store failed. Drop the receiver then.
    pub fn receive(&mut self, frame: &[u8]) -> Result<(), SnapshotError> {
        let (kind, body) = self.open(frame)?;
        match kind {
            DATA if body.is_empty() || body.len() > FRAME_BODY_BYTES_MAX => {
                let bytes = body.len();
                Err(SnapshotError::damaged(format!("a frame of {bytes} bytes")))
            }
            DATA => {
                self.checksum = crc32c::crc32c_append(self.checksum, body);
                self.bytes += body.len() as u64;
                self.waiting.extend_from_slice(body);
                self.take_pairs()
            }
            END => self.end(body),
            kind => Err(SnapshotError::damaged(format!("a frame of kind {kind}"))),
        }
    }

    /// The whole store, with `marks` written on top, synced. Blocks.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Incomplete`] if the end frame did not come, [`SnapshotError::Kv`] if the
    /// store failed.
    pub fn finish(self, marks: WriteBatch) -> Result<Staged, SnapshotError> {
        if !self.is_done {
            let frames = self.frames;
            return Err(SnapshotError::Incomplete { frames });
        }
        let kv = self.staged.kv();
        kv.commit(marks)?;
        kv.persist()?;
        Ok(self.staged)
    }

    /// Checks the envelope of a frame; gives its kind and body.
    fn open<'a>(&mut self, frame: &'a [u8]) -> Result<(u8, &'a [u8]), SnapshotError> {
        if self.is_done {
            return Err(SnapshotError::damaged("a frame after the end"));
        }
        let Some((mut head, body)) = frame.split_at_checked(FRAME_HEAD_BYTES) else {
            let bytes = frame.len();
            return Err(SnapshotError::damaged(format!("a frame of {bytes} bytes")));
        };
        let (kind, sequence, checksum) = (head.get_u8(), head.get_u64(), head.get_u32());
        if checksum != frame_checksum(kind, sequence, body) {
            let frame = self.frames;
            return Err(SnapshotError::damaged(format!("checksum of frame {frame}")));
        }
        if sequence != self.frames {
            let wanted = self.frames;
            return Err(SnapshotError::damaged(format!(
                "frame {sequence} came where {wanted} was due"
            )));
        }
        self.frames += 1;
        Ok((kind, body))
    }

    /// Moves whole pairs from the waiting bytes to the store.
    fn take_pairs(&mut self) -> Result<(), SnapshotError> {
        while let Some(mut head) = self.waiting.get(..PAIR_HEAD_BYTES) {
            let (key_bytes, value_bytes) = (head.get_u32() as usize, head.get_u32() as usize);
            if key_bytes == 0 || key_bytes > KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX {
                return Err(SnapshotError::damaged(format!(
                    "a pair of {key_bytes} and {value_bytes} bytes"
                )));
            }
            let pair_bytes = PAIR_HEAD_BYTES + key_bytes + value_bytes;
            if self.waiting.len() < pair_bytes {
                return Ok(());
            }
            let mut pair = self.waiting.split_to(pair_bytes).freeze();
            pair.advance(PAIR_HEAD_BYTES);
            let key = pair.split_to(key_bytes);
            if key <= self.last_key {
                return Err(SnapshotError::damaged("keys out of order"));
            }
            self.last_key = key.clone();
            self.pairs += 1;
            self.batch.put(key, pair);
            self.batch_bytes += pair_bytes;
            if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_PAIRS_MAX {
                self.write()?;
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), SnapshotError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        Ok(self.staged.kv().commit(batch)?)
    }

    /// Checks the end frame against what came.
    fn end(&mut self, mut body: &[u8]) -> Result<(), SnapshotError> {
        if body.len() != 20 {
            return Err(SnapshotError::damaged("the end frame"));
        }
        if !self.waiting.is_empty() {
            return Err(SnapshotError::damaged("it ends inside a pair"));
        }
        let (pairs, bytes, checksum) = (body.get_u64(), body.get_u64(), body.get_u32());
        if (pairs, bytes, checksum) != (self.pairs, self.bytes, self.checksum) {
            return Err(SnapshotError::damaged(format!(
                "{pairs} pairs of {bytes} bytes were sent, {} of {} came, or their checksum differs",
                self.pairs, self.bytes
            )));
        }
        self.write()?;
        self.is_done = true;
        Ok(())
    }
}
