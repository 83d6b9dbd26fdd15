//! Following: what is shown is what was published, never older after newer, and what cannot be used
//! replaces nothing.

use std::time::Duration;

use futures::FutureExt;

use super::{World, quiet, until};
use crate::config::{Expect, Source};
use crate::error::Error;
use crate::keys::KeyRange;
use crate::store::faulty::{Fault, Outage};
use crate::store::{Counting, MemStore};
use crate::{Client, Revision};

#[tokio::test(start_paused = true)]
async fn values_come_as_they_are_published() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    let mut following = config.follow().await.unwrap();
    let view = following.borrow();
    assert_eq!((view.source, view.revision), (Source::Nothing, Revision(0)));
    assert!(view.value.is_none() && view.rejected.is_none());
    for value in 1..4 {
        let at = config.publish(session, &value, Expect::Any).await.unwrap();
        let view = following.changed().await.unwrap();
        assert_eq!(view.value.as_deref(), Some(&value));
        assert_eq!((view.revision, view.source), (at.revision, Source::Store));
        assert_eq!(view.parts["n"].version, Some(at.version));
    }
    // Others' settings, histories and acknowledgements wake nobody.
    let other = world.client.config::<u32>("app/m");
    other.publish(session, &9, Expect::Any).await.unwrap();
    let _acknowledging = config.follow().acknowledge(session).await.unwrap();
    let more = tokio::time::timeout(Duration::from_secs(9), following.changed()).await;
    assert!(more.is_err(), "{more:?}");
    // A slow reader gets the last; a clone has its own place.
    let mut slow = following.clone();
    for value in 4..9 {
        config.publish(session, &value, Expect::Any).await.unwrap();
    }
    assert_eq!(until(&mut following, 8).await.parts["n"].version, Some(8));
    assert_eq!(*slow.changed().await.unwrap().value.clone().unwrap(), 8);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_used_replaces_nothing() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    config.publish(session, &1, Expect::Any).await.unwrap();
    let follow = config.follow().validate(|value| match value {
        13 => Err("unlucky".to_owned()),
        66 => panic!("what a number"),
        _ => Ok(()),
    });
    let mut following = follow.acknowledge(session).instance("i").await.unwrap();
    let text = world.client.config::<String>("app/n");
    for (bad, reason) in [(13, "unlucky"), (66, "panicked")] {
        let at = config.publish(session, &bad, Expect::Any).await.unwrap();
        let view = following.changed().await.unwrap();
        let rejected = view.rejected.clone().unwrap();
        assert_eq!(rejected.revision, at.revision);
        assert!(rejected.reason.contains(reason), "{rejected:?}");
        assert_eq!(view.value.as_deref(), Some(&1));
    }
    let wrong = text.publish(session, &"x".repeat(9_999), Expect::Any).await;
    let view = following.changed().await.unwrap();
    let rejected = view.rejected.clone().unwrap();
    assert_eq!(rejected.revision, wrong.unwrap().revision);
    assert!(rejected.reason.len() <= 1_024);
    assert_eq!(
        (view.value.as_deref(), view.source),
        (Some(&1), Source::Store)
    );
    quiet().await;
    let told = config.acknowledgements().await.unwrap();
    assert_eq!(told[0].rejected, Some(rejected));
    assert_eq!(told[0].running["n"].version, Some(1));
    // Bytes of somebody else, and nothing at all.
    world.other.put(config.key(), "no JSON").await.unwrap();
    let view = following.changed().await.unwrap();
    assert!(view.rejected.is_some() && view.value.as_deref() == Some(&1));
    world.other.delete(config.key()).await.unwrap();
    let view = following.changed().await.unwrap();
    assert!(view.rejected.clone().unwrap().reason.contains("any more"));
    assert_eq!(view.value.as_deref(), Some(&1));
    let at = config.publish(session, &2, Expect::Absent).await.unwrap();
    let view = following.changed().await.unwrap();
    assert_eq!(
        (view.value.as_deref(), view.revision),
        (Some(&2), at.revision)
    );
    assert!(view.rejected.is_none());
    quiet().await;
    assert_eq!(config.acknowledgements().await.unwrap()[0].rejected, None);
}

