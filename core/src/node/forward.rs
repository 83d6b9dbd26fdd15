//! What a member does for its peers' clients while it leads: proposes what they forward, confirms
//! read indexes, keeps leases alive. Called by the transport.
//!
//! A peer sends a batch again when its connection broke before the answer. So that nothing is
//! appended twice, the leader remembers, for its term only, which sequences of which process start
//! it has proposed, and drops repeats, and whatever its origin no longer waits for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message;
use quorate_proto::log::{Batch, Proposal};
use quorate_proto::peer::request::Kind as Asked;
use quorate_proto::peer::response::Kind as Answered;
use quorate_proto::{Reason, peer as pb};

use super::Node;
use crate::peer::{PeerError, RequestHandler};
use crate::raft::{Leadership, ProposeError};

/// What this member has proposed for others in one term, while it led.
#[derive(Debug, Default)]
pub(super) struct Forwarded {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    term: u64,
    origins: HashMap<Bytes, Origin>,
}

/// One process start of a peer.
#[derive(Debug, Default)]
struct Origin {
    /// Everything below is settled for the origin.
    floor: u64,
    /// Sequences proposed, and whether that went through.
    met: BTreeMap<u64, Met>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    /// On its way into the log.
    Proposing,
    /// In the log, or perhaps.
    Proposed,
}

/// Process starts remembered; a cluster has a handful, and a term few restarts. Beyond it forwards
/// of new ones are refused until the next term.
const ORIGINS_MAX: usize = 1_024;

/// How long a caller that asks for the members waits for the leader's word at most.
const MEMBERS_BARRIER_LIMIT: Duration = Duration::from_secs(2);

/// What to do with a forwarded batch.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Propose these; each is marked as on its way.
    Propose(Vec<Proposal>),
    /// All known: nothing to do.
    Known,
    /// An earlier copy is on its way and may yet fail: ask again.
    Busy,
}

impl Forwarded {
    /// Looks at a batch of the leader's `term`.
    fn admit(&self, request: pb::ForwardRequest) -> Verdict {
        let mut state = self.lock();
        if state.term < request.term {
            state.term = request.term;
            state.origins.clear();
        }
        if state.origins.len() >= ORIGINS_MAX && !state.origins.contains_key(&request.boot_id) {
            return Verdict::Busy;
        }
        let origin = state.origins.entry(request.boot_id).or_default();
        origin.floor = origin.floor.max(request.lowest_pending);
        origin.met = origin.met.split_off(&origin.floor);
        let on_its_way =
            |proposal: &Proposal| origin.met.get(&proposal.sequence) == Some(&Met::Proposing);
        if request.proposals.iter().any(on_its_way) {
            return Verdict::Busy;
        }
        let fresh: Vec<Proposal> = request
            .proposals
            .into_iter()
            .filter(|new| new.sequence >= origin.floor && !origin.met.contains_key(&new.sequence))
            .collect();
        for proposal in &fresh {
            origin.met.insert(proposal.sequence, Met::Proposing);
        }
        if fresh.is_empty() {
            Verdict::Known
        } else {
            Verdict::Propose(fresh)
        }
    }

