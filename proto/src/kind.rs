//! What a caller can do about an error, whatever its exact cause; used by every layer that
//! decides between retrying, giving up and telling a person.

use tonic::{Code, Status};

use crate::reason::Reason;

/// The class of an error, named by what its receiver should do.
///
/// Every kind but [`Timeout`](Kind::Timeout), [`Stopped`](Kind::Stopped) and
/// [`Internal`](Kind::Internal) is certain: the request changed nothing.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request can never succeed as it is: mend the caller, do not retry.
    Invalid,
    /// Something the request names does not exist: make it first, or treat it as gone.
    NotFound,
    /// The present state forbids the request: read the state and decide anew.
    Conflict,
    /// The caller is unknown or lacks the right: authenticate again or tell the user.
    Denied,
    /// Space or a budget is used up: back off; for space a person must act.
    Exhausted,
    /// Refused before anything happened, for reasons that pass: retry after a pause, preferably
    /// on another member.
    Unavailable,
    /// No answer in time, or waiting was given up: the request may have been applied or may still
    /// be. Read back before repeating, unless the request is idempotent.
    Timeout,
    /// The revision asked for is compacted: start over from the current state.
    Compacted,
    /// The revision asked for does not exist yet: wait for it, or check where it came from.
    Future,
    /// Data is damaged or members disagree: stop using it, a person must act.
    Corrupt,
    /// The member is going away: use another one. A request that was under way may have been
    /// applied.
    Stopped,
    /// The server does not offer this: do without it, do not retry.
    Unimplemented,
    /// Something failed that should not have: report it. The request may have been applied.
    Internal,
}

impl Kind {
    /// Whether the request may have been applied although it failed.
    ///
    /// Never repeat such a request without the caller's consent, unless it is idempotent.
    #[must_use]
    pub fn is_ambiguous(self) -> bool {
        matches!(self, Self::Timeout | Self::Stopped | Self::Internal)
    }

    /// The kind of any status a server or the transport below it returned, in the catalogue or
    /// not.
    ///
    /// What the catalogue does not know is judged by its code, with doubt on the safe side: an
    /// unknown `Unavailable` is usually a broken connection, after which the request may have been
    /// applied, so it counts as [`Kind::Timeout`].
    #[must_use]
    pub fn of(status: &Status) -> Self {
        match Reason::from_status(status) {
            Some(reason) => reason.kind(),
            None => Self::of_code(status.code()),
        }
    }

    fn of_code(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists | Code::FailedPrecondition => Self::Conflict,
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied,
            Code::ResourceExhausted => Self::Exhausted,
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => {
                Self::Timeout
            }
            Code::DataLoss => Self::Corrupt,
            Code::Unimplemented => Self::Unimplemented,
            Code::Ok | Code::Unknown | Code::Internal => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_leaves_the_outcome_open() {
        let kind = Kind::of(&Status::unavailable("transport error"));
        assert_eq!(kind, Kind::Timeout);
        assert!(kind.is_ambiguous());
    }

    #[test]
    fn a_known_refusal_with_the_same_code_does_not() {
        let kind = Kind::of(&Status::unavailable("etcdserver: no leader"));
        assert_eq!(kind, Kind::Unavailable);
        assert!(!kind.is_ambiguous());
    }

    #[test]
    fn an_unknown_text_is_judged_by_its_code() {
        assert_eq!(Kind::of(&Status::not_found("?")), Kind::NotFound);
        assert_eq!(Kind::of(&Status::unauthenticated("?")), Kind::Denied);
        assert_eq!(
            Kind::of(&Status::unimplemented("unknown service x")),
            Kind::Unimplemented
        );
        assert_eq!(Kind::of(&Status::unknown("raft: stopped")), Kind::Internal);
    }
}
