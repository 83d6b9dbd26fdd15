//! Who is a member: from consensus its id and peers' addresses, from the replicated `members` table
//! what it said of itself. What a member makes of changes is here too: whom it talks to, and that it
//! stops when it was removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use quorate_proto::Reason;
use quorate_proto::etcdserverpb::{Member, MemberListResponse};
use quorate_proto::log::MemberAttributes;
use quorate_proto::log::command::Kind;
use uuid::Uuid;

use super::Node;
use super::background::changed_since;
use super::data_dir::{DataDirError, Identity};
use super::read::blocking;
use crate::apply::Reader;
use crate::error::{Error, Result};
use crate::raft::{RaftMember, members_in};

impl Node {
    /// All members, by id. With `linearizable`, as of now; otherwise as this member knows it. A
    /// member that never started has no name. The header has no revision, as on etcd.
    ///
    /// # Errors
    /// Time-outs, if `linearizable`.
    pub async fn member_list(&self, linearizable: bool) -> Result<MemberListResponse> {
        if linearizable {
            self.read_barrier().await?;
        }
        Ok(MemberListResponse {
            header: Some(self.header_at(0)),
            members: self.known_members(),
        })
    }

    /// All members, by id, as this member knows them.
    pub(super) fn known_members(&self) -> Vec<Member> {
        let said = self.shared.reader.members();
        let members = self.members().into_iter();
        let described = members.map(|(id, member)| {
            let own = said.iter().find(|said| said.id == id);
            Member {
                id,
                name: own.map(|own| own.name.clone()).unwrap_or_default(),
                peer_ur_ls: member.peer.peer_urls,
                client_ur_ls: own.map(|own| own.client_urls.clone()).unwrap_or_default(),
                is_learner: !member.is_voter,
            }
        });
        described.collect()
    }

    /// Whether this member has no vote.
    #[must_use]
    pub fn is_learner(&self) -> bool {
        let members = self.shared.consensus.members();
        let own = members.get(&self.shared.member_id);
        own.is_some_and(|own| !own.is_voter)
    }

    /// Tells the cluster this member's name and where clients reach it, unless it knows already.
    pub(super) async fn publish_attributes(&self) -> Result<()> {
        let own = MemberAttributes {
            id: self.member_id(),
            name: self.shared.config.name.clone(),
            client_urls: self.shared.config.advertise_client_urls.clone(),
            incarnation: self.shared.incarnation.as_bytes().to_vec().into(),
            peer_urls: self.shared.own_peer_urls.clone(),
        };
        self.read_barrier().await?;
        let known = self.shared.reader.members().iter().any(|said| {
            (said.id, &said.name, &said.client_urls) == (own.id, &own.name, &own.client_urls)
                && (&said.incarnation, &said.peer_urls) == (&own.incarnation, &own.peer_urls)
        });
        if !known {
            self.propose(Kind::MemberAttributes(own)).await?;
        }
        Ok(())
    }
}

/// The data folders that the members other than `own` said to have.
pub(super) fn incarnations(reader: &Reader, own: u64) -> Vec<(u64, Uuid)> {
    let members = reader.members();
    let others = members.iter().filter(|member| member.id != own);
    others
        .filter_map(|member| Some((member.id, Uuid::from_slice(&member.incarnation).ok()?)))
        .collect()
}

/// Keeps what this member holds of the others as the log says.
///
/// Every peer is bound to the data folder it said to have: one that lost it must not come back under
/// its old id, for a voter that forgets what it acknowledged can undo what was committed. Those that
/// were removed are refused, and their addresses forgotten. What the next start must know before it
/// has read its state is in the data folder's identity.
pub(super) async fn follow(node: Node) {
    let mut applied = node.shared.consensus.applied();
    let mut bound = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut recorded = None;
    loop {
        let is_new = node.bind_incarnations(&mut bound);
        // The next start must know it before it talks to anybody, and so before the log is replayed.
        if is_new && let Err(error) = node.shared.consensus.make_durable().await {
            tracing::warn!(%error, "whom the members are bound to is not durable yet");
        }
        if let Some(members) = node.applied_members() {
            node.refuse_removed(&members, &mut seen);
            if !members.contains_key(&node.member_id()) && seen.contains(&node.member_id()) {
                return node.depart("its log says so").await;
            }
            let peers: BTreeMap<u64, Vec<String>> = members
                .into_iter()
                .map(|(id, member)| (id, member.peer.peer_urls))
                .collect();
            if recorded.as_ref() != Some(&peers) {
                let urls = peers.clone();
                node.record_identity(move |identity| identity.peers = urls)
                    .await;
                recorded = Some(peers);
            }
        }
        if !changed_since(&mut applied).await {
            return;
        }
    }
}

