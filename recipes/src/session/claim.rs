//! Creating a key of a session exactly once, although answers get lost: the core of every lock and
//! election. A claim whose outcome is unknown is first *sealed* (the session's own key, which every
//! claim compares with, is moved on), so that no old copy of it can land later; then it is asked
//! again.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest, TxnResponse};
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Actor;
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::store::{ops, ops::Compare};
use crate::wait::Backoff;

/// A key to be created, attached to the session's lease, with a value that no other claim has
/// (because of a nonce in it or in the key).
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// The value.
    pub value: Bytes,
    /// Conditions besides that the key does not exist.
    pub when: Vec<Compare>,
    /// Done in the same transaction when the key is created.
    pub also: Vec<RequestOp>,
    /// Reads done when it is not.
    pub otherwise: Vec<RequestOp>,
    /// Written over the key just before it is given up, also when the session is *closed*: those who
    /// watch then tell that from the end of a lease, which writes nothing.
    pub farewell: Option<Bytes>,
}

/// What became of a [`Claim`].
#[derive(Debug)]
pub enum Claimed {
    /// The key was created.
    Made {
        /// The key.
        owned: Owned,
        /// The store's revision at the answer.
        revision: Revision,
        /// The answers to the claim's `also`; `None` when the creation was found out about later.
        responses: Option<Vec<ResponseOp>>,
    },
    /// Nothing was written: the key exists, or a condition does not hold.
    Refused {
        /// The store's revision at the answer.
        revision: Revision,
        /// The key as it is, if it exists.
        existing: Option<KeyValue>,
        /// The answers to the claim's `otherwise`.
        responses: Vec<ResponseOp>,
    },
}

/// A key that this session created. Dropping it deletes the key in the background, repeated until
/// the store has answered or the session is over.
#[derive(Debug)]
pub struct Owned {
    actor: Actor,
    key: Key,
    revision: Revision,
    /// The revision of the last write to the key; held while writing.
    written: Arc<tokio::sync::Mutex<Revision>>,
    armed: bool,
    farewell: Option<Box<Farewell>>,
}

/// What is written before the key is deleted.
#[derive(Debug)]
struct Farewell {
    value: Bytes,
    /// Tells the task that waits for the session to be closed that the key has gone before.
    _gone: DropGuard,
}

impl Owned {
    fn new(actor: &Actor, key: &Key, created: Revision, farewell: Option<&Bytes>) -> Self {
        let mut owned = Self {
            actor: actor.clone(),
            key: key.clone(),
            revision: created,
            written: Arc::new(tokio::sync::Mutex::new(created)),
            armed: true,
            farewell: None,
        };
        if let Some(value) = farewell {
            let gone = CancellationToken::new();
            owned.farewell = Some(Box::new(Farewell {
                value: value.clone(),
                _gone: gone.clone().drop_guard(),
            }));
            actor.spawn("farewell", farewell_on_close(owned.ending(), gone));
        }
        owned
    }

    /// What it takes to give the key up.
    fn ending(&self) -> Ending {
        Ending {
            actor: self.actor.clone(),
            key: self.key.clone(),
            created: self.revision,
            farewell: self.farewell.as_ref().map(|last| last.value.clone()),
        }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The revision at which the key was created.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Leaves the key to somebody who writes and deletes it by other means.
    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }

    /// Writes a new value to the key, keeping its lease. Writes of one key take effect in the order
    /// of the calls. Returns the revision of the write.
    ///
    /// # Errors
    /// [`Error::Removed`] when the key is not there as created; [`Error::SessionLost`]; the store's
    /// final refusals.
    ///
    /// # Cancel safety
    /// The write goes on when the future is dropped.
    pub async fn write(&self, value: Bytes) -> Result<Revision> {
        let written = Arc::clone(&self.written).lock_owned().await;
        let (key, created) = (self.key.clone(), self.revision);
        self.actor
            .run(move |actor| async move { actor.overwrite(key, created, written, value).await })
            .await
    }

