//! Transactional memory: money is neither made nor lost, and one or two are on call, at every
//! revision; each transaction under a session takes place exactly once.

use std::collections::BTreeMap;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::stm::Done;
use quorate_recipes::{Error, Json, KeyRange, Result, Session, Transaction};

use crate::effects::{Effects, follow, unless_trouble};
use crate::history::{History, key_of, number_of, value_of};
use crate::player::Player;
use crate::scenario::Scenario;

const ACCOUNTS: u64 = 3;

/// What is in the first account at the beginning.
const TOTAL: i64 = 90;

/// Clients that move money, and go on call and off it.
#[derive(Debug)]
pub struct Stm {
    /// With the revision of each.
    transfers: Effects<i64>,
}

fn account(number: u64) -> String {
    format!("account/{number}")
}

/// An amount; all the money is in the first account until it is moved.
async fn amount(tx: &Transaction, number: u64) -> Result<i64> {
    let amount = tx.get_json(account(number)).await?;
    Ok(amount.unwrap_or(if number == 0 { TOTAL } else { 0 }))
}

/// Moves money; a run that sees a mixture of two states fails.
async fn transfer(tx: Transaction, mark: i64, from: u64, to: u64) -> Result<()> {
    let mut sum = 0;
    for number in 0..ACCOUNTS {
        sum += amount(&tx, number).await?;
    }
    assert_eq!(sum, TOTAL, "a mixture of two states");
    let (here, there) = (amount(&tx, from).await?, amount(&tx, to).await?);
    let moved = here.min(7);
    tx.put(account(from), Json(here - moved));
    tx.put(account(to), Json(there + moved));
    tx.put("mark", Json(mark));
    Ok(())
}

/// Goes on call if at most one is, or off it if somebody stays.
async fn on_call(tx: Transaction, me: usize) -> Result<()> {
    let there = tx.list(KeyRange::prefix("on-call/")).await?;
    let key = format!("on-call/{me}");
    let on = there.iter().any(|(other, _)| other.as_bytes() == &key);
    match (on, there.len()) {
        (false, ..2) => tx.put(key, ""),
        (true, 2..) => tx.delete(key),
        _ => {}
    }
    Ok(())
}

impl Scenario for Stm {
    const NAME: &'static str = "stm";

    fn new() -> Self {
        Self {
            transfers: Effects::default(),
        }
    }

    async fn step(&self, player: &Player, session: &Session) -> Result<()> {
        let (from, to) = (player.below(ACCOUNTS), player.below(ACCOUNTS));
        if from != to {
            let under = player.one_in(2);
            let done = self.transfers.attempt(player, |mark| async move {
                let stm = player.client().stm().retries(1_000);
                let stm = if under { stm.under(session) } else { stm };
                let done: Done<()> = stm.run(|tx| transfer(tx, mark, from, to)).await?;
                Ok(done.revision.0)
            });
            match done.await {
                Err(error) if error.is_ambiguous() && under && session.check().is_ok() => {
                    panic!("a session that lives does not know: {error}");
                }
                outcome => unless_trouble(outcome.map(drop))?,
            }
        }
        let me = player.index();
        let moving = player.client().stm().retries(1_000);
        let moved: Result<Done<()>, Error> = moving.run(|tx| on_call(tx, me)).await;
        unless_trouble(moved.map(drop))
    }

    async fn attend(&self, player: &Player) {
        follow(player, "account/", |view| {
            let first = view.entries.contains_key(account(0).as_bytes());
            let unmoved = if first { 0 } else { TOTAL };
            let sum: i64 = view.entries.values().map(value_of).sum();
            assert_eq!(sum + unmoved, TOTAL, "at {}", view.revision);
        })
        .await;
    }

    fn check(&self, history: &History) -> std::result::Result<(), String> {
        let mut money = BTreeMap::from([(account(0), TOTAL)]);
        let (mut begun, mut on_call, mut happened) = (false, 0, Vec::new());
        for commit in &history.commits {
            for change in &commit.changes {
                let key = key_of(change);
                let put = change.r#type() == EventType::Put;
                match key.split('/').next() {
                    Some("account") => drop(money.insert(key, number_of(change))),
                    Some("mark") => happened.push((number_of(change), commit.revision.0)),
                    Some("on-call") => on_call += if put { 1 } else { -1 },
                    _ => {}
                }
            }
            let sum: i64 = money.values().sum();
            begun |= on_call > 0;
            if sum != TOTAL || (begun && !(1..=2).contains(&on_call)) {
                return Err(format!(
                    "{sum} in all and {on_call} on call at {}",
                    commit.revision
                ));
            }
        }
        self.transfers.check(happened)
    }
}
