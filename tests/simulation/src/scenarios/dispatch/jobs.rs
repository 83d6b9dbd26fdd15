//! What a history says about dispatched jobs: which states each went through, and by whose hand it ended.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::keys::Revision;
use quorate_recipes::store::Commit;
use serde_json::Value;

use super::{Told, job_done};
use crate::history::{History, key_of, state_at};

const PREFIX: &str = "quorate/dispatch/d/";

/// The states that nothing comes after.
const ENDS: [&str; 4] = ["done", "failed", "expired", "cancelled"];

/// The jobs, as they went through a history.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    /// Every job that came to be and is of no cast, each time.
    pub(super) sent: Vec<i64>,
    /// Casts, by their numbers.
    pub(super) casts: BTreeMap<i64, Sent>,
    /// The number of each job.
    numbers: BTreeMap<String, i64>,
    /// The state of each job now, or its last one.
    states: BTreeMap<String, String>,
    /// When each job was done.
    done: BTreeMap<String, Revision>,
    /// The lease of whoever has a job.
    claims: BTreeMap<String, i64>,
    /// Open inboxes by their keys: whose, and what is said of them.
    here: BTreeMap<String, (String, String)>,
    /// The same after each revision at which that changed.
    were_here: BTreeMap<i64, BTreeSet<(String, String)>>,
    /// Casts that lost their lease before they were sent to all.
    cut: BTreeSet<String>,
    /// Whose inboxes jobs of casts came into, by the ids of the casts, each time.
    recipients: BTreeMap<String, Vec<String>>,
}

/// A cast as it was begun.
#[derive(Debug)]
pub(super) struct Sent {
    id: String,
    /// The revision of which it says that its recipients are.
    revision: i64,
    recipients: Vec<String>,
}

impl Sent {
    fn read(id: &str, value: &[u8]) -> Option<(i64, Self)> {
        let record: Value = serde_json::from_slice(value).ok()?;
        let names = record["recipients"].as_array()?.iter();
        let names: Option<Vec<_>> = names.map(|name| Some(name.as_str()?.to_owned())).collect();
        let sent = Self {
            id: id.to_owned(),
            revision: record["revision"].as_i64()?,
            recipients: names?,
        };
        Some((-record["command"].as_i64()?, sent))
    }
}

/// The job that the key of an item, or of what is said of its taking, is about.
fn job_of(rest: &str, part: &str) -> Option<String> {
    let (_, rest) = rest.split_once(part)?;
    rest.split('/').nth(1).map(str::to_owned)
}

impl Jobs {
    pub(super) fn of(history: &History) -> Result<Self, String> {
        let mut jobs = Self::default();
        for commit in &history.commits {
            let told = |broken: String| format!("at revision {}: {broken}", commit.revision);
            jobs.take(commit).map_err(told)?;
        }
        Ok(jobs)
    }

