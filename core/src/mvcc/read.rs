//! Reads: etcd's range with all its options, now or at an older revision.

use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;
use quorate_proto::etcdserverpb::RangeRequest;
use quorate_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_proto::mvccpb::KeyValue;
use quorate_proto::{KeyRange, Reason};

use crate::storage::codec::{self, Pair, PastPair};
use crate::storage::kv::{Direction, KvError, View};

use super::{Error, Revision, meta};

mod select;

use select::Selection;
pub use select::{Order, SortBy};

/// A range request, checked.
#[derive(Debug, Clone)]
pub struct RangeQuery {
    /// Which keys.
    pub range: KeyRange,
    /// At which main revision; 0 or less means the current one.
    pub revision: i64,
    /// Most pairs to return; 0 or less means all.
    pub limit: i64,
    /// In which order.
    pub order: Order,
    /// Ordered by what.
    pub sort_by: SortBy,
    /// Whether values are left out.
    pub keys_only: bool,
    /// Whether pairs are left out and only counted.
    pub count_only: bool,
    /// Smallest mod revision, 0 for any.
    pub min_mod_revision: i64,
    /// Largest mod revision, 0 for any.
    pub max_mod_revision: i64,
    /// Smallest create revision, 0 for any.
    pub min_create_revision: i64,
    /// Largest create revision, 0 for any.
    pub max_create_revision: i64,
}

impl RangeQuery {
    /// All current pairs of a range, in key order.
    #[must_use]
    pub fn new(range: KeyRange) -> RangeQuery {
        RangeQuery {
            range,
            revision: 0,
            limit: 0,
            order: Order::Unsorted,
            sort_by: SortBy::Key,
            keys_only: false,
            count_only: false,
            min_mod_revision: 0,
            max_mod_revision: 0,
            min_create_revision: 0,
            max_create_revision: 0,
        }
    }

    /// What a request asks for. An unknown sort order is none, as on etcd; with a target other
    /// than the key, no order means ascending, within what a limit lets through.
    ///
    /// # Errors
    ///
    /// [`Reason::EmptyKey`], and [`Reason::InvalidSortOption`] for an unknown sort target, which
    /// brings etcd 3.5 down.
    pub fn from_request(request: &RangeRequest) -> Result<RangeQuery, Reason> {
        if request.key.is_empty() {
            return Err(Reason::EmptyKey);
        }
        let sort_by = match SortTarget::try_from(request.sort_target) {
            Ok(SortTarget::Key) => SortBy::Key,
            Ok(SortTarget::Version) => SortBy::Version,
            Ok(SortTarget::Create) => SortBy::CreateRevision,
            Ok(SortTarget::Mod) => SortBy::ModRevision,
            Ok(SortTarget::Value) => SortBy::Value,
            Err(_) => return Err(Reason::InvalidSortOption),
        };
        let order = match SortOrder::try_from(request.sort_order) {
            Ok(SortOrder::None) if sort_by != SortBy::Key => {
                // With a filter etcd reads everything before it sorts and cuts.
                let filters = [
                    request.min_mod_revision,
                    request.max_mod_revision,
                    request.min_create_revision,
                    request.max_create_revision,
                ];
                if filters == [0; 4] {
                    Order::AscendingWithinLimit
                } else {
                    Order::Ascending
                }
            }
            Ok(SortOrder::Ascend) => Order::Ascending,
            Ok(SortOrder::Descend) => Order::Descending,
            Ok(SortOrder::None) | Err(_) => Order::Unsorted,
        };
        Ok(RangeQuery {
            range: KeyRange::from_wire(request.key.clone(), request.range_end.clone()),
            revision: request.revision,
            limit: request.limit,
            order,
            sort_by,
            keys_only: request.keys_only,
            count_only: request.count_only,
            min_mod_revision: request.min_mod_revision,
            max_mod_revision: request.max_mod_revision,
            min_create_revision: request.min_create_revision,
            max_create_revision: request.max_create_revision,
        })
    }
}

/// The answer to a range request.
#[derive(Debug, Clone, PartialEq)]
pub struct RangeResult {
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// Whether the limit left some out that passed the filters.
    pub more: bool,
    /// Keys in the range at that revision, whatever limit and filters say.
    pub count: i64,
    /// Current revision as of the view.
    pub revision: i64,
}

