//! A client and what it may be told: checks every answer against the log.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quorate::proto::etcdserverpb::watch_request::RequestUnion;
use quorate::proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use quorate::proto::mvccpb::Event;
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::wire::{Wire, last_revision};
use super::{Log, header};
use crate::proxy::watch::session::Session;

pub(super) struct Client {
    pub(super) session: Session,
    pub(super) line: Wire,
    /// Creations that are not answered yet, with the revision of the store when they were asked for.
    asked: VecDeque<(WatchCreateRequest, i64)>,
    pub(super) watchers: BTreeMap<i64, Watcher>,
    /// Ids that the client has cancelled and not heard of.
    cancelled: Vec<i64>,
    /// Watchers that ended and whose id is taken.
    over: BTreeSet<i64>,
    /// Sessions' numbers of those whose "now" is being found out.
    doubts: Vec<u64>,
    pub(super) progress: Vec<i64>,
    /// Revisions of the store when progress was asked for and not answered.
    progress_asked: VecDeque<i64>,
    /// How likely it is to read when it may.
    pub(super) reads: f64,
    /// Whether the model's members are such that what is said of progress and of now can be relied on.
    is_strict: bool,
    is_ordered: bool,
    pub(super) events: usize,
}

#[derive(Debug)]
pub(super) struct Watcher {
    request: WatchCreateRequest,
    next: i64,
    /// Pieces of an answer that is not complete.
    pieces: Vec<Event>,
}

impl Client {
    pub(super) fn new(session: Session, is_ordered: bool, lags: bool) -> Self {
        Self {
            session,
            line: Wire::new(is_ordered, lags),
            asked: VecDeque::new(),
            watchers: BTreeMap::new(),
            cancelled: Vec::new(),
            over: BTreeSet::new(),
            doubts: Vec::new(),
            progress: Vec::new(),
            progress_asked: VecDeque::new(),
            reads: 0.9,
            is_strict: !lags,
            is_ordered,
            events: 0,
        }
    }

