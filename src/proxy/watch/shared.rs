//! The watches that clients share: who listens to which upstream watch, and from which revision on.
//! Pure state; `trunk` brings it the upstream stream.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use quorate::proto::etcdserverpb::{ResponseHeader, WatchRequest, WatchResponse};
use tonic::Status;

use super::line::{Confused, Heard, Line};
use super::outbox::{Batch, End, Item, Outbox};
use super::spec::Spec;
use crate::proxy::latest::Latest;

/// A watcher: its session, and its number there.
pub(super) type Who = (u64, u64);

/// What sharing has saved and cost since the start.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Counts {
    /// Events handed to a second and further watchers.
    pub(in crate::proxy) events: AtomicU64,
    /// Watchers that fell behind and were given a watch of their own.
    pub(in crate::proxy) behind: AtomicU64,
}

/// All shared watches of one upstream stream.
#[derive(Debug)]
pub(super) struct Shared {
    line: Line,
    by_spec: HashMap<Spec, i64>,
    watches: HashMap<i64, Watch>,
    asking: Vec<Asking>,
    latest: Latest,
    counts: Arc<Counts>,
    /// Kept between answers for its memory.
    heard: Vec<Heard>,
}

#[derive(Debug)]
struct Watch {
    spec: Spec,
    /// The latest that came with an answer.
    header: ResponseHeader,
    /// Whether it ever began: if not, a refusal is its watchers' refusal.
    has_begun: bool,
    listeners: BTreeMap<Who, Listener>,
}

#[derive(Debug)]
struct Listener {
    outbox: Arc<Outbox>,
    /// The first revision it is told of; `None` until it has joined.
    from: Option<i64>,
    /// Whether it wants to hear of progress.
    progress: bool,
}

/// A session that wants to know how far its shared watchers are.
#[derive(Debug)]
struct Asking {
    session: u64,
    /// The session's number for it.
    call: u64,
    outbox: Arc<Outbox>,
    /// The first request upstream that was made after the session asked.
    since: u64,
}

/// How a place at a shared watch was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserved {
    /// The upstream watch has not been asked for yet: it begins later than the watcher came.
    Fresh,
    /// It was there, or on its way, before the watcher came.
    Known {
        /// Whether it knows where it stands; otherwise [`Item::Opened`] will tell.
        is_open: bool,
    },
}

/// The outcome of joining.
#[derive(Debug, PartialEq)]
pub(super) enum Entered {
    /// The watcher hears everything after the header's revision, or from where it wanted to begin.
    Joined(ResponseHeader),
    /// The shared watch is ahead of where the watcher wants to begin.
    Ahead,
    /// There is none any more.
    Gone,
}

impl Shared {
    /// No watches yet.
    pub(super) fn new(latest: Latest, counts: Arc<Counts>) -> Self {
        Self {
            line: Line::default(),
            by_spec: HashMap::new(),
            watches: HashMap::new(),
            asking: Vec::new(),
            latest,
            counts,
            heard: Vec::new(),
        }
    }

    /// Whether nothing has to come from upstream.
    pub(super) fn is_idle(&self) -> bool {
        self.line.is_empty()
    }

    /// Upstream watches.
    pub(super) fn watches(&self) -> usize {
        self.line.len()
    }

    /// Watchers beyond the first of each upstream watch.
    pub(super) fn coalesced(&self) -> usize {
        let watches = self.watches.values();
        watches
            .map(|watch| watch.listeners.len().saturating_sub(1))
            .sum()
    }

    /// Times that a watcher fell behind.
    #[cfg(test)]
    pub(super) fn behind(&self) -> u64 {
        self.counts.behind.load(Relaxed)
    }

    /// Takes a place at the shared watch of `spec`, which is begun if there is none. The place holds the
    /// watch; nothing is told to it before [`Shared::enter`].
    pub(super) fn reserve(
        &mut self,
        spec: &Spec,
        who: Who,
        outbox: &Arc<Outbox>,
        progress: bool,
    ) -> Reserved {
        let listener = Listener {
            outbox: Arc::clone(outbox),
            from: None,
            progress,
        };
        let known = self.by_spec.get(spec).copied();
        let number = known.unwrap_or_else(|| self.begin(spec, None));
        if let Some(watch) = self.watches.get_mut(&number) {
            watch.listeners.insert(who, listener);
        }
        match self.line.next(number) {
            Some(_) => Reserved::Known { is_open: true },
            None if self.line.is_unsent(number) => Reserved::Fresh,
            None => Reserved::Known { is_open: false },
        }
    }

    /// Whether a watcher that begins at revision `start` could join the shared watch of `spec`.
    pub(super) fn is_joinable(&self, spec: &Spec, start: i64) -> bool {
        let number = self.by_spec.get(spec);
        let next = number.and_then(|number| self.line.next(*number));
        next.is_some_and(|next| next <= start)
    }

