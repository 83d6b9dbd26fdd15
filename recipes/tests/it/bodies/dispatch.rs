//! Job dispatch: each job ends once, by the hand that has it, and whoever sent it learns how.

use std::time::Duration;

use futures::StreamExt;
use quorate_recipes::dispatch::{Dispatcher, Ended, JobState, Sending, Target};
use quorate_recipes::{Client, Error, TxnError};

use super::{session, short_session};
use crate::support::{soon, until};

type Ops = Dispatcher<u32, u32>;

fn to(name: &str) -> Target {
    Target::Instance(name.to_owned())
}

fn any(name: &str) -> Target {
    Target::Any(name.to_owned())
}

/// Several work for a service, and give some of it back: every job has one reply, and one effect.
pub async fn jobs_end_once(client: &Client) {
    const JOBS: u32 = 30;
    let ops: Ops = client.dispatcher("work");
    let mut working = Vec::new();
    for _ in 0..3 {
        let session = session(client).await;
        let inbox = ops.inbox(&session, [any("sums")]).await.unwrap();
        let client = client.clone();
        working.push(tokio::spawn(async move {
            loop {
                let mut command = inbox.next().await.unwrap();
                if command.value().is_multiple_of(7) && command.attempt() == 1 {
                    continue;
                }
                let value = *command.value();
                command.progress(0.5, "").await.unwrap();
                let txn = client.txn().put(format!("sum/{value}"), "");
                command.reply_with(&(value * 2), txn).await.unwrap();
            }
        }));
    }
    let sender = session(client).await;
    let mut jobs = Vec::new();
    for n in 0..JOBS {
        jobs.push(ops.send(&sender, any("sums"), &n).await.unwrap());
    }
    for (n, job) in (0..JOBS).zip(&jobs) {
        let ended = soon("a reply", job.wait()).await.unwrap();
        assert_eq!(ended, Ended::Done(n * 2));
        let effect = client.get(format!("sum/{n}")).await.unwrap();
        assert_eq!(effect.unwrap().version, 1);
    }
    // By anybody who knows the id.
    let again = ops.job(jobs[3].id()).state().await.unwrap();
    assert_eq!(again, JobState::Ended(Ended::Done(6)));
    for worker in working {
        worker.abort();
    }
}

/// One whose lease has gone ends nothing; the next one has the command then.
pub async fn who_is_gone_replies_nothing(client: &Client) {
    let ops: Ops = client.dispatcher("jobs");
    let (dying, living) = (short_session(client).await, session(client).await);
    let first = ops.inbox(&dying, [any("x")]).await.unwrap();
    let job = ops.send(&living, any("x"), &1).await.unwrap();
    let mut zombie = soon("a command", first.next()).await.unwrap();
    client.store().lease_revoke(dying.lease()).await.unwrap();
    let second = ops.inbox(&living, [any("x")]).await.unwrap();
    let mut again = soon("it again", second.next()).await.unwrap();
    assert_eq!(again.attempt(), 2);
    let late = zombie
        .reply_with(&1, client.txn().put("by", "zombie"))
        .await;
    assert!(
        matches!(
            late,
            Err(TxnError::Fenced { .. } | TxnError::Failed(Error::SessionLost(_)))
        ),
        "{late:?}"
    );
    again.reply(&2).await.unwrap();
    assert_eq!(soon("the end", job.wait()).await.unwrap(), Ended::Done(2));
    assert!(client.get("by").await.unwrap().is_none());
}

