//! What a discovery starts from when the store is out of reach: the instances as they were seen last.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::view::ServiceView;
use crate::client::Client;
use crate::error::Result;
use crate::keys::{KeySpace, Revision};
use crate::snapshot::{self, Content};

/// Least time between two writes of a file: a large service changes all the time.
const PAUSE: Duration = Duration::from_secs(5);

/// What a snapshot has.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    /// The prefix of the service's keys.
    service: String,
    revision: i64,
    instances: Vec<Entry>,
}

/// An instance's key, as it was in the store. Values are JSON, and so text.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    key: String,
    value: String,
    created: i64,
    modified: i64,
    lease: i64,
}

impl Content for Saved {
    const KIND: &'static str = "discovery snapshot";
}

impl Saved {
    pub(super) fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    pub(super) fn into_kvs(self) -> impl Iterator<Item = KeyValue> {
        self.instances.into_iter().map(|entry| KeyValue {
            key: entry.key.into(),
            value: entry.value.into(),
            create_revision: entry.created,
            mod_revision: entry.modified,
            lease: entry.lease,
            ..Default::default()
        })
    }
}

/// The keys of the instances, for a discovery that has a file: shared by the tracker, which knows them, and the
/// task that writes them down. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Raw(Arc<Mutex<BTreeMap<Bytes, KeyValue>>>);

impl Raw {
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<Bytes, KeyValue>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The file of one discovery.
pub(super) struct Snapshot {
    file: snapshot::Snapshot<Saved>,
    service: String,
}

impl Snapshot {
    pub(super) fn new(path: PathBuf, space: &KeySpace) -> Self {
        Self {
            file: snapshot::Snapshot::new(path),
            service: space.prefix().to_owned(),
        }
    }

    /// Reads the file; `None` without one that can be used.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) when the file is something else, or the snapshot of another
    /// service.
    pub(super) async fn load(&self) -> Result<Option<Saved>> {
        let is_ours = |saved: &Saved| match saved.service == self.service {
            true => Ok(()),
            false => Err(saved.service.clone()),
        };
        self.file.load(is_ours).await
    }

    /// Writes what the views show, until there are no more.
    pub(super) async fn keep<M: Send + Sync + 'static>(
        self,
        client: Client,
        raw: Raw,
        views: watch::Receiver<Arc<ServiceView<M>>>,
    ) {
        let service = self.service;
        let content = move |view: &ServiceView<M>, saved: Option<&Revision>| {
            // What changes without the store's doing is not worth a write, and what is stale is written already.
            if view.is_from_snapshot()
                || view.stale_since.is_some()
                || saved == Some(&view.revision)
            {
                return None;
            }
            let kvs = raw.change(|raw| raw.clone());
            let shown = kvs.values().filter(|kv| view.instances.has(&kv.key));
            let entry = |kv: &KeyValue| {
                let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).ok();
                Some(Entry {
                    key: text(&kv.key)?,
                    value: text(&kv.value)?,
                    created: kv.create_revision,
                    modified: kv.mod_revision,
                    lease: kv.lease,
                })
            };
            let content = Saved {
                service: service.clone(),
                revision: view.revision.0,
                instances: shown.filter_map(entry).collect(),
            };
            Some((view.revision, content))
        };
        self.file.keep(client, views, PAUSE, content).await;
    }
}
