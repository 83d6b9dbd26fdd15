//! Putting items into a queue.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::Queue;
use super::bound::{Bound, Entry, Patience};
use super::record::{About, ITEM_BYTES_SPARE, ItemRecord};
use crate::error::{Error, Result};
use crate::keys::Key;
use crate::kit::{Append, Appended, ItemId};
use crate::session::{Effect, Effected, Session};
use crate::store::ops::{self, Compare};
use crate::wait::Backoff;

impl<T: Serialize> Queue<T> {
    /// Pushes an item, exactly once although answers get lost. Waits for room in a queue with a limit.
    ///
    /// # Errors
    /// [`Error::Codec`]; [`Error::Invalid`] for an item that is too large; [`Error::Mismatch`] when the queue
    /// has another limit than this handle; [`Error::SessionLost`]; [`Error::OutcomeUnknown`] when the session
    /// ended with an answer still to come; the store's final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all. Who waited for room gives the place up.
    pub async fn push(&self, session: &Session, value: &T) -> Result<ItemId> {
        let item = self.item(value, About::now())?;
        let pushed = self.append(session, item, Effect::default(), Patience::Wait);
        match pushed.await? {
            Pushed::Done(id) => Ok(id),
            Pushed::Refused | Pushed::Full => Err(Error::Conflict),
        }
    }

    /// As [`Queue::push`], without waiting: `None`, and nothing is pushed, when the queue is as full as it may
    /// be, or others wait for room.
    ///
    /// # Errors
    /// As [`Queue::push`].
    ///
    /// # Cancel safety
    /// As [`Queue::push`].
    pub async fn try_push(&self, session: &Session, value: &T) -> Result<Option<ItemId>> {
        let item = self.item(value, About::now())?;
        let pushed = self.append(session, item, Effect::default(), Patience::Now);
        match pushed.await? {
            Pushed::Done(id) => Ok(Some(id)),
            Pushed::Full => Ok(None),
            Pushed::Refused => Err(Error::Conflict),
        }
    }

