//! Looking at what recipes do, from their keys alone: of any program, without a session, changing
//! nothing. Under the command line and the console, and for programs of one's own.
//!
//! Each call shows the store as it was at one revision, which it tells; what it finds can be written as JSON.
//! [`Inspect::overview`] shows everything at the same one. What cannot be read is told or left out, and hides
//! nothing else. Times of day are those that programs wrote by their own wall clocks.
//!
//! `look` reads at one revision; the others are about one kind each.

mod conditions;
mod configs;
mod crons;
mod deadlock;
mod dispatchers;
mod jobs;
mod locks;
mod look;
mod members;
mod probes;
mod queues;
mod rates;
#[cfg(test)]
mod tests;
mod topics;

use std::time::Duration;

use serde::Serialize;

pub use conditions::{ConditionInfo, ConditionRule, GateInfo, GatheringInfo, TermInfo};
pub use configs::{ConfigInfo, SettingInfo};
pub use crons::CronInfo;
pub use deadlock::{Deadlock, LockKind, LockName, Wait};
pub use dispatchers::{DispatchedInfo, DispatcherInfo, InboxInfo};
pub use jobs::{JobInfo, TaskInfo, TaskStanding};
pub use locks::{Candidate, Contention, ElectionInfo, LockInfo};
pub use look::{Listing, SessionInfo};
pub use members::{GroupInfo, InstanceInfo, MemberInfo, PartitionsInfo, ServiceInfo};
pub use probes::ProbeInfo;
pub use queues::{QueueInfo, TakenInfo};
pub use rates::{QueueRates, Rates, TopicRates};
pub use topics::{TopicGroupInfo, TopicInfo};

use crate::client::Client;
use crate::error::Result;
use crate::keys::{KeyRange, KeySpace, LeaseId, Revision};
use look::Look;

/// Kinds of keys that are told as something else, or belong to something that is.
const TOLD: &[&str] = &[
    "assign",
    "condition",
    "config",
    "cron",
    "dispatch",
    "election",
    "election-meta",
    "epoch",
    "exclusive",
    "lane",
    "lock",
    "lock-meta",
    "member",
    "probe",
    "progress",
    "queue",
    "request",
    "rwlock",
    "semaphore",
    "service",
    "session",
    "topic",
];

/// Looks at recipes. Made by [`Client::inspect`].
///
/// ```no_run
/// # async fn example(client: quorate_recipes::Client) -> Result<(), quorate_recipes::Error> {
/// for lock in client.inspect().locks().await?.entries {
///     if let Some(holder) = lock.holders.first() {
///         println!("{}: {}, {} wait", lock.lock, holder.by, lock.waiters.len());
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Inspect {
    client: Client,
}

/// Everything that recipes have in the store, as it was at one revision.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Overview {
    /// The revision.
    pub revision: Revision,
    /// Sessions, in the order of their leases' names.
    pub sessions: Vec<SessionInfo>,
    /// Locks that somebody has or waits for.
    pub locks: Vec<LockInfo>,
    /// Elections in which somebody stands.
    pub elections: Vec<ElectionInfo>,
    /// Services.
    pub services: Vec<ServiceInfo>,
    /// Groups.
    pub groups: Vec<GroupInfo>,
    /// Sets of partitions.
    pub partitions: Vec<PartitionsInfo>,
    /// Queues and their lanes.
    pub queues: Vec<QueueInfo>,
    /// Condition queues.
    pub conditions: Vec<ConditionInfo>,
    /// Topics with their groups.
    pub topics: Vec<TopicInfo>,
    /// Dispatchers with their jobs and inboxes.
    pub dispatchers: Vec<DispatcherInfo>,
    /// Targets of probes that observers speak of.
    pub probes: Vec<ProbeInfo>,
    /// Jobs by the clock.
    pub crons: Vec<CronInfo>,
    /// Settings.
    pub configs: Vec<ConfigInfo>,
    /// Jobs whose tasks report.
    pub jobs: Vec<JobInfo>,
    /// Everything else: barriers, counters, live topics and what there is more.
    pub others: Vec<OtherInfo>,
}

/// Something of a kind that has no telling of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OtherInfo {
    /// The kind, as in its keys.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// How many keys it has.
    pub keys: u64,
}

