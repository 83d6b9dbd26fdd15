//! Reading segments: a window over a file, whole batches for recovery, ranges of entries for raft.

use std::{ops::Range, path::Path, sync::Arc};

use bytes::Bytes;

use super::{
    error::WalError,
    format::{
        BATCH_HEADER_BYTES, BatchHeader, RECORD_HEADER_BYTES, Record, RecordHeader, Salt, align,
    },
    marks::Mark,
    segment::Segment,
    types::{Entry, EntryId},
};
use crate::storage::fs::File;

/// Recovery reads pieces of this size.
pub(super) const SCAN_BYTES: usize = 1 << 20;
/// Reads of a few entries begin with a piece of this size.
const READ_BYTES: usize = 128 << 10;

/// A piece of a file in memory that moves forward as it is asked for bytes.
#[derive(Debug)]
pub(super) struct Window<'a> {
    file: &'a dyn File,
    path: &'a Path,
    piece_bytes: usize,
    start: u64,
    filled: usize,
    buffer: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a dyn File, path: &'a Path, piece_bytes: usize) -> Self {
        Self {
            file,
            path,
            piece_bytes,
            start: 0,
            filled: 0,
            buffer: Vec::new(),
        }
    }

    /// `length` bytes from `offset`; `None` when the file ends before.
    pub(super) fn bytes(&mut self, offset: u64, length: usize) -> Result<Option<&[u8]>, WalError> {
        let inside =
            offset >= self.start && offset + length as u64 <= self.start + self.filled as u64;
        if !inside {
            // A length is read before its checksum can be: it must not decide what memory is taken.
            if length > self.piece_bytes && !self.reaches(offset + length as u64)? {
                return Ok(None);
            }
            let piece = self.piece_bytes.max(length);
            if self.buffer.len() < piece {
                self.buffer = vec![0; piece];
            }
            self.filled = self
                .file
                .read_at(offset, &mut self.buffer[..piece])
                .map_err(|error| WalError::io("read", self.path, error))?;
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).expect("within the window");
        let end = from + length;
        Ok((end <= self.filled).then(|| &self.buffer[from..end]))
    }

    /// Whether the file is at least `end` bytes long.
    fn reaches(&self, end: u64) -> Result<bool, WalError> {
        let length = self.file.len();
        let length = length.map_err(|error| WalError::io("measure", self.path, error))?;
        Ok(end <= length)
    }

    /// The rest of the window from `offset`, at most `length` bytes, at least one unless the file
    /// ends there.
    pub(super) fn some_bytes(&mut self, offset: u64, length: usize) -> Result<&[u8], WalError> {
        let whole = self.bytes(offset, length)?.is_some();
        let from = usize::try_from(offset - self.start).expect("bytes() moved the window there");
        let end = if whole { from + length } else { self.filled };
        Ok(&self.buffer[from.min(end)..end])
    }
}

/// A batch that is whole, with the offset of each record.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) records: Vec<(u64, Record)>,
    /// Where the records end.
    pub(super) end: u64,
    /// CRC of the last record.
    pub(super) chain: u32,
}

/// What is at a batch boundary.
#[derive(Debug)]
pub(super) enum Found {
    Batch(Batch),
    /// The log goes on in this segment.
    Sealed(u64),
    /// Not the expected batch, or not whole.
    Bad,
}

/// Reads batch `number` at `offset`. Payloads are copied only when `keep_payloads`.
///
/// # Errors
///
/// `Corrupt` when the checksums hold but the content is impossible; no power cut does that.
pub(super) fn read_batch(
    window: &mut Window<'_>,
    salt: Salt,
    (offset, number, chain): (u64, u64, u32),
    keep_payloads: bool,
) -> Result<Found, WalError> {
    let path = window.path;
    let corrupt = |offset, what: &str| WalError::Corrupt {
        file: path.to_owned(),
        offset,
        what: what.into(),
    };
    let head = window.bytes(offset, BATCH_HEADER_BYTES)?;
    let Some(head) = head.and_then(|head| BatchHeader::decode(head, salt)) else {
        return Ok(Found::Bad);
    };
    if head.number != number || head.offset != offset {
        return Ok(Found::Bad);
    }
    if head.chain != chain {
        return Err(corrupt(
            offset,
            "the batch does not follow the one before it",
        ));
    }
    if let Some(next) = head.next_segment {
        return Ok(Found::Sealed(next));
    }
    let mut at = offset + BATCH_HEADER_BYTES as u64;
    let end = at + u64::from(head.length);
    let mut batch = Batch {
        records: Vec::new(),
        end,
        chain,
    };
    for _ in 0..head.records {
        let Some((header, bytes)) = read_record(window, at, end)? else {
            return Ok(Found::Bad);
        };
        if header.chain != batch.chain || header.batch != number {
            return Ok(Found::Bad);
        }
        let Some(crc) = header.verify(bytes, salt) else {
            return Ok(Found::Bad);
        };
        let payload = if keep_payloads {
            Bytes::copy_from_slice(&bytes[RECORD_HEADER_BYTES..])
        } else {
            Bytes::new()
        };
        let length = bytes.len() as u64;
        let Some(record) = header.record(payload) else {
            return Err(corrupt(at, "a record of an unknown kind"));
        };
        batch.records.push((at, record));
        batch.chain = crc;
        at += length;
    }
    if at != end {
        return Err(corrupt(at, "the batch is longer than its records"));
    }
    Ok(Found::Batch(batch))
}

