//! Reads of the replicated state, from any thread. Used by `node` and `watch`.

use std::sync::Arc;

use super::{Alarm, Member};
use crate::lease::Lessor;
use crate::storage::kv::View;

/// Shows the state after the last applied batch. Cheap to clone; outlives snapshot installs.
#[derive(Debug, Clone)]
pub struct Reader {}

impl Reader {
    /// A read view of the store. Reading it is disk work: not for a runtime thread.
    #[must_use]
    pub fn view(&self) -> Arc<dyn View> {
        unimplemented!()
    }

    /// The main revision; 1 in a fresh store.
    #[must_use]
    pub fn revision(&self) -> i64 {
        unimplemented!()
    }

    /// The compact revision; 0 before any compaction.
    #[must_use]
    pub fn compact_revision(&self) -> i64 {
        unimplemented!()
    }

    /// The leases.
    #[must_use]
    pub fn lessor(&self) -> Lessor {
        unimplemented!()
    }

    /// The alarms raised, in order of member.
    #[must_use]
    pub fn alarms(&self) -> Arc<[Alarm]> {
        unimplemented!()
    }

    /// What members said of themselves, in order of id.
    #[must_use]
    pub fn members(&self) -> Arc<[Member]> {
        unimplemented!()
    }

    /// Size of the store in bytes: approximate.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Whether the store has outgrown its quota: the member should propose to raise its NOSPACE
    /// alarm, and refuse puts itself until that applied.
    #[must_use]
    pub fn over_quota(&self) -> bool {
        unimplemented!()
    }
}
