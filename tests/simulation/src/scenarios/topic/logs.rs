//! What a history says about the partitions of a topic: what was published, removed and done, by whom.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_recipes::store::Commit;
use serde_json::Value;

use super::Seen;
use crate::history::{History, key_of};

/// Partitions of the topic.
pub(super) const PARTITIONS: u32 = 2;

const PREFIX: &str = "quorate/topic/t/";

/// The partitions, as they went through a history.
#[derive(Debug, Default)]
pub struct Logs {
    each: BTreeMap<u32, Partition>,
    /// Every number that was written when it was done.
    done: BTreeSet<i64>,
}

#[derive(Debug, Default)]
struct Partition {
    /// Every message that came to be, in the order of commits: its number and revision.
    messages: Vec<(i64, i64)>,
    /// The keys of those that are there, with their segment.
    there: BTreeMap<String, u64>,
    /// The segment that is appended to.
    head: u64,
    /// How many had been removed, each time that some were.
    removed: BTreeSet<u64>,
    gone: u64,
    /// How far the group is; `None`: it has not begun.
    cursor: Option<u64>,
    /// Who stands in line for it: the revision of each, and its lease.
    line: BTreeMap<i64, (String, i64)>,
}

impl Logs {
    /// Goes through a history.
    ///
    /// # Errors
    /// What is broken in it.
    pub fn of(history: &History) -> Result<Self, String> {
        let mut logs = Self::default();
        for commit in &history.commits {
            let told = |broken: String| format!("at revision {}: {broken}", commit.revision);
            logs.take(commit).map_err(told)?;
        }
        Ok(logs)
    }

    /// Every message that came to be, with its partition and revision.
    pub(super) fn published(&self) -> impl Iterator<Item = (i64, (u32, i64))> {
        self.each.iter().flat_map(|(partition, log)| {
            let messages = log.messages.iter();
            messages.map(|(number, revision)| (*number, (*partition, *revision)))
        })
    }

    pub(super) fn is_done(&self, number: i64) -> bool {
        self.done.contains(&number)
    }

    /// Whether this is what a reader may have been shown that began with the oldest message of some moment.
    pub(super) fn judge(&self, partition: u32, seen: &[Seen]) -> Result<(), String> {
        let nothing = Partition::default();
        let log = self.each.get(&partition).unwrap_or(&nothing);
        let mut judged = log.judge_from(0, seen);
        for start in &log.removed {
            judged = judged.or_else(|broken| log.judge_from(*start, seen).map_err(|_| broken));
        }
        judged
    }

    fn take(&mut self, commit: &Commit) -> Result<(), String> {
        // Whoever owns a partition when a cursor moves owned it before.
        let owners: BTreeMap<u32, i64> = self
            .each
            .iter()
            .filter_map(|(partition, log)| {
                let first = log.line.first_key_value()?;
                Some((*partition, first.1.1))
            })
            .collect();
        let mut effects = BTreeMap::new();
        for change in &commit.changes {
            let key = key_of(change);
            if let Some(number) = key.strip_prefix("effect/").and_then(|n| n.parse().ok()) {
                let lease = change.kv.as_ref().map(|kv| kv.value.clone());
                let lease = String::from_utf8_lossy(&lease.unwrap_or_default()).into_owned();
                effects.insert(number, lease);
            }
        }
        let mut took = BTreeSet::new();
        for change in &commit.changes {
            let key = key_of(change);
            let Some(rest) = key.strip_prefix(PREFIX) else {
                continue;
            };
            let parts: Vec<&str> = rest.split('/').collect();
            match parts[..] {
                ["partition", partition, "head"] => {
                    self.log(partition).head = field(change, "segment");
                }
                ["partition", partition, "segment", segment, _] => {
                    self.log(partition).item(change, segment)?;
                }
                ["removed", partition] => self.log(partition).removal(change)?,
                ["share", "g", partition, _, _] if partition != "member" => {
                    self.log(partition).contender(change);
                }
                ["group", "g", partition] => {
                    let owner = partition.parse().ok().and_then(|p| owners.get(&p)).copied();
                    took.extend(self.log(partition).moved(change, owner, &effects)?);
                }
                _ => {}
            }
        }
        for log in self.each.values() {
            log.judge_removed()?;
        }
        if let Some(number) = effects.keys().find(|number| !took.contains(*number)) {
            return Err(format!("message {number} was done without its cursor"));
        }
        for number in took {
            if !self.done.insert(number) {
                return Err(format!("message {number} was done twice"));
            }
        }
        Ok(())
    }

