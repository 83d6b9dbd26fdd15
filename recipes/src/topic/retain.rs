//! What is kept of a topic. Whole segments are removed, each in one transaction that also counts what goes, so
//! that readers can be told how much they missed; never the segment that is appended to. One of all who could
//! does it at a time.

use std::convert::Infallible;
use std::time::Duration;

use quorate_proto::etcdserverpb::TxnRequest;
use quorate_proto::mvccpb::KeyValue;

use super::record::{CursorRecord, Layout, RemovedRecord, since_ms};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::kit::{Contender, Head, Line};
use crate::lock::ContenderRecord;
use crate::session::Session;
use crate::store::ops::{self, Compare};
use crate::tasks::Tasks;
use crate::value::Json;
use crate::wait::{self, Backoff};

/// The pause between two looks, unless told otherwise.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What is kept of a topic: everything, unless one of the limits is set. What is beyond any of them is removed,
/// a whole segment at a time; readers that had not come so far are told what they missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    max_age: Option<Duration>,
    max_messages: Option<u64>,
    max_segments: Option<u64>,
    until_consumed: bool,
    every: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            max_age: None,
            max_messages: None,
            max_segments: None,
            until_consumed: false,
            every: LOOK_EVERY,
        }
    }
}

impl Retention {
    /// Everything is kept.
    #[must_use]
    pub fn forever() -> Self {
        Self::default()
    }

    /// Messages are kept at least so long, and about twice that where few come: by the wall clocks of their
    /// publishers and of the one who removes them.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// The newest so many messages of each partition are kept, and up to a segment more.
    #[must_use]
    pub fn max_messages(mut self, messages: u64) -> Self {
        self.max_messages = Some(messages);
        self
    }

    /// So many full segments of each partition are kept, and the one that is appended to.
    #[must_use]
    pub fn max_segments(mut self, segments: u64) -> Self {
        self.max_segments = Some(segments);
        self
    }

    /// Nothing is removed before every group has done it, whatever the limits; a group that never comes back
    /// is to be [forgotten](super::Topic::forget_group). A topic without any group is kept whole. Without a
    /// limit, what all groups have done is removed.
    #[must_use]
    pub fn until_consumed(mut self) -> Self {
        self.until_consumed = true;
        self
    }

    /// How often it is looked at what can be removed: every 5 s if not told; at least every millisecond.
    #[must_use]
    pub fn look_every(mut self, pause: Duration) -> Self {
        self.every = pause.max(Duration::from_millis(1));
        self
    }

    pub(super) fn is_forever(&self) -> bool {
        !self.has_limit() && !self.until_consumed
    }

    fn has_limit(&self) -> bool {
        self.max_age.is_some() || self.max_messages.is_some() || self.max_segments.is_some()
    }

    /// Whether a limit is exceeded, so that the oldest segment of a partition may go.
    fn exceeded(&self, oldest: &Oldest, now_ms: u64) -> bool {
        let age = Duration::from_millis(now_ms.saturating_sub(oldest.last_ms));
        let too_old = self.max_age.is_some_and(|most| age > most);
        let rest = oldest.retained.saturating_sub(oldest.messages);
        let too_many = self.max_messages.is_some_and(|most| rest >= most);
        let too_long = self.max_segments.is_some_and(|most| oldest.closed > most);
        !self.has_limit() || too_old || too_many || too_long
    }
}

/// The oldest segment of a partition, which is closed.
#[derive(Debug)]
struct Oldest {
    /// Messages in it.
    messages: u64,
    /// When the last of them was published.
    last_ms: u64,
    /// Messages in all segments; only counted when it matters.
    retained: u64,
    /// How many segments are closed.
    closed: u64,
}

/// Sees to it that what needs not be kept is removed. Made by [`Topic::retainer`](super::Topic::retainer);
/// dropping it ends that, and another one goes on.
#[derive(Debug)]
#[must_use = "a dropped retainer removes nothing"]
pub struct Retainer {
    tasks: Tasks,
}

impl Drop for Retainer {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

impl Retainer {
    pub(super) fn start(layout: &Layout, retention: &Retention, session: &Session) -> Self {
        let tasks = Tasks::current();
        let remover = Remover {
            layout: layout.clone(),
            retention: retention.clone(),
        };
        tasks.spawn("retention", remover.run(session.clone()));
        Self { tasks }
    }
}

struct Remover {
    layout: Layout,
    retention: Retention,
}

/// How far each group is, at one revision.
struct Groups {
    revision: Revision,
    /// Of each cursor the partition, and how many messages it has passed.
    cursors: Vec<(u32, Option<u64>)>,
}

impl Groups {
    /// Whether all groups have done the first so many messages of a partition.
    fn have_passed(&self, partition: u32, messages: u64) -> bool {
        let mut of_partition = self.cursors.iter().filter(|(known, _)| *known == partition);
        !self.cursors.is_empty()
            && of_partition.all(|(_, passed)| passed.is_some_and(|passed| passed >= messages))
    }
}

impl Remover {
    async fn run(self, session: Session) {
        let mut pause = Backoff::between_attempts(&self.layout.client);
        loop {
            let Err(error) = self.remove_while_in_charge(&session).await;
            if matches!(error, Error::SessionLost(_) | Error::Closed) {
                return;
            }
            tracing::warn!(%error, "nothing is removed from a topic");
            pause.pause().await;
        }
    }

