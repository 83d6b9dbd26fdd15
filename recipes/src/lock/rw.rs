//! The read-write lock: readers together, a writer alone, in the order of asking, so that neither side
//! can starve the other.
//!
//! A reader has a key under `read/` and waits for the writers before it; a writer has a key under
//! `write/` and one under `read/`, created together, and waits for everybody under `read/` before it.
//! Every wait points to an earlier revision, so no two can wait for each other.

use std::collections::HashMap;
use std::ops::Deref;
use std::time::Duration;

use super::{ContenderRecord, Fence, Fenced, Hold, Holder, introduced};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Name};
use crate::kit::{Contender, Line};
use crate::session::{Claim, Claimed, Session};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value};

/// A lock that many may hold for reading, or one for writing. A handle: cheap to clone, holds nothing.
///
/// Not re-entrant: a reader that asks again waits behind a writer that came in between, which waits
/// for the reader.
///
/// Costs: uncontended, one transaction to take and one to give back. When a writer gives way, the
/// readers behind it up to the next writer all wake; otherwise a release wakes at most one.
#[derive(Debug, Clone)]
pub struct RwLock {
    client: Client,
    space: KeySpace,
    info: String,
}

/// How a contender wants a [`RwLock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Together with others.
    Read,
    /// Alone.
    Write,
}

/// Somebody who holds a [`RwLock`] or waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RwContender {
    /// Who it is.
    pub contender: Holder,
    /// What for.
    pub access: Access,
    /// Whether its turn has come.
    pub holds: bool,
}

impl RwLock {
    pub(crate) fn new(client: Client, name: &Name) -> Self {
        Self {
            client,
            space: name.space("rwlock"),
            info: String::new(),
        }
    }

    /// What the list of contenders shows for those made by this handle.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    fn value(&self, session: &Session) -> Result<Value> {
        session.belongs_to(&self.client)?;
        Ok(Json(ContenderRecord::of(session, &self.info)).into())
    }

    /// Waits until the lock is held for reading: until every writer that asked before has gone.
    ///
    /// # Errors
    /// As [`Mutex::lock`](super::Mutex::lock).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](super::Mutex::lock).
    pub async fn read(&self, session: &Session) -> Result<ReadGuard> {
        let line = Line::readers(&self.space);
        let contender = Contender::enter(session, line, self.value(session)?).await?;
        Ok(self.read_guard(contender.wait_turn().await?))
    }

    /// Waits until the lock is held for writing: until everybody who asked before has gone.
    ///
    /// # Errors
    /// As [`Mutex::lock`](super::Mutex::lock).
    ///
    /// # Cancel safety
    /// As [`Mutex::lock`](super::Mutex::lock).
    pub async fn write(&self, session: &Session) -> Result<WriteGuard> {
        let line = Line::writers(&self.space);
        let contender = Contender::enter(session, line, self.value(session)?).await?;
        Ok(self.write_guard(contender.wait_turn().await?))
    }

    /// As [`RwLock::read`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`RwLock::read`].
    ///
    /// # Cancel safety
    /// As [`RwLock::read`].
    pub async fn read_within(
        &self,
        session: &Session,
        limit: Duration,
    ) -> Result<Option<ReadGuard>> {
        let deadline = self.client.deadline(limit);
        let locked = self.client.before(deadline, self.read(session)).await;
        locked.transpose()
    }

    /// As [`RwLock::write`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`RwLock::write`].
    ///
    /// # Cancel safety
    /// As [`RwLock::write`].
    pub async fn write_within(
        &self,
        session: &Session,
        limit: Duration,
    ) -> Result<Option<WriteGuard>> {
        let deadline = self.client.deadline(limit);
        let locked = self.client.before(deadline, self.write(session)).await;
        locked.transpose()
    }

    /// Takes the lock for reading if no writer holds it or waits for it; writes nothing otherwise.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// As [`RwLock::read`].
    pub async fn try_read(&self, session: &Session) -> Result<Option<ReadGuard>> {
        let line = Line::readers(&self.space);
        let hold = Contender::try_enter(session, line, self.value(session)?).await?;
        Ok(hold.map(|hold| self.read_guard(hold)))
    }

    /// Takes the lock for writing if nobody holds it or waits for it; writes nothing otherwise.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// As [`RwLock::write`].
    pub async fn try_write(&self, session: &Session) -> Result<Option<WriteGuard>> {
        let line = Line::writers(&self.space);
        let hold = Contender::try_enter(session, line, self.value(session)?).await?;
        Ok(hold.map(|hold| self.write_guard(hold)))
    }

    /// Everybody who holds the lock or waits for it, as they stood at one revision, in the order of
    /// asking.
    ///
    /// # Errors
    /// The store's.
    pub async fn contenders(&self) -> Result<Vec<RwContender>> {
        let (_, kvs) = self.client.list(self.space.range()).await?;
        let (read, write) = (self.space.child("read"), self.space.child("write"));
        let writers: HashMap<_, _> = kvs
            .iter()
            .filter_map(|kv| Some((write.suffix(&kv.key)?, kv.create_revision)))
            .collect();
        let first_writer = writers.values().min();
        // Everybody has a key here; one with a twin among the writers' is a writer's.
        let mut everybody: Vec<_> = kvs
            .iter()
            .filter_map(|kv| Some((read.suffix(&kv.key)?, kv)))
            .collect();
        everybody.sort_by_key(|(_, kv)| kv.create_revision);
        let who = introduced(&self.client, everybody.iter().map(|(_, kv)| *kv)).await?;
        let first = everybody.first().map(|(name, _)| *name);
        let mut found = Vec::new();
        for ((name, kv), contender) in everybody.iter().zip(who) {
            let (access, holds) = match writers.contains_key(name) {
                true => (Access::Write, first == Some(*name)),
                false => (
                    Access::Read,
                    first_writer.is_none_or(|before| *before > kv.create_revision),
                ),
            };
            found.push(RwContender {
                contender,
                access,
                holds,
            });
        }
        Ok(found)
    }

    fn read_guard(&self, hold: Hold) -> ReadGuard {
        let space = self.space.clone();
        ReadGuard { hold, space }
    }

    fn write_guard(&self, hold: Hold) -> WriteGuard {
        let space = self.space.clone();
        WriteGuard { hold, space }
    }
}

