//! Forgetting the past: from the compact revision on everything stays readable, what only older
//! reads could see is removed in bounded steps behind the scenes.
//!
//! Events lead to the garbage: the event that ended a pair names it. So the work grows with what
//! was written since the last compaction, not with the number of keys.

use quorate_proto::Reason;

use crate::storage::codec::{self, EventRecord, MetaKey};
use crate::storage::kv::{Direction, KvError, View, WriteBatch};

use super::{Overlay, Revision, meta};

/// Progress of a finished compaction up to main revision `main`.
const fn finished(main: i64) -> Revision {
    Revision::new(main, i64::MAX)
}

/// Whether history may be compacted at `revision`, given the current and the compact one.
///
/// # Errors
///
/// [`Reason::Compacted`] at or below the compact revision, [`Reason::FutureRevision`] above the
/// current one.
pub fn check(current: i64, compacted: i64, revision: i64) -> Result<(), Reason> {
    if revision <= compacted {
        Err(Reason::Compacted)
    } else if revision > current {
        Err(Reason::FutureRevision)
    } else {
        Ok(())
    }
}

/// Makes `revision`, which passed [`check`], the compact revision: older reads are refused from
/// now on. Removal is left to [`step`].
pub fn schedule(overlay: &mut Overlay, revision: i64) {
    meta::set_number(overlay, MetaKey::CompactRevision, revision);
}

/// A compaction under way: how far it is, and where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    target: i64,
    next: Revision,
}

/// One bounded piece of removal.
#[derive(Debug)]
pub struct Step {
    /// To commit; it commutes with everything applied meanwhile. Harmless if done twice.
    pub batch: WriteBatch,
    /// What to do next, once the batch is committed; `None` if this compaction is finished.
    pub next: Option<Cursor>,
}

/// Where removal has to begin or go on; `None` if there is nothing to remove.
///
/// # Errors
///
/// Storage failures.
pub fn pending(view: &dyn View) -> Result<Option<Cursor>, KvError> {
    let target = meta::compact_revision(view)?;
    let record = view.get(&codec::meta_key(MetaKey::CompactionProgress))?;
    let progress = match record {
        Some(record) => decode_progress(&record)?,
        None => Revision::new(0, 0),
    };
    if target <= 0 || progress >= finished(target) {
        return Ok(None);
    }
    // Events of the revision reached may have to be looked at again: those at a compact revision
    // are kept until the next one.
    Ok(Some(Cursor {
        target,
        next: Revision::new(progress.main, 0),
    }))
}

/// Looks at up to `items_max` events (at least one) and gives what can be removed with them.
///
/// # Errors
///
/// Storage failures.
pub fn step(view: &dyn View, cursor: Cursor, items_max: usize) -> Result<Step, KvError> {
    let Cursor { target, next } = cursor;
    let mut batch = WriteBatch::new();
    let (_, end) = codec::event_bounds(0, target);
    let start = std::ops::Bound::Included(codec::event_key(next));
    let mut progress = finished(target);
    for (looked_at, stored) in view.range(start, end, Direction::Forward).enumerate() {
        let (key, record) = stored?;
        let revision = codec::event_revision(&key)?;
        if looked_at >= items_max.max(1) {
            progress = revision;
            break;
        }
        let record = EventRecord::decode(record)?;
        // The pair ended at or before the target, so no read at the target sees it. If it also
        // began at the target, an event that is still to be read made it.
        if let Some(ended) = record.replaced.filter(|ended| ended.main != target) {
            batch.delete(codec::version_key(&record.key, ended));
        }
        if revision.main < target {
            batch.delete(key);
        }
    }
    batch.put(
        codec::meta_key(MetaKey::CompactionProgress),
        encode_progress(progress),
    );
    let next = (progress != finished(target)).then_some(Cursor {
        target,
        next: progress,
    });
    Ok(Step { batch, next })
}

fn encode_progress(progress: Revision) -> Vec<u8> {
    let halves = [progress.main.to_be_bytes(), progress.sub.to_be_bytes()];
    halves.concat()
}

fn decode_progress(record: &[u8]) -> Result<Revision, KvError> {
    match record.split_at_checked(8) {
        Some((main, sub)) => Ok(Revision::new(
            codec::decode_number(main)?,
            codec::decode_number(sub)?,
        )),
        None => Err(KvError::corrupt("compaction progress")),
    }
}
