//! A command in somebody's hands: how far it is, and how it ends. Each step is one transaction that the store
//! refuses once the command is lost.

use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde_json::value::to_raw_value;

use super::record::{JobRecord, Layout, Received, State, cut};
use super::retention::Retention;
use crate::error::{Error, LostReason, Result, TxnError};
use crate::keys::{KeyRange, LeaseId, Revision};
use crate::lock::{Fence, Fenced};
use crate::queue::{AckError, Delivery, Nack};
use crate::session::{Lost, Session};
use crate::store::StoreError;
use crate::store::ops::{self, Compare};
use crate::txn::Txn;
use crate::wait;

/// A command that was taken: nobody else has it as long as the session lives. Dropping it gives it back at
/// once, to be taken again.
#[must_use = "a dropped command is given back"]
pub struct Command<C, R> {
    value: C,
    /// `None` once the job has ended.
    delivery: Option<Delivery<Received>>,
    fence: Fence,
    attempt: u32,
    worker: Worker,
    of: PhantomData<fn(R)>,
}

/// What ends a job, and the lease that its record is under then.
#[derive(Debug)]
pub(super) struct Ending {
    txn: Txn,
    lease: LeaseId,
    /// What it is made of.
    of: (Txn, State),
}

/// What it takes to write a job's states.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) layout: Layout,
    pub(super) session: Session,
    pub(super) id: String,
    pub(super) record: JobRecord,
    /// The revision at which the job's key was written first.
    pub(super) created: Revision,
    pub(super) retention: Retention,
}

impl Worker {
    /// The condition that the job is there. Under the claim nobody else writes it: who ends it from outside takes
    /// the claim with it.
    fn is_there(&self) -> Compare {
        Compare::create_revision(self.layout.job(&self.id), self.created)
    }

    /// Writes a state that is no end, under `txn`; also `unless_cancelled`.
    pub(super) async fn advance(
        &mut self,
        txn: Txn,
        state: State,
        unless_cancelled: bool,
    ) -> Result<(), TxnError> {
        let key = self.layout.job(&self.id);
        self.record.state = state;
        let mut txn = txn.when(self.is_there());
        if unless_cancelled {
            txn = txn.when(Compare::absent(self.layout.cancel(&self.id)));
        }
        let put = ops::put(&key, self.record.write(&key)?, None);
        txn.own([put]).commit_once(&self.session).await?;
        Ok(())
    }

    /// `txn` with what ends the job.
    pub(super) async fn ending(&self, txn: Txn, state: State) -> Result<Ending> {
        let client = &self.layout.client;
        let key = self.layout.job(&self.id);
        let of = (txn.clone(), state.clone());
        let value = self.record.with(state, &key)?;
        let most = client.store().capabilities().max_request_bytes;
        if value.len() > most {
            let bytes = value.len();
            return Err(Error::Invalid(format!(
                "the end of a job in {bytes} bytes; the store takes {most}"
            )));
        }
        let actor = self.session.actor();
        let grant = async |ttl| Ok(actor.grant_apart(ttl).await?.id);
        let lease = self.retention.lease(client, grant).await?;
        let txn = txn.when(self.is_there()).own([
            ops::put(&key, value, Some(lease)),
            ops::delete(KeyRange::one(self.layout.cancel(&self.id))),
        ]);
        Ok(Ending { txn, lease, of })
    }

    /// Ends the job.
    pub(super) async fn end(
        &self,
        delivery: Delivery<Received>,
        ending: Ending,
    ) -> Result<Revision, AckError<Received>> {
        let Ending { txn, lease, of } = ending;
        match delivery.ack_with(txn).await {
            // Somebody revoked it, or the store was put back. With another one then.
            Err(AckError::Refused {
                delivery,
                error: Error::Store(StoreError::LeaseNotFound),
            }) => {
                self.retention.forget(lease).await;
                let (txn, state) = of;
                match self.ending(txn, state).await {
                    Ok(again) => delivery.ack_with(again.txn).await,
                    Err(error) => Err(AckError::Refused { delivery, error }),
                }
            }
            ended => ended,
        }
    }
}

impl<C, R> Command<C, R> {
    pub(super) fn new(value: C, delivery: Delivery<Received>, worker: Worker) -> Self {
        Self {
            value,
            fence: delivery.fence().clone(),
            attempt: delivery.attempt(),
            delivery: Some(delivery),
            worker,
            of: PhantomData,
        }
    }

    /// What is to be done.
    #[must_use]
    pub fn value(&self) -> &C {
        &self.value
    }

    /// The job's id.
    #[must_use]
    pub fn job(&self) -> &str {
        &self.worker.id
    }

