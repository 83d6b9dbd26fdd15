//! A leader that chooses who comes next. Who leads is decided by the line alone, so nobody can be let
//! pass by the store: the leader names a candidate in a key as it goes, and those that stand before the
//! named one, once their turn has come, go behind it.

use quorate_proto::etcdserverpb::TxnRequest;

use super::Leadership;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::kit::{is_of_recipes, priority_of};
use crate::lock::{Fenced, Holder, queue_of};
use crate::store::ops::{self, Compare};
use crate::watch::Change;

/// Where a leader names its successor.
pub(super) fn key(meta: &KeySpace) -> Key {
    meta.key("handover")
}

impl<T> Leadership<T> {
    /// Resigns in favour of a candidate, one of [`Election::candidates`](super::Election::candidates):
    /// candidates that stand before it let it pass. `Some`: that candidate has gone, and this one still
    /// leads.
    ///
    /// Should the successor go as well before it leads, the line goes on as if nobody had been named.
    ///
    /// # Errors
    /// [`Error::ForeignAhead`] when a candidate that would not let it pass, one of etcd's own clients,
    /// stands before it; [`Error::Fenced`] when the leadership had been lost before;
    /// [`Error::SessionLost`]; the store's final refusals. It does not lead any more after an error.
    ///
    /// # Cancel safety
    /// Dropping the future resigns, with or without the candidate being named.
    pub async fn hand_over(self, to: &Holder) -> Result<Option<Self>> {
        let queue = queue_of(self.unfenced(), self.space.range(), usize::MAX).await?;
        let before = queue.iter().take_while(|each| each.key != to.key);
        let foreign = before
            .filter(|each| each.key != *self.key())
            .find(|each| !is_of_recipes(&self.space, &each.key));
        if let Some(foreign) = foreign {
            return Err(Error::ForeignAhead(foreign.key.clone()));
        }
        let mut compare = self.fence().compares();
        compare.push(Compare::create_revision(&to.key, to.revision));
        let request = TxnRequest {
            compare: compare.into_iter().map(Into::into).collect(),
            success: vec![
                ops::put(key(&self.meta), to.key.as_bytes().clone(), None),
                ops::delete(KeyRange::one(self.key())),
            ],
            failure: vec![ops::read(ops::get(self.key()))],
        };
        let actor = self.session().actor();
        let (answer, repeated) = actor
            .run(|actor| async move { actor.repeat(request).await })
            .await?;
        let own = ops::kvs(&answer.responses, 0).first();
        let leads = own.is_some_and(|kv| kv.create_revision == self.token().revision.0);
        if !answer.succeeded && leads {
            return Ok(Some(self));
        }
        if !answer.succeeded && !repeated {
            return Err(Error::Fenced { owner: None });
        }
        self.forget();
        Ok(None)
    }

    /// Waits for a candidate of a higher priority, and tells the one of the highest; of several, the one
    /// that came first.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn outranked(&self) -> Result<Holder> {
        let own = priority_of(self.key());
        let mut watcher = self.unfenced().watch(self.space.range());
        loop {
            let batch = watcher.next().await?;
            let news = batch.changes.iter().any(|change| match change {
                Change::Put { kv, .. } => priority_of(&kv.key.clone().into()) > own,
                Change::Delete { .. } => false,
            });
            if !news {
                continue;
            }
            let better = watcher.known().values().filter_map(|kv| {
                let priority = priority_of(&kv.key.clone().into());
                let order = (priority, std::cmp::Reverse(kv.create_revision));
                (priority > own).then_some((order, Revision(kv.create_revision), &kv.key))
            });
            let Some((_, revision, key)) = better.max_by_key(|(order, ..)| *order) else {
                continue;
            };
            // As it is listed, with what its session says; unless it has gone meanwhile.
            let key = Key::from(key.clone());
            let found = queue_of(self.unfenced(), KeyRange::one(&key), 1).await?;
            let found = found.into_iter().find(|holder| holder.revision == revision);
            if let Some(holder) = found {
                return Ok(holder);
            }
        }
    }
}
