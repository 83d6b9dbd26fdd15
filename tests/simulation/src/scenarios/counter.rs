//! The counter, and ids: each addition moves the number once, and no id is given out twice.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use quorate_recipes::{Error, IdBlocks, Result, Session};

use crate::effects::{Effects, follow};
use crate::history::{History, key_of, number_of, value_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that add different numbers, and take ids.
#[derive(Debug)]
pub struct Counter {
    additions: Effects<i64>,
    /// Numbers put in the place of others, and what each replaced.
    replacements: Effects<i64>,
    /// Each client's source of ids, and what it was given.
    ids: RefCell<BTreeMap<usize, (IdBlocks, Vec<u64>)>>,
    /// What each client saw from outside, in order.
    seen: RefCell<BTreeMap<usize, Vec<i64>>>,
}

impl Counter {
    /// Puts a number that no other client has in the place of what is there, or of what was.
    async fn replace(&self, player: &Player, session: &Session) -> Result<()> {
        let counter = player.client().counter("s");
        if player.one_in(2) {
            let set = |number| counter.set(session, number);
            return self.replacements.attempt(player, set).await.map(drop);
        }
        let expected = counter.get().await?;
        player.pause(100).await;
        let counter = &counter;
        let replace = |number| async move {
            let replaced = counter.compare_and_set(session, expected, number).await?;
            // A refusal, which is how an effect says so.
            replaced.then_some(expected).ok_or(Error::Conflict)
        };
        match self.replacements.attempt(player, replace).await {
            Err(Error::Conflict) => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

impl Scenario for Counter {
    const NAME: &'static str = "counter";

    fn new() -> Self {
        Self {
            additions: Effects::default(),
            replacements: Effects::default(),
            ids: RefCell::default(),
            seen: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let counter = player.client().counter("c");
        for _ in 0..=player.below(2) {
            let add = |number| counter.add(session, number);
            self.additions.attempt(player, add).await?;
        }
        self.replace(player, session).await?;
        let ids = self
            .ids
            .borrow_mut()
            .entry(player.index())
            .or_insert_with(|| {
                let block = 1 + player.below(3);
                (player.client().ids("c").block(block), Vec::new())
            })
            .0
            .clone();
        let id = ids.next().await?;
        let mut taken = self.ids.borrow_mut();
        let taken = taken.get_mut(&player.index()).map(|(_, taken)| taken);
        taken.into_iter().for_each(|taken| taken.push(id));
        Ok(())
    }

    async fn attend(&self, player: &Player) {
        follow(player, "quorate/counter/c/", |view| {
            let now = view.entries.values().map(value_of).sum();
            let mut seen = self.seen.borrow_mut();
            seen.entry(player.index()).or_default().push(now);
        })
        .await;
    }

    fn may_remain(&self, key: &str) -> bool {
        key.starts_with("quorate/counter/") || key.starts_with("quorate/ids/")
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let mut value = 0;
        let changes = history.changes();
        let of_counter = changes.filter(|(_, change)| key_of(change) == "quorate/counter/c/value");
        let happened = of_counter.map(|(_, change)| {
            let before = std::mem::replace(&mut value, number_of(change));
            (value - before, value)
        });
        let happened: Vec<_> = happened.collect();
        self.additions.check(happened.iter().copied())?;
        let mut value_of_other = 0;
        let changes = history.changes();
        let of_other = changes.filter(|(_, change)| key_of(change) == "quorate/counter/s/value");
        self.replacements.check(of_other.map(|(_, change)| {
            let now = number_of(change);
            (now, std::mem::replace(&mut value_of_other, now))
        }))?;
        for (player, seen) in &*self.seen.borrow() {
            let was = |now: &i64| *now == 0 || happened.iter().any(|(_, value)| value == now);
            if !seen.is_sorted() || !seen.iter().all(was) || seen.last() != Some(&value) {
                return Err(format!(
                    "player {player} saw {seen:?}; at last it is {value}"
                ));
            }
        }
        let mut all = BTreeSet::new();
        for (player, (_, taken)) in &*self.ids.borrow() {
            if !taken.is_sorted() {
                return Err(format!("the ids of player {player} do not grow: {taken:?}"));
            }
            if let Some(id) = taken.iter().find(|id| !all.insert(**id)) {
                return Err(format!("id {id} was given out twice"));
            }
        }
        Ok(())
    }
}
