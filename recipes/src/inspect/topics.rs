//! Topics: how much is kept, how far the groups are, who is in them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::look::{Look, by_first_part};
use super::members::{MemberInfo, sharing};
use crate::error::{Error, Result};
use crate::lock::Holder;
use crate::topic::{self, GroupLag, GroupStatus, PartitionStatus};

/// A topic.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its partitions, in order: what is kept, and what was removed.
    pub partitions: Vec<PartitionStatus>,
    /// The groups that read it.
    pub groups: BTreeMap<String, TopicGroupInfo>,
    /// Why nothing is told of its partitions and of how far groups are, when one of its records is damaged.
    pub unreadable: Option<String>,
}

/// A group of a topic.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TopicGroupInfo {
    /// How far it is in each partition, in order; none if it has not begun anywhere.
    pub partitions: Vec<GroupLag>,
    /// Its members, in the order in which they came.
    pub members: Vec<MemberInfo>,
    /// Who has each partition that somebody has.
    pub owners: BTreeMap<u32, Holder>,
}

/// All topics.
pub(super) async fn topics(look: &Look) -> Result<Vec<TopicInfo>> {
    let mut found = Vec::new();
    for name in look.names(topic::KIND).await? {
        found.push(one(look, name).await?);
    }
    Ok(found)
}

async fn one(look: &Look, name: String) -> Result<TopicInfo> {
    let mut info = TopicInfo {
        partitions: Vec::new(),
        groups: BTreeMap::new(),
        unreadable: None,
        name,
    };
    match topic::survey(look.client(), &info.name, look.revision()).await {
        Ok(status) => {
            info.partitions = status.partitions;
            let far = |status: GroupStatus| TopicGroupInfo {
                partitions: status.partitions,
                ..TopicGroupInfo::default()
            };
            let groups = status.groups.into_iter();
            info.groups = groups.map(|(name, status)| (name, far(status))).collect();
        }
        Err(damaged @ Error::Codec { .. }) => info.unreadable = Some(damaged.to_string()),
        Err(error) => return Err(error),
    }
    let shares = topic::shares(&info.name);
    let kvs = look.list(shares.range()).await?;
    for (name, keys) in by_first_part(&shares.range().start, kvs) {
        let (members, owners) = sharing(look, &shares.child(&name), &keys);
        let group = info.groups.entry(name).or_default();
        group.members = members;
        group.owners = owners;
    }
    Ok(info)
}
