//! The queue-ordered lock: contenders stand in line by the revision that created their keys, each
//! watches only the one before it, and a release wakes one. The layout is that of etcd's Go
//! `concurrency.Mutex`, so such programs and `etcdctl lock` stand in the same line.

use std::ops::Deref;
use std::time::Duration;

use super::delay::{self, Delay, Note};
use super::poison::{self, Poison};
use super::{
    CombinedMutex, ContenderRecord, Hold, Holder, ReleaseRequest, SharedMutex, Waiter, ask_first,
    queue_of,
};
use crate::client::Client;
use crate::error::{Error, Result, TxnError};
use crate::keys::{Key, KeySpace, Name, Revision};
use crate::kit::{Contender, Line};
use crate::lock::{Fence, Fenced};
use crate::session::{Claim, Session};
use crate::value::{Json, Value};

/// A lock that is granted in the order of asking. A handle: cheap to clone, holds nothing.
///
/// Two calls under one session are two contenders: the lock is not re-entrant. See
/// [`Mutex::shared`] for one that is, and [`Mutex::combined`] for many tasks of one process.
///
/// Costs: an uncontended `lock` is one transaction; a wait is one watch and, a wake-up, one more
/// transaction; a release is one transaction and wakes one waiter, however many there are.
#[derive(Debug, Clone)]
pub struct Mutex {
    client: Client,
    space: KeySpace,
    meta: KeySpace,
    info: String,
    delay: Option<Delay>,
    poisons: bool,
}

impl Mutex {
    pub(crate) fn new(client: Client, name: &Name) -> Self {
        Self {
            client,
            space: name.space("lock"),
            meta: name.meta("lock"),
            info: String::new(),
            delay: None,
            poisons: false,
        }
    }

