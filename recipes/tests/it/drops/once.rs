//! Results that are computed once, dropped everywhere.

use std::time::Duration;

use quorate_recipes::{Client, Error, OnceCell, OnceError, Revision, Session};

use super::{HOLD, QUIET, Stopped, World, at_every_call, in_time, joined};

/// What is published stays.
const PUBLISHED: [&str; 2] = ["quorate/once/x/manifest", "quorate/once/x/chunk/"];

/// The result, which is `result` unless somebody else computes it.
pub(super) async fn compute(
    cell: &OnceCell<u32>,
    session: &Session,
    result: u32,
    takes: Duration,
) -> Result<u32, Error> {
    let init = || async {
        tokio::time::sleep(takes).await;
        Ok::<_, Error>(result)
    };
    match cell.get_or_try_init(session, init).await {
        Ok(value) => Ok(*value),
        Err(OnceError::Failed(error) | OnceError::Init(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

dropped_everywhere! {
    computing_and_taking_back, PUBLISHED, async |client: Client, session: Session, hold| {
        let cell = client.once("x");
        compute(&cell, &session, 1, hold).await?;
        if let Some(published) = cell.published().await? {
            cell.invalidate(published.revision).await?;
        }
        Ok(())
    };
    refreshing, ["quorate/once/x/manifest", "quorate/once/x/chunk/", "quorate/once/x/attempts"], async |client: Client, session: Session, hold| {
        let cell = client.once::<u32>("x").max_attempts(9);
        let cell = cell.cache_failures(Duration::from_secs(3));
        compute(&cell, &session, 1, hold).await?;
        let (published, _) = cell.changed(Revision(0)).await?;
        let init = || async move {
            tokio::time::sleep(hold).await;
            Ok::<_, Error>(2)
        };
        match cell.refresh(&session, published.revision, init).await {
            Ok(_) => {}
            // The other one took it back.
            Err(OnceError::Failed(Error::Conflict)) => {}
            Err(OnceError::Failed(error) | OnceError::Init(error)) => return Err(error),
            Err(other) => panic!("{other}"),
        }
        cell.wait().await?;
        cell.invalidate(published.revision).await?;
        cell.forget_failures().await
    };
    computing_in_vain, [], async |client: Client, session: Session, hold| {
        let cell = client.once::<u32>("x");
        let init = || async {
            tokio::time::sleep(hold).await;
            Err("no result")
        };
        match cell.get_or_try_init(&session, init).await {
            Err(OnceError::Init("no result")) => Ok(()),
            Err(OnceError::Failed(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    };
}

/// One who waits, without computing, or as a candidate, while somebody else computes.
#[tokio::test(start_paused = true)]
async fn waiting_for_a_result() {
    for as_candidate in [false, true] {
        at_every_call(async |at| {
            let world = World::new().await;
            let of_other = |takes| {
                let (client, session) = world.other.clone();
                async move { compute(&client.once("x"), &session, 2, takes).await }
            };
            let other = tokio::spawn(of_other(HOLD));
            tokio::time::sleep(HOLD / 4).await;
            let (client, session) = &world.user;
            let cell = client.once::<u32>("x");
            let waits = async {
                let got = match as_candidate {
                    true => compute(&cell, session, 1, Duration::ZERO).await?,
                    false => *cell.wait().await?,
                };
                assert_eq!(got, 2, "{at}");
                Ok(())
            };
            let Stopped { held, .. } = world.stop(at, waits).await;
            let reached = held.is_reached();
            held.release();
            assert_eq!(in_time(at, "the other one", joined(other)).await, 2);
            tokio::time::sleep(QUIET).await;
            assert_eq!(world.left(&PUBLISHED), [""; 0], "{at}");
            assert_eq!(
                in_time(at, "the next one", of_other(Duration::ZERO)).await,
                2
            );
            reached
        })
        .await;
    }
}
