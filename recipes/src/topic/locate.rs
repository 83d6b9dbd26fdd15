//! Finds the place in a partition that a reader begins at, and how many messages are before it.

use std::time::{SystemTime, UNIX_EPOCH};

use quorate_proto::etcdserverpb::{RangeRequest, ResponseOp, TxnRequest};
use quorate_proto::mvccpb::KeyValue;

use super::position::{Place, Position, Start};
use super::record::{Layout, RemovedRecord, since_ms};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::kit::Head;
use crate::store::ops;
use crate::wait;

/// A place, and how many messages of the partition are before it, removed ones included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) place: Place,
    /// `None`: not known, because some that are not before it were removed.
    pub(super) passed: Option<u64>,
}

/// Where a partition begins and ends, at one revision.
#[derive(Debug, Clone, Copy)]
struct Extent {
    revision: Revision,
    head: Head,
    removed: RemovedRecord,
}

/// What a reader wants of a partition in which it has no place yet.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    After(Revision),
    /// By the publishers' wall clocks.
    SinceMs(u64),
}

impl Wanted {
    /// Whether a segment that ends with this message has some of it.
    fn is_up_to(self, last: &KeyValue) -> bool {
        match self {
            Self::After(revision) => last.create_revision > revision.0,
            Self::SinceMs(wanted) => since_ms(last) >= wanted,
        }
    }

    /// The place before all of it, if some of it was removed.
    fn before(self, removed: &RemovedRecord) -> Option<Place> {
        let last = removed.segment.checked_sub(1)?;
        match self {
            Self::After(revision) => {
                (removed.revision() > revision).then(|| Place::behind(last, revision))
            }
            Self::SinceMs(wanted) => {
                let lost = removed.messages > 0 && removed.since_ms >= wanted;
                lost.then(|| Place::start_of(last))
            }
        }
    }
}

/// Finds places in one partition. Trouble with the store is waited out.
pub(super) struct Locator<'a> {
    pub(super) layout: &'a Layout,
    pub(super) partition: u32,
}

