//! One watcher: hands out what its buffer holds, and catches up when it is behind. Read by `node`.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::{KeyRange, mvccpb};
use tokio::task::JoinHandle;

use super::buffer::{Buffer, Found, Position, Selected};
use super::hub::{Ahead, Hub};
use super::page::{self, Read};
use crate::clock::{self, Instant};
use crate::storage::kv::KvError;

/// What to watch.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which keys.
    pub range: KeyRange,
    /// The first revision to tell of; 0 means the next one. May lie in the future.
    pub start_revision: i64,
    /// Whether events carry the pair before them, unless it is compacted by then.
    pub prev_kv: bool,
    /// Whether to tell of puts.
    pub puts: bool,
    /// Whether to tell of deletes.
    pub deletes: bool,
    /// How long the watcher may be silent before it says how far it is; `None` means for ever.
    pub progress_every: Option<Duration>,
}

impl Request {
    /// Puts and deletes in `range` from the next revision on, without the pairs before.
    #[must_use]
    pub fn new(range: KeyRange) -> Self {
        Self {
            range,
            start_revision: 0,
            prev_kv: false,
            puts: true,
            deletes: true,
            progress_every: None,
        }
    }
}

/// What a watcher tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// One or more whole revisions, in order.
    Events {
        /// For the response header: the last event's revision, or the store's if the watcher is
        /// catching up.
        revision: i64,
        /// At least one.
        events: Vec<mvccpb::Event>,
    },
    /// What the watcher wants next is compacted. The last item: it comes again if asked again.
    Compacted {
        /// The compact revision.
        compact_revision: i64,
    },
    /// Nothing happened for a while, and everything up to this revision has been told.
    Progress {
        /// The store's revision.
        revision: i64,
    },
}

/// How a watcher begins, beside its buffer.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) prev_kv: bool,
    pub(super) progress_every: Option<Duration>,
    /// The revision asked for, 0 if none was.
    pub(super) start_revision: i64,
    /// The hub's revision.
    pub(super) created_at: i64,
    /// The compact revision, once the watcher has to end with it.
    pub(super) compacted: Option<i64>,
}

/// A watcher. Dropping it ends it.
#[derive(Debug)]
pub struct Watcher {
    hub: Hub,
    number: u64,
    buffer: Arc<Buffer>,
    start: Start,
    /// A page of past events on its way; kept here so that dropping `next` loses nothing.
    reading: Option<JoinHandle<Result<Read, KvError>>>,
    progress_at: Option<Instant>,
}

impl Watcher {
    pub(super) fn new(hub: Hub, number: u64, buffer: Arc<Buffer>, start: Start) -> Self {
        let mut watcher = Self {
            hub,
            number,
            buffer,
            start,
            reading: None,
            progress_at: None,
        };
        watcher.restart_silence();
        watcher
    }

    /// The hub's revision when the watcher began.
    #[must_use]
    pub fn created_at(&self) -> i64 {
        self.start.created_at
    }

    /// The hub's revision, if everything up to it has been taken from this watcher, so that it may
    /// be told as progress; `None` while something waits, it is catching up, or it begins later. As
    /// on etcd, one that asked for the revision that comes next begins later too.
    #[must_use]
    pub fn progress(&self) -> Option<i64> {
        if self.start.compacted.is_some() || self.reading.is_some() {
            return None;
        }
        let synced = self.hub.synced(&self.buffer);
        synced.filter(|revision| *revision >= self.start.start_revision)
    }

    /// Waits for what comes next.
    ///
    /// # Errors
    ///
    /// The store failed to read; the watcher is of no more use.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Item, KvError> {
        loop {
            if let Some(compact_revision) = self.start.compacted {
                return Ok(Item::Compacted { compact_revision });
            }
            let item = match self.buffer.take() {
                Found::Waiting(waiting) => Some(self.live(&waiting)),
                Found::Empty(Position::Behind(next)) => self.catch_up(next).await?,
                Found::Empty(Position::Live(_)) => self.silence().await,
            };
            if let Some(item) = item {
                self.restart_silence();
                return Ok(item);
            }
        }
    }

    fn live(&self, waiting: &[Selected]) -> Item {
        let revision = waiting.last().map_or(0, Selected::revision);
        // The hub's lock is the publisher's: not taken where it changes nothing.
        let compact_revision = if self.start.prev_kv {
            self.hub.compact_revision()
        } else {
            i64::MAX
        };
        let mut events = Vec::with_capacity(waiting.iter().map(Selected::len).sum());
        for selected in waiting {
            selected.tell(self.start.prev_kv, compact_revision, &mut events);
        }
        Item::Events { revision, events }
    }

    /// One step of catching up.
    async fn catch_up(&mut self, next: i64) -> Result<Option<Item>, KvError> {
        if self.reading.is_some() {
            return self.finish_reading().await;
        }
        match self.hub.ahead(next, &self.buffer) {
            Ahead::Live => Ok(None),
            Ahead::Recent {
                revisions,
                compact_revision,
                revision,
            } => {
                let mut events = Vec::new();
                let mut after = next;
                for changes in &revisions {
                    after = changes.revision + 1;
                    if let Some(selected) = self.buffer.filter.select(changes) {
                        selected.tell(self.start.prev_kv, compact_revision, &mut events);
                    }
                }
                self.buffer.set(Position::Behind(after));
                if events.is_empty() {
                    // Others want the thread as well.
                    tokio::task::yield_now().await;
                    return Ok(None);
                }
                Ok(Some(Item::Events { revision, events }))
            }
            Ahead::Stored { last } => {
                let permit = self.hub.reads().acquire_owned().await;
                let permit = permit.expect("the hub never closes its semaphore");
                let (hub, buffer, prev_kv) = (
                    self.hub.clone(),
                    Arc::clone(&self.buffer),
                    self.start.prev_kv,
                );
                self.reading = Some(tokio::task::spawn_blocking(move || {
                    let read = page::read(&*hub.view(), &buffer.filter, prev_kv, next, last);
                    drop(permit);
                    read
                }));
                self.finish_reading().await
            }
        }
    }

    async fn finish_reading(&mut self) -> Result<Option<Item>, KvError> {
        let Some(reading) = &mut self.reading else {
            return Ok(None);
        };
        let read = reading.await;
        self.reading = None;
        let read = read.map_err(|error| KvError::Engine {
            cause: format!("reading past events: {error}"),
        })?;
        match read? {
            Read::Compacted { compact_revision } => {
                self.start.compacted = Some(compact_revision);
                Ok(None)
            }
            Read::Page(page) => {
                self.buffer.set(Position::Behind(page.next));
                if page.events.is_empty() {
                    return Ok(None);
                }
                Ok(Some(Item::Events {
                    revision: self.hub.revision(),
                    events: page.events,
                }))
            }
        }
    }

    /// Waits for events, or for the moment to say how far the watcher is.
    async fn silence(&mut self) -> Option<Item> {
        let Some(progress_at) = self.progress_at else {
            self.buffer.filled().await;
            return None;
        };
        tokio::select! {
            biased;
            () = self.buffer.filled() => None,
            () = tokio::time::sleep_until(progress_at) => {
                self.restart_silence();
                self.progress().map(|revision| Item::Progress { revision })
            }
        }
    }

    fn restart_silence(&mut self) {
        self.progress_at = self
            .start
            .progress_every
            .map(|silence| clock::now() + silence);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.hub.remove(self.number, &self.buffer);
    }
}
