//! The frames of a snapshot between the store and the connection. Used by the network and its
//! handler; reading and writing the store blocks, so it is kept off the runtime's threads.

use futures::StreamExt;
use quorate_proto::peer as pb;

use crate::peer::{Chunks, PeerError};
use crate::raft::snapshot::{Incoming, SnapshotData};
use crate::raft::types::SnapshotMeta;
use crate::storage::snapshot::{SnapshotError, Stores};
use crate::storage::wal::WriterMode;

/// The frames of `data`, one a chunk, each read when it is asked for.
pub(super) fn chunks(data: SnapshotData, mode: WriterMode) -> Chunks {
    let start = Some(data.into_sender());
    let frames = futures::stream::unfold(start, move |sender| async move {
        let mut sender = sender?;
        let read = blocking(mode, move || {
            let frame = sender.next_frame()?;
            Ok((frame, sender))
        });
        match read.await {
            Ok((Some(payload), sender)) => {
                let chunk = pb::SnapshotChunk {
                    sequence: 0,
                    payload,
                };
                Some((Ok(chunk), Some(sender)))
            }
            Ok((None, _)) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    frames.boxed()
}

/// Writes the chunks of a snapshot to a store of its own. The store is removed if this fails, or is
/// dropped.
///
/// # Errors
/// The chunks break off, are damaged, or are not what `meta` says; the store failed; or another
/// snapshot is coming in.
pub(super) async fn receive(
    stores: &Stores,
    meta: SnapshotMeta,
    mut chunks: Chunks,
    mode: WriterMode,
) -> Result<(SnapshotMeta, SnapshotData), PeerError> {
    let stores = stores.clone();
    let mut incoming = blocking(mode, move || Incoming::new(&stores, meta)).await?;
    while let Some(chunk) = chunks.next().await {
        let frame = chunk?.payload;
        incoming = blocking(mode, move || {
            incoming.receive(&frame)?;
            Ok(incoming)
        })
        .await?;
    }
    blocking(mode, move || incoming.finish()).await
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
