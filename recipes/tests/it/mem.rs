//! The store in memory against a node in this process: random requests, and the same answers and the
//! same watch events from both.

use std::time::Duration;

use futures::StreamExt;
use quorate_core::node::Node;
use quorate_proto::etcdserverpb::compare::TargetUnion;
use quorate_proto::etcdserverpb::range_request::SortTarget;
use quorate_proto::etcdserverpb::request_op::Request;
use quorate_proto::etcdserverpb::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseHeader, TxnRequest,
    WatchCreateRequest, WatchResponse,
};
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_recipes::keys::{LeaseId, Revision};
use quorate_recipes::store::embedded::Embedded;
use quorate_recipes::store::{MemStore, Store, StoreError, WatchStream};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Draws requests over a few keys, leases and revisions, so that they meet.
struct Draw {
    random: SmallRng,
    revision: i64,
}

impl Draw {
    fn below(&mut self, most: u32) -> u32 {
        self.random.random_range(0..most)
    }

    fn one_in(&mut self, most: u32) -> bool {
        self.below(most) == 0
    }

    fn number(&mut self, most: i64) -> i64 {
        self.random.random_range(0..=most)
    }

    fn key(&mut self) -> bytes::Bytes {
        let keys = ["", "a", "a/1", "a/2", "b", "c", "\0"];
        let index = match self.one_in(40) {
            true => 0,
            false => 1 + self.below(6) as usize,
        };
        keys[index].into()
    }

    fn end(&mut self) -> bytes::Bytes {
        let ends = ["", "", "", "a0", "b", "\0", "c"];
        ends[self.below(7) as usize].into()
    }

    fn at(&mut self) -> i64 {
        match self.below(4) {
            0 => self.revision + self.number(2) - 1,
            1 => self.number(self.revision),
            _ => 0,
        }
    }

    fn range(&mut self) -> RangeRequest {
        let bound = |draw: &mut Self| match draw.one_in(6) {
            true => draw.number(draw.revision),
            false => 0,
        };
        RangeRequest {
            key: self.key(),
            range_end: self.end(),
            limit: self.number(3),
            revision: match self.one_in(4) {
                true => self.at(),
                false => 0,
            },
            sort_order: self.below(3) as i32,
            sort_target: self.below(5) as i32,
            keys_only: self.one_in(3),
            count_only: self.one_in(8),
            min_mod_revision: bound(self),
            max_mod_revision: bound(self),
            min_create_revision: bound(self),
            max_create_revision: bound(self),
            ..Default::default()
        }
    }

    fn put(&mut self) -> PutRequest {
        let (ignore_value, ignore_lease) = (self.one_in(5), self.one_in(5));
        let value = match ignore_value && !self.one_in(5) {
            true => String::new(),
            false => format!("v{}", self.below(3)),
        };
        let lease = match ignore_lease && !self.one_in(5) {
            true => 0,
            false => self.number(4),
        };
        PutRequest {
            key: self.key(),
            value: value.into(),
            lease,
            prev_kv: self.one_in(2),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let end = match self.one_in(3) {
            true => self.end(),
            false => bytes::Bytes::new(),
        };
        DeleteRangeRequest {
            key: self.key(),
            // To the end of all keys only where no put can stand beside it.
            range_end: if end[..] == [0] { "b".into() } else { end },
            prev_kv: self.one_in(2),
        }
    }

    fn compare(&mut self) -> Compare {
        let target = self.below(5);
        let number = self.at().max(0);
        let union = match target {
            0 => TargetUnion::Version(self.number(3)),
            1 => TargetUnion::CreateRevision(number),
            2 => TargetUnion::ModRevision(number),
            3 => TargetUnion::Value(format!("v{}", self.below(3)).into()),
            _ => TargetUnion::Lease(self.number(4)),
        };
        let end = match self.one_in(2) {
            true => self.end(),
            false => bytes::Bytes::new(),
        };
        Compare {
            result: self.below(4) as i32,
            target: target as i32,
            key: self.key(),
            range_end: end,
            target_union: Some(union),
        }
    }

    fn op(&mut self, depth: u32) -> RequestOp {
        match self.below(if depth < 2 { 8 } else { 7 }) {
            0..3 => Request::RequestPut(self.put()).into(),
            3..5 => Request::RequestDeleteRange(self.delete()).into(),
            5..7 => {
                // Equals have no defined order, and inside a transaction they are not sorted out.
                let mut range = self.range();
                range.sort_target = SortTarget::Key.into();
                Request::RequestRange(range).into()
            }
            _ => Request::RequestTxn(self.txn(depth + 1)).into(),
        }
    }

    fn txn(&mut self, depth: u32) -> TxnRequest {
        let size = if self.one_in(300) { 140 } else { 3 };
        let many = |draw: &mut Self, most| draw.below(most) as usize;
        let (compares, success, failure) = (many(self, 3), many(self, size), many(self, 3));
        TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: (0..success).map(|_| self.op(depth)).collect(),
            failure: (0..failure).map(|_| self.op(depth)).collect(),
        }
    }

