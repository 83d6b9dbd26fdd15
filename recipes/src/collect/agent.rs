//! Gathers the lines of one source, and publishes them in batches, in their order.

use std::collections::VecDeque;
use std::fmt;
use std::future::IntoFuture;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, watch};

use super::batch::Batch;
use super::publishing::{Sent, publish};
use super::spool::{self, Spool};
use crate::client::Client;
use crate::clock::{self, Instant};
use crate::error::{Error, Result};
use crate::session::Session;
use crate::tasks::Tasks;
use crate::topic::Topic;

/// Bytes of lines in a batch, unless told otherwise.
const BATCH_BYTES: usize = 64 << 10;

/// How long a batch waits for more lines, unless told otherwise.
const BATCH_TIME: Duration = Duration::from_millis(200);

/// Batches in memory, unless told otherwise.
const WINDOW: usize = 64;

/// Batches that are published in one go.
const AT_ONCE: usize = 8;

/// The part of a request that the lines of a batch may be: written as JSON, a byte takes up to six.
const BYTES_PART: usize = 8;

/// What a line takes beside its text: two quotes and a comma.
const LINE_BYTES: usize = 3;

/// How long a spool is let alone that cannot be read.
const SPOOL_PAUSE: Duration = Duration::from_secs(1);

/// What is dropped when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// What comes.
    #[default]
    DropNewest,
    /// What has waited longest.
    DropOldest,
}

/// How starting or closing an agent fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The folder of the spool cannot be used.
    #[error("spool: {0}")]
    Spool(#[from] io::Error),
    /// The task of the agent is gone: the runtime is shutting down.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// What an agent has done, in lines since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentStats {
    /// Lines that were taken.
    pub accepted: u64,
    /// Lines that are published, those of former runs from the spool included.
    pub published: u64,
    /// Lines that were dropped: without room, too long, impossible to publish, or damaged or missing on disk (such
    /// a batch counts as one).
    pub dropped: u64,
    /// Bytes in the spool now.
    pub spooled_bytes: u64,
}

/// Starts an [`Agent`] when awaited.
#[derive(Debug)]
#[must_use = "awaiting the builder starts the agent"]
pub struct AgentBuilder {
    client: Client,
    topic: Topic<Batch>,
    source: String,
    batch_bytes: usize,
    batch_time: Duration,
    window: usize,
    spool: Option<(PathBuf, u64)>,
    overflow: Overflow,
}

impl AgentBuilder {
    pub(super) fn new(client: &Client, topic: Topic<Batch>, source: String) -> Self {
        Self {
            client: client.clone(),
            topic,
            source,
            batch_bytes: BATCH_BYTES,
            batch_time: BATCH_TIME,
            window: WINDOW,
            spool: None,
            overflow: Overflow::default(),
        }
    }

    /// A batch is closed at so many bytes of lines, three more for each line: 64 KiB if not told, at most an
    /// eighth of what the store takes in one request. A line that is longer is dropped.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes.max(1);
        self
    }

    /// A batch is closed so long after its first line: 200 ms if not told.
    pub fn batch_time(mut self, time: Duration) -> Self {
        self.batch_time = time;
        self
    }

    /// Batches that wait in memory, 64 if not told, at least 1. More go to the spool; without one, or when
    /// that is full, some are dropped.
    pub fn window(mut self, batches: usize) -> Self {
        self.window = batches.max(1);
        self
    }

    /// Keeps what the window has no room for in this folder, up to so many bytes, and at the end what is not
    /// published; the next agent that is given the folder goes on with it. One agent a folder.
    pub fn spool(mut self, folder: impl Into<PathBuf>, bytes: u64) -> Self {
        self.spool = Some((folder.into(), bytes));
        self
    }

    /// What is dropped when there is no room; what comes, if not told.
    pub fn overflow(mut self, overflow: Overflow) -> Self {
        self.overflow = overflow;
        self
    }

    async fn start(self) -> Result<Agent, AgentError> {
        let most = self.client.store().capabilities().max_request_bytes / BYTES_PART;
        let spool = match self.spool {
            Some((folder, bytes)) => Some(blocking(move || Spool::open(&folder, bytes)).await?),
            None => None,
        };
        let has_spool = spool.is_some();
        let mut state = State::default();
        state.stats.spooled_bytes = spool.as_ref().map_or(0, Spool::bytes);
        let shared = Arc::new(Shared {
            limits: Limits {
                batch_bytes: self.batch_bytes.min(most),
                // With a spool, so many more while the disk is slow.
                queue: self.window * if has_spool { 2 } else { 1 },
                overflow: self.overflow,
            },
            source: self.source.clone(),
            run: self.client.nonce(),
            client: self.client.clone(),
            state: Mutex::new(state),
            wake: Notify::new(),
            settled: watch::Sender::new(0),
        });
        let tasks = Tasks::current();
        let worker = Worker {
            shared: Arc::clone(&shared),
            topic: self.topic,
            batch_time: self.batch_time,
            window: self.window,
            spool,
            spool_rests_until: None,
            session: None,
            sending: None,
        };
        tasks.spawn("log agent", worker.run());
        Ok(Agent { shared, tasks })
    }
}

