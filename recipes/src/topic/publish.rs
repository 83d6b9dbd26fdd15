//! Publishing: with a session exactly once, without one at least once.

use bytes::Bytes;
use serde::Serialize;

use super::Topic;
use super::position::{Place, Position};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::kit::{self, Append, Appended, ItemId};
use crate::session::{Effect, Session};

impl<T: Serialize> Topic<T> {
    /// Publishes a message, exactly once although answers get lost. In a topic of several partitions the
    /// messages of a handle go to one after the other; see [`Topic::publish_keyed`].
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another number of partitions; [`Error::Codec`]; [`Error::Invalid`] for a message
    /// that is too large; [`Error::SessionLost`]; [`Error::OutcomeUnknown`] when the session ended with an
    /// answer still to come; the store's final refusals.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome: once or not at all.
    pub async fn publish(&self, session: &Session, value: &T) -> Result<Position> {
        self.agree(Some(session)).await?;
        let message = self.layout.message(None, value)?;
        self.one(session, self.next_partition(), message).await
    }

    /// As [`Topic::publish`], to the partition of this key: messages of the same key are kept in the order in
    /// which they are published.
    ///
    /// # Errors
    /// As [`Topic::publish`].
    ///
    /// # Cancel safety
    /// As [`Topic::publish`].
    pub async fn publish_keyed(&self, session: &Session, key: &str, value: &T) -> Result<Position> {
        self.agree(Some(session)).await?;
        let message = self.layout.message(Some(key), value)?;
        self.one(session, self.partition_of(key), message).await
    }

    /// Publishes messages in this order to one partition, as many in one transaction as fit, each transaction
    /// wholly or not at all. What others publish may come between two transactions.
    ///
    /// # Errors
    /// As [`Topic::publish`]; messages before the one that failed are published.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome for the transaction on its way, and none of the later ones is
    /// sent.
    pub async fn publish_all<'a>(
        &self,
        session: &Session,
        values: impl IntoIterator<Item = &'a T>,
    ) -> Result<Vec<Position>>
    where
        T: 'a,
    {
        self.agree(Some(session)).await?;
        let messages = values
            .into_iter()
            .map(|value| self.layout.message(None, value));
        let messages = messages.collect::<Result<_>>()?;
        self.all(session, self.next_partition(), messages).await
    }

    /// As [`Topic::publish_all`], to the partition of this key.
    ///
    /// # Errors
    /// As [`Topic::publish_all`].
    ///
    /// # Cancel safety
    /// As [`Topic::publish_all`].
    pub async fn publish_all_keyed<'a>(
        &self,
        session: &Session,
        key: &str,
        values: impl IntoIterator<Item = &'a T>,
    ) -> Result<Vec<Position>>
    where
        T: 'a,
    {
        self.agree(Some(session)).await?;
        let messages = values
            .into_iter()
            .map(|value| self.layout.message(Some(key), value));
        let messages = messages.collect::<Result<_>>()?;
        self.all(session, self.partition_of(key), messages).await
    }

    /// Publishes a message without a session, at least once: when an answer gets lost it may come twice.
    ///
    /// # Errors
    /// [`Error::Mismatch`]; [`Error::Codec`]; [`Error::Invalid`]; the store's final refusals. Trouble with the
    /// store is waited out.
    ///
    /// # Cancel safety
    /// Dropping the future is an unknown outcome.
    pub async fn publish_at_least_once(&self, value: &T) -> Result<Position> {
        self.agree(None).await?;
        let partition = self.next_partition();
        let append = Append {
            items: vec![self.layout.message(None, value)?],
            ..Append::default()
        };
        let appended = self.layout.log(partition).append_at_least_once(&append);
        last(positions(partition, appended.await?)?)
    }

    async fn one(&self, session: &Session, partition: u32, message: Bytes) -> Result<Position> {
        last(self.all(session, partition, vec![message]).await?)
    }

    async fn all(
        &self,
        session: &Session,
        partition: u32,
        mut left: Vec<Bytes>,
    ) -> Result<Vec<Position>> {
        let log = self.layout.log(partition);
        let mut published = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let rest = left.split_off(log.fitting(&left, &Effect::default()));
            let append = Append {
                items: left,
                ..Append::default()
            };
            published.extend(positions(partition, log.append(session, &append).await?)?);
            left = rest;
        }
        Ok(published)
    }
}

fn positions(partition: u32, appended: Appended) -> Result<Vec<Position>> {
    let place = |id: ItemId, revision: Revision| Place::of(&kit::Position::new(id, revision));
    match appended {
        Appended::Done { ids, revision } => {
            let places = ids.into_iter().map(|id| place(id, revision));
            Ok(places
                .map(|place| Position::new(partition, place))
                .collect())
        }
        // No condition was given.
        Appended::Refused { .. } => Err(Error::Conflict),
    }
}

fn last(published: Vec<Position>) -> Result<Position> {
    published.into_iter().next_back().ok_or(Error::Conflict)
}
