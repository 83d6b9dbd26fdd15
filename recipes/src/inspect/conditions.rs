//! Condition queues: who gathers, what is missing, what has passed and who has it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::look::Look;
use super::queues::{TAKEN_MAX, TakenInfo};
use crate::condition::{self, Release};
use crate::error::Result;
use crate::keys::Revision;
use crate::lock::Holder;

/// A condition queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ConditionInfo {
    /// Its name.
    pub name: String,
    /// When its gates open, and how; `None` when nobody has used it yet, or that cannot be read.
    pub rule: Option<ConditionRule>,
    /// The epoch that gathers, counted from 0; `None` when the gate opens once only and has, or it cannot be read.
    pub epoch: Option<u64>,
    /// Whether its condition holds: the gate opens as soon as somebody looks. `None` when only the clocks of those
    /// who wait can tell, or the rule or the epoch cannot be read.
    pub holds: Option<bool>,
    /// The terms of the condition in their order, without what joins them; none when no epoch gathers.
    pub terms: Vec<TermInfo>,
    /// Tasks that gather.
    pub gathering: u64,
    /// Which ones, in the order in which they joined; at most 256 are told.
    pub tasks: Vec<GatheringInfo>,
    /// Gates that are open, the oldest first; at most 64 are told.
    pub gates: Vec<GateInfo>,
    /// Tasks that have passed a gate and are there.
    pub passed: u64,
    /// Tasks of a fan that consumers have.
    pub claimed: u64,
    /// Which ones; at most 256 are told.
    pub taken: Vec<TakenInfo>,
    /// Tasks of a fan that were put aside.
    pub dead: u64,
    /// Consumers of a fan.
    pub consumers: u64,
    /// Keys that cannot be read, by what follows the queue's prefix in them, and why.
    pub unreadable: BTreeMap<String, String>,
}

/// When gates open, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ConditionRule {
    /// The condition, as text.
    pub condition: String,
    /// What becomes of the tasks.
    pub release: Release,
    /// Whether it opens once only.
    pub once: bool,
}

/// A term of a condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TermInfo {
    /// The term, as text.
    pub term: String,
    /// Whether it holds; `None` when only the clocks of those who wait can tell.
    pub holds: Option<bool>,
}

/// A task that gathers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GatheringInfo {
    /// The id that it joined under.
    pub id: String,
    /// When it joined, in milliseconds since the Unix epoch by the joiner's wall clock; `None` if that cannot be
    /// read.
    pub since_ms: Option<u64>,
    /// The revision at which it joined.
    pub revision: Revision,
}

/// A gate that has opened, and is kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GateInfo {
    /// The epoch that it ended.
    pub epoch: u64,
    /// The revision at which it opened.
    pub revision: Revision,
    /// The terms of the condition that held; `None` if that cannot be read.
    pub reason: Option<String>,
    /// When it opened, in milliseconds since the Unix epoch by the wall clock of who opened it.
    pub since_ms: Option<u64>,
    /// Tasks that have passed it and are there.
    pub tasks: u64,
    /// Who has the batch.
    pub by: Option<Holder>,
}

/// All condition queues.
pub(super) async fn conditions(look: &Look) -> Result<Vec<ConditionInfo>> {
    let mut found = Vec::new();
    for name in look.names(condition::KIND).await? {
        found.push(one(look, name).await?);
    }
    Ok(found)
}

async fn one(look: &Look, name: String) -> Result<ConditionInfo> {
    let survey = condition::survey(look.client(), &name, look.revision(), TAKEN_MAX).await?;
    let terms = survey.terms.iter().map(|(term, holds)| TermInfo {
        term: term.to_string(),
        holds: *holds,
    });
    let tasks = survey.tasks.into_iter().map(|task| GatheringInfo {
        id: task.id,
        since_ms: task.since_ms,
        revision: task.revision,
    });
    let gates = survey.gates.into_iter().map(|open| GateInfo {
        epoch: open.epoch,
        revision: open.revision,
        since_ms: open.gate.as_ref().map(|gate| gate.since_ms),
        reason: open.gate.map(|gate| gate.reason),
        tasks: open.tasks,
        by: open.claim.map(|kv| look.holder(&kv)),
    });
    let taken = survey.claims.into_iter().map(|(item, kv)| TakenInfo {
        item,
        by: look.holder(&kv),
    });
    let rule = survey.rule.map(|(condition, release, once)| ConditionRule {
        condition: condition.to_string(),
        release,
        once,
    });
    Ok(ConditionInfo {
        name,
        rule,
        epoch: survey.epoch,
        holds: survey.holds,
        terms: terms.collect(),
        gathering: survey.gathering,
        tasks: tasks.collect(),
        gates: gates.collect(),
        passed: survey.passed,
        claimed: survey.claimed,
        taken: taken.collect(),
        dead: survey.dead,
        consumers: survey.consumers,
        unreadable: survey.unreadable,
    })
}
