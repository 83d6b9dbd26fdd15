//! One watch stream: many watchers, their ids, and what the client hears of them, by etcd's rules.
//! Used by the gRPC face and by the recipes in the same process. What events a watcher gets is the
//! hub's affair; here is only who asked for what under which id.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;

use futures::StreamExt;
use futures::stream::{AbortHandle, Abortable, BoxStream, SelectAll};
use quorate_proto::etcdserverpb::watch_create_request::FilterType;
use quorate_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};
use quorate_proto::limits::GRPC_OVERHEAD_BYTES;
use quorate_proto::{KeyRange, Reason};
use tokio::sync::{mpsc, watch};

use super::Node;
use crate::error::{Error, Result};
use crate::storage::kv::KvError;
use crate::watch::{Item, Request, Watcher};

/// Requests of one stream waiting to be handled; a faster client waits.
const REQUESTS_MAX: usize = 256;
/// The id in answers that concern no watcher.
const NO_WATCHER: i64 = -1;

/// One watch stream. Dropping it ends all its watchers.
pub struct WatchSession {
    node: Node,
    control: WatchControl,
    requests: mpsc::Receiver<Asked>,
    stopping: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    /// Watchers by the id the client knows. One that ended by itself stays until it is cancelled.
    ids: HashMap<i64, Entry>,
    next_id: i64,
    next_number: u64,
    watchers: SelectAll<BoxStream<'static, Said>>,
    /// Counts progress requests; each watcher says once where it stands when it grows.
    roll_call: watch::Sender<u64>,
    rolling: Option<RollCall>,
    ready: VecDeque<WatchResponse>,
}

/// The asking side of a [`WatchSession`], for another task than the one that reads answers. Cheap
/// to clone.
#[derive(Debug, Clone)]
pub struct WatchControl {
    requests: mpsc::Sender<Asked>,
}

#[derive(Debug)]
enum Asked {
    Create(WatchCreateRequest),
    Cancel(i64),
    Progress,
}

/// A watcher, as the session knows it.
struct Entry {
    /// Distinguishes it from earlier watchers of the same id.
    number: u64,
    fragment: bool,
    live: bool,
    end: AbortHandle,
}

/// What a watcher said.
struct Said {
    id: i64,
    number: u64,
    what: What,
}

enum What {
    Item(Result<Item, KvError>),
    /// Where it stands, in answer to the roll call of this number; `None` if it is not in sync.
    Stands(u64, Option<i64>),
}

/// A progress request under way: every watcher says whether it is in sync.
struct RollCall {
    /// Of which number: watchers may still be answering the one before.
    number: u64,
    missing: usize,
    /// The lowest revision said; `None` once a watcher was not in sync.
    lowest: Option<i64>,
}

impl fmt::Debug for WatchSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchSession")
            .field("watchers", &self.ids.len())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Opens a watch stream.
    #[must_use]
    pub fn watch(&self) -> WatchSession {
        let (sender, requests) = mpsc::channel(REQUESTS_MAX);
        WatchSession {
            node: self.clone(),
            control: WatchControl { requests: sender },
            requests,
            stopping: Box::pin(self.shared.tasks.cancelled()),
            ids: HashMap::new(),
            next_id: 0,
            next_number: 0,
            watchers: SelectAll::new(),
            roll_call: watch::Sender::new(0),
            rolling: None,
            ready: VecDeque::new(),
        }
    }
}

impl WatchControl {
    /// Asks for a watcher; the answer comes out of [`WatchSession::next`]. Waits while too many
    /// requests wait; without effect once the session is dropped.
    pub async fn create(&self, request: WatchCreateRequest) {
        self.ask(Asked::Create(request)).await;
    }

    /// Ends a watcher; an unknown id gets no answer.
    pub async fn cancel(&self, watch_id: i64) {
        self.ask(Asked::Cancel(watch_id)).await;
    }

    /// Asks up to which revision everything was told. Answered only if the stream has watchers and
    /// all of them are in sync.
    pub async fn progress(&self) {
        self.ask(Asked::Progress).await;
    }

    async fn ask(&self, asked: Asked) {
        // Refused only when the session is gone: then nobody waits for an answer.
        drop(self.requests.send(asked).await);
    }
}

