//! Writes whose outcome nobody knows once their future was dropped: each took place once or not at all,
//! also when somebody else's came between, and stands in nobody's way.

use std::sync::Arc;
use std::time::Duration;

use quorate_proto::mvccpb::event::EventType;
use quorate_recipes::config::{Expect, Rule};
use quorate_recipes::store::Commit;
use quorate_recipes::{Client, Error, KeptState, Revision, Session};

use super::once::compute;
use super::{Outcome, QUIET, Stopped, World, at_every_call, in_time, joined};

const BARRIER: &str = "quorate/barrier/x/set";
const LATCH: &str = "quorate/latch/x/state";
const COUNTER: &str = "quorate/counter/x/value";
const CONFIG: &str = "quorate/config/x/";
const SETTING: &str = "quorate/config/x/live/n/value";
const RULE: &str = "quorate/config/x/live/n/gray/canary";

dropped_everywhere! {
    config_acknowledged, ["quorate/config/x/live/", "quorate/config/x/history/"],
        async |client: Client, session: Session, hold| {
            config_published(&client, &session, 1).await?;
            let config = client.config::<u32>("x/n");
            let follow = config.follow().instance(session.lease().to_string());
            let mut following = follow.acknowledge(&session).await?;
            tokio::time::sleep(hold).await;
            config_published(&client, &session, 2).await?;
            following.wait_for(|view| view.value.is_some()).await.map(drop)
        };
    rate_limiter, ["quorate/rate/x/rule"], async |client: Client, session: Session, _| {
        let limiter = client.rate_limiter("x", 2, Duration::from_secs(5));
        limiter.acquire(&session, 2).await
    };
}

/// What was written since the user began, and how often the rival had written by then.
pub(super) struct Written {
    pub(super) commits: Vec<Arc<Commit>>,
    pub(super) rivals: usize,
}

impl Written {
    /// The values that a key was given, in order.
    pub(super) fn values(&self, key: &str) -> Vec<String> {
        let changes = self.commits.iter().flat_map(|commit| &commit.changes);
        let puts = changes.filter(|change| change.r#type() == EventType::Put);
        let kvs = puts.filter_map(|change| change.kv.as_ref());
        let of_key = kvs.filter(|kv| kv.key.starts_with(key.as_bytes()));
        of_key
            .map(|kv| String::from_utf8_lossy(&kv.value).into_owned())
            .collect()
    }

    /// How often it was given a value with this in it.
    pub(super) fn given(&self, key: &str, value: &str) -> usize {
        let values = self.values(key).into_iter();
        values.filter(|now| now.contains(value)).count()
    }

    /// How often a key was deleted.
    pub(super) fn deleted(&self, key: &str) -> usize {
        let changes = self.commits.iter().flat_map(|commit| &commit.changes);
        let of_key = changes.filter(|change| {
            change.r#type() == EventType::Delete
                && change.kv.as_ref().is_some_and(|kv| kv.key == key)
        });
        of_key.count()
    }

    /// How often a number went up by `user`; otherwise only by `rival`.
    pub(super) fn steps(&self, key: &str, mut before: i64, user: i64, rival: i64) -> usize {
        let values = self.values(key).into_iter();
        let steps = values.map(|value| {
            let now: i64 = value.parse().unwrap();
            now - std::mem::replace(&mut before, now)
        });
        let mut others = steps.collect::<Vec<_>>();
        let all = others.len();
        others.retain(|step| *step != user);
        assert_eq!(others, vec![rival; self.rivals]);
        all - others.len()
    }
}

/// The user's write is dropped everywhere, in half of the worlds with the rival's coming between; and the
/// rival writes again when all is quiet. `times` says how often the user's write took place.
pub(super) async fn once_or_not_at_all<P, W, R, FutP, FutW, FutR>(
    durable: &[&str],
    (prepare, write, rival): (P, W, R),
    times: impl Fn(&Written) -> usize,
) where
    P: Fn(Client, Session) -> FutP,
    W: Fn(Client, Session) -> FutW,
    R: Fn(Client, Session) -> FutR,
    FutP: Future<Output = Outcome>,
    FutW: Future<Output = Outcome>,
    FutR: Future<Output = Outcome> + Send + 'static,
{
    for with_rival in [false, true] {
        let mut done = 0;
        at_every_call(async |at| {
            let world = World::new().await;
            let of_rival = || rival(world.other.0.clone(), world.other.1.clone());
            prepare(world.other.0.clone(), world.other.1.clone())
                .await
                .unwrap();
            let since = Revision(world.store.revision().0 + 1);
            let of_user = write(world.user.0.clone(), world.user.1.clone());
            let Stopped { held, finished } = world.stop(at, of_user).await;
            let reached = held.is_reached();
            if with_rival && reached {
                // It may have to wait for what the user still has.
                let between = tokio::spawn(of_rival());
                tokio::time::sleep(Duration::from_secs(1)).await;
                held.release();
                in_time(at, "the rival", joined(between)).await;
            } else {
                held.release();
            }
            tokio::time::sleep(QUIET).await;
            let written = Written {
                commits: world.store.history(since),
                rivals: usize::from(with_rival && reached),
            };
            let times = times(&written);
            assert!(times <= 1, "{at}, rival: {with_rival}: {times} times");
            assert!(!finished || times == 1, "{at}: told, and not done");
            done += times;
            assert_eq!(world.left(durable), [""; 0], "{at}, rival: {with_rival}");
            in_time(at, "the next one", of_rival()).await;
            reached
        })
        .await;
        assert!(done > 0, "it never takes place");
    }
}

macro_rules! once_or_not_at_all {
    ($($name:ident, $durable:expr, $prepare:expr, $write:expr, $rival:expr, $times:expr;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            super::outcomes::once_or_not_at_all(&$durable, ($prepare, $write, $rival), $times).await;
        }
    )*};
}

