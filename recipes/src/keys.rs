//! Names and keys: how the name a user gives becomes keys that no other name can collide with.
//! Every recipe takes its keys from a [`KeySpace`].

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};

/// The root that all keys of the recipes lie under.
pub const ROOT: &str = "quorate";

/// The key that a restore of an older state must write a larger number to; quorate's own restore
/// does. Its value is part of every fence and of every fencing token. Absent counts as 0.
pub use quorate_proto::epoch::EPOCH_KEY;

/// A revision of the store: it grows by one with each writing transaction.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Revision(pub i64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a lease. Shown in lower-case hexadecimal, as in the names of contender keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            write!(f, "-{:x}", self.0.unsigned_abs())
        } else {
            write!(f, "{:x}", self.0)
        }
    }
}

/// In hexadecimal, as it is shown.
impl Serialize for LeaseId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A key of the store: raw bytes, shown as text where they are text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// The raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The raw bytes, by value.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// As text, as it is shown.
impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self(Bytes::copy_from_slice(key.as_bytes()))
    }
}
impl From<String> for Key {
    fn from(key: String) -> Self {
        Self(key.into())
    }
}
impl From<&String> for Key {
    fn from(key: &String) -> Self {
        key.as_str().into()
    }
}
impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(key))
    }
}
impl From<Vec<u8>> for Key {
    fn from(key: Vec<u8>) -> Self {
        Self(key.into())
    }
}
impl From<Bytes> for Key {
    fn from(key: Bytes) -> Self {
        Self(key)
    }
}
impl From<&Key> for Key {
    fn from(key: &Key) -> Self {
        key.clone()
    }
}

/// A half-open range of keys, in the store's own form: an empty `end` is the single key `start`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: Bytes,
    /// The first key after the range; empty for a single key, `\0` for all keys from `start` on.
    pub end: Bytes,
}

impl KeyRange {
    /// Exactly this key.
    #[must_use]
    pub fn one(key: impl Into<Key>) -> Self {
        Self {
            start: key.into().0,
            end: Bytes::new(),
        }
    }

    /// All keys that begin with `prefix`; an empty prefix is every key.
    #[must_use]
    pub fn prefix(prefix: impl Into<Key>) -> Self {
        let start = prefix.into().0;
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return Self {
                    start,
                    end: end.into(),
                };
            }
        }
        let all = Bytes::from_static(&[0]);
        let start = if start.is_empty() { all.clone() } else { start };
        Self { start, end: all }
    }

    /// Whether `key` lies in the range.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        if self.end.is_empty() {
            return key == &self.start[..];
        }
        key >= &self.start[..] && (self.end[..] == [0] || key < &self.end[..])
    }
}

/// Writes `name` so that it is one path segment: `%`, `/` and control characters become `%XX`,
/// the empty name becomes a lone `%`. Different names give different segments.
#[must_use]
pub fn encode(name: &str) -> String {
    if name.is_empty() {
        return "%".to_owned();
    }
    let mut segment = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '%' | '/' | '\0'..='\u{1f}' | '\u{7f}' => {
                segment.push_str(&format!("%{:02X}", u32::from(c)));
            }
            _ => segment.push(c),
        }
    }
    segment
}

/// Reads what [`encode`] wrote; `None` for anything it cannot have written.
#[must_use]
pub fn decode(segment: &str) -> Option<String> {
    if segment == "%" {
        return Some(String::new());
    }
    let mut name = String::with_capacity(segment.len());
    let mut rest = segment;
    while let Some(at) = rest.find('%') {
        name.push_str(&rest[..at]);
        let code = u8::from_str_radix(rest.get(at + 1..at + 3)?, 16).ok()?;
        name.push(char::from(code));
        rest = &rest[at + 3..];
    }
    name.push_str(rest);
    (!segment.is_empty() && encode(&name) == segment).then_some(name)
}

/// The name whose keys of this kind lie below a prefix, if there is one.
fn plain_of(kind: &str, prefix: &str) -> Option<String> {
    let segment = prefix.strip_prefix(ROOT)?.strip_prefix('/')?;
    decode(segment.strip_prefix(kind)?.strip_prefix('/')?)
}

/// What a user calls a lock or an election.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// A name of ours: any text, kept apart from all other names by escaping.
    Plain(String),
    /// A literal key prefix, without the slash at its end: the very string that a program using
    /// etcd's Go `concurrency` package, or `etcdctl lock`, was given.
    Raw(String),
}

impl Name {
    /// The literal key prefix of a lock or election made by another program.
    #[must_use]
    pub fn raw(prefix: impl Into<String>) -> Self {
        Self::Raw(prefix.into())
    }

