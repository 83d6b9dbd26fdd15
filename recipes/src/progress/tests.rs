//! What reporting costs, whose clock it goes by, and how it ends when the store is out of reach.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::*;
use crate::clock::{Clock, LateClock};
use crate::store::faulty::{Fault, Outage};
use crate::store::{Counting, Counts, Faulty, MemStore};
use crate::{Client, Error, LostReason, Session};

const SECOND: Duration = Duration::from_secs(1);

async fn long_session(client: &Client) -> Session {
    client.session().ttl(600 * SECOND).await.unwrap()
}

/// What it costs to do this a hundred times a second.
async fn spent(store: &Counting<MemStore>, seconds: u32, mut each: impl FnMut(u32)) -> Counts {
    let before = store.counts();
    for n in 0..100 * seconds {
        each(n);
        tokio::time::sleep(SECOND / 100).await;
    }
    store.counts() - before
}

#[tokio::test(start_paused = true)]
async fn what_reporting_costs() {
    let store = Counting::new(MemStore::new());
    let client = Client::new(store.clone());
    let session = long_session(&client).await;
    let before = store.counts();
    let reporter = session.reporter("cost/a").start().await.unwrap();
    let calls = store.counts() - before;
    assert_eq!((calls.calls(), calls.txn), (3, 3), "a start");
    let calls = spent(&store, 10, |_| reporter.inc(1)).await;
    assert_eq!(calls.calls(), calls.txn);
    assert!((18..=21).contains(&calls.txn), "two a second: {calls:?}");
    tokio::time::sleep(SECOND).await;
    let calls = spent(&store, 10, |_| {}).await;
    assert_eq!(calls.calls(), 0, "nothing while nothing changes");
    let calls = spent(&store, 10, |n| reporter.stage(n.to_string())).await;
    assert_eq!(calls.calls(), calls.txn);
    assert!((90..=101).contains(&calls.txn), "ten a second: {calls:?}");
    tokio::time::sleep(SECOND).await;
    let before = store.counts();
    reporter.inc(1);
    reporter.flush().await.unwrap();
    let calls = store.counts() - before;
    assert_eq!((calls.calls(), calls.txn), (1, 1), "what is flushed");
    let before = store.counts();
    assert!(!reporter.is_cancelled());
    let hears = reporter.cancelled();
    tokio::time::sleep(SECOND).await;
    let calls = store.counts() - before;
    let listening = (calls.calls(), calls.range, calls.watch);
    assert_eq!(listening, (2, 1, 1), "listening for a request to end");
    let before = store.counts();
    assert!(client.cancel_task("cost/a").await.unwrap());
    hears.await;
    let calls = store.counts() - before;
    let heard = (calls.calls(), calls.txn, calls.range);
    assert_eq!(heard, (3, 2, 1), "a request, and a look once it is told");
    let before = store.counts();
    reporter.finish(Outcome::Cancelled).await.unwrap();
    tokio::time::sleep(SECOND).await;
    let calls = store.counts() - before;
    assert_eq!((calls.calls(), calls.txn), (1, 1), "an end");
}

#[tokio::test(start_paused = true)]
async fn what_managing_costs() {
    let store = Counting::new(MemStore::new());
    let client = Client::new(store.clone());
    let session = long_session(&client).await;
    let mut working = Vec::new();
    for n in 0..50 {
        let name = format!("cost/{}/{n}", n % 2);
        working.push(session.reporter(name).start().await.unwrap());
    }
    let before = store.counts();
    let mut monitor = client.monitor("cost").await.unwrap();
    tokio::time::sleep(SECOND).await;
    let calls = store.counts() - before;
    let following = (calls.calls(), calls.range, calls.watch);
    assert_eq!(following, (2, 1, 1), "a job, with all of its tasks");
    let before = store.counts();
    assert_eq!(client.cancel_tasks("cost/1").await.unwrap(), 25);
    let calls = store.counts() - before;
    assert_eq!((calls.calls(), calls.txn), (26, 25), "a part of a job");
    let asked = |job: &JobView| job.tasks.iter().filter(|task| task.cancelling).count();
    let view = monitor.wait_for(|job| asked(job) == 25).await.unwrap();
    assert_eq!(asked(&view.below("1")), 25);
}

