//! A mark that a task has panicked while it held a lock, so that what the lock guards may be half done.
//! It is written by the transaction that releases the lock, and stays until somebody clears it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use super::{FencingToken, Hold};
use crate::client::Identity;
use crate::error::Result;
use crate::keys::{Key, Revision};
use crate::store::ops;
use crate::value::{Json, V1, Value, from_json};

/// Who panicked with a lock in hand.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Poison {
    /// Host, process and label.
    pub who: Identity,
    /// The task of the session, where it was named.
    pub task: Option<String>,
    /// The token under which it held the lock.
    pub token: FencingToken,
    /// The revision at which it released it.
    pub released: Revision,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    v: V1,
    #[serde(flatten)]
    who: Identity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    epoch: u64,
    revision: i64,
}

impl Poison {
    pub(super) fn read(kv: &KeyValue) -> Result<Self> {
        let record: Record = from_json(&kv.key, &kv.value)?;
        Ok(Self {
            who: record.who,
            task: record.task,
            token: FencingToken {
                epoch: record.epoch,
                revision: Revision(record.revision),
            },
            released: Revision(kv.mod_revision),
        })
    }
}

/// Has the mark written in `key` when `hold` ends in a panic.
pub(super) fn arm(hold: &mut Hold, key: Key) -> Result<()> {
    let session = hold.session();
    let token = hold.token();
    let record = Record {
        v: V1,
        who: session.who().clone(),
        task: session.task().map(str::to_owned),
        epoch: token.epoch,
        revision: token.revision.0,
    };
    let value = Value::from(Json(record)).into_bytes(&key)?;
    hold.when_panicked(ops::put(key, value, None));
    Ok(())
}

/// Notes a panic of one of several that have a hold together: it may not be the last of them that goes.
#[derive(Debug, Clone)]
pub(super) struct PanicWitness(Option<Arc<AtomicBool>>);

impl PanicWitness {
    pub(super) fn of(hold: &Hold) -> Self {
        Self(hold.panicked())
    }
}

impl Drop for PanicWitness {
    fn drop(&mut self) {
        if let Some(noted) = self.0.as_ref().filter(|_| std::thread::panicking()) {
            noted.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::client::Client;
    use crate::error::{Error, TxnError};
    use crate::store::MemStore;

    #[tokio::test(start_paused = true)]
    async fn a_mark_is_cleared_under_its_own_lock_only() {
        let root = Client::new(MemStore::new());
        let inside = root.namespace("a/");
        let session = inside.session().await.unwrap();
        let guard = inside.mutex("m").lock(&session).await.unwrap();
        let cleared = root.mutex("m").clear_poison(&guard).await;
        let refused = matches!(cleared, Err(TxnError::Failed(Error::Invalid(_))));
        assert!(refused, "{cleared:?}");
        assert!(!inside.mutex("m").clear_poison(&guard).await.unwrap());
    }
}
