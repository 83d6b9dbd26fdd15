//! A policy at work on the instances of one view. Built anew for every view; what it remembers goes on.

use std::sync::Arc;
use std::time::Duration;

use super::group::{Ask, Candidate, Group};
use super::own::Own;
use super::policy::Kind;
use super::sticky::Memory;
use super::stride::Stride;
use super::subset::Subset;

/// Chooses one of the instances that take work.
#[derive(Debug)]
pub(super) enum Chooser {
    InTurn(Group, Stride),
    Drawn(Group),
    LeastOutstanding(Group),
    LeastCostly(Group),
    Hashed(Group, f64),
    Own(Group, Own),
    Sticky(Box<Chooser>, Arc<Memory>),
    Near {
        near: Box<Chooser>,
        far: Box<Chooser>,
        busy: u32,
    },
}

/// What a chooser is built by, besides the instances.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) policy: Kind,
    pub(super) subset: Option<Subset>,
    pub(super) slow_start: Duration,
}

impl Plan {
    /// A chooser for `candidates`, which are in the order of their ids and have zones beside them, that goes
    /// on where `before` was.
    pub(super) fn chooser(
        &self,
        candidates: Vec<(Candidate, &str)>,
        before: Option<&Chooser>,
    ) -> Chooser {
        self.build(&self.policy, candidates, before)
    }

    fn build(
        &self,
        kind: &Kind,
        mut candidates: Vec<(Candidate, &str)>,
        before: Option<&Chooser>,
    ) -> Chooser {
        match kind {
            Kind::RoundRobin => {
                for (one, _) in &mut candidates {
                    one.weight = 1;
                }
                self.in_turn(candidates, before)
            }
            Kind::WeightedRoundRobin => self.in_turn(candidates, before),
            Kind::Random => Chooser::Drawn(self.group(candidates)),
            Kind::LeastOutstanding => Chooser::LeastOutstanding(self.group(candidates)),
            Kind::PeakEwma(_) => Chooser::LeastCostly(self.group(candidates)),
            // Of different subsets a key would fall to different instances.
            Kind::ConsistentHash(bound) => Chooser::Hashed(self.whole(candidates), *bound),
            Kind::Own(own) => Chooser::Own(self.group(candidates), own.clone()),
            Kind::Sticky { keys, over } => {
                let (inner, memory) = match before {
                    Some(Chooser::Sticky(inner, memory)) => (Some(&**inner), Arc::clone(memory)),
                    _ => (None, Arc::new(Memory::new(*keys))),
                };
                Chooser::Sticky(Box::new(self.build(over, candidates, inner)), memory)
            }
            Kind::Near { zone, busy, over } => {
                let (near, far) = candidates.into_iter().partition(|(_, at)| at == zone);
                let (near_before, far_before) = match before {
                    Some(Chooser::Near { near, far, .. }) => (Some(&**near), Some(&**far)),
                    _ => (None, None),
                };
                Chooser::Near {
                    near: Box::new(self.build(over, near, near_before)),
                    far: Box::new(self.build(over, far, far_before)),
                    busy: *busy,
                }
            }
        }
    }

    fn in_turn(&self, candidates: Vec<(Candidate, &str)>, before: Option<&Chooser>) -> Chooser {
        let group = self.group(candidates);
        let stride = match before {
            Some(Chooser::InTurn(known, stride)) => stride.resume(known, &group),
            _ => Stride::default(),
        };
        Chooser::InTurn(group, stride)
    }

    fn group(&self, candidates: Vec<(Candidate, &str)>) -> Group {
        match &self.subset {
            Some(subset) => {
                let all = candidates.into_iter().map(|(one, _)| one);
                Group::new(subset.of(all.collect()), self.slow_start)
            }
            None => self.whole(candidates),
        }
    }

    fn whole(&self, candidates: Vec<(Candidate, &str)>) -> Group {
        let all = candidates.into_iter().map(|(one, _)| one);
        Group::new(all.collect(), self.slow_start)
    }
}

impl Chooser {
    /// One of those that are not ejected.
    pub(super) fn choose(&self, ask: &Ask<'_>) -> Option<&Candidate> {
        match self {
            Self::InTurn(group, stride) => stride.choose(group, ask),
            Self::Drawn(group) => group.draw(None, ask).map(|index| &group.all[index]),
            Self::LeastOutstanding(group) => group.less_outstanding(ask),
            Self::LeastCostly(group) => group.less_costly(ask),
            Self::Hashed(group, bound) => {
                let key = ask.key.unwrap_or_else(|| ask.random.next());
                group.hashed(key, *bound, ask)
            }
            Self::Own(group, own) => own.choose(group, ask),
            Self::Sticky(inner, memory) => memory.keep(
                ask.key.unwrap_or(0),
                |one| {
                    let found = inner.find(&one.id)?;
                    let same = Arc::ptr_eq(&found.incarnation, one);
                    (same && !one.is_ejected(ask.now)).then_some(found)
                },
                || {
                    let chosen = inner.choose(ask)?;
                    Some((chosen, Arc::clone(&chosen.incarnation)))
                },
            ),
            Self::Near { near, far, busy } => {
                let Some(here) = near.choose(ask) else {
                    return far.choose(ask);
                };
                if load(here) < u64::from(*busy) * u64::from(here.weight) {
                    return Some(here);
                }
                let there = far.choose(ask).filter(|there| {
                    let cross = |a: &Candidate, b: &Candidate| load(a) * u64::from(b.weight);
                    cross(there, here) < cross(here, there)
                });
                there.or(Some(here))
            }
        }
    }

    /// The one of this id among all it chooses from.
    fn find(&self, id: &str) -> Option<&Candidate> {
        match self {
            Self::InTurn(group, _)
            | Self::Drawn(group)
            | Self::LeastOutstanding(group)
            | Self::LeastCostly(group)
            | Self::Hashed(group, _)
            | Self::Own(group, _) => group.find(id),
            Self::Sticky(inner, _) => inner.find(id),
            Self::Near { near, far, .. } => near.find(id).or_else(|| far.find(id)),
        }
    }
}

fn load(one: &Candidate) -> u64 {
    u64::from(one.incarnation.outstanding())
}
