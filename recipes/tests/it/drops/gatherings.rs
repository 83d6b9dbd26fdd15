//! Barriers, dropped everywhere.

use std::time::Duration;

use quorate_recipes::{Client, Session};

use super::{HOLD, QUIET, Stopped, World, at_every_call, in_time, joined};

dropped_everywhere! {
    barrier_held, [], async |client: Client, session: Session, hold| {
        let held = client.barrier("x").hold(&session).await?;
        tokio::time::sleep(hold).await;
        held.release().await?;
        client.barrier("x").wait().await
    };
    barrier_set, ["quorate/barrier/x/set"], async |client: Client, session: Session, hold| {
        client.barrier("x").set(&session).await?;
        tokio::time::sleep(hold).await;
        client.barrier("x").lift().await.map(drop)
    };
    barrier_waited_at, [], async |client: Client, session: Session, hold: Duration| {
        if hold.is_zero() {
            // Again, as one that is held and opened once is not waited at for long.
            client.barrier("x").wait().await?;
            return client.barrier("x").wait().await;
        }
        let held = client.barrier("x").hold(&session).await?;
        tokio::time::sleep(hold).await;
        held.release().await
    };
    double_barrier, ["quorate/double-barrier/x/meta"], async |client: Client, session: Session, hold| {
        let barrier = client.double_barrier("x", 2);
        let (one, other) = tokio::join!(barrier.enter(&session), barrier.enter(&session));
        let (one, other) = (one?, other?);
        tokio::time::sleep(hold).await;
        let (one, other) = tokio::join!(one.leave(), other.leave());
        one.and(other)
    };
}

/// One of two who are inside leaves, and is dropped where it waits for the other; and one leaves who
/// waits for somebody whose leave is dropped.
#[tokio::test(start_paused = true)]
async fn leaving_a_double_barrier() {
    let meta = "quorate/double-barrier/x/meta";
    for other_first in [false, true] {
        at_every_call(async |at| {
            let world = World::new().await;
            let enter = |(client, session): (Client, Session)| async move {
                client.double_barrier("x", 2).enter(&session).await
            };
            let other = tokio::spawn(enter(world.other.clone()));
            let inside = enter(world.user.clone()).await.unwrap();
            let other = joined(other).await.unwrap();
            let leaves = tokio::spawn(async move {
                if !other_first {
                    tokio::time::sleep(HOLD).await;
                }
                other.leave().await
            });
            tokio::task::yield_now().await;
            let Stopped { held, .. } = world.stop(at, inside.leave()).await;
            let reached = held.is_reached();
            held.release();
            in_time(at, "the other one's leave", joined(leaves)).await;
            tokio::time::sleep(QUIET).await;
            assert_eq!(world.left(&[meta]), [""; 0], "{at}, first: {other_first}");
            let both = async {
                let (user, other) = (enter(world.user.clone()), enter(world.other.clone()));
                let (user, other) = tokio::join!(user, other);
                let (user, other) = tokio::join!(user?.leave(), other?.leave());
                user.and(other)
            };
            in_time(at, "the next generation", both).await;
            reached
        })
        .await;
    }
}

/// One of two who come, and is dropped: the other one passes with it, or with the next who comes.
#[tokio::test(start_paused = true)]
async fn coming_to_a_barrier_at_which_another_waits() {
    let meta = "quorate/cyclic-barrier/x/meta";
    at_every_call(async |at| {
        let world = World::new().await;
        let come = |(client, session): (Client, Session)| async move {
            client.cyclic_barrier("x", 2).wait(&session).await
        };
        let other = tokio::spawn(come(world.other.clone()));
        tokio::task::yield_now().await;
        let comes = async { come(world.user.clone()).await.map(drop) };
        let Stopped { held, finished } = world.stop(at, comes).await;
        let reached = held.is_reached();
        held.release();
        tokio::time::sleep(QUIET).await;
        if !other.is_finished() {
            assert!(!finished, "{at}: passed alone");
            in_time(at, "the next one", come(world.user.clone())).await;
        }
        in_time(at, "the other one", joined(other)).await;
        tokio::time::sleep(QUIET).await;
        assert_eq!(world.left(&[meta]), [""; 0], "{at}");
        reached
    })
    .await;
}
