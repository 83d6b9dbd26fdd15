//! Forgetting the past: from the compact revision on everything stays readable, what only older
//! reads could see is removed in bounded steps behind the scenes.
//!
//! Events lead to the garbage: the event that ended a pair names it. So the work grows with what
//! was written since the last compaction, not with the number of keys.

use quorate_proto::Reason;

use crate::storage::codec::{self, MetaKey};
use crate::storage::kv::{KvError, View, WriteBatch};

use super::{Overlay, Revision, history, meta};

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
    /// The next event to look at; all before it are done.
    next: Revision,
}

impl Cursor {
    /// Nothing left up to `target`.
    const fn finished(target: i64) -> Cursor {
        let next = Revision::new(target, i64::MAX);
        Cursor { target, next }
    }

    /// The record of the progress made.
    fn encode(self) -> Vec<u8> {
        let numbers = [self.target, self.next.main, self.next.sub];
        numbers.map(i64::to_be_bytes).concat()
    }

    fn decode(record: &[u8]) -> Result<Cursor, KvError> {
        let ([target, main, sub], []) = record.as_chunks::<8>() else {
            return Err(KvError::corrupt("compaction progress"));
        };
        let [target, main, sub] = [target, main, sub].map(|bytes| i64::from_be_bytes(*bytes));
        let next = Revision::new(main, sub);
        Ok(Cursor { target, next })
    }
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
    let done = match record {
        Some(record) => Cursor::decode(&record)?,
        None => Cursor::finished(0),
    };
    if target <= 0 || done == Cursor::finished(target) {
        return Ok(None);
    }
    let mut next = done.next;
    if next.main == done.target && target != done.target {
        // Events at a compact revision, those before that are stored with them, and pairs that came
        // and went there, are kept until the next compaction.
        next.sub = 0;
    }
    Ok(Some(Cursor { target, next }))
}

/// Looks at up to `items_max` events (at least one) and gives what can be removed with them.
///
/// # Errors
///
/// Storage failures.
pub fn step(view: &dyn View, cursor: Cursor, items_max: usize) -> Result<Step, KvError> {
    let Cursor { target, next } = cursor;
    let mut batch = WriteBatch::new();
    let (mut done, mut looked_at) = (Cursor::finished(target), 0);
    'records: for record in history::records(view, next, Cursor::finished(target).next)? {
        let (key, events) = record?;
        let is_past = events.last().is_some_and(|(last, _)| last.main < target);
        for (revision, event) in events {
            if revision < next {
                continue;
            }
            if revision.main > target {
                break 'records;
            }
            if looked_at >= items_max.max(1) {
                done.next = revision;
                break 'records;
            }
            looked_at += 1;
            // The pair ended at or before the target, so no read at the target sees it. If it also
            // began at the target, an event that is still to be read made it.
            if let Some(ended) = event.replaced.filter(|ended| ended.main != target) {
                batch.delete(codec::version_key(&event.key, ended));
            }
        }
        // Events that are still to be read may be stored together with earlier ones.
        if is_past {
            batch.delete(key);
        }
    }
    batch.put(codec::meta_key(MetaKey::CompactionProgress), done.encode());
    let next = (done != Cursor::finished(target)).then_some(done);
    Ok(Step { batch, next })
}
