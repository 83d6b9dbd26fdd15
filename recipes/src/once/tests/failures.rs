//! Cached failures and counted attempts, step by step.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use super::super::{OnceCell, OnceError};
use crate::client::Client;
use crate::error::Error;
use crate::keys::Revision;
use crate::session::Session;
use crate::store::faulty::{Calls, Fault, Stage};
use crate::store::{Faulty, MemStore};

type Got = Result<Arc<u32>, OnceError<&'static str>>;

const TTL: Duration = Duration::from_secs(5);

async fn fail(cell: &OnceCell<u32>, session: &Session) -> Got {
    cell.get_or_try_init(session, || async { Err("no") }).await
}

async fn compute(cell: &OnceCell<u32>, session: &Session) -> Got {
    cell.get_or_try_init(session, || async { Ok(7) }).await
}

#[tokio::test(start_paused = true)]
async fn a_failure_counts_for_its_time() {
    let store = MemStore::new();
    let client = Client::builder(store.clone()).label("anna").build();
    let session = client.session().await.unwrap();
    let cell = client
        .once::<u32>("r")
        .with_info("sums")
        .cache_failures(TTL);
    let failed = fail(&cell, &session).await;
    assert!(matches!(failed, Err(OnceError::Init("no"))), "{failed:?}");
    let Err(OnceError::Cached(failure)) = compute(&cell, &session).await else {
        panic!("it computes");
    };
    assert_eq!(
        (failure.text.as_str(), failure.info.as_str()),
        ("no", "sums")
    );
    assert_eq!(
        (failure.who.label.as_str(), failure.attempt),
        ("anna", None)
    );
    // Not for a handle that does not ask for it; and its result is the end of the failure.
    let plain = client.once::<u32>("r");
    assert_eq!(*compute(&plain, &session).await.unwrap(), 7);
    assert_eq!(store.keys("quorate/once/r/failure"), [""; 0]);
    assert_eq!(*compute(&cell, &session).await.unwrap(), 7);
    let published = cell.published().await.unwrap().unwrap();
    cell.invalidate(published.revision).await.unwrap();
    assert!(fail(&cell, &session).await.is_err());
    tokio::time::sleep(TTL - Duration::from_millis(100)).await;
    let early = compute(&cell, &session).await;
    assert!(matches!(early, Err(OnceError::Cached(_))), "{early:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(*compute(&cell, &session).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn those_in_line_hear_of_it_and_those_who_wait_go_on() {
    let client = Client::new(MemStore::new());
    let sessions = [(); 3].map(|()| client.session().into_future());
    let sessions = futures::future::try_join_all(sessions).await.unwrap();
    let cell = client.once::<u32>("r").cache_failures(TTL);
    let first = cell.get_or_try_init(&sessions[0], || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Err("no")
    });
    let later = async |index: usize| {
        tokio::time::sleep(Duration::from_millis(500)).await;
        compute(&cell, &sessions[index]).await
    };
    let mut waiting = Box::pin(cell.wait());
    let all = async { tokio::join!(first, later(1), later(2)) };
    let (first, second, third) = tokio::select! {
        biased;
        got = &mut waiting => panic!("{got:?}"),
        all = all => all,
    };
    assert!(matches!(first, Err(OnceError::Init("no"))), "{first:?}");
    for got in [second, third] {
        assert!(matches!(&got, Err(OnceError::Cached(failure)) if failure.text == "no"));
    }
    cell.forget_failures().await.unwrap();
    assert_eq!(*compute(&cell, &sessions[1]).await.unwrap(), 7);
    assert_eq!(*waiting.await.unwrap(), 7);
}

