//! What the comparison with a node (`tests/it`) cannot show: time, compactions and the controls.

use std::time::Duration;

use futures::StreamExt;
use quorate_proto::etcdserverpb::{WatchCreateRequest, WatchResponse};

use super::*;
use crate::store::ops;

const SECOND: Duration = Duration::from_secs(1);

async fn put(store: &MemStore, key: &str, lease: Option<LeaseId>) -> Result<i64, StoreError> {
    let request = TxnRequest {
        success: vec![ops::put(key, "v".into(), lease)],
        ..Default::default()
    };
    Ok(store.txn(request).await?.header.unwrap().revision)
}

fn from(start_revision: i64) -> WatchCreateRequest {
    let range = KeyRange::prefix("");
    WatchCreateRequest {
        key: range.start,
        range_end: range.end,
        start_revision,
        ..Default::default()
    }
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    stream.next().await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn leases_run_out_in_time_though_nobody_calls() {
    let store = MemStore::new();
    let start = clock::now();
    let (long, short) = (LeaseId(1), LeaseId(2));
    store.lease_grant(long, 5 * SECOND).await.unwrap();
    let lease = store.lease_grant(short, SECOND).await.unwrap();
    assert_eq!(lease.ttl, 2 * SECOND, "the least there is");
    for (key, lease) in [("b", long), ("a", long), ("c", short)] {
        put(&store, key, Some(lease)).await.unwrap();
    }
    let mut stream = store.watch(vec![from(0)]).await.unwrap();
    assert!(next(&mut stream).await.created);
    let gone = next(&mut stream).await;
    assert_eq!((gone.events.len(), clock::now()), (1, start + 2 * SECOND));
    store.lease_keep_alive(long).await.unwrap().unwrap();
    let gone = next(&mut stream).await;
    assert_eq!((gone.events.len(), clock::now()), (2, start + 7 * SECOND));
    assert_eq!(store.lease_keep_alive(long).await.unwrap(), None);
    let refused = put(&store, "a", Some(long)).await;
    assert_eq!(refused, Err(StoreError::LeaseNotFound));
    let last = store.history(store.revision()).pop().unwrap();
    let key = |index: usize| last.changes[index].kv.clone().unwrap().key;
    assert_eq!((key(0), key(1)), ("a".into(), "b".into()), "in key order");
    assert_eq!(last.at, start + 7 * SECOND);
    assert!(store.leases().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_gives_leases_their_time_again() {
    let store = MemStore::new();
    store.lease_grant(LeaseId(1), 4 * SECOND).await.unwrap();
    tokio::time::sleep(3 * SECOND).await;
    store.rearm_leases();
    tokio::time::sleep(3 * SECOND).await;
    let left = store.lease_ttl(LeaseId(1)).await.unwrap().unwrap();
    assert_eq!((left.remaining, left.granted), (SECOND, 4 * SECOND));
    tokio::time::sleep(SECOND).await;
    assert_eq!(store.lease_ttl(LeaseId(1)).await.unwrap(), None);
    assert!(!store.expire(LeaseId(1)));
}

#[tokio::test(start_paused = true)]
async fn compaction_ends_new_watches_of_the_past_and_no_others() {
    let store = MemStore::new();
    let mut behind = store.watch(vec![from(2)]).await.unwrap();
    for key in ["a", "b", "a", "c"] {
        put(&store, key, None).await.unwrap();
    }
    store.compact(Revision(4)).unwrap();
    assert!(matches!(
        store.compact(Revision(4)),
        Err(StoreError::Compacted { .. })
    ));
    assert!(matches!(
        store.compact(Revision(6)),
        Err(StoreError::Invalid(_))
    ));
    assert!(next(&mut behind).await.created);
    for revision in 2..=5 {
        let answer = next(&mut behind).await;
        assert_eq!(answer.header.unwrap().revision, revision);
    }
    let mut late = store.watch(vec![from(3), from(4)]).await.unwrap();
    assert!(next(&mut late).await.created);
    let refused = next(&mut late).await;
    assert!(refused.canceled && refused.compact_revision == 4 && refused.watch_id == 1);
    assert!(next(&mut late).await.created);
    let history = next(&mut late).await;
    assert_eq!((history.watch_id, history.events.len()), (2, 2));
    let read = |revision| {
        let mut request = ops::range(KeyRange::prefix(""));
        request.revision = revision;
        store.range(request)
    };
    assert!(matches!(read(3).await, Err(StoreError::Compacted { .. })));
    assert_eq!(read(4).await.unwrap().count, 2);
    assert_eq!(read(5).await.unwrap().count, 3);
    assert_eq!(store.history(Revision(2)).len(), 4, "kept for checkers");
}

#[tokio::test(start_paused = true)]
async fn idle_watches_are_told_how_far_they_are_and_ended_ones_end() {
    let store = MemStore::new();
    let request = WatchCreateRequest {
        progress_notify: true,
        ..from(0)
    };
    let mut stream = store.watch(vec![request]).await.unwrap();
    assert!(next(&mut stream).await.created);
    let start = clock::now();
    let answer = next(&mut stream).await;
    assert_eq!(answer.events, []);
    assert_eq!(clock::now(), start + Duration::from_secs(600));
    put(&store, "a", None).await.unwrap();
    assert_eq!(next(&mut stream).await.events.len(), 1);
    store.end_watches();
    assert!(stream.next().await.is_none());
}
