//! Linearizable reads: finds the log index after which a read of this member's own state is
//! linearizable. Used by whatever reads; the rounds are run by `bootstrap` as one task.
//!
//! The leader asks consensus for a read index (one exchange with a quorum); a follower asks the
//! leader. Either way one round serves every read that came before it started. The index reached,
//! the member reads its own state: followers share the load.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::{Reason, peer as pb};
use tokio::sync::Semaphore;

use super::Node;
use super::rounds::Caller;
use crate::clock;
use crate::config::Data;
use crate::error::{Error, Result};
use crate::mvcc;
use crate::raft::Leadership;
use crate::storage::kv::KvError;

/// Rounds under way at once: the second lets a read that just missed one start its own.
const ROUNDS_IN_FLIGHT: usize = 2;
/// Reads of disk under way at once; the next waits. More would only make them wait for each other.
pub(super) const READS_IN_FLIGHT: usize = 16;
/// Reads of the whole store under way at once, beside the others; the next waits.
pub(super) const SCANS_IN_FLIGHT: usize = 2;
/// Reads of the whole store that wait or are under way; the next is refused.
pub(super) const SCANS_MAX: usize = 64;

/// Runs rounds for waiting reads until the member stops.
pub(super) async fn run(node: Node) {
    let window = Arc::new(Semaphore::new(ROUNDS_IN_FLIGHT));
    loop {
        let Ok(permit) = window.clone().acquire_owned().await else {
            return;
        };
        let callers = node.shared.reads.gather(|()| true).await;
        let task = node.clone();
        node.shared.tasks.spawn("read round", async move {
            task.round(callers).await;
            drop(permit);
        });
    }
}

impl Node {
    /// Waits until reading this member's own state shows every write answered before this call.
    ///
    /// # Errors
    /// One of etcd's time-outs when no leader confirms in time, or this member is too far behind.
    pub(super) async fn read_barrier(&self) -> Result<()> {
        let since = clock::now();
        let wait = async {
            let index = self.shared.reads.join(()).await?;
            self.shared.consensus.wait_applied(index).await
        };
        match tokio::time::timeout(self.shared.config.request_timeout(), wait).await {
            Ok(done) => done,
            Err(_) => Err(self.timed_out(since).into()),
        }
    }

    /// One round: an index for all callers.
    async fn round(&self, callers: Vec<Caller<(), u64>>) {
        let since = clock::now();
        let timeout = self.shared.config.request_timeout();
        let index = tokio::select! {
            index = tokio::time::timeout(timeout, self.read_index()) => match index {
                Ok(index) => index,
                Err(_) => Err(self.timed_out(since).into()),
            },
            cause = self.failed() => Err(cause),
        };
        for caller in callers {
            caller.answer(index.clone());
        }
    }

    /// Asks whoever leads until one confirms; the caller bounds the wait.
    async fn read_index(&self) -> Result<u64> {
        let mut leadership = self.shared.consensus.leadership();
        loop {
            let known = match leadership.wait_for(|known| known.leader.is_some()).await {
                Ok(known) => *known,
                Err(_) => return Err(Reason::Stopped.into()),
            };
            let index = if known.leader == Some(self.member_id()) {
                self.shared.consensus.read_index().await
            } else {
                self.read_index_of(known).await
            };
            match index {
                Ok(index) => return Ok(index),
                Err(reason @ (Reason::Stopped | Reason::StorageFailed)) => {
                    return Err(reason.into());
                }
                Err(reason) => {
                    tracing::debug!(leader = known.leader, %reason, "no read index, trying again")
                }
            }
            self.pause_for_change(known).await;
        }
    }

    async fn read_index_of(&self, known: Leadership) -> Result<u64, Reason> {
        let request = pb::request::Kind::ReadIndex(pb::ReadIndexRequest {});
        // Repeating is harmless, so an answer that got lost is not waited for long.
        let timeout = self
            .shared
            .config
            .election_timeout
            .max(Duration::from_millis(500));
        match self.ask_leader(known, request, timeout).await {
            Ok(pb::response::Kind::ReadIndex(pb::ReadIndexResponse {
                outcome: Some(outcome),
            })) => match outcome {
                pb::read_index_response::Outcome::Index(index) => Ok(index),
                pb::read_index_response::Outcome::Refused(_) => Err(Reason::NotLeader),
            },
            Ok(_) | Err(_) => Err(Reason::NoLeader),
        }
    }

    /// Runs a read of the store where it may wait for the disk. A `point` read of a store in
    /// memory is done on the spot: handing it over would cost more than the read. Refused while this
    /// member's data is known to differ from that of the others.
    pub(super) async fn read<T: Send + 'static, E: Into<Error> + Send + 'static>(
        &self,
        point: bool,
        read: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T> {
        self.check_sound()?;
        if point && self.shared.config.data == Data::Memory {
            return read().map_err(Into::into);
        }
        admitted(&self.shared.read_places, &self.shared.disk_reads, read).await
    }

    /// Runs a read of the whole store, which takes the longer the larger that is. Does not stand in
    /// the way of other reads, and goes on when the caller does not wait.
    pub(super) async fn scan<T: Send + 'static, E: Into<Error> + Send + 'static>(
        &self,
        scan: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T> {
        admitted(&self.shared.scan_places, &self.shared.scans, scan).await
    }
}

/// Runs a read once it has one of few permits. Until its end it holds one of `places`, and is refused
/// when none is left: they bound how many wait.
async fn admitted<T: Send + 'static, E: Into<Error> + Send + 'static>(
    places: &Arc<Semaphore>,
    permits: &Arc<Semaphore>,
    read: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T> {
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        return Err(Reason::TooManyRequests.into());
    };
    let Ok(permit) = Arc::clone(permits).acquire_owned().await else {
        return Err(Reason::Stopped.into());
    };
    let result = blocking(move || {
        let result = read();
        drop((permit, place));
        result
    });
    result.await
}

/// Runs work that may wait for the disk, away from the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static, E: Into<Error> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(Error::from(Reason::Internal).caused_by(error)),
    }
}

impl From<mvcc::Error> for Error {
    fn from(error: mvcc::Error) -> Self {
        match error {
            mvcc::Error::Refused(reason) => reason.into(),
            mvcc::Error::Storage(error) => error.into(),
        }
    }
}

impl From<KvError> for Error {
    fn from(error: KvError) -> Self {
        Self::with_detail(Reason::StorageFailed, error.to_string()).caused_by(error)
    }
}
