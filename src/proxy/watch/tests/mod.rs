//! Sessions and shared watches against a model: random clients, members that lag, streams that break,
//! clients that do not read. Every watcher must hear exactly the events of the log.

mod client;
mod model;
mod progress;
mod wire;

use std::sync::Arc;

use quorate::proto::etcdserverpb::watch_create_request::FilterType;
use quorate::proto::etcdserverpb::{ResponseHeader, WatchCreateRequest};
use quorate::proto::mvccpb::event::EventType;
use quorate::proto::mvccpb::{Event, KeyValue};
use quorate::proto::range::KeyRange;

/// What happened, and what of it is compacted.
#[derive(Debug)]
pub(super) struct Log {
    revisions: Vec<Vec<Event>>,
    compacted: i64,
}

impl Log {
    fn new() -> Self {
        // As on etcd, revision 1 is that of an empty store.
        Self {
            revisions: vec![Vec::new()],
            compacted: 0,
        }
    }

    fn revision(&self) -> i64 {
        i64::try_from(self.revisions.len()).unwrap()
    }

    /// Adds a revision that puts or deletes these keys.
    fn write(&mut self, changes: &[(&'static str, bool)], value_bytes: usize) {
        let revision = self.revision() + 1;
        let event = |(key, is_put): &(&'static str, bool)| Event {
            r#type: match is_put {
                true => EventType::Put.into(),
                false => EventType::Delete.into(),
            },
            kv: Some(KeyValue {
                key: (*key).into(),
                mod_revision: revision,
                value: vec![b'x'; value_bytes].into(),
                ..Default::default()
            }),
            prev_kv: None,
        };
        self.revisions.push(changes.iter().map(event).collect());
    }

    /// The events from revision `from` up to `to` that a watcher is told of.
    fn events(&self, request: &WatchCreateRequest, from: i64, to: i64) -> Vec<Event> {
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone());
        let left_out = |filter: FilterType| request.filters.contains(&i32::from(filter));
        let (no_puts, no_deletes) = (left_out(FilterType::Noput), left_out(FilterType::Nodelete));
        let first = usize::try_from(from.max(1) - 1).unwrap();
        let last = usize::try_from(to).unwrap().min(self.revisions.len());
        let events = self.revisions.get(first..last).unwrap_or_default();
        let told = events.iter().flatten().filter(|event| {
            let is_put = event.r#type == i32::from(EventType::Put);
            let key = &event.kv.as_ref().unwrap().key;
            range.contains(key) && !(if is_put { no_puts } else { no_deletes })
        });
        told.cloned().collect()
    }
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader {
        revision,
        ..Default::default()
    }
}

fn common() -> Arc<super::trunk::Common> {
    Arc::new(super::trunk::Common::new(
        crate::proxy::latest::Latest::default(),
        Arc::default(),
    ))
}
