//! Results that replace others, step by step.

use std::time::Duration;

use super::super::{OnceCell, OnceError};
use crate::client::Client;
use crate::error::Error;
use crate::keys::Revision;
use crate::session::Session;
use crate::store::faulty::{Calls, Fault, Stage};
use crate::store::{Capabilities, Faulty, MemStore};

/// Of several chunks.
fn text(number: u32) -> String {
    format!("{number} ").repeat(40)
}

async fn world() -> (MemStore, Client, Session, OnceCell<String>, Revision) {
    let store = MemStore::with_capabilities(Capabilities {
        max_request_bytes: 64,
        ..Default::default()
    });
    let client = Client::new(store.clone());
    let session = client.session().await.unwrap();
    let cell = client.once::<String>("r");
    let init = || async { Ok::<_, &str>(text(0)) };
    cell.get_or_try_init(&session, init).await.unwrap();
    let (published, _) = cell.changed(Revision(0)).await.unwrap();
    (store, client, session, cell, published.revision)
}

fn attempts(store: &MemStore) -> usize {
    let keys = store.keys("quorate/once/r/chunk/");
    keys.iter().filter(|key| key.ends_with("/00000000")).count()
}

#[tokio::test(start_paused = true)]
async fn the_old_one_is_there_until_the_new_one_is() {
    let (store, client, session, cell, first) = world().await;
    let follower = client.once::<String>("r");
    let follower = follower.changed(first);
    let init = || async {
        let reader = client.once::<String>("r");
        assert_eq!(*reader.get().await.unwrap().unwrap(), text(0));
        assert_eq!(*reader.wait().await.unwrap(), text(0));
        Ok::<_, &str>(text(1))
    };
    let (refreshed, followed) = tokio::join!(cell.refresh(&session, first, init), follower);
    assert_eq!(*refreshed.unwrap(), text(1));
    let (second, seen) = followed.unwrap();
    assert_eq!(*seen, text(1));
    assert!(second.revision > first);
    assert!(second.age().unwrap() < Duration::from_secs(60));
    assert_eq!(attempts(&store), 1);
    // Made again, it is what was published since.
    let init = || async { panic!("it computes again") };
    let again = cell.refresh::<&str, _, _>(&session, first, init).await;
    assert_eq!(*again.unwrap(), text(1));
    assert_eq!(store.keys("quorate/once/r/turn/"), [""; 0]);
    let zero = cell.refresh(&session, Revision(0), || async { Ok::<_, &str>(text(9)) });
    let zero = zero.await;
    assert!(
        matches!(zero, Err(OnceError::Failed(Error::Invalid(_)))),
        "{zero:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn of_many_who_refresh_one_computes() {
    let (_, client, _, _, first) = world().await;
    let computed = std::sync::atomic::AtomicU32::new(0);
    let each = (0..5).map(|_| async {
        let session = client.session().await.unwrap();
        let cell = client.once::<String>("r");
        let init = || async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let number = computed.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Ok::<_, &str>(text(number + 1))
        };
        let got = cell.refresh(&session, first, init).await.unwrap();
        assert_eq!(*got, text(1));
        session.close().await.unwrap();
    });
    futures::future::join_all(each).await;
}

/// A reader held at each of its calls while the result is replaced, with and without what it reads being
/// compacted meanwhile, gets one or the other.
#[tokio::test(start_paused = true)]
async fn a_reader_gets_the_old_one_or_the_new_one() {
    // The manifest, and three chunks.
    const READS: usize = 4;
    for compacted in [false, true] {
        let (mut old, mut new) = (0, 0);
        for nth in 1..=READS {
            for stage in [Stage::NotSent, Stage::Answered] {
                let (store, _, session, cell, first) = world().await;
                let faulty = Faulty::new(store.clone());
                let reader = Client::new(faulty.clone()).once::<String>("r");
                let held = faulty.hold(nth, Calls::Any, stage);
                let replace = async {
                    held.reached().await;
                    let init = || async { Ok::<_, &str>(text(1)) };
                    cell.refresh(&session, first, init).await.unwrap();
                    if compacted {
                        store.compact(store.revision()).unwrap();
                    }
                    held.release();
                };
                let (read, ()) = tokio::join!(reader.get(), replace);
                match read.unwrap().unwrap() {
                    value if *value == text(0) => old += 1,
                    value if *value == text(1) => new += 1,
                    value => panic!("{value}"),
                }
            }
        }
        assert!(old > 0 && new > 0 || compacted && new > 5, "{old} {new}");
    }
}

