//! Job dispatch: sends, takes and ends of commands, dropped everywhere.

use std::time::Duration;

use quorate_recipes::dispatch::{Dispatcher, Ended, Job, Sending, Target};
use quorate_recipes::{Client, Error, Session};

use super::{Outcome, QUIET, World, at_every_call, in_time};

/// What an inbox leaves for the next one, and what is kept of jobs that have ended and of casts.
const DURABLE: [&str; 4] = [
    "quorate/dispatch/x/service/s/head",
    "quorate/dispatch/x/inbox/i/head",
    "quorate/dispatch/x/job/",
    "quorate/dispatch/x/cast/",
];

type Ops = Dispatcher<u32, u32>;

fn ops(client: &Client) -> Ops {
    client.dispatcher("x")
}

fn target() -> Target {
    Target::Any("s".to_owned())
}

fn instance() -> Target {
    Target::Instance("i".to_owned())
}

/// Does all that is there, and counts how often each job was done.
async fn drain(client: &Client, session: &Session) -> Outcome {
    let inbox = ops(client).inbox(session, [target(), instance()]).await?;
    while let Ok(command) = tokio::time::timeout(Duration::from_secs(5), inbox.next()).await {
        let mut command = command?;
        let value = *command.value();
        let txn = client.txn().put(format!("done/{value}"), "");
        command.reply_with(&value, txn).await?;
    }
    Ok(())
}

/// Drops `work` at each of its calls, with a job 1 sent before, then has somebody else do what is left. That job
/// ends once; a job 2 that `work` sends is done once if it was told, at most once if not.
async fn dropped_everywhere(
    work: impl AsyncFn(&Client, &Session, &Job<u32>) -> Outcome,
    sends: bool,
    least_calls: usize,
) {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (client, session) = &world.other;
        let job = ops(client).send(session, target(), &1).await.unwrap();
        let same = ops(&world.user.0).job(job.id());
        let user = work(&world.user.0, &world.user.1, &same);
        let stopped = world.stop(at, user).await;
        let (reached, finished) = (stopped.held.is_reached(), stopped.finished);
        stopped.held.release();
        in_time(at, "the other one", drain(client, session)).await;
        tokio::time::sleep(QUIET).await;
        in_time(at, "the other one", drain(client, session)).await;
        let ended = in_time(at, "the job", job.wait()).await;
        for (number, ended) in [(1, Some(ended)), (2, None)] {
            let done = client.get(format!("done/{number}")).await.unwrap();
            let times = done.map_or(0, |done| done.version);
            let expected = match ended {
                Some(Ended::Done(_)) => 1..=1,
                Some(_) => 0..=0,
                None => i64::from(finished && sends)..=i64::from(sends),
            };
            assert!(
                expected.contains(&times),
                "{at}: job {number} {times} times"
            );
        }
        tokio::time::sleep(QUIET).await;
        let mut left = world.left(&DURABLE);
        // Those that what is kept of ended jobs hangs on.
        left.retain(|left| !left.starts_with("lease "));
        assert_eq!(left, [""; 0], "{at}");
        reached
    })
    .await;
    assert!(visited >= 4 * least_calls, "{visited} calls only");
}

#[tokio::test(start_paused = true)]
async fn a_command_sent() {
    let send = async |client: &Client, session: &Session, _: &Job<u32>| {
        ops(client).send(session, target(), &2).await.map(drop)
    };
    dropped_everywhere(send, true, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_taken_and_done() {
    let work = async |client: &Client, session: &Session, _: &Job<u32>| {
        let inbox = ops(client).inbox(session, [target()]).await?;
        let mut command = inbox.next().await?;
        command.progress(0.5, "").await?;
        let txn = client.txn().put(format!("done/{}", command.value()), "");
        command.reply_with(&1, txn).await.map_err(Error::from)?;
        Ok(())
    };
    dropped_everywhere(work, false, 8).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_taken_and_failed_or_given_back() {
    for fails in [true, false] {
        let work = async |client: &Client, session: &Session, _: &Job<u32>| {
            let inbox = ops(client).inbox(session, [target()]).await?;
            let command = inbox.next().await?;
            match fails {
                true => command.fail("no").await.map(drop).map_err(Error::from),
                false => command.give_back().await,
            }
        };
        dropped_everywhere(work, false, 7).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_cancelled() {
    let cancel = async |_: &Client, _: &Session, job: &Job<u32>| {
        assert!(job.cancel().await?);
        Ok(())
    };
    dropped_everywhere(cancel, false, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_sent_to_all() {
    let send = async |client: &Client, session: &Session, _: &Job<u32>| {
        let ops = ops(client);
        let _inbox = ops.inbox(session, [instance()]).await?;
        let all = ops.send_all(session, |_| true, &2, Sending::new());
        all.await.map(drop)
    };
    dropped_everywhere(send, true, 6).await;
}
