//! Several locks at once: a contender stands in all their lines from one revision on, so two that want
//! some of the same locks stand in the same order in each, and cannot wait for each other.

use std::ops::Deref;
use std::time::Duration;

use super::{ContenderRecord, Fence, Fenced, Hold};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{KeySpace, Name};
use crate::kit::{Contender, Line};
use crate::session::Session;
use crate::value::{Json, Value};

/// Most locks at once: the fence of the guard, two compares a lock, leaves its user half of etcd's
/// limit on a transaction.
const LOCKS_MAX: usize = 32;

/// All of several [`Mutex`](super::Mutex)es together: the same lines, so each of the locks alone
/// excludes it as well. A handle: cheap to clone, holds nothing.
///
/// While it waits for one lock it keeps its place in the lines of the others. So who holds one of the
/// locks by itself must not ask for several with it.
///
/// Costs: as many keys as locks in one transaction to take, and one to give back; a wake-up for each
/// contender that it had to wait for.
#[derive(Debug, Clone)]
pub struct MultiLock {
    client: Client,
    spaces: Vec<KeySpace>,
    info: String,
}

impl MultiLock {
    pub(crate) fn new(client: Client, names: impl IntoIterator<Item = Name>) -> Self {
        let names = names.into_iter();
        let mut spaces: Vec<_> = names.map(|name| name.space("lock")).collect();
        spaces.sort_by(|a, b| a.prefix().cmp(b.prefix()));
        Self {
            client,
            spaces,
            info: String::new(),
        }
    }

    /// What the lists of holders and waiters show for contenders made by this handle.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    fn line(&self) -> Result<Line> {
        let twice = self.spaces.windows(2).find(|pair| pair[0] == pair[1]);
        match (self.spaces.len(), twice) {
            (0, _) => Err(Error::Invalid("no locks to take".to_owned())),
            (_, Some(pair)) => Err(Error::Invalid(format!(
                "the lock {} twice",
                pair[0].prefix()
            ))),
            (locks, _) if locks > LOCKS_MAX => Err(Error::Invalid(format!(
                "{locks} locks at once; at most {LOCKS_MAX}"
            ))),
            _ => Ok(Line::all(self.spaces.clone())),
        }
    }

    fn value(&self, session: &Session) -> Result<Value> {
        session.belongs_to(&self.client)?;
        Ok(Json(ContenderRecord::of(session, &self.info)).into())
    }

    /// Waits until all locks are held.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no lock, a lock named twice, more than 32; else as
    /// [`Mutex::lock`](super::Mutex::lock).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](super::Mutex::lock).
    pub async fn lock(&self, session: &Session) -> Result<MultiGuard> {
        let contender = Contender::enter(session, self.line()?, self.value(session)?).await?;
        Ok(MultiGuard(contender.wait_turn().await?))
    }

    /// As [`MultiLock::lock`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`MultiLock::lock`].
    ///
    /// # Cancel safety
    /// As [`MultiLock::lock`].
    pub async fn lock_within(
        &self,
        session: &Session,
        limit: Duration,
    ) -> Result<Option<MultiGuard>> {
        let deadline = self.client.now() + limit;
        let locked = self.client.before(deadline, self.lock(session)).await;
        locked.transpose()
    }

    /// Takes all locks if nobody holds or waits for any of them; writes nothing otherwise.
    ///
    /// # Errors
    /// As [`MultiLock::lock`].
    ///
    /// # Cancel safety
    /// As [`MultiLock::lock`].
    pub async fn try_lock(&self, session: &Session) -> Result<Option<MultiGuard>> {
        let hold = Contender::try_enter(session, self.line()?, self.value(session)?).await?;
        Ok(hold.map(MultiGuard))
    }
}

/// A held [`MultiLock`]; everything a guard can do is in [`Hold`]. Its writes are refused once any of
/// the locks is lost. Dropping it releases all of them in the background, in one transaction.
#[derive(Debug)]
#[must_use = "a dropped guard releases the locks at once"]
pub struct MultiGuard(Hold);

impl MultiGuard {
    /// Releases all locks and waits until the store has confirmed. As [`Hold::release`].
    ///
    /// # Errors
    /// [`Error::Fenced`] when one of them had been lost before; [`Error::SessionLost`].
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        self.0.release().await
    }
}

impl Deref for MultiGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.0
    }
}

impl Fenced for MultiGuard {
    fn fence(&self) -> &Fence {
        self.0.fence()
    }
}
