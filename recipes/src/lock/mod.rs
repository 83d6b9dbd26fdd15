//! Locks. [`Mutex`] stands in a queue ordered by the store and wakes one waiter a release;
//! [`ExclusiveLock`] is a compare-and-swap on one key, for few contenders. Both give guards whose
//! writes the store refuses once the lock is lost ([`guard`]).

mod exclusive;
pub mod guard;
mod holder;
mod queued;

pub use exclusive::{ExclusiveGuard, ExclusiveLock};
pub use guard::{Epoch, Fence, Fenced, FencingToken, Hold};
pub(crate) use holder::{ContenderRecord, queue_of};
pub use holder::{Holder, Waiter};
pub use queued::{Mutex, MutexGuard};
