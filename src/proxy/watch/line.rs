//! One upstream watch stream, without its I/O: which watches it carries, how far each of them is, and
//! how all go on when the stream has to be opened again, on whatever member. Used for the watches that
//! clients share and for those that one client has alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quorate::proto::etcdserverpb::watch_request::RequestUnion;
use quorate::proto::etcdserverpb::{
    ResponseHeader, WatchCancelRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use quorate::proto::mvccpb::Event;

use super::spec::Spec;

/// The id in answers that concern no watch.
pub(super) const NO_WATCH: i64 = -1;

/// Watches on one upstream stream.
#[derive(Debug, Default)]
pub(super) struct Line {
    watches: BTreeMap<i64, Watch>,
    /// The watches by the ids that the member knows: a watch that is asked for again gets another one.
    by_id: BTreeMap<i64, i64>,
    /// Ids whose creation is not answered yet, in the order asked; some may be removed by now.
    pending: VecDeque<i64>,
    /// Not sent yet. Only creates of watches that are there, cancels of watches that were sent, and one
    /// request for progress: bounded by the watches.
    requests: VecDeque<WatchRequest>,
    /// Ids whose creation is among them.
    unsent: BTreeSet<i64>,
    /// Requests for progress on this stream: made, and answered.
    progress_asked: u64,
    progress_heard: u64,
    /// Whether the last one is not sent yet.
    progress_unsent: bool,
    is_open: bool,
    last_number: i64,
    last_id: i64,
}

#[derive(Debug)]
struct Watch {
    spec: Spec,
    /// The first revision that was not told yet; `None` until a watch from now on knows when that was.
    next: Option<i64>,
    /// Whether everything before that was told: otherwise it is where the watch was asked to begin.
    is_told: bool,
    /// The id that the member knows it by, while the stream is open.
    id: i64,
    /// The last request for progress that was sent before the watch was known to have begun: the answers
    /// to later ones are about this watch too.
    begun_after: Option<u64>,
    /// The beginning of a revision whose end has not come yet.
    held: Vec<Event>,
}

/// What an answer means for a watch.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    /// It has begun, or begun again.
    Created { number: i64, header: ResponseHeader },
    /// Whole revisions, none of them told before.
    Events {
        number: i64,
        header: ResponseHeader,
        /// The first revision that was not told before these.
        from: i64,
        /// At least one.
        events: Vec<Event>,
    },
    /// Everything up to the header's revision was told.
    Progress { number: i64, header: ResponseHeader },
    /// It never began. It is gone.
    Refused {
        number: i64,
        response: WatchResponse,
    },
    /// It has ended. It is gone.
    Ended {
        number: i64,
        response: WatchResponse,
    },
    /// An answer to a request for progress: to the one of this number, or to a later one. A member leaves
    /// requests unanswered while a watch is not in sync, and does not say which it answers.
    InSync { header: ResponseHeader, number: u64 },
}

/// The upstream sent what nobody asked for: the stream is of no more use.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("an answer to a watch that was not asked for")]
pub(super) struct Confused;

impl Line {
    /// Whether it carries nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Watches it carries.
    pub(super) fn len(&self) -> usize {
        self.watches.len()
    }

    /// Adds a watch from revision `start` on; `None` means from now. Returns its number.
    pub(super) fn add(&mut self, spec: Spec, start: Option<i64>) -> i64 {
        self.insert(spec, start, false)
    }

    /// Adds a watch that goes on at revision `next`, where another one of the same stands.
    pub(super) fn add_told(&mut self, spec: Spec, next: i64) -> i64 {
        self.insert(spec, Some(next), true)
    }

    fn insert(&mut self, spec: Spec, next: Option<i64>, is_told: bool) -> i64 {
        self.last_number += 1;
        let number = self.last_number;
        let watch = Watch {
            spec,
            next,
            is_told,
            id: NO_WATCH,
            begun_after: None,
            held: Vec::new(),
        };
        let start = watch.start();
        self.watches.insert(number, watch);
        if self.is_open {
            self.ask(number, start);
        }
        number
    }