    /// Deletes the key now, the farewell first if the claim had one. Returns whether it still existed as created; `None` when an answer was
    /// lost on the way, so that an earlier copy of the deletion may have been the one.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// The deletion goes on when the future is dropped.
    pub async fn release(mut self) -> Result<Option<bool>> {
        self.armed = false;
        let ending = self.ending();
        let (tell, answer) = oneshot::channel();
        self.actor.spawn("release", async move {
            drop(tell.send(ending.give_up().await));
        });
        answer.await.map_err(|_| self.actor.loss())?
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let ending = self.ending();
        self.actor.spawn("release", async move {
            let key = ending.key.clone();
            if let Err(error) = ending.give_up().await {
                tracing::debug!(%key, %error, "a dropped key was left to its lease");
            }
        });
    }
}

/// A key on its way out.
struct Ending {
    actor: Actor,
    key: Key,
    created: Revision,
    farewell: Option<Bytes>,
}

impl Ending {
    /// As [`Owned::release`]. Says farewell and deletes in two transactions, because one cannot
    /// write a key twice. The farewell compares less than other writes of the key do: those that are
    /// still on their way change nothing after it.
    async fn give_up(self) -> Result<Option<bool>> {
        if let Some(farewell) = self.farewell {
            let request = TxnRequest {
                compare: vec![Compare::create_revision(&self.key, self.created).into()],
                success: vec![ops::put(&self.key, farewell, Some(self.actor.lease()))],
                failure: Vec::new(),
            };
            self.actor.repeat(request).await?;
        }
        self.actor.delete_created(&self.key, self.created).await
    }
}

/// Gives the key up when the session is closed, which waits for it, so that closing does not look
/// like the end of a lease. Ends with the key.
async fn farewell_on_close(ending: Ending, gone: CancellationToken) {
    let lost = ending.actor.lost();
    tokio::select! {
        biased;
        reason = lost => {
            if reason == LostReason::Closed {
                let key = ending.key.clone();
                if let Err(error) = ending.give_up().await {
                    tracing::debug!(%key, %error, "no farewell before the session's end");
                }
            }
        }
        () = gone.cancelled() => {}
    }
}

