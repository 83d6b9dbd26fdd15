//! Compute once, share: the first who needs a result computes it, everybody else waits for it and
//! gets the same. [`OnceCell`] is what users hold; `manifest` is what is stored, `attempt` publishes
//! under the turn of a line of candidates, `fetch` reads and verifies.

mod attempt;
mod fetch;
mod manifest;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::attempt::Attempt;
use self::fetch::Fetched;
use self::manifest::Manifest;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::kit::Contender;
use crate::lock::{ContenderRecord, Holder, queue_of};
use crate::session::Session;
use crate::store::ops::{self, Compare};
use crate::value::Json;
use crate::wait::{self, Backoff};

/// Default limit on a result's size as JSON.
const BYTES_MAX: usize = 64 << 20;

impl Client {
    /// The result of this name, to be computed once: `client.once::<Report>("daily/2026-11-23")`.
    #[must_use]
    pub fn once<T>(&self, name: impl Into<String>) -> OnceCell<T> {
        OnceCell {
            client: self.clone(),
            space: KeySpace::of("once", &name.into()),
            bytes_max: BYTES_MAX,
            info: String::new(),
            known: Arc::default(),
        }
    }
}

/// A result that is computed once and shared. A handle: cheap to clone; it remembers the last result
/// it has seen, shared with its clones. `T` is written as JSON.
///
/// At most one result is published at a time, and whoever gets one gets that. The computation itself
/// may run more than once: when the process dies, or loses its turn, before it has published, the next
/// candidate computes anew.
///
/// ```no_run
/// # async fn sum() -> Result<u64, std::io::Error> { Ok(42) }
/// # async fn example(client: quorate_recipes::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let session = client.session().await?;
/// let report = client.once::<u64>("daily/2026-11-23");
/// let total = report.get_or_try_init(&session, || async { sum().await }).await?;
/// # Ok(()) }
/// ```
pub struct OnceCell<T> {
    client: Client,
    space: KeySpace,
    bytes_max: usize,
    info: String,
    known: Arc<Mutex<Option<Known<T>>>>,
}

/// A result that was seen.
struct Known<T> {
    manifest: Manifest,
    value: Arc<T>,
}

/// A result that is published, without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The revision at which it was published: what [`OnceCell::invalidate`] asks for.
    pub revision: Revision,
    /// Its size as JSON; `None` when what is stored does not say: it is damaged, or was written by a
    /// later version of this crate. It can be taken back all the same.
    pub bytes: Option<u64>,
}

/// How [`OnceCell::get_or_try_init`] fails.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError<E> {
    /// This caller's computation failed. The next candidate computes.
    #[error("{0}")]
    Init(E),
    /// Everything else.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl<T> OnceCell<T> {
    /// The largest result, in bytes of its JSON: a larger one is refused before anything is written,
    /// and not read into memory if somebody else has published it. Default: 64 MiB.
    #[must_use]
    pub fn bytes_max(mut self, bytes_max: usize) -> Self {
        self.bytes_max = bytes_max;
        self
    }

    /// What [`OnceCell::computing`] shows for computations by this handle.
    #[must_use]
    pub fn with_info(mut self, info: impl Into<String>) -> Self {
        self.info = info.into();
        self
    }

    /// The prefix of the result's keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.space.prefix()
    }

    fn manifest_key(&self) -> Key {
        self.space.key("manifest")
    }

    fn turns(&self) -> KeySpace {
        self.space.child("turn")
    }

    fn chunks(&self) -> KeySpace {
        self.space.child("chunk")
    }

    fn remember(&self, manifest: Manifest, value: &Arc<T>) {
        let value = Arc::clone(value);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Known { manifest, value });
    }

    fn known(&self, manifest: &Manifest) -> Option<Arc<T>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.as_ref().filter(|known| known.manifest == *manifest);
        same.map(|known| Arc::clone(&known.value))
    }

    /// Who computes now, and since when: the first in the line of candidates. `None` when nobody
    /// wants to.
    ///
    /// # Errors
    /// The store's.
    pub async fn computing(&self) -> Result<Option<Holder>> {
        let line = queue_of(&self.client, self.turns().range(), 1).await?;
        Ok(line.into_iter().next())
    }

    /// What is published, without reading it; also what cannot be read.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    pub async fn published(&self) -> Result<Option<Published>> {
        let answer = wait::read(&self.client, ops::get(self.manifest_key())).await?;
        let published = |kv: &KeyValue| Published {
            revision: Revision(kv.mod_revision),
            bytes: Manifest::read(kv).ok().map(|manifest| manifest.bytes),
        };
        Ok(answer.kvs.first().map(published))
    }

    /// Takes back the result that was published at `revision`, so that the next who needs one computes
    /// anew. Another one, published since, stays; so a copy of this call, late on the way, does no
    /// harm. Handles that remember the old result ask the store before they give it out.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, it may still be taken back.
    pub async fn invalidate(&self, revision: Revision) -> Result<()> {
        if revision.0 <= 0 {
            return Err(Error::Invalid(format!("revision {revision} of a result")));
        }
        let manifest = self.manifest_key();
        // While a manifest is there nobody writes chunks: all of them are of this result, or left over.
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(&manifest, revision).into()],
            success: vec![
                ops::delete(KeyRange::one(&manifest)),
                ops::delete(self.chunks().range()),
            ],
            failure: Vec::new(),
        };
        wait::repeat(&self.client, request).await?;
        Ok(())
    }
}

