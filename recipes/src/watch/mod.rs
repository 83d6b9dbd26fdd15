//! Following a range of keys for as long as one likes: [`Watcher`] lists, then watches from there
//! on, resumes after lost connections, and lists again after a compaction, reporting the difference.
//! The end of a stream is never taken for an event. [`Mirror`] is the range as it stands.

mod mirror;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use quorate_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};

pub use mirror::{Mirror, View};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{EPOCH_KEY, Key, KeyRange, Revision};
use crate::store::{StoreError, WatchStream, ops};
use crate::wait::{Backoff, refusal};

/// One change of one key.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// The key was written.
    Put {
        /// The key as it is now.
        kv: KeyValue,
        /// As the watcher knew it before; `None` for a new key.
        previous: Option<KeyValue>,
    },
    /// The key is gone.
    Delete {
        /// The key.
        key: Key,
        /// As the watcher knew it before.
        previous: Option<KeyValue>,
    },
}

/// Where a [`Batch`] comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The first listing: all keys there are, as puts; possibly none.
    Listing,
    /// Live events: exactly the changes of one transaction.
    Live,
    /// A later listing, because events were missed: the net difference of any number of
    /// transactions; possibly none.
    Resync,
}

/// Changes that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The revision at which all of them hold.
    pub revision: Revision,
    /// Whether it is a listing or live.
    pub origin: Origin,
    /// The changes, each key at most once in a listing.
    pub changes: Vec<Change>,
}

/// Follows a range of keys, through anything that can be waited out.
///
/// It keeps the range's keys and values in memory, to tell what changed when events were missed.
pub struct Watcher {
    client: Client,
    range: KeyRange,
    known: BTreeMap<Bytes, KeyValue>,
    /// The first revision that has not been seen; 0 before the first listing.
    next: Revision,
    /// Of the store that was listed; 0 before.
    cluster_id: u64,
    stale: bool,
    stream: Option<WatchStream>,
    /// Said by a stream that has been opened, until it is known that the store is the same.
    unchecked: Option<ResponseHeader>,
    ready: VecDeque<Batch>,
    pause: Backoff,
    pause_due: bool,
    failed: Option<Error>,
    link: tokio::sync::watch::Sender<bool>,
}

impl Watcher {
    pub(crate) fn new(client: Client, range: KeyRange) -> Self {
        let pause = Backoff::new(&client, Duration::from_millis(50), Duration::from_secs(2));
        Self {
            client,
            range,
            known: BTreeMap::new(),
            next: Revision(0),
            cluster_id: 0,
            stale: true,
            stream: None,
            unchecked: None,
            ready: VecDeque::new(),
            pause,
            pause_due: false,
            failed: None,
            link: tokio::sync::watch::Sender::new(false),
        }
    }

    /// The range's keys as of the last batch returned, and of those that are ready.
    #[must_use]
    pub fn known(&self) -> &BTreeMap<Bytes, KeyValue> {
        &self.known
    }

    /// Whether a watch stream is open: false while the store is out of reach, when what is known
    /// may be old.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Follows [`Watcher::is_connected`]; every failed attempt counts as news.
    #[must_use]
    pub fn link(&self) -> tokio::sync::watch::Receiver<bool> {
        self.link.subscribe()
    }

