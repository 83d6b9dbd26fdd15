//! Leader election: one leader at a time, who can write only while it leads, and observers who also
//! learn when nobody leads. The layout is that of etcd's Go `concurrency.Election`, so such programs
//! and `etcdctl elect` stand in the same election.

mod handover;
mod leadership;
mod observe;
mod selector;

use std::fmt;
use std::marker::PhantomData;

use futures::stream::BoxStream;
use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;
use serde::de::value::StringDeserializer;
use serde::de::{DeserializeOwned, IntoDeserializer};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{EPOCH_KEY, Key, KeySpace, LeaseId, Name, Revision};
use crate::kit::{Contender, Line};
use crate::lock::{Epoch, FencingToken, Hold, Holder, ReleaseRequest, ask_first, queue_of};
use crate::session::Session;
use crate::store::ops;
use crate::value::Json;

pub use handover::Succession;
pub use leadership::Leadership;

/// An election. A handle: cheap to clone, holds nothing. `T` is what a leader tells the others
/// about itself, written as JSON.
///
/// Costs: an uncontended campaign is one transaction; a wait is one watch and, a wake-up, one more
/// transaction; each observer is one watch.
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// let session = client.session().await?;
/// let leadership = client.election("primary").campaign(&session, "node-1".to_owned()).await?;
/// leadership.put("primary/state", "ready").await?; // refused by the store if no longer leader
/// leadership.resign().await?;
/// # Ok(()) }
/// ```
pub struct Election<T> {
    client: Client,
    space: KeySpace,
    meta: KeySpace,
    priority: u32,
    value: PhantomData<fn(T) -> T>,
}

/// Who leads, and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader<T> {
    /// What the leader said about itself when it campaigned or last proclaimed.
    pub value: T,
    /// The token of its leadership: a later leader has a larger one.
    pub token: FencingToken,
    /// Its contender key.
    pub key: Key,
    /// The lease that the key is attached to.
    pub lease: LeaseId,
    /// The revision at which the value was written.
    pub proclaimed: Revision,
}

impl<T> Election<T> {
    pub(crate) fn new(client: Client, name: &Name) -> Self {
        Self {
            client,
            space: name.space("election"),
            meta: name.meta("election"),
            priority: 0,
            value: PhantomData,
        }
    }

    /// What candidates made by this handle count for: a leader can see who counts for more
    /// ([`Leadership::outranked`]) and hand over to it. It does not change the order of the line by
    /// itself. Default: 0.
    #[must_use]
    pub fn with_priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    fn line(&self) -> Line {
        Line::of(&self.space)
            .with_handover(handover::key(&self.meta))
            .with_priority(self.priority)
    }

    fn leadership(&self, hold: Hold, value: T) -> Leadership<T> {
        Leadership::new(hold, self.space.clone(), self.meta.clone(), value)
    }

    /// Asks whoever leads to resign; `None` when nobody does. A leader hears it that waits for
    /// [`Leadership::resignation_requested`]; nobody is forced. The request stands until it is dropped.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; the store's.
    ///
    /// # Cancel safety
    /// Dropping the future takes the request back.
    pub async fn request_resignation(
        &self,
        session: &Session,
        reason: impl Into<String>,
    ) -> Result<Option<ReleaseRequest>> {
        session.belongs_to(&self.client)?;
        ask_first(session, self.space.range(), &reason.into()).await
    }

    /// The key prefix, as a Go program passes it to `NewElection`, and a shell to `etcdctl elect`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.space.prefix()
    }

    /// The leader and those who wait to become it, in order, at most `limit` of them.
    ///
    /// # Errors
    /// The store's.
    pub async fn candidates(&self, limit: usize) -> Result<Vec<Holder>> {
        queue_of(&self.client, self.space.range(), limit).await
    }
}

impl<T: Serialize> Election<T> {
    /// Stands in line until elected. A last transaction confirms the turn at one revision, own key
    /// included, before this returns: nobody is told to lead whose key is gone.
    ///
    /// # Errors
    /// [`Error::SessionLost`] at once when the session is lost while waiting; [`Error::Removed`]
    /// when somebody deleted the candidate's key; [`Error::ForeignKey`] when a key in front belongs
    /// to no candidate; [`Error::Codec`]; the store's final refusals. Trouble with the store is
    /// waited out.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the candidate, also while its key is still on the way to the
    /// store. The next call stands at the end of the line.
    pub async fn campaign(&self, session: &Session, value: T) -> Result<Leadership<T>> {
        session.belongs_to(&self.client)?;
        let contender = Contender::enter(session, self.line(), Json(&value)).await?;
        Ok(self.leadership(contender.wait_turn().await?, value))
    }