const SECOND: Duration = Duration::from_secs(1);

once_or_not_at_all! {
    barrier_set, [BARRIER],
        async |_, _| Ok(()),
        async |client: Client, session: Session| {
            let barrier = client.barrier("x").with_info("the user's");
            barrier.set(&session).await.map(drop)
        },
        async |client: Client, session: Session| {
            let barrier = client.barrier("x");
            barrier.lift().await?;
            barrier.set(&session).await.map(drop)
        },
        |written| written.given(BARRIER, "the user's");
    // Only the user lifts: what the rival sets anew stays set.
    barrier_lift, [BARRIER],
        async |client: Client, session: Session| client.barrier("x").set(&session).await.map(drop),
        async |client: Client, _session| client.barrier("x").lift().await.map(drop),
        async |client: Client, session: Session| client.barrier("x").set(&session).await.map(drop),
        |written| written.deleted(BARRIER);
    latch_init, [LATCH],
        async |_, _| Ok(()),
        async |client: Client, session: Session| client.latch("x").init(&session, 5).await,
        async |client: Client, session: Session| client.latch("x").init(&session, 5).await,
        |written| written.values(LATCH).len();
    latch_count_down, [LATCH],
        async |client: Client, session: Session| client.latch("x").init(&session, 9).await,
        async |client: Client, session: Session| {
            client.latch("x").count_down(&session).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.latch("x").count_down(&session).await.map(drop)
        },
        |written| written.values(LATCH).len() - written.rivals;
    latch_reset, [LATCH],
        async |client: Client, session: Session| {
            client.latch("x").init(&session, 1).await?;
            client.latch("x").count_down(&session).await.map(drop)
        },
        async |client: Client, session: Session| client.latch("x").reset(&session).await,
        async |client: Client, session: Session| {
            client.latch("x").count_down(&session).await.map(drop)
        },
        |written| written.given(LATCH, r#""left":1"#);
    counter_add, [COUNTER],
        async |client: Client, session: Session| {
            client.counter("x").add(&session, 100).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.counter("x").add(&session, 1).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.counter("x").add(&session, 1_000).await.map(drop)
        },
        |written| written.steps(COUNTER, 100, 1, 1_000);
    counter_set, [COUNTER],
        async |client: Client, session: Session| {
            client.counter("x").set(&session, 100).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.counter("x").set(&session, 7).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.counter("x").set(&session, 1_000).await.map(drop)
        },
        |written| written.values(COUNTER).iter().filter(|now| *now == "7").count();
    counter_compare_and_set, [COUNTER],
        async |client: Client, session: Session| {
            client.counter("x").set(&session, 100).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.counter("x").compare_and_set(&session, 100, 7).await.map(drop)
        },
        async |client: Client, session: Session| {
            client.counter("x").add(&session, 1_000).await.map(drop)
        },
        |written| written.values(COUNTER).iter().filter(|now| *now == "7").count();
    // The first addition of a session folds in the background.
    adder_add, ["quorate/adder/x/"],
        async |client: Client, _session| ended_cells(&client).await,
        async |client: Client, session: Session| client.adder("x").add(&session, 1).await,
        async |client: Client, session: Session| client.adder("x").add(&session, 1_000).await,
        |written| {
            let cells = written.values("quorate/adder/x/cell/").into_iter();
            let sums = cells.map(|sum| sum.parse::<i64>().unwrap());
            sums.filter(|sum| *sum < 1_000).count()
        };
    adder_fold, ["quorate/adder/x/"],
        async |client: Client, _session| ended_cells(&client).await,
        async |client: Client, _session| client.adder("x").fold().await.map(drop),
        async |client: Client, _session| {
            client.adder("x").fold().await?;
            assert_eq!(client.adder("x").sum().await?, 30);
            Ok(())
        },
        |written| written.given("quorate/adder/x/base", "30");
    rate_rule, ["quorate/rate/x/rule"],
        async |client: Client, session: Session| {
            client.rate_limiter("x", 4, SECOND).acquire(&session, 1).await
        },
        async |client: Client, session: Session| {
            let limiter = client.rate_limiter("x", 4, SECOND);
            limiter.set_rule(&session, 5, SECOND).await.map(drop)
        },
        async |client: Client, session: Session| {
            let limiter = client.rate_limiter("x", 4, SECOND);
            let limiter = limiter.set_rule(&session, 6, SECOND).await?;
            match limiter.acquire(&session, 1).await {
                // The user's came after it.
                Err(Error::Mismatch { .. }) => Ok(()),
                acquired => acquired,
            }
        },
        |written| written.given("quorate/rate/x/rule", r#""limit":5"#);
    config_publish, [CONFIG],
        async |client: Client, session: Session| config_published(&client, &session, 1).await,
        async |client: Client, session: Session| config_published(&client, &session, 7).await,
        async |client: Client, session: Session| config_published(&client, &session, 2).await,
        |written| {
            let entries = written.given("quorate/config/x/history/n/", r#""value":7"#);
            let published = written.given(SETTING, r#""value":7"#);
            assert_eq!(entries, published);
            published
        };
    config_group, [CONFIG],
        async |client: Client, session: Session| config_published(&client, &session, 1).await,
        async |client: Client, session: Session| {
            let group = client.config_group::<()>("x");
            let both = group.publish().set("n", &7, Expect::Any).set("m", &7, Expect::Any);
            both.commit(&session).await.map(drop)
        },
        async |client: Client, session: Session| config_published(&client, &session, 2).await,
        |written| {
            let both = written.given("quorate/config/x/live/", r#""value":7"#);
            assert_eq!(both % 2, 0);
            both / 2
        };
    config_rollback, [CONFIG],
        async |client: Client, session: Session| {
            config_published(&client, &session, 7).await?;
            config_published(&client, &session, 1).await
        },
        async |client: Client, session: Session| {
            let config = client.config::<u32>("x/n");
            config.rollback(&session, 1, "", Expect::Any).await.map(drop)
        },
        async |client: Client, session: Session| config_published(&client, &session, 2).await,
        |written| written.given(SETTING, r#""value":7"#);
    config_remove, [CONFIG],
        async |client: Client, session: Session| config_published(&client, &session, 1).await,
        async |client: Client, session: Session| {
            client.config::<u32>("x/n").remove(&session, Expect::Any).await.map(drop)
        },
        async |client: Client, session: Session| config_published(&client, &session, 2).await,
        |written| written.deleted(SETTING);
    config_gray, [CONFIG],
        async |_, _| Ok(()),
        async |client: Client, session: Session| config_tried(&client, &session, 7).await,
        async |client: Client, session: Session| config_tried(&client, &session, 2).await,
        |written| written.given(RULE, r#""value":7"#);
    config_promote, [CONFIG],
        async |client: Client, session: Session| config_tried(&client, &session, 7).await,
        async |client: Client, session: Session| {
            let config = client.config::<u32>("x/n");
            config.promote(&session, "canary", Expect::Any).await.map(drop)
        },
        async |client: Client, session: Session| config_published(&client, &session, 2).await,
        |written| {
            let promoted = written.given(SETTING, r#""value":7"#);
            assert_eq!(written.deleted(RULE), promoted);
            promoted
        };
    config_withdraw, [CONFIG],
        async |client: Client, session: Session| config_tried(&client, &session, 1).await,
        async |client: Client, session: Session| {
            client.config::<u32>("x/n").withdraw(&session, "canary").await.map(drop)
        },
        // Only the user withdraws: what the rival begins anew stays.
        async |client: Client, session: Session| config_tried(&client, &session, 2).await,
        |written| written.deleted(RULE);
    result_taken_back, ["quorate/once/x/"],
        async |client: Client, session: Session| published(&client, &session).await,
        async |client: Client, _session| {
            let cell = client.once::<u32>("x");
            let published = cell.published().await?.expect("published before");
            cell.invalidate(published.revision).await
        },
        async |client: Client, session: Session| published(&client, &session).await,
        |written| written.deleted("quorate/once/x/manifest");
    result_published, ["quorate/once/x/"],
        async |_, _| Ok(()),
        async |client: Client, session: Session| published(&client, &session).await,
        async |client: Client, session: Session| published(&client, &session).await,
        |written| written.values("quorate/once/x/manifest").len();
    member_update, [],
        async |_, _| Ok(()),
        async |client: Client, session: Session| {
            let membership = client.group::<&str>("x").join(&session, "comes").await?;
            membership.update("stays").await?;
            membership.leave().await
        },
        async |client: Client, session: Session| {
            let membership = client.group::<&str>("x").join(&session, "other").await?;
            membership.leave().await
        },
        |written| written.given("quorate/member/x/", "stays");
    kept_key_set, [],
        async |_, _| Ok(()),
        async |client: Client, _session| {
            let kept = client.keep("kept/x", "comes").await?;
            kept.set("stays").await?;
            kept.remove().await
        },
        async |client: Client, _session| {
            let kept = client.keep("kept/x", "theirs").yielding().await?;
            kept.wait_for(|state| state == KeptState::Kept).await;
            kept.remove().await
        },
        |written| written.given("kept/x", "stays");
}

async fn config_published(client: &Client, session: &Session, n: u32) -> Outcome {
    let config = client.config::<u32>("x/n");
    config.publish(session, &n, Expect::Any).await.map(drop)
}

async fn config_tried(client: &Client, session: &Session, n: u32) -> Outcome {
    let (config, rule) = (client.config::<u32>("x/n"), Rule::new("canary"));
    config.gray(session, &rule, &n, Expect::Any).await.map(drop)
}

/// What others have added to an adder whose sessions have ended: 30 in all.
async fn ended_cells(client: &Client) -> Outcome {
    for _ in 0..3 {
        let session = client.session().await?;
        client.adder("x").add(&session, 10).await?;
        session.close().await?;
        // The first addition of a session folds in the background.
        tokio::time::sleep(SECOND).await;
    }
    Ok(())
}

async fn published(client: &Client, session: &Session) -> Outcome {
    let cell = client.once("x");
    compute(&cell, session, 1, Duration::ZERO).await.map(drop)
}
