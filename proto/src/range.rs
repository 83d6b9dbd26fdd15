//! Ranges of keys as requests name them: half-open, over raw bytes; used by whoever reads, deletes,
//! watches or guards keys.

use bytes::{BufMut, Bytes, BytesMut};

/// The smallest key there is, since no key is empty.
const FIRST_KEY: &[u8] = b"\0";

/// The range end that stands for "no end" on the wire.
const NO_END: &[u8] = b"\0";

/// The keys from `start` up to but not including an end, or without end.
///
/// Ranges that hold the same keys compare equal, however they were written, unless they hold none.
/// As no key is empty, an empty start means the same as the smallest key, a single zero byte.
///
/// # Examples
/// ```
/// use quorate_proto::KeyRange;
///
/// let jobs = KeyRange::prefix("jobs/");
/// assert!(jobs.contains(b"jobs/7"));
/// assert!(!jobs.contains(b"jobs0"));
/// assert_eq!(jobs.to_wire(), ("jobs/".into(), "jobs0".into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    start: Bytes,
    end: Option<Bytes>,
}

impl KeyRange {
    /// The range of one key.
    #[must_use]
    pub fn single(key: impl Into<Bytes>) -> Self {
        let start = first_if_empty(key.into());
        let end = Some(successor(&start));
        Self { start, end }
    }

    /// All keys that begin with `prefix`; all keys if it is empty.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let prefix = prefix.into();
        Self {
            end: prefix_end(&prefix),
            start: first_if_empty(prefix),
        }
    }

    /// All keys from `start` on.
    #[must_use]
    pub fn from_key(start: impl Into<Bytes>) -> Self {
        Self {
            start: first_if_empty(start.into()),
            end: None,
        }
    }

    /// All keys.
    #[must_use]
    pub fn all() -> Self {
        Self::from_key(Bytes::new())
    }

    /// The keys from `start` up to but not including `end`, which is taken literally; none if
    /// `end <= start`.
    #[must_use]
    pub fn half_open(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        let (start, end) = (first_if_empty(start.into()), end.into());
        if end.as_ref() <= FIRST_KEY {
            // Holds no key, and its end would mean something else on the wire.
            let above = Bytes::from_static(b"\x01");
            return Self {
                start: above.clone(),
                end: Some(above),
            };
        }
        Self {
            start,
            end: Some(end),
        }
    }

    /// The range a request names: an empty `range_end` means the one key, a single zero byte means
    /// everything from `key` on, `range_end <= key` means nothing.
    #[must_use]
    pub fn from_wire(key: impl Into<Bytes>, range_end: impl Into<Bytes>) -> Self {
        let (key, range_end) = (key.into(), range_end.into());
        if range_end.is_empty() {
            Self::single(key)
        } else if range_end == NO_END {
            Self::from_key(key)
        } else {
            Self::half_open(key, range_end)
        }
    }

    /// Key and range end for a request; the inverse of [`KeyRange::from_wire`].
    #[must_use]
    pub fn to_wire(&self) -> (Bytes, Bytes) {
        let end = match &self.end {
            None => Bytes::from_static(NO_END),
            Some(_) if self.as_single().is_some() => Bytes::new(),
            Some(end) => end.clone(),
        };
        (self.start.clone(), end)
    }

    /// The first key that can be in the range.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// The first key beyond the range; `None` if there is no end.
    #[must_use]
    pub fn end_exclusive(&self) -> Option<&[u8]> {
        self.end.as_deref()
    }

    /// The key, if the range can hold only one.
    #[must_use]
    pub fn as_single(&self) -> Option<&Bytes> {
        let key_of_end = self.end.as_ref()?.strip_suffix(b"\0")?;
        (key_of_end == self.start).then_some(&self.start)
    }

    /// Whether no key can be in the range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Whether the key is in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start <= *key && self.end.as_ref().is_none_or(|end| *key < **end)
    }

    /// Whether some key can be in both ranges.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let begins_before_end_of =
            |one: &Self, two: &Self| two.end.as_ref().is_none_or(|end| one.start < *end);
        !self.is_empty()
            && !other.is_empty()
            && begins_before_end_of(self, other)
            && begins_before_end_of(other, self)
    }

    /// Whether every key of `other` is in this range too; true if `other` holds none.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let ends_no_earlier = match (&self.end, &other.end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(end), Some(other_end)) => end >= other_end,
        };
        other.is_empty() || (self.start <= other.start && ends_no_earlier)
    }
}

/// The smallest key greater than `key`: the key with a zero byte after it.
#[must_use]
pub fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// The first key beyond all that begin with `prefix`: its last byte that can grow is increased and
/// what follows is dropped. `None` if there is no such key.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = BytesMut::from(&prefix[..=last]);
    end[last] += 1;
    Some(end.freeze())
}

