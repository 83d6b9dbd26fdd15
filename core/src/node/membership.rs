//! Changes of the membership: what clients ask of any member, and what the leader makes of it. One at
//! a time; the rules are etcd's, with one difference: a member that is added always learns first, and
//! gets its vote by itself once it has caught up, so that adding one never costs the cluster its
//! quorum.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberPromoteRequest, MemberPromoteResponse,
    MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
};
use quorate_proto::log::MemberAttributes;
use quorate_proto::log::command::Kind as Logged;
use quorate_proto::peer::member_change_request::Kind;
use quorate_proto::peer::request::Kind as Asked;
use quorate_proto::peer::response::Kind as Answered;
use quorate_proto::{Reason, peer as pb};
use uuid::Uuid;

use super::Node;
use crate::clock;
use crate::config::check_url;
use crate::error::{Error, Result};
use crate::peer::{Activity, PeerError};
use crate::raft::{Change, Leadership, Peer, RaftMember};

/// Members that learn and want no vote, at most, as on etcd.
const LEARNERS_MAX: usize = 1;
/// Entries a member may lack and yet count as caught up.
const LAG_MAX: u64 = 1_000;
/// Pause between looks at who has caught up.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

impl Node {
    /// Adds a member that is to be started with an empty data folder afterwards. It learns at first;
    /// unless it is asked for as a learner, it gets a vote as soon as it has caught up.
    ///
    /// # Errors
    /// Bad or used peer URLs; too many learners; too few members that were started; time-outs, after
    /// which the member may have been added.
    pub async fn member_add(&self, request: MemberAddRequest) -> Result<MemberAddResponse> {
        check_peer_urls(&request.peer_ur_ls)?;
        let id = self
            .add_member(request.peer_ur_ls, request.is_learner)
            .await?;
        let members = self.known_members();
        Ok(MemberAddResponse {
            header: Some(self.header_at(0)),
            member: members.iter().find(|member| member.id == id).cloned(),
            members,
        })
    }

    async fn add_member(&self, peer_urls: Vec<String>, learner: bool) -> Result<u64> {
        // Random, and so never used before; derived ids and this one's neighbours are as unlikely.
        let (id, _) = Uuid::new_v4().as_u64_pair();
        let addition = pb::MemberAddition {
            id,
            peer_urls,
            learner,
        };
        self.change(Kind::Add(addition)).await?;
        Ok(id)
    }

    /// Removes a member, which stops when it hears of it. The leader hands over before it is removed.
    ///
    /// # Errors
    /// No such member; a change that would leave too few members that run; time-outs, after which
    /// it may have been removed.
    pub async fn member_remove(
        &self,
        request: MemberRemoveRequest,
    ) -> Result<MemberRemoveResponse> {
        self.change(Kind::Remove(request.id)).await?;
        Ok(MemberRemoveResponse {
            header: Some(self.header_at(0)),
            members: self.known_members(),
        })
    }

    /// Gives a member that learns its vote.
    ///
    /// # Errors
    /// No such member; it votes already; it has not caught up; time-outs, after which it may have its
    /// vote.
    pub async fn member_promote(
        &self,
        request: MemberPromoteRequest,
    ) -> Result<MemberPromoteResponse> {
        self.change(Kind::Promote(request.id)).await?;
        Ok(MemberPromoteResponse {
            header: Some(self.header_at(0)),
            members: self.known_members(),
        })
    }

    /// Replaces the addresses at which peers look for a member.
    ///
    /// # Errors
    /// Bad or used peer URLs; no such member; time-outs, after which they may have been replaced.
    pub async fn member_update(
        &self,
        request: MemberUpdateRequest,
    ) -> Result<MemberUpdateResponse> {
        check_peer_urls(&request.peer_ur_ls)?;
        let addresses = pb::MemberAddresses {
            id: request.id,
            peer_urls: request.peer_ur_ls,
        };
        self.change(Kind::Update(addresses)).await?;
        Ok(MemberUpdateResponse {
            header: Some(self.header_at(0)),
            members: self.known_members(),
        })
    }

