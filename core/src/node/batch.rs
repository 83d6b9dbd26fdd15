//! Sends this member's queued commands, many in a batch: to its own log while it leads, otherwise
//! to the leader. Run by `bootstrap` as one task.
//!
//! A few batches are under way at once and the rest gathers meanwhile, so a busy member sends large
//! batches and an idle one sends at once. A batch is sent under one term, and its commands get
//! their names for that term alone; whoever waits for one is then answered by `Pending`. It comes
//! back to the queue only when it was certainly not appended anywhere; the names are then forgotten.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_proto::log::{Batch, Proposal};
use quorate_proto::{Reason, peer as pb};
use tokio::sync::Semaphore;

use super::Node;
use super::propose::Queued;
use super::rounds::Caller;
use crate::raft::{Completion, Leadership, ProposeError};

/// Batches under way at once, from being sent until the leader has applied them; one of several commands
/// counts as two. So a few clients do not wait for each other, and many have large batches: with four
/// in any case, 64 clients of three members have batches half as large, and each put costs a sixth more
/// processor time.
const BATCHES_IN_FLIGHT: usize = 4;
/// Proposals in a batch; an entry of more would delay the reads behind it.
const BATCH_PROPOSALS_MAX: usize = 1_024;
/// Bytes in a batch, unless one proposal alone is larger.
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Pause before trying again what was refused while nothing seems to have changed.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A waiting command.
type Waiting = Caller<Queued, Completion>;

/// What became of sending a batch.
enum Sent {
    /// It is, or may be, in the leader's log: apply, or the end of the term, tells.
    Settled,
    /// It is certainly in no log.
    Refused,
}

/// Sends queued commands until the member stops.
pub(super) async fn run(node: Node) {
    let window = Arc::new(Semaphore::new(BATCHES_IN_FLIGHT));
    let mut leadership = node.shared.consensus.leadership();
    loop {
        let Ok(mut permit) = window.clone().acquire_owned().await else {
            return;
        };
        node.hold_over().await;
        tokio::select! {
            led = leadership.wait_for(|known| known.leader.is_some()) => if led.is_err() {
                return;
            },
            () = node.sending_over() => {}
        }
        let (mut count, mut bytes) = (0, 0);
        let waiting = node
            .shared
            .proposals
            .gather(|queued| {
                count += 1;
                bytes += queued.bytes;
                count <= BATCH_PROPOSALS_MAX && bytes <= BATCH_BYTES_MAX
            })
            .await;
        if waiting.len() > 1 {
            let Ok(more) = window.clone().acquire_owned().await else {
                return;
            };
            permit.merge(more);
        }
        if node.sends_never() {
            // It is in no log, and no longer for this member to bring there.
            for caller in waiting {
                caller.answer(Err(Reason::NoLeader.into()));
            }
            continue;
        }
        let known = *leadership.borrow();
        let task = node.clone();
        node.shared.tasks.spawn("send proposals", async move {
            task.send(waiting, known).await;
            drop(permit);
        });
    }
}

impl Node {
    /// Names the commands of a batch, and sends it under the leadership `known`.
    async fn send(&self, waiting: Vec<Waiting>, known: Leadership) {
        let (queued, callers): (Vec<_>, Vec<_>) =
            waiting.into_iter().map(Waiting::into_parts).unzip();
        let first = match self.shared.pending.register_all(known.term, callers) {
            Ok(first) => first,
            Err((reason, callers)) => {
                for caller in callers {
                    drop(caller.send(Err(reason.into())));
                }
                return;
            }
        };
        let boot_id = Bytes::copy_from_slice(self.shared.boot.as_bytes());
        let named = |(sequence, queued): (u64, Queued)| Proposal {
            boot_id: boot_id.clone(),
            sequence,
            command: Some(queued.command),
        };
        let mut batch: Vec<Proposal> = (first..).zip(queued).map(named).collect();
        // After they were registered, so that whoever waits for those under way sees them.
        if self.is_held() {
            return self.shared.proposals.put_back(self.withdraw(batch));
        }
        let sent = match known.leader {
            Some(leader) if leader == self.member_id() => {
                self.propose_here(&mut batch, known.term).await
            }
            Some(_) => self.forward(known, &mut batch).await,
            None => Sent::Refused,
        };
        if matches!(sent, Sent::Refused) {
            let waiting = self.withdraw(batch);
            self.pause_for_change(known).await;
            self.shared.proposals.put_back(waiting);
        }
    }

