//! Reads of the replicated state, from any thread. Used by `node` and, for its views, by `watch`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;

use super::{Alarm, Member};
use crate::lease::Lessor;
use crate::mvcc::{Event, EventKind};
use crate::storage::kv::{Kv, View};

/// Shows the state after the last applied batch. Cheap to clone; stays valid, and follows, when a
/// snapshot replaces the store.
#[derive(Debug, Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

/// What this member has applied since it started.
#[derive(Debug, Default)]
struct Written {
    puts: AtomicU64,
    deletes: AtomicU64,
}

#[derive(Debug)]
struct Shared {
    written: Written,
    current: RwLock<Current>,
    lessor: Lessor,
    quota_bytes: u64,
}

/// What is replaced after each batch.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) kv: Arc<dyn Kv>,
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
    pub(super) alarms: Arc<[Alarm]>,
    pub(super) members: Arc<[Member]>,
    pub(super) membership: Option<Bytes>,
    pub(super) is_restore_unfinished: bool,
}

impl Reader {
    pub(super) fn new(current: Current, lessor: Lessor, quota_bytes: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                written: Written::default(),
                current: RwLock::new(current),
                lessor,
                quota_bytes,
            }),
        }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Current)) {
        let mut current = self
            .shared
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut current);
    }

    /// Counts what a batch wrote.
    pub(super) fn count(&self, revisions: &[Vec<Event>]) {
        let (mut puts, mut deletes) = (0, 0);
        for event in revisions.iter().flatten() {
            match event.kind {
                EventKind::Put => puts += 1,
                EventKind::Delete => deletes += 1,
            }
        }
        let written = &self.shared.written;
        written.puts.fetch_add(puts, Ordering::Relaxed);
        written.deletes.fetch_add(deletes, Ordering::Relaxed);
    }

    /// Keys put and keys deleted that this member has applied since it started, transactions and
    /// ended leases included.
    #[must_use]
    pub fn written(&self) -> (u64, u64) {
        let written = &self.shared.written;
        (
            written.puts.load(Ordering::Relaxed),
            written.deletes.load(Ordering::Relaxed),
        )
    }

    fn current(&self) -> RwLockReadGuard<'_, Current> {
        self.shared
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The store in use: for persisting it, and for removing compacted history.
    #[must_use]
    pub fn kv(&self) -> Arc<dyn Kv> {
        Arc::clone(&self.current().kv)
    }

    /// A read view of the store; for an instant it may be a batch ahead of the other answers here.
    /// Reading it is disk work, not for a runtime thread.
    #[must_use]
    pub fn view(&self) -> Arc<dyn View> {
        self.kv().view()
    }

    /// The main revision; 1 in a fresh store.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.current().revision
    }

    /// The compact revision; -1 before any compaction.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        self.current().compact_revision
    }

    /// The leases.
    #[must_use]
    pub fn lessor(&self) -> Lessor {
        self.shared.lessor.clone()
    }

    /// The alarms raised, in order of member.
    #[must_use]
    pub fn alarms(&self) -> Arc<[Alarm]> {
        Arc::clone(&self.current().alarms)
    }

    /// The last membership applied, as it was given; `None` before the first one.
    #[must_use]
    pub fn membership(&self) -> Option<Bytes> {
        self.current().membership.clone()
    }

    /// Whether the state was restored from a backup and refuses what clients ask for until a leader
    /// has raised the epoch.
    #[must_use]
    pub fn is_restore_unfinished(&self) -> bool {
        self.current().is_restore_unfinished
    }

    /// What members said of themselves, in order of id.
    #[must_use]
    pub fn members(&self) -> Arc<[Member]> {
        Arc::clone(&self.current().members)
    }

    /// Size of the store in bytes: approximate.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.kv().disk_bytes()
    }

    /// Whether the store has outgrown its quota: the member should refuse what would grow it and
    /// propose to raise its NOSPACE alarm. Only the alarm changes what commands do, since members
    /// differ in size.
    #[must_use]
    pub fn over_quota(&self) -> bool {
        let quota = self.shared.quota_bytes;
        quota > 0 && self.disk_bytes() > quota
    }
}
