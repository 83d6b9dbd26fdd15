//! A network in memory: calls openraft of the other member, unless one of the two is cut off.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex};

use openraft::OptionalSend;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;

use crate::raft::consensus::Raft;
use crate::raft::snapshot::{Incoming, SnapshotData};
use crate::raft::state_machine::RaftSnapshot;
use crate::raft::types::{Peer, TypeConfig, Vote};
use crate::storage::snapshot::Stores;

#[derive(Debug, Clone, Default)]
pub(super) struct Net {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<u64, (Raft, Stores)>,
    /// How often each member was started: an earlier start is dead to the others.
    starts: HashMap<u64, u64>,
    cut_off: HashSet<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct Client {
    net: Net,
    from: u64,
    start: u64,
    to: u64,
}

impl Net {
    /// The network as a new start of member `from` sees it.
    pub(super) fn of(&self, from: u64) -> Client {
        let start = {
            let mut state = self.state.lock().unwrap();
            let starts = state.starts.entry(from).or_default();
            *starts += 1;
            *starts
        };
        Client {
            start,
            net: self.clone(),
            from,
            to: from,
        }
    }

    pub(super) fn join(&self, id: u64, raft: Raft, stores: Stores) {
        self.state
            .lock()
            .unwrap()
            .members
            .insert(id, (raft, stores));
    }

    pub(super) fn leave(&self, id: u64) {
        self.state.lock().unwrap().members.remove(&id);
    }

    pub(super) fn cut_off(&self, id: u64) {
        self.state.lock().unwrap().cut_off.insert(id);
    }

    pub(super) fn heal(&self, id: u64) {
        self.state.lock().unwrap().cut_off.remove(&id);
    }
}

impl Client {
    fn target(&self) -> Result<(Raft, Stores), Unreachable<TypeConfig>> {
        let state = self.net.state.lock().unwrap();
        let is_cut = [self.from, self.to]
            .iter()
            .any(|id| state.cut_off.contains(id))
            || state.starts.get(&self.from) != Some(&self.start);
        let target = state.members.get(&self.to).filter(|_| !is_cut);
        target
            .cloned()
            .ok_or_else(|| Unreachable::from_string("cut off"))
    }

    /// The answer, if it still comes through.
    fn answer<T>(&self, answer: Result<T, impl ToString>) -> Result<T, Unreachable<TypeConfig>> {
        self.target()?;
        answer.map_err(|error| Unreachable::from_string(error))
    }
}

impl RaftNetworkFactory<TypeConfig> for Client {
    type Network = Self;

    async fn new_client(&mut self, target: u64, _node: &Peer) -> Self {
        let mut client = self.clone();
        client.to = target;
        client
    }
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (raft, _) = self.target()?;
        Ok(self.answer(raft.append_entries(rpc).await)?)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (raft, _) = self.target()?;
        Ok(self.answer(raft.vote(rpc).await)?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (raft, _) = self.target()?;
        Ok(self.answer(raft.pre_vote(rpc).await)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let (raft, stores) = self.target()?;
        let mut incoming = self.answer(Incoming::new(&stores, snapshot.meta))?;
        let mut sender = snapshot.snapshot.into_sender();
        while let Some(frame) = self.answer(sender.next_frame())? {
            self.answer(incoming.receive(&frame))?;
        }
        let (meta, snapshot) = self.answer(incoming.finish())?;
        let snapshot = Snapshot { meta, snapshot };
        Ok(self.answer(raft.install_full_snapshot(vote, snapshot).await)?)
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (raft, _) = self.target()?;
        Ok(self.answer(raft.handle_transfer_leader(request).await)?)
    }
}
