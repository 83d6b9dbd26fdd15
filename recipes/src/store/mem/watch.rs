//! The watches of a [`MemStore`](super::MemStore). A watch is a place in the log of commits: it needs no
//! buffer, cannot be overtaken by a compaction once it is open, and never splits a revision.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::watch_create_request::FilterType;
use quorate_proto::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use tokio::time::Instant;

use super::MemStore;
use super::state::{Commit, State};
use crate::clock;
use crate::keys::KeyRange;
use crate::store::WatchStream;

/// How long a watch that asked for it is left without an answer, as etcd's default.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(600);

/// One range watched.
struct Watch {
    id: i64,
    range: KeyRange,
    filters: Vec<i32>,
    prev_kv: bool,
    progress_notify: bool,
    /// The first revision that was not looked at.
    next: i64,
    /// What is there up to this revision comes in one answer; later, one revision an answer.
    history: i64,
    answered: Instant,
}

/// All the watches of one stream.
struct Watches {
    store: MemStore,
    open: Vec<Watch>,
    answers: VecDeque<WatchResponse>,
    /// How often the store had ended its watches when these were opened.
    endings: u64,
}

/// Opens watches, numbered from 1 on.
pub(super) fn open(store: &MemStore, requests: Vec<WatchCreateRequest>) -> WatchStream {
    let mut watches = Watches {
        store: store.clone(),
        open: Vec::new(),
        answers: VecDeque::new(),
        endings: 0,
    };
    store.with(|state, now| {
        watches.endings = state.endings;
        for (id, request) in (1..).zip(requests) {
            watches.create(state, id, request, now);
        }
    });
    stream::unfold(watches, |mut watches| async move {
        let answer = watches.next().await?;
        Some((Ok(answer), watches))
    })
    .boxed()
}

impl Watches {
    fn create(&mut self, state: &State, id: i64, request: WatchCreateRequest, now: Instant) {
        let created = WatchResponse {
            header: Some(state.header()),
            watch_id: id,
            created: true,
            ..Default::default()
        };
        let refused = |reason: Reason| WatchResponse {
            watch_id: -1,
            canceled: true,
            cancel_reason: reason.to_string(),
            ..created.clone()
        };
        // A watch, other than a read, may begin at no key: at the first one then.
        let start = match request.key.is_empty() {
            true => Bytes::from_static(&[0]),
            false => request.key,
        };
        let range = KeyRange {
            start,
            end: request.range_end,
        };
        if request.start_revision < 0 {
            self.answers.push_back(refused(Reason::Compacted));
            return;
        }
        if !range.end.is_empty() && range.end[..] != [0] && range.end <= range.start {
            self.answers.push_back(refused(Reason::WatchRangeEmpty));
            return;
        }
        self.answers.push_back(created);
        if request.start_revision > 0 && request.start_revision < state.compacted {
            self.answers.push_back(WatchResponse {
                header: Some(ResponseHeader {
                    revision: 0,
                    ..state.header()
                }),
                watch_id: id,
                canceled: true,
                compact_revision: state.compacted,
                ..Default::default()
            });
            return;
        }
        let next = match request.start_revision {
            0 => state.revision() + 1,
            start => start,
        };
        self.open.push(Watch {
            id,
            range,
            filters: request.filters,
            prev_kv: request.prev_kv,
            progress_notify: request.progress_notify,
            next,
            history: state.revision(),
            answered: now,
        });
    }

    /// The next answer; `None` once the store has ended its watches.
    async fn next(&mut self) -> Option<WatchResponse> {
        loop {
            // Registered before looking, so that nothing is missed in between.
            let changed = self.store.changed();
            let (due, ended) = self.store.clone().with(|state, now| self.look(state, now));
            if ended {
                return None;
            }
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = clock::until(due) => {}
            }
        }
    }

    /// Adds what is new to the answers, unless there are some; returns when to look again at the
    /// latest, and whether the watches are over.
    fn look(&mut self, state: &State, now: Instant) -> (Option<Instant>, bool) {
        if state.endings != self.endings {
            return (None, true);
        }
        let mut due = state.leases.first_due().map(|(until, _)| until);
        for watch in &mut self.open {
            if !self.answers.is_empty() {
                break;
            }
            self.answers.extend(watch.events(state, now));
            if !watch.progress_notify {
                continue;
            }
            let progress = watch.answered + PROGRESS_INTERVAL;
            if progress <= now && self.answers.is_empty() && watch.next > state.revision() {
                watch.answered = now;
                self.answers.push_back(WatchResponse {
                    header: Some(state.header()),
                    watch_id: watch.id,
                    ..Default::default()
                });
            }
            due = Some(due.map_or(progress, |due| due.min(progress)));
        }
        (due, false)
    }
}

impl Watch {
    /// The answer with the first events that were not sent.
    fn events(&mut self, state: &State, now: Instant) -> Option<WatchResponse> {
        let mut header = state.header();
        let mut events = Vec::new();
        for commit in state.since(self.next) {
            let live = commit.revision.0 > self.history;
            if live && !events.is_empty() {
                break;
            }
            self.next = commit.revision.0 + 1;
            events.extend(self.wanted(commit, state.compacted));
            if live && !events.is_empty() {
                header.revision = commit.revision.0;
                break;
            }
        }
        if events.is_empty() {
            return None;
        }
        self.answered = now;
        Some(WatchResponse {
            header: Some(header),
            watch_id: self.id,
            events,
            ..Default::default()
        })
    }

    fn wanted(&self, commit: &Commit, compacted: i64) -> impl Iterator<Item = Event> {
        // The pair before is looked up when the event is sent, and may be compacted by then.
        let prev_kv = self.prev_kv && commit.revision.0 > compacted;
        let ours = commit.changes.iter().filter(|change| {
            let kv = change.kv.as_ref();
            let filter = match change.r#type() {
                EventType::Put => FilterType::Noput,
                EventType::Delete => FilterType::Nodelete,
            };
            kv.is_some_and(|kv| self.range.contains(&kv.key))
                && !self.filters.contains(&filter.into())
        });
        ours.map(move |change| Event {
            prev_kv: change.prev_kv.clone().filter(|_| prev_kv),
            ..change.clone()
        })
    }
}
