//! Writes of transactions, of numbers taken in blocks, of limits, and of marks, dropped everywhere.

use std::collections::BTreeSet;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::counter::IdBlocks;
use quorate_recipes::lock::Limit;
use quorate_recipes::stm::Transaction;
use quorate_recipes::{Client, Error, Json, Session};

use super::outcomes::Written;
use super::{Outcome, QUIET, Stopped, World, at_every_call, in_time};

const ACCOUNT: &str = "account/x";
const IDS: &str = "quorate/ids/x/last";
const LIMIT: &str = "quorate/semaphore/x/limit";
const POISON: &str = "quorate/lock-meta/x/poison";

/// Adds to what a transaction reads.
async fn pay(tx: Transaction, amount: i64) -> Outcome {
    let before: i64 = tx.get_json(ACCOUNT).await?.unwrap_or(0);
    tx.put(ACCOUNT, Json(before + amount));
    Ok(())
}

/// Writes without having read.
async fn blind(client: &Client, session: &Session, value: &'static str) -> Outcome {
    let write = |tx: Transaction| {
        tx.put(ACCOUNT, value);
        async { Ok::<_, Error>(()) }
    };
    client.stm().under(session).run(write).await.map(drop)
}

/// Holds the lock for a transaction of one write, which does not read.
async fn written_with_the_lock_held(
    client: &Client,
    session: &Session,
    once: bool,
    value: &'static str,
) -> Outcome {
    let guard = client.mutex("x").lock(session).await?;
    let stm = match once {
        true => client.stm().under(session),
        false => client.stm(),
    };
    let write = |tx: Transaction| {
        tx.guard(&guard);
        tx.put(ACCOUNT, value);
        async { Ok::<_, Error>(()) }
    };
    stm.run(write).await?;
    guard.release().await
}