/// Answers a range request from one view.
///
/// # Errors
///
/// Refused with [`Reason::FutureRevision`] or [`Reason::Compacted`], as of this view; the compact
/// revision itself is readable.
pub fn range(view: &dyn View, query: &RangeQuery) -> Result<RangeResult, Error> {
    let revision = meta::current_revision(view)?;
    let mut selection = Selection::new(query);
    let mut count = 0;
    for found in pairs_at(view, &query.range, query.revision, revision)? {
        let (kv, _) = found?;
        count += 1;
        selection.offer(kv);
    }
    let (kvs, more) = selection.finish();
    Ok(RangeResult {
        kvs,
        more,
        count,
        revision,
    })
}

/// Some pairs of a range, in key order.
#[derive(Debug)]
pub struct Page {
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// The key to go on from; `None` if the range is done.
    pub next: Option<Bytes>,
    /// Current revision as of the view.
    pub revision: i64,
}

/// The first pairs of a range at a revision (0 or less means the current one), until they reach
/// `bytes_max` bytes of keys and values: at least one, if there is any. For answers that are
/// streamed; later pages should name the first one's revision.
///
/// # Errors
///
/// As [`range`].
pub fn scan_page(
    view: &dyn View,
    range: &KeyRange,
    revision: i64,
    bytes_max: usize,
) -> Result<Page, Error> {
    let current = meta::current_revision(view)?;
    let (mut kvs, mut bytes) = (Vec::new(), 0);
    let mut next = None;
    for found in pairs_at(view, range, revision, current)? {
        let (kv, _) = found?;
        if bytes >= bytes_max && !kvs.is_empty() {
            next = Some(kv.key);
            break;
        }
        bytes += kv.key.len() + kv.value.len();
        kvs.push(kv);
    }
    Ok(Page {
        kvs,
        next,
        revision: current,
    })
}

/// The pair of one key at a main revision (0 or less means the current one), if it has one.
///
/// # Errors
///
/// As [`range`].
pub fn key_value_at(
    view: &dyn View,
    key: &Bytes,
    revision: i64,
) -> Result<Option<KeyValue>, Error> {
    let current = meta::current_revision(view)?;
    let range = KeyRange::single(key.clone());
    let mut found = pairs_at(view, &range, revision, current)?;
    Ok(found.next().transpose()?.map(|(kv, _)| kv))
}

/// Pairs in key order, each with its full revision.
type KeyValues<'a> = Box<dyn Iterator<Item = Result<(KeyValue, Revision), KvError>> + 'a>;

/// The pairs of a range at a revision, after checking that it can be read.
fn pairs_at<'a>(
    view: &'a dyn View,
    range: &'a KeyRange,
    revision: i64,
    current: i64,
) -> Result<KeyValues<'a>, Error> {
    if revision > current {
        return Err(Reason::FutureRevision.into());
    }
    if revision > 0 && revision < meta::compact_revision(view)? {
        return Err(Reason::Compacted.into());
    }
    // The newest revision is not read as history: inside a transaction that would hide its own
    // writes from a request that names no revision, and otherwise it would only be slower.
    if revision <= 0 {
        return Ok(Box::new(current_pairs(view, range)));
    }
    Ok(historic(view, range, revision))
}

/// Stored bounds of a range.
fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = range
        .end_exclusive()
        .map_or(Bound::Unbounded, Bound::Excluded);
    (Bound::Included(range.start()), end)
}

/// Keys and records of `keys` in a range.
pub(super) fn current<'a>(
    view: &'a dyn View,
    range: &'a KeyRange,
) -> Box<dyn Iterator<Item = Result<(Bytes, Bytes), KvError>> + 'a> {
    if let Some(key) = range.as_single() {
        let found = view.get(&codec::key_key(key)).transpose();
        return Box::new(found.map(|record| Ok((key.clone(), record?))).into_iter());
    }
    let (start, end) = bounds(range);
    let (start, end) = codec::key_bounds(start, end);
    let found = view.range(start, end, Direction::Forward);
    Box::new(found.map(|pair| pair.map(|(key, record)| (codec::user_key_of_key(&key), record))))
}

fn current_pairs<'a>(
    view: &'a dyn View,
    range: &'a KeyRange,
) -> impl Iterator<Item = Result<(KeyValue, Revision), KvError>> + 'a {
    current(view, range).map(|found| {
        let (key, record) = found?;
        Ok(with_revision(key, Pair::decode(record)?))
    })
}