    /// Adds the member with these peer URLs, unless it is there and never started: then it is the one
    /// that asks, again.
    pub(super) async fn admit(&self, peer_urls: Vec<String>) -> Result<u64> {
        check_peer_urls(&peer_urls)?;
        self.read_barrier().await?;
        let members = self.members();
        let same = members
            .iter()
            .find(|(_, member)| sorted(&member.peer.peer_urls) == sorted(&peer_urls));
        match same {
            Some((id, _)) if !self.has_started(*id) => Ok(*id),
            _ => self.add_member(peer_urls, false).await,
        }
    }

    /// Has whoever leads make a change, and waits until this member has applied it.
    async fn change(&self, kind: Kind) -> Result<()> {
        if self.shared.transport.is_none() {
            let detail = "this member was started without peers and opens no socket for any";
            return Err(Error::with_detail(Reason::Unimplemented, detail));
        }
        let since = clock::now();
        let making = async {
            let index = self.make(kind).await?;
            self.shared.consensus.wait_applied(index).await
        };
        match tokio::time::timeout(self.shared.config.request_timeout(), making).await {
            Ok(made) => made,
            Err(_) => Err(self.timed_out(since).into()),
        }
    }

    /// Asks leader after leader until one has made the change or refuses it; the caller sets the
    /// deadline. Returns the index from which on the change shows.
    async fn make(&self, kind: Kind) -> Result<u64> {
        let mut leadership = self.shared.consensus.leadership();
        // Whether an attempt may have been made without an answer.
        let mut doubt = false;
        loop {
            let known = match leadership.wait_for(|known| known.leader.is_some()).await {
                Ok(known) => *known,
                Err(_) => return Err(Reason::Stopped.into()),
            };
            let made = if known.leader == Some(self.member_id()) {
                self.change_as_leader(&kind).await
            } else {
                self.change_by(known, &kind, &mut doubt).await
            };
            match made.map_err(|error| (error.reason(), error)) {
                Ok(index) => return Ok(index),
                Err((Reason::NotLeader, _)) => doubt = true,
                Err((Reason::ProposalDropped | Reason::NoLeader, _)) => {}
                // What was asked for is the case.
                Err((Reason::MemberNotFound, _)) if doubt && matches!(kind, Kind::Remove(_)) => {
                    return Ok(0);
                }
                Err((Reason::MemberNotLearner, _)) if doubt => return Ok(0),
                Err((_, error)) => return Err(error),
            }
            self.pause_for_change(known).await;
        }
    }

    async fn change_by(&self, known: Leadership, kind: &Kind, doubt: &mut bool) -> Result<u64> {
        let request = Asked::MemberChange(pb::MemberChangeRequest {
            kind: Some(kind.clone()),
        });
        let limit = self.shared.config.request_timeout();
        match self.ask_leader(known, request, limit).await {
            Ok(Answered::MemberChange(answer)) => match answer.outcome {
                Some(pb::member_change_response::Outcome::Index(index)) => Ok(index),
                Some(pb::member_change_response::Outcome::Refused(refusal)) => {
                    Err(refused(&refusal))
                }
                None => Err(Reason::NoLeader.into()),
            },
            Ok(_) | Err(PeerError::Protocol(_)) => Err(Error::with_detail(
                Reason::Internal,
                "the leader does not understand changes of the membership",
            )),
            Err(error) => {
                *doubt |= !error.certainly_not_handled();
                Err(Reason::NoLeader.into())
            }
        }
    }

