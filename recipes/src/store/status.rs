//! What a gRPC status of an etcd v3 server says about the fate of the call.

use std::error::Error;

use quorate_proto::{Kind, Reason};
use tonic::{ConnectError, Status};

use super::{Cause, StoreError};
use crate::keys::Revision;

/// The store error that a status stands for. Where it is open whether the call was applied, it is
/// [`StoreError::Unknown`].
pub(super) fn classify(status: &Status) -> StoreError {
    let cause = Cause::new(format!("{:?}: {}", status.code(), status.message()));
    if never_sent(status) {
        return StoreError::NotApplied(cause);
    }
    let reason = Reason::from_status(status);
    match reason {
        Some(Reason::LeaseNotFound) => return StoreError::LeaseNotFound,
        Some(Reason::LeaseExists) => return StoreError::LeaseExists,
        Some(Reason::UserEmpty) => return StoreError::Auth(cause),
        Some(reason) if reason.is_retryable() => return StoreError::NotApplied(cause),
        _ => {}
    }
    match Kind::of(status) {
        Kind::Compacted => StoreError::Compacted { at: Revision(0) },
        Kind::Denied => StoreError::Auth(cause),
        Kind::Invalid | Kind::Future | Kind::Unimplemented => StoreError::Invalid(cause),
        Kind::NotFound | Kind::Conflict | Kind::Exhausted | Kind::Corrupt => {
            StoreError::Refused(cause)
        }
        _ => StoreError::Unknown(cause),
    }
}

/// Whether the call failed for want of a connection, before anything was sent.
fn never_sent(status: &Status) -> bool {
    let mut source: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn only_answers_given_before_proposing_may_be_repeated() {
        let kind = |code, text: &str| classify(&Status::new(code, text));
        assert!(kind(Code::Unavailable, "etcdserver: no leader").is_retryable());
        assert!(kind(Code::ResourceExhausted, "etcdserver: too many requests").is_retryable());
        assert!(kind(Code::Unknown, "raft proposal dropped").is_retryable());
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unavailable, "transport is closing"),
            (Code::Unknown, "h2 protocol error"),
            (Code::Cancelled, ""),
            (Code::DeadlineExceeded, ""),
            (Code::Internal, ""),
        ] {
            assert!(kind(code, text).is_ambiguous(), "{code:?} {text}");
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let kind = |reason: Reason| classify(&reason.into());
        assert_eq!(kind(Reason::LeaseNotFound), StoreError::LeaseNotFound);
        assert_eq!(kind(Reason::LeaseExists), StoreError::LeaseExists);
        assert!(matches!(kind(Reason::NoSpace), StoreError::Refused(_)));
        let compacted = kind(Reason::Compacted);
        assert!(matches!(compacted, StoreError::Compacted { .. }));
        assert!(matches!(
            kind(Reason::FutureRevision),
            StoreError::Invalid(_)
        ));
        assert!(matches!(kind(Reason::UserEmpty), StoreError::Auth(_)));
        assert!(matches!(kind(Reason::TooManyOps), StoreError::Invalid(_)));
    }
}
