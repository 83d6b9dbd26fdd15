//! Walks through the messages for what differs between two stores that do the same: the ids in
//! headers, and the lease ids that the servers chose.

use quorate_proto::etcdserverpb::compare::TargetUnion;
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::response_op::Response;
use quorate_proto::etcdserverpb::{ResponseHeader, TxnRequest, TxnResponse};
use quorate_proto::mvccpb::{Event, KeyValue};

use super::op::{Op, Reply};

/// A place in a reply that needs translation.
#[derive(Debug)]
pub(crate) enum Part<'a> {
    Header(&'a mut ResponseHeader),
    Lease(&'a mut i64),
}

/// Gives every lease id of an operation to `translate`.
pub(crate) fn leases_of(op: &mut Op, translate: &mut dyn FnMut(&mut i64)) {
    match op {
        Op::Put(request) => translate(&mut request.lease),
        Op::Txn(request) => leases_of_txn(request, translate),
        Op::LeaseGrant(request) => translate(&mut request.id),
        Op::LeaseRevoke(request) => translate(&mut request.id),
        Op::LeaseKeepAlive(id) => translate(id),
        Op::LeaseTimeToLive(request) => translate(&mut request.id),
        Op::Lock(request) => translate(&mut request.lease),
        Op::Campaign(request) => translate(&mut request.lease),
        // The rest names no leases; a leader key comes from a campaign with a lease of its own id.
        _ => {}
    }
}

fn leases_of_txn(request: &mut TxnRequest, translate: &mut dyn FnMut(&mut i64)) {
    for compare in &mut request.compare {
        if let Some(TargetUnion::Lease(lease)) = &mut compare.target_union {
            translate(lease);
        }
    }
    for operation in request.success.iter_mut().chain(&mut request.failure) {
        match &mut operation.request {
            Some(Request::RequestPut(put)) => translate(&mut put.lease),
            Some(Request::RequestTxn(nested)) => leases_of_txn(nested, translate),
            Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => {}
        }
    }
}

/// Gives every header and every lease id of a reply to `visit`.
pub(crate) fn parts_of(reply: &mut Reply, visit: &mut dyn FnMut(Part<'_>)) {
    let header = match reply {
        Reply::Range(answer) => {
            pairs(&mut answer.kvs, visit);
            &mut answer.header
        }
        Reply::Put(answer) => {
            pairs(&mut answer.prev_kv, visit);
            &mut answer.header
        }
        Reply::DeleteRange(answer) => {
            pairs(&mut answer.prev_kvs, visit);
            &mut answer.header
        }
        Reply::Txn(answer) => return parts_of_txn(answer, visit),
        Reply::Compact(answer) => &mut answer.header,
        Reply::LeaseGrant(answer) => {
            visit(Part::Lease(&mut answer.id));
            &mut answer.header
        }
        Reply::LeaseRevoke(answer) => &mut answer.header,
        Reply::LeaseKeepAlive(answer) => {
            visit(Part::Lease(&mut answer.id));
            &mut answer.header
        }
        Reply::LeaseTimeToLive(answer) => {
            visit(Part::Lease(&mut answer.id));
            &mut answer.header
        }
        Reply::LeaseLeases(answer) => {
            for lease in &mut answer.leases {
                visit(Part::Lease(&mut lease.id));
            }
            &mut answer.header
        }
        Reply::Watch(answer) => {
            for event in &mut answer.events {
                parts_of_event(event, visit);
            }
            &mut answer.header
        }
        Reply::Alarm(answer) => &mut answer.header,
        Reply::Status(answer) => &mut answer.header,
        Reply::Hash(answer) => &mut answer.header,
        Reply::HashKv(answer) => &mut answer.header,
        Reply::Defragment(answer) => &mut answer.header,
        Reply::MoveLeader(answer) => &mut answer.header,
        Reply::Downgrade(answer) => &mut answer.header,
        Reply::MemberList(answer) => &mut answer.header,
        Reply::Lock(answer) => &mut answer.header,
        Reply::Unlock(answer) => &mut answer.header,
        Reply::Campaign(answer) => {
            if let Some(leader) = &mut answer.leader {
                visit(Part::Lease(&mut leader.lease));
            }
            &mut answer.header
        }
        Reply::Proclaim(answer) => &mut answer.header,
        Reply::Resign(answer) => &mut answer.header,
        Reply::Leader(answer) => {
            pairs(&mut answer.kv, visit);
            &mut answer.header
        }
        Reply::Nothing => return,
    };
    if let Some(header) = header {
        visit(Part::Header(header));
    }
}

fn parts_of_txn(answer: &mut TxnResponse, visit: &mut dyn FnMut(Part<'_>)) {
    for response in &mut answer.responses {
        let header = match &mut response.response {
            Some(Response::ResponseRange(answer)) => {
                pairs(&mut answer.kvs, visit);
                &mut answer.header
            }
            Some(Response::ResponsePut(answer)) => {
                pairs(&mut answer.prev_kv, visit);
                &mut answer.header
            }
            Some(Response::ResponseDeleteRange(answer)) => {
                pairs(&mut answer.prev_kvs, visit);
                &mut answer.header
            }
            Some(Response::ResponseTxn(nested)) => {
                parts_of_txn(nested, visit);
                continue;
            }
            None => continue,
        };
        if let Some(header) = header {
            visit(Part::Header(header));
        }
    }
    if let Some(header) = &mut answer.header {
        visit(Part::Header(header));
    }
}

/// Gives the lease ids of an event to `visit`.
pub(crate) fn parts_of_event(event: &mut Event, visit: &mut dyn FnMut(Part<'_>)) {
    pairs(&mut event.kv, visit);
    pairs(&mut event.prev_kv, visit);
}

fn pairs<'a>(pairs: impl IntoIterator<Item = &'a mut KeyValue>, visit: &mut dyn FnMut(Part<'_>)) {
    for pair in pairs {
        visit(Part::Lease(&mut pair.lease));
    }
}
