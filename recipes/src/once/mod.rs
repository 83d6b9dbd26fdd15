//! Compute once, share: the first who needs a result computes it, everybody else waits for it and
//! gets the same. [`OnceCell`] is what users hold; `manifest` and `failure` are what is stored, `fetch`
//! reads and verifies a result, `look` is what candidates decide on, `compute` has them wait for their
//! turn and compute, `attempt` publishes under the turn, `failing` counts attempts and tells of failures.

mod attempt;
mod compute;
mod failing;
mod failure;
mod fetch;
mod look;
mod manifest;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;

pub use self::failure::Failure;
use self::manifest::Manifest;
use crate::client::Client;
use crate::clock;
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::lock::{Holder, queue_of};
use crate::store::ops::{self, Compare};
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
            cache_failures: None,
            max_attempts: None,
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
    cache_failures: Option<Duration>,
    max_attempts: Option<u32>,
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
    /// When it was published, in milliseconds since the Unix epoch by the wall clock of who published
    /// it; `None` when what is stored does not say.
    pub published_ms: Option<u64>,
}

impl Published {
    fn of(kv: &KeyValue) -> Self {
        let manifest = Manifest::read(kv).ok();
        Self {
            revision: Revision(kv.mod_revision),
            bytes: manifest.as_ref().map(|manifest| manifest.bytes),
            published_ms: manifest.and_then(|manifest| manifest.published_ms),
        }
    }

    /// How long ago it was published, by this machine's wall clock: wrong by as much as that differs
    /// from the publisher's, and zero if it was published in this one's future. `None` when what is
    /// stored does not say.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        let since = |published| clock::wall_millis().saturating_sub(published);
        let millis = self.published_ms.map(since);
        millis.map(Duration::from_millis)
    }
}

/// How [`OnceCell::get_or_try_init`] and [`OnceCell::refresh`] fail.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OnceError<E> {
    /// This caller's computation failed.
    #[error("{0}")]
    Init(E),
    /// Somebody's computation failed a short while ago, and [that is remembered](OnceCell::cache_failures).
    #[error("it was tried a short while ago: {0}")]
    Cached(Box<Failure>),
    /// As many computations [as may](OnceCell::max_attempts) have begun, and none has published.
    #[error("{attempts} computations have begun and none was successful{}", last_text(.last))]
    Exhausted {
        /// How many have begun since the last result was published or failures were forgotten.
        attempts: u32,
        /// The last one that failed and could say so; others may have come to no end at all.
        last: Option<Box<Failure>>,
    },
    /// Everything else.
    #[error(transparent)]
    Failed(#[from] Error),
}

fn last_text(last: &Option<Box<Failure>>) -> String {
    let text = last.as_ref().map(|failure| format!(": {failure}"));
    text.unwrap_or_default()
}

fn check_revision(revision: Revision) -> Result<()> {
    if revision.0 > 0 {
        return Ok(());
    }
    Err(Error::Invalid(format!("revision {revision} of a result")))
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

    /// Lets a failure count for all: when a computation of this handle fails, all who come within `ttl`,
    /// and those who wait, get [`OnceError::Cached`] instead of computing, if their handles have this
    /// option too. [`OnceCell::wait`] goes on waiting. Give all handles of a name the same options.
    ///
    /// The store removes the failure when its time is over, by a lease: in whole seconds, rounded up, at
    /// least as long as the shortest lease it grants, and longer when its leader changes. A failure that
    /// cannot be told to the others, because the store does not answer for so long or the session is
    /// lost, is this caller's alone. A computation that is dropped, or whose process dies, does not fail.
    ///
    /// Costs nothing unless a computation fails; then a read and a lease. Default: off, and the next
    /// candidate computes at once.
    #[must_use]
    pub fn cache_failures(mut self, ttl: Duration) -> Self {
        self.cache_failures = Some(ttl);
        self
    }

    /// Lets so many computations begin, by handles with this option, until one publishes: after that
    /// everybody gets [`OnceError::Exhausted`] until [`OnceCell::forget_failures`]. They are counted
    /// before they begin, so one that takes its process down counts, and so does one that is dropped, or
    /// loses its turn. Computations of [`OnceCell::refresh`] count as well; what is published stays
    /// published. 0: nobody computes.
    ///
    /// Costs one transaction more for each computation. Default: off, without a limit and not counted.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
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

    fn failure_key(&self) -> Key {
        self.space.key("failure")
    }

    fn tally_key(&self) -> Key {
        self.space.key("attempts")
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
        Ok(answer.kvs.first().map(Published::of))
    }

    /// Takes back the result that was published at `revision`, so that the next who needs one computes
    /// anew. Another one, published since, stays; so a copy of this call, late on the way, does no
    /// harm. Handles that remember the old result ask the store before they give it out. Failures of
    /// those who wanted to replace it are forgotten with it, and one who is about to gives up.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, it may still be taken back.
    pub async fn invalidate(&self, revision: Revision) -> Result<()> {
        check_revision(revision)?;
        let manifest = self.manifest_key();
        let keys = [&manifest, &self.failure_key(), &self.tally_key()];
        let mut success = keys.map(|key| ops::delete(KeyRange::one(key))).to_vec();
        // All chunks are of this result, or left over, or of an attempt at replacing just this one, which
        // can write no more of them.
        success.push(ops::delete(self.chunks().range()));
        let request = TxnRequest {
            compare: vec![Compare::mod_revision(&manifest, revision).into()],
            success,
            failure: Vec::new(),
        };
        wait::repeat(&self.client, request).await?;
        Ok(())
    }

    /// Forgets a cached failure before its time is over, and how many computations have begun: the next
    /// who needs a result computes. One that is in progress goes on, and counts no more. Works on records
    /// that cannot be read, too.
    ///
    /// # Errors
    /// The store's final refusals. Trouble with the store is waited out.
    ///
    /// # Cancel safety
    /// When the future is dropped, what was there may still be forgotten; nothing that comes later is.
    pub async fn forget_failures(&self) -> Result<()> {
        let keys = [self.failure_key(), self.tally_key()];
        let mut pause = Backoff::contended(&self.client);
        loop {
            let request = TxnRequest {
                success: keys.iter().map(|key| ops::read(ops::get(key))).collect(),
                ..Default::default()
            };
            let (answer, _) = wait::repeat(&self.client, request).await?;
            let written = [0, 1].map(|index| ops::kvs(&answer.responses, index).first());
            let written = written.map(|kv| Revision(kv.map_or(0, |kv| kv.mod_revision)));
            if written == [Revision(0); 2] {
                return Ok(());
            }
            let there = keys.iter().zip(written);
            let request = TxnRequest {
                compare: there
                    .map(|(key, at)| Compare::mod_revision(key, at).into())
                    .collect(),
                success: keys
                    .iter()
                    .map(|key| ops::delete(KeyRange::one(key)))
                    .collect(),
                failure: Vec::new(),
            };
            if wait::repeat(&self.client, request).await?.0.succeeded {
                return Ok(());
            }
            pause.pause().await;
        }
    }
}

impl<T> Clone for OnceCell<T> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            space: self.space.clone(),
            bytes_max: self.bytes_max,
            info: self.info.clone(),
            cache_failures: self.cache_failures,
            max_attempts: self.max_attempts,
            known: Arc::clone(&self.known),
        }
    }
}

impl<T> fmt::Debug for OnceCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnceCell")
            .field("prefix", &self.prefix())
            .field("bytes_max", &self.bytes_max)
            .field("cache_failures", &self.cache_failures)
            .field("max_attempts", &self.max_attempts)
            .finish_non_exhaustive()
    }
}
