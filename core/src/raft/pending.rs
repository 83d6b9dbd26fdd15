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
use crate::error::Result;
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
    completed: Completed,
    /// Goes with this.
    gone: Option<oneshot::Sender<()>>,
}

/// Where whoever waits for a proposal hears its outcome.
pub type Completed = oneshot::Sender<Result<Completion>>;

/// A registered proposal. Dropping it forgets the proposal, which may still be applied.
#[derive(Debug)]
pub struct Ticket {
    id: ProposalId,
    completed: oneshot::Receiver<Result<Completion>>,
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
    pub fn register(self: &Arc<Self>, term: u64) -> std::result::Result<Ticket, Reason> {
        let (sender, completed) = oneshot::channel();
        let first = self
            .register_all(term, vec![sender])
            .map_err(|(reason, _)| reason)?;
        let (boot, sequence) = (self.boot, first);
        Ok(Ticket {
            id: ProposalId { boot, sequence },
            completed,
            pending: Arc::clone(self),
        })
    }

    /// [`Pending::register`] for several who wait, at least one; their sequences follow each other
    /// from the one returned. Whoever no longer waits is forgotten.
    ///
    /// # Errors
    ///
    /// As there, for all; those who wait are given back.
    pub fn register_all(
        &self,
        term: u64,
        waiting: Vec<Completed>,
    ) -> std::result::Result<u64, (Reason, Vec<Completed>)> {
        let mut inner = self.lock();
        if inner.is_closed {
            return Err((Reason::Stopped, waiting));
        }
        if inner.waiting.len() + waiting.len() > self.capacity {
            inner.forget_the_gone();
        }
        if inner.waiting.len() + waiting.len() > self.capacity {
            return Err((Reason::TooManyRequests, waiting));
        }
        let first = inner.next_sequence;
        for completed in waiting {
            let sequence = inner.next_sequence;
            inner.next_sequence += 1;
            let waiting = Waiting {
                term,
                completed,
                gone: None,
            };
            if term < inner.applied_term {
                // Nothing of that term can be applied any more.
                waiting.tell(Completion::Lost);
            } else {
                inner.waiting.insert(sequence, waiting);
            }
        }
        Ok(first)
    }

    /// Forgets a proposal that was certainly not appended, and returns who waits for it; none if its
    /// outcome was told, or if whoever waited has gone.
    #[must_use]
    pub fn withdraw(&self, sequence: u64) -> Option<Completed> {
        let waiting = self.lock().waiting.remove(&sequence)?.completed;
        (!waiting.is_closed()).then_some(waiting)
    }

    /// Which of these proposals somebody waits for.
    #[must_use]
    pub fn waiting(&self, sequences: impl Iterator<Item = u64>) -> Vec<bool> {
        let inner = self.lock();
        let waits = |waiting: &Waiting| !waiting.completed.is_closed();
        sequences
            .map(|sequence| inner.waiting.get(&sequence).is_some_and(waits))
            .collect()
    }

    /// Completes when a proposal's outcome was told, or it was forgotten.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe. Only the last call for a proposal waits.
    pub async fn gone(&self, sequence: u64) {
        let (sender, gone) = oneshot::channel();
        match self.lock().waiting.get_mut(&sequence) {
            Some(waiting) => waiting.gone = Some(sender),
            None => return,
        }
        drop(gone.await);
    }

    /// The lowest sequence that still waits, or the next one to be given: the leader may forget all
    /// below it.
    #[must_use]
    pub fn lowest(&self) -> u64 {
        let mut inner = self.lock();
        while let Some(first) = inner.waiting.first_entry() {
            if !first.get().completed.is_closed() {
                return *first.key();
            }
            first.remove();
        }
        inner.next_sequence
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        let mut inner = self.lock();
        inner.forget_the_gone();
        inner.waiting.len()
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
                waiting.tell(completion);
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
            waiting.tell(Completion::Unknown);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Tells the outcome. Whoever waited may have given up.
    fn tell(self, completion: Completion) {
        drop(self.completed.send(Ok(completion)));
    }
}

impl Inner {
    /// Forgets what nobody waits for any more.
    fn forget_the_gone(&mut self) {
        self.waiting
            .retain(|_, waiting| !waiting.completed.is_closed());
    }

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
            waiting.tell(completion.clone());
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
        let told = (&mut self.completed).await;
        told.ok()
            .and_then(Result::ok)
            .unwrap_or(Completion::Unknown)
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

    type Heard = oneshot::Receiver<Result<Completion>>;

    fn waiting(count: usize) -> (Vec<Completed>, Vec<Heard>) {
        (0..count).map(|_| oneshot::channel()).unzip()
    }

    #[test]
    fn several_that_wait_are_named_at_once_and_answered_where_they_wait() {
        let pending = pending();
        let (senders, mut heard) = waiting(3);
        assert_eq!(pending.register_all(2, senders).unwrap(), 1);
        let (more, _heard) = waiting(1);
        let (reason, back) = pending.register_all(2, more).unwrap_err();
        assert_eq!((reason, back.len()), (Reason::TooManyRequests, 1));

        let gone = pending.gone(1);
        let mut gone = std::pin::pin!(gone);
        assert_eq!((&mut gone).now_or_never(), None);
        let boot = pending.boot();
        let first = outcome(ProposalId { boot, sequence: 1 });
        pending.applied(&mut batch(EntryId::new(2, 7), vec![first]));
        let told = heard[0].try_recv().unwrap().unwrap();
        assert!(matches!(told, Completion::Answer { .. }));
        assert_eq!(gone.now_or_never(), Some(()));
        assert_eq!(pending.gone(1).now_or_never(), Some(()));

        drop(heard.remove(1));
        assert_eq!(pending.waiting(1..4), [false, false, true]);
        assert!(pending.withdraw(1).is_none(), "its outcome was told");
        assert!(pending.withdraw(2).is_none(), "who waited has gone");
        let back = pending.withdraw(3).unwrap();
        assert_eq!(pending.lowest(), 4);
        assert_eq!(pending.register_all(2, vec![back]).unwrap(), 4);
        pending.applied(&mut batch(EntryId::new(3, 8), Vec::new()));
        assert_eq!(heard[1].try_recv().unwrap().unwrap(), Completion::Lost);
    }

    #[test]
    fn who_has_gone_takes_no_room_and_holds_nothing_up() {
        let pending = pending();
        let (senders, mut heard) = waiting(3);
        pending.register_all(1, senders).unwrap();
        drop(heard.remove(0));
        assert_eq!(pending.lowest(), 2);
        heard.clear();
        let (senders, _heard) = waiting(3);
        assert_eq!(pending.register_all(1, senders).unwrap(), 4);
        assert_eq!((pending.len(), pending.lowest()), (3, 4));
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
