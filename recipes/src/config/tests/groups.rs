//! Keys that belong together: published together, and never seen torn.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};

use super::{World, quiet};
use crate::config::{ConfigGroup, Expect, Rule};
use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::session::Session;
use crate::store::faulty::{Calls, Fault, Outage, Stage};

/// Whatever is published has two equal numbers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pair {
    a: u32,
    b: u32,
    #[serde(default)]
    c: Option<String>,
}

async fn publish(group: &ConfigGroup<Pair>, session: &Session, n: u32) -> Result<Revision> {
    let both = group.publish().set("a", &n, Expect::Any);
    both.set("b", &n, Expect::Any).commit(session).await
}

#[tokio::test(start_paused = true)]
async fn no_view_is_torn() {
    let world = World::new().await;
    let group = world.client.config_group::<Pair>("app");
    publish(&group, &world.session, 0).await.unwrap();
    let watching = world.client.config_group::<Pair>("app");
    let mut following = watching.follow().await.unwrap();
    let reading = async move {
        let mut seen = Vec::new();
        loop {
            let view = following.borrow();
            let pair = view.value.clone().unwrap();
            assert_eq!(pair.a, pair.b, "torn at {}", view.revision);
            assert_eq!(view.parts["a"].revision, view.parts["b"].revision);
            seen.push(view.revision);
            if pair.a == 1_000 {
                return seen;
            }
            following.changed().await.unwrap();
        }
    };
    let others = world.other.config_group::<Pair>("app");
    let publishing = async {
        for n in 1..20 {
            let one = publish(&group, &world.session, n);
            let other = publish(&others, &world.other_session, 100 + n);
            let (one, other) = tokio::join!(one, other);
            one.unwrap();
            other.unwrap();
            match n % 4 {
                0 => world.faulty.cut_watches(),
                1 => {
                    world.faulty.disconnect(Outage::Refused);
                    publish(&others, &world.other_session, 200).await.unwrap();
                    world.store.compact(world.store.revision()).unwrap();
                    world.faulty.reconnect();
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        publish(&others, &world.other_session, 1_000).await.unwrap();
    };
    let (seen, ()) = tokio::join!(reading, publishing);
    assert!(seen.is_sorted() && seen.len() > 10, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn all_of_it_or_nothing() {
    let world = World::new().await;
    let session = &world.session;
    let group = world.client.config_group::<Pair>("app");
    let first = publish(&group, session, 1).await.unwrap();
    let a = world.client.config::<u32>("app/a");
    let moved = a.publish(session, &5, Expect::Any).await.unwrap();
    let over = Expect::Revision(first);
    let both = group.publish().set("b", &2, over).set("a", &2, over);
    let refused = both.commit(session).await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    assert_eq!(
        world
            .client
            .config::<u32>("app/b")
            .history()
            .await
            .unwrap()
            .len(),
        1
    );
    let a_over = Expect::Revision(moved.revision);
    let both = group.publish().set("a", &2, a_over).set("b", &2, over);
    let second = both.note("both").commit(session).await.unwrap();
    for key in ["app/a", "app/b"] {
        let entry = world
            .client
            .config::<u32>(key)
            .get()
            .await
            .unwrap()
            .unwrap();
        assert_eq!((entry.revision, entry.note.as_str()), (second, "both"));
    }
    let none = group.publish().commit(session).await;
    assert!(matches!(none, Err(Error::Invalid(_))), "{none:?}");
    let twice = group.publish().set("a", &1, over).set("a", &2, over);
    let twice = twice.commit(session).await;
    assert!(matches!(twice, Err(Error::Invalid(_))), "{twice:?}");
    let wide = |keys: u32| {
        let wide = world.client.config_group::<()>("wide").keep_history(1);
        let mut publication = wide.publish();
        for key in 0..keys {
            publication = publication.set(&key.to_string(), &key, Expect::Any);
        }
        publication
    };
    for _ in 0..3 {
        wide(42).commit(session).await.unwrap();
    }
    let before = world.store.revision();
    let refused = wide(64).commit(session).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(world.store.revision(), before);
    let map = group
        .publish()
        .set("a", &std::collections::HashMap::from([((1, 2), 3)]), over);
    let map = map.commit(session).await;
    assert!(matches!(map, Err(Error::Codec { .. })), "{map:?}");
}

#[tokio::test(start_paused = true)]
async fn one_key_goes_while_others_change() {
    let world = World::new().await;
    let session = &world.session;
    let group = world.client.config_group::<Pair>("app");
    let publish = |n: u32| {
        let both = group.publish().set("a", &n, Expect::Any);
        both.set("b", &n, Expect::Any)
    };
    let with = publish(1).set("c", &"there", Expect::Any);
    let first = with.commit(session).await.unwrap();
    let mut following = group.follow().await.unwrap();
    let over = Expect::Revision(first);
    let stale = publish(2).remove("c", Expect::Revision(Revision(1)));
    let refused = stale.commit(session).await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    let twice = publish(2).remove("a", over).commit(session).await;
    assert!(matches!(twice, Err(Error::Invalid(_))), "{twice:?}");
    let both = publish(2).remove("c", over).note("less").commit(session);
    let second = both.await.unwrap();
    let view = following.wait_for(|view| view.revision == second);
    let (a, b, c) = (2, 2, None);
    assert_eq!(
        view.await.unwrap().value.as_deref(),
        Some(&Pair { a, b, c })
    );
    // What is not there any more is no reason not to publish the rest.
    let third = publish(3).remove("c", Expect::Any).commit(session).await;
    assert!(third.unwrap() > second);
    let back = group.rollback(session, first, "with it").await.unwrap();
    let view = following.wait_for(|view| view.revision == back);
    let (a, b, c) = (1, 1, Some("there".to_owned()));
    assert_eq!(
        view.await.unwrap().value.as_deref(),
        Some(&Pair { a, b, c })
    );
}

#[tokio::test(start_paused = true)]
async fn lost_answers_tear_nothing() {
    for plan in [
        vec![Fault::Late],
        vec![Fault::Unanswered],
        vec![Fault::Late, Fault::Late],
    ] {
        let world = World::new().await;
        let group = world.client.config_group::<Pair>("app");
        world.faulty.plan("quorate/lane/", plan.clone());
        publish(&group, &world.session, 1).await.unwrap();
        let others = world.other.config_group::<Pair>("app");
        publish(&others, &world.other_session, 2).await.unwrap();
        assert_eq!(world.faulty.deliver().await.1, 0, "{plan:?}");
        for key in ["app/a", "app/b"] {
            let config = world.client.config::<u32>(key);
            assert_eq!(config.history().await.unwrap().len(), 2, "{plan:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn judged_as_one() {
    let world = World::new().await;
    let session = &world.session;
    let group = world.client.config_group::<Pair>("app");
    let follow = group.follow().validate(|pair| match pair.a == pair.b {
        true => Ok(()),
        false => Err("not equal".to_owned()),
    });
    let follow = follow.instance("i").acknowledge(session);
    let mut following = follow.await.unwrap();
    assert!(following.borrow().value.is_none());
    // One key alone is no group.
    let a = world.client.config::<u32>("app/a");
    a.publish(session, &1, Expect::Any).await.unwrap();
    let view = following.changed().await.unwrap();
    assert!(view.value.is_none() && view.rejected.is_some());
    let first = publish(&group, session, 2).await.unwrap();
    let view = following
        .wait_for(|view| view.value.is_some())
        .await
        .unwrap();
    assert_eq!((view.revision, &view.rejected), (first, &None));
    a.publish(session, &3, Expect::Any).await.unwrap();
    let view = following.changed().await.unwrap();
    let pair = Pair {
        a: 2,
        b: 2,
        c: None,
    };
    assert_eq!(view.value, Some(Arc::new(pair)), "as a whole, as it was");
    assert!(view.rejected.clone().unwrap().reason.contains("not equal"));
    quiet().await;
    let told = group.acknowledgements().await.unwrap();
    assert_eq!(told[0].running["b"].revision, first);
    assert!(told[0].rejected.is_some() && a.acknowledgements().await.unwrap().is_empty());
    // Rules of one name are for the same instances with all keys.
    let rule = Rule::new("canary");
    let b = world.client.config::<u32>("app/b");
    b.gray(session, &rule, &3, Expect::Any).await.unwrap();
    let view = following
        .wait_for(|view| view.rejected.is_none())
        .await
        .unwrap();
    let pair = view.value.clone().unwrap();
    assert_eq!((pair.a, pair.b), (3, 3));
    assert_eq!(view.parts["b"].rule.as_deref(), Some("canary"));
}

#[tokio::test(start_paused = true)]
async fn gone_back_to_as_it_was() {
    let world = World::new().await;
    let session = &world.session;
    let group = world.client.config_group::<Pair>("app").keep_history(3);
    let first = publish(&group, session, 1).await.unwrap();
    let c = world.client.config::<String>("app/c");
    publish(&group, session, 2).await.unwrap();
    let late = c.publish(session, &"late".to_owned(), Expect::Any).await;
    let third = publish(&group, session, 3).await.unwrap();
    let back = group.rollback(session, first, "too many").await.unwrap();
    let following = group.follow().await.unwrap();
    let view = following.borrow();
    let pair = view.value.clone().unwrap();
    assert_eq!((pair.a, pair.b, pair.c.as_deref()), (1, 1, Some("late")));
    assert_eq!(view.parts["a"].revision, back);
    assert_eq!(view.parts["b"].revision, back);
    assert_eq!(
        view.parts["c"].revision,
        late.unwrap().revision,
        "came later, and stays"
    );
    let entry = world
        .client
        .config::<u32>("app/a")
        .get()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (entry.note.as_str(), entry.rolled_back_to),
        ("too many", Some(1))
    );
    let same = group.rollback(session, back, "").await;
    assert!(matches!(same, Err(Error::Invalid(_))), "{same:?}");
    let gone = group.rollback(session, first, "").await;
    assert!(matches!(gone, Err(Error::Invalid(_))), "{gone:?}");
    // Somebody is faster with a key that would have stayed as it is.
    let held = world.faulty.hold(1, Calls::Txn, Stage::NotSent);
    let c_again = async {
        held.reached().await;
        let others = world.other.config::<String>("app/c");
        let value = "later".to_owned();
        let done = others.publish(&world.other_session, &value, Expect::Any);
        done.await.unwrap();
        held.release();
    };
    let (refused, ()) = tokio::join!(group.rollback(session, third, ""), c_again);
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    group.rollback(session, third, "after all").await.unwrap();
    let a = world
        .client
        .config::<u32>("app/a")
        .get()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(a.value.as_deref().unwrap(), &3);
}

/// What stays costs a rollback nothing, however many keys there are.
#[tokio::test(start_paused = true)]
async fn one_key_of_many_goes_back() {
    let world = World::new().await;
    let session = &world.session;
    let group = world.client.config_group::<serde_json::Value>("wide");
    for keys in [0..40, 40..80, 80..120, 120..160_u32] {
        let mut publication = group.publish();
        for key in keys {
            publication = publication.set(&key.to_string(), &0, Expect::Any);
        }
        publication.commit(session).await.unwrap();
    }
    let to = world.store.revision();
    let one = world.client.config::<u32>("wide/7");
    one.publish(session, &1, Expect::Any).await.unwrap();
    group.rollback(session, to, "no good").await.unwrap();
    assert_eq!(*one.get().await.unwrap().unwrap().value.unwrap(), 0);
    // As many as a publication takes.
    for key in 0..64_u32 {
        let one = world.client.config::<u32>(("wide", &*key.to_string()));
        one.publish(session, &2, Expect::Any).await.unwrap();
    }
    let refused = group.rollback(session, to, "").await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

/// More keys than one page of a listing has: what is different is found on each, as of one revision.
#[tokio::test(start_paused = true)]
async fn what_lies_on_several_pages_goes_back() {
    let world = World::new().await;
    let session = &world.session;
    let group = world.client.config_group::<serde_json::Value>("wide");
    let keys: Vec<String> = (0..560).map(|key| format!("k{key:03}")).collect();
    for keys in keys.chunks(40) {
        let mut publication = group.publish();
        for key in keys {
            publication = publication.set(key, &0, Expect::Any);
        }
        publication.commit(session).await.unwrap();
    }
    let to = world.store.revision();
    let publish = async |key: &str| {
        let one = world.other.config::<u32>(("wide", key));
        let done = one.publish(&world.other_session, &1, Expect::Any);
        done.await.unwrap();
    };
    for key in ["k000", "k280", "k559"] {
        publish(key).await;
    }
    // Between two pages.
    let rollback = async |meanwhile: LocalBoxFuture<'_, ()>| {
        let held = world.faulty.hold(2, Calls::Read, Stage::NotSent);
        let meanwhile = async {
            held.reached().await;
            meanwhile.await;
            held.release();
        };
        tokio::join!(group.rollback(session, to, "no good"), meanwhile).0
    };
    let refused = rollback(publish("k100").boxed_local()).await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    let compact = async || {
        world.other.put("elsewhere", "").await.unwrap();
        world.store.compact(world.store.revision()).unwrap();
    };
    let back = rollback(compact().boxed_local()).await.unwrap();
    let mut changed = Vec::new();
    for key in &keys {
        let one = world.other.config::<u32>(("wide", &**key));
        let entry = one.get().await.unwrap().unwrap();
        assert_eq!(*entry.value.unwrap(), 0, "{key}");
        if entry.revision == back {
            changed.push(key.as_str());
        }
    }
    assert_eq!(changed, ["k000", "k100", "k280", "k559"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_since_comes_back() {
    let world = World::new().await;
    let (session, client) = (&world.session, &world.client);
    let group = client.config_group::<Pair>("app");
    let delete = async |key: &str| {
        let key = format!("quorate/config/app/live/{key}/value");
        assert!(client.delete(key).await.unwrap());
    };
    let c = client.config::<String>("app/c");
    let before = "before".to_owned();
    c.publish(session, &before, Expect::Any).await.unwrap();
    let gone = client.config::<u32>("app/gone");
    let again = client.config::<u32>("app/again");
    for early in [&gone, &again] {
        early.publish(session, &1, Expect::Any).await.unwrap();
    }
    delete("gone").await;
    delete("again").await;
    let to = publish(&group, session, 1).await.unwrap();
    publish(&group, session, 2).await.unwrap();
    delete("c").await;
    let late = client.config::<u32>("app/late");
    late.publish(session, &1, Expect::Any).await.unwrap();
    delete("late").await;
    again.publish(session, &2, Expect::Any).await.unwrap();
    let back = group.rollback(session, to, "too many").await.unwrap();
    let view = group.follow().await.unwrap().borrow();
    let pair = view.value.clone().unwrap();
    assert_eq!((pair.a, pair.b, pair.c.as_ref()), (1, 1, Some(&before)));
    assert_eq!(view.parts["c"].revision, back);
    let entry = c.get().await.unwrap().unwrap();
    assert_eq!((entry.version, entry.rolled_back_to), (2, Some(1)));
    assert_eq!(gone.get().await.unwrap().map(|entry| entry.version), None);
    assert_eq!(late.get().await.unwrap().map(|entry| entry.version), None);
    let entry = again.get().await.unwrap().unwrap();
    assert_eq!(*entry.value.unwrap(), 2, "it came later");
    // What the store does not know any more is not guessed.
    delete("c").await;
    world.store.compact(world.store.revision()).unwrap();
    let refused = group.rollback(session, back, "").await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}
