//! Whether what a client saw of a service is what it should have seen.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_recipes::clock::Instant;
use quorate_recipes::registry::{Endpoint, MassLoss};

use super::Said;
use super::instances::{Gone, Instances, Known};

/// How far a view that is not marked as stale may be behind: an answer that opens a watch is late by this.
const BEHIND_MAX: Duration = Duration::from_secs(6);

/// How long what an observer is told may have been on its way: its connection delays answers.
const LATE_MAX: Duration = Duration::from_secs(10);

/// How much longer than it is meant to be a suspect may be shown.
const GRACE_EXTRA: Duration = Duration::from_millis(100);

/// An instance in a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    known: Known,
    suspect_since: Option<Instant>,
}

impl Shown {
    pub(super) fn of(endpoint: &Endpoint<Said>) -> Self {
        Self {
            known: Known {
                id: endpoint.id.clone(),
                said: endpoint.meta.as_deref().copied().unwrap_or_default(),
                status: endpoint.status,
                address: endpoint.address.clone(),
                created: endpoint.created.0,
                modified: endpoint.modified.0,
                lease: endpoint.lease.0,
                leaves: false,
            },
            suspect_since: endpoint.suspect_since,
        }
    }
}

/// A view as an observer had it at a moment.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) at: Instant,
    /// By the observer's clock, by which it counts how long one is suspected.
    pub(super) by_clock: Instant,
    pub(super) revision: i64,
    pub(super) stale_since: Option<Instant>,
    pub(super) unreadable: usize,
    pub(super) shown: Rc<Vec<Shown>>,
}

impl Seen {
    /// Whether it is what the store says, with nothing kept.
    pub(super) fn is_fresh(&self) -> bool {
        self.stale_since.is_none() && self.suspects().next().is_none()
    }

    pub(super) fn said(&self) -> BTreeMap<String, Said> {
        let shown = self.shown.iter();
        let said = shown.map(|shown| (shown.known.id.clone(), shown.known.said));
        said.collect()
    }

    fn present(&self) -> impl Iterator<Item = &Known> {
        let shown = self.shown.iter();
        let present = shown.filter(|shown| shown.suspect_since.is_none());
        present.map(|shown| &shown.known)
    }

    fn suspects(&self) -> impl Iterator<Item = (&Known, Instant)> {
        let shown = self.shown.iter();
        shown.filter_map(|shown| Some((&shown.known, shown.suspect_since?)))
    }
}

/// Judges what an observer saw, with the protection that it had asked for.
///
/// # Errors
/// What is broken.
pub(super) fn judge(
    instances: &Instances,
    protection: &MassLoss,
    seen: &[Seen],
) -> Result<(), String> {
    let mut last: Option<&Seen> = None;
    // When something was heard of the store.
    let mut heard: Vec<Instant> = Vec::new();
    for view in seen {
        if last.is_none_or(|last| last.revision != view.revision) {
            heard.push(view.at);
        }
        let judged = one(instances, protection, &heard, view);
        let judged = judged.and_then(|()| match last {
            Some(last) => after(instances, protection, last, view),
            None => Ok(()),
        });
        judged.map_err(|broken| format!("view {}: {broken}", view.revision))?;
        last = Some(view);
    }
    match last {
        Some(last) if last.shown.is_empty() && last.stale_since.is_none() => Ok(()),
        last => Err(format!("the last view is {last:?}")),
    }
}

