//! The raft log's files: whatever is in them, opening does not panic, asks for no more memory than they
//! are long, and either refuses or gives a prefix of what was written (of what the made-up records
//! say). What was opened takes further entries and opens again with them.
//!
//! Layouts are those of docs/formats.md, written here a second time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use quorate_core::storage::fs::{Fs, MemFs};
use quorate_core::storage::wal::{
    Entry, EntryId, EntryKind, FlushCallback, Identity, LogState, Vote, Wal, WalError, WalOptions,
    WriterMode,
};

use crate::Input;

const BLOCK_BYTES: usize = 4096;
const IDENTITY: Identity = Identity {
    cluster_id: 7,
    member_id: 3,
};
const SALT: u64 = 0x5eed;
/// Records of a made-up log, and changes of a real one, at most.
const STEPS_MAX: usize = 16;

fn dir() -> &'static Path {
    Path::new("/wal")
}

/// One run.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => {
            let fs = MemFs::new();
            put(&fs, 1, input.rest());
            drop(open(&fs));
        }
        1 => made_up(&mut input),
        _ => damaged(&mut input),
    }
}

fn open(fs: &MemFs) -> Result<Wal, WalError> {
    let options = WalOptions {
        segment_bytes: 4 * BLOCK_BYTES as u64,
        cache_bytes: 512,
        writer: WriterMode::Caller,
        ..WalOptions::new(IDENTITY, SALT)
    };
    Wal::open(Arc::new(fs.clone()), dir(), options)
}

fn put(fs: &MemFs, number: u64, bytes: &[u8]) {
    let path = dir().join(format!("{number:016x}.wal"));
    let file = fs.create(&path, 0).expect("each number once");
    file.write_at(0, bytes).expect("memory does not fail");
}

fn ignore() -> FlushCallback {
    Box::new(|_| {})
}

fn all(wal: &Wal) -> Vec<Entry> {
    wal.read(0..u64::MAX, usize::MAX)
        .expect("what opened is readable")
}

/// What a log shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    entries: Vec<Entry>,
    ends: LogState,
    vote: Option<Vote>,
    committed: Option<EntryId>,
}

impl Shown {
    fn by(wal: &Wal) -> Self {
        Self {
            entries: all(wal),
            ends: wal.log_state(),
            vote: wal.vote(),
            committed: wal.committed(),
        }
    }

    /// Whether its parts agree.
    fn check(&self) {
        let LogState { purged, last } = self.ends;
        let mut before = purged;
        for entry in &self.entries {
            if let Some(before) = before {
                assert_eq!(before.index.checked_add(1), Some(entry.id.index), "no gap");
                assert!(before.term <= entry.id.term, "terms do not fall");
            }
            before = Some(entry.id);
        }
        assert_eq!(before, last, "the last entry is the end");
    }
}

/// A log that opened: its parts agree, it goes on, and it opens again with all that it acknowledged.
fn goes_on(fs: &MemFs, wal: &Wal) {
    let mut shown = Shown::by(wal);
    shown.check();
    let last = shown.ends.last.unwrap_or_default();
    let id = EntryId::new(last.term, last.index.wrapping_add(1));
    let entry = Entry {
        id,
        kind: EntryKind::Normal,
        payload: Bytes::from_static(b"one more"),
    };
    let before = shown.clone();
    let acknowledged = Arc::new(AtomicBool::new(false));
    let acknowledge = Arc::clone(&acknowledged);
    let on_flushed = Box::new(move |flushed: std::io::Result<()>| {
        acknowledge.store(flushed.is_ok(), Ordering::Relaxed);
    });
    let appended = wal.append(vec![entry.clone()], on_flushed).is_ok();
    if appended {
        shown.entries.push(entry);
        shown.ends.last = Some(id);
    }
    assert_eq!(Shown::by(wal), shown);
    let closed = wal.close();
    let again = open(fs).expect("what it left can be read");
    if acknowledged.load(Ordering::Relaxed) || !appended {
        closed.expect("memory does not fail");
        assert_eq!(Shown::by(&again), shown);
    } else {
        // There are no numbers left for further segments.
        assert_eq!(Shown::by(&again), before);
    }
}

