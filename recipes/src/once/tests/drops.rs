//! Operations dropped at every call they make, at every stage of it.

use std::time::Duration;

use super::super::{OnceCell, OnceError};
use super::judge;
use crate::client::Client;
use crate::error::Error;
use crate::keys::Revision;
use crate::session::Session;
use crate::store::faulty::{Calls, Stage};
use crate::store::{Capabilities, Faulty, MemStore};

/// More calls than any operation here makes.
const CALLS_MAX: usize = 100;

/// Longer than anything takes, leases of failures included.
const QUIET: Duration = Duration::from_secs(60);

type Outcome = Result<(), OnceError<&'static str>>;

struct World {
    store: MemStore,
    faulty: Faulty<MemStore>,
    cell: OnceCell<String>,
    session: Session,
    other: OnceCell<String>,
    other_session: Session,
}

fn options(client: &Client) -> OnceCell<String> {
    let cell = client.once("r").cache_failures(Duration::from_secs(5));
    cell.max_attempts(50)
}

/// Of several chunks; what it replaces comes first.
fn text(stale: Revision, by: &str) -> String {
    format!("{stale} {}", by.repeat(50))
}

impl World {
    async fn new(published: bool) -> Self {
        let store = MemStore::with_capabilities(Capabilities {
            max_request_bytes: 64,
            ..Default::default()
        });
        let faulty = Faulty::new(store.clone());
        let clients = [
            Client::builder(faulty.clone()).seed(1).build(),
            Client::builder(store.clone()).seed(2).build(),
        ];
        let [cell, other] = clients.each_ref().map(options);
        let world = Self {
            session: clients[0].session().await.unwrap(),
            other_session: clients[1].session().await.unwrap(),
            store,
            faulty,
            cell,
            other,
        };
        if published {
            world.put(Duration::ZERO).await.unwrap();
        }
        world
    }

    async fn revision(&self) -> Revision {
        let published = self.other.published().await.unwrap();
        published.map_or(Revision(0), |published| published.revision)
    }

    /// The other one computes the first result.
    async fn put(&self, takes: Duration) -> Outcome {
        let init = || async {
            tokio::time::sleep(takes).await;
            Ok(text(Revision(0), "other"))
        };
        let got = self.other.get_or_try_init(&self.other_session, init).await;
        got.map(drop)
    }
}

/// Drops `work` everywhere, with a result there or not, and with somebody computing one meanwhile or not.
async fn everywhere(
    published: bool,
    contended: bool,
    work: impl AsyncFn(&World, Revision) -> Outcome,
) {
    let mut dropped = 0;
    for stage in [Stage::NotSent, Stage::AppliedUnanswered, Stage::Answered] {
        for nth in 1..CALLS_MAX {
            let place = format!("call {nth}, {stage:?}");
            let world = World::new(published).await;
            let revision = world.revision().await;
            let meanwhile = async {
                if contended {
                    world.put(Duration::from_secs(2)).await.unwrap();
                }
                std::future::pending().await
            };
            let dropped_there = async {
                if contended {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
                let held = world.faulty.hold(nth, Calls::Any, stage);
                let reached = tokio::select! {
                    biased;
                    () = held.reached() => true,
                    outcome = work(&world, revision) => {
                        outcome.unwrap_or_else(|error| panic!("{place}: {error}"));
                        held.is_reached()
                    }
                };
                held.release();
                tokio::time::sleep(QUIET).await;
                reached
            };
            let reached = tokio::select! {
                biased;
                () = meanwhile => unreachable!("it never ends"),
                reached = dropped_there => reached,
            };
            let line = world.store.keys("quorate/once/r/turn/");
            assert!(line.is_empty(), "{place}: {line:?}");
            assert_eq!(world.store.leases().len(), 2, "{place}");
            // The next ones get a result, and replace it.
            world.put(Duration::ZERO).await.unwrap();
            let now = world.revision().await;
            let init = || async { Ok::<_, &str>(text(now, "new")) };
            let refreshed = world.other.refresh(&world.other_session, now, init).await;
            assert_eq!(*refreshed.unwrap(), text(now, "new"), "{place}");
            assert_eq!(
                world.other.get().await.unwrap(),
                Some(text(now, "new").into())
            );
            let kept = world.store.keys("quorate/once/r/");
            let of_result = |key: &String| key.contains("/chunk/") || key.ends_with("/manifest");
            assert!(kept.iter().all(of_result), "{place}: {kept:?}");
            let attempts = kept.iter().filter(|key| key.ends_with("/00000000")).count();
            assert_eq!(attempts, 1, "{place}: {kept:?}");
            judge(&world.store, nth as u64);
            if !reached {
                break;
            }
            dropped += 1;
        }
    }
    assert!(dropped >= 3, "{dropped} calls only");
}

#[tokio::test(start_paused = true)]
async fn computing() {
    let work = async |world: &World, _| {
        let init = || async { Ok(text(Revision(0), "mine")) };
        world
            .cell
            .get_or_try_init(&world.session, init)
            .await
            .map(drop)
    };
    everywhere(false, false, work).await;
    everywhere(false, true, work).await;
}

#[tokio::test(start_paused = true)]
async fn failing() {
    let work = async |world: &World, _| {
        let init = || async { Err::<String, _>("no") };
        match world.cell.get_or_try_init(&world.session, init).await {
            Err(OnceError::Init("no")) => Ok(()),
            other => other.map(drop),
        }
    };
    everywhere(false, false, work).await;
    everywhere(false, true, work).await;
}

#[tokio::test(start_paused = true)]
async fn refreshing() {
    everywhere(true, false, async |world: &World, revision| {
        let init = || async { Ok(text(revision, "mine")) };
        let refreshed = world.cell.refresh(&world.session, revision, init);
        refreshed.await.map(drop)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failing_to_refresh() {
    everywhere(true, false, async |world: &World, revision| {
        let init = || async { Err::<String, _>("no") };
        match world.cell.refresh(&world.session, revision, init).await {
            Err(OnceError::Init("no")) => Ok(()),
            other => other.map(drop),
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn waiting() {
    let work =
        async |world: &World, _| world.cell.wait().await.map(drop).map_err(OnceError::Failed);
    everywhere(true, false, work).await;
    everywhere(false, true, work).await;
}

#[tokio::test(start_paused = true)]
async fn taking_back() {
    everywhere(true, false, async |world: &World, revision| {
        Ok(world.cell.invalidate(revision).await?)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn forgetting() {
    everywhere(false, false, async |world: &World, _| {
        // Through the store that does not fail: what is dropped comes after.
        let init = || async { Err::<String, _>("no") };
        let failed = world
            .other
            .get_or_try_init(&world.other_session, init)
            .await;
        assert!(matches!(failed, Err(OnceError::Init("no"))));
        Ok::<(), Error>(world.cell.forget_failures().await?).map_err(OnceError::Failed)
    })
    .await;
}