    async fn remove_while_in_charge(&self, session: &Session) -> Result<Infallible> {
        let line = Line::of(&self.layout.retainers());
        let record = ContenderRecord::of(session, "retention");
        let contender = Contender::enter(session, line, Json(record)).await?;
        let charge = contender.wait_turn().await?;
        // Somebody else may go on for a moment, which does no harm: each segment is removed once.
        charge.scope(self.see_to_it(session)).await?
    }

    async fn see_to_it(&self, session: &Session) -> Result<Infallible> {
        loop {
            let groups = match self.retention.until_consumed {
                true => Some(self.groups().await?),
                false => None,
            };
            for partition in 0..self.layout.partitions() {
                while self
                    .remove_oldest(session, partition, groups.as_ref())
                    .await?
                {}
            }
            self.layout.client.sleep(self.retention.every).await;
        }
    }

    async fn groups(&self) -> Result<Groups> {
        let range = self.layout.groups().range();
        let found = wait::read(&self.layout.client, ops::range(range)).await?;
        let cursor = |kv: &KeyValue| {
            let (_, partition) = self.layout.cursor_of(&kv.key)?;
            // One that cannot be read holds everything up.
            let passed = CursorRecord::read(kv).ok().and_then(|cursor| cursor.passed);
            Some((partition, passed))
        };
        Ok(Groups {
            revision: Revision(found.header.map_or(0, |header| header.revision)),
            cursors: found.kvs.iter().filter_map(cursor).collect(),
        })
    }

    /// Removes the oldest segment of a partition, if it may go. Returns whether it did.
    async fn remove_oldest(
        &self,
        session: &Session,
        partition: u32,
        groups: Option<&Groups>,
    ) -> Result<bool> {
        let (layout, log) = (&self.layout, self.layout.log(partition));
        let key = layout.removed(partition);
        let request = TxnRequest {
            success: [ops::get(&key), ops::get(log.head_key())]
                .map(ops::read)
                .into(),
            ..TxnRequest::default()
        };
        let (answer, _) = wait::repeat(&layout.client, request).await?;
        let at = ops::kvs(&answer.responses, 0).first();
        let removed = RemovedRecord::read(at)?;
        let at = Revision(at.map_or(0, |kv| kv.mod_revision));
        let head = log.head_of(ops::kvs(&answer.responses, 1).first())?;
        if removed.segment >= head.segment {
            self.close_if_old(partition, head).await?;
            return Ok(false);
        }
        let (oldest, last) = self.oldest(partition, &removed, head).await?;
        let may_go = self
            .retention
            .exceeded(&oldest, layout.client.wall_millis());
        let passed = removed.messages + oldest.messages;
        if !may_go || groups.is_some_and(|groups| !groups.have_passed(partition, passed)) {
            if !may_go {
                self.close_if_old(partition, head).await?;
            }
            return Ok(false);
        }
        let now = removed.and(oldest.messages, last.as_ref());
        let no_new_group =
            groups.map(|groups| Compare::uncreated_since(layout.groups().range(), groups.revision));
        let request = TxnRequest {
            compare: [Compare::mod_revision(&key, at)]
                .into_iter()
                .chain(no_new_group)
                .map(Into::into)
                .collect(),
            success: vec![
                ops::delete(log.segment(removed.segment)),
                ops::put(&key, now.write(&key)?, None),
            ],
            failure: Vec::new(),
        };
        // A copy that comes late finds the count moved on.
        let answer = session
            .actor()
            .run(|actor| async move { Ok(actor.repeat(request).await?.0) });
        Ok(answer.await?.succeeded)
    }

    async fn oldest(
        &self,
        partition: u32,
        removed: &RemovedRecord,
        head: Head,
    ) -> Result<(Oldest, Option<KeyValue>)> {
        let log = self.layout.log(partition);
        let mut last = ops::newest(log.segment(removed.segment), 1);
        last.keys_only = false;
        let mut reads = vec![ops::counting(log.segment(removed.segment)), last];
        if self.retention.max_messages.is_some() {
            reads.push(ops::counting(log.range(removed.segment, None)));
        }
        let request = TxnRequest {
            success: reads.into_iter().map(ops::read).collect(),
            ..TxnRequest::default()
        };
        let (answer, _) = wait::repeat(&self.layout.client, request).await?;
        let last = ops::kvs(&answer.responses, 1).first().cloned();
        let oldest = Oldest {
            messages: ops::count(&answer.responses, 0),
            last_ms: last.as_ref().map_or(0, since_ms),
            retained: ops::count(&answer.responses, 2),
            closed: head.segment - removed.segment,
        };
        Ok((oldest, last))
    }

    /// Closes the segment that is appended to once its first message is too old, so that it can go when all
    /// of it is.
    async fn close_if_old(&self, partition: u32, head: Head) -> Result<()> {
        let Some(most) = self.retention.max_age else {
            return Ok(());
        };
        let (client, log) = (&self.layout.client, self.layout.log(partition));
        let first = wait::read(client, ops::oldest(log.segment(head.segment), 1)).await?;
        let Some(first) = first.kvs.first() else {
            return Ok(());
        };
        let age = client.wall_millis().saturating_sub(since_ms(first));
        if Duration::from_millis(age) <= most {
            return Ok(());
        }
        match log.roll(head).await {
            // The next look finds out.
            Err(Error::Store(error)) if error.is_transient() => Ok(()),
            rolled => rolled.map(drop),
        }
    }
}
