//! That faults are what they are called.

use super::*;
use crate::Client;
use crate::keys::KeyRange;
use crate::store::{MemStore, ops};

const SECOND: Duration = Duration::from_secs(1);

fn put(key: &str) -> TxnRequest {
    TxnRequest {
        success: vec![ops::put(key, "v".into(), None)],
        ..Default::default()
    }
}

fn only(name: &str) -> Rates {
    let mut rates = Rates {
        delay_max: SECOND,
        late_max: 10 * SECOND,
        ..Rates::NONE
    };
    match name {
        "not_sent" => rates.not_sent = 1.0,
        "unanswered" => rates.unanswered = 1.0,
        "late" => rates.late = 1.0,
        "repeated" => rates.repeated = 1.0,
        "duplicate" => rates.duplicate = 1.0,
        _ => rates.watch_cut = 1.0,
    }
    rates
}

/// How a call ends under one kind of fault, and how often it has been applied then and later.
#[tokio::test(start_paused = true)]
async fn each_kind_is_what_it_is_called() {
    for (name, error, at_once, in_the_end) in [
        ("not_sent", Some(true), 0, 0),
        ("unanswered", Some(false), 1, 1),
        ("late", Some(false), 0, 1),
        ("repeated", Some(false), 1, 2),
        ("duplicate", None, 1, 2),
    ] {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        faulty.fail_at_random(1, only(name));
        let answer = faulty.txn(put("k")).await;
        let retryable = answer.err().map(|error| error.is_retryable());
        assert_eq!(retryable, error, "{name}");
        assert_eq!(store.revision().0 - 1, at_once, "{name}");
        tokio::time::sleep(11 * SECOND).await;
        assert_eq!(store.revision().0 - 1, in_the_end, "{name}");
        let counted = |of_writes: bool| -> u64 {
            let counts = faulty.counts().by_kind().into_iter();
            let counts = counts.filter(|(kind, _)| kind.starts_with("writes") == of_writes);
            counts.map(|(_, n)| n).sum()
        };
        assert_eq!(counted(false), 1, "{name}");
        assert_eq!(counted(true), u64::from(name != "duplicate"), "{name}");
    }
}

/// A transaction that only reads is no write, whatever befalls it.
#[tokio::test(start_paused = true)]
async fn faults_of_reads_are_counted_apart_from_those_of_writes() {
    for name in ["not_sent", "unanswered", "late", "repeated"] {
        let faulty = Faulty::new(MemStore::new());
        faulty.fail_at_random(1, only(name));
        let read = TxnRequest {
            success: vec![ops::read(ops::get("k"))],
            ..Default::default()
        };
        faulty.txn(read.clone()).await.unwrap_err();
        let both = TxnRequest {
            failure: put("k").success,
            ..read
        };
        faulty.txn(both).await.unwrap_err();
        let counts = faulty.counts().by_kind();
        let hit: Vec<_> = counts.iter().filter(|(_, n)| *n > 0).collect();
        let kind = name.replace('_', " ");
        let writes = format!("writes {kind}");
        assert_eq!(hit, [&(kind.as_str(), 2), &(writes.as_str(), 1)], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn watches_are_cut_and_outages_end_them() {
    let faulty = Faulty::new(MemStore::new());
    let range = KeyRange::prefix("");
    let watch = || {
        let request = WatchCreateRequest {
            key: range.start.clone(),
            range_end: range.end.clone(),
            ..Default::default()
        };
        faulty.watch(vec![request])
    };
    faulty.fail_at_random(1, only("watch_cut"));
    let cut = watch().await.unwrap();
    assert_eq!(cut.count().await, 1, "the answer that it was created");
    faulty.fail_at_random(1, Rates::NONE);
    let ended = watch().await.unwrap();
    faulty.disconnect(Outage::Refused);
    assert!(ended.count().await <= 1);
    let error = watch().await.err().unwrap();
    assert!(error.is_retryable());
    faulty.disconnect(Outage::Silent);
    let start = clock::now();
    assert!(faulty.txn(put("k")).await.unwrap_err().is_ambiguous());
    assert_eq!(clock::now(), start + SILENCE);
    assert_eq!(faulty.inner().revision().0, 1);
    faulty.reconnect();
    faulty.txn(put("k")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_are_held_where_they_were_asked_to() {
    for (stage, applied) in [
        (Stage::NotSent, 0),
        (Stage::AppliedUnanswered, 1),
        (Stage::Answered, 1),
    ] {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let held = faulty.hold(2, Calls::Txn, stage);
        faulty.txn(put("other")).await.unwrap();
        faulty.range(ops::get("other")).await.unwrap();
        let call = faulty.txn(put("k"));
        tokio::pin!(call);
        tokio::select! {
            biased;
            answer = &mut call => panic!("{answer:?}"),
            () = held.reached() => {}
        }
        assert_eq!(store.revision().0 - 2, applied, "{stage:?}");
        held.release();
        let answer = call.await;
        assert_eq!(answer.is_err(), stage == Stage::AppliedUnanswered);
        assert_eq!(store.revision().0 - 2, 1);
        // A handle that is gone holds nothing.
        drop(faulty.hold(1, Calls::Any, stage));
        faulty.txn(put("k")).await.unwrap();
    }
}

/// A lock future dropped at each call it makes, at each stage, leaves nothing behind.
#[tokio::test(start_paused = true)]
async fn a_future_can_be_dropped_at_every_call() {
    for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
        for nth in 1.. {
            let store = MemStore::new();
            let faulty = Faulty::new(store.clone());
            let client = Client::builder(faulty.clone()).seed(nth as u64).build();
            let session = client.session().await.unwrap();
            let held = faulty.hold(nth, Calls::Any, stage);
            let lock = client.mutex("m");
            let work = async { lock.lock(&session).await?.release().await };
            let reached = tokio::select! {
                biased;
                () = held.reached() => true,
                done = work => done.is_err(),
            };
            held.release();
            tokio::time::sleep(5 * SECOND).await;
            assert_eq!(
                store.keys("quorate/lock/"),
                [""; 0],
                "{stage:?} at call {nth}"
            );
            session.close().await.unwrap();
            if !reached {
                assert!(nth > 1, "no call was held");
                break;
            }
        }
    }
}
