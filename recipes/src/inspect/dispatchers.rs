//! Dispatchers: jobs, how far they are, who has them, and whose inbox is open.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use quorate_proto::mvccpb::KeyValue;
use serde::Serialize;

use super::look::Look;
use crate::dispatch::{self, Keys, Target};
use crate::error::Result;
use crate::keys::{Revision, decode};
use crate::lock::Holder;
use crate::queue::QueueStatus;

/// Most jobs of a dispatcher whose records are read.
const READ_MAX: usize = 10_000;

/// Most jobs of a dispatcher that are told one by one.
const JOBS_MAX: usize = 256;

/// Inboxes that are read at the same time.
const INBOXES_AT_ONCE: usize = 16;

/// A dispatcher.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DispatcherInfo {
    /// Its name.
    pub name: String,
    /// How many jobs there are, those that have ended and are still kept included.
    pub kept: u64,
    /// How many there are by state: `queued`, `delivered`, `running`, `done`, `failed`, `expired`, `cancelled`. Of
    /// more than 10,000 those are counted whose keys come first.
    pub states: BTreeMap<&'static str, u64>,
    /// Those that have not ended, in the order in which they were sent; then those that have, the last ones first. Of
    /// those that are counted by state at most 256 are told.
    pub jobs: Vec<DispatchedInfo>,
    /// How many are asked to end.
    pub cancelling: u64,
    /// Commands to many that some recipients have not got yet.
    pub unsent: u64,
    /// Where commands are sent to: the inboxes of instances, then those of services, by name.
    pub inboxes: Vec<InboxInfo>,
    /// Jobs whose records cannot be read, and why.
    pub unreadable: BTreeMap<String, String>,
}

/// A job of a dispatcher.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DispatchedInfo {
    /// Its id.
    pub id: String,
    /// Who is to do it.
    pub target: Target,
    /// `queued`, `delivered`, `running`, `done`, `failed`, `expired`, `cancelled`.
    pub state: &'static str,
    /// Who has it now, and since when.
    pub by: Option<Holder>,
    /// Whether it is asked to end.
    pub cancelling: bool,
    /// How often it was taken, of one that is delivered or running.
    pub attempt: Option<u32>,
    /// How much of it is done, 0 to 1, of one that is running.
    pub fraction: Option<f64>,
    /// What was told of it, or why it failed; may be empty.
    pub message: String,
    /// When it was sent, in milliseconds since the Unix epoch by the sender's wall clock.
    pub since_ms: u64,
    /// When it expires, by the same clock.
    pub due_ms: Option<u64>,
    /// The revision of its last change.
    pub revision: Revision,
}

/// Where commands for an instance, or for a service, are sent to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct InboxInfo {
    /// For whom.
    pub target: Target,
    /// Who takes them; none: nobody has it open.
    pub open: Vec<Holder>,
    /// How much there is. Commands are its items.
    pub status: QueueStatus,
}

/// All dispatchers.
pub(super) async fn dispatchers(look: &Look) -> Result<Vec<DispatcherInfo>> {
    let mut found = Vec::new();
    for name in look.names(dispatch::KIND).await? {
        found.push(one(look, name).await?);
    }
    Ok(found)
}

/// Where commands are sent to, and who has which job.
async fn inboxes(look: &Look, keys: &Keys) -> Result<(Vec<InboxInfo>, HashMap<String, KeyValue>)> {
    let mut targets = Vec::new();
    for (space, target_of) in keys.inboxes() {
        targets.extend(look.below(&space).await?.into_iter().map(target_of));
    }
    let found = targets.into_iter().map(|target| inbox(look, keys, target));
    let found: Vec<_> = stream::iter(found)
        .buffered(INBOXES_AT_ONCE)
        .try_collect()
        .await?;
    let (inboxes, claims): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    Ok((inboxes, claims.into_iter().flatten().collect()))
}

/// One of them, with who has which of its jobs.
async fn inbox(
    look: &Look,
    keys: &Keys,
    target: Target,
) -> Result<(InboxInfo, Vec<(String, KeyValue)>)> {
    let queue = keys.queue(&target);
    let (survey, open) = futures::try_join!(
        queue.survey(look.revision(), usize::MAX),
        look.list(keys.takers(&target))
    )?;
    let taken = survey.claims.into_iter();
    let claims = taken.filter_map(|(item, kv)| Some((Keys::job_of(&item)?, kv)));
    let info = InboxInfo {
        open: open.iter().map(|kv| look.holder(kv)).collect(),
        target,
        status: survey.status,
    };
    Ok((info, claims.collect()))
}

async fn one(look: &Look, name: String) -> Result<DispatcherInfo> {
    let keys = Keys::new(look.client(), &name);
    let (inboxes, claims) = inboxes(look, &keys).await?;
    let cancels = keys.cancels();
    let cancelling = look.list(cancels.range()).await?;
    let cancelling = cancelling.iter().filter_map(|kv| cancels.suffix(&kv.key));
    let cancelling: HashSet<String> = cancelling.filter_map(decode).collect();
    let mut info = DispatcherInfo {
        name,
        kept: look.count(keys.jobs().range()).await?,
        states: BTreeMap::new(),
        jobs: Vec::new(),
        cancelling: u64::try_from(cancelling.len()).unwrap_or(u64::MAX),
        unsent: look.count(keys.unsent().range()).await?,
        inboxes,
        unreadable: BTreeMap::new(),
    };
    let (mut waiting, mut ended) = (Vec::new(), Vec::new());
    for kv in look.first(keys.jobs().range(), READ_MAX).await? {
        let Some((id, told)) = keys.told(&kv) else {
            continue;
        };
        let told = match told {
            Ok(told) => told,
            Err(error) => {
                info.unreadable.insert(id, error.to_string());
                continue;
            }
        };
        *info.states.entry(told.state).or_default() += 1;
        let (jobs, place) = match told.ended {
            false => (&mut waiting, kv.create_revision),
            true => (&mut ended, -kv.mod_revision),
        };
        let job = DispatchedInfo {
            by: claims.get(&id).map(|kv| look.holder(kv)),
            cancelling: cancelling.contains(&id),
            id,
            target: told.target,
            state: told.state,
            attempt: told.attempt,
            fraction: told.fraction,
            message: told.message,
            since_ms: told.since_ms,
            due_ms: told.due_ms,
            revision: Revision(kv.mod_revision),
        };
        jobs.push((place, job));
    }
    for jobs in [&mut waiting, &mut ended] {
        jobs.sort_by_key(|(place, _)| *place);
    }
    let jobs = waiting.into_iter().chain(ended);
    info.jobs = jobs.map(|(_, job)| job).take(JOBS_MAX).collect();
    Ok(info)
}
