//! Membership: who is there, since when, and how they went.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use quorate_recipes::membership::{Departure, MemberEvent, majority_of};
use quorate_recipes::{Client, Error, Fenced, Group, LostReason, Result, TxnError};
use serde::{Deserialize, Serialize};

use super::{keys_below, session};
use crate::support::{soon, until};
use quorate_recipes::store::faulty::{Fault, Faulty, Outage};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    zone: String,
}

fn info(zone: &str) -> Info {
    Info {
        zone: zone.to_owned(),
    }
}

type Events<I> = BoxStream<'static, Result<MemberEvent<I>>>;

async fn events_of(group: &Group<Info>) -> Events<Info> {
    let members = group.members().await.unwrap();
    members.events().await.unwrap()
}

async fn next<I>(events: &mut Events<I>) -> MemberEvent<I> {
    soon("an event", events.next()).await.unwrap().unwrap()
}

async fn next_departure<I>(events: &mut Events<I>) -> (String, Departure) {
    loop {
        if let MemberEvent::Left { member, departure } = next(events).await {
            return (member.id.clone(), departure);
        }
    }
}

/// Members show in the order in which they joined, with what they say, and so do strange values.
pub async fn members_and_events(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let group = client.group::<Info>("views/1");
    let mut members = group.members().await.unwrap();
    assert!(members.view().members.is_empty());
    let mut events = members.events().await.unwrap();
    let one = group.join(&a, info("x")).await.unwrap();
    let MemberEvent::Joined(joined) = next(&mut events).await else {
        panic!("not joined")
    };
    assert_eq!(
        (joined.id.as_str(), joined.created),
        (one.id(), one.created())
    );
    assert_eq!(**joined.info.as_ref().unwrap(), info("x"));
    let at = one.update(info("y")).await.unwrap();
    let MemberEvent::Updated { before, now } = next(&mut events).await else {
        panic!("not updated")
    };
    assert_eq!(**before.info.as_ref().unwrap(), info("x"));
    assert_eq!((now.modified, now.created), (at, one.created()));
    assert_eq!(**now.info.as_ref().unwrap(), info("y"));
    // Somebody who says something else is a member all the same.
    let two = client.group::<u32>("views/1").join(&b, 7).await.unwrap();
    let again = group.join(&a, info("z")).await.unwrap();
    let view = soon("three", members.wait_for(majority_of(5)))
        .await
        .unwrap();
    let ids: Vec<_> = view.members.iter().map(|m| m.id.as_str()).collect();
    assert_eq!(ids, [one.id(), two.id(), again.id()]);
    assert!(matches!(view.members[1].info, Err(Error::Codec { .. })));
    assert_eq!(view.oldest().unwrap().id, one.id());
    // No key of another group shows, and none that no member can have put there.
    let _other = client.group("views").join(&a, info("o")).await.unwrap();
    client.put("quorate/member/views%2F1/x", "x").await.unwrap();
    let view = soon("a stranger", members.wait_until(|view| view.strangers == 1));
    assert_eq!(view.await.unwrap().members.len(), 3);
    client.delete("quorate/member/views%2F1/x").await.unwrap();
    drop((one, two, again));
    let empty = members.wait_until(|view| view.members.is_empty());
    soon("nobody", empty).await.unwrap();
}

/// Leaving, dropping and closing are clean; a lease that ends and a deleted key are not.
pub async fn leaves_and_losses_are_told_apart(client: &Client) {
    let group = client.group::<Info>("apart");
    let mut events = events_of(&group).await;
    for end in 0..5 {
        let session = session(client).await;
        let membership = group.join(&session, info("x")).await.unwrap();
        let id = membership.id().to_owned();
        let lost = membership.lost();
        let (departure, reason) = match end {
            0 => {
                membership.leave().await.unwrap();
                (Departure::Clean, LostReason::Released)
            }
            1 => {
                drop(membership);
                (Departure::Clean, LostReason::Released)
            }
            2 => {
                session.close().await.unwrap();
                let reason = soon("the loss", membership.lost()).await;
                assert_eq!(reason, LostReason::Closed);
                drop(membership);
                (Departure::Clean, LostReason::Released)
            }
            3 => {
                client.store().lease_revoke(session.lease()).await.unwrap();
                let reason = soon("the loss", membership.lost()).await;
                assert_eq!(reason, LostReason::LeaseGone);
                drop(membership);
                (Departure::Expired, LostReason::Released)
            }
            _ => {
                client.delete(membership.key()).await.unwrap();
                let reason = soon("the loss", membership.lost()).await;
                assert!(matches!(
                    membership.leave().await,
                    Err(Error::Fenced { .. })
                ));
                (Departure::Expired, reason)
            }
        };
        assert_eq!(soon("the loss", lost).await, reason, "{end}");
        assert_eq!(next_departure(&mut events).await, (id, departure), "{end}");
    }
    // The last handle of a session goes with its memberships: that is no crash either.
    let session = session(client).await;
    let both = [
        group.join(&session, info("x")).await.unwrap(),
        group.join(&session, info("y")).await.unwrap(),
    ];
    drop(session);
    drop(both);
    for _ in 0..2 {
        assert_eq!(next_departure(&mut events).await.1, Departure::Clean);
    }
}

