//! Creating keys of a session exactly once, although answers get lost: the core of every lock and
//! election. A claim whose outcome is unknown is first *sealed* (the session's own key, which every
//! claim compares with, is moved on), so that no old copy of it can land later; then it is asked
//! again.

use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest, TxnResponse};
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Actor;
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, LeaseId, Revision};
use crate::store::{ops, ops::Compare};
use crate::wait::Backoff;

/// What a new key hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// The session's lease: it goes when the session ends.
    Session,
    /// Nothing: it stays until somebody deletes it.
    Nothing,
}

/// A key to be created, with a value that no other claim has (because of a nonce in it or in the
/// key).
#[derive(Debug, Clone)]
pub struct NewKey {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// What it hangs on.
    pub attach: Attach,
}

/// Keys to be created, all of them in one transaction or none.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// The keys; at least one.
    pub keys: Vec<NewKey>,
    /// Conditions besides that the keys do not exist.
    pub when: Vec<Compare>,
    /// Done in the same transaction when the keys are created.
    pub also: Vec<RequestOp>,
    /// Reads done when they are not.
    pub otherwise: Vec<RequestOp>,
    /// Written over the first key just before it is given up, also when the session is *closed*: those
    /// who watch then tell that from the end of a lease, which writes nothing.
    pub farewell: Option<Bytes>,
    /// Done in the very transaction that deletes the first key, if it was there until then.
    pub when_released: Vec<RequestOp>,
}

impl Claim {
    /// A claim of one key, attached to the session's lease.
    #[must_use]
    pub fn of(key: Key, value: Bytes) -> Self {
        Self::default().and(key, value)
    }

    /// One key more, attached to the session's lease.
    #[must_use]
    pub fn and(mut self, key: Key, value: Bytes) -> Self {
        let attach = Attach::Session;
        self.keys.push(NewKey { key, value, attach });
        self
    }
}

/// What became of a [`Claim`].
#[derive(Debug)]
pub enum Claimed {
    /// The keys were created.
    Made {
        /// The keys.
        owned: Owned,
        /// The store's revision at the answer.
        revision: Revision,
        /// The answers to the claim's `also`; `None` when the creation was found out about later.
        responses: Option<Vec<ResponseOp>>,
    },
    /// Nothing was written: a key exists, or a condition does not hold.
    Refused {
        /// The store's revision at the answer.
        revision: Revision,
        /// The claim's keys that exist.
        existing: Vec<KeyValue>,
        /// The answers to the claim's `otherwise`.
        responses: Vec<ResponseOp>,
    },
}

/// Keys that this session created. Dropping the value deletes them in the background, in one
/// transaction, repeated until the store has answered or the session is over.
#[derive(Debug)]
pub struct Owned {
    actor: Actor,
    /// At least one.
    keys: Vec<OwnedKey>,
    /// Done in the transaction that deletes the first key, if that still is as created.
    last: Vec<RequestOp>,
    /// Done with that when a task has panicked with the keys in hand.
    panicked: Option<Box<(RequestOp, Arc<AtomicBool>)>>,
    farewell: Option<Box<Farewell>>,
    armed: bool,
}

/// What is written over the first key before it is deleted.
#[derive(Debug)]
struct Farewell {
    value: Bytes,
    /// Tells the task that waits for the session to be closed that the key has gone before.
    _gone: DropGuard,
}

#[derive(Debug, Clone)]
struct OwnedKey {
    key: Key,
    revision: Revision,
    /// The revision of the last write to the key; held while writing.
    written: Arc<tokio::sync::Mutex<Revision>>,
}

impl OwnedKey {
    fn is_there(&self) -> Compare {
        Compare::create_revision(&self.key, self.revision)
    }
}

impl Owned {
    fn new(actor: &Actor, claim: &Claim, created: Revision) -> Self {
        let keys = claim.keys.iter().map(|new| OwnedKey {
            key: new.key.clone(),
            revision: created,
            written: Arc::new(tokio::sync::Mutex::new(created)),
        });
        let mut owned = Self {
            actor: actor.clone(),
            keys: keys.collect(),
            last: claim.when_released.clone(),
            panicked: None,
            farewell: None,
            armed: true,
        };
        if let Some(value) = &claim.farewell {
            let gone = CancellationToken::new();
            owned.farewell = Some(Box::new(Farewell {
                value: value.clone(),
                _gone: gone.clone().drop_guard(),
            }));
            actor.spawn("farewell", farewell_on_close(owned.ending(), gone));
        }
        owned
    }

