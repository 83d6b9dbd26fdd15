//! Several locks at once: a contender stands in all their lines from one revision on, so two that want
//! some of the same locks stand in the same order in each, and cannot wait for each other.

use std::ops::Deref;
use std::time::Duration;

use super::{ContenderRecord, Fence, Fenced, Hold, Mutex};
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
    /// In the order of their keys.
    names: Vec<Name>,
    info: String,
}

impl MultiLock {
    pub(crate) fn new(client: Client, names: impl IntoIterator<Item = Name>) -> Self {
        let mut names: Vec<Name> = names.into_iter().collect();
        names.sort_by_cached_key(|name| name.space("lock").prefix().to_owned());
        Self {
            client,
            names,
            info: String::new(),
        }
    }

    /// What the lists of holders and waiters show for contenders made by this handle.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    /// Each of the locks by itself, in the order of their keys: to see who holds it and who waits, and to
    /// ask for its release. With this lock held, all of them show the same holder.
    pub fn each(&self) -> impl Iterator<Item = Mutex> {
        let names = self.names.iter();
        names.map(|name| Mutex::new(self.client.clone(), name).with_info(&self.info))
    }

    fn line(&self) -> Result<Line> {
        let spaces: Vec<KeySpace> = self.names.iter().map(|name| name.space("lock")).collect();
        let twice = spaces.windows(2).find(|pair| pair[0] == pair[1]);
        match (spaces.len(), twice) {
            (0, _) => Err(Error::Invalid("no locks to take".to_owned())),
            (_, Some(pair)) => Err(Error::Invalid(format!(
                "the lock {} twice",
                pair[0].prefix()
            ))),
            (locks, _) if locks > LOCKS_MAX => Err(Error::Invalid(format!(
                "{locks} locks at once; at most {LOCKS_MAX}"
            ))),
            _ => Ok(Line::all(spaces)),
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
        let deadline = self.client.deadline(limit);
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
