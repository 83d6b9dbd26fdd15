//! One change of one key: what writes collect, history replays and watchers get.

use quorate_proto::mvccpb::{self, KeyValue};

use super::Revision;

/// What happened to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was put.
    Put,
    /// It was deleted, by a client or with its lease.
    Delete,
}

/// A change of a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When: events order by it.
    pub revision: Revision,
    /// What.
    pub kind: EventKind,
    /// The pair put; of a deletion only key and mod revision.
    pub kv: KeyValue,
    /// Revision of the pair that was visible before the event's whole transaction, as etcd takes
    /// it for `prev_kv`; `None` if the key did not exist then.
    pub prev_revision: Option<Revision>,
    /// The pair of `prev_revision`: given by a [`WriteTxn`](super::WriteTxn), which has just read
    /// it, and not by history, which leaves it to
    /// [`prev_kv`](super::history::prev_kv).
    pub prev_kv: Option<KeyValue>,
}

impl Event {
    /// The event as watchers get it, with the given previous pair. A put that makes its key anew has
    /// none, as on etcd: not even when the key was there until the same transaction deleted it.
    #[must_use]
    pub fn to_wire(&self, prev_kv: Option<KeyValue>) -> mvccpb::Event {
        let creates =
            self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision;
        let kind = match self.kind {
            EventKind::Put => mvccpb::event::EventType::Put,
            EventKind::Delete => mvccpb::event::EventType::Delete,
        };
        mvccpb::Event {
            r#type: i32::from(kind),
            kv: Some(self.kv.clone()),
            prev_kv: prev_kv.filter(|_| !creates),
        }
    }

    /// Approximate size in memory and on the wire, in bytes, without the previous pair.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        /// Numbers, tags and lengths.
        const FIXED: usize = 64;
        FIXED + self.kv.key.len() + self.kv.value.len()
    }
}
