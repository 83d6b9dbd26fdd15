//! The adder: each addition counts once, before and after folding, and every sum was there.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use quorate_recipes::{Result, Session};

use crate::effects::{Effects, follow, unless_trouble};
use crate::history::{History, key_of, number_of, value_of};
use crate::player::Player;
use crate::scenario::Scenario;

/// Clients that add different numbers, add up, and fold.
#[derive(Debug)]
pub struct Adder {
    additions: Effects<()>,
    /// The sums that each client saw, in order.
    sums: RefCell<BTreeMap<usize, Vec<i64>>>,
    /// What each saw of the keys.
    views: RefCell<BTreeMap<usize, Vec<i64>>>,
}

impl Scenario for Adder {
    const NAME: &'static str = "adder";

    fn new() -> Self {
        Self {
            additions: Effects::default(),
            sums: RefCell::default(),
            views: RefCell::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let adder = player.client().adder("a");
        for _ in 0..=player.below(2) {
            let add = |number| adder.add(session, number);
            self.additions.attempt(player, add).await?;
        }
        if player.one_in(3) {
            unless_trouble(adder.fold().await.map(drop))?;
        }
        let seen = adder.sum().await.map(|sum| {
            self.sums
                .borrow_mut()
                .entry(player.index())
                .or_default()
                .push(sum);
        });
        unless_trouble(seen)
    }

    async fn attend(&self, player: &Player) {
        follow(player, "quorate/adder/a/", |view| {
            let now = view.entries.values().map(value_of).sum();
            let mut views = self.views.borrow_mut();
            views.entry(player.index()).or_default().push(now);
        })
        .await;
    }

    fn may_remain(&self, key: &str) -> bool {
        key.starts_with("quorate/adder/")
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let mut keys: BTreeMap<String, i64> = BTreeMap::new();
        let (mut total, mut totals, mut happened) = (0, BTreeSet::from([0]), Vec::new());
        for commit in &history.commits {
            for change in &commit.changes {
                let key = key_of(change);
                if key.starts_with("quorate/adder/a/") {
                    keys.insert(key, number_of(change));
                }
            }
            let before = std::mem::replace(&mut total, keys.values().sum());
            totals.insert(total);
            if total != before {
                happened.push((total - before, ()));
            }
        }
        self.additions.check(happened)?;
        let (sums, views) = (self.sums.borrow(), self.views.borrow());
        for (player, sums) in sums.iter().chain(views.iter()) {
            if !sums.is_sorted() {
                return Err(format!("player {player} saw the sum fall: {sums:?}"));
            }
            if let Some(sum) = sums.iter().find(|sum| !totals.contains(sum)) {
                return Err(format!("player {player} saw {sum}, which never was"));
            }
        }
        Ok(())
    }
}
