//! Client requests: decoded (or made from choices), checked, and executed, allowed or not, by the state machine. No request
//! panics; a refused one changes nothing; none moves the revision by more than one; reads return what
//! was asked for, now and later; what is in memory is what the store says; and the state can be saved.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt;
use prost::Message;
use quorate_core::apply::{Answer, Committed, Options, Payload, State, check, txn};
use quorate_core::backup::Backup;
use quorate_core::mvcc::{self, RangeQuery, RangeResult, compaction, hash, history};
use quorate_core::storage::codec::{MetaKey, meta_key};
use quorate_core::storage::kv::{Direction, Kv, KvError, MemKv, View, WriteBatch};
use quorate_core::storage::wal::EntryId;
use quorate_core::watch::{self, Hub, Watcher};
use quorate_proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, TxnRequest, WatchRequest, watch_request::RequestUnion,
};
use quorate_proto::limits::TXN_OPS_MAX;
use quorate_proto::log::{self, LeaseGrant, LeaseRevoke, Proposal, command::Kind};
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::{KeyRange, Reason, etcdserverpb as api, v3electionpb, v3lockpb};
use uuid::Uuid;

use crate::Input;

mod made;

const OWN: Uuid = Uuid::from_u128(1);
/// Requests of one run at most.
const REQUESTS_MAX: usize = 8;
/// Bytes that a backup may sort at once: so few that it has to scan more than once.
const SORT_BYTES: usize = 400;
/// Log entries of the beginning.
const BEGINNING_ENTRIES: u64 = 9;
/// Removal steps of one compaction at most; the runs' stores are small.
const STEPS_MAX: usize = 64;

/// One run: requests, each a byte that says which kind and a piece that is to be decoded.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut member = Member::new();
    for _ in 0..REQUESTS_MAX {
        if input.is_empty() {
            break;
        }
        let kind = input.byte();
        member.request(kind, input.piece());
    }
    if member.is_touched() {
        member.remembers();
        member.can_be_backed_up();
        member.agrees_with_its_store();
    }
}

/// Whether two views hold the same, but for how far the log is applied.
fn same(one: &dyn View, other: &dyn View) -> bool {
    fn content(view: &dyn View) -> impl Iterator<Item = (Bytes, Bytes)> {
        let applied = meta_key(MetaKey::Applied);
        let all = view.range(Bound::Unbounded, Bound::Unbounded, Direction::Forward);
        all.map(|pair| pair.expect("memory does not fail"))
            .filter(move |(key, _)| *key != applied)
    }
    content(one).eq(content(other))
}

/// A state machine with a little history, its log, and those who watch.
struct Member {
    kv: Arc<MemKv>,
    state: State,
    index: u64,
    hub: Hub,
    watchers: Vec<Watcher>,
    /// All pairs, as they were read when their revision was the current one.
    past: BTreeMap<i64, Vec<KeyValue>>,
}

/// Keys with versions and gaps, two leases, a compaction that is not carried out.
fn beginning() -> &'static WriteBatch {
    static BEGINNING: OnceLock<WriteBatch> = OnceLock::new();
    BEGINNING.get_or_init(|| {
        let mut member = Member::over(Arc::new(MemKv::new()));
        let grant = |id| {
            Kind::LeaseGrant(LeaseGrant {
                id,
                ttl_seconds: 60,
            })
        };
        let put = |key: &'static str, value: &'static str, lease| {
            Kind::Put(PutRequest {
                key: key.into(),
                value: value.into(),
                lease,
                ..PutRequest::default()
            })
        };
        let gone = Kind::DeleteRange(DeleteRangeRequest {
            key: "c".into(),
            ..DeleteRangeRequest::default()
        });
        for command in [
            grant(1),
            grant(2),
            put("a", "1", 0),
            put("a", "2", 1),
            put("b", "3", 1),
            put("c", "4", 0),
            gone,
            put("c", "5", 2),
        ] {
            member.command(command).expect("a plain request");
        }
        let compact = CompactionRequest {
            revision: 3,
            physical: false,
        };
        member.command(Kind::Compact(compact)).expect("in the past");
        let view = member.kv.view();
        let all = view.range(Bound::Unbounded, Bound::Unbounded, Direction::Forward);
        let mut batch = WriteBatch::new();
        for pair in all {
            let (key, value) = pair.expect("memory does not fail");
            batch.put(key, value);
        }
        batch
    })
}

