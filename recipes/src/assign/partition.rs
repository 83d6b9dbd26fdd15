//! The guard of one partition.

use std::fmt;
use std::future::Future;
use std::ops::Deref;

use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use crate::error::Result;
use crate::lock::{Fence, Fenced, Hold};

/// A partition that is this member's to work on; everything a guard can do is in [`Hold`]: its token,
/// its loss, writes that the store refuses once it is lost.
///
/// It is kept, whatever the others do, until it is dropped or lost. Once it is [revoked] somebody else
/// waits for it: finish what is begun, and drop it. Dropping it gives it back in the background; while it
/// still is this member's share, [`Partitions::next`](super::Partitions::next) gives it again.
///
/// [revoked]: Partition::revoked
#[must_use = "a dropped partition is given back at once"]
pub struct Partition {
    // Dropped first, so that giving it up comes before standing in line for it again.
    hold: Hold,
    index: u32,
    /// Whether it falls to this member.
    mine: watch::Receiver<bool>,
    ended: DropGuard,
}

impl Partition {
    pub(super) fn new(
        hold: Hold,
        index: u32,
        mine: watch::Receiver<bool>,
        ended: DropGuard,
    ) -> Self {
        Self {
            hold,
            index,
            mine,
            ended,
        }
    }

    /// Its number: 0 to the number of partitions, less one.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether it is another member's share now.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.mine.has_changed().is_err() || !*self.mine.borrow()
    }

    /// Completes when the partition has become another member's share, or the handle that it came from
    /// is dropped. It is held nevertheless: finish, and drop it; the next owner waits in line until then.
    /// The future does not keep the partition.
    pub fn revoked(&self) -> impl Future<Output = ()> + Send + use<> {
        moved(self.mine.clone())
    }

    /// Gives the partition back and waits until the store has confirmed.
    ///
    /// # Errors
    /// [`Error::Fenced`](crate::Error::Fenced) when it had been lost before;
    /// [`Error::SessionLost`](crate::Error::SessionLost). It is not held any more in any case.
    ///
    /// # Cancel safety
    /// Giving back goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        let Self { hold, ended, .. } = self;
        let outcome = hold.release().await;
        drop(ended);
        outcome
    }
}

/// Completes once a partition does not fall to this member any more.
pub(super) async fn moved(mut mine: watch::Receiver<bool>) {
    // An error means that nothing is this member's any more.
    drop(mine.wait_for(|mine| !mine).await);
}

impl Deref for Partition {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl Fenced for Partition {
    fn fence(&self) -> &Fence {
        self.hold.fence()
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition")
            .field("index", &self.index)
            .field("revoked", &self.is_revoked())
            .finish_non_exhaustive()
    }
}