    /// Asks for a watch from revision `start` on.
    fn ask(&mut self, number: i64, start: i64) {
        let Some(watch) = self.watches.get_mut(&number) else {
            return;
        };
        self.by_id.remove(&watch.id);
        self.last_id += 1;
        watch.id = self.last_id;
        watch.begun_after = None;
        watch.held.clear();
        self.by_id.insert(watch.id, number);
        self.pending.push_back(watch.id);
        self.unsent.insert(watch.id);
        self.requests.push_back(watch.spec.request(watch.id, start));
    }

    /// Ends a watch. Nothing more is heard of it.
    pub(super) fn remove(&mut self, number: i64) {
        let Some(watch) = self.watches.remove(&number) else {
            return;
        };
        if !self.is_open {
            return;
        }
        self.by_id.remove(&watch.id);
        if self.unsent.remove(&watch.id) {
            self.pending.retain(|pending| *pending != watch.id);
            self.requests.retain(|request| {
                !matches!(&request.request_union, Some(RequestUnion::CreateRequest(create))
                    if create.watch_id == watch.id)
            });
            return;
        }
        let cancel = WatchCancelRequest { watch_id: watch.id };
        self.requests.push_back(WatchRequest {
            request_union: Some(RequestUnion::CancelRequest(cancel)),
        });
    }

    /// Asks up to where all watches are told. Returns the number of the request, which may be one that
    /// was not sent yet.
    pub(super) fn ask_progress(&mut self) -> u64 {
        if self.is_open && !std::mem::replace(&mut self.progress_unsent, true) {
            self.progress_asked += 1;
            let progress = WatchProgressRequest {};
            self.requests.push_back(WatchRequest {
                request_union: Some(RequestUnion::ProgressRequest(progress)),
            });
        }
        self.progress_asked
    }

    /// The number of the next request for progress that will be sent.
    pub(super) fn next_progress(&self) -> u64 {
        self.progress_asked + u64::from(!self.progress_unsent)
    }

    /// Whether a request for progress was not answered, or not yet.
    pub(super) fn asks_progress(&self) -> bool {
        self.progress_asked > self.progress_heard
    }

    /// Whether the answer to the request for progress of number `answer` is about this watch too.
    pub(super) fn is_covered(&self, number: i64, answer: u64) -> bool {
        let watch = self.watches.get(&number);
        watch.is_none_or(|watch| watch.is_covered(answer))
    }

