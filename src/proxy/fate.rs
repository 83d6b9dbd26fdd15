//! What became of a call that a member did not carry out: whether it can be made again elsewhere.

use std::error::Error;

use quorate::proto::Reason;
use tonic::{Code, ConnectError, Status, TimeoutExpired};

/// What became of a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// No connection could be made: certainly nothing was done.
    NeverSent,
    /// The member refused before it did anything, for a reason of its own: another one may not.
    NotThere,
    /// The member says that it cannot, or has not in time.
    Unavailable,
    /// The connection broke: it may have been carried out.
    Lost,
    /// The client's deadline passed.
    Expired,
    /// The member decided; no other would decide otherwise.
    Decided,
}

impl Fate {
    /// What this status says.
    pub(super) fn of(status: &Status) -> Self {
        // What a member says has no source; what goes wrong on the way to it has one.
        let mut source = status.source();
        let is_local = source.is_some();
        while let Some(error) = source {
            if error.is::<ConnectError>() {
                return Self::NeverSent;
            }
            if error.is::<TimeoutExpired>() {
                return Self::Expired;
            }
            source = Error::source(error);
        }
        if is_local {
            return Self::Lost;
        }
        match Reason::from_status(status) {
            Some(Reason::NoLeader | Reason::NotLeader | Reason::NotSupportedForLearner) => {
                Self::NotThere
            }
            _ if status.code() == Code::Unavailable => Self::Unavailable,
            _ => Self::Decided,
        }
    }

    /// Whether the member is better left alone for a while.
    pub(super) fn is_of_the_member(self, status: &Status) -> bool {
        match self {
            Self::NeverSent | Self::Unavailable | Self::Lost => true,
            // A follower is as good as any for all other calls.
            Self::NotThere => Reason::from_status(status) != Some(Reason::NotLeader),
            Self::Expired | Self::Decided => false,
        }
    }

    /// What the client is told when nobody else is asked: the member's own words, or words of the same
    /// meaning where a member said nothing.
    pub(super) fn told(self, status: Status) -> Status {
        match self {
            Self::NeverSent => Reason::NoConnection.into(),
            Self::Lost => Reason::TimeoutConnectionLost.into(),
            Self::Expired => Status::deadline_exceeded("context deadline exceeded"),
            Self::NotThere | Self::Unavailable | Self::Decided => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_never_sent_or_refused_at_once_is_certain() {
        let connect = ConnectError(std::io::Error::other("refused").into());
        let status = Status::from_error(Box::new(connect));
        assert_eq!(Fate::of(&status), Fate::NeverSent);
        let told = Fate::NeverSent.told(status);
        assert_eq!(Reason::from_status(&told), Some(Reason::NoConnection));

        let broken = Status::from_error(Box::new(std::io::Error::other("broken pipe")));
        assert_eq!(Fate::of(&broken), Fate::Lost);
        let told = Fate::Lost.told(broken);
        assert!(Reason::from_status(&told).is_some_and(Reason::is_ambiguous));

        let said = |reason: Reason| Fate::of(&reason.into());
        assert_eq!(said(Reason::NoLeader), Fate::NotThere);
        assert_eq!(said(Reason::Timeout), Fate::Unavailable);
        assert_eq!(said(Reason::Stopped), Fate::Unavailable);
        assert_eq!(said(Reason::EmptyKey), Fate::Decided);
        assert_eq!(said(Reason::TooManyRequests), Fate::Decided);
        let not_leader = Reason::NotLeader.into();
        assert!(!Fate::NotThere.is_of_the_member(&not_leader));
    }
}
