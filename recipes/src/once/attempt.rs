//! Publishing a result while it is one's turn: what others left is swept away, the chunks are written,
//! then the manifest, in the transaction that also ends the turn. Every write compares the turn, so
//! nothing of an attempt can land once the turn is over, however late its copies are.

use bytes::Bytes;
use quorate_proto::etcdserverpb::{RequestOp, TxnRequest, TxnResponse};
use serde::Serialize;

use super::OnceCell;
use super::manifest::{Manifest, chunk_name, split};
use crate::error::{Error, Result};
use crate::keys::{Key, KeyRange, KeySpace, Revision};
use crate::lock::{Fenced, Hold};
use crate::store::ops::{self, Compare};
use crate::value::{Json, Value};

/// Most bytes of one chunk.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// One candidate's attempt at publishing.
pub(super) struct Attempt<'a> {
    hold: &'a Hold,
    manifest_key: Key,
    chunks: KeySpace,
    name: String,
    bytes_max: usize,
}

impl<'a> Attempt<'a> {
    pub(super) fn new<T>(cell: &OnceCell<T>, hold: &'a Hold) -> Self {
        Self {
            hold,
            manifest_key: cell.manifest_key(),
            chunks: cell.chunks(),
            name: hold.unfenced().nonce(),
            bytes_max: cell.bytes_max,
        }
    }

    pub(super) async fn publish<T: Serialize>(&self, value: &T) -> Result<Manifest> {
        let value = Value::from(Json(value)).into_bytes(&self.manifest_key)?;
        if value.len() > self.bytes_max {
            return Err(Error::Invalid(format!(
                "a result of {} bytes, of at most {}",
                value.len(),
                self.bytes_max
            )));
        }
        // With room for the key and what goes around it.
        let request_bytes_max = self
            .hold
            .unfenced()
            .store()
            .capabilities()
            .max_request_bytes;
        let pieces = split(&value, (request_bytes_max / 2).clamp(1, CHUNK_BYTES_MAX));
        let count = u32::try_from(pieces.len())
            .map_err(|_| Error::Invalid("a result of too many chunks".to_owned()))?;
        let manifest = Manifest::of(self.name.clone(), count, &value);
        self.write(self.sweep()).await?;
        let own = manifest.space(&self.chunks);
        for (index, piece) in (0..count).zip(pieces) {
            let key = own.key(&chunk_name(index));
            self.write(vec![ops::put(key, piece, None)]).await?;
        }
        self.announce(&manifest).await?;
        Ok(manifest)
    }

    /// Deletes what others' attempts left. Not its own: a late copy of this must not take chunks away
    /// that are written after it.
    fn sweep(&self) -> Vec<RequestOp> {
        let all = self.chunks.range();
        let own = self.chunks.child(&self.name).range();
        let before = KeyRange {
            start: all.start,
            end: own.start,
        };
        let after = KeyRange {
            start: own.end,
            end: all.end,
        };
        vec![ops::delete(before), ops::delete(after)]
    }

    async fn write(&self, success: Vec<RequestOp>) -> Result<()> {
        let (answer, _) = self.repeat(success, Vec::new()).await?;
        match answer.succeeded {
            true => Ok(()),
            false => Err(self.refused().await),
        }
    }

    async fn announce(&self, manifest: &Manifest) -> Result<()> {
        let key = &self.manifest_key;
        let value: Bytes = Value::from(Json(manifest)).into_bytes(key)?;
        let success = vec![
            ops::put(key, value, None),
            ops::delete(KeyRange::one(self.hold.key())),
        ];
        let failure = vec![ops::read(ops::get(key))];
        let (answer, repeated) = self.repeat(success, failure).await?;
        if answer.succeeded {
            return Ok(());
        }
        let published = ops::kvs(&answer.responses, 0).first();
        match published.map(Manifest::read) {
            Some(Ok(other)) if other == *manifest => Ok(()),
            // An earlier copy ended the turn, or something else did.
            _ if repeated => Err(Error::OutcomeUnknown(format!(
                "{key} may have been published, and taken back since"
            ))),
            _ => Err(self.refused().await),
        }
    }

    /// A transaction while it is this candidate's turn and nothing is published, repeated until the
    /// store answers: another copy of it changes nothing.
    async fn repeat(
        &self,
        success: Vec<RequestOp>,
        failure: Vec<RequestOp>,
    ) -> Result<(TxnResponse, bool)> {
        let unpublished = Compare::create_revision(&self.manifest_key, Revision(0));
        let compares = self.hold.fence().compares().into_iter();
        let request = TxnRequest {
            compare: compares.chain([unpublished]).map(Into::into).collect(),
            success,
            failure,
        };
        self.hold.session().actor().repeat(request).await
    }

    /// Why a write was refused.
    async fn refused(&self) -> Error {
        match self.hold.session().actor().verify().await {
            Err(error @ Error::SessionLost(_)) => error,
            _ => Error::Fenced { owner: None },
        }
    }
}
