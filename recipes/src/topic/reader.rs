//! Reads one partition in the order of its commits: page by page what is there, then by a watch what comes. The
//! keys are the log, the watch is only the quick way to the next of them: whenever it ends, for whatever reason,
//! the reader goes on with pages from where it stands. It holds one page at most.

use std::collections::VecDeque;

use futures::StreamExt;
use quorate_proto::etcdserverpb::{
    RangeRequest, ResponseHeader, ResponseOp, TxnRequest, TxnResponse, WatchCreateRequest,
    WatchResponse, response_op::Response,
};
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::mvccpb::event::EventType;

use super::locate::{Locator, Spot, first_of};
use super::message::Lagged;
use super::position::{Place, Position};
use super::record::{Layout, RemovedRecord};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::store::{Cause, StoreError, WatchStream, ops};
use crate::wait::{Backoff, refusal};

/// Messages of the first page.
const PAGE_FIRST: i64 = 16;

/// Most messages of a page.
const PAGE_MAX: i64 = 128;

/// What a page is meant to have, in bytes, by the size of the messages before.
const PAGE_BYTES: usize = 1 << 20;

/// What comes next in a partition.
#[derive(Debug)]
pub(super) enum Read {
    Message {
        position: Position,
        offset: Option<u64>,
        kv: KeyValue,
    },
    Lagged(Lagged),
}

/// Reads one partition.
pub(super) struct Reader {
    layout: Layout,
    partition: u32,
    /// Everything up to here has been read, and is ready or was returned.
    at: Spot,
    ready: VecDeque<Read>,
    /// Messages to ask for in the next page.
    page: i64,
    /// Of the last answer.
    seen: Revision,
    cluster_id: u64,
    stream: Option<WatchStream>,
    pause: Backoff,
    pause_due: bool,
    failed: Option<Error>,
}

