//! Settings: published with a check and once, followed as they are, and never seen torn.

use std::sync::Arc;
use std::time::Duration;

use quorate_recipes::config::{Expect, Rule, Source};
use quorate_recipes::store::faulty::{Fault, Faulty, Outage};
use quorate_recipes::{Client, Config, Error};
use serde::{Deserialize, Serialize};

use super::{cut_time_and_again, session, watched};
use crate::support::{soon, until};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Limits {
    rps: u32,
}

fn rps(rps: u32) -> Limits {
    Limits { rps }
}

/// The versions in the history and their values, newest first.
async fn history(config: &Config<Limits>) -> Vec<(u64, u32)> {
    let entries = config.history().await.unwrap().into_iter();
    entries
        .map(|entry| (entry.version, entry.value.unwrap().rps))
        .collect()
}

/// Publishing compares, the history is bounded and outlives a compaction, and old values come back.
pub async fn publications_replace_what_they_expect(client: &Client) {
    let session = session(client).await;
    let config = client.config::<Limits>("shop/limits").keep_history(3);
    assert!(config.get().await.unwrap().is_none());
    let first = config.publish(&session, &rps(1), Expect::Absent).await;
    let first = first.unwrap();
    let again = config.publish(&session, &rps(2), Expect::Absent).await;
    assert!(matches!(again, Err(Error::Conflict)), "{again:?}");
    let mut at = first;
    for n in 2..=5 {
        let over = Expect::Revision(at.revision);
        at = config.publish(&session, &rps(n), over).await.unwrap();
    }
    let stale = Expect::Revision(first.revision);
    let refused = config.publish(&session, &rps(9), stale).await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    assert_eq!(history(&config).await, [(5, 5), (4, 4), (3, 3)]);
    let back = config.with_note("not used");
    let back = back.rollback(&session, 3, "too fast", Expect::Any).await;
    assert_eq!(back.unwrap().version, 6);
    let config = client.config::<Limits>("shop/limits");
    let now = config.get().await.unwrap().unwrap();
    assert_eq!((now.value.unwrap().rps, now.note.as_str()), (3, "too fast"));
    assert_eq!(history(&config).await, [(6, 3), (5, 5), (4, 4)]);
    let stale = config.remove(&session, stale).await;
    assert!(matches!(stale, Err(Error::Conflict)), "{stale:?}");
    let over = Expect::Revision(now.revision);
    assert!(config.remove(&session, over).await.unwrap().is_some());
    assert!(config.get().await.unwrap().is_none());
    assert_eq!(config.remove(&session, Expect::Any).await.unwrap(), None);
    let next = config.publish(&session, &rps(7), Expect::Absent).await;
    assert_eq!(next.unwrap().version, 7);
}

/// Followers show what is published, in order, however often their watches are cut; what they cannot use
/// replaces nothing; and they say what they run.
pub async fn followers_show_what_is_published(client: &Client) {
    let session = session(client).await;
    let (store, theirs) = watched(client);
    let config = client.config::<Limits>("shop/follow");
    config
        .publish(&session, &rps(1), Expect::Any)
        .await
        .unwrap();
    let follow = theirs.config::<Limits>("shop/follow").follow();
    let mut following = follow
        .validate(|limits| match limits.rps {
            0 => Err("nothing at all".to_owned()),
            _ => Ok(()),
        })
        .await
        .unwrap();
    let acknowledging = config.follow().instance("w/1").acknowledge(&session);
    let acknowledging = acknowledging.await.unwrap();
    cut_time_and_again(&store, 1).await;
    let mut seen = following.borrow().revision;
    for n in 2..12 {
        let at = config
            .publish(&session, &rps(n), Expect::Any)
            .await
            .unwrap();
        if n % 3 == 0 {
            store.cut_watches();
        }
        let view = following.wait_for(|view| view.revision == at.revision);
        let view = soon("the value", view).await.unwrap();
        assert_eq!(
            (view.value.as_deref(), view.source),
            (Some(&rps(n)), Source::Store)
        );
        assert!(view.revision > seen);
        seen = view.revision;
    }
    let bad = config
        .publish(&session, &rps(0), Expect::Any)
        .await
        .unwrap();
    let view = following.wait_for(|view| view.rejected.is_some());
    let view = soon("the rejection", view).await.unwrap();
    assert_eq!(view.rejected.clone().unwrap().revision, bad.revision);
    assert_eq!(
        (view.value.as_deref(), view.revision),
        (Some(&rps(11)), seen)
    );
    until("the acknowledgement", async || {
        let told = config.acknowledgements().await.unwrap();
        let running = told.first().map(|told| told.running["follow"].revision);
        told.len() == 1 && told[0].instance == "w/1" && running == Some(bad.revision)
    })
    .await;
    drop(acknowledging);
    until("nobody", async || {
        config.acknowledgements().await.unwrap().is_empty()
    })
    .await;
}