    /// Is elected if there is no candidate; writes nothing otherwise.
    ///
    /// # Errors
    /// [`Error::SessionLost`]; [`Error::Codec`]; the store's final refusals.
    ///
    /// # Cancel safety
    /// As [`Election::campaign`].
    pub async fn try_campaign(&self, session: &Session, value: T) -> Result<Option<Leadership<T>>> {
        session.belongs_to(&self.client)?;
        let hold = Contender::try_enter(session, self.line(), Json(&value)).await?;
        Ok(hold.map(|hold| self.leadership(hold, value)))
    }
}

impl<T: DeserializeOwned> Election<T> {
    /// Who leads now. Needs no session.
    ///
    /// # Errors
    /// [`Error::Codec`] when the leader's value is not a `T`; the store's.
    pub async fn leader(&self) -> Result<Option<Leader<T>>> {
        let request = TxnRequest {
            success: vec![
                ops::read(ops::oldest(self.space.range(), 1)),
                ops::read(ops::get(EPOCH_KEY)),
            ],
            ..Default::default()
        };
        let answer = self.client.store().txn(request).await?;
        let epoch = Epoch::read(ops::kvs(&answer.responses, 1).first())?;
        let first = ops::kvs(&answer.responses, 0).first();
        first.map(|kv| Leader::of(kv, epoch.number())).transpose()
    }

    /// Follows who leads: the state now first, then each change of leader or of what it says, and
    /// `None` whenever nobody leads. Needs no session.
    ///
    /// The stream goes on through lost connections and compactions. Changes that happened while it
    /// was cut off may be skipped; tokens never go back, unless an operator puts the store back to
    /// an older state without raising its epoch. It ends only after a final refusal of the store,
    /// which it yields first. A value that is not a `T` is an item with [`Error::Codec`], and the
    /// stream goes on.
    ///
    /// # Cancel safety
    /// Nothing is lost when a wait for the next item is dropped. Dropping the stream closes its
    /// watch.
    #[must_use]
    pub fn observe(&self) -> BoxStream<'static, Result<Option<Leader<T>>>>
    where
        T: Send + 'static,
    {
        Box::pin(observe::stream(self.client.clone(), self.space.range()))
    }
}

impl<T: DeserializeOwned> Leader<T> {
    fn of(kv: &KeyValue, epoch: u64) -> Result<Self> {
        Ok(Self {
            value: read_value(kv)?,
            token: FencingToken {
                epoch,
                revision: Revision(kv.create_revision),
            },
            key: kv.key.clone().into(),
            lease: LeaseId(kv.lease),
            proclaimed: Revision(kv.mod_revision),
        })
    }
}

/// Reads JSON, or plain text, which is what other programs write, as a string.
fn read_value<T: DeserializeOwned>(kv: &KeyValue) -> Result<T> {
    let json = serde_json::from_slice(&kv.value);
    json.or_else(|error| {
        let text = String::from_utf8_lossy(&kv.value).into_owned();
        let text: StringDeserializer<serde::de::value::Error> = text.into_deserializer();
        T::deserialize(text).map_err(|_| Error::Codec {
            key: kv.key.clone().into(),
            reason: error.to_string(),
        })
    })
}

impl<T> Clone for Election<T> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            space: self.space.clone(),
            meta: self.meta.clone(),
            priority: self.priority,
            value: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Election<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election")
            .field("prefix", &self.prefix())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(value: &str) -> KeyValue {
        KeyValue {
            key: "e/1".into(),
            value: value.to_owned().into(),
            ..Default::default()
        }
    }

    #[test]
    fn plain_text_of_other_programs_is_read_as_a_string() {
        assert_eq!(read_value::<String>(&kv("\"ours\"")).unwrap(), "ours");
        assert_eq!(read_value::<String>(&kv("theirs")).unwrap(), "theirs");
        assert_eq!(read_value::<String>(&kv("42")).unwrap(), "42");
        assert_eq!(read_value::<u32>(&kv("42")).unwrap(), 42);
        assert!(matches!(
            read_value::<u32>(&kv("theirs")),
            Err(Error::Codec { .. })
        ));
    }
}
