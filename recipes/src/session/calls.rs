//! What a session does at the store: its writes, which are seen to their end, once they are on their way,
//! whatever happens to the future that asked for them, and its questions. Recipes write through here, claims
//! and lanes too.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_proto::etcdserverpb::{RangeRequest, ResponseOp, TxnRequest, TxnResponse};
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Actor;
use crate::error::{Error, LostReason, Result};
use crate::keys::{EPOCH_KEY, Key};
use crate::store::{Lease, StoreError, ops};
use crate::wait::Backoff;

tokio::task_local! {
    /// Inside [`Actor::run`]: cancelled once nobody waits for the outcome any more.
    static CALLER: CancellationToken;
}

impl Actor {
    /// Whether this is an operation whose asker has dropped its future. What has been sent is seen to its
    /// end then, and nothing else is begun: a store that comes back later must not hear of it first then.
    pub(super) fn is_abandoned() -> bool {
        CALLER
            .try_with(CancellationToken::is_cancelled)
            .unwrap_or(false)
    }

    /// Runs a write of the session, whether or not the returned future is kept: when it is dropped, what is
    /// on its way to the store is seen to its end, and what has not been sent is not. The output must clean
    /// up after itself when dropped, as [`Owned`](super::Owned) does.
    ///
    /// # Errors
    /// [`Error::SessionLost`], and those of `operation`.
    pub async fn run<T, F, Fut>(&self, operation: F) -> Result<T>
    where
        F: FnOnce(Self) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.check()?;
        let places = Arc::clone(&self.core.operations);
        let place = places.acquire_owned().await.map_err(|_| Error::Closed)?;
        let (tell, answer) = oneshot::channel();
        let caller = CancellationToken::new();
        let _here = caller.clone().drop_guard();
        let actor = self.clone();
        let operation = CALLER.scope(caller, async move {
            let output = operation(actor).await;
            drop(tell.send(output));
            drop(place);
        });
        self.spawn("operation", operation);
        answer.await.map_err(|_| self.loss())?
    }

    /// One transaction, sent once. The session is lost if the store turns out to be another one.
    ///
    /// # Errors
    /// [`Error::SessionLost`], else the store's.
    pub async fn attempt(&self, request: TxnRequest) -> Result<TxnResponse> {
        let answer = self.send(request).await;
        answer.unwrap_or_else(|| Err(self.loss()))
    }

    /// As [`Actor::attempt`]; `None` when the session was over before the answer came.
    pub(super) async fn send(&self, request: TxnRequest) -> Option<Result<TxnResponse>> {
        let floor = self.core.floor.load(Ordering::Acquire);
        let other_lease = ops::uses_other_lease(&request, self.lease());
        let answer = tokio::select! {
            biased;
            () = self.core.over.cancelled() => return None,
            answer = self.core.client.store().txn(request) => answer,
        };
        Some(match answer {
            Ok(answer) => {
                let header = answer.header.unwrap_or_default();
                if self.is_another_cluster(&header) || header.revision < floor {
                    self.lose(LostReason::StoreReplaced);
                    return None;
                }
                self.core.floor.fetch_max(header.revision, Ordering::AcqRel);
                Ok(answer)
            }
            // It may be the other one that is gone.
            Err(StoreError::LeaseNotFound) if other_lease => {
                let alive = self.verify().await;
                alive.and(Err(StoreError::LeaseNotFound.into()))
            }
            Err(StoreError::LeaseNotFound) => {
                self.lose(LostReason::LeaseGone);
                Err(self.loss())
            }
            Err(error) => Err(error.into()),
        })
    }

    /// Sends an idempotent transaction until it is answered or the session is over. Also returns
    /// whether an earlier copy may have been applied before the one that was answered.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals; [`Error::Closed`] when it cannot have been applied
    /// and whoever asked for the operation has gone.
    pub async fn repeat(&self, request: TxnRequest) -> Result<(TxnResponse, bool)> {
        self.repeat_unless(request, Self::is_abandoned).await
    }

    /// As [`Actor::repeat`], whoever has gone: for what ends something that was begun.
    pub(super) async fn persist(&self, request: TxnRequest) -> Result<(TxnResponse, bool)> {
        self.repeat_unless(request, || false).await
    }

    async fn repeat_unless(
        &self,
        request: TxnRequest,
        given_up: impl Fn() -> bool,
    ) -> Result<(TxnResponse, bool)> {
        let mut pause = Backoff::between_attempts(&self.core.client);
        let mut repeated = false;
        loop {
            match self.attempt(request.clone()).await {
                Ok(answer) => return Ok((answer, repeated)),
                Err(Error::Store(error)) if error.is_transient() => {
                    repeated |= error.is_ambiguous();
                    if !repeated && given_up() {
                        return Err(Error::Closed);
                    }
                    tokio::select! {
                        biased;
                        () = pause.pause() => {}
                        () = self.core.over.cancelled() => return Err(self.loss()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks the store whether the session's key is there as it was created, in the same epoch, and makes the
    /// session lost if it is not. The lease alone would not tell: a copy of its grant that comes late makes
    /// it anew.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's.
    pub async fn verify(&self) -> Result<()> {
        self.check()?;
        let request = TxnRequest {
            success: self.reads().map(ops::read).into(),
            ..Default::default()
        };
        let answer = self.core.client.store().txn(request).await?;
        self.judge_reads(&answer.responses).map(drop)
    }

    /// The reads by which [`Actor::judge_reads`] tells whether the session is alive.
    pub(super) fn reads(&self) -> [RangeRequest; 2] {
        [ops::get(&self.core.key), ops::get(EPOCH_KEY)]
    }

    /// Whether the session is alive by what [`Actor::reads`] found, which comes first in `found`; the
    /// session's key then. Makes it lost otherwise.
    ///
    /// # Errors
    /// [`Error::SessionLost`].
    pub(super) fn judge_reads<'a>(&self, found: &'a [ResponseOp]) -> Result<&'a KeyValue> {
        let session = ops::kvs(found, 0).first().filter(|kv| self.is_session(kv));
        let epoch = ops::kvs(found, 1).first();
        match session {
            None => self.lose(LostReason::LeaseGone),
            // Nothing under the session can be written any more, whatever it still has.
            Some(_) if !self.epoch().compare().holds_for(epoch) => {
                self.lose(LostReason::StoreReplaced);
            }
            Some(session) => {
                self.check()?;
                return Ok(session);
            }
        }
        Err(self.loss())
    }

    /// Grants a lease besides the session's, which nobody renews: for a key that the store is to take away by
    /// itself. Trouble with the store is waited out. One that was granted unheard runs out, without effect.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's final refusals.
    pub(crate) async fn grant_apart(&self, ttl: Duration) -> Result<Lease> {
        let client = &self.core.client;
        let mut pause = Backoff::between_attempts(client);
        loop {
            self.check()?;
            match client.store().lease_grant(client.lease_id(), ttl).await {
                Ok(lease) => return Ok(lease),
                Err(error) if error.is_transient() || error == StoreError::LeaseExists => {
                    pause.pause().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Why a key of the session is gone. Trouble with the store is waited out.
    pub(crate) async fn why_gone(&self, key: &Key) -> Error {
        let mut pause = Backoff::between_attempts(&self.core.client);
        loop {
            match self.verify().await {
                Ok(()) => return Error::Removed(key.clone()),
                Err(Error::Store(error)) if error.is_transient() => pause.pause().await,
                Err(error) => return error,
            }
        }
    }
}
