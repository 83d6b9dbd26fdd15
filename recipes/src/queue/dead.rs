//! Items that were put aside because nobody could do them: looked at, given another chance, or thrown away.

use std::fmt;

use bytes::Bytes;
use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Queue;
use super::bound::Patience;
use super::push::Pushed;
use super::record::{About, DeadRecord, ItemRecord, Layout};
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::kit::ItemId;
use crate::session::{Effect, Session};
use crate::store::ops::{self, Compare};
use crate::value::from_json;

/// How many dead letters are removed in one transaction, at most.
const REMOVED_TOGETHER: usize = 64;

/// An item that was put aside.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeadLetter<T> {
    /// The id that it had in the queue, by which it is named here.
    pub id: ItemId,
    /// The item; or why it cannot be read.
    pub value: std::result::Result<T, String>,
    /// Why it was put aside.
    pub reason: String,
    /// How often it had been taken.
    pub attempts: u32,
    /// When it was put aside, in milliseconds since the Unix epoch by the wall clock of who did.
    pub since_ms: u64,
    /// The revision at which it was put aside.
    pub revision: Revision,
}

/// A dead letter that is to be an item again.
pub(crate) struct Revived {
    /// The item as it is written.
    pub(crate) item: Bytes,
    /// What makes sure that the letter is there, and removes it.
    pub(crate) besides: Effect,
}

impl Layout {
    /// Removes the dead letters that were put aside first, if there are too many by now. What cannot be done is
    /// left to whoever puts the next one aside.
    pub(super) async fn limit_dead_letters(&self) {
        let Some(most) = self.dead_max else { return };
        if let Err(error) = self.remove_oldest_dead_letters(most).await {
            let dead = self.dead_letters();
            tracing::debug!(dead = dead.prefix(), %error, "there may be too many dead letters");
        }
    }

    async fn remove_oldest_dead_letters(&self, most: usize) -> Result<()> {
        let (store, dead) = (self.client.store(), self.dead_letters());
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let page = store.capabilities().max_txn_ops.min(REMOVED_TOGETHER);
        let page = i64::try_from(page).unwrap_or(i64::MAX);
        loop {
            let count = store.range(ops::counting(dead.range())).await?.count;
            let more = count.saturating_sub(most).min(page);
            if more <= 0 {
                return Ok(());
            }
            let mut oldest = ops::oldest(dead.range(), more);
            oldest.keys_only = true;
            let oldest = store.range(oldest).await?.kvs;
            let removals = oldest.iter().map(|kv| {
                let key = Key::from(kv.key.clone());
                let as_seen = Compare::create_revision(&key, Revision(kv.create_revision));
                ops::when(as_seen, ops::delete(KeyRange::one(&key)))
            });
            let request = TxnRequest {
                success: removals.collect(),
                ..TxnRequest::default()
            };
            store.txn(request).await?;
            tracing::warn!(
                dead = dead.prefix(),
                most,
                removed = more,
                "dead letters were removed"
            );
        }
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// The items that were put aside, at most `limit`, those put aside first before the others.
    ///
    /// # Errors
    /// The store's.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter<T>>> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let dead = self.layout.dead_letters();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let request = ops::oldest(dead.range(), limit);
        let found = self.layout.client.store().range(request).await?;
        let letters = found.kvs.iter().filter_map(|kv| {
            let id: ItemId = dead.suffix(&kv.key)?.parse().ok()?;
            Some((id, kv))
        });
        Ok(letters.map(|(id, kv)| DeadLetter::of(id, kv)).collect())
    }
}

impl<T: DeserializeOwned> DeadLetter<T> {
    fn of(id: ItemId, kv: &KeyValue) -> Self {
        let revision = Revision(kv.create_revision);
        match from_json::<DeadRecord<Box<RawValue>>>(&kv.key, &kv.value) {
            Ok(record) => {
                let item = serde_json::from_str::<ItemRecord<T>>(record.item.get());
                Self {
                    id,
                    value: item
                        .map(|item| item.value)
                        .map_err(|error| error.to_string()),
                    reason: record.reason,
                    attempts: record.attempts,
                    since_ms: record.since_ms,
                    revision,
                }
            }
            // It is shown all the same, so that it can be thrown away.
            Err(error) => Self {
                id,
                value: Err(error.to_string()),
                reason: String::new(),
                attempts: 0,
                since_ms: 0,
                revision,
            },
        }
    }
}

impl<T> Queue<T> {
    /// Puts a dead letter back, at the end of the queue, as if it had never been taken. Exactly once. Waits for
    /// room in a queue with a limit. Returns its new id; `None` when there is no such letter, or another item has its unique name by now.
    ///
    /// # Errors
    /// [`Error::Codec`] when the item was never one of a queue; [`Error::SessionLost`];
    /// [`Error::OutcomeUnknown`] when the session ended with an answer still to come; the store's final
    /// refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all.
    pub async fn redrive(&self, session: &Session, id: &ItemId) -> Result<Option<ItemId>> {
        session.belongs_to(&self.layout.client)?;
        let Some(Revived { item, besides }) = self.revived(id).await? else {
            return Ok(None);
        };
        match self.append(session, item, besides, Patience::Wait).await? {
            Pushed::Done(id) => Ok(Some(id)),
            Pushed::Refused => Ok(None),
            Pushed::Full => Err(Error::Conflict),
        }
    }

    /// What a dead letter is put back as; `None` when there is no such letter.
    pub(crate) async fn revived(&self, id: &ItemId) -> Result<Option<Revived>> {
        let layout = &self.layout;
        let key = layout.dead_letter(id);
        let Some(kv) = layout.client.get(&key).await? else {
            return Ok(None);
        };
        let record: DeadRecord<Box<RawValue>> = from_json(&kv.key, &kv.value)?;
        let item = serde_json::from_str::<ItemRecord<Box<RawValue>>>(record.item.get());
        let item = item.map_err(|error| unreadable(&key, &error))?;
        let about = About {
            attempts: 0,
            ..item.about
        };
        let (unique, value) = (about.unique.clone(), item.value);
        let mut besides = Effect {
            when: vec![Compare::mod_revision(&key, Revision(kv.mod_revision))],
            then: vec![ops::delete(KeyRange::one(&key))],
            otherwise: Vec::new(),
        };
        if let Some(name) = unique {
            let name = layout.unique(&name);
            besides.when.push(Compare::absent(&name));
            besides
                .then
                .push(ops::put(&name, id.to_string().into(), None));
        }
        let item = ItemRecord::new(about, value).write(&key)?;
        Ok(Some(Revived { item, besides }))
    }

    /// Throws a dead letter away. Returns whether there was one.
    ///
    /// # Errors
    /// The store's. An ambiguous one may have been done.
    pub async fn discard(&self, id: &ItemId) -> Result<bool> {
        self.layout.client.delete(self.layout.dead_letter(id)).await
    }
}

fn unreadable(key: &Key, error: &impl fmt::Display) -> Error {
    Error::Codec {
        key: key.clone(),
        reason: error.to_string(),
    }
}
