//! Queues with a limit: never more items than that, at any revision, and nobody is told that a queue is full that
//! was not.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::clock::{Clock, Instant, SystemClock};
use quorate_recipes::queue::Queue as Handle;
use quorate_recipes::{Error, Result, Session};

use super::{Work, handle, may_remain};
use crate::history::{History, key_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// How many items the queue takes.
const LIMIT: u32 = 4;

/// How long a client waits for room.
const WAIT: Duration = Duration::from_secs(2);

/// A queue with a limit.
#[derive(Debug, Default)]
pub struct BoundedQueue {
    work: Work,
    /// From when to when clients tried that were told that it is full.
    full: RefCell<Vec<(Instant, Instant)>>,
}

impl BoundedQueue {
    fn handle(player: &Player) -> Handle<i64> {
        handle(player).bounded(LIMIT)
    }

    async fn push(&self, player: &Player, session: &Session) -> Result<()> {
        let queue = Self::handle(player);
        let patient = !player.one_in(3);
        let push = |number| async move {
            if patient {
                let pushed = tokio::time::timeout(WAIT, queue.push(session, &number)).await;
                let unknown = || Error::OutcomeUnknown("dropped".to_owned());
                return pushed.map_err(|_| unknown())?.map(drop);
            }
            let before = SystemClock.now();
            match queue.try_push(session, &number).await? {
                Some(_) => Ok(()),
                None => {
                    self.full.borrow_mut().push((before, SystemClock.now()));
                    Err(Error::Conflict)
                }
            }
        };
        match self.work.push(player, push).await {
            Err(Error::Conflict | Error::OutcomeUnknown(_)) => Ok(()),
            outcome => outcome,
        }
    }
}

/// Judges the number of items, and those who were told that it is the limit.
///
/// # Errors
/// What is broken.
pub fn check_limit(
    history: &History,
    told_full: &[(Instant, Instant)],
) -> std::result::Result<(), String> {
    let mut items = BTreeSet::new();
    let mut waiting = BTreeSet::new();
    // From when on it was full, or was not.
    let mut changes: Vec<(Instant, bool)> = Vec::new();
    for commit in &history.commits {
        for change in &commit.changes {
            let key = key_of(change);
            let Some((kind, _)) = key
                .strip_prefix("quorate/queue/q/")
                .and_then(|rest| rest.split_once('/'))
            else {
                continue;
            };
            let set = match kind {
                "segment" | "delayed" => &mut items,
                "pusher" => &mut waiting,
                _ => continue,
            };
            match change.r#type() {
                EventType::Put => set.insert(key),
                EventType::Delete => set.remove(&key),
            };
        }
        let most = usize::try_from(LIMIT).unwrap_or(usize::MAX);
        if items.len() > most {
            let revision = commit.revision;
            return Err(format!(
                "at revision {revision}: {} items of {LIMIT}",
                items.len()
            ));
        }
        changes.push((commit.at, items.len() == most || !waiting.is_empty()));
    }
    for (from, to) in told_full {
        // Of commits at the very moment nobody knows which came before.
        let at_first = changes.iter().rev().find(|(at, _)| at < from);
        let meanwhile = changes.iter().filter(|(at, _)| (from..=to).contains(&at));
        if !at_first.into_iter().chain(meanwhile).any(|(_, full)| *full) {
            return Err(format!("told at {to:?} that it is full, which it was not"));
        }
    }
    Ok(())
}

impl Scenario for BoundedQueue {
    const NAME: &'static str = "bounded_queue";

    fn new() -> Self {
        Self::default()
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let queue = Self::handle(player);
        for _ in 0..=player.below(2) {
            self.push(player, session).await?;
        }
        match self.work.take(player, session, &queue).await? {
            Some(delivery) => self.work.work(player, delivery).await,
            None => Ok(()),
        }
    }

    async fn finish(&self, players: &[Player]) -> std::result::Result<(), String> {
        let (first, queue) = (&players[0], Self::handle(&players[0]));
        let drained = self.work.drain(first, &queue).await;
        drained.map_err(|error| error.to_string())
    }

    fn end(&self) {
        self.work.end();
    }

    fn may_remain(&self, key: &str) -> bool {
        may_remain(key) || key == "quorate/queue/q/bound"
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        check_limit(history, &self.full.borrow())?;
        self.work.check(history, None)
    }
}
