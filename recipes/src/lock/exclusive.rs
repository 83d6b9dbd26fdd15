//! The compare-and-swap lock: one key, whoever creates it holds it. No order among waiters, and a
//! release wakes them all, so it is for few contenders; `try_lock` is its best use.

use std::ops::Deref;
use std::time::Duration;

use super::{ContenderRecord, Fence, Fenced, Hold, Holder, ReleaseRequest, ask_first, queue_of};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, LeaseId, Name, Revision};
use crate::session::{Claim, Claimed, Session};
use crate::value::{Json, Value};
use crate::wait::{Backoff, Woken, deleted};

/// Longest random pause before trying again after a release.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);

/// A lock without order: one key that only one can create. A handle: cheap to clone, holds nothing.
///
/// Costs: with n waiters a release wakes n, and all of them but one write in vain, so n waiters
/// need about n² transactions in all. Past ten waiters use [`Mutex`](super::Mutex).
#[derive(Debug, Clone)]
pub struct ExclusiveLock {
    client: Client,
    key: Key,
    info: String,
}

enum Tried {
    Won(Hold),
    Taken { by: LeaseId, seen: Revision },
}

impl ExclusiveLock {
    pub(crate) fn new(client: Client, name: &Name) -> Self {
        let space: KeySpace = name.space("exclusive");
        Self {
            client,
            key: space.key("owner"),
            info: String::new(),
        }
    }

    /// What [`ExclusiveLock::holder`] shows while a guard of this handle holds the lock.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    /// The lock's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Takes the lock if it is free; writes nothing otherwise.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future gives the lock back, also if it is won later.
    pub async fn try_lock(&self, session: &Session) -> Result<Option<ExclusiveGuard>> {
        match self.attempt(session).await? {
            Tried::Won(hold) => Ok(Some(ExclusiveGuard(hold))),
            Tried::Taken { .. } => Ok(None),
        }
    }

    /// Tries until the lock is held: again after each release, after a random pause.
    ///
    /// # Errors
    /// [`Error::SessionLost`] at once when the session is lost while waiting;
    /// [`Error::ForeignKey`] when the key is there without a lease and so may stay for ever; the
    /// store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// As [`ExclusiveLock::try_lock`].
    pub async fn lock(&self, session: &Session) -> Result<ExclusiveGuard> {
        tokio::select! {
            biased;
            reason = session.lost() => Err(Error::SessionLost(reason)),
            guard = self.lock_while_live(session) => guard,
        }
    }

    /// As [`ExclusiveLock::lock`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`ExclusiveLock::lock`].
    ///
    /// # Cancel safety
    /// As [`ExclusiveLock::try_lock`].
    pub async fn lock_within(
        &self,
        session: &Session,
        limit: Duration,
    ) -> Result<Option<ExclusiveGuard>> {
        let deadline = self.client.deadline(limit);
        let locked = self.client.before(deadline, self.lock(session)).await;
        locked.transpose()
    }

    async fn lock_while_live(&self, session: &Session) -> Result<ExclusiveGuard> {
        let mut pause = Backoff::new(&self.client, Duration::from_millis(4), RETRY_PAUSE_MAX);
        loop {
            let (by, seen) = match self.attempt(session).await? {
                Tried::Won(hold) => return Ok(ExclusiveGuard(hold)),
                Tried::Taken { by, seen } => (by, seen),
            };
            let held = [(self.key.clone(), by)];
            match deleted(&self.client, &held, Revision(seen.0 + 1)).await {
                Ok(Woken::Deleted(_) | Woken::Interrupted) => {}
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error.into()),
            }
            pause.pause().await;
        }
    }

    async fn attempt(&self, session: &Session) -> Result<Tried> {
        session.belongs_to(&self.client)?;
        let record = ContenderRecord::of(session, &self.info).with_nonce(self.client.nonce());
        let value = Value::from(Json(record)).into_bytes(&self.key)?;
        let claim = Claim::of(self.key.clone(), value);
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(claim).await })
            .await?;
        match claimed {
            Claimed::Made { owned, .. } => {
                let contenders = vec![KeyRange::one(&self.key)];
                Ok(Tried::Won(Hold::new(session.clone(), owned, contenders)))
            }
            Claimed::Refused {
                revision, existing, ..
            } => match existing.first() {
                Some(kv) if kv.lease == 0 => Err(Error::ForeignKey(self.key.clone())),
                kv => Ok(Tried::Taken {
                    by: LeaseId(kv.map_or(0, |kv| kv.lease)),
                    seen: revision,
                }),
            },
        }
    }

    /// Who holds the lock.
    ///
    /// # Errors
    /// The store's.
    pub async fn holder(&self) -> Result<Option<Holder>> {
        let queue = queue_of(&self.client, KeyRange::one(&self.key), 1).await?;
        Ok(queue.into_iter().next())
    }

    /// Asks whoever holds the lock to release it; `None` when nobody does. As
    /// [`Mutex::request_release`](super::Mutex::request_release).
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's.
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back.
    pub async fn request_release(
        &self,
        session: &Session,
        reason: impl Into<String>,
    ) -> Result<Option<ReleaseRequest>> {
        session.belongs_to(&self.client)?;
        ask_first(session, KeyRange::one(&self.key), &reason.into()).await
    }
}

/// A held [`ExclusiveLock`]; everything a guard can do is in [`Hold`]. Dropping it releases the
/// lock in the background.
#[derive(Debug)]
#[must_use = "a dropped guard releases the lock at once"]
pub struct ExclusiveGuard(Hold);

impl ExclusiveGuard {
    /// Releases the lock and waits until the store has confirmed. As [`Hold::release`].
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lock had been lost before; [`Error::SessionLost`].
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        self.0.release().await
    }
}

impl Deref for ExclusiveGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.0
    }
}

impl Fenced for ExclusiveGuard {
    fn fence(&self) -> &Fence {
        self.0.fence()
    }
}
