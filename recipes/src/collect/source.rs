//! How far collectors are with each source, and the end of that: a record goes when its source has said nothing for
//! long and nothing of its partition is left to be written.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::batch::Batch;
use crate::error::{Error, Result, TxnError};
use crate::keys::{Key, KeySpace, Revision, encode};
use crate::register::read;
use crate::session::Session;
use crate::store::ops::Compare;
use crate::topic::{GroupConsumer, Topic};
use crate::value::{V1, from_json};

/// Runs of a source that are remembered: one that comes back later than that is taken for a new one.
const RUNS_MAX: usize = 8;

/// How long a source that says nothing is remembered, unless told otherwise.
const SILENCE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// How far each run of a source is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SourceRecord {
    v: V1,
    /// The number of the next line of each run; the one heard of last is the last.
    runs: Vec<(String, u64)>,
    /// When it was written, by its collector's wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_ms: Option<u64>,
}

impl SourceRecord {
    /// How far a source is. Of the session alone, so that what runs a collector may go to another thread.
    pub(super) async fn look(session: &Session, key: &Key) -> Result<Self> {
        let found = read(session.client(), key, Some(session)).await?;
        match found {
            Some(kv) => from_json(&kv.key, &kv.value),
            None => Ok(Self {
                v: V1,
                runs: Vec::new(),
                at_ms: None,
            }),
        }
    }

    pub(super) fn next(&self, run: &str) -> Option<u64> {
        let mut runs = self.runs.iter();
        runs.find(|(known, _)| known == run).map(|(_, next)| *next)
    }

    pub(super) fn come_to(mut self, run: &str, next: u64, at_ms: u64) -> Self {
        self.runs.retain(|(known, _)| known != run);
        self.runs.push((run.to_owned(), next));
        let over = self.runs.len().saturating_sub(RUNS_MAX);
        self.runs.drain(..over);
        self.at_ms = Some(at_ms);
        self
    }
}

/// The records of a group of collectors.
#[derive(Debug)]
pub(super) struct Sources {
    topic: Topic<Batch>,
    group: String,
    space: KeySpace,
    silence: Duration,
}

impl Sources {
    pub(super) fn new(topic: Topic<Batch>, group: &str, space: KeySpace) -> Self {
        Self {
            topic,
            group: group.to_owned(),
            space,
            silence: SILENCE,
        }
    }

    pub(super) fn forget_after(&mut self, silence: Duration) {
        self.silence = silence;
    }

    pub(super) fn key(&self, partition: u32, source: &str) -> Key {
        self.space.key(&format!("{partition}/{}", encode(source)))
    }

    /// Removes the records of sources that have said nothing for long, in the partitions of which this member has
    /// written everything: so nothing waits there that was written before.
    ///
    /// # Errors
    /// The store's; another look does what is left.
    pub(super) async fn forget(&self, consumer: &mut GroupConsumer<Batch>) -> Result<()> {
        let client = consumer.session().client().clone();
        let silence = u64::try_from(self.silence.as_millis()).unwrap_or(u64::MAX);
        let status = self.topic.status().await?;
        let Some(group) = status.groups.get(&self.group) else {
            return Ok(());
        };
        for partition in consumer.owned() {
            let lag = group.partitions.get(partition as usize);
            if lag.and_then(|lag| lag.lag) != Some(0) {
                continue;
            }
            let space = self.space.child(&partition.to_string());
            let (_, kvs) = client.list(space.range()).await?;
            let now = client.wall_millis();
            for kv in kvs {
                // What cannot be read stays, and is told to who reads it for its source.
                let record = from_json::<SourceRecord>(&kv.key, &kv.value).ok();
                let at_ms = record.and_then(|record| record.at_ms);
                if at_ms.is_none_or(|at_ms| now.saturating_sub(at_ms) < silence) {
                    continue;
                }
                let written = Compare::mod_revision(kv.key.clone(), Revision(kv.mod_revision));
                let txn = client.txn().when(written).delete(kv.key);
                let Some(txn) = consumer.guarded(partition, txn) else {
                    break;
                };
                match txn.commit().await {
                    Ok(_) | Err(TxnError::Conflict { .. }) => {}
                    Err(TxnError::Fenced { .. }) => break,
                    Err(error) => return Err(Error::from(error)),
                }
            }
        }
        Ok(())
    }
}