fn one(
    instances: &Instances,
    protection: &MassLoss,
    heard: &[Instant],
    view: &Seen,
) -> Result<(), String> {
    let state = instances.state(view.revision);
    if view.present().ne(state.values()) {
        return Err(format!("{:?}, and not {state:?}", view.shown));
    }
    if view.unreadable > 0 {
        return Err(format!("{} cannot be read", view.unreadable));
    }
    for (suspect, since) in view.suspects() {
        // It may have been there again since, and gone unseen.
        let before = heard.iter().rev().find(|at| **at < since);
        let unseen = instances.resyncs.iter().any(|resync| {
            *resync <= view.at && before.is_none_or(|before| *before - LATE_MAX <= *resync)
        });
        let unseen = unseen && instances.ever_was(suspect);
        let judged = is_suspected(instances, protection, view, suspect, since, unseen);
        judged.map_err(|broken| format!("{suspect:?}: {broken}"))?;
    }
    match view.stale_since {
        Some(since) if since > view.at => Err("stale from later on".to_owned()),
        Some(_) => Ok(()),
        None => is_up_to_date(instances, view),
    }
}

/// A view that is not marked shows what has happened.
fn is_up_to_date(instances: &Instances, view: &Seen) -> Result<(), String> {
    let mut missing = instances.states.range(view.revision + 1..);
    let (next, at) = match missing.next() {
        Some((next, (Some(at), _))) => (next, *at),
        _ => return Ok(()),
    };
    match at + BEHIND_MAX < view.at {
        true => Err(format!(
            "{:?} behind revision {next}, and not stale",
            view.at.saturating_duration_since(at)
        )),
        false => Ok(()),
    }
}

/// A suspect was there, has gone without a word, or `unseen` by the observer, and with others.
fn is_suspected(
    instances: &Instances,
    protection: &MassLoss,
    view: &Seen,
    suspect: &Known,
    since: Instant,
    unseen: bool,
) -> Result<(), String> {
    if instances.state(view.revision).contains_key(&suspect.id) {
        return Err("a suspect that is there".to_owned());
    }
    if since + protection.grace + GRACE_EXTRA < view.by_clock {
        return Err("it is suspected for too long".to_owned());
    }
    let gone = || {
        instances
            .gone
            .iter()
            .take_while(|gone| gone.revision <= view.revision)
    };
    let last = gone().filter(|gone| gone.was.id == suspect.id).last();
    let silently = last.is_some_and(|last| !last.clean && last.was == *suspect);
    if !silently && !unseen {
        return Err(format!("a suspect, and the last one went as {last:?}"));
    }
    let from = since - protection.grace.min(LATE_MAX * 3) - LATE_MAX;
    let lost = gone().filter(|gone| from <= gone.at && gone.at <= view.at);
    match lost.count() < protection.at_least {
        true => Err("suspected, and so few went".to_owned()),
        false => Ok(()),
    }
}

impl Instances {
    fn ever_was(&self, known: &Known) -> bool {
        self.state(known.modified).get(&known.id) == Some(known)
    }
}

/// Views do not go back, and who vanishes with many others is kept.
fn after(
    instances: &Instances,
    protection: &MassLoss,
    last: &Seen,
    view: &Seen,
) -> Result<(), String> {
    if view.revision < last.revision {
        return Err(format!("it comes after view {}", last.revision));
    }
    let state = instances.state(view.revision);
    // How each id went last.
    let mut gone: BTreeMap<&str, &Gone> = BTreeMap::new();
    for one in instances.gone.iter() {
        if last.revision < one.revision && one.revision <= view.revision {
            gone.insert(&one.was.id, one);
        }
    }
    let silently = gone.into_values().filter(|gone| !gone.clean);
    let lost: Vec<&Known> = (silently.map(|gone| &gone.was))
        .filter(|was| last.present().any(|shown| shown.created == was.created))
        .filter(|was| !state.contains_key(&was.id))
        .collect();
    let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    let many = lost.len() >= protection.at_least.max(1)
        && count(lost.len()) > protection.more_than * count(lost.len() + state.len())
        && !protection.grace.is_zero();
    if !many {
        return Ok(());
    }
    let kept = |was: &&&Known| {
        view.suspects()
            .any(|(known, _)| known.created == was.created)
    };
    match lost.iter().find(|was| !kept(was)) {
        Some(was) => Err(format!(
            "{was:?} went with {} others, and is not kept",
            lost.len() - 1
        )),
        None => Ok(()),
    }
}
