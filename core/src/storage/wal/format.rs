//! The bytes of the WAL: segment headers, batch headers, records, and their checksums. The tables
//! are in docs/formats.md. All integers are little-endian.

use bytes::Bytes;

use super::{
    ledger::Points,
    types::{Entry, EntryId, EntryKind, Identity, Vote},
};

/// Batches begin at multiples of this many bytes; the first block of a segment is its header.
pub(super) const BLOCK_BYTES: usize = 4096;
/// [`BLOCK_BYTES`] as a file offset.
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes of a batch header.
pub(super) const BATCH_HEADER_BYTES: usize = 64;
/// Bytes of a record before its payload.
pub(super) const RECORD_HEADER_BYTES: usize = 40;
/// The version of the format that is written here, and the newest that is read.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Segments and batches are numbered from 1, and no log ever gets here.
const COUNT_MAX: u64 = 1 << 63;

/// Whether a segment or a batch can have this number.
pub(super) fn is_count(number: u64) -> bool {
    (1..COUNT_MAX).contains(&number)
}

const SEGMENT_MAGIC: &[u8; 8] = b"QUORWAL\n";
const BATCH_MAGIC: &[u8; 4] = b"QBAT";
const SEAL_MAGIC: &[u8; 4] = b"QEND";

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The next multiple of [`BLOCK_BYTES`].
pub(super) const fn align(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

/// A segment's random number, with the checksum seed that comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt {
    value: u64,
    seed: u32,
}

impl Salt {
    pub(super) fn new(value: u64) -> Self {
        let seed = crc32c::crc32c(&value.to_le_bytes());
        Self { value, seed }
    }

    /// CRC32C over `parts`, one after the other, begun from the seed.
    fn crc(self, parts: [&[u8]; 3]) -> u32 {
        parts.iter().fold(self.seed, |crc, part| {
            if part.is_empty() {
                crc
            } else {
                crc32c::crc32c_append(crc, part)
            }
        })
    }
}

/// The first block of a segment: whose it is, and the whole state of the log before its first batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) identity: Identity,
    pub(super) number: u64,
    pub(super) salt: u64,
    pub(super) first_batch: u64,
    /// Length of the file when it was created; it is never shorter.
    pub(super) file_bytes: u64,
    /// CRC of the last record before this segment.
    pub(super) chain: u32,
    pub(super) points: Points,
}

/// Why the first block of a file is not a header that can be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    Damaged(&'static str),
    Newer(u32),
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        put(&mut block, 0, SEGMENT_MAGIC);
        put(&mut block, 8, &FORMAT_VERSION.to_le_bytes());
        put(&mut block, 16, &self.identity.cluster_id.to_le_bytes());
        put(&mut block, 24, &self.identity.member_id.to_le_bytes());
        put(&mut block, 32, &self.number.to_le_bytes());
        put(&mut block, 40, &self.salt.to_le_bytes());
        put(&mut block, 48, &self.first_batch.to_le_bytes());
        put(&mut block, 56, &self.file_bytes.to_le_bytes());
        put(&mut block, 64, &self.chain.to_le_bytes());
        let points = &self.points;
        if let Some(vote) = points.vote {
            block[68] |= 1 | (u8::from(vote.committed) << 1);
            put(&mut block, 72, &vote.term.to_le_bytes());
            put(&mut block, 80, &vote.node.to_le_bytes());
        }
        let ids = [points.committed, points.purged, points.last];
        for ((id, bit), at) in ids.into_iter().zip(2..).zip((88..).step_by(16)) {
            if let Some(id) = id {
                block[68] |= 1 << bit;
                put(&mut block, at, &id.term.to_le_bytes());
                put(&mut block, at + 8, &id.index.to_le_bytes());
            }
        }
        let first_index = points.last.map_or(0, |last| last.index + 1);
        put(&mut block, 136, &first_index.to_le_bytes());
        let crc = crc32c::crc32c(&block);
        put(&mut block, 12, &crc.to_le_bytes());
        block
    }

    pub(super) fn decode(block: &[u8]) -> Result<Self, BadHeader> {
        if block.len() != BLOCK_BYTES || &block[..8] != SEGMENT_MAGIC {
            return Err(BadHeader::Damaged("this is not the header of a segment"));
        }
        let version = u32_at(block, 8);
        if version > FORMAT_VERSION {
            return Err(BadHeader::Newer(version));
        }
        let mut unsigned = block.to_vec();
        put(&mut unsigned, 12, &[0; 4]);
        if crc32c::crc32c(&unsigned) != u32_at(block, 12) || version != FORMAT_VERSION {
            return Err(BadHeader::Damaged("the segment header's checksum is wrong"));
        }
        let header = Self::parse(block);
        let possible = is_count(header.number) && is_count(header.first_batch);
        if !possible || !header.points.are_possible() {
            return Err(BadHeader::Damaged("the segment header contradicts itself"));
        }
        Ok(header)
    }

    /// Reads the fields of a block; nothing is checked yet.
    fn parse(block: &[u8]) -> Self {
        let flags = block[68];
        let id = |bit: u8, at: usize| {
            (flags & (1 << bit) != 0)
                .then(|| EntryId::new(u64_at(block, at), u64_at(block, at + 8)))
        };
        Self {
            identity: Identity {
                cluster_id: u64_at(block, 16),
                member_id: u64_at(block, 24),
            },
            number: u64_at(block, 32),
            salt: u64_at(block, 40),
            first_batch: u64_at(block, 48),
            file_bytes: u64_at(block, 56),
            chain: u32_at(block, 64),
            points: Points {
                vote: (flags & 1 != 0).then(|| Vote {
                    term: u64_at(block, 72),
                    node: u64_at(block, 80),
                    committed: flags & 2 != 0,
                }),
                committed: id(2, 88),
                purged: id(3, 104),
                last: id(4, 120),
            },
        }
    }
}

