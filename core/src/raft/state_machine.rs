//! openraft's state machine over [`Machine`]. Made by `consensus`, driven by openraft.

use std::io;

use futures::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend};

use crate::apply::{Committed, Payload};
use crate::raft::codec;
use crate::raft::log::Log;
use crate::raft::machine::{Machine, Pinned, Responders};
use crate::raft::snapshot::SnapshotData;
use crate::raft::types::{
    Command, CommittedLeaderId, Entry, LogId, Peer, SnapshotMeta, StoredMembership, TypeConfig,
};
use crate::storage::wal::WriterMode;

/// Entries applied in one batch of the store at most. Larger batches delay the first answer, and
/// every linearizable read behind them.
const BATCH_ENTRIES_MAX: usize = 1_024;

/// Bytes of entries applied in one batch, at least one entry.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// A snapshot as openraft hands it around.
pub(crate) type RaftSnapshot = Snapshot<CommittedLeaderId, u64, Peer, SnapshotData>;

/// The state machine as openraft sees it.
#[derive(Debug, Clone)]
pub(crate) struct StateMachine {
    machine: Machine,
    log: Log,
    mode: WriterMode,
}

/// Entries on their way into the state.
#[derive(Default)]
struct Batch {
    entries: Vec<Committed>,
    responders: Responders,
    bytes: usize,
}

impl Batch {
    fn push(&mut self, (entry, responder): EntryResponder<TypeConfig>) {
        let committed = committed(entry);
        if let Payload::Normal(bytes) | Payload::Membership(bytes) = &committed.payload {
            self.bytes += bytes.len();
        }
        self.entries.push(committed);
        self.responders.extend(responder);
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= BATCH_ENTRIES_MAX || self.bytes >= BATCH_BYTES_MAX
    }
}

fn committed(entry: Entry) -> Committed {
    let id = codec::entry_id(&entry.log_id);
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(Command(batch)) => Payload::Normal(batch),
        EntryPayload::Membership(membership) => {
            let stored = StoredMembership::new(Some(entry.log_id), membership);
            Payload::Membership(codec::encode_membership(&stored))
        }
    };
    Committed { id, payload }
}

impl StateMachine {
    /// Applies through `machine` what `log` has synced.
    pub(super) fn new(machine: Machine, log: Log, mode: WriterMode) -> Self {
        Self { machine, log, mode }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let meta = self.machine.run(|worker| worker.meta()).await?;
        let meta = meta.unwrap_or_default();
        Ok((meta.last_log_id, meta.last_membership))
    }

    /// Takes what is ready, up to a bound, waits until this member's own log has it on disk, and
    /// applies it as one batch; then the next.
    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let mut batch = Batch::default();
            batch.push(first?);
            while !batch.is_full()
                && let Some(Some(next)) = entries.next().now_or_never()
            {
                batch.push(next?);
            }
            if let Some(last) = batch.entries.last() {
                self.log.wait_synced(last.id.index).await?;
            }
            let Batch {
                entries,
                responders,
                ..
            } = batch;
            self.machine
                .run(move |worker| worker.apply(entries, responders))
                .await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let meta = meta.clone();
        self.machine
            .run(move |worker| worker.install(&meta, snapshot))
            .await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        let pinned = self.machine.run(|worker| worker.pin()).await?;
        Ok(pinned.map(into_snapshot))
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    /// A snapshot is the state as it is; building one is making it durable, so that the log before
    /// it can go. The disk work runs beside the applies.
    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let (pinned, kv) = self.machine.run(|worker| worker.view()).await?;
        let persisted = match self.mode {
            WriterMode::Caller => kv.persist(),
            WriterMode::Thread => tokio::task::spawn_blocking(move || kv.persist())
                .await
                .map_err(io::Error::other)?,
        };
        persisted.map_err(io::Error::other)?;
        Ok(into_snapshot(pinned))
    }
}

fn into_snapshot(pinned: Pinned) -> RaftSnapshot {
    Snapshot {
        meta: pinned.meta,
        snapshot: SnapshotData::Pinned(pinned.view, pinned.name),
    }
}
