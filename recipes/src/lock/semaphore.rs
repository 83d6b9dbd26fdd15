//! The semaphore: at most so many permits at a time, in the order of asking.
//!
//! Permits are keys under `permit/`. Only who holds the *door*, a line of its own, adds one: with the
//! door held the number of permits can only fall, so what was counted still holds when the permit is
//! written. Where nobody is at the door, a permit is added without it, provided that none was added
//! since they were counted.

use std::num::NonZeroU32;
use std::ops::Deref;
use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use super::{ContenderRecord, Fence, Fenced, Hold, Holder, Waiter, introduced, queue_of};
use crate::client::Client;
use crate::error::{Error, Result, TxnError};
use crate::keys::{Key, KeyRange, KeySpace, Name, Revision};
use crate::kit::{Contender, Line, fresh_key};
use crate::session::{Claim, Claimed, Session};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value, from_json};
use crate::wait::{self, Backoff};

/// Tries without the door before standing in its line.
const HASTY_TRIES: usize = 2;

/// How many permits a [`Semaphore`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Exactly so many: it is an error if the store has agreed on another number.
    Exactly(u32),
    /// So many when nobody has said so before; otherwise what the store has.
    Initially(u32),
}

impl From<u32> for Limit {
    fn from(limit: u32) -> Self {
        Self::Exactly(limit)
    }
}

impl Limit {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Exactly(limit) | Self::Initially(limit) => limit,
        }
    }
}

/// A number of permits that many contend for. A handle: cheap to clone, holds nothing.
///
/// Costs: two transactions where permits are free and nobody waits, otherwise four and a watch; a
/// permit that is given back wakes only who holds the door.
#[derive(Debug, Clone)]
pub struct Semaphore {
    client: Client,
    space: KeySpace,
    limit: Limit,
    info: String,
}

/// The value of the key of a permit, and of one who waits for it at the door.
#[derive(Debug, Serialize, Deserialize)]
struct PermitRecord {
    permits: u32,
    #[serde(flatten)]
    contender: ContenderRecord,
}

/// What the store has agreed on and given out, at one revision.
#[derive(Debug)]
struct Count {
    limit: u32,
    /// When the limit was written; 0: it is not.
    limit_at: Revision,
    taken: u64,
    /// Whether somebody holds the door or waits for it.
    door: bool,
    at: Revision,
}

impl Semaphore {
    pub(crate) fn new(client: Client, name: &Name, limit: Limit) -> Self {
        Self {
            client,
            space: name.space("semaphore"),
            limit,
            info: String::new(),
        }
    }