    /// Takes what is to be sent next.
    pub(super) fn request(&mut self) -> Option<WatchRequest> {
        let request = self.requests.pop_front()?;
        match &request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                self.unsent.remove(&create.watch_id);
            }
            Some(RequestUnion::ProgressRequest(_)) => self.progress_unsent = false,
            Some(RequestUnion::CancelRequest(_)) | None => {}
        }
        Some(request)
    }

    /// The stream was opened: every watch is asked for again, from where it is.
    pub(super) fn open(&mut self) {
        self.close();
        self.is_open = true;
        let all: Vec<(i64, i64)> = self
            .watches
            .iter()
            .map(|(number, watch)| (*number, watch.start()))
            .collect();
        for (number, start) in all {
            self.ask(number, start);
        }
    }

    /// The stream is gone, and what it had not told in full with it.
    pub(super) fn close(&mut self) {
        self.is_open = false;
        self.by_id.clear();
        self.pending.clear();
        self.requests.clear();
        self.unsent.clear();
        (self.progress_asked, self.progress_heard) = (0, 0);
        self.progress_unsent = false;
        for watch in self.watches.values_mut() {
            watch.held.clear();
            (watch.id, watch.begun_after) = (NO_WATCH, None);
        }
    }

    /// The first revision that a watch has not told; `None` until it is known.
    pub(super) fn next(&self, number: i64) -> Option<i64> {
        self.watches.get(&number)?.next
    }

    /// Whether the creation of a watch was not sent yet.
    pub(super) fn is_unsent(&self, number: i64) -> bool {
        let watch = self.watches.get(&number);
        !self.is_open || watch.is_some_and(|watch| self.unsent.contains(&watch.id))
    }

    /// All watches that the answer of this number is about were told everything up to `revision`, by the
    /// word of a server that answers requests for progress in order.
    pub(super) fn told(&mut self, revision: i64, answer: u64) {
        for watch in self.watches.values_mut() {
            if watch.held.is_empty() && watch.is_covered(answer) {
                watch.pass(revision + 1);
            }
        }
    }

    /// Takes an answer in, and adds what it means to `heard`.
    ///
    /// # Errors
    /// It answers nothing that was asked.
    pub(super) fn hear(
        &mut self,
        response: WatchResponse,
        heard: &mut Vec<Heard>,
    ) -> Result<(), Confused> {
        if response.created {
            return self.created(response, heard);
        }
        let header = response.header.unwrap_or_default();
        let number = self.by_id.get(&response.watch_id).copied();
        let watch = number.and_then(|number| Some((number, self.watches.get_mut(&number)?)));
        let Some((number, watch)) = watch else {
            let is_of_all = response.watch_id == NO_WATCH;
            if is_of_all && !response.canceled && response.events.is_empty() {
                self.progress_heard = self.progress_asked.min(self.progress_heard + 1);
                let number = self.progress_heard;
                heard.push(Heard::InSync { header, number });
            }
            // Anything else is of a watch that was removed meanwhile.
            return Ok(());
        };
        if response.canceled {
            self.canceled(number, response, heard);
            return Ok(());
        }
        let is_empty = response.events.is_empty() && watch.held.is_empty() && !response.fragment;
        if is_empty {
            watch.pass(header.revision + 1);
            heard.push(Heard::Progress { number, header });
            return Ok(());
        }
        let from = watch.next.unwrap_or_default();
        let events = watch.whole_revisions(response.events, response.fragment);
        if !events.is_empty() {
            heard.push(Heard::Events {
                number,
                header,
                from,
                events,
            });
        }
        Ok(())
    }

    fn canceled(&mut self, number: i64, response: WatchResponse, heard: &mut Vec<Heard>) {
        let next = self.next(number).unwrap_or_default();
        let compacted = response.compact_revision;
        let watch = self.watches.get(&number);
        if (1..=next).contains(&compacted) && watch.is_some_and(|watch| watch.is_told) {
            // Only what was told already, and what it was asked to overlap with, is compacted.
            self.ask(number, next);
            return;
        }
        self.by_id.remove(&response.watch_id);
        self.watches.remove(&number);
        heard.push(Heard::Ended { number, response });
    }

    fn created(&mut self, response: WatchResponse, heard: &mut Vec<Heard>) -> Result<(), Confused> {
        let last_progress = self.progress_asked - u64::from(self.progress_unsent);
        // Creations are answered in the order asked. A refusal may come without its id.
        let id = self.pending.pop_front().ok_or(Confused)?;
        if response.watch_id != id && !response.canceled {
            return Err(Confused);
        }
        let number = self.by_id.get(&id).copied();
        let watch = number.and_then(|number| Some((number, self.watches.get_mut(&number)?)));
        let Some((number, watch)) = watch else {
            return Ok(());
        };
        if response.canceled {
            self.by_id.remove(&id);
            self.watches.remove(&number);
            heard.push(Heard::Refused { number, response });
            return Ok(());
        }
        let header = response.header.unwrap_or_default();
        watch.next.get_or_insert(header.revision + 1);
        watch.is_told = true;
        watch.begun_after = Some(last_progress);
        heard.push(Heard::Created { number, header });
        Ok(())
    }
}

impl Watch {
    /// Where to ask for it. One that goes on overlaps by the revision before, which is there: members
    /// answer no request for progress before they have reached the revision that each watch was asked to
    /// begin at.
    fn start(&self) -> i64 {
        match self.next {
            Some(next) if self.is_told => (next - 1).max(1),
            Some(start) => start,
            None => 0,
        }
    }

    fn is_covered(&self, answer: u64) -> bool {
        self.begun_after.is_some_and(|before| before < answer)
    }

    /// Everything before `next` was told.
    fn pass(&mut self, next: i64) {
        if self.next.is_some_and(|before| before < next) {
            self.next = Some(next);
        }
    }