impl WatchSession {
    /// The asking side.
    #[must_use]
    pub fn control(&self) -> WatchControl {
        self.control.clone()
    }

    /// The next answer: to a request on the control side, or events.
    ///
    /// # Errors
    /// The member stops, or its storage failed. The session is over then.
    ///
    /// # Cancel safety
    /// Cancel safe: no answer is lost.
    pub async fn next(&mut self) -> Result<WatchResponse> {
        loop {
            if let Some(answer) = self.ready.pop_front() {
                return Ok(answer);
            }
            tokio::select! {
                asked = self.requests.recv() => match asked {
                    Some(Asked::Create(request)) => self.create(request),
                    Some(Asked::Cancel(id)) => self.cancel(id),
                    Some(Asked::Progress) => self.call_roll(),
                    None => {}
                },
                Some(said) = self.watchers.next(), if !self.watchers.is_empty() => {
                    self.node.check_sound()?;
                    self.hear(said)?;
                }
                () = &mut self.stopping => return Err(Reason::Stopped.into()),
            }
        }
    }

    fn create(&mut self, request: WatchCreateRequest) {
        let fragment = request.fragment;
        match self.begin(request) {
            Ok((id, watcher)) => {
                let revision = watcher.created_at();
                self.add(id, fragment, watcher);
                let created = WatchResponse {
                    created: true,
                    ..self.answer(id, revision)
                };
                self.ready.push_back(created);
            }
            Err(reason) => {
                let revision = self.node.shared.hub.revision();
                let refused = WatchResponse {
                    created: true,
                    canceled: true,
                    cancel_reason: reason.text().to_owned(),
                    ..self.answer(NO_WATCHER, revision)
                };
                self.ready.push_back(refused);
            }
        }
    }

    fn begin(&mut self, request: WatchCreateRequest) -> Result<(i64, Watcher), Reason> {
        if self.ids.len() >= self.node.limits().max_watchers_per_stream {
            return Err(Reason::TooManyWatchers);
        }
        // As on etcd, an empty key stands for the first key there can be.
        let key = if request.key.is_empty() {
            vec![0].into()
        } else {
            request.key
        };
        let range = KeyRange::from_wire(key, request.range_end);
        if range.is_empty() {
            return Err(Reason::WatchRangeEmpty);
        }
        if request.watch_id != 0 && self.ids.contains_key(&request.watch_id) {
            return Err(Reason::WatchIdInUse);
        }
        let filtered = |kind: FilterType| {
            request
                .filters
                .iter()
                .any(|&filter| filter == i32::from(kind))
        };
        let interval = self.node.shared.config.watch_progress_interval;
        let watcher = self.node.shared.hub.watch(Request {
            start_revision: request.start_revision,
            prev_kv: request.prev_kv,
            puts: !filtered(FilterType::Noput),
            deletes: !filtered(FilterType::Nodelete),
            progress_every: request.progress_notify.then_some(interval),
            ..Request::new(range)
        })?;
        let id = if request.watch_id == 0 {
            self.free_id()
        } else {
            request.watch_id
        };
        Ok((id, watcher))
    }

