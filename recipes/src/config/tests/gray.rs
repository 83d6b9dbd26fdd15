//! Gray releases: some instances first, by rules that they judge for themselves.

use serde::{Deserialize, Serialize};

use super::{World, until};
use crate::config::{Expect, Following, Rule, View};
use crate::error::Error;
use crate::store::faulty::Fault;

async fn follow(world: &World, id: &str, zone: &str) -> Following<u32> {
    let follow = world.others().follow().instance(id).label("zone", zone);
    follow.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn some_first_then_all_or_none() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    let base = config.publish(session, &1, Expect::Any).await.unwrap();
    let mut eu = follow(&world, "a", "eu").await;
    let mut us = follow(&world, "b", "us").await;
    let canary = Rule::new("canary").label("zone", "eu");
    let at = config.gray(session, &canary, &2, Expect::Absent).await;
    let at = at.unwrap();
    let view = until(&mut eu, 2).await;
    assert_eq!(view.revision, at);
    let part = &view.parts["n"];
    assert_eq!((part.version, part.rule.as_deref()), (None, Some("canary")));
    assert_eq!(until(&mut us, 1).await.revision, base.revision);
    // What is published meanwhile is for the others.
    config.publish(session, &3, Expect::Any).await.unwrap();
    until(&mut us, 3).await;
    until(&mut eu, 2).await;
    let again = config.gray(session, &canary, &4, Expect::Absent).await;
    assert!(matches!(again, Err(Error::Conflict)), "{again:?}");
    let over = Expect::Revision(at);
    config.gray(session, &canary, &4, over).await.unwrap();
    until(&mut eu, 4).await;
    assert!(config.withdraw(session, "canary").await.unwrap());
    assert!(!config.withdraw(session, "canary").await.unwrap());
    assert_eq!(until(&mut eu, 3).await.parts["n"].rule, None);
    // Promoted: for everybody at one revision, and the rule is gone at that very one.
    config
        .gray(session, &canary, &5, Expect::Any)
        .await
        .unwrap();
    until(&mut eu, 5).await;
    let stale = Expect::Revision(base.revision);
    let refused = config.promote(session, "canary", stale).await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    assert_eq!(config.gray_releases().await.unwrap().len(), 1);
    let done = config
        .promote(session, "canary", Expect::Any)
        .await
        .unwrap();
    assert_eq!(until(&mut us, 5).await.revision, done.revision);
    let view = eu.wait_for(|view| view.parts["n"].rule.is_none()).await;
    let view = view.unwrap();
    assert_eq!(
        (view.value.as_deref(), view.revision),
        (Some(&5), done.revision)
    );
    assert!(config.gray_releases().await.unwrap().is_empty());
    let gone = config.promote(session, "canary", Expect::Any).await;
    assert!(matches!(gone, Err(Error::Invalid(_))), "{gone:?}");
    assert_eq!(config.history().await.unwrap()[0].version, done.version);
}

#[tokio::test(start_paused = true)]
async fn the_highest_priority_holds() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    config.publish(session, &0, Expect::Any).await.unwrap();
    let mut one = follow(&world, "a", "eu").await;
    for (name, priority, value) in [("m", 1, 1), ("z", 1, 2), ("b", 1, 3), ("c", 2, 4)] {
        let rule = Rule::new(name).priority(priority);
        let gray = config.gray(session, &rule, &value, Expect::Any).await;
        gray.unwrap();
    }
    // One that selects somebody else counts for nothing.
    let far = Rule::new("far").priority(i32::MAX).label("zone", "us");
    config.gray(session, &far, &9, Expect::Any).await.unwrap();
    let low = Rule::new("low").priority(i32::MIN);
    config.gray(session, &low, &8, Expect::Any).await.unwrap();
    let names = config.gray_releases().await.unwrap();
    let names: Vec<_> = names.iter().map(|gray| gray.rule.name()).collect();
    assert_eq!(names, ["b", "c", "far", "low", "m", "z"]);
    for (name, value) in [("c", 4), ("b", 3), ("m", 1), ("z", 2), ("low", 8)] {
        until(&mut one, value).await;
        assert!(config.withdraw(session, name).await.unwrap());
    }
    until(&mut one, 0).await;
    let half = Rule::new("half").percent(100.5);
    let refused = config.gray(session, &half, &1, Expect::Any).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