    /// Takes events in and gives out those that are new and of whole revisions: while `more` of the
    /// same answer follows, the last revision may go on.
    fn whole_revisions(&mut self, events: Vec<Event>, more: bool) -> Vec<Event> {
        let next = self.next.unwrap_or_default();
        self.held.extend(events);
        self.held.retain(|event| revision(event) >= next);
        let Some(last) = self.held.last().map(revision) else {
            return Vec::new();
        };
        let whole = match more {
            true => self.held.partition_point(|event| revision(event) < last),
            false => self.held.len(),
        };
        let rest = self.held.split_off(whole);
        let events = std::mem::replace(&mut self.held, rest);
        if let Some(last) = events.last() {
            self.pass(revision(last) + 1);
        }
        events
    }
}

/// The revision of the change that an event tells of.
pub(super) fn revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

#[cfg(test)]
mod tests {
    use quorate::proto::etcdserverpb::WatchCreateRequest;
    use quorate::proto::mvccpb::KeyValue;

    use super::*;

    fn spec(key: &'static str) -> Spec {
        Spec::of(&WatchCreateRequest {
            key: key.into(),
            ..Default::default()
        })
    }

    fn header(revision: i64) -> ResponseHeader {
        ResponseHeader {
            revision,
            ..Default::default()
        }
    }

    fn created(number: i64, revision: i64) -> WatchResponse {
        WatchResponse {
            header: Some(header(revision)),
            watch_id: number,
            created: true,
            ..Default::default()
        }
    }

    fn events(number: i64, revisions: &[i64], fragment: bool) -> WatchResponse {
        let event = |revision: &i64| Event {
            kv: Some(KeyValue {
                mod_revision: *revision,
                ..Default::default()
            }),
            ..Default::default()
        };
        WatchResponse {
            header: Some(header(*revisions.last().unwrap())),
            watch_id: number,
            events: revisions.iter().map(event).collect(),
            fragment,
            ..Default::default()
        }
    }

    fn hear(line: &mut Line, response: WatchResponse) -> Vec<Heard> {
        let mut heard = Vec::new();
        line.hear(response, &mut heard).unwrap();
        heard
    }

    /// Revisions told, and the first that was not told before.
    fn told(heard: &[Heard]) -> Vec<(i64, Vec<i64>)> {
        let told = heard.iter().filter_map(|heard| match heard {
            Heard::Events { from, events, .. } => {
                Some((*from, events.iter().map(revision).collect()))
            }
            _ => None,
        });
        told.collect()
    }