impl IntoFuture for AgentBuilder {
    type Output = Result<Agent, AgentError>;
    type IntoFuture = BoxFuture<'static, Result<Agent, AgentError>>;

    /// # Errors
    /// [`AgentError::Spool`].
    ///
    /// # Cancel safety
    /// Nothing is left behind when the future is dropped.
    fn into_future(self) -> Self::IntoFuture {
        self.start().boxed()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Gathers the lines of a source and publishes them. Taking a line never waits.
///
/// Dropping it stops it at once: lines that are in memory are lost, other than with [`Agent::close`].
#[derive(Debug)]
#[must_use = "a dropped agent publishes nothing"]
pub struct Agent {
    shared: Arc<Shared>,
    tasks: Tasks,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Agent {
    /// Takes a line. Returns whether it was taken; false: it was dropped and counted, because there is no room,
    /// it is too long, or the agent is closed.
    pub fn log(&self, line: impl Into<String>) -> bool {
        let taken = self.shared.take(line.into());
        self.shared.wake.notify_one();
        taken
    }

    /// What it has done.
    #[must_use]
    pub fn stats(&self) -> AgentStats {
        self.shared.state().stats
    }

    /// Waits until all lines taken before are published or dropped.
    ///
    /// # Errors
    /// [`Error::Closed`] when the runtime is shutting down.
    ///
    /// # Cancel safety
    /// Publishing goes on when the future is dropped.
    pub async fn flush(&self) -> Result<()> {
        let until = {
            let mut state = self.shared.state();
            state.flush = true;
            state.next
        };
        self.shared.wake.notify_one();
        let mut settled = self.shared.settled.subscribe();
        let done = settled.wait_for(|settled| *settled >= until).await;
        done.map(drop).map_err(|_| Error::Closed)
    }

    /// Takes no more lines, and ends: with a spool, once everything that is not published is there; without
    /// one, once everything is published. What a full or failing disk does not take is dropped and counted. Tells
    /// what it has done.
    ///
    /// # Errors
    /// [`Error::Closed`] when the runtime is shutting down.
    ///
    /// # Cancel safety
    /// Dropping the future stops the agent as dropping it does.
    pub async fn close(self) -> Result<AgentStats> {
        self.shared.state().closed = true;
        self.shared.wake.notify_one();
        let mut settled = self.shared.settled.subscribe();
        let done = settled.wait_for(|settled| *settled == u64::MAX).await;
        done.map(drop).map_err(|_| Error::Closed)?;
        Ok(self.stats())
    }
}

/// What taking a line and publishing share.
struct Shared {
    limits: Limits,
    source: String,
    run: String,
    client: Client,
    state: Mutex<State>,
    wake: Notify,
    /// All lines before this number are published, dropped, or (at the end) kept; the largest number: it has
    /// ended.
    settled: watch::Sender<u64>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("source", &self.source)
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    batch_bytes: usize,
    queue: usize,
    overflow: Overflow,
}

#[derive(Debug, Default)]
struct State {
    /// The batch that is gathered.
    open: Vec<String>,
    open_bytes: usize,
    /// Since when.
    since: Option<Instant>,
    /// The number of the next line.
    next: u64,
    /// Batches that wait, oldest first.
    sealed: VecDeque<Batch>,
    flush: bool,
    closed: bool,
    stats: AgentStats,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, line: String) -> bool {
        let mut state = self.state();
        let bytes = line.len() + LINE_BYTES;
        let too_long = bytes > self.limits.batch_bytes;
        if too_long || state.closed {
            state.stats.dropped += 1;
            return false;
        }
        if state.open_bytes + bytes > self.limits.batch_bytes {
            self.seal(&mut state);
        }
        let full = state.open.is_empty() && state.sealed.len() >= self.limits.queue;
        if full && self.limits.overflow == Overflow::DropNewest {
            state.stats.dropped += 1;
            return false;
        }
        if state.open.is_empty() {
            state.since = Some(self.client.now());
        }
        state.open_bytes += bytes;
        state.open.push(line);
        state.next += 1;
        state.stats.accepted += 1;
        true
    }

    /// Closes the batch that is gathered.
    fn seal(&self, state: &mut State) {
        if state.open.is_empty() {
            return;
        }
        let lines = std::mem::take(&mut state.open);
        state.open_bytes = 0;
        state.since = None;
        let count = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        state.sealed.push_back(Batch {
            source: self.source.clone(),
            run: self.run.clone(),
            first: state.next - count,
            lines,
        });
        // With the other rule no line is taken that there is no room for.
        while state.sealed.len() > self.limits.queue && self.limits.overflow == Overflow::DropOldest
        {
            let oldest = state.sealed.pop_front();
            state.stats.dropped += oldest.map_or(0, |batch| batch.count());
        }
    }
}

/// What is being published.
struct Sending {
    batches: Vec<Batch>,
    from_spool: bool,
    work: BoxFuture<'static, Sent>,
}

struct Worker {
    shared: Arc<Shared>,
    topic: Topic<Batch>,
    batch_time: Duration,
    window: usize,
    spool: Option<Spool>,
    /// Until when the spool is let alone.
    spool_rests_until: Option<Instant>,
    session: Option<Session>,
    sending: Option<Sending>,
}

impl Worker {
    async fn run(mut self) {
        loop {
            let closed = self.seal_due();
            if let Err(error) = self.spill(closed).await {
                tracing::error!(%error, "the spool of a log agent fails");
            }
            self.send().await;
            self.tell();
            let is_done = match &self.spool {
                // Everything is there.
                Some(_) => closed,
                None => closed && self.sending.is_none(),
            };
            if is_done {
                break;
            }
            self.wait().await;
        }
        let shared = Arc::clone(&self.shared);
        // The folder is free by the time that is told.
        drop(self);
        shared.settled.send_replace(u64::MAX);
    }

    /// Closes the batch that is gathered if it is time. Returns whether the agent is closed.
    fn seal_due(&self) -> bool {
        let mut state = self.shared.state();
        let now = self.shared.client.now();
        let due = state
            .since
            .is_some_and(|since| clock::after(since, self.batch_time) <= now);
        if due || state.closed || std::mem::take(&mut state.flush) {
            self.shared.seal(&mut state);
        }
        state.closed
    }

    /// Moves what the window has no room for to the disk; at the end all.
    async fn spill(&mut self, closed: bool) -> io::Result<()> {
        let Some(mut spool) = self.spool.take() else {
            return Ok(());
        };
        let mut back = Vec::new();
        if closed && let Some(sending) = self.sending.take() {
            // It may be published all the same, and comes twice then.
            back = match sending.from_spool {
                true => Vec::new(),
                false => sending.batches,
            };
        }
        let keep = if closed { 0 } else { self.window };
        let over: Vec<Batch> = {
            let mut state = self.shared.state();
            let over = state.sealed.len().saturating_sub(keep);
            state.sealed.drain(..over).collect()
        };
        if over.is_empty() && back.is_empty() {
            self.spool = Some(spool);
            return Ok(());
        }
        let is_sending_first = self.sending.as_ref().is_some_and(|s| s.from_spool);
        let droppable = match self.shared.limits.overflow {
            Overflow::DropNewest => None,
            Overflow::DropOldest => Some(usize::from(is_sending_first)),
        };
        let (spool, spilled) = tokio::task::spawn_blocking(move || {
            let spilled = spool.spill(back, over, droppable);
            (spool, spilled)
        })
        .await
        .map_err(io::Error::other)?;
        let mut state = self.shared.state();
        state.stats.dropped += spilled.dropped;
        state.stats.spooled_bytes = spool.bytes();
        if closed {
            let left = spilled.left.iter().map(Batch::count);
            state.stats.dropped += left.sum::<u64>();
        } else {
            // They wait where they were until the disk takes them.
            for batch in spilled.left.into_iter().rev() {
                state.sealed.push_front(batch);
            }
        }
        drop(state);
        self.spool = Some(spool);
        spilled.outcome
    }

    /// Begins to publish what has waited longest, if nothing is being published.
    async fn send(&mut self) {
        let now = self.shared.client.now();
        if self.spool_rests_until.is_some_and(|until| now < until) {
            return;
        }
        self.spool_rests_until = None;
        while self.sending.is_none() {
            let (batches, from_spool) = match self.first_of_spool().await {
                Ok(Some(batch)) => (vec![batch], true),
                Ok(None) => {
                    let mut state = self.shared.state();
                    let count = state.sealed.len().min(AT_ONCE);
                    (state.sealed.drain(..count).collect(), false)
                }
                Err(error) => {
                    tracing::error!(%error, "a batch in the spool of a log agent cannot be read");
                    if !spool::is_lost(&error) {
                        self.spool_rests_until = Some(clock::after(now, SPOOL_PAUSE));
                        return;
                    }
                    let mut state = self.shared.state();
                    state.stats.dropped += 1;
                    state.stats.spooled_bytes = self.spool.as_ref().map_or(0, Spool::bytes);
                    continue;
                }
            };
            if batches.is_empty() {
                return;
            }
            let work = publish(self.topic.clone(), self.session.take(), batches.clone());
            self.sending = Some(Sending {
                batches,
                from_spool,
                work: work.boxed(),
            });
        }
    }

    async fn first_of_spool(&mut self) -> io::Result<Option<Batch>> {
        match self.spool.take() {
            Some(spool) if spool.is_empty() => {
                self.spool = Some(spool);
                Ok(None)
            }
            Some(mut spool) => {
                let (spool, first) = tokio::task::spawn_blocking(move || {
                    let first = spool.read(0);
                    (spool, first)
                })
                .await
                .map_err(io::Error::other)?;
                self.spool = Some(spool);
                first
            }
            None => Ok(None),
        }
    }

    /// Waits for something to do.
    async fn wait(&mut self) {
        let client = self.shared.client.clone();
        let since = self.shared.state().since;
        let due = since.map(|since| clock::after(since, self.batch_time));
        let due = due.into_iter().chain(self.spool_rests_until).min();
        let sending = &mut self.sending;
        let sent = async {
            match sending {
                Some(sending) => (&mut sending.work).await,
                None => std::future::pending().await,
            }
        };
        let is_due = async {
            match due {
                Some(due) => client.clock().sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let sent = tokio::select! {
            biased;
            sent = sent => Some(sent),
            () = self.shared.wake.notified() => None,
            () = is_due => None,
        };
        if let Some(sent) = sent {
            self.session = sent.session;
            self.sent(sent.refused).await;
        }
    }

    async fn sent(&mut self, refused: u64) {
        let Some(sending) = self.sending.take() else {
            return;
        };
        let lines: u64 = sending.batches.iter().map(Batch::count).sum();
        if sending.from_spool
            && let Some(mut spool) = self.spool.take()
        {
            let popped = tokio::task::spawn_blocking(move || {
                let popped = spool.remove(0);
                (spool, popped)
            });
            match popped.await {
                Ok((spool, popped)) => {
                    self.shared.state().stats.spooled_bytes = spool.bytes();
                    self.spool = Some(spool);
                    if let Err(error) = popped {
                        tracing::error!(%error, "the spool of a log agent fails");
                    }
                }
                Err(error) => tracing::error!(%error, "the spool of a log agent is gone"),
            }
        }
        let mut state = self.shared.state();
        state.stats.published += lines - refused;
        state.stats.dropped += refused;
    }

    /// Tells how far all lines are settled.
    fn tell(&self) {
        let state = self.shared.state();
        let sealed = state.sealed.front().map(|batch| batch.first);
        let open = state.next - u64::try_from(state.open.len()).unwrap_or(0);
        let sending = self.sending.as_ref().and_then(|s| s.batches.first());
        let sending = sending.map(|batch| match batch.run == self.shared.run {
            true => batch.first,
            false => 0,
        });
        let spooled = self.spool.as_ref().is_some_and(|spool| !spool.is_empty());
        let settled = match sending {
            Some(first) => first,
            // What is there is older than all else, and will be sent next.
            None if spooled => *self.shared.settled.borrow(),
            None => sealed.unwrap_or(open),
        };
        drop(state);
        let before = self.shared.settled.send_replace(settled);
        if before > settled {
            self.shared.settled.send_replace(before);
        }
    }
}
