//! One view of a service, ready to be picked from, and how the next one is made of it.

use std::fmt;
use std::sync::{Arc, OnceLock};
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
    slow_start: Duration,
    /// All that take work, where the chooser has only a subset. Made when it is first chosen from.
    beyond: Option<OnceLock<Group>>,
    /// All that could do work if need be: those that drain or fail their checks as well. Likewise.
    last_resort: OnceLock<Group>,
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
        let known = before.map_or(&[][..], |table| &table.entries);
        let mut merge = Merge::with(known, before.map(|_| now));
        let instances = view.instances.iter();
        instances
            .filter(|endpoint| wanted.is(endpoint))
            .for_each(|endpoint| merge.push(endpoint));
        let entries = merge.finish();
        let zone = |one: Candidate| {
            let zone = entries[one.place].endpoint.zone.as_str();
            (one, zone)
        };
        let working = candidates(&entries, takes_work).map(zone).collect();
        let chooser = plan.chooser(working, before.map(|table| &table.chooser));
        Self {
            chooser,
            slow_start: plan.slow_start,
            beyond: plan.subset.as_ref().map(|_| OnceLock::new()),
            last_resort: OnceLock::new(),
            entries,
            source,
        }
    }

    /// Chooses by the policy.
    pub(super) fn choose(&self, ask: &Ask<'_>) -> Option<&Entry<M>> {
        let chosen = self.chooser.choose(ask);
        let chosen = chosen.or_else(|| {
            let beyond = self.beyond.as_ref()?;
            let beyond = beyond.get_or_init(|| self.group(takes_work));
            beyond.less_outstanding(ask)
        });
        chosen.map(|one| &self.entries[one.place])
    }

    /// Chooses any that could do the work, ejected or not.
    pub(super) fn choose_any(&self, ask: &Ask<'_>) -> Option<&Entry<M>> {
        let ask = Ask {
            any_ejected: false,
            ..*ask
        };
        let last_resort = self.last_resort.get_or_init(|| self.group(could_work));
        let chosen = last_resort.less_outstanding(&ask);
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

    fn group(&self, wanted: fn(&Endpoint<M>) -> bool) -> Group {
        let all = candidates(&self.entries, wanted).collect();
        Group::new(all, self.slow_start)
    }
}

fn candidates<M>(
    entries: &[Entry<M>],
    wanted: fn(&Endpoint<M>) -> bool,
) -> impl Iterator<Item = Candidate> {
    let all = entries.iter().enumerate();
    all.filter(move |(_, entry)| wanted(&entry.endpoint))
        .map(|(place, entry)| Candidate {
            incarnation: Arc::clone(&entry.incarnation),
            weight: entry.endpoint.weight.max(1),
            place,
        })
}

/// Makes the entries of a view out of those of the view before. Views come about in the order of ids, for their keys
/// are sorted, and share what did not change: only the rest is looked up and compared.
struct Merge<'a, M> {
    /// By id.
    known: &'a [Entry<M>],
    /// The place in `known` after that of the last entry made.
    at: usize,
    /// When those that are not known have joined.
    joined: Option<Duration>,
    made: Vec<Entry<M>>,
    /// Whether the last entry made is a known one as it was.
    unchanged: bool,
    is_sorted: bool,
}

impl<'a, M> Merge<'a, M> {
    fn with(known: &'a [Entry<M>], joined: Option<Duration>) -> Self {
        Self {
            known,
            at: 0,
            joined,
            made: Vec::with_capacity(known.len()),
            unchanged: true,
            is_sorted: true,
        }
    }

    fn push(&mut self, endpoint: &Arc<Endpoint<M>>) {
        let next = self.known.get(self.at);
        let next = next.filter(|known| Arc::ptr_eq(&known.endpoint, endpoint));
        let follows = self.unchanged && next.is_some();
        if !follows && let Some(last) = self.made.last() {
            self.is_sorted &= last.endpoint.id < endpoint.id;
        }
        self.unchanged = next.is_some();
        let incarnation = match next {
            Some(known) => {
                self.at += 1;
                Arc::clone(&known.incarnation)
            }
            None => self.look_up(endpoint),
        };
        self.made.push(Entry {
            endpoint: Arc::clone(endpoint),
            incarnation,
        });
    }