/// A [`RwLock`] held for reading; everything a guard can do is in [`Hold`]. Its fence tells that no
/// writer has been let in since. Dropping it gives it back in the background.
#[derive(Debug)]
#[must_use = "a dropped guard gives the lock back at once"]
pub struct ReadGuard {
    hold: Hold,
    space: KeySpace,
}

/// A [`RwLock`] held for writing; everything a guard can do is in [`Hold`]. Dropping it gives it back
/// in the background.
#[derive(Debug)]
#[must_use = "a dropped guard gives the lock back at once"]
pub struct WriteGuard {
    hold: Hold,
    space: KeySpace,
}

/// What became of [`ReadGuard::try_upgrade`].
#[derive(Debug)]
#[must_use = "a dropped guard gives the lock back at once"]
pub enum Upgraded {
    /// It is held for writing.
    Write(WriteGuard),
    /// Others hold it or wait for it, and it is still held for reading.
    Read(ReadGuard),
}

impl ReadGuard {
    /// Holds for writing instead, if nobody else holds the lock or waits for it. It never waits: two
    /// readers that did would wait for each other. The new token is larger than the reader's.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lock had been lost before; [`Error::SessionLost`]; the store's final
    /// refusals. The lock is given back then.
    ///
    /// # Cancel safety
    /// Dropping the future gives the lock back.
    pub async fn try_upgrade(self) -> Result<Upgraded> {
        let Self { hold, space } = self;
        let own = hold.key().clone();
        let read = space.child("read");
        let name = read.suffix(own.as_bytes());
        let name = name.expect("a reader's key lies there").to_owned();
        let key = space.child("write").key(&name);
        // The name may have been used by this guard before, so the value is one that no other has.
        let record = ContenderRecord::of(hold.session(), "").with_nonce(hold.unfenced().nonce());
        let mark = Value::from(Json(record));
        let mut claim = Claim::of(key.clone(), mark.into_bytes(&key)?);
        claim.when = hold.fence().compares();
        claim
            .when
            .push(Compare::empty(space.child("write").range()));
        claim
            .when
            .extend(others(&read.range(), &own).map(Compare::empty));
        claim.otherwise = hold.fence().reads().into_iter().map(ops::read).collect();
        let claimed = hold
            .session()
            .actor()
            .run(|actor| async move { actor.claim(claim).await })
            .await?;
        Ok(match claimed {
            Claimed::Refused { responses, .. } => {
                if let Err(owner) = hold.fence().judge(&responses) {
                    hold.session().check()?;
                    let owner = owner.map(|kv| Box::new(Holder::of(&kv)));
                    return Err(Error::Fenced { owner });
                }
                Upgraded::Read(Self { hold, space })
            }
            Claimed::Made { mut owned, .. } => {
                let (read, continued) = hold.into_parts();
                owned.absorb(read);
                let hold = Hold::goes_on(owned, continued);
                Upgraded::Write(WriteGuard { hold, space })
            }
        })
    }

    /// Gives the lock back and waits until the store has confirmed. As [`Hold::release`].
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lock had been lost before; [`Error::SessionLost`].
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        self.hold.release().await
    }
}

impl WriteGuard {
    /// Holds for reading instead, without a moment in which a writer could come in between. Readers
    /// that wait behind are let in. The reader's token is the one from before.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lock had been lost before; [`Error::SessionLost`].
    ///
    /// # Cancel safety
    /// Dropping the future gives the lock back.
    pub async fn downgrade(self) -> Result<ReadGuard> {
        let Self { hold, space } = self;
        let (mut write, continued) = hold.into_parts();
        // The reader's key stays as it is: a new one would stand behind a writer that waits.
        let read = write.split_rest().expect("a writer has a reader's key");
        if write.release().await? == Some(false) {
            return Err(Error::Fenced { owner: None });
        }
        let hold = Hold::goes_on(read, continued);
        Ok(ReadGuard { hold, space })
    }

    /// Gives the lock back and waits until the store has confirmed. As [`Hold::release`].
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lock had been lost before; [`Error::SessionLost`].
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        self.hold.release().await
    }
}

/// The two parts of `range` beside `key`.
fn others(range: &KeyRange, key: &Key) -> [KeyRange; 2] {
    let key = key.as_bytes();
    let after = [key, &b"\0"[..]].concat();
    [
        KeyRange {
            start: range.start.clone(),
            end: key.clone(),
        },
        KeyRange {
            start: after.into(),
            end: range.end.clone(),
        },
    ]
}

impl Deref for ReadGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl Fenced for ReadGuard {
    fn fence(&self) -> &Fence {
        self.hold.fence()
    }
}

impl Deref for WriteGuard {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl Fenced for WriteGuard {
    fn fence(&self) -> &Fence {
        self.hold.fence()
    }
}
