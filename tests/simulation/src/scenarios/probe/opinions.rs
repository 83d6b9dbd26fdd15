//! What a history says about observers: what each said when, whether it had seen that, and the verdict of all.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use quorate_proto::mvccpb::Event;
use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::probe::{ProbeState, Verdict};
use quorate_recipes::store::Commit;
use serde_json::Value;

use super::{QUORUM, Watching};
use crate::history::{History, key_of, state_at};

/// All observers' keys.
pub const OPINIONS: &str = "quorate/probe/db/";

/// How far a verdict that is not marked as stale may be behind: an answer that opens a watch is late by this.
const BEHIND_MAX: Duration = Duration::from_secs(6);

/// An opinion: what is said, at which revision, and under which lease.
type Said = (ProbeState, i64, i64);

/// A verdict as somebody had it at a moment.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    at: Instant,
    revision: i64,
    state: ProbeState,
    stale: bool,
    opinions: BTreeMap<String, Said>,
}

impl Seen {
    pub(super) fn of(verdict: &Verdict) -> Self {
        let opinions = verdict.opinions.iter().map(|one| {
            let said = (one.state, one.revision.0, one.lease.0);
            (one.observer.clone(), said)
        });
        Self {
            at: SystemClock.now(),
            revision: verdict.revision.0,
            state: verdict.state,
            stale: verdict.stale_since.is_some(),
            opinions: opinions.collect(),
        }
    }

    pub(super) fn is(&self, state: ProbeState) -> bool {
        self.state == state && !self.stale
    }

    pub(super) fn observers(&self) -> usize {
        self.opinions.len()
    }
}

/// What all observers said, as it went through a history.
#[derive(Debug, Default)]
pub struct Opinions {
    /// What was said after each revision that changed it, and when that was.
    states: BTreeMap<i64, (Option<Instant>, BTreeMap<String, Said>)>,
    /// How many of the states that each observation went through it has told.
    told: BTreeMap<u64, usize>,
}

/// The states that an observation went through, and since when.
fn course(watching: &Watching) -> Vec<(Option<Instant>, ProbeState)> {
    let mut course = vec![(None, ProbeState::Unknown)];
    let (mut passed, mut failed) = (0, 0);
    let answers = watching
        .answers
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    for (at, passes) in &*answers {
        (passed, failed) = match passes {
            true => (passed + 1, 0),
            false => (0, failed + 1),
        };
        let now = match () {
            () if passed >= watching.rise => ProbeState::Up,
            () if failed >= watching.fall => ProbeState::Down,
            () => continue,
        };
        if course.last().is_some_and(|(_, last)| *last != now) {
            course.push((Some(*at), now));
        }
    }
    course
}

impl Opinions {
    /// Goes through a history.
    ///
    /// # Errors
    /// What is broken in it, by what the observers saw.
    pub(super) fn of(
        history: &History,
        watching: &BTreeMap<u64, Watching>,
    ) -> Result<Self, String> {
        let mut opinions = Self::default();
        opinions.states.insert(0, (None, BTreeMap::new()));
        let courses = watching.iter().map(|(number, one)| (*number, course(one)));
        let courses: BTreeMap<_, _> = courses.collect();
        for (commit, change) in history.changes() {
            let key = key_of(change);
            let Some(name) = key.strip_prefix(OPINIONS) else {
                continue;
            };
            let number = name.parse().unwrap_or(u64::MAX);
            let (Some(one), Some(course)) = (watching.get(&number), courses.get(&number)) else {
                return Err(format!("an observer {name} that nobody is"));
            };
            let taken = opinions.take(commit, change, (number, name), one, course);
            taken.map_err(|broken| format!("at revision {}: {name}: {broken}", commit.revision))?;
        }
        Ok(opinions)
    }

    fn state(&self, revision: i64) -> &BTreeMap<String, Said> {
        let (_, state) = state_at(&self.states, revision).expect("there is one at 0");
        state
    }

    fn take(
        &mut self,
        commit: &Commit,
        change: &Event,
        (number, name): (u64, &str),
        watching: &Watching,
        course: &[(Option<Instant>, ProbeState)],
    ) -> Result<(), String> {
        let mut state = self.state(commit.revision.0).clone();
        if change.r#type() == EventType::Put {
            let kv = change.kv.as_ref().ok_or("a change without a key")?;
            let value: Value = serde_json::from_slice(&kv.value).unwrap_or_default();
            let said = serde_json::from_value(value["state"].clone());
            let said: ProbeState = said.map_err(|error| error.to_string())?;
            if watching.over.is_some_and(|over| over < commit.at) {
                return Err(format!("it says {said:?} after it was over"));
            }
            let told = self.told.entry(number).or_insert(0);
            let mut rest = course.iter().enumerate().skip(*told);
            let by_now = |at: &Option<Instant>| at.is_none_or(|at| at <= commit.at);
            match rest.find(|(_, (at, state))| *state == said && by_now(at)) {
                Some((index, _)) => *told = index,
                None => return Err(format!("it says {said:?} after {told} of {course:?}")),
            }
            state.insert(name.to_owned(), (said, kv.mod_revision, kv.lease));
        } else {
            state.remove(name);
        }
        self.states
            .insert(commit.revision.0, (Some(commit.at), state));
        Ok(())
    }

    /// Judges the verdicts that somebody had.
    ///
    /// # Errors
    /// What is broken.
    pub(super) fn judge(&self, seen: &[Seen]) -> Result<(), String> {
        let mut last = 0;
        for verdict in seen {
            self.one(verdict, last)
                .map_err(|broken| format!("verdict {}: {broken}", verdict.revision))?;
            last = verdict.revision;
        }
        match seen.last() {
            Some(last) if last.opinions.is_empty() && last.is(ProbeState::Unknown) => Ok(()),
            last => Err(format!("the last verdict is {last:?}")),
        }
    }

    fn one(&self, verdict: &Seen, last: i64) -> Result<(), String> {
        if verdict.revision < last {
            return Err(format!("it comes after verdict {last}"));
        }
        let state = self.state(verdict.revision);
        if verdict.opinions != *state {
            return Err(format!("by {:?}, and not {state:?}", verdict.opinions));
        }
        let say = |wanted| state.values().filter(|(said, ..)| *said == wanted).count();
        let (up, down) = (say(ProbeState::Up), say(ProbeState::Down));
        let right = match () {
            () if up > down && up >= QUORUM => ProbeState::Up,
            () if down > up && down >= QUORUM => ProbeState::Down,
            () => ProbeState::Unknown,
        };
        if verdict.state != right {
            return Err(format!("{:?}, and {up} say up, {down} down", verdict.state));
        }
        let mut later = self.states.range(verdict.revision + 1..);
        let missing = later.next().and_then(|(_, (at, _))| *at);
        match missing {
            Some(at) if !verdict.stale && at + BEHIND_MAX < verdict.at => {
                let behind = verdict.at.saturating_duration_since(at);
                Err(format!("{behind:?} behind, and not stale"))
            }
            _ => Ok(()),
        }
    }
}
