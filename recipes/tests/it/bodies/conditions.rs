//! Condition queues: exact batches, whoever opens the gate and whoever takes them.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate_recipes::condition::{Condition, Gate, Joined, Release, Task};
use quorate_recipes::{Client, Error, KeyRange, TxnError};

use super::{keys_below, session, short_session};
use crate::support::{soon, until};

fn ids(tasks: &[Task<u32>]) -> Vec<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}

/// Many join at a time while others take: every task is in exactly one batch, and no batch is too small.
pub async fn batches_are_exact(client: &Client) {
    const TASKS: u32 = 60;
    let queue = client.condition_queue::<u32>("work", Condition::len(5));
    let mut taking = Vec::new();
    for _ in 0..3 {
        let session = session(client).await;
        let (client, queue) = (client.clone(), queue.clone());
        taking.push(tokio::spawn(async move {
            loop {
                let mut batch = queue.take(&session).await.unwrap();
                assert!(batch.tasks().len() >= 5, "{batch:?}");
                let txn = batch.tasks().iter().fold(client.txn(), |txn, task| {
                    txn.put(format!("done/{}", task.id), batch.gate().epoch.to_string())
                });
                batch.ack_with(txn).await.unwrap();
            }
        }));
    }
    let mut joining = Vec::new();
    for half in 0..2 {
        let session = session(client).await;
        let queue = queue.clone();
        joining.push(tokio::spawn(async move {
            for n in (half..TASKS).step_by(2) {
                let joined = queue.join(&session, &n.to_string(), &n).await.unwrap();
                assert!(matches!(joined, Joined::In { .. }), "{joined:?}");
            }
        }));
    }
    for joins in joining {
        joins.await.unwrap();
    }
    until("all that passed to be done", async || {
        let status = queue.status().await.unwrap();
        status.passed == 0 && status.gathering < 5
    })
    .await;
    let rest = queue.status().await.unwrap().gathering;
    let (_, done) = client.list(KeyRange::prefix("done/")).await.unwrap();
    assert_eq!(done.len() as u64, u64::from(TASKS) - rest);
    assert!(done.iter().all(|kv| kv.version == 1));
    for taker in taking {
        taker.abort();
    }
    until("no gate to be left", async || {
        let gates = keys_below(client, "quorate/condition/work/gate").await;
        let claims = keys_below(client, "quorate/condition/work/claim").await;
        (gates, claims) == (0, 0)
    })
    .await;
}

/// One whose lease has gone ends no batch; the next taker has it.
pub async fn a_batch_goes_to_the_next_taker(client: &Client) {
    let queue = client.condition_queue::<u32>("jobs", Condition::present("last"));
    let (dying, living) = (short_session(client).await, session(client).await);
    for id in ["a", "b", "last"] {
        queue.join(&living, id, &1).await.unwrap();
    }
    let mut first = soon("a batch", queue.take(&dying)).await.unwrap();
    client.store().lease_revoke(dying.lease()).await.unwrap();
    let mut second = soon("it again", queue.take(&living)).await.unwrap();
    assert_eq!(ids(second.tasks()), ["a", "b", "last"]);
    assert_eq!(first.gate(), second.gate());
    let zombie = first.ack_with(client.txn().put("by", "the first")).await;
    assert!(
        matches!(
            zombie,
            Err(TxnError::Fenced { .. } | TxnError::Failed(Error::SessionLost(_)))
        ),
        "{zombie:?}"
    );
    second
        .ack_with(client.txn().put("by", "the next"))
        .await
        .unwrap();
    assert_eq!(client.get("by").await.unwrap().unwrap().value, "the next");
    assert_eq!(queue.status().await.unwrap().passed, 0);
}

/// All three conditions a task may wait for, opened by those who wait and not by who joins.
pub async fn gates_open_for_those_who_wait(client: &Client) {
    let session = session(client).await;
    let when = Condition::done("first").and(Condition::left("stop"));
    let queue = client.condition_queue::<u32>("when", when.or(Condition::started()));
    queue.join(&session, "first", &1).await.unwrap();
    queue.join(&session, "stop", &2).await.unwrap();
    let waiting = {
        let queue = queue.clone();
        tokio::spawn(async move { queue.opened(0).await })
    };
    queue.mark_done(&session, "first").await.unwrap();
    assert!(!waiting.is_finished());
    assert!(queue.withdraw(&session, "stop").await.unwrap());
    let gate = soon("the gate", waiting).await.unwrap().unwrap();
    assert_eq!(gate.reason, r#"done("first") and left("stop")"#);
    let batch = soon("the batch", queue.take(&session)).await.unwrap();
    assert_eq!(ids(batch.tasks()), ["first"]);
    batch.ack().await.unwrap();
    queue.start(&session).await.unwrap();
    queue.join(&session, "second", &1).await.unwrap();
    let batch = soon("the batch", queue.take(&session)).await.unwrap();
    assert_eq!((batch.gate().epoch, &*batch.gate().reason), (1, "started"));

    let delay = Duration::from_millis(300);
    let queue = client.condition_queue::<u32>("later", Condition::len(99).or_after(delay));
    queue.join(&session, "a", &1).await.unwrap();
    let batch = soon("the batch", queue.take(&session)).await.unwrap();
    assert_eq!(ids(batch.tasks()), ["a"]);
}

/// One by one, by several takers; and all who wait at once.
pub async fn fans_and_broadcasts(client: &Client) {
    let queue = client.condition_queue::<u32>("fan", Condition::len(20));
    let queue = queue.release(Release::Fan);
    let pusher = session(client).await;
    let mut taking = Vec::new();
    for _ in 0..2 {
        let session = session(client).await;
        let consumer = queue.consumer(&session).await.unwrap();
        let client = client.clone();
        taking.push(tokio::spawn(async move {
            loop {
                let delivery = consumer.pop().await.unwrap();
                let key = format!("fanned/{}", delivery.value());
                delivery.ack_with(client.txn().put(key, "")).await.unwrap();
            }
        }));
    }
    for n in 0..20_u32 {
        assert_eq!(keys_below(client, "fanned").await, 0);
        queue.join(&pusher, &n.to_string(), &n).await.unwrap();
    }
    until("all to be done", async || {
        keys_below(client, "fanned").await == 20
    })
    .await;
    for taker in taking {
        taker.abort();
    }

    let queue = client.condition_queue::<u32>("all", Condition::len(3));
    let queue = queue.release(Release::Broadcast).once();
    let mut waiting = Vec::new();
    for n in 0..3_u32 {
        let session = session(client).await;
        let queue = queue.clone();
        waiting.push(tokio::spawn(async move {
            let joined = queue.join(&session, &n.to_string(), &n).await.unwrap();
            let gate = queue.opened(joined.epoch().unwrap()).await.unwrap();
            let passed = queue.passed(&gate).await.unwrap();
            (gate, ids(&passed).into_iter().map(str::to_owned).collect())
        }));
    }
    let mut told: Vec<(Gate, BTreeSet<String>)> = Vec::new();
    for member in waiting {
        told.push(soon("the gate", member).await.unwrap());
    }
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    assert_eq!(told[0].1.len(), 3);
    let late = queue.join(&pusher, "late", &9).await.unwrap();
    assert_eq!(late, Joined::Late);
}