    /// Joins from the reserved place: at `start`, or, if that is 0, now. `now` is a revision that the
    /// cluster had reached before the watcher was asked for or later, with the header it came in; nothing
    /// up to it is told to one that begins now. The place is given up unless the watcher has joined.
    pub(super) fn enter(
        &mut self,
        spec: &Spec,
        who: Who,
        start: i64,
        now: Option<ResponseHeader>,
    ) -> Entered {
        let Some(number) = self.by_spec.get(spec).copied() else {
            return Entered::Gone;
        };
        let next = self.line.next(number);
        let watch = self.watches.get_mut(&number);
        let (Some(watch), Some(next)) = (watch, next) else {
            return Entered::Gone;
        };
        let mut header = now.unwrap_or(watch.header);
        header.revision = header.revision.max(next - 1);
        let from = match start {
            0 => header.revision + 1,
            start => start,
        };
        if from < next {
            self.leave(spec, who);
            return Entered::Ahead;
        }
        match watch.listeners.get_mut(&who) {
            Some(listener) => {
                listener.from = Some(from);
                Entered::Joined(header)
            }
            None => Entered::Gone,
        }
    }

    /// Takes over a watcher that has been told everything before `next` by a watch of its own. Where
    /// nobody shares a watch of `spec` yet one is begun, provided the watcher has been told everything up
    /// to the present revision: one that lags would make those who join it wait.
    pub(super) fn adopt(
        &mut self,
        spec: &Spec,
        who: Who,
        listener: (&Arc<Outbox>, bool),
        next: i64,
        present: Option<i64>,
    ) -> bool {
        let number = match self.by_spec.get(spec).copied() {
            Some(number) if self.line.next(number).is_some_and(|at| at <= next) => number,
            Some(_) => return false,
            None => match present {
                // A watcher that begins in the future must not make others wait for it.
                Some(present) => self.begin(spec, Some(next.min(present + 1))),
                None => return false,
            },
        };
        let (outbox, progress) = listener;
        if let Some(watch) = self.watches.get_mut(&number) {
            let listener = Listener {
                outbox: Arc::clone(outbox),
                from: Some(next),
                progress,
            };
            watch.listeners.insert(who, listener);
        }
        true
    }

    /// A watcher is no more. The last one takes the upstream watch with it.
    pub(super) fn leave(&mut self, spec: &Spec, who: Who) {
        let Some(number) = self.by_spec.get(spec).copied() else {
            return;
        };
        if let Some(watch) = self.watches.get_mut(&number) {
            watch.listeners.remove(&who);
        }
        self.end_if_unheard(number);
    }

    /// Forgets that a session asked for progress.
    pub(super) fn forget(&mut self, session: u64) {
        self.asking.retain(|asking| asking.session != session);
    }

    /// Asks up to where everything was told; the answer comes as [`Item::InSync`], behind all events up
    /// to there, unless a watch is not in sync upstream. A session asks one thing at a time. One request
    /// is under way upstream at a time; those who ask meanwhile get the answer to the next.
    pub(super) fn ask_progress(&mut self, session: u64, call: u64, outbox: &Arc<Outbox>) {
        self.forget(session);
        self.asking.push(Asking {
            session,
            call,
            outbox: Arc::clone(outbox),
            since: self.line.next_progress(),
        });
        if !self.line.asks_progress() {
            self.line.ask_progress();
        }
    }

    /// Whether somebody waits for progress.
    pub(super) fn waits_for_progress(&self) -> bool {
        !self.asking.is_empty()
    }

    /// Asks upstream for progress, whether an earlier request was answered or not.
    pub(super) fn ask_progress_again(&mut self) {
        self.line.ask_progress();
    }

    /// Takes what is to be sent upstream next.
    pub(super) fn request(&mut self) -> Option<WatchRequest> {
        self.line.request()
    }

    /// The upstream stream was opened.
    pub(super) fn open(&mut self) {
        self.line.open();
        if !self.asking.is_empty() {
            let since = self.line.ask_progress();
            self.asking
                .iter_mut()
                .for_each(|asking| asking.since = since);
        }
    }

    /// The upstream stream is gone. Watchers do not hear of it.
    pub(super) fn close(&mut self) {
        self.line.close();
    }

    /// The upstream has an end that its watchers have to know.
    pub(super) fn end(&mut self, status: &Status) {
        for watch in self.watches.values() {
            for listener in watch.listeners.values() {
                listener.outbox.end(status.clone());
            }
        }
        self.watches.clear();
        self.by_spec.clear();
        self.asking.clear();
        self.line = Line::default();
    }

    /// Takes an answer in and hands it to whom it concerns. `is_ordered` says whether the server answers
    /// requests for progress after the events before them.
    ///
    /// # Errors
    /// It answers nothing that was asked.
    pub(super) fn hear(
        &mut self,
        response: WatchResponse,
        is_ordered: bool,
    ) -> Result<(), Confused> {
        self.latest.hear(response.header.unwrap_or_default());
        let mut heard = std::mem::take(&mut self.heard);
        let fine = self.line.hear(response, &mut heard);
        for heard in heard.drain(..) {
            self.heard_one(heard, is_ordered);
        }
        self.heard = heard;
        fine
    }

