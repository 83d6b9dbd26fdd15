//! What discovery shows: all instances of a service at one revision, and what changed between two
//! such views.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::checks::Health;
use super::farewells::Farewells;
use super::instance::Status;
use super::instances::Instances;
use crate::clock::Instant;
use crate::departure::Departure;
use crate::keys::{LeaseId, Revision};
use crate::probe::ProbeState;

/// An instance as discovery sees it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Endpoint<M> {
    /// Its name among the instances of the service.
    pub id: String,
    /// Where it is reached.
    pub address: String,
    /// Whether it wants work.
    pub status: Status,
    /// Its share of the work, relative to the others.
    pub weight: u32,
    /// Where it stands; may be empty.
    pub zone: String,
    /// The version of what it runs; may be empty.
    pub version: String,
    /// What it can be selected by.
    pub tags: BTreeSet<String>,
    /// What its own checks have found; `None` when it has none.
    pub health: Option<Health>,
    /// What else it says; `None` when that is not an `M`.
    pub meta: Option<Arc<M>>,
    /// The revision at which it registered: a restarted instance has a new one.
    pub created: Revision,
    /// The revision at which it last changed.
    pub modified: Revision,
    /// The lease its key is attached to.
    pub lease: LeaseId,
    /// Set while the key is gone, but with so many others at once that they are kept for a while.
    pub suspect_since: Option<Instant>,
}

impl<M> Endpoint<M> {
    /// Whether its key is gone and it is only kept because too many vanished at once.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspect_since.is_some()
    }

    /// Whether it takes work: its owner wants it to, and its checks, if it has any, have all passed.
    #[must_use]
    pub fn takes_work(&self) -> bool {
        let healthy = |health: &Health| health.state == ProbeState::Up;
        self.status == Status::Up && self.health.as_ref().is_none_or(healthy)
    }

    /// The same, as a suspect.
    pub(super) fn suspected(&self, since: Instant) -> Self {
        Self {
            id: self.id.clone(),
            address: self.address.clone(),
            zone: self.zone.clone(),
            version: self.version.clone(),
            tags: self.tags.clone(),
            health: self.health.clone(),
            meta: self.meta.clone(),
            suspect_since: Some(since),
            ..*self
        }
    }
}

/// The instances of a service as they were at one revision, suspects apart.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServiceView<M> {
    /// The revision.
    pub revision: Revision,
    /// The instances.
    pub instances: Instances<M>,
    /// Since when the store has been out of reach: the view may be old.
    pub stale_since: Option<Instant>,
    /// How many keys of the service hold something else than an instance.
    pub unreadable: usize,
    /// The store has not been heard yet.
    pub(super) from_snapshot: bool,
    /// Who went lately otherwise than by the end of a lease.
    pub(super) farewells: Farewells,
}

impl<M> ServiceView<M> {
    /// Whether all of this is from the [snapshot file](super::Discover::snapshot): the store has not answered yet.
    /// It is stale then.
    #[must_use]
    pub fn is_from_snapshot(&self) -> bool {
        self.from_snapshot
    }

    /// The instance of this id.
    #[must_use]
    pub fn instance(&self, id: &str) -> Option<&Arc<Endpoint<M>>> {
        self.instances.get(id)
    }

    /// The instances that take work. Suspects are among them: they may well live.
    pub fn up(&self) -> impl Iterator<Item = &Arc<Endpoint<M>>> {
        let all = self.instances.iter();
        all.filter(|endpoint| endpoint.takes_work())
    }
}

/// What happened to one instance between two views.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Change<M> {
    /// It is there now, or again.
    Joined(Arc<Endpoint<M>>),
    /// It says something else.
    Updated {
        /// As it was.
        before: Arc<Endpoint<M>>,
        /// As it is.
        now: Arc<Endpoint<M>>,
    },
    /// Its key went together with so many others that it is kept for a while.
    Suspected(Arc<Endpoint<M>>),
    /// It is gone.
    Left {
        /// As it was last seen.
        instance: Arc<Endpoint<M>>,
        /// How it went.
        departure: Departure,
    },
}

/// What changed from one view to a later one: departures first, then the rest by id.
pub(super) fn difference<M>(
    before: Option<&ServiceView<M>>,
    now: &ServiceView<M>,
) -> VecDeque<Change<M>> {
    let instances = before.into_iter().flat_map(|view| &view.instances);
    let mut known: BTreeMap<&str, &Arc<Endpoint<M>>> =
        instances.map(|was| (was.id.as_str(), was)).collect();
    let mut left = Vec::new();
    let mut rest = Vec::new();
    for endpoint in &now.instances {
        let was = known.remove(endpoint.id.as_str());
        let same = was.filter(|was| was.created == endpoint.created);
        if same.is_none() {
            left.extend(was);
        }
        rest.extend(change_of(same, endpoint));
    }
    left.extend(known.into_values());
    let none = Farewells::default();
    let known_before = before.map_or(&none, |view| &view.farewells);
    let left = left.into_iter().map(|instance| Change::Left {
        departure: now.farewells.departure(known_before, instance),
        instance: Arc::clone(instance),
    });
    left.chain(rest).collect()
}

/// What happened to an instance that is there now; `before` is the same incarnation of it.
fn change_of<M>(before: Option<&Arc<Endpoint<M>>>, now: &Arc<Endpoint<M>>) -> Option<Change<M>> {
    let was_suspect = before.is_some_and(|was| was.is_suspect());
    match before {
        _ if now.is_suspect() => (!was_suspect).then(|| Change::Suspected(Arc::clone(now))),
        None => Some(Change::Joined(Arc::clone(now))),
        Some(was) if was_suspect || was.modified != now.modified => Some(Change::Updated {
            before: Arc::clone(was),
            now: Arc::clone(now),
        }),
        Some(_) => None,
    }
}