    /// The keys of this name for what is said about a recipe's contenders; never among them.
    pub(crate) fn meta(&self, kind: &str) -> KeySpace {
        match self {
            Self::Plain(name) => KeySpace::of(&format!("{kind}-meta"), name),
            Self::Raw(prefix) => match plain_of(kind, prefix) {
                // The same line by its other name.
                Some(name) => KeySpace::of(&format!("{kind}-meta"), &name),
                None => KeySpace::of(&format!("raw-{kind}-meta"), prefix),
            },
        }
    }

    /// The keys of this name for a recipe of the given kind (`lock`, `election`, ...).
    #[must_use]
    pub fn space(&self, kind: &str) -> KeySpace {
        match self {
            Self::Plain(name) => KeySpace::of(kind, name),
            Self::Raw(prefix) => KeySpace::raw(prefix.clone()),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(name) | Self::Raw(name) => f.write_str(name),
        }
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self::Plain(name.to_owned())
    }
}
impl From<String> for Name {
    fn from(name: String) -> Self {
        Self::Plain(name)
    }
}
impl From<&String> for Name {
    fn from(name: &String) -> Self {
        Self::Plain(name.clone())
    }
}
impl From<&Name> for Name {
    fn from(name: &Name) -> Self {
        name.clone()
    }
}

/// The keys under one prefix, `quorate/<kind>/<name>`: nothing but this name's keys lies below it,
/// because the name is one escaped path segment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeySpace {
    prefix: String,
}

impl KeySpace {
    /// The space of `name` among the recipes of one kind.
    #[must_use]
    pub fn of(kind: &str, name: &str) -> Self {
        Self::raw(format!("{ROOT}/{kind}/{}", encode(name)))
    }

    /// The space below a literal prefix, given without the slash at its end.
    #[must_use]
    pub fn raw(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
        }
    }

    /// The space of one more segment below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self::raw(format!("{}/{}", self.prefix, encode(name)))
    }

    /// The prefix, without the slash at its end.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The key that is the prefix itself.
    #[must_use]
    pub fn itself(&self) -> Key {
        self.prefix.as_str().into()
    }

    /// The key `<prefix>/<suffix>`; the suffix is taken as it is.
    #[must_use]
    pub fn key(&self, suffix: &str) -> Key {
        format!("{}/{suffix}", self.prefix).into()
    }

    /// All keys below the prefix; the prefix itself is not among them.
    #[must_use]
    pub fn range(&self) -> KeyRange {
        KeyRange::prefix(format!("{}/", self.prefix))
    }

    /// What follows `<prefix>/` in `key`; `None` when the key is not of this space.
    #[must_use]
    pub fn suffix<'a>(&self, key: &'a [u8]) -> Option<&'a str> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        std::str::from_utf8(rest.strip_prefix(b"/")?).ok()
    }
}

/// The key in which a session says who it is, attached to its lease.
#[must_use]
pub fn session_key(lease: LeaseId) -> Key {
    format!("{ROOT}/session/{lease}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_lie_under_one_another() {
        let names = ["", "a", "a/b", "a%2Fb", "%", "a b", "ü", "a\n", "a/"];
        for (i, a) in names.iter().enumerate() {
            assert_eq!(decode(&encode(a)).as_deref(), Some(*a));
            for (j, b) in names.iter().enumerate() {
                let (a, b) = (KeySpace::of("lock", a), KeySpace::of("lock", b));
                let inside = a.range().contains(b.key("7f/1").as_bytes());
                assert_eq!(inside, i == j, "{a:?} {b:?}");
            }
        }
        assert_eq!(decode("a%2fb"), None);
        assert_eq!(decode("a%"), None);
        assert_eq!(decode(""), None);
    }

    #[test]
    fn a_line_has_one_place_for_what_is_said_about_it() {
        for name in ["x", "a/b", ""] {
            let plain = Name::from(name);
            let raw = Name::raw(plain.space("lock").prefix());
            assert_eq!(raw.space("lock"), plain.space("lock"));
            assert_eq!(raw.meta("lock"), plain.meta("lock"), "{name:?}");
        }
        for prefix in [
            "x",
            "quorate/lock",
            "quorate/lock/a/b",
            "quorate/election/x",
            "quorate/lockx",
        ] {
            let raw = Name::raw(prefix).meta("lock");
            assert!(
                raw.prefix().starts_with("quorate/raw-lock-meta/"),
                "{prefix}"
            );
        }
    }

    #[test]
    fn ranges_of_prefixes() {
        assert_eq!(&KeyRange::prefix("a/").end[..], b"a0");
        assert_eq!(&KeyRange::prefix(vec![b'a', 0xff]).end[..], b"b");
        assert_eq!(&KeyRange::prefix(vec![0xff]).end[..], &[0]);
        assert!(KeyRange::prefix("").contains(b"anything"));
        assert!(!KeyRange::one("a").contains(b"ab"));
    }

    #[test]
    fn lease_ids_are_written_as_go_writes_them() {
        assert_eq!(LeaseId(0x0069_4d01).to_string(), "694d01");
        assert_eq!(LeaseId(-10).to_string(), "-a");
    }
}