/// Ends this member when a peer says that it was removed: the leader sends nothing any more to one
/// that was, perhaps not even the entry that says so.
pub(super) async fn heed_removal(node: Node) {
    let Some(transport) = &node.shared.transport else {
        return;
    };
    let mut removed = transport.removed();
    if removed.wait_for(|removed| *removed).await.is_ok() {
        node.depart("its peers say so").await;
    }
}

impl Node {
    /// The membership as of the last applied entry, or what consensus was started with. Whoever has
    /// waited for an entry to be applied finds what it changed, which consensus itself tells later.
    pub(super) fn members(&self) -> BTreeMap<u64, RaftMember> {
        let applied = self.applied_members();
        applied.unwrap_or_else(|| self.shared.consensus.members())
    }

    /// The membership as of the last applied entry, by id; `None` before the first.
    fn applied_members(&self) -> Option<BTreeMap<u64, RaftMember>> {
        let membership = self.shared.reader.membership()?;
        match members_in(&membership) {
            Ok(members) => Some(members),
            Err(error) => {
                // It was decoded before, or it would not have been applied.
                self.shared.consensus.fail(error);
                None
            }
        }
    }

    /// Whether there was a new one.
    fn bind_incarnations(&self, bound: &mut BTreeMap<u64, Uuid>) -> bool {
        let Some(transport) = &self.shared.transport else {
            return false;
        };
        let mut is_new = false;
        for (id, incarnation) in incarnations(&self.shared.reader, self.member_id()) {
            if bound.insert(id, incarnation) != Some(incarnation) {
                transport.set_incarnation(id, incarnation);
                is_new = true;
            }
        }
        is_new
    }

    /// Refuses whoever was a member once and is none now. `seen` are those known to have been. The
    /// applied state alone says it: what is not committed may be undone.
    fn refuse_removed(&self, members: &BTreeMap<u64, RaftMember>, seen: &mut BTreeSet<u64>) {
        seen.extend(members.keys());
        seen.extend(self.shared.reader.members().iter().map(|said| said.id));
        let Some(transport) = &self.shared.transport else {
            return;
        };
        for id in seen.iter().filter(|id| !members.contains_key(id)) {
            transport.refuse(*id);
        }
    }

    /// Ends this member's part in its cluster.
    async fn depart(&self, why: &str) {
        tracing::warn!(why, "this member was removed from the cluster, it stops");
        self.record_identity(|identity| identity.is_removed = true)
            .await;
        self.send_never();
        self.shared.consensus.fail(Reason::MemberRemoved.into());
    }

    /// Changes what the data folder says of this member and its peers.
    async fn record_identity(&self, change: impl FnOnce(&mut Identity) + Send + 'static) {
        let data_dir = Arc::clone(&self.shared.data_dir);
        let recorded = blocking(move || {
            let mut data_dir = data_dir.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((dir, identity)) = data_dir.as_mut() {
                let mut changed = identity.clone();
                change(&mut changed);
                if changed != *identity {
                    dir.record(&changed)?;
                    *identity = changed;
                }
            }
            Ok::<_, DataDirError>(())
        });
        if let Err(error) = recorded.await {
            tracing::warn!(%error, "the data folder's identity is not up to date");
        }
    }
}

impl From<DataDirError> for Error {
    fn from(error: DataDirError) -> Self {
        Self::with_detail(Reason::StorageFailed, error.to_string()).caused_by(error)
    }
}