fn first_if_empty(key: Bytes) -> Bytes {
    if key.is_empty() {
        Bytes::from_static(FIRST_KEY)
    } else {
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All byte strings of up to three bytes over an alphabet with both extremes.
    fn keys() -> Vec<Vec<u8>> {
        let alphabet = [0x00, 0x01, b'a', b'b', 0xfe, 0xff];
        let mut keys = vec![vec![]];
        let mut from = 0;
        for _ in 0..3 {
            let until = keys.len();
            for index in from..until {
                for byte in alphabet {
                    let mut key = keys[index].clone();
                    key.push(byte);
                    keys.push(key);
                }
            }
            from = until;
        }
        keys
    }

    /// What etcd documents for a key and a range end, in its simplest form.
    fn holds(key: &[u8], range_end: &[u8], candidate: &[u8]) -> bool {
        match range_end {
            b"" => candidate == key,
            b"\0" => candidate >= key,
            end => key <= candidate && candidate < end,
        }
    }

    fn wire(key: &[u8], end: &[u8]) -> KeyRange {
        KeyRange::from_wire(key.to_vec(), end.to_vec())
    }

    #[test]
    fn wire_forms_mean_what_etcd_says() {
        let keys = keys();
        let short: Vec<_> = keys.iter().filter(|key| key.len() < 3).collect();
        for key in short.iter().filter(|key| !key.is_empty()) {
            for end in &short {
                let range = wire(key, end);
                for candidate in keys.iter().filter(|key| !key.is_empty()) {
                    assert_eq!(
                        range.contains(candidate),
                        holds(key, end, candidate),
                        "{range:?} {candidate:?}"
                    );
                }
                let (wire_key, wire_end) = range.to_wire();
                assert_eq!(KeyRange::from_wire(wire_key, wire_end), range);
            }
        }
    }

    #[test]
    fn prefixes_hold_exactly_what_begins_with_them() {
        let keys = keys();
        for prefix in keys.iter().filter(|key| key.len() < 3) {
            let range = KeyRange::prefix(prefix.clone());
            for candidate in keys.iter().filter(|key| !key.is_empty()) {
                assert_eq!(range.contains(candidate), candidate.starts_with(prefix));
            }
            let (key, end) = range.to_wire();
            assert_eq!(KeyRange::from_wire(key, end), range);
        }
    }

    #[test]
    fn prefix_ends_increase_the_last_byte_that_can_grow() {
        assert_eq!(KeyRange::prefix("ab").end_exclusive(), Some(&b"ac"[..]));
        let range = KeyRange::prefix(&b"a\xff\xff"[..]);
        assert_eq!(range.end_exclusive(), Some(&b"b"[..]));
        let range = KeyRange::prefix(&b"\xff\xff"[..]);
        assert_eq!(range.end_exclusive(), None);
        assert_eq!(KeyRange::prefix("").to_wire(), ("\0".into(), "\0".into()));
    }

    #[test]
    fn overlap_and_cover_agree_with_membership() {
        // Of the bounds, some byte string of three bytes lies between any two that have a key
        // between them, so the candidates decide both questions.
        let candidates: Vec<_> = keys().into_iter().filter(|key| !key.is_empty()).collect();
        let bounds: [&[u8]; 6] = [b"", b"\0", b"a", b"a\0", b"a\xff", b"b"];
        let mut ranges = vec![];
        for key in &bounds[1..] {
            ranges.extend(bounds.iter().map(|end| wire(key, end)));
        }
        for one in &ranges {
            let has_none = !candidates.iter().any(|key| one.contains(key));
            assert_eq!(one.is_empty(), has_none, "{one:?}");
            for two in &ranges {
                let both = |key: &Vec<u8>| one.contains(key) && two.contains(key);
                let overlap = candidates.iter().any(both);
                assert_eq!(one.overlaps(two), overlap, "{one:?} {two:?}");
                let covered = |key: &Vec<u8>| one.contains(key) || !two.contains(key);
                let cover = candidates.iter().all(covered);
                assert_eq!(one.covers(two), cover, "{one:?} {two:?}");
            }
        }
    }

    #[test]
    fn one_key_is_one_key_however_written() {
        let range = wire(b"k", b"k\0");
        assert_eq!(range, KeyRange::single("k"));
        assert_eq!(range.as_single(), Some(&Bytes::from("k")));
        assert_eq!(range.to_wire(), ("k".into(), "".into()));
        assert_eq!(wire(b"k", b"k\x01").as_single(), None);
        assert_eq!(wire(b"k", b"\0").as_single(), None);
    }

    #[test]
    fn an_empty_key_stands_for_the_smallest() {
        assert_eq!(wire(b"", b"\0"), KeyRange::all());
        assert_eq!(wire(b"", b"b"), wire(b"\0", b"b"));
    }

    #[test]
    fn a_literal_end_never_turns_into_no_end() {
        for end in ["", "\0"] {
            let range = KeyRange::half_open("a", end);
            assert!(range.is_empty());
            let (key, end) = range.to_wire();
            assert!(KeyRange::from_wire(key, end).is_empty());
        }
    }
}