impl Locator<'_> {
    /// The spot at which a reader begins.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a position that is none of this topic; [`Error::Codec`]; the store's final
    /// refusals.
    pub(super) async fn find(&self, start: &Start) -> Result<Spot> {
        match start {
            Start::Latest => self.end().await,
            Start::Earliest => Ok(first_of(&self.extent().await?.removed)),
            Start::After(position) if position.partition == self.partition => {
                self.after(position).await
            }
            Start::After(position) => self.after_revision(position.revision()).await,
            Start::AfterRevision(revision) => self.after_revision(*revision).await,
            Start::Since(time) => self.since(*time).await,
        }
    }

    /// Behind everything that has been committed.
    ///
    /// # Errors
    /// As [`Locator::find`].
    pub(super) async fn end(&self) -> Result<Spot> {
        let everything = ops::counting(self.layout.log(self.partition).range(0, None));
        let (extent, found) = self.extent_with(Some(everything)).await?;
        Ok(Spot {
            place: Place::behind(extent.head.segment, extent.revision),
            passed: Some(extent.removed.messages + ops::count(&found, 2)),
        })
    }

    async fn extent(&self) -> Result<Extent> {
        Ok(self.extent_with(None).await?.0)
    }

    async fn extent_with(&self, more: Option<RangeRequest>) -> Result<(Extent, Vec<ResponseOp>)> {
        let log = self.layout.log(self.partition);
        let reads = [
            ops::get(log.head_key()),
            ops::get(self.layout.removed(self.partition)),
        ];
        let (revision, found) = self.read(reads.into_iter().chain(more)).await?;
        let extent = Extent {
            revision,
            head: log.head_of(ops::kvs(&found, 0).first())?,
            removed: RemovedRecord::read(ops::kvs(&found, 1).first())?,
        };
        Ok((extent, found))
    }

    async fn after(&self, position: &Position) -> Result<Spot> {
        let extent = self.extent().await?;
        if position.segment() > extent.head.segment || position.revision() > extent.revision {
            return Err(Error::Invalid(format!(
                "{position} is no position of {}",
                self.layout.any_key()
            )));
        }
        self.count_before(position.place.clone(), None).await
    }

    async fn after_revision(&self, revision: Revision) -> Result<Spot> {
        let extent = self.extent().await?;
        let wanted = Wanted::After(revision);
        let segment = self.first_with(wanted, &extent).await?;
        // Of a revision that has not come yet, everything from now on is after it.
        let place = Place::behind(segment, extent.revision.min(revision));
        self.count_before(place, Some(wanted)).await
    }

    async fn since(&self, time: SystemTime) -> Result<Spot> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let wanted = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let extent = self.extent().await?;
        let since = Wanted::SinceMs(wanted);
        let segment = self.first_with(since, &extent).await?;
        let log = self.layout.log(self.partition);
        let (_, mut kvs) = self.layout.client.list(log.segment(segment)).await?;
        let place_of = |kv: &KeyValue| log.position(kv).map(|position| Place::of(&position));
        kvs.sort_by_cached_key(|kv| place_of(kv));
        let older = kvs.iter().take_while(|kv| since_ms(kv) < wanted).last();
        let place = older.and_then(place_of);
        let place = place.unwrap_or(Place::start_of(segment));
        self.count_before(place, Some(since)).await
    }

    /// The first segment that has some of what is wanted, else the head. Reads the ends of a few segments, not
    /// the log. What is removed meanwhile is for [`Locator::count_before`] to see.
    async fn first_with(&self, wanted: Wanted, extent: &Extent) -> Result<u64> {
        let (mut low, mut high) = (extent.removed.segment, extent.head.segment);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.last_of(middle).await? {
                Some(last) if wanted.is_up_to(&last) => high = middle,
                _ => low = middle + 1,
            }
        }
        Ok(low)
    }

    /// The message of a segment that was committed last.
    async fn last_of(&self, segment: u64) -> Result<Option<KeyValue>> {
        let mut last = ops::newest(self.layout.log(self.partition).segment(segment), 1);
        last.keys_only = false;
        let found = wait::read(&self.layout.client, last).await?;
        Ok(found.kvs.into_iter().next())
    }

    /// How many messages are up to this place. If some of what is wanted was removed, a place before that
    /// instead, so that the reader tells.
    async fn count_before(&self, place: Place, wanted: Option<Wanted>) -> Result<Spot> {
        let log = self.layout.log(self.partition);
        let mut segment = ops::range(log.segment(place.segment));
        segment.keys_only = true;
        let (_, found) = self
            .read([
                ops::get(self.layout.removed(self.partition)),
                ops::counting(log.range(0, Some(place.segment))),
                segment,
            ])
            .await?;
        let removed = RemovedRecord::read(ops::kvs(&found, 0).first())?;
        if let Some(place) = wanted.and_then(|wanted| wanted.before(&removed)) {
            let passed = None;
            return Ok(Spot { place, passed });
        }
        if place.segment < removed.segment {
            let passed = None;
            return Ok(Spot { place, passed });
        }
        let before = ops::kvs(&found, 2).iter().filter(|kv| {
            let position = log.position(kv);
            position.is_some_and(|position| Place::of(&position) <= place)
        });
        let before = u64::try_from(before.count()).unwrap_or(u64::MAX);
        let passed = Some(removed.messages + ops::count(&found, 1) + before);
        Ok(Spot { place, passed })
    }

    /// Reads at one revision.
    async fn read(
        &self,
        reads: impl IntoIterator<Item = RangeRequest>,
    ) -> Result<(Revision, Vec<ResponseOp>)> {
        let request = TxnRequest {
            success: reads.into_iter().map(ops::read).collect(),
            ..TxnRequest::default()
        };
        let (answer, _) = wait::repeat(&self.layout.client, request).await?;
        let revision = Revision(answer.header.map_or(0, |header| header.revision));
        Ok((revision, answer.responses))
    }
}

/// Before the first message that there still is.
pub(super) fn first_of(removed: &RemovedRecord) -> Spot {
    Spot {
        place: Place::start_of(removed.segment),
        passed: Some(removed.messages),
    }
}
