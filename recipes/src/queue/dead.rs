//! Items that were put aside because nobody could do them: looked at, given another chance, or thrown away.

use std::fmt;

use quorate_proto::mvccpb::KeyValue;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Queue;
use super::bound::Patience;
use super::push::Pushed;
use super::record::{About, DeadRecord, ItemRecord};
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, Revision};
use crate::kit::ItemId;
use crate::session::{Effect, Session};
use crate::store::ops::{self, Compare};
use crate::value::from_json;

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
        let layout = &self.layout;
        session.belongs_to(&layout.client)?;
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
        match self.append(session, item, besides, Patience::Wait).await? {
            Pushed::Done(id) => Ok(Some(id)),
            Pushed::Refused => Ok(None),
            Pushed::Full => Err(Error::Conflict),
        }
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
