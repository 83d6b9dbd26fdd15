//! The seam below every recipe: what a store must offer, and how it may fail. [`remote`] speaks to
//! any etcd v3 endpoint, `embedded` to a node in this process; [`MemStore`] is one for tests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchResponse, request_op,
};
use tokio::runtime::Handle;

use crate::keys::{LeaseId, Revision};

mod counting;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod faulty;
mod mem;
mod namespaced;
pub mod ops;
pub mod remote;
mod status;

pub use counting::{Counting, Counts};
#[cfg(feature = "embedded")]
pub use embedded::Embedded;
pub use faulty::{Faulty, Rates};
pub use mem::{Commit, MemStore};
pub use namespaced::Namespaced;
pub use remote::Remote;

/// What comes back from [`Store::watch`]: the server's answers as they are. The stream may end at
/// any time, which says nothing about the keys; `created`, `canceled` and progress answers are in
/// it. The watch ids are 1, 2, ... in the order of the requests.
pub type WatchStream = BoxStream<'static, Result<WatchResponse, StoreError>>;

/// A key-value store with revisions, transactions, watches and leases, in etcd's v3 terms.
///
/// All reads are linearizable unless a request says otherwise. Every answer carries a header with
/// the cluster's id and the store's revision. An implementation bounds each call in time by itself
/// and repeats a call by itself only when the first copy was certainly not applied.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Reads keys.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] for a revision that is gone; the transient kinds.
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError>;

    /// Compares, then writes or reads, as one atomic step. Puts and deletes are transactions too.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may have been applied, [`StoreError::NotApplied`] when it
    /// certainly was not; the final kinds for a request that the store refuses.
    ///
    /// # Cancel safety
    /// A dropped call is an unknown outcome.
    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError>;

    /// Watches several ranges on one stream. The stream must end when the server it comes from
    /// has no leader, so that a cut-off server cannot keep a watcher silent for ever.
    ///
    /// A watcher with no start revision begins where its `created` answer says, which may be later
    /// than the return of this call.
    ///
    /// # Errors
    /// The transient kinds, and [`StoreError::Auth`]. A compacted start revision is not an error
    /// here: it arrives as a canceled answer with its `compact_revision`.
    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError>;

    /// Grants a lease with the caller's id, so that a repeated grant is recognisable. The store may
    /// grant more than was asked for.
    ///
    /// # Errors
    /// [`StoreError::LeaseExists`] when the id is taken, also by an earlier copy of this call.
    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError>;

    /// Renews a lease for its full time to live. `None`: the store has no such lease.
    ///
    /// # Errors
    /// The transient kinds only; asking again is always safe.
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError>;

    /// What is left of a lease. `None`: the store has no such lease.
    ///
    /// # Errors
    /// The transient kinds only.
    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError>;

    /// Ends a lease and deletes the keys attached to it.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`] when it has already ended.
    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError>;

    /// The limits that the recipes must keep.
    fn capabilities(&self) -> Capabilities;

    /// The runtime that leases are to be renewed on; `None`: the one on which the session was opened.
    fn runtime(&self) -> Option<Handle> {
        None
    }
}

/// A lease as granted or renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The lease's id.
    pub id: LeaseId,
    /// Its full time to live, which may be longer than asked for.
    pub ttl: Duration,
    /// The answer's header.
    pub header: ResponseHeader,
}

impl Lease {
    /// A lease answer.
    #[must_use]
    pub fn new(id: LeaseId, ttl: Duration, header: ResponseHeader) -> Self {
        Self { id, ttl, header }
    }
}

/// What is left of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseTtl {
    /// Time until it ends unless it is renewed.
    pub remaining: Duration,
    /// Its full time to live.
    pub granted: Duration,
    /// The answer's header.
    pub header: ResponseHeader,
}

impl LeaseTtl {
    /// A time-to-live answer.
    #[must_use]
    pub fn new(remaining: Duration, granted: Duration, header: ResponseHeader) -> Self {
        Self {
            remaining,
            granted,
            header,
        }
    }
}

/// A store that is shared is a store.
#[async_trait]
impl<S: Store + ?Sized> Store for Arc<S> {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        (**self).range(request).await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        (**self).txn(request).await
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        (**self).watch(requests).await
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        (**self).lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        (**self).lease_keep_alive(id).await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        (**self).lease_ttl(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        (**self).lease_revoke(id).await
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn runtime(&self) -> Option<Handle> {
        (**self).runtime()
    }
}

/// The limits of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Most compares, and most operations of either branch, of one transaction.
    pub max_txn_ops: usize,
    /// Most bytes of one request.
    pub max_request_bytes: usize,
    /// The shortest time to live that a lease is granted.
    pub min_ttl: Duration,
}

impl Default for Capabilities {
    /// The limits of an etcd server with default flags.
    fn default() -> Self {
        Self {
            max_txn_ops: 128,
            max_request_bytes: 1_572_864,
            min_ttl: Duration::from_secs(2),
        }
    }
}

/// Why a call failed, in the store's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    message: String,
}

impl Cause {
    /// A cause with this text.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }

    /// The text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// How a call to a store fails. The kind alone says what the caller may do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Certainly not applied, and worth repeating: no connection, no leader, too many requests.
    #[error("not applied: {0}")]
    NotApplied(Cause),
    /// May have been applied: a deadline passed or the connection broke after sending.
    #[error("outcome unknown: {0}")]
    Unknown(Cause),
    /// The revision asked for has been compacted away.
    #[error("revision compacted; the oldest one is {at}")]
    Compacted {
        /// The oldest revision that can be read; 0 when the store did not say.
        at: Revision,
    },
    /// The lease does not exist (any more).
    #[error("lease not found")]
    LeaseNotFound,
    /// A lease with this id exists already.
    #[error("lease already exists")]
    LeaseExists,
    /// The request can never succeed as it is.
    #[error("invalid request: {0}")]
    Invalid(Cause),
    /// The caller is not known or not allowed.
    #[error("not permitted: {0}")]
    Auth(Cause),
    /// The store's state forbids it until somebody acts: out of space, corrupt.
    #[error("refused: {0}")]
    Refused(Cause),
}

impl StoreError {
    /// Certainly not applied, and the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::NotApplied(_))
    }

    /// May have been applied.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Neither an answer nor a refusal: a read may simply be repeated.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.is_retryable() || self.is_ambiguous()
    }
}

/// Whether a transaction writes nothing on either branch, so that repeating it is safe.
#[must_use]
pub fn is_read_only(request: &TxnRequest) -> bool {
    let both = request.success.iter().chain(&request.failure);
    both.into_iter().all(|op| match &op.request {
        None | Some(request_op::Request::RequestRange(_)) => true,
        Some(request_op::Request::RequestTxn(inner)) => is_read_only(inner),
        Some(_) => false,
    })
}

/// A time to live as the protocol tells it.
fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}