    fn look_up(&mut self, endpoint: &Endpoint<M>) -> Arc<Incarnation> {
        let of = |known: &Entry<M>| known.endpoint.id.cmp(&endpoint.id);
        let place = self.known.binary_search_by(of);
        // What has gone is passed over.
        self.at = place.map_or_else(|before| before, |place| place + 1);
        let known = place.ok().map(|place| &self.known[place].incarnation);
        match known.filter(|known| known.created == endpoint.created) {
            Some(known) => Arc::clone(known),
            None => Arc::new(Incarnation::new(
                &endpoint.id,
                endpoint.created,
                self.joined,
            )),
        }
    }

    fn finish(mut self) -> Vec<Entry<M>> {
        if !self.is_sorted {
            self.made.sort_by(|a, b| a.endpoint.id.cmp(&b.endpoint.id));
        }
        self.made
    }
}

fn takes_work<M>(endpoint: &Endpoint<M>) -> bool {
    endpoint.takes_work() && endpoint.weight > 0
}

fn could_work<M>(endpoint: &Endpoint<M>) -> bool {
    matches!(endpoint.status, Status::Up | Status::Draining)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::balance::draw::Random;
    use crate::keys::{LeaseId, Revision, encode};

    fn endpoint(id: &str, created: u64, modified: u64) -> Arc<Endpoint<()>> {
        let revision = |revision| Revision(i64::try_from(revision).unwrap());
        Arc::new(Endpoint {
            id: id.to_owned(),
            address: String::new(),
            status: Status::Up,
            weight: 1,
            zone: String::new(),
            version: String::new(),
            tags: BTreeSet::new(),
            health: None,
            meta: None,
            created: revision(created),
            modified: revision(modified),
            lease: LeaseId(1),
            suspect_since: None,
        })
    }

    fn merged(known: &[Entry<()>], view: &BTreeMap<String, Arc<Endpoint<()>>>) -> Vec<Entry<()>> {
        let mut merge = Merge::with(known, Some(Duration::ZERO));
        view.values().for_each(|endpoint| merge.push(endpoint));
        merge.finish()
    }

    #[test]
    fn a_view_is_merged_with_what_is_known_of_the_one_before() {
        // The order of the keys is not quite that of the ids.
        let ids = [
            "a", "a!", "a-", "a/", "a0", "b", "c", "d", "e", "f/1", "f1", "g",
        ];
        let random = Random::new(7);
        let draw = |n: u64| random.next() % n;
        let mut view = BTreeMap::new();
        let mut known: Vec<Entry<()>> = Vec::new();
        for step in 1..2_000 {
            for _ in 0..draw(4) {
                let id = ids[usize::try_from(draw(12)).unwrap()];
                let key = encode(id);
                match (view.get(&key).cloned(), draw(3)) {
                    (Some(_), 0) => drop(view.remove(&key)),
                    (Some(was), 1) => {
                        let was: Arc<Endpoint<()>> = was;
                        let created = u64::try_from(was.created.0).unwrap();
                        view.insert(key, endpoint(id, created, step));
                    }
                    _ => drop(view.insert(key, endpoint(id, step, step))),
                }
            }
            let entries = merged(&known, &view);
            assert!(entries.is_sorted_by(|a, b| a.endpoint.id < b.endpoint.id));
            assert_eq!(entries.len(), view.len());
            for entry in &entries {
                let Entry {
                    endpoint,
                    incarnation,
                } = entry;
                assert!(Arc::ptr_eq(endpoint, &view[&encode(&endpoint.id)]));
                assert_eq!(
                    (&incarnation.id, incarnation.created),
                    (&endpoint.id, endpoint.created)
                );
                let before = known.iter().find(|known| known.endpoint.id == endpoint.id);
                let same = before.filter(|before| before.endpoint.created == endpoint.created);
                if let Some(same) = same {
                    assert!(
                        Arc::ptr_eq(incarnation, &same.incarnation),
                        "{}",
                        endpoint.id
                    );
                }
            }
            known = entries;
        }
    }
}
