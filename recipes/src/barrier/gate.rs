//! The simple barrier: closed while there is a key under it, by holders that live, or by one key that
//! stays until it is lifted. Waiting needs no session and believes only what a read has shown: the end
//! of a watch opens nothing.

use std::ops::Deref;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RangeRequest, TxnRequest};
use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::lock::{ContenderRecord, Fence, Fenced, Hold, Holder, queue_of};
use crate::session::{Actor, Attach, Claim, Claimed, NewKey, Session};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value};
use crate::wait::{self, Backoff};

/// A barrier that others wait at while it is closed. A handle: cheap to clone, holds nothing.
///
/// It is closed while at least one [`BarrierHold`] lives, or while it is set. A wait is over when the
/// store has shown it open at one revision; that it stays open is not promised.
#[derive(Debug, Clone)]
pub struct Barrier {
    client: Client,
    space: KeySpace,
    info: String,
}

impl Barrier {
    pub(super) fn new(client: Client, name: &str) -> Self {
        Self {
            client,
            space: KeySpace::of("barrier", name),
            info: String::new(),
        }
    }

    /// What [`Barrier::holders`] shows for what this handle closes.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    /// The prefix of the barrier's keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.space.prefix()
    }

    fn set_key(&self) -> Key {
        self.space.key("set")
    }

    fn hold_key(&self, session: &Session) -> Key {
        let nonce = self.client.nonce();
        self.space.key(&format!("hold/{}/{nonce}", session.lease()))
    }

    /// Keeps the barrier closed until the hold is dropped or released, or its session ends. Several
    /// holds keep it closed together.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, the hold goes as soon as it turns out to exist.
    pub async fn hold(&self, session: &Session) -> Result<BarrierHold> {
        session.belongs_to(&self.client)?;
        let key = self.hold_key(session);
        let record = ContenderRecord::of(session, &self.info);
        let claim = Claim::of(key.clone(), Value::from(Json(record)).into_bytes(&key)?);
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(claim).await })
            .await?;
        let Claimed::Made { owned, .. } = claimed else {
            // The key has a fresh nonce, and the claim no other condition.
            return Err(Error::Conflict);
        };
        let hold = Hold::new(session.clone(), owned, vec![self.space.range()]);
        Ok(BarrierHold(hold))
    }

    /// Closes the barrier until somebody lifts it, whatever becomes of this process. Returns whether
    /// it was this call that set it: false when it was set already.
    ///
    /// # Errors
    /// [`Error::SessionLost`], and then it may be set or not; the store's final refusals. Trouble
    /// with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, it may still be set.
    pub async fn set(&self, session: &Session) -> Result<bool> {
        session.belongs_to(&self.client)?;
        let key = self.set_key();
        let record = ContenderRecord::of(session, &self.info).with_nonce(self.client.nonce());
        let value = Value::from(Json(record)).into_bytes(&key)?;
        session
            .actor()
            .run(|actor| async move { create_once(&actor, key, value).await })
            .await
    }

    /// Takes back what [`Barrier::set`] did; holds go on. Returns whether it was set. A copy of this
    /// call, late on the way, does not lift a barrier that was set anew.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, it may still be lifted.
    pub async fn lift(&self) -> Result<bool> {
        let key = self.set_key();
        let Some(created) = look(&self.client, ops::get(&key)).await?.1 else {
            return Ok(false);
        };
        let request = TxnRequest {
            compare: vec![Compare::create_revision(&key, created).into()],
            success: vec![ops::delete(KeyRange::one(&key))],
            failure: Vec::new(),
        };
        wait::repeat(&self.client, request).await?;
        Ok(true)
    }

    /// Waits until nothing keeps the barrier closed. Needs no session.
    ///
    /// Lost connections, ended watches and compactions are waited out: it returns only after the
    /// store has shown, at one revision, that there is no key under the barrier. Between two looks it
    /// may have been open for a moment that nobody saw.
    ///
    /// # Errors
    /// The store's final refusals.
    ///
    /// # Cancel safety
    /// Nothing is held.
    pub async fn wait(&self) -> Result<()> {
        until_empty(&self.client, &self.space.range()).await
    }

    /// Whether the barrier is closed now.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    pub async fn is_closed(&self) -> Result<bool> {
        let (_, found) = look(&self.client, any_of(&self.space.range())).await?;
        Ok(found.is_some())
    }

    /// What keeps the barrier closed, at most `limit` of it, oldest first. What is set has no lease:
    /// its lease is 0.
    ///
    /// # Errors
    /// The store's.
    pub async fn holders(&self, limit: usize) -> Result<Vec<Holder>> {
        queue_of(&self.client, self.space.range(), limit).await
    }
}

/// Creates `key`, attached to no lease, exactly once: late copies of the call change nothing, also
/// after the key was deleted. Returns whether it was created; false when it exists. To be called
/// inside [`Actor::run`].
async fn create_once(actor: &Actor, key: Key, value: Bytes) -> Result<bool> {
    let attach = Attach::Nothing;
    let claim = Claim {
        keys: vec![NewKey { key, value, attach }],
        ..Default::default()
    };
    Ok(match actor.claim(claim).await? {
        Claimed::Made { owned, .. } => {
            owned.disarm();
            true
        }
        Claimed::Refused { .. } => false,
    })
}

/// A read of one key of the range, if there is any.
fn any_of(range: &KeyRange) -> RangeRequest {
    let mut request = ops::range(range.clone());
    request.limit = 1;
    request.keys_only = true;
    request
}

/// The store's revision, and the create revision of the first key read.
async fn look(client: &Client, request: RangeRequest) -> Result<(Revision, Option<Revision>)> {
    let answer = wait::read(client, request).await?;
    let seen = Revision(answer.header.map_or(0, |header| header.revision));
    let first = answer.kvs.first();
    Ok((seen, first.map(|kv| Revision(kv.create_revision))))
}

/// Waits until a read has found no key in `range`.
pub(super) async fn until_empty(client: &Client, range: &KeyRange) -> Result<()> {
    let mut pause = Backoff::between_attempts(client);
    loop {
        let (seen, found) = look(client, any_of(range)).await?;
        if found.is_none() {
            return Ok(());
        }
        let deleted = |event: &Event| event.r#type() == EventType::Delete;
        let ranges = std::slice::from_ref(range);
        wait::until_event(client, ranges, Revision(seen.0 + 1), &mut pause, deleted).await?;
    }
}

/// Keeps a [`Barrier`] closed; everything a guard can do is in [`Hold`], so that writes can be made
/// which the store refuses once the barrier may be open. Dropping it opens the barrier in the
/// background, as far as nobody else keeps it closed.
#[derive(Debug)]
#[must_use = "a dropped hold opens the barrier"]
pub struct BarrierHold(Hold);

impl BarrierHold {
    /// Gives the hold up and waits until the store has confirmed. As [`Hold::release`].
    ///
    /// # Errors
    /// [`Error::Fenced`] when it had been lost before; [`Error::SessionLost`].
    ///
    /// # Cancel safety
    /// The release goes on when the future is dropped.
    pub async fn release(self) -> Result<()> {
        self.0.release().await
    }
}

impl Deref for BarrierHold {
    type Target = Hold;

    fn deref(&self) -> &Hold {
        &self.0
    }
}

impl Fenced for BarrierHold {
    fn fence(&self) -> &Fence {
        self.0.fence()
    }
}