/// A release that its instances cannot use leaves them as they are, and withdrawn it is forgotten.
#[tokio::test(start_paused = true)]
async fn bad_releases_are_rejected() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    let at = config.publish(session, &1, Expect::Any).await.unwrap();
    let mut one = follow(&world, "a", "eu").await;
    let text = world.client.config::<String>("app/n");
    let (rule, value) = (Rule::new("bad"), "x".to_owned());
    let bad = text.gray(session, &rule, &value, Expect::Any);
    let bad = bad.await.unwrap();
    let view = one.changed().await.unwrap();
    assert_eq!(view.rejected.as_ref().unwrap().revision, bad);
    assert_eq!(
        (view.value.as_deref(), view.revision),
        (Some(&1), at.revision)
    );
    config.withdraw(session, "bad").await.unwrap();
    let view = one.changed().await.unwrap();
    assert!(view.rejected.is_none());
    assert_eq!(view.revision, at.revision);
    // One that nobody can read selects nobody.
    let key = "quorate/config/app/live/n/gray/odd";
    world.other.put(key, "no JSON").await.unwrap();
    config.publish(session, &2, Expect::Any).await.unwrap();
    assert!(until(&mut one, 2).await.rejected.is_none());
    assert!(config.gray_releases().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn lost_answers_promote_and_withdraw_once() {
    for promote in [false, true] {
        for plan in [vec![Fault::Late], vec![Fault::Unanswered, Fault::Late]] {
            let world = World::new().await;
            let (config, session) = (world.config(), &world.session);
            let rule = Rule::new("canary");
            config.publish(session, &1, Expect::Any).await.unwrap();
            world.faulty.plan("quorate/lane/", plan.clone());
            config
                .gray(session, &rule, &2, Expect::Absent)
                .await
                .unwrap();
            world.faulty.plan("quorate/lane/", plan);
            match promote {
                true => drop(
                    config
                        .promote(session, "canary", Expect::Any)
                        .await
                        .unwrap(),
                ),
                false => assert!(config.withdraw(session, "canary").await.unwrap()),
            }
            let (others, by) = (world.others(), &world.other_session);
            others.gray(by, &rule, &3, Expect::Absent).await.unwrap();
            others.publish(by, &4, Expect::Any).await.unwrap();
            assert_eq!(world.faulty.deliver().await.1, 0);
            let releases = config.gray_releases().await.unwrap();
            assert_eq!(releases[0].value.as_deref().unwrap(), &3);
            let now = config.get().await.unwrap().unwrap();
            assert_eq!(now.version, 2 + u64::from(promote));
        }
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pair {
    a: u32,
    b: u32,
}

/// Followers of a group come to all values of a release at once, and leave them at once.
#[tokio::test(start_paused = true)]
async fn groups_are_released_together() {
    let world = World::new().await;
    let (session, group) = (&world.session, world.client.config_group::<Pair>("app"));
    let publish = |n: u32| {
        let both = group.publish().set("a", &n, Expect::Any);
        both.set("b", &n, Expect::Any)
    };
    publish(1).commit(session).await.unwrap();
    let none = group.gray(&Rule::new("canary")).commit(session).await;
    assert!(matches!(none, Err(Error::Invalid(_))), "{none:?}");
    let twice = group.gray(&Rule::new("canary")).set("a", &1).set("a", &2);
    let twice = twice.commit(session).await;
    assert!(matches!(twice, Err(Error::Invalid(_))), "{twice:?}");
    let gone = group.promote(session, "canary").await;
    assert!(matches!(gone, Err(Error::Invalid(_))), "{gone:?}");
    assert!(!group.withdraw(session, "canary").await.unwrap());
    let mut following = group.follow().await.unwrap();
    let mut others = group.follow().label("zone", "us").await.unwrap();
    let reading = async {
        loop {
            let view = following.changed().await.unwrap();
            let pair = view.value.clone().unwrap();
            assert_eq!((pair.a, &view.rejected), (pair.b, &None));
            if pair.a == 9 {
                return;
            }
        }
    };
    let canary = Rule::new("canary").priority(1);
    let gray = |n: u32| group.gray(&canary).set("a", &n).set("b", &n);
    let publishing = async {
        for n in 2..6 {
            for faults in [vec![], vec![Fault::Unanswered], vec![Fault::Late]] {
                world.faulty.plan("quorate/lane/", faults.clone());
                let begun = gray(n).commit(session).await.unwrap();
                world.faulty.plan("quorate/lane/", faults);
                match n % 2 {
                    0 => assert!(group.withdraw(session, "canary").await.unwrap()),
                    _ => assert!(group.promote(session, "canary").await.unwrap() > begun),
                }
                world.faulty.deliver().await;
                let a = world.client.config::<u32>("app/a");
                assert!(a.gray_releases().await.unwrap().is_empty());
                let now = a.get().await.unwrap().unwrap().value.unwrap();
                assert_eq!(*now, if n % 2 == 0 { n - 1 } else { n });
            }
        }
        publish(9).commit(session).await.unwrap();
    };
    tokio::join!(reading, publishing);
    let is_last = |view: &View<Pair>| view.value.as_deref() == Some(&Pair { a: 9, b: 9 });
    others.wait_for(is_last).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn as_many_keys_are_promoted_as_a_transaction_takes() {
    let world = World::new().await;
    let session = &world.session;
    for (keys, fits) in [(31, true), (32, false)] {
        let group = world.client.config_group::<()>(&format!("of-{keys}"));
        // A promotion removes an entry of each history.
        let group = group.keep_history(1);
        let (mut published, mut release) = (group.publish(), group.gray(&Rule::new("canary")));
        for key in 0..keys {
            let name = format!("k{key}");
            published = published.set(&name, &key, Expect::Absent);
            release = release.set(&name, &key);
        }
        published.commit(session).await.unwrap();
        release.commit(session).await.unwrap();
        let before = world.store.revision();
        let promoted = group.promote(session, "canary").await;
        assert_eq!(promoted.is_ok(), fits, "{keys}: {promoted:?}");
        assert_eq!(world.store.revision() > before, fits, "{keys}");
        assert!(group.withdraw(session, "canary").await.unwrap() != fits);
    }
}
