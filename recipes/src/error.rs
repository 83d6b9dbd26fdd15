//! The one error of the recipes, and why a session or a guard is lost. Transactions add
//! [`TxnError`], because there a refusal carries what was read.

use quorate_proto::etcdserverpb::ResponseOp;

use crate::keys::{Key, LeaseId, Revision};
use crate::lock::Holder;
use crate::store::StoreError;

/// A result of the recipes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a session, or one guard of it, is lost. Loss is final: open a new session, lock again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LostReason {
    /// The lease ran out by the local clock: no renewal was acknowledged in time.
    #[error("the lease ran out before a renewal was acknowledged")]
    Expired,
    /// The session's watchdog was not fed in time.
    #[error("the program gave no sign of life in time")]
    Stalled,
    /// The store no longer has the lease: it expired there, or was revoked.
    #[error("the store no longer has the lease")]
    LeaseGone,
    /// The store answers as another cluster, or its revision went backwards.
    #[error("the store was replaced by another one or by an older state")]
    StoreReplaced,
    /// The session was closed.
    #[error("the session was closed")]
    Closed,
    /// The guard's key was deleted by somebody else while its session lived.
    #[error("the key was deleted by somebody else")]
    Removed,
    /// It was held for as long as it may be, by the local clock, and was given up while its session lived.
    #[error("held for as long as it may be")]
    Overdue,
    /// The guard was released or dropped.
    #[error("released")]
    Released,
}

/// How an operation of a recipe fails. Time limits are the caller's: wrap the call in
/// `tokio::time::timeout`, which every recipe's drop rule makes safe.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The session is lost, and everything held under it.
    #[error("session lost: {0}")]
    SessionLost(LostReason),
    /// The hold had already ended when the store looked; nothing was written.
    #[error("no longer held{}", owner_text(.owner))]
    Fenced {
        /// Who is first in line now, if anybody is known to be.
        owner: Option<Box<Holder>>,
    },
    /// Less time than was asked for remains until the session is lost unless it is renewed; what was still
    /// held may be held on.
    #[error("nearly lost: less time than the margin remains")]
    NearlyLost,
    /// A condition of the operation does not hold (any more); nothing was written.
    #[error("conflict with a concurrent change")]
    Conflict,
    /// A key in the queue that no contender can have put there stands in front. It may stay for
    /// ever, so nobody waits for it: delete it, or use another name.
    #[error("the key {0} in the queue belongs to no contender")]
    ForeignKey(Key),
    /// The caller's own key was deleted by somebody else while the session lived.
    #[error("the key {0} was deleted by somebody else")]
    Removed(Key),
    /// Somebody else has what only one can have: the id of an instance, the report of a task.
    #[error("{key} is taken by lease {lease}")]
    Taken {
        /// The key.
        key: Key,
        /// The lease it is attached to.
        lease: LeaseId,
    },
    /// The thing exists, made with other settings; nothing was written.
    #[error("{key} is {stored}, not {wanted}")]
    Mismatch {
        /// The key that the settings are stored in.
        key: Key,
        /// The caller's.
        wanted: String,
        /// Those that hold.
        stored: String,
    },
    /// A member of a barrier's generation ended before all had arrived: nobody passes this one.
    #[error("generation {generation} of the barrier {key} is broken")]
    Broken {
        /// The key that the barrier's state is stored in.
        key: Key,
        /// The generation.
        generation: u64,
    },
    /// The operation can never succeed as it is.
    #[error("invalid: {0}")]
    Invalid(String),
    /// A value could not be encoded or decoded.
    #[error("value of {key}: {reason}")]
    Codec {
        /// The key the value belongs to.
        key: Key,
        /// What the codec said.
        reason: String,
    },
    /// May or may not have happened, and the session that could have found out is over, or the store
    /// refuses to tell.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
    /// The task behind this handle is gone: the runtime is shutting down.
    #[error("shutting down")]
    Closed,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn owner_text(owner: &Option<Box<Holder>>) -> String {
    owner
        .as_ref()
        .map(|holder| format!("; first in line is {holder}"))
        .unwrap_or_default()
}

impl Error {
    /// Certainly had no effect, and the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_retryable())
    }

    /// May have had its effect. Only an operation that is idempotent by construction may be
    /// repeated without a look at the store.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::OutcomeUnknown(_) => true,
            Self::Store(error) => error.is_ambiguous(),
            _ => false,
        }
    }
}

/// How a [`Txn`](crate::Txn) fails.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TxnError {
    /// A guard of the transaction was no longer held; nothing was written.
    #[error("no longer held{}", owner_text(.owner))]
    Fenced {
        /// Who is first in line now, if anybody is known to be.
        owner: Option<Box<Holder>>,
    },
    /// All guards held, but a condition of the user's did not; nothing was written.
    #[error("conflict at revision {revision}")]
    Conflict {
        /// The store's revision at which the conditions were judged.
        revision: Revision,
        /// The answers of the user's own `otherwise` reads, in order.
        responses: Vec<ResponseOp>,
    },
    /// Everything else.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl TxnError {
    /// As [`Error::is_retryable`].
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Failed(error) if error.is_retryable())
    }

    /// As [`Error::is_ambiguous`].
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Failed(error) if error.is_ambiguous())
    }
}

impl From<StoreError> for TxnError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<TxnError> for Error {
    fn from(error: TxnError) -> Self {
        match error {
            TxnError::Fenced { owner } => Self::Fenced { owner },
            TxnError::Conflict { .. } => Self::Conflict,
            TxnError::Failed(error) => error,
        }
    }
}