// --- records that are made up, with all checksums right --------------------------------------------

fn seeded(parts: [&[u8]; 2]) -> [u8; 4] {
    let seed = crc32c::crc32c(&SALT.to_le_bytes());
    let crc = parts
        .iter()
        .fold(seed, |crc, part| crc32c::crc32c_append(crc, part));
    crc.to_le_bytes()
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A segment header: points are random, the rest is as it should be, or nearly.
fn segment_header(input: &mut Input<'_>, number: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    set(&mut block, 0, b"QUORWAL\n");
    set(&mut block, 8, &1_u32.to_le_bytes());
    set(&mut block, 16, &IDENTITY.cluster_id.to_le_bytes());
    set(&mut block, 24, &IDENTITY.member_id.to_le_bytes());
    set(&mut block, 32, &number.to_le_bytes());
    set(&mut block, 40, &SALT.to_le_bytes());
    set(&mut block, 48, &1_u64.to_le_bytes());
    block[68] = input.byte() & 0x1f;
    for at in (72..136).step_by(8) {
        if block[68] != 0 {
            set(&mut block, at, &input.extreme().to_le_bytes());
        }
    }
    if input.byte() == 1 {
        let at = 8 + input.below(140);
        set(&mut block, at, input.bytes(8));
    }
    set(&mut block, 12, &[0; 4]);
    let crc = crc32c::crc32c(&block);
    set(&mut block, 12, &crc.to_le_bytes());
    block
}

/// Appends a record to a batch; the checksum for the next one.
fn record(input: &mut Input<'_>, records: &mut Vec<u8>, batch: u64, chain: [u8; 4]) -> [u8; 4] {
    let mut head = [0; 40];
    let (kind, detail) = (input.byte(), input.byte());
    // Few entries of few terms, or numbers as they come.
    let (term, index) = if kind < 0x80 {
        (u64::from(input.byte() % 4), u64::from(input.byte() % 16))
    } else {
        (input.extreme(), input.extreme())
    };
    let payload = if kind % 8 == 1 { input.piece() } else { &[] };
    let length = u32::try_from(payload.len()).expect("an input is short");
    set(&mut head, 0, &length.to_le_bytes());
    set(&mut head, 8, &chain);
    head[12] = kind % 8;
    head[13] = detail % 4;
    set(&mut head, 16, &term.to_le_bytes());
    set(&mut head, 24, &index.to_le_bytes());
    set(&mut head, 32, &batch.to_le_bytes());
    let body = [&head[8..], payload].concat();
    let crc = seeded([&head[..4], &body]);
    set(&mut head, 4, &crc);
    records.extend_from_slice(&head);
    records.extend_from_slice(payload);
    crc
}

fn made_up(input: &mut Input<'_>) {
    let choice = input.byte();
    let number = if choice < 0xf0 { 1 } else { input.extreme() };
    let mut file = segment_header(input, number);
    let mut chain = [0; 4];
    for batch in 1..=STEPS_MAX as u64 {
        if input.is_empty() {
            break;
        }
        let (before, mut records) = (chain, Vec::new());
        let count = input.byte() % 8;
        for _ in 0..count {
            chain = record(input, &mut records, batch, chain);
        }
        let mut head = [0; 64];
        let seal = input.byte() == 255;
        set(&mut head, 0, if seal { b"QEND" } else { b"QBAT" });
        set(&mut head, 8, &SALT.to_le_bytes());
        set(&mut head, 16, &batch.to_le_bytes());
        set(&mut head, 24, &(file.len() as u64).to_le_bytes());
        let length = u32::try_from(records.len()).expect("an input is short");
        set(&mut head, 32, &length.to_le_bytes());
        set(&mut head, 36, &u32::from(count).to_le_bytes());
        set(&mut head, 40, &before);
        if input.byte() >= 0xf0 {
            let at = 16 + input.below(40);
            set(&mut head, at, input.bytes(8));
        }
        let crc = seeded([&head[..4], &head[8..]]);
        set(&mut head, 4, &crc);
        file.extend_from_slice(&head);
        file.extend_from_slice(&records);
        file.resize(file.len().next_multiple_of(BLOCK_BYTES), 0);
    }
    let fs = MemFs::new();
    put(&fs, number, &file);
    let beside = input.extreme();
    if choice == 0xff && beside != number {
        put(&fs, beside, &segment_header(input, beside));
    }
    if let Ok(wal) = open(&fs) {
        goes_on(&fs, &wal);
    }
}

// --- a real log, damaged ----------------------------------------------------------------------------

/// A closed log of several segments, and everything it showed on its way, in order.
struct Sample {
    files: Vec<(u64, Vec<u8>)>,
    history: Vec<Shown>,
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let fs = MemFs::new();
        let wal = open(&fs).expect("an empty folder");
        let mut history = vec![Shown::by(&wal)];
        for step in 0..9_u64 {
            let last = wal.log_state().last.unwrap_or_default();
            let entries = (1..=3_u64).map(|ahead| Entry {
                id: EntryId::new(1 + step / 4, last.index + ahead),
                kind: EntryKind::Normal,
                payload: vec![u8::try_from(step).expect("few"); 300].into(),
            });
            let done = match step % 4 {
                1 => wal.save_vote(vote(step), ignore()),
                3 => wal.truncate_after(wal.entry_id(last.index - 1), ignore()),
                _ => wal.append(entries.collect(), ignore()),
            };
            done.expect("memory does not fail");
            history.push(Shown::by(&wal));
        }
        wal.close().expect("memory does not fail");
        let names = fs.list(dir()).expect("a folder");
        let files = names.iter().filter_map(|name| {
            let number = u64::from_str_radix(name.strip_suffix(".wal")?, 16).ok()?;
            let file = fs.open(&dir().join(name)).ok()?;
            let mut bytes = vec![0; usize::try_from(file.len().ok()?).ok()?];
            file.read_at(0, &mut bytes).ok()?;
            Some((number, bytes))
        });
        let files: Vec<_> = files.collect();
        assert!(files.len() > 1, "more than one segment");
        Sample { files, history }
    })
}

