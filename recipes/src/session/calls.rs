//! What a session does at the store: its writes, which run to their end whatever happens to the future
//! that asked for them, and its questions. Recipes write through here, claims and lanes too.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_proto::etcdserverpb::{TxnRequest, TxnResponse};
use tokio::sync::oneshot;

use super::Actor;
use crate::error::{Error, LostReason, Result};
use crate::keys::Key;
use crate::store::{Lease, StoreError, ops};
use crate::wait::Backoff;

impl Actor {
    /// Runs a write of the session to its end, whether or not the returned future is kept. The
    /// output must clean up after itself when dropped, as [`Owned`](super::Owned) does.
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
        let actor = self.clone();
        self.spawn("operation", async move {
            let output = operation(actor).await;
            drop(tell.send(output));
            drop(place);
        });
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
    /// [`Error::SessionLost`]; the store's final refusals.
    pub async fn repeat(&self, request: TxnRequest) -> Result<(TxnResponse, bool)> {
        let mut pause = Backoff::between_attempts(&self.core.client);
        let mut repeated = false;
        loop {
            match self.attempt(request.clone()).await {
                Ok(answer) => return Ok((answer, repeated)),
                Err(Error::Store(error)) if error.is_transient() => {
                    repeated |= error.is_ambiguous();
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

    /// Asks the store whether the session's key is there as it was created, and makes the session lost if
    /// it is not. The lease alone would not tell: a copy of its grant that comes late makes it anew.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's.
    pub async fn verify(&self) -> Result<()> {
        self.check()?;
        let read = ops::get(&self.core.key);
        let answer = self.core.client.store().range(read).await?;
        if !answer.kvs.first().is_some_and(|kv| self.is_session(kv)) {
            self.lose(LostReason::LeaseGone);
        }
        self.check()
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
