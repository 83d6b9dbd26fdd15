//! What a setting is called, and where the keys of a namespace lie. What followers watch is apart from
//! what would only wake them: histories and acknowledgements.

use std::fmt;

use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, decode, encode};

/// The name of a setting: its namespace, and its key there. `"namespace/key"` is split at its first
/// slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConfigName {
    pub(super) namespace: String,
    pub(super) key: String,
}

impl ConfigName {
    /// The setting of this key in this namespace; both may hold slashes.
    #[must_use]
    pub fn new(namespace: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            key: key.into(),
        }
    }
}

impl fmt::Display for ConfigName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.key)
    }
}

impl From<&str> for ConfigName {
    fn from(name: &str) -> Self {
        let (namespace, key) = name.split_once('/').unwrap_or((name, ""));
        Self::new(namespace, key)
    }
}
impl From<String> for ConfigName {
    fn from(name: String) -> Self {
        name.as_str().into()
    }
}
impl From<&String> for ConfigName {
    fn from(name: &String) -> Self {
        name.as_str().into()
    }
}
impl From<(&str, &str)> for ConfigName {
    fn from((namespace, key): (&str, &str)) -> Self {
        Self::new(namespace, key)
    }
}

/// The keys of a namespace.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(super) namespace: String,
    space: KeySpace,
}

/// What a key that followers watch is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Live {
    /// What is published for a key.
    Value(String),
    /// A rule of a key, by its name.
    Rule(String, String),
}

impl Layout {
    pub(crate) fn of(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            space: KeySpace::of(super::KIND, namespace),
        }
    }

    /// Names that say nothing are mistakes.
    pub(super) fn check(&self, key: &str) -> Result<()> {
        if self.namespace.is_empty() || key.is_empty() {
            return Err(Error::Invalid(format!(
                "the name of a setting is \"namespace/key\", not {:?}",
                format!("{}/{key}", self.namespace)
            )));
        }
        Ok(())
    }

    /// All that followers of a whole namespace watch.
    pub(crate) fn live(&self) -> KeyRange {
        KeyRange::prefix(self.space.key("live/"))
    }

    /// All that followers of one key watch.
    pub(super) fn live_of(&self, key: &str) -> KeyRange {
        KeyRange::prefix(self.space.key(&format!("live/{}/", encode(key))))
    }

    pub(super) fn value(&self, key: &str) -> Key {
        self.space.key(&format!("live/{}/value", encode(key)))
    }

    pub(super) fn rules(&self, key: &str) -> KeyRange {
        KeyRange::prefix(self.space.key(&format!("live/{}/gray/", encode(key))))
    }

    pub(super) fn rule(&self, key: &str, rule: &str) -> Key {
        let (key, rule) = (encode(key), encode(rule));
        self.space.key(&format!("live/{key}/gray/{rule}"))
    }

    /// Which of the keys that are watched this one is.
    pub(crate) fn live_part(&self, key: &[u8]) -> Option<Live> {
        let rest = self.space.suffix(key)?.strip_prefix("live/")?;
        let (key, rest) = rest.split_once('/')?;
        let key = decode(key)?;
        match rest.strip_prefix("gray/") {
            Some(rule) => Some(Live::Rule(key, decode(rule)?)),
            None => (rest == "value").then_some(Live::Value(key)),
        }
    }

    /// The history of a key, in the order of versions.
    pub(super) fn history(&self, key: &str) -> KeyRange {
        KeyRange::prefix(self.space.key(&format!("history/{}/", encode(key))))
    }

    /// All that is published, after all histories: no keys of other kinds sort between them.
    pub(super) fn published(&self) -> KeyRange {
        KeyRange {
            start: KeyRange::prefix(self.space.key("history/")).start,
            end: self.live().end,
        }
    }

    pub(super) fn entry(&self, key: &str, version: u64) -> Key {
        let key = encode(key);
        self.space.key(&format!("history/{key}/{version:016x}"))
    }

    /// The part of a key's history before this version.
    pub(super) fn before(&self, key: &str, version: u64) -> KeyRange {
        KeyRange {
            start: self.entry(key, 0).into_bytes(),
            end: self.entry(key, version).into_bytes(),
        }
    }

    /// Which version of which key a key of the history is.
    pub(super) fn version(&self, key: &[u8]) -> Option<(String, u64)> {
        let rest = self.space.suffix(key)?.strip_prefix("history/")?;
        let (key, version) = rest.split_once('/')?;
        Some((decode(key)?, u64::from_str_radix(version, 16).ok()?))
    }

    /// What instances say.
    pub(crate) fn all_acknowledgements(&self) -> KeyRange {
        KeyRange::prefix(self.space.key("ack/"))
    }

    /// What instances say of a key; of the empty one: of the group.
    pub(super) fn acknowledgements(&self, key: &str) -> KeyRange {
        KeyRange::prefix(self.space.key(&format!("ack/{}/", encode(key))))
    }

    pub(super) fn acknowledgement(&self, key: &str, instance: &str) -> Key {
        let (key, instance) = (encode(key), encode(instance));
        self.space.key(&format!("ack/{key}/{instance}"))
    }

    /// The instance that an acknowledgement is of.
    pub(crate) fn instance(&self, key: &[u8]) -> Option<String> {
        let rest = self.space.suffix(key)?.strip_prefix("ack/")?;
        decode(rest.split_once('/')?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_and_wake_no_others() {
        let layout = Layout::of("shop/eu");
        for key in ["a", "a/b", "value", "%"] {
            let parts = [
                (layout.value(key), Live::Value(key.to_owned())),
                (
                    layout.rule(key, "r/1"),
                    Live::Rule(key.to_owned(), "r/1".to_owned()),
                ),
            ];
            for (at, part) in parts {
                assert_eq!(layout.live_part(at.as_bytes()), Some(part));
                assert!(layout.live_of(key).contains(at.as_bytes()));
                assert!(layout.live().contains(at.as_bytes()));
                assert_eq!(layout.live_of("a").contains(at.as_bytes()), key == "a");
            }
            let entry = layout.entry(key, 300);
            assert_eq!(
                layout.version(entry.as_bytes()),
                Some((key.to_owned(), 300))
            );
            assert!(layout.before(key, 301).contains(entry.as_bytes()));
            assert!(!layout.before(key, 300).contains(entry.as_bytes()));
            let ack = layout.acknowledgement(key, "h/1");
            assert_eq!(layout.instance(ack.as_bytes()).as_deref(), Some("h/1"));
            for silent in [entry, ack] {
                assert!(!layout.live().contains(silent.as_bytes()));
            }
        }
        assert_eq!(ConfigName::from("a/b/c"), ConfigName::new("a", "b/c"));
        assert!(layout.check("").is_err() && Layout::of("").check("k").is_err());
    }
}
