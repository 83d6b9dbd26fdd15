//! Condition queues: joins, takes and ends of batches, dropped everywhere.

use std::time::Duration;

use quorate_recipes::condition::{Condition, ConditionQueue, Release};
use quorate_recipes::{Client, Session};

use super::{Outcome, QUIET, World, at_every_call, in_time};

const DURABLE: [&str; 3] = [
    "quorate/condition/x/head",
    "quorate/condition/x/rule",
    "quorate/condition/x/withdrawn",
];

/// How long what is there may take to be had: who had it may end it meanwhile.
const IN_TIME: Duration = Duration::from_secs(5);

fn queue(client: &Client, release: Release) -> ConditionQueue<u32> {
    let when = Condition::len(2).or(Condition::started());
    client.condition_queue("x", when).release(release)
}

/// Starts what gathers, does what has passed, and counts how often each task was done.
async fn drain(client: &Client, session: &Session, release: Release) -> Outcome {
    let queue = queue(client, release);
    let done = |task: &str| format!("done/{task}");
    loop {
        let status = queue.status().await?;
        if (status.gathering, status.passed) == (0, 0) {
            break;
        }
        if status.gathering > 0 {
            queue.start(session).await?;
        }
        match release {
            Release::Batch => {
                let taken = tokio::time::timeout(IN_TIME, queue.take(session)).await;
                if let Ok(batch) = taken {
                    let mut batch = batch?;
                    let tasks = batch.tasks().iter();
                    let txn = tasks.fold(client.txn(), |txn, task| txn.put(done(&task.id), ""));
                    batch.ack_with(txn).await?;
                }
            }
            _ => {
                let consumer = queue.consumer(session).await?;
                let popped = tokio::time::timeout(IN_TIME, consumer.pop()).await;
                if let Ok(delivery) = popped {
                    let delivery = delivery?;
                    let txn = client.txn().put(done(delivery.id().name()), "");
                    delivery.ack_with(txn).await?;
                }
            }
        }
    }
    if release == Release::Fan {
        // The last gate goes when somebody looks.
        let none = queue.consumer(session).await?.try_pop().await?;
        assert!(none.is_none());
    }
    Ok(())
}

/// Drops `work` at each of its calls, with tasks a and b in the queue, then has somebody else do what is left.
/// Each of those is done once, whoever does it; and a third at most once, for
/// certain if `work` says so.
async fn dropped_everywhere(
    release: Release,
    before: &[&str],
    joins: bool,
    work: impl AsyncFn(&Client, &Session) -> Outcome,
    least_calls: usize,
) {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        for id in before {
            queue(client, release).join(session, id, &1).await.unwrap();
        }
        let user = work(&world.user.0, &world.user.1);
        let stopped = world.stop(at, user).await;
        let (reached, finished) = (stopped.held.is_reached(), stopped.finished);
        stopped.held.release();
        in_time(at, "the other one", drain(client, session, release)).await;
        tokio::time::sleep(QUIET).await;
        in_time(at, "the other one", drain(client, session, release)).await;
        for id in ["a", "b", "c"] {
            let done = client.get(format!("done/{id}")).await.unwrap();
            let must = before.contains(&id) || finished && joins && id == "c";
            let times = done.map_or(0, |done| done.version);
            assert!(
                times == 1 || times == 0 && !must,
                "{at}: {id} {times} times"
            );
        }
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&DURABLE), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * least_calls, "{visited} calls only");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_joins() {
    for release in [Release::Batch, Release::Fan] {
        let join = async |client: &Client, session: &Session| {
            let joined = queue(client, release).join(session, "c", &1).await?;
            assert!(joined.epoch().is_some());
            Ok(())
        };
        dropped_everywhere(release, &["a", "b"], true, join, 3).await;
        // The last one that is missing.
        dropped_everywhere(release, &["a"], true, join, 5).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_taken_and_done() {
    let take = async |client: &Client, session: &Session| {
        let mut batch = queue(client, Release::Batch).take(session).await?;
        let tasks = batch.tasks().iter();
        let done = |id: &str| format!("done/{id}");
        let txn = tasks.fold(client.txn(), |txn, task| txn.put(done(&task.id), ""));
        batch.ack_with(txn).await?;
        Ok(())
    };
    dropped_everywhere(Release::Batch, &["a", "b"], false, take, 6).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_taken_and_given_back() {
    let take = async |client: &Client, session: &Session| {
        drop(queue(client, Release::Batch).take(session).await?);
        Ok(())
    };
    dropped_everywhere(Release::Batch, &["a", "b"], false, take, 5).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_of_a_fan_taken_and_done() {
    let take = async |client: &Client, session: &Session| {
        let consumer = queue(client, Release::Fan).consumer(session).await?;
        let delivery = consumer.pop().await?;
        let done = format!("done/{}", delivery.id().name());
        delivery.ack_with(client.txn().put(done, "")).await?;
        Ok(())
    };
    dropped_everywhere(Release::Fan, &["a", "b"], false, take, 6).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_withdrawn() {
    // At one place in any case: withdrawn, or done.
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        let tasks = queue(client, Release::Batch);
        tasks.join(session, "a", &1).await.unwrap();
        let user = async {
            let tasks = queue(&world.user.0, Release::Batch);
            assert!(tasks.withdraw(&world.user.1, "a").await?);
            Ok(())
        };
        let stopped = world.stop(at, user).await;
        let (reached, finished) = (stopped.held.is_reached(), stopped.finished);
        stopped.held.release();
        tokio::time::sleep(QUIET).await;
        let gathering = tasks.status().await.unwrap().gathering;
        assert!(gathering <= u64::from(!finished), "{at}");
        in_time(at, "the other one", drain(client, session, Release::Batch)).await;
        let done = client.get("done/a").await.unwrap();
        assert_eq!(u64::from(done.is_some()), gathering, "{at}");
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&DURABLE), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * 3, "{visited} calls only");
}