    /// What it takes to give the keys up.
    fn ending(&self) -> Ending {
        let first = &self.keys[0];
        Ending {
            actor: self.actor.clone(),
            key: first.key.clone(),
            farewell: self.farewell.as_ref().map(|last| TxnRequest {
                compare: vec![first.is_there().into()],
                success: vec![ops::put(
                    &first.key,
                    last.value.clone(),
                    Some(self.actor.lease()),
                )],
                failure: Vec::new(),
            }),
            deletion: self.deletion(),
        }
    }

    /// The key; the first of several.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.keys[0].key
    }

    /// The revision at which the key was created; the first of several.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.keys[0].revision
    }

    /// All keys, and the revisions at which they were created.
    #[must_use]
    pub fn keys(&self) -> Vec<(Key, Revision)> {
        let each = self.keys.iter();
        each.map(|owned| (owned.key.clone(), owned.revision))
            .collect()
    }

    /// What deletes the keys as [`Owned::release`] does, for somebody who has them no longer in hand.
    pub(crate) fn deleting(&self) -> impl Future<Output = Result<Option<bool>>> + Send + use<> {
        self.ending().give_up()
    }

    /// Leaves the keys to somebody who writes and deletes them by other means.
    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }

    /// Has `op` done in the very transaction that deletes the first key, if it was there until then.
    pub(crate) fn when_released(&mut self, op: RequestOp) {
        self.last.push(op);
    }

    /// Ends what [`Claim::when_released`] and [`Owned::when_released`] have asked for.
    pub(crate) fn nothing_when_released(&mut self) {
        self.last.clear();
    }

    /// Has `op` done as well in that transaction when it is sent because of a panic: in the thread that
    /// drops the keys, or in one that has set [`Owned::panicked`].
    pub(crate) fn when_panicked(&mut self, op: RequestOp) {
        self.panicked = Some(Box::new((op, Arc::default())));
    }

    /// What notes a panic, if [`Owned::when_panicked`] was called.
    pub(crate) fn panicked(&self) -> Option<Arc<AtomicBool>> {
        self.panicked.as_ref().map(|of| Arc::clone(&of.1))
    }

    /// What is done in the transaction that deletes the first key.
    fn last(&self) -> impl Iterator<Item = &RequestOp> {
        let panicked = self.panicked.as_deref();
        let panicked =
            panicked.filter(|of| std::thread::panicking() || of.1.load(Ordering::Acquire));
        self.last.iter().chain(panicked.map(|of| &of.0))
    }

    /// Takes the keys of `other`, of the same session, behind its own.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        other.armed = false;
        self.keys.append(&mut other.keys);
        self.last.append(&mut other.last);
    }

    /// Gives all keys but the first away. `None` when there is only one.
    pub(crate) fn split_rest(&mut self) -> Option<Self> {
        let keys = self.keys.split_off(1);
        (!keys.is_empty()).then(|| Self {
            actor: self.actor.clone(),
            keys,
            last: Vec::new(),
            panicked: None,
            farewell: None,
            armed: self.armed,
        })
    }

    /// Writes a new value to the first key, keeping its lease. Writes of one key take effect in the
    /// order of the calls. Returns the revision of the write.
    ///
    /// # Errors
    /// [`Error::Removed`] when the key is not there as created; [`Error::SessionLost`]; the store's
    /// final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome.
    pub async fn write(&self, value: Bytes) -> Result<Revision> {
        let first = &self.keys[0];
        let written = Arc::clone(&first.written).lock_owned().await;
        let (key, created) = (first.key.clone(), first.revision);
        let last = self.farewell.as_ref().map(|last| last.value.clone());
        self.actor
            .run(move |actor| async move {
                let write = actor.overwrite(key, created, written, value, last);
                write.await
            })
            .await
    }

    /// Deletes the keys now, after the farewell if the claim had one. Returns whether they all still existed as created; `None` when an
    /// answer was lost on the way, so that an earlier copy of the deletion may have been the one.
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

    /// Deletes each key that still is as it was created, in one transaction. It succeeds as a whole
    /// if and only if all are.
    fn deletion(&self) -> TxnRequest {
        let delete = |owned: &OwnedKey| ops::delete(KeyRange::one(&owned.key));
        let first = || iter::once(delete(&self.keys[0])).chain(self.last().cloned());
        let mut request = TxnRequest {
            compare: self
                .keys
                .iter()
                .map(|owned| owned.is_there().into())
                .collect(),
            success: first().chain(self.keys[1..].iter().map(delete)).collect(),
            failure: Vec::new(),
        };
        if self.keys.len() > 1 {
            // Some may be gone; the others are still to be deleted.
            let mut each = self
                .keys
                .iter()
                .map(|owned| ops::when(owned.is_there(), delete(owned)));
            let head = TxnRequest {
                compare: vec![self.keys[0].is_there().into()],
                success: first().collect(),
                failure: Vec::new(),
            };
            each.next();
            request.failure = iter::once(ops::nested(head)).chain(each).collect();
        }
        request
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

/// Keys on their way out.
struct Ending {
    actor: Actor,
    key: Key,
    farewell: Option<TxnRequest>,
    deletion: TxnRequest,
}

impl Ending {
    /// As [`Owned::release`]. Says farewell and deletes in two transactions, because one cannot
    /// write a key twice. The farewell compares less than other writes of the key do: those that are
    /// still on their way change nothing after it.
    async fn give_up(self) -> Result<Option<bool>> {
        if let Some(farewell) = self.farewell {
            self.actor.persist(farewell).await?;
        }
        self.actor.delete_created(self.deletion).await
    }
}

/// Gives keys up when the session is closed, which waits for it, so that closing does not look like
/// the end of a lease. Ends with the keys.
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
    /// Creates keys of the session, exactly once, and says for certain whether they were created.
    /// To be called inside [`Actor::run`].
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    ///
    /// # Panics
    /// Without any key.
    pub async fn claim(&self, claim: Claim) -> Result<Claimed> {
        assert!(!claim.keys.is_empty(), "a claim of nothing");
        let mut pause = Backoff::between_attempts(self.client());
        let mut settled = true;
        loop {
            let at = *self.core.sealed_at.lock().await;
            let mut request = self.claim_request(&claim, at);
            if Self::is_abandoned() {
                if settled {
                    return Err(Error::Closed);
                }
                // It is not made any more; what an earlier copy may have made is still to be found. Both of
                // these never hold at once.
                request.compare = vec![
                    Compare::mod_revision(self.session_key(), at).into(),
                    Compare::absent(self.session_key()).into(),
                ];
                request.success.clear();
            }
            match self.attempt(request).await {
                Ok(answer) => {
                    if let Some(claimed) = self.judge(&claim, at, answer).await? {
                        return Ok(claimed);
                    }
                }
                Err(Error::Store(error)) if error.is_retryable() => pause.pause().await,
                Err(Error::Store(error)) if error.is_ambiguous() => {
                    let key = &claim.keys[0].key;
                    tracing::debug!(%key, %error, "outcome of a claim unknown; sealing");
                    settled = false;
                    self.seal(at).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn claim_request(&self, claim: &Claim, at: Revision) -> TxnRequest {
        let keys = &claim.keys;
        let absent = keys.iter().map(|new| Compare::absent(&new.key));
        let puts = keys
            .iter()
            .map(|new| ops::put(&new.key, new.value.clone(), self.lease_of(new)));
        let reads = keys.iter().map(|new| ops::get(&new.key));
        let reads = self.reads().into_iter().chain(reads);
        TxnRequest {
            compare: iter::once(Compare::mod_revision(self.session_key(), at))
                .chain(iter::once(self.epoch().compare()))
                .chain(absent)
                .chain(claim.when.iter().cloned())
                .map(Into::into)
                .collect(),
            success: puts.chain(claim.also.iter().cloned()).collect(),
            failure: reads
                .map(ops::read)
                .chain(claim.otherwise.iter().cloned())
                .collect(),
        }
    }

    fn lease_of(&self, new: &NewKey) -> Option<LeaseId> {
        match new.attach {
            Attach::Session => Some(self.lease()),
            Attach::Nothing => None,
        }
    }

    /// What an answer to a claim means; `None`: send it again, sealed at the newer revision.
    async fn judge(
        &self,
        claim: &Claim,
        at: Revision,
        mut answer: TxnResponse,
    ) -> Result<Option<Claimed>> {
        let revision = Revision(answer.header.map_or(0, |header| header.revision));
        let keys = &claim.keys;
        let owned = |created| Owned::new(self, claim, created);
        if answer.succeeded {
            return Ok(Some(Claimed::Made {
                owned: owned(revision),
                revision,
                responses: Some(answer.responses.split_off(keys.len())),
            }));
        }
        let sealed_at = Revision(self.judge_reads(&answer.responses)?.mod_revision);
        // All or none were created by an earlier copy of this claim: one that is ours tells.
        let reads = self.reads().len();
        let found = |index: usize| ops::kvs(&answer.responses, reads + index).first();
        let ours = keys.iter().enumerate().find_map(|(index, new)| {
            let lease = self.lease_of(new).map_or(0, |lease| lease.0);
            found(index).filter(|kv| kv.lease == lease && kv.value == new.value)
        });
        if let Some(kv) = ours {
            return Ok(Some(Claimed::Made {
                owned: owned(Revision(kv.create_revision)),
                revision,
                responses: None,
            }));
        }
        if sealed_at != at {
            let mut known = self.core.sealed_at.lock().await;
            *known = (*known).max(sealed_at);
            return Ok(None);
        }
        let existing = (0..keys.len()).filter_map(|index| found(index).cloned());
        Ok(Some(Claimed::Refused {
            revision,
            existing: existing.collect(),
            responses: answer.responses.split_off(reads + keys.len()),
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
        let answer = self.persist(request).await?.0;
        let revision = if answer.succeeded {
            answer.header.map_or(0, |header| header.revision)
        } else {
            let session = ops::kvs(&answer.responses, 0).first();
            let Some(session) = session.filter(|kv| self.is_session(kv)) else {
                self.lose(LostReason::LeaseGone);
                return Err(self.loss());
            };
            session.mod_revision
        };
        *sealed_at = Revision(revision);
        Ok(())
    }

    /// Writes over a key of ours. Each write compares the revision of the one before, so an old
    /// copy of an earlier write, late on the way, changes nothing. Where somebody else has written the key
    /// in our name, under our lease, that is written over; the farewell is not, after which we are gone.
    async fn overwrite(
        &self,
        key: Key,
        created: Revision,
        mut written: tokio::sync::OwnedMutexGuard<Revision>,
        value: Bytes,
        farewell: Option<Bytes>,
    ) -> Result<Revision> {
        let mut pause = Backoff::contended(self.client());
        loop {
            let request = TxnRequest {
                compare: vec![
                    Compare::create_revision(&key, created).into(),
                    Compare::mod_revision(&key, *written).into(),
                    self.epoch().compare().into(),
                ],
                success: vec![ops::put(&key, value.clone(), Some(self.lease()))],
                failure: [ops::get(&key)]
                    .into_iter()
                    .chain(self.reads())
                    .map(ops::read)
                    .collect(),
            };
            let (mut answer, repeated) = self.repeat(request).await?;
            if answer.succeeded {
                *written = Revision(answer.header.map_or(0, |header| header.revision));
                return Ok(*written);
            }
            let reads = answer.responses.split_off(1);
            self.judge_reads(&reads)?;
            let ours =
                |kv: &&KeyValue| kv.create_revision == created.0 && kv.lease == self.lease().0;
            let Some(kv) = ops::kvs(&answer.responses, 0).first().filter(ours) else {
                return Err(Error::Removed(key));
            };
            if farewell.as_ref() == Some(&kv.value) {
                return Err(Error::Removed(key));
            }
            *written = Revision(kv.mod_revision);
            if repeated && kv.value == value {
                return Ok(*written);
            }
            pause.pause().await;
        }
    }

    /// Sends a deletion. See [`Owned::release`].
    async fn delete_created(&self, request: TxnRequest) -> Result<Option<bool>> {
        let (answer, repeated) = self.persist(request).await?;
        Ok(match (answer.succeeded, repeated) {
            (true, _) => Some(true),
            (false, true) => None,
            (false, false) => Some(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::Client;
    use crate::keys::session_key;
    use crate::store::{MemStore, Store};

    #[tokio::test(start_paused = true)]
    async fn late_copies_of_its_opening_do_not_bring_a_session_back() {
        let store = MemStore::new();
        let client = Client::new(store.clone());
        let session = client.session().await.unwrap();
        let (lease, key) = (session.lease(), session_key(session.lease()));
        let kv = client.get(&key).await.unwrap().unwrap();
        assert!(store.expire(lease));
        // The grant, then the transaction that wrote the session's key.
        store
            .lease_grant(lease, Duration::from_secs(10))
            .await
            .unwrap();
        let late = TxnRequest {
            compare: vec![Compare::absent(&key).into()],
            success: vec![ops::put(&key, kv.value, Some(lease))],
            failure: Vec::new(),
        };
        assert!(store.txn(late).await.unwrap().succeeded);
        let refused = client.mutex("m").lock(&session).await;
        assert!(
            matches!(refused, Err(Error::SessionLost(LostReason::LeaseGone))),
            "{refused:?}"
        );
        assert_eq!(store.keys("quorate/lock/"), [""; 0]);
    }
}