    /// Counts up from 0, skipping ids in use.
    fn free_id(&mut self) -> i64 {
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn add(&mut self, id: i64, fragment: bool, watcher: Watcher) {
        self.next_number += 1;
        let number = self.next_number;
        let roll_call = self.roll_call.subscribe();
        let says =
            futures::stream::unfold((watcher, roll_call), move |(mut watcher, mut calls)| {
                async move {
                    let what = tokio::select! {
                        biased;
                        // What it has comes first, so that where it stands is never ahead of it.
                        item = watcher.next() => What::Item(item),
                        Ok(()) = calls.changed() => {
                            let call = *calls.borrow_and_update();
                            What::Stands(call, watcher.progress())
                        }
                    };
                    Some((Said { id, number, what }, (watcher, calls)))
                }
            });
        let (end, registration) = AbortHandle::new_pair();
        self.watchers
            .push(Abortable::new(says, registration).boxed());
        self.ids.insert(
            id,
            Entry {
                number,
                fragment,
                live: true,
                end,
            },
        );
    }

    fn cancel(&mut self, id: i64) {
        let Some(entry) = self.ids.remove(&id) else {
            return;
        };
        entry.end.abort();
        if entry.live {
            // Whatever it would have said in a roll call, the rest has to know without it.
            self.restart_roll_call();
        }
        let revision = self.node.shared.hub.revision();
        let canceled = WatchResponse {
            canceled: true,
            ..self.answer(id, revision)
        };
        self.ready.push_back(canceled);
    }

    fn hear(&mut self, said: Said) -> Result<()> {
        let Said { id, number, what } = said;
        let Some(entry) = self.ids.get_mut(&id).filter(|entry| entry.number == number) else {
            // Cancelled meanwhile.
            return Ok(());
        };
        match what {
            What::Item(Ok(Item::Events { revision, events })) => {
                let fragment = entry.fragment;
                let answer = WatchResponse {
                    events,
                    ..self.answer(id, revision)
                };
                if fragment {
                    let limit = self.node.limits().max_request_bytes + GRPC_OVERHEAD_BYTES;
                    self.ready.extend(answer.into_pieces(limit));
                } else {
                    self.ready.push_back(answer);
                }
            }
            What::Item(Ok(Item::Progress { revision })) => {
                let answer = self.answer(id, revision);
                self.ready.push_back(answer);
            }
            What::Item(Ok(Item::Compacted { compact_revision })) => {
                // The id stays taken, as on etcd.
                entry.live = false;
                entry.end.abort();
                let answer = WatchResponse {
                    canceled: true,
                    compact_revision,
                    ..self.answer(id, 0)
                };
                self.ready.push_back(answer);
                self.restart_roll_call();
            }
            What::Item(Err(error)) => {
                let error = Error::from(Reason::StorageFailed).caused_by(error);
                return Err(error);
            }
            What::Stands(call, at) => self.stands(call, at),
        }
        Ok(())
    }

    /// Asks every watcher where it stands.
    fn call_roll(&mut self) {
        let live = self.ids.values().filter(|entry| entry.live).count();
        if live == 0 {
            return;
        }
        let number = *self.roll_call.borrow() + 1;
        self.rolling = Some(RollCall {
            number,
            missing: live,
            lowest: Some(i64::MAX),
        });
        self.roll_call.send_replace(number);
    }

    /// Begins again, if a roll call is under way: the watchers are not the same any more.
    fn restart_roll_call(&mut self) {
        if self.rolling.take().is_some() {
            self.call_roll();
        }
    }

    fn stands(&mut self, call: u64, at: Option<i64>) {
        let rolling = self.rolling.as_mut();
        let Some(rolling) = rolling.filter(|rolling| rolling.number == call) else {
            return;
        };
        rolling.lowest = match (rolling.lowest, at) {
            (Some(lowest), Some(at)) => Some(lowest.min(at)),
            (None, _) | (_, None) => None,
        };
        rolling.missing -= 1;
        if rolling.missing > 0 {
            return;
        }
        let lowest = rolling.lowest;
        self.rolling = None;
        if let Some(revision) = lowest {
            let answer = self.answer(NO_WATCHER, revision);
            self.ready.push_back(answer);
        }
    }

    fn answer(&self, watch_id: i64, revision: i64) -> WatchResponse {
        let header = Some(self.node.header_at(revision));
        WatchResponse {
            header,
            watch_id,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_watchers_said_before_progress_was_asked_for_again_does_not_count() {
        let node = Node::builder().in_memory().start().await.unwrap();
        let mut session = node.watch();
        for key in ["a", "b"] {
            session.create(WatchCreateRequest {
                key: key.into(),
                ..Default::default()
            });
        }
        session.ready.clear();
        session.call_roll();
        session.call_roll();
        for call in [1, 1, 2] {
            session.stands(call, Some(7));
            assert!(session.ready.is_empty());
        }
        session.stands(2, Some(8));
        let answer = session
            .ready
            .pop_front()
            .expect("all said where they stand");
        assert_eq!((answer.watch_id, answer.header.unwrap().revision), (-1, 7));
        node.shutdown().await;
    }
}
