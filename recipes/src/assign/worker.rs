//! Stands in line for one partition whenever it is in this member's share, and lays it on the desk
//! once it is held.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::partition::{Partition, moved};
use crate::error::{Error, Result};
use crate::keys::KeySpace;
use crate::kit::{Backoff, Contender};
use crate::lock::{ContenderRecord, Hold};
use crate::session::Session;
use crate::value::Json;

/// What is held and has not been taken by the member yet, and what went wrong.
#[derive(Debug, Default)]
pub(super) struct Desk {
    inner: Mutex<Inner>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Each partition at most once.
    ready: VecDeque<Partition>,
    /// The newest trouble with a single partition.
    trouble: Option<Error>,
    /// Why no partition will come any more.
    failed: Option<Error>,
}

impl Desk {
    /// The next partition, or what went wrong.
    pub(super) async fn next(&self) -> Result<Partition> {
        loop {
            if let Some(next) = self.take() {
                return next;
            }
            self.news.notified().await;
        }
    }

    fn take(&self) -> Option<Result<Partition>> {
        let mut inner = self.lock();
        if let Some(error) = &inner.failed {
            return Some(Err(error.clone()));
        }
        let ready = inner.ready.pop_front().map(Ok);
        ready.or_else(|| inner.trouble.take().map(Err))
    }

    fn lay(&self, partition: Partition) {
        self.lock().ready.push_back(partition);
        self.news.notify_one();
    }

    /// Takes a partition away again, if it is still there.
    fn withdraw(&self, index: u32) {
        let mut inner = self.lock();
        let at = inner.ready.iter().position(|p| p.index() == index);
        let withdrawn = at.and_then(|at| inner.ready.remove(at));
        drop(inner);
        drop(withdrawn);
    }

    fn report(&self, error: Error) {
        self.lock().trouble = Some(error);
        self.news.notify_one();
    }

    pub(super) fn fail(&self, error: Error) {
        self.lock().failed = Some(error);
        self.news.notify_one();
    }

    /// Gives back everything that nobody has taken.
    pub(super) fn clear(&self) {
        let ready = std::mem::take(&mut self.lock().ready);
        drop(ready);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task of one partition.
pub(super) struct Worker {
    pub(super) index: u32,
    pub(super) space: KeySpace,
    pub(super) session: Session,
    /// Whether the partition falls to this member.
    pub(super) mine: watch::Receiver<bool>,
    pub(super) desk: Arc<Desk>,
}

impl Worker {
    /// Runs until the session is lost or the shares end.
    pub(super) async fn run(mut self) {
        let mut pause = Backoff::new(
            self.session.client(),
            Duration::from_millis(100),
            Duration::from_secs(5),
        );
        let index = self.index;
        while self.mine.wait_for(|mine| *mine).await.is_ok() {
            let held = tokio::select! {
                biased;
                () = self.moved() => continue,
                held = self.contend() => held,
            };
            match held {
                Ok(hold) => {
                    pause.reset();
                    self.serve(hold).await;
                    continue;
                }
                Err(Error::SessionLost(_)) => return,
                // Somebody put us out of the line: stand in it again.
                Err(Error::Removed(_)) => {}
                Err(error) => {
                    tracing::warn!(index, %error, "no partition");
                    self.desk.report(error);
                }
            }
            tokio::select! {
                biased;
                () = self.moved() => {}
                () = pause.pause() => {}
            }
        }
    }

    fn moved(&self) -> impl Future<Output = ()> + Send + use<> {
        moved(self.mine.clone())
    }

    async fn contend(&self) -> Result<Hold> {
        let record = ContenderRecord::of(&self.session, "");
        let contender = Contender::enter(&self.session, &self.space, Json(record)).await?;
        contender.wait_turn().await
    }

    /// Offers a held partition until it is taken or moves away, then waits until it is given back.
    async fn serve(&self, hold: Hold) {
        let ended = CancellationToken::new();
        let guard = ended.clone().drop_guard();
        let partition = Partition::new(hold, self.index, self.mine.clone(), guard);
        self.desk.lay(partition);
        tokio::select! {
            biased;
            () = ended.cancelled() => return,
            () = self.moved() => self.desk.withdraw(self.index),
        }
        ended.cancelled().await;
    }
}
