//! How a member that has no data yet learns who it is: from its settings if it founds a cluster, from
//! the cluster if it joins one. Used by `bootstrap`.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::peer as pb;

use super::StartError;
use super::data_dir::{Identity, token_id};
use crate::clock;
use crate::config::{ClusterState, Config, InitialMember};
use crate::peer::{ask_to_join, fetch_members};
use uuid::Uuid;

/// How long one member may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the members are asked in turn before a member that joins gives up.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// Pause between rounds of asking.
const ASK_PAUSE: Duration = Duration::from_millis(500);

/// Who a member is, and whom it knows before its log says more.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) cluster_id: u64,
    pub(super) member_id: u64,
    /// All members, by id.
    pub(super) members: BTreeMap<u64, InitialMember>,
    /// Whether it forms the cluster together with the others, should it have no log.
    pub(super) is_founder: bool,
}

impl Known {
    /// As a data folder says.
    pub(super) fn of(identity: &Identity, config: &Config) -> Result<Self, StartError> {
        let names = config.initial_members();
        let member = |urls: &Vec<String>| InitialMember {
            name: names
                .iter()
                .find(|member| member.peer_urls == *urls)
                .map(|member| member.name.clone())
                .unwrap_or_default(),
            peer_urls: urls.clone(),
        };
        let members = identity.peers.iter().map(|(id, urls)| (*id, member(urls)));
        let derived = config.identities()?;
        let is_derived =
            (identity.cluster_id, identity.member_id) == (derived.cluster_id, derived.member_id);
        Ok(Self {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            members: members.collect(),
            is_founder: is_derived && founds(config),
        })
    }

    /// As the settings say, or the cluster that they tell this member to join.
    pub(super) async fn ask(config: &Config) -> Result<Self, StartError> {
        let derived = config.identities()?;
        match config.cluster.as_ref().map(|cluster| &cluster.state) {
            None | Some(ClusterState::New) => Ok(Self {
                cluster_id: derived.cluster_id,
                member_id: derived.member_id,
                members: derived.members,
                is_founder: true,
            }),
            Some(ClusterState::Existing) => find_itself(config).await,
            Some(ClusterState::Join(url)) => join(config, url).await,
        }
    }

    /// What to write into an empty folder.
    pub(super) fn identity(&self, config: &Config) -> Identity {
        Identity {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            incarnation: Uuid::new_v4(),
            peers: self
                .members
                .iter()
                .map(|(id, member)| (*id, member.peer_urls.clone()))
                .collect(),
            token: Some(token_id(&config.token)),
            is_removed: false,
        }
    }

    fn member_of(member_id: u64, cluster: pb::MembersResponse) -> Self {
        let members = cluster.members.into_iter().map(|member| {
            let (name, peer_urls) = (member.name, member.peer_urls);
            (member.id, InitialMember { name, peer_urls })
        });
        Self {
            cluster_id: cluster.cluster_id,
            member_id,
            members: members.collect(),
            is_founder: false,
        }
    }
}

fn founds(config: &Config) -> bool {
    let cluster = config.cluster.as_ref();
    cluster.is_none_or(|cluster| cluster.state == ClusterState::New)
}

/// Asks the other listed members until one knows a member with this one's peer URLs.
async fn find_itself(config: &Config) -> Result<Known, StartError> {
    let own = sorted(config.peer_urls());
    let members = config.initial_members();
    let others = members.iter().filter(|member| member.name != config.name);
    let urls: Vec<&String> = others.flat_map(|member| &member.peer_urls).collect();
    let deadline = clock::now() + ASK_LIMIT;
    let mut why = "the list of initial members names nobody else".to_owned();
    while !urls.is_empty() && clock::now() < deadline {
        for url in &urls {
            match fetch_members(url, ANSWER_LIMIT).await {
                Ok(cluster) => {
                    let found = cluster
                        .members
                        .iter()
                        .find(|member| sorted(member.peer_urls.clone()) == own);
                    if let Some(found) = found {
                        let id = found.id;
                        return Ok(Known::member_of(id, cluster));
                    }
                    why = format!(
                        "{url}: the cluster has no member with the peer URLs {}; add it first \
                         (`etcdctl member add`)",
                        own.join(",")
                    );
                }
                Err(error) => why = format!("{url}: {error}"),
            }
        }
        tracing::info!(why, "not found in the cluster yet, asking again");
        tokio::time::sleep(ASK_PAUSE).await;
    }
    Err(StartError::Join(why))
}

/// Has whoever serves peers at `url` add this member, unless it did already.
async fn join(config: &Config, url: &str) -> Result<Known, StartError> {
    use pb::join_response::Outcome;
    let deadline = clock::now() + ASK_LIMIT;
    loop {
        let request = pb::JoinRequest {
            peer_urls: config.peer_urls(),
        };
        let why = match ask_to_join(url, request, ANSWER_LIMIT).await {
            Ok(answer) => match answer.outcome {
                Some(Outcome::Joined(joined)) => {
                    let cluster = joined.cluster.unwrap_or_default();
                    return Ok(Known::member_of(joined.id, cluster));
                }
                Some(Outcome::Refused(refusal)) => refusal.text,
                None => "an answer without content".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        if clock::now() >= deadline {
            return Err(StartError::Join(format!("{url}: {why}")));
        }
        tracing::info!(url, why, "not added to the cluster yet, asking again");
        tokio::time::sleep(ASK_PAUSE).await;
    }
}

fn sorted(mut urls: Vec<String>) -> Vec<String> {
    urls.sort();
    urls
}
