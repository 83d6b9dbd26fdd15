//! Who holds and who waits, for people: read from the contenders' keys, joined with the sessions'
//! keys through the lease. Used by locks and elections, and by everything that displays them.

use std::collections::HashMap;
use std::fmt;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use crate::client::{Client, Identity};
use crate::clock;
use crate::error::Result;
use crate::keys::{Key, KeyRange, LeaseId, Revision, session_key};
use crate::session::{Session, SessionRecord};
use crate::store::ops;
use crate::value::V1;

/// The value of a lock contender's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContenderRecord {
    v: V1,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    info: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    nonce: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    since_ms: u64,
}

impl ContenderRecord {
    /// A contender of this session, or of its task, that begins now.
    pub(crate) fn of(session: &Session, info: &str) -> Self {
        Self {
            task: session.task().map(str::to_owned),
            ..Self::now(info)
        }
    }

    /// A contender that begins now.
    pub(crate) fn now(info: &str) -> Self {
        Self {
            v: V1,
            info: info.to_owned(),
            nonce: String::new(),
            task: None,
            since_ms: clock::wall_millis(),
        }
    }

    /// With a nonce, which a contender without one in its key needs.
    pub(crate) fn with_nonce(mut self, nonce: String) -> Self {
        self.nonce = nonce;
        self
    }
}

/// Who holds something, or contends for it. Programs that use etcd's Go client or `etcdctl` appear
/// with their key and lease only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Holder {
    /// The contender's key.
    pub key: Key,
    /// The revision at which it was created: its place in the queue.
    pub revision: Revision,
    /// The lease it is attached to.
    pub lease: LeaseId,
    /// Host, process and label of the session, if it told.
    pub who: Option<Identity>,
    /// What the contender says it is doing; may be empty.
    pub info: String,
    /// The task of the session, where it was named; see [`Session::for_task`].
    pub task: Option<String>,
    /// Since when it contends, in milliseconds since the Unix epoch by its own wall clock.
    pub since_ms: Option<u64>,
}

impl Holder {
    /// What a contender's key says by itself.
    pub(crate) fn of(kv: &KeyValue) -> Self {
        let record: Option<ContenderRecord> = serde_json::from_slice(&kv.value).ok();
        Self {
            key: kv.key.clone().into(),
            revision: Revision(kv.create_revision),
            lease: LeaseId(kv.lease),
            who: None,
            since_ms: record.as_ref().map(|record| record.since_ms),
            task: record.as_ref().and_then(|record| record.task.clone()),
            info: record.map(|record| record.info).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Some(who) => write!(f, "{who}")?,
            None => write!(f, "lease {}", self.lease)?,
        }
        if let Some(task) = &self.task {
            write!(f, " task {task}")?;
        }
        if !self.info.is_empty() {
            write!(f, " ({})", self.info)?;
        }
        Ok(())
    }
}

/// Somebody who waits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiter {
    /// How many are before it, the holder included: 1 is the next.
    pub position: usize,
    /// Who it is.
    pub contender: Holder,
}

/// The contenders of a range, holder first, as they stood at one revision, at most `limit`.
pub(crate) async fn queue_of(
    client: &Client,
    contenders: KeyRange,
    limit: usize,
) -> Result<Vec<Holder>> {
    if limit == 0 {
        // To the store, no limit at all.
        return Ok(Vec::new());
    }
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let answer = client.store().range(ops::oldest(contenders, limit)).await?;
    introduced(client, &answer.kvs).await
}

/// What contenders' keys say, and what their sessions say about themselves.
pub(crate) async fn introduced<'a>(
    client: &Client,
    kvs: impl IntoIterator<Item = &'a KeyValue>,
) -> Result<Vec<Holder>> {
    let mut queue: Vec<Holder> = kvs.into_iter().map(Holder::of).collect();
    let mut leases: Vec<LeaseId> = queue.iter().map(|holder| holder.lease).collect();
    leases.sort_unstable();
    leases.dedup();
    let mut known = HashMap::new();
    let most = client.store().capabilities().max_txn_ops.max(1);
    for some in leases.chunks(most) {
        let reads = some
            .iter()
            .map(|lease| ops::read(ops::get(session_key(*lease))));
        let request = TxnRequest {
            success: reads.collect(),
            ..Default::default()
        };
        let answer = client.store().txn(request).await?;
        for (index, lease) in some.iter().enumerate() {
            let kv = ops::kvs(&answer.responses, index).first();
            let record = kv.and_then(|kv| serde_json::from_slice::<SessionRecord>(&kv.value).ok());
            if let Some(record) = record {
                known.insert(*lease, record.who);
            }
        }
    }
    for holder in &mut queue {
        holder.who = known.get(&holder.lease).cloned();
    }
    Ok(queue)
}
