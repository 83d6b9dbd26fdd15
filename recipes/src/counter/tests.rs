//! Counting under faults: with calls that fail at random and sessions that are lost, and with futures
//! dropped at every call.

use std::time::Duration;

use super::*;
use crate::client::Client;
use crate::keys::KeyRange;
use crate::session::Session;
use crate::store::faulty::{Calls, Stage};
use crate::store::{Faulty, MemStore, Rates};

const SEEDS: u64 = 40;
const ROUNDS: usize = 12;
const FOLDED: usize = 40;

/// What a worker knows of its additions of 1.
#[derive(Debug, Default)]
struct Tally {
    certain: i64,
    unknown: i64,
    /// What the counter said.
    values: Vec<i64>,
}

impl Tally {
    /// Notes an addition; returns whether a new session is needed.
    fn note<T>(&mut self, outcome: Result<T>) -> (Option<T>, bool) {
        match outcome {
            Ok(value) => {
                self.certain += 1;
                (Some(value), false)
            }
            Err(Error::SessionLost(_)) => (None, true),
            Err(error) if error.is_ambiguous() => {
                self.unknown += 1;
                (None, true)
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn open(client: &Client) -> Session {
    loop {
        match client.session().ttl(Duration::from_secs(5)).await {
            Ok(session) => return session,
            Err(error) => assert!(matches!(error, Error::Store(_)), "{error}"),
        }
    }
}

/// Adds to both kinds, folds, and loses a session now and then.
async fn work(store: MemStore, seed: u64) -> (Tally, Tally, Vec<u64>) {
    let faulty = Faulty::new(store.clone());
    let client = Client::builder(faulty.clone()).seed(seed).build();
    faulty.fail_at_random(seed, Rates::evenly(0.25));
    let (counter, adder) = (client.counter("c"), client.adder("c"));
    let (mut counted, mut added) = (Tally::default(), Tally::default());
    let (ids, mut taken) = (client.ids("c").block(seed % 3 + 1), Vec::new());
    let mut session = open(&client).await;
    for _ in 0..ROUNDS {
        if client.random().is_multiple_of(6) {
            let _ = store.expire(session.lease());
        }
        let (value, lost) = counted.note(counter.add(&session, 1).await);
        counted.values.extend(value);
        if lost {
            session = open(&client).await;
        }
        if added.note(adder.add(&session, 1).await).1 {
            session = open(&client).await;
        }
        taken.push(ids.next().await.unwrap());
        if client.random().is_multiple_of(3)
            && let Err(error) = adder.fold().await
        {
            assert!(matches!(error, Error::Store(_)), "{error}");
        }
    }
    faulty.fail_at_random(0, Rates::NONE);
    // The late copies arrive.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(taken.is_sorted());
    (counted, added, taken)
}

fn assert_distinct<T: Ord>(mut values: Vec<T>, seed: u64) {
    let count = values.len();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values.len(), count, "seed {seed}: two got the same number");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_counted_twice_or_lost() {
    let (mut unknown, mut folded) = (0, 0);
    for seed in 0..SEEDS {
        let store = MemStore::new();
        let workers = (0..3).map(|worker| work(store.clone(), seed * 10 + worker));
        let tallies = futures::future::join_all(workers).await;
        let client = Client::new(store.clone());
        let counter = client.counter("c").get().await.unwrap();
        let sum = client.adder("c").sum().await.unwrap();
        let mut values = Vec::new();
        let (mut counted, mut added, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for (one, other, taken) in tallies {
            counted.push(one);
            added.push(other);
            ids.extend(taken);
        }
        assert_distinct(ids, seed);
        for (which, now, tallies) in [("counter", counter, counted), ("adder", sum, added)] {
            let certain: i64 = tallies.iter().map(|tally| tally.certain).sum();
            let open: i64 = tallies.iter().map(|tally| tally.unknown).sum();
            assert!(
                (certain..=certain + open).contains(&now),
                "seed {seed}, {which}: {now} after {certain}, {open} open"
            );
            unknown += open;
            values.extend(tallies.into_iter().flat_map(|tally| tally.values));
        }
        assert!(values.iter().all(|value| (1..=counter).contains(value)));
        assert_distinct(values, seed);
        folded += usize::from(
            !store
                .dump(&KeyRange::one("quorate/adder/c/base"))
                .is_empty(),
        );
    }
    assert!(
        unknown > 0 && folded > 0,
        "{unknown} unknown, {folded} folded"
    );
}

/// Wherever a change is dropped, it is made once or not at all, and the next one is made.
#[tokio::test(start_paused = true)]
async fn dropped_anywhere() {
    for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
        for nth in 1.. {
            let store = MemStore::new();
            let faulty = Faulty::new(store.clone());
            let client = Client::builder(faulty.clone()).seed(nth).build();
            let session = open(&client).await;
            let (counter, adder) = (client.counter("c"), client.adder("c"));
            let ids = client.ids("c").block(2);
            let held = faulty.hold(usize::try_from(nth).unwrap(), Calls::Any, stage);
            let work = async {
                let id = ids.next().await.unwrap();
                counter.add(&session, 1).await.unwrap();
                adder.add(&session, 1).await.unwrap();
                id
            };
            let finished = tokio::select! {
                biased;
                () = held.reached() => None,
                id = work => Some(id),
            };
            held.release();
            tokio::time::sleep(Duration::from_secs(20)).await;
            let (before, sum) = (counter.get().await.unwrap(), adder.sum().await.unwrap());
            assert!(
                (0..=1).contains(&before) && (0..=before).contains(&sum),
                "{nth} {stage:?}"
            );
            assert_eq!(counter.add(&session, 1).await.unwrap(), before + 1);
            adder.add(&session, 1).await.unwrap();
            assert_eq!(adder.sum().await.unwrap(), sum + 1);
            assert!(ids.next().await.unwrap() > finished.unwrap_or(0));
            if finished.is_some() {
                assert!(nth > 5, "an id, a lane, two changes");
                break;
            }
        }
    }
}

/// Two fold different cells at once: the sum stays.
/// The cells alone would overflow, their sum does not.
#[tokio::test(start_paused = true)]
async fn what_fits_in_all_is_folded_in_any_order() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    let adder = client.adder("a");
    for deltas in [vec![i64::MAX - 1], vec![5, -5]] {
        let mut sessions = Vec::new();
        for delta in deltas {
            let session = open(&client).await;
            adder.add(&session, delta).await.unwrap();
            sessions.push(session);
        }
        for session in sessions {
            session.close().await.unwrap();
        }
        adder.fold().await.unwrap();
        assert_eq!(adder.sum().await.unwrap(), i64::MAX - 1);
        assert!(store.keys("quorate/adder/a/cell/").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn folding_at_the_same_time() {
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let slow = Client::builder(faulty.clone()).seed(1).build();
    let client = Client::builder(store.clone()).seed(2).build();
    let adder = client.adder("a");
    for delta in [1, 10] {
        let session = open(&client).await;
        adder.add(&session, delta).await.unwrap();
        session.close().await.unwrap();
        if delta == 1 {
            // The slow one has read the first cell, and is about to fold it.
            let held = faulty.hold(2, Calls::Txn, Stage::NotSent);
            let slow = slow.adder("a");
            let folding = tokio::join!(slow.fold(), async {
                held.reached().await;
                let session = open(&client).await;
                adder.add(&session, 100).await.unwrap();
                // Its first addition folds in the background.
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(store.keys("quorate/adder/a/cell/").len(), 1);
                session.close().await.unwrap();
                held.release();
            });
            assert_eq!(folding.0.unwrap(), 0, "the other one has won");
        }
    }
    assert_eq!(adder.sum().await.unwrap(), 111);
    adder.fold().await.unwrap();
    assert_eq!(adder.sum().await.unwrap(), 111);
    assert_eq!(store.keys("quorate/adder/"), ["quorate/adder/a/base"]);
    // More ended sessions than one transaction folds.
    for _ in 0..FOLDED {
        let session = open(&client).await;
        client.adder("b").add(&session, 1).await.unwrap();
        let _ = store.expire(session.lease());
    }
    let adder = client.adder("b");
    while adder.fold().await.unwrap() > 0 {
        assert_eq!(adder.sum().await.unwrap(), 40);
    }
    assert_eq!(store.keys("quorate/adder/b/"), ["quorate/adder/b/base"]);
}

#[test]
fn only_decimal_numbers_are_numbers() {
    let key = Key::from("k");
    let parse_i64 = |text: &'static str| parse::<i64>(&key, Some(&text.into()));
    assert_eq!(parse::<i64>(&key, None).unwrap(), 0);
    assert_eq!(parse_i64("-7").unwrap(), -7);
    assert_eq!(parse_i64("9223372036854775807").unwrap(), i64::MAX);
    for text in ["", " 1", "1.0", "9223372036854775808", "x"] {
        assert!(
            matches!(parse_i64(text), Err(Error::Codec { .. })),
            "{text:?}"
        );
    }
    assert!(matches!(sum(&key, i64::MAX, 1), Err(Error::Invalid(_))));
    assert!(matches!(sum(&key, i64::MIN, -1), Err(Error::Invalid(_))));
    assert_eq!(sum(&key, i64::MAX, i64::MIN).unwrap(), -1);
}

/// Who was beaten to it pauses before the next attempt.
#[tokio::test(start_paused = true)]
async fn a_contended_block_is_not_fought_for_without_a_pause() {
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let ids = Client::new(faulty.clone()).ids("i");
    let others = Client::new(store.clone()).ids("i").block(1);
    let held = faulty.hold(1, Calls::Txn, Stage::NotSent);
    let begun = crate::clock::now();
    let meanwhile = async {
        held.reached().await;
        let other = others.next().await.unwrap();
        held.release();
        other
    };
    let (own, other) = tokio::join!(ids.next(), meanwhile);
    assert_eq!((own.unwrap(), other), (2, 1));
    assert!(begun.elapsed() >= Duration::from_millis(2));
    // What is only remembered is no sign of contention.
    while ids.next().await.unwrap() < 101 {}
    assert_eq!(others.next().await.unwrap(), 102);
    let begun = crate::clock::now();
    assert_eq!(ids.next().await.unwrap(), 103);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}