impl Inspect {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Everything, at one revision. Costs what the listings cost together; queues and topics, of whatever length, are
    /// counted and not read.
    ///
    /// # Errors
    /// The store's; [`StoreError::Compacted`](crate::StoreError::Compacted) when each of several revisions was
    /// compacted while it was being read.
    pub async fn overview(&self) -> Result<Overview> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(Overview {
                revision: look.revision(),
                locks: locks::locks(&look).await?,
                elections: locks::elections(&look).await?,
                services: members::services(&look).await?,
                groups: members::groups(&look).await?,
                partitions: members::partitions(&look).await?,
                queues: queues::queues(&look).await?,
                conditions: conditions::conditions(&look).await?,
                topics: topics::topics(&look).await?,
                dispatchers: dispatchers::dispatchers(&look).await?,
                probes: probes::probes(&look).await?,
                crons: crons::crons(&look).await?,
                configs: configs::configs(&look).await?,
                jobs: jobs::jobs(&look).await?,
                others: others(&look).await?,
                sessions: look.sessions,
            })
        })
        .await
    }

    /// The sessions.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn sessions(&self) -> Result<Listing<SessionInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(look.sessions.clone()))
        })
        .await
    }

    /// How long a lease lives on unless it is renewed; `None`: it is over.
    ///
    /// # Errors
    /// The store's.
    pub async fn time_left(&self, lease: LeaseId) -> Result<Option<Duration>> {
        let found = self.client.store().lease_ttl(lease).await?;
        Ok(found.map(|found| found.remaining))
    }

    /// The locks that somebody has or waits for: mutexes, read-write locks, semaphores and compare-and-swap locks;
    /// not those under literal prefixes ([`Name::Raw`](crate::Name::Raw)).
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn locks(&self) -> Result<Listing<LockInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(locks::locks(&look).await?))
        })
        .await
    }

    /// The elections in which somebody stands; not those under literal prefixes.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn elections(&self) -> Result<Listing<ElectionInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(locks::elections(&look).await?))
        })
        .await
    }

    /// The services with their instances; not those under literal prefixes.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn services(&self) -> Result<Listing<ServiceInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(members::services(&look).await?))
        })
        .await
    }

    /// The groups with their members.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn groups(&self) -> Result<Listing<GroupInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(members::groups(&look).await?))
        })
        .await
    }

    /// The sets of partitions, who shares them and who has which.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn partitions(&self) -> Result<Listing<PartitionsInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(members::partitions(&look).await?))
        })
        .await
    }

    /// The queues and their lanes. Items are counted, not read.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn queues(&self) -> Result<Listing<QueueInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(queues::queues(&look).await?))
        })
        .await
    }

    /// The condition queues: who gathers, what is missing, which gates are open and who has what has passed them.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn conditions(&self) -> Result<Listing<ConditionInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(conditions::conditions(&look).await?))
        })
        .await
    }

    /// The dispatchers with their jobs and inboxes. Commands are counted, not read.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn dispatchers(&self) -> Result<Listing<DispatcherInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(dispatchers::dispatchers(&look).await?))
        })
        .await
    }

    /// What observers say of the targets of their probes; not of those under literal prefixes.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn probes(&self) -> Result<Listing<ProbeInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(probes::probes(&look).await?))
        })
        .await
    }

    /// The jobs by the clock, with their last runs; not those under literal prefixes.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn crons(&self) -> Result<Listing<CronInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(crons::crons(&look).await?))
        })
        .await
    }

    /// The topics that keep their messages, what is kept of each, and how far its groups are. Messages are counted,
    /// not read.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn topics(&self) -> Result<Listing<TopicInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(topics::topics(&look).await?))
        })
        .await
    }

    /// The settings, by namespace.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn configs(&self) -> Result<Listing<ConfigInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(configs::configs(&look).await?))
        })
        .await
    }

    /// The jobs, with what their tasks reported last.
    ///
    /// # Errors
    /// As [`Inspect::overview`].
    pub async fn jobs(&self) -> Result<Listing<JobInfo>> {
        Look::at_one_revision(&self.client, |look| async move {
            Ok(look.listing(jobs::jobs(&look).await?))
        })
        .await
    }
}

/// What is not told otherwise.
async fn others(look: &Look) -> Result<Vec<OtherInfo>> {
    let mut found = Vec::new();
    for kind in look.kinds().await? {
        if TOLD.contains(&kind.as_str()) {
            continue;
        }
        for name in look.names(&kind).await? {
            let space = KeySpace::of(&kind, &name);
            let itself = look.count(KeyRange::one(space.itself())).await?;
            found.push(OtherInfo {
                keys: itself + look.count(space.range()).await?,
                kind: kind.clone(),
                name,
            });
        }
    }
    Ok(found)
}