/// What a block at a batch boundary says about itself, once its checksum held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) number: u64,
    /// Where it was meant to be written.
    pub(super) offset: u64,
    /// Bytes of the records that follow.
    pub(super) length: u32,
    pub(super) records: u32,
    /// CRC of the record before the first.
    pub(super) chain: u32,
    /// Not a batch but the end of the segment: the log goes on in this segment.
    pub(super) next_segment: Option<u64>,
}

impl BatchHeader {
    pub(super) fn encode(&self, salt: Salt) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        let magic = self.next_segment.map_or(BATCH_MAGIC, |_| SEAL_MAGIC);
        put(&mut bytes, 0, magic);
        put(&mut bytes, 8, &salt.value.to_le_bytes());
        put(&mut bytes, 16, &self.number.to_le_bytes());
        put(&mut bytes, 24, &self.offset.to_le_bytes());
        put(&mut bytes, 32, &self.length.to_le_bytes());
        put(&mut bytes, 36, &self.records.to_le_bytes());
        put(&mut bytes, 40, &self.chain.to_le_bytes());
        put(
            &mut bytes,
            48,
            &self.next_segment.unwrap_or(0).to_le_bytes(),
        );
        let crc = salt.crc([magic, &bytes[8..], &[]]);
        put(&mut bytes, 4, &crc.to_le_bytes());
        bytes
    }

    /// `None`: these bytes are no batch header of this segment.
    pub(super) fn decode(bytes: &[u8], salt: Salt) -> Option<Self> {
        let magic = bytes.get(..4)?;
        let seal = magic == SEAL_MAGIC;
        if (!seal && magic != BATCH_MAGIC) || bytes.len() < BATCH_HEADER_BYTES {
            return None;
        }
        let bytes = &bytes[..BATCH_HEADER_BYTES];
        let crc = salt.crc([magic, &bytes[8..], &[]]);
        if u64_at(bytes, 8) != salt.value || u32_at(bytes, 4) != crc {
            return None;
        }
        Some(Self {
            number: u64_at(bytes, 16),
            offset: u64_at(bytes, 24),
            length: u32_at(bytes, 32),
            records: u32_at(bytes, 36),
            chain: u32_at(bytes, 40),
            next_segment: seal.then(|| u64_at(bytes, 48)),
        })
    }
}

/// One change of the log, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Entry(Entry),
    Vote(Vote),
    Truncate(Option<EntryId>),
    Committed(Option<EntryId>),
    Purge(EntryId),
    Reset(EntryId),
}

/// A record without its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    pub(super) length: u32,
    crc: u32,
    pub(super) chain: u32,
    kind: u8,
    detail: u8,
    term: u64,
    pub(super) index: u64,
    pub(super) batch: u64,
}

const KIND_ENTRY: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_TRUNCATE: u8 = 3;
const KIND_COMMITTED: u8 = 4;
const KIND_PURGE: u8 = 5;
const KIND_RESET: u8 = 6;

