//! Requests on the key space: reads from this member's state, writes through consensus.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use prost::Message;
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{
    AlarmType, CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use quorate_proto::log::command::Kind;
use quorate_proto::{KeyRange, Reason};

use super::Node;
use crate::apply::txn::{self, Writes};
use crate::apply::{Answer, check};
use crate::error::{Error, Result};
use crate::mvcc::{self, RangeQuery};

/// Keys and values in one piece of a streamed range, in bytes, unless one pair alone is larger.
const PAGE_BYTES: usize = 1024 * 1024;

impl Node {
    /// Reads keys; linearizable unless the request says serializable.
    ///
    /// # Errors
    /// Malformed requests, compacted and future revisions, and time-outs, all as etcd tells them.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse> {
        check::range(&request)?;
        let query = RangeQuery::from_request(&request)?;
        if !request.serializable {
            self.read_barrier().await?;
        }
        let reader = self.shared.reader.clone();
        let point = request.range_end.is_empty();
        let result = self
            .read(point, move || mvcc::range(&*reader.view(), &query))
            .await?;
        Ok(RangeResponse {
            header: Some(self.header_at(result.revision)),
            kvs: result.kvs,
            more: result.more,
            count: result.count,
        })
    }

    /// Reads keys in pieces, all at one revision.
    ///
    /// # Errors
    /// As [`Node::range`]; sorting and revision filters are not offered.
    pub async fn range_stream(&self, request: RangeRequest) -> Result<RangePages> {
        check::range(&request)?;
        if request.sort_order == SortOrder::Descend as i32
            || request.sort_target != SortTarget::Key as i32
        {
            return Err(Reason::RangeStreamSorted.into());
        }
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        if filters.iter().any(|&filter| filter != 0) {
            return Err(Reason::RangeStreamFiltered.into());
        }
        if !request.serializable {
            self.read_barrier().await?;
        }
        // The count takes a scan of its own, and fixes the revision of all pieces.
        let counting = RangeRequest {
            count_only: true,
            ..request.clone()
        };
        let query = RangeQuery::from_request(&counting)?;
        let reader = self.shared.reader.clone();
        let counted = self
            .read(false, move || mvcc::range(&*reader.view(), &query))
            .await?;
        let revision = if request.revision > 0 {
            request.revision
        } else {
            counted.revision
        };
        let limit = usize::try_from(request.limit)
            .ok()
            .filter(|&limit| limit > 0);
        let range = KeyRange::from_wire(request.key, request.range_end);
        let done = request.count_only;
        Ok(RangePages {
            node: self.clone(),
            next: (!done).then_some(range),
            revision,
            current: counted.revision,
            keys_only: request.keys_only,
            left: limit,
            count: counted.count,
            ended: false,
        })
    }

    /// Writes a key.
    ///
    /// # Errors
    /// As etcd's; kinds that are [ambiguous](quorate_proto::Kind::is_ambiguous) leave it open
    /// whether the key was written.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse> {
        check::put(&request)?;
        self.check_space()?;
        match self.propose(Kind::Put(request)).await? {
            (Answer::Put(mut answer), _) => {
                self.complete(&mut answer.header);
                Ok(answer)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Deletes keys.
    ///
    /// # Errors
    /// As [`Node::put`].
    pub async fn delete_range(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse> {
        check::delete_range(&request)?;
        match self.propose(Kind::DeleteRange(request)).await? {
            (Answer::DeleteRange(mut answer), _) => {
                self.complete(&mut answer.header);
                Ok(answer)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Compares, then reads and writes, as one step. One that only reads costs no log entry.
    ///
    /// # Errors
    /// As [`Node::put`].
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse> {
        check::txn(&request, self.shared.config.limits.max_txn_ops)?;
        let writes = Writes::of(&request);
        if writes.is_none() {
            return self.read_txn(request).await;
        }
        if writes.puts {
            self.check_space()?;
        }
        match self.propose(Kind::Txn(request)).await? {
            (Answer::Txn(mut answer), _) => {
                self.complete(&mut answer.header);
                Ok(answer)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Answers a transaction that only reads from this member's state.
    async fn read_txn(&self, request: TxnRequest) -> Result<TxnResponse> {
        let bytes = request.encoded_len();
        if bytes > self.shared.config.limits.max_request_bytes {
            return Err(Reason::RequestTooLarge.into());
        }
        if !is_serializable(&request) {
            self.read_barrier().await?;
        }
        if !only_ranges(&request) && self.is_corrupt() {
            return Err(Reason::Corrupt.into());
        }
        let reader = self.shared.reader.clone();
        let point = is_point(&request);
        let mut answer = self
            .read(point, move || txn::read(reader.view(), request))
            .await?;
        self.complete(&mut answer.header);
        Ok(answer)
    }

    /// Gives up history before a revision. What can no longer be read is removed in the background;
    /// with `physical` the answer comes once this member is done with that, however long it takes.
    ///
    /// # Errors
    /// Compacted and future revisions, and as [`Node::put`].
    ///
    /// # Cancel safety
    /// As [`Node::put`]; removal goes on without the caller.
    pub async fn compact(&self, request: CompactionRequest) -> Result<CompactionResponse> {
        let CompactionRequest { revision, physical } = request;
        match self.propose(Kind::Compact(request)).await? {
            (Answer::Compaction(mut answer), _) => {
                if physical {
                    self.removed(revision).await?;
                }
                self.complete(&mut answer.header);
                Ok(answer)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Whether an alarm says that members disagree about the data.
    fn is_corrupt(&self) -> bool {
        let alarms = self.shared.reader.alarms();
        alarms.iter().any(|alarm| alarm.kind == AlarmType::Corrupt)
    }

    /// Refuses to grow a store that is over its quota, before the alarm that says so is applied.
    pub(super) fn check_space(&self) -> Result<()> {
        if self.shared.over_quota.load(Ordering::Relaxed) {
            return Err(Reason::NoSpace.into());
        }
        Ok(())
    }
}

/// Whether all operations of a transaction are ranges. One with nested transactions is none that
/// only reads, for etcd: while members disagree about the data, it is refused.
fn only_ranges(request: &TxnRequest) -> bool {
    let mut operations = request.success.iter().chain(&request.failure);
    operations.all(|operation| matches!(operation.request, Some(Request::RequestRange(_))))
}

/// Whether every operation of a transaction that only reads says serializable, as etcd judges it:
/// the compares have no say, and a nested transaction is never serializable.
fn is_serializable(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|operation| {
        matches!(&operation.request, Some(Request::RequestRange(range)) if range.serializable)
    })
}

/// Whether a transaction that only reads looks at single keys.
fn is_point(request: &TxnRequest) -> bool {
    let operations = request.success.iter().chain(&request.failure);
    request.compare.iter().all(|compare| compare.range_end.is_empty())
        && operations.into_iter().all(|operation| {
            matches!(&operation.request, Some(Request::RequestRange(range)) if range.range_end.is_empty())
        })
}

/// An answer of another kind than the proposal: a broken invariant.
pub(super) fn unexpected(answer: &Answer) -> Error {
    tracing::error!(
        ?answer,
        "the state machine answered another kind of request"
    );
    Reason::Internal.into()
}

/// A range read piece by piece. Only the last piece has a header, the count, and whether a limit left
/// pairs out, as on etcd.
#[derive(Debug)]
pub struct RangePages {
    node: Node,
    /// What is still to be read.
    next: Option<KeyRange>,
    /// At which revision all pieces are read.
    revision: i64,
    /// The store's revision when the reading began.
    current: i64,
    keys_only: bool,
    /// Pairs the limit still allows.
    left: Option<usize>,
    count: i64,
    ended: bool,
}

impl RangePages {
    /// The next piece; `None` after the last one.
    ///
    /// # Errors
    /// Compacted, when the revision was compacted meanwhile; storage failures.
    pub async fn next(&mut self) -> Result<Option<RangeResponse>> {
        if self.ended {
            return Ok(None);
        }
        let mut piece = RangeResponse::default();
        if let Some(range) = self.next.take() {
            let (reader, revision) = (self.node.shared.reader.clone(), self.revision);
            let scanned = range.clone();
            let read = move || mvcc::scan_page(&*reader.view(), &scanned, revision, PAGE_BYTES);
            let page = self.node.read(false, read).await?;
            piece.kvs = page.kvs;
            self.next = page.next.map(|start| rest_of(&range, start));
            if let Some(left) = &mut self.left {
                piece.more =
                    piece.kvs.len() > *left || piece.kvs.len() == *left && self.next.is_some();
                piece.kvs.truncate(*left);
                *left -= piece.kvs.len();
                if *left == 0 {
                    self.next = None;
                }
            }
            if self.keys_only {
                for pair in &mut piece.kvs {
                    pair.value = Bytes::new();
                }
            }
        }
        if self.next.is_none() {
            piece.header = Some(self.node.header_at(self.current));
            piece.count = self.count;
            self.ended = true;
        }
        Ok(Some(piece))
    }
}

/// The part of `range` from `start` on.
fn rest_of(range: &KeyRange, start: Bytes) -> KeyRange {
    match range.end_exclusive() {
        Some(end) => KeyRange::half_open(start, Bytes::copy_from_slice(end)),
        None => KeyRange::from_key(start),
    }
}
