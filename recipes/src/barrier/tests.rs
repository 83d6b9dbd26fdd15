//! Barriers on a store in memory whose calls fail at random, judged by everything that was written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use quorate_proto::mvccpb::event::EventType;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::Passed;
use super::generation::Register;
use crate::client::Client;
use crate::clock;
use crate::error::Error;
use crate::keys::{KeyRange, Revision};
use crate::session::Session;
use crate::store::faulty::{Calls, Stage};
use crate::store::{Faulty, MemStore, Rates};

const PARTIES: u32 = 3;
const MINUTES: Duration = Duration::from_secs(180);

/// What a member was told.
#[derive(Default)]
struct Told {
    passed: Vec<Passed>,
    broken: Vec<u64>,
}

/// The life of a lease that is lost now and then, by what fails at random.
const SHORT: Duration = Duration::from_secs(6);

async fn open(client: &Client, ttl: Duration) -> Session {
    loop {
        match client.session().ttl(ttl).await {
            Ok(session) => return session,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Comes again and again, gives up now and then, and loses its lease now and then.
async fn member(store: &MemStore, client: &Client, seed: u64, mortal: bool) -> Told {
    let mut random = SmallRng::seed_from_u64(seed);
    let barrier = client.cyclic_barrier("b", PARTIES);
    let ttl = if mortal { SHORT } else { MINUTES };
    let mut session = open(client, ttl).await;
    let mut told = Told::default();
    let end = clock::now() + MINUTES;
    while clock::now() < end {
        if session.check().is_err() {
            session = open(client, ttl).await;
        }
        let pause = Duration::from_millis(random.random_range(0..2_000));
        tokio::time::sleep(pause).await;
        let patience = Duration::from_millis(random.random_range(1..20_000));
        let dies = mortal && random.random_range(0..12) == 0;
        let outcome = tokio::select! {
            biased;
            outcome = barrier.wait(&session) => outcome,
            () = tokio::time::sleep(patience) => {
                if dies {
                    let _ = store.expire(session.lease());
                }
                continue;
            }
        };
        match outcome {
            Ok(passed) => told.passed.push(passed),
            Err(Error::Broken { generation, .. }) => told.broken.push(generation),
            Err(Error::SessionLost(_)) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    drop(session);
    told
}

/// Replays what was written: which generations opened, and which broke.
fn judge(store: &MemStore, seed: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let mut live: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut register = Register::first(PARTIES);
    let (mut opened, mut broken) = (BTreeSet::new(), BTreeSet::new());
    for commit in store.history(Revision(0)) {
        let mut next = None;
        for event in &commit.changes {
            let kv = event.kv.as_ref().unwrap();
            if kv.key.ends_with(b"/meta") {
                next = Some(Register::read(kv).unwrap());
            } else if kv.key.starts_with(b"quorate/cyclic-barrier/") {
                match event.r#type() {
                    EventType::Put => live.insert(kv.key.to_vec()),
                    EventType::Delete => live.remove(&kv.key[..]),
                };
            }
        }
        let Some(next) = next else { continue };
        let place = format!("seed {seed} at {}", commit.revision);
        let key = |id: &str| {
            let generation = register.generation;
            format!("quorate/cyclic-barrier/b/member/{generation}/{id}").into_bytes()
        };
        let alive = |register: &Register| {
            let ids = register.arrived.iter();
            ids.filter(|one| live.contains(&key(&one.id))).count()
        };
        let of_generation = live.iter().filter(|name| name.starts_with(&key("")));
        let there = of_generation.count();
        if next.generation == register.generation {
            assert_eq!(there, alive(&next), "{place}: a key that is not counted");
            let change = next.arrived.len().abs_diff(register.arrived.len());
            assert_eq!(change, 1, "{place}: one comes or goes at a time");
        } else if next.fate(register.generation) == super::generation::Fate::Broken {
            assert!(
                alive(&register) < register.arrived.len(),
                "{place}: all lived"
            );
            broken.insert(register.generation);
        } else {
            assert_eq!(there, PARTIES as usize, "{place}: opened for others");
            assert_eq!(
                alive(&register),
                PARTIES as usize - 1,
                "{place}: the last came"
            );
            opened.insert(register.generation);
        }
        register = next;
    }
    (opened, broken)
}

/// Four members for three places; how many generations opened, and how many broke.
async fn run(seed: u64, mortal: bool) -> (usize, usize) {
    let store = MemStore::new();
    let mut clients = Vec::new();
    let mut faults = Vec::new();
    for index in 0..4 {
        let faulty = Faulty::new(store.clone());
        faulty.fail_at_random(seed * 10 + index, Rates::evenly(0.2));
        faults.push(faulty.clone());
        let client = Client::builder(faulty).seed(seed * 10 + index);
        clients.push(client.build());
    }
    let members = (0..).zip(&clients).map(|(index, client)| {
        let seed = seed * 10 + index;
        member(&store, client, seed, mortal)
    });
    let told = join_all(members).await;
    for faulty in faults {
        faulty.fail_at_random(0, Rates::NONE);
    }
    // Longer than any late copy and any lease.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (opened, broken) = judge(&store, seed);
    let mut places: BTreeMap<(u64, u32), usize> = BTreeMap::new();
    for passed in told.iter().flat_map(|told| &told.passed) {
        let place = format!("seed {seed}: {passed:?}");
        assert!(opened.contains(&passed.generation), "{place}");
        assert!(passed.index < PARTIES, "{place}");
        *places.entry((passed.generation, passed.index)).or_default() += 1;
    }
    let once = places.values().all(|count| *count == 1);
    assert!(once, "seed {seed}: {places:?}");
    for generation in told.iter().flat_map(|told| &told.broken) {
        assert!(broken.contains(generation), "seed {seed}: {generation}");
    }
    let left = store.keys("quorate/cyclic-barrier/b/member/");
    assert!(left.is_empty(), "seed {seed}: {left:?}");
    (opened.len(), broken.len())
}

#[tokio::test(start_paused = true)]
async fn every_generation_opens_for_exactly_its_parties() {
    let (mut opened, mut broken) = (0, 0);
    for seed in 0..40 {
        let one = run(seed, true).await;
        (opened, broken) = (opened + one.0, broken + one.1);
    }
    assert!(opened > 200 && broken > 20, "{opened} and {broken}");
}

#[tokio::test(start_paused = true)]
async fn waits_that_are_dropped_break_nothing() {
    for seed in 100..120 {
        let (opened, broken) = run(seed, false).await;
        assert!(
            opened > 0 && broken == 0,
            "seed {seed}: {opened} and {broken}"
        );
    }
}

/// A wait dropped at any of its calls, at any stage, is as if it had never been.
#[tokio::test(start_paused = true)]
async fn a_wait_dropped_anywhere_leaves_nothing() {
    for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
        for nth in 1..=5 {
            for kind in ["hold", "cyclic", "double"] {
                let store = MemStore::new();
                let faulty = Faulty::new(store.clone());
                let client = Client::new(faulty.clone());
                let session = client.session().await.unwrap();
                let held = faulty.hold(nth, Calls::Any, stage);
                let work = async {
                    match kind {
                        "hold" => {
                            let hold = client.barrier("b").hold(&session).await;
                            hold.unwrap().release().await.unwrap();
                            std::future::pending().await
                        }
                        "cyclic" => {
                            let barrier = client.cyclic_barrier("b", 2);
                            barrier.wait(&session).await.map(drop)
                        }
                        _ => {
                            let barrier = client.double_barrier("b", 2);
                            barrier.enter(&session).await.map(drop)
                        }
                    }
                };
                tokio::select! {
                    biased;
                    _ = work => panic!("alone"),
                    () = held.reached() => {}
                    () = tokio::time::sleep(Duration::from_secs(30)) => {}
                }
                held.release();
                tokio::time::sleep(Duration::from_secs(30)).await;
                let place = format!("{kind} {nth} {stage:?}");
                let left = store.keys("quorate/");
                let keys = left.iter().filter(|key| !key.contains("/session/"));
                let keys = keys.filter(|key| !key.ends_with("/meta")).count();
                assert_eq!(keys, 0, "{place}: {left:?}");
                let barrier = client.cyclic_barrier("b", 2);
                let (one, other) = tokio::join!(barrier.wait(&session), barrier.wait(&session));
                assert_eq!(one.unwrap().generation, 1, "{place}");
                assert_eq!(other.unwrap().generation, 1, "{place}");
                client.barrier("b").wait().await.unwrap();
            }
        }
    }
}

/// A waiter at a barrier comes back only where the store had no key under it since it began to wait.
#[tokio::test(start_paused = true)]
async fn no_wait_ends_while_the_barrier_is_closed() {
    for seed in 0..40 {
        let store = MemStore::new();
        let client = |index: u64| {
            let faulty = Faulty::new(store.clone());
            faulty.fail_at_random(seed * 10 + index, Rates::evenly(0.2));
            Client::builder(faulty).seed(seed * 10 + index).build()
        };
        let (holder, setter, waiter) = (client(1), client(2), client(3));
        let end = clock::now() + MINUTES;
        let over = || clock::now() >= end;
        let hold = async {
            let mut random = SmallRng::seed_from_u64(seed);
            while !over() {
                let session = open(&holder, SHORT).await;
                let hold = holder.barrier("b").hold(&session).await;
                tokio::time::sleep(Duration::from_millis(random.random_range(0..4_000))).await;
                if random.random_range(0..4) == 0 {
                    let _ = store.expire(session.lease());
                }
                drop(hold);
                tokio::time::sleep(Duration::from_millis(random.random_range(0..6_000))).await;
            }
        };
        let set = async {
            let mut random = SmallRng::seed_from_u64(seed + 1_000);
            let session = open(&setter, MINUTES).await;
            while !over() && session.check().is_ok() {
                let barrier = setter.barrier("b");
                let _ = barrier.set(&session).await;
                tokio::time::sleep(Duration::from_millis(random.random_range(0..4_000))).await;
                barrier.lift().await.unwrap();
                tokio::time::sleep(Duration::from_millis(random.random_range(0..6_000))).await;
            }
            // Whatever became of the last one.
            setter.barrier("b").lift().await.unwrap();
        };
        let wait = async {
            let mut waits = Vec::new();
            while !over() {
                let from = store.revision();
                waiter.barrier("b").wait().await.unwrap();
                waits.push((from, store.revision()));
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            waits
        };
        let (waits, (), ()) = tokio::join!(wait, hold, set);
        // At which revisions it was open.
        let range = KeyRange::prefix("quorate/barrier/b/");
        let mut closing = BTreeSet::new();
        let mut open_at = BTreeSet::from([1]);
        for commit in store.history(Revision(0)) {
            for event in &commit.changes {
                let kv = event.kv.as_ref().unwrap();
                if range.contains(&kv.key) {
                    match event.r#type() {
                        EventType::Put => closing.insert(kv.key.clone()),
                        EventType::Delete => closing.remove(&kv.key),
                    };
                }
            }
            if closing.is_empty() {
                open_at.insert(commit.revision.0);
            }
        }
        assert!(waits.len() > 10, "seed {seed}: {}", waits.len());
        for (from, to) in waits {
            let open = open_at.range(from.0..=to.0).next();
            assert!(open.is_some(), "seed {seed}: closed from {from} to {to}");
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let left = store.keys("quorate/barrier/b/");
        assert!(left.is_empty(), "seed {seed}: {left:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_compaction_under_a_wait_opens_nothing() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    let session = client.session().await.unwrap();
    let hold = client.barrier("b").hold(&session).await.unwrap();
    let barrier = client.barrier("b");
    let wait = barrier.wait();
    tokio::pin!(wait);
    for _ in 0..20 {
        client.put("other", "x").await.unwrap();
        store.compact(store.revision()).unwrap();
        store.end_watches();
        let waited = tokio::time::timeout(Duration::from_secs(3), &mut wait).await;
        assert!(waited.is_err(), "opened by a compaction");
    }
    hold.release().await.unwrap();
    tokio::time::timeout(Duration::from_secs(3), wait)
        .await
        .unwrap()
        .unwrap();
}

/// Who is beaten to the register pauses before the next attempt, also to withdraw.
#[tokio::test(start_paused = true)]
async fn a_withdrawal_that_is_beaten_pauses() {
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let (client, others) = (Client::new(faulty.clone()), Client::new(store.clone()));
    let (session, theirs) = (
        client.session().await.unwrap(),
        others.session().await.unwrap(),
    );
    let barrier = client.cyclic_barrier("c", 3);
    let mut waiting = Box::pin(barrier.wait(&session));
    let _ = tokio::time::timeout(Duration::from_secs(1), &mut waiting).await;
    // It looks, and then withdraws.
    let held = faulty.hold(2, Calls::Txn, Stage::NotSent);
    drop(waiting);
    held.reached().await;
    let other = others.cyclic_barrier("c", 3);
    let other_waits = other.wait(&theirs);
    tokio::pin!(other_waits);
    let until = Duration::from_millis(100);
    let _ = tokio::time::timeout(until, &mut other_waits).await;
    let members = async || {
        others
            .cyclic_barrier("c", 3)
            .members(9)
            .await
            .unwrap()
            .len()
    };
    assert_eq!(members().await, 2);
    held.release();
    let _ = tokio::time::timeout(Duration::from_millis(1), &mut other_waits).await;
    assert_eq!(members().await, 2, "without a pause");
    let _ = tokio::time::timeout(Duration::from_secs(1), &mut other_waits).await;
    assert_eq!(members().await, 1);
}
