//! Opening: reads all segments, tells a torn tail from a hole, cuts the one and refuses the other.
//!
//! One batch is in flight at a time, so a batch is on disk only when every batch before it was
//! synced. Hence: what follows a bad batch decides. A valid header of a later batch, anywhere at a
//! batch boundary up to the end of the last segment, proves that the bad one was whole once: a hole.
//! Nothing of the kind: the bad one was never acknowledged, or it was the very last; it is cut.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::{info, warn};

use super::{
    cache::Cache,
    error::WalError,
    format::{
        BLOCK, BLOCK_BYTES, BadHeader, BatchHeader, FORMAT_VERSION, Record, SegmentHeader, align,
    },
    ledger::{Ledger, Points},
    marks::{Mark, Marks},
    read::{Batch, Found, SCAN_BYTES, Window, read_batch},
    segment::{Segment, Start, create_segment, is_spare, prepare, segment_number, segment_path},
    types::{Position, WalOptions},
};
use crate::storage::fs::{DirLock, Fs};

/// A log that was opened: whole, synced, and locked.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) lock: Box<dyn DirLock>,
    pub(super) cache: Cache,
    pub(super) marks: Marks,
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
    /// Segments that nothing needs any more.
    pub(super) dead: Vec<PathBuf>,
    pub(super) tail: Tail,
}

/// Where the writer goes on.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) active: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) next_batch: u64,
    pub(super) chain: u32,
    pub(super) ledger: Ledger,
}

/// Whether there is a log in `dir`.
pub(super) fn exists(fs: &dyn Fs, dir: &Path) -> Result<bool, WalError> {
    match fs.list(dir) {
        Ok(names) => Ok(names.iter().any(|name| segment_number(name).is_some())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(WalError::io("list", dir, error)),
    }
}

/// Opens, or creates, the log in `dir`.
pub(super) fn recover(
    fs: &dyn Fs,
    dir: &Path,
    options: &WalOptions,
) -> Result<Recovered, WalError> {
    fs.create_dir(dir)
        .map_err(|error| WalError::io("create", dir, error))?;
    let lock = fs.lock_dir(dir).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => WalError::Locked {
            dir: dir.to_owned(),
        },
        _ => WalError::io("lock", dir, error),
    })?;
    let names = fs
        .list(dir)
        .map_err(|error| WalError::io("list", dir, error))?;
    for name in names.iter().filter(|name| is_spare(name)) {
        let path = dir.join(name);
        fs.remove(&path)
            .map_err(|error| WalError::io("remove", path, error))?;
    }
    let mut found = Vec::new();
    for number in names.iter().filter_map(|name| segment_number(name)) {
        found.push(load_header(fs, dir, number, options)?);
    }
    found.sort_by_key(|(segment, _)| segment.number);
    if found.is_empty() {
        return create(fs, dir, options, lock);
    }
    // A gap is a left-over of removals if what follows it is complete; the replay tells.
    let gap = found
        .windows(2)
        .rposition(|pair| pair[0].0.number + 1 != pair[1].0.number);
    let mut dead: Vec<_> = found
        .drain(..gap.map_or(0, |gap| gap + 1))
        .map(|(segment, _)| segment.path.clone())
        .collect();
    let replay = Replay::run(&found, options)?;
    if !replay.ledger.is_whole() {
        return Err(WalError::MissingSegment {
            file: segment_path(dir, found[0].0.number - 1),
            why: if gap.is_some() {
                "there are older and newer ones"
            } else {
                "the oldest one there does not begin where the log does"
            },
        });
    }
    let (active, offset) = replay.make_durable(fs, dir, &found)?;
    let mut segments: BTreeMap<_, _> = found
        .into_iter()
        .map(|(segment, _)| (segment.number, segment))
        .collect();
    dead.extend(take_dead(&mut segments, &replay.marks, active.number));
    let points = replay.ledger.points();
    info!(
        dir = %dir.display(), segments = segments.len(), batches = replay.next_batch - 1,
        vote = ?points.vote, purged = ?points.purged, last = ?points.last, "opened the log"
    );
    Ok(Recovered {
        lock,
        cache: replay.cache,
        marks: replay.marks,
        segments,
        dead,
        tail: Tail {
            active,
            offset,
            next_batch: replay.next_batch,
            chain: replay.chain,
            ledger: replay.ledger,
        },
    })
}

/// Takes the segments without live entries out of `segments`, oldest first; never the active one.
pub(super) fn take_dead(
    segments: &mut BTreeMap<u64, Arc<Segment>>,
    marks: &Marks,
    active: u64,
) -> Vec<PathBuf> {
    let oldest = marks.oldest_segment().unwrap_or(active).min(active);
    let live = segments.split_off(&oldest);
    std::mem::replace(segments, live)
        .into_values()
        .map(|segment| segment.path.clone())
        .collect()
}

