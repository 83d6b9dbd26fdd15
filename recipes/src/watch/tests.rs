//! A store that is replaced under a watcher.

use super::*;
use crate::store::faulty::{Calls, Stage};
use crate::store::{Faulty, MemStore};

/// The id of another cluster.
const OTHER: u64 = 7;

const RANGE: &str = "w/";

fn change(change: &Change) -> (&str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    match change {
        Change::Put { kv, .. } => (text(&kv.key), text(&kv.value)),
        Change::Delete { key, .. } => (text(key.as_bytes()), "gone"),
    }
}

/// What is told next, in time.
async fn next(watcher: &mut Watcher) -> Batch {
    let told = tokio::time::timeout(Duration::from_secs(60), watcher.next()).await;
    told.expect("it is told in time").unwrap()
}

/// Writes a number of values, of which the last one stays.
async fn write(client: &Client, key: &str, times: usize) {
    for n in 1..=times {
        client.put(key, n.to_string()).await.unwrap();
    }
}

/// What is told of a store that took the place of one of five revisions, is of this cluster, and has
/// taken so many writes.
async fn told_after_a_replacement(cluster_id: u64, writes: usize) {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    write(&client, "w/before", 4).await;
    let mut watcher = client.watch(KeyRange::prefix(RANGE));
    assert_eq!(next(&mut watcher).await.origin, Origin::Listing);
    client.put("w/before", "5").await.unwrap();
    assert_eq!(next(&mut watcher).await.origin, Origin::Live);
    store.replace(cluster_id);
    client.put("w/after", "1").await.unwrap();
    write(&client, "other", writes - 1).await;
    let resync = next(&mut watcher).await;
    assert_eq!(resync.origin, Origin::Resync);
    assert_eq!(resync.revision, store.revision());
    let changes: Vec<_> = resync.changes.iter().map(change).collect();
    assert_eq!(changes, [("w/after", "1"), ("w/before", "gone")]);
    client.put("w/after", "2").await.unwrap();
    let live = next(&mut watcher).await;
    let changes: Vec<_> = live.changes.iter().map(change).collect();
    assert_eq!(
        (live.origin, &changes[..]),
        (Origin::Live, &[("w/after", "2")][..])
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_of_another_cluster_is_listed_again() {
    // Its revision tells nothing.
    told_after_a_replacement(OTHER, 9).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_put_back_is_listed_again() {
    told_after_a_replacement(MemStore::CLUSTER_ID, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_replaced_right_after_the_first_listing_is_listed_again() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    write(&client, "w/before", 1).await;
    let mut watcher = client.watch(KeyRange::prefix(RANGE));
    assert_eq!(next(&mut watcher).await.origin, Origin::Listing);
    store.replace(OTHER);
    write(&client, "w/after", 1).await;
    write(&client, "other", 9).await;
    let resync = next(&mut watcher).await;
    assert_eq!(resync.origin, Origin::Resync);
    let changes: Vec<_> = resync.changes.iter().map(change).collect();
    assert_eq!(changes, [("w/after", "1"), ("w/before", "gone")]);
}

/// Every call of the look for a replaced store, at every stage of it.
#[tokio::test(start_paused = true)]
async fn a_wait_dropped_while_it_looks_for_a_replaced_store_looks_again() {
    for stage in [
        Stage::NotSent,
        Stage::OnItsWay,
        Stage::AppliedUnanswered,
        Stage::Answered,
    ] {
        let mut nth = 1;
        while is_told_when_dropped_at(nth, stage).await {
            nth += 1;
        }
        assert!(nth > 3, "the watch, the look, and the listing");
    }
}

/// Returns whether so many calls are made.
async fn is_told_when_dropped_at(nth: usize, stage: Stage) -> bool {
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let client = Client::new(faulty.clone());
    write(&client, "w/before", 4).await;
    let mut watcher = client.watch(KeyRange::prefix(RANGE));
    assert_eq!(next(&mut watcher).await.origin, Origin::Listing);
    client.put("w/before", "5").await.unwrap();
    assert_eq!(next(&mut watcher).await.origin, Origin::Live);
    store.replace(MemStore::CLUSTER_ID);
    let held = faulty.hold(nth, Calls::Read, stage);
    let told = tokio::select! {
        biased;
        () = held.reached() => None,
        told = watcher.next() => Some(told),
    };
    let reached = held.is_reached();
    held.release();
    let told = match told {
        Some(told) => Ok(told),
        None => tokio::time::timeout(Duration::from_secs(60), watcher.next()).await,
    };
    let resync = told.unwrap_or_else(|_| panic!("call {nth}, {stage:?}: nothing is told"));
    assert_eq!(
        resync.unwrap().origin,
        Origin::Resync,
        "call {nth}, {stage:?}"
    );
    reached
}
