//! When a gate opens, how, and how often: what all who use a condition queue agree on.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::Layout;
use crate::clock::{self, Instant};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::store::ops::Compare;
use crate::value::V1;

/// Most terms of a condition.
const TERMS_MAX: usize = 24;

/// What must hold for a gate to open; besides, at least one task must have joined. Judged at the very
/// revision at which the gate opens, by what is there then, not by what was.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Condition {
    /// At least so many tasks have joined and are there; at least 1.
    Len(usize),
    /// The task of this id is there.
    Present(String),
    /// The task of this id is not there, whether or not it ever was.
    Absent(String),
    /// The task of this id was there in this epoch, was withdrawn, and is not there again.
    Left(String),
    /// The task of this id is done: a delivery or batch with it was acknowledged, or
    /// [`mark_done`](super::ConditionQueue::mark_done) said so, since the gate opened last.
    Done(String),
    /// [`start`](super::ConditionQueue::start) was called in this epoch.
    Started,
    /// So long after the first task joined in this epoch, by the monotonic clock of one who waits, from when
    /// that one saw it: never earlier, and later where those who wait come and go.
    After(Duration),
    /// All of these hold, at one revision; at least one.
    All(Vec<Self>),
    /// One of these holds; at least one.
    Any(Vec<Self>),
}

impl Condition {
    /// At least so many tasks are there.
    #[must_use]
    pub fn len(tasks: usize) -> Self {
        Self::Len(tasks)
    }

    /// The task of this id is there.
    #[must_use]
    pub fn present(id: impl Into<String>) -> Self {
        Self::Present(id.into())
    }

    /// The task of this id is not there.
    #[must_use]
    pub fn absent(id: impl Into<String>) -> Self {
        Self::Absent(id.into())
    }

    /// The task of this id was there, and is not any more.
    #[must_use]
    pub fn left(id: impl Into<String>) -> Self {
        Self::Left(id.into())
    }

    /// The task of this id is done.
    #[must_use]
    pub fn done(id: impl Into<String>) -> Self {
        Self::Done(id.into())
    }

    /// Somebody has called `start()`.
    #[must_use]
    pub fn started() -> Self {
        Self::Started
    }

