//! One client's watch stream, without its I/O: its watchers, their ids, and whether each listens to a
//! shared watch or has one of its own.
//!
//! A watcher from now on joins the shared watch, or begins it. One from an earlier revision gets a watch
//! of its own, on a line that only this session reads, and is given over to the shared one once both
//! stand at the same place. One that falls behind, since its client does not read, goes the same way
//! from where it is. Events of own watches are read only when the client takes them, so they wait
//! upstream and not here.

mod answers;
mod heard;
mod requests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use quorate::proto::etcdserverpb::{
    ResponseHeader, WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use tonic::Status;

use super::line::{Confused, Heard, Line};
use super::outbox::{Outbox, Room};
use super::spec::Spec;
use super::trunk::Common;

/// Bounds of one session.
#[derive(Debug, Clone, Copy)]
pub(in crate::proxy) struct Limits {
    /// Watchers; more are refused.
    pub(in crate::proxy) watchers: usize,
    /// Encoded bytes of one answer to a watcher that takes pieces.
    pub(in crate::proxy) piece_bytes: usize,
    /// What may wait for the client.
    pub(in crate::proxy) room: Room,
}

/// A watch stream. Dropping it ends all its watchers.
#[derive(Debug)]
pub(super) struct Session {
    number: u64,
    common: Arc<Common>,
    limits: Limits,
    outbox: Arc<Outbox>,
    /// Watches that are not shared.
    line: Line,
    watchers: BTreeMap<u64, Watcher>,
    /// By the ids the client knows. A watcher that ended by itself keeps its id until it is cancelled, as
    /// on etcd.
    ids: HashMap<i64, u64>,
    /// By the numbers on the line.
    alone: HashMap<i64, u64>,
    next_id: i64,
    last_number: u64,
    /// Requests in order; the first waits for something.
    asked: VecDeque<Asked>,
    ready: VecDeque<WatchResponse>,
    /// Watchers for which it has to be found out what "now" is.
    doubts: Vec<Doubt>,
    roll: Option<Roll>,
    last_call: u64,
    heard: Vec<Heard>,
}

#[derive(Debug)]
struct Watcher {
    id: i64,
    spec: Spec,
    start: i64,
    fragment: bool,
    progress: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Has a place at the shared watch and is about to join.
    Entering {
        is_open: bool,
        now: Now,
    },
    /// Has a watch of this number on the line, and is told about it unless that has not begun.
    Alone {
        line: i64,
        is_answered: bool,
    },
    Shared,
    /// Was refused while earlier requests wait for their answers.
    Refused(WatchResponse),
    /// Ended by itself.
    Over,
}

/// What is known of the revision that a watcher begins after.
#[derive(Debug, Clone, Copy)]
enum Now {
    /// Being found out.
    Unknown,
    /// The shared watch begins later than the request came.
    AfterOpening,
    /// As this header says.
    At(ResponseHeader),
    /// It cannot be found out here: a watch of its own knows.
    Unclear,
}

#[derive(Debug)]
enum Asked {
    /// The watcher of this number.
    Create(u64),
    /// The watcher of this number, whose id is free again.
    Cancel(u64),
    Progress,
}

/// A watcher that wants to join a watch that was there before.
#[derive(Debug)]
pub(super) struct Doubt {
    pub(super) number: u64,
    pub(super) spec: Spec,
}

/// A request for progress under way; each part is `None` until it is answered.
#[derive(Debug)]
struct Roll {
    /// Its number, which shared watches answer with.
    call: u64,
    shared: Option<i64>,
    alone: Option<i64>,
    /// The first request of the line that was made after it.
    since: u64,
}

impl Session {
    /// A stream of this number, without watchers, beside the others of `common`.
    pub(super) fn new(number: u64, common: Arc<Common>, limits: Limits) -> Self {
        Self {
            number,
            common,
            limits,
            outbox: Arc::new(Outbox::new(limits.room)),
            line: Line::default(),
            watchers: BTreeMap::new(),
            ids: HashMap::new(),
            alone: HashMap::new(),
            next_id: 0,
            last_number: 0,
            asked: VecDeque::new(),
            ready: VecDeque::new(),
            doubts: Vec::new(),
            roll: None,
            last_call: 0,
            heard: Vec::new(),
        }
    }

