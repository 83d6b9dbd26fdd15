//! What comes from upstream: from shared watches by way of the outbox, and from the session's own line.

use quorate::proto::etcdserverpb::{ResponseHeader, WatchResponse};

use super::{Now, Session, State};
use crate::proxy::watch::line::{Heard, revision};
use crate::proxy::watch::outbox::{End, Item};

impl Session {
    pub(super) fn unpack(&mut self, item: Item) {
        match item {
            Item::Opened { number } => {
                let watcher = self.watchers.get_mut(&number);
                if let Some(State::Entering { is_open, .. }) = watcher.map(|w| &mut w.state) {
                    *is_open = true;
                }
            }
            Item::Events {
                number,
                from,
                batch,
            } => {
                if self.is_shared(number) {
                    self.answer_events(number, batch.header, batch.since(from).to_vec());
                }
            }
            Item::Progress { number, header } => {
                if self.is_shared(number) {
                    self.answer_progress(number, header);
                }
            }
            Item::Behind { number, next } => {
                if self.is_shared(number) {
                    self.fall_behind(number, next);
                }
            }
            Item::Ended { number, end } => self.ended(number, end),
            Item::InSync { call, header } => {
                self.shared_in_sync(call, header.revision);
            }
        }
        self.advance();
    }

    pub(super) fn is_shared(&self, number: u64) -> bool {
        let watcher = self.watchers.get(&number);
        watcher.is_some_and(|watcher| matches!(watcher.state, State::Shared))
    }

    pub(super) fn fall_behind(&mut self, number: u64, next: i64) {
        // Not in sync any more: whoever asked has to ask again.
        self.roll = None;
        let Some(watcher) = self.watchers.get(&number) else {
            return;
        };
        let spec = watcher.spec.clone();
        let state = self.own_watch(number, &spec, Some(next), true);
        if let Some(watcher) = self.watchers.get_mut(&number) {
            watcher.state = state;
        }
    }

    pub(super) fn ended(&mut self, number: u64, end: End) {
        let Some(watcher) = self.watchers.get_mut(&number) else {
            return;
        };
        match (&mut watcher.state, end) {
            (State::Entering { .. }, End::Refused(response)) => {
                watcher.state = State::Refused(response);
            }
            (State::Entering { now, is_open }, End::Gone | End::Over(_)) if watcher.start != 0 => {
                (*now, *is_open) = (Now::Unclear, true);
            }
            // As if it had just been asked for.
            (State::Entering { .. }, End::Gone | End::Over(_)) => {
                if let Some(mut watcher) = self.watchers.remove(&number) {
                    watcher.state = self.reserve(number, &watcher);
                    self.watchers.insert(number, watcher);
                }
            }
            (State::Shared, End::Over(response) | End::Refused(response)) => {
                watcher.state = State::Over;
                self.answer_over(number, response);
            }
            _ => {}
        }
    }

    pub(super) fn hear_one(&mut self, heard: Heard, is_ordered: bool) {
        match heard {
            Heard::Created { number, header } => {
                let is_told = self.line.next(number) > Some(header.revision);
                self.began(number, header);
                self.settle(number, is_told.then_some(header.revision));
            }
            Heard::Events {
                number,
                header,
                from: _,
                events,
            } => {
                let is_last = events.last().map(revision) >= Some(header.revision);
                if let Some(watcher) = self.alone.get(&number).copied() {
                    self.answer_events(watcher, header, events);
                }
                self.settle(number, is_last.then_some(header.revision));
            }
            Heard::Progress { number, header } => {
                if let Some(watcher) = self.alone.get(&number).copied() {
                    self.answer_progress(watcher, header);
                }
                self.settle(number, Some(header.revision));
            }
            Heard::Refused { number, response } => {
                if let Some(watcher) = self.alone.remove(&number) {
                    self.refused(watcher, response);
                }
            }
            Heard::Ended { number, response } => {
                if let Some(watcher) = self.alone.remove(&number) {
                    self.answer_over(watcher, response);
                }
            }
            Heard::InSync { header, number } => {
                self.line_in_sync(number, header.revision);
                if is_ordered {
                    self.line.told(header.revision, number);
                    let lines = self.alone.keys().copied();
                    let covered = lines.filter(|line| self.line.is_covered(*line, number));
                    let covered: Vec<i64> = covered.collect();
                    for line in covered {
                        self.settle(line, Some(header.revision));
                    }
                }
            }
        }
    }

    /// A watch of the line has begun: the first request is answered, unless the watcher was told before.
    pub(super) fn began(&mut self, line: i64, header: ResponseHeader) {
        let watcher = self.alone.get(&line);
        let watcher = watcher.and_then(|number| self.watchers.get_mut(number));
        let Some(watcher) = watcher else {
            return;
        };
        if let State::Alone { is_answered, .. } = &mut watcher.state
            && !std::mem::replace(is_answered, true)
        {
            let id = watcher.id;
            self.answer_created(id, header);
            self.call_roll_again();
            self.advance();
        }
    }

    pub(super) fn refused(&mut self, number: u64, response: WatchResponse) {
        let Some(watcher) = self.watchers.get_mut(&number) else {
            return;
        };
        if let State::Alone {
            is_answered: false, ..
        } = watcher.state
        {
            watcher.state = State::Refused(response);
        } else {
            self.answer_over(number, response);
        }
    }

    /// Gives a watcher over to the shared watch, if that stands where the watcher does. `present` is the
    /// present revision, if the watcher has been told everything up to it.
    pub(super) fn settle(&mut self, line: i64, present: Option<i64>) {
        let Some(number) = self.alone.get(&line).copied() else {
            return;
        };
        let next = self.line.next(line);
        let watcher = self.watchers.get_mut(&number);
        let (Some(next), Some(watcher)) = (next, watcher) else {
            return;
        };
        let is_answered = matches!(
            watcher.state,
            State::Alone {
                is_answered: true,
                ..
            }
        );
        if !is_answered || !self.outbox.is_roomy() {
            return;
        }
        let (who, listener) = ((self.number, number), (&self.outbox, watcher.progress));
        let mut shared = self.common.lock();
        let is_adopted = shared.adopt(&watcher.spec, who, listener, next, present);
        drop(shared);
        if is_adopted {
            watcher.state = State::Shared;
            self.common.wake();
            self.line.remove(line);
            self.alone.remove(&line);
            self.call_roll_again();
        }
    }
}
