//! Transactions with guards: writes that the store refuses once a lock is lost. Used directly by
//! users, and by every recipe that writes under a lock.

use quorate_proto::etcdserverpb::{
    RangeRequest, RequestOp, ResponseOp, TxnRequest, response_op::Response,
};
use quorate_proto::mvccpb::KeyValue;

use crate::client::Client;
use crate::error::{Error, TxnError};
use crate::keys::{Key, KeyRange, Revision};
use crate::lock::fence::Unsettled;
use crate::lock::{Fence, Fenced, Holder};
use crate::session::{Effect, Effected, LANE_OPS, Session};
use crate::store::StoreError;
use crate::store::ops::{self, Compare};
use crate::value::Value;

/// Compares and operations on several keys, done as one atomic step or not at all.
///
/// A transaction made by a guard, or given guards, is refused by the store itself unless every one
/// of them is still held at the very revision of the commit. Nothing else, no clock, no check
/// before the call, can promise that.
///
/// ```no_run
/// # async fn f(client: quorate_recipes::Client, from: quorate_recipes::lock::MutexGuard,
/// #            to: quorate_recipes::lock::MutexGuard) -> Result<(), quorate_recipes::TxnError> {
/// client.txn().guard(&from).guard(&to).put("account/1", "70").put("account/2", "30").commit().await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before commit"]
pub struct Txn {
    client: Client,
    fences: Vec<Fence>,
    compares: Vec<Compare>,
    success: Vec<RequestOp>,
    /// Done after those, by the recipe whose guards these are: to their own keys too.
    own: Vec<RequestOp>,
    failure: Vec<RequestOp>,
    error: Option<Error>,
}

