//! Transactions under faults, checked against every revision that there was; and compactions.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;

use super::*;
use crate::error::Result;
use crate::keys::KeyRange;
use crate::session::Session;
use crate::store::faulty::{Calls, Stage};
use crate::store::{Faulty, MemStore, Rates};
use crate::value::Json;

const SEEDS: u64 = 30;
const ROUNDS: u64 = 10;
const ACCOUNTS: u64 = 3;
const TOTAL: i64 = 90;

async fn open(client: &Client) -> Session {
    loop {
        match client.session().ttl(Duration::from_secs(5)).await {
            Ok(session) => return session,
            Err(error) => assert!(matches!(error, Error::Store(_)), "{error}"),
        }
    }
}

/// Moves an amount and counts the transfer, or fails the test when the run sees a mixture of states.
async fn transfer(tx: Transaction, from: u64, to: u64) -> Result<()> {
    let mut seen = BTreeMap::new();
    for account in 0..ACCOUNTS {
        let key = format!("account/{account}");
        let amount: i64 = tx.get_json(key).await?.unwrap_or(0);
        seen.insert(account, amount);
    }
    assert_eq!(seen.values().sum::<i64>(), TOTAL, "a mixture of states");
    let moved = seen[&from].min(7);
    for (account, change) in [(from, -moved), (to, moved)] {
        tx.put(format!("account/{account}"), Json(seen[&account] + change));
    }
    let done = tx.get_json::<i64>("transfers").await?.unwrap_or(0);
    tx.put("transfers", Json(done + 1));
    Ok(())
}

/// Goes on call if at most one is, or off it if somebody else stays.
async fn on_call(tx: Transaction, me: u64) -> Result<()> {
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

/// Transfers, certain and open ones, and conflicts.
async fn work(store: MemStore, seed: u64, me: u64) -> (i64, i64, u32) {
    let faulty = Faulty::new(store.clone());
    let client = Client::builder(faulty.clone()).seed(seed + me).build();
    faulty.fail_at_random(seed + me, Rates::evenly(0.2));
    let (mut certain, mut unknown, mut conflicts) = (0, 0, 0);
    let mut session = open(&client).await;
    for round in 0..ROUNDS {
        if client.random().is_multiple_of(8) {
            let _ = store.expire(session.lease());
        }
        if client.random().is_multiple_of(4) {
            // Refused if it has been compacted there before.
            drop(store.compact(store.revision()));
        }
        let (from, to) = (client.random() % ACCOUNTS, client.random() % ACCOUNTS);
        if from != to {
            let mut stm = client.stm().retries(1_000);
            if round % 2 == 0 {
                stm = stm.under(&session);
            }
            match stm.run(|tx| transfer(tx, from, to)).await {
                Ok(done) => {
                    certain += 1;
                    conflicts += done.attempts - 1;
                }
                Err(Error::SessionLost(_)) => session = open(&client).await,
                Err(error) if error.is_ambiguous() => {
                    unknown += 1;
                    if session.check().is_err() {
                        session = open(&client).await;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
        for _ in 0..3 {
            let moving = client.stm().retries(1_000).run(|tx| on_call(tx, me));
            let moved = moving.await;
            assert!(moved.is_ok() || moved.is_err_and(|error| error.is_ambiguous()));
        }
    }
    faulty.fail_at_random(0, Rates::NONE);
    tokio::time::sleep(Duration::from_secs(60)).await;
    (certain, unknown, conflicts)
}

/// Replays the history: the money stays, and one or two are on call, at every revision.
fn check(store: &MemStore, seed: u64) -> i64 {
    let mut state: BTreeMap<String, String> = BTreeMap::new();
    for commit in store.history(Revision(1)) {
        for event in &commit.changes {
            let kv = event.kv.clone().unwrap();
            let key = String::from_utf8(kv.key.to_vec()).unwrap();
            match event.r#type() {
                EventType::Put => state.insert(key, String::from_utf8(kv.value.to_vec()).unwrap()),
                EventType::Delete => state.remove(&key),
            };
        }
        let below = |prefix| state.iter().filter(move |(key, _)| key.starts_with(prefix));
        let sum: i64 = below("account/")
            .map(|(_, value)| value.parse::<i64>().unwrap())
            .sum();
        assert_eq!(sum, TOTAL, "seed {seed}, revision {}", commit.revision);
        let begun = state.contains_key("begun");
        let on_call = below("on-call/").count();
        assert!(
            !begun || (1..=2).contains(&on_call),
            "seed {seed}: {on_call} on call"
        );
    }
    state
        .get("transfers")
        .map_or(0, |value| value.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn as_if_each_were_alone() {
    let (mut all_unknown, mut all_conflicts) = (0, 0);
    for seed in 0..SEEDS {
        let store = MemStore::new();
        let client = Client::new(store.clone());
        client.put("account/0", Json(TOTAL)).await.unwrap();
        client.put("on-call/9", "").await.unwrap();
        client.put("begun", "").await.unwrap();
        let workers = (0..3).map(|me| work(store.clone(), seed * 10, me));
        let (mut certain, mut unknown) = (0, 0);
        for outcome in futures::future::join_all(workers).await {
            certain += outcome.0;
            unknown += outcome.1;
            all_conflicts += outcome.2;
        }
        let done = check(&store, seed);
        let possible = certain..=certain + unknown;
        assert!(
            possible.contains(&done),
            "seed {seed}: {done} of {possible:?}"
        );
        all_unknown += unknown;
    }
    assert!(all_unknown > 0 && all_conflicts > 0);
}

#[tokio::test(start_paused = true)]
async fn a_compacted_snapshot_is_left_for_a_newer_one() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    client.put("a", "1").await.unwrap();
    let compacting = client.stm().run(async |tx: Transaction| -> Result<bool> {
        let first = tx.get("a").await?.unwrap() == "1";
        if first {
            client.put("a", "2").await?;
            store.compact(store.revision()).unwrap();
        }
        // Whatever is made of the error.
        let second = tx.get("b").await;
        assert_eq!(second.is_err(), first);
        tx.put("c", "");
        Ok(first)
    });
    let done = compacting.await.unwrap();
    assert_eq!((done.value, done.attempts), (false, 2));
    // Reads of one run at once are of one revision.
    let reading = client.stm().run(async |tx: Transaction| -> Result<()> {
        let (a, b) = tokio::join!(tx.get("a"), tx.list(KeyRange::prefix("a")));
        assert_eq!(a?.unwrap(), b?[0].1);
        Ok(())
    });
    assert_eq!(reading.await.unwrap().revision, store.revision());
}

#[tokio::test(start_paused = true)]
async fn dropped_anywhere() {
    for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
        for nth in 1.. {
            let store = MemStore::new();
            let faulty = Faulty::new(store.clone());
            let client = Client::builder(faulty.clone()).seed(1).build();
            client.put("account/0", Json(TOTAL)).await.unwrap();
            let session = open(&client).await;
            let held = faulty.hold(nth, Calls::Any, stage);
            let finished = tokio::select! {
                biased;
                () = held.reached() => false,
                done = client.stm().under(&session).run(|tx| transfer(tx, 0, 1)) => done.is_ok(),
            };
            held.release();
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert!((0..=1).contains(&check(&store, 0)), "{nth} {stage:?}");
            let again = client
                .stm()
                .under(&session)
                .run(|tx| transfer(tx, 0, 1))
                .await;
            assert_eq!(again.unwrap().attempts, 1);
            if finished {
                assert!(nth > 6, "four reads, a lane, a commit");
                break;
            }
        }
    }
}
