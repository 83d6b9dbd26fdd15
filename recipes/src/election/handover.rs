//! A leader that chooses who comes next. Who leads is decided by the line alone, so nobody can be let
//! pass by the store: the leader names a candidate in a key as it goes, and those that stand before the
//! named one, once their turn has come, go behind it.

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;

use super::Leadership;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::kit::{is_of_recipes, priority_of};
use crate::lock::{Fenced, Holder, queue_of};
use crate::store::ops::{self, Compare};
use crate::wait;
use crate::watch::Change;

/// Where a leader names its successor.
pub(super) fn key(meta: &KeySpace) -> Key {
    meta.key("handover")
}

/// What became of [`Leadership::hand_over`].
#[derive(Debug)]
#[must_use = "a dropped leadership resigns at once"]
pub enum Succession<T> {
    /// The leadership is given up, and the candidate was named.
    Named,
    /// The candidate has gone: this one still leads.
    Gone(Leadership<T>),
    /// Before the candidate stands one that would not let it pass, of etcd's own clients, which know
    /// nothing of this: this one still leads.
    Blocked {
        /// The leadership.
        leadership: Leadership<T>,
        /// The key that stands before.
        by: Key,
    },
}

impl<T> Leadership<T> {
    /// Resigns in favour of a candidate, one of [`Election::candidates`](super::Election::candidates):
    /// candidates that stand before it let it pass.
    ///
    /// Should the successor go as well before it leads, the line goes on as if nobody had been named.
    ///
    /// # Errors
    /// [`Error::Invalid`] for itself; [`Error::Fenced`] when the leadership had been lost before;
    /// [`Error::SessionLost`]; the store's final refusals. It does not lead any more after an error. Trouble
    /// with the store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future resigns, with or without the candidate being named.
    pub async fn hand_over(self, to: &Holder) -> Result<Succession<T>> {
        if to.key == *self.key() {
            // It would delete the key that it names.
            let own = self.key();
            return Err(Error::Invalid(format!("{own} is to hand over to itself")));
        }
        let mut line = ops::oldest(self.space.range(), 0);
        line.keys_only = true;
        let line = wait::read(self.unfenced(), line).await?.kvs;
        let is_to =
            |kv: &&KeyValue| kv.key == *to.key.as_bytes() && kv.create_revision == to.revision.0;
        if !line.iter().any(|kv| is_to(&kv)) {
            return Ok(Succession::Gone(self));
        }
        let mut before = line.iter().take_while(|kv| !is_to(kv));
        let foreign = before.find(|kv| {
            kv.key != *self.key().as_bytes() && !is_of_recipes(&self.space, &kv.key.clone().into())
        });
        if let Some(kv) = foreign {
            return Ok(Succession::Blocked {
                by: kv.key.clone().into(),
                leadership: self,
            });
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
        self.leaves(true);
        let actor = self.session().actor();
        let (answer, repeated) = actor
            .run(|actor| async move { actor.repeat(request).await })
            .await?;
        let own = ops::kvs(&answer.responses, 0).first();
        let leads = own.is_some_and(|kv| kv.create_revision == self.token().revision.0);
        if !answer.succeeded && leads {
            self.leaves(false);
            return Ok(Succession::Gone(self));
        }
        if !answer.succeeded && !repeated {
            return Err(Error::Fenced { owner: None });
        }
        self.forget();
        Ok(Succession::Named)
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
