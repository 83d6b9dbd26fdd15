//! Writes of this member: queues a command, and waits: `batch` has it sent, and this member's own
//! apply answers it. Used by every part of the node that writes.
//!
//! What may become of a command, and what its caller hears:
//!
//! - applied or refused by the state machine: the answer;
//! - refused before it reached a log: sent again to whoever leads now (`batch` does that);
//! - certainly lost with its term's leader: proposed anew;
//! - refused because a restore is not finished: proposed anew when it is;
//! - not decided within the request timeout: one of etcd's time-outs, never a retry.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use prost::Message;
use quorate_proto::Reason;
use quorate_proto::log::Command;
use quorate_proto::log::command::Kind;

use super::Node;
use crate::apply::Answer;
use crate::clock::{self, Instant};
use crate::error::Result;
use crate::raft::Completion;
use crate::storage::wal::EntryId;

/// A command that waits to be sent.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) command: Command,
    /// Encoded size.
    pub(super) bytes: usize,
}

impl Node {
    /// Proposes a command through whoever leads, and waits until this member applied it.
    ///
    /// # Errors
    /// What the state machine refused it with; too many requests; one of etcd's time-outs when the
    /// outcome is not known in time.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the outcome open: the command may still be applied.
    pub(super) async fn propose(&self, kind: Kind) -> Result<(Answer, EntryId)> {
        let command = Command { kind: Some(kind) };
        let bytes = command.encoded_len();
        if bytes > self.shared.config.limits.max_request_bytes {
            return Err(Reason::RequestTooLarge.into());
        }
        match self.decide(&command, bytes).await {
            Ok(Ok(decided)) => Ok(decided),
            Ok(Err(refused)) => Err(refused.into()),
            Err(failed) => {
                self.shared.proposals_failed.fetch_add(1, Relaxed);
                Err(failed)
            }
        }
    }

    /// What the state machine made of a command.
    ///
    /// # Errors
    /// It was not decided, as far as can be told here.
    async fn decide(
        &self,
        command: &Command,
        bytes: usize,
    ) -> Result<std::result::Result<(Answer, EntryId), Reason>> {
        let since = clock::now();
        let deadline = since + self.shared.config.request_timeout();
        loop {
            let queued = Queued {
                command: command.clone(),
                bytes,
            };
            let decided = self.shared.proposals.join(queued);
            let completion = match tokio::time::timeout_at(deadline, decided).await {
                Ok(completion) => completion?,
                Err(_) => return Err(self.timed_out(since).into()),
            };
            match completion {
                Completion::Answer { answer, applied } => return Ok(Ok((answer, applied))),
                Completion::Refused {
                    reason: Reason::RestoreUnfinished,
                    ..
                } => {
                    let finished = self.restore_finished();
                    if tokio::time::timeout_at(deadline, finished).await.is_err() {
                        return Err(self.timed_out(since).into());
                    }
                }
                Completion::Refused { reason, .. } => return Ok(Err(reason)),
                Completion::Lost => {
                    tracing::debug!("a proposal was lost with its leader, proposing anew");
                }
                Completion::Unknown if self.is_stopping() => return Err(Reason::Stopped.into()),
                Completion::Unknown => return Err(Reason::TimeoutLeaderFailure.into()),
            }
        }
    }

    /// Which time-out to tell a request that began at `since`: etcd blames an election that ended
    /// shortly after, then a connection that was lost since, then nothing.
    pub(super) fn timed_out(&self, since: Instant) -> Reason {
        let elected = self.shared.leaders.borrow().since;
        if election_to_blame(since, elected, self.shared.config.election_timeout) {
            Reason::TimeoutLeaderFailure
        } else if self.connection_to_blame(since) {
            Reason::TimeoutConnectionLost
        } else {
            Reason::Timeout
        }
    }
}

/// Whether a request that began at `since` may have been held up by an election that ended at
/// `elected`: it began before, but not by more than two election timeouts (etcd's rule).
fn election_to_blame(since: Instant, elected: Option<Instant>, election_timeout: Duration) -> bool {
    elected.is_some_and(|elected| since < elected && elected - since < 2 * election_timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_election_shortly_after_the_request_is_blamed() {
        let (since, second) = (clock::now(), Duration::from_secs(1));
        assert!(!election_to_blame(since, None, second));
        assert!(!election_to_blame(since, Some(since), second));
        assert!(election_to_blame(since, Some(since + second), second));
        assert!(!election_to_blame(since, Some(since + 2 * second), second));
    }
}
