//! Queues: how much there is, how old it is, who has what.

use serde::Serialize;

use super::look::Look;
use crate::error::Result;
use crate::keys::{KeyRange, KeySpace};
use crate::kit::ItemId;
use crate::lock::Holder;
use crate::queue::{self, Queue, QueueStatus};

/// Most items of a queue whose holders are told, and tasks of a condition queue.
pub(super) const TAKEN_MAX: usize = 256;

/// A queue, or a lane of one.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct QueueInfo {
    /// Its name.
    pub name: String,
    /// Which lane, of a queue that has some.
    pub lane: Option<u32>,
    /// How much there is.
    pub status: QueueStatus,
    /// When the item that stands first was pushed, in milliseconds since the Unix epoch by the pusher's wall
    /// clock; `None`: there is none, or it cannot be read.
    pub oldest_ms: Option<u64>,
    /// Items that somebody has, the oldest segments' first; at most 256 are told.
    pub taken: Vec<TakenInfo>,
    /// Why its limit cannot be read, if it has one that cannot.
    pub unreadable: Option<String>,
}

/// An item that a consumer has.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TakenInfo {
    /// The item.
    #[serde(serialize_with = "as_text")]
    pub item: ItemId,
    /// Who has it, and since when.
    pub by: Holder,
}

fn as_text<S: serde::Serializer>(item: &ItemId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(item)
}

impl QueueInfo {
    fn is_unused(&self) -> bool {
        let status = &self.status;
        status.items + status.delayed + status.dead + status.consumers == 0
    }
}

/// All queues.
pub(super) async fn queues(look: &Look) -> Result<Vec<QueueInfo>> {
    let mut found = Vec::new();
    for name in look.names(queue::KIND).await? {
        let space = KeySpace::of(queue::KIND, &name);
        let lanes = look.list(KeyRange::one(queue::lanes_key(&space))).await?;
        let lanes = lanes.first().map_or(0, queue::lanes_of);
        for lane in 0..lanes {
            let space = queue::lane_space(&space, lane);
            found.push(one(look, &name, Some(lane), space).await?);
        }
        // Both may be there under one name.
        let whole = one(look, &name, None, space).await?;
        if lanes == 0 || !whole.is_unused() {
            found.push(whole);
        }
    }
    Ok(found)
}

async fn one(look: &Look, name: &str, lane: Option<u32>, space: KeySpace) -> Result<QueueInfo> {
    let queue: Queue<()> = Queue::new(look.client(), space);
    let survey = queue.survey(look.revision(), TAKEN_MAX).await?;
    let oldest_ms = match survey.first_segment {
        Some(segment) => queue.oldest_ms(look.revision(), segment).await?,
        None => None,
    };
    let taken = survey.claims.iter().map(|(item, kv)| TakenInfo {
        item: item.clone(),
        by: look.holder(kv),
    });
    Ok(QueueInfo {
        name: name.to_owned(),
        lane,
        taken: taken.collect(),
        unreadable: survey.unreadable.map(|error| error.to_string()),
        status: survey.status,
        oldest_ms,
    })
}
