//! What the state machine promises, seen as its users see it: commands in, answers, events and
//! reads out.

mod alarm;
mod check;
mod kv;
mod lease;
mod replay;
mod restored;
mod txn;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, PutResponse, TxnRequest, TxnResponse,
};
use quorate_proto::log::{
    self, LeaseCheckpoint, LeaseExpire, LeaseGrant, LeaseRevoke, Proposal, RemainingTtl,
    command::Kind,
};
use quorate_proto::mvccpb::KeyValue;
use uuid::Uuid;

use super::{Answer, Applied, Committed, Options, Payload, State};
use crate::mvcc::{self, EventKind};
use crate::storage::kv::MemKv;
use crate::storage::wal::EntryId;

/// What a command says.
type Command = Kind;

/// This member's process start, in all tests.
const OWN: Uuid = Uuid::from_u128(1);

/// A store and the log that is fed to it.
struct Machine {
    state: State,
    index: u64,
    /// Events so far: (revision, kind, key, previous value).
    events: Vec<(i64, EventKind, Bytes, Option<Bytes>)>,
}

impl Machine {
    fn new() -> Self {
        let kv = Arc::new(MemKv::new());
        let state = State::open(kv, &Options::default()).expect("an empty store opens");
        Self {
            state,
            index: 0,
            events: Vec::new(),
        }
    }

    fn entry(&mut self, commands: Vec<Command>) -> Committed {
        self.index += 1;
        Committed {
            id: EntryId::new(1, self.index),
            payload: Payload::Normal(batch(commands)),
        }
    }

    fn apply_entries(&mut self, entries: Vec<Committed>) -> Applied {
        let applied = self
            .state
            .apply(entries, OWN)
            .expect("memory does not fail");
        for event in applied.publication.events() {
            let prev = event.prev_kv.as_ref().map(|kv| kv.value.clone());
            let revision = event.revision.main;
            let key = event.kv.key.clone();
            self.events.push((revision, event.kind, key, prev));
        }
        applied
    }

    /// One command in a batch of its own.
    fn run(&mut self, command: Command) -> Result<Answer, Reason> {
        let entry = self.entry(vec![command]);
        let mut applied = self.apply_entries(vec![entry]);
        applied.outcomes.pop().expect("an outcome").result
    }

    fn revision(&self) -> i64 {
        self.state.reader().revision()
    }

    fn pair(&self, key: &str) -> Option<KeyValue> {
        let view = self.state.reader().view();
        mvcc::key_value_at(&*view, &Bytes::copy_from_slice(key.as_bytes()), 0).expect("readable")
    }

    fn keys_of_lease(&self, lease: i64) -> Vec<Bytes> {
        let view = self.state.reader().view();
        mvcc::keys_of_lease(&*view, lease).expect("readable")
    }

    /// Runs a put that must pass.
    fn put(&mut self, request: PutRequest) -> PutResponse {
        match self.run(put(request)) {
            Ok(Answer::Put(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn txn(&mut self, request: TxnRequest) -> Result<TxnResponse, Reason> {
        let answer = self.run(Kind::Txn(request))?;
        let Answer::Txn(answer) = answer else {
            panic!("{answer:?}")
        };
        Ok(answer)
    }

    fn grant(&mut self, id: i64) {
        let grant = Kind::LeaseGrant(LeaseGrant {
            id,
            ttl_seconds: 60,
        });
        self.run(grant).expect("a fresh lease id");
    }

    /// Keys of the last `count` events.
    fn last_events(&self, count: usize) -> Vec<(i64, EventKind, &[u8])> {
        self.events[self.events.len() - count..]
            .iter()
            .map(|(revision, kind, key, _)| (*revision, *kind, key.as_ref()))
            .collect()
    }
}

fn batch(commands: Vec<Command>) -> Bytes {
    let proposals = commands
        .into_iter()
        .zip(1..)
        .map(|(command, sequence)| Proposal {
            boot_id: Bytes::copy_from_slice(OWN.as_bytes()),
            sequence,
            command: Some(log::Command {
                kind: Some(command),
            }),
        });
    log::Batch {
        proposals: proposals.collect(),
    }
    .encode_to_vec()
    .into()
}

/// `key` with `value`, nothing else.
fn pair_of(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..PutRequest::default()
    }
}

fn put(request: PutRequest) -> Command {
    Kind::Put(request)
}

fn delete(key: &str, range_end: &str) -> Command {
    Kind::DeleteRange(DeleteRangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(range_end.as_bytes()),
        prev_kv: true,
    })
}

fn compact(revision: i64) -> Command {
    Kind::Compact(CompactionRequest {
        revision,
        physical: false,
    })
}

fn revoke(id: i64) -> Command {
    Kind::LeaseRevoke(LeaseRevoke { id })
}

fn expire(ids: &[i64]) -> Command {
    Kind::LeaseExpire(LeaseExpire {
        ids: ids.to_vec(),
        as_of: 0,
    })
}

fn checkpoint(id: i64, remaining_ttl_seconds: i64) -> Command {
    let remaining = RemainingTtl {
        id,
        remaining_ttl_seconds,
    };
    Kind::LeaseCheckpoint(LeaseCheckpoint {
        leases: vec![remaining],
    })
}

/// The revision in a header.
fn at(header: Option<&quorate_proto::etcdserverpb::ResponseHeader>) -> i64 {
    header.expect("a header").revision
}
