//! A job as whoever sent it sees it: how far it is, how it ended, and asking for its end.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use quorate_proto::etcdserverpb::{TxnRequest, TxnResponse};
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;

use super::record::{Ended, Envelope, JobRecord, JobState, Layout, State};
use super::retention::Retention;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, LeaseId, Revision};
use crate::store::StoreError;
use crate::store::ops::{self, Compare};
use crate::wait::{self, Backoff};
use crate::watch::{Change, Origin};

/// A job that was sent. A handle: cheap to clone, holds nothing; dropping it ends nothing.
pub struct Job<R> {
    layout: Layout,
    id: String,
    retention: Retention,
    of: PhantomData<fn() -> R>,
}

impl<R> Clone for Job<R> {
    fn clone(&self) -> Self {
        Self {
            layout: self.layout.clone(),
            id: self.id.clone(),
            retention: self.retention.clone(),
            of: PhantomData,
        }
    }
}

/// A job's record as it was read.
pub(super) struct Known {
    pub(super) record: JobRecord,
    /// The revisions at which its key was written last, and first.
    pub(super) at: Revision,
    pub(super) created: Revision,
}

impl Known {
    pub(super) fn of(kv: &KeyValue) -> Result<Self> {
        Ok(Self::at(kv, JobRecord::read(kv)?))
    }

    /// With this record in place of what is there.
    pub(super) fn at(kv: &KeyValue, record: JobRecord) -> Self {
        Self {
            record,
            at: Revision(kv.mod_revision),
            created: Revision(kv.create_revision),
        }
    }

    /// The conditions that it has not ended, and not been begun if it was not: what is told of its progress does
    /// not matter.
    fn goes_on(&self, key: &Key) -> Vec<Compare> {
        match self.record.state {
            State::Queued => vec![Compare::mod_revision(key, self.at)],
            _ => vec![
                Compare::create_revision(key, self.created),
                // The record of an end has one.
                Compare::lease(key, LeaseId(0)),
            ],
        }
    }
}

impl<R> Job<R> {
    pub(super) fn new(layout: Layout, id: String, retention: Retention) -> Self {
        Self {
            layout,
            id,
            retention,
            of: PhantomData,
        }
    }

