//! What there is in a queue, and who has it.

use quorate_proto::etcdserverpb::{RangeRequest, TxnRequest};
use quorate_proto::mvccpb::KeyValue;

use super::bound::limit_of;
use super::record::{About, Tried};
use super::{Queue, QueueStatus};
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::kit::ItemId;
use crate::store::ops;

/// A queue at one revision.
pub(crate) struct Survey {
    /// Without a limit that cannot be read.
    pub(crate) status: QueueStatus,
    /// Why the limit cannot be read, if there is one that cannot.
    pub(crate) unreadable: Option<Error>,
    /// The first segment that has an item.
    pub(crate) first_segment: Option<u64>,
    /// The claims of items, in the order of their ids.
    pub(crate) claims: Vec<(ItemId, KeyValue)>,
}

impl<T> Queue<T> {
    /// Looks at the queue as it was at this revision, 0: is now, and at `most` of its claims.
    pub(crate) async fn survey(&self, revision: Revision, most: usize) -> Result<Survey> {
        let layout = &self.layout;
        let read = |mut request: RangeRequest| {
            request.revision = revision.0;
            ops::read(request)
        };
        let count = |range: KeyRange| read(ops::counting(range));
        let mut tries = ops::range(layout.tries().range());
        tries.keys_only = most == 0;
        let mut first = ops::range(layout.log.range(0, None));
        first.limit = 1;
        first.keys_only = true;
        let request = TxnRequest {
            success: vec![
                read(first),
                count(layout.delayed().range()),
                count(layout.dead_letters().range()),
                count(layout.consumers().range()),
                read(tries),
                read(ops::get(layout.bound())),
                count(layout.pushers().range()),
            ],
            ..TxnRequest::default()
        };
        let answer = layout.client.store().txn(request).await?;
        let found = |index: usize| ops::count(&answer.responses, index);
        let now = Revision(answer.header.map_or(0, |header| header.revision));
        let tries = ops::kvs(&answer.responses, 4).iter();
        let claims = tries.filter_map(|kv| match layout.tried(&kv.key)? {
            (id, Tried::Claim) => Some((id, kv)),
            (_, Tried::Attempts) => None,
        });
        let claims: Vec<(ItemId, &KeyValue)> = claims.collect();
        let bound = ops::kvs(&answer.responses, 5).first();
        let (limit, unreadable) = match bound.map(limit_of).transpose() {
            Ok(limit) => (limit, None),
            Err(error) => (None, Some(error)),
        };
        let first = ops::kvs(&answer.responses, 0).first();
        let first = first.and_then(|kv| layout.log.item(&kv.key));
        Ok(Survey {
            status: QueueStatus {
                revision: if revision == Revision(0) {
                    now
                } else {
                    revision
                },
                items: found(0),
                delayed: found(1),
                dead: found(2),
                consumers: found(3),
                claimed: u64::try_from(claims.len()).unwrap_or(u64::MAX),
                limit,
                waiting: found(6),
            },
            unreadable,
            first_segment: first.map(|item| item.segment()),
            claims: claims
                .into_iter()
                .take(most)
                .map(|(id, kv)| (id, kv.clone()))
                .collect(),
        })
    }

    /// When the item was pushed that came first into this segment, as it was at this revision; `None` when there
    /// is none, or it cannot be read.
    pub(crate) async fn oldest_ms(&self, revision: Revision, segment: u64) -> Result<Option<u64>> {
        let layout = &self.layout;
        // The keys of a segment say nothing of the order.
        let mut oldest = ops::oldest(layout.log.segment(segment), 1);
        oldest.revision = revision.0;
        let found = layout.client.store().range(oldest).await?;
        let about = found.kvs.first();
        let about = about.map(|kv| About::read(&Key::from(kv.key.clone()), &kv.value));
        Ok(about.and_then(Result::ok).map(|about| about.since_ms))
    }
}
