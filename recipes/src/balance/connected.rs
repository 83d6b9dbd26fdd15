//! Which instances a client keeps connections to, and what changes about that from view to view: under
//! the adapters that hand instances on to a balancer of somebody else's.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::keys::Revision;
use crate::registry::{Endpoint, ServiceView, Status};

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Step<M> {
    /// Disconnect the instance of this id.
    Remove(String),
    /// Connect to the instance, in the place of what was of its id before.
    Insert(Arc<Endpoint<M>>),
}

/// The instances that are connected: by id, of which incarnation and where.
#[derive(Debug, Default)]
pub(super) struct Connected(BTreeMap<String, (Revision, String)>);

impl Connected {
    /// What there is to do for this view, removals first. Connected are those that take work; those that
    /// drain when there are no others.
    pub(super) fn follow<M>(&mut self, view: &ServiceView<M>) -> VecDeque<Step<M>> {
        let takes_work = |one: &Endpoint<M>| one.takes_work() && one.weight > 0;
        let any = view.instances.iter().any(|one| takes_work(one));
        let wanted = |one: &Endpoint<M>| match any {
            true => takes_work(one),
            false => matches!(one.status, Status::Up | Status::Draining),
        };
        let wanted: BTreeMap<&str, &Arc<Endpoint<M>>> = view
            .instances
            .iter()
            .filter(|one| wanted(one))
            .map(|one| (one.id.as_str(), one))
            .collect();
        let mut steps = VecDeque::new();
        self.0.retain(|id, _| {
            let stays = wanted.contains_key(id.as_str());
            if !stays {
                steps.push_back(Step::Remove(id.clone()));
            }
            stays
        });
        for (id, one) in wanted {
            let now = (one.created, one.address.clone());
            if self.0.get(id) != Some(&now) {
                self.0.insert(id.to_owned(), now);
                steps.push_back(Step::Insert(Arc::clone(one)));
            }
        }
        steps
    }
}