impl Member {
    fn new() -> Self {
        let kv = MemKv::new();
        kv.commit(beginning().clone())
            .expect("memory does not fail");
        Self::over(Arc::new(kv))
    }

    fn over(kv: Arc<MemKv>) -> Self {
        let store: Arc<dyn Kv> = Arc::<MemKv>::clone(&kv);
        let state = State::open(Arc::clone(&store), &Options::default()).expect("a good store");
        let reader = state.reader();
        let hub = Hub::new(
            Arc::new(move || store.view()),
            reader.revision(),
            reader.compact_revision(),
            &watch::Options::default(),
        );
        let index = state.applied().0.map_or(0, |applied| applied.index);
        Self {
            kv,
            state,
            index,
            hub,
            watchers: Vec::new(),
            past: BTreeMap::new(),
        }
    }

    /// Whether anything was written, or anybody watches.
    fn is_touched(&self) -> bool {
        self.index > BEGINNING_ENTRIES || !self.watchers.is_empty()
    }

    fn pairs_at(&self, revision: i64) -> Vec<KeyValue> {
        let query = RangeQuery {
            revision,
            ..RangeQuery::new(KeyRange::all())
        };
        let found = mvcc::range(&*self.kv.view(), &query);
        found.expect("a revision that is there").kvs
    }

    fn revision(&self) -> i64 {
        self.state.reader().revision()
    }

    /// Decodes a request of a kind and does with it what the member does.
    fn request(&mut self, kind: u8, body: &[u8]) {
        match kind % 16 {
            0 => decoded(body, |request| self.range(&request)),
            1 => decoded(body, |request| self.put(request)),
            2 => decoded(body, |request| self.delete(request)),
            3 => decoded(body, |request| self.txn(request)),
            4 => decoded(body, |request| self.compact(request)),
            5 => decoded(body, |request| self.watch(request)),
            6 => decoded(body, |request: LeaseGrantRequest| {
                let grant = LeaseGrant {
                    id: request.id,
                    ttl_seconds: request.ttl,
                };
                self.judged(Ok(()), Kind::LeaseGrant(grant));
            }),
            7 => decoded(body, |request: LeaseRevokeRequest| {
                let id = request.id;
                self.judged(Ok(()), Kind::LeaseRevoke(LeaseRevoke { id }));
            }),
            8 => decoded(body, |request: AlarmRequest| {
                let checked = check::alarm(&request);
                self.judged(checked, Kind::Alarm(request));
            }),
            9 => decoded(body, |command: log::Command| {
                if let Some(kind) = command.kind {
                    drop(self.command(kind));
                }
            }),
            10 => self.entry(body),
            11 => decoded(body, |request: api::HashKvRequest| {
                let view = self.kv.view();
                if let Ok(found) = hash::hash_kv(&*view, request.revision) {
                    assert!(found.revision <= found.current_revision);
                }
            }),
            12 => others(body),
            _ => self.made(&mut Input::new(body)),
        }
    }

    /// Does with made requests what the member does, until the input is used up.
    fn made(&mut self, input: &mut Input<'_>) {
        for _ in 0..REQUESTS_MAX {
            if input.is_empty() {
                break;
            }
            match input.byte() % 8 {
                0 => self.range(&made::range(input)),
                1 => self.put(made::put(input)),
                2 => self.delete(made::delete(input)),
                3 => {
                    let revision = i64::from(input.byte() % 16);
                    self.compact(CompactionRequest {
                        revision,
                        physical: false,
                    });
                }
                4 => {
                    let id = i64::from(input.byte() % 4);
                    drop(self.command(Kind::LeaseRevoke(LeaseRevoke { id })));
                }
                _ => self.txn(made::txn(input, 1)),
            }
        }
    }

