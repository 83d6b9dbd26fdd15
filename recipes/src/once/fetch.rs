//! Reading a result: the manifest, then its chunks as they were at the manifest's revision, verified
//! before anything is made of them.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::OnceCell;
use super::manifest::{Joined, Manifest, chunk_name, damaged};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::store::{StoreError, ops};
use crate::wait::{self, Backoff};

/// What a look for a result found.
pub(super) enum Fetched<T> {
    Found(Arc<T>),
    /// None was published at this revision.
    Nothing {
        seen: Revision,
    },
}

pub(super) async fn fetch<T: DeserializeOwned>(cell: &OnceCell<T>) -> Result<Fetched<T>> {
    let mut pause = Backoff::between_attempts(&cell.client);
    loop {
        let key = cell.manifest_key();
        let answer = wait::read(&cell.client, ops::get(&key)).await?;
        let seen = Revision(answer.header.map_or(0, |header| header.revision));
        let Some(kv) = answer.kvs.first() else {
            return Ok(Fetched::Nothing { seen });
        };
        let manifest = Manifest::read(kv)?;
        if let Some(value) = cell.known(&manifest) {
            return Ok(Fetched::Found(value));
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
                return Ok(Fetched::Found(value));
            }
            // The state as of the manifest can no longer be read: begin with the state now.
            Err(Error::Store(StoreError::Compacted { .. })) => pause.pause().await,
            Err(error) => return Err(error),
        }
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