/// Panics with the lock in hand.
async fn panics(client: &Client, session: &Session) -> Outcome {
    let mutex = client.mutex("x").poison_on_panic();
    let guard = mutex.lock(session).await?;
    let task = tokio::spawn(async move {
        let _guard = guard;
        // Unlike a panic, it is not printed.
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(task.await.unwrap_err().is_panic());
    // The mark is written by the release.
    client.mutex("x").lock(session).await?.release().await?;
    assert!(mutex.poison().await?.is_some());
    Ok(())
}

/// How often the user's value was written, which never comes after the rival's.
fn not_after(written: &Written, key: &str, users: &str, rivals: &str) -> usize {
    let values = written.values(key);
    let rival = values.iter().position(|value| value == rivals);
    let after = &values[rival.unwrap_or(values.len())..];
    assert!(!after.iter().any(|value| value == users), "{values:?}");
    values.iter().filter(|value| *value == users).count()
}

once_or_not_at_all! {
    stm, [],
        async |client: Client, _session| client.stm().run(|tx| pay(tx, 100)).await.map(drop),
        async |client: Client, _session| client.stm().run(|tx| pay(tx, 1)).await.map(drop),
        async |client: Client, _session| client.stm().run(|tx| pay(tx, 1_000)).await.map(drop),
        |written| written.steps(ACCOUNT, 100, 1, 1_000);
    stm_under_a_session, [],
        async |client: Client, session: Session| {
            client.stm().under(&session).run(|tx| pay(tx, 100)).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.stm().under(&session).run(|tx| pay(tx, 1)).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.stm().under(&session).run(|tx| pay(tx, 1_000)).await.map(drop)
        },
        |written| written.steps(ACCOUNT, 100, 1, 1_000);
    // It may come after the rival's, and is sent again when its answer is lost.
    stm_under_a_session_that_reads_nothing, [],
        async |_, _| Ok(()),
        async |client: Client, session: Session| blind(&client, &session, "user").await,
        async |client: Client, session: Session| blind(&client, &session, "rival").await,
        |written| written.given(ACCOUNT, "user");
    stm_with_the_lock_held, [],
        async |_, _| Ok(()),
        async |client: Client, session: Session| {
            written_with_the_lock_held(&client, &session, false, "user").await
        },
        async |client: Client, session: Session| {
            written_with_the_lock_held(&client, &session, false, "rival").await
        },
        |written| not_after(written, ACCOUNT, "user", "rival");
    stm_under_a_session_with_the_lock_held, [],
        async |_, _| Ok(()),
        async |client: Client, session: Session| {
            written_with_the_lock_held(&client, &session, true, "user").await
        },
        async |client: Client, session: Session| {
            written_with_the_lock_held(&client, &session, true, "rival").await
        },
        |written| not_after(written, ACCOUNT, "user", "rival");
    block_of_ids, [IDS],
        async |client: Client, _session| client.ids("x").block(100).next().await.map(drop),
        async |client: Client, _session| client.ids("x").block(10).next().await.map(drop),
        async |client: Client, _session| client.ids("x").block(1_000).next().await.map(drop),
        |written| written.steps(IDS, 100, 10, 1_000);
    semaphore_resize, [LIMIT],
        async |client: Client, _session| client.semaphore("x", Limit::Initially(2)).resize(3).await,
        async |client: Client, _session| client.semaphore("x", Limit::Initially(2)).resize(4).await,
        async |client: Client, _session| {
            client.semaphore("x", Limit::Initially(2)).resize(5).await?;
            assert_eq!(client.semaphore("x", 5).available().await?, 5);
            Ok(())
        },
        |written| not_after(written, LIMIT, "4", "5");
    mark_of_a_panic, [POISON],
        async |client: Client, session: Session| panics(&client, &session).await,
        async |client: Client, session: Session| {
            let mutex = client.mutex("x");
            let guard = mutex.lock(&session).await?;
            assert!(mutex.clear_poison(&guard).await?);
            guard.release().await
        },
        // Its mark is cleared by nobody.
        async |client: Client, session: Session| panics(&client, &session).await,
        |written| {
            let changes = written.commits.iter().flat_map(|commit| &commit.changes);
            let marks = changes.filter(|change| {
                change.kv.as_ref().is_some_and(|kv| kv.key == POISON)
            });
            let last = marks.last().map(|change| change.r#type());
            assert!(written.rivals == 0 || last == Some(EventType::Put), "{last:?}");
            written.deleted(POISON)
        };
}

/// Who was dropped while a block was on its way goes on, with other numbers than anybody else.
#[tokio::test(start_paused = true)]
async fn no_number_is_given_out_twice() {
    let visited = at_every_call(async |at| {
        let world = World::new().await;
        let (ids, others) = (world.user.0.ids("x"), world.other.0.ids("x"));
        let (ids, others) = (ids.block(3), others.block(2));
        let given = std::sync::Mutex::new(BTreeSet::new());
        let take = async |ids: &IdBlocks, times: usize| {
            for _ in 0..times {
                let number = ids.next().await?;
                assert!(given.lock().unwrap().insert(number), "{at}: {number} again");
            }
            Ok::<_, Error>(())
        };
        take(&others, 1).await.unwrap();
        // Blocks of its own, then one that somebody else was faster than.
        let of_user = async {
            take(&ids, 6).await?;
            take(&others, 3).await?;
            take(&ids, 2).await
        };
        let Stopped { held, .. } = world.stop(at, of_user).await;
        let reached = held.is_reached();
        // One that was not reached would be by what follows.
        let held = reached.then_some(held);
        in_time(at, "the other one", take(&others, 3)).await;
        in_time(at, "the user", take(&ids, 4)).await;
        drop(held);
        tokio::time::sleep(QUIET).await;
        in_time(at, "the other one", take(&others, 3)).await;
        in_time(at, "the user", take(&ids, 4)).await;
        reached
    })
    .await;
    assert!(visited >= 4 * 4, "{visited} calls only");
}
