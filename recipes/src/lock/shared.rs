//! The queue-ordered lock with a count of holds: for code that calls itself, or tasks that are one
//! owner together.

use std::ops::Deref;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::poison::PanicWitness;
use super::{Fence, Fenced, Hold, Mutex, MutexGuard};
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
    held: std::sync::Mutex<Weak<MutexGuard>>,
    /// Held by the one of the owner who stands in line for all.
    line: tokio::sync::Mutex<()>,
}

impl Inner {
    /// A part in the present hold, unless there is none, or it is lost.
    fn join(&self) -> Option<SharedGuard> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = held.upgrade()?;
        (!guard.remaining().is_zero()).then(|| SharedGuard::new(guard))
    }

    fn share(&self, guard: MutexGuard) -> SharedGuard {
        let guard = Arc::new(guard);
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&guard);
        SharedGuard::new(guard)
    }
}

impl SharedMutex {
    pub(super) fn new(mutex: Mutex, session: Session) -> Self {
        Self {
            inner: Arc::new(Inner {
                mutex,
                session,
                held: std::sync::Mutex::default(),
                line: tokio::sync::Mutex::default(),
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
        let inner = &self.inner;
        if let Some(guard) = inner.join() {
            return Ok(guard);
        }
        let _line = inner.line.lock().await;
        match inner.join() {
            Some(guard) => Ok(guard),
            None => Ok(inner.share(inner.mutex.lock(&inner.session).await?)),
        }
    }

    /// As [`SharedMutex::lock`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    ///
    /// # Cancel safety
    /// As [`SharedMutex::lock`].
    pub async fn lock_within(&self, limit: Duration) -> Result<Option<SharedGuard>> {
        let client = self.inner.session.client();
        let deadline = client.deadline(limit);
        client.before(deadline, self.lock()).await.transpose()
    }

    /// Joins the owner's hold, or takes the lock if nobody holds it or waits for it, others of the owner
    /// included.
    ///
    /// # Errors
    /// As [`Mutex::try_lock`].
    ///
    /// # Cancel safety
    /// As [`Mutex::try_lock`].
    pub async fn try_lock(&self) -> Result<Option<SharedGuard>> {
        let inner = &self.inner;
        if let Some(guard) = inner.join() {
            return Ok(Some(guard));
        }
        let Ok(_line) = inner.line.try_lock() else {
            // Whoever had it may have got the lock since.
            return Ok(inner.join());
        };
        if let Some(guard) = inner.join() {
            return Ok(Some(guard));
        }
        let guard = inner.mutex.try_lock(&inner.session).await?;
        Ok(guard.map(|guard| inner.share(guard)))
    }
}

/// A part in a held [`SharedMutex`]. Everything a guard can do is in [`Hold`].
#[derive(Debug, Clone)]
#[must_use = "the last guard to be dropped releases the lock"]
pub struct SharedGuard {
    // Dropped before the hold.
    witness: PanicWitness,
    held: Arc<MutexGuard>,
}

impl SharedGuard {
    fn new(held: Arc<MutexGuard>) -> Self {
        Self {
            witness: PanicWitness::of(&held),
            held,
        }
    }

    /// How many guards there are of this hold.
    #[must_use]
    pub fn count(&self) -> usize {
        Arc::strong_count(&self.held)
    }

    /// Gives this guard back. The last one releases the lock and waits until the store has confirmed.
    ///
    /// # Errors
    /// As [`MutexGuard::release`], for the last one.
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        let Self { held, witness } = self;
        drop(witness);
        match Arc::into_inner(held) {
            Some(guard) => guard.release().await,
            None => Ok(()),
        }
    }
}

impl Deref for SharedGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.held
    }
}

impl Fenced for SharedGuard {
    fn fence(&self) -> &Fence {
        self.held.fence()
    }
}