    /// How often the command was taken, this time included: 1 at first.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    fn delivery(&self) -> Result<&Delivery<Received>, TxnError> {
        let ended = TxnError::Fenced { owner: None };
        self.delivery.as_ref().ok_or(ended)
    }

    /// Completes when the command is lost: with its session, or because the job has expired. The future does
    /// not keep it.
    pub fn lost(&self) -> Lost {
        match &self.delivery {
            Some(delivery) => delivery.lost(),
            None => Lost::new(std::future::ready(LostReason::Released)),
        }
    }

    /// Runs `work` while the command is in these hands; drops it, wherever it stands, when the command is lost.
    ///
    /// # Errors
    /// As [`Delivery::scope`].
    ///
    /// # Cancel safety
    /// Dropping the future drops `work`.
    pub async fn scope<F: Future>(&self, work: F) -> Result<F::Output> {
        match &self.delivery {
            Some(delivery) => delivery.scope(work).await,
            None => Err(Error::SessionLost(LostReason::Released)),
        }
    }

    /// A transaction that the store refuses unless the command is still in these hands. See also
    /// [`Command::reply_with`].
    pub fn txn(&self) -> Txn {
        self.worker.layout.client.txn().guard(self)
    }

    /// Completes when the job is asked to end. End it with [`Command::stop`], or otherwise. Trouble with the
    /// store is waited out; a refusal for good never completes it. The future does not keep the command.
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + use<C, R> {
        let client = self.worker.layout.client.clone();
        let key = self.worker.layout.cancel(&self.worker.id);
        async move {
            if let Err(error) = wait::until_there(&client, &key).await {
                tracing::warn!(%key, %error, "nobody will be told to stop");
                std::future::pending().await
            }
        }
    }

    /// Tells how far it is: how much is done, from 0 to 1, and a message, of which 1,024 bytes are kept.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the command was lost before, or the job has ended; [`Error::Invalid`] for a fraction
    /// that is none; [`Error::SessionLost`]; [`Error::OutcomeUnknown`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: told once or not at all, or later. The command stays.
    pub async fn progress(&mut self, fraction: f64, message: &str) -> Result<()> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(Error::Invalid(format!("{fraction} of a job is done")));
        }
        let txn = self.delivery()?.txn();
        let state = State::Running {
            attempt: self.attempt,
            fraction,
            message: cut(message),
        };
        Ok(self.worker.advance(txn, state, false).await?)
    }

    /// Gives the command back undone, to be taken again at once.
    ///
    /// # Errors
    /// As [`Delivery::nack`].
    ///
    /// # Cancel safety
    /// Giving back goes on when the future is dropped.
    pub async fn give_back(mut self) -> Result<()> {
        match self.delivery.take() {
            Some(delivery) => delivery.nack(Nack::Now).await,
            None => Err(Error::Fenced { owner: None }),
        }
    }

    /// Ends the job as failed, for this reason, of which 1,024 bytes are kept.
    ///
    /// # Errors
    /// As [`Command::reply_with`].
    ///
    /// # Cancel safety
    /// As [`Command::reply_with`].
    pub async fn fail(mut self, reason: &str) -> Result<Revision, TxnError> {
        let txn = self.worker.layout.client.txn();
        self.end(txn, State::failed(reason)).await
    }

    /// Ends the job as cancelled, whether or not anybody has asked for that.
    ///
    /// # Errors
    /// As [`Command::reply_with`].
    ///
    /// # Cancel safety
    /// As [`Command::reply_with`].
    pub async fn stop(mut self) -> Result<Revision, TxnError> {
        let txn = self.worker.layout.client.txn();
        self.end(txn, State::Cancelled).await
    }

    /// Ends the job, together with a transaction: all of it is written, or nothing is.
    async fn end(&mut self, txn: Txn, state: State) -> Result<Revision, TxnError> {
        self.delivery()?;
        let ending = self.worker.ending(txn, state).await?;
        let Some(delivery) = self.delivery.take() else {
            return Err(TxnError::Fenced { owner: None });
        };
        match self.worker.end(delivery, ending).await {
            Ok(revision) => Ok(revision),
            Err(AckError::Fenced { owner }) => Err(TxnError::Fenced { owner }),
            Err(AckError::Conflict {
                delivery,
                revision,
                responses,
            }) => {
                self.delivery = Some(*delivery);
                Err(TxnError::Conflict {
                    revision,
                    responses,
                })
            }
            Err(AckError::Refused { delivery, error }) => {
                self.delivery = Some(*delivery);
                Err(error.into())
            }
            Err(AckError::Failed(error)) => Err(error.into()),
        }
    }
}

impl<C, R: Serialize> Command<C, R> {
    /// Ends the job as done, with this reply. One that is not taken, because it is too large, leaves the command
    /// in the caller's hands: reply with less, or [fail](Command::fail), else the work is done again.
    ///
    /// # Errors
    /// As [`Command::reply_with`].
    ///
    /// # Cancel safety
    /// As [`Command::reply_with`].
    pub async fn reply(&mut self, reply: &R) -> Result<Revision, TxnError> {
        let txn = self.worker.layout.client.txn();
        self.reply_with(reply, txn).await
    }

    /// As [`Command::reply`], together with a transaction: either the job is done and all of it is written, or
    /// nothing is. What it writes is written exactly once for the job. After [`TxnError::Conflict`], and when no
    /// such transaction is taken, the command is still in the caller's hands.
    ///
    /// # Errors
    /// [`TxnError::Fenced`] when the command was lost before, or the job has ended; [`TxnError::Conflict`] when a
    /// condition of the transaction does not hold; [`Error::Codec`]; [`Error::Invalid`] for too much in one
    /// transaction; [`Error::SessionLost`]; [`Error::OutcomeUnknown`] when the session ended with an answer still to
    /// come; the store's final refusals.
    ///
    /// # Cancel safety
    /// Ending goes on when the future is dropped, once it has been sent.
    pub async fn reply_with(&mut self, reply: &R, txn: Txn) -> Result<Revision, TxnError> {
        let key = self.worker.layout.job(&self.worker.id);
        let reply = to_raw_value(reply).map_err(|error| Error::Codec {
            key,
            reason: error.to_string(),
        })?;
        self.end(txn, State::Done(reply)).await
    }
}

impl<C, R> Fenced for Command<C, R> {
    fn fence(&self) -> &Fence {
        &self.fence
    }
}

impl<C: fmt::Debug, R> fmt::Debug for Command<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("job", &self.worker.id)
            .field("value", &self.value)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