/// Cancelled before and after it was taken, and what is not done in time.
pub async fn jobs_are_cancelled_and_expire(client: &Client) {
    let ops: Ops = client.dispatcher("ends");
    let session = session(client).await;
    let never = ops.send(&session, to("a"), &1).await.unwrap();
    assert!(never.cancel().await.unwrap());
    let inbox = ops.inbox(&session, [to("a")]).await.unwrap();
    let job = ops.send(&session, to("a"), &2).await.unwrap();
    let command = soon("a command", inbox.next()).await.unwrap();
    assert_eq!(*command.value(), 2, "the first one never runs");
    let told = tokio::spawn(command.cancelled());
    assert!(job.cancel().await.unwrap());
    soon("a word", told).await.unwrap();
    command.stop().await.unwrap();
    for job in [never, job] {
        assert_eq!(soon("the end", job.wait()).await.unwrap(), Ended::Cancelled);
    }
    let sending = Sending::new().deadline(Duration::from_secs(3));
    let late = ops.send_with(&session, to("a"), &3, sending).await.unwrap();
    let mut command = soon("a command", inbox.next()).await.unwrap();
    assert_eq!(soon("the end", late.wait()).await.unwrap(), Ended::Expired);
    let refused = command.reply(&1).await;
    assert!(
        matches!(refused, Err(TxnError::Fenced { .. })),
        "{refused:?}"
    );
}

/// To those who are there, and to nobody else.
pub async fn casts_reach_all_that_are_there(client: &Client) {
    let ops: Ops = client.dispatcher("all");
    let session = session(client).await;
    let live = Sending::new().require_live();
    let nobody = ops.send_with(&session, to("a"), &1, live).await;
    assert!(matches!(nobody, Err(Error::Conflict)), "{nobody:?}");
    let mut working = Vec::new();
    for (n, name) in (0..).zip(["a", "b", "c"]) {
        let inbox = ops.inbox(&session, [to(name)]).await.unwrap();
        working.push(tokio::spawn(async move {
            let mut command = inbox.next().await.unwrap();
            let reply = *command.value() + n;
            command.reply(&reply).await.unwrap();
            inbox
        }));
    }
    let job = ops
        .send_all(&session, |one| one.instance != "b", &10, live)
        .await
        .unwrap();
    let ended = soon("all replies", job.wait()).await.unwrap();
    let expected = [("a", 10), ("c", 12)];
    let expected = expected.map(|(name, reply)| (name.to_owned(), Ended::Done(reply)));
    assert_eq!(ended, expected);
    let job = ops.send_with(&session, to("b"), &10, live).await.unwrap();
    let mut states = job.states().boxed();
    until("it to be done", async || {
        ops.jobs(9)
            .await
            .unwrap()
            .iter()
            .all(|job| job.state == "done")
    })
    .await;
    let last = async {
        let mut last = None;
        while let Some(state) = states.next().await {
            last = Some(state.unwrap());
        }
        last
    };
    let last = soon("the end", last).await;
    assert_eq!(last, Some(JobState::Ended(Ended::Done(11))));
}

/// More than one transaction has room for, chosen by what is said of them.
pub async fn casts_reach_as_many_as_there_are(client: &Client) {
    const MANY: usize = 70;
    let ops: Ops = client.dispatcher("many");
    let session = session(client).await;
    let mut inboxes = Vec::new();
    for n in 0..MANY {
        let ops = ops.clone().label("kind", "web");
        let inbox = ops.inbox(&session, [to(&format!("i-{n:02}"))]).await;
        inboxes.push(inbox.unwrap());
    }
    let other = ops.inbox(&session, [to("other")]).await.unwrap();
    let live = Sending::new().require_live();
    let nobody = ops.send_all(&session, |one| one.is("kind", "db"), &1, live);
    assert!(matches!(nobody.await, Err(Error::Conflict)));
    let cast = ops.send_all(&session, |one| one.is("kind", "web"), &1, live);
    let cast = cast.await.unwrap();
    let names = cast.jobs().iter().map(|(name, _)| name.clone());
    let expected = (0..MANY).map(|n| format!("i-{n:02}"));
    assert_eq!(Vec::from_iter(names), Vec::from_iter(expected));
    let status = ops.status().await.unwrap();
    assert_eq!((status.jobs, status.unsent), (MANY as u64, 0));
    for (n, inbox) in (0..).zip(&inboxes) {
        let mut command = soon("a command", inbox.next()).await.unwrap();
        command.reply(&n).await.unwrap();
    }
    let again = ops.cast(cast.id()).await.unwrap().unwrap();
    let ended = soon("all replies", again.wait()).await.unwrap();
    assert!(
        (0..)
            .zip(ended)
            .all(|(n, (_, ended))| ended == Ended::Done(n))
    );
    drop(other);
}
