//! What a client is told, and the answer to its requests for progress.

use quorate::proto::etcdserverpb::{ResponseHeader, WatchResponse};
use quorate::proto::mvccpb::Event;

use super::{Roll, Session, State};
use crate::proxy::watch::line::NO_WATCH;

impl Session {
    pub(super) fn answer_created(&mut self, id: i64, header: ResponseHeader) {
        // It may be that of a read, which no watch has heard.
        self.common.latest().hear(header);
        self.ready.push_back(WatchResponse {
            header: Some(header),
            watch_id: id,
            created: true,
            ..Default::default()
        });
    }

    pub(super) fn answer_events(
        &mut self,
        number: u64,
        header: ResponseHeader,
        events: Vec<Event>,
    ) {
        let Some(watcher) = self.watchers.get(&number) else {
            return;
        };
        let answer = WatchResponse {
            header: Some(header),
            watch_id: watcher.id,
            events,
            ..Default::default()
        };
        match watcher.fragment {
            true => {
                let pieces = answer.into_pieces(self.limits.piece_bytes);
                self.ready.extend(pieces);
            }
            false => self.ready.push_back(answer),
        }
    }

    pub(super) fn answer_progress(&mut self, number: u64, header: ResponseHeader) {
        let watcher = self.watchers.get(&number);
        if let Some(watcher) = watcher.filter(|watcher| watcher.progress) {
            self.ready.push_back(WatchResponse {
                header: Some(header),
                watch_id: watcher.id,
                ..Default::default()
            });
        }
    }

    /// A watcher was ended upstream. Its id stays taken.
    pub(super) fn answer_over(&mut self, number: u64, response: WatchResponse) {
        let Some(watcher) = self.watchers.get_mut(&number) else {
            return;
        };
        watcher.state = State::Over;
        self.ready.push_back(WatchResponse {
            watch_id: watcher.id,
            created: false,
            events: Vec::new(),
            ..response
        });
        self.call_roll_again();
    }

    /// Asks both sides up to where everything was told. A stream without watchers is not answered.
    pub(super) fn call_roll(&mut self) {
        let mut is_shared = false;
        for watcher in self.watchers.values() {
            is_shared |= matches!(watcher.state, State::Shared);
        }
        let is_alone = self.is_in_doubt();
        let not_asked = |is_asked: bool| (!is_asked).then_some(i64::MAX);
        self.last_call += 1;
        let call = self.last_call;
        self.roll = (is_shared || is_alone).then(|| Roll {
            call,
            shared: not_asked(is_shared),
            alone: not_asked(is_alone),
            since: self.line.next_progress(),
        });
        if is_shared {
            let mut shared = self.common.lock();
            shared.ask_progress(self.number, call, &self.outbox);
            drop(shared);
            self.common.wake();
        }
        if is_alone && !self.line.asks_progress() {
            self.line.ask_progress();
        }
    }

    /// The shared watches have answered a request for progress.
    pub(super) fn shared_in_sync(&mut self, call: u64, revision: i64) {
        if let Some(roll) = self.roll.as_mut().filter(|roll| roll.call == call) {
            roll.shared.get_or_insert(revision);
            self.finish_roll();
        }
    }

    /// The line has answered the request for progress of this number, or a later one.
    pub(super) fn line_in_sync(&mut self, number: u64, revision: i64) {
        let mut lines = self.alone.keys();
        let is_of_all = lines.all(|line| self.line.is_covered(*line, number));
        let Some(roll) = self.roll.as_mut().filter(|roll| roll.alone.is_none()) else {
            return;
        };
        if is_of_all && number >= roll.since {
            roll.alone = Some(revision);
            self.finish_roll();
        } else {
            self.line.ask_progress();
        }
    }

    /// Begins again, if a request for progress is under way: the watchers are not the same any more.
    pub(super) fn call_roll_again(&mut self) {
        if self.roll.is_some() {
            self.call_roll();
        }
    }

    pub(super) fn finish_roll(&mut self) {
        let Some(Roll {
            shared: Some(shared),
            alone: Some(alone),
            ..
        }) = self.roll
        else {
            return;
        };
        self.roll = None;
        let header = ResponseHeader {
            revision: shared.min(alone),
            ..self.common.latest().header()
        };
        self.ready.push_back(WatchResponse {
            header: Some(header),
            watch_id: NO_WATCH,
            ..Default::default()
        });
    }
}
