//! How instances of a service went lately: what two views are compared by.

use imbl::{OrdMap, Vector};

use super::view::Endpoint;
use crate::departure::Departure;
use crate::keys::Revision;

/// Who went lately, otherwise than by the end of a lease: id and create revision, and how. Cheap to clone, and
/// shares what did not change with the one before.
#[derive(Debug, Clone, Default)]
pub(super) struct Farewells {
    /// The oldest first.
    order: Vector<(String, Revision)>,
    /// How, and its number among all there were.
    departures: OrdMap<(String, Revision), (Departure, u64)>,
    /// How many there were.
    added: u64,
}

impl Farewells {
    /// Most that are remembered.
    const MOST: usize = 10_000;

    pub(super) fn add(&mut self, id: &str, created: Revision, departure: Departure) {
        if self.order.len() == Self::MOST {
            self.forget_oldest();
        }
        let who = (id.to_owned(), created);
        self.departures.insert(who.clone(), (departure, self.added));
        self.order.push_back(who);
        self.added += 1;
    }

    fn forget_oldest(&mut self) {
        let oldest = self.remembered_from();
        let Some(who) = self.order.pop_front() else {
            return;
        };
        // What was said again later stays.
        if self
            .departures
            .get(&who)
            .is_some_and(|(_, number)| *number == oldest)
        {
            self.departures.remove(&who);
        }
    }

    /// The number of the oldest that is remembered.
    fn remembered_from(&self) -> u64 {
        let remembered = u64::try_from(self.order.len()).unwrap_or(u64::MAX);
        self.added.saturating_sub(remembered)
    }

    /// How an instance went that was there when all that was known were those `before`.
    pub(super) fn departure<M>(&self, before: &Self, endpoint: &Endpoint<M>) -> Departure {
        let who = (endpoint.id.clone(), endpoint.created);
        match self.departures.get(&who) {
            Some((departure, _)) => *departure,
            // It may be among those that are forgotten.
            None if self.remembered_from() > before.added => Departure::Unseen,
            None => Departure::Expired,
        }
    }
}