impl<T: DeserializeOwned> OnceCell<T> {
    /// The result, if one is published.
    ///
    /// # Errors
    /// [`Error::Codec`], naming the key, when what is stored is not what was published, or not a `T`;
    /// [`Error::Invalid`] when it is larger than this handle's limit; the store's final refusals.
    /// Trouble with the store is waited out.
    pub async fn get(&self) -> Result<Option<Arc<T>>> {
        Ok(match fetch::fetch(self).await? {
            Fetched::Found(value) => Some(value),
            Fetched::Nothing { .. } => None,
        })
    }

    /// Waits for a result, without computing one. Needs no session.
    ///
    /// # Errors
    /// As [`OnceCell::get`].
    pub async fn wait(&self) -> Result<Arc<T>> {
        let mut pause = Backoff::between_attempts(&self.client);
        let manifest = KeyRange::one(self.manifest_key());
        loop {
            let seen = match fetch::fetch(self).await? {
                Fetched::Found(value) => return Ok(value),
                Fetched::Nothing { seen } => seen,
            };
            let (ranges, from) = (std::slice::from_ref(&manifest), Revision(seen.0 + 1));
            let put = |event: &Event| event.r#type() == EventType::Put;
            wait::until_event(&self.client, ranges, from, &mut pause, put).await?;
        }
    }
}

impl<T: Serialize + DeserializeOwned> OnceCell<T> {
    /// The result: the one published, or the one that somebody computes meanwhile, or else what `init`
    /// computes, once it is this caller's turn.
    ///
    /// `init` is dropped, wherever it stands, when the turn is lost. What it does outside the store may
    /// have been done by another candidate before.
    ///
    /// # Errors
    /// [`OnceError::Init`] when `init` failed: the others go on, and the next one computes.
    /// [`OnceError::Failed`]: [`Error::SessionLost`] at once when the session is lost;
    /// [`Error::Removed`] or [`Error::Fenced`] when somebody deleted this candidate's key;
    /// [`Error::Invalid`] when the result is larger than the limit; [`Error::OutcomeUnknown`] when it
    /// may have been published and taken back; and as [`OnceCell::get`]. Trouble with the store is
    /// waited out.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line, and the next one computes; a result on its way then may
    /// still be published.
    pub async fn get_or_try_init<E, F, Fut>(
        &self,
        session: &Session,
        init: F,
    ) -> Result<Arc<T>, OnceError<E>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        session.belongs_to(&self.client)?;
        tokio::select! {
            biased;
            reason = session.lost() => Err(Error::SessionLost(reason).into()),
            value = self.while_live(session, init) => value,
        }
    }

    async fn while_live<E, F, Fut>(
        &self,
        session: &Session,
        init: F,
    ) -> Result<Arc<T>, OnceError<E>>
    where
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        if let Some(value) = self.get().await? {
            return Ok(value);
        }
        let record = ContenderRecord::of(session, &self.info);
        let candidate = Contender::enter(session, &self.turns(), Json(record)).await?;
        let hold = tokio::select! {
            biased;
            value = self.wait() => return Ok(value?),
            hold = candidate.wait_turn() => hold?,
        };
        // Somebody may have published between that watch and this turn.
        if let Some(value) = self.get().await? {
            return Ok(value);
        }
        let value = hold.scope(init()).await?.map_err(OnceError::Init)?;
        let manifest = Attempt::new(self, &hold).publish(&value).await?;
        let value = Arc::new(value);
        self.remember(manifest, &value);
        Ok(value)
    }
}

impl<T> Clone for OnceCell<T> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            space: self.space.clone(),
            bytes_max: self.bytes_max,
            info: self.info.clone(),
            known: Arc::clone(&self.known),
        }
    }
}

impl<T> fmt::Debug for OnceCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceCell")
            .field("prefix", &self.prefix())
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}
