//! A store that passes calls on and fails the ones it was told to.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest,
};
use quorate_recipes::keys::LeaseId;
use quorate_recipes::store::{
    Capabilities, Cause, Lease, LeaseTtl, Store, StoreError, WatchStream,
};
use tokio::sync::Notify;

/// What happens to a write.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It is not sent, and the caller is told so.
    NotSent,
    /// It is applied, and the answer is lost.
    Unanswered,
    /// The caller is told that the outcome is unknown; it is applied when [`Faulty::deliver`] says.
    Late,
    /// It is sent only once the gate opens.
    HeldBefore(Arc<Notify>),
    /// It is applied, and the answer comes once the gate opens.
    HeldAfter(Arc<Notify>),
}

/// A store around another one.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Store>,
    plan: Mutex<(String, VecDeque<Fault>)>,
    late: Mutex<Vec<TxnRequest>>,
    cut: Arc<Notify>,
    held: AtomicUsize,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            plan: Mutex::default(),
            late: Mutex::default(),
            cut: Arc::new(Notify::new()),
            held: AtomicUsize::new(0),
        })
    }

    /// The next transactions that write a key of `prefix` meet these faults, one each.
    pub fn plan(&self, prefix: &str, faults: impl IntoIterator<Item = Fault>) {
        *self.plan.lock().unwrap() = (prefix.to_owned(), faults.into_iter().collect());
    }

    /// How many of the planned faults have not been met.
    pub fn left(&self) -> usize {
        self.plan.lock().unwrap().1.len()
    }

    /// How many writes are held at a gate, or on their way from it.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Applies the late writes now; returns how many there were, and how many took effect.
    pub async fn deliver(&self) -> (usize, usize) {
        let late = std::mem::take(&mut *self.late.lock().unwrap());
        let (all, mut effective) = (late.len(), 0);
        for request in late {
            effective += usize::from(self.inner.txn(request).await.is_ok_and(|a| a.succeeded));
        }
        (all, effective)
    }

    /// Ends every watch that is open.
    pub fn cut_watches(&self) {
        self.cut.notify_waiters();
    }

    fn fault_for(&self, request: &TxnRequest) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap();
        let ours = request.success.iter().any(|op| match &op.request {
            Some(Request::RequestPut(put)) => put.key.starts_with(plan.0.as_bytes()),
            Some(Request::RequestDeleteRange(delete)) => delete.key.starts_with(plan.0.as_bytes()),
            _ => false,
        });
        if ours { plan.1.pop_front() } else { None }
    }
}

#[async_trait]
impl Store for Faulty {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.inner.range(request).await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        let lost = || StoreError::Unknown(Cause::new("planned"));
        match self.fault_for(&request) {
            None => self.inner.txn(request).await,
            Some(fault) => match fault {
                Fault::NotSent => Err(StoreError::NotApplied(Cause::new("planned"))),
                Fault::Unanswered => {
                    self.inner.txn(request).await?;
                    Err(lost())
                }
                Fault::Late => {
                    self.late.lock().unwrap().push(request);
                    Err(lost())
                }
                Fault::HeldBefore(gate) => {
                    self.held.fetch_add(1, Ordering::SeqCst);
                    gate.notified().await;
                    let answer = self.inner.txn(request).await;
                    self.held.fetch_sub(1, Ordering::SeqCst);
                    answer
                }
                Fault::HeldAfter(gate) => {
                    self.held.fetch_add(1, Ordering::SeqCst);
                    let answer = self.inner.txn(request).await;
                    gate.notified().await;
                    self.held.fetch_sub(1, Ordering::SeqCst);
                    answer
                }
            },
        }
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        let cut = Arc::clone(&self.cut).notified_owned();
        Ok(self.inner.watch(requests).await?.take_until(cut).boxed())
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        self.inner.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.inner.lease_keep_alive(id).await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.inner.lease_ttl(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.inner.lease_revoke(id).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}
