//! The frames of a snapshot between the store and the connection. Used by the network, its handler and
//! `rebuild`; reading and writing the store blocks, so it is kept off the runtime's threads.

use futures::StreamExt;
use quorate_proto::peer as pb;

use crate::peer::{Chunks, PeerError};
use crate::raft::snapshot::{Incoming, SnapshotData};
use crate::raft::types::SnapshotMeta;
use crate::storage::snapshot::{SnapshotError, Stores};
use crate::storage::wal::WriterMode;

/// The frames of `data` after the first `skip`, one a chunk, each read when it is asked for. Those
/// that are skipped are read too.
pub(super) fn chunks(data: SnapshotData, skip: u64, mode: WriterMode) -> Chunks {
    let start = Some((data.into_sender(), skip));
    let frames = futures::stream::unfold(start, move |state| async move {
        let (mut sender, skip) = state?;
        let read = blocking(mode, move || {
            for _ in 0..skip {
                sender.next_frame()?;
            }
            let frame = sender.next_frame()?;
            Ok((frame, sender))
        });
        match read.await {
            Ok((Some(payload), sender)) => {
                let chunk = pb::SnapshotChunk {
                    sequence: 0,
                    payload,
                };
                Some((Ok(chunk), Some((sender, 0))))
            }
            Ok((None, _)) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    frames.boxed()
}

/// A snapshot that is coming in, and how many of its chunks have come.
#[derive(Debug)]
pub(super) struct Part {
    incoming: Incoming,
    chunks: u64,
}

/// Why a snapshot is not complete.
#[derive(Debug)]
pub(super) struct Broken {
    /// What went wrong.
    pub(super) error: PeerError,
    /// What came, if the rest may still come; dropped, it is removed.
    pub(super) part: Option<Part>,
}

impl Part {
    /// Nothing yet of the snapshot described by `meta`: an empty store.
    ///
    /// # Errors
    /// The store cannot be made, or another snapshot is coming in.
    pub(super) async fn begin(
        stores: &Stores,
        meta: SnapshotMeta,
        mode: WriterMode,
    ) -> Result<Self, PeerError> {
        let stores = stores.clone();
        let incoming = blocking(mode, move || Incoming::new(&stores, meta)).await?;
        Ok(Self {
            incoming,
            chunks: 0,
        })
    }

    /// How many chunks have come.
    pub(super) const fn chunks(&self) -> u64 {
        self.chunks
    }

    /// What it is announced to be.
    pub(super) const fn meta(&self) -> &SnapshotMeta {
        self.incoming.meta()
    }

    /// Writes the chunks that follow to the store.
    ///
    /// # Errors
    /// The chunks break off, when the part is given back; they are damaged, or the whole is not what
    /// was announced; the store failed.
    pub(super) async fn receive(
        mut self,
        mut chunks: Chunks,
        mode: WriterMode,
    ) -> Result<(SnapshotMeta, SnapshotData), Broken> {
        let broken = |error| Broken { error, part: None };
        while let Some(chunk) = chunks.next().await {
            let frame = match chunk {
                Ok(chunk) => chunk.payload,
                Err(error) => {
                    let part = Some(self);
                    return Err(Broken { error, part });
                }
            };
            let mut incoming = self.incoming;
            incoming = blocking(mode, move || {
                incoming.receive(&frame)?;
                Ok(incoming)
            })
            .await
            .map_err(broken)?;
            self = Self {
                incoming,
                chunks: self.chunks + 1,
            };
        }
        let incoming = self.incoming;
        blocking(mode, move || incoming.finish())
            .await
            .map_err(broken)
    }
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    mode: WriterMode,
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, PeerError> {
    let done = match mode {
        WriterMode::Caller => work(),
        WriterMode::Thread => tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| PeerError::Failed(error.to_string()))?,
    };
    done.map_err(|error| match error {
        SnapshotError::Busy => PeerError::Full("one snapshot at a time"),
        SnapshotError::Damaged(_) | SnapshotError::Incomplete { .. } => {
            PeerError::Protocol(error.to_string())
        }
        SnapshotError::Kv(_) => PeerError::Failed(error.to_string()),
    })
}