impl Reader {
    pub(super) fn new(layout: Layout, partition: u32, at: Spot) -> Self {
        let pause = Backoff::between_attempts(&layout.client);
        Self {
            layout,
            partition,
            at,
            ready: VecDeque::new(),
            page: PAGE_FIRST,
            seen: Revision(0),
            cluster_id: 0,
            stream: None,
            pause,
            pause_due: false,
            failed: None,
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`Error::Codec`] for a head or a count that is damaged, and the store's final refusals; again at every
    /// later call. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Read> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Ok(next);
            }
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
            if self.pause_due {
                self.pause.pause().await;
                self.pause_due = false;
            }
            if let Err(error) = self.step().await {
                self.stream = None;
                self.pause_due = true;
                match error {
                    Error::Store(error) if error.is_transient() => {
                        tracing::debug!(partition = self.partition, %error, "reading interrupted");
                    }
                    error => self.failed = Some(error),
                }
            }
        }
    }

    async fn step(&mut self) -> Result<()> {
        let Some(stream) = &mut self.stream else {
            return self.read_page().await;
        };
        match stream.next().await {
            Some(answer) => self.take(answer?),
            None => Err(interrupted("the watch stream ended")),
        }
    }

    async fn read_page(&mut self) -> Result<()> {
        let log = self.layout.log(self.partition);
        let segment = self.at.place.segment;
        let request = TxnRequest {
            success: [
                ops::get(log.head_key()),
                ops::get(self.layout.removed(self.partition)),
                self.of_segment(self.at.place.created, self.page),
            ]
            .map(ops::read)
            .into(),
            ..TxnRequest::default()
        };
        let TxnResponse {
            header, responses, ..
        } = self.layout.client.store().txn(request).await?;
        let header = header.unwrap_or_default();
        let head = log.head_of(ops::kvs(&responses, 0).first())?;
        if self.is_another_store(&header) || head.segment < segment {
            return self.begin_again(&header).await;
        }
        self.seen = Revision(header.revision);
        self.cluster_id = header.cluster_id;
        let removed = RemovedRecord::read(ops::kvs(&responses, 1).first())?;
        if removed.segment > segment {
            self.lag(&removed);
            return Ok(());
        }
        let more = has_more(&responses, 2);
        let page = ops::kvs(&responses, 2);
        let Some(last) = self.take_page(page, more).await? else {
            return Ok(());
        };
        if more {
            self.at.place = Place::behind(segment, last);
        } else if head.segment > segment {
            // It was closed before it was read, so nothing comes to it any more.
            self.at.place = Place::start_of(segment + 1);
        } else {
            self.watch().await?;
        }
        Ok(())
    }

    /// A page of the segment where the reader stands, by the order of commits.
    fn of_segment(&self, from: Revision, most: i64) -> RangeRequest {
        let segment = self
            .layout
            .log(self.partition)
            .segment(self.at.place.segment);
        RangeRequest {
            min_create_revision: from.0,
            keys_only: false,
            ..ops::oldest(segment, most)
        }
    }

    /// Takes in a page; the revision up to which nothing is missing any more. `None` when the segment turns out
    /// to be removed meanwhile.
    async fn take_page(&mut self, page: &[KeyValue], more: bool) -> Result<Option<Revision>> {
        let created = |kv: &KeyValue| kv.create_revision;
        let Some(last) = page.iter().map(created).max() else {
            return Ok(Some(self.at.place.created));
        };
        let mut whole: Vec<KeyValue> = page.to_vec();
        let mut last = last;
        if more {
            // The page may end in the midst of what was committed together.
            whole.retain(|kv| kv.create_revision < last);
            match whole.iter().map(created).max() {
                Some(before) => last = before,
                None => {
                    let mut batch = self.of_segment(Revision(last), 0);
                    batch.max_create_revision = last;
                    whole = self.layout.client.store().range(batch).await?.kvs;
                    if whole.is_empty() {
                        return Ok(None);
                    }
                }
            }
        }
        self.adapt(&whole);
        let log = self.layout.log(self.partition).clone();
        let mut found: Vec<(Place, KeyValue)> = whole
            .into_iter()
            .filter_map(|kv| Some((Place::of(&log.position(&kv)?), kv)))
            .collect();
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (place, kv) in found {
            self.came(place, kv);
        }
        Ok(Some(Revision(last)))
    }

    /// A message that is the next one unless it has been read.
    fn came(&mut self, place: Place, kv: KeyValue) {
        if place <= self.at.place {
            return;
        }
        self.pause.reset();
        let offset = self.at.passed;
        self.ready.push_back(Read::Message {
            position: Position::new(self.partition, place.clone()),
            offset,
            kv,
        });
        self.at = Spot {
            place,
            passed: offset.map(|offset| offset + 1),
        };
    }

    /// Asks for as many in the next page as make about a page of bytes.
    fn adapt(&mut self, page: &[KeyValue]) {
        let bytes: usize = page.iter().map(|kv| kv.value.len()).sum();
        let each = (bytes / page.len().max(1)).max(1);
        let next = i64::try_from(PAGE_BYTES / each).unwrap_or(PAGE_MAX);
        self.page = next.clamp(1, PAGE_MAX);
    }

    /// Segments were removed, that where the reader stands among them.
    fn lag(&mut self, removed: &RemovedRecord) {
        let now = first_of(removed);
        let missed = self
            .at
            .passed
            .map(|passed| removed.messages.saturating_sub(passed));
        if missed != Some(0) {
            self.ready.push_back(Read::Lagged(Lagged {
                skipped: missed,
                from: Position::new(self.partition, self.at.place.clone()),
                to: Position::new(self.partition, now.place.clone()),
            }));
        }
        self.at = now;
    }

    /// The store is another one, or was put back to an older state, and what was read is not what is there.
    async fn begin_again(&mut self, header: &ResponseHeader) -> Result<()> {
        let (layout, partition) = (&self.layout, self.partition);
        let now = Locator { layout, partition }.end().await?;
        tracing::warn!(
            partition,
            "the store was replaced; going on with what comes now"
        );
        self.ready.push_back(Read::Lagged(Lagged {
            skipped: None,
            from: Position::new(partition, self.at.place.clone()),
            to: Position::new(partition, now.place.clone()),
        }));
        self.at = now;
        self.seen = Revision(header.revision);
        self.cluster_id = header.cluster_id;
        Ok(())
    }

    fn is_another_store(&self, header: &ResponseHeader) -> bool {
        let known = self.cluster_id != 0 && header.cluster_id != 0;
        let other = known && self.cluster_id != header.cluster_id;
        other || header.revision < self.seen.0
    }

    async fn watch(&mut self) -> Result<()> {
        let range = self.layout.log(self.partition).everything();
        let request = WatchCreateRequest {
            key: range.start,
            range_end: range.end,
            start_revision: self.seen.0 + 1,
            ..WatchCreateRequest::default()
        };
        self.stream = Some(self.layout.client.store().watch(vec![request]).await?);
        Ok(())
    }

    fn take(&mut self, answer: WatchResponse) -> Result<()> {
        if answer.canceled {
            let error = refusal(&answer.cancel_reason).map(Error::from);
            return Err(error.unwrap_or_else(|| interrupted(&answer.cancel_reason)));
        }
        let header = answer.header.unwrap_or_default();
        if answer.created && self.is_another_store(&header) {
            // Or a member that lags, which the next page tells.
            return Err(interrupted("the watch is behind"));
        }
        let log = self.layout.log(self.partition).clone();
        for event in answer.events {
            let (EventType::Put, Some(kv)) = (event.r#type(), event.kv) else {
                continue;
            };
            self.seen = self.seen.max(Revision(kv.mod_revision));
            if let Some(position) = log.position(&kv) {
                self.came(Place::of(&position), kv);
            }
        }
        Ok(())
    }
}

fn has_more(responses: &[ResponseOp], index: usize) -> bool {
    let op = responses.get(index).and_then(|op| op.response.as_ref());
    matches!(op, Some(Response::ResponseRange(range)) if range.more)
}

fn interrupted(why: &str) -> Error {
    StoreError::NotApplied(Cause::new(why)).into()
}
