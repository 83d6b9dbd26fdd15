//! How fast things move, counted for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use quorate_proto::etcdserverpb::WatchCreateRequest;
use quorate_proto::etcdserverpb::watch_create_request::FilterType;
use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use serde::Serialize;

use super::Inspect;
use super::look::whole_kind;
use crate::error::Result;
use crate::keys::{ROOT, decode};
use crate::queue;
use crate::store::{Cause, StoreError};
use crate::topic;

/// What was counted during some time.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Rates {
    /// How long it was counted.
    pub during: Duration,
    /// Queues in which something moved, by name; lanes as `name/lane/<n>`.
    pub queues: BTreeMap<String, QueueRates>,
    /// Topics in which something moved, by name.
    pub topics: BTreeMap<String, TopicRates>,
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

/// What moved in a topic.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct TopicRates {
    /// Messages that were published.
    pub published: u64,
    /// Messages that groups did, by group, all partitions together.
    pub committed: BTreeMap<String, u64>,
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
    /// Counts what moves for so long, by a watch of all queues and topics: it costs the store what any watcher of all
    /// of them costs.
    ///
    /// # Errors
    /// The store's, and when the watch ended before.
    ///
    /// # Cancel safety
    /// Dropping the future ends the watch.
    pub async fn rates(&self, during: Duration) -> Result<Rates> {
        let watch = |kind| {
            let range = whole_kind(kind);
            WatchCreateRequest {
                key: range.start,
                range_end: range.end,
                ..WatchCreateRequest::default()
            }
        };
        let topics = WatchCreateRequest {
            // A cursor tells by the one before it how many messages were done.
            prev_kv: true,
            // What is removed is not counted, and does not have to come.
            filters: vec![FilterType::Nodelete.into()],
            ..watch(topic::KIND)
        };
        let requests = vec![watch(queue::KIND), topics];
        let mut events = self.client.store().watch(requests).await?;
        let began = self.client.now();
        let mut rates = Rates {
            during,
            queues: BTreeMap::new(),
            topics: BTreeMap::new(),
        };
        let count = async {
            while let Some(answer) = events.next().await {
                let answer = answer?;
                answer.events.iter().for_each(|event| rates.count(event));
                if answer.canceled {
                    break;
                }
            }
            Err::<(), StoreError>(StoreError::NotApplied(Cause::new("the watch ended")))
        };
        let until = self.client.deadline(during);
        // Nothing but trouble ends it before.
        self.client.before(until, count).await.transpose()?;
        rates.during = self.client.now().saturating_duration_since(began);
        Ok(rates)
    }
}

impl Rates {
    fn count(&mut self, event: &Event) {
        let Some(kv) = &event.kv else { return };
        let Ok(key) = std::str::from_utf8(&kv.key) else {
            return;
        };
        if let Some((name, rest)) = below(queue::KIND, key) {
            count_queue(&mut self.queues, name, rest, event.r#type());
        } else if let Some((name, rest)) = below(topic::KIND, key)
            && event.r#type() == EventType::Put
        {
            count_topic(&mut self.topics, name, rest, (event.prev_kv.as_ref(), kv));
        }
    }
}

/// The name that a key of a kind is of, and what follows it.
fn below<'a>(kind: &str, key: &'a str) -> Option<(String, &'a str)> {
    let rest = key.strip_prefix(ROOT)?.strip_prefix('/')?;
    let rest = rest.strip_prefix(kind)?.strip_prefix('/')?;
    let (name, rest) = rest.split_once('/')?;
    Some((decode(name)?, rest))
}

fn count_topic(
    topics: &mut BTreeMap<String, TopicRates>,
    name: String,
    rest: &str,
    (before, now): (Option<&KeyValue>, &KeyValue),
) {
    if rest.starts_with("partition/") && rest.contains("/segment/") {
        topics.entry(name).or_default().published += 1;
        return;
    }
    let cursor = rest
        .strip_prefix("group/")
        .and_then(|rest| rest.split_once('/'));
    let Some(group) = cursor.and_then(|(group, _)| decode(group)) else {
        return;
    };
    // A group that begins has done nothing by that.
    let (Some(before), Some(now)) = (before.and_then(topic::passed), topic::passed(now)) else {
        return;
    };
    let groups = &mut topics.entry(name).or_default().committed;
    *groups.entry(group).or_default() += now.saturating_sub(before);
}

fn count_queue(
    queues: &mut BTreeMap<String, QueueRates>,
    name: String,
    rest: &str,
    kind: EventType,
) {
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
    match kind {
        EventType::Put if is_item => of.entered += 1,
        EventType::Delete if is_item => of.went += 1,
        EventType::Put => of.taken += 1,
        EventType::Delete => {}
    }
}
