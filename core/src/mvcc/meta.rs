//! The single numbers of the store: current and compact revision; used by all of `mvcc` and by
//! whoever asks a view how far it is.

use crate::storage::codec::{self, MetaKey};
use crate::storage::kv::{KvError, View};

use super::Overlay;

/// Current revision of a store in which nothing was ever written.
pub const FIRST_REVISION: i64 = 1;

/// Compact revision of a store that was never compacted: below every revision asked for.
pub const NEVER_COMPACTED: i64 = -1;

/// The current main revision as of the view; 1 in a fresh store.
///
/// # Errors
///
/// Storage failures.
pub fn current_revision(view: &dyn View) -> Result<i64, KvError> {
    Ok(number(view, MetaKey::CurrentRevision)?.unwrap_or(FIRST_REVISION))
}

/// The compact revision as of the view: the oldest that can be read; -1 before any compaction.
///
/// # Errors
///
/// Storage failures.
pub fn compact_revision(view: &dyn View) -> Result<i64, KvError> {
    Ok(number(view, MetaKey::CompactRevision)?.unwrap_or(NEVER_COMPACTED))
}

/// A number kept in `meta`, if it was ever set.
///
/// # Errors
///
/// Storage failures, and a record that is no number.
pub fn number(view: &dyn View, key: MetaKey) -> Result<Option<i64>, KvError> {
    let record = view.get(&codec::meta_key(key))?;
    record
        .map(|record| codec::decode_number(&record))
        .transpose()
}

/// Sets a number in `meta`.
pub fn set_number(overlay: &mut Overlay, key: MetaKey, number: i64) {
    overlay.put(codec::meta_key(key), codec::encode_number(number));
}