    /// Checks and makes a change as the leader.
    ///
    /// # Errors
    /// The refusal; [`Reason::NotLeader`] and [`Reason::ProposalDropped`] mean that another attempt
    /// may go through.
    pub(super) async fn change_as_leader(&self, kind: &Kind) -> Result<u64> {
        // What is checked here must still be so when the change is made.
        let permit = self.shared.changing.acquire().await;
        let _permit = permit.map_err(|_| Error::from(Reason::Stopped))?;
        // All that was decided before shows, and this member still leads.
        let index = self.shared.reads.join(()).await?;
        self.shared.consensus.wait_applied(index).await?;
        let members = self.members();
        let change = match kind {
            Kind::Add(addition) => match self.addition(&members, addition)? {
                Some(change) => change,
                None => return Ok(index),
            },
            Kind::Promote(id) => self.promotion(&members, *id)?,
            Kind::Remove(id) => self.removal(&members, *id).await?,
            Kind::Update(addresses) => update(&members, addresses)?,
        };
        self.shared.consensus.change_membership(&change).await?;
        tracing::info!(?change, "the membership has changed");
        Ok(self.shared.consensus.status().applied_index)
    }

    /// `None`: it is there already, under this very id.
    fn addition(
        &self,
        members: &BTreeMap<u64, RaftMember>,
        addition: &pb::MemberAddition,
    ) -> Result<Option<Change>> {
        let pb::MemberAddition {
            id,
            peer_urls,
            learner,
        } = addition;
        check_peer_urls(peer_urls)?;
        if members.contains_key(id) {
            return Ok(None);
        }
        if *id == 0
            || self
                .shared
                .reader
                .members()
                .iter()
                .any(|said| said.id == *id)
        {
            return Err(Reason::MemberExists.into());
        }
        check_unused(members, peer_urls, None)?;
        let wants_vote = |member: &RaftMember| member.is_voter || member.peer.wants_vote;
        if *learner {
            let learners = members.values().filter(|member| !wants_vote(member));
            if learners.count() >= LEARNERS_MAX {
                return Err(Reason::TooManyLearners.into());
            }
        } else if self.shared.config.strict_reconfig_check {
            let voters = members.iter().filter(|(_, member)| wants_vote(member));
            let started = voters.clone().filter(|(id, _)| self.has_started(**id));
            let (voters, started) = (voters.count() + 1, started.count());
            // From one to two is the only way to grow one.
            if !(voters == 2 && started == 1) && started < quorum(voters) {
                return Err(Reason::NotEnoughStartedMembers.into());
            }
        }
        let peer = Peer {
            name: String::new(),
            peer_urls: peer_urls.clone(),
            wants_vote: !learner,
        };
        Ok(Some(Change::Add(*id, peer)))
    }

    fn promotion(&self, members: &BTreeMap<u64, RaftMember>, id: u64) -> Result<Change> {
        let Some(member) = members.get(&id) else {
            return Err(Reason::MemberNotFound.into());
        };
        if member.is_voter {
            return Err(Reason::MemberNotLearner.into());
        }
        let has_caught_up = self
            .shared
            .consensus
            .lag(id)
            .is_some_and(|lag| lag <= LAG_MAX);
        if !has_caught_up || !self.has_started(id) || !self.is_connected(id) {
            return Err(Reason::LearnerNotReady.into());
        }
        if self.shared.config.strict_reconfig_check {
            let voters = members.iter().filter(|(_, member)| member.is_voter);
            let connected = voters.clone().filter(|(id, _)| self.is_connected(**id));
            if connected.count() + 1 < quorum(voters.count() + 1) {
                return Err(Reason::Unhealthy.into());
            }
        }
        Ok(Change::Promote(id))
    }

    async fn removal(&self, members: &BTreeMap<u64, RaftMember>, id: u64) -> Result<Change> {
        let Some(member) = members.get(&id) else {
            return Err(Reason::MemberNotFound.into());
        };
        let left = members
            .iter()
            .filter(|(other, member)| member.is_voter && **other != id);
        let left: Vec<u64> = left.map(|(id, _)| *id).collect();
        if left.is_empty() {
            return Err(Reason::NotEnoughStartedMembers.into());
        }
        if member.is_voter && self.shared.config.strict_reconfig_check {
            let started = left.iter().filter(|id| self.has_started(**id)).count();
            if started < quorum(left.len()) {
                return Err(Reason::NotEnoughStartedMembers.into());
            }
            let connected = left.iter().filter(|id| self.is_connected(**id)).count();
            if connected < quorum(left.len()) {
                return Err(Reason::Unhealthy.into());
            }
        }
        if !self
            .shared
            .reader
            .members()
            .iter()
            .any(|said| said.id == id)
        {
            // Its id stays known, and refused, although it never said anything of itself.
            let attributes = MemberAttributes {
                id,
                peer_urls: member.peer.peer_urls.clone(),
                ..MemberAttributes::default()
            };
            self.propose(Logged::MemberAttributes(attributes)).await?;
        }
        if id == self.member_id() {
            self.hand_over().await;
            if self.leadership().leader != Some(id) {
                return Err(Reason::NotLeader.into());
            }
        }
        self.have_drained(id).await;
        Ok(Change::Remove(id))
    }