/// All pairs of `keys`.
pub(super) fn all_current(
    view: &dyn View,
) -> impl Iterator<Item = Result<(KeyValue, Revision), KvError>> {
    let (start, end) = codec::key_bounds(Bound::Unbounded, Bound::Unbounded);
    let found = view.range(start, end, Direction::Forward);
    found.map(|pair| {
        let (key, record) = pair?;
        Ok(with_revision(
            codec::user_key_of_key(&key),
            Pair::decode(record)?,
        ))
    })
}

/// The pairs of a range as they were at main revision `main`.
pub(super) fn historic<'a>(view: &'a dyn View, range: &'a KeyRange, main: i64) -> KeyValues<'a> {
    let old_enough =
        move |found: &Result<(_, Revision), _>| !matches!(found, Ok((_, at)) if at.main > main);
    let current = current_pairs(view, range).filter(old_enough);
    if let Some(key) = range.as_single() {
        let past = move || past_pair_of(view, key, main).transpose();
        return Box::new(current.chain(std::iter::once_with(past).flatten()).take(1));
    }
    let (start, end) = bounds(range);
    let (start, end) = codec::version_bounds(start, end);
    let past = view
        .range(start, end, Direction::Forward)
        .filter_map(move |stored| {
            let past = stored.and_then(|(key, record)| {
                let (user_key, began) = codec::version_of(&key)?;
                Ok((user_key, PastPair::decode(record, began)?))
            });
            match past {
                Ok((_, past)) if !past.visible_at(main) => None,
                Ok((user_key, past)) => Some(Ok(with_revision(user_key, past.pair))),
                Err(error) => Some(Err(error)),
            }
        });
    Box::new(ByKey {
        one: current.peekable(),
        other: past.peekable(),
    })
}

/// What `versions` has for one key at main revision `main`.
fn past_pair_of(
    view: &dyn View,
    key: &Bytes,
    main: i64,
) -> Result<Option<(KeyValue, Revision)>, KvError> {
    let (start, end) = codec::versions_until(key, main);
    let Some(newest) = view.range(start, end, Direction::Forward).next() else {
        return Ok(None);
    };
    let (stored, record) = newest?;
    let (_, began) = codec::version_of(&stored)?;
    let past = PastPair::decode(record, began)?;
    Ok(past
        .visible_at(main)
        .then(|| with_revision(key.clone(), past.pair)))
}

/// The pair that the put at `revision` made. It must exist.
pub(super) fn pair_of(
    view: &dyn View,
    key: &Bytes,
    revision: Revision,
) -> Result<KeyValue, KvError> {
    if let Some(record) = view.get(&codec::version_key(key, revision))? {
        let past = PastPair::decode(record, revision)?;
        return Ok(key_value(key.clone(), past.pair));
    }
    if let Some(record) = view.get(&codec::key_key(key))? {
        let pair = Pair::decode(record)?;
        if pair.mod_revision == revision {
            return Ok(key_value(key.clone(), pair));
        }
    }
    Err(KvError::corrupt(format!(
        "no pair of revision {revision} for its event"
    )))
}

/// Two streams in key order that have no key in common, as one.
struct ByKey<A: Iterator, B: Iterator> {
    one: Peekable<A>,
    other: Peekable<B>,
}

impl<A, B> Iterator for ByKey<A, B>
where
    A: Iterator<Item = Result<(KeyValue, Revision), KvError>>,
    B: Iterator<Item = Result<(KeyValue, Revision), KvError>>,
{
    type Item = Result<(KeyValue, Revision), KvError>;

    fn next(&mut self) -> Option<Self::Item> {
        match (self.one.peek(), self.other.peek()) {
            (Some(Ok((one, _))), Some(Ok((other, _)))) if other.key < one.key => self.other.next(),
            (None, _) | (_, Some(Err(_))) => self.other.next(),
            _ => self.one.next(),
        }
    }
}

pub(super) fn with_revision(key: Bytes, pair: Pair) -> (KeyValue, Revision) {
    let revision = pair.mod_revision;
    (key_value(key, pair), revision)
}

/// A pair as clients see it.
pub(super) fn key_value(key: Bytes, pair: Pair) -> KeyValue {
    KeyValue {
        key,
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision.main,
        version: pair.version,
        value: pair.value,
        lease: pair.lease,
    }
}