/// Whatever happens on the way, the caller hears of its own error.
#[tokio::test(start_paused = true)]
async fn a_failure_is_told_once_or_not_at_all() {
    for (fault, told) in [
        (Fault::NotSent, true),
        (Fault::Unanswered, true),
        (Fault::Late, true),
    ] {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let cell = client.once::<u32>("r").cache_failures(TTL);
        let init = || async {
            faulty.plan("quorate/once/r/", [fault.clone()]);
            Err::<u32, _>("no")
        };
        let failed = cell.get_or_try_init(&session, init).await;
        assert!(matches!(failed, Err(OnceError::Init("no"))), "{failed:?}");
        let there = store.keys("quorate/once/r/failure").len() == 1;
        assert_eq!(there, told, "{fault:?}");
        cell.forget_failures().await.unwrap();
        assert_eq!(faulty.deliver().await.1, 0, "{fault:?}");
        assert_eq!(store.keys("quorate/once/r/"), [""; 0], "{fault:?}");
    }
    // The session goes, or the failure's lease, before it is told.
    for of_session in [true, false] {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let cell = client.once::<u32>("r").cache_failures(TTL);
        let granted = faulty.hold(1, Calls::Lease, Stage::Answered);
        let meanwhile = async {
            granted.reached().await;
            let mut leases = store.leases();
            leases.retain(|lease| (*lease == session.lease()) == of_session);
            assert!(store.expire(leases[0]));
            granted.release();
        };
        let (failed, ()) = tokio::join!(fail(&cell, &session), meanwhile);
        assert!(matches!(failed, Err(OnceError::Init("no"))), "{failed:?}");
        assert_eq!(session.check().is_ok(), !of_session);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.keys("quorate/once/r/"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_begin_and_no_more() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    let session = client.session().await.unwrap();
    let cell = client.once::<u32>("r").max_attempts(3);
    assert!(matches!(
        fail(&cell, &session).await,
        Err(OnceError::Init(_))
    ));
    // One that comes to no end counts, and what the one before said is kept.
    let never = std::future::pending::<Result<u32, &str>>;
    let dropped = cell.get_or_try_init(&session, never);
    let dropped = tokio::time::timeout(Duration::from_secs(1), dropped).await;
    assert!(dropped.is_err());
    let dying = client.session().await.unwrap();
    let expire = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(store.expire(dying.lease()));
    };
    let (died, ()) = tokio::join!(cell.get_or_try_init(&dying, never), expire);
    let lost = matches!(died, Err(OnceError::Failed(Error::SessionLost(_))));
    assert!(lost, "{died:?}");
    for _ in 0..2 {
        let Err(OnceError::Exhausted { attempts: 3, last }) = compute(&cell, &session).await else {
            panic!("it computes");
        };
        let last = last.unwrap();
        assert_eq!((last.text.as_str(), last.attempt), ("no", Some(1)));
    }
    // Their places in the line are given back in the background.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(store.keys("quorate/once/r/"), ["quorate/once/r/attempts"]);
    cell.forget_failures().await.unwrap();
    assert!(fail(&cell, &session).await.is_err());
    assert_eq!(*compute(&cell, &session).await.unwrap(), 7);
    let counted = store.keys("quorate/once/r/attempts");
    assert_eq!(counted, [""; 0], "a result is the end of the count");
    let nobody = client.once::<u32>("s").max_attempts(0);
    let refused = compute(&nobody, &session).await;
    let none = matches!(
        refused,
        Err(OnceError::Exhausted {
            attempts: 0,
            last: None
        })
    );
    assert!(none, "{refused:?}");
}

/// Neither lost answers nor late copies count one twice, and what is forgotten does not come back.
#[tokio::test(start_paused = true)]
async fn each_attempt_counts_once() {
    for plan in [
        vec![Fault::Unanswered; 3],
        vec![Fault::Late; 3],
        vec![Fault::Late, Fault::Unanswered, Fault::Late],
        vec![Fault::Unanswered, Fault::NotSent, Fault::Late],
    ] {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::new(faulty.clone());
        let session = client.session().await.unwrap();
        let cell = client.once::<u32>("r").max_attempts(2);
        let tally = || {
            let kvs = store.dump(&crate::keys::KeyRange::one("quorate/once/r/attempts"));
            let read =
                |kv| super::super::failure::read::<super::super::failure::Tally>(kv).unwrap();
            kvs.first().map_or(0, |kv| read(kv).begun)
        };
        // What is forgotten while it runs comes back neither with a late copy nor with its failure.
        let forgotten = || async {
            assert_eq!(tally(), 1, "{plan:?}");
            cell.forget_failures().await.unwrap();
            faulty.deliver().await;
            assert_eq!(tally(), 0, "{plan:?}");
            Err::<u32, _>("no")
        };
        faulty.plan("quorate/once/r/attempts", plan.clone());
        let failed = cell.get_or_try_init(&session, forgotten).await;
        assert!(matches!(failed, Err(OnceError::Init("no"))), "{failed:?}");
        assert_eq!(tally(), 0, "{plan:?}");
        for begun in 1..=2 {
            faulty.plan("quorate/once/r/attempts", plan.clone());
            let init = || async {
                faulty.deliver().await;
                assert_eq!(tally(), begun, "{plan:?}");
                Err::<u32, _>("no")
            };
            assert!(cell.get_or_try_init(&session, init).await.is_err());
            faulty.deliver().await;
            assert_eq!(tally(), begun, "{plan:?}");
        }
        let exhausted = compute(&cell, &session).await;
        assert!(matches!(
            exhausted,
            Err(OnceError::Exhausted { attempts: 2, .. })
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_can_be_forgotten() {
    let client = Client::new(MemStore::new());
    let session = client.session().await.unwrap();
    let cell = client.once::<u32>("r").cache_failures(TTL).max_attempts(1);
    for name in ["failure", "attempts"] {
        for damage in ["", "{", r#"{"v":2,"cells":[]}"#] {
            let key = format!("quorate/once/r/{name}");
            client.put(&key, damage).await.unwrap();
            let refused = compute(&cell, &session).await;
            let codec = matches!(&refused, Err(OnceError::Failed(Error::Codec { key: at, .. })) if at.to_string() == key);
            assert!(codec, "{damage}: {refused:?}");
            cell.forget_failures().await.unwrap();
        }
    }
    assert_eq!(*compute(&cell, &session).await.unwrap(), 7);
    assert!(cell.published().await.unwrap().unwrap().revision > Revision(0));
}

/// What could not be read back, or is too large, is no result: it fails, for all if failures count for all,
/// and nothing of it is written.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_published_is_a_failure() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    let session = client.session().await.unwrap();
    let minute = Duration::from_secs(60);
    let cell = client.once::<f64>("r").cache_failures(minute);
    let unreadable = async || Ok::<_, &str>(f64::NAN);
    let refused = cell.get_or_try_init(&session, unreadable).await;
    assert!(
        matches!(refused, Err(OnceError::Failed(Error::Codec { .. }))),
        "{refused:?}"
    );
    let cached = cell
        .get_or_try_init(&session, async || Ok::<_, &str>(1.0))
        .await;
    assert!(matches!(cached, Err(OnceError::Cached(_))), "{cached:?}");
    assert_eq!(store.keys("quorate/once/r/"), ["quorate/once/r/failure"]);
    let cell = client
        .once::<String>("s")
        .bytes_max(10)
        .cache_failures(minute);
    let long = async || Ok::<_, &str>("x".repeat(20));
    let refused = cell.get_or_try_init(&session, long).await;
    assert!(
        matches!(refused, Err(OnceError::Failed(Error::Invalid(_)))),
        "{refused:?}"
    );
    let cached = cell.get_or_try_init(&session, long).await;
    assert!(matches!(cached, Err(OnceError::Cached(_))), "{cached:?}");
    assert_eq!(store.keys("quorate/once/s/"), ["quorate/once/s/failure"]);
}
