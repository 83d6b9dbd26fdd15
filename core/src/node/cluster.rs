//! Who is a member: from consensus its id and peers' addresses, from the replicated `members` table
//! what it said of itself.

use quorate_proto::etcdserverpb::{Member, MemberListResponse};
use quorate_proto::log::MemberAttributes;
use quorate_proto::log::command::Kind;

use super::Node;
use crate::error::Result;

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
        let said = self.shared.reader.members();
        let members = self
            .shared
            .consensus
            .members()
            .into_iter()
            .map(|(id, member)| {
                let own = said.iter().find(|said| said.id == id);
                Member {
                    id,
                    name: own.map(|own| own.name.clone()).unwrap_or_default(),
                    peer_ur_ls: member.peer.peer_urls,
                    client_ur_ls: own.map(|own| own.client_urls.clone()).unwrap_or_default(),
                    is_learner: !member.is_voter,
                }
            })
            .collect();
        Ok(MemberListResponse {
            header: Some(self.header_at(0)),
            members,
        })
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