    fn log(&mut self, partition: &str) -> &mut Partition {
        self.each
            .entry(partition.parse().unwrap_or(u32::MAX))
            .or_default()
    }
}

impl Partition {
    fn judge_from(&self, mut next: u64, seen: &[Seen]) -> Result<(), String> {
        for seen in seen {
            match seen {
                Seen::Message(number, offset) => {
                    let index = usize::try_from(*offset).ok();
                    let there = index.and_then(|index| self.messages.get(index));
                    if *offset != next || there.map(|(number, _)| number) != Some(number) {
                        return Err(format!(
                            "{number} came as message {offset}, which is {there:?}, and not {next}"
                        ));
                    }
                    next += 1;
                }
                Seen::Lagged(skipped) => {
                    next += skipped.ok_or("an unknown number was missed")?;
                    if *skipped == Some(0) || !self.removed.contains(&next) {
                        return Err(format!("{skipped:?} are missed, up to {next}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn item(&mut self, change: &Event, segment: &str) -> Result<(), String> {
        let segment = u64::from_str_radix(segment, 16).map_err(|error| error.to_string())?;
        let key = key_of(change);
        match (change.r#type(), &change.kv) {
            (EventType::Put, Some(kv)) => {
                if segment != self.head {
                    let head = self.head;
                    return Err(format!("segment {segment} was written, and {head} is open"));
                }
                let number = record(kv)["value"].as_i64().unwrap_or(0);
                if self.there.insert(key, segment).is_some() {
                    return Err(format!("message {number} was written again"));
                }
                self.messages.push((number, kv.mod_revision));
            }
            _ => {
                if self.there.remove(&key) == Some(self.head) {
                    return Err(format!("{key} was removed from where it is appended to"));
                }
                self.gone += 1;
            }
        }
        Ok(())
    }

    fn removal(&mut self, change: &Event) -> Result<(), String> {
        let removed = field(change, "messages");
        self.removed.insert(removed);
        match self.cursor {
            Some(cursor) if cursor >= removed => Ok(()),
            cursor => Err(format!("{removed} are removed, and {cursor:?} are done")),
        }
    }

    /// What is removed is counted with it, and is all of the oldest segments.
    fn judge_removed(&self) -> Result<(), String> {
        let counted = self.removed.last().copied().unwrap_or(0);
        if counted != self.gone {
            return Err(format!("{} are removed, and {counted} counted", self.gone));
        }
        let all = u64::try_from(self.there.len()).unwrap_or(u64::MAX) + self.gone;
        let published = u64::try_from(self.messages.len()).unwrap_or(u64::MAX);
        match all == published {
            true => Ok(()),
            false => Err(format!(
                "{published} were published, and {all} are there or were"
            )),
        }
    }

    fn contender(&mut self, change: &Event) {
        let key = key_of(change);
        match (change.r#type(), &change.kv) {
            (EventType::Put, Some(kv)) => {
                self.line.insert(kv.create_revision, (key, kv.lease));
            }
            _ => self.line.retain(|_, (known, _)| *known != key),
        }
    }

    /// Returns the message that was done.
    fn moved(
        &mut self,
        change: &Event,
        owner: Option<i64>,
        effects: &BTreeMap<i64, String>,
    ) -> Result<Option<i64>, String> {
        let passed = field(change, "passed");
        let Some(before) = self.cursor.replace(passed) else {
            return match passed {
                0 => Ok(None),
                _ => Err(format!("the group begins with {passed}")),
            };
        };
        let index = usize::try_from(before).unwrap_or(usize::MAX);
        let number = self.messages.get(index).map(|(number, _)| *number);
        let by = number.and_then(|number| effects.get(&number));
        let owner = owner.map(|lease| format!("{lease:x}"));
        if by.is_some() && by != owner.as_ref() {
            return Err(format!("{by:?} moved the cursor of {owner:?}"));
        }
        if passed != before + 1 || by.is_none() {
            return Err(format!(
                "the cursor went from {before} to {passed}, and {effects:?} were done, not {number:?}"
            ));
        }
        Ok(number)
    }
}

fn record(kv: &KeyValue) -> Value {
    serde_json::from_slice(&kv.value).unwrap_or_default()
}

fn field(change: &Event, name: &str) -> u64 {
    let record = change.kv.as_ref().map(record).unwrap_or_default();
    record[name].as_u64().unwrap_or(u64::MAX)
}
