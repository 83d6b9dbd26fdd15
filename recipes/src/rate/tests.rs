//! Rate limits on a store in memory whose calls fail at random: no window has too many permits.

use std::time::Duration;

use futures::future::join_all;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::client::Client;
use crate::clock::{self, Instant};
use crate::error::Error;
use crate::keys::Revision;
use crate::session::Session;
use crate::store::faulty::{Calls, Stage};
use crate::store::{Counting, Faulty, MemStore, Rates};

const LIMIT: u32 = 5;
const PER: Duration = Duration::from_secs(4);
const MINUTES: Duration = Duration::from_secs(180);

async fn open(client: &Client) -> Session {
    loop {
        match client.session().ttl(Duration::from_secs(6)).await {
            Ok(session) => return session,
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Asks for permits, gives up now and then; returns when it got how many.
async fn user(store: &MemStore, client: &Client, seed: u64) -> Vec<(Instant, u32)> {
    let mut random = SmallRng::seed_from_u64(seed);
    let block = random.random_range(1..=LIMIT);
    let limiter = client.rate_limiter("r", LIMIT, PER).block(block);
    let mut session = open(client).await;
    let mut got = Vec::new();
    let end = clock::now() + MINUTES;
    while clock::now() < end {
        if session.check().is_err() {
            session = open(client).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1_500))).await;
        let permits = random.random_range(1..=3);
        let patience = Duration::from_millis(random.random_range(1..10_000));
        let outcome = if random.random_range(0..3) == 0 {
            limiter.try_acquire(&session, permits).await
        } else {
            tokio::select! {
                biased;
                outcome = limiter.acquire(&session, permits) => outcome.map(|()| true),
                () = tokio::time::sleep(patience) => Ok(false),
            }
        };
        match outcome {
            Ok(true) => got.push((clock::now(), permits)),
            Ok(false) => {}
            Err(Error::SessionLost(_)) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
        match random.random_range(0..40) {
            0 => drop(store.expire(session.lease())),
            1 => store.rearm_leases(),
            _ => {}
        }
    }
    got
}

#[tokio::test(start_paused = true)]
async fn no_window_has_more_permits_than_the_limit() {
    let mut all = 0;
    for seed in 0..40 {
        let store = MemStore::new();
        let clients = [1, 2, 3].map(|index| {
            let faulty = Faulty::new(store.clone());
            faulty.fail_at_random(seed * 10 + index, Rates::evenly(0.15));
            Client::builder(faulty).seed(seed * 10 + index).build()
        });
        let users = (0..).zip(&clients).map(|(index, client)| {
            let seed = seed * 10 + index;
            user(&store, client, seed)
        });
        let mut got: Vec<_> = join_all(users).await.into_iter().flatten().collect();
        got.sort_unstable();
        for (index, (first, _)) in got.iter().enumerate() {
            let window = got[index..].iter().take_while(|(at, _)| *at < *first + PER);
            let permits: u32 = window.map(|(_, permits)| permits).sum();
            assert!(permits <= LIMIT, "seed {seed}: {permits} from {first:?} on");
        }
        all += got.iter().map(|(_, permits)| permits).sum::<u32>();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(store.keys("quorate/rate/r/grant/").is_empty());
    }
    // Half of what the limit allows, at the least.
    let allowed = 40 * LIMIT * u32::try_from(MINUTES.as_secs() / PER.as_secs()).unwrap();
    assert!(all > allowed / 4, "{all} of {allowed}");
}

#[tokio::test(start_paused = true)]
async fn a_permit_at_hand_lapses_before_its_grant_could() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    let session = client.session().await.unwrap();
    let limiter = client.rate_limiter("r", 4, PER).block(4);
    limiter.acquire(&session, 1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(limiter.try_acquire(&session, 1).await.unwrap());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        !limiter.try_acquire(&session, 1).await.unwrap(),
        "usable for too long"
    );
    let begun = clock::now();
    limiter.acquire(&session, 4).await.unwrap();
    assert!(
        begun.elapsed() >= PER - Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn what_comes_late_is_ended_unused() {
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let client = Client::new(faulty.clone());
    let session = client.session().await.unwrap();
    let limiter = client.rate_limiter("r", 1, PER);
    limiter.set_rule(&session, 1, PER).await.unwrap();
    // The grant's transaction: the second from now, after the read.
    let held = faulty.hold(2, Calls::Txn, Stage::Answered);
    let release = async {
        held.reached().await;
        assert_eq!(store.keys("quorate/rate/r/grant/").len(), 1);
        tokio::time::sleep(Duration::from_secs(3)).await;
        held.release();
    };
    let begun = clock::now();
    let (got, ()) = tokio::join!(limiter.acquire(&session, 1), release);
    got.unwrap();
    // Not that one, and no window later either: it was ended, and another one granted.
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(3) && took < PER, "{took:?}");
    let puts = store.history(Revision(0)).into_iter().filter(|commit| {
        let first = commit.changes[0].kv.as_ref().unwrap();
        first.key.starts_with(b"quorate/rate/r/grant/") && !first.value.is_empty()
    });
    assert_eq!(puts.count(), 2);
}

/// A store that takes longer for each grant than its permits would be usable.
#[tokio::test(start_paused = true)]
async fn a_slow_store_grants_all_the_same() {
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let client = Client::new(faulty.clone());
    let session = client.session().ttl(MINUTES).await.unwrap();
    let limiter = client.rate_limiter("r", 1, PER);
    let slow = async {
        loop {
            let held = faulty.hold(1, Calls::Lease, Stage::Answered);
            held.reached().await;
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            held.release();
        }
    };
    let begun = clock::now();
    tokio::select! {
        biased;
        got = limiter.acquire(&session, 1) => got.unwrap(),
        () = slow => {}
        () = tokio::time::sleep(MINUTES) => panic!("granted too late, time and again"),
    }
    // Three grants and two revocations.
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    // It counts for as much longer.
    let begun = clock::now();
    limiter.acquire(&session, 1).await.unwrap();
    assert!(begun.elapsed() >= PER, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_block_costs_three_calls_and_a_permit_at_hand_none() {
    let store = Counting::new(MemStore::new());
    let client = Client::new(store.clone());
    let session = client.session().await.unwrap();
    let limiter = client.rate_limiter("r", 10, PER).block(5);
    limiter.set_rule(&session, 10, PER).await.unwrap();
    let before = store.counts();
    for _ in 0..5 {
        limiter.acquire(&session, 1).await.unwrap();
    }
    let spent = store.counts() - before;
    assert_eq!((spent.txn, spent.lease_grant, spent.calls()), (2, 1, 3));
}

/// A call dropped at any of its calls, at any stage, uses nothing: all is to be had once more, at the
/// latest a window later.
#[tokio::test(start_paused = true)]
async fn a_call_dropped_anywhere_uses_nothing() {
    for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
        for nth in 1..=5 {
            let store = MemStore::new();
            let faulty = Faulty::new(store.clone());
            let client = Client::new(faulty.clone());
            let session = client.session().await.unwrap();
            let limiter = client.rate_limiter("r", 3, PER);
            let held = faulty.hold(nth, Calls::Any, stage);
            tokio::select! {
                biased;
                got = limiter.acquire(&session, 3) => got.unwrap(),
                () = held.reached() => {}
            }
            held.release();
            let begun = clock::now();
            limiter.acquire(&session, 3).await.unwrap();
            let took = begun.elapsed();
            assert!(
                took <= PER + Duration::from_secs(2),
                "{nth} {stage:?}: {took:?}"
            );
            tokio::time::sleep(3 * PER).await;
            assert!(store.keys("quorate/rate/r/grant/").is_empty());
            assert_eq!(store.leases(), [session.lease()], "{nth} {stage:?}");
        }
    }
}
