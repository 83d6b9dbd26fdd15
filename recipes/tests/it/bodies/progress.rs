//! Progress: what monitors see of workers that advance, stand still, die, and wake up too late.

use std::time::Duration;

use quorate_recipes::inspect::TaskStanding;
use quorate_recipes::progress::{JobView, Outcome, TaskState};
use quorate_recipes::{Client, Error, LostReason};

use super::{keys_below, session};
use crate::support::soon;

/// A task from its start to its end, with its numbers, its rate and its remaining time.
pub async fn from_start_to_end(client: &Client) {
    let session = session(client).await;
    let mut monitor = client.monitor("job").await.unwrap();
    let reporter = session.reporter("job/a").total(1_000).unit("files");
    let reporter = reporter.start().await.unwrap();
    assert_eq!((reporter.attempt(), reporter.previous()), (1, None));
    let view = monitor
        .wait_for(|job| job.task("a").is_some())
        .await
        .unwrap();
    let task = view.task("a").unwrap();
    assert_eq!(
        (task.state, task.done, task.total),
        (TaskState::Running, 0, Some(1_000))
    );
    assert_eq!((task.unit.as_str(), task.rate), ("files", None));
    assert_eq!(task.lease, Some(session.lease()));
    let mut last = 0;
    let mut eta = None;
    for step in 1..=24_u64 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        reporter.inc(20);
        reporter.set_done(step);
        let task = monitor.snapshot().task("a").unwrap().clone();
        assert!(task.done >= last, "it went back");
        last = task.done;
        eta = task.eta.or(eta);
    }
    assert_eq!(reporter.done(), 480);
    let eta = eta.expect("four reports are enough to tell");
    assert!(eta.earliest <= eta.likely && eta.likely <= eta.latest);
    assert!(
        (1..20).contains(&eta.likely.as_secs()),
        "520 at about 200/s: {eta:?}"
    );
    let overall = monitor.overall();
    assert!(
        overall
            .rate
            .is_some_and(|rate| (50.0..400.0).contains(&rate)),
        "{overall:?}"
    );
    // A stage goes out at once, although the last report is fresh.
    reporter.flush().await.unwrap();
    let written = monitor.wait_for(|job| job.task("a").unwrap().done == 480);
    soon("the flushed report", written).await.unwrap();
    reporter.stage("second half");
    let staged = monitor.wait_for(|job| job.task("a").unwrap().stage == "second half");
    tokio::time::timeout(Duration::from_millis(400), staged)
        .await
        .expect("a stage does not wait")
        .unwrap();
    reporter.set_done(1_000);
    reporter.finish(Outcome::Done).await.unwrap();
    let done = monitor.wait_for(|job| job.is_done());
    let view = soon("the end", done).await.unwrap();
    assert_eq!(
        (view.task("a").unwrap().done, view.task("a").unwrap().lease),
        (1_000, None)
    );
    let overall = monitor.overall();
    assert_eq!(
        (overall.fraction, overall.finished, overall.eta),
        (Some(1.0), 1, None)
    );
}

/// Lost, abandoned and failed attempts are told apart, and the next one gets the last checkpoint.
pub async fn attempts_follow_one_another(client: &Client) {
    let mut monitor = client.monitor("tries").await.unwrap();
    let mut state = async |expected: TaskState, attempt: u32| {
        let reached = monitor.wait_for(|job| {
            let task = job.task("a");
            task.is_some_and(|task| task.state == expected && task.attempt == attempt)
        });
        soon("the state", reached).await.unwrap()
    };
    let first = session(client).await;
    let reporter = first.reporter("tries/a").total(9).start().await.unwrap();
    reporter.inc(4);
    reporter.checkpoint(&("line", 4)).unwrap();
    reporter.flush().await.unwrap();
    // Only one worker at a time.
    let second = session(client).await;
    let refused = second.reporter("tries/a").start().await;
    assert!(
        matches!(&refused, Err(Error::Taken { lease, .. }) if *lease == first.lease()),
        "{refused:?}"
    );
    let waiting = tokio::spawn({
        let second = second.clone();
        async move { second.reporter("tries/a").wait().start().await.unwrap() }
    });
    client.store().lease_revoke(first.lease()).await.unwrap();
    let next = soon("the second attempt", waiting).await.unwrap();
    let view = state(TaskState::Running, 2).await;
    assert_eq!(
        view.task("a").unwrap().done,
        0,
        "a new attempt counts from the start"
    );
    let previous = next.previous().unwrap();
    assert_eq!((previous.state, previous.done), (TaskState::Lost, 4));
    let checkpoint: Option<(String, u32)> = previous.checkpoint().unwrap();
    assert_eq!(checkpoint, Some(("line".to_owned(), 4)));
    // The first worker wakes up late: it can report nothing.
    reporter.inc(5);
    assert!(reporter.flush().await.is_err());
    assert!(matches!(
        soon("the end", reporter.ended()).await,
        Error::SessionLost(_)
    ));
    assert!(reporter.finish(Outcome::Done).await.is_err());
    drop(next);
    state(TaskState::Abandoned, 2).await;
    let third = second.reporter("tries/a").start().await.unwrap();
    let previous = third.previous().unwrap();
    assert_eq!(previous.state, TaskState::Abandoned);
    let kept: Option<(String, u32)> = previous.checkpoint().unwrap();
    assert_eq!(
        kept,
        Some(("line".to_owned(), 4)),
        "handed on through an attempt without one"
    );
    third
        .finish(Outcome::Failed("no paper".to_owned()))
        .await
        .unwrap();
    let view = state(TaskState::Failed, 3).await;
    assert_eq!(view.task("a").unwrap().message, "no paper");
    let conflict = client.forget_job("tries").await;
    assert!(conflict.is_ok(), "nobody works on it: {conflict:?}");
    soon("an empty job", monitor.wait_for(|job| job.tasks.is_empty()))
        .await
        .unwrap();
}

