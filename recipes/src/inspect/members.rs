//! Services, groups, and the partitions that groups share out.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;
use serde_json::Value;

use super::look::{Look, by_name};
use crate::client::Identity;
use crate::error::Result;
use crate::keys::{KeySpace, LeaseId, Revision};
use crate::lock::Holder;
use crate::membership::{self, Member};
use crate::registry::{self, Health, Status};

/// A service.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServiceInfo {
    /// Its name.
    pub name: String,
    /// Its instances, in the order of their ids.
    pub instances: Vec<InstanceInfo>,
    /// Keys among the instances' that cannot be read, and why.
    pub unreadable: BTreeMap<String, String>,
}

/// An instance of a service.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct InstanceInfo {
    /// Its id.
    pub id: String,
    /// Where it is reached.
    pub address: String,
    /// Whether it takes work: its owner wants it to, and its checks, if it has any, have all passed.
    pub takes_work: bool,
    /// Whether its owner wants it to take work.
    pub status: Status,
    /// What its own checks have found; `None` when it has none.
    pub health: Option<Health>,
    /// Its share of the work, among those of all instances.
    pub weight: u32,
    /// Where it runs; may be empty.
    pub zone: String,
    /// What it runs; may be empty.
    pub version: String,
    /// What else is said of it.
    pub tags: BTreeSet<String>,
    /// What it says of itself besides.
    pub meta: Option<Value>,
    /// The lease that it goes with; 0: none.
    pub lease: LeaseId,
    /// Whose lease that is.
    pub who: Option<Identity>,
    /// The revision at which it came.
    pub created: Revision,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// Its members, in the order in which they came.
    pub members: Vec<MemberInfo>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MemberInfo {
    /// Its id.
    pub id: String,
    /// What it says of itself; `None` if that cannot be read.
    pub info: Option<Value>,
    /// The lease that it goes with.
    pub lease: LeaseId,
    /// Whose lease that is.
    pub who: Option<Identity>,
    /// The revision at which it came.
    pub created: Revision,
}

/// A set of partitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PartitionsInfo {
    /// Its name.
    pub name: String,
    /// Those who share them, in the order in which they came.
    pub members: Vec<MemberInfo>,
    /// Who has each partition that somebody has.
    pub owners: BTreeMap<u32, Holder>,
}

/// All services.
pub(super) async fn services(look: &Look) -> Result<Vec<ServiceInfo>> {
    let kvs = look.list_kind(registry::KIND).await?;
    let each = by_name(registry::KIND, kvs)
        .into_iter()
        .map(|(name, keys)| {
            let space = KeySpace::of(registry::KIND, &name);
            let mut service = ServiceInfo {
                name,
                instances: Vec::new(),
                unreadable: BTreeMap::new(),
            };
            for (rest, kv) in &keys {
                match registry::read::<Value>(&space, kv) {
                    registry::Reading::There(endpoint) => service.instances.push(InstanceInfo {
                        who: look.who(endpoint.lease).cloned(),
                        takes_work: endpoint.takes_work(),
                        id: endpoint.id,
                        address: endpoint.address,
                        status: endpoint.status,
                        health: endpoint.health,
                        weight: endpoint.weight,
                        zone: endpoint.zone,
                        version: endpoint.version,
                        tags: endpoint.tags,
                        meta: endpoint.meta.as_deref().cloned(),
                        lease: endpoint.lease,
                        created: endpoint.created,
                    }),
                    registry::Reading::Leaving => {}
                    registry::Reading::Unreadable(why) => {
                        service.unreadable.insert(rest.clone(), why);
                    }
                }
            }
            service
        });
    Ok(each.collect())
}

/// All groups.
pub(super) async fn groups(look: &Look) -> Result<Vec<GroupInfo>> {
    let kvs = look.list_kind(membership::KIND).await?;
    let each = by_name(membership::KIND, kvs)
        .into_iter()
        .map(|(name, keys)| {
            let space = KeySpace::of(membership::KIND, &name);
            let members = keys.iter().filter_map(|(_, kv)| member(look, &space, kv));
            let members = in_order(members.collect());
            GroupInfo { name, members }
        });
    Ok(each.collect())
}

/// All sets of partitions.
pub(super) async fn partitions(look: &Look) -> Result<Vec<PartitionsInfo>> {
    let kvs = look.list_kind(crate::assign::KIND).await?;
    let each = by_name(crate::assign::KIND, kvs)
        .into_iter()
        .map(|(name, keys)| {
            let space = KeySpace::of(crate::assign::KIND, &name);
            let (members, owners) = sharing(look, &space, &keys);
            PartitionsInfo {
                name,
                members,
                owners,
            }
        });
    Ok(each.collect())
}

/// Who shares partitions out, in the order in which they came, and who has which. The keys are with what follows
/// the space.
pub(super) fn sharing(
    look: &Look,
    space: &KeySpace,
    keys: &[(String, KeyValue)],
) -> (Vec<MemberInfo>, BTreeMap<u32, Holder>) {
    let at = space.child("member");
    let mut owners: BTreeMap<u32, Holder> = BTreeMap::new();
    let mut members = Vec::new();
    for (rest, kv) in keys {
        members.extend(member(look, &at, kv));
        let partition = rest
            .split_once('/')
            .and_then(|(index, _)| index.parse().ok());
        let Some(partition) = partition.filter(|_| kv.lease != 0) else {
            continue;
        };
        // The others stand in line for it.
        let first = owners.get(&partition);
        if first.is_none_or(|first| kv.create_revision < first.revision.0) {
            owners.insert(partition, look.holder(kv));
        }
    }
    (in_order(members), owners)
}

fn member(look: &Look, space: &KeySpace, kv: &KeyValue) -> Option<MemberInfo> {
    match membership::read::<Value>(space, kv) {
        membership::Reading::There(Member {
            id,
            info,
            lease,
            created,
            ..
        }) => Some(MemberInfo {
            id,
            info: info.ok().as_deref().cloned(),
            who: look.who(lease).cloned(),
            lease,
            created,
        }),
        membership::Reading::Leaving | membership::Reading::Stranger => None,
    }
}

fn in_order(mut members: Vec<MemberInfo>) -> Vec<MemberInfo> {
    members.sort_by_key(|member| member.created);
    members
}