/// The record at `at`, not verified; `None` when it does not fit before `end`.
fn read_record<'w>(
    window: &'w mut Window<'_>,
    at: u64,
    end: u64,
) -> Result<Option<(RecordHeader, &'w [u8])>, WalError> {
    if at + RECORD_HEADER_BYTES as u64 > end {
        return Ok(None);
    }
    let Some(head) = window.bytes(at, RECORD_HEADER_BYTES)? else {
        return Ok(None);
    };
    let header = RecordHeader::parse(head);
    let Ok(length) = usize::try_from(header.length) else {
        return Ok(None);
    };
    let length = RECORD_HEADER_BYTES + length;
    if at + length as u64 > end {
        return Ok(None);
    }
    let bytes = window.bytes(at, length)?;
    Ok(bytes.map(|bytes| (header, bytes)))
}

/// A piece of the log to read from disk.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) segment: Arc<Segment>,
    pub(super) mark: Mark,
    pub(super) indexes: Range<u64>,
}

/// Reads the entries of `pieces` in order, at most `bytes_max` of payload but at least one entry,
/// and compares each with the id that `id_of` knows. `true`: all of them were read.
///
/// # Errors
///
/// `Io`, or `Corrupt` when an entry is not where it was written, or not what was written.
pub(super) fn read_entries(
    pieces: &[Piece],
    bytes_max: usize,
    id_of: impl Fn(u64) -> Option<EntryId>,
) -> Result<(Vec<Entry>, bool), WalError> {
    let mut entries = Vec::new();
    let mut bytes = 0_usize;
    for piece in pieces {
        let mut reader = PieceReader::new(piece);
        let mut expected = piece.mark.first_index;
        while expected < piece.indexes.end {
            let wanted = expected >= piece.indexes.start;
            let entry = reader.next_entry(expected)?;
            expected += 1;
            if !wanted {
                continue;
            }
            bytes = bytes.saturating_add(entry.payload.len());
            if bytes > bytes_max && !entries.is_empty() {
                return Ok((entries, false));
            }
            if id_of(entry.id.index) != Some(entry.id) {
                return Err(reader.corrupt("another entry than the one that was written here"));
            }
            entries.push(entry);
        }
    }
    Ok((entries, true))
}

struct PieceReader<'a> {
    segment: &'a Segment,
    window: Window<'a>,
    at: u64,
    batch_end: u64,
}

impl<'a> PieceReader<'a> {
    fn new(piece: &'a Piece) -> Self {
        let segment = &*piece.segment;
        Self {
            segment,
            window: Window::new(&*segment.file, &segment.path, READ_BYTES),
            at: piece.mark.offset,
            batch_end: piece.mark.batch_end,
        }
    }

    fn corrupt(&self, what: &str) -> WalError {
        WalError::Corrupt {
            file: self.segment.path.clone(),
            offset: self.at,
            what: what.into(),
        }
    }

    /// The next entry of the segment, which must have index `expected`.
    fn next_entry(&mut self, expected: u64) -> Result<Entry, WalError> {
        loop {
            if self.at == self.batch_end {
                self.enter_batch()?;
                continue;
            }
            let (at, salt) = (self.at, self.segment.salt);
            let record = match read_record(&mut self.window, at, self.batch_end)? {
                Some((header, bytes)) if header.verify(bytes, salt).is_some() => {
                    let length = bytes.len() as u64;
                    let payload = &bytes[RECORD_HEADER_BYTES..];
                    let entry = header
                        .is_entry()
                        .then(|| header.record(Bytes::copy_from_slice(payload)));
                    Some((length, entry))
                }
                _ => None,
            };
            match record {
                // Votes and pointers lie between the entries.
                Some((length, None)) => self.at += length,
                Some((length, Some(Some(Record::Entry(entry))))) if entry.id.index == expected => {
                    self.at += length;
                    return Ok(entry);
                }
                Some(_) => return Err(self.corrupt("not the entry that was written here")),
                None => return Err(self.corrupt("a record was damaged after it was written")),
            }
        }
    }

    fn enter_batch(&mut self) -> Result<(), WalError> {
        self.at = align(self.at);
        let head = self.window.bytes(self.at, BATCH_HEADER_BYTES)?;
        let head = head.and_then(|head| BatchHeader::decode(head, self.segment.salt));
        match head {
            Some(head) if head.offset == self.at && head.next_segment.is_none() => {
                self.at += BATCH_HEADER_BYTES as u64;
                self.batch_end = self.at + u64::from(head.length);
                Ok(())
            }
            _ => Err(self.corrupt("a batch was damaged after it was written")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A short file that notes for how much it is asked.
    #[derive(Debug, Default)]
    struct Short {
        asked_max: AtomicUsize,
    }

    impl File for Short {
        fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
            unreachable!("only read here")
        }

        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
            self.asked_max.fetch_max(buffer.len(), Ordering::Relaxed);
            let left = usize::try_from(100_u64.saturating_sub(offset)).unwrap();
            Ok(left.min(buffer.len()))
        }

        fn sync_data(&self) -> io::Result<()> {
            unreachable!("only read here")
        }

        fn len(&self) -> io::Result<u64> {
            Ok(100)
        }

        fn set_len(&self, _bytes: u64) -> io::Result<()> {
            unreachable!("only read here")
        }
    }

    #[test]
    fn a_length_beyond_the_file_takes_no_memory() {
        let file = Short::default();
        let mut window = Window::new(&file, Path::new("short"), 16);
        let huge = u32::MAX as usize;
        assert_eq!(window.bytes(8, huge).unwrap(), None);
        assert_eq!(window.bytes(8, 93).unwrap(), None);
        assert_eq!(window.bytes(8, 92).unwrap().map(<[u8]>::len), Some(92));
        assert_eq!(file.asked_max.into_inner(), 92);
    }
}
