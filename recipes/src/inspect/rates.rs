//! How fast things move, counted for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use quorate_proto::etcdserverpb::WatchCreateRequest;
use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use serde::Serialize;

use super::Inspect;
use super::look::whole_kind;
use crate::error::Result;
use crate::keys::{Key, decode};
use crate::queue;
use crate::store::{Cause, StoreError};

/// What was counted during some time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Rates {
    /// How long it was counted.
    pub during: Duration,
    /// Queues in which something moved, by name; lanes as `name/lane/<n>`.
    pub queues: BTreeMap<String, QueueRates>,
}

/// What moved in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct QueueRates {
    /// Items that came in, also again: after a delay, or from among the dead letters.
    pub entered: u64,
    /// Items that somebody took, also again.
    pub taken: u64,
    /// Items that went: done, put off, put aside or removed.
    pub went: u64,
}

impl Rates {
    /// A number of these, a second.
    #[must_use]
    pub fn per_second(&self, number: u64) -> f64 {
        let number = f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        number / self.during.as_secs_f64()
    }
}

impl Inspect {
    /// Counts what moves for so long, by a watch of all queues: it costs the store what any watcher of all of them
    /// costs.
    ///
    /// # Errors
    /// The store's, and when the watch ended before.
    ///
    /// # Cancel safety
    /// Dropping the future ends the watch.
    pub async fn rates(&self, during: Duration) -> Result<Rates> {
        let range = whole_kind(queue::KIND);
        let request = WatchCreateRequest {
            key: range.start,
            range_end: range.end,
            ..WatchCreateRequest::default()
        };
        let mut events = self.client.store().watch(vec![request]).await?;
        let mut queues = BTreeMap::new();
        let count = async {
            while let Some(answer) = events.next().await {
                let answer = answer?;
                answer
                    .events
                    .iter()
                    .for_each(|event| count(&mut queues, event));
                if answer.canceled {
                    break;
                }
            }
            Err::<(), StoreError>(StoreError::NotApplied(Cause::new("the watch ended")))
        };
        let began = self.client.now();
        let until = self.client.deadline(during);
        // Nothing but trouble ends it before.
        self.client.before(until, count).await.transpose()?;
        let during = self.client.now().saturating_duration_since(began);
        Ok(Rates { during, queues })
    }
}

fn count(queues: &mut BTreeMap<String, QueueRates>, event: &Event) {
    let Some(kv) = &event.kv else { return };
    let key = Key::from(kv.key.clone()).to_string();
    let root = whole_kind(queue::KIND).start;
    let root = std::str::from_utf8(&root).unwrap_or_default();
    let below = key.strip_prefix(root).and_then(|rest| rest.split_once('/'));
    let Some((name, rest)) = below else { return };
    let Some(name) = decode(name) else { return };
    let (name, rest) = match rest
        .strip_prefix("lane/")
        .and_then(|rest| rest.split_once('/'))
    {
        Some((lane, rest)) => (format!("{name}/lane/{lane}"), rest),
        None => (name, rest),
    };
    let is_item = rest.starts_with("segment/");
    let is_claim = rest.starts_with("try/") && rest.ends_with("/claim");
    if !is_item && !is_claim {
        return;
    }
    let of = queues.entry(name).or_default();
    match event.r#type() {
        EventType::Put if is_item => of.entered += 1,
        EventType::Delete if is_item => of.went += 1,
        EventType::Put => of.taken += 1,
        EventType::Delete => {}
    }
}