    fn take(&mut self, commit: &Commit) -> Result<(), String> {
        let claims = self.claims.clone();
        let mut ended: BTreeMap<String, String> = BTreeMap::new();
        let mut gone: Vec<String> = Vec::new();
        let mut effects: BTreeMap<String, (String, i64)> = BTreeMap::new();
        for change in &commit.changes {
            let (key, put) = (key_of(change), change.r#type() == EventType::Put);
            let value = change.kv.as_ref().filter(|_| put).map(|kv| &kv.value[..]);
            if let (true, Some(kv)) = (key.starts_with("effect/"), &change.kv) {
                let lease = String::from_utf8_lossy(&kv.value).into_owned();
                effects.insert(key.clone(), (lease, kv.version));
                continue;
            }
            let Some(rest) = key.strip_prefix(PREFIX) else {
                continue;
            };
            if let Some(id) = rest.strip_prefix("job/") {
                if let Some(value) = value
                    && let Some(end) = self.state(id, value)?
                {
                    ended.insert(id.to_owned(), end);
                }
            } else if let Some(id) = job_of(rest, "/segment/") {
                match value {
                    Some(value) => {
                        let item: Value = serde_json::from_slice(value).unwrap_or_default();
                        let number = item["value"]["command"].as_i64().unwrap_or(0);
                        match id.split_once('.') {
                            None => self.sent.push(number),
                            Some((cast, _)) => self.came_into(cast, rest),
                        }
                        self.numbers.insert(id, number);
                    }
                    None => gone.push(id),
                }
            } else if rest.ends_with("/claim")
                && let Some(id) = job_of(rest, "/try/")
            {
                let lease = change.kv.as_ref().map_or(0, |kv| kv.lease);
                match put {
                    true => drop(self.claims.insert(id, lease)),
                    false => drop(self.claims.remove(&id)),
                }
            } else if let (Some(id), None) = (rest.strip_prefix("cast/"), value) {
                if change.prev_kv.as_ref().is_some_and(|kv| kv.version == 1) {
                    self.cut.insert(id.to_owned());
                }
            } else if let (Some(id), Some(value)) = (rest.strip_prefix("cast/"), value) {
                if change.kv.as_ref().is_some_and(|kv| kv.version > 1) {
                    // It was sent to all.
                    continue;
                }
                let (number, sent) =
                    Sent::read(id, value).ok_or(format!("cast {id} is {value:?}"))?;
                if self.casts.insert(number, sent).is_some() {
                    return Err(format!("cast {id} is begun twice"));
                }
            } else if let Some(open) = rest.strip_prefix("here/") {
                match value {
                    Some(value) => {
                        let record: Value = serde_json::from_slice(value).unwrap_or_default();
                        let name = open.split('/').next().unwrap_or_default().to_owned();
                        let said = record["labels"]["parity"].as_str().unwrap_or_default();
                        self.here.insert(open.to_owned(), (name, said.to_owned()));
                    }
                    None => drop(self.here.remove(open)),
                }
                let here = self.here.values().cloned().collect();
                self.were_here.insert(commit.revision.0, here);
            }
        }
        for id in &gone {
            let over = self.states.get(id).map(String::as_str);
            if !over.is_some_and(|state| ENDS.contains(&state)) {
                return Err(format!("job {id} left its inbox and is {over:?}"));
            }
        }
        for (id, end) in ended {
            let number = self.numbers.get(&id).copied().unwrap_or(0);
            let effect = effects.remove(&job_done(number, &id));
            let lease = claims.get(&id).map(|lease| format!("{lease:x}"));
            if !gone.contains(&id) {
                return Err(format!("job {id} is {end}, and still in its inbox"));
            }
            if (end == "done") != effect.is_some() {
                return Err(format!("job {id} is {end}, with {effect:?}"));
            }
            if let Some((by, version)) = effect {
                if Some(&by) != lease.as_ref() || version != 1 {
                    return Err(format!(
                        "lease {by} ended job {id} for the {version}th time, which {lease:?} had"
                    ));
                }
                self.done.insert(id, commit.revision);
            }
        }
        match effects.first_key_value() {
            Some((key, _)) => Err(format!("{key} is written for a job that did not end")),
            None => Ok(()),
        }
    }

    /// Notes whose inbox a job of a cast came into.
    fn came_into(&mut self, cast: &str, rest: &str) {
        let name = rest
            .strip_prefix("inbox/")
            .and_then(|rest| rest.split('/').next());
        let into = self.recipients.entry(cast.to_owned()).or_default();
        into.push(name.unwrap_or_default().to_owned());
    }

    /// Judges casts, of which it is known what those are that each is for.
    pub(super) fn check_casts(
        &self,
        chosen: &BTreeMap<i64, Option<&'static str>>,
    ) -> Result<(), String> {
        for (number, cast) in &self.casts {
            let Sent {
                id,
                revision,
                recipients,
            } = cast;
            let chosen = chosen.get(number).copied().flatten();
            let there = state_at(&self.were_here, *revision).into_iter().flatten();
            let there = there.filter(|(_, said)| chosen.is_none_or(|chosen| chosen == said));
            let there: BTreeSet<&String> = there.map(|(name, _)| name).collect();
            if !there.iter().copied().eq(recipients) {
                return Err(format!(
                    "cast {id} of revision {revision} is for {recipients:?}, and {there:?} were there"
                ));
            }
            let mut into = self.recipients.get(id).cloned().unwrap_or_default();
            into.sort();
            let due = match self.cut.contains(id) {
                true => &recipients[..into.len().min(recipients.len())],
                false => recipients,
            };
            if into != due {
                return Err(format!("cast {id} for {recipients:?} came to {into:?}"));
            }
        }
        match self
            .recipients
            .keys()
            .find(|id| self.casts.values().all(|cast| cast.id != **id))
        {
            Some(id) => Err(format!("jobs came of cast {id}, which was not begun")),
            None => Ok(()),
        }
    }

    /// Takes in a state of a job. Returns it if it is an end.
    fn state(&mut self, id: &str, value: &[u8]) -> Result<Option<String>, String> {
        let record: Value = serde_json::from_slice(value).unwrap_or_default();
        let state = match &record["state"] {
            Value::String(name) => name.clone(),
            Value::Object(of) => of.keys().next().cloned().unwrap_or_default(),
            _ => String::new(),
        };
        let before = self.states.insert(id.to_owned(), state.clone());
        let may_follow = match (before.as_deref(), state.as_str()) {
            (None, after) => after == "queued",
            (Some(before), _) if ENDS.contains(&before) => false,
            (Some("queued"), "delivered" | "expired" | "cancelled" | "failed") => true,
            (Some("delivered" | "running"), "delivered" | "running") => true,
            (Some("delivered" | "running"), after) => ENDS.contains(&after),
            _ => false,
        };
        match may_follow {
            true => Ok(Some(state).filter(|state| ENDS.contains(&state.as_str()))),
            false => Err(format!("job {id} was {before:?}, and is {state} then")),
        }
    }

    /// Judges what clients were told.
    pub(super) fn check(&self, told: &Told) -> Result<(), String> {
        for (job, at) in &told.done {
            let done = self.done.get(job);
            if done != Some(at) {
                return Err(format!("job {job}: told done at {at}, done at {done:?}"));
            }
        }
        for (id, ended) in &told.ended {
            let state = self.states.get(id).map(String::as_str);
            if state != Some(*ended) {
                return Err(format!("job {id}: told {ended}, and it is {state:?}"));
            }
        }
        Ok(())
    }
}
