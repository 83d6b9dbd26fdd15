//! Attempts at tasks, their reports and ends, and requests for their end, dropped everywhere: each takes place once
//! or not at all, an attempt that has begun ends once, and the task is free for the next one.

use quorate_recipes::progress::Outcome;
use quorate_recipes::{Client, Error, Session};

use super::outcomes::Written;
use super::{Outcome as Ended, QUIET, Stopped, World, at_every_call, in_time};

const RECORD: &str = "quorate/progress/x/record/a";
const CANCEL: &str = "quorate/progress/x/cancel/a";

dropped_everywhere! {
    attempt, [RECORD], async |_: Client, session: Session, hold| {
        let reporter = session.reporter("x/a").wait().start().await?;
        reporter.inc(1);
        reporter.flush().await?;
        tokio::time::sleep(hold).await;
        reporter.finish(Outcome::Done).await
    };
    attempt_that_is_cancelled, [RECORD, CANCEL], async |client: Client, session: Session, hold| {
        let reporter = session.reporter("x/a").wait().start().await?;
        tokio::time::sleep(hold).await;
        client.cancel_task("x/a").await?;
        reporter.cancelled().await;
        reporter.finish(Outcome::Cancelled).await
    };
}

/// The rival's attempt: it is done, whatever is asked.
async fn rival(session: &Session) -> Ended {
    let reporter = session.reporter("x/a").unit("rival").wait();
    reporter.start().await?.finish(Outcome::Done).await
}

/// An attempt of the rival's that is let go of.
async fn abandoned(session: &Session) -> Ended {
    let reporter = session.reporter("x/a").unit("rival").start().await?;
    drop(reporter);
    tokio::time::sleep(QUIET).await;
    Ok(())
}

/// How often the user's report had this in it. Each attempt of the user's that began has ended once.
fn times(written: &Written, what: &str) -> usize {
    let values = written.values(RECORD).into_iter();
    let users = values.filter(|value| value.contains(r#""unit":"user""#));
    let users: Vec<String> = users.collect();
    let with = |what: &str| users.iter().filter(|value| value.contains(what)).count();
    let ends = ["done", "failed", "cancelled", "abandoned"];
    let ends = ends.map(|end| with(&format!(r#""state":"{end}""#)));
    let begun = usize::from(with(r#""state":"running""#) > 0);
    assert_eq!(ends.iter().sum::<usize>(), begun, "{users:?}");
    with(what)
}

once_or_not_at_all! {
    attempt_begun, [RECORD],
        async |_, session: Session| abandoned(&session).await,
        async |_, session: Session| {
            session.reporter("x/a").unit("user").start().await.map(drop)
        },
        async |_, session: Session| rival(&session).await,
        |written| times(written, r#""state":"running""#);
    attempt_flushed, [RECORD],
        async |_, session: Session| abandoned(&session).await,
        async |_, session: Session| {
            let reporter = session.reporter("x/a").unit("user").start().await?;
            reporter.inc(7);
            reporter.flush().await?;
            reporter.inc(1);
            reporter.finish(Outcome::Done).await
        },
        async |_, session: Session| rival(&session).await,
        // The end of one that was dropped after that says seven as well.
        |written| times(written, r#""state":"running","done":7"#);
    attempt_done, [RECORD],
        async |_, session: Session| abandoned(&session).await,
        async |_, session: Session| {
            let reporter = session.reporter("x/a").unit("user").start().await?;
            reporter.finish(Outcome::Done).await
        },
        async |_, session: Session| rival(&session).await,
        |written| times(written, r#""state":"done""#);
    attempt_failed, [RECORD],
        async |_, session: Session| abandoned(&session).await,
        async |_, session: Session| {
            let reporter = session.reporter("x/a").unit("user").start().await?;
            reporter.finish(Outcome::Failed("dice".to_owned())).await
        },
        async |_, session: Session| rival(&session).await,
        |written| times(written, r#""message":"dice""#);
    // The rival's end takes it away.
    task_asked_to_end, [RECORD, CANCEL],
        async |_, session: Session| abandoned(&session).await,
        async |client: Client, _session| {
            assert!(client.cancel_task("x/a").await?);
            Ok(())
        },
        async |_, session: Session| rival(&session).await,
        |written| {
            let asked = written.values(CANCEL).len();
            assert!(written.deleted(CANCEL) <= asked);
            asked
        };
}

/// A request for the end of somebody's task, dropped at each call: it is heard or was not made, and nothing of it is
/// left when the task has ended.
#[tokio::test(start_paused = true)]
async fn requests_are_heard_or_not_made() {
    let mut heard = [0; 2];
    at_every_call(async |at| {
        let world = World::new().await;
        let works = world.other.1.reporter("x/a").start().await.unwrap();
        let hears = works.cancelled();
        let asks = async {
            assert!(world.user.0.cancel_task("x/a").await?);
            Ok::<_, Error>(())
        };
        let Stopped { held, finished } = world.stop(at, asks).await;
        let reached = held.is_reached();
        held.release();
        tokio::time::sleep(QUIET).await;
        let asked = world.store.keys(CANCEL).len();
        assert!(!finished || asked == 1, "{at}: told, and not asked");
        if asked == 1 {
            in_time(at, "the one who works", async {
                hears.await;
                Ok(())
            })
            .await;
        }
        assert_eq!(works.is_cancelled(), asked == 1, "{at}");
        heard[asked] += 1;
        in_time(at, "the end", works.finish(Outcome::Cancelled)).await;
        assert_eq!(world.left(&[RECORD]), [""; 0], "{at}");
        reached
    })
    .await;
    assert!(heard.iter().all(|times| *times > 0), "{heard:?}");
}

/// Who ends a task whose end is asked for takes the request along, wherever that is dropped.
#[tokio::test(start_paused = true)]
async fn ends_take_requests_along() {
    at_every_call(async |at| {
        let world = World::new().await;
        assert!(world.other.0.cancel_task("x/a").await.unwrap());
        let ends = async {
            let reporter = world.user.1.reporter("x/a").start().await?;
            assert!(reporter.is_cancelled());
            reporter.finish(Outcome::Cancelled).await
        };
        let Stopped { held, finished } = world.stop(at, ends).await;
        let reached = held.is_reached();
        held.release();
        tokio::time::sleep(QUIET).await;
        let record = world.other.0.get(RECORD).await.unwrap();
        let record = record.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
        let ended = record.is_some_and(|record| record.contains(r#""state":"cancelled""#));
        assert!(ended || !finished, "{at}");
        let asked = world.store.keys(CANCEL).len();
        assert_eq!(asked, usize::from(!ended), "{at}");
        in_time(at, "the next one", rival(&world.other.1)).await;
        assert_eq!(world.left(&[RECORD]), [""; 0], "{at}");
        reached
    })
    .await;
}
