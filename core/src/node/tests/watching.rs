//! Watch streams on a lone member: ids, history, cancels and progress by etcd's rules.

use quorate_proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, WatchCreateRequest};
use quorate_proto::mvccpb::event::EventType;

use super::*;

fn create(key: &str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.to_owned().into(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_history_then_what_happens() {
    let node = lone().await;
    node.put(put("a", "1")).await.unwrap();
    node.put(put("b", "x")).await.unwrap();
    node.put(put("a", "2")).await.unwrap();
    let mut session = node.watch();
    let request = WatchCreateRequest {
        start_revision: 2,
        prev_kv: true,
        ..create("a")
    };
    session.control().create(request).await;
    let created = next(&mut session).await;
    assert!(created.created && created.events.is_empty() && created.watch_id == 0);
    assert_eq!(created.header.unwrap().revision, 4);
    let mut events = Vec::new();
    while events.len() < 2 {
        events.extend(next(&mut session).await.events);
    }
    let revisions: Vec<i64> = events
        .iter()
        .map(|event| event.kv.as_ref().unwrap().mod_revision)
        .collect();
    assert_eq!(revisions, [2, 4]);
    assert_eq!(events[1].prev_kv.as_ref().unwrap().value, "1");
    let delete = DeleteRangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    node.delete_range(delete).await.unwrap();
    let live = next(&mut session).await;
    assert_eq!(live.header.unwrap().revision, 5);
    assert_eq!(live.events[0].r#type(), EventType::Delete);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_count_up_skip_those_in_use_and_clash_as_on_etcd() {
    let node = lone().await;
    let mut session = node.watch();
    let control = session.control();
    let mut ids = Vec::new();
    for chosen in [0, 0, 5, 2, 0] {
        control
            .create(WatchCreateRequest {
                watch_id: chosen,
                ..create("k")
            })
            .await;
        ids.push(next(&mut session).await.watch_id);
    }
    assert_eq!(ids, [0, 1, 5, 2, 3]);
    control
        .create(WatchCreateRequest {
            watch_id: 5,
            ..create("k")
        })
        .await;
    let clash = next(&mut session).await;
    assert!(clash.created && clash.canceled && clash.watch_id == -1);
    assert_eq!(
        clash.cancel_reason,
        "mvcc: duplicate watch ID provided on the WatchStream"
    );
    control
        .create(WatchCreateRequest {
            range_end: "a".into(),
            ..create("k")
        })
        .await;
    let empty = next(&mut session).await;
    assert_eq!(
        (empty.watch_id, empty.cancel_reason.as_str()),
        (-1, "mvcc: watcher range is empty")
    );
    control.cancel(99).await;
    control.cancel(5).await;
    let cancelled = next(&mut session).await;
    assert!(cancelled.canceled && cancelled.watch_id == 5 && cancelled.cancel_reason.is_empty());
    control
        .create(WatchCreateRequest {
            watch_id: 5,
            ..create("k")
        })
        .await;
    assert!(
        !next(&mut session).await.canceled,
        "a cancelled id may be used again"
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_compacted_history_is_cancelled_and_keeps_its_id() {
    let node = lone().await;
    for round in 0..5 {
        node.put(put("a", &round.to_string())).await.unwrap();
    }
    node.compact(CompactionRequest {
        revision: 4,
        physical: false,
    })
    .await
    .unwrap();
    let mut session = node.watch();
    let control = session.control();
    let request = || WatchCreateRequest {
        start_revision: 3,
        watch_id: 9,
        ..create("a")
    };
    control.create(request()).await;
    let created = next(&mut session).await;
    assert!(created.created && !created.canceled && created.watch_id == 9);
    let cancelled = next(&mut session).await;
    assert!(cancelled.canceled && cancelled.watch_id == 9);
    assert_eq!(
        (
            cancelled.compact_revision,
            cancelled.header.unwrap().revision
        ),
        (4, 0)
    );
    control.create(request()).await;
    assert_eq!(next(&mut session).await.watch_id, -1);
    let negative = WatchCreateRequest {
        start_revision: -1,
        ..create("a")
    };
    control.create(negative).await;
    let refused = next(&mut session).await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1);
    assert_eq!(
        refused.cancel_reason,
        "etcdserver: mvcc: required revision has been compacted"
    );
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_after_all_events_and_only_in_sync() {
    let node = lone().await;
    let mut session = node.watch();
    let control = session.control();
    // No watchers: no answer. The answer to the next request shows that nothing was queued.
    control.progress().await;
    control.create(create("a")).await;
    assert!(next(&mut session).await.created);
    let revision = node
        .put(put("a", "1"))
        .await
        .unwrap()
        .header
        .unwrap()
        .revision;
    control.progress().await;
    let event = next(&mut session).await;
    assert_eq!(event.events.len(), 1);
    let progress = next(&mut session).await;
    assert_eq!(
        (progress.watch_id, progress.header.unwrap().revision),
        (-1, revision)
    );
    // One watcher waits for the future: not in sync.
    control
        .create(WatchCreateRequest {
            start_revision: 1_000,
            ..create("b")
        })
        .await;
    assert!(next(&mut session).await.created);
    control.progress().await;
    node.put(put("a", "2")).await.unwrap();
    assert_eq!(
        next(&mut session).await.events.len(),
        1,
        "progress was not answered"
    );
    control.cancel(1).await;
    assert!(next(&mut session).await.canceled);
    control.progress().await;
    assert_eq!(next(&mut session).await.watch_id, -1);
    node.shutdown().await;
}