    fn starts(line: &mut Line) -> Vec<(i64, i64)> {
        let sent = std::iter::from_fn(|| line.request());
        let starts = sent.filter_map(|request| match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                Some((create.watch_id, create.start_revision))
            }
            _ => None,
        });
        starts.collect()
    }

    #[test]
    fn pieces_are_told_by_whole_revisions() {
        let mut line = Line::default();
        line.open();
        let number = line.add(spec("a"), None);
        hear(&mut line, created(number, 4));
        assert_eq!(
            told(&hear(&mut line, events(number, &[5, 6, 6], true))),
            [(5, vec![5])]
        );
        assert_eq!(told(&hear(&mut line, events(number, &[6], true))), []);
        assert_eq!(
            told(&hear(&mut line, events(number, &[6, 8], false))),
            [(6, vec![6, 6, 6, 6, 8])]
        );
        assert_eq!(line.next(number), Some(9));
    }

    #[test]
    fn a_broken_stream_goes_on_where_it_was() {
        let mut line = Line::default();
        line.open();
        let (one, two, three) = (
            line.add(spec("a"), None),
            line.add(spec("b"), Some(3)),
            line.add(spec("c"), None),
        );
        assert_eq!(starts(&mut line), [(one, 0), (two, 3), (three, 0)]);
        hear(&mut line, created(one, 4));
        hear(&mut line, events(one, &[5, 6, 7], true));
        line.close();
        line.open();
        // The first goes on, one revision before. The third never heard when its "now" was, so it still
        // is now.
        assert_eq!(starts(&mut line), [(4, 6), (5, 3), (6, 0)]);
        hear(&mut line, created(4, 2));
        // What was told already is passed over.
        assert_eq!(
            told(&hear(&mut line, events(4, &[6, 7], false))),
            [(7, vec![7])]
        );
    }

    #[test]
    fn only_a_compaction_of_what_was_not_told_ends_a_watch() {
        let mut line = Line::default();
        line.open();
        let (told, exact) = (line.add_told(spec("a"), 7), line.add(spec("b"), Some(7)));
        assert_eq!(starts(&mut line), [(1, 6), (2, 7)]);
        let compacted = |id, at| WatchResponse {
            watch_id: id,
            canceled: true,
            compact_revision: at,
            ..Default::default()
        };
        hear(&mut line, created(1, 9));
        assert_eq!(hear(&mut line, compacted(1, 7)), []);
        assert_eq!(starts(&mut line), [(3, 7)]);
        hear(&mut line, created(2, 9));
        hear(&mut line, created(3, 9));
        for (id, number) in [(2, exact), (3, told)] {
            let response = compacted(id, 8);
            let ended = Heard::Ended {
                number,
                response: response.clone(),
            };
            assert_eq!(hear(&mut line, response), [ended]);
        }
        assert!(line.is_empty());
    }

    #[test]
    fn creations_are_answered_in_order_also_when_refused_without_a_number() {
        let mut line = Line::default();
        line.open();
        let (one, two) = (line.add(spec("a"), None), line.add(spec("b"), None));
        starts(&mut line);
        let refusal = WatchResponse {
            created: true,
            canceled: true,
            watch_id: NO_WATCH,
            ..Default::default()
        };
        let heard = hear(&mut line, refusal.clone());
        assert_eq!(
            heard,
            [Heard::Refused {
                number: one,
                response: refusal
            }]
        );
        let mut heard = Vec::new();
        assert_eq!(line.hear(created(one, 1), &mut heard), Err(Confused));
        assert_eq!(line.next(two), None);
        assert_eq!(line.len(), 1);
    }

    #[test]
    fn what_was_not_sent_is_taken_back_and_what_was_is_cancelled() {
        let mut line = Line::default();
        let unopened = line.add(spec("a"), None);
        line.remove(unopened);
        assert!(line.request().is_none() && line.is_empty());
        line.open();
        let (one, two) = (line.add(spec("a"), None), line.add(spec("b"), None));
        line.remove(one);
        assert_eq!(starts(&mut line), [(2, 0)]);
        line.remove(two);
        let cancel = line.request().and_then(|request| request.request_union);
        assert!(
            matches!(cancel, Some(RequestUnion::CancelRequest(cancel)) if cancel.watch_id == 2)
        );
        // Its answer is on its way.
        assert_eq!(hear(&mut line, created(2, 1)), []);
    }

    #[test]
    fn progress_moves_a_watch_on_and_never_back() {
        let mut line = Line::default();
        line.open();
        let (watch, future) = (line.add(spec("a"), None), line.add(spec("b"), Some(20)));
        hear(&mut line, created(watch, 4));
        let progress = |revision| WatchResponse {
            header: Some(header(revision)),
            watch_id: watch,
            ..Default::default()
        };
        hear(&mut line, progress(9));
        assert_eq!(line.next(watch), Some(10));
        hear(&mut line, progress(3));
        assert_eq!(line.next(watch), Some(10));
        // What was asked before the watch was known to have begun may be answered without it.
        assert_eq!(line.ask_progress(), 1);
        while line.request().is_some() {}
        let other = line.add(spec("c"), Some(3));
        hear(&mut line, created(future, 4));
        hear(&mut line, created(other, 9));
        let in_sync = |revision| WatchResponse {
            watch_id: NO_WATCH,
            ..progress(revision)
        };
        let answer = |heard: &[Heard]| match heard {
            [Heard::InSync { header, number }] => (header.revision, *number),
            _ => panic!("{heard:?}"),
        };
        let (revision, number) = answer(&hear(&mut line, in_sync(30)));
        line.told(revision, number);
        assert_eq!(
            (number, line.next(watch), line.next(other)),
            (1, Some(31), Some(3))
        );
        assert_eq!(line.ask_progress(), 2);
        let (revision, number) = answer(&hear(&mut line, in_sync(40)));
        line.told(revision, number);
        assert_eq!((number, line.next(other)), (2, Some(41)));
    }
}
