//! Revisions, history, reads and compaction over a storage view; synchronous and deterministic.
//!
//! `apply` writes through an [`Overlay`] and its [`WriteTxn`]s; reads ([`range`]), the watch hub
//! ([`history`]), the corruption check ([`hash`]) and the compactor ([`compaction`]) take any
//! [`View`](crate::storage::kv::View). [`import`] fills an empty store.
//!
//! What always holds, for current revision `now` and compact revision `c`:
//! - A pair is in `keys` from its put until it is replaced or deleted, and in `versions` from then
//!   on, with the revision that ended it. At any main revision it is visible through exactly one of
//!   the two, so a read at `r` adds up the pairs of `keys` with mod revision `<= r` and those of
//!   `versions` that span `r`.
//! - Events of main revisions `c..=now` are complete, and so are the pairs they made; nothing that
//!   a read at `r >= c` needs is ever removed.
//! - What compaction has removed so far is not observable.
//!
//! Absent on purpose: an index of keys in memory (restart time and memory do not grow with the
//! number of keys), leases beyond the attachment of keys, and any clock.

mod attached;
pub mod compaction;
mod event;
pub mod hash;
pub mod history;
pub mod import;
pub mod meta;
mod overlay;
mod read;
mod write;

#[cfg(test)]
mod tests;

use quorate_proto::Reason;

use crate::storage::kv::KvError;

pub use crate::storage::codec::Revision;
pub use attached::{keys_of_lease, keys_of_leases};
pub use event::{Event, EventKind};
pub use overlay::Overlay;
pub use read::{Order, Page, RangeQuery, RangeResult, SortBy, key_value_at, range, scan_page};
pub use write::{Committed, WriteTxn};

/// Why a read or write failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request is at fault; the client is told the reason.
    #[error(transparent)]
    Refused(#[from] Reason),
    /// Storage is at fault.
    #[error(transparent)]
    Storage(#[from] KvError),
}
