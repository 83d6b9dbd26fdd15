//! Publishing a result while it is one's turn: what others left is swept away, the chunks are written,
//! then the manifest, in the transaction that also ends the turn. Every write compares the turn and what
//! is to be replaced, so nothing of an attempt can land once either is over, however late its copies are.

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, ResponseOp, TxnRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::OnceCell;
use super::compute::Mine;
use super::look::{Base, Counted};
use super::manifest::{Manifest, chunk_name, outside, split};
use crate::error::{Error, Result};
use crate::keys::{KeyRange, Revision};
use crate::lock::{Fenced, Hold};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value, from_json};

/// Most bytes of one chunk.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// One candidate's attempt at a result.
pub(super) struct Attempt<'a, T> {
    pub(super) cell: &'a OnceCell<T>,
    pub(super) hold: Hold,
    /// The value of the turn's key.
    pub(super) record: Bytes,
    pub(super) name: String,
    base: Base,
    pub(super) counted: Counted,
}

/// What a write was refused with.
pub(super) struct Refused {
    /// Whether it still was this candidate's turn.
    pub(super) held: bool,
    /// Whether an earlier copy of the write may have been applied.
    pub(super) repeated: bool,
    /// What the reads that were asked for found.
    pub(super) found: Vec<ResponseOp>,
}

impl<'a, T> Attempt<'a, T> {
    pub(super) fn new(cell: &'a OnceCell<T>, mine: Mine) -> Self {
        Self {
            cell,
            name: mine.hold.unfenced().nonce(),
            hold: mine.hold,
            record: mine.record,
            base: mine.vacancy.base,
            counted: mine.vacancy.counted,
        }
    }

    pub(super) fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Ends an attempt whose turn was ended by what it published.
    pub(super) fn end(self) {
        self.hold.into_owned().disarm();
    }

    /// What is published is as it was when the turn began.
    pub(super) fn unchanged(&self) -> Compare {
        Compare::mod_revision(self.cell.manifest_key(), self.base.revision)
    }

    /// A transaction under the turn.
    pub(super) fn request(
        &self,
        when: impl IntoIterator<Item = Compare>,
        success: Vec<RequestOp>,
        otherwise: Vec<RequestOp>,
    ) -> TxnRequest {
        let fence = self.hold.fence();
        let compares = fence.compares().into_iter().chain(when);
        let reads = fence.reads().into_iter().map(ops::read);
        TxnRequest {
            compare: compares.map(Into::into).collect(),
            success,
            failure: reads.chain(otherwise).collect(),
        }
    }

    /// Sends such a transaction until the store answers: another copy of it must change nothing. Gives
    /// the revision.
    pub(super) async fn write(
        &self,
        when: impl IntoIterator<Item = Compare>,
        success: Vec<RequestOp>,
        otherwise: Vec<RequestOp>,
    ) -> Result<Result<Revision, Refused>> {
        let request = self.request(when, success, otherwise);
        let (answer, repeated) = self.hold.session().actor().repeat(request).await?;
        if answer.succeeded {
            let revision = answer.header.map_or(0, |header| header.revision);
            return Ok(Ok(Revision(revision)));
        }
        let fence = self.hold.fence();
        let mut responses = answer.responses;
        let found = responses.split_off(fence.reads().len());
        Ok(Err(Refused {
            held: fence.judge(&responses).is_ok(),
            repeated,
            found,
        }))
    }

    /// Why a write was refused.
    pub(super) async fn why(&self, refused: &Refused) -> Error {
        if refused.held {
            return Error::Conflict;
        }
        match self.hold.session().actor().why_gone(self.hold.key()).await {
            Error::Removed(_) => Error::Fenced { owner: None },
            error => error,
        }
    }

    /// Deletes the chunks of all other attempts, except for those of what is to be replaced as long as
    /// that is published. Not its own: a late copy of this must not take chunks away that are written
    /// after it.
    fn sweep(&self, spared: &[&str]) -> Vec<RequestOp> {
        let chunks = self.cell.chunks();
        let own = [self.name.as_str()];
        let spared = spared.iter().chain(&own);
        let spared = spared.map(|attempt| chunks.child(attempt).range());
        let rest = outside(chunks.range(), spared.collect());
        rest.into_iter().map(ops::delete).collect()
    }
}

impl<T: Serialize + DeserializeOwned> Attempt<'_, T> {
    /// A result as it is published, and as everybody reads it then, this candidate included.
    pub(super) fn written(&self, value: &T) -> Result<(Bytes, T)> {
        let key = self.cell.manifest_key();
        let bytes = Value::from(Json(value)).into_bytes(&key)?;
        let (length, most) = (bytes.len(), self.cell.bytes_max);
        if length > most {
            return Err(Error::Invalid(format!(
                "a result of {length} bytes, of at most {most}"
            )));
        }
        let read = from_json(key.as_bytes(), &bytes)?;
        Ok((bytes, read))
    }

    pub(super) async fn publish(&self, value: &Bytes) -> Result<Manifest> {
        // With room for the key and what goes around it.
        let limits = self.hold.unfenced().store().capabilities();
        let pieces = split(
            value,
            (limits.max_request_bytes / 2).clamp(1, CHUNK_BYTES_MAX),
        );
        let count = u32::try_from(pieces.len())
            .map_err(|_| Error::Invalid("a result of too many chunks".to_owned()))?;
        let manifest = Manifest::of(self.name.clone(), count, value);
        match &self.base.attempt {
            Some(published) => self.put(self.sweep(&[published])).await?,
            None if self.base.revision == Revision(0) => self.put(self.sweep(&[])).await?,
            // Which chunks are those of what is published cannot be told.
            None => {}
        }
        let own = manifest.space(&self.cell.chunks());
        for (index, piece) in (0..count).zip(pieces) {
            let key = own.key(&chunk_name(index));
            self.put(vec![ops::put(key, piece, None)]).await?;
        }
        self.announce(&manifest).await?;
        Ok(manifest)
    }

    async fn put(&self, success: Vec<RequestOp>) -> Result<()> {
        match self.write([self.unchanged()], success, Vec::new()).await? {
            Ok(_) => Ok(()),
            Err(refused) => Err(self.why(&refused).await),
        }
    }

    async fn announce(&self, manifest: &Manifest) -> Result<()> {
        let key = self.cell.manifest_key();
        let value: Bytes = Value::from(Json(manifest)).into_bytes(&key)?;
        let ended = [
            self.hold.key().clone(),
            self.cell.failure_key(),
            self.cell.tally_key(),
        ];
        let ended = ended.map(|key| ops::delete(KeyRange::one(key)));
        let mut success = vec![ops::put(&key, value, None)];
        success.extend(ended);
        if self.base.revision != Revision(0) {
            success.extend(self.sweep(&[]));
        }
        let otherwise = vec![ops::read(ops::get(&key))];
        let refused = match self.write([self.unchanged()], success, otherwise).await? {
            Ok(_) => return Ok(()),
            Err(refused) => refused,
        };
        let published = ops::kvs(&refused.found, 0).first();
        match published.map(Manifest::read) {
            Some(Ok(other)) if other == *manifest => Ok(()),
            // An earlier copy ended the turn, or something else did.
            _ if refused.repeated && !refused.held => Err(Error::OutcomeUnknown(format!(
                "{key} may have been published, and taken back or replaced since"
            ))),
            _ => Err(self.why(&refused).await),
        }
    }
}