    /// Pushes items in this order, as many in one transaction as fit, each transaction wholly or not at all.
    /// What others push may come between two transactions. Waits for room in a queue with a limit.
    ///
    /// # Errors
    /// As [`Queue::push`]; items before the one that failed are in the queue.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome for the transaction on its way, and none of the later ones
    /// is sent.
    pub async fn push_all<'a>(
        &self,
        session: &Session,
        values: impl IntoIterator<Item = &'a T>,
    ) -> Result<Vec<ItemId>>
    where
        T: 'a,
    {
        let items = values
            .into_iter()
            .map(|value| self.item(value, About::now()));
        let items: Vec<Bytes> = items.collect::<Result<_>>()?;
        let mut pushed = Vec::with_capacity(items.len());
        while pushed.len() < items.len() {
            let left = &items[pushed.len()..];
            let besides = Effect::default();
            let some = self.append_some(session, left, &besides, Patience::Wait);
            let Some(Appended::Done { ids, .. }) = some.await? else {
                return Err(Error::Conflict);
            };
            pushed.extend(ids);
        }
        Ok(pushed)
    }

    /// Pushes an item without a session, at least once: when an answer gets lost it may come twice. Not for a
    /// queue with a limit, which asks for a place in the line of those who wait.
    ///
    /// # Errors
    /// [`Error::Codec`]; [`Error::Invalid`] for an item that is too large, or by a handle with a limit;
    /// [`Error::Mismatch`] when the queue has a limit; the store's final refusals. Trouble with the store is
    /// waited out.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome.
    pub async fn push_at_least_once(&self, value: &T) -> Result<ItemId> {
        let Bound::None = self.bound else {
            let why = "a queue with a limit is pushed to with a session";
            return Err(Error::Invalid(why.to_owned()));
        };
        let entry = Entry::unlimited(&self.layout);
        let append = Append {
            items: vec![self.item(value, About::now())?],
            besides: entry.with(&Effect::default()),
        };
        match self.layout.log.append_at_least_once(&append).await? {
            Appended::Done { ids, .. } => Ok(first(ids)),
            Appended::Refused { responses } => {
                entry.let_in(&responses)?;
                Err(Error::Conflict)
            }
        }
    }

    /// Pushes an item unless one of this name is in the queue, waits to enter it, or is being worked at.
    /// Returns its id; `None` when there is one. Waits for room in a queue with a limit.
    ///
    /// # Errors
    /// As [`Queue::push`].
    ///
    /// # Cancel safety
    /// As [`Queue::push`].
    pub async fn push_unique(
        &self,
        session: &Session,
        name: &str,
        value: &T,
    ) -> Result<Option<ItemId>> {
        let about = About {
            unique: Some(name.to_owned()),
            ..About::now()
        };
        let key = self.layout.unique(name);
        let besides = Effect {
            when: vec![Compare::absent(&key)],
            then: vec![ops::put(&key, Bytes::new(), None)],
            otherwise: Vec::new(),
        };
        let item = self.item(value, about)?;
        match self.append(session, item, besides, Patience::Wait).await? {
            Pushed::Done(id) => Ok(Some(id)),
            Pushed::Refused => Ok(None),
            Pushed::Full => Err(Error::Conflict),
        }
    }

    /// Pushes an item that enters the queue, at its end, after this time: by the wall clock of whichever
    /// consumer sees to it, and only while there is a consumer. Returns the key that it waits under, which
    /// may be deleted until then. Waits for room in a queue with a limit, where it counts from now on.
    ///
    /// # Errors
    /// As [`Queue::push`].
    ///
    /// # Cancel safety
    /// As [`Queue::push`].
    pub async fn push_after(&self, session: &Session, delay: Duration, value: &T) -> Result<Key> {
        let layout = &self.layout;
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let due_ms = layout.client.wall_millis().saturating_add(delay_ms);
        let key = layout.delayed_item(due_ms, &layout.client.nonce());
        let besides = Effect {
            then: vec![ops::put(&key, self.item(value, About::now())?, None)],
            ..Effect::default()
        };
        let mut pause = Backoff::contended(&layout.client);
        loop {
            let entry = self.bound.enter(layout, session, Patience::Wait).await?;
            let entry = entry.ok_or(Error::Conflict)?;
            match session.actor().apply(entry.with(&besides)).await? {
                Effected::Applied { revision, .. } => {
                    entry.done(revision, 1);
                    return Ok(key);
                }
                Effected::Refused { responses, .. } => {
                    entry.let_in(&responses)?;
                }
            }
            pause.pause().await;
        }
    }

    /// An item as it is written.
    pub(crate) fn written(&self, value: &T) -> Result<Bytes> {
        self.item(value, About::now())
    }

    fn item(&self, value: &T, about: About) -> Result<Bytes> {
        let key = self.key_of.as_ref().map(|key_of| key_of(value));
        let about = About { key, ..about };
        let item = ItemRecord::new(about, value).write(&self.layout.log.head_key())?;
        let limit = self.layout.client.store().capabilities().max_request_bytes;
        let most = limit.saturating_sub(ITEM_BYTES_SPARE);
        if item.len() > most {
            // It could be taken, and not be moved.
            let bytes = item.len();
            return Err(Error::Invalid(format!(
                "an item of {bytes} bytes; at most {most}"
            )));
        }
        Ok(item)
    }
}

/// What became of one item.
pub(super) enum Pushed {
    Done(ItemId),
    /// A condition besides did not hold.
    Refused,
    /// There is no room.
    Full,
}

impl<T> Queue<T> {
    /// Appends one item, together with something besides.
    pub(super) async fn append(
        &self,
        session: &Session,
        item: Bytes,
        besides: Effect,
        patience: Patience,
    ) -> Result<Pushed> {
        let items = [item];
        let appended = self.append_some(session, &items, &besides, patience);
        Ok(match appended.await? {
            Some(Appended::Done { ids, .. }) => Pushed::Done(first(ids)),
            Some(Appended::Refused { .. }) => Pushed::Refused,
            None => Pushed::Full,
        })
    }

    /// Appends as many of the items, from the first on, as fit and as there is room for; at least one. `None`
    /// when there is no room.
    async fn append_some(
        &self,
        session: &Session,
        items: &[Bytes],
        besides: &Effect,
        patience: Patience,
    ) -> Result<Option<Appended>> {
        let log = &self.layout.log;
        let mut pause = Backoff::contended(&self.layout.client);
        loop {
            let entry = self.bound.enter(&self.layout, session, patience).await?;
            let Some(entry) = entry else { return Ok(None) };
            let besides = entry.with(besides);
            let fitting = log.fitting(items, &besides).min(entry.items());
            let append = Append {
                items: items[..fitting].to_vec(),
                besides,
            };
            let appended = log.append(session, &append).await?;
            match &appended {
                Appended::Done { ids, revision } => {
                    entry.done(*revision, ids.len());
                    return Ok(Some(appended));
                }
                Appended::Refused { responses } => {
                    if entry.let_in(responses)? {
                        return Ok(Some(appended));
                    }
                }
            }
            pause.pause().await;
        }
    }
}

fn first(ids: Vec<ItemId>) -> ItemId {
    ids.into_iter().next().expect("an id for each item")
}
