//! The queue-ordered lock: contenders stand in line by the revision that created their keys, each
//! watches only the one before it, and a release wakes one. The layout is that of etcd's Go
//! `concurrency.Mutex`, so such programs and `etcdctl lock` stand in the same line.

use std::ops::Deref;

use super::{ContenderRecord, Hold, Holder, Waiter, queue_of};
use crate::client::Client;
use crate::error::Result;
use crate::keys::{KeySpace, Name};
use crate::kit::Contender;
use crate::lock::{Fence, Fenced};
use crate::session::Session;
use crate::value::{Json, Value};

/// A lock that is granted in the order of asking. A handle: cheap to clone, holds nothing.
///
/// Two calls under one session are two contenders: the lock is not re-entrant.
///
/// Costs: an uncontended `lock` is one transaction; a wait is one watch and, a wake-up, one more
/// transaction; a release is one transaction and wakes one waiter, however many there are.
#[derive(Debug, Clone)]
pub struct Mutex {
    client: Client,
    space: KeySpace,
    info: String,
}

impl Mutex {
    pub(crate) fn new(client: Client, name: &Name) -> Self {
        Self {
            client,
            space: name.space("lock"),
            info: String::new(),
        }
    }

    /// What the holder's and waiters' lists show for contenders made by this handle.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    /// The key prefix, as a Go program passes it to `NewMutex`, and a shell to `etcdctl lock`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.space.prefix()
    }

    fn value(&self) -> Value {
        Json(ContenderRecord::now(&self.info, String::new())).into()
    }

    /// Waits in line until the lock is held.
    ///
    /// # Errors
    /// [`Error::SessionLost`](crate::Error::SessionLost) at once when the session is lost while
    /// waiting; [`Error::ForeignKey`](crate::Error::ForeignKey) when a key in front belongs to no
    /// contender; [`Error::Removed`](crate::Error::Removed) when somebody deleted the contender's
    /// key; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line, also while its key is still on the way to the store.
    /// The next call stands at the end.
    pub async fn lock(&self, session: &Session) -> Result<MutexGuard> {
        let contender = Contender::enter(session, &self.space, self.value()).await?;
        Ok(MutexGuard(contender.wait_turn().await?))
    }

    /// Takes the lock if nobody holds it or waits for it; writes nothing otherwise.
    ///
    /// # Errors
    /// [`Error::SessionLost`](crate::Error::SessionLost); the store's final refusals.
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`].
    pub async fn try_lock(&self, session: &Session) -> Result<Option<MutexGuard>> {
        let hold = Contender::try_enter(session, &self.space, self.value()).await?;
        Ok(hold.map(MutexGuard))
    }

    /// Who holds the lock.
    ///
    /// # Errors
    /// The store's.
    pub async fn holder(&self) -> Result<Option<Holder>> {
        let queue = queue_of(&self.client, self.space.range(), 1).await?;
        Ok(queue.into_iter().next())
    }

    /// Who waits, in order, at most `limit` of them.
    ///
    /// # Errors
    /// The store's.
    pub async fn waiters(&self, limit: usize) -> Result<Vec<Waiter>> {
        let some = limit.saturating_add(1);
        let queue = queue_of(&self.client, self.space.range(), some).await?;
        let waiting = queue.into_iter().enumerate().skip(1);
        Ok(waiting
            .map(|(position, contender)| Waiter {
                position,
                contender,
            })
            .collect())
    }
}

/// A held [`Mutex`]; everything a guard can do is in [`Hold`]. Dropping it releases the lock in the
/// background.
#[derive(Debug)]
#[must_use = "a dropped guard releases the lock at once"]
pub struct MutexGuard(Hold);

impl MutexGuard {
    /// Releases the lock and waits until the store has confirmed. As [`Hold::release`].
    ///
    /// # Errors
    /// [`Error::Fenced`](crate::Error::Fenced) when the lock had been lost before;
    /// [`Error::SessionLost`](crate::Error::SessionLost).
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        self.0.release().await
    }
}

impl Deref for MutexGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.0
    }
}

impl Fenced for MutexGuard {
    fn fence(&self) -> &Fence {
        self.0.fence()
    }
}
