//! [`Sender`]: a read view as frames.

use std::ops::Bound;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    DATA, END, FRAME_BODY_BYTES_MAX, FRAME_HEAD_BYTES, PAIR_HEAD_BYTES, SnapshotError,
    VALUE_BYTES_MAX, frame_checksum,
};
use crate::storage::kv::{Direction, View};

/// Bytes of pairs read at once. To find where to go on takes a look into every table of the store, so
/// many frames are read for one look.
const READ_BYTES: usize = 16 * FRAME_BODY_BYTES_MAX;

/// Turns a read view into frames. The same view always gives the same frames.
#[derive(Debug)]
pub struct Sender {
    view: Arc<dyn View>,
    /// The last key read from the view.
    last_key: Option<Bytes>,
    /// Bytes of pairs read and not framed yet.
    waiting: BytesMut,
    /// Whether the view has no more pairs.
    is_read: bool,
    /// Whether the end frame was made.
    is_done: bool,
    sequence: u64,
    pairs: u64,
    bytes: u64,
    checksum: u32,
}

impl Sender {
    /// Frames of `view`, which it keeps alive.
    #[must_use]
    pub fn new(view: Arc<dyn View>) -> Self {
        Self {
            view,
            last_key: None,
            waiting: BytesMut::new(),
            is_read: false,
            is_done: false,
            sequence: 0,
            pairs: 0,
            bytes: 0,
            checksum: 0,
        }
    }

    /// The next frame; `None` after the end frame. Blocks: it reads from the store.
    ///
    /// # Errors
    ///
    /// The view cannot be read, or holds a value no receiver would take.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        if self.is_done {
            return Ok(None);
        }
        if self.waiting.len() < FRAME_BODY_BYTES_MAX && !self.is_read {
            self.read()?;
        }
        if self.waiting.is_empty() {
            self.is_done = true;
            let mut end = BytesMut::with_capacity(20);
            end.put_u64(self.pairs);
            end.put_u64(self.bytes);
            end.put_u32(self.checksum);
            return Ok(Some(self.frame(END, &end)));
        }
        let body = self.waiting.len().min(FRAME_BODY_BYTES_MAX);
        let body = self.waiting.split_to(body);
        Ok(Some(self.frame(DATA, &body)))
    }

    /// Reads pairs for some frames, or until there are no more.
    fn read(&mut self) -> Result<(), SnapshotError> {
        let start = match self.last_key.take() {
            Some(key) => Bound::Excluded(key),
            None => Bound::Unbounded,
        };
        let view = Arc::clone(&self.view);
        let mut last_key = None;
        for pair in view.range(start, Bound::Unbounded, Direction::Forward) {
            let (key, value) = pair?;
            self.put(&key, &value)?;
            last_key = Some(key);
            if self.waiting.len() >= READ_BYTES {
                break;
            }
        }
        self.is_read = self.waiting.len() < READ_BYTES;
        self.last_key = last_key;
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        let too_long = || SnapshotError::damaged("the store holds a pair that is too long");
        if value.len() > VALUE_BYTES_MAX {
            return Err(too_long());
        }
        let start = self.waiting.len();
        let key_bytes = u32::try_from(key.len()).map_err(|_| too_long())?;
        let value_bytes = u32::try_from(value.len()).map_err(|_| too_long())?;
        self.waiting
            .reserve(PAIR_HEAD_BYTES + key.len() + value.len());
        self.waiting.put_u32(key_bytes);
        self.waiting.put_u32(value_bytes);
        self.waiting.put_slice(key);
        self.waiting.put_slice(value);
        let pair = &self.waiting[start..];
        self.checksum = crc32c::crc32c_append(self.checksum, pair);
        self.bytes += pair.len() as u64;
        self.pairs += 1;
        Ok(())
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> Bytes {
        let mut frame = BytesMut::with_capacity(FRAME_HEAD_BYTES + body.len());
        frame.put_u8(kind);
        frame.put_u64(self.sequence);
        frame.put_u32(frame_checksum(kind, self.sequence, body));
        frame.put_slice(body);
        self.sequence += 1;
        frame.freeze()
    }
}