    /// What the lists of holders and waiters show for contenders made by this handle.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    fn record(&self, session: &Session, permits: NonZeroU32) -> PermitRecord {
        PermitRecord {
            permits: permits.get(),
            contender: ContenderRecord::of(session, &self.info),
        }
    }

    fn door(&self) -> KeySpace {
        self.space.child("door")
    }

    fn permits(&self) -> KeySpace {
        self.space.child("permit")
    }

    fn limit_key(&self) -> Key {
        self.space.key("limit")
    }

    /// Waits for one permit.
    ///
    /// # Errors
    /// As [`Semaphore::acquire_many`].
    ///
    /// # Cancel safety
    /// As [`Semaphore::acquire_many`].
    pub async fn acquire(&self, session: &Session) -> Result<Permit> {
        self.acquire_many(session, NonZeroU32::MIN).await
    }

    /// Waits for `permits` at once. Those who ask later wait behind, also for fewer.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the store has agreed on another limit; [`Error::Invalid`] for more
    /// permits than there are; [`Error::SessionLost`] at once when the session is lost while waiting;
    /// [`Error::ForeignKey`] when a key in front belongs to no contender; the store's final refusals.
    /// Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line and gives back what was on its way.
    pub async fn acquire_many(&self, session: &Session, permits: NonZeroU32) -> Result<Permit> {
        for _ in 0..HASTY_TRIES {
            match self.try_now(session, permits).await? {
                Tried::Got(permit) => return Ok(*permit),
                Tried::Full => break,
                Tried::Moved => {}
            }
        }
        let value = Json(self.record(session, permits));
        let door = Contender::enter(session, &self.door(), value).await?;
        let door = door.wait_turn().await?;
        let permit = tokio::select! {
            biased;
            reason = session.lost() => return Err(Error::SessionLost(reason)),
            permit = self.at_the_door(&door, permits) => permit?,
        };
        // The transaction that made the permit has left the door.
        door.into_owned().disarm();
        Ok(permit)
    }

    /// As [`Semaphore::acquire_many`], for at most `limit`; `None` when the time was up before.
    ///
    /// # Errors
    /// As [`Semaphore::acquire_many`].
    ///
    /// # Cancel safety
    /// As [`Semaphore::acquire_many`].
    pub async fn acquire_within(
        &self,
        session: &Session,
        permits: NonZeroU32,
        limit: Duration,
    ) -> Result<Option<Permit>> {
        let deadline = self.client.deadline(limit);
        let acquired = self.acquire_many(session, permits);
        self.client.before(deadline, acquired).await.transpose()
    }

    /// Takes `permits` if they are free and nobody waits; writes nothing otherwise.
    ///
    /// # Errors
    /// As [`Semaphore::acquire_many`].
    ///
    /// # Cancel safety
    /// As [`Semaphore::acquire_many`].
    pub async fn try_acquire(
        &self,
        session: &Session,
        permits: NonZeroU32,
    ) -> Result<Option<Permit>> {
        let mut pause = Backoff::contended(&self.client);
        loop {
            match self.try_now(session, permits).await? {
                Tried::Got(permit) => return Ok(Some(*permit)),
                Tried::Full => return Ok(None),
                // Somebody else got one meanwhile: each such turn gives somebody a permit.
                Tried::Moved => pause.pause().await,
            }
        }
    }

    /// How many permits are free; none, too, when more are given out than the limit is since it was
    /// lowered.
    ///
    /// # Errors
    /// [`Error::Mismatch`]; the store's.
    pub async fn available(&self) -> Result<u32> {
        let count = self.count().await?;
        let free = u64::from(count.limit).saturating_sub(count.taken);
        Ok(u32::try_from(free).unwrap_or(u32::MAX))
    }

    /// How many permits there are, as the store has agreed.
    ///
    /// # Errors
    /// [`Error::Mismatch`]; the store's.
    pub async fn limit(&self) -> Result<u32> {
        Ok(self.count().await?.limit)
    }

    /// Changes how many permits there are, for everybody. Lowering it takes no permit away; it keeps new
    /// ones from being given until enough have come back, and who waits for more than there are then is
    /// told [`Error::Invalid`]. Other handles that were made with [`Limit::Exactly`], clones among them,
    /// fail from then on.
    ///
    /// # Errors
    /// The store's; an ambiguous one may have changed it. A copy of it that comes late changes nothing
    /// after another resize.
    pub async fn resize(&mut self, limit: u32) -> Result<()> {
        let key = self.limit_key();
        let mut pause = Backoff::contended(&self.client);
        loop {
            let kv = self.client.get(&key).await?;
            let at = Revision(kv.map_or(0, |kv| kv.mod_revision));
            let change = self.client.txn().when(Compare::mod_revision(&key, at));
            match change.put(&key, limit.to_string()).commit().await {
                Ok(_) => break,
                Err(TxnError::Conflict { .. }) => pause.pause().await,
                Err(error) => return Err(error.into()),
            }
        }
        if let Limit::Exactly(own) = &mut self.limit {
            *own = limit;
        }
        Ok(())
    }

    /// Who has permits, and how many, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn holders(&self) -> Result<Vec<PermitHolder>> {
        let (_, mut kvs) = self.client.list(self.permits().range()).await?;
        kvs.sort_by_key(|kv| kv.create_revision);
        let who = introduced(&self.client, &kvs).await?;
        let mut holders = Vec::new();
        for (kv, holder) in kvs.iter().zip(who) {
            let permits = weight(kv)?;
            holders.push(PermitHolder { permits, holder });
        }
        Ok(holders)
    }

    /// Who waits for permits, in order, at most `limit` of them.
    ///
    /// # Errors
    /// The store's.
    pub async fn waiters(&self, limit: usize) -> Result<Vec<Waiter>> {
        let queue = queue_of(&self.client, self.door().range(), limit).await?;
        let waiting = (1..).zip(queue);
        Ok(waiting
            .map(|(position, contender)| Waiter {
                position,
                contender,
            })
            .collect())
    }

    /// Waits, with the door held, until there are permits enough.
    async fn at_the_door(&self, door: &Hold, permits: NonZeroU32) -> Result<Permit> {
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            let count = match self.count_for(Some(door)).await {
                Err(Error::Store(error)) if error.is_transient() => {
                    pause.pause().await;
                    continue;
                }
                count => count?,
            };
            if self.is_room(&count, permits)? {
                let mut when = door.fence().compares();
                when.push(self.limit_is(&count));
                if let Some(permit) = self
                    .claim(door.session(), permits, &count, when, Some(door))
                    .await?
                {
                    return Ok(permit);
                }
                // The limit has changed, or the door is lost, which the next count tells.
                pause.pause().await;
                continue;
            }
            let from = Revision(count.at.0 + 1);
            let ranges = [
                self.permits().range(),
                KeyRange::one(self.limit_key()),
                KeyRange::one(door.key()),
            ];
            wait::until_event(&self.client, &ranges, from, &mut pause, |_| true).await?;
        }
    }

    /// Takes permits without the door.
    async fn try_now(&self, session: &Session, permits: NonZeroU32) -> Result<Tried> {
        session.belongs_to(&self.client)?;
        let mut pause = Backoff::between_attempts(&self.client);
        let count = loop {
            match self.count().await {
                Err(Error::Store(error)) if error.is_transient() => {
                    session.check()?;
                    pause.pause().await;
                }
                count => break count?,
            }
        };
        if !self.is_room(&count, permits)? || count.door {
            return Ok(Tried::Full);
        }
        let when = vec![
            Compare::empty(self.door().range()),
            Compare::unwritten_since(self.permits().range(), count.at),
            self.limit_is(&count),
        ];
        let permit = self.claim(session, permits, &count, when, None).await?;
        Ok(permit.map_or(Tried::Moved, |permit| Tried::Got(Box::new(permit))))
    }

    fn is_room(&self, count: &Count, permits: NonZeroU32) -> Result<bool> {
        if permits.get() > count.limit {
            return Err(Error::Invalid(format!(
                "{permits} permits at once of a semaphore of {}",
                count.limit
            )));
        }
        Ok(count.taken + u64::from(permits.get()) <= u64::from(count.limit))
    }

    fn limit_is(&self, count: &Count) -> Compare {
        Compare::mod_revision(self.limit_key(), count.limit_at)
    }

    /// Creates a permit under these conditions, and leaves the door with the same transaction.
    async fn claim(
        &self,
        session: &Session,
        permits: NonZeroU32,
        count: &Count,
        when: Vec<Compare>,
        door: Option<&Hold>,
    ) -> Result<Option<Permit>> {
        let key = fresh_key(session, &self.permits());
        let record = self.record(session, permits);
        let mut claim = Claim::of(key.clone(), Value::from(Json(record)).into_bytes(&key)?);
        claim.when = when;
        if let Some(door) = door {
            claim.also.push(ops::delete(KeyRange::one(door.key())));
        }
        if count.limit_at == Revision(0) {
            let limit = count.limit.to_string();
            claim
                .also
                .push(ops::put(self.limit_key(), limit.into(), None));
        }
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(claim).await })
            .await?;
        Ok(match claimed {
            Claimed::Refused { .. } => None,
            Claimed::Made { owned, .. } => {
                // The permits first: whose they are is who is told to be first.
                let contenders = vec![self.permits().range(), self.space.range()];
                let hold = Hold::new(session.clone(), owned, contenders);
                Some(Permit { hold, permits })
            }
        })
    }

    async fn count(&self) -> Result<Count> {
        self.count_for(None).await
    }

    /// Counts, as long as the door is held, if one is given.
    async fn count_for(&self, held: Option<&Hold>) -> Result<Count> {
        let mut door = ops::range(self.door().range());
        door.limit = 1;
        door.keys_only = true;
        let compare = held.map(|held| held.fence().compares()).unwrap_or_default();
        let request = TxnRequest {
            compare: compare.into_iter().map(Into::into).collect(),
            success: vec![
                ops::read(ops::get(self.limit_key())),
                ops::read(ops::range(self.permits().range())),
                ops::read(door),
            ],
            ..Default::default()
        };
        let answer = self.client.store().txn(request).await?;
        if let Some(held) = held.filter(|_| !answer.succeeded) {
            return Err(held.session().actor().why_gone(held.key()).await);
        }
        let stored = ops::kvs(&answer.responses, 0).first();
        let limit = match stored {
            None => self.limit.number(),
            Some(kv) => self.agreed(kv)?,
        };
        let mut taken = 0;
        let permits = Line::of(&self.permits());
        for kv in ops::kvs(&answer.responses, 1) {
            if !permits.is_contender(kv) {
                // It would count for ever.
                return Err(Error::ForeignKey(kv.key.clone().into()));
            }
            taken += u64::from(weight(kv)?);
        }
        Ok(Count {
            limit,
            limit_at: Revision(stored.map_or(0, |kv| kv.mod_revision)),
            taken,
            door: !ops::kvs(&answer.responses, 2).is_empty(),
            at: Revision(answer.header.map_or(0, |header| header.revision)),
        })
    }

    /// The limit that the store has, if this handle agrees.
    fn agreed(&self, kv: &KeyValue) -> Result<u32> {
        let stored: u32 = from_json(&kv.key, &kv.value)?;
        match self.limit {
            Limit::Exactly(wanted) if wanted != stored => Err(Error::Mismatch {
                key: self.limit_key(),
                wanted: wanted.to_string(),
                stored: stored.to_string(),
            }),
            _ => Ok(stored),
        }
    }
}

enum Tried {
    Got(Box<Permit>),
    Full,
    Moved,
}

/// How many permits a key stands for, or waits for.
pub(crate) fn weight(kv: &KeyValue) -> Result<u32> {
    let record: PermitRecord = from_json(&kv.key, &kv.value)?;
    Ok(record.permits)
}

/// Somebody who has permits of a [`Semaphore`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PermitHolder {
    /// How many.
    pub permits: u32,
    /// Who.
    pub holder: Holder,
}

/// Permits of a [`Semaphore`]; everything a guard can do is in [`Hold`]. Its token is larger than that
/// of every permit given before. Dropping it gives the permits back in the background.
#[derive(Debug)]
#[must_use = "a dropped permit is given back at once"]
pub struct Permit {
    hold: Hold,
    permits: NonZeroU32,
}

impl Permit {
    /// How many permits these are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.permits.get()
    }

    /// Gives the permits back and waits until the store has confirmed. As [`Hold::release`].
    ///
    /// # Errors
    /// [`Error::Fenced`] when they had been lost before; [`Error::SessionLost`].
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        self.hold.release().await
    }
}

impl Deref for Permit {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.hold
    }
}

impl Fenced for Permit {
    fn fence(&self) -> &Fence {
        self.hold.fence()
    }
}
