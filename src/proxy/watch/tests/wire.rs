//! A member at the other end of a watch stream, as etcd behaves: it may lag, sends what it has in pieces
//! of its choice, and is gone when the stream breaks.

use std::collections::{BTreeMap, VecDeque};

use quorate::proto::etcdserverpb::watch_request::RequestUnion;
use quorate::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::{Log, header};
use crate::proxy::watch::line::{NO_WATCH, revision};

#[derive(Debug, Default)]
pub(super) struct Wire {
    pub(super) is_open: bool,
    /// What the member has applied.
    at: i64,
    watches: BTreeMap<i64, Watch>,
    answers: VecDeque<WatchResponse>,
    /// Whether it answers requests for progress in order, and only when all is told and begun.
    is_ordered: bool,
    lags: bool,
}

#[derive(Debug)]
struct Watch {
    request: WatchCreateRequest,
    /// Where it was asked to begin, or 0.
    start: i64,
    next: i64,
}

impl Wire {
    pub(super) fn new(is_ordered: bool, lags: bool) -> Self {
        Self {
            is_ordered,
            lags,
            ..Self::default()
        }
    }

    pub(super) fn watches(&self) -> usize {
        self.watches.len()
    }

    /// Opens the stream, on whatever member.
    pub(super) fn open(&mut self, log: &Log, random: &mut SmallRng) {
        *self = Self {
            is_open: true,
            at: log.revision(),
            ..Self::new(self.is_ordered, self.lags)
        };
        if self.lags {
            // Not further back than the compaction: that is applied everywhere here.
            let least = log.compacted.max(1).max(log.revision() - 6);
            self.at = random.random_range(least..=log.revision());
        }
    }

    pub(super) fn close(&mut self) {
        *self = Self::new(self.is_ordered, self.lags);
    }

    /// The member catches up, by one revision or all.
    pub(super) fn apply(&mut self, log: &Log, random: &mut SmallRng) {
        if !self.lags {
            self.at = log.revision();
        } else if self.at < log.revision() {
            self.at = random.random_range(self.at..=log.revision());
        }
    }

    pub(super) fn apply_all(&mut self, log: &Log) {
        self.at = log.revision();
    }

    pub(super) fn take(&mut self, request: WatchRequest, log: &Log) {
        if !self.lags {
            self.at = log.revision();
        }
        match request.request_union.unwrap() {
            RequestUnion::CreateRequest(request) => self.create(request, log),
            RequestUnion::CancelRequest(cancel) => {
                if self.watches.remove(&cancel.watch_id).is_some() {
                    self.answers.push_back(WatchResponse {
                        canceled: true,
                        ..self.answer(cancel.watch_id)
                    });
                }
            }
            RequestUnion::ProgressRequest(_) => {
                let in_sync = |watch: &Watch| watch.next > self.at && watch.start <= self.at;
                let in_sync = self.watches.values().all(in_sync);
                if in_sync || !self.is_ordered {
                    self.answers.push_back(self.answer(NO_WATCH));
                }
            }
        }
    }

    fn create(&mut self, request: WatchCreateRequest, log: &Log) {
        let id = request.watch_id;
        self.answers.push_back(WatchResponse {
            created: true,
            ..self.answer(id)
        });
        let next = match request.start_revision {
            0 => self.at + 1,
            start => start,
        };
        if next < log.compacted {
            self.answers.push_back(WatchResponse {
                canceled: true,
                compact_revision: log.compacted,
                header: Some(header(0)),
                ..self.answer(id)
            });
            return;
        }
        let watch = Watch {
            start: request.start_revision,
            request,
            next,
        };
        self.watches.insert(id, watch);
    }

    /// One watch tells some of what it has, or that it has nothing. Returns whether there was anything.
    pub(super) fn tell(&mut self, log: &Log, random: &mut SmallRng) -> bool {
        let ids: Vec<i64> = self.watches.keys().copied().collect();
        let Some(id) = ids.get(random.random_range(0..ids.len().max(1))).copied() else {
            return false;
        };
        let (at, watch) = (self.at, self.watches.get_mut(&id).unwrap());
        if watch.next > at {
            let told = WatchResponse {
                header: Some(header(at)),
                watch_id: id,
                ..Default::default()
            };
            if random.random_bool(0.1) {
                self.answers.push_back(told);
            }
            return false;
        }
        let to = random.random_range(watch.next..=at);
        let mut events = log.events(&watch.request, watch.next, to);
        watch.next = to + 1;
        // As on etcd, the header tells that the last event is the latest only if it is.
        while !events.is_empty() {
            let count = random.random_range(1..=events.len());
            let rest = events.split_off(count);
            let is_last = rest.is_empty();
            let piece = std::mem::replace(&mut events, rest);
            self.answers.push_back(WatchResponse {
                events: piece,
                fragment: !is_last,
                ..self.answer(id)
            });
        }
        true
    }

    /// Tells everything there is.
    pub(super) fn tell_all(&mut self, log: &Log, random: &mut SmallRng) {
        while self.watches.values().any(|watch| watch.next <= self.at) {
            self.tell(log, random);
        }
    }

    pub(super) fn answered(&mut self) -> Option<WatchResponse> {
        self.answers.pop_front()
    }

    fn answer(&self, watch_id: i64) -> WatchResponse {
        WatchResponse {
            header: Some(header(self.at)),
            watch_id,
            ..Default::default()
        }
    }
}

/// The last revision in an answer.
pub(super) fn last_revision(answer: &WatchResponse) -> i64 {
    answer.events.last().map_or(0, revision)
}