    /// Proposes a command; checks what holds for all of them.
    fn command(&mut self, kind: Kind) -> Result<Answer, Reason> {
        let leases = match &kind {
            Kind::LeaseExpire(expire) => expire.ids.len(),
            _ => 1,
        };
        let moves_max = i64::try_from(leases).expect("a vector's length fits an i64");
        let (revision, before) = (self.revision(), self.kv.view());
        let proposal = Proposal {
            boot_id: Bytes::copy_from_slice(OWN.as_bytes()),
            sequence: 1,
            command: Some(log::Command { kind: Some(kind) }),
        };
        let batch = log::Batch {
            proposals: vec![proposal],
        };
        let entry = Bytes::from(batch.encode_to_vec());
        if log::Batch::decode(entry.clone()).is_err() {
            // So deep that only the request alone decodes: refused before it is proposed.
            return Err(Reason::TxnTooDeep);
        }
        let mut outcomes = self.apply(entry).expect("an entry that decodes");
        assert_eq!(outcomes.len(), 1, "one outcome a proposal");
        let moved = self.revision() - revision;
        assert!(
            (0..=moves_max).contains(&moved),
            "the revision moved by {moved}"
        );
        let result = outcomes.remove(0);
        if moved > 0 {
            self.past.insert(self.revision(), self.pairs_at(0));
        }
        if result.is_err() {
            let unchanged = same(&*before, &*self.kv.view());
            assert!(
                unchanged && moved == 0,
                "refused, {result:?}, but something changed"
            );
        }
        result
    }

    fn apply(&mut self, batch: Bytes) -> Result<Vec<Result<Answer, Reason>>, KvError> {
        let committed = Committed {
            id: EntryId::new(1, self.index + 1),
            payload: Payload::Normal(batch),
        };
        let applied = self.state.apply(vec![committed], OWN)?;
        self.index += 1;
        self.hub.publish(applied.publication);
        let results = applied.outcomes.into_iter();
        Ok(results.map(|outcome| outcome.result).collect())
    }

    /// A log entry of any bytes.
    fn entry(&mut self, body: &[u8]) {
        let before = self.kv.view();
        if self.apply(Bytes::copy_from_slice(body)).is_err() {
            assert!(same(&*before, &*self.kv.view()), "lost as a whole");
        }
    }

    /// Proposes what `check` judged: what it refused must be refused again.
    fn judged(&mut self, checked: Result<(), Reason>, kind: Kind) {
        let result = self.command(kind);
        assert!(
            checked.is_ok() || result.is_err(),
            "the check said {checked:?}, it was executed"
        );
    }

    fn put(&mut self, request: PutRequest) {
        let checked = check::put(&request);
        let asked = request.clone();
        let result = self.command(Kind::Put(request));
        assert!(checked.is_ok() || result.is_err());
        if result.is_ok() {
            let view = self.kv.view();
            let found = mvcc::key_value_at(&*view, &asked.key, 0).expect("memory does not fail");
            let pair = found.expect("it was put");
            assert_eq!(pair.mod_revision, self.revision());
            assert!(asked.ignore_value || pair.value == asked.value);
            assert!(asked.ignore_lease || pair.lease == asked.lease);
        }
    }

    fn delete(&mut self, request: DeleteRangeRequest) {
        let checked = check::delete_range(&request);
        let revision = self.revision();
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let result = self.command(Kind::DeleteRange(request));
        assert!(checked.is_ok() || result.is_err());
        if let Ok(Answer::DeleteRange(answer)) = result {
            let moved = self.revision() - revision;
            assert_eq!(moved, answer.deleted.min(1));
            let view = self.kv.view();
            let left = mvcc::range(&*view, &RangeQuery::new(range)).expect("memory does not fail");
            assert_eq!(left.count, 0, "nothing is left");
        }
    }

