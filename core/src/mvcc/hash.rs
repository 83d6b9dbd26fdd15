//! HashKV: a checksum of what can be read, for comparing members.
//!
//! It covers the pairs visible at the compact revision and the events after it, up to the revision
//! asked for: the same on every member that has both revisions, however far each has got with
//! removing old history.

use quorate_proto::mvccpb::KeyValue;
use quorate_proto::{KeyRange, Reason};

use crate::storage::kv::View;

use super::read::historic;
use super::{Error, Event, EventKind, Revision, history, meta};

/// A checksum and what it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKv {
    /// CRC32C.
    pub hash: u32,
    /// The oldest readable revision; -1 if never compacted.
    pub compact_revision: i64,
    /// The newest revision covered.
    pub revision: i64,
    /// Current revision as of the view.
    pub current_revision: i64,
}

/// The checksum at main revision `revision`; 0 or less means the current one. Reads everything, so
/// it takes time in proportion to the store.
///
/// # Errors
///
/// Refused with [`Reason::FutureRevision`] or [`Reason::Compacted`]; the compact revision itself is
/// fine.
pub fn hash_kv(view: &dyn View, revision: i64) -> Result<HashKv, Error> {
    let current_revision = meta::current_revision(view)?;
    let compact_revision = meta::compact_revision(view)?;
    let revision = if revision <= 0 {
        current_revision
    } else {
        revision
    };
    if revision > current_revision {
        return Err(Reason::FutureRevision.into());
    }
    if revision < compact_revision {
        return Err(Reason::Compacted.into());
    }
    let mut hash = 0;
    for pair in historic(view, &KeyRange::all(), compact_revision) {
        let (kv, _) = pair?;
        hash = with_pair(hash, &kv);
    }
    let first = Revision::new(compact_revision.max(0) + 1, 0);
    for stored in history::stored(view, first, Revision::new(revision, i64::MAX)) {
        let (revision, record) = stored?;
        let event = history::completed(view, revision, record)?;
        hash = with_event(hash, &event);
    }
    Ok(HashKv {
        hash,
        compact_revision,
        revision,
        current_revision,
    })
}

fn with_number(hash: u32, number: i64) -> u32 {
    crc32c::crc32c_append(hash, &number.to_le_bytes())
}

fn with_bytes(hash: u32, bytes: &[u8]) -> u32 {
    let length = i64::try_from(bytes.len()).expect("a slice's length fits an i64");
    crc32c::crc32c_append(with_number(hash, length), bytes)
}

fn with_pair(hash: u32, kv: &KeyValue) -> u32 {
    let hash = with_bytes(with_bytes(hash, &kv.key), &kv.value);
    let numbers = [kv.create_revision, kv.mod_revision, kv.version, kv.lease];
    numbers.into_iter().fold(hash, with_number)
}

fn with_event(hash: u32, event: &Event) -> u32 {
    let kind = i64::from(event.kind == EventKind::Delete);
    let numbers = [kind, event.revision.main, event.revision.sub];
    with_pair(numbers.into_iter().fold(hash, with_number), &event.kv)
}
