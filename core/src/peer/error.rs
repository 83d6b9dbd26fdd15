//! What can go wrong between members, used by all of `peer` and by those who send.

use std::time::Duration;

/// Why a message to a peer has no answer.
///
/// The question a caller must ask is [`PeerError::certainly_not_handled`]: only then may a message
/// that is not idempotent be sent again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No peer is known under this id.
    #[error("no peer {0}")]
    Unknown(u64),
    /// A bounded buffer on the way, here or there, is full. The message had no effect.
    #[error("buffer full: {0}")]
    Full(&'static str),
    /// There is no connection and none could be made. The message had no effect.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The connection broke before the answer came.
    #[error("connection lost: {detail}")]
    Lost {
        /// Whether the message had left this member, so that the peer may have handled it.
        sent: bool,
        /// For people.
        detail: String,
    },
    /// No answer in time.
    #[error("no answer within {after:?}")]
    Timeout {
        /// Whether the message had left this member, so that the peer may have handled it.
        sent: bool,
        /// How long it was waited for.
        after: Duration,
    },
    /// The peer is not whom we want, or does not want us. The message had no effect.
    #[error("refused: {0}")]
    Refused(String),
    /// The peer says that this member was removed from the cluster. The message had no effect.
    #[error("removed: {0}")]
    Removed(String),
    /// The peer is starting or stopping, or does not know the message, which had no effect.
    #[error("not ready: {0}")]
    NotReady(String),
    /// The peer failed while handling the message.
    #[error("peer failed: {0}")]
    Failed(String),
    /// An answer, or a frame of a snapshot, that makes no sense.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// The caller, or this member's shutdown, ended it.
    #[error("cancelled: {0}")]
    Cancelled(String),
}

impl PeerError {
    /// Whether the peer certainly did not handle the message.
    #[must_use]
    pub const fn certainly_not_handled(&self) -> bool {
        match self {
            Self::Unknown(_)
            | Self::Full(_)
            | Self::Unreachable(_)
            | Self::Refused(_)
            | Self::Removed(_)
            | Self::NotReady(_) => true,
            Self::Lost { sent, .. } | Self::Timeout { sent, .. } => !*sent,
            Self::Failed(_) | Self::Protocol(_) | Self::Cancelled(_) => false,
        }
    }

    /// Whether sending again at once is pointless, because the peer cannot be reached for now.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unknown(_)
                | Self::Unreachable(_)
                | Self::Refused(_)
                | Self::Removed(_)
                | Self::NotReady(_)
        )
    }
}
