//! A sum of cells, one a session, as Java's `LongAdder` has one a thread: each session writes only its own, so
//! adding is free of contention, and reading adds up. Cells of ended sessions are folded into one.

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;

use super::{parse, sum};
use crate::client::Client;
use crate::error::Result;
use crate::keys::{Key, KeyRange, KeySpace, LeaseId, Revision, session_key};
use crate::register::{Register, Step};
use crate::session::Session;
use crate::store::{ops, ops::Compare};

/// Most cells that one folding transaction takes in.
const FOLD_MAX: usize = 32;

/// A sum that many processes add to at a high rate. A handle: cheap to clone, holds nothing. The sum
/// is 0 until somebody adds, and stays when everybody is gone.
///
/// Every addition counts exactly once, although answers get lost, and also when its session has
/// ended since.
///
/// Costs: an addition is one transaction (the first of a session one read more), never repeated for
/// the sake of others; additions of one session through clones of one handle follow one another, so
/// add up locally what is more frequent than round trips. `sum` is one read of as many keys as there
/// are sessions.
#[derive(Debug, Clone)]
pub struct Adder {
    client: Client,
    space: KeySpace,
    register: Register,
}

impl Adder {
    pub(crate) fn new(client: Client, name: &str) -> Self {
        Self {
            client,
            space: KeySpace::of("adder", name),
            register: Register::default(),
        }
    }

    /// The key prefix, without the slash at its end.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.space.prefix()
    }

    fn base(&self) -> Key {
        self.space.key("base")
    }

    fn cells(&self) -> KeySpace {
        self.space.child("cell")
    }

    /// Adds `delta`, which may be negative. Waits while the store is out of reach.
    ///
    /// The first addition of a session starts folding up to 32 cells of ended sessions in the
    /// background.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) when what this session has added does not fit 64
    /// bits, [`Error::SessionLost`](crate::Error::SessionLost) and the store's final refusals: nothing
    /// was added. [`Error::OutcomeUnknown`](crate::Error::OutcomeUnknown) when the session ended with
    /// an answer still to come.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: what is on its way takes place once or not at all.
    pub async fn add(&self, session: &Session, delta: i64) -> Result<()> {
        // The lane that the write goes through ends with the session, so no late copy can make the
        // cell anew once it was folded.
        let key = self.cells().key(&session.lease().to_string());
        let step = |value: Option<&bytes::Bytes>| {
            let now = sum(&key, parse(&key, value)?, delta)?;
            Ok(Step::Write(now.to_string().into(), value.is_none()))
        };
        let first = self
            .register
            .update(&self.client, session, &key, step)
            .await?;
        if first {
            let adder = self.clone();
            session.actor().spawn("fold", async move {
                if let Err(error) = adder.fold().await {
                    tracing::debug!(adder = adder.prefix(), %error, "cells were left unfolded");
                }
            });
        }
        Ok(())
    }

    /// The sum, as it was at one revision. Needs no session.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) when the sum does not fit 64 bits;
    /// [`Error::Codec`](crate::Error::Codec) when a cell is not a number; the store's.
    pub async fn sum(&self) -> Result<i64> {
        let (_, kvs) = self.client.list(self.space.range()).await?;
        let mut total: i128 = 0;
        for kv in kvs {
            total += i128::from(parse::<i64>(&kv.key.into(), Some(&kv.value))?);
        }
        self.fitting(total)
    }

    fn fitting(&self, total: i128) -> Result<i64> {
        i64::try_from(total).map_err(|_| {
            let prefix = self.prefix();
            crate::Error::Invalid(format!("{prefix}: the sum {total} overflows 64 bits"))
        })
    }

    /// Folds cells of sessions that have ended, 32 at most, into one key, so that sums stay cheap.
    /// Returns how many. Anybody may, at any time; needs no session, and does not change the sum.
    ///
    /// # Errors
    /// The store's. An ambiguous one may have folded.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome, which does no harm.
    pub async fn fold(&self) -> Result<usize> {
        let base = self.base();
        let (_, kvs) = self.client.list(self.space.range()).await?;
        let was = kvs.iter().find(|kv| kv.key == *base.as_bytes());
        let at = Revision(was.map_or(0, |kv| kv.mod_revision));
        let mut total: i128 = parse::<i64>(&base, was.map(|kv| &kv.value))?.into();
        let ended = self.ended(&kvs).await?;
        let mut request = TxnRequest {
            compare: vec![Compare::mod_revision(&base, at).into()],
            ..Default::default()
        };
        for (kv, session) in &ended {
            let key = Key::from(kv.key.clone());
            total += i128::from(parse::<i64>(&key, Some(&kv.value))?);
            request.compare.extend([
                Compare::mod_revision(&key, Revision(kv.mod_revision)).into(),
                Compare::absent(session).into(),
            ]);
            request.success.push(ops::delete(KeyRange::one(&key)));
        }
        if ended.is_empty() {
            return Ok(0);
        }
        let total = self.fitting(total)?;
        let put = ops::put(&base, total.to_string().into(), None);
        request.success.push(put);
        // Whoever lost the race for the base leaves the rest to the winner.
        let answer = self.client.store().txn(request).await?;
        Ok(if answer.succeeded { ended.len() } else { 0 })
    }

    /// Cells whose sessions have ended, as many as one transaction takes in, with their sessions' keys.
    async fn ended<'a>(&self, kvs: &'a [KeyValue]) -> Result<Vec<(&'a KeyValue, Key)>> {
        let space = self.cells();
        let cells = kvs.iter().filter_map(|kv| {
            let lease = parse_lease(space.suffix(&kv.key)?)?;
            Some((kv, session_key(lease)))
        });
        let cells: Vec<_> = cells.collect();
        let most = self.client.store().capabilities().max_txn_ops;
        let mut ended = Vec::new();
        for some in cells.chunks(most.max(1)) {
            let reads = some.iter().map(|(_, session)| {
                let mut read = ops::get(session);
                read.keys_only = true;
                ops::read(read)
            });
            let request = TxnRequest {
                success: reads.collect(),
                ..Default::default()
            };
            let answer = self.client.store().txn(request).await?;
            let gone = |index: &usize| ops::kvs(&answer.responses, *index).is_empty();
            ended.extend(
                (0..some.len())
                    .filter(gone)
                    .map(|index| some[index].clone()),
            );
            if ended.len() >= FOLD_MAX {
                break;
            }
        }
        // Two compares a cell, and one for the base.
        ended.truncate(FOLD_MAX.min(most.saturating_sub(1) / 2));
        Ok(ended)
    }
}

/// Reads what a lease is shown as; `None` for anything else.
fn parse_lease(text: &str) -> Option<LeaseId> {
    let lease = LeaseId(i64::from_str_radix(text, 16).ok()?);
    (lease.to_string() == text).then_some(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_named_by_leases() {
        for lease in [LeaseId(1), LeaseId(0x0069_4d01), LeaseId(-10)] {
            assert_eq!(parse_lease(&lease.to_string()), Some(lease));
        }
        for text in ["", "x", "0f", "+f", "F", "f/1"] {
            assert_eq!(parse_lease(text), None, "{text:?}");
        }
    }
}
