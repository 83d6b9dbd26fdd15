//! Reads and transactions of a [`MemStore`](super::MemStore). First the branches are decided, all by
//! the state before the transaction; then the operations run in order, each seeing the ones before; a
//! refusal takes everything back.

use std::cmp::Ordering;

use bytes::Bytes;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use quorate_proto::mvccpb::{Event, KeyValue};
use tokio::time::Instant;

use super::state::State;
use crate::keys::KeyRange;

/// A read by itself; its shape was checked.
pub(super) fn range(state: &State, request: &RangeRequest) -> Result<RangeResponse, Reason> {
    let mut answer = read(state, request, &[])?;
    answer.header = Some(state.header());
    Ok(answer)
}

/// A transaction; its shape was checked.
pub(super) fn run(
    state: &mut State,
    request: &TxnRequest,
    now: Instant,
) -> Result<TxnResponse, Reason> {
    let mut path = Vec::new();
    decide(state, request, &mut path);
    let next = state.revision() + 1;
    let mut run = Run {
        state,
        next,
        changes: Vec::new(),
        path: path.into_iter(),
        range_refused: None,
    };
    let ran = run.level(request);
    let (changes, range_refused) = (run.changes, run.range_refused);
    let refused = range_refused.map_or(Ok(()), Err);
    match ran.and_then(|answer| refused.map(|()| answer)) {
        Ok(mut answer) => {
            state.commit(changes, now);
            answer.header = Some(state.header());
            Ok(answer)
        }
        Err(reason) => {
            state.undo(changes);
            Err(reason)
        }
    }
}

/// Appends which branch the transaction takes, then the same for those nested in it, depth first.
fn decide(state: &State, request: &TxnRequest, path: &mut Vec<bool>) {
    let succeeded = request.compare.iter().all(|compare| holds(state, compare));
    path.push(succeeded);
    for op in branch(request, succeeded) {
        if let Some(Request::RequestTxn(nested)) = &op.request {
            decide(state, nested, path);
        }
    }
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[quorate_proto::etcdserverpb::RequestOp] {
    if succeeded {
        &request.success
    } else {
        &request.failure
    }
}

/// Whether every key of the range satisfies the compare; without any key, whether an absent one does.
fn holds(state: &State, compare: &Compare) -> bool {
    let range = span(&compare.key, &compare.range_end);
    let mut keys = state.scan(&range).peekable();
    if keys.peek().is_none() {
        return compare.target != i32::from(CompareTarget::Value)
            && satisfies(compare, &KeyValue::default());
    }
    keys.all(|kv| satisfies(compare, kv))
}

/// A union that is missing or of another target is 0 or empty; what is outside the enums is true.
fn satisfies(compare: &Compare, kv: &KeyValue) -> bool {
    use TargetUnion as Union;
    let union = compare.target_union.as_ref();
    let order = match (CompareTarget::try_from(compare.target), union) {
        (Ok(CompareTarget::Version), Some(Union::Version(given))) => kv.version.cmp(given),
        (Ok(CompareTarget::Version), _) => kv.version.cmp(&0),
        (Ok(CompareTarget::Create), Some(Union::CreateRevision(given))) => {
            kv.create_revision.cmp(given)
        }
        (Ok(CompareTarget::Create), _) => kv.create_revision.cmp(&0),
        (Ok(CompareTarget::Mod), Some(Union::ModRevision(given))) => kv.mod_revision.cmp(given),
        (Ok(CompareTarget::Mod), _) => kv.mod_revision.cmp(&0),
        (Ok(CompareTarget::Lease), Some(Union::Lease(given))) => kv.lease.cmp(given),
        (Ok(CompareTarget::Lease), _) => kv.lease.cmp(&0),
        (Ok(CompareTarget::Value), Some(Union::Value(given))) => kv.value.cmp(given),
        (Ok(CompareTarget::Value), _) => kv.value.cmp(&Bytes::new()),
        (Err(_), _) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}

/// A transaction under way.
struct Run<'a> {
    state: &'a mut State,
    /// The revision it has once it has changed anything.
    next: i64,
    changes: Vec<Event>,
    path: std::vec::IntoIter<bool>,
    /// The first read refused. A put refused after it goes first: etcd looks at all puts before.
    range_refused: Option<Reason>,
}

impl Run<'_> {
    /// The header inside an answer of a transaction: the revision as it is at that point.
    fn header(&self) -> ResponseHeader {
        let changed = !self.changes.is_empty();
        ResponseHeader {
            revision: self.next - i64::from(!changed),
            ..Default::default()
        }
    }

    fn level(&mut self, request: &TxnRequest) -> Result<TxnResponse, Reason> {
        let succeeded = self.path.next().expect("every level taken was decided");
        let mut responses = Vec::new();
        for op in branch(request, succeeded) {
            let response = match &op.request {
                Some(Request::RequestPut(put)) => Response::ResponsePut(self.put(put)?),
                Some(Request::RequestDeleteRange(delete)) => {
                    Response::ResponseDeleteRange(self.delete(delete))
                }
                Some(Request::RequestRange(range)) => Response::ResponseRange(self.range(range)),
                Some(Request::RequestTxn(nested)) => Response::ResponseTxn(self.level(nested)?),
                None => return Err(Reason::KeyNotFound),
            };
            responses.push(response.into());
        }
        Ok(TxnResponse {
            header: Some(ResponseHeader::default()),
            succeeded,
            responses,
        })
    }

    fn put(&mut self, request: &PutRequest) -> Result<PutResponse, Reason> {
        let old = self.state.get(&request.key);
        if old.is_none() && (request.ignore_value || request.ignore_lease) {
            return Err(Reason::KeyNotFound);
        }
        let mut kv = KeyValue {
            key: request.key.clone(),
            value: request.value.clone(),
            lease: request.lease,
            create_revision: old.map_or(self.next, |old| old.create_revision),
            mod_revision: self.next,
            version: old.map_or(0, |old| old.version) + 1,
        };
        if let Some(old) = old.filter(|_| request.ignore_value) {
            kv.value = old.value.clone();
        }
        if let Some(old) = old.filter(|_| request.ignore_lease) {
            kv.lease = old.lease;
        }
        if kv.lease != 0 && self.state.leases.get(kv.lease).is_none() {
            return Err(Reason::LeaseNotFound);
        }
        let change = self.state.put(kv);
        let prev_kv = change.prev_kv.clone().filter(|_| request.prev_kv);
        self.changes.push(change);
        Ok(PutResponse {
            header: Some(self.header()),
            prev_kv,
        })
    }

    fn delete(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let range = span(&request.key, &request.range_end);
        let keys: Vec<Bytes> = self.state.scan(&range).map(|kv| kv.key.clone()).collect();
        let mut prev_kvs = Vec::new();
        for key in &keys {
            let change = self.state.remove(key, self.next).expect("it was just seen");
            prev_kvs.extend(change.prev_kv.clone().filter(|_| request.prev_kv));
            self.changes.push(change);
        }
        DeleteRangeResponse {
            header: Some(self.header()),
            deleted: i64::try_from(keys.len()).expect("memory ends before"),
            prev_kvs,
        }
    }

    fn range(&mut self, request: &RangeRequest) -> RangeResponse {
        // In a transaction, a negative revision is an old one.
        let compacted = request.revision < 0 && self.state.compacted > 0;
        let read = match compacted {
            true => Err(Reason::Compacted),
            false => read(self.state, request, &self.changes),
        };
        match read {
            Ok(mut answer) => {
                answer.header = Some(self.header());
                answer
            }
            Err(reason) => {
                self.range_refused.get_or_insert(reason);
                RangeResponse::default()
            }
        }
    }
}

