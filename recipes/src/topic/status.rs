//! How much there is in a topic, and how far its groups are.

use std::collections::BTreeMap;

use quorate_proto::etcdserverpb::{RangeRequest, RequestOp, TxnRequest};
use serde::Serialize;

use super::Topic;
use super::record::{CursorRecord, Layout, MetaRecord, RemovedRecord};
use crate::assign::PARTITIONS_MAX;
use crate::client::Client;
use crate::error::Result;
use crate::keys::Revision;
use crate::store::ops;
use crate::value::from_json;

/// Reads that one partition takes.
const READS: usize = 3;

/// What there is in a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TopicStatus {
    /// The revision of the first read; a topic of more than about forty partitions is read in several.
    pub revision: Revision,
    /// Its partitions, in order; none if nobody has used it yet.
    pub partitions: Vec<PartitionStatus>,
    /// Its groups, by name.
    pub groups: BTreeMap<String, GroupStatus>,
}

/// What there is in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PartitionStatus {
    /// The first segment that was not removed.
    pub first_segment: u64,
    /// The segment that is appended to.
    pub head_segment: u64,
    /// Messages that are kept.
    pub messages: u64,
    /// Messages that were removed.
    pub removed: u64,
}

impl PartitionStatus {
    /// Messages that were published, and the offset of the next one.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.messages + self.removed
    }
}

/// How far a group is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GroupStatus {
    /// Members that take part.
    pub members: u64,
    /// How far it is in each partition, in order.
    pub partitions: Vec<GroupLag>,
}

/// How far a group is in one partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GroupLag {
    /// Messages that are done; `None` when it has not begun there, or began behind one that had been removed.
    pub committed: Option<u64>,
    /// Messages that were published and are not done, removed ones included; `None` likewise.
    pub lag: Option<u64>,
}

impl<T> Topic<T> {
    /// How much there is, and how far the groups are. Reads no message; the store counts them, which costs it
    /// a walk over their keys.
    ///
    /// # Errors
    /// [`Error::Codec`](crate::Error::Codec) for a record that is damaged; the store's.
    pub async fn status(&self) -> Result<TopicStatus> {
        let client = &self.layout.client;
        let mut status = survey(client, &self.name, Revision(0)).await?;
        for (name, group) in &mut status.groups {
            let members = self.layout.share(name).child("member").range();
            let found = client.store().range(ops::counting(members)).await?;
            group.members = u64::try_from(found.count).unwrap_or(0);
        }
        Ok(status)
    }
}

/// The status of the topic of this name as it was at this revision; 0: is now. Members are not counted.
pub(crate) async fn survey(client: &Client, name: &str, revision: Revision) -> Result<TopicStatus> {
    let layout = Layout::new(client.clone(), name, 0);
    let request = TxnRequest {
        success: vec![
            read_at(revision, ops::get(layout.meta())),
            read_at(revision, ops::range(layout.groups().range())),
        ],
        ..TxnRequest::default()
    };
    let answer = client.store().txn(request).await?;
    let meta = ops::kvs(&answer.responses, 0).first();
    let meta: Option<MetaRecord> = meta.map(|kv| from_json(&kv.key, &kv.value)).transpose()?;
    let count = meta.map_or(0, |meta| meta.partitions).min(PARTITIONS_MAX);
    let layout = Layout::new(client.clone(), name, count);
    let partitions = partitions(&layout, revision).await?;
    let mut groups: BTreeMap<String, GroupStatus> = BTreeMap::new();
    for kv in ops::kvs(&answer.responses, 1) {
        let Some((name, partition)) = layout.cursor_of(&kv.key) else {
            continue;
        };
        let group = groups.entry(name).or_insert_with(|| GroupStatus {
            members: 0,
            partitions: vec![GroupLag::default(); partitions.len()],
        });
        let committed = CursorRecord::read(kv)?.passed;
        let index = partition as usize;
        if let (Some(lag), Some(partition)) =
            (group.partitions.get_mut(index), partitions.get(index))
        {
            // A message may have come, and been committed, between the two reads.
            let lag_of = |committed| partition.published().saturating_sub(committed);
            lag.committed = committed;
            lag.lag = committed.map(lag_of);
        }
    }
    let now = Revision(answer.header.map_or(0, |header| header.revision));
    Ok(TopicStatus {
        revision: match revision {
            Revision(0) => now,
            then => then,
        },
        partitions,
        groups,
    })
}

fn read_at(revision: Revision, mut request: RangeRequest) -> RequestOp {
    request.revision = revision.0;
    ops::read(request)
}

async fn partitions(layout: &Layout, revision: Revision) -> Result<Vec<PartitionStatus>> {
    let at_a_time = (layout.client.store().capabilities().max_txn_ops / READS).max(1);
    let all: Vec<u32> = (0..layout.partitions()).collect();
    let mut found = Vec::with_capacity(all.len());
    for some in all.chunks(at_a_time) {
        let reads = some.iter().flat_map(|partition| {
            let log = layout.log(*partition);
            [
                ops::get(log.head_key()),
                ops::get(layout.removed(*partition)),
                ops::counting(log.range(0, None)),
            ]
        });
        let request = TxnRequest {
            success: reads.map(|read| read_at(revision, read)).collect(),
            ..TxnRequest::default()
        };
        let answer = layout.client.store().txn(request).await?;
        for (partition, index) in some.iter().zip((0..).step_by(READS)) {
            let log = layout.log(*partition);
            let first = |index| ops::kvs(&answer.responses, index).first();
            let removed = RemovedRecord::read(first(index + 1))?;
            found.push(PartitionStatus {
                first_segment: removed.segment,
                head_segment: log.head_of(first(index))?.segment,
                messages: ops::count(&answer.responses, index + 2),
                removed: removed.messages,
            });
        }
    }
    Ok(found)
}
