//! Catching up from the `events` table: one bounded page, read on a thread that may block. Used by
//! a watcher that is behind the recent events.

use quorate_proto::{Reason, mvccpb};

use super::buffer::{ANSWER_BYTES_MAX, ANSWER_EVENTS_MAX, Filter};
use crate::mvcc::history::{self, PageLimits};
use crate::mvcc::{Error, meta};
use crate::storage::kv::{KvError, View};

/// Events looked at for one page, whether wanted or not.
const LOOKED_AT_MAX: usize = 10_000;

/// Some past events, whole revisions.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) events: Vec<mvccpb::Event>,
    /// The revision to go on from.
    pub(super) next: i64,
}

/// What reading brought.
#[derive(Debug)]
pub(super) enum Read {
    Page(Page),
    Compacted { compact_revision: i64 },
}

/// Reads a page of main revisions `first..=last`. The compact revision is checked in this very
/// view.
pub(super) fn read(
    view: &dyn View,
    filter: &Filter,
    prev_kv: bool,
    first: i64,
    last: i64,
) -> Result<Read, KvError> {
    let limits = PageLimits {
        events_max: ANSWER_EVENTS_MAX,
        bytes_max: ANSWER_BYTES_MAX,
        looked_at_max: LOOKED_AT_MAX,
    };
    let page = match history::events(view, &filter.range, first, last, limits) {
        Ok(page) => page,
        Err(Error::Refused(Reason::Compacted)) => {
            let compact_revision = meta::compact_revision(view)?;
            return Ok(Read::Compacted { compact_revision });
        }
        Err(Error::Refused(reason)) => {
            return Err(KvError::Engine {
                cause: format!("events from {first} to {last}: {reason}"),
            });
        }
        Err(Error::Storage(error)) => return Err(error),
    };
    let mut events = Vec::with_capacity(page.events.len());
    for event in page.events {
        if filter.wants_kind(&event) {
            let before = if prev_kv {
                history::prev_kv(view, &event)?
            } else {
                None
            };
            events.push(event.to_wire(before));
        }
    }
    let next = page.next.unwrap_or(last + 1);
    Ok(Read::Page(Page { events, next }))
}
