//! Runners in virtual time, with clocks that are late.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::clock::LateClock;
use crate::error::Error;
use crate::session::Session;
use crate::store::MemStore;

const SECOND: Duration = Duration::from_secs(1);

/// What was started: by whom, and for when.
#[derive(Debug, Clone, Default)]
struct Started(Rc<RefCell<Vec<(usize, Slot)>>>);

impl Started {
    fn slots(&self) -> Vec<i64> {
        self.0.borrow().iter().map(|(_, slot)| slot.0).collect()
    }

    fn take(&self) -> Vec<i64> {
        let slots = self.slots();
        self.0.borrow_mut().clear();
        slots
    }
}

struct Runner {
    number: usize,
    client: Client,
    session: Session,
    clock: Arc<LateClock>,
}

impl Runner {
    async fn new(store: &MemStore, number: usize) -> Self {
        let clock = Arc::new(LateClock::default());
        let client = Client::builder(store.clone()).clock(Arc::clone(&clock) as _);
        let client = client.seed(number as u64 + 1).build();
        // What a clock that stands costs a session is not the matter here.
        let session = client.session().ttl(3_600 * SECOND).await.unwrap();
        Self {
            number,
            client,
            session,
            clock,
        }
    }

    fn job(&self, schedule: &str) -> Cron {
        self.client.cron("job", schedule.parse().unwrap())
    }

    /// Runs the job, each run taking so long.
    fn run(&self, job: Cron, started: &Started, takes: Duration) -> JoinHandle<Error> {
        let (number, started, session) = (self.number, started.clone(), self.session.clone());
        tokio::task::spawn_local(async move {
            let ended = job.run(&session, |run| {
                started.0.borrow_mut().push((number, run.slot()));
                async move {
                    tokio::time::sleep(takes).await;
                    Ok::<_, Infallible>(())
                }
            });
            match ended.await {
                Err(error) => error,
                Ok(never) => match never {},
            }
        })
    }
}

async fn locally<T>(work: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(work).await
}

/// Whole steps from the first to the last.
fn steps(slots: &[i64]) -> Vec<i64> {
    slots.windows(2).map(|two| two[1] - two[0]).collect()
}