    /// What the holder's and waiters' lists show for contenders made by this handle.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    /// Keeps the lock shut for `delay` after a holder has gone without releasing it, because its session
    /// ended: time in which that holder's effects outside the store, where no fence reaches, can end.
    /// Costs one more transaction a waiter. It works between contenders that have a delay; others,
    /// etcd's own among them, neither leave a note nor heed one. The time counts from when this handle,
    /// or a clone, first sees what the lost holder has left.
    #[must_use]
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = Some(Delay::new(delay));
        self
    }

    /// Leaves a mark when a guard made by this handle is dropped by a panic: the lock is released, and
    /// [`Mutex::poison`] says so from then on, to everybody, until [`Mutex::clear_poison`]. Whoever takes
    /// the lock decides what that means. No mark is left by a process that dies, nor where the session
    /// ends before the store can be reached.
    #[must_use]
    pub fn poison_on_panic(mut self) -> Self {
        self.poisons = true;
        self
    }

    /// This lock for one session, held as often as one likes: it is released with the last guard.
    #[must_use]
    pub fn shared(&self, session: &Session) -> SharedMutex {
        SharedMutex::new(self.clone(), session.clone())
    }

    /// This lock for many tasks of one session, which stand in the store's line as one.
    #[must_use]
    pub fn combined(&self, session: &Session) -> CombinedMutex {
        CombinedMutex::new(self.clone(), session.clone())
    }

    /// The key prefix, as a Go program passes it to `NewMutex`, and a shell to `etcdctl lock`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.space.prefix()
    }

    fn value(&self, session: &Session) -> Result<Value> {
        session.belongs_to(&self.client)?;
        Ok(Json(ContenderRecord::of(session, &self.info)).into())
    }

    fn guard(&self, mut hold: Hold) -> Result<MutexGuard> {
        if self.poisons {
            poison::arm(&mut hold, self.poison_key())?;
        }
        Ok(MutexGuard(hold))
    }

    fn poison_key(&self) -> Key {
        self.meta.key("poison")
    }

    fn note_key(&self) -> Key {
        self.meta.key("held")
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
        let contender = Contender::enter(session, &self.space, self.value(session)?).await?;
        let mut hold = contender.wait_turn().await?;
        if let Some(delay) = &self.delay {
            let note = Note::new(self.note_key(), hold.key());
            hold = note.take(hold, delay).await?;
        }
        self.guard(hold)
    }

    /// As [`Mutex::lock`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`Mutex::lock`].
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`].
    pub async fn lock_within(
        &self,
        session: &Session,
        limit: Duration,
    ) -> Result<Option<MutexGuard>> {
        let deadline = self.client.deadline(limit);
        let locked = self.client.before(deadline, self.lock(session)).await;
        locked.transpose()
    }

    /// Takes the lock if nobody holds it or waits for it, and no delay runs; writes nothing otherwise.
    ///
    /// # Errors
    /// [`Error::SessionLost`](crate::Error::SessionLost); the store's final refusals.
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`].
    pub async fn try_lock(&self, session: &Session) -> Result<Option<MutexGuard>> {
        let hold = match &self.delay {
            None => Contender::try_enter(session, &self.space, self.value(session)?).await?,
            Some(delay) => self.try_enter(session, delay).await?,
        };
        hold.map(|hold| self.guard(hold)).transpose()
    }

    async fn try_enter(&self, session: &Session, delay: &Delay) -> Result<Option<Hold>> {
        let mut over = Revision(0);
        loop {
            let (line, value) = (Line::of(&self.space), self.value(session)?);
            let contenders = self.space.range();
            let add = |claim: &mut Claim| Note::add_to(claim, self.note_key(), contenders, over);
            let refused = match Contender::try_enter_with(session, line, value, add).await? {
                Ok(hold) => return Ok(Some(hold)),
                Err(responses) => responses,
            };
            match delay.is_over(&self.client, &refused) {
                Some(at) if at != over => over = at,
                _ => return Ok(None),
            }
        }
    }

    /// Who panicked while holding the lock, since the mark was last cleared; the last one of several. See
    /// [`Mutex::poison_on_panic`].
    ///
    /// # Errors
    /// [`Error::Codec`]; the store's.
    pub async fn poison(&self) -> Result<Option<Poison>> {
        let mark = self.client.get(self.poison_key()).await?;
        mark.as_ref().map(Poison::read).transpose()
    }

    /// Clears the mark of a panic, refused by the store unless the lock is held. Returns whether there was
    /// one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for the guard of another lock; as [`Txn::commit`](crate::Txn::commit).
    pub async fn clear_poison(&self, guard: &Hold) -> Result<bool, TxnError> {
        guard.session().belongs_to(&self.client)?;
        if !guard.fence().contenders().contains(&self.space.range()) {
            let (other, own) = (guard.key(), self.prefix());
            return Err(Error::Invalid(format!("{other} is no guard of {own}")).into());
        }
        guard.delete(self.poison_key()).await
    }

    /// Who holds the lock, or is first in line while a delay runs.
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

    /// How much longer the lock stays shut after a holder that went without releasing it: what tells a delay
    /// from a holder. `None` when it is not shut, or this handle has no [delay](Mutex::with_delay). Like the
    /// delay itself it counts from when this handle, or a clone, first saw what the holder had left.
    ///
    /// # Errors
    /// The store's.
    pub async fn delay_left(&self) -> Result<Option<Duration>> {
        match &self.delay {
            None => Ok(None),
            Some(delay) => {
                let (note, contenders) = (self.note_key(), self.space.range());
                delay::left(&self.client, &note, contenders, delay).await
            }
        }
    }

    /// Asks whoever holds the lock to release it; `None` when nobody does. A holder hears it that
    /// waits for [`Hold::release_requested`]; nobody is forced. The request stands until it is dropped.
    ///
    /// # Errors
    /// [`Error::SessionLost`](crate::Error::SessionLost); the store's.
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back.
    pub async fn request_release(
        &self,
        session: &Session,
        reason: impl Into<String>,
    ) -> Result<Option<ReleaseRequest>> {
        session.belongs_to(&self.client)?;
        ask_first(session, self.space.range(), &reason.into()).await
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

    pub(super) fn hold_mut(&mut self) -> &mut Hold {
        &mut self.0
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
