//! What a history says about the gates of a condition queue: who was there when each opened, whether it was
//! right to, and who took what passed.

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::Instant;
use quorate_recipes::condition::Condition as When;
use quorate_recipes::keys::Revision;
use quorate_recipes::store::Commit;
use serde_json::Value;

use super::rules::{self, Facts};
use super::{Kind, Told};
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
    /// The ids of all that were withdrawn.
    withdrawals: Vec<String>,
    /// When each gate opened, and who passed it.
    gates: BTreeMap<u64, (Revision, BTreeSet<String>)>,
    /// Gates that are there now.
    open: BTreeSet<u64>,
    head: u64,
    /// Tasks that are there now, by epoch and id.
    there: BTreeMap<u64, BTreeMap<String, i64>>,
    /// When the first one joined in the epoch that gathers.
    since: Option<Instant>,
    started: bool,
    /// Who was withdrawn in the epoch that gathers.
    left: BTreeSet<String>,
    /// Which of those that the condition asks for are done since the last gate.
    ended: BTreeSet<String>,
    /// The lease of whoever has a batch or a task.
    claims: BTreeMap<String, i64>,
}

/// What one commit did to a queue.
#[derive(Debug, Default)]
struct Step {
    joined: Vec<(u64, String, i64)>,
    gone: Vec<(u64, String)>,
    opened: Vec<u64>,
    closed: Vec<u64>,
    head: Option<u64>,
    started: Vec<u64>,
    /// Tasks that are said to be done.
    done: BTreeSet<String>,
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
        let value: Option<Value> = kv.and_then(|kv| serde_json::from_slice(&kv.value).ok());
        let value = value.unwrap_or_default();
        match (part, put) {
            ("segment", put) => {
                let (epoch, id) = rest.split_once('/').unwrap_or((rest, ""));
                let (epoch, id) = (number(epoch), id.to_owned());
                match put {
                    true => self
                        .joined
                        .push((epoch, id, value["value"].as_i64().unwrap_or(-1))),
                    false => self.gone.push((epoch, id)),
                }
            }
            ("gate", true) => self.opened.push(number(rest)),
            ("gate", false) => self.closed.push(number(rest)),
            ("head", true) => self.head = value["segment"].as_u64(),
            ("done", true) => {
                self.done.insert(rest.to_owned());
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
    pub fn of(history: &History, kind: Kind, when: &When, told: &Told) -> Result<Self, String> {
        let mut passages = Self::default();
        for commit in &history.commits {
            let broken = |what: String| {
                let name = kind.name();
                format!("queue {name} at revision {}: {what}", commit.revision)
            };
            let step = Step::of(commit, kind);
            passages.are_done(&step, when, told).map_err(broken)?;
            passages.take(commit, kind, when, step).map_err(broken)?;
        }
        Ok(passages)
    }

    /// Who is said to be done has ended, or somebody said so; and who the condition asks for is said to be.
    fn are_done(&mut self, step: &Step, when: &When, told: &Told) -> Result<(), String> {
        let gone = step.gone.iter();
        let ends = gone.filter(|(epoch, id)| *epoch != self.head && rules::asks_for_end(when, id));
        let ends: BTreeSet<&String> = ends.map(|(_, id)| id).collect();
        if let Some(end) = ends.iter().find(|id| !step.done.contains(**id)) {
            return Err(format!("{end} has ended, and is not said to be done"));
        }
        let mut unasked = step.done.iter();
        match unasked.find(|id| !ends.contains(id) && !told.marked.contains(id)) {
            Some(id) => Err(format!("{id} is said to be done, and nobody did it")),
            None => {
                self.ended.extend(step.done.iter().cloned());
                Ok(())
            }
        }
    }

    fn take(&mut self, commit: &Commit, kind: Kind, when: &When, step: Step) -> Result<(), String> {
        for (epoch, id, _) in &step.joined {
            if kind == Kind::Once && !self.gates.is_empty() {
                return Err(format!("{id} joined after the only gate"));
            }
            if *epoch != self.head || step.head.is_some() {
                return Err(format!(
                    "{id} joined epoch {epoch}, and {} gathers",
                    self.head
                ));
            }
        }
        self.ended(commit, kind, &step)?;
        if step.head.is_some() || !step.opened.is_empty() {
            self.opened(commit, when, &step)?;
        }
        for (epoch, id, task) in step.joined {
            self.since = self.since.or(Some(commit.at));
            self.joined.push((task, epoch));
            if self
                .there
                .entry(epoch)
                .or_default()
                .insert(id, task)
                .is_some()
            {
                return Err(format!("{task} joined in the place of another"));
            }
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
    fn opened(&mut self, commit: &Commit, when: &When, step: &Step) -> Result<(), String> {
        let [epoch] = step.opened[..] else {
            return Err(format!("the head moved with gates {:?}", step.opened));
        };
        if epoch != self.head || step.head != Some(epoch + 1) || self.gates.contains_key(&epoch) {
            return Err(format!(
                "gate {epoch} opened for head {:?}, and {} gathers",
                step.head, self.head
            ));
        }
        let there = self.there.get(&epoch);
        let there: BTreeSet<String> = there.into_iter().flat_map(|t| t.keys().cloned()).collect();
        let facts = Facts {
            there: &there,
            left: &self.left,
            done: &self.ended,
            started: self.started,
            waited: self.since.map(|since| commit.at - since),
        };
        if there.is_empty() || !rules::holds(when, &facts) {
            return Err(format!("gate {epoch} opened when {when}, with {facts:?}"));
        }
        self.gates.insert(epoch, (commit.revision, there));
        self.open.insert(epoch);
        self.head = epoch + 1;
        self.since = None;
        self.started = false;
        self.left.clear();
        self.ended.clear();
        Ok(())
    }

    /// Tasks go: withdrawn while they gather, done by whoever has them, or no longer kept.
    fn ended(&mut self, commit: &Commit, kind: Kind, step: &Step) -> Result<(), String> {
        let mut effects = step.effects.clone();
        for (epoch, id) in &step.gone {
            let task = self.there.entry(*epoch).or_default().remove(id);
            let task = task.unwrap_or(-1);
            if *epoch == self.head {
                self.withdrawn.insert(task);
                self.withdrawals.push(id.clone());
                self.left.insert(id.clone());
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
                Kind::Batch | Kind::Once | Kind::Ruled => format!("{epoch:016x}"),
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
        if [Kind::Batch, Kind::Once, Kind::Ruled].contains(&kind)
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
        for (of, epoch, at, ids) in &told.taken {
            let ids: BTreeSet<String> = ids.iter().cloned().collect();
            if *of == kind && self.gates.get(epoch) != Some(&(*at, ids.clone())) {
                let gate = self.gates.get(epoch);
                return Err(format!(
                    "batch {epoch}: told {at} {ids:?}, and it is {gate:?}"
                ));
            }
        }
        if kind == Kind::Ruled {
            let count = |all: &[String], name: &String| all.iter().filter(|id| *id == name).count();
            let mut named = told.withdrawn_named.iter();
            let all = &told.withdrawn_named;
            if let Some(name) = named.find(|name| count(all, name) > count(&self.withdrawals, name))
            {
                return Err(format!("{name} was withdrawn less often than was told"));
            }
        }
        if kind == Kind::Once && told.late && self.gates.is_empty() {
            return Err("a task was too late for a gate that never opened".to_owned());
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
