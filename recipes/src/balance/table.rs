//! One view of a service, ready to be picked from, and how the next one is made of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::chooser::{Chooser, Plan};
use super::group::{Ask, Candidate, Group};
use super::incarnation::Incarnation;
use crate::registry::{Discovery, Endpoint, Status};

/// An instance of the view, and what is known about it.
#[derive(Debug)]
pub(super) struct Entry<M> {
    pub(super) endpoint: Arc<Endpoint<M>>,
    pub(super) incarnation: Arc<Incarnation>,
}

/// Which instances are picked from at all, whatever their status; all of them unless somebody says so.
pub(super) struct Wanted<M>(Option<Box<Test<M>>>);

type Test<M> = dyn Fn(&Endpoint<M>) -> bool + Send + Sync;

impl<M> Wanted<M> {
    pub(super) fn all() -> Self {
        Self(None)
    }

    pub(super) fn only(wanted: impl Fn(&Endpoint<M>) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(wanted)))
    }

    fn is(&self, endpoint: &Endpoint<M>) -> bool {
        self.0.as_ref().is_none_or(|wanted| wanted(endpoint))
    }
}

impl<M> fmt::Debug for Wanted<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "some",
            None => "all",
        })
    }
}

/// What picks are made from.
pub(super) struct Table<M> {
    /// The discovery, with the table's view as the last one seen.
    source: Discovery<M>,
    /// Those that are wanted, by id.
    pub(super) entries: Vec<Entry<M>>,
    chooser: Chooser,
    /// All that take work, where the chooser has only a subset.
    beyond: Option<Group>,
    /// All that could do work if need be: those that drain or fail their checks as well.
    last_resort: Group,
}

impl<M: Send + Sync + 'static> Table<M> {
    pub(super) fn first(source: Discovery<M>, wanted: &Wanted<M>, plan: &Plan) -> Self {
        Self::make(source, wanted, plan, None, Duration::ZERO)
    }

    /// Whether there is a newer view.
    pub(super) fn is_outdated(&self) -> bool {
        self.source.has_changed()
    }

    /// The table of the newest view.
    pub(super) fn next(&self, wanted: &Wanted<M>, plan: &Plan, now: Duration) -> Self {
        Self::make(self.source.clone(), wanted, plan, Some(self), now)
    }

    fn make(
        mut source: Discovery<M>,
        wanted: &Wanted<M>,
        plan: &Plan,
        before: Option<&Self>,
        now: Duration,
    ) -> Self {
        let view = source.take();
        let known = |endpoint: &Endpoint<M>| {
            let entry = before?.entry(&endpoint.id)?;
            let same = entry.incarnation.created == endpoint.created;
            same.then(|| Arc::clone(&entry.incarnation))
        };
        let joined = before.map(|_| now);
        let fresh = |one: &Endpoint<M>| Arc::new(Incarnation::new(&one.id, one.created, joined));
        let mut entries: Vec<_> = view
            .instances
            .iter()
            .filter(|endpoint| wanted.is(endpoint))
            .map(|endpoint| Entry {
                endpoint: Arc::clone(endpoint),
                incarnation: known(endpoint).unwrap_or_else(|| fresh(endpoint)),
            })
            .collect();
        entries.sort_by(|a, b| a.endpoint.id.cmp(&b.endpoint.id));
        let candidates = |wanted: fn(&Endpoint<M>) -> bool| {
            let all = entries.iter().enumerate();
            all.filter(move |(_, entry)| wanted(&entry.endpoint))
                .map(|(place, entry)| Candidate {
                    incarnation: Arc::clone(&entry.incarnation),
                    weight: entry.endpoint.weight.max(1),
                    place,
                })
        };
        let zone = |one: Candidate| {
            let zone = entries[one.place].endpoint.zone.as_str();
            (one, zone)
        };
        let working = candidates(takes_work).map(zone).collect();
        let chooser = plan.chooser(working, before.map(|table| &table.chooser));
        let beyond = plan.subset.as_ref().map(|_| candidates(takes_work));
        let beyond = beyond.map(|all| Group::new(all.collect(), plan.slow_start));
        let last_resort = candidates(could_work).collect();
        Self {
            chooser,
            beyond,
            last_resort: Group::new(last_resort, plan.slow_start),
            entries,
            source,
        }
    }

    /// Chooses by the policy.
    pub(super) fn choose(&self, ask: &Ask<'_>) -> Option<&Entry<M>> {
        let chosen = self.chooser.choose(ask);
        let chosen = chosen.or_else(|| self.beyond.as_ref()?.less_outstanding(ask));
        chosen.map(|one| &self.entries[one.place])
    }

    /// Chooses any that could do the work, ejected or not.
    pub(super) fn choose_any(&self, ask: &Ask<'_>) -> Option<&Entry<M>> {
        let ask = Ask {
            any_ejected: false,
            ..*ask
        };
        let chosen = self.last_resort.less_outstanding(&ask);
        chosen.map(|one| &self.entries[one.place])
    }

    /// How many take work, and how many of these are ejected.
    pub(super) fn working(&self, now: Duration) -> (usize, usize) {
        let working = || {
            let all = self.entries.iter();
            all.filter(|entry| takes_work(&entry.endpoint))
        };
        let ejected = working().filter(|entry| entry.incarnation.is_ejected(now));
        (working().count(), ejected.count())
    }

    fn entry(&self, id: &str) -> Option<&Entry<M>> {
        let at = self
            .entries
            .binary_search_by(|entry| entry.endpoint.id.as_str().cmp(id));
        self.entries.get(at.ok()?)
    }
}

fn takes_work<M>(endpoint: &Endpoint<M>) -> bool {
    endpoint.takes_work() && endpoint.weight > 0
}

fn could_work<M>(endpoint: &Endpoint<M>) -> bool {
    matches!(endpoint.status, Status::Up | Status::Draining)
}
