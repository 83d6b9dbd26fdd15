//! Asking a holder to let go. A request is a key that names the holder's key by its revision, attached
//! to the asking session; a holder that cares watches for it. Nobody is forced.

use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};

use super::{Hold, Holder, queue_of};
use crate::client::Client;
use crate::error::Result;
use crate::keys::{KeyRange, KeySpace, LeaseId, Revision};
use crate::kit::fresh_key;
use crate::session::{Claim, Claimed, Owned, Session};
use crate::store::ops::Compare;
use crate::value::{Json, Value, from_json};
use crate::wait::{Backoff, Woken, deleted};

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    v: u32,
    reason: String,
}

/// A request that stands. Dropping it takes it back.
#[derive(Debug)]
#[must_use = "a dropped request is taken back"]
pub struct ReleaseRequest {
    // Dropped before the session, so that it is taken back before a session's end.
    owned: Owned,
    holder: Holder,
    session: Session,
}

/// What a holder is told.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReleaseRequested {
    /// Why.
    pub reason: String,
    /// The lease of the session that asks.
    pub lease: LeaseId,
}

impl ReleaseRequest {
    /// Who was asked.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Waits until that holder holds no more.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn granted(&self) -> Result<()> {
        let client = self.session.client();
        let key = &self.holder.key;
        let mut pause = Backoff::between_attempts(client);
        let mut from = Revision(self.owned.revision().0 + 1);
        loop {
            match deleted(client, std::slice::from_ref(key), from).await {
                Ok(Woken::Deleted(_)) => return Ok(()),
                Ok(Woken::Interrupted) => {}
                Err(error) if error.is_transient() => {}
                Err(error) => return Err(error.into()),
            }
            pause.pause().await;
            let (seen, kvs) = match client.list(KeyRange::one(key)).await {
                Err(crate::Error::Store(error)) if error.is_transient() => continue,
                found => found?,
            };
            let there = kvs.first().map(|kv| kv.create_revision);
            if there != Some(self.holder.revision.0) {
                return Ok(());
            }
            from = Revision(seen.0 + 1);
        }
    }
}

/// The requests to the holder whose key was created at `revision`.
fn requests(meta: &KeySpace, revision: Revision) -> KeySpace {
    meta.child("release").child(&revision.to_string())
}

/// Asks the holder of `contenders`; `None` when nobody holds.
pub(crate) async fn ask(
    session: &Session,
    contenders: KeyRange,
    meta: &KeySpace,
    reason: String,
) -> Result<Option<ReleaseRequest>> {
    let client = session.client();
    loop {
        let queue = queue_of(client, contenders.clone(), 1).await?;
        let Some(holder) = queue.into_iter().next() else {
            return Ok(None);
        };
        let key = fresh_key(session, &requests(meta, holder.revision));
        let record = Record {
            v: 1,
            reason: reason.clone(),
        };
        let value = Value::from(Json(record)).into_bytes(&key)?;
        let mut claim = Claim::of(key, value);
        claim.when = vec![Compare::create_revision(&holder.key, holder.revision)];
        let claimed = session
            .actor()
            .run(|actor| async move { actor.claim(claim).await });
        // Refused: that one holds no more, so somebody else may.
        if let Claimed::Made { owned, .. } = claimed.await? {
            return Ok(Some(ReleaseRequest {
                owned,
                holder,
                session: session.clone(),
            }));
        }
    }
}

/// The requests to one holder, each told once.
#[derive(Debug)]
pub(crate) struct Asked {
    meta: KeySpace,
    /// When the last one that was told was made.
    told: AtomicI64,
}

impl Asked {
    pub(crate) fn new(meta: &KeySpace) -> Self {
        Self {
            meta: meta.clone(),
            told: AtomicI64::new(0),
        }
    }

    /// Waits until somebody asks for the release of `hold` who has not been told of.
    pub(crate) async fn next(&self, hold: &Hold) -> Result<ReleaseRequested> {
        let client: &Client = hold.unfenced();
        let mut watcher = client.watch(requests(&self.meta, hold.token().revision).range());
        loop {
            watcher.next().await?;
            let told = self.told.load(Ordering::Acquire);
            let untold = watcher.known().values();
            let untold = untold.filter(|kv| kv.create_revision > told);
            if let Some(kv) = untold.min_by_key(|kv| kv.create_revision) {
                self.told.fetch_max(kv.create_revision, Ordering::AcqRel);
                let record: Record = from_json(&kv.key, &kv.value)?;
                return Ok(ReleaseRequested {
                    reason: record.reason,
                    lease: LeaseId(kv.lease),
                });
            }
        }
    }
}
