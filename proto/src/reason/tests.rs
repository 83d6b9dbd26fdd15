//! The catalogue against what etcd was seen to answer.

use std::collections::HashSet;

use super::*;

#[test]
fn every_reason_survives_the_wire() {
    for &reason in Reason::ALL {
        let status = Status::from(reason);
        assert_eq!(Reason::from_status(&status), Some(reason));
        let unmapped = reason.into_unmapped_status();
        assert_eq!(unmapped.code(), Code::Unknown);
        assert_eq!(Reason::from_status(&unmapped), Some(reason));
    }
}

#[test]
fn texts_are_unique_and_codes_are_errors() {
    let texts: HashSet<_> = Reason::ALL.iter().map(|reason| reason.text()).collect();
    assert_eq!(texts.len(), Reason::ALL.len());
    assert!(Reason::ALL.iter().all(|reason| reason.code() != Code::Ok));
}

#[test]
fn a_status_with_another_code_or_text_is_not_recognized() {
    let text = Reason::LeaseNotFound.text();
    assert_eq!(Reason::find(Code::Internal, text), None);
    assert_eq!(Reason::find(Code::NotFound, &text.to_uppercase()), None);
    assert_eq!(Reason::find(Code::Unknown, "transport error"), None);
}

#[test]
fn codes_and_texts_are_those_seen_on_etcd() {
    let seen = [
        (Code::InvalidArgument, "etcdserver: key is not provided"),
        (Code::InvalidArgument, "etcdserver: value is provided"),
        (Code::InvalidArgument, "etcdserver: lease is provided"),
        (Code::InvalidArgument, "etcdserver: key not found"),
        (Code::InvalidArgument, "etcdserver: invalid sort option"),
        (
            Code::InvalidArgument,
            "etcdserver: duplicate key given in txn request",
        ),
        (
            Code::InvalidArgument,
            "etcdserver: too many operations in txn request",
        ),
        (Code::InvalidArgument, "etcdserver: request is too large"),
        (
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        (Code::NotFound, "etcdserver: requested lease not found"),
        (Code::FailedPrecondition, "etcdserver: lease already exists"),
        (Code::OutOfRange, "etcdserver: too large lease TTL"),
        (
            Code::ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        (Code::DataLoss, "etcdserver: corrupt cluster"),
        (
            Code::FailedPrecondition,
            "etcdserver: bad leader transferee",
        ),
        (
            Code::InvalidArgument,
            "etcdserver: wrong downgrade target version format",
        ),
        (Code::Unknown, "etcdserver: unknown method"),
        (
            Code::FailedPrecondition,
            "etcdserver: no inflight downgrade job",
        ),
        (
            Code::InvalidArgument,
            "etcdserver: given member URLs are invalid",
        ),
        (
            Code::FailedPrecondition,
            "etcdserver: member ID already exist",
        ),
        (
            Code::FailedPrecondition,
            "etcdserver: too many learner members in cluster",
        ),
        (Code::NotFound, "etcdserver: member not found"),
        (
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member",
        ),
        (
            Code::FailedPrecondition,
            "etcdserver: can only promote a learner member which is in sync with leader",
        ),
        (Code::NotFound, "unknown service"),
        (
            Code::FailedPrecondition,
            "etcdserver: root user does not exist",
        ),
        (
            Code::FailedPrecondition,
            "etcdserver: root user does not have root role",
        ),
        (
            Code::FailedPrecondition,
            "etcdserver: authentication is not enabled",
        ),
        (
            Code::FailedPrecondition,
            "etcdserver: user name already exists",
        ),
        (
            Code::FailedPrecondition,
            "etcdserver: role name already exists",
        ),
        (Code::FailedPrecondition, "etcdserver: user name not found"),
        (Code::FailedPrecondition, "etcdserver: role name not found"),
        (Code::InvalidArgument, "etcdserver: user name is empty"),
        (Code::InvalidArgument, "etcdserver: role name is empty"),
        (
            Code::FailedPrecondition,
            "etcdserver: role is not granted to the user",
        ),
        (
            Code::FailedPrecondition,
            "etcdserver: permission is not granted to the role",
        ),
        (Code::InvalidArgument, "etcdserver: invalid auth management"),
        (Code::Unauthenticated, "etcdserver: invalid auth token"),
        (
            Code::InvalidArgument,
            "etcdserver: authentication failed, invalid user ID or password",
        ),
        (
            Code::Unknown,
            "auth: authentication failed, password was given for no password user",
        ),
        (Code::PermissionDenied, "etcdserver: permission denied"),
        (Code::Unknown, "mutex: session is expired"),
        (Code::Unknown, "election: not leader"),
        (Code::Unknown, "election: no leader"),
        (Code::Unavailable, "etcdserver: no leader"),
        (Code::Unavailable, "etcdserver: leader changed"),
        (Code::FailedPrecondition, "etcdserver: not leader"),
        (Code::Unavailable, "etcdserver: request timed out"),
    ];
    for (code, text) in seen {
        let reason = Reason::find(code, text).unwrap_or_else(|| panic!("{code:?} {text}"));
        assert_eq!(reason.code(), code, "{text}");
    }
}

#[test]
fn only_requests_that_changed_nothing_are_retryable() {
    for &reason in Reason::ALL {
        assert!(
            !(reason.is_retryable() && reason.is_ambiguous()),
            "{reason:?}"
        );
    }
    assert!(Reason::NoLeader.is_retryable());
    assert!(Reason::TooManyRequests.is_retryable());
    assert!(!Reason::NoSpace.is_retryable());
    for reason in [
        Reason::Timeout,
        Reason::TimeoutLeaderFailure,
        Reason::TimeoutConnectionLost,
        Reason::Stopped,
        Reason::DeadlineExceeded,
        Reason::Canceled,
        Reason::StorageFailed,
    ] {
        assert!(reason.is_ambiguous(), "{reason:?}");
    }
}

#[test]
fn limits_in_texts_are_the_limits() {
    let key_bytes_max = crate::limits::KEY_BYTES_MAX.to_string();
    assert!(Reason::KeyTooLong.text().contains(&key_bytes_max));
    assert!(Reason::NameTooLong.text().contains(&key_bytes_max));
    let depth_max = crate::limits::TXN_DEPTH_MAX.to_string();
    assert!(Reason::TxnTooDeep.text().contains(&depth_max));
}

#[test]
fn refused_watches_are_told_as_go_prints_a_status() {
    assert_eq!(
        Reason::PermissionDenied.rpc_text(),
        "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    );
    assert_eq!(
        Reason::WatchCanceled.rpc_text(),
        "rpc error: code = Canceled desc = etcdserver: watch canceled"
    );
}
