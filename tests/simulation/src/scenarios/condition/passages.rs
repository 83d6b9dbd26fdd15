//! What a history says about the gates of a condition queue: who was there when each opened, whether it was
//! right to, and who took what passed.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::Instant;
use quorate_recipes::keys::Revision;
use quorate_recipes::store::Commit;
use serde_json::Value;

use super::{DELAY, Kind, Told};
use crate::history::{History, key_of};

/// Epochs of a broadcast that are kept.
const KEPT: u64 = 8;

/// The tasks of one queue, as they went through a history.
#[derive(Debug, Default)]
pub struct Passages {
    /// Every task that joined, and its epoch, each time.
    pub joined: Vec<(i64, u64)>,
    /// When each task was done.
    done: BTreeMap<i64, Revision>,
    withdrawn: BTreeSet<i64>,
    /// When each gate opened, and who passed it.
    gates: BTreeMap<u64, (Revision, BTreeSet<String>)>,
    /// Gates that are there now.
    open: BTreeSet<u64>,
    head: u64,
    /// Tasks that are there now, by epoch.
    there: BTreeMap<u64, BTreeSet<String>>,
    /// When the first one joined in the epoch that gathers.
    since: Option<Instant>,
    started: bool,
    /// The lease of whoever has a batch or a task.
    claims: BTreeMap<String, i64>,
}

/// What one commit did to a queue.
#[derive(Debug, Default)]
struct Step {
    joined: Vec<(u64, String)>,
    gone: Vec<(u64, String)>,
    opened: Vec<u64>,
    closed: Vec<u64>,
    head: Option<u64>,
    started: Vec<u64>,
    claimed: Vec<(String, i64)>,
    unclaimed: Vec<String>,
    /// By the task's number: the lease of who did it.
    effects: BTreeMap<i64, (String, i64)>,
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or(u64::MAX)
}

impl Step {
    fn of(commit: &Commit, kind: Kind) -> Self {
        let mut step = Self::default();
        for change in &commit.changes {
            step.take(change, kind);
        }
        step
    }

    fn take(&mut self, change: &Event, kind: Kind) {
        let key = key_of(change);
        let put = change.r#type() == EventType::Put;
        let kv = change.kv.as_ref();
        if let Some(task) = key.strip_prefix(&format!("effect/{}/", kind.name())) {
            let task = task.parse().unwrap_or(-1);
            let lease = kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
            let version = kv.map_or(0, |kv| kv.version);
            self.effects
                .insert(task, (lease.unwrap_or_default(), version));
            return;
        }
        let prefix = format!("quorate/condition/{}/", kind.name());
        let Some(rest) = key.strip_prefix(&prefix) else {
            return;
        };
        let (part, rest) = rest.split_once('/').unwrap_or((rest, ""));
        match (part, put) {
            ("segment", put) => {
                let (epoch, id) = rest.split_once('/').unwrap_or((rest, ""));
                let list = if put {
                    &mut self.joined
                } else {
                    &mut self.gone
                };
                list.push((number(epoch), id.to_owned()));
            }
            ("gate", true) => self.opened.push(number(rest)),
            ("gate", false) => self.closed.push(number(rest)),
            ("head", true) => {
                let value: Value = kv
                    .and_then(|kv| serde_json::from_slice(&kv.value).ok())
                    .unwrap_or_default();
                self.head = value["segment"].as_u64();
            }
            ("signal", true) if rest.ends_with("/started") => {
                let (epoch, _) = rest.split_once('/').unwrap_or((rest, ""));
                self.started.push(number(epoch));
            }
            ("claim" | "try", put) => {
                let Some(of) = (part == "claim")
                    .then_some(rest)
                    .or_else(|| rest.strip_suffix("/claim"))
                else {
                    return;
                };
                match put {
                    true => {
                        let lease = kv.map_or(0, |kv| kv.lease);
                        self.claimed.push((of.to_owned(), lease));
                    }
                    false => self.unclaimed.push(of.to_owned()),
                }
            }
            _ => {}
        }
    }
}

impl Passages {
    /// Goes through a history.
    ///
    /// # Errors
    /// What is broken in it.
    pub fn of(history: &History, kind: Kind) -> Result<Self, String> {
        let mut passages = Self::default();
        for commit in &history.commits {
            let told = |broken: String| {
                let name = kind.name();
                format!("queue {name} at revision {}: {broken}", commit.revision)
            };
            let step = Step::of(commit, kind);
            passages.take(commit, kind, step).map_err(told)?;
        }
        Ok(passages)
    }

