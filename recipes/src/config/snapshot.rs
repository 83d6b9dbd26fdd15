//! What a follower of settings starts from when the store is out of reach: the last good value.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tokio::sync::watch;

use super::view::{Part, Source, View};
use crate::client::Client;
use crate::error::Result;
use crate::snapshot::{self, Content};

/// Whose snapshot it is: a namespace, and a key unless it is of the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
}

/// What a snapshot has.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    #[serde(flatten)]
    owner: Owner,
    pub(super) parts: BTreeMap<String, Part>,
    pub(super) value: Json,
}

impl Content for Saved {
    const KIND: &'static str = "config snapshot";
}

/// The file of one follower.
#[derive(Debug)]
pub(super) struct Snapshot {
    file: snapshot::Snapshot<Saved>,
    owner: Owner,
}

impl Snapshot {
    pub(super) fn new(path: PathBuf, owner: Owner) -> Self {
        let file = snapshot::Snapshot::new(path);
        Self { file, owner }
    }

    /// Reads the file; `None` without one that can be used.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) when the file is something else, or the snapshot of another
    /// setting.
    pub(super) async fn load(&self) -> Result<Option<Saved>> {
        self.file.load(|saved| self.owner.has(saved)).await
    }

    /// Writes what the views show, until there are no more.
    pub(super) async fn keep<T: Send + Sync + 'static>(
        self,
        client: Client,
        views: watch::Receiver<Arc<View<T>>>,
    ) {
        let owner = self.owner;
        let content = move |view: &View<T>, saved: Option<&Arc<BTreeMap<String, Part>>>| {
            let due = view.source == Source::Store && saved != Some(&view.parts);
            due.then(|| {
                let content = Saved {
                    owner: owner.clone(),
                    parts: (*view.parts).clone(),
                    value: (*view.raw).clone(),
                };
                (Arc::clone(&view.parts), content)
            })
        };
        self.file.keep(client, views, Duration::ZERO, content).await;
    }
}

impl Owner {
    fn has(&self, saved: &Saved) -> std::result::Result<(), String> {
        if saved.owner == *self {
            return Ok(());
        }
        let Self { namespace, key } = &saved.owner;
        let key = key.as_ref().map(|key| format!("key {key}"));
        let key = key.unwrap_or_else(|| "the group".to_owned());
        Err(format!("{key} in {namespace}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_others_are_told() {
        let owner = |key: Option<&str>| Owner {
            namespace: "shop".to_owned(),
            key: key.map(str::to_owned),
        };
        let saved = Saved {
            owner: owner(Some("limits")),
            parts: BTreeMap::new(),
            value: serde_json::json!({ "rps": 5 }),
        };
        assert_eq!(owner(Some("limits")).has(&saved), Ok(()));
        for other in [owner(None), owner(Some("prices"))] {
            let told = other.has(&saved);
            assert_eq!(told, Err("key limits in shop".to_owned()));
        }
        let written = serde_json::to_value(&saved).unwrap();
        assert_eq!(
            written,
            serde_json::json!({
                "namespace": "shop", "key": "limits", "parts": {}, "value": { "rps": 5 }
            })
        );
    }
}
