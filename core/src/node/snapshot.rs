//! Backups: this member's state as a stream of pieces of an etcd database file, with its checksum at
//! the end. Used by `api`.
//!
//! As on etcd this is the state of the member that is asked, whatever the others have: nobody is
//! asked for permission. The file is made on a thread of its own, one piece ahead of the client. Read
//! views keep old data on the disk, so a client that takes nothing for [`STALL_LIMIT`], or little for
//! long, loses its stream.

use std::time::Duration;

use bytes::Bytes;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::SnapshotResponse;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};

use super::Node;
use crate::backup::{Backup, BackupError, Member, SCHEMA_VERSION, SORT_BYTES};
use crate::clock;
use crate::error::{Error, Result};
use crate::tasks::Tasks;

/// Snapshots being made at once; the next one waits. Each takes [`SORT_BYTES`] of memory and a thread.
pub(super) const SNAPSHOTS_IN_FLIGHT: usize = 2;
/// How long a client may take no piece before its stream ends.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// Bytes a second that a client must take on the whole; it may be behind by [`STALL_LIMIT`].
const BYTES_PER_SECOND_MIN: u64 = 64 * 1024;
/// Pieces made ahead of the client.
const PIECES_AHEAD: usize = 4;

/// A stream of pieces. Dropping it ends the work behind it.
#[derive(Debug)]
pub struct Snapshot {
    pieces: mpsc::Receiver<SnapshotResponse>,
    outcome: Option<oneshot::Receiver<Result<()>>>,
}

impl Snapshot {
    /// The next piece; `None` after the last one, which is the SHA-256 of all before. The pieces say
    /// how many bytes of the file come after them, the checksum not counted.
    ///
    /// # Errors
    /// Storage failures, and a state that cannot be written in this format; a time-out when the client
    /// took too long; the end of the member. What came before is to be thrown away then.
    ///
    /// # Cancel safety
    /// No piece is lost.
    pub async fn next(&mut self) -> Result<Option<SnapshotResponse>> {
        if let Some(piece) = self.pieces.recv().await {
            return Ok(Some(piece));
        }
        let Some(outcome) = &mut self.outcome else {
            return Ok(None);
        };
        let outcome = outcome
            .await
            .unwrap_or_else(|_| Err(Reason::Stopped.into()));
        self.outcome = None;
        outcome.map(|()| None)
    }
}

impl Node {
    /// This member's state as it is now, as an etcd database file. Waits while two others are made.
    ///
    /// # Errors
    /// The end of the member.
    pub async fn snapshot(&self) -> Result<Snapshot> {
        self.check_sound()?;
        self.snapshot_within(STALL_LIMIT).await
    }

    /// As [`Node::snapshot`], for a client that takes each piece within `stall_limit`.
    pub(super) async fn snapshot_within(&self, stall_limit: Duration) -> Result<Snapshot> {
        let permit = tokio::select! {
            // A member that stops begins nothing, whatever is free.
            biased;
            () = self.shared.tasks.cancelled() => return Err(Reason::Stopped.into()),
            permit = self.shared.snapshots.clone().acquire_owned() => permit,
        };
        let permit = permit.map_err(|_| Error::from(Reason::Stopped))?;
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let sending = Sending {
            pieces: sender,
            digest: Sha256::new(),
            left: 0,
            sent: 0,
            waited: Duration::ZERO,
            stall_limit,
            tasks: self.shared.tasks.clone(),
            runtime: Handle::current(),
        };
        let backup = self.backup(&sending);
        let (tell, outcome) = oneshot::channel();
        self.shared.tasks.spawn_draining("snapshot", async move {
            let made = tokio::task::spawn_blocking(move || sending.run(&backup)).await;
            drop(permit);
            // Nobody to tell: the client is gone.
            let _ = tell.send(made.unwrap_or_else(|_| Err(Reason::Internal.into())));
        });
        Ok(Snapshot {
            pieces,
            outcome: Some(outcome),
        })
    }

