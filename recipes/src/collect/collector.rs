//! Writes what agents have published to where it is to be.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use super::batch::Batch;
use super::source::{SourceRecord, Sources};
use crate::clock::Instant;
use crate::error::{Error, Result, TxnError};
use crate::lock::FencingToken;
use crate::session::Session;
use crate::topic::{GroupConsumer, Message, ReadError};
use crate::value::Json;

/// When a collector first looks for sources to forget, and how often, at most.
const LOOK_FIRST: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// Sources that a collector knows without asking the store.
const SOURCES_MAX: usize = 1_024;

/// Lines to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chunk {
    /// Where they come from.
    pub source: String,
    /// Which run of its agent gathered them.
    pub run: String,
    /// The number of the first one in that run. With source and run it names the lines: a sink that keeps it
    /// can tell a chunk that comes again.
    pub first: u64,
    /// The lines.
    pub lines: Vec<String>,
    /// How many lines of the run before the first one never came: the agent has dropped and counted them, or they
    /// were removed from the topic before they were read.
    pub missing: u64,
    /// Larger for whoever owns the source's partition later: a sink that refuses smaller ones is safe from
    /// a collector that was stopped and comes back.
    pub token: FencingToken,
}

/// What a collector has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectorStats {
    /// Lines that were written.
    pub written: u64,
    /// Lines that came again and were left out.
    pub duplicates: u64,
    /// Lines that never came, as [`Chunk::missing`] tells.
    pub missing: u64,
    /// Batches that were removed from the topic before they were written; their lines are missing too, once
    /// something comes after them.
    pub removed: u64,
    /// Batches that could not be read.
    pub unreadable: u64,
}

/// Why a collector stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectError<E> {
    /// The sink failed. The chunk comes again, here or at another collector.
    #[error("sink: {0}")]
    Sink(E),
    /// The topic cannot be read any more, or what is done not be noted.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A member of a group of collectors. Dropping it leaves the group.
#[must_use = "a dropped collector writes nothing"]
pub struct Collector {
    consumer: GroupConsumer<Batch>,
    sources: Sources,
    /// When it looks for sources that say nothing any more.
    looks_at: Instant,
    /// How far sources are, as of this ownership of their partition.
    known: BTreeMap<(u32, String), (FencingToken, SourceRecord)>,
    /// What the sink has failed to write.
    pending: Option<Message<Batch>>,
    stats: CollectorStats,
}

impl Collector {
    pub(super) fn new(consumer: GroupConsumer<Batch>, sources: Sources) -> Self {
        let client = consumer.session().client();
        Self {
            looks_at: client.deadline(client.jitter(LOOK_FIRST)),
            consumer,
            sources,
            known: BTreeMap::new(),
            pending: None,
            stats: CollectorStats::default(),
        }
    }

    /// A source that has said nothing for so long is forgotten, once everything of its partition is written: 30 days
    /// if not told, by the wall clocks of collectors. Members may differ in it.
    ///
    /// Should it speak after all, [`Chunk::missing`] counts what was written before. Lines are written again only if
    /// they were published again: by an agent that comes back after so long with a spool, and in it what was on its
    /// way when it ended.
    pub fn forget_after(mut self, silence: Duration) -> Self {
        self.sources.forget_after(silence);
        self
    }

    /// What it has done.
    #[must_use]
    pub fn stats(&self) -> CollectorStats {
        self.stats
    }

    /// The session that it is a member under.
    #[must_use]
    pub fn session(&self) -> &Session {
        self.consumer.session()
    }