    fn compact(&mut self, request: CompactionRequest) {
        let target = request.revision;
        if self.command(Kind::Compact(request)).is_err() {
            return;
        }
        assert_eq!(self.state.reader().compact_revision(), target);
        let before = hash::hash_kv(&*self.kv.view(), 0).expect("the current revision is there");
        let pending = compaction::pending(&*self.kv.view()).expect("its own record");
        let mut next = pending;
        for _ in 0..STEPS_MAX {
            let Some(cursor) = next else { break };
            let step = compaction::step(&*self.kv.view(), cursor, 3).expect("its own records");
            self.kv.commit(step.batch).expect("memory does not fail");
            next = step.next;
        }
        let after = hash::hash_kv(&*self.kv.view(), 0).expect("the current revision is there");
        assert_eq!(before, after, "removal is not seen");
    }

    fn txn(&mut self, request: TxnRequest) {
        let checked = check::txn(&request, TXN_OPS_MAX);
        let reads_only = txn::Writes::of(&request).is_none();
        let read =
            (reads_only && checked.is_ok()).then(|| txn::read(self.kv.view(), request.clone()));
        let revision = self.revision();
        let result = self.command(Kind::Txn(request));
        match checked {
            // Only the limit on operations is an option of the member that asks.
            Err(reason) if reason != Reason::TooManyOps => assert!(result.is_err(), "{reason:?}"),
            _ => {}
        }
        let Some(read) = read else { return };
        assert_eq!(revision, self.revision(), "reads change nothing");
        match (read, result) {
            (Ok(read), Ok(Answer::Txn(applied))) => assert_eq!(read, applied),
            (Err(mvcc::Error::Refused(one)), Err(other)) => assert_eq!(one, other),
            other => panic!("read and applied alike: {other:?}"),
        }
    }

    fn range(&mut self, request: &RangeRequest) {
        let checked = check::range(request);
        let query = RangeQuery::from_request(request);
        if checked.is_err() {
            return;
        }
        let query = query.expect("what the check lets through can be asked");
        let view = self.kv.view();
        match mvcc::range(&*view, &query) {
            Ok(found) => answers(&query, &found),
            Err(mvcc::Error::Refused(Reason::Compacted | Reason::FutureRevision)) => {}
            Err(error) => panic!("{error}"),
        }
        let page = mvcc::scan_page(&*view, &query.range, query.revision, 2);
        assert!(page.is_err() || page.is_ok_and(|page| page.revision == self.revision()));
    }

    fn watch(&mut self, request: WatchRequest) {
        let Some(RequestUnion::CreateRequest(create)) = request.request_union else {
            return;
        };
        let start = create.start_revision;
        let wanted = watch::Request {
            start_revision: start,
            prev_kv: create.prev_kv,
            ..watch::Request::new(KeyRange::from_wire(create.key, create.range_end))
        };
        let watching = self.hub.watch(wanted);
        // Those that catch up read on another thread; only what comes at once is looked at here.
        if start == 0 || start > self.revision() {
            self.watchers.extend(watching.ok());
        }
    }

    /// What was once read reads the same as long as it is not compacted, and every revision since
    /// then has its events.
    fn remembers(&self) {
        let reader = self.state.reader();
        let compacted = reader.compact_revision();
        for (revision, pairs) in self.past.range(compacted..) {
            assert_eq!(self.pairs_at(*revision), *pairs, "at {revision}");
        }
        let limits = history::PageLimits {
            events_max: usize::MAX,
            bytes_max: usize::MAX,
            looked_at_max: usize::MAX,
        };
        let (view, first) = (self.kv.view(), compacted.max(1) + 1);
        let page = history::events(&*view, &KeyRange::all(), first, i64::MAX, limits);
        let events = page.expect("not compacted").events;
        let mut told: Vec<_> = events.iter().map(|event| event.revision.main).collect();
        told.dedup();
        assert!(
            told.into_iter().eq(first..=reader.revision()),
            "each revision in order"
        );
    }

    /// Whatever was asked for, the state can be saved.
    fn can_be_backed_up(&self) {
        let backup = Backup {
            view: self.kv.view(),
            members: Vec::new(),
            removed: Vec::new(),
            sort_bytes: SORT_BYTES,
            is_abandoned: Box::new(|| false),
        };
        let layout = backup.plan().expect("a good store");
        let mut bytes = 0;
        let written = backup.write(layout, |piece| {
            bytes += piece.len() as u64;
            Ok(())
        });
        written.expect("as planned");
        assert_eq!(bytes, layout.file_bytes());
    }

