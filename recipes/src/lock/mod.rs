//! Locks. [`Mutex`] stands in a queue ordered by the store and wakes one waiter a release, alone,
//! [`shared`](Mutex::shared) or [`combined`](Mutex::combined); [`MultiLock`] stands in several of these
//! queues at once; [`RwLock`] lets readers in together, [`Semaphore`] a number of holders;
//! [`ExclusiveLock`] is a compare-and-swap on one key, for few contenders. All give guards whose
//! writes the store refuses once the lock is lost ([`Hold`], [`Fence`]).

mod combined;
mod delay;
mod exclusive;
pub(crate) mod fence;
pub mod guard;
mod holder;
mod multi;
mod poison;
mod queued;
mod request;
mod rw;
mod semaphore;
mod shared;

pub use combined::{CombinedGuard, CombinedMutex};
pub use exclusive::{ExclusiveGuard, ExclusiveLock};
pub use fence::{Epoch, Fence, Fenced, FencingToken};
pub use guard::Hold;
pub(crate) use holder::{ContenderRecord, introduced, queue_of};
pub use holder::{Holder, Waiter};
pub use multi::{MultiGuard, MultiLock};
pub use poison::Poison;
pub use queued::{Mutex, MutexGuard};
pub(crate) use request::ask_first;
pub use request::{ReleaseRequest, ReleaseRequested};
pub use rw::{Access, ReadGuard, RwContender, RwLock, Upgraded, WriteGuard};
pub(crate) use semaphore::weight;
pub use semaphore::{Limit, Permit, PermitHolder, Semaphore};
pub use shared::{SharedGuard, SharedMutex};