    /// Has `sink` write one chunk after the other, those of a source in their order, and notes each as done
    /// when the sink has returned. A chunk comes again when the collector ends in between, or loses its
    /// partition; what agents have published twice does not. On a task of its own the sink must have what it uses
    /// (`async move |chunk: &Chunk| …`).
    ///
    /// # Errors
    /// [`CollectError::Sink`] when the sink failed: calling again gives it the chunk again.
    /// [`CollectError::Failed`] as [`GroupConsumer::next`]; trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future drops the sink's work; the chunk comes again.
    pub async fn run<E>(
        &mut self,
        mut sink: impl AsyncFnMut(&Chunk) -> Result<(), E>,
    ) -> Result<Infallible, CollectError<E>> {
        loop {
            let message = match self.pending.take() {
                Some(message) => message,
                None => match self.next().await {
                    Ok(message) => message,
                    Err(error) => {
                        self.passed_over(error).await?;
                        continue;
                    }
                },
            };
            // Until it is done, whatever becomes of this future.
            let message = &*self.pending.insert(message);
            let partition = message.position.partition();
            let Some(token) = self.consumer.token(partition) else {
                // Somebody else has it.
                self.pending = None;
                continue;
            };
            let key = self.sources.key(partition, &message.value.source);
            let of = (partition, message.value.source.clone());
            let record = match self.known.get(&of) {
                Some((at, record)) if *at == token => record.clone(),
                _ => SourceRecord::look(self.consumer.session(), &key).await?,
            };
            let message = self.pending.take();
            let Some(message) = message else { continue };
            let (chunk, duplicates) = chunk(&message.value, &record, token);
            if let Some(chunk) = &chunk {
                self.pending = Some(message.clone());
                sink(chunk).await.map_err(CollectError::Sink)?;
            }
            let batch = &message.value;
            let come_to = record.next(&batch.run).unwrap_or(0).max(batch.end());
            let client = self.consumer.session().client();
            let record = record.come_to(&batch.run, come_to, client.wall_millis());
            let txn = client.txn();
            let txn = txn.put(&key, Json(&record));
            let committed = self.consumer.commit_with(&message, txn).await;
            self.pending = None;
            match committed {
                Ok(_) => {
                    self.stats.duplicates += duplicates;
                    if let Some(chunk) = chunk {
                        self.stats.written += u64::try_from(chunk.lines.len()).unwrap_or(0);
                        self.stats.missing += chunk.missing;
                    }
                    if self.known.len() >= SOURCES_MAX {
                        self.known.clear();
                    }
                    self.known.insert(of, (token, record));
                }
                Err(TxnError::Fenced { .. }) => {}
                Err(error) => return Err(CollectError::Failed(error.into())),
            }
        }
    }

    /// Waits for the next batch, and looks after sources meanwhile.
    async fn next(&mut self) -> Result<Message<Batch>, ReadError> {
        let client = self.consumer.session().client().clone();
        loop {
            if let Some(next) = client.before(self.looks_at, self.consumer.next()).await {
                return next;
            }
            if let Err(error) = self.sources.forget(&mut self.consumer).await {
                tracing::debug!(%error, "sources are forgotten later");
            }
            self.looks_at = client.deadline(client.jitter(LOOK_EVERY));
        }
    }

    /// Notes what there is no batch for.
    async fn passed_over(&mut self, error: ReadError) -> Result<()> {
        match error {
            ReadError::Lagged(lagged) => {
                tracing::warn!(to = %lagged.to, skipped = ?lagged.skipped, "batches were removed unwritten");
                self.stats.removed += lagged.skipped.unwrap_or(1);
                Ok(())
            }
            ReadError::Unreadable(unreadable) => {
                tracing::error!(at = %unreadable.position, error = %unreadable.error, "an unreadable batch");
                self.stats.unreadable += 1;
                match self.consumer.commit(&*unreadable).await {
                    Err(Error::Fenced { .. }) | Ok(()) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            ReadError::Failed(error) => Err(error),
        }
    }

    /// Leaves the group, and waits until the store has confirmed that.
    ///
    /// # Errors
    /// As [`GroupConsumer::leave`].
    ///
    /// # Cancel safety
    /// When the future is dropped, leaving goes on.
    pub async fn leave(self) -> Result<()> {
        self.consumer.leave().await
    }
}

/// What of a batch is to be written, if anything; and how many of its lines were before.
fn chunk(batch: &Batch, record: &SourceRecord, token: FencingToken) -> (Option<Chunk>, u64) {
    let next = record.next(&batch.run).unwrap_or(0);
    let duplicates = next.saturating_sub(batch.first).min(batch.count());
    let skip = usize::try_from(duplicates).unwrap_or(usize::MAX);
    let lines: Vec<String> = batch.lines.iter().skip(skip).cloned().collect();
    let chunk = (!lines.is_empty()).then(|| Chunk {
        source: batch.source.clone(),
        run: batch.run.clone(),
        first: batch.first + duplicates,
        lines,
        missing: batch.first.saturating_sub(next),
        token,
    });
    (chunk, duplicates)
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector")
            .field("consumer", &self.consumer)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}
