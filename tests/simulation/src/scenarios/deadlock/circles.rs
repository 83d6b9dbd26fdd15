//! The judgement of circles that were told: replays who waited for whom, and knows from that alone who was
//! stuck (by reduction, as Holt has it: who waits for nobody goes, and then who waits for nobody else).

use std::collections::{BTreeMap, BTreeSet};

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::Instant;
use quorate_recipes::keys::LeaseId;
use serde_json::Value;

use super::{Circle, Contender, STANDS_MAX};
use crate::history::{History, key_of};

/// A task of a session.
type Owner = (LeaseId, String);

/// The contenders of each lock, in the order in which they came.
type Locks = BTreeMap<String, BTreeMap<i64, Owner>>;

/// The history, replayed against what was told.
pub(super) struct Replay<'a> {
    told: &'a [Circle],
    locks: Locks,
    /// Since when each circle stands, by the contenders that wait in it.
    standing: BTreeMap<BTreeSet<i64>, Instant>,
}

impl<'a> Replay<'a> {
    pub(super) fn of(told: &'a [Circle]) -> Self {
        Self {
            told,
            locks: Locks::new(),
            standing: BTreeMap::new(),
        }
    }

    /// Judges it all.
    pub(super) fn judge(mut self, history: &History) -> Result<(), String> {
        for commit in &history.commits {
            for change in &commit.changes {
                let key = key_of(change);
                let below = key.strip_prefix("quorate/lock/");
                let Some((name, _)) = below.and_then(|below| below.split_once('/')) else {
                    continue;
                };
                let line = self.locks.entry(name.to_owned()).or_default();
                match (change.r#type(), &change.kv, &change.prev_kv) {
                    (EventType::Put, Some(kv), _) if kv.lease != 0 => {
                        let value: Option<Value> = serde_json::from_slice(&kv.value).ok();
                        let task = value.as_ref().and_then(|value| value["task"].as_str());
                        let owner = (LeaseId(kv.lease), task.unwrap_or_default().to_owned());
                        line.insert(kv.create_revision, owner);
                    }
                    (EventType::Delete, _, Some(kv)) => drop(line.remove(&kv.create_revision)),
                    _ => {}
                }
            }
            let stuck = stuck(&self.locks);
            for circle in self
                .told
                .iter()
                .filter(|one| one.revision == commit.revision)
            {
                self.was(circle, &stuck)
                    .map_err(|why| format!("{circle:?} was told: {why}"))?;
            }
            self.stand(&stuck, commit.at, history.calm)?;
        }
        Ok(())
    }

    /// Judges a circle that was told, at its revision.
    fn was(&self, circle: &Circle, stuck: &BTreeSet<Owner>) -> Result<(), String> {
        if !circle.certain {
            return Err("all are told apart, and it is not certain".to_owned());
        }
        let waits = &circle.waits;
        let next = waits.iter().cycle().skip(1);
        for (wait, next) in waits.iter().zip(next) {
            let line = self.locks.get(&wait.lock);
            let there = |contender: &Contender| {
                let found = line.and_then(|line| line.get(&contender.revision.0));
                found == Some(&owner(contender))
            };
            if !there(&wait.waiter) || !there(&wait.holder) {
                return Err(format!("{wait:?} was not so"));
            }
            if wait.holder.revision >= wait.waiter.revision {
                return Err(format!("{wait:?}, who came later"));
            }
            if owner(&wait.holder) != owner(&next.waiter) {
                return Err(format!("{wait:?} is not followed by {next:?}"));
            }
            if !stuck.contains(&owner(&wait.waiter)) {
                return Err(format!("{wait:?} was not stuck"));
            }
        }
        match waits.is_empty() {
            true => Err("nobody waits".to_owned()),
            false => Ok(()),
        }
    }

    /// Judges how long circles stood in the calm, up to a moment at which some may have ended.
    fn stand(
        &mut self,
        stuck: &BTreeSet<Owner>,
        now: Instant,
        calm: Option<Instant>,
    ) -> Result<(), String> {
        let standing = circles(&self.locks, stuck);
        for (circle, since) in &self.standing {
            let Some(calm) = calm else { continue };
            let stood = now.saturating_duration_since((*since).max(calm));
            if stood > STANDS_MAX {
                let told = self.told.iter().any(|told| {
                    let waiters = told.waits.iter().map(|wait| wait.waiter.revision.0);
                    waiters.collect::<BTreeSet<i64>>().is_superset(circle)
                });
                let told = if told { "told in vain" } else { "not told" };
                return Err(format!(
                    "the circle of {circle:?} stood {stood:?} and was {told}"
                ));
            }
        }
        let since = |circle| {
            let known = self.standing.get(&circle).copied();
            (circle, known.unwrap_or(now))
        };
        self.standing = standing.into_iter().map(since).collect();
        Ok(())
    }
}

fn owner(contender: &Contender) -> Owner {
    (contender.lease, contender.task.clone())
}

/// Who never goes on unless somebody gives way.
fn stuck(locks: &Locks) -> BTreeSet<Owner> {
    let all = locks.values().flat_map(|line| line.values().cloned());
    let mut left: BTreeSet<Owner> = all.collect();
    loop {
        let waits = |one: &Owner| {
            locks.values().any(|line| {
                let before = line.values().take_while(|other| *other != one);
                line.values().any(|other| other == one)
                    && before.into_iter().any(|other| left.contains(other))
            })
        };
        let still: BTreeSet<Owner> = left.iter().filter(|one| waits(one)).cloned().collect();
        if still.len() == left.len() {
            return left;
        }
        left = still;
    }
}

/// The circles among those who are stuck, each waiting for the first of the line in which it waits: by the
/// contenders that wait.
fn circles(locks: &Locks, stuck: &BTreeSet<Owner>) -> BTreeSet<BTreeSet<i64>> {
    let next = |one: &Owner| {
        locks.values().find_map(|line| {
            let (revision, _) = line.iter().find(|(_, other)| *other == one)?;
            let first = line.values().find(|other| stuck.contains(other))?;
            (first != one).then(|| (*revision, first.clone()))
        })
    };
    let mut found = BTreeSet::new();
    for start in stuck {
        let (mut way, mut one): (Vec<(Owner, i64)>, Owner) = (Vec::new(), start.clone());
        while let Some((revision, first)) = next(&one) {
            if let Some(from) = way.iter().position(|(owner, _)| *owner == one) {
                found.insert(way[from..].iter().map(|(_, revision)| *revision).collect());
                break;
            }
            way.push((one, revision));
            one = first;
        }
    }
    found
}
