//! This member's own proposals that wait for their outcome. `node` registers one before it sends it
//! to the leader; the state machine completes it when this member itself applies it.
//!
//! A proposal is sent in one term and appended in that term or never. So once this member has
//! applied an entry of a later term without having met it, it is certainly lost and may be proposed
//! again; where a snapshot replaced the entries in between, nobody can tell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_proto::Reason;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::apply::{Answer, Applied, ProposalId};
use crate::storage::wal::EntryId;

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq)]
pub enum Completion {
    /// It was applied.
    Answer {
        /// What it did.
        answer: Answer,
        /// The last entry of the batch it was applied in.
        applied: EntryId,
    },
    /// It was applied and refused: it changed nothing.
    Refused {
        /// Why.
        reason: Reason,
        /// The last entry of the batch it was applied in.
        applied: EntryId,
    },
    /// It was not applied and never will be: it may be proposed again.
    Lost,
    /// It may have been applied, and nobody will learn it.
    Unknown,
}

/// The registry. One for each process start of a member.
#[derive(Debug)]
pub struct Pending {
    boot: Uuid,
    capacity: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// By sequence.
    waiting: BTreeMap<u64, Waiting>,
    next_sequence: u64,
    /// The highest term of which this member has applied an entry.
    applied_term: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct Waiting {
    term: u64,
    completed: oneshot::Sender<Completion>,
}

/// A registered proposal. Dropping it forgets the proposal, which may still be applied.
#[derive(Debug)]
pub struct Ticket {
    id: ProposalId,
    completed: oneshot::Receiver<Completion>,
    pending: Arc<Pending>,
}

impl Pending {
    /// An empty registry of at most `capacity` proposals, for the process start `boot`.
    #[must_use]
    pub fn new(boot: Uuid, capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            boot,
            capacity,
            inner: Mutex::new(Inner {
                waiting: BTreeMap::new(),
                next_sequence: 1,
                applied_term: 0,
                is_closed: false,
            }),
        })
    }

    /// The process start whose proposals these are.
    #[must_use]
    pub fn boot(&self) -> Uuid {
        self.boot
    }

    /// Names a proposal that is about to be sent to the leader of `term`, in that term only. To
    /// propose the same again in another term, register it again.
    ///
    /// # Errors
    ///
    /// [`Reason::TooManyRequests`] when the registry is full, [`Reason::Stopped`] when it is closed.
    pub fn register(self: &Arc<Self>, term: u64) -> Result<Ticket, Reason> {
        let (sender, completed) = oneshot::channel();
        let mut inner = self.lock();
        if inner.is_closed {
            return Err(Reason::Stopped);
        }
        if inner.waiting.len() >= self.capacity {
            return Err(Reason::TooManyRequests);
        }
        let sequence = inner.next_sequence;
        inner.next_sequence += 1;
        if term < inner.applied_term {
            // Nothing of that term can be applied any more. The receiver is right here.
            drop(sender.send(Completion::Lost));
        } else {
            let waiting = Waiting {
                term,
                completed: sender,
            };
            inner.waiting.insert(sequence, waiting);
        }
        let boot = self.boot;
        Ok(Ticket {
            id: ProposalId { boot, sequence },
            completed,
            pending: Arc::clone(self),
        })
    }

    /// The lowest sequence that still waits, or the next one to be given: the leader may forget all
    /// below it.
    #[must_use]
    pub fn lowest(&self) -> u64 {
        let inner = self.lock();
        let first = inner.waiting.first_key_value();
        first.map_or(inner.next_sequence, |(sequence, _)| *sequence)
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Completes what a batch applied, then gives up what it shows to be lost.
    pub(crate) fn applied(&self, batch: &mut Applied) {
        let mut inner = self.lock();
        let applied = batch.last;
        for outcome in batch.outcomes.drain(..) {
            if outcome.id.boot != self.boot {
                continue;
            }
            if let Some(waiting) = inner.waiting.remove(&outcome.id.sequence) {
                let completion = match outcome.result {
                    Ok(answer) => Completion::Answer { answer, applied },
                    Err(reason) => Completion::Refused { reason, applied },
                };
                // Whoever waited may have given up.
                drop(waiting.completed.send(completion));
            }
        }
        inner.enter(applied.term, &Completion::Lost);
    }

    /// Gives up what a snapshot up to `last` may or may not contain.
    pub(crate) fn installed(&self, last: EntryId) {
        // An entry of the snapshot's own term may lie on either side of its end.
        self.lock().enter(last.term + 1, &Completion::Unknown);
        let mut inner = self.lock();
        inner.applied_term = last.term;
    }

    /// Notes the term of the state at the start.
    pub(crate) fn started(&self, applied: Option<EntryId>) {
        let term = applied.map_or(0, |id| id.term);
        self.lock().enter(term, &Completion::Lost);
    }

    /// Ends all waiting, and refuses what comes later: this member stops.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.is_closed = true;
        for (_, waiting) in std::mem::take(&mut inner.waiting) {
            drop(waiting.completed.send(Completion::Unknown));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Completes everything that was sent in a term before `term`, if `term` is a new one.
    fn enter(&mut self, term: u64, completion: &Completion) {
        if term <= self.applied_term {
            return;
        }
        self.applied_term = term;
        let ended = self
            .waiting
            .extract_if(.., |_, waiting| waiting.term < term);
        for (_, waiting) in ended {
            drop(waiting.completed.send(completion.clone()));
        }
    }
}

impl Ticket {
    /// The proposal's name.
    #[must_use]
    pub fn id(&self) -> ProposalId {
        self.id
    }

    /// Waits for the outcome. [`Completion::Unknown`] once it was given.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn completion(&mut self) -> Completion {
        (&mut self.completed).await.unwrap_or(Completion::Unknown)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pending.lock().waiting.remove(&self.id.sequence);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::apply::Outcome;
    use crate::watch::Publication;

    fn pending() -> Arc<Pending> {
        Pending::new(Uuid::from_u128(1), 3)
    }

    fn batch(last: EntryId, outcomes: Vec<Outcome>) -> Applied {
        Applied {
            last,
            revision: 1,
            outcomes,
            publication: Publication::default(),
            terms: Vec::new(),
        }
    }

    fn outcome(id: ProposalId) -> Outcome {
        Outcome {
            id,
            result: Ok(Answer::LeaseExpire),
        }
    }

    fn now(ticket: &mut Ticket) -> Option<Completion> {
        ticket.completion().now_or_never()
    }

    #[test]
    fn an_applied_proposal_is_answered_and_others_wait_on() {
        let pending = pending();
        let mut first = pending.register(2).unwrap();
        let mut second = pending.register(2).unwrap();
        assert_eq!((first.id().sequence, second.id().sequence), (1, 2));
        let applied = EntryId::new(2, 7);
        let mut foreign = first.id();
        foreign.boot = Uuid::from_u128(9);
        pending.applied(&mut batch(applied, vec![outcome(foreign)]));
        assert_eq!(now(&mut first), None, "another process start's");
        let refused = Outcome {
            id: second.id(),
            result: Err(Reason::LeaseNotFound),
        };
        pending.applied(&mut batch(applied, vec![outcome(first.id()), refused]));
        let answer = Answer::LeaseExpire;
        assert_eq!(
            now(&mut first),
            Some(Completion::Answer { answer, applied })
        );
        let reason = Reason::LeaseNotFound;
        assert_eq!(
            now(&mut second),
            Some(Completion::Refused { reason, applied })
        );
        assert!(pending.is_empty());
    }

    #[test]
    fn a_proposal_is_lost_once_a_later_term_was_applied_without_it() {
        let pending = pending();
        let mut met = pending.register(2).unwrap();
        let mut lost = pending.register(2).unwrap();
        let mut later = pending.register(3).unwrap();
        pending.applied(&mut batch(EntryId::new(2, 5), Vec::new()));
        assert_eq!(now(&mut lost), None, "its own term may still bring it");
        let applied = EntryId::new(3, 9);
        pending.applied(&mut batch(applied, vec![outcome(met.id())]));
        assert!(matches!(now(&mut met), Some(Completion::Answer { .. })));
        assert_eq!(now(&mut lost), Some(Completion::Lost));
        assert_eq!(now(&mut later), None);
        let mut late = pending.register(2).unwrap();
        assert_eq!(now(&mut late), Some(Completion::Lost), "that term is over");
    }

    #[test]
    fn after_an_install_nobody_knows_what_the_snapshot_may_contain() {
        let pending = pending();
        let mut older = pending.register(2).unwrap();
        let mut same = pending.register(4).unwrap();
        let mut later = pending.register(5).unwrap();
        pending.installed(EntryId::new(4, 100));
        assert_eq!(now(&mut older), Some(Completion::Unknown));
        assert_eq!(now(&mut same), Some(Completion::Unknown));
        assert_eq!(now(&mut later), None, "its entry lies after the snapshot");
        let mut next = pending.register(4).unwrap();
        assert_eq!(now(&mut next), None, "its entry can still come");
        pending.applied(&mut batch(EntryId::new(5, 101), Vec::new()));
        assert_eq!(now(&mut next), Some(Completion::Lost));
        assert_eq!(now(&mut later), None);
    }

    #[test]
    fn the_registry_is_bounded_and_forgets_dropped_proposals() {
        let pending = pending();
        let mut tickets: Vec<_> = (0..3).map(|_| pending.register(1).unwrap()).collect();
        assert_eq!(pending.register(1).unwrap_err(), Reason::TooManyRequests);
        assert_eq!(pending.lowest(), 1);
        tickets.remove(0);
        assert_eq!(pending.lowest(), 2);
        tickets.push(pending.register(1).unwrap());
        tickets.clear();
        assert_eq!(pending.lowest(), 5);
    }

    #[test]
    fn closing_ends_all_waiting() {
        let pending = pending();
        let mut ticket = pending.register(1).unwrap();
        pending.close();
        assert_eq!(now(&mut ticket), Some(Completion::Unknown));
        assert_eq!(pending.register(1).unwrap_err(), Reason::Stopped);
    }
}