    fn heard_one(&mut self, heard: Heard, is_ordered: bool) {
        match heard {
            Heard::Created { number, header } => {
                if let Some(watch) = self.watches.get_mut(&number) {
                    watch.created(header);
                }
            }
            Heard::Events {
                number,
                header,
                from,
                events,
            } => {
                if let Some(watch) = self.watches.get_mut(&number) {
                    watch.header = header;
                    watch.spread(&Arc::new(Batch::new(header, events)), from, &self.counts);
                    self.end_if_unheard(number);
                }
            }
            Heard::Progress { number, header } => {
                if let Some(watch) = self.watches.get_mut(&number) {
                    watch.header = header;
                    watch.progress(header);
                }
            }
            Heard::Refused { number, response } | Heard::Ended { number, response } => {
                if let Some(watch) = self.watches.remove(&number) {
                    self.by_spec.remove(&watch.spec);
                    watch.end(&response, &self.counts);
                }
            }
            Heard::InSync { header, number } => {
                if is_ordered {
                    self.line.told(header.revision, number);
                }
                self.in_sync(header, number);
            }
        }
    }

    /// Answers those who asked before the request of this number, unless it may be without a watch of
    /// theirs.
    fn in_sync(&mut self, header: ResponseHeader, number: u64) {
        let mut uncovered = HashSet::new();
        for (watch, Watch { listeners, .. }) in &self.watches {
            if !self.line.is_covered(*watch, number) {
                uncovered.extend(listeners.keys().map(|(session, _)| *session));
            }
        }
        self.asking.retain(|asking| {
            if asking.since > number || uncovered.contains(&asking.session) {
                return true;
            }
            let call = asking.call;
            asking.outbox.tell(Item::InSync { call, header });
            false
        });
        if !self.asking.is_empty() {
            self.line.ask_progress();
        }
    }

    fn begin(&mut self, spec: &Spec, start: Option<i64>) -> i64 {
        let spec_of_line = spec.clone();
        let number = match start {
            Some(next) => self.line.add_told(spec_of_line, next),
            None => self.line.add(spec_of_line, None),
        };
        self.by_spec.insert(spec.clone(), number);
        let watch = Watch {
            spec: spec.clone(),
            header: ResponseHeader::default(),
            has_begun: start.is_some(),
            listeners: BTreeMap::new(),
        };
        self.watches.insert(number, watch);
        number
    }

    fn end_if_unheard(&mut self, number: i64) {
        let watch = self.watches.get(&number);
        if watch.is_some_and(|watch| watch.listeners.is_empty())
            && let Some(watch) = self.watches.remove(&number)
        {
            self.by_spec.remove(&watch.spec);
            self.line.remove(number);
        }
    }
}

impl Watch {
    fn created(&mut self, header: ResponseHeader) {
        self.header = header;
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        for ((_, number), listener) in &self.listeners {
            listener.outbox.tell(Item::Opened { number: *number });
        }
    }

    /// Hands events to all who have joined; everything before `first` was told before.
    fn spread(&mut self, batch: &Arc<Batch>, first: i64, counts: &Counts) {
        let mut told = 0_u64;
        self.listeners.retain(|(_, number), listener| {
            let Some(from) = listener.from.filter(|from| *from <= batch.last()) else {
                return true;
            };
            if listener.outbox.offer(*number, from, batch) {
                told += 1;
                return true;
            }
            listener.falls_behind(*number, from.max(first), counts);
            false
        });
        let events = u64::try_from(batch.events.len()).unwrap_or(u64::MAX);
        let saved = told.saturating_sub(1).saturating_mul(events);
        counts.events.fetch_add(saved, Relaxed);
    }

    fn progress(&self, header: ResponseHeader) {
        for ((_, number), listener) in &self.listeners {
            // One that begins later has not made any.
            let begun = listener
                .from
                .is_some_and(|from| from <= header.revision + 1);
            if listener.progress && begun {
                listener.outbox.offer_progress(*number, header);
            }
        }
    }

    fn end(self, response: &WatchResponse, counts: &Counts) {
        for ((_, number), listener) in self.listeners {
            let end = match listener.from {
                // What is compacted by now is of no concern to one that begins later.
                Some(from)
                    if response.compact_revision > 0 && from >= response.compact_revision =>
                {
                    listener.falls_behind(number, from, counts);
                    continue;
                }
                Some(_) => End::Over(response.clone()),
                None if self.has_begun => End::Gone,
                None => End::Refused(response.clone()),
            };
            listener.outbox.tell(Item::Ended { number, end });
        }
    }
}

impl Listener {
    fn falls_behind(&self, number: u64, next: i64, counts: &Counts) {
        counts.behind.fetch_add(1, Relaxed);
        self.outbox.tell(Item::Behind { number, next });
    }
}