fn create(
    fs: &dyn Fs,
    dir: &Path,
    options: &WalOptions,
    lock: Box<dyn DirLock>,
) -> Result<Recovered, WalError> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs.sync_dir(parent)
            .map_err(|error| WalError::io("sync", parent, error))?;
    }
    let spare = dir.join("0.spare");
    let file = prepare(fs, &spare, options.segment_bytes)?;
    let start = Start {
        number: 1,
        first_batch: 1,
        chain: 0,
        points: Points::default(),
    };
    let active = Arc::new(create_segment(fs, dir, options, (spare, file), &start)?);
    info!(dir = %dir.display(), "created the log");
    Ok(Recovered {
        lock,
        cache: Cache::new(options.cache_bytes),
        marks: Marks::default(),
        segments: BTreeMap::from([(1, Arc::clone(&active))]),
        dead: Vec::new(),
        tail: Tail {
            active,
            offset: BLOCK,
            next_batch: 1,
            chain: 0,
            ledger: Ledger::default(),
        },
    })
}

type Loaded = (Arc<Segment>, SegmentHeader);

fn load_header(
    fs: &dyn Fs,
    dir: &Path,
    number: u64,
    options: &WalOptions,
) -> Result<Loaded, WalError> {
    let path = segment_path(dir, number);
    let failed = |error| WalError::io("read", &path, error);
    let corrupt = |what: String| WalError::Corrupt {
        file: path.clone(),
        offset: 0,
        what,
    };
    let file = fs.open(&path).map_err(failed)?;
    let bytes = file.len().map_err(failed)?;
    let mut block = vec![0; BLOCK_BYTES];
    let filled = file.read_at(0, &mut block).map_err(failed)?;
    let header = SegmentHeader::decode(&block[..filled]).map_err(|bad| match bad {
        BadHeader::Damaged(what) => corrupt(what.into()),
        BadHeader::Newer(found) => WalError::NewerFormat {
            file: path.clone(),
            found,
            supported: FORMAT_VERSION,
        },
    })?;
    if header.identity != options.identity {
        return Err(WalError::WrongIdentity {
            file: path,
            found: header.identity,
            expected: options.identity,
        });
    }
    if header.number != number {
        let found = header.number;
        return Err(corrupt(format!("this is a copy of segment {found:016x}")));
    }
    if bytes < header.file_bytes {
        let expected = header.file_bytes;
        return Err(corrupt(format!(
            "the file was cut to {bytes} bytes, it was created with {expected}"
        )));
    }
    let segment = Segment::new(path, file, &header, bytes);
    Ok((Arc::new(segment), header))
}

/// The state that the batches add up to.
struct Replay {
    ledger: Ledger,
    cache: Cache,
    marks: Marks,
    next_batch: u64,
    chain: u32,
    /// Where the next batch goes in the segment that is read.
    offset: u64,
    /// The last batch of that segment, from its header to the end of its records.
    last_batch: Option<(u64, u64)>,
    /// Where the remains of a torn batch end.
    torn_end: u64,
}

impl Replay {
    fn run(found: &[Loaded], options: &WalOptions) -> Result<Self, WalError> {
        let first = &found[0].1;
        let mut replay = Self {
            ledger: Ledger::resume(first.points),
            cache: Cache::new(options.cache_bytes),
            marks: Marks::default(),
            next_batch: first.first_batch,
            chain: first.chain,
            offset: BLOCK,
            last_batch: None,
            torn_end: 0,
        };
        let mut later_bytes: u64 = found.iter().map(|(segment, _)| segment.bytes()).sum();
        for (at, (segment, header)) in found.iter().enumerate() {
            later_bytes -= segment.bytes();
            // Entries that would be pushed out again are not worth copying.
            let cached = later_bytes <= options.cache_bytes as u64;
            replay.enter(segment, header)?;
            let next = found.get(at + 1);
            replay.read_segment(
                segment,
                next.map(|(next, header)| (&**next, header)),
                cached,
            )?;
        }
        Ok(replay)
    }

    /// Compares a segment's header with what the segments before it say.
    fn enter(&mut self, segment: &Segment, header: &SegmentHeader) -> Result<(), WalError> {
        let same = header.first_batch == self.next_batch
            && header.chain == self.chain
            && header.points == self.ledger.points();
        if !same {
            return Err(WalError::Corrupt {
                file: segment.path.clone(),
                offset: 0,
                what: "the segment does not continue the one before it".into(),
            });
        }
        self.offset = BLOCK;
        self.last_batch = None;
        Ok(())
    }