    pub(super) fn create(&mut self, log: &Log, random: &mut SmallRng) {
        let (key, range_end) =
            [("a", ""), ("b", ""), ("a", "c"), ("b", "d")][random.random_range(0..4)];
        let now = log.revision();
        let start_revision = match random.random_range(0..10) {
            0..5 => 0,
            5..7 => now + 1,
            7..9 => random.random_range(log.compacted.max(1)..=now),
            _ => now + random.random_range(1..5),
        };
        let filters: &[i32] = [&[][..], &[], &[], &[0], &[1]][random.random_range(0..5)];
        let request = WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision,
            progress_notify: random.random_bool(0.3),
            filters: filters.to_vec(),
            fragment: random.random_bool(0.3),
            watch_id: if random.random_bool(0.2) {
                random.random_range(1..9)
            } else {
                0
            },
            ..Default::default()
        };
        self.asked.push_back((request.clone(), now));
        self.session
            .ask(union(RequestUnion::CreateRequest(request)));
    }

    pub(super) fn cancel(&mut self, random: &mut SmallRng) {
        let known: Vec<i64> = self.watchers.keys().chain(&self.over).copied().collect();
        if let Some(&watch_id) = known.get(random.random_range(0..known.len().max(1)))
            && !self.cancelled.contains(&watch_id)
        {
            self.cancelled.push(watch_id);
            let cancel = WatchCancelRequest { watch_id };
            self.session.ask(union(RequestUnion::CancelRequest(cancel)));
        }
    }

    pub(super) fn ask_progress(&mut self, log: &Log) {
        self.progress_asked.push_back(log.revision());
        let progress = WatchProgressRequest {};
        self.session
            .ask(union(RequestUnion::ProgressRequest(progress)));
    }

    /// Whoever wanted to know what now is, is told, or not.
    pub(super) fn resolve(&mut self, log: &Log, fails: bool) {
        let fresh = self.session.doubts();
        self.doubts
            .extend(fresh.into_iter().map(|doubt| doubt.number));
        for number in self.doubts.drain(..) {
            let now = (!fails).then(|| header(log.revision()));
            self.session.now_is(number, now);
        }
    }

    /// The line is opened, or carries something in one direction or the other. Returns whether it did.
    pub(super) fn drive_line(&mut self, log: &Log, random: &mut SmallRng) -> bool {
        if self.session.line().is_empty() {
            self.session.line().close();
            let was_open = self.line.is_open;
            self.line.close();
            return was_open;
        }
        if !self.session.hears_line() {
            return false;
        }
        if !self.line.is_open {
            self.line.open(log, random);
            self.session.reopen_line();
            return true;
        }
        if let Some(request) = self.session.line().request() {
            self.line.take(request, log);
            return true;
        }
        if let Some(answer) = self.line.answered() {
            self.session.hear(answer, self.is_ordered).unwrap();
            return true;
        }
        self.line.tell(log, random)
    }

    pub(super) fn break_line(&mut self) {
        self.line.close();
        self.session.line().close();
    }

    /// Reads one answer, if there is one.
    pub(super) fn read(&mut self, log: &Log) -> bool {
        match self.session.take().expect("the stream goes on") {
            Some(answer) => {
                self.check(answer, log);
                true
            }
            None => false,
        }
    }

    fn check(&mut self, answer: WatchResponse, log: &Log) {
        let (id, revision) = (answer.watch_id, answer.header.expect("a header").revision);
        assert!(
            revision <= log.revision(),
            "{answer:?} is ahead of {}",
            log.revision()
        );
        if answer.created {
            return self.check_created(&answer, revision);
        }
        if answer.canceled {
            return self.check_canceled(&answer, log);
        }
        if !answer.events.is_empty() {
            self.events += answer.events.len();
            let watcher = self.watchers.get_mut(&id).expect("a watcher");
            return watcher.check_events(answer, log);
        }
        assert!(!answer.fragment);
        if id >= 0 {
            let watcher = self.watchers.get(&id).expect("a watcher");
            assert!(watcher.request.progress_notify, "nobody asked");
            assert_eq!(watcher.missing(log, revision), [], "progress to {revision}");
            return;
        }
        self.progress.push(revision);
        if self.is_strict {
            // The answer is to a request that was made before it, not after.
            let asked = self.progress_asked.front().copied().unwrap_or_default();
            assert!(
                revision >= asked,
                "progress to {revision}, asked at {asked}"
            );
            self.progress_asked.retain(|asked| *asked > revision);
        }
        if self.is_ordered {
            for watcher in self.watchers.values() {
                assert_eq!(
                    watcher.missing(log, revision),
                    [],
                    "all in sync at {revision}"
                );
            }
        }
    }

    fn check_created(&mut self, answer: &WatchResponse, revision: i64) {
        let (request, at) = self.asked.pop_front().expect("an answer to a creation");
        let id = answer.watch_id;
        if answer.canceled {
            assert_eq!(id, -1);
            assert!(
                answer.cancel_reason.contains("duplicate") || answer.cancel_reason.contains("many")
            );
            return;
        }
        assert!(request.watch_id == 0 || request.watch_id == id);
        let next = match request.start_revision {
            0 => revision + 1,
            start => start,
        };
        assert!(
            !self.is_strict || revision >= at,
            "created at {revision}, asked at {at}"
        );
        let watcher = Watcher {
            request,
            next,
            pieces: Vec::new(),
        };
        let before = self.watchers.insert(id, watcher);
        assert!(
            before.is_none() && !self.over.contains(&id),
            "the id is in use"
        );
    }

    fn check_canceled(&mut self, answer: &WatchResponse, log: &Log) {
        let id = answer.watch_id;
        if answer.compact_revision > 0 {
            let watcher = self.watchers.remove(&id).expect("a watcher");
            assert!(answer.compact_revision <= log.compacted);
            assert!(
                watcher.next < answer.compact_revision,
                "{watcher:?} has lost nothing"
            );
            self.over.insert(id);
            return;
        }
        let at = self.cancelled.iter().position(|cancelled| *cancelled == id);
        self.cancelled.remove(at.expect("the client wanted it"));
        let was_live = self.watchers.remove(&id).is_some();
        assert!(was_live != self.over.remove(&id));
    }

    /// Everything was carried: nothing may be missing.
    pub(super) fn check_done(&self, log: &Log) {
        assert!(self.asked.is_empty(), "unanswered {:?}", self.asked);
        assert!(self.cancelled.is_empty(), "unanswered {:?}", self.cancelled);
        for (id, watcher) in &self.watchers {
            let missing = watcher.missing(log, log.revision());
            assert!(missing.is_empty(), "{id} lacks {missing:?}: {watcher:?}");
            assert!(watcher.pieces.is_empty());
        }
    }
}

impl Watcher {
    /// What can be shared.
    pub(super) fn spec(&self) -> crate::proxy::watch::spec::Spec {
        crate::proxy::watch::spec::Spec::of(&self.request)
    }

    /// Events up to a revision that were not told.
    fn missing(&self, log: &Log, revision: i64) -> Vec<Event> {
        log.events(&self.request, self.next, revision)
    }

    fn check_events(&mut self, answer: WatchResponse, log: &Log) {
        let last = last_revision(&answer);
        assert!(answer.header.unwrap().revision >= last, "{answer:?}");
        assert!(
            !answer.fragment || self.request.fragment,
            "pieces were not asked for"
        );
        let is_whole = !answer.fragment;
        self.pieces.extend(answer.events);
        if is_whole {
            let expected = log.events(&self.request, self.next, last);
            assert_eq!(self.pieces, expected, "from {} to {last}", self.next);
            self.pieces.clear();
            self.next = last + 1;
        }
    }
}

fn union(union: RequestUnion) -> WatchRequest {
    WatchRequest {
        request_union: Some(union),
    }
}