    /// Notes what became of proposing `sequences`: in the log, perhaps, or certainly not.
    fn settle(&self, term: u64, boot: &Bytes, sequences: &[u64], appended: bool) {
        let mut state = self.lock();
        if state.term != term {
            return;
        }
        let Some(origin) = state.origins.get_mut(boot) else {
            return;
        };
        for sequence in sequences {
            if !appended {
                origin.met.remove(sequence);
            } else if let Some(met) = origin.met.get_mut(sequence) {
                *met = Met::Proposed;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers peers' requests.
#[derive(Debug)]
pub(super) struct Serving {
    node: Node,
}

impl Serving {
    pub(super) fn new(node: Node) -> Self {
        Self { node }
    }

    /// Whether this member leads in `term`, or in any term if `None`.
    fn leads(&self, term: Option<u64>) -> bool {
        let known = self.node.leadership();
        known.leader == Some(self.node.member_id()) && term.is_none_or(|term| term == known.term)
    }

    /// A refusal before anything happened.
    fn refusal(&self, reason: Reason) -> pb::Refusal {
        let known = self.node.leadership();
        pb::Refusal {
            code: u32::try_from(i32::from(reason.code())).unwrap_or_default(),
            text: reason.text().to_owned(),
            leader: known.leader.unwrap_or(0),
            term: known.term,
            not_applied: true,
        }
    }

    async fn forward(&self, request: pb::ForwardRequest) -> pb::ForwardResponse {
        use pb::forward_response::Outcome;
        let outcome = match self.propose_for(request).await {
            Ok(()) => Outcome::Accepted(pb::Done {}),
            Err(reason) => Outcome::Refused(self.refusal(reason)),
        };
        pb::ForwardResponse {
            outcome: Some(outcome),
        }
    }

    /// Proposes what is new of a forwarded batch; an error means that nothing was appended.
    async fn propose_for(&self, request: pb::ForwardRequest) -> Result<(), Reason> {
        let (term, boot) = (request.term, request.boot_id.clone());
        if !self.leads(Some(term)) {
            return Err(Reason::NotLeader);
        }
        let forwarded = &self.node.shared.forwarded;
        let proposals = match forwarded.admit(request) {
            Verdict::Propose(proposals) => proposals,
            Verdict::Known => return Ok(()),
            Verdict::Busy => return Err(Reason::TooManyRequests),
        };
        let sequences: Vec<u64> = proposals.iter().map(|proposal| proposal.sequence).collect();
        let mut settling = Settling {
            forwarded,
            term,
            boot,
            sequences,
            appended: true,
        };
        let batch = Bytes::from(Batch { proposals }.encode_to_vec());
        let refused = match self.node.shared.consensus.propose(batch, term).await {
            Ok(()) | Err(ProposeError::Discarded | ProposeError::Stopped) => return Ok(()),
            Err(ProposeError::NotLeader { .. }) => Reason::NotLeader,
            Err(ProposeError::NotNow | ProposeError::Full) => Reason::TooManyRequests,
        };
        settling.appended = false;
        Err(refused)
    }

    async fn read_index(&self) -> pb::ReadIndexResponse {
        use pb::read_index_response::Outcome;
        let index = if self.leads(None) {
            self.node
                .shared
                .reads
                .join(())
                .await
                .map_err(|error| error.reason())
        } else {
            Err(Reason::NotLeader)
        };
        let outcome = match index {
            Ok(index) => Outcome::Index(index),
            Err(reason) => Outcome::Refused(self.refusal(reason)),
        };
        pb::ReadIndexResponse {
            outcome: Some(outcome),
        }
    }

    async fn keep_alive(&self, request: pb::KeepAliveRequest) -> pb::KeepAliveResponse {
        use pb::kept_alive::Outcome;
        if !self.leads(None) {
            let refused = Some(self.refusal(Reason::NotLeader));
            return pb::KeepAliveResponse {
                leases: Vec::new(),
                refused,
            };
        }
        let renewals = request.ids.iter().map(|&id| async move {
            let outcome = match self.node.renew_as_leader(id).await {
                Ok(ttl_seconds) => Outcome::TtlSeconds(ttl_seconds),
                Err(error) => Outcome::Refused(self.refusal(error.reason())),
            };
            pb::KeptAlive {
                id,
                outcome: Some(outcome),
            }
        });
        let leases = futures::future::join_all(renewals).await;
        pb::KeepAliveResponse {
            leases,
            refused: None,
        }
    }

    async fn time_to_live(&self, request: pb::TimeToLiveRequest) -> pb::TimeToLiveResponse {
        use pb::time_to_live_response::Outcome;
        let outcome = match self.node.remaining_as_leader(request.id).await {
            Ok(remaining) => Outcome::RemainingSeconds(remaining),
            Err(error) => Outcome::Refused(self.refusal(error.reason())),
        };
        pb::TimeToLiveResponse {
            outcome: Some(outcome),
        }
    }

    async fn status(&self) -> pb::StatusResponse {
        let disk_bytes = self.node.disk_bytes().await.unwrap_or(0);
        let status = self.node.shared.consensus.status();
        let own = self.node.member_id();
        let members = self.node.shared.consensus.members();
        pb::StatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            term: status.term,
            leader: status.leader.unwrap_or(0),
            last_index: status.last_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            revision: self.node.shared.reader.revision(),
            disk_bytes: i64::try_from(disk_bytes).unwrap_or(i64::MAX),
            learner: members.get(&own).is_some_and(|member| !member.is_voter),
        }
    }

    async fn member_change(&self, request: pb::MemberChangeRequest) -> pb::MemberChangeResponse {
        use pb::member_change_response::Outcome;
        let made = match &request.kind {
            Some(kind) if self.leads(None) => self.node.change_as_leader(kind).await,
            Some(_) => Err(Reason::NotLeader.into()),
            None => Err(Reason::UnknownMethod.into()),
        };
        let outcome = match made {
            Ok(index) => Outcome::Index(index),
            Err(error) => Outcome::Refused(self.refusal(error.reason())),
        };
        pb::MemberChangeResponse {
            outcome: Some(outcome),
        }
    }

    fn cluster(&self) -> pb::MembersResponse {
        let members = self.node.known_members().into_iter();
        let members = members.map(|member| pb::MemberInfo {
            id: member.id,
            name: member.name,
            peer_urls: member.peer_ur_ls,
            client_urls: member.client_ur_ls,
            learner: member.is_learner,
        });
        pb::MembersResponse {
            cluster_id: self.node.cluster_id(),
            members: members.collect(),
        }
    }

    async fn hash_kv(&self, request: pb::HashKvRequest) -> pb::HashKvResponse {
        use pb::hash_kv_response::Outcome;
        let request = quorate_proto::etcdserverpb::HashKvRequest {
            revision: request.revision,
        };
        let outcome = match self.node.hash_kv(request).await {
            Ok(hashed) => Outcome::Content(pb::ContentHash {
                hash: hashed.hash,
                revision: hashed.hash_revision,
                compact_revision: hashed.compact_revision,
            }),
            Err(error) => Outcome::Refused(self.refusal(error.reason())),
        };
        pb::HashKvResponse {
            outcome: Some(outcome),
        }
    }
}

/// Settles admitted sequences when it goes, also when the connection broke in the middle: a batch
/// that was given up on may still be appended.
struct Settling<'a> {
    forwarded: &'a Forwarded,
    term: u64,
    boot: Bytes,
    sequences: Vec<u64>,
    appended: bool,
}

impl Drop for Settling<'_> {
    fn drop(&mut self) {
        self.forwarded
            .settle(self.term, &self.boot, &self.sequences, self.appended);
    }
}

#[async_trait]
impl RequestHandler for Serving {
    async fn request(&self, from: u64, request: pb::Request) -> pb::Response {
        let answer = match request.kind {
            Some(Asked::Forward(request)) => Answered::Forward(self.forward(request).await),
            Some(Asked::ReadIndex(_)) => Answered::ReadIndex(self.read_index().await),
            Some(Asked::KeepAlive(request)) => Answered::KeepAlive(self.keep_alive(request).await),
            Some(Asked::TimeToLive(request)) => {
                Answered::TimeToLive(self.time_to_live(request).await)
            }
            Some(Asked::Status(_)) => Answered::Status(self.status().await),
            Some(Asked::HashKv(request)) => Answered::HashKv(self.hash_kv(request).await),
            Some(Asked::Drain(_)) => {
                self.node.drain().await;
                Answered::Drain(pb::Done {})
            }
            Some(Asked::MemberChange(request)) => {
                Answered::MemberChange(self.member_change(request).await)
            }
            Some(
                Asked::Vote(_)
                | Asked::PreVote(_)
                | Asked::TransferLeader(_)
                | Asked::SnapshotProgress(_),
            )
            | None => {
                tracing::debug!(from, "a request this member does not know");
                Answered::Failure(pb::Failure {
                    kind: pb::failure::Kind::UnknownMessage.into(),
                    detail: "not a request between nodes that this version knows".to_owned(),
                })
            }
        };
        pb::Response { kind: Some(answer) }
    }

