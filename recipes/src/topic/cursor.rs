//! How far a group is in one partition: a key that only the owner of the partition moves, and only forward.

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;

use super::locate::{Locator, Spot};
use super::position::{Place, Start};
use super::record::{CursorRecord, Layout};
use crate::assign::Partition;
use crate::error::{Error, Result, TxnError};
use crate::keys::{Key, Revision};
use crate::register::read;
use crate::session::Session;
use crate::store::ops::{self, Compare};
use crate::txn::Txn;

/// A cursor as last known.
#[derive(Debug)]
pub(super) struct Cursor {
    key: Key,
    spot: Spot,
    /// The revision at which it was written; `None`: not known, since an answer was not waited for.
    at: Option<Revision>,
}

impl Cursor {
    /// The cursor of a group in a partition, made at `start` if there is none.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; [`Error::Codec`]; the store's final refusals. Trouble with the store is waited
    /// out.
    pub(super) async fn open(
        layout: &Layout,
        group: &str,
        partition: u32,
        start: &Start,
        session: &Session,
    ) -> Result<Self> {
        let key = layout.cursor(group, partition);
        if let Some(kv) = read(&layout.client, &key, Some(session)).await? {
            return Self::of(&key, &kv);
        }
        let spot = Locator { layout, partition }.find(start).await?;
        let record = CursorRecord::new(&spot.place, spot.passed);
        let request = TxnRequest {
            compare: vec![Compare::absent(&key).into()],
            success: vec![ops::put(&key, record.write(&key)?, None)],
            failure: vec![ops::read(ops::get(&key))],
        };
        // A copy that comes late finds it there.
        let answer = session
            .actor()
            .run(|actor| async move { Ok(actor.repeat(request).await?.0) });
        let answer = answer.await?;
        match ops::kvs(&answer.responses, 0).first() {
            Some(kv) => Self::of(&key, kv),
            None => Ok(Self {
                key,
                spot,
                at: Some(Revision(answer.header.map_or(0, |header| header.revision))),
            }),
        }
    }

    fn of(key: &Key, kv: &KeyValue) -> Result<Self> {
        let record = CursorRecord::read(kv)?;
        Ok(Self {
            key: key.clone(),
            spot: Spot {
                place: record.place(),
                passed: record.passed,
            },
            at: Some(Revision(kv.mod_revision)),
        })
    }

    pub(super) fn spot(&self) -> &Spot {
        &self.spot
    }

    /// Moves it on to `to`, together with what `txn` does, as long as the partition is held. Returns whether
    /// it did: false when it was there or further before, and nothing was written.
    ///
    /// # Errors
    /// [`TxnError::Fenced`] when the partition, or another guard of `txn`, is not held any more;
    /// [`TxnError::Conflict`] when a condition of `txn` does not hold; [`Error::Removed`] when the group was
    /// forgotten; as [`Lane::apply`](crate::kit::Lane::apply).
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all.
    pub(super) async fn advance(
        &mut self,
        to: &Spot,
        txn: &Txn,
        partition: &Partition,
    ) -> Result<bool, TxnError> {
        let session = partition.session();
        loop {
            let at = match self.at {
                Some(at) => at,
                None => self.look(session).await?,
            };
            if self.spot.place >= to.place {
                return Ok(false);
            }
            // Until it is answered.
            self.at = None;
            let record = CursorRecord::new(&to.place, to.passed).write(&self.key)?;
            let moved = txn
                .clone()
                .guard(partition)
                .when(Compare::mod_revision(&self.key, at))
                .otherwise(ops::get(&self.key))
                .own([ops::put(&self.key, record, None)])
                .commit_once(session)
                .await;
            match moved {
                Ok(revision) => {
                    self.spot = to.clone();
                    self.at = Some(revision);
                    return Ok(true);
                }
                Err(TxnError::Conflict {
                    revision,
                    mut responses,
                }) => {
                    let found = responses.split_off(responses.len().saturating_sub(1));
                    let found = ops::kvs(&found, 0).first();
                    *self = self.found(found)?;
                    if self.at == Some(at) {
                        return Err(TxnError::Conflict {
                            revision,
                            responses,
                        });
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads it again.
    async fn look(&mut self, session: &Session) -> Result<Revision> {
        let found = read(session.client(), &self.key, Some(session)).await?;
        *self = self.found(found.as_ref())?;
        self.at.ok_or_else(|| Error::Removed(self.key.clone()))
    }

    fn found(&self, kv: Option<&KeyValue>) -> Result<Self> {
        let kv = kv.ok_or_else(|| Error::Removed(self.key.clone()))?;
        Self::of(&self.key, kv)
    }
}

/// Whether a place is one that this group has come to.
pub(super) fn is_behind(place: &Place, delivered: Option<&Spot>) -> bool {
    delivered.is_some_and(|delivered| *place <= delivered.place)
}