    fn watch(&mut self) -> WatchCreateRequest {
        let filters = (0..2).filter(|_| self.one_in(6)).collect();
        WatchCreateRequest {
            key: self.key(),
            range_end: self.end(),
            start_revision: self.at().max(0),
            prev_kv: self.one_in(2),
            filters,
            ..Default::default()
        }
    }
}

/// The kind and not the text, which may name a transport.
fn kind(error: &StoreError) -> String {
    let text = format!("{error:?}");
    let end = text.find(['(', ' ']).unwrap_or(text.len());
    text[..end].to_owned()
}

fn plain(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        *header = ResponseHeader {
            revision: header.revision,
            ..Default::default()
        };
    }
}

/// Puts equals in key order.
fn in_key_order(kvs: &mut [KeyValue], target: SortTarget) {
    let equal = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Key => a.key == b.key,
        SortTarget::Version => a.version == b.version,
        SortTarget::Create => a.create_revision == b.create_revision,
        SortTarget::Mod => a.mod_revision == b.mod_revision,
        SortTarget::Value => a.value == b.value,
    };
    for equals in kvs.chunk_by_mut(equal) {
        equals.sort_by(|a, b| a.key.cmp(&b.key));
    }
}

/// What a watch has told: the answers that are no events, and the events.
#[derive(Debug, Clone, Default, PartialEq)]
struct Told {
    marks: Vec<(i64, bool, bool, i64)>,
    events: Vec<Event>,
}

/// A stream of watches, and what each has told.
struct Watching {
    stream: WatchStream,
    told: Vec<Told>,
}

impl Watching {
    fn new(stream: WatchStream, watches: usize) -> Self {
        let told = vec![Told::default(); watches + 1];
        Self { stream, told }
    }

    fn take(&mut self, answer: WatchResponse) {
        let told = &mut self.told[usize::try_from(answer.watch_id.max(0)).unwrap()];
        if answer.created || answer.canceled {
            let compacted = answer.compact_revision;
            let mark = (answer.watch_id, answer.created, answer.canceled, compacted);
            told.marks.push(mark);
        }
        if let (Some(first), Some(last)) = (answer.events.first(), told.events.last()) {
            let revision = |event: &Event| event.kv.as_ref().unwrap().mod_revision;
            assert!(revision(first) > revision(last), "a revision was split");
        }
        told.events.extend(answer.events);
    }

    fn seen(&self) -> usize {
        let each = self.told.iter();
        each.map(|told| told.marks.len() + told.events.len()).sum()
    }

    /// Reads what is there.
    async fn drain(&mut self) {
        while let Ok(Some(answer)) = tokio::time::timeout(Duration::ZERO, self.stream.next()).await
        {
            self.take(answer.unwrap());
        }
    }

    /// Reads as much as another has read.
    async fn follow(&mut self, other: &Self) {
        let limit = Duration::from_secs(5);
        while self.seen() < other.seen()
            && let Ok(Some(answer)) = tokio::time::timeout(limit, self.stream.next()).await
        {
            self.take(answer.unwrap());
        }
    }
}

async fn compare(place: &str, ours: &mut Watching, theirs: &mut Watching) {
    ours.drain().await;
    theirs.follow(ours).await;
    theirs.drain().await;
    assert_eq!(ours.told, theirs.told, "{place}");
}

