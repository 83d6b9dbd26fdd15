//! Asking whoever holds something to let go. A request is a key that names the holder's key by its
//! revision, attached to the asking session; a holder that cares watches for it. Nobody is forced.

use std::sync::atomic::{AtomicI64, Ordering};

use quorate_proto::mvccpb::KeyValue;
use serde::{Deserialize, Serialize};

use super::{Fenced, Hold, Holder, queue_of};
use crate::client::Client;
use crate::error::Result;
use crate::keys::{KeyRange, KeySpace, LeaseId, Revision};
use crate::kit::fresh_key;
use crate::session::{Claim, Claimed, Owned, Session};
use crate::store::ops::Compare;
use crate::value::{Json, V1, Value, from_json};
use crate::wait::{Backoff, Woken, deleted};

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    v: V1,
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
    /// Why; empty when that cannot be read.
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
        let held = [(key.clone(), self.holder.lease)];
        let mut pause = Backoff::between_attempts(client);
        let mut from = Revision(self.owned.revision().0 + 1);
        loop {
            match deleted(client, &held, from).await {
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

/// The requests to those whose key was created at `revision`; no two have one of the same revision but
/// by one transaction, so by one holder.
fn requests(revision: Revision) -> KeySpace {
    KeySpace::of("request", &revision.to_string())
}

impl Session {
    /// Asks one who holds something to let go: anybody in a list of holders, as
    /// [`RwLock::contenders`](super::RwLock::contenders) or
    /// [`Semaphore::holders`](super::Semaphore::holders) give it. `None` when that one holds no more. It
    /// hears it that waits for [`Hold::release_requested`]; nobody is forced. The request stands until it
    /// is dropped.
    ///
    /// # Errors
    /// [`Error::SessionLost`](crate::Error::SessionLost); the store's.
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back.
    pub async fn request_release(
        &self,
        holder: &Holder,
        reason: impl Into<String>,
    ) -> Result<Option<ReleaseRequest>> {
        let key = fresh_key(self, &requests(holder.revision));
        let record = Record {
            v: V1,
            reason: reason.into(),
        };
        let value = Value::from(Json(record)).into_bytes(&key)?;
        let mut claim = Claim::of(key, value);
        claim.when = vec![Compare::create_revision(&holder.key, holder.revision)];
        let claimed = self
            .actor()
            .run(|actor| async move { actor.claim(claim).await });
        Ok(match claimed.await? {
            Claimed::Refused { .. } => None,
            Claimed::Made { owned, .. } => Some(ReleaseRequest {
                owned,
                holder: holder.clone(),
                session: self.clone(),
            }),
        })
    }
}

/// Asks the first of `contenders`, whoever that is; `None` when there is nobody.
pub(crate) async fn ask_first(
    session: &Session,
    contenders: KeyRange,
    reason: &str,
) -> Result<Option<ReleaseRequest>> {
    let mut pause = Backoff::contended(session.client());
    loop {
        let queue = queue_of(session.client(), contenders.clone(), 1).await?;
        let Some(holder) = queue.into_iter().next() else {
            return Ok(None);
        };
        // Refused: that one holds no more, so somebody else may.
        if let Some(request) = session.request_release(&holder, reason).await? {
            return Ok(Some(request));
        }
        pause.pause().await;
    }
}

/// The requests to one holder, each told once.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// When the last one that was told was made.
    told: AtomicI64,
}

impl Asked {
    /// Waits until somebody asks for the release of `hold` who has not been told of.
    pub(super) async fn next(&self, hold: &Hold) -> Result<ReleaseRequested> {
        let client: &Client = hold.unfenced();
        let mut watcher = client.watch(requests(hold.fence().oldest()).range());
        loop {
            watcher.next().await?;
            let mut standing: Vec<&KeyValue> = watcher.known().values().collect();
            standing.sort_by_key(|kv| kv.create_revision);
            if let Some(kv) = standing.into_iter().find(|kv| self.tells(kv)) {
                let record = from_json::<Record>(&kv.key, &kv.value);
                return Ok(ReleaseRequested {
                    reason: record.map(|record| record.reason).unwrap_or_default(),
                    lease: LeaseId(kv.lease),
                });
            }
        }
    }

    /// Whether a request has not been told of; it has been from then on.
    fn tells(&self, kv: &KeyValue) -> bool {
        self.told.fetch_max(kv.create_revision, Ordering::AcqRel) < kv.create_revision
    }
}
