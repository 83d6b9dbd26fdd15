//! Following who leads: the oldest key of the election's range, recomputed after each transaction
//! that touched it.

use std::collections::{BTreeMap, VecDeque};
use std::marker::PhantomData;

use futures::Stream;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;

use super::Leader;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{EPOCH_KEY, KeyRange};
use crate::lock::Epoch;
use crate::wait::Backoff;
use crate::watch::{Batch, Change, Origin, Watcher};

/// The leaders of the election in `range`; ends after a final refusal of the store.
pub(super) fn stream<T>(
    client: Client,
    range: KeyRange,
) -> impl Stream<Item = Result<Option<Leader<T>>>> + Send + 'static
where
    T: DeserializeOwned + Send + 'static,
{
    let observer = Observer {
        watcher: client.watch(range),
        client,
        line: Line::default(),
        epoch: None,
        value: PhantomData,
    };
    futures::stream::unfold(Some(observer), |observer| async move {
        let mut observer = observer?;
        match observer.next().await {
            Err(error) if !matches!(error, Error::Codec { .. }) => Some((Err(error), None)),
            item => Some((item, Some(observer))),
        }
    })
}

struct Observer<T> {
    client: Client,
    watcher: Watcher,
    line: Line,
    /// The epoch, and the leadership for which it was read.
    epoch: Option<(i64, u64)>,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Observer<T> {
    async fn next(&mut self) -> Result<Option<Leader<T>>> {
        loop {
            if let Some(first) = self.line.news.pop_front() {
                let Some(kv) = first else { return Ok(None) };
                let epoch = self.epoch(kv.create_revision).await?;
                return Leader::of(&kv, epoch).map(Some);
            }
            let batch = self.watcher.next().await?;
            if batch.origin != Origin::Live {
                // The store may have been put back, and give out the same revisions again.
                self.epoch = None;
            }
            self.line.take(batch);
        }
    }

    /// The store's epoch, read once for each leader.
    async fn epoch(&mut self, created: i64) -> Result<u64> {
        if let Some((_, epoch)) = self.epoch.filter(|(known, _)| *known == created) {
            return Ok(epoch);
        }
        let mut pause = Backoff::between_attempts(&self.client);
        let kv = loop {
            match self.client.get(EPOCH_KEY).await {
                Ok(kv) => break kv,
                Err(Error::Store(error)) if error.is_transient() => pause.pause().await,
                Err(error) => return Err(error),
            }
        };
        let epoch = Epoch::read(kv.as_ref())?.number();
        self.epoch = Some((created, epoch));
        Ok(epoch)
    }
}

/// The candidates, and who has become first since it was last asked.
#[derive(Debug, Default)]
struct Line {
    candidates: BTreeMap<bytes::Bytes, KeyValue>,
    /// What was reported last: the key's create and mod revision; outer `None`: nothing yet.
    reported: Option<Option<(i64, i64)>>,
    news: VecDeque<Option<KeyValue>>,
}

impl Line {
    fn take(&mut self, batch: Batch) {
        for change in batch.changes {
            match change {
                Change::Put { kv, .. } => {
                    self.candidates.insert(kv.key.clone(), kv);
                }
                Change::Delete { key, .. } => {
                    self.candidates.remove(key.as_bytes());
                }
            }
        }
        let order = |kv: &&KeyValue| (kv.create_revision, kv.key.clone());
        let first = self.candidates.values().min_by_key(order);
        let mark = first.map(|kv| (kv.create_revision, kv.mod_revision));
        if self.reported != Some(mark) {
            self.reported = Some(mark);
            self.news.push_back(first.cloned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Revision;
    use crate::watch::Origin;

    fn put(key: &'static str, create: i64, modified: i64) -> Change {
        Change::Put {
            kv: KeyValue {
                key: key.into(),
                create_revision: create,
                mod_revision: modified,
                ..Default::default()
            },
            previous: None,
        }
    }

    fn batch(revision: i64, changes: Vec<Change>) -> Batch {
        Batch {
            revision: Revision(revision),
            origin: Origin::Live,
            changes,
        }
    }

    fn gone(key: &'static str) -> Change {
        Change::Delete {
            key: key.into(),
            previous: None,
        }
    }

    fn news(line: &mut Line) -> Vec<Option<String>> {
        let taken = line.news.drain(..);
        taken
            .map(|kv| kv.map(|kv| String::from_utf8_lossy(&kv.key).into_owned()))
            .collect()
    }

    #[test]
    fn only_changes_at_the_head_of_the_line_are_news() {
        let mut line = Line::default();
        line.take(batch(1, vec![]));
        assert_eq!(news(&mut line), [None], "nobody leads, and that is said");
        line.take(batch(2, vec![put("b", 2, 2)]));
        line.take(batch(3, vec![put("a", 3, 3)]));
        line.take(batch(4, vec![put("a", 3, 4)]));
        assert_eq!(news(&mut line), [Some("b".to_owned())]);
        line.take(batch(5, vec![put("b", 2, 5)]));
        assert_eq!(news(&mut line), [Some("b".to_owned())], "a proclamation");
        line.take(batch(6, vec![gone("b"), gone("a")]));
        line.take(batch(7, vec![put("c", 7, 7)]));
        assert_eq!(news(&mut line), [None, Some("c".to_owned())]);
    }
}
