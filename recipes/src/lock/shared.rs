//! The queue-ordered lock with a count of holds: for code that calls itself, or tasks that are one
//! owner together.

use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Fence, Fenced, Hold, Mutex, MutexGuard, ReleaseRequested};
use crate::error::Result;
use crate::session::Session;

/// A [`Mutex`] of one owner, re-entrant: while the owner holds it, further calls give guards of the
/// same hold, and the lock is released with the last of them. The owner is this value and its clones.
#[derive(Debug, Clone)]
pub struct SharedMutex {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    mutex: Mutex,
    session: Session,
    held: tokio::sync::Mutex<Weak<MutexGuard>>,
}

impl SharedMutex {
    pub(super) fn new(mutex: Mutex, session: Session) -> Self {
        Self {
            inner: Arc::new(Inner {
                mutex,
                session,
                held: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Joins the owner's hold, or waits in line for one. A hold that is lost is not joined.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`]; others of the owner who wait then go on.
    pub async fn lock(&self) -> Result<SharedGuard> {
        let mut held = self.inner.held.lock().await;
        if let Some(guard) = held.upgrade()
            && !guard.remaining().is_zero()
        {
            return Ok(SharedGuard(guard));
        }
        let guard = Arc::new(self.inner.mutex.lock(&self.inner.session).await?);
        *held = Arc::downgrade(&guard);
        Ok(SharedGuard(guard))
    }
}

impl SharedMutex {
    /// As [`SharedMutex::lock`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    ///
    /// # Cancel safety
    /// As [`SharedMutex::lock`].
    pub async fn lock_within(&self, limit: Duration) -> Result<Option<SharedGuard>> {
        let client = self.inner.session.client();
        let deadline = client.now() + limit;
        client.before(deadline, self.lock()).await.transpose()
    }
}

/// A part in a held [`SharedMutex`]. Everything a guard can do is in [`Hold`].
#[derive(Debug, Clone)]
#[must_use = "the last guard to be dropped releases the lock"]
pub struct SharedGuard(Arc<MutexGuard>);

impl SharedGuard {
    /// How many guards there are of this hold.
    #[must_use]
    pub fn count(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// As [`MutexGuard::release_requested`]: each request is told to one of the guards.
    ///
    /// # Errors
    /// As [`MutexGuard::release_requested`].
    ///
    /// # Cancel safety
    /// As [`MutexGuard::release_requested`].
    pub async fn release_requested(&self) -> Result<ReleaseRequested> {
        self.0.release_requested().await
    }

    /// Gives this guard back. The last one releases the lock and waits until the store has confirmed.
    ///
    /// # Errors
    /// As [`MutexGuard::release`], for the last one.
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        match Arc::into_inner(self.0) {
            Some(guard) => guard.release().await,
            None => Ok(()),
        }
    }
}

impl Deref for SharedGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.0
    }
}

impl Fenced for SharedGuard {
    fn fence(&self) -> &Fence {
        self.0.fence()
    }
}
