//! What a history says about the items of a queue: each is at exactly one place at every revision, and ends by
//! the hand that has it.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::event::EventType;
use quorate_proto::mvccpb::{Event, KeyValue};
use quorate_recipes::keys::Revision;
use quorate_recipes::store::Commit;
use serde_json::Value;

use super::{ATTEMPTS_MAX, effect};
use crate::history::{History, key_of};

const PREFIX: &str = "quorate/queue/q/";

/// The items, as they went through a history.
#[derive(Debug, Default)]
pub struct Items {
    /// Every item that came to be, each time that it came out of nowhere.
    pub pushed: Vec<i64>,
    /// When each was done.
    pub done: BTreeMap<i64, Revision>,
    /// The number of the item that each key has now.
    numbers: BTreeMap<String, i64>,
    /// The keys that have each item now.
    places: BTreeMap<i64, BTreeSet<String>>,
    /// The name of the item that each key has now, if it was pushed under one.
    names: BTreeMap<String, String>,
    /// Items in the queue in the order in which they came into it, however they lie there: by the revision and, of
    /// those that came together, by their ids.
    line: BTreeMap<(i64, String), i64>,
    /// The segment that is pushed to.
    head: u64,
    /// The lease of whoever has an item, by the item's id.
    claims: BTreeMap<String, i64>,
    /// How often each item had been taken when it came to its place, by its id.
    carried: BTreeMap<String, u64>,
}

impl Items {
    /// Goes through a history; of an exact order, by how many keys.
    ///
    /// # Errors
    /// What is broken in it.
    pub fn of(history: &History, keys: Option<i64>) -> Result<Self, String> {
        let mut items = Self::default();
        for commit in &history.commits {
            let told = |broken: String| format!("at revision {}: {broken}", commit.revision);
            items.take(commit, keys).map_err(told)?;
        }
        Ok(items)
    }