    /// What is kept in memory is what a restart would read, and watchers heard nothing that is not
    /// in the store.
    fn agrees_with_its_store(mut self) {
        let reader = self.state.reader();
        for watcher in &mut self.watchers {
            if let Some(item) = watcher.next().now_or_never() {
                match item.expect("memory does not fail") {
                    watch::Item::Events { revision, events } => {
                        assert!(!events.is_empty() && revision <= reader.revision());
                    }
                    other => panic!("live and never silent: {other:?}"),
                }
            }
        }
        let again = State::open(self.kv, &Options::default()).expect("its own store");
        assert_eq!(again.applied(), self.state.applied());
        let again = again.reader();
        assert_eq!(again.revision(), reader.revision());
        assert_eq!(again.compact_revision(), reader.compact_revision());
        assert_eq!(again.alarms(), reader.alarms());
        assert_eq!(again.members(), reader.members());
        let (again, leases) = (again.lessor(), reader.lessor());
        assert_eq!(again.ids(), leases.ids());
        for id in leases.ids() {
            assert_eq!(again.get(id), leases.get(id));
        }
    }
}

/// Runs `then` with the message, if it is one.
fn decoded<M: Message + Default>(body: &[u8], then: impl FnOnce(M)) {
    if let Ok(message) = M::decode(body) {
        then(message);
    }
}

/// Whether an answer is one to its question.
fn answers(query: &RangeQuery, found: &RangeResult) {
    let returned = i64::try_from(found.kvs.len()).expect("a vector's length fits an i64");
    assert!(returned <= found.count);
    assert!(query.limit <= 0 || returned <= query.limit);
    assert!(!query.count_only || returned == 0);
    let whole = |kv: &KeyValue| {
        query.range.contains(&kv.key)
            && kv.version >= 1
            && kv.create_revision <= kv.mod_revision
            && kv.mod_revision <= found.revision
            && (!query.keys_only || kv.value.is_empty())
    };
    assert!(found.kvs.iter().all(whole), "{query:?}: {found:?}");
    let mut keys: Vec<_> = found.kvs.iter().map(|kv| &kv.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), found.kvs.len(), "each key once");
}

/// Requests that are decoded and no more: what they do is not the state machine's.
fn others(body: &[u8]) {
    fn decodes<M: Message + Default + PartialEq>(body: &[u8]) {
        if let Ok(message) = M::decode(body) {
            let again = M::decode(&*message.encode_to_vec()).expect("its own encoding");
            assert!(again == message, "another message comes back");
        }
    }
    let Some((choice, body)) = body.split_first() else {
        return;
    };
    let all: &[fn(&[u8])] = &[
        decodes::<api::LeaseKeepAliveRequest>,
        decodes::<api::LeaseTimeToLiveRequest>,
        decodes::<api::LeaseLeasesRequest>,
        decodes::<api::MemberAddRequest>,
        decodes::<api::MemberRemoveRequest>,
        decodes::<api::MemberUpdateRequest>,
        decodes::<api::MemberListRequest>,
        decodes::<api::MemberPromoteRequest>,
        decodes::<api::DefragmentRequest>,
        decodes::<api::MoveLeaderRequest>,
        decodes::<api::StatusRequest>,
        decodes::<api::SnapshotRequest>,
        decodes::<api::DowngradeRequest>,
        decodes::<api::AuthEnableRequest>,
        decodes::<api::AuthenticateRequest>,
        decodes::<api::AuthUserAddRequest>,
        decodes::<api::AuthUserGrantRoleRequest>,
        decodes::<api::AuthRoleGrantPermissionRequest>,
        decodes::<api::AuthRoleRevokePermissionRequest>,
        decodes::<v3lockpb::LockRequest>,
        decodes::<v3lockpb::UnlockRequest>,
        decodes::<v3electionpb::CampaignRequest>,
        decodes::<v3electionpb::ProclaimRequest>,
        decodes::<v3electionpb::LeaderRequest>,
        decodes::<v3electionpb::ResignRequest>,
    ];
    all[usize::from(*choice) % all.len()](body);
}