/// What was taken back while its successor was computed: that is not published, and the next computes.
#[tokio::test(start_paused = true)]
async fn what_was_taken_back_meanwhile_has_no_successor() {
    let (store, _, session, cell, first) = world().await;
    for before_writing in [true, false] {
        let published = cell.changed(Revision(0)).await.unwrap().0.revision;
        let init = || async {
            if before_writing {
                cell.invalidate(published).await.unwrap();
            }
            Ok::<_, &str>(text(1))
        };
        let refreshed = match before_writing {
            true => cell.refresh(&session, published, init).await,
            false => {
                let writes = async {
                    for _ in 0..1_000 {
                        tokio::task::yield_now().await;
                        if attempts(&store) == 2 {
                            break;
                        }
                    }
                    assert_eq!(attempts(&store), 2, "both are there");
                    cell.invalidate(published).await.unwrap();
                };
                let (refreshed, ()) = tokio::join!(cell.refresh(&session, published, init), writes);
                refreshed
            }
        };
        let conflict = matches!(refreshed, Err(OnceError::Failed(Error::Conflict)));
        assert!(conflict, "{refreshed:?}");
        assert_eq!(cell.get().await.unwrap(), None);
        assert_eq!(attempts(&store), 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Nothing is there any more: what was to be replaced by the next is nothing.
        let init = || async { Ok::<_, &str>(text(2)) };
        let next = cell.refresh(&session, first, init).await;
        assert_eq!(*next.unwrap(), text(2));
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_can_be_replaced() {
    let (store, client, session, cell, _) = world().await;
    let damaged = client.put("quorate/once/r/manifest", "{").await.unwrap();
    assert!(matches!(cell.get().await, Err(Error::Codec { .. })));
    let init = || async { Ok::<_, &str>(text(1)) };
    let repaired = cell.refresh(&session, damaged, init).await;
    assert_eq!(*repaired.unwrap(), text(1));
    assert_eq!(
        *client.once::<String>("r").get().await.unwrap().unwrap(),
        text(1)
    );
    assert_eq!(attempts(&store), 1);
}

/// A failed refresh leaves the old result for everybody, and the failure for those who refresh.
#[tokio::test(start_paused = true)]
async fn a_failed_refresh_changes_nothing() {
    let (_, client, session, _, first) = world().await;
    let cell = client
        .once::<String>("r")
        .cache_failures(Duration::from_secs(5));
    let cell = cell.max_attempts(1);
    let fail = || async { Err("no") };
    let failed = cell.refresh(&session, first, fail).await;
    assert!(matches!(failed, Err(OnceError::Init("no"))), "{failed:?}");
    let cached = cell.refresh(&session, first, fail).await;
    assert!(matches!(cached, Err(OnceError::Cached(_))), "{cached:?}");
    assert_eq!(
        *cell.get_or_try_init(&session, fail).await.unwrap(),
        text(0)
    );
    tokio::time::sleep(Duration::from_secs(6)).await;
    let exhausted = cell.refresh(&session, first, fail).await;
    assert!(matches!(
        exhausted,
        Err(OnceError::Exhausted { attempts: 1, .. })
    ));
    // Taking the old one back is a new beginning.
    cell.invalidate(first).await.unwrap();
    let init = || async { Ok::<_, &str>(text(1)) };
    assert_eq!(
        *cell.get_or_try_init(&session, init).await.unwrap(),
        text(1)
    );
}

/// A failure that was not told, because the result to be replaced was taken back, with an answer lost: the
/// turn is given up all the same.
#[tokio::test(start_paused = true)]
async fn a_failure_that_is_not_told_ends_the_turn() {
    let (store, _, _, other, first) = world().await;
    let faulty = Faulty::new(store.clone());
    let client = Client::new(faulty.clone());
    let session = client.session().await.unwrap();
    let cell = client.once::<String>("r");
    let cell = cell.cache_failures(Duration::from_secs(5));
    let init = || async {
        other.invalidate(first).await.unwrap();
        faulty.plan("quorate/once/r/turn/", [Fault::Late]);
        Err("no")
    };
    let failed = cell.refresh(&session, first, init).await;
    assert!(matches!(failed, Err(OnceError::Init("no"))), "{failed:?}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(store.keys("quorate/once/r/"), [""; 0]);
    assert_eq!(faulty.deliver().await, (1, 0));
}
