//! Faults that are planned for the next writes of some keys, one each.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{TxnRequest, TxnResponse};
use tokio::sync::Notify;

use super::{Faulty, lock, not_applied, unknown};
use crate::store::{Cause, Store, StoreError};

/// What happens to a planned transaction; see [`Faulty::plan`].
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is not sent, and the caller is told so.
    NotSent,
    /// The store refuses it, as one does that is full.
    Refused,
    /// It is applied, and the answer is lost.
    Unanswered,
    /// The caller is told that the outcome is unknown; it is applied when [`Faulty::deliver`] says.
    Late,
    /// It is sent only once the gate opens.
    HeldBefore(Arc<Notify>),
    /// It is applied, and the answer comes once the gate opens.
    HeldAfter(Arc<Notify>),
}

/// What is planned, and what came of it.
#[derive(Default)]
pub(super) struct Plan {
    faults: Mutex<(String, VecDeque<Fault>)>,
    late: Mutex<Vec<TxnRequest>>,
    /// Calls at a gate.
    gated: AtomicUsize,
}

impl<S: Store> Faulty<S> {
    /// The next transactions that write a key of `prefix` meet these faults, one each.
    pub fn plan(&self, prefix: &str, faults: impl IntoIterator<Item = Fault>) {
        *lock(&self.inner.plan.faults) = (prefix.to_owned(), faults.into_iter().collect());
    }

    /// How many of the planned faults have not been met.
    #[must_use]
    pub fn left(&self) -> usize {
        lock(&self.inner.plan.faults).1.len()
    }

    /// How many planned writes are held at a gate, or on their way from it.
    #[must_use]
    pub fn held(&self) -> usize {
        self.inner.plan.gated.load(Ordering::SeqCst)
    }

    /// Applies the writes that were planned to be late now; returns how many there were, and how many
    /// took effect.
    pub async fn deliver(&self) -> (usize, usize) {
        let late = std::mem::take(&mut *lock(&self.inner.plan.late));
        let (all, mut effective) = (late.len(), 0);
        for request in late {
            let answer = self.inner.store.txn(request).await;
            effective += usize::from(answer.is_ok_and(|answer| answer.succeeded));
        }
        (all, effective)
    }

    pub(super) fn planned(&self, request: &TxnRequest) -> Option<Fault> {
        let mut plan = lock(&self.inner.plan.faults);
        let ours = request.success.iter().any(|op| match &op.request {
            Some(Request::RequestPut(put)) => put.key.starts_with(plan.0.as_bytes()),
            Some(Request::RequestDeleteRange(delete)) => delete.key.starts_with(plan.0.as_bytes()),
            _ => false,
        });
        if ours { plan.1.pop_front() } else { None }
    }

    pub(super) async fn planned_txn(
        &self,
        fault: Fault,
        request: TxnRequest,
    ) -> Result<TxnResponse, StoreError> {
        let (store, gated) = (&self.inner.store, &self.inner.plan.gated);
        match fault {
            Fault::NotSent => Err(not_applied("planned")),
            Fault::Refused => Err(StoreError::Refused(Cause::new("planned"))),
            Fault::Unanswered => {
                store.txn(request).await?;
                Err(unknown("planned"))
            }
            Fault::Late => {
                lock(&self.inner.plan.late).push(request);
                Err(unknown("planned"))
            }
            Fault::HeldBefore(gate) => {
                gated.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                let answer = store.txn(request).await;
                gated.fetch_sub(1, Ordering::SeqCst);
                answer
            }
            Fault::HeldAfter(gate) => {
                gated.fetch_add(1, Ordering::SeqCst);
                let answer = store.txn(request).await;
                gate.notified().await;
                gated.fetch_sub(1, Ordering::SeqCst);
                answer
            }
        }
    }
}
