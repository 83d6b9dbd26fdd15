//! What "now" is for a watcher that joins others: a revision that the cluster had reached when the
//! watcher was asked for, or later. Nothing up to it is told, so a client never sees as news what it
//! knew before it began to watch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate::core::tasks::Tasks;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use quorate::proto::etcdserverpb::{RangeRequest, ResponseHeader};
use tokio::sync::oneshot;
use tonic::Status;

use crate::proxy::caller::Caller;
use crate::proxy::calls::{self, Effect};
use crate::proxy::endpoints::{Lane, Pool};

/// Limit on finding it out. One who cannot know gets a watch of its own.
const LIMIT: Duration = Duration::from_secs(3);

/// Reads revisions in one caller's name. Those who ask at the same time share a read.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    pool: Pool,
    caller: Caller,
    tasks: Tasks,
    rounds: Arc<Mutex<Rounds>>,
}

/// Who waits for the next read of a key; the key is there while one is under way.
type Rounds = HashMap<Bytes, Vec<oneshot::Sender<Option<ResponseHeader>>>>;

impl Clock {
    /// Reads through `pool`; what is under way ends with `tasks`.
    pub(super) fn new(pool: Pool, caller: &Caller, tasks: Tasks) -> Self {
        Self {
            pool,
            // A read without a leader fails anyway, and takes its time to.
            caller: caller.patient(),
            tasks,
            rounds: Arc::default(),
        }
    }

    /// The header of a linearizable read that began after this call did; `None` if it failed. `key` is
    /// one that the caller may read, where members look at that.
    pub(super) async fn now(&self, key: Bytes) -> Option<ResponseHeader> {
        let (tell, told) = oneshot::channel();
        let is_first = {
            let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
            let is_first = !rounds.contains_key(&key);
            rounds.entry(key.clone()).or_default().push(tell);
            is_first
        };
        if is_first {
            let clock = self.clone();
            self.tasks.spawn("read a revision", clock.rounds(key));
        }
        told.await.ok().flatten()
    }

    /// Reads as long as somebody waits.
    async fn rounds(self, key: Bytes) {
        loop {
            let waiting = {
                let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
                let waiting = rounds.get_mut(&key).map(std::mem::take).unwrap_or_default();
                if waiting.is_empty() {
                    rounds.remove(&key);
                    return;
                }
                waiting
            };
            let read = tokio::time::timeout(LIMIT, self.read(&key)).await;
            let header = read.ok().and_then(Result::ok).flatten();
            for tell in waiting {
                // Whoever left does not want to know.
                let _ = tell.send(header);
            }
        }
    }

    async fn read(&self, key: &Bytes) -> Result<Option<ResponseHeader>, Status> {
        calls::call(&self.pool, Effect::Reads, async |server| {
            let mut client = KvClient::new(server.channel(Lane::Calls));
            let request = RangeRequest {
                key: key.clone(),
                count_only: true,
                ..Default::default()
            };
            let answer = client.range(self.caller.request(request)).await?;
            Ok(answer.into_inner().header)
        })
        .await
    }
}
