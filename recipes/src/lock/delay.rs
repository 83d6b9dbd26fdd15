//! Time for a lost holder to notice: after a holder has gone without releasing, nobody is let in for a
//! while. For holders whose effects lie outside the store, where no fence reaches.
//!
//! Who holds is noted in a key without a lease, removed by the release. Who finds somebody else's note
//! when its turn has come waits, from its own look at it on, before it overwrites it. So no clocks are
//! compared. The idea is Chubby's (Burrows, OSDI 2006, section 2.4), whose server does the waiting.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, TxnRequest};

use super::{Fenced, Hold};
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::store::ops::{self, Compare};

/// A note of who holds.
#[derive(Debug, Clone)]
pub(super) struct Note {
    key: Key,
    value: Bytes,
}

impl Note {
    /// A note with a value that no other has.
    pub(super) fn new(key: Key, nonce: String) -> Self {
        Self {
            key,
            value: nonce.into(),
        }
    }

    /// That nobody is noted.
    pub(super) fn is_absent(&self) -> Compare {
        Compare::absent(&self.key)
    }

    pub(super) fn put(&self) -> RequestOp {
        ops::put(&self.key, self.value.clone(), None)
    }

    /// Removes the note when `hold` is released, if it is there by then.
    pub(super) fn remove_with(&self, hold: &mut Hold) {
        let is_own = Compare::value(&self.key, self.value.clone());
        let remove = ops::delete(KeyRange::one(&self.key));
        hold.when_released(ops::when(is_own, remove));
    }

    /// Puts the note in place for `hold`. Where another one stands, only after `delay`.
    ///
    /// # Cancel safety
    /// Dropping the future drops the hold, which removes the note.
    pub(super) async fn take(&self, mut hold: Hold, delay: Duration) -> Result<Hold> {
        self.remove_with(&mut hold);
        let mut over = Revision(0);
        loop {
            let Some(other) = self.try_put(&hold, over).await? else {
                return Ok(hold);
            };
            if other == over {
                // It was not the note that was in the way, but the hold that is over.
                return Err(Error::Fenced { owner: None });
            }
            if other > Revision(0) {
                tracing::info!(key = %self.key, ?delay, "the last holder went without releasing");
                tokio::select! {
                    biased;
                    reason = hold.lost() => return Err(match reason {
                        LostReason::Removed => Error::Removed(hold.key().clone()),
                        reason => Error::SessionLost(reason),
                    }),
                    () = hold.unfenced().sleep(delay) => {}
                }
            }
            over = other;
        }
    }

    /// Writes the note over one that was written at `over` (0: over none). `None` when it stands;
    /// otherwise when the one that stands was written.
    async fn try_put(&self, hold: &Hold, over: Revision) -> Result<Option<Revision>> {
        let mut compare = hold.fence().compares();
        compare.push(Compare::mod_revision(&self.key, over));
        let request = TxnRequest {
            compare: compare.into_iter().map(Into::into).collect(),
            success: vec![self.put()],
            failure: vec![ops::read(ops::get(&self.key))],
        };
        let (answer, _) = hold.session().actor().repeat(request).await?;
        if answer.succeeded {
            return Ok(None);
        }
        let there = ops::kvs(&answer.responses, 0).first();
        let own = there.is_some_and(|kv| kv.value == self.value);
        Ok((!own).then(|| Revision(there.map_or(0, |kv| kv.mod_revision))))
    }
}
