//! The store as one client reaches it, counting how often it was told that what it asks for is compacted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest,
};
use quorate_recipes::keys::{LeaseId, Revision};
use quorate_recipes::store::{
    Capabilities, Lease, LeaseTtl, MemStore, Store, StoreError, WatchStream,
};

/// A store that counts the watches which it ends because of a compaction.
#[derive(Debug)]
pub(crate) struct Telling {
    store: MemStore,
    compacted: Arc<AtomicU64>,
}

impl Telling {
    pub(crate) fn new(store: MemStore) -> Self {
        Self {
            store,
            compacted: Arc::default(),
        }
    }

    /// The store's revision now.
    pub(crate) fn revision(&self) -> Revision {
        self.store.revision()
    }

    /// How many watches were told that what they missed is compacted.
    pub(crate) fn compacted(&self) -> u64 {
        self.compacted.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Store for Telling {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.store.range(request).await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.store.txn(request).await
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        let answers = self.store.watch(requests).await?;
        let compacted = Arc::clone(&self.compacted);
        let counted = answers.inspect(move |answer| {
            if answer
                .as_ref()
                .is_ok_and(|answer| answer.compact_revision > 0)
            {
                compacted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(counted.boxed())
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.store.lease_keep_alive(id).await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.store.lease_ttl(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.store.lease_revoke(id).await
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}
