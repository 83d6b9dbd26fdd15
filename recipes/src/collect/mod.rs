//! Log collection: agents gather lines into batches and publish them to a topic, collectors write them to where
//! they are to be. What cannot be published waits in memory, then on disk, and is dropped and counted when that
//! is full.
//!
//! `batch` is what is published, `agent` gathers, `publishing` publishes, `spool` keeps on disk, `collector` writes, and
//! `source` is how far it is with each source.

mod agent;
mod batch;
mod collector;
mod packed;
mod publishing;
mod source;
mod spool;
#[cfg(test)]
mod tests;

pub use agent::{Agent, AgentBuilder, AgentError, AgentStats, Overflow};
pub use batch::Batch;
pub use collector::{Chunk, CollectError, Collector, CollectorStats};

use crate::client::Client;
use crate::error::Result;
use crate::keys::KeySpace;
use crate::session::Session;
use crate::topic::{Retention, Topic};
use source::Sources;

/// Lines of logs on their way from agents to collectors, over a topic. A handle: cheap to clone, holds nothing.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let logs = client.log_collection("app").partitions(4);
/// let agent = logs.agent("host-7").spool("/var/spool/app", 64 << 20).await?;
/// agent.log("started"); // at once, whatever the store does
///
/// let session = client.session().await?;
/// let mut archive = logs.collector(&session, "archive").await?;
/// archive
///     .run(async |chunk| {
///         println!("{} {:?}", chunk.source, chunk.lines);
///         Ok::<(), std::io::Error>(())
///     })
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Collection {
    client: Client,
    topic: Topic<Batch>,
    space: KeySpace,
}

impl Client {
    /// The log collection of this name. Its batches are messages of the [topic](Client::topic) of that name.
    #[must_use]
    pub fn log_collection(&self, name: impl Into<String>) -> Collection {
        let name = name.into();
        Collection {
            client: self.clone(),
            space: KeySpace::of("collect", &name),
            topic: self.topic(name),
        }
    }
}

impl Collection {
    /// As [`Topic::partitions`]: all lines of a source go to one.
    #[must_use]
    pub fn partitions(mut self, count: u32) -> Self {
        self.topic = self.topic.partitions(count);
        self
    }

    /// As [`Topic::retain`]. Say [`Retention::until_consumed`], or batches may go before they are written.
    #[must_use]
    pub fn retain(mut self, retention: Retention) -> Self {
        self.topic = self.topic.retain(retention);
        self
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &Topic<Batch> {
        &self.topic
    }

    /// Starts an agent, when awaited, for the lines of a source: a host, a program. One agent a source at a
    /// time.
    pub fn agent(&self, source: impl Into<String>) -> AgentBuilder {
        AgentBuilder::new(&self.client, self.topic.clone(), source.into())
    }

    /// Joins the collectors of this name: each batch is written by one of them.
    ///
    /// # Errors
    /// As awaiting [`Topic::group`].
    ///
    /// # Cancel safety
    /// As of [`Topic::group`].
    pub async fn collector(&self, session: &Session, name: &str) -> Result<Collector> {
        let consumer = self.topic.group(session, name).await?;
        let sources = Sources::new(self.topic.clone(), name, self.space.child(name));
        Ok(Collector::new(consumer, sources))
    }
}
