//! What a client asks of its stream: watchers to begin and to end. Requests are answered in their order.

use quorate::proto::Reason;
use quorate::proto::etcdserverpb::{WatchCreateRequest, WatchResponse};

use super::{Asked, Doubt, Now, Session, State, Watcher};
use crate::proxy::watch::line::NO_WATCH;
use crate::proxy::watch::shared::{Entered, Reserved};
use crate::proxy::watch::spec::Spec;

impl Session {
    pub(super) fn create(&mut self, request: &WatchCreateRequest) {
        let spec = Spec::of(request);
        let reason = if self.ids.len() >= self.limits.watchers {
            Some(Reason::TooManyWatchers)
        } else if spec.is_empty() {
            Some(Reason::WatchRangeEmpty)
        } else if request.watch_id != 0 && self.ids.contains_key(&request.watch_id) {
            Some(Reason::WatchIdInUse)
        } else {
            None
        };
        self.last_number += 1;
        let number = self.last_number;
        let mut watcher = Watcher {
            id: NO_WATCH,
            spec,
            start: request.start_revision,
            fragment: request.fragment,
            progress: request.progress_notify,
            state: State::Over,
        };
        if let Some(reason) = reason {
            watcher.state = State::Refused(refusal(reason));
        } else {
            watcher.id = match request.watch_id {
                0 => self.free_id(),
                id => id,
            };
            self.ids.insert(watcher.id, number);
            watcher.state = self.first_state(number, &watcher);
        }
        self.watchers.insert(number, watcher);
        self.asked.push_back(Asked::Create(number));
    }