/// Selected instances try a value; promoted it is for all, withdrawn for nobody.
pub async fn gray_releases_select_by_rule(client: &Client) {
    let session = session(client).await;
    let config = client.config::<Limits>("shop/gray");
    config
        .publish(&session, &rps(1), Expect::Any)
        .await
        .unwrap();
    let mut eu = config.follow().label("zone", "eu").await.unwrap();
    let mut us = config.follow().label("zone", "us").await.unwrap();
    let rule = Rule::new("canary").label("zone", "eu");
    for (n, promoted) in [(2, false), (3, true)] {
        config
            .gray(&session, &rule, &rps(n), Expect::Absent)
            .await
            .unwrap();
        let tries = eu.wait_for(|view| view.value.as_deref() == Some(&rps(n)));
        let tries = soon("the canary", tries).await.unwrap();
        assert_eq!(tries.parts["gray"].rule.as_deref(), Some("canary"));
        assert_eq!(us.borrow().value.as_deref(), Some(&rps(1)));
        match promoted {
            true => drop(
                config
                    .promote(&session, "canary", Expect::Any)
                    .await
                    .unwrap(),
            ),
            false => assert!(config.withdraw(&session, "canary").await.unwrap()),
        }
        let wanted = if promoted { n } else { 1 };
        for following in [&mut eu, &mut us] {
            let ended = following.wait_for(|view| {
                view.parts["gray"].rule.is_none() && view.value.as_deref() == Some(&rps(wanted))
            });
            soon("the end", ended).await.unwrap();
        }
        assert!(config.gray_releases().await.unwrap().is_empty());
    }
}

/// Two publish a group at the same time, time and again: nobody sees a part of it.
pub async fn groups_are_never_torn(client: &Client) {
    const ROUNDS: u32 = 30;
    #[derive(Debug, Serialize, Deserialize)]
    struct Pair {
        a: u32,
        b: u32,
    }
    let group = client.config_group::<Pair>("pairs");
    let publish = async |n: u32, session| {
        let both = group.publish().set("a", &n, Expect::Any);
        both.set("b", &n, Expect::Any).commit(session).await
    };
    let (one, other) = (session(client).await, session(client).await);
    let first = publish(0, &one).await.unwrap();
    let (store, theirs) = watched(client);
    let mut following = theirs.config_group::<Pair>("pairs").follow().await.unwrap();
    let reading = async {
        let mut seen = first;
        loop {
            let view = soon("a change", following.changed()).await.unwrap();
            let Some(pair) = view.value.clone() else {
                panic!("no value after one")
            };
            assert_eq!((pair.a, view.rejected.as_ref()), (pair.b, None));
            assert!(view.revision >= seen);
            seen = view.revision;
            if pair.a == 1_000 {
                return;
            }
        }
    };
    let publishing = async {
        for n in 1..ROUNDS {
            let both = tokio::join!(publish(n, &one), publish(100 + n, &other));
            both.0.unwrap();
            both.1.unwrap();
            if n % 10 == 0 {
                store.cut_watches();
            }
        }
        publish(1_000, &one).await.unwrap();
    };
    tokio::join!(reading, publishing);
    let back = group.rollback(&one, first, "as it was").await.unwrap_err();
    assert!(matches!(back, Error::Invalid(_)), "older than the history");
    let published = client.config::<u32>("pairs/a").history().await.unwrap();
    assert_eq!(published[0].version, u64::from(2 * ROUNDS));
}

/// Lost and late answers: each publication once, and none after a later one.
pub async fn publications_survive_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let cut = Client::new(faulty.clone());
    let session = session(&cut).await;
    let config = cut.config::<Limits>("shop/lost");
    for (round, faults) in [
        vec![Fault::NotSent, Fault::Unanswered],
        vec![Fault::Unanswered, Fault::Late],
        vec![Fault::Late, Fault::Late],
    ]
    .into_iter()
    .enumerate()
    {
        let n = u32::try_from(round).unwrap();
        faulty.plan("quorate/lane/", faults.clone());
        let at = config
            .publish(&session, &rps(n), Expect::Any)
            .await
            .unwrap();
        assert_eq!(at.version, u64::from(2 * n + 1), "{faults:?}");
        let over = Expect::Revision(at.revision);
        config.publish(&session, &rps(100), over).await.unwrap();
        assert_eq!(faulty.deliver().await.1, 0, "{faults:?}");
        let now = config.get().await.unwrap().unwrap();
        assert_eq!((now.version, now.value.unwrap().rps), (at.version + 1, 100));
    }
}

/// Out of reach, a program starts from the last value it had on disk, and goes on with the store's.
pub async fn cold_starts_have_the_last_value(client: &Client) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limits");
    let faulty = Faulty::new(Arc::clone(client.store()));
    let cut = Client::new(faulty.clone());
    let session = session(client).await;
    let config = client.config::<Limits>("shop/cold");
    config
        .publish(&session, &rps(1), Expect::Any)
        .await
        .unwrap();
    let theirs = cut.config::<Limits>("shop/cold");
    let following = theirs.follow().snapshot(&path).await.unwrap();
    assert_eq!(following.borrow().source, Source::Store);
    until("the snapshot", async || path.exists()).await;
    drop(following);
    faulty.disconnect(Outage::Refused);
    let at = config
        .publish(&session, &rps(2), Expect::Any)
        .await
        .unwrap();
    let started = soon("the start", async { theirs.follow().snapshot(&path).await }).await;
    let mut following = started.unwrap();
    let view = following.borrow();
    assert_eq!(
        (view.source, view.value.as_deref()),
        (Source::Snapshot, Some(&rps(1)))
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    faulty.reconnect();
    let view = following.wait_for(|view| view.source == Source::Store);
    let view = soon("the store", view).await.unwrap();
    assert_eq!(
        (view.value.as_deref(), view.revision),
        (Some(&rps(2)), at.revision)
    );
}
