//! A store that was restored from a backup: what happened since is undone, and its revisions are given
//! out again. A hold that the backup does not know is none, though another one's key has its revision.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest,
};
use quorate_recipes::keys::LeaseId;
use quorate_recipes::lock::{ExclusiveGuard, Fenced};
use quorate_recipes::store::ops::Compare;
use quorate_recipes::store::{
    Capabilities, Lease, LeaseTtl, MemStore, Store, StoreError, WatchStream,
};
use quorate_recipes::{Client, Result, Session, TxnError};

/// A connection that leads to a store, and from some moment on to what was restored of it.
#[derive(Debug, Clone, Default)]
struct Restorable {
    stores: [MemStore; 2],
    restored: Arc<AtomicBool>,
}

impl Restorable {
    fn now(&self) -> &MemStore {
        &self.stores[usize::from(self.restored.load(Ordering::Relaxed))]
    }
}

#[async_trait]
impl Store for Restorable {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.now().range(request).await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.now().txn(request).await
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        self.now().watch(requests).await
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        self.now().lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.now().lease_keep_alive(id).await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.now().lease_ttl(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.now().lease_revoke(id).await
    }

    fn capabilities(&self) -> Capabilities {
        self.now().capabilities()
    }
}

async fn locks(client: &Client) -> (Session, ExclusiveGuard) {
    let session = client.session().await.unwrap();
    let guard = client.exclusive("x").lock(&session).await.unwrap();
    (session, guard)
}

#[tokio::test(start_paused = true)]
async fn a_hold_from_before_the_restore_is_none_though_the_revision_is_there() {
    let connection = Restorable::default();
    let before = Client::builder(connection.clone()).seed(1).build();
    let after = Client::builder(connection.stores[1].clone())
        .seed(2)
        .build();
    let (_session, stale) = locks(&before).await;
    let (_session_after, holder) = locks(&after).await;
    let (stale_fence, fence) = (stale.fence(), holder.fence());
    assert_eq!(stale_fence.key(), fence.key());
    assert_eq!(stale_fence.revision(), fence.revision());
    assert_ne!(stale_fence.lease(), fence.lease());

    connection.restored.store(true, Ordering::Relaxed);
    let refused = stale.put("data/x", "stale").await;
    assert!(
        matches!(refused, Err(TxnError::Fenced { .. })),
        "{refused:?}"
    );
    assert_eq!(after.get("data/x").await.unwrap(), None);
    holder.put("data/x", "new").await.unwrap();

    // What the lease is compared for: by the revision alone, the stale holder writes over it.
    let by_revision = Compare::create_revision(stale_fence.key(), stale_fence.revision());
    let txn = before.txn().when(by_revision).put("data/x", "stale");
    txn.commit().await.unwrap();
    let written = after.get("data/x").await.unwrap().unwrap();
    assert_eq!(&written.value[..], b"stale");
}
