//! Past events and the pairs before them: what lets a watcher catch up.

use std::ops::Bound;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::{KeyRange, Reason};

use crate::storage::codec::{self, EventRecord, PastPair, StoredEvent, Table};
use crate::storage::kv::{Direction, KvError, View};

use super::read::{all_current, pair_of, with_revision};
use super::{Error, Event, EventKind, Revision, meta};

/// Bounds of one [`events`] call. A page ends with the revision that reaches one of them, so it
/// can exceed them by that revision's events.
#[derive(Debug, Clone, Copy)]
pub struct PageLimits {
    /// Events returned.
    pub events_max: usize,
    /// Sum of their [`Event::size_bytes`].
    pub bytes_max: usize,
    /// Events looked at, whether in the range or not.
    pub looked_at_max: usize,
}

/// Some events, always whole revisions.
#[derive(Debug)]
pub struct EventPage {
    /// In order; `prev_kv` is not filled in.
    pub events: Vec<Event>,
    /// Where to go on; `None` if there is nothing more up to the last revision asked for.
    pub next: Option<i64>,
}

/// Events on keys of `range` from main revision `first` to `last` (both included; `last` may lie
/// in the future).
///
/// # Errors
///
/// Refused with [`Reason::Compacted`] if `first` is below the compact revision of this view; equal
/// to it is fine.
pub fn events(
    view: &dyn View,
    range: &KeyRange,
    first: i64,
    last: i64,
    limits: PageLimits,
) -> Result<EventPage, Error> {
    if first < meta::compact_revision(view)? {
        return Err(Reason::Compacted.into());
    }
    let mut events = Vec::new();
    if last < first.max(0) {
        return Ok(EventPage { events, next: None });
    }
    let (mut bytes, mut main) = (0, first);
    let from = Revision::new(first.max(0), 0);
    let found = stored(view, from, Revision::new(last, i64::MAX));
    for (looked_at, event) in found.enumerate() {
        let (revision, record) = event?;
        let full = events.len() >= limits.events_max
            || bytes >= limits.bytes_max
            || looked_at >= limits.looked_at_max;
        if full && looked_at > 0 && revision.main != main {
            return Ok(EventPage {
                events,
                next: Some(revision.main),
            });
        }
        main = revision.main;
        if range.contains(&record.key) {
            let event = completed(view, revision, record)?;
            bytes += event.size_bytes();
            events.push(event);
        }
    }
    Ok(EventPage { events, next: None })
}

/// The pair that was visible before the event's transaction, if there was one and it is not
/// compacted as of this view.
///
/// # Errors
///
/// Storage failures.
pub fn prev_kv(view: &dyn View, event: &Event) -> Result<Option<KeyValue>, KvError> {
    let Some(previous) = event.prev_revision else {
        return Ok(None);
    };
    if event.revision.main <= meta::compact_revision(view)? {
        return Ok(None);
    }
    pair_of(view, &event.kv.key, previous).map(Some)
}

/// Every pair that a read or a watch at main revision `first` or later can show, each once, with its
/// full revision: those visible at `first`, and those made by events from `first` on. In no order of
/// revisions. `first` must not be below the compact revision of the view.
pub fn pairs_from(
    view: &dyn View,
    first: i64,
) -> impl Iterator<Item = Result<(KeyValue, Revision), KvError>> {
    let (start, end) = codec::table_bounds(Table::Versions);
    let past = view.range(start, end, Direction::Forward);
    let past = past.filter_map(move |stored| {
        let past = stored.and_then(|(key, record)| {
            let (user_key, began) = codec::version_of(&key)?;
            Ok((user_key, PastPair::decode(record, began)?))
        });
        match past {
            Ok((_, past)) if past.end.main <= first && past.pair.mod_revision.main < first => None,
            Ok((user_key, past)) => Some(Ok(with_revision(user_key, past.pair))),
            Err(error) => Some(Err(error)),
        }
    });
    all_current(view).chain(past)
}

/// Events as they are stored, in order.
pub type Stored<'a> = Box<dyn Iterator<Item = Result<StoredEvent, KvError>> + Send + 'a>;

/// The events from revision `first` to `last`, both included. After an error the iterator should be
/// dropped.
pub fn stored(view: &dyn View, first: Revision, last: Revision) -> Stored<'_> {
    let mut records = match records(view, first, last) {
        Ok(records) => records,
        Err(error) => return Box::new(std::iter::once(Err(error))),
    };
    let mut events = Vec::new().into_iter();
    let all = std::iter::from_fn(move || {
        loop {
            if let Some(event) = events.next() {
                return Some(Ok(event));
            }
            match records.next()? {
                Ok((_, several)) => events = several.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    });
    let before = move |event: &Result<StoredEvent, _>| matches!(event, Ok((at, _)) if *at < first);
    let within = move |event: &Result<StoredEvent, _>| !matches!(event, Ok((at, _)) if *at > last);
    Box::new(all.skip_while(before).take_while(within))
}

/// A record's stored key, and its events.
type Record = (Bytes, Vec<StoredEvent>);

/// The records that have the events from revision `first` to `last`, both included: the outer ones
/// may have others too.
///
/// # Errors
///
/// Storage failures, here or from the iterator, which should then be dropped.
pub(super) fn records(
    view: &dyn View,
    first: Revision,
    last: Revision,
) -> Result<impl Iterator<Item = Result<Record, KvError>> + Send, KvError> {
    let (table, _) = codec::table_bounds(Table::Events);
    let start = Bound::Included(codec::event_key(first));
    // The record that has `first` may begin before it.
    let mut before = view.range(table, start.clone(), Direction::Reverse);
    let start = match before.next().transpose()? {
        Some((key, _)) => Bound::Included(key),
        None => start,
    };
    let end = Bound::Included(codec::event_key(last));
    let pairs = view.range(start, end, Direction::Forward);
    let mut last = None;
    Ok(pairs.map(move |pair| {
        let (key, record) = pair?;
        let begins = codec::event_revision(&key)?;
        let events = codec::decode_events(begins, record)?;
        if last.is_some_and(|last| begins <= last) {
            return Err(KvError::corrupt(format!("events from {begins}: twice")));
        }
        last = events.last().map(|(revision, _)| *revision);
        Ok((key, events))
    }))
}

/// The event of a record, with the pair it made.
pub(super) fn completed(
    view: &dyn View,
    revision: Revision,
    record: EventRecord,
) -> Result<Event, KvError> {
    let EventRecord {
        deleted,
        key,
        previous,
        ..
    } = record;
    let (kind, kv) = if deleted {
        let mod_revision = revision.main;
        (
            EventKind::Delete,
            KeyValue {
                key,
                mod_revision,
                ..KeyValue::default()
            },
        )
    } else {
        (EventKind::Put, pair_of(view, &key, revision)?)
    };
    Ok(Event {
        revision,
        kind,
        kv,
        prev_revision: previous,
        prev_kv: None,
    })
}
