//! What a gRPC status of an etcd v3 server says about the fate of the call.

use std::error::Error;

use tonic::{Code, ConnectError, Status};

use super::{Cause, StoreError};
use crate::keys::Revision;

/// Answers that a server gives before it has proposed anything.
const BEFORE_PROPOSING: [&str; 4] = [
    "etcdserver: no leader",
    "etcdserver: not leader",
    "etcdserver: too many requests",
    "raft proposal dropped",
];

/// The store error that a status stands for. Where it is open whether the call was applied, it is
/// [`StoreError::Unknown`].
pub(super) fn classify(status: &Status) -> StoreError {
    let text = status.message();
    let cause = || Cause::new(format!("{:?}: {text}", status.code()));
    if never_sent(status) || BEFORE_PROPOSING.iter().any(|known| text.contains(known)) {
        return StoreError::NotApplied(cause());
    }
    match status.code() {
        Code::OutOfRange if text.contains("has been compacted") => {
            StoreError::Compacted { at: Revision(0) }
        }
        _ if text.contains("requested lease not found") => StoreError::LeaseNotFound,
        _ if text.contains("lease already exists") => StoreError::LeaseExists,
        _ if text.contains("user name is empty") || text.contains("authentication failed") => {
            StoreError::Auth(cause())
        }
        Code::Unauthenticated | Code::PermissionDenied => StoreError::Auth(cause()),
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => {
            StoreError::Invalid(cause())
        }
        Code::ResourceExhausted if text.contains("message larger than max") => {
            StoreError::Invalid(cause())
        }
        Code::ResourceExhausted | Code::FailedPrecondition | Code::DataLoss | Code::NotFound => {
            StoreError::Refused(cause())
        }
        _ => StoreError::Unknown(cause()),
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

    #[test]
    fn only_answers_given_before_proposing_may_be_repeated() {
        let kind = |code, text: &str| classify(&Status::new(code, text));
        assert!(kind(Code::Unavailable, "etcdserver: no leader").is_retryable());
        assert!(kind(Code::ResourceExhausted, "etcdserver: too many requests").is_retryable());
        for (code, text) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: leader changed"),
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
        let kind = |code, text: &str| classify(&Status::new(code, text));
        let lease = kind(Code::NotFound, "etcdserver: requested lease not found");
        assert_eq!(lease, StoreError::LeaseNotFound);
        let exists = kind(Code::FailedPrecondition, "etcdserver: lease already exists");
        assert_eq!(exists, StoreError::LeaseExists);
        let space = kind(
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        );
        assert!(matches!(space, StoreError::Refused(_)));
        let text = "etcdserver: mvcc: required revision has been compacted";
        let compacted = kind(Code::OutOfRange, text);
        assert!(matches!(compacted, StoreError::Compacted { .. }));
        let future = "etcdserver: mvcc: required revision is a future revision";
        assert!(matches!(
            kind(Code::OutOfRange, future),
            StoreError::Invalid(_)
        ));
        let auth = kind(Code::InvalidArgument, "etcdserver: user name is empty");
        assert!(matches!(auth, StoreError::Auth(_)));
    }
}
