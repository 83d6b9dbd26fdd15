//! Counting an attempt before it begins, and telling the others that it has failed. Both are written
//! under the turn: a count before anything is computed, so that it stands whatever becomes of the
//! process; a failure in the transaction that ends the turn.

use std::fmt;
use std::time::Duration;

use quorate_proto::limits::LEASE_TTL_SECONDS_MAX;

use super::OnceError;
use super::attempt::Attempt;
use super::failure::{self, Failure, Tally, kept};
use super::look::Counted;
use crate::clock;
use crate::error::{Error, Result};
use crate::keys::KeyRange;
use crate::lock::Fenced;
use crate::store::ops::{self, Compare};
use crate::wait;

/// What a store may grant.
const TTL_LEAST: Duration = Duration::from_secs(1);
const TTL_MOST: Duration = Duration::from_secs(LEASE_TTL_SECONDS_MAX.unsigned_abs());

impl<T> Attempt<'_, T> {
    /// Counts this attempt, unless `most` have been counted. The transaction also writes the turn's key
    /// once more, and compares that nothing has: a copy that comes late counts nothing, also when the
    /// count was forgotten since.
    pub(super) async fn begin<E>(&mut self, most: u32) -> Result<(), OnceError<E>> {
        let key = self.cell.tally_key();
        let turn = self.hold.key().clone();
        let created = self.hold.fence().revision();
        loop {
            let Counted { tally, at } = &self.counted;
            if tally.begun >= most {
                return Err(OnceError::Exhausted {
                    attempts: tally.begun,
                    last: tally.last.clone(),
                });
            }
            let next = Tally {
                begun: tally.begun.saturating_add(1),
                attempt: self.name.clone(),
                last: tally.last.clone(),
            };
            let success = vec![
                ops::put(&key, failure::write(&key, &next)?, None),
                ops::put(&turn, self.record.clone(), Some(self.hold.fence().lease())),
            ];
            let when = [
                Compare::mod_revision(&key, *at),
                Compare::mod_revision(&turn, created),
            ];
            let otherwise = [&key, &turn].map(|key| ops::read(ops::get(key)));
            let refused = match self.write(when, success, otherwise.into()).await? {
                Ok(at) => {
                    self.counted = Counted { tally: next, at };
                    return Ok(());
                }
                Err(refused) => refused,
            };
            if !refused.held {
                return Err(self.why(&refused).await.into());
            }
            let found = |index| ops::kvs(&refused.found, index).first();
            let now = Counted::read(found(0))?;
            let counted = found(1).is_some_and(|kv| kv.mod_revision != created.0);
            self.counted = now;
            if counted {
                // By an earlier copy. It may have been forgotten since.
                return Ok(());
            }
        }
    }

    /// Tells the others that the computation has failed, as far as the handle's options say so, and ends
    /// the turn. That it cannot be told is not an error: the turn ends without, then.
    pub(super) async fn fail(self, error: &impl fmt::Display) {
        if self.cell.cache_failures.is_none() && self.cell.max_attempts.is_none() {
            return;
        }
        let told = tokio::select! {
            biased;
            reason = self.hold.session().lost() => Err(Error::SessionLost(reason)),
            told = self.tell(error.to_string()) => told,
        };
        match told {
            Ok(()) => self.end(),
            Err(error) => {
                let name = self.cell.prefix();
                tracing::debug!(name, %error, "a failed computation was not told to the others");
            }
        }
    }

    async fn tell(&self, text: String) -> Result<()> {
        let Counted { tally, at } = &self.counted;
        let counted = tally.attempt == self.name;
        let failure = Box::new(Failure {
            text: kept(text),
            attempt: counted.then_some(tally.begun),
            who: self.hold.session().who().clone(),
            info: self.cell.info.clone(),
            failed_ms: clock::wall_millis(),
        });
        let mut success = vec![ops::delete(KeyRange::one(self.hold.key()))];
        if let Some(ttl) = self.cell.cache_failures {
            let key = self.cell.failure_key();
            let ttl = clock::whole_seconds(ttl).clamp(TTL_LEAST, TTL_MOST);
            let value = failure::write(&key, &failure)?;
            let lease = self.hold.session().actor().grant_apart(ttl).await?;
            success.push(ops::put(&key, value, Some(lease.id)));
        }
        if counted {
            let key = self.cell.tally_key();
            let tally = Tally {
                last: Some(failure),
                ..tally.clone()
            };
            let value = failure::write(&key, &tally)?;
            // What was forgotten meanwhile stays forgotten.
            let unchanged = Compare::mod_revision(&key, *at);
            success.push(ops::when(unchanged, ops::put(&key, value, None)));
        }
        // Not through the session's actor, which would take a lease that is gone for its own: it is the
        // failure's, whose time was over before it could be told.
        let request = self.request([self.unchanged()], success, Vec::new());
        // Refused, it may have been told by an earlier copy; or the turn still is to be given up.
        let (answer, _) = wait::repeat(self.hold.unfenced(), request).await?;
        answer.succeeded.then_some(()).ok_or(Error::Conflict)
    }
}