/// By a clock that stands, nothing is due and nothing stands still.
#[tokio::test(start_paused = true)]
async fn time_is_that_of_the_clients_clock() {
    let clock = Arc::new(LateClock::default());
    let client = Client::builder(MemStore::new());
    let client = client.clock(Arc::clone(&clock) as Arc<dyn Clock>).build();
    let session = long_session(&client).await;
    let monitor = client.monitor("late").stall_after(10 * SECOND);
    let mut monitor = monitor.await.unwrap();
    let reporter = session.reporter("late/a").total(9).start().await.unwrap();
    let began = clock.wall_millis();
    monitor.wait_for(|job| !job.tasks.is_empty()).await.unwrap();
    clock.stop();
    reporter.inc(1);
    tokio::time::sleep(60 * SECOND).await;
    let task = monitor.snapshot().task("a").unwrap().clone();
    assert_eq!((task.done, task.state), (0, TaskState::Running));
    assert!(task.started_ms.abs_diff(began) < 1_000, "{task:?}");
    clock.go_on();
    tokio::time::sleep(SECOND).await;
    let task = monitor.snapshot().task("a").unwrap().clone();
    assert_eq!((task.done, task.state), (1, TaskState::Running));
    tokio::time::sleep(10 * SECOND).await;
    assert_eq!(monitor.overall().stalled, 1);
}

/// Closing does not wait for ever for a last report, and then nobody waits for that either.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_cannot_be_ended_is_told_so() {
    let faulty = Faulty::new(MemStore::new());
    let client = Client::new(faulty.clone());
    let session = client.session().await.unwrap();
    let reporter = session.reporter("x/a").start().await.unwrap();
    let flushed = session.reporter("x/b").start().await.unwrap();
    faulty.disconnect(Outage::Refused);
    reporter.inc(1);
    let closing = session.close();
    let (_, ended, flushed) = tokio::join!(
        closing,
        tokio::time::timeout(60 * SECOND, reporter.finish(Outcome::Done)),
        tokio::time::timeout(60 * SECOND, flushed.flush()),
    );
    let unknown = matches!(ended, Ok(Err(Error::OutcomeUnknown(_))));
    assert!(unknown, "{ended:?}");
    let closed = matches!(flushed, Ok(Err(Error::SessionLost(LostReason::Closed))));
    assert!(closed, "{flushed:?}");
}

/// The answer to the end is lost, and another attempt has begun when it is asked for again.
#[tokio::test(start_paused = true)]
async fn an_end_that_was_overtaken_is_not_told_as_none() {
    let store = MemStore::new();
    let faulty = Faulty::new(store.clone());
    let client = Client::new(faulty.clone());
    let other = Client::new(store);
    let session = long_session(&client).await;
    let others = long_session(&other).await;
    let reporter = session.reporter("x/a").start().await.unwrap();
    let gate = Arc::new(Notify::new());
    let faults = [Fault::Unanswered, Fault::HeldBefore(Arc::clone(&gate))];
    faulty.plan("quorate/progress/x/record", faults);
    let next = async {
        let next = others.reporter("x/a").wait().start().await.unwrap();
        assert_eq!(next.previous().unwrap().state, TaskState::Done);
        gate.notify_one();
        next
    };
    let (ended, _next) = tokio::join!(reporter.finish(Outcome::Done), next);
    assert!(matches!(ended, Err(Error::OutcomeUnknown(_))), "{ended:?}");
}

/// Whoever has lost the guard that it reports under has not got the task any more.
#[tokio::test(start_paused = true)]
async fn an_attempt_without_its_guard_gives_the_task_up() {
    let client = Client::new(MemStore::new());
    let session = long_session(&client).await;
    let lock = client.mutex("m").lock(&session).await.unwrap();
    let reporter = session.reporter("x/a").under(&lock).start().await.unwrap();
    lock.release().await.unwrap();
    reporter.inc(1);
    assert!(matches!(reporter.ended().await, Error::Fenced { .. }));
    let next = session.reporter("x/a").wait().start();
    let next = tokio::time::timeout(SECOND, next).await.unwrap().unwrap();
    assert_eq!(next.previous().unwrap().state, TaskState::Lost);
}

/// A request that comes late asks nothing of a task that has ended since.
#[tokio::test(start_paused = true)]
async fn a_late_copy_of_a_request_is_refused() {
    for works in [true, false] {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::new(faulty.clone());
        let session = long_session(&client).await;
        let reporter = session.reporter("x/a").start().await.unwrap();
        let reporter = works.then_some(reporter);
        tokio::time::sleep(SECOND).await;
        // The first one is the guess that nobody has begun.
        let open = Arc::new(Notify::new());
        open.notify_one();
        let faults = [Fault::HeldBefore(open), Fault::Late];
        faulty.plan("quorate/progress/x/cancel", faults);
        assert!(client.cancel_task("x/a").await.unwrap());
        let reporter = match reporter {
            Some(reporter) => reporter,
            None => session.reporter("x/a").start().await.unwrap(),
        };
        reporter.finish(Outcome::Done).await.unwrap();
        assert_eq!(faulty.deliver().await, (1, 0), "worked on: {works}");
        assert_eq!(store.keys("quorate/progress/x/cancel"), [""; 0]);
    }
}
