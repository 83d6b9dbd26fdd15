//! Calls that are stopped at a stage of their way until a test lets them go on.

use std::sync::Mutex;

use tokio_util::sync::CancellationToken;

use super::lock;

/// Kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// All of them.
    Any,
    /// Transactions.
    Txn,
    /// Reads by themselves, and the opening of watches.
    Read,
    /// What is done with leases.
    Lease,
}

impl Calls {
    fn has(self, kind: Self) -> bool {
        self == Self::Any || self == kind
    }
}

/// Where a call is held, and what becomes of it when it is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Before it is sent. Released, it goes its way.
    NotSent,
    /// On its way. Released, it is applied, also if its caller has been dropped meanwhile.
    OnItsWay,
    /// After it was applied. Released, its answer is lost.
    AppliedUnanswered,
    /// After it was applied. Released, it is answered.
    Answered,
}

/// The calls to be held.
#[derive(Default)]
pub(super) struct Holds(Mutex<Vec<Pending>>);

struct Pending {
    left: usize,
    calls: Calls,
    stage: Stage,
    hold: Hold,
}

/// What holds one call.
#[derive(Debug, Clone, Default)]
pub(super) struct Hold {
    reached: CancellationToken,
    released: CancellationToken,
}

impl Hold {
    /// Says that the call is there, and waits to be released.
    pub(super) async fn stand(&self) {
        self.reached.cancel();
        self.released.cancelled().await;
    }
}

impl Holds {
    pub(super) fn add(&self, nth: usize, calls: Calls, stage: Stage) -> Held {
        let hold = Hold::default();
        lock(&self.0).push(Pending {
            left: nth.max(1),
            calls,
            stage,
            hold: hold.clone(),
        });
        Held(hold)
    }

    /// Counts a call; returns how it is held, if it is.
    pub(super) fn meets(&self, kind: Calls) -> Option<(Stage, Hold)> {
        let mut pending = lock(&self.0);
        // What a dropped handle released without having been reached holds nobody.
        pending.retain(|one| !one.hold.released.is_cancelled());
        for one in pending.iter_mut().filter(|one| one.calls.has(kind)) {
            one.left = one.left.saturating_sub(1);
        }
        let due = pending.iter().position(|one| one.left == 0)?;
        let due = pending.remove(due);
        Some((due.stage, due.hold))
    }
}

/// A call that is held, or will be. Dropping it releases the call.
#[derive(Debug)]
#[must_use = "a dropped hold holds nothing"]
pub struct Held(Hold);

impl Held {
    /// Completes when the call has got to where it is held.
    ///
    /// # Cancel safety
    /// Nothing is lost: once there, it says so as often as it is asked.
    pub async fn reached(&self) {
        self.0.reached.cancelled().await;
    }

    /// Whether the call has got there.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.0.reached.is_cancelled()
    }

    /// Lets the call go on.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.released.cancel();
    }
}