impl Txn {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            fences: Vec::new(),
            compares: Vec::new(),
            success: Vec::new(),
            own: Vec::new(),
            failure: Vec::new(),
            error: None,
        }
    }

    /// Does these besides, whatever keys they are of.
    pub(crate) fn own(mut self, operations: impl IntoIterator<Item = RequestOp>) -> Self {
        self.own.extend(operations);
        self
    }

    /// Commits only while this guard is held.
    pub fn guard(self, guard: &impl Fenced) -> Self {
        self.fence(guard.fence().clone())
    }

    /// Commits only while the guard that this fence was taken from is held.
    pub fn fence(mut self, fence: Fence) -> Self {
        self.fences.push(fence);
        self
    }

    /// Commits only if this holds.
    pub fn when(mut self, compare: impl Into<Compare>) -> Self {
        self.compares.push(compare.into());
        self
    }

    /// Writes a key, without a lease: a lease that the key had is detached from it.
    pub fn put(self, key: impl Into<Key>, value: impl Into<Value>) -> Self {
        self.put_with(key.into(), value.into(), None)
    }

    /// Writes a key that goes away with the session.
    pub fn put_leased(
        self,
        key: impl Into<Key>,
        value: impl Into<Value>,
        session: &Session,
    ) -> Self {
        self.put_with(key.into(), value.into(), Some(session))
    }

    fn put_with(mut self, key: Key, value: Value, session: Option<&Session>) -> Self {
        let ours = session.map_or(Ok(()), |session| session.belongs_to(&self.client));
        match ours.and_then(|()| value.into_bytes(&key)) {
            Ok(value) => {
                let lease = session.map(Session::lease);
                self.success.push(ops::put(key, value, lease));
            }
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self
    }

    /// Deletes a key.
    pub fn delete(self, key: impl Into<Key>) -> Self {
        self.delete_range(KeyRange::one(key))
    }

    /// Deletes every key of a range.
    pub fn delete_range(mut self, range: KeyRange) -> Self {
        self.success.push(ops::delete(range));
        self
    }

    /// Reads a key as part of the transaction.
    pub fn get(self, key: impl Into<Key>) -> Self {
        self.range(ops::get(key))
    }

    /// Reads as part of the transaction.
    pub fn range(mut self, request: RangeRequest) -> Self {
        self.success.push(ops::read(request));
        self
    }

    /// Reads when a condition does not hold; the answer is in [`TxnError::Conflict`].
    pub fn otherwise(mut self, request: RangeRequest) -> Self {
        self.failure.push(ops::read(request));
        self
    }

    /// Sends the transaction.
    ///
    /// # Errors
    /// [`TxnError::Fenced`] when a guard was no longer held, [`TxnError::Conflict`] when only a
    /// condition of the user's did not hold; nothing was written then. An ambiguous
    /// [`TxnError::Failed`] may have been written.
    ///
    /// # Cancel safety
    /// A dropped commit is an unknown outcome.
    pub async fn commit(self) -> Result<Committed, TxnError> {
        let request = self.request(0)?;
        self.sent()?;
        let answer = self.client.store().txn(request).await;
        if !answer.as_ref().is_err_and(StoreError::is_ambiguous) {
            self.settled();
        }
        let answer = answer?;
        let revision = Revision(answer.header.map_or(0, |header| header.revision));
        if answer.succeeded {
            return Ok(Committed {
                revision,
                responses: answer.responses,
            });
        }
        Err(self.refusal(revision, answer.responses))
    }

    /// Commits exactly once, although answers get lost, through a lane of the session. Returns the
    /// revision.
    ///
    /// # Errors
    /// As [`Txn::commit`], ambiguous only when the session ended with an answer still to come.
    ///
    /// # Cancel safety
    /// A dropped commit is an unknown outcome, settled by itself.
    pub(crate) async fn commit_once(self, session: &Session) -> Result<Revision, TxnError> {
        let request = self.request(LANE_OPS)?;
        let effect = Effect {
            when: request.compare.into_iter().map(Into::into).collect(),
            then: request.success,
            otherwise: request.failure,
        };
        self.sent()?;
        let answer = session.actor().apply(effect).await;
        if !answer.as_ref().is_err_and(Error::is_ambiguous) {
            self.settled();
        }
        match answer? {
            Effected::Applied { revision, .. } => Ok(revision),
            Effected::Refused {
                revision,
                responses,
            } => Err(self.refusal(revision, responses)),
        }
    }

    /// What the answers of the other branch say.
    fn refusal(&self, revision: Revision, mut responses: Vec<ResponseOp>) -> TxnError {
        for fence in &self.fences {
            let rest = responses.split_off(fence.reads().len());
            if let Err(owner) = fence.judge(&responses) {
                let owner = owner.map(|kv| Box::new(Holder::of(&kv)));
                return TxnError::Fenced { owner };
            }
            responses = rest;
        }
        TxnError::Conflict {
            revision,
            responses,
        }
    }

    /// Notes with all fences that something is sent under them.
    fn sent(&self) -> Result<(), Error> {
        let mut noted = self.unsettled().enumerate();
        noted.try_for_each(|(index, each)| {
            each.sent()
                .inspect_err(|_| self.unsettled().take(index).for_each(Unsettled::settled))
        })
    }

    /// Notes that it can have no effect any more.
    fn settled(&self) {
        self.unsettled().for_each(Unsettled::settled);
    }

    fn unsettled(&self) -> impl Iterator<Item = &Unsettled> {
        self.fences.iter().map(Fence::unsettled)
    }

    /// The request, if it leaves room for `added` more compares and operations.
    fn request(&self, added: usize) -> Result<TxnRequest, Error> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        for fence in &self.fences {
            fence.check(&self.client)?;
            self.stays_out_of(fence)?;
        }
        let compares = self.fences.iter().flat_map(Fence::compares);
        let compare: Vec<_> = compares.chain(self.compares.iter().cloned()).collect();
        let failure: Vec<_> = self
            .fences
            .iter()
            .flat_map(Fence::reads)
            .map(ops::read)
            .chain(self.failure.iter().cloned())
            .collect();
        let most = self.client.store().capabilities().max_txn_ops;
        let operations = self.success.len() + self.own.len();
        let used = compare.len().max(failure.len()).max(operations) + added;
        if used > most {
            return Err(Error::Invalid(format!(
                "a transaction of {used} compares or operations, those of guards and lanes included; the store takes {most}"
            )));
        }
        Ok(TxnRequest {
            compare: compare.into_iter().map(Into::into).collect(),
            success: self.success.iter().chain(&self.own).cloned().collect(),
            failure,
        })
    }

    /// A write under a lock must not touch the lock's own keys: others wait on them.
    fn stays_out_of(&self, fence: &Fence) -> Result<(), Error> {
        use quorate_proto::etcdserverpb::request_op::Request;
        for op in &self.success {
            let (start, end) = match &op.request {
                Some(Request::RequestPut(put)) => (&put.key, None),
                Some(Request::RequestDeleteRange(delete)) => (&delete.key, Some(&delete.range_end)),
                _ => continue,
            };
            let overlaps = |own: &KeyRange| {
                own.contains(start)
                    || end.is_some_and(|end| {
                        let range = KeyRange {
                            start: start.clone(),
                            end: end.clone(),
                        };
                        range.contains(&own.start)
                    })
            };
            if fence.contenders().iter().any(overlaps) {
                return Err(Error::Invalid(format!(
                    "a write under a lock to the lock's own keys: {}",
                    Key::from(start.clone())
                )));
            }
        }
        Ok(())
    }
}

/// A transaction that was committed.
#[derive(Debug, Clone)]
pub struct Committed {
    revision: Revision,
    responses: Vec<ResponseOp>,
}

impl Committed {
    /// The store's revision after the transaction.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The answers, one an operation, in order.
    #[must_use]
    pub fn responses(&self) -> &[ResponseOp] {
        &self.responses
    }

    /// The keys that operation `index` read; empty if it was not a read.
    #[must_use]
    pub fn kvs(&self, index: usize) -> &[KeyValue] {
        ops::kvs(&self.responses, index)
    }

    /// How many keys operation `index` deleted; 0 if it was not a deletion.
    #[must_use]
    pub fn deleted(&self, index: usize) -> i64 {
        let op = self.responses.get(index);
        match op.and_then(|op| op.response.as_ref()) {
            Some(Response::ResponseDeleteRange(delete)) => delete.deleted,
            _ => 0,
        }
    }
}