    fn take(&mut self, commit: &Commit, keys: Option<i64>) -> Result<(), String> {
        let claims = self.claims.clone();
        let mut touched = BTreeSet::new();
        // An item that is done says who did it; the claim went with it.
        let mut gone = BTreeMap::new();
        for change in &commit.changes {
            let key = key_of(change);
            self.names.remove(&key);
            if change.r#type() == EventType::Delete
                && let Some(number) = self.numbers.remove(&key)
            {
                touched.insert(number);
                self.places.entry(number).or_default().remove(&key);
                if let Some(id) = key.strip_prefix(&format!("{PREFIX}segment/")) {
                    gone.insert(number, id.to_owned());
                    self.line.retain(|(_, there), _| there != id);
                }
            }
        }
        for change in &commit.changes {
            if let (EventType::Put, Some(kv)) = (change.r#type(), &change.kv)
                && let Some((number, carried)) = item_of(change, kv)
            {
                let key = key_of(change);
                touched.insert(number);
                if !self.places.contains_key(&number) {
                    self.pushed.push(number);
                }
                self.places.entry(number).or_default().insert(key.clone());
                self.numbers.insert(key.clone(), number);
                if let Some(name) = name_of(&key, kv) {
                    self.names.insert(key.clone(), name);
                }
                if let Some(id) = key.strip_prefix(&format!("{PREFIX}segment/")) {
                    self.is_at_the_head(id, number)?;
                    self.line
                        .insert((kv.create_revision, id.to_owned()), number);
                    self.carried.insert(id.to_owned(), carried);
                }
            }
        }
        // Whoever closes a segment pushes nothing with it.
        for change in &commit.changes {
            self.rolled(change);
        }
        for change in &commit.changes {
            self.tried(change, keys)?;
            let Some(kv) = change.kv.as_ref() else {
                continue;
            };
            let done = key_of(change)
                .strip_prefix("effect/")
                .and_then(|n| n.parse().ok());
            if let Some(number) = done {
                let lease = String::from_utf8_lossy(&kv.value).into_owned();
                let had = gone.get(&number).and_then(|id| claims.get(id));
                if had.map(|lease| format!("{lease:x}")) != Some(lease.clone()) {
                    return Err(format!(
                        "lease {lease} ended item {number}, which {had:x?} had"
                    ));
                }
                self.done.insert(number, commit.revision);
                self.places
                    .entry(number)
                    .or_default()
                    .insert(effect(number));
                touched.insert(number);
            }
        }
        let mut names = BTreeSet::new();
        let twice = self.names.values().find(|name| !names.insert(*name));
        if let Some(name) = twice {
            return Err(format!("two items are named {name}"));
        }
        for number in touched {
            let places = &self.places[&number];
            if places.len() != 1 {
                return Err(format!("item {number} is at {places:?}"));
            }
        }
        Ok(())
    }

    /// Whether an item that comes into the queue, from wherever, comes to its end.
    fn is_at_the_head(&self, id: &str, number: i64) -> Result<(), String> {
        let segment = id.split_once('/').map_or("", |(segment, _)| segment);
        if u64::from_str_radix(segment, 16) == Ok(self.head) {
            return Ok(());
        }
        let head = self.head;
        Err(format!(
            "item {number} came to {id}, and segment {head} is pushed to"
        ))
    }

    /// Takes in which segment is pushed to from now on.
    fn rolled(&mut self, change: &Event) {
        if key_of(change) == format!("{PREFIX}head") {
            let record = change.kv.as_ref().map(|kv| &kv.value[..]);
            let record: Value =
                serde_json::from_slice(record.unwrap_or_default()).unwrap_or_default();
            self.head = record["segment"].as_u64().unwrap_or(0);
        }
    }

    /// Takes in what is said about the taking of items.
    fn tried(&mut self, change: &Event, keys: Option<i64>) -> Result<(), String> {
        let key = key_of(change);
        let tried = key.strip_prefix(&format!("{PREFIX}try/"));
        let Some((id, kind)) = tried.and_then(|rest| rest.rsplit_once('/')) else {
            return Ok(());
        };
        let Some(kv) = change
            .kv
            .as_ref()
            .filter(|_| change.r#type() == EventType::Put)
        else {
            if kind == "claim" {
                self.claims.remove(id);
            }
            return Ok(());
        };
        if kind == "attempts" {
            let record: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
            let count = record["count"].as_u64().unwrap_or(u64::MAX);
            let all = self
                .carried
                .get(id)
                .copied()
                .unwrap_or(0)
                .saturating_add(count);
            if all > u64::from(ATTEMPTS_MAX) {
                return Err(format!("item {id} is taken for the {all}th time"));
            }
            return Ok(());
        }
        if self.claims.insert(id.to_owned(), kv.lease).is_some() {
            return Err(format!("item {id} is claimed twice"));
        }
        let mut line = self.line.iter();
        let place = line.find(|((_, there), _)| there == id);
        let Some((place, number)) = place else {
            return Err(format!("{id} is claimed, which is not there"));
        };
        let Some(keys) = keys else { return Ok(()) };
        let mut before = self.line.range(..place.clone());
        match before.find(|(_, other)| *other % keys == number % keys) {
            Some((_, other)) => Err(format!("item {number} is taken before item {other}")),
            None => Ok(()),
        }
    }
}

/// The name that the item at a key was pushed under. A dead letter has none any more.
fn name_of(key: &str, kv: &KeyValue) -> Option<String> {
    let is_dead = key.starts_with(&format!("{PREFIX}dead/"));
    let record: Value = serde_json::from_slice(&kv.value).ok()?;
    let name = record["unique"].as_str().filter(|_| !is_dead);
    name.map(str::to_owned)
}

/// The number of the item that a change wrote to one of the queue's places, and how often it had been taken.
fn item_of(change: &Event, kv: &KeyValue) -> Option<(i64, u64)> {
    let key = key_of(change);
    let rest = key.strip_prefix(PREFIX)?;
    let record: Value = serde_json::from_slice(&kv.value).ok()?;
    let (item, attempts) = match rest.split_once('/')?.0 {
        "segment" | "delayed" => (&record, record["attempts"].as_u64()),
        "dead" => (&record["item"], None),
        _ => return None,
    };
    Some((item["value"].as_i64()?, attempts.unwrap_or(0)))
}
