//! openraft's own suite for log stores and state machines, on ours.
//!
//! The suite does what openraft never does and our storage refuses: it applies entries with gaps
//! between them, and begins a log after index 0 and only then purges what it began after. The
//! adapters here fill the gaps with blank entries, and purge first.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;

use futures::{Stream, StreamExt, stream};
use openraft::entry::RaftEntry;
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftStateMachine, Snapshot,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{EntryPayload, OptionalSend, StorageError};
use tempfile::TempDir;

use super::*;
use crate::raft::log::Log;
use crate::raft::machine::{Machine, Parts};
use crate::raft::snapshot::SnapshotData;
use crate::raft::state_machine::StateMachine;
use crate::raft::types::{Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::storage::fs::{Fs, RealFs};
use crate::storage::kv::DiskOptions;

struct Gapless {
    inner: StateMachine,
    next: u64,
}

impl RaftStateMachine<TypeConfig> for Gapless {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.inner.applied_state().await
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut filled = Vec::new();
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            for index in self.next..entry.index() {
                let mut log_id = entry.log_id;
                log_id.index = index;
                let payload = EntryPayload::Blank;
                filled.push(Ok((Entry { log_id, payload }, None)));
            }
            self.next = entry.index() + 1;
            filled.push(Ok((entry, responder)));
        }
        self.inner.apply(stream::iter(filled)).await
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.inner.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        self.next = meta.last_log_id.map_or(0, |id| id.index + 1);
        self.inner.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<Snapshot<types::CommittedLeaderId, u64, Peer, SnapshotData>>> {
        self.inner.get_current_snapshot().await
    }
}

struct PurgedFirst(Log);

impl RaftLogReader<TypeConfig> for PurgedFirst {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.0.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<types::Vote>> {
        self.0.read_vote().await
    }
}

impl RaftLogStorage<TypeConfig> for PurgedFirst {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.0.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Log {
        self.0.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &types::Vote) -> io::Result<()> {
        self.0.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.0.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.0.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.0.truncate_after(last).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let first = self.0.try_get_log_entries(..).await?;
        if first
            .first()
            .is_none_or(|first| first.index() != upto.index + 1)
            || self.0.ends().purged.is_some()
        {
            return self.0.purge(upto).await;
        }
        self.0.truncate_after(None).await?;
        self.0.purge(upto).await?;
        self.0.append(first, IOFlushed::noop()).await
    }
}

struct Builder {
    on_disk: bool,
}

impl StoreBuilder<TypeConfig, PurgedFirst, Gapless, Option<TempDir>> for Builder {
    async fn build(
        &self,
    ) -> Result<(Option<TempDir>, PurgedFirst, Gapless), StorageError<TypeConfig>> {
        let dir = self.on_disk.then(|| tempfile::tempdir().unwrap());
        let (fs, path, stores): (Arc<dyn Fs>, _, _) = match &dir {
            None => (
                Arc::new(MemFs::new()),
                Path::new("/wal").to_owned(),
                Stores::memory(),
            ),
            Some(dir) => {
                let stores = Stores::disk(dir.path(), DiskOptions::default());
                (Arc::new(RealFs), dir.path().join("wal"), stores)
            }
        };
        let identity = Identity {
            cluster_id: CLUSTER,
            member_id: 1,
        };
        let mut options = WalOptions::new(identity, 7);
        options.segment_bytes = 1 << 20;
        let log = Log::new(Wal::open(fs, &path, options).unwrap());
        let kv = stores.open().unwrap();
        let state = apply::State::open(kv, &apply::Options::default()).unwrap();
        let reader = state.reader();
        let views = reader.clone();
        let views = Arc::new(move || views.view());
        let parts = Parts {
            hub: Hub::new(views, reader.revision(), 0, &hub::Options::default()),
            state,
            stores,
            pending: Pending::new(Uuid::new_v4(), 1),
            log: log.clone(),
            failure: watch::channel(None).0,
        };
        let machine = Machine::start(parts, WriterMode::Thread).unwrap();
        let inner = StateMachine::new(machine, log.clone(), WriterMode::Thread);
        Ok((dir, PurgedFirst(log), Gapless { inner, next: 0 }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_in_memory_passes_openrafts_suite() {
    Suite::test_all(Builder { on_disk: false }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_on_disk_passes_openrafts_suite() {
    Suite::test_all(Builder { on_disk: true }).await.unwrap();
}