impl Actor {
    /// Creates a key of the session, exactly once, and says for certain whether it was created.
    /// To be called inside [`Actor::run`].
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    pub async fn claim(&self, key: Key, claim: Claim) -> Result<Claimed> {
        let mut pause = Backoff::between_attempts(self.client());
        loop {
            let at = *self.core.sealed_at.lock().await;
            match self.attempt(self.claim_request(&key, &claim, at)).await {
                Ok(answer) => {
                    if let Some(claimed) = self.judge(&key, &claim, at, answer).await? {
                        return Ok(claimed);
                    }
                }
                Err(Error::Store(error)) if error.is_retryable() => pause.pause().await,
                Err(Error::Store(error)) if error.is_ambiguous() => {
                    tracing::debug!(%key, %error, "outcome of a claim unknown; sealing");
                    self.seal(at).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn claim_request(&self, key: &Key, claim: &Claim, at: Revision) -> TxnRequest {
        let own = [
            Compare::mod_revision(self.session_key(), at),
            Compare::absent(key),
        ];
        let put = ops::put(key, claim.value.clone(), Some(self.lease()));
        let reads = [ops::get(key), ops::get(self.session_key())];
        TxnRequest {
            compare: own
                .into_iter()
                .chain(claim.when.iter().cloned())
                .map(Into::into)
                .collect(),
            success: [put]
                .into_iter()
                .chain(claim.also.iter().cloned())
                .collect(),
            failure: reads
                .into_iter()
                .map(ops::read)
                .chain(claim.otherwise.iter().cloned())
                .collect(),
        }
    }

    /// What an answer to a claim means; `None`: send it again, sealed at the newer revision.
    async fn judge(
        &self,
        key: &Key,
        claim: &Claim,
        at: Revision,
        mut answer: TxnResponse,
    ) -> Result<Option<Claimed>> {
        let revision = Revision(answer.header.map_or(0, |header| header.revision));
        let owned = |created| Owned::new(self, key, created, claim.farewell.as_ref());
        if answer.succeeded {
            return Ok(Some(Claimed::Made {
                owned: owned(revision),
                revision,
                responses: Some(answer.responses.split_off(1)),
            }));
        }
        let existing = ops::kvs(&answer.responses, 0).first().cloned();
        let Some(session) = ops::kvs(&answer.responses, 1).first() else {
            self.lose(LostReason::LeaseGone);
            return Err(self.loss());
        };
        if let Some(kv) = &existing
            && kv.lease == self.lease().0
            && kv.value == claim.value
        {
            return Ok(Some(Claimed::Made {
                owned: owned(Revision(kv.create_revision)),
                revision,
                responses: None,
            }));
        }
        if session.mod_revision != at.0 {
            let mut sealed_at = self.core.sealed_at.lock().await;
            *sealed_at = (*sealed_at).max(Revision(session.mod_revision));
            return Ok(None);
        }
        Ok(Some(Claimed::Refused {
            revision,
            existing,
            responses: answer.responses.split_off(2),
        }))
    }

    /// Moves the session's key on, so that no claim sent before, whose answer was lost, can still
    /// take effect. Repeated until the store answers.
    async fn seal(&self, at: Revision) -> Result<()> {
        let mut sealed_at = self.core.sealed_at.lock().await;
        if *sealed_at != at {
            return Ok(());
        }
        let key = self.session_key();
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(key, at).into()],
            success: vec![ops::put(key, self.core.value.clone(), Some(self.lease()))],
            failure: vec![ops::read(ops::get(key))],
        };
        let answer = self.repeat(request).await?.0;
        let revision = if answer.succeeded {
            answer.header.map_or(0, |header| header.revision)
        } else if let Some(kv) = ops::kvs(&answer.responses, 0).first() {
            kv.mod_revision
        } else {
            self.lose(LostReason::LeaseGone);
            return Err(self.loss());
        };
        *sealed_at = Revision(revision);
        Ok(())
    }

    /// Writes over a key of ours. Each write compares the revision of the one before, so an old
    /// copy of an earlier write, late on the way, changes nothing.
    async fn overwrite(
        &self,
        key: Key,
        created: Revision,
        mut written: tokio::sync::OwnedMutexGuard<Revision>,
        value: Bytes,
    ) -> Result<Revision> {
        let request = TxnRequest {
            compare: vec![
                Compare::create_revision(&key, created).into(),
                Compare::mod_revision(&key, *written).into(),
            ],
            success: vec![ops::put(&key, value.clone(), Some(self.lease()))],
            failure: vec![ops::read(ops::get(&key))],
        };
        let (answer, repeated) = self.repeat(request).await?;
        let now = match ops::kvs(&answer.responses, 0).first() {
            _ if answer.succeeded => answer.header.map_or(0, |header| header.revision),
            Some(kv) if repeated && kv.create_revision == created.0 && kv.value == value => {
                kv.mod_revision
            }
            _ => return Err(Error::Removed(key)),
        };
        *written = Revision(now);
        Ok(*written)
    }

    /// Deletes a key if it is the one created at `revision`. See [`Owned::release`].
    async fn delete_created(&self, key: &Key, revision: Revision) -> Result<Option<bool>> {
        let request = TxnRequest {
            compare: vec![Compare::create_revision(key, revision).into()],
            success: vec![ops::delete(KeyRange::one(key))],
            failure: Vec::new(),
        };
        let (answer, repeated) = self.repeat(request).await?;
        Ok(match (answer.succeeded, repeated) {
            (true, _) => Some(true),
            (false, true) => None,
            (false, false) => Some(false),
        })
    }
}