/// A worker whose owner key was taken away while its session lives cannot roll the task back.
pub async fn zombies_are_refused(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let zombie = a.reporter("zombie/a").total(9).start().await.unwrap();
    zombie.inc(8);
    zombie.flush().await.unwrap();
    let owner = client
        .list(quorate_recipes::KeyRange::prefix(
            "quorate/progress/zombie/owner/",
        ))
        .await
        .unwrap()
        .1;
    client.delete(owner[0].key.clone()).await.unwrap();
    let second = b.reporter("zombie/a").total(9).start().await.unwrap();
    second.inc(1);
    second.flush().await.unwrap();
    zombie.inc(1);
    let refused = zombie.flush().await;
    assert!(matches!(refused, Err(Error::Removed(_))), "{refused:?}");
    assert!(zombie.finish(Outcome::Done).await.is_err());
    let monitor = client.monitor("zombie").await.unwrap();
    let view = monitor.snapshot();
    let task = view.task("a").unwrap();
    assert_eq!(
        (task.attempt, task.done, task.state),
        (2, 1, TaskState::Running)
    );
    assert!(matches!(
        client.forget_job("zombie").await,
        Err(Error::Conflict)
    ));
    // Closing the session abandons what is not finished.
    second.inc(1);
    b.close().await.unwrap();
    second.inc(1);
    let closed = |outcome: &Result<(), Error>| {
        let reason = LostReason::Closed;
        matches!(outcome, Err(Error::SessionLost(why)) if *why == reason)
    };
    let late = second.flush().await;
    assert!(closed(&late), "it is not noted: {late:?}");
    let late = second.finish(Outcome::Done).await;
    assert!(closed(&late), "it was abandoned: {late:?}");
    let mut monitor = client.monitor("zombie").await.unwrap();
    let view = monitor.wait_for(|job| job.task("a").unwrap().state == TaskState::Abandoned);
    let view = soon("the last report", view).await.unwrap();
    assert_eq!(view.task("a").unwrap().done, 2, "with its last numbers");
}

/// Standing still is noticed while the worker lives, and dying is something else.
pub async fn stalls_and_deaths(client: &Client) {
    let session = session(client).await;
    let stall_after = Duration::from_millis(700);
    let mut monitor = client
        .monitor("slow")
        .stall_after(stall_after)
        .await
        .unwrap();
    let reporter = session.reporter("slow/a").total(5).start().await.unwrap();
    let mut state = async |expected: TaskState| {
        let reached = monitor.wait_for(|job| job.task("a").is_some_and(|t| t.state == expected));
        soon("the state", reached).await.unwrap();
        monitor.overall()
    };
    state(TaskState::Running).await;
    assert_eq!(state(TaskState::Stalled).await.stalled, 1);
    reporter.inc(1);
    state(TaskState::Running).await;
    // A guard that goes takes the right to report along.
    let lock = client.mutex("slow-lock").lock(&session).await.unwrap();
    let under = session
        .reporter("slow/b")
        .under(&lock)
        .start()
        .await
        .unwrap();
    lock.release().await.unwrap();
    under.inc(1);
    let refused = under.flush().await;
    assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
    client.store().lease_revoke(session.lease()).await.unwrap();
    let overall = state(TaskState::Lost).await;
    assert_eq!((overall.lost, overall.eta), (2, None));
}

/// Tasks whose names have slashes are a tree, and each node of it has sums of its own.
pub async fn trees_are_summed_up(client: &Client) {
    let session = session(client).await;
    let mut tasks = Vec::new();
    for (name, total) in [("eu/x", 100), ("eu/y/1", 300), ("eu2", 50), ("us/x", 50)] {
        let task = session.reporter(("tree", name)).total(total);
        tasks.push(task.start().await.unwrap());
    }
    for task in &tasks {
        task.set_done(50);
    }
    tasks.remove(0).finish(Outcome::Done).await.unwrap();
    for task in &tasks {
        task.flush().await.unwrap();
    }
    let mut monitor = client.monitor("tree").await.unwrap();
    let written = monitor.wait_for(|job| job.overall().done == 200);
    let view = soon("the numbers", written).await.unwrap();
    let nodes = view.nodes();
    assert_eq!(
        nodes.keys().collect::<Vec<_>>(),
        [&"eu", &"eu/y", &"us"],
        "a task with nothing below it is no node"
    );
    let eu = &nodes["eu"];
    assert_eq!((eu.tasks, eu.finished, eu.total), (2, 1, Some(350)));
    assert_eq!(eu.fraction, Some(100.0 / 350.0));
    assert_eq!(*eu, view.below("eu").overall());
    assert!(view.below("eu/x").is_done() && !view.below("eu").is_done());
    assert_eq!(view.below("us").task("us/x").unwrap().done, 50);
}

