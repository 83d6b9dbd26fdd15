//! One start of a job, as its work sees it.

use std::fmt;
use std::time::Duration;

use super::schedule::Slot;
use crate::client::Client;
use crate::lock::{Fence, Fenced, FencingToken};
use crate::txn::Txn;

/// One start of a job. Cheap to clone; it does not keep the run going.
#[derive(Clone)]
pub struct Run {
    pub(super) slot: Slot,
    pub(super) late: Duration,
    pub(super) fence: Fence,
    pub(super) client: Client,
}

impl Run {
    /// The time of the schedule that it was started for.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// How late it was started, by its runner's clock.
    #[must_use]
    pub fn late(&self) -> Duration {
        self.late
    }

    /// A number that grows with every run of the job, for services outside the store.
    #[must_use]
    pub fn token(&self) -> FencingToken {
        self.fence.token()
    }

    /// A transaction that the store refuses once this run is over, or its runner lost.
    pub fn txn(&self) -> Txn {
        self.client.txn().guard(self)
    }
}

impl Fenced for Run {
    fn fence(&self) -> &Fence {
        &self.fence
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("slot", &self.slot)
            .field("late", &self.late)
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}