    /// Whether a member has ever taken part: it runs now, or has said who it is.
    fn has_started(&self, id: u64) -> bool {
        let said = self.shared.reader.members();
        let has_spoken = said
            .iter()
            .any(|said| said.id == id && !said.incarnation.is_empty());
        has_spoken || self.is_connected(id)
    }

    fn is_connected(&self, id: u64) -> bool {
        let is_up = |activity| matches!(activity, Activity::Active(_));
        id == self.member_id()
            || self
                .peers()
                .iter()
                .any(|peer| peer.id == id && is_up(peer.activity))
    }
}

/// Gives those their vote that want one and have caught up, while this member leads.
pub(super) async fn give_votes(node: Node) {
    loop {
        tokio::time::sleep(LOOK_PAUSE).await;
        if node.leadership().leader != Some(node.member_id()) {
            continue;
        }
        let members = node.members();
        let next = members
            .iter()
            .find(|(_, member)| !member.is_voter && member.peer.wants_vote);
        let Some((id, _)) = next else {
            continue;
        };
        // Not ready yet, or no longer the leader: the next look sees.
        if let Err(error) = node.change_as_leader(&Kind::Promote(*id)).await {
            tracing::debug!(member = id, %error, "no vote yet");
        }
    }
}

fn update(members: &BTreeMap<u64, RaftMember>, addresses: &pb::MemberAddresses) -> Result<Change> {
    let pb::MemberAddresses { id, peer_urls } = addresses;
    check_peer_urls(peer_urls)?;
    let Some(member) = members.get(id) else {
        return Err(Reason::MemberNotFound.into());
    };
    check_unused(members, peer_urls, Some(*id))?;
    let peer = Peer {
        peer_urls: peer_urls.clone(),
        ..member.peer.clone()
    };
    Ok(Change::Update(*id, peer))
}

fn check_peer_urls(peer_urls: &[String]) -> Result<()> {
    if peer_urls.is_empty() {
        return Err(Reason::MemberBadUrls.into());
    }
    for url in peer_urls {
        check_url("peer URL", url)
            .map_err(|error| Error::from(Reason::MemberBadUrls).caused_by(error))?;
    }
    Ok(())
}

/// Refuses addresses of a member other than `but`.
fn check_unused(
    members: &BTreeMap<u64, RaftMember>,
    peer_urls: &[String],
    but: Option<u64>,
) -> Result<()> {
    let mut others = members.iter().filter(|(id, _)| Some(**id) != but);
    let uses = |member: &RaftMember| {
        let mut urls = member.peer.peer_urls.iter();
        urls.any(|url| peer_urls.contains(url))
    };
    if others.any(|(_, member)| uses(member)) {
        return Err(Reason::PeerUrlExists.into());
    }
    Ok(())
}

const fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

fn sorted(urls: &[String]) -> Vec<&String> {
    let mut urls: Vec<&String> = urls.iter().collect();
    urls.sort();
    urls
}

/// The error that a leader's refusal stands for.
fn refused(refusal: &pb::Refusal) -> Error {
    let code = i32::try_from(refusal.code).unwrap_or_default();
    let known = Reason::find(tonic::Code::from(code), &refusal.text);
    known.map_or_else(
        || Error::with_detail(Reason::Internal, refusal.text.clone()),
        Error::from,
    )
}
