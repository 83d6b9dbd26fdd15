//! Locks and semaphores, dropped everywhere.

use std::num::NonZeroU32;
use std::time::Duration;

use quorate_recipes::lock::Upgraded;
use quorate_recipes::{Client, Session};

/// How long one waits who has something else to do.
const SHORT: Duration = Duration::from_secs(1);

/// How long one waits who has not.
const LONG: Duration = Duration::from_secs(60);

/// What is got within a time, tried with a short one first.
macro_rules! got {
    (|$limit:ident| $within:expr) => {{
        let $limit = SHORT;
        match $within.await? {
            Some(guard) => guard,
            None => {
                let $limit = LONG;
                $within.await?.expect("time enough")
            }
        }
    }};
}

/// What a form gives that does not wait, tried until it does.
macro_rules! tried {
    ($attempt:expr) => {
        loop {
            if let Some(guard) = $attempt.await? {
                break guard;
            }
            tokio::time::sleep(SHORT / 2).await;
        }
    };
}

dropped_everywhere! {
    mutex, [], async |client: Client, session: Session, hold| {
        let guard = client.mutex("x").lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.put("x", "held").await?;
        guard.release().await
    };
    mutex_with_a_delay, [], async |client: Client, session: Session, hold| {
        let mutex = client.mutex("x").with_delay(Duration::from_secs(5));
        let guard = mutex.lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    mutex_tried_with_a_delay, [], async |client: Client, session: Session, hold| {
        let mutex = client.mutex("x").with_delay(Duration::from_secs(5));
        let guard = loop {
            match mutex.try_lock(&session).await? {
                Some(guard) => break guard,
                None => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        };
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    mutex_tried, [], async |client: Client, session: Session, hold| {
        let lock = client.mutex("x");
        let guard = tried!(lock.try_lock(&session));
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    exclusive_lock_tried, [], async |client: Client, session: Session, hold| {
        let lock = client.exclusive("x");
        let guard = tried!(lock.try_lock(&session));
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    reader_tried, [], async |client: Client, session: Session, hold| {
        let lock = client.rw_lock("x");
        let guard = tried!(lock.try_read(&session));
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    writer_tried, [], async |client: Client, session: Session, hold| {
        let lock = client.rw_lock("x");
        let guard = tried!(lock.try_write(&session));
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    permit_tried, ["quorate/semaphore/x/limit"], async |client: Client, session: Session, hold| {
        let semaphore = client.semaphore("x", 1);
        let permit = tried!(semaphore.try_acquire(&session, NonZeroU32::MIN));
        tokio::time::sleep(hold).await;
        permit.release().await
    };
    leader_tried, [], async |client: Client, session: Session, hold| {
        let election = client.election("x");
        let leadership = tried!(election.try_campaign(&session, 1_u32));
        tokio::time::sleep(hold).await;
        leadership.resign().await
    };
    shared_mutex_tried, [], async |client: Client, session: Session, hold| {
        let lock = client.mutex("x").shared(&session);
        let guard = tried!(lock.try_lock());
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    combined_mutex_tried, [], async |client: Client, session: Session, hold| {
        let lock = client.mutex("x").combined(&session);
        let guard = tried!(lock.try_lock());
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    combined_mutex, [], async |client: Client, session: Session, hold| {
        let combined = client.mutex("x").combined(&session);
        let (one, other) = tokio::join!(
            async {
                let guard = combined.lock().await?;
                tokio::time::sleep(hold).await;
                guard.put("x", "held").await?;
                guard.release().await
            },
            async { combined.lock().await?.release().await }
        );
        one.and(other)
    };
    shared_mutex, [], async |client: Client, session: Session, hold| {
        let shared = client.mutex("x").shared(&session);
        let outer = shared.lock().await?;
        let inner = shared.lock().await?;
        tokio::time::sleep(hold).await;
        outer.release().await?;
        inner.release().await
    };
    exclusive_lock, [], async |client: Client, session: Session, hold| {
        let guard = client.exclusive("x").lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    reader, [], async |client: Client, session: Session, hold| {
        let guard = client.rw_lock("x").read(&session).await?;
        tokio::time::sleep(hold).await;
        let guard = match guard.try_upgrade().await? {
            Upgraded::Write(writer) => writer.downgrade().await?,
            Upgraded::Read(reader) => reader,
        };
        guard.release().await
    };
    writer, [], async |client: Client, session: Session, hold| {
        let guard = client.rw_lock("x").write(&session).await?;
        tokio::time::sleep(hold).await;
        guard.downgrade().await?.release().await
    };
    semaphore, ["quorate/semaphore/x/limit"], async |client: Client, session: Session, hold| {
        let both = NonZeroU32::new(2).expect("not zero");
        let permit = client.semaphore("x", 2).acquire_many(&session, both).await?;
        tokio::time::sleep(hold).await;
        permit.release().await
    };
    several_locks, [], async |client: Client, session: Session, hold| {
        let guard = client.multi_lock(["x", "y", "z"]).lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    request_to_release, [], async |client: Client, session: Session, hold| {
        let mutex = client.mutex("x");
        let guard = mutex.lock(&session).await?;
        let request = mutex.request_release(&session, "why").await?;
        tokio::time::sleep(hold).await;
        guard.release().await?;
        if let Some(request) = request {
            request.granted().await?;
        }
        Ok(())
    };
    mutex_within_a_time, [], async |client: Client, session: Session, hold| {
        let mutex = client.mutex("x");
        let guard = got!(|limit| mutex.lock_within(&session, limit));
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    combined_mutex_within_a_time, [], async |client: Client, session: Session, hold| {
        let combined = client.mutex("x").combined(&session);
        let (one, other) = tokio::join!(
            async {
                let guard = got!(|limit| combined.lock_within(limit));
                tokio::time::sleep(hold).await;
                guard.release().await
            },
            async { got!(|limit| combined.lock_within(limit)).release().await }
        );
        one.and(other)
    };
    shared_mutex_within_a_time, [], async |client: Client, session: Session, hold| {
        let shared = client.mutex("x").shared(&session);
        let outer = got!(|limit| shared.lock_within(limit));
        let inner = got!(|limit| shared.lock_within(limit));
        tokio::time::sleep(hold).await;
        outer.release().await?;
        inner.release().await
    };
    exclusive_lock_within_a_time, [], async |client: Client, session: Session, hold| {
        let lock = client.exclusive("x");
        let guard = got!(|limit| lock.lock_within(&session, limit));
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    reader_within_a_time, [], async |client: Client, session: Session, hold: Duration| {
        let lock = client.rw_lock("x");
        // Who is there before writes, or the reader would not wait.
        if hold.is_zero() {
            let guard = got!(|limit| lock.read_within(&session, limit));
            return guard.release().await;
        }
        let guard = lock.write(&session).await?;
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    writer_within_a_time, [], async |client: Client, session: Session, hold| {
        let lock = client.rw_lock("x");
        let guard = got!(|limit| lock.write_within(&session, limit));
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    semaphore_within_a_time, ["quorate/semaphore/x/limit"], async |client: Client, session: Session, hold| {
        let (semaphore, both) = (client.semaphore("x", 2), NonZeroU32::new(2).expect("not zero"));
        let permit = got!(|limit| semaphore.acquire_within(&session, both, limit));
        tokio::time::sleep(hold).await;
        permit.release().await
    };
    several_locks_within_a_time, [], async |client: Client, session: Session, hold| {
        let several = client.multi_lock(["x", "y", "z"]);
        let guard = got!(|limit| several.lock_within(&session, limit));
        tokio::time::sleep(hold).await;
        guard.release().await
    };
    several_locks_of_which_some_are_held, [], async |client: Client, session: Session, hold: Duration| {
        let names = match hold.is_zero() {
            true => ["x", "y", "z"],
            false => ["w", "y", "z"],
        };
        let guard = client.multi_lock(names).lock(&session).await?;
        tokio::time::sleep(hold).await;
        guard.put("x", "held").await?;
        guard.release().await
    };
}