    /// The id, by which any process finds the job again: see [`Dispatcher::job`](super::Dispatcher::job).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    async fn read(&self) -> Result<(Revision, Known)> {
        let key = self.layout.job(&self.id);
        let found = wait::read(&self.layout.client, ops::get(&key)).await?;
        let revision = Revision(found.header.map_or(0, |header| header.revision));
        match found.kvs.first() {
            Some(kv) => Ok((revision, Known::of(kv)?)),
            None => Err(Error::Removed(key)),
        }
    }

    /// Asks for the end of the job. One that nobody has is cancelled at once, and does not run then; whoever has
    /// it is told, and may end it otherwise. Returns whether it had not ended.
    ///
    /// # Errors
    /// [`Error::Removed`] when it has ended so long ago that it is not kept any more; [`Error::Codec`]; the
    /// store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, it may still be asked for.
    pub async fn cancel(&self) -> Result<bool> {
        let mut pause = Backoff::contended(&self.layout.client);
        let mut perhaps = false;
        loop {
            let (_, known) = self.read().await?;
            if known.record.state.is_end() {
                return Ok(perhaps && matches!(known.record.state, State::Cancelled));
            }
            match self.ask(&known).await? {
                Wrote::Yes => return Ok(true),
                Wrote::Perhaps => perhaps = true,
                Wrote::No => {}
            }
            pause.pause().await;
        }
    }

    /// Ends a job that nobody has, and leaves word for whoever has it.
    async fn ask(&self, known: &Known) -> Result<Wrote> {
        let client = &self.layout.client;
        let job = self.layout.job(&self.id);
        let mut when = known.goes_on(&job);
        if !matches!(known.record.state, State::Queued) {
            let queue = self.layout.queue::<Envelope>(&known.record.target);
            let claim = queue.claim(&known.record.item(&self.id));
            let held = wait::read(client, ops::get(&claim)).await?;
            if !held.kvs.is_empty() {
                when.push(Compare::present(claim));
                let request = TxnRequest {
                    compare: when.into_iter().map(Into::into).collect(),
                    success: vec![ops::put(self.layout.cancel(&self.id), Bytes::new(), None)],
                    failure: Vec::new(),
                };
                return Ok(Wrote::of(wait::repeat(client, request).await?));
            }
            when.push(Compare::absent(claim));
        }
        self.end(known, when, State::Cancelled).await
    }

    /// Ends the job because its time is over, unless it has ended, or was begun in time.
    pub(super) async fn expire(&self, known: &Known) -> Result<()> {
        let when = known.goes_on(&self.layout.job(&self.id));
        self.end(known, when, State::Expired).await?;
        Ok(())
    }

    /// Ends a job, whoever has it.
    async fn end(&self, known: &Known, when: Vec<Compare>, state: State) -> Result<Wrote> {
        let client = &self.layout.client;
        let key = self.layout.job(&self.id);
        let lease = self
            .retention
            .lease(client, |ttl| granted(client, ttl))
            .await?;
        let value = known.record.with(state, &key)?;
        let queue = self.layout.queue::<Envelope>(&known.record.target);
        let gone = queue.taken_out(&known.record.item(&self.id));
        let cancel = ops::delete(KeyRange::one(self.layout.cancel(&self.id)));
        let request = TxnRequest {
            compare: when.into_iter().map(Into::into).collect(),
            success: [ops::put(&key, value, Some(lease)), cancel]
                .into_iter()
                .chain(gone)
                .collect(),
            failure: Vec::new(),
        };
        match wait::repeat(client, request).await {
            Ok(answer) => Ok(Wrote::of(answer)),
            // It took longer than the retention; with another lease then.
            Err(StoreError::LeaseNotFound) => {
                self.retention.forget(lease).await;
                Ok(Wrote::Perhaps)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What became of a write with conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrote {
    Yes,
    No,
    /// A copy whose answer was lost may have been applied, and have made its conditions untrue.
    Perhaps,
}

impl Wrote {
    fn of((answer, repeated): (TxnResponse, bool)) -> Self {
        match (answer.succeeded, repeated) {
            (true, _) => Self::Yes,
            (false, false) => Self::No,
            (false, true) => Self::Perhaps,
        }
    }
}

/// A lease that nobody renews. One that was granted unheard runs out, without effect.
async fn granted(client: &Client, ttl: Duration) -> Result<LeaseId> {
    let mut pause = Backoff::between_attempts(client);
    loop {
        match client.store().lease_grant(client.lease_id(), ttl).await {
            Ok(lease) => return Ok(lease.id),
            Err(error) if error.is_transient() || error == StoreError::LeaseExists => {
                pause.pause().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl<R: DeserializeOwned> Job<R> {
    /// How far it is now.
    ///
    /// # Errors
    /// [`Error::Removed`] when it has ended so long ago that it is not kept any more; [`Error::Codec`] for a
    /// reply that is no `R`; the store's final refusals. Trouble with the store is waited out.
    pub async fn state(&self) -> Result<JobState<R>> {
        let (_, known) = self.read().await?;
        JobState::of(&self.layout.job(&self.id), known.record.state)
    }

    /// Waits until it has ended. While its time is over and nobody has ended it, whoever waits writes that it
    /// has expired.
    ///
    /// # Errors
    /// As [`Job::state`].
    ///
    /// # Cancel safety
    /// Nothing is held.
    pub async fn wait(&self) -> Result<Ended<R>> {
        let client = &self.layout.client;
        let key = self.layout.job(&self.id);
        let mut pause = Backoff::between_attempts(client);
        loop {
            let (revision, known) = self.read().await?;
            let due = known.record.due_ms();
            let left = due.map(|due| due.saturating_sub(client.wall_millis()));
            if left == Some(0) {
                self.expire(&known).await?;
                continue;
            }
            if let JobState::Ended(ended) = JobState::of(&key, known.record.state)? {
                return Ok(ended);
            }
            let range = [KeyRange::one(&key)];
            let news =
                wait::until_event(client, &range, Revision(revision.0 + 1), &mut pause, |_| {
                    true
                });
            match left {
                Some(left) => {
                    let due = client.deadline(Duration::from_millis(left));
                    client.before(due, news).await.unwrap_or(Ok(()))?;
                }
                None => news.await?,
            }
        }
    }

    /// How far it is, at first and after each change; changes that follow one another quickly may be
    /// skipped after a lost connection. Ends after the first error, and after the end of the job.
    pub fn states(&self) -> impl Stream<Item = Result<JobState<R>>> + Send + use<R>
    where
        R: Send + 'static,
    {
        let key = self.layout.job(&self.id);
        let batches = self.layout.client.watch(KeyRange::one(&key)).into_stream();
        let states = batches.flat_map(move |batch| {
            let key = key.clone();
            let changes: Vec<Result<JobState<R>>> = match batch {
                Err(error) => vec![Err(error)],
                Ok(batch) if batch.origin == Origin::Listing && batch.changes.is_empty() => {
                    vec![Err(Error::Removed(key))]
                }
                Ok(batch) => batch
                    .changes
                    .into_iter()
                    .map(|change| match change {
                        Change::Put { kv, .. } => {
                            Known::of(&kv).and_then(|known| JobState::of(&key, known.record.state))
                        }
                        Change::Delete { key, .. } => Err(Error::Removed(key)),
                    })
                    .collect(),
            };
            stream::iter(changes)
        });
        // Ends with the last one, and not only when more would come.
        stream::unfold(Some(states.boxed()), |states| async move {
            let mut states = states?;
            let state = states.next().await?;
            let over = matches!(state, Err(_) | Ok(JobState::Ended(_)));
            Some((state, (!over).then_some(states)))
        })
    }
}

impl<R> fmt::Debug for Job<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
