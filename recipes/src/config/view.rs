//! What a follower shows.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Instant;
use crate::keys::Revision;

/// Where the value of a view comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// There is no value: nothing has been published that could be used.
    Nothing,
    /// The snapshot file: the store has not brought one that could be used.
    Snapshot,
    /// The store.
    Store,
}

/// The publication that the value of one key is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Part {
    /// The revision at which it was published; of a gray release, at which that was begun or changed.
    pub revision: Revision,
    /// Its number among the publications of the key; `None` for a gray release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The gray release that selects the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// What was published last and could not be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rejection {
    /// The revision.
    pub revision: Revision,
    /// Why.
    pub reason: String,
}

/// What an instance is to use now, of a setting or a group.
#[non_exhaustive]
pub struct View<T> {
    /// The last good value; `None` before there was one.
    pub value: Option<Arc<T>>,
    /// Where it comes from.
    pub source: Source,
    /// The newest revision in it; 0 without a value.
    pub revision: Revision,
    /// Which publication of each key it is made of.
    pub parts: Arc<BTreeMap<String, Part>>,
    /// Why it is not the newest one, if it is not.
    pub rejected: Option<Rejection>,
    /// Since when the store has been out of reach.
    pub stale_since: Option<Instant>,
    /// The value as it was published.
    pub(super) raw: Arc<serde_json::Value>,
    /// The store has been heard.
    pub(super) answered: bool,
}

impl<T> View<T> {
    /// Whether a reader need not look at `other` after this one.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.parts == other.parts
            && self.source == other.source
            && self.rejected == other.rejected
            && self.stale_since == other.stale_since
    }
}

impl<T> Clone for View<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            source: self.source,
            revision: self.revision,
            parts: Arc::clone(&self.parts),
            rejected: self.rejected.clone(),
            stale_since: self.stale_since,
            raw: Arc::clone(&self.raw),
            answered: self.answered,
        }
    }
}

impl<T> fmt::Debug for View<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("source", &self.source)
            .field("revision", &self.revision)
            .field("parts", &self.parts)
            .field("rejected", &self.rejected)
            .field("stale_since", &self.stale_since)
            .finish_non_exhaustive()
    }
}