/// Encodes a record onto `buffer`; returns its CRC, the chain value for the next one.
pub(super) fn encode_entry(
    buffer: &mut Vec<u8>,
    salt: Salt,
    batch: u64,
    chain: u32,
    entry: &Entry,
) -> u32 {
    let detail = match entry.kind {
        EntryKind::Blank => 0,
        EntryKind::Normal => 1,
        EntryKind::Membership => 2,
    };
    let head = (KIND_ENTRY, detail, entry.id.term, entry.id.index);
    encode(buffer, salt, batch, chain, head, &entry.payload)
}

/// As [`encode_entry`], for any record.
pub(super) fn encode_record(
    buffer: &mut Vec<u8>,
    salt: Salt,
    batch: u64,
    chain: u32,
    record: &Record,
) -> u32 {
    let pointer = |kind, id: Option<EntryId>| {
        let EntryId { term, index } = id.unwrap_or_default();
        (kind, u8::from(id.is_some()), term, index)
    };
    let head = match record {
        Record::Entry(entry) => return encode_entry(buffer, salt, batch, chain, entry),
        Record::Vote(vote) => (KIND_VOTE, u8::from(vote.committed), vote.term, vote.node),
        Record::Truncate(last) => pointer(KIND_TRUNCATE, *last),
        Record::Committed(committed) => pointer(KIND_COMMITTED, *committed),
        Record::Purge(upto) => pointer(KIND_PURGE, Some(*upto)),
        Record::Reset(upto) => pointer(KIND_RESET, Some(*upto)),
    };
    encode(buffer, salt, batch, chain, head, &[])
}

fn encode(
    buffer: &mut Vec<u8>,
    salt: Salt,
    batch: u64,
    chain: u32,
    (kind, detail, term, index): (u8, u8, u64, u64),
    payload: &[u8],
) -> u32 {
    let length = u32::try_from(payload.len()).expect("the queue's limit is far below 4 GiB");
    let mut head = [0; RECORD_HEADER_BYTES];
    put(&mut head, 0, &length.to_le_bytes());
    put(&mut head, 8, &chain.to_le_bytes());
    head[12] = kind;
    head[13] = detail;
    put(&mut head, 16, &term.to_le_bytes());
    put(&mut head, 24, &index.to_le_bytes());
    put(&mut head, 32, &batch.to_le_bytes());
    let crc = salt.crc([&head[..4], &head[8..], payload]);
    put(&mut head, 4, &crc.to_le_bytes());
    buffer.extend_from_slice(&head);
    buffer.extend_from_slice(payload);
    crc
}

impl RecordHeader {
    /// Reads the fields; nothing is checked yet.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self {
            length: u32_at(bytes, 0),
            crc: u32_at(bytes, 4),
            chain: u32_at(bytes, 8),
            kind: bytes[12],
            detail: bytes[13],
            term: u64_at(bytes, 16),
            index: u64_at(bytes, 24),
            batch: u64_at(bytes, 32),
        }
    }

    /// The checksum of the whole record `bytes` (header and payload) when it holds.
    pub(super) fn verify(&self, bytes: &[u8], salt: Salt) -> Option<u32> {
        let payload = &bytes[RECORD_HEADER_BYTES..];
        let crc = salt.crc([&bytes[..4], &bytes[8..RECORD_HEADER_BYTES], payload]);
        (crc == self.crc).then_some(crc)
    }

    pub(super) fn is_entry(&self) -> bool {
        self.kind == KIND_ENTRY
    }

    /// The record, with `payload`. `None`: a kind that this version does not know.
    pub(super) fn record(&self, payload: Bytes) -> Option<Record> {
        let id = EntryId::new(self.term, self.index);
        let pointer = (self.detail != 0).then_some(id);
        Some(match (self.kind, self.detail) {
            (KIND_ENTRY, detail) => {
                let kind = match detail {
                    0 => EntryKind::Blank,
                    1 => EntryKind::Normal,
                    2 => EntryKind::Membership,
                    _ => return None,
                };
                Record::Entry(Entry { id, kind, payload })
            }
            (KIND_VOTE, 0 | 1) => Record::Vote(Vote {
                term: self.term,
                node: self.index,
                committed: self.detail == 1,
            }),
            (KIND_TRUNCATE, 0 | 1) => Record::Truncate(pointer),
            (KIND_COMMITTED, 0 | 1) => Record::Committed(pointer),
            (KIND_PURGE, 1) => Record::Purge(id),
            (KIND_RESET, 1) => Record::Reset(id),
            _ => return None,
        })
    }
}
