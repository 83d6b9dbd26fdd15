//! Reading a result: the manifest, then its chunks as they were at the manifest's revision, verified
//! before anything is made of them. Readers and those who only wait need no more than this.

use std::sync::Arc;

use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use serde::de::DeserializeOwned;

use super::manifest::{Joined, Manifest, chunk_name, damaged};
use super::{OnceCell, Published};
use crate::error::{Error, Result};
use crate::keys::{KeyRange, Revision};
use crate::store::{StoreError, ops};
use crate::wait::{self, Backoff};

/// What a look for a result found.
enum Fetched<T> {
    Found(Published, Arc<T>),
    /// None, or the one that is not wanted, was published at this revision.
    Nothing {
        seen: Revision,
    },
}

impl<T: DeserializeOwned> OnceCell<T> {
    /// The result, if one is published.
    ///
    /// # Errors
    /// [`Error::Codec`], naming the key, when what is stored is not what was published, or not a `T`;
    /// [`Error::Invalid`] when it is larger than this handle's limit; the store's final refusals.
    /// Trouble with the store is waited out.
    pub async fn get(&self) -> Result<Option<Arc<T>>> {
        Ok(match self.fetch(Revision(0)).await? {
            Fetched::Found(_, value) => Some(value),
            Fetched::Nothing { .. } => None,
        })
    }

    /// Waits for a result, without computing one, whatever fails meanwhile. Needs no session.
    ///
    /// # Errors
    /// As [`OnceCell::get`].
    pub async fn wait(&self) -> Result<Arc<T>> {
        let (_, value) = self.changed(Revision(0)).await?;
        Ok(value)
    }

    /// Waits until another result is published than the one of `revision`, and tells its revision: give
    /// that to the next call to follow the changes. Of several that follow quickly only the last may be
    /// seen. `Revision(0)`: any result will do. Needs no session.
    ///
    /// # Errors
    /// As [`OnceCell::get`], about the other result.
    pub async fn changed(&self, revision: Revision) -> Result<(Published, Arc<T>)> {
        let mut pause = Backoff::between_attempts(&self.client);
        let manifest = KeyRange::one(self.manifest_key());
        loop {
            let seen = match self.fetch(revision).await? {
                Fetched::Found(published, value) => return Ok((published, value)),
                Fetched::Nothing { seen } => seen,
            };
            let (ranges, from) = (std::slice::from_ref(&manifest), Revision(seen.0 + 1));
            let put = |event: &Event| event.r#type() == EventType::Put;
            wait::until_event(&self.client, ranges, from, &mut pause, put).await?;
        }
    }

    /// Looks for a result other than that of `stale`.
    async fn fetch(&self, stale: Revision) -> Result<Fetched<T>> {
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            let answer = wait::read(&self.client, ops::get(self.manifest_key())).await?;
            let seen = Revision(answer.header.map_or(0, |header| header.revision));
            let wanted = answer.kvs.first().filter(|kv| kv.mod_revision != stale.0);
            let Some(kv) = wanted else {
                return Ok(Fetched::Nothing { seen });
            };
            match read(self, kv, seen).await? {
                Some(value) => return Ok(Fetched::Found(Published::of(kv), value)),
                None => pause.pause().await,
            }
        }
    }
}

/// The value of the result whose manifest was seen at a revision. All of it is read as it was then, so
/// a result that replaces this one meanwhile makes no difference. `None` when the state of then can no
/// longer be read: begin with the state now.
pub(super) async fn read<T: DeserializeOwned>(
    cell: &OnceCell<T>,
    kv: &KeyValue,
    seen: Revision,
) -> Result<Option<Arc<T>>> {
    let key = cell.manifest_key();
    let manifest = Manifest::read(kv)?;
    if let Some(value) = cell.known(&manifest) {
        return Ok(Some(value));
    }
    if manifest.bytes > cell.bytes_max as u64 {
        let (bytes, most) = (manifest.bytes, cell.bytes_max);
        return Err(Error::Invalid(format!(
            "the result at {key} has {bytes} bytes, this handle takes {most}"
        )));
    }
    match chunks(cell, &manifest, seen).await {
        Ok(joined) => {
            let value = Arc::new(manifest.decode(&key, joined.as_bytes())?);
            cell.remember(manifest, &value);
            Ok(Some(value))
        }
        Err(Error::Store(StoreError::Compacted { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All chunks as they were at `at`, one read each, so that no answer is larger than what was written.
async fn chunks<T>(cell: &OnceCell<T>, manifest: &Manifest, at: Revision) -> Result<Joined> {
    let space = manifest.space(&cell.chunks());
    let mut joined = Joined::default();
    for index in 0..manifest.chunks {
        let key = space.key(&chunk_name(index));
        let mut request = ops::get(&key);
        request.revision = at.0;
        let answer = wait::read(&cell.client, request).await?;
        let Some(kv) = answer.kvs.first() else {
            return Err(damaged(key, "the chunk is missing".to_owned()));
        };
        joined.push(manifest, kv)?;
    }
    Ok(joined)
}
