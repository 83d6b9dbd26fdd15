//! What a watcher watches: watchers of the same may share one upstream watch.

use bytes::Bytes;
use quorate::proto::KeyRange;
use quorate::proto::etcdserverpb::watch_create_request::FilterType;
use quorate::proto::etcdserverpb::watch_request::RequestUnion;
use quorate::proto::etcdserverpb::{WatchCreateRequest, WatchRequest};

/// Keys, and what is told of them; not from which revision on, nor in which pieces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Spec {
    key: Bytes,
    range_end: Bytes,
    prev_kv: bool,
    puts: bool,
    deletes: bool,
}

impl Spec {
    /// What this request asks for.
    pub(super) fn of(request: &WatchCreateRequest) -> Self {
        let tells = |left_out: FilterType| !request.filters.contains(&i32::from(left_out));
        Self {
            key: request.key.clone(),
            range_end: request.range_end.clone(),
            prev_kv: request.prev_kv,
            puts: tells(FilterType::Noput),
            deletes: tells(FilterType::Nodelete),
        }
    }

    /// Whether no key can be in it.
    pub(super) fn is_empty(&self) -> bool {
        KeyRange::from_wire(self.first_key(), self.range_end.clone()).is_empty()
    }

    /// The first key, which whoever may watch the range may read.
    pub(super) fn first_key(&self) -> Bytes {
        match self.key.is_empty() {
            true => Bytes::from_static(b"\0"),
            false => self.key.clone(),
        }
    }

    /// The request that begins an upstream watch under this number, at revision `start` (0: now).
    /// Progress is always asked for: it moves the revision on from which the watch would be resumed.
    /// Pieces are too: large answers then come in messages of bounded size.
    pub(super) fn request(&self, number: i64, start: i64) -> WatchRequest {
        let left_out = [
            (self.puts, FilterType::Noput),
            (self.deletes, FilterType::Nodelete),
        ];
        let left_out = left_out.into_iter().filter(|(tells, _)| !tells);
        let create = WatchCreateRequest {
            key: self.key.clone(),
            range_end: self.range_end.clone(),
            start_revision: start,
            progress_notify: true,
            filters: left_out.map(|(_, filter)| filter.into()).collect(),
            prev_kv: self.prev_kv,
            watch_id: number,
            fragment: true,
        };
        WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_without_keys_are_known() {
        let is_empty = |key: &'static str, range_end: &'static str| {
            let request = WatchCreateRequest {
                key: key.into(),
                range_end: range_end.into(),
                ..Default::default()
            };
            Spec::of(&request).is_empty()
        };
        assert!(is_empty("b", "a") && is_empty("a", "a"));
        assert!(!is_empty("a", "b") && !is_empty("", "") && !is_empty("a", "\0"));
    }

    #[test]
    fn what_is_watched_does_not_depend_on_from_when_and_in_which_pieces() {
        let request = WatchCreateRequest {
            key: "a".into(),
            filters: vec![1, 0, 1],
            ..Default::default()
        };
        let other = WatchCreateRequest {
            start_revision: 7,
            fragment: true,
            progress_notify: true,
            watch_id: 9,
            filters: vec![0, 1],
            ..request.clone()
        };
        assert_eq!(Spec::of(&request), Spec::of(&other));
        let previous = WatchCreateRequest {
            prev_kv: true,
            ..request.clone()
        };
        assert_ne!(Spec::of(&request), Spec::of(&previous));
        let asked = Spec::of(&request).request(3, 5).request_union;
        let Some(RequestUnion::CreateRequest(asked)) = asked else {
            panic!("no create request");
        };
        assert_eq!(Spec::of(&asked), Spec::of(&request));
        assert_eq!((asked.watch_id, asked.start_revision), (3, 5));
    }
}