    /// Forgets the names of commands that were certainly not appended; they may be queued again.
    fn withdraw(&self, batch: Vec<Proposal>) -> Vec<Waiting> {
        let waiting = batch.into_iter().filter_map(|proposal| {
            let caller = self.shared.pending.withdraw(proposal.sequence)?;
            let command = proposal.command?;
            let bytes = command.encoded_len();
            Some(Waiting::from_parts(Queued { command, bytes }, caller))
        });
        waiting.collect()
    }

    /// Appends a batch to this member's own log, as the leader of `term`.
    async fn propose_here(&self, batch: &mut Vec<Proposal>, term: u64) -> Sent {
        let message = Batch {
            proposals: std::mem::take(batch),
        };
        let bytes = Bytes::from(message.encode_to_vec());
        *batch = message.proposals;
        match self.shared.consensus.propose(bytes, term).await {
            Ok(()) | Err(ProposeError::Discarded | ProposeError::Stopped) => Sent::Settled,
            Err(ProposeError::NotLeader { .. } | ProposeError::NotNow | ProposeError::Full) => {
                Sent::Refused
            }
        }
    }

    /// Forwards a batch to another member, again and again over broken connections while that
    /// member leads in the same term; the leader drops what it has had before. A command whose
    /// caller has gone is taken out: he was told that its outcome is unknown, and may have written
    /// something newer since. It need not wait for the leader's word on what this member has applied.
    async fn forward(&self, known: Leadership, batch: &mut Vec<Proposal>) -> Sent {
        let timeout = 2 * self.shared.config.election_timeout;
        // Whether an earlier attempt may have arrived.
        let mut doubt = false;
        loop {
            // The leader learns, by the lowest that is pending, not to take late copies either.
            let sequences = batch.iter().map(|proposal| proposal.sequence);
            let mut waits = self.shared.pending.waiting(sequences).into_iter();
            batch.retain(|_| waits.next().unwrap_or(false));
            let Some(first) = batch.first().map(|proposal| proposal.sequence) else {
                return Sent::Settled;
            };
            let request = pb::request::Kind::Forward(pb::ForwardRequest {
                boot_id: self.shared.boot.as_bytes().to_vec().into(),
                term: known.term,
                lowest_pending: self.shared.pending.lowest(),
                proposals: batch.clone(),
            });
            // An answer that was given up on may still have been earned.
            let answer = tokio::select! {
                answer = self.ask_leader(known, request, timeout) => answer,
                // Applied here, and then so are the others; or given up by its caller alone.
                () = self.shared.pending.gone(first) => {
                    doubt = true;
                    continue;
                }
            };
            match answer {
                Ok(pb::response::Kind::Forward(pb::ForwardResponse {
                    outcome: Some(outcome),
                })) => match outcome {
                    pb::forward_response::Outcome::Accepted(_) => return Sent::Settled,
                    pb::forward_response::Outcome::Refused(refusal) if refusal.not_applied => {
                        if !doubt {
                            return Sent::Refused;
                        }
                        if refusal.text != Reason::TooManyRequests.text() {
                            return Sent::Settled;
                        }
                    }
                    pb::forward_response::Outcome::Refused(_) => return Sent::Settled,
                },
                Ok(_) => doubt = true,
                Err(error) if error.certainly_not_handled() => {
                    if !doubt {
                        return Sent::Refused;
                    }
                }
                Err(error) => {
                    tracing::debug!(leader = known.leader, %error, "forwarding proposals failed, trying again");
                    doubt = true;
                }
            }
            self.pause_for_change(known).await;
            if self.is_over(known) {
                return Sent::Settled;
            }
        }
    }

    /// Whether the term of `known` is over. A leader that is silent may come back in its term.
    fn is_over(&self, known: Leadership) -> bool {
        self.leadership().term != known.term
    }

    /// Completes when the term of `known` is over.
    pub(super) async fn term_over(&self, known: Leadership) {
        let mut leadership = self.shared.consensus.leadership();
        drop(leadership.wait_for(|now| now.term != known.term).await);
    }

    /// Waits for another term than that of `known`, but not for long.
    pub(super) async fn pause_for_change(&self, known: Leadership) {
        drop(tokio::time::timeout(RETRY_PAUSE, self.term_over(known)).await);
    }
}