async fn run(seed: u64, steps: usize) {
    let node = Node::builder().in_memory().start().await.unwrap();
    let (ours, theirs) = (MemStore::new(), Embedded::new(node.clone()));
    let mut draw = Draw {
        random: SmallRng::seed_from_u64(seed),
        revision: 1,
    };
    let mut streams: Vec<(String, Watching, Watching)> = Vec::new();
    for step in 0..steps {
        draw.revision = ours.revision().0;
        let place = format!("seed {seed} step {step}");
        match draw.below(20) {
            0..9 => {
                let request = draw.txn(0);
                let (a, b) = (
                    ours.txn(request.clone()).await,
                    theirs.txn(request.clone()).await,
                );
                let plain = |mut answer: quorate_proto::etcdserverpb::TxnResponse| {
                    plain(&mut answer.header);
                    answer
                };
                let a = a.map(plain).map_err(|error| kind(&error));
                let b = b.map(plain).map_err(|error| kind(&error));
                assert_eq!(a, b, "{place}: {request:#?}");
            }
            9..15 => {
                let mut request = draw.range();
                if request.sort_target() != SortTarget::Key {
                    // Which of equals come is not defined.
                    request.limit = 0;
                }
                let (a, b) = (
                    ours.range(request.clone()).await,
                    theirs.range(request.clone()).await,
                );
                let plain = |mut answer: quorate_proto::etcdserverpb::RangeResponse| {
                    plain(&mut answer.header);
                    in_key_order(&mut answer.kvs, request.sort_target());
                    answer
                };
                let a = a.map(plain).map_err(|error| kind(&error));
                let b = b.map(plain).map_err(|error| kind(&error));
                assert_eq!(a, b, "{place}: {request:#?}");
            }
            15 => {
                let id = LeaseId(1 + draw.number(3));
                let ttl = Duration::from_secs(1000);
                let (a, b) = (
                    ours.lease_grant(id, ttl).await,
                    theirs.lease_grant(id, ttl).await,
                );
                let short = |lease: quorate_recipes::store::Lease| {
                    (lease.id, lease.ttl, lease.header.revision)
                };
                assert_eq!(a.map(short), b.map(short), "{place}");
            }
            16 => {
                let id = LeaseId(1 + draw.number(3));
                let (a, b) = (ours.lease_revoke(id).await, theirs.lease_revoke(id).await);
                assert_eq!(a, b, "{place}");
            }
            17 => {
                let id = LeaseId(1 + draw.number(3));
                let (a, b) = (
                    ours.lease_keep_alive(id).await.unwrap(),
                    theirs.lease_keep_alive(id).await.unwrap(),
                );
                assert_eq!(
                    a.map(|lease| lease.ttl),
                    b.map(|lease| lease.ttl),
                    "{place}"
                );
                let (a, b) = (
                    ours.lease_ttl(id).await.unwrap(),
                    theirs.lease_ttl(id).await.unwrap(),
                );
                assert_eq!(
                    a.map(|lease| lease.granted),
                    b.map(|lease| lease.granted),
                    "{place}"
                );
            }
            18 if draw.one_in(8) => {
                let revision = draw.number(draw.revision + 1);
                let request = quorate_proto::etcdserverpb::CompactionRequest {
                    revision,
                    ..Default::default()
                };
                // Compacting an uncompacted store at 0 is nothing; ours refuses it.
                if revision > 0 {
                    // What was sent before keeps what the compaction takes away.
                    for (place, a, b) in &mut streams {
                        compare(place, a, b).await;
                    }
                    let a = ours.compact(Revision(revision)).is_ok();
                    assert_eq!(a, node.compact(request).await.is_ok(), "{place}");
                }
            }
            _ if streams.len() < 12 => {
                let requests: Vec<_> = (0..=draw.below(2)).map(|_| draw.watch()).collect();
                let place = format!("{place}: {requests:#?}");
                let (a, b) = (
                    ours.watch(requests.clone()).await.unwrap(),
                    theirs.watch(requests.clone()).await.unwrap(),
                );
                let mut a = Watching::new(a, requests.len());
                let mut b = Watching::new(b, requests.len());
                compare(&place, &mut a, &mut b).await;
                streams.push((place, a, b));
            }
            _ => {}
        }
        assert_eq!(ours.revision().0, node.header().revision);
    }
    for (place, a, b) in &mut streams {
        compare(place, a, b).await;
    }
    node.shutdown().await;
}

/// Answers are the same as a node's, and so are the events of watches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_in_memory_answers_as_a_node() {
    let rounds = std::env::var("QUORATE_ROUNDS").ok();
    let rounds: u64 = rounds.and_then(|text| text.parse().ok()).unwrap_or(6);
    for seed in 0..rounds {
        run(seed, 400).await;
    }
}