#[tokio::test(start_paused = true)]
async fn views_survive_outages_and_compactions() {
    let world = World::new().await;
    let (config, others) = (world.config(), world.others());
    let by = &world.other_session;
    others.publish(by, &1, Expect::Any).await.unwrap();
    let mut following = config.follow().await.unwrap();
    for round in 2..6 {
        world.faulty.disconnect(Outage::Refused);
        let stale = following.wait_for(|view| view.stale_since.is_some());
        let stale = stale.await.unwrap();
        assert_eq!(stale.value.as_deref(), Some(&(round - 1)));
        others.publish(by, &100, Expect::Any).await.unwrap();
        others.publish(by, &round, Expect::Any).await.unwrap();
        if round % 2 == 0 {
            world.store.compact(world.store.revision()).unwrap();
        }
        world.faulty.reconnect();
        let fresh = following.wait_for(|view| view.stale_since.is_none());
        fresh.await.unwrap();
        until(&mut following, round).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_runs_what() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    config.publish(session, &1, Expect::Any).await.unwrap();
    let one = config.follow().instance("a/1").acknowledge(session);
    let mut one = one.await.unwrap();
    let others = world.others();
    let two = others.follow().acknowledge(&world.other_session);
    let two = two.await.unwrap();
    let at = config.publish(session, &2, Expect::Any).await.unwrap();
    until(&mut one, 2).await;
    quiet().await;
    let told = config.acknowledgements().await.unwrap();
    let ids: Vec<_> = told.iter().map(|told| told.instance.as_str()).collect();
    assert_eq!(ids, ["a/1", "other"], "the client's label unless given");
    for told in &told {
        assert_eq!(told.running["n"].revision, at.revision);
        assert_eq!((told.source, &told.rejected), (Source::Store, &None));
    }
    assert_eq!(told[1].by.label, "other");
    // It comes back after a lost session, through lost answers, as it is then.
    world
        .faulty
        .plan("quorate/config/app/ack", [Fault::Unanswered, Fault::Late]);
    assert!(world.store.expire(told[0].lease));
    let at = others.publish(&world.other_session, &3, Expect::Any).await;
    quiet().await;
    world.faulty.deliver().await;
    let told = config.acknowledgements().await.unwrap();
    assert_eq!(told[0].running["n"].revision, at.unwrap().revision);
    // The one that came last has the name; the one before comes back when that has gone.
    let rival = others
        .follow()
        .instance("a/1")
        .acknowledge(&world.other_session);
    let rival = rival.await.unwrap();
    quiet().await;
    let told = config.acknowledgements().await.unwrap();
    assert_eq!((told.len(), &told[0].by.label[..]), (2, "other"));
    let before = world.store.revision();
    quiet().await;
    assert_eq!(world.store.revision(), before, "they do not fight");
    drop(rival);
    quiet().await;
    assert_eq!(config.acknowledgements().await.unwrap()[0].by.label, "one");
    drop((one, two));
    quiet().await;
    assert_eq!(config.acknowledgements().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn followers_are_quiet_and_end() {
    let store = MemStore::new();
    let counting = Counting::new(store.clone());
    let client = Client::new(counting.clone());
    let publisher = Client::new(store.clone());
    let session = publisher.session().await.unwrap();
    let theirs = publisher.config::<u32>("app/n");
    theirs.publish(&session, &1, Expect::Any).await.unwrap();
    let before = counting.counts();
    let following = client.config::<u32>("app/n").follow().await.unwrap();
    let clone = following.clone();
    let calls = counting.counts() - before;
    assert_eq!((calls.range, calls.watch, calls.calls()), (1, 1, 2));
    let before = counting.counts();
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!((counting.counts() - before).calls(), 0);
    theirs.publish(&session, &2, Expect::Any).await.unwrap();
    quiet().await;
    assert_eq!(following.borrow().value.as_deref(), Some(&2));
    let woken = counting.counts() - before;
    assert_eq!((woken.wake_ups, woken.calls()), (1, 0));
    drop(following);
    theirs.publish(&session, &3, Expect::Any).await.unwrap();
    quiet().await;
    assert_eq!(clone.borrow().value.as_deref(), Some(&3), "it lives on");
    drop(clone);
    let before = counting.counts();
    theirs.publish(&session, &4, Expect::Any).await.unwrap();
    quiet().await;
    assert_eq!((counting.counts() - before).wake_ups, 0);
}

#[tokio::test(start_paused = true)]
async fn a_final_refusal_is_told() {
    let world = World::new().await;
    let mut other = world.config().follow().await.unwrap();
    assert!(other.changed().now_or_never().is_none());
    let foreign = world.client.namespace("team/");
    let refused = foreign.config::<u32>("app/n").follow();
    let refused = refused.acknowledge(&world.session).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    // Nothing of it lies where it should not.
    let config = foreign.config::<u32>("app/n");
    let session = foreign.session().await.unwrap();
    config.publish(&session, &1, Expect::Absent).await.unwrap();
    let kept = world.store.dump(&KeyRange::prefix("team/quorate/config/"));
    assert_eq!(kept.len(), 2);
    assert!(world.config().get().await.unwrap().is_none());
}

/// A session that is closed takes the acknowledgement along, and nothing else.
#[tokio::test(start_paused = true)]
async fn following_outlives_the_session_that_acknowledges() {
    let world = World::new().await;
    let (others, by) = (world.others(), &world.other_session);
    others.publish(by, &1, Expect::Any).await.unwrap();
    let session = world.client.session().await.unwrap();
    let follow = world.config().follow().acknowledge(&session);
    let mut following = follow.await.unwrap();
    quiet().await;
    assert_eq!(others.acknowledgements().await.unwrap().len(), 1);
    session.close().await.unwrap();
    assert_eq!(others.acknowledgements().await.unwrap(), []);
    others.publish(by, &2, Expect::Any).await.unwrap();
    until(&mut following, 2).await;
    quiet().await;
    assert_eq!(others.acknowledgements().await.unwrap(), []);
    assert_eq!(world.store.leases().len(), 2, "those of the world");
    // Without the file of a program that has gone the store's silence is waited out.
    drop(following);
    world.faulty.disconnect(Outage::Silent);
    let config = world.config();
    let follow = async { config.follow().acknowledge(&world.session).await };
    assert!(
        tokio::time::timeout(Duration::from_secs(60), follow)
            .await
            .is_err()
    );
}
