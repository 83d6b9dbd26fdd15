//! Rounds that many callers share: a caller joins only a round that *starts after it came*, so what
//! the round learns is fresh for everyone in it. Used by `read` for read indexes, by `lease` for
//! keep-alives on their way to the leader, and by `propose` for batches of commands.
//!
//! While a round is under way new callers gather for the next one, so the busier it gets the more
//! callers share a round, and an idle member starts one at once. A few rounds may overlap: the
//! later one does not depend on the earlier.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use quorate_proto::Reason;
use tokio::sync::{Notify, oneshot};

use crate::error::{Error, Result};

/// A caller in a round: what it asked and where it waits.
#[derive(Debug)]
pub(super) struct Caller<Q, A> {
    /// What it asked.
    pub(super) question: Q,
    answer: oneshot::Sender<Result<A>>,
}

impl<Q, A> Caller<Q, A> {
    /// Whether the caller still waits.
    pub(super) fn waits(&self) -> bool {
        !self.answer.is_closed()
    }

    /// What it asked, and where it waits.
    pub(super) fn into_parts(self) -> (Q, oneshot::Sender<Result<A>>) {
        (self.question, self.answer)
    }

    /// A caller that asks again, or whose answer comes from elsewhere.
    pub(super) fn from_parts(question: Q, answer: oneshot::Sender<Result<A>>) -> Self {
        Self { question, answer }
    }

    /// Answers the caller; one that has gone is ignored.
    pub(super) fn answer(self, answer: Result<A>) {
        drop(self.answer.send(answer));
    }
}

/// Callers gathering for the next round.
pub(super) struct Rounds<Q, A> {
    gathering: Mutex<Gathering<Q, A>>,
    came: Notify,
    max: usize,
}

struct Gathering<Q, A> {
    callers: VecDeque<Caller<Q, A>>,
    closed: bool,
}

impl<Q, A> fmt::Debug for Rounds<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rounds")
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

impl<Q, A> Rounds<Q, A> {
    /// At most `max` callers may gather; the next is refused.
    pub(super) fn new(max: usize) -> Self {
        let gathering = Mutex::new(Gathering {
            callers: VecDeque::new(),
            closed: false,
        });
        Self {
            gathering,
            came: Notify::new(),
            max,
        }
    }

    /// Asks in the next round and waits for the answer.
    ///
    /// # Cancel safety
    /// A caller that is dropped is not answered.
    pub(super) async fn join(&self, question: Q) -> Result<A> {
        let (answer, waiting) = oneshot::channel();
        {
            let mut gathering = self.lock();
            if gathering.closed {
                return Err(Reason::Stopped.into());
            }
            if gathering.callers.len() >= self.max {
                gathering.callers.retain(Caller::waits);
            }
            if gathering.callers.len() >= self.max {
                return Err(Reason::TooManyRequests.into());
            }
            gathering.callers.push_back(Caller { question, answer });
        }
        self.came.notify_one();
        waiting
            .await
            .unwrap_or_else(|_| Err(Error::from(Reason::Stopped)))
    }

    /// Waits for callers and takes them, oldest first, while they fit: the first one always does.
    /// The round of these callers starts now.
    pub(super) async fn gather(&self, mut fits: impl FnMut(&Q) -> bool) -> Vec<Caller<Q, A>> {
        loop {
            {
                let mut gathering = self.lock();
                let mut round = Vec::new();
                while let Some(caller) = gathering.callers.pop_front() {
                    if !caller.waits() {
                        continue;
                    }
                    if !fits(&caller.question) && !round.is_empty() {
                        gathering.callers.push_front(caller);
                        break;
                    }
                    round.push(caller);
                }
                if !gathering.callers.is_empty() {
                    self.came.notify_one();
                }
                if !round.is_empty() {
                    return round;
                }
            }
            self.came.notified().await;
        }
    }

    /// Lets these callers gather again, ahead of those who came later.
    pub(super) fn put_back(&self, callers: Vec<Caller<Q, A>>) {
        let mut gathering = self.lock();
        if gathering.closed {
            drop(gathering);
            for caller in callers {
                caller.answer(Err(Reason::Stopped.into()));
            }
            return;
        }
        for caller in callers.into_iter().rev() {
            gathering.callers.push_front(caller);
        }
        drop(gathering);
        self.came.notify_one();
    }

    /// Refuses whoever gathers now or comes later: the member stops.
    pub(super) fn close(&self) {
        let callers = {
            let mut gathering = self.lock();
            gathering.closed = true;
            std::mem::take(&mut gathering.callers)
        };
        for caller in callers {
            caller.answer(Err(Reason::Stopped.into()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gathering<Q, A>> {
        self.gathering
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_caller_that_comes_during_a_round_is_in_the_next_one() {
        let rounds = Rounds::<u32, u32>::new(10);
        let mut early = Box::pin(rounds.join(1));
        assert!((&mut early).now_or_never().is_none());
        let first = rounds.gather(|_| true).await;
        let mut late = Box::pin(rounds.join(2));
        assert!((&mut late).now_or_never().is_none());
        assert_eq!(
            first
                .iter()
                .map(|caller| caller.question)
                .collect::<Vec<_>>(),
            [1]
        );
        for caller in first {
            caller.answer(Ok(10));
        }
        assert_eq!(early.await.unwrap(), 10);
        assert!(
            (&mut late).now_or_never().is_none(),
            "the first round does not answer it"
        );
        let second = rounds.gather(|_| false).await;
        assert_eq!(second.len(), 1, "the first one always fits");
        rounds.put_back(second);
        assert_eq!(rounds.gather(|_| true).await.len(), 1);
    }

    #[tokio::test]
    async fn the_number_of_callers_is_bounded_but_those_who_left_do_not_count() {
        let rounds = Rounds::<u32, u32>::new(2);
        let mut waiting: Vec<_> = (0..2).map(|n| Box::pin(rounds.join(n))).collect();
        for join in &mut waiting {
            assert!(join.now_or_never().is_none());
        }
        let refused = rounds.join(3).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::TooManyRequests);
        waiting.clear();
        let mut next = Box::pin(rounds.join(4));
        assert!((&mut next).now_or_never().is_none());
        assert_eq!(rounds.gather(|_| true).await.len(), 1);
        rounds.close();
        assert_eq!(rounds.join(5).await.unwrap_err().reason(), Reason::Stopped);
    }
}