    /// Whether a batch is ready, so that [`Watcher::next`] returns at once.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Waits for the next batch.
    ///
    /// # Errors
    /// Only the store's final refusals (not permitted, invalid range), again at every later call.
    /// Everything else is waited out.
    ///
    /// # Cancel safety
    /// No batch is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Batch> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
            if self.pause_due {
                self.pause.pause().await;
                self.pause_due = false;
            }
            if let Err(error) = self.step().await {
                self.stream = None;
                self.unchecked = None;
                self.link.send_replace(false);
                self.pause_due = true;
                match error {
                    Error::Store(StoreError::Compacted { .. }) => self.stale = true,
                    Error::Store(error) if error.is_transient() => {
                        tracing::debug!(range = ?self.range, %error, "watch interrupted");
                    }
                    error => self.failed = Some(error),
                }
            }
        }
    }

    /// The batches as a stream, which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Batch>> + Send {
        futures::stream::unfold(Some(self), |watcher| async move {
            let mut watcher = watcher?;
            match watcher.next().await {
                Ok(batch) => Some((Ok(batch), Some(watcher))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn step(&mut self) -> Result<()> {
        if self.stale {
            return self.list().await;
        }
        if let Some(header) = self.unchecked {
            self.check_store(header).await?;
            self.unchecked = None;
        }
        let Some(stream) = &mut self.stream else {
            let request = self.request();
            self.stream = Some(self.client.store().watch(vec![request]).await?);
            self.link.send_replace(true);
            return Ok(());
        };
        match stream.next().await {
            Some(answer) => self.take(answer?).await,
            None => Err(interrupted("the watch stream ended")),
        }
    }

    fn request(&self) -> WatchCreateRequest {
        WatchCreateRequest {
            key: self.range.start.clone(),
            range_end: self.range.end.clone(),
            start_revision: self.next.0,
            // An idle range's place moves on too, so that it is not found compacted later.
            progress_notify: true,
            ..Default::default()
        }
    }

    async fn list(&mut self) -> Result<()> {
        let listing = self.client.listing(self.range.clone(), Revision(0)).await?;
        let (header, kvs) = listing;
        let revision = Revision(header.revision);
        let origin = match self.next {
            Revision(0) => Origin::Listing,
            _ => Origin::Resync,
        };
        // Also without a change: a key that came and went meanwhile leaves no other trace.
        let changes = self.replace(kvs);
        self.ready.push_back(Batch {
            revision,
            origin,
            changes,
        });
        self.next = Revision(revision.0 + 1);
        self.cluster_id = header.cluster_id;
        self.stale = false;
        Ok(())
    }

    /// Puts a listing in the place of what is known, and tells the difference.
    fn replace(&mut self, kvs: Vec<KeyValue>) -> Vec<Change> {
        let fresh = kvs.into_iter().map(|kv| (kv.key.clone(), kv));
        let mut before = std::mem::replace(&mut self.known, fresh.collect());
        let mut changes = Vec::new();
        for kv in self.known.values() {
            let previous = before.remove(&kv.key);
            if previous.as_ref() != Some(kv) {
                changes.push(Change::Put {
                    kv: kv.clone(),
                    previous,
                });
            }
        }
        let gone = before.into_iter().map(|(key, kv)| Change::Delete {
            key: key.into(),
            previous: Some(kv),
        });
        changes.extend(gone);
        changes
    }

    async fn take(&mut self, answer: WatchResponse) -> Result<()> {
        if answer.canceled {
            if answer.compact_revision > 0 || answer.cancel_reason.contains("compacted") {
                return Err(StoreError::Compacted {
                    at: Revision(answer.compact_revision),
                }
                .into());
            }
            let error = refusal(&answer.cancel_reason).map(Error::from);
            return Err(error.unwrap_or_else(|| interrupted(&answer.cancel_reason)));
        }
        let header = answer.header.unwrap_or_default();
        if answer.created {
            self.unchecked = Some(header);
            return Ok(());
        }
        self.pause.reset();
        if answer.events.is_empty() {
            // Progress: every event up to the header's revision has been sent before.
            self.next = self.next.max(Revision(header.revision + 1));
        }
        self.apply(answer.events);
        Ok(())
    }

    /// Notices a store that is another one, or was put back to an older state: it would stay silent
    /// until its revision has caught up with ours.
    async fn check_store(&mut self, header: ResponseHeader) -> Result<()> {
        // etcd's gRPC proxy leaves it out (`watch_broadcast.go`).
        let is_known = self.cluster_id != 0 && header.cluster_id != 0;
        let mut replaced = is_known && self.cluster_id != header.cluster_id;
        if !replaced && header.revision + 1 < self.next.0 {
            // A member that lags says the same; the linearizable answer decides.
            let answer = self.client.store().range(ops::get(EPOCH_KEY)).await?;
            let revision = answer.header.map_or(0, |header| header.revision);
            replaced = revision + 1 < self.next.0;
        }
        if replaced {
            tracing::warn!(range = ?self.range, "the store was replaced; listing again");
            self.stale = true;
            return Err(interrupted("the store was replaced"));
        }
        Ok(())
    }

    fn apply(&mut self, events: Vec<Event>) {
        let mut batch: Option<Batch> = None;
        for event in events {
            let kind = event.r#type();
            let Some(kv) = event.kv else { continue };
            let revision = Revision(kv.mod_revision);
            if revision < self.next {
                continue;
            }
            if batch
                .as_ref()
                .is_some_and(|batch| batch.revision != revision)
            {
                self.ready.extend(batch.take());
            }
            let batch = batch.get_or_insert_with(|| Batch {
                revision,
                origin: Origin::Live,
                changes: Vec::new(),
            });
            batch.changes.push(match kind {
                EventType::Put => Change::Put {
                    previous: self.known.insert(kv.key.clone(), kv.clone()),
                    kv,
                },
                EventType::Delete => Change::Delete {
                    previous: self.known.remove(&kv.key),
                    key: kv.key.into(),
                },
            });
        }
        if let Some(last) = &batch {
            self.next = Revision(last.revision.0 + 1);
        }
        self.ready.extend(batch);
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("range", &self.range)
            .field("next", &self.next)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

fn interrupted(why: &str) -> Error {
    StoreError::NotApplied(crate::store::Cause::new(why)).into()
}
