//! One key changed by compare-and-swap, exactly once although answers get lost: under counters, the
//! cells of adders, and latches. What was seen last is remembered, so that who changes it alone needs
//! one round trip.

use std::sync::Arc;

use bytes::Bytes;
use quorate_proto::mvccpb::KeyValue;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, Revision};
use crate::session::{Effect, Effected, Session};
use crate::store::{ops, ops::Compare};
use crate::wait::Backoff;

/// What was last seen of a key. Clones share it, and change the key one after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Register {
    seen: Arc<tokio::sync::Mutex<Option<Seen>>>,
}

#[derive(Debug, Clone)]
struct Seen {
    key: Key,
    /// `None`: absent.
    value: Option<Bytes>,
    /// The mod revision; 0: absent.
    at: Revision,
}

impl Seen {
    fn of(key: &Key, kv: Option<&KeyValue>) -> Self {
        Self {
            key: key.clone(),
            value: kv.map(|kv| kv.value.clone()),
            at: Revision(kv.map_or(0, |kv| kv.mod_revision)),
        }
    }
}

/// What to do, given the key's value.
#[derive(Debug)]
pub(crate) enum Step<T> {
    /// Write this, if the value still is the one given; and what the caller is told then.
    Write(Bytes, T),
    /// Leave it as it is.
    Leave(T),
}

impl Register {
    /// Changes the key as `step` says, asked again with the newer value each time somebody else was
    /// faster. There is no limit on how often that may happen.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a session of another store; those of `step` for the value now; as [`Lane::apply`](crate::kit::Lane::apply).
    ///
    /// # Cancel safety
    /// The attempt in progress goes on when the future is dropped, and is the last.
    pub(crate) async fn update<T>(
        &self,
        client: &Client,
        session: &Session,
        key: &Key,
        mut step: impl FnMut(Option<&Bytes>) -> Result<Step<T>>,
    ) -> Result<T> {
        session.belongs_to(client)?;
        let mut pause = Backoff::contended(client);
        // Those who share the handle wait here instead of beating one another at the store.
        let mut memory = self.seen.lock().await;
        let mut remembered = memory.take().filter(|seen| seen.key == *key);
        let mut fresh: Option<Seen> = None;
        loop {
            let from_memory = fresh.is_none() && remembered.is_some();
            let seen = match (fresh.take(), remembered.take()) {
                (Some(seen), _) | (None, Some(seen)) => seen,
                (None, None) => Seen::of(key, read(client, key, Some(session)).await?.as_ref()),
            };
            let (value, told) = match step(seen.value.as_ref()) {
                // It decided on what may be old: look.
                Ok(Step::Leave(_)) | Err(_) if from_memory => continue,
                Ok(Step::Leave(told)) => {
                    *memory = Some(seen);
                    return Ok(told);
                }
                Err(error) => return Err(error),
                Ok(Step::Write(value, told)) => (value, told),
            };
            let effect = Effect {
                when: vec![Compare::mod_revision(key, seen.at)],
                then: vec![ops::put(key, value.clone(), None)],
                otherwise: vec![ops::read(ops::get(key))],
            };
            match session.actor().apply(effect).await? {
                Effected::Applied { revision, .. } => {
                    *memory = Some(Seen {
                        key: key.clone(),
                        value: Some(value),
                        at: revision,
                    });
                    return Ok(told);
                }
                Effected::Refused { responses, .. } => {
                    fresh = Some(Seen::of(key, ops::kvs(&responses, 0).first()));
                    if !from_memory {
                        pause.pause().await;
                        // After a pause what was read is old: better one read than one more refusal.
                        fresh = None;
                    }
                }
            }
        }
    }
}

/// Reads a key, waiting trouble with the store out, for as long as the session lives if there is one.
///
/// # Errors
/// [`Error::SessionLost`]; the store's final refusals.
pub(crate) async fn read(
    client: &Client,
    key: &Key,
    session: Option<&Session>,
) -> Result<Option<KeyValue>> {
    let mut pause = Backoff::between_attempts(client);
    loop {
        match client.get(key).await {
            Err(Error::Store(error)) if error.is_transient() => {
                session.map_or(Ok(()), Session::check)?;
                pause.pause().await;
            }
            outcome => return outcome,
        }
    }
}