    /// What waits for the client.
    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    /// The line of the watches that are not shared.
    pub(super) fn line(&mut self) -> &mut Line {
        &mut self.line
    }

    /// Requests that wait for their answers.
    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    /// Whether the line may be heard. While the first request waits for a shared watch, whatever came
    /// from the line would come before its answer.
    pub(super) fn hears_line(&self) -> bool {
        let first = match self.asked.front() {
            Some(Asked::Create(number)) => self.watchers.get(number),
            _ => None,
        };
        !first.is_some_and(|first| matches!(first.state, State::Entering { .. }))
    }

    /// Whether [`Session::take`] may have something.
    pub(super) fn is_filled(&self) -> bool {
        !self.ready.is_empty() || self.outbox.is_filled()
    }

    /// Watchers for which to find out a revision that the cluster has reached by now, to be told with
    /// [`Session::now_is`].
    pub(super) fn doubts(&mut self) -> Vec<Doubt> {
        std::mem::take(&mut self.doubts)
    }

    /// Whether some watcher of its own may be in sync and not know it.
    pub(super) fn is_in_doubt(&self) -> bool {
        let answered = |number: &u64| {
            let state = self.watchers.get(number).map(|watcher| &watcher.state);
            matches!(
                state,
                Some(State::Alone {
                    is_answered: true,
                    ..
                })
            )
        };
        self.alone.values().any(answered)
    }

    /// Asks the line up to where its watches are told, so that they can be given over.
    pub(super) fn ask_line(&mut self) {
        self.line.ask_progress();
    }

    /// Takes a request in.
    pub(super) fn ask(&mut self, request: WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(&create),
            Some(RequestUnion::CancelRequest(cancel)) => self.cancel(cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.asked.push_back(Asked::Progress),
            None => {}
        }
        self.advance();
    }

    /// The cluster had reached the revision of this header after the watcher asked; `None` if that could
    /// not be found out.
    pub(super) fn now_is(&mut self, number: u64, header: Option<ResponseHeader>) {
        let watcher = self.watchers.get_mut(&number);
        if let Some(State::Entering { now, .. }) = watcher.map(|watcher| &mut watcher.state) {
            *now = header.map_or(Now::Unclear, Now::At);
            self.advance();
        }
    }

    /// The next answer for the client.
    ///
    /// # Errors
    /// The stream is over.
    pub(super) fn take(&mut self) -> Result<Option<WatchResponse>, Status> {
        loop {
            if let Some(answer) = self.ready.pop_front() {
                return Ok(Some(answer));
            }
            match self.outbox.take()? {
                Some(item) => self.unpack(item),
                None => return Ok(None),
            }
        }
    }

    /// Takes an answer of the line in. `is_ordered` says whether the server answers requests for progress
    /// after the events before them.
    ///
    /// # Errors
    /// It answers nothing that was asked.
    pub(super) fn hear(
        &mut self,
        response: WatchResponse,
        is_ordered: bool,
    ) -> Result<(), Confused> {
        let header = response.header.unwrap_or_default();
        self.common.latest().hear(header);
        let mut heard = std::mem::take(&mut self.heard);
        let fine = self.line.hear(response, &mut heard);
        for heard in heard.drain(..) {
            self.hear_one(heard, is_ordered);
        }
        self.heard = heard;
        self.advance();
        fine
    }

    /// The line was opened again.
    pub(super) fn reopen_line(&mut self) {
        self.line.open();
        if let Some(roll) = self.roll.as_mut().filter(|roll| roll.alone.is_none()) {
            roll.since = self.line.ask_progress();
        }
    }
}

impl Asked {
    /// The watcher that it creates.
    fn created(&self) -> Option<u64> {
        match self {
            Self::Create(number) => Some(*number),
            Self::Cancel(_) | Self::Progress => None,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut shared = self.common.lock();
        for (number, watcher) in &self.watchers {
            if matches!(watcher.state, State::Entering { .. } | State::Shared) {
                shared.leave(&watcher.spec, (self.number, *number));
            }
        }
        shared.forget(self.number);
        drop(shared);
        self.common.wake();
    }
}