/// A write in a member's name is refused once it is none.
pub async fn only_members_write(client: &Client) {
    let session = session(client).await;
    let group = client.group::<Info>("write");
    let membership = group.join(&session, info("x")).await.unwrap();
    membership.put("members-write", "1").await.unwrap();
    let fence = membership.fence().clone();
    membership.leave().await.unwrap();
    let late = client.txn().fence(fence).put("members-write", "2").commit();
    assert!(matches!(late.await, Err(TxnError::Fenced { owner: None })));
    let kv = client.get("members-write").await.unwrap().unwrap();
    assert_eq!(kv.value, "1");
}

/// Lost and late answers: one member, its last word, and a leave that is seen as one.
pub async fn memberships_survive_lost_answers(client: &Client) {
    let faulty = Faulty::new(Arc::clone(client.store()));
    let cut = Client::new(faulty.clone());
    let session = session(&cut).await;
    let mut events = events_of(&client.group("lost")).await;
    let prefix = "quorate/member/lost/";
    for faults in [
        vec![Fault::NotSent, Fault::Unanswered],
        vec![Fault::Unanswered, Fault::Late],
        vec![Fault::Late, Fault::Late, Fault::Unanswered],
    ] {
        faulty.plan(prefix, faults.clone());
        let ours = cut.group::<Info>("lost");
        let joining = ours.join(&session, info("a"));
        let membership = soon("joining", joining).await.unwrap();
        faulty.plan(prefix, faults.clone());
        membership.update(info("b")).await.unwrap();
        membership.update(info("c")).await.unwrap();
        faulty.deliver().await;
        let members = client.group::<Info>("lost").members().await.unwrap();
        let view = members.view();
        let member = view.member(membership.id()).unwrap();
        assert_eq!(**member.info.as_ref().unwrap(), info("c"), "{faults:?}");
        let id = membership.id().to_owned();
        faulty.plan(prefix, faults);
        soon("leaving", membership.leave()).await.unwrap();
        faulty.deliver().await;
        assert_eq!(next_departure(&mut events).await, (id, Departure::Clean));
        assert_eq!(keys_below(client, "quorate/member/lost").await, 0);
    }
}

/// A `join()` dropped on its way leaves no member behind, and none that seems to have crashed.
pub async fn dropped_joins_leave_nothing(client: &Client) {
    let session = session(client).await;
    let group = client.group::<Info>("dropped");
    let mut events = events_of(&group).await;
    for micros in [0, 300, 1_000, 3_000] {
        let limit = Duration::from_micros(micros);
        drop(tokio::time::timeout(limit, group.join(&session, info("x"))).await);
    }
    let last = group.join(&session, info("last")).await.unwrap();
    until("nobody else", async || {
        keys_below(client, "quorate/member/dropped").await == 1
    })
    .await;
    last.leave().await.unwrap();
    loop {
        if let MemberEvent::Left { member, departure } = next(&mut events).await {
            assert_eq!(departure, Departure::Clean);
            if **member.info.as_ref().unwrap() == info("last") {
                break;
            }
        }
    }
}

/// A member that does not renew its lease shows as a suspect before it is gone, and nobody else does.
pub async fn silent_members_are_suspected(client: &Client) {
    let live = session(client).await;
    let group = client.group::<Info>("suspects");
    let faulty = Faulty::new(client.store().clone());
    let cut_off = Client::new(faulty.clone());
    let session = cut_off.session().ttl(Duration::from_secs(6)).await.unwrap();
    let silent = cut_off.group::<Info>("suspects");
    let silent = silent.join(&session, info("silent")).await.unwrap();
    let _live = group.join(&live, info("live")).await.unwrap();
    let mut members = group.members().await.unwrap();
    members.wait_for(2).await.unwrap();
    assert!(members.suspects().await.unwrap().is_empty());
    faulty.disconnect(Outage::Refused);
    soon("the suspicion", async {
        loop {
            let suspects = members.suspects().await.unwrap();
            assert_eq!(members.view().members.len(), 2, "gone without suspicion");
            if let [suspect] = &suspects[..] {
                assert_eq!(suspect.member.id, silent.id());
                assert!(suspect.remaining <= Duration::from_secs(3), "{suspect:?}");
                break;
            }
            assert!(suspects.is_empty(), "{suspects:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let alone = soon(
        "its end",
        members.wait_until(|view| view.members.len() == 1),
    )
    .await;
    assert_ne!(alone.unwrap().members[0].id, silent.id());
    assert!(members.suspects().await.unwrap().is_empty());
}
