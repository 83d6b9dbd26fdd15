//! What a watcher is promised: every event it asked for, whole revisions in order, once; whatever
//! its speed, and whatever happens to memory, history and the store meanwhile.

mod model;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use quorate_proto::{KeyRange, Reason, mvccpb};

use super::{Hub, Item, Options, Publication, Request, ViewSource, Watcher};
use crate::mvcc::{Event, Overlay, compaction, meta};
use crate::storage::kv::{Kv, MemKv};

/// A write: `None` deletes.
type Write<'a> = (&'a str, Option<&'a str>);

/// A store with a hub over it.
struct Store {
    kv: Arc<RwLock<Arc<MemKv>>>,
    hub: Hub,
}

impl Store {
    fn new(options: &Options) -> Self {
        let kv = Arc::new(RwLock::new(Arc::new(MemKv::new())));
        let viewed = Arc::clone(&kv);
        let source: ViewSource = Arc::new(move || viewed.read().expect("no panic").view());
        let hub = Hub::new(source, meta::FIRST_REVISION, meta::NEVER_COMPACTED, options);
        Self { kv, hub }
    }

    fn kv(&self) -> Arc<MemKv> {
        Arc::clone(&self.kv.read().expect("no panic"))
    }

    /// One transaction, stored but not published.
    fn write_quietly(&self, writes: &[Write<'_>]) -> Vec<Event> {
        let kv = self.kv();
        let mut overlay = Overlay::new(kv.view());
        let mut txn = overlay.begin().expect("readable");
        for (key, value) in writes {
            let key = Bytes::copy_from_slice(key.as_bytes());
            match value {
                Some(value) => txn
                    .put(key, Bytes::copy_from_slice(value.as_bytes()), 0)
                    .map(drop)
                    .expect("a good put"),
                None => txn.delete(&key).map(drop).expect("a good delete"),
            }
        }
        let committed = txn.commit();
        kv.commit(overlay.into_batch()).expect("memory");
        committed.events
    }

    fn publish(&self, revisions: Vec<Vec<Event>>) {
        let (revision, compact_revision) = self.revisions();
        self.hub
            .publish(Publication::new(revisions, revision, compact_revision));
    }

    fn revisions(&self) -> (i64, i64) {
        let view = self.kv().view();
        let revision = meta::current_revision(&*view).expect("readable");
        (revision, meta::compact_revision(&*view).expect("readable"))
    }

    /// One transaction, stored and published.
    fn write(&self, writes: &[Write<'_>]) -> Vec<Event> {
        let events = self.write_quietly(writes);
        self.publish(vec![events.clone()]);
        events
    }

    fn put(&self, key: &str, value: &str) {
        self.write(&[(key, Some(value))]);
    }

    /// Compacts, and removes what may be removed.
    fn compact(&self, revision: i64) {
        let kv = self.kv();
        let mut overlay = Overlay::new(kv.view());
        compaction::schedule(&mut overlay, revision);
        kv.commit(overlay.into_batch()).expect("memory");
        self.publish(Vec::new());
        let mut pending = compaction::pending(&*kv.view()).expect("readable");
        while let Some(cursor) = pending {
            let step = compaction::step(&*kv.view(), cursor, 10).expect("readable");
            kv.commit(step.batch).expect("memory");
            pending = step.next;
        }
    }

    fn watch(&self, change: impl FnOnce(&mut Request)) -> Watcher {
        let mut request = Request::new(KeyRange::all());
        change(&mut request);
        self.hub.watch(request).expect("a good request")
    }
}

/// What comes next, which must come soon.
async fn next(watcher: &mut Watcher) -> Item {
    tokio::time::timeout(Duration::from_secs(20), watcher.next())
        .await
        .expect("something comes")
        .expect("memory does not fail")
}

/// The next events: header revision, and (revision, key) of each.
async fn next_events(watcher: &mut Watcher) -> (i64, Vec<(i64, String)>) {
    match next(watcher).await {
        Item::Events { revision, events } => (revision, events.iter().map(told).collect()),
        other => panic!("{other:?}"),
    }
}

fn told(event: &mvccpb::Event) -> (i64, String) {
    let kv = event.kv.as_ref().expect("a pair");
    let key = String::from_utf8(kv.key.to_vec()).expect("text");
    (kv.mod_revision, key)
}

fn pairs(expected: &[(i64, &str)]) -> Vec<(i64, String)> {
    expected
        .iter()
        .map(|(revision, key)| (*revision, (*key).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_key_made_anew_in_the_transaction_that_deleted_it_has_no_previous_pair() {
    let store = Store::new(&Options::default());
    store.put("a", "before");
    let mut live = store.watch(|request| request.prev_kv = true);
    store.write(&[("a", None), ("a", Some("after"))]);
    let mut late = store.watch(|request| (request.prev_kv, request.start_revision) = (true, 3));
    for watcher in [&mut live, &mut late] {
        let Item::Events { events, .. } = next(watcher).await else {
            panic!("events");
        };
        let before: Vec<_> = events.iter().map(|event| event.prev_kv.is_some()).collect();
        assert_eq!(before, [true, false]);
    }
}

#[tokio::test]
async fn a_live_watcher_gets_what_it_asked_for() {
    let store = Store::new(&Options::default());
    store.put("a", "before");
    let mut all = store.watch(|_| ());
    let mut one = store.watch(|request| request.range = KeyRange::single("a"));
    let mut puts = store.watch(|request| {
        request.deletes = false;
        request.prev_kv = true;
    });
    let mut nothing = store.watch(|request| (request.puts, request.deletes) = (false, false));
    assert_eq!(all.created_at(), 2);
    store.write(&[("b", Some("1")), ("a", None), ("c", Some("1"))]);
    let expected = pairs(&[(3, "b"), (3, "a"), (3, "c")]);
    assert_eq!(next_events(&mut all).await, (3, expected));
    let Item::Events { events, .. } = next(&mut one).await else {
        panic!("events");
    };
    let [event] = events.try_into().expect("one event");
    assert_eq!(event.r#type(), mvccpb::event::EventType::Delete);
    let only_key_and_revision = mvccpb::KeyValue {
        key: "a".into(),
        mod_revision: 3,
        ..mvccpb::KeyValue::default()
    };
    assert_eq!(
        (event.kv, event.prev_kv),
        (Some(only_key_and_revision), None)
    );
    assert_eq!(next_events(&mut puts).await.1, pairs(&[(3, "b"), (3, "c")]));
    store.put("b", "2");
    let Item::Events { events, .. } = next(&mut puts).await else {
        panic!("events");
    };
    assert_eq!(events[0].prev_kv.as_ref().expect("it was there").value, "1");
    assert_eq!(nothing.progress(), Some(4));
    let silent = tokio::time::timeout(Duration::from_millis(5), nothing.next()).await;
    assert!(silent.is_err());
}

#[tokio::test]
async fn history_comes_before_the_present_with_the_current_revision_in_the_header() {
    let from_memory = Options::default();
    let from_store = Options {
        recent_bytes_max: 0,
        ..Options::default()
    };
    for options in [from_memory, from_store] {
        let store = Store::new(&options);
        for key in ["a", "b", "c"] {
            store.put(key, "1");
        }
        let mut watcher = store.watch(|request| request.start_revision = 3);
        assert_eq!(watcher.progress(), None);
        let expected = pairs(&[(3, "b"), (4, "c")]);
        assert_eq!(next_events(&mut watcher).await, (4, expected));
        store.put("d", "1");
        assert_eq!(next_events(&mut watcher).await.1, pairs(&[(5, "d")]));
    }
}

#[tokio::test]
async fn watchers_are_counted_as_behind_until_they_catch_up_or_end() {
    let store = Store::new(&Options {
        watcher_bytes_max: 1,
        ..Options::default()
    });
    store.put("a", "1");
    let behind = || store.hub.watchers_behind();
    let mut late = store.watch(|request| request.start_revision = 2);
    let early = store.watch(|request| request.start_revision = 2);
    let mut slow = store.watch(|_| ());
    assert_eq!(behind(), 2);
    assert_eq!(next_events(&mut late).await.1, pairs(&[(2, "a")]));
    store.put("b", "1");
    assert_eq!(next_events(&mut late).await.1, pairs(&[(3, "b")]));
    store.put("c", "1");
    assert_eq!(
        behind(),
        3,
        "one waits to read on, one has not begun, one has no room"
    );
    assert_eq!(next_events(&mut late).await.1, pairs(&[(4, "c")]));
    assert_eq!(next_events(&mut slow).await.1, pairs(&[(3, "b")]));
    assert_eq!(next_events(&mut slow).await.1, pairs(&[(4, "c")]));
    drop(early);
    for watcher in [&mut late, &mut slow] {
        let silent = tokio::time::timeout(Duration::from_millis(5), watcher.next()).await;
        assert!(silent.is_err(), "nothing is left");
    }
    assert_eq!(behind(), 0);
    store.hub.reset(9, 1);
    assert_eq!(behind(), 2);
    drop((late, slow));
    assert_eq!(behind(), 0);
}

#[tokio::test]
async fn a_watcher_of_the_future_is_silent_until_then() {
    let store = Store::new(&Options::default());
    let mut watcher = store.watch(|request| request.start_revision = 4);
    store.put("a", "1");
    store.put("b", "1");
    assert_eq!(watcher.progress(), None, "it begins with the next one");
    let further = store.watch(|request| request.start_revision = 9);
    assert_eq!(further.progress(), None);
    store.put("c", "1");
    assert_eq!(watcher.progress(), None, "it has something to take");
    assert_eq!(next_events(&mut watcher).await, (4, pairs(&[(4, "c")])));
    assert_eq!(watcher.progress(), Some(4));
}

#[tokio::test]
async fn a_start_below_the_compact_revision_is_told_so_and_at_it_is_fine() {
    let store = Store::new(&Options::default());
    for value in ["1", "2", "3"] {
        store.put("k", value);
    }
    let mut live = store.watch(|_| ());
    store.compact(3);
    let mut early = store.watch(|request| request.start_revision = 2);
    let gone = Item::Compacted {
        compact_revision: 3,
    };
    assert_eq!(next(&mut early).await, gone);
    assert_eq!(next(&mut early).await, gone);
    let mut exact = store.watch(|request| {
        request.start_revision = 3;
        request.prev_kv = true;
    });
    let Item::Events { events, .. } = next(&mut exact).await else {
        panic!("events");
    };
    let before: Vec<_> = events.iter().map(|event| event.prev_kv.is_some()).collect();
    assert_eq!(before, [false, true], "the pair of revision 2 is compacted");
    store.put("k", "4");
    assert_eq!(next_events(&mut live).await.1, pairs(&[(5, "k")]));
}

#[tokio::test]
async fn bad_requests_and_one_watcher_too_many_are_refused() {
    let store = Store::new(&Options {
        watchers_max: 1,
        ..Options::default()
    });
    let watch = |range, start_revision| {
        let request = Request {
            start_revision,
            ..Request::new(range)
        };
        store.hub.watch(request).map(|watcher| watcher.created_at())
    };
    assert_eq!(
        watch(KeyRange::half_open("b", "a"), 0),
        Err(Reason::WatchRangeEmpty)
    );
    assert_eq!(watch(KeyRange::all(), -1), Err(Reason::Compacted));
    let only = store.watch(|_| ());
    assert_eq!(watch(KeyRange::all(), 0), Err(Reason::TooManyWatchers));
    drop(only);
    assert_eq!(watch(KeyRange::all(), 0), Ok(1));
    assert_eq!(store.hub.watchers(), 0);
}

#[tokio::test]
async fn a_watcher_that_is_not_read_costs_a_bounded_buffer_and_loses_nothing() {
    let store = Store::new(&Options {
        watcher_bytes_max: 2_000,
        recent_bytes_max: 5_000,
        ..Options::default()
    });
    let mut slow: Vec<Watcher> = (0..10).map(|_| store.watch(|_| ())).collect();
    for _ in 0..500 {
        store.put("key", "value");
    }
    let waiting = store.hub.waiting_bytes();
    assert!((1..=20_000).contains(&waiting), "{waiting}");
    for watcher in &mut slow {
        let mut expected = 2;
        while expected <= 501 {
            for (revision, _) in next_events(watcher).await.1 {
                assert_eq!(revision, expected);
                expected += 1;
            }
        }
        // Read to the end, and live again at the next look.
        assert!(
            tokio::time::timeout(Duration::from_millis(1), watcher.next())
                .await
                .is_err()
        );
        assert_eq!(watcher.progress(), Some(501));
    }
    store.put("key", "value");
    assert_eq!(
        next_events(&mut slow[3]).await,
        (502, pairs(&[(502, "key")]))
    );
    drop(slow);
    assert_eq!(store.hub.waiting_bytes(), 0);
}

#[tokio::test]
async fn all_watchers_together_stay_within_the_common_bound() {
    let store = Store::new(&Options {
        waiting_bytes_max: 3_000,
        ..Options::default()
    });
    let mut watchers: Vec<Watcher> = (0..100).map(|_| store.watch(|_| ())).collect();
    for _ in 0..10 {
        store.put("key", "value");
    }
    assert!(store.hub.waiting_bytes() <= 3_000);
    for watcher in &mut watchers {
        let mut revisions = Vec::new();
        while revisions.len() < 10 {
            revisions.extend(next_events(watcher).await.1.into_iter().map(|(r, _)| r));
        }
        assert_eq!(revisions, (2..=11).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_rare_key_is_found_in_a_long_history_page_by_page() {
    let store = Store::new(&Options {
        recent_bytes_max: 0,
        ..Options::default()
    });
    let mut revisions = Vec::new();
    for number in 0..25_000 {
        let key = if number % 12_000 == 11_999 {
            "rare"
        } else {
            "key"
        };
        revisions.push(store.write_quietly(&[(key, Some("v"))]));
    }
    store.publish(revisions);
    let mut watcher = store.watch(|request| {
        request.start_revision = 1;
        request.range = KeyRange::single("rare");
    });
    let mut found = Vec::new();
    while found.len() < 2 {
        found.extend(next_events(&mut watcher).await.1);
    }
    assert_eq!(found, pairs(&[(12_001, "rare"), (24_001, "rare")]));
}

#[tokio::test]
async fn a_reset_and_a_missed_publication_send_watchers_to_the_store() {
    let store = Store::new(&Options::default());
    let mut watcher = store.watch(|request| request.prev_kv = true);
    store.put("a", "1");
    store.write_quietly(&[("b", Some("1"))]);
    let (revision, compact_revision) = store.revisions();
    store.hub.reset(revision, compact_revision);
    assert_eq!(watcher.progress(), None);
    assert_eq!(next_events(&mut watcher).await.1, pairs(&[(2, "a")]));
    assert_eq!(next_events(&mut watcher).await.1, pairs(&[(3, "b")]));
    // A publication that does not follow the last one.
    store.write_quietly(&[("c", Some("1"))]);
    store.put("a", "2");
    assert_eq!(
        next_events(&mut watcher).await.1,
        pairs(&[(4, "c"), (5, "a")])
    );
    // Compacted beyond the watcher in the installed store.
    let nothing = tokio::time::timeout(Duration::from_millis(1), watcher.next()).await;
    assert!(nothing.is_err(), "live again");
    store.put("a", "3");
    for _ in 0..3 {
        store.write_quietly(&[("a", Some("4"))]);
    }
    store.compact(8);
    store.hub.reset(9, 8);
    assert_eq!(next_events(&mut watcher).await.1, pairs(&[(6, "a")]));
    assert_eq!(
        next(&mut watcher).await,
        Item::Compacted {
            compact_revision: 8
        }
    );
}

#[tokio::test]
async fn silence_is_broken_by_progress_only_when_nothing_is_owed() {
    let store = Store::new(&Options::default());
    let every = |request: &mut Request| request.progress_every = Some(Duration::from_millis(10));
    let mut watcher = store.watch(|request| {
        every(request);
        request.range = KeyRange::single("other");
    });
    store.put("a", "1");
    assert_eq!(next(&mut watcher).await, Item::Progress { revision: 2 });
    store.put("other", "1");
    assert_eq!(next_events(&mut watcher).await.1, pairs(&[(3, "other")]));
    assert_eq!(next(&mut watcher).await, Item::Progress { revision: 3 });
    let mut future = store.watch(|request| {
        every(request);
        request.start_revision = 9;
    });
    let silent = tokio::time::timeout(Duration::from_millis(60), future.next()).await;
    assert!(silent.is_err());
}