/// Reads what is there, filters, sorts and cuts; the count is that of the whole range.
fn read(state: &State, request: &RangeRequest, pending: &[Event]) -> Result<RangeResponse, Reason> {
    let range = span(&request.key, &request.range_end);
    let mut kvs = state.read_at(&range, request.revision, pending)?;
    let count = i64::try_from(kvs.len()).expect("memory ends before");
    let mut answer = RangeResponse {
        count,
        ..Default::default()
    };
    if request.count_only {
        return Ok(answer);
    }
    let within = |value: i64, least: i64, most: i64| {
        (least == 0 || value >= least) && (most == 0 || value <= most)
    };
    kvs.retain(|kv| {
        within(
            kv.mod_revision,
            request.min_mod_revision,
            request.max_mod_revision,
        ) && within(
            kv.create_revision,
            request.min_create_revision,
            request.max_create_revision,
        )
    });
    sort(&mut kvs, request);
    if let Ok(limit) = usize::try_from(request.limit)
        && limit > 0
        && kvs.len() > limit
    {
        kvs.truncate(limit);
        answer.more = true;
    }
    if request.keys_only {
        for kv in &mut kvs {
            kv.value = Bytes::new();
        }
    }
    answer.kvs = kvs;
    Ok(answer)
}

/// Equals stay in key order.
fn sort(kvs: &mut [KeyValue], request: &RangeRequest) {
    let by = |a: &KeyValue, b: &KeyValue| match request.sort_target() {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match request.sort_order() {
        SortOrder::None | SortOrder::Ascend => kvs.sort_by(by),
        SortOrder::Descend => kvs.sort_by(|a, b| by(b, a)),
    }
}

fn span(key: &Bytes, end: &Bytes) -> KeyRange {
    KeyRange {
        start: key.clone(),
        end: end.clone(),
    }
}