    fn read_segment(
        &mut self,
        segment: &Segment,
        next: Option<(&Segment, &SegmentHeader)>,
        cached: bool,
    ) -> Result<(), WalError> {
        let mut window = Window::new(&*segment.file, &segment.path, SCAN_BYTES);
        loop {
            if next.is_some_and(|(_, header)| header.first_batch == self.next_batch) {
                return Ok(());
            }
            let place = (self.offset, self.next_batch, self.chain);
            match (read_batch(&mut window, segment.salt, place, cached)?, next) {
                (Found::Batch(batch), _) => self.apply(segment, batch, cached)?,
                (Found::Bad, None) => return self.find_end(segment, &mut window),
                (Found::Sealed(number), None) => {
                    let dir = segment.path.parent().unwrap_or(Path::new(""));
                    return Err(WalError::MissingSegment {
                        file: segment_path(dir, number),
                        why: "the last one there says that the log goes on in it",
                    });
                }
                (Found::Bad | Found::Sealed(_), Some((later, header))) => {
                    return Err(self.hole(segment, later, header.first_batch, BLOCK));
                }
            }
        }
    }

    fn hole(&self, segment: &Segment, later: &Segment, batch: u64, offset: u64) -> WalError {
        WalError::Hole {
            file: segment.path.clone(),
            offset: self.offset,
            batch: self.next_batch,
            later_file: later.path.clone(),
            later_offset: offset,
            later_batch: batch,
        }
    }

    fn apply(&mut self, segment: &Segment, batch: Batch, cached: bool) -> Result<(), WalError> {
        for (offset, record) in batch.records {
            self.ledger
                .apply(&record)
                .map_err(|what| WalError::Corrupt {
                    file: segment.path.clone(),
                    offset,
                    what,
                })?;
            if let Record::Entry(entry) = record {
                self.marks.note(Mark {
                    first_index: entry.id.index,
                    segment: segment.number,
                    offset,
                    batch_end: batch.end,
                });
                if cached {
                    self.cache.push(Position::default(), entry);
                }
            } else {
                self.marks.change(&record);
                self.cache.change(&record);
            }
        }
        self.cache.evict(Position::default());
        self.last_batch = Some((self.offset, batch.end));
        self.offset = align(batch.end);
        self.next_batch += 1;
        self.chain = batch.chain;
        Ok(())
    }

    /// Looks at every batch boundary after the last good batch of the last segment.
    fn find_end(&mut self, segment: &Segment, window: &mut Window<'_>) -> Result<(), WalError> {
        const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
        let mut at = self.offset;
        loop {
            let block = window.some_bytes(at, BLOCK_BYTES)?;
            if block.is_empty() {
                return Ok(());
            }
            if block != &ZEROS[..block.len()] {
                self.torn_end = at + block.len() as u64;
            }
            if let Some(later) = BatchHeader::decode(block, segment.salt)
                && later.number > self.next_batch
            {
                return Err(self.hole(segment, segment, later.number, at));
            }
            at += BLOCK;
        }
    }

    /// Cuts a torn tail, and syncs what was read: it may have come from the operating system's
    /// memory. The last batch is written again first, because after a failed sync the system takes
    /// pages that never reached the disk for clean.
    fn make_durable(
        &self,
        fs: &dyn Fs,
        dir: &Path,
        found: &[Loaded],
    ) -> Result<(Arc<Segment>, u64), WalError> {
        let (segment, _) = found.last().expect("there is at least one segment");
        let failed = |action| move |error| WalError::io(action, &segment.path, error);
        if self.torn_end > self.offset {
            warn!(
                file = %segment.path.display(), offset = self.offset,
                bytes = self.torn_end - self.offset, batch = self.next_batch,
                "the last write was not finished, its remains are cut"
            );
            let zeros = vec![0; SCAN_BYTES];
            let mut at = self.offset;
            while at < self.torn_end {
                let rest = usize::try_from(self.torn_end - at).unwrap_or(SCAN_BYTES);
                let piece = &zeros[..rest.min(SCAN_BYTES)];
                segment.file.write_at(at, piece).map_err(failed("cut"))?;
                at += piece.len() as u64;
            }
        }
        if let Some((from, end)) = self.last_batch {
            let length = usize::try_from(end - from).expect("the batch was in memory before");
            let mut window = Window::new(&*segment.file, &segment.path, length);
            let bytes = window.some_bytes(from, length)?;
            segment
                .file
                .write_at(from, bytes)
                .map_err(failed("write"))?;
        }
        segment.file.sync_data().map_err(failed("sync"))?;
        fs.sync_dir(dir)
            .map_err(|error| WalError::io("sync", dir, error))?;
        Ok((Arc::clone(segment), self.offset))
    }
}
