//! Elections: one leader at a time, no leader without a key, and what observers see.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use quorate_recipes::{Client, Error, KeyRange, LostReason, TxnError};

use super::{keys_below, session};
use crate::support::{soon, until};

/// Many candidates, each leading for a moment: never two at once, and all of them once.
pub async fn one_leader_at_a_time(client: &Client) {
    let leading = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for name in 0..5_u32 {
        let (client, leading) = (client.clone(), Arc::clone(&leading));
        tasks.spawn(async move {
            let session = session(&client).await;
            let election = client.election("turns");
            let leadership = election.campaign(&session, name).await.unwrap();
            assert_eq!(leading.fetch_add(1, Ordering::SeqCst), 0, "two leaders");
            let leader = election.leader().await.unwrap().unwrap();
            assert_eq!((leader.value, leader.token), (name, leadership.token()));
            leadership
                .put("turns/state", name.to_string())
                .await
                .unwrap();
            leading.fetch_sub(1, Ordering::SeqCst);
            let token = leadership.token();
            leadership.resign().await.unwrap();
            token
        });
    }
    let mut tokens = Vec::new();
    while let Some(token) = soon("a leader", tasks.join_next()).await {
        tokens.push(token.unwrap());
    }
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 5);
    let election = client.election::<u32>("turns");
    assert_eq!(election.leader().await.unwrap(), None);
    assert_eq!(keys_below(client, election.prefix()).await, 0);
}

/// A leader whose lease goes is succeeded, learns of it, and can neither write nor proclaim.
pub async fn takeover_after_loss(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let election = client.election("takeover");
    let old = election.campaign(&a, "old".to_owned()).await.unwrap();
    old.put("takeover/state", "old").await.unwrap();
    let waiting = tokio::spawn({
        let (election, b) = (election.clone(), b.clone());
        async move { election.campaign(&b, "new".to_owned()).await.unwrap() }
    });
    until("the second candidate", async || {
        election.candidates(9).await.unwrap().len() == 2
    })
    .await;
    client.store().lease_revoke(a.lease()).await.unwrap();
    let new = soon("the new leader", waiting).await.unwrap();
    assert!(new.token() > old.token());
    let refused = old.proclaim("still me".to_owned()).await;
    assert!(
        matches!(refused, Err(Error::SessionLost(_) | Error::Removed(_))),
        "{refused:?}"
    );
    assert_eq!(soon("the loss", old.lost()).await, LostReason::LeaseGone);
    let refused = old.put("takeover/state", "late").await;
    assert!(refused.is_err());
    new.put("takeover/state", "new").await.unwrap();
    let state = client.get("takeover/state").await.unwrap().unwrap();
    assert_eq!(state.value, "new");
    assert!(old.resign().await.is_err());
    let leader = election.leader().await.unwrap().unwrap();
    assert_eq!((leader.value.as_str(), leader.lease), ("new", b.lease()));
}