    async fn members(&self) -> Option<pb::MembersResponse> {
        // The newest there are; but a cluster that has no quorum until this caller is up answers too.
        let barrier = self.node.read_barrier();
        if tokio::time::timeout(MEMBERS_BARRIER_LIMIT, barrier)
            .await
            .is_err()
        {
            tracing::debug!("telling who the members are without asking the leader");
        }
        Some(self.cluster())
    }

    async fn join(&self, request: pb::JoinRequest) -> Option<pb::JoinResponse> {
        use pb::join_response::Outcome;
        let outcome = match self.node.admit(request.peer_urls).await {
            Ok(id) => Outcome::Joined(pb::Joined {
                id,
                cluster: Some(self.cluster()),
            }),
            Err(error) => Outcome::Refused(self.refusal(error.reason())),
        };
        let outcome = Some(outcome);
        Some(pb::JoinResponse { outcome })
    }
}

impl Node {
    /// Sends one request to the leader `known`, and gives up when its term is over: it may be dead,
    /// and another may answer.
    pub(super) async fn ask_leader(
        &self,
        known: Leadership,
        request: Asked,
        timeout: Duration,
    ) -> Result<Answered, PeerError> {
        let leader = known.leader.unwrap_or(0);
        let way = self
            .shared
            .transport
            .as_ref()
            .and_then(|transport| transport.peer(leader));
        let way = way.ok_or(PeerError::Unknown(leader))?;
        let response = tokio::select! {
            response = way.request(pb::Request { kind: Some(request) }, timeout) => response?,
            () = self.term_over(known) => {
                return Err(PeerError::Cancelled("the leader's term is over".to_owned()));
            }
        };
        response
            .kind
            .ok_or_else(|| PeerError::Protocol("a response without a kind".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(term: u64, lowest_pending: u64, sequences: &[u64]) -> pb::ForwardRequest {
        let boot_id = Bytes::from_static(b"boot");
        let proposals = sequences
            .iter()
            .map(|&sequence| Proposal {
                boot_id: boot_id.clone(),
                sequence,
                command: None,
            })
            .collect();
        pb::ForwardRequest {
            boot_id,
            term,
            lowest_pending,
            proposals,
        }
    }

    fn proposed(verdict: Verdict) -> Vec<u64> {
        match verdict {
            Verdict::Propose(proposals) => proposals.iter().map(|new| new.sequence).collect(),
            Verdict::Known => Vec::new(),
            Verdict::Busy => panic!("busy"),
        }
    }

    #[test]
    fn a_batch_sent_again_is_proposed_once() {
        let forwarded = Forwarded::default();
        let boot = Bytes::from_static(b"boot");
        assert_eq!(proposed(forwarded.admit(forward(2, 1, &[1, 2]))), [1, 2]);
        assert_eq!(forwarded.admit(forward(2, 1, &[1, 2])), Verdict::Busy);
        forwarded.settle(2, &boot, &[1, 2], true);
        assert_eq!(proposed(forwarded.admit(forward(2, 1, &[1, 2, 3]))), [3]);
        forwarded.settle(2, &boot, &[3], false);
        assert_eq!(
            proposed(forwarded.admit(forward(2, 1, &[3]))),
            [3],
            "it was refused"
        );
        // In another term the log of the old one is over: nothing of it can come any more.
        assert_eq!(proposed(forwarded.admit(forward(3, 1, &[1]))), [1]);
    }

    #[test]
    fn a_late_copy_of_what_its_origin_no_longer_waits_for_is_dropped() {
        let forwarded = Forwarded::default();
        assert_eq!(proposed(forwarded.admit(forward(2, 5, &[5]))), [5]);
        assert_eq!(
            proposed(forwarded.admit(forward(2, 1, &[4]))),
            Vec::<u64>::new()
        );
        let state = forwarded.lock();
        assert_eq!(state.origins.values().next().unwrap().met.len(), 1);
    }
}
