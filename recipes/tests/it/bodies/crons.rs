//! Jobs by the clock, by several runners of real time.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_recipes::cron::{Misfire, Outcome, Slot};
use quorate_recipes::store::faulty::{Fault, Faulty};
use quorate_recipes::{Client, Error};

use super::session;
use crate::support::{soon, until};

type Started = Arc<Mutex<BTreeMap<Slot, usize>>>;

/// A runner of a job that is due each second.
fn run(client: Client, started: &Started) -> tokio::task::JoinHandle<Error> {
    let started = Arc::clone(started);
    tokio::spawn(async move {
        let session = session(&client).await;
        let job = client.cron("job", "* * * * * *".parse().unwrap());
        let job = job.misfire(Misfire::RunAll { most: 100 });
        let ended = job.run(&session, move |run| {
            *started.lock().unwrap().entry(run.slot()).or_default() += 1;
            async move {
                let done = run.txn().put(format!("done/{}", run.slot()), "once");
                done.commit().await.map(drop)
            }
        });
        match ended.await {
            Err(error) => error,
            Ok(never) => match never {},
        }
    })
}

/// Of several runners one starts each time.
pub async fn times_are_started_once(client: &Client) {
    let started = Started::default();
    let runners: Vec<_> = (0..3).map(|_| run(client.clone(), &started)).collect();
    until("some runs", async || started.lock().unwrap().len() >= 4).await;
    let job = client.cron("job", "* * * * * *".parse().unwrap());
    let status = job.status().await.unwrap();
    let run = status.run.unwrap();
    assert_eq!(Some(run.slot), status.last);
    runners.iter().for_each(tokio::task::JoinHandle::abort);
    for runner in runners {
        drop(runner.await);
    }
    let started = std::mem::take(&mut *started.lock().unwrap());
    assert!(started.values().all(|times| *times == 1), "{started:?}");
    let slots: Vec<_> = started.keys().map(|slot| slot.0).collect();
    let gaps = slots.windows(2).filter(|two| two[1] != two[0] + 1);
    assert_eq!(gaps.count(), 0, "{slots:?}");
}

/// Answers that get lost start nothing twice, and lose no time.
pub async fn starting_survives_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let shaky = Client::new(faulty.clone());
    let started = Started::default();
    let runner = run(shaky, &started);
    until("a run", async || !started.lock().unwrap().is_empty()).await;
    for _ in 0..3 {
        let before = started.lock().unwrap().len();
        let faults = [Fault::Unanswered, Fault::NotSent, Fault::Late];
        faulty.plan("quorate/cron/job/", faults);
        until("the next runs", async || {
            started.lock().unwrap().len() > before + 1
        })
        .await;
        faulty.deliver().await;
    }
    runner.abort();
    drop(runner.await);
    let started = std::mem::take(&mut *started.lock().unwrap());
    let slots: Vec<_> = started.keys().map(|slot| slot.0).collect();
    assert!(started.values().all(|times| *times == 1), "{started:?}");
    assert!(
        slots.windows(2).all(|two| two[1] == two[0] + 1),
        "{slots:?}"
    );
}

/// A lost session ends the run and what it may write, and another runner goes on.
pub async fn a_lost_runner_is_replaced(client: &Client) {
    let (lost, next) = (session(client).await, session(client).await);
    let job = client.cron("lost", "* * * * * *".parse().unwrap());
    let runs = Mutex::new(Vec::new());
    let endless = job.run(&lost, |run| {
        runs.lock().unwrap().push(run);
        std::future::pending::<Result<(), Infallible>>()
    });
    let revoke = async {
        until("a run", async || !runs.lock().unwrap().is_empty()).await;
        let status = job.status().await.unwrap();
        let outcome = status.run.unwrap().outcome;
        assert_eq!(outcome, Outcome::Running(lost.lease()));
        client.store().lease_revoke(lost.lease()).await.unwrap();
    };
    let (ended, ()) = soon("the end", async { tokio::join!(endless, revoke) }).await;
    assert!(matches!(ended, Err(Error::SessionLost(_))), "{ended:?}");
    let old = runs.lock().unwrap().remove(0);
    assert!(old.txn().put("lost/x", "late").commit().await.is_err());
    assert_eq!(
        job.status().await.unwrap().run.unwrap().outcome,
        Outcome::Lost
    );
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let again = job.run(&next, move |run| {
        drop(tell.send(run));
        async { Ok::<_, Infallible>(()) }
    });
    tokio::select! {
        biased;
        run = soon("a run", told.recv()) => {
            let run = run.unwrap();
            assert!(run.slot() > old.slot() && run.token() > old.token());
        }
        ended = again => panic!("{ended:?}"),
    }
    until("the record", async || {
        let status = job.status().await.unwrap();
        status.run.is_some_and(|run| run.outcome != Outcome::Lost)
    })
    .await;
    let idle = Duration::from_secs(1);
    assert!(tokio::time::timeout(idle, next.lost()).await.is_err());
}