/// Deposed by hand, while its session lives: refused by the store, with the name of the successor.
pub async fn deposed_leader_is_fenced(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let election = client.election("deposed");
    let old = election.campaign(&a, 1_u32).await.unwrap();
    client.delete(old.key()).await.unwrap();
    let new = election.campaign(&b, 2).await.unwrap();
    let refused = old.txn().put("deposed/state", "late").commit().await;
    let Err(TxnError::Fenced { owner: Some(owner) }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(owner.lease, b.lease());
    let refused = old.proclaim(3).await;
    assert!(matches!(refused, Err(Error::Removed(_))), "{refused:?}");
    assert_eq!(soon("the loss", old.lost()).await, LostReason::Removed);
    assert_eq!(client.get("deposed/state").await.unwrap(), None);
    assert_eq!(election.leader().await.unwrap().unwrap().value, 2);
    new.resign().await.unwrap();
}

/// A candidate whose key was deleted while it waited is told so, and never leads.
pub async fn no_phantom_leader(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let election = client.election("phantom");
    let leader = election.campaign(&a, 1_u32).await.unwrap();
    let waiting = tokio::spawn({
        let (election, b) = (election.clone(), b.clone());
        async move { election.campaign(&b, 2).await }
    });
    until("the candidate", async || {
        election.candidates(9).await.unwrap().len() == 2
    })
    .await;
    let candidates = election.candidates(9).await.unwrap();
    // Both at once: the turn comes in the very revision in which its own key goes.
    let own = KeyRange::prefix(format!("{}/", election.prefix()));
    client.txn().delete_range(own).commit().await.unwrap();
    let outcome = soon("the end of the wait", waiting).await.unwrap();
    assert!(
        matches!(&outcome, Err(Error::Removed(key)) if *key == candidates[1].key),
        "{outcome:?}"
    );
    assert_eq!(election.leader().await.unwrap(), None);
    drop(leader);
}

/// An observer sees who leads, what it says, and that nobody leads; tokens only grow.
pub async fn observers_see_every_change(client: &Client) {
    let session = session(client).await;
    let election = client.election::<String>("observed");
    let mut leaders = election.observe();
    let mut next = async || {
        let item = soon("the next leader", leaders.next()).await;
        let leader = item.unwrap().unwrap();
        leader.map(|leader| (leader.value, leader.token))
    };
    assert_eq!(next().await, None, "nobody leads, and that is said");
    let first = election.campaign(&session, "a".to_owned()).await.unwrap();
    assert_eq!(next().await, Some(("a".to_owned(), first.token())));
    first.proclaim("a2".to_owned()).await.unwrap();
    assert_eq!(*first.value(), "a2");
    assert_eq!(next().await, Some(("a2".to_owned(), first.token())));
    let token = first.token();
    let waiting = tokio::spawn({
        let (election, session) = (election.clone(), session.clone());
        async move { election.campaign(&session, "b".to_owned()).await.unwrap() }
    });
    until("the second candidate", async || {
        election.candidates(9).await.unwrap().len() == 2
    })
    .await;
    first.resign().await.unwrap();
    let second = soon("the second leader", waiting).await.unwrap();
    assert_eq!(next().await, Some(("b".to_owned(), second.token())));
    assert!(second.token() > token);
    drop(second);
    assert_eq!(next().await, None);
    // A late observer begins with what is.
    let last = election.campaign(&session, "c".to_owned()).await.unwrap();
    let mut late = election.observe();
    let item = soon("the leader now", late.next()).await;
    assert_eq!(item.unwrap().unwrap().unwrap().value, "c");
    // What is no string does not end the stream.
    let numbers = client.election::<u32>("observed");
    let mut numbers = numbers.observe();
    let item = soon("an item", numbers.next()).await.unwrap();
    assert!(matches!(item, Err(Error::Codec { .. })), "{item:?}");
    last.proclaim("5".to_owned()).await.unwrap();
    let item = soon("an item", numbers.next()).await.unwrap();
    assert!(
        matches!(item, Err(Error::Codec { .. })),
        "a string is no number: {item:?}"
    );
    last.resign().await.unwrap();
    assert_eq!(
        soon("an item", numbers.next()).await.unwrap().unwrap(),
        None
    );
}

/// Dropped campaigns and dropped leaderships leave no key behind.
pub async fn dropped_campaigns_leave_nothing(client: &Client) {
    let session = session(client).await;
    let election = client.election("dropped");
    let leadership = election.campaign(&session, 1_u32).await.unwrap();
    for micros in [0, 300, 2_000, 50_000] {
        let limit = Duration::from_micros(micros);
        let wait = tokio::time::timeout(limit, election.campaign(&session, 2));
        assert!(wait.await.is_err());
    }
    until("the campaigns to be gone", async || {
        keys_below(client, election.prefix()).await == 1
    })
    .await;
    drop(leadership);
    until("the leadership to be gone", async || {
        keys_below(client, election.prefix()).await == 0
    })
    .await;
}