    /// This and the other.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::All(vec![self, other])
    }

    /// This or the other.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::Any(vec![self, other])
    }

    /// This, or so long after the first task has joined.
    #[must_use]
    pub fn or_after(self, delay: Duration) -> Self {
        self.or(Self::After(delay))
    }

    pub(super) fn check(&self) -> Result<()> {
        let terms = self.terms();
        if terms > TERMS_MAX {
            return Err(invalid(format!(
                "a condition of {terms} terms; at most {TERMS_MAX}"
            )));
        }
        self.check_terms()
    }

    fn check_terms(&self) -> Result<()> {
        match self {
            Self::Len(0) => Err(invalid(
                "a condition of no tasks; 1 is the least".to_owned(),
            )),
            Self::All(parts) | Self::Any(parts) if parts.is_empty() => {
                Err(invalid("a condition of no terms".to_owned()))
            }
            Self::All(parts) | Self::Any(parts) => parts.iter().try_for_each(Self::check_terms),
            _ => Ok(()),
        }
    }

    fn terms(&self) -> usize {
        match self {
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().map(Self::terms).sum::<usize>().max(1)
            }
            _ => 1,
        }
    }

    /// Each term, with those of its parts.
    pub(super) fn walk(&self, see: &mut impl FnMut(&Self)) {
        see(self);
        if let Self::All(parts) | Self::Any(parts) = self {
            parts.iter().for_each(|part| part.walk(see));
        }
    }

    /// The ids of the terms that `pick` picks one from.
    pub(super) fn ids(&self, pick: impl Fn(&Self) -> Option<&String>) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        self.walk(&mut |term| ids.extend(pick(term).cloned()));
        ids
    }

    /// With fewer tasks it cannot hold, whatever else is so.
    pub(super) fn least(&self) -> usize {
        match self {
            Self::Len(tasks) => *tasks,
            Self::All(parts) => parts.iter().map(Self::least).max().unwrap_or(1),
            Self::Any(parts) => parts.iter().map(Self::least).min().unwrap_or(1),
            _ => 1,
        }
    }

    /// Whether it holds by these facts, and then what must still be so when the gate opens; else when time
    /// alone may make it hold.
    pub(super) fn judge(
        &self,
        facts: &Facts,
        layout: &Layout,
    ) -> std::result::Result<Proof, Option<Instant>> {
        let item = |id: &str| layout.item(facts.epoch, id);
        let proof = |holds: bool, when: Vec<Compare>| match holds {
            true => Ok(Proof {
                when,
                why: self.to_string(),
            }),
            false => Err(None),
        };
        match self {
            // That none was withdrawn meanwhile is asked in any case.
            Self::Len(tasks) => proof(facts.items >= *tasks, Vec::new()),
            Self::Present(id) => {
                proof(facts.present.contains(id), vec![Compare::present(item(id))])
            }
            Self::Absent(id) => proof(!facts.present.contains(id), vec![Compare::absent(item(id))]),
            Self::Left(id) => proof(
                facts.left.contains(id) && !facts.present.contains(id),
                vec![
                    Compare::present(layout.left(facts.epoch, id)),
                    Compare::absent(item(id)),
                ],
            ),
            Self::Done(id) => proof(
                facts.done.contains(id),
                vec![Compare::present(layout.done(id))],
            ),
            Self::Started => {
                let started = layout.started(facts.epoch);
                proof(facts.started, vec![Compare::present(started)])
            }
            Self::After(delay) => match facts.since.map(|since| clock::after(since, *delay)) {
                Some(due) if due <= facts.now => proof(true, Vec::new()),
                due => Err(due),
            },
            Self::All(parts) => Self::judge_all(parts, facts, layout),
            Self::Any(parts) => {
                let mut next = None;
                for part in parts {
                    match part.judge(facts, layout) {
                        Ok(proof) => return Ok(proof),
                        Err(due) => next = next.into_iter().chain(due).min(),
                    }
                }
                Err(next)
            }
        }
    }

    fn judge_all(
        parts: &[Self],
        facts: &Facts,
        layout: &Layout,
    ) -> std::result::Result<Proof, Option<Instant>> {
        let mut all: Vec<Proof> = Vec::new();
        let mut last = None;
        for part in parts {
            match part.judge(facts, layout) {
                Ok(proof) => all.push(proof),
                Err(None) => return Err(None),
                Err(due) => last = last.max(due),
            }
        }
        if last.is_some() {
            return Err(last);
        }
        let why: Vec<&str> = all.iter().map(|proof| proof.why.as_str()).collect();
        let why = why.join(" and ");
        Ok(Proof {
            when: all.into_iter().flat_map(|proof| proof.when).collect(),
            why,
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, parts: &[Self], between: &str| {
            f.write_str("(")?;
            for (index, part) in parts.iter().enumerate() {
                f.write_str(if index > 0 { between } else { "" })?;
                part.fmt(f)?;
            }
            f.write_str(")")
        };
        match self {
            Self::Len(tasks) => write!(f, "len({tasks})"),
            Self::Present(id) => write!(f, "present({id:?})"),
            Self::Absent(id) => write!(f, "absent({id:?})"),
            Self::Left(id) => write!(f, "left({id:?})"),
            Self::Done(id) => write!(f, "done({id:?})"),
            Self::Started => f.write_str("started"),
            Self::After(delay) => write!(f, "after({delay:?})"),
            Self::All(parts) => list(f, parts, " and "),
            Self::Any(parts) => list(f, parts, " or "),
        }
    }
}

fn invalid(why: String) -> Error {
    Error::Invalid(why)
}

/// What was read of an epoch, all at one revision.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) epoch: u64,
    /// Tasks that are there.
    pub(super) items: usize,
    /// When one was withdrawn last; 0: never.
    pub(super) withdrawn_at: Revision,
    pub(super) started: bool,
    /// Of the tasks that the condition is about.
    pub(super) present: BTreeSet<String>,
    pub(super) left: BTreeSet<String>,
    pub(super) done: BTreeSet<String>,
    /// When the first task of the epoch was seen here.
    pub(super) since: Option<Instant>,
    pub(super) now: Instant,
}

/// Why a condition holds, as long as this is so.
#[derive(Debug)]
pub(super) struct Proof {
    pub(super) when: Vec<Compare>,
    pub(super) why: String,
}

/// What becomes of the tasks when their gate opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Release {
    /// One taker has all of them together.
    Batch,
    /// They are taken one by one, in order, by whoever is free.
    Fan,
    /// All who wait learn of the gate, and who passed it with them.
    Broadcast,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Batch => "batch",
            Self::Fan => "fan",
            Self::Broadcast => "broadcast",
        })
    }
}

/// The value of `rule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rule {
    v: V1,
    pub(super) condition: Condition,
    pub(super) release: Release,
    pub(super) once: bool,
}

impl Rule {
    pub(super) fn new(condition: Condition) -> Self {
        Self {
            v: V1,
            condition,
            release: Release::Batch,
            once: false,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let often = if self.once { "once" } else { "again and again" };
        write!(f, "{} when {}, {often}", self.release, self.condition)
    }
}
