//! Publishing: what is expected is compared, each publication takes place once, and the history is what it
//! was.

use super::World;
use crate::config::{Entry, Expect, Rule};
use crate::error::Error;
use crate::keys::Revision;
use crate::store::faulty::{Calls, Fault, Stage};
use crate::store::{Counting, MemStore};
use crate::{Client, Result};

fn values(history: &[Entry<u32>]) -> Vec<(u64, u32)> {
    let value = |entry: &Entry<u32>| *entry.value.clone().unwrap();
    history
        .iter()
        .map(|entry| (entry.version, value(entry)))
        .collect()
}

fn is_conflict<T>(outcome: &Result<T>) -> bool {
    matches!(outcome, Err(Error::Conflict))
}

#[tokio::test(start_paused = true)]
async fn only_what_was_expected_is_replaced() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    assert!(config.get().await.unwrap().is_none());
    let nothing = Expect::Revision(Revision(3));
    assert!(is_conflict(&config.publish(session, &1, nothing).await));
    let first = config.publish(session, &1, Expect::Absent).await.unwrap();
    assert_eq!(first.version, 1);
    assert!(is_conflict(
        &config.publish(session, &2, Expect::Absent).await
    ));
    let over_first = Expect::Revision(first.revision);
    let second = config.publish(session, &2, over_first).await.unwrap();
    assert_eq!(second.version, 2);
    assert!(is_conflict(&config.publish(session, &3, over_first).await));
    // Also by a handle that remembers nothing.
    let others = world.others().with_note("why not");
    let by = &world.other_session;
    assert!(is_conflict(&others.publish(by, &3, over_first).await));
    let over_second = Expect::Revision(second.revision);
    let third = others.publish(by, &3, over_second).await.unwrap();
    let fourth = config.publish(session, &4, Expect::Any).await.unwrap();
    assert_eq!((third.version, fourth.version), (3, 4));
    let now = config.get().await.unwrap().unwrap();
    assert_eq!((now.revision, *now.value.unwrap()), (fourth.revision, 4));
    let history = config.history().await.unwrap();
    assert_eq!(values(&history), [(4, 4), (3, 3), (2, 2), (1, 1)]);
    assert_eq!(
        (history[1].note.as_str(), &history[1].by.label[..]),
        ("why not", "other")
    );
    assert_eq!(history[1].revision, third.revision);
    for wrong in ["app", "app/", "/n", ""] {
        let wrong = world.client.config::<u32>(wrong);
        let refused = wrong.publish(session, &1, Expect::Any).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
        assert!(matches!(wrong.get().await, Err(Error::Invalid(_))));
        assert!(matches!(wrong.follow().await, Err(Error::Invalid(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn the_history_is_bounded_and_gone_back_to() {
    let world = World::new().await;
    let (config, session) = (world.config().keep_history(3), &world.session);
    for value in 1..=6 {
        config.publish(session, &value, Expect::Any).await.unwrap();
        let left = config.history().await.unwrap();
        let most = u64::from(value).min(3);
        assert_eq!(left.len() as u64, most, "in the same transaction");
    }
    // No history of the store's own is needed.
    world.store.compact(world.store.revision()).unwrap();
    let history = config.history().await.unwrap();
    assert_eq!(values(&history), [(6, 6), (5, 5), (4, 4)]);
    let back = config.rollback(session, 4, "too slow", Expect::Any).await;
    assert_eq!(back.unwrap().version, 7);
    let now = config.get().await.unwrap().unwrap();
    assert_eq!((*now.value.unwrap(), now.note.as_str()), (4, "too slow"));
    assert_eq!(now.rolled_back_to, Some(4));
    assert_eq!(config.history().await.unwrap()[0].rolled_back_to, Some(4));
    let gone = config.rollback(session, 4, "again", Expect::Any).await;
    assert!(matches!(gone, Err(Error::Invalid(_))), "{gone:?}");
    let stale = Expect::Revision(history[0].revision);
    assert!(is_conflict(&config.rollback(session, 6, "", stale).await));
    // A shorter history takes effect with the next publication.
    let config = config.keep_history(0);
    config.publish(session, &8, Expect::Any).await.unwrap();
    assert_eq!(values(&config.history().await.unwrap()), [(8, 8)]);
}

#[tokio::test(start_paused = true)]
async fn versions_go_on_over_what_cannot_be_read() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    for value in 1..=3 {
        config.publish(session, &value, Expect::Any).await.unwrap();
    }
    world.other.put(config.key(), "no JSON").await.unwrap();
    assert!(matches!(config.get().await, Err(Error::Codec { .. })));
    let next = config.publish(session, &4, Expect::Any).await.unwrap();
    assert_eq!(next.version, 4);
    world.other.delete(config.key()).await.unwrap();
    let next = config.publish(session, &5, Expect::Absent).await.unwrap();
    assert_eq!(next.version, 5);
    assert_eq!(config.history().await.unwrap().len(), 5);
    // What is no number for this reader is in the history all the same.
    let text = world.client.config::<String>("app/n");
    let next = text.publish(session, &"x".to_owned(), Expect::Any).await;
    assert_eq!(next.unwrap().version, 6);
    let history = config.history().await.unwrap();
    assert!(matches!(history[0].value, Err(Error::Codec { .. })));
    assert_eq!(history[1].value.as_deref().unwrap(), &5);
}

#[tokio::test(start_paused = true)]
async fn what_is_removed_is_gone_and_comes_back() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    let over = Expect::Revision;
    assert_eq!(config.remove(session, Expect::Any).await.unwrap(), None);
    assert_eq!(config.remove(session, Expect::Absent).await.unwrap(), None);
    let other = config.remove(session, over(Revision(3))).await;
    assert!(is_conflict(&other), "nothing is there");
    let first = config.publish(session, &1, Expect::Any).await.unwrap();
    let canary = Rule::new("canary").percent(10.0);
    let gray = config.gray(session, &canary, &9, Expect::Any).await;
    gray.unwrap();
    let beside = world.client.config::<u32>("app/n/beside");
    beside.publish(session, &1, Expect::Any).await.unwrap();
    let second = config.publish(session, &2, Expect::Any).await.unwrap();
    for stale in [over(first.revision), Expect::Absent] {
        assert!(is_conflict(&config.remove(session, stale).await));
    }
    let mut following = config.follow().await.unwrap();
    let removed = config.remove(session, over(second.revision)).await;
    let removed = removed.unwrap().unwrap();
    assert!(removed > second.revision);
    assert!(config.get().await.unwrap().is_none());
    assert!(config.gray_releases().await.unwrap().is_empty());
    assert!(beside.get().await.unwrap().is_some());
    let view = following.wait_for(|view| view.rejected.is_some());
    let view = view.await.unwrap();
    let rejected = view.rejected.clone().unwrap();
    assert_eq!(
        (view.value.as_deref(), rejected.revision),
        (Some(&2), removed)
    );
    let fresh = config.follow().await.unwrap();
    assert_eq!(fresh.borrow().value, None);
    // By what was there before it was removed, and by what is there.
    let stale = config.publish(session, &3, over(second.revision)).await;
    assert!(is_conflict(&stale));
    let third = config.publish(session, &3, Expect::Absent).await.unwrap();
    assert_eq!(third.version, 3);
    config.remove(session, Expect::Any).await.unwrap();
    let back = config.rollback(session, 2, "after all", Expect::Absent);
    assert_eq!(back.await.unwrap().version, 4);
    let view = following.wait_for(|view| view.value.as_deref() == Some(&2));
    assert_eq!(view.await.unwrap().rejected, None);
    let history = config.history().await.unwrap();
    assert_eq!(values(&history), [(4, 2), (3, 3), (2, 2), (1, 1)]);
}

/// Between a look that found nothing and the publication after it something is published and removed.
#[tokio::test(start_paused = true)]
async fn no_version_is_given_twice_around_a_removal() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    let (others, by) = (world.others(), &world.other_session);
    // The first one looks.
    let held = world.faulty.hold(2, Calls::Txn, Stage::NotSent);
    let publishing = config.publish(session, &1, Expect::Any);
    let between = async {
        held.reached().await;
        for value in 2..4 {
            others.publish(by, &value, Expect::Any).await.unwrap();
        }
        others.remove(by, Expect::Any).await.unwrap().unwrap();
        held.release();
    };
    let (published, ()) = tokio::join!(publishing, between);
    assert_eq!(published.unwrap().version, 3);
    let history = config.history().await.unwrap();
    assert_eq!(values(&history), [(3, 1), (2, 3), (1, 2)]);
}

/// A copy of a removal that comes late removes nothing that was published since.
#[tokio::test(start_paused = true)]
async fn a_removal_takes_place_once() {
    for fault in [Fault::NotSent, Fault::Unanswered, Fault::Late] {
        let world = World::new().await;
        let (config, session) = (world.config(), &world.session);
        config.publish(session, &1, Expect::Any).await.unwrap();
        world.faulty.plan("quorate/lane/", vec![fault.clone()]);
        let removed = config.remove(session, Expect::Any).await.unwrap();
        assert!(removed.is_some(), "{fault:?}");
        let others = world.others();
        let again = others.publish(&world.other_session, &2, Expect::Absent);
        let again = again.await.unwrap();
        world.faulty.deliver().await;
        let now = config.get().await.unwrap().unwrap();
        assert_eq!(now.revision, again.revision, "{fault:?}");
    }
}

/// The last version there can be, written by somebody else, is no reason to stop.
#[tokio::test(start_paused = true)]
async fn versions_have_an_end() {
    let world = World::new().await;
    let (config, session) = (world.config(), &world.session);
    let by = r#"{"host":"h","pid":1}"#;
    let version = u64::MAX;
    let most = format!(r#"{{"v":1,"version":{version},"value":1,"by":{by},"at_ms":0}}"#);
    world.other.put(config.key(), most).await.unwrap();
    for value in 2..4 {
        let done = config.publish(session, &value, Expect::Any).await.unwrap();
        assert_eq!(done.version, version);
        let history = config.history().await.unwrap();
        assert_eq!(values(&history), [(version, value)]);
    }
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_late_copies_change_nothing() {
    let plans = [
        vec![Fault::Late],
        vec![Fault::Unanswered],
        vec![Fault::NotSent, Fault::Late, Fault::Unanswered],
        vec![Fault::Late, Fault::Late],
    ];
    for plan in plans {
        let world = World::new().await;
        let (config, session) = (world.config(), &world.session);
        config.publish(session, &1, Expect::Any).await.unwrap();
        world.faulty.plan("quorate/lane/", plan.clone());
        let second = config.publish(session, &2, Expect::Any).await.unwrap();
        let others = world.others();
        let by = &world.other_session;
        others.publish(by, &3, Expect::Any).await.unwrap();
        assert_eq!(world.faulty.deliver().await.1, 0, "{plan:?}");
        let history = config.history().await.unwrap();
        assert_eq!(values(&history), [(3, 3), (2, 2), (1, 1)], "{plan:?}");
        assert_eq!(history[1].revision, second.revision, "{plan:?}");
    }
}

/// Both have seen the same; one is first, the other one is told.
#[tokio::test(start_paused = true)]
async fn of_two_that_race_one_is_told() {
    for stage in [Stage::NotSent, Stage::OnItsWay, Stage::Answered] {
        let world = World::new().await;
        let (config, others) = (world.config(), world.others());
        let first = config.publish(&world.session, &1, Expect::Any).await;
        let over = Expect::Revision(first.unwrap().revision);
        let held = world.faulty.hold(1, Calls::Txn, stage);
        let overtake = async {
            held.reached().await;
            let overtaken = others.publish(&world.other_session, &3, over).await;
            held.release();
            overtaken
        };
        let (one, other) = tokio::join!(config.publish(&world.session, &2, over), overtake);
        let first = stage == Stage::Answered;
        assert_eq!(one.is_ok(), first, "{stage:?}: {one:?}");
        assert_eq!(other.is_ok(), !first, "{stage:?}: {other:?}");
        assert!(is_conflict(&one) || is_conflict(&other), "{stage:?}");
        let history = config.history().await.unwrap();
        let value = if first { 2 } else { 3 };
        assert_eq!(values(&history), [(2, value), (1, 1)], "{stage:?}");
        // Who takes whatever there is comes after.
        config
            .publish(&world.session, &4, Expect::Any)
            .await
            .unwrap();
        assert_eq!(values(&config.history().await.unwrap())[0], (3, 4));
    }
}

#[tokio::test(start_paused = true)]
async fn what_it_costs() {
    let counting = Counting::new(MemStore::new());
    let client = Client::new(counting.clone());
    let session = client.session().await.unwrap();
    let config = client.config::<u32>("app/n").keep_history(2);
    // The first effect of a session opens its lane.
    client.counter("c").add(&session, 1).await.unwrap();
    let mut before = counting.counts();
    let mut spent = || {
        let now = counting.counts();
        let spent = now - std::mem::replace(&mut before, now);
        (spent.txn, spent.calls())
    };
    let mut at = config.publish(&session, &0, Expect::Absent).await.unwrap();
    assert_eq!(spent(), (2, 2), "nothing is known");
    for value in 1..4 {
        let over = Expect::Revision(at.revision);
        at = config.publish(&session, &value, over).await.unwrap();
        assert_eq!(spent(), (1, 1));
    }
    let fresh = client.config::<u32>("app/n");
    let over = fresh.get().await.unwrap().unwrap().revision;
    assert_eq!(spent(), (0, 1));
    let over = Expect::Revision(over);
    at = fresh.publish(&session, &4, over).await.unwrap();
    assert_eq!(spent(), (1, 1));
    fresh.publish(&session, &5, over).await.unwrap_err();
    assert_eq!(spent(), (1, 1), "looks, and sends nothing");
    let following = config.follow().await.unwrap();
    assert_eq!(following.borrow().revision, at.revision);
    spent();
    let over = Expect::Revision(following.borrow().revision);
    config.publish(&session, &6, over).await.unwrap();
    assert_eq!(spent(), (1, 1), "known from following");
    config.withdraw(&session, "none").await.unwrap();
    assert_eq!(spent(), (1, 1));
}