    fn take(&mut self, commit: &Commit, kind: Kind, step: Step) -> Result<(), String> {
        for (epoch, id) in &step.joined {
            if *epoch != self.head || step.head.is_some() {
                return Err(format!(
                    "{id} joined epoch {epoch}, and {} gathers",
                    self.head
                ));
            }
        }
        self.ended(commit, kind, &step)?;
        if step.head.is_some() || !step.opened.is_empty() {
            self.opened(commit, kind, &step)?;
        }
        for (epoch, id) in step.joined {
            self.since = self.since.or(Some(commit.at));
            self.joined.push((id.parse().unwrap_or(-1), epoch));
            self.there.entry(epoch).or_default().insert(id);
        }
        if let Some(epoch) = step.started.iter().find(|epoch| **epoch != self.head) {
            return Err(format!(
                "epoch {epoch} was started, and {} gathers",
                self.head
            ));
        }
        self.started |= !step.started.is_empty();
        for epoch in step.closed {
            self.open.remove(&epoch);
            if self
                .there
                .get(&epoch)
                .is_some_and(|there| !there.is_empty())
            {
                return Err(format!("the gate of {epoch} went before its tasks"));
            }
        }
        for of in step.unclaimed {
            self.claims.remove(&of);
        }
        for (of, lease) in step.claimed {
            if self.claims.insert(of.clone(), lease).is_some() {
                return Err(format!("{of} is claimed twice"));
            }
            let (epoch, _) = of.split_once('/').unwrap_or((&of, ""));
            if !self.open.contains(&number(epoch)) {
                return Err(format!("{of} is claimed, whose gate is not open"));
            }
        }
        Ok(())
    }

    /// A gate opens: it must be that of the epoch that gathers, and its condition must hold.
    fn opened(&mut self, commit: &Commit, kind: Kind, step: &Step) -> Result<(), String> {
        let [epoch] = step.opened[..] else {
            return Err(format!("the head moved with gates {:?}", step.opened));
        };
        if epoch != self.head || step.head != Some(epoch + 1) || self.gates.contains_key(&epoch) {
            return Err(format!(
                "gate {epoch} opened for head {:?}, and {} gathers",
                step.head, self.head
            ));
        }
        let there = self.there.get(&epoch).cloned().unwrap_or_default();
        let waited = self.since.map(|since| commit.at - since);
        let holds = match kind {
            Kind::Batch => {
                there.len() >= 3
                    || !there.is_empty() && waited.is_some_and(|waited| waited >= DELAY)
            }
            Kind::Fan => there.len() >= 2 || !there.is_empty() && self.started,
            Kind::Broadcast => there.len() >= 3,
        };
        if !holds {
            return Err(format!(
                "gate {epoch} opened for {there:?} after {waited:?}"
            ));
        }
        self.gates.insert(epoch, (commit.revision, there));
        self.open.insert(epoch);
        self.head = epoch + 1;
        self.since = None;
        self.started = false;
        Ok(())
    }

    /// Tasks go: withdrawn while they gather, done by whoever has them, or no longer kept.
    fn ended(&mut self, commit: &Commit, kind: Kind, step: &Step) -> Result<(), String> {
        let mut effects = step.effects.clone();
        for (epoch, id) in &step.gone {
            let task = id.parse().unwrap_or(-1);
            self.there.entry(*epoch).or_default().remove(id);
            if *epoch == self.head {
                self.withdrawn.insert(task);
                continue;
            }
            if kind == Kind::Broadcast {
                if step
                    .opened
                    .first()
                    .is_none_or(|now| epoch + KEPT > *now + 1)
                {
                    return Err(format!("{id} of epoch {epoch} was not kept"));
                }
                continue;
            }
            let Some((lease, _)) = effects.remove(&task) else {
                return Err(format!("{id} of epoch {epoch} went without being done"));
            };
            let claim = match kind {
                Kind::Batch => format!("{epoch:016x}"),
                _ => format!("{epoch:016x}/{id}"),
            };
            let had = self.claims.get(&claim).map(|lease| format!("{lease:x}"));
            if had.as_ref() != Some(&lease) {
                return Err(format!(
                    "lease {lease} ended {id} of {epoch}, which {had:?} had"
                ));
            }
            self.done.insert(task, commit.revision);
        }
        if kind == Kind::Batch
            && let Some((epoch, _)) = step.gone.iter().find(|(epoch, _)| *epoch != self.head)
            && !self.there[epoch].is_empty()
        {
            return Err(format!("of batch {epoch} only {:?} went", step.gone));
        }
        match effects.first_key_value() {
            Some((task, _)) => Err(format!("task {task} is done, which was not there")),
            None => Ok(()),
        }
    }

    /// Judges what clients were told.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, kind: Kind, told: &Told) -> Result<(), String> {
        for (of, task, gone) in &told.withdrawn {
            if *of == kind && self.withdrawn.contains(task) != *gone {
                return Err(format!("task {task}: told withdrawn: {gone}"));
            }
        }
        for (of, task, at) in &told.done {
            if *of == kind && self.done.get(task) != Some(at) {
                let done = self.done.get(task);
                return Err(format!("task {task}: told done at {at}, done at {done:?}"));
            }
        }
        if kind != Kind::Broadcast {
            return Ok(());
        }
        for (epoch, at, ids) in &told.passed {
            let ids: BTreeSet<String> = ids.iter().cloned().collect();
            if self.gates.get(epoch) != Some(&(*at, ids.clone())) {
                let gate = self.gates.get(epoch);
                return Err(format!(
                    "gate {epoch}: told {at} {ids:?}, and it is {gate:?}"
                ));
            }
        }
        if u64::try_from(self.open.len()).is_ok_and(|kept| kept > KEPT) {
            return Err(format!("gates {:?} are kept", self.open));
        }
        Ok(())
    }
}
