//! Policies that users write.

use std::fmt;
use std::sync::Arc;

use super::group::{Ask, Candidate, Group};

/// A policy that a user has written.
#[derive(Clone)]
pub(super) struct Own(Arc<Choose>);

type Choose = dyn for<'a> Fn(&Choices<'a>) -> Choice<'a> + Send + Sync;

impl Own {
    pub(super) fn new(
        choose: impl for<'a> Fn(&Choices<'a>) -> Choice<'a> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(choose))
    }

    pub(super) fn choose<'a>(&self, group: &'a Group, ask: &Ask<'_>) -> Option<&'a Candidate> {
        let first = choices(group, ask).next()?;
        let chosen = (self.0)(&Choices { group, ask, first });
        Some(&group.all[chosen.index])
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own")
    }
}

/// What a [`Policy::own`](super::Policy::own) chooses from for one pick.
#[derive(Debug)]
pub struct Choices<'a> {
    group: &'a Group,
    ask: &'a Ask<'a>,
    first: Choice<'a>,
}

fn choices<'a>(group: &'a Group, ask: &'a Ask<'a>) -> impl Iterator<Item = Choice<'a>> {
    let choice = move |(index, candidate): (usize, &'a Candidate)| {
        let share = group.share(index, ask);
        (share > 0).then_some(Choice {
            index,
            candidate,
            share,
        })
    };
    group.all.iter().enumerate().filter_map(choice)
}

impl<'a> Choices<'a> {
    /// The instances that may be picked now, by id, at least one. None that is ejected is among them.
    pub fn iter(&self) -> impl Iterator<Item = Choice<'a>> + use<'a> {
        choices(self.group, self.ask)
    }

    /// The first of them.
    #[must_use]
    pub fn first(&self) -> Choice<'a> {
        self.first
    }

    /// The one that costs least, of equal ones the first.
    #[must_use]
    pub fn cheapest<C: Ord>(&self, cost: impl Fn(&Choice<'a>) -> C) -> Choice<'a> {
        self.iter().min_by_key(cost).unwrap_or(self.first)
    }

    /// A hash of what was picked for; `None` for a pick without a key.
    #[must_use]
    pub fn key(&self) -> Option<u64> {
        self.ask.key
    }

    /// A random number, another one at each call.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.ask.random.next()
    }
}

/// One instance that may be picked.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// In the group.
    index: usize,
    candidate: &'a Candidate,
    share: u64,
}

impl<'a> Choice<'a> {
    /// Its name among the instances of the service.
    #[must_use]
    pub fn id(&self) -> &'a str {
        &self.candidate.incarnation.id
    }

    /// Its weight; at least 1.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.candidate.weight
    }

    /// How much of the work it may have now, relative to the others: in proportion to its weight, and less while it
    /// is new, where new ones start slowly. More than 0.
    #[must_use]
    pub fn share(&self) -> u64 {
        self.share
    }

    /// How many picks of it by this balancer have not ended.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.candidate.incarnation.outstanding()
    }
}