/// A manager asks a task to end: whoever works on it hears of it, or else the next attempt does.
pub async fn tasks_are_cancelled(client: &Client) {
    let session = session(client).await;
    let mut monitor = client.monitor("stop").await.unwrap();
    let mut state = async |expected: TaskState, cancelling: bool| {
        let reached = monitor.wait_for(|job| {
            let task = job.task("a");
            task.is_some_and(|task| task.state == expected && task.cancelling == cancelling)
        });
        soon("the state", reached).await.unwrap();
    };
    let first = session.reporter("stop/a").start().await.unwrap();
    let hears = first.cancelled();
    assert!(!first.is_cancelled());
    assert!(client.cancel_task("stop/a").await.unwrap());
    soon("the request", hears).await;
    assert!(first.is_cancelled());
    assert!(client.cancel_task("stop/a").await.unwrap(), "once more");
    state(TaskState::Running, true).await;
    let jobs = client.inspect().jobs().await.unwrap().entries;
    let job = jobs.iter().find(|job| job.name == "stop").unwrap();
    assert!(job.tasks[0].cancelling);
    // A task that is let go of has not ended.
    drop(first);
    state(TaskState::Abandoned, true).await;
    let second = session.reporter("stop/a").start().await.unwrap();
    assert!(second.is_cancelled(), "asked before it began");
    soon("the request", second.cancelled()).await;
    second.finish(Outcome::Cancelled).await.unwrap();
    assert_eq!(keys_below(client, "quorate/progress/stop/cancel").await, 0);
    state(TaskState::Cancelled, false).await;
    let jobs = client.inspect().jobs().await.unwrap().entries;
    let job = jobs.iter().find(|job| job.name == "stop").unwrap();
    assert_eq!(job.tasks[0].state, TaskStanding::Cancelled);
    assert!(!client.cancel_task("stop/a").await.unwrap(), "it has ended");
    // Begun again, it is asked again.
    let third = session.reporter("stop/a").start().await.unwrap();
    let before = third.previous().map(|before| before.state);
    assert_eq!(before, Some(TaskState::Cancelled));
    assert!(!third.is_cancelled());
    assert!(client.cancel_task("stop/a").await.unwrap());
    third.finish(Outcome::Done).await.unwrap();
    state(TaskState::Done, false).await;
    assert!(!client.cancel_task("stop/a").await.unwrap(), "it is done");
    assert_eq!(keys_below(client, "quorate/progress/stop/cancel").await, 0);
    // One that nobody has begun is asked at its first attempt.
    assert!(client.cancel_task("stop/new").await.unwrap());
    let new = session.reporter("stop/new").start().await.unwrap();
    assert!(new.is_cancelled());
    let nameless = client.cancel_task("stop").await;
    assert!(matches!(nameless, Err(Error::Invalid(_))), "{nameless:?}");
}

/// A job, or a part of it, is asked to end as far as it has not.
pub async fn parts_of_jobs_are_cancelled(client: &Client) {
    let session = session(client).await;
    let mut working = Vec::new();
    for name in ["eu/x", "eu/done", "eu/left", "us/x", "eux"] {
        let task = session.reporter(("halt", name)).start().await.unwrap();
        match name {
            "eu/done" => task.finish(Outcome::Done).await.unwrap(),
            "eu/left" => drop(task),
            _ => working.push(task),
        }
    }
    let mut monitor = client.monitor("halt").await.unwrap();
    let left = monitor.wait_for(|job| job.task("eu/left").unwrap().state == TaskState::Abandoned);
    soon("the last report", left).await.unwrap();
    assert_eq!(client.cancel_tasks("halt/nothing").await.unwrap(), 0);
    assert_eq!(client.cancel_tasks("halt/eu").await.unwrap(), 2);
    soon("the request", working[0].cancelled()).await;
    assert!(working[1..].iter().all(|task| !task.is_cancelled()));
    assert_eq!(client.cancel_tasks("halt").await.unwrap(), 4);
    for task in &working {
        soon("the request", task.cancelled()).await;
    }
    let asked = |job: &JobView| job.tasks.iter().filter(|task| task.cancelling).count();
    let all = monitor.wait_for(|job| asked(job) == 4);
    let view = soon("all requests", all).await.unwrap();
    assert!(!view.task("eu/done").unwrap().cancelling);
}
