//! A range of keys as it stands, kept up to date in the background: for readers that want the
//! state and not the changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;
use tokio::sync::watch;

use super::Watcher;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{KeyRange, Revision};
use crate::tasks::Tasks;

/// The keys of a range, all as they were at one revision.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The revision.
    pub revision: Revision,
    /// The keys, in order.
    pub entries: BTreeMap<Bytes, KeyValue>,
}

/// A copy of a range of keys that follows the store. Every view is a state that the store went
/// through, and views never go back, unless an operator put the store itself back; intermediate
/// ones may be skipped. While the store is out of reach the last view stays. Copying a view on a
/// change costs time in proportion to the range, so it is for thousands of keys, not millions.
///
/// Dropping it stops following.
#[derive(Debug)]
pub struct Mirror {
    view: watch::Receiver<Arc<View>>,
    failed: watch::Receiver<Option<Error>>,
    tasks: Tasks,
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Mirror {
    pub(crate) async fn start(client: Client, range: KeyRange) -> Result<Self> {
        let mut watcher = Watcher::new(client, range);
        let first = watcher.next().await?;
        let (publish, view) = watch::channel(Arc::new(View {
            revision: first.revision,
            entries: watcher.known().clone(),
        }));
        let (fail, failed) = watch::channel(None);
        let tasks = Tasks::current();
        tasks.spawn("mirror", async move {
            loop {
                match watcher.next().await {
                    Ok(batch) => {
                        if watcher.has_ready() {
                            continue;
                        }
                        drop(publish.send(Arc::new(View {
                            revision: batch.revision,
                            entries: watcher.known().clone(),
                        })));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "mirror stopped");
                        fail.send_replace(Some(error));
                        return;
                    }
                }
            }
        });
        Ok(Self {
            view,
            failed,
            tasks,
        })
    }

    /// The newest view.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// Waits for a view that has not been waited for before, and returns it.
    ///
    /// # Errors
    /// The store's final refusal that stopped the mirror.
    ///
    /// # Cancel safety
    /// No view is missed when the future is dropped; intermediate ones may be skipped.
    pub async fn changed(&mut self) -> Result<Arc<View>> {
        match self.view.changed().await {
            Ok(()) => Ok(Arc::clone(&self.view.borrow_and_update())),
            Err(_) => Err(self.failed.borrow().clone().unwrap_or(Error::Closed)),
        }
    }
}
