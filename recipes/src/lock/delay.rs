//! Time for a lost holder to notice: after a holder has gone without releasing, nobody is let in for a
//! while. For holders whose effects lie outside the store, where no fence reaches.
//!
//! Who holds is noted in a key without a lease, removed by the release. Who finds somebody else's note
//! when its turn has come waits, from its first look at it on, before it overwrites it. So no clocks are
//! compared. The idea is Chubby's (Burrows, OSDI 2006, section 2.4), whose server does the waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest};
use quorate_proto::mvccpb::KeyValue;

use super::{Fenced, Hold};
use crate::client::Client;
use crate::clock::{self, Instant};
use crate::error::{Error, LostReason, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::session::Claim;
use crate::store::ops::{self, Compare};

/// How long a lock stays shut, and which note was first seen when. Clones share what they have seen, so
/// somebody who asks again and again does not begin anew each time.
#[derive(Debug, Clone)]
pub(super) struct Delay {
    length: Duration,
    seen: Arc<Mutex<Option<(Revision, Instant)>>>,
}

impl Delay {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            seen: Arc::default(),
        }
    }

    /// When the note that was written at `at`, and is seen now, may be overwritten.
    fn ends(&self, client: &Client, at: Revision) -> Instant {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match *seen {
            Some((known, since)) if known == at => since,
            _ => client.now(),
        };
        *seen = Some((at, since));
        clock::after(since, self.length)
    }

    /// Whether the note of a lost holder that a look found has stood long enough; then when it was written.
    pub(super) fn is_over(&self, client: &Client, found: &[ResponseOp]) -> Option<Revision> {
        let at = Revision(of_a_lost_one(found)?.mod_revision);
        (self.ends(client, at) <= client.now()).then_some(at)
    }
}

/// How long the lock that these contend for stays shut yet, after one who had left a note in `key` and is
/// gone; `None` when it is not shut.
pub(super) async fn left(
    client: &Client,
    key: &Key,
    contenders: KeyRange,
    delay: &Delay,
) -> Result<Option<Duration>> {
    let request = TxnRequest {
        success: look(key, contenders).into(),
        ..Default::default()
    };
    let answer = client.store().txn(request).await?;
    let Some(note) = of_a_lost_one(&answer.responses) else {
        return Ok(None);
    };
    let ends = delay.ends(client, Revision(note.mod_revision));
    let left = ends.saturating_duration_since(client.now());
    Ok((!left.is_zero()).then_some(left))
}

/// Reads the note, and who is first in line.
fn look(key: &Key, contenders: KeyRange) -> [RequestOp; 2] {
    [ops::get(key), ops::oldest(contenders, 1)].map(ops::read)
}

/// The note that a [`look`] found, unless it is that of one who holds. No time counts from that.
fn of_a_lost_one(found: &[ResponseOp]) -> Option<&KeyValue> {
    let note = ops::kvs(found, 0).first()?;
    // Who has left a note was first in line, and stays so until it goes.
    let first = ops::kvs(found, 1).first();
    first.is_none_or(|kv| kv.key != note.value).then_some(note)
}

/// A note of who holds: the holder's key, which no other has ever had.
#[derive(Debug, Clone)]
pub(super) struct Note {
    key: Key,
    value: Bytes,
}

impl Note {
    /// A note in `key` of the holder's key.
    pub(super) fn new(key: Key, holder: &Key) -> Self {
        Self {
            key,
            value: holder.as_bytes().clone(),
        }
    }

    /// Has a note in `key` of what is claimed written with the claim, over one that was written at `over`
    /// (0: over none), and removed with what was claimed. Refused, the claim has a [`look`].
    pub(super) fn add_to(claim: &mut Claim, key: Key, contenders: KeyRange, over: Revision) {
        let note = Self::new(key, &claim.keys[0].key);
        claim.when.push(Compare::mod_revision(&note.key, over));
        claim.also.push(note.put());
        claim.otherwise.extend(look(&note.key, contenders));
        claim.when_released.push(note.removal());
    }

    fn put(&self) -> RequestOp {
        ops::put(&self.key, self.value.clone(), None)
    }

    /// Removes the note, if it is this one.
    fn removal(&self) -> RequestOp {
        let is_own = Compare::value(&self.key, self.value.clone());
        ops::when(is_own, ops::delete(KeyRange::one(&self.key)))
    }

    /// Puts the note in place for `hold`. Where another one stands, only when the delay is over.
    ///
    /// # Cancel safety
    /// Dropping the future drops the hold, which removes the note.
    pub(super) async fn take(&self, mut hold: Hold, delay: &Delay) -> Result<Hold> {
        hold.when_released(self.removal());
        let mut over = Revision(0);
        loop {
            let Some(other) = self.try_put(&hold, over).await? else {
                return Ok(hold);
            };
            if other == over {
                // It was not the note that was in the way, but the hold that is over.
                return Err(hold.session().actor().why_gone(hold.key()).await);
            }
            if other > Revision(0) {
                tracing::info!(key = %self.key, "the last holder went without releasing");
                let ends = delay.ends(hold.unfenced(), other);
                tokio::select! {
                    biased;
                    reason = hold.lost() => return Err(match reason {
                        LostReason::Removed => Error::Removed(hold.key().clone()),
                        reason => Error::SessionLost(reason),
                    }),
                    () = hold.unfenced().clock().sleep_until(ends) => {}
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
            failure: look(&self.key, hold.fence().contenders()[0].clone()).into(),
        };
        let (answer, _) = hold.session().actor().repeat(request).await?;
        if answer.succeeded {
            return Ok(None);
        }
        let there = ops::kvs(&answer.responses, 0).first();
        if there.is_some_and(|kv| kv.value == self.value) {
            return Ok(None);
        }
        if there.is_some() && of_a_lost_one(&answer.responses).is_none() {
            // Somebody else holds, so this is over, and no time counts from that note.
            return Err(hold.session().actor().why_gone(hold.key()).await);
        }
        Ok(Some(Revision(there.map_or(0, |kv| kv.mod_revision))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemStore;

    /// The time counts from the first look at what a lost holder has left, not at the holder.
    #[tokio::test(start_paused = true)]
    async fn no_time_counts_while_somebody_holds() {
        for then_waits in [false, true] {
            let store = MemStore::new();
            let client = Client::new(store.clone());
            let delay = Duration::from_secs(10);
            let mutex = client.mutex("m").with_delay(delay);
            let (a, b) = (
                client.session().await.unwrap(),
                client.session().await.unwrap(),
            );
            let _held = mutex.lock(&a).await.unwrap();
            assert!(mutex.try_lock(&b).await.unwrap().is_none());
            tokio::time::sleep(3 * delay).await;
            assert!(store.expire(a.lease()));
            let lost_at = client.now();
            if then_waits {
                mutex.lock(&b).await.unwrap().release().await.unwrap();
                assert!(client.now() >= lost_at + delay);
                continue;
            }
            assert!(mutex.try_lock(&b).await.unwrap().is_none(), "a delay runs");
            assert!(mutex.delay_left().await.unwrap().is_some());
            tokio::time::sleep(delay).await;
            assert_eq!(mutex.delay_left().await.unwrap(), None);
            assert!(mutex.try_lock(&b).await.unwrap().is_some());
        }
    }
}
