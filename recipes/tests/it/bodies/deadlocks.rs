//! Circles of waits, over locks of all kinds.

use quorate_recipes::inspect::LockKind;
use quorate_recipes::{Client, Session};

use super::session;
use crate::support::until;

async fn deadlocks(client: &Client) -> Vec<quorate_recipes::inspect::Deadlock> {
    client.inspect().deadlocks().await.unwrap()
}

/// Three tasks in a circle, over a mutex, a read-write lock and a semaphore; gone once one gives up.
pub async fn circles_are_found_with_their_owners(client: &Client) {
    let (one, two) = (session(client).await, session(client).await);
    let tasks: [Session; 3] = [one.for_task("a"), one.for_task("b"), two.for_task("c")];
    let mutex = client.mutex("circle/m").with_info("first");
    let rw = client.rw_lock("circle/r");
    let semaphore = client.semaphore("circle/s", 1);
    let _held = (
        mutex.lock(&tasks[0]).await.unwrap(),
        rw.read(&tasks[1]).await.unwrap(),
        semaphore.acquire(&tasks[2]).await.unwrap(),
    );
    let waits = [
        tokio::spawn({
            let (rw, task) = (rw.clone(), tasks[0].clone());
            async move { drop(rw.write(&task).await) }
        }),
        tokio::spawn({
            let (semaphore, task) = (semaphore.clone(), tasks[1].clone());
            async move { drop(semaphore.acquire(&task).await) }
        }),
    ];
    until("both waits", async || {
        rw.contenders().await.unwrap().len() == 2 && semaphore.waiters(9).await.unwrap().len() == 1
    })
    .await;
    assert_eq!(deadlocks(client).await, [], "a chain is no circle");
    let last = tokio::spawn({
        let (mutex, task) = (mutex.clone(), tasks[2].clone());
        async move { drop(mutex.lock(&task).await) }
    });
    until("the circle", async || !deadlocks(client).await.is_empty()).await;
    let found = deadlocks(client).await;
    let [deadlock] = &found[..] else {
        panic!("{found:?}")
    };
    assert!(deadlock.certain, "{deadlock:?}");
    let mut told: Vec<_> = deadlock
        .waits
        .iter()
        .map(|wait| {
            let task = |holder: &quorate_recipes::lock::Holder| holder.task.clone().unwrap();
            (task(&wait.waiter), wait.lock.kind, task(&wait.holder))
        })
        .collect();
    told.sort();
    let owned = |from: &str, kind, to: &str| (from.to_owned(), kind, to.to_owned());
    assert_eq!(
        told,
        [
            owned("a", LockKind::RwLock, "b"),
            owned("b", LockKind::Semaphore, "c"),
            owned("c", LockKind::Mutex, "a"),
        ]
    );
    let wait = deadlock
        .waits
        .iter()
        .find(|wait| wait.lock.kind == LockKind::Mutex);
    let wait = wait.unwrap();
    assert_eq!(
        (wait.lock.name.as_str(), wait.holder.info.as_str()),
        ("circle/m", "first")
    );
    assert!(
        wait.waiter.since_ms.is_some() && wait.waiter.who.is_some(),
        "{wait}"
    );
    last.abort();
    until("its end", async || deadlocks(client).await.is_empty()).await;
    waits.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Sessions that do not name their tasks may only possibly stand still.
pub async fn sessions_without_tasks_are_only_possible(client: &Client) {
    let (one, two) = (session(client).await, session(client).await);
    let (a, b) = (client.mutex("possible/a"), client.mutex("possible/b"));
    let _held = (a.lock(&one).await.unwrap(), b.lock(&two).await.unwrap());
    let waits = [(b.clone(), one), (a.clone(), two)]
        .map(|(lock, session)| tokio::spawn(async move { drop(lock.lock(&session).await) }));
    until("the circle", async || !deadlocks(client).await.is_empty()).await;
    let found = deadlocks(client).await;
    assert_eq!((found.len(), found[0].certain), (1, false), "{found:?}");
    waits.iter().for_each(tokio::task::JoinHandle::abort);
}