    fn backup(&self, sending: &Sending) -> Backup {
        let members = self.shared.consensus.members();
        let said = self.shared.reader.members();
        let removed = said
            .iter()
            .map(|said| said.id)
            .filter(|id| !members.contains_key(id));
        let removed = removed.collect();
        let described = members.into_iter().map(|(id, member)| {
            let own = said.iter().find(|said| said.id == id);
            Member {
                id,
                name: own.map(|own| own.name.clone()).unwrap_or_default(),
                peer_urls: member.peer.peer_urls,
                client_urls: own.map(|own| own.client_urls.clone()).unwrap_or_default(),
                is_voter: member.is_voter,
            }
        });
        let (pieces, tasks) = (sending.pieces.clone(), sending.tasks.clone());
        Backup {
            view: self.shared.reader.view(),
            members: described.collect(),
            removed,
            sort_bytes: SORT_BYTES,
            is_abandoned: Box::new(move || pieces.is_closed() || tasks.is_cancelled()),
        }
    }
}

/// Sends a backup from a thread that may block.
struct Sending {
    pieces: mpsc::Sender<SnapshotResponse>,
    digest: Sha256,
    /// Bytes of the file that were not sent yet.
    left: u64,
    /// Bytes of it that the client took, and how long it was waited for.
    sent: u64,
    waited: Duration,
    stall_limit: Duration,
    tasks: Tasks,
    runtime: Handle,
}

impl Sending {
    fn run(mut self, backup: &Backup) -> Result<()> {
        let began = clock::now();
        let sent = self.send_all(backup);
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &sent {
            Ok(bytes) => tracing::info!(bytes, took_ms, "sent a snapshot"),
            Err(error) => tracing::warn!(%error, took_ms, "a snapshot was not sent"),
        }
        sent.map(drop)
    }

    fn send_all(&mut self, backup: &Backup) -> Result<u64> {
        let layout = backup.plan().map_err(|error| self.told(error))?;
        let bytes = layout.file_bytes();
        tracing::info!(bytes, "sending a snapshot");
        self.left = bytes;
        let written = backup.write(layout, |piece| {
            self.digest.update(&piece);
            self.left -= piece.len() as u64;
            self.send(piece)
        });
        written.map_err(|error| self.told(error))?;
        let checksum = std::mem::take(&mut self.digest).finalize();
        self.send(Bytes::copy_from_slice(&checksum))?;
        Ok(bytes)
    }

    /// Hands one piece over, waiting for the client.
    fn send(&mut self, blob: Bytes) -> Result<()> {
        let paid_for = Duration::from_secs(self.sent / BYTES_PER_SECOND_MIN);
        let limit = (self.stall_limit + paid_for).saturating_sub(self.waited);
        let limit = limit.min(self.stall_limit);
        self.sent += blob.len() as u64;
        let began = clock::now();
        let piece = SnapshotResponse {
            header: None,
            remaining_bytes: self.left,
            blob,
            version: SCHEMA_VERSION.to_owned(),
        };
        let sent = self.runtime.block_on(async {
            tokio::select! {
                sent = self.pieces.send_timeout(piece, limit) => sent.map_err(|error| match error {
                    SendTimeoutError::Timeout(_) => {
                        Error::with_detail(Reason::Timeout, "the client took no piece for too long")
                    }
                    SendTimeoutError::Closed(_) => Reason::Canceled.into(),
                }),
                () = self.tasks.cancelled() => Err(Reason::Stopped.into()),
            }
        });
        self.waited += began.elapsed();
        sent
    }

    fn told(&self, error: BackupError) -> Error {
        match error {
            BackupError::NotTaken(error) => error,
            BackupError::Abandoned if self.tasks.is_cancelled() => Reason::Stopped.into(),
            BackupError::Abandoned => Reason::Canceled.into(),
            BackupError::Storage(error) => error.into(),
            BackupError::Unsupported(_) => {
                Error::with_detail(Reason::Unimplemented, error.to_string())
            }
            BackupError::Format(_) | BackupError::Mismatch(_) => {
                Error::with_detail(Reason::Internal, error.to_string()).caused_by(error)
            }
        }
    }
}