fn vote(term: u64) -> Vote {
    Vote {
        term,
        node: 1,
        committed: false,
    }
}

fn damaged(input: &mut Input<'_>) {
    let Sample { files, history } = sample();
    let mut files = files.clone();
    for _ in 0..STEPS_MAX {
        if input.is_empty() || files.is_empty() {
            break;
        }
        damage(input, &mut files);
    }
    let emptied = files.is_empty();
    let fs = MemFs::new();
    for (number, bytes) in &files {
        put(&fs, *number, bytes);
    }
    if let Ok(wal) = open(&fs) {
        let shown = Shown::by(&wal);
        assert!(
            emptied && shown == history[0] || history.contains(&shown),
            "no state the log ever was in: {shown:?}"
        );
        goes_on(&fs, &wal);
    }
}

fn damage(input: &mut Input<'_>, files: &mut Vec<(u64, Vec<u8>)>) {
    let at = input.below(files.len());
    let choice = input.byte() % 8;
    let bytes = &mut files[at].1;
    // Most of a file is zeros: damage what is at the beginning of a block more often.
    let mut place = input.below(bytes.len().max(1));
    if choice.is_multiple_of(2) {
        place = place / BLOCK_BYTES * BLOCK_BYTES + place % 128;
    }
    match choice {
        0 | 1 => {
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << (input.byte() % 8);
            }
        }
        2 | 3 => {
            let new = input.bytes(8);
            for (to, from) in bytes.iter_mut().skip(place).zip(new) {
                *to = *from;
            }
        }
        4 => bytes.truncate(place),
        5 => {
            let block = place / BLOCK_BYTES * BLOCK_BYTES;
            let end = (block + BLOCK_BYTES).min(bytes.len());
            bytes[block..end].fill(0);
        }
        6 => {
            // An old block at another place.
            let from = input.below(bytes.len().max(1)) / BLOCK_BYTES * BLOCK_BYTES;
            let end = (from + BLOCK_BYTES).min(bytes.len());
            let old = bytes[from..end].to_vec();
            let to = place / BLOCK_BYTES * BLOCK_BYTES;
            for (to, from) in bytes.iter_mut().skip(to).zip(old) {
                *to = from;
            }
        }
        _ => drop(files.remove(at)),
    }
}