#[tokio::test(start_paused = true)]
async fn each_time_is_started_once() {
    locally(async {
        let (store, started) = (MemStore::new(), Started::default());
        let mut runners = Vec::new();
        for number in 0..3 {
            runners.push(Runner::new(&store, number).await);
        }
        let running: Vec<_> = runners
            .iter()
            .map(|one| one.run(one.job("*/5 * * * * *"), &started, SECOND))
            .collect();
        // A late clock must not start anything again.
        tokio::time::sleep(22 * SECOND).await;
        runners[1].clock.stop();
        tokio::time::sleep(37 * SECOND).await;
        runners[1].clock.go_on();
        tokio::time::sleep(241 * SECOND).await;
        let slots = started.take();
        assert!((59..=60).contains(&slots.len()), "{slots:?}");
        assert!(steps(&slots).iter().all(|step| *step == 5), "{slots:?}");
        // Whoever goes is replaced, also by one whose clock is 37 s late.
        running[0].abort();
        running[2].abort();
        tokio::time::sleep(100 * SECOND).await;
        let slots = started.take();
        assert!((12..=13).contains(&slots.len()), "{slots:?}");
        assert!(steps(&slots).iter().all(|step| *step == 5), "{slots:?}");
        let status = runners[0].job("@daily").status().await.unwrap();
        let run = status.run.unwrap();
        assert_eq!(status.last, Some(run.slot));
        assert_eq!(run.outcome, Outcome::Done);
        assert_eq!(run.ended_ms, Some(run.started_ms + 1_000));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_made_up_for_as_asked() {
    let cases = [
        (Misfire::Skip, 0, 10),
        (Misfire::RunOnce, 1, 10),
        (Misfire::RunAll { most: 4 }, 4, 10),
        (Misfire::RunAll { most: 100 }, 9, 10),
    ];
    for (policy, made_up, then) in cases {
        locally(async {
            let (store, started) = (MemStore::new(), Started::default());
            let runner = Runner::new(&store, 0).await;
            let job = runner
                .job("*/10 * * * * *")
                .misfire(policy)
                .tolerance(SECOND);
            let first = runner.run(job.clone(), &started, Duration::ZERO);
            tokio::time::sleep(35 * SECOND).await;
            let before = started.take();
            first.abort();
            tokio::time::sleep(90 * SECOND).await;
            let _again = runner.run(job, &started, Duration::ZERO);
            tokio::time::sleep(SECOND).await;
            let slots = started.take();
            assert_eq!(slots.len(), made_up, "{policy:?}: {slots:?}");
            assert!(slots.iter().all(|slot| slot > before.last().unwrap()));
            assert!(steps(&slots).iter().all(|step| *step == 10), "{slots:?}");
            tokio::time::sleep(100 * SECOND).await;
            assert_eq!(started.take().len(), then, "{policy:?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn runs_never_go_on_together() {
    locally(async {
        let (store, started) = (MemStore::new(), Started::default());
        let (one, other) = (Runner::new(&store, 0).await, Runner::new(&store, 1).await);
        let job = |runner: &Runner| runner.job("*/10 * * * * *").misfire(Misfire::RunOnce);
        let _one = one.run(job(&one), &started, 25 * SECOND);
        let _other = other.run(job(&other), &started, 25 * SECOND);
        tokio::time::sleep(200 * SECOND).await;
        let slots = started.take();
        assert!((7..=9).contains(&slots.len()), "{slots:?}");
        // One that came due meanwhile is made up for at the end.
        assert!(
            steps(&slots).iter().all(|step| (20..=30).contains(step)),
            "{slots:?}"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn how_a_run_ended_is_written_down() {
    locally(async {
        let store = MemStore::new();
        let runner = Runner::new(&store, 0).await;
        let job = runner.job("*/10 * * * * *");
        let outcome = async || {
            let status = job.status().await.unwrap();
            status.run.map(|run| run.outcome)
        };
        assert_eq!(outcome().await, None);
        let failing = job.run(&runner.session, |run| async move {
            let done = run.txn().put("seen", run.slot().to_string()).commit().await;
            done.map_err(|error| error.to_string())?;
            Err::<(), _>("no space".to_owned())
        });
        let limit = tokio::time::timeout(15 * SECOND, failing).await;
        assert!(limit.is_err());
        assert_eq!(
            outcome().await,
            Some(Outcome::Failed("no space".to_owned()))
        );
        assert!(runner.client.get("seen").await.unwrap().is_some());
        // Dropped in the middle.
        let fences = Rc::new(RefCell::new(Vec::new()));
        let endless = job.run(&runner.session, |run| {
            fences.borrow_mut().push(run);
            std::future::pending::<std::result::Result<(), Infallible>>()
        });
        let limit = tokio::time::timeout(15 * SECOND, endless).await;
        assert!(limit.is_err());
        tokio::time::sleep(SECOND).await;
        assert_eq!(outcome().await, Some(Outcome::Dropped));
        let late = fences.borrow()[0].txn().put("seen", "late");
        let late = late.commit().await;
        assert!(late.is_err(), "the run is over");
        // Lost, with its session.
        let endless = job.run(&runner.session, |_| {
            std::future::pending::<std::result::Result<(), Infallible>>()
        });
        let lose = async {
            tokio::time::sleep(15 * SECOND).await;
            assert!(matches!(outcome().await, Some(Outcome::Running(_))));
            assert!(store.expire(runner.session.lease()));
        };
        let (ended, ()) = tokio::join!(endless, lose);
        assert!(matches!(ended, Err(Error::SessionLost(_))));
        assert_eq!(outcome().await, Some(Outcome::Lost));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_key_is_deleted_ends_and_the_next_one_comes() {
    locally(async {
        let store = MemStore::new();
        let runner = Runner::new(&store, 0).await;
        let job = runner.job("*/10 * * * * *");
        let begun = Rc::new(RefCell::new(BTreeMap::new()));
        let running = job.run(&runner.session, |run| {
            *begun.borrow_mut().entry(run.slot()).or_insert(0) += 1;
            std::future::pending::<std::result::Result<(), Infallible>>()
        });
        let evict = async {
            tokio::time::sleep(5 * SECOND).await;
            for _ in 0..3 {
                tokio::time::sleep(10 * SECOND).await;
                assert!(
                    runner
                        .client
                        .delete("quorate/cron/job/running")
                        .await
                        .unwrap()
                );
            }
            tokio::time::sleep(5 * SECOND).await;
        };
        tokio::select! {
            biased;
            ended = running => panic!("{ended:?}"),
            () = evict => {}
        }
        let begun = begun.borrow();
        assert!(
            begun.len() >= 3 && begun.values().all(|times| *times == 1),
            "{begun:?}"
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn keys_that_hold_something_else_are_told() {
    let store = MemStore::new();
    let client = Client::builder(store.clone()).seed(1).build();
    let session = client.session().await.unwrap();
    let job = client.cron("job", "@hourly".parse().unwrap());
    client.put("quorate/cron/job/last", "3").await.unwrap();
    let ended = job
        .run(&session, |_| async { Ok::<_, Infallible>(()) })
        .await;
    assert!(matches!(ended, Err(Error::Codec { .. })), "{ended:?}");
    assert!(matches!(job.status().await, Err(Error::Codec { .. })));
}