    /// Counts up from 0, skipping ids in use.
    pub(super) fn free_id(&mut self) -> i64 {
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    pub(super) fn first_state(&mut self, number: u64, watcher: &Watcher) -> State {
        let start = watcher.start;
        if start == 0 || self.common.lock().is_joinable(&watcher.spec, start) {
            return self.reserve(number, watcher);
        }
        self.own_watch(number, &watcher.spec, Some(start), false)
    }

    /// Takes a place at the shared watch.
    pub(super) fn reserve(&mut self, number: u64, watcher: &Watcher) -> State {
        let who = (self.number, number);
        let mut shared = self.common.lock();
        let reserved = shared.reserve(&watcher.spec, who, &self.outbox, watcher.progress);
        drop(shared);
        self.common.wake();
        let (is_open, now) = match reserved {
            Reserved::Fresh => (false, Now::AfterOpening),
            Reserved::Known { is_open } => {
                self.doubts.push(Doubt {
                    number,
                    spec: watcher.spec.clone(),
                });
                (is_open, Now::Unknown)
            }
        };
        State::Entering { is_open, now }
    }

    pub(super) fn own_watch(
        &mut self,
        number: u64,
        spec: &Spec,
        start: Option<i64>,
        is_answered: bool,
    ) -> State {
        let line = self.line.add(spec.clone(), start);
        self.alone.insert(line, number);
        State::Alone { line, is_answered }
    }

    /// Answers requests in their order, as far as that can be done.
    pub(super) fn advance(&mut self) {
        while let Some(first) = self.asked.front() {
            let is_answered = match *first {
                Asked::Create(number) => self.try_create(number),
                Asked::Cancel(number) => {
                    self.end(number);
                    true
                }
                Asked::Progress => {
                    self.call_roll();
                    true
                }
            };
            if !is_answered {
                return;
            }
            self.asked.pop_front();
        }
    }

    /// Answers the first request if it can be, a creation.
    pub(super) fn try_create(&mut self, number: u64) -> bool {
        let Some(watcher) = self.watchers.get_mut(&number) else {
            return true;
        };
        let (id, start) = (watcher.id, watcher.start);
        let now = match &mut watcher.state {
            State::Refused(response) => {
                let mut response = std::mem::take(response);
                // Of a refusal made here.
                let latest = self.common.latest();
                response.header.get_or_insert_with(|| latest.header());
                response.watch_id = if response.watch_id == NO_WATCH {
                    NO_WATCH
                } else {
                    id
                };
                self.ready.push_back(response);
                self.forget(number);
                return true;
            }
            State::Alone { is_answered, .. } => return *is_answered,
            State::Shared | State::Over => return true,
            State::Entering { is_open, now } => match now {
                Now::Unclear => None,
                Now::At(header) if *is_open => Some(Some(*header)),
                Now::AfterOpening if *is_open => Some(None),
                Now::At(_) | Now::AfterOpening | Now::Unknown => return false,
            },
        };
        let who = (self.number, number);
        let entered = now.map(|now| {
            let mut shared = self.common.lock();
            shared.enter(&watcher.spec, who, start, now)
        });
        if let Some(Entered::Joined(header)) = entered {
            watcher.state = State::Shared;
            self.answer_created(id, header);
            self.call_roll_again();
            return true;
        }
        let spec = watcher.spec.clone();
        self.common.lock().leave(&spec, who);
        self.common.wake();
        let start = (start != 0).then_some(start);
        let state = self.own_watch(number, &spec, start, false);
        if let Some(watcher) = self.watchers.get_mut(&number) {
            watcher.state = state;
        }
        self.ask_later_ones_again();
        false
    }

    /// The first request was given a watch on the line after later ones were: those are asked for again,
    /// behind it, so that the answers come in order.
    pub(super) fn ask_later_ones_again(&mut self) {
        let later: Vec<u64> = self
            .asked
            .iter()
            .skip(1)
            .filter_map(Asked::created)
            .collect();
        for number in later {
            let Some(watcher) = self.watchers.get(&number) else {
                continue;
            };
            let State::Alone {
                line,
                is_answered: false,
            } = watcher.state
            else {
                continue;
            };
            let (spec, start) = (watcher.spec.clone(), watcher.start);
            self.line.remove(line);
            self.alone.remove(&line);
            let state = self.own_watch(number, &spec, (start != 0).then_some(start), false);
            if let Some(watcher) = self.watchers.get_mut(&number) {
                watcher.state = state;
            }
        }
    }

    pub(super) fn cancel(&mut self, id: i64) {
        let Some(number) = self.ids.remove(&id) else {
            return;
        };
        if self
            .asked
            .iter()
            .any(|asked| asked.created() == Some(number))
        {
            self.asked.push_back(Asked::Cancel(number));
        } else {
            self.end(number);
        }
    }

    /// Ends a watcher at its client's wish. One that was refused meanwhile is not there any more.
    pub(super) fn end(&mut self, number: u64) {
        self.detach(number);
        let Some(watcher) = self.watchers.remove(&number) else {
            return;
        };
        self.call_roll_again();
        self.ready.push_back(WatchResponse {
            header: Some(self.common.latest().header()),
            watch_id: watcher.id,
            canceled: true,
            ..Default::default()
        });
    }

    /// Takes a watcher's upstream away.
    pub(super) fn detach(&mut self, number: u64) {
        let Some(watcher) = self.watchers.get(&number) else {
            return;
        };
        match watcher.state {
            State::Entering { .. } | State::Shared => {
                let who = (self.number, number);
                self.common.lock().leave(&watcher.spec, who);
                self.common.wake();
            }
            State::Alone { line, .. } => {
                self.line.remove(line);
                self.alone.remove(&line);
            }
            State::Refused(_) | State::Over => {}
        }
    }

    pub(super) fn forget(&mut self, number: u64) {
        if let Some(watcher) = self.watchers.remove(&number)
            && self.ids.get(&watcher.id) == Some(&number)
        {
            self.ids.remove(&watcher.id);
        }
    }
}

/// A refusal made here, in the words of a member.
fn refusal(reason: Reason) -> WatchResponse {
    WatchResponse {
        watch_id: NO_WATCH,
        created: true,
        canceled: true,
        cancel_reason: reason.text().to_owned(),
        ..Default::default()
    }
}
