//! How leaders follow each other: handed over, outranked, in a loop, asked to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_recipes::election::Succession;
use quorate_recipes::{Client, Session};
use tokio::task::JoinHandle;

use super::{keys_below, session, watched, watches};
use crate::support::{soon, until};

type Leadership = quorate_recipes::Leadership<String>;

/// Lets `name` campaign; returns once it stands in line as the `place`th.
async fn stand(
    client: &Client,
    session: &Session,
    election: &str,
    name: &str,
    place: usize,
) -> JoinHandle<Leadership> {
    let election = client.election::<String>(election);
    let waiting = tokio::spawn({
        let (election, session, name) = (election.clone(), session.clone(), name.to_owned());
        async move { election.campaign(&session, name).await.unwrap() }
    });
    until("a candidate", async || {
        election.candidates(9).await.unwrap().len() == place
    })
    .await;
    waiting
}

/// The successor that a leader names leads next, although others stand before it.
pub async fn named_successors_come_next(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let election = client.election::<String>("named");
    let leader = election.campaign(&a, "first".to_owned()).await.unwrap();
    let before = stand(client, &a, "named", "before", 2).await;
    let named = stand(client, &b, "named", "named", 3).await;
    let candidates = election.candidates(9).await.unwrap();
    let named_it = leader.hand_over(&candidates[2]).await.unwrap();
    assert!(matches!(named_it, Succession::Named), "{named_it:?}");
    let leader = soon("the one that was named", named).await.unwrap();
    assert!(!before.is_finished());
    let seen = election.leader().await.unwrap().unwrap();
    assert_eq!((seen.value.as_str(), seen.token), ("named", leader.token()));
    leader.resign().await.unwrap();
    let last = soon("the one that let it pass", before).await.unwrap();
    assert_eq!(last.value().as_str(), "before");
    last.resign().await.unwrap();
    until("nothing left", async || {
        keys_below(client, "quorate/election-meta").await == 0
    })
    .await;
}

/// A successor that has gone is not waited for, whether before or after it was named.
pub async fn named_successors_may_go(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let election = client.election::<String>("gone");
    let leader = election.campaign(&a, "first".to_owned()).await.unwrap();
    let next = stand(client, &a, "gone", "next", 2).await;
    let named = stand(client, &b, "gone", "named", 3).await;
    let candidates = election.candidates(9).await.unwrap();
    // It stands no more when it is named: the leader stays.
    named.abort();
    until("its withdrawal", async || {
        election.candidates(9).await.unwrap().len() == 2
    })
    .await;
    let Succession::Gone(leader) = leader.hand_over(&candidates[2]).await.unwrap() else {
        panic!("nobody to hand over to");
    };
    leader.put("gone/x", "still leads").await.unwrap();
    // It goes together with the leader: nobody is passed over for it.
    let named = stand(client, &b, "gone", "named", 3).await;
    let candidates = election.candidates(9).await.unwrap();
    client
        .put(
            "quorate/election-meta/gone/handover",
            candidates[2].key.to_string(),
        )
        .await
        .unwrap();
    named.abort();
    until("its withdrawal", async || {
        election.candidates(9).await.unwrap().len() == 2
    })
    .await;
    leader.resign().await.unwrap();
    let next = soon("the next one", next).await.unwrap();
    assert_eq!(next.value().as_str(), "next");
    drop(next);
}

/// A candidate of etcd's own kind lets nobody pass, so nobody behind it can be named.
pub async fn others_let_nobody_pass(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let election = client.election::<String>("foreign");
    let leader = election.campaign(&a, "first".to_owned()).await.unwrap();
    let foreign = format!("{}/{}", election.prefix(), b.lease());
    let put = client.txn().put_leased(foreign.as_str(), "theirs", &b);
    put.commit().await.unwrap();
    let waiting = stand(client, &a, "foreign", "behind", 3).await;
    let candidates = election.candidates(9).await.unwrap();
    let blocked = leader.hand_over(&candidates[2]).await.unwrap();
    let Succession::Blocked { leadership, by } = blocked else {
        panic!("{blocked:?}");
    };
    assert_eq!(by.to_string(), foreign);
    leadership.put("foreign/x", "still leads").await.unwrap();
    waiting.abort();
}

/// A leader sees who counts for more, and hands over to the best.
pub async fn the_best_candidate_is_told(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let election = client.election::<String>("ranked");
    let (connection, leading) = watched(client);
    let leads = session(&leading).await;
    let leader = leading.election::<String>("ranked").with_priority(5);
    let leader = leader.campaign(&leads, "five".to_owned()).await.unwrap();
    let _low = stand(client, &a, "ranked", "low", 2).await;
    let before = connection.inner().counts().watch;
    let outranked = leader.outranked();
    let mut outranked = Box::pin(outranked);
    tokio::select! {
        biased;
        early = &mut outranked => panic!("{early:?}"),
        // One look, and it waits for what comes after.
        () = watches(&connection, before + 1) => {}
    }
    let high = election.clone().with_priority(9);
    let high = tokio::spawn({
        let b = b.clone();
        async move { high.campaign(&b, "nine".to_owned()).await.unwrap() }
    });
    let better = soon("a better one", outranked.as_mut()).await.unwrap();
    drop(outranked);
    assert_eq!(better.lease, b.lease());
    let named = leader.hand_over(&better).await.unwrap();
    assert!(matches!(named, Succession::Named), "{named:?}");
    let leader = soon("the better one", high).await.unwrap();
    assert_eq!(leader.value().as_str(), "nine");
}

/// The loop leads again after a loss, under a new session, and ends with the leader's work.
pub async fn leading_goes_on_after_a_loss(client: &Client) {
    let election = client.election::<String>("loop");
    let times = Arc::new(AtomicUsize::new(0));
    let sessions = client.session();
    let running = tokio::spawn({
        let (election, times) = (election.clone(), Arc::clone(&times));
        async move {
            let work = |leadership: Arc<Leadership>| {
                let time = times.fetch_add(1, Ordering::SeqCst);
                async move {
                    if time < 2 {
                        std::future::pending::<()>().await;
                    }
                    leadership.put("loop/x", "done").await.unwrap();
                    time
                }
            };
            election.run(sessions, "me".to_owned(), work).await
        }
    });
    for time in 0..2 {
        until("the leader", async || times.load(Ordering::SeqCst) > time).await;
        let leader = election.leader().await.unwrap().unwrap();
        match time {
            0 => client.store().lease_revoke(leader.lease).await.unwrap(),
            _ => assert!(client.delete(&leader.key).await.unwrap()),
        }
    }
    let done = soon("the work's end", running).await.unwrap().unwrap();
    assert_eq!(done, 2);
    assert_eq!(election.leader().await.unwrap(), None);
    assert_eq!(keys_below(client, election.prefix()).await, 0);
}

/// A leader is asked to resign, and told why.
pub async fn leaders_are_asked_to_resign(client: &Client) {
    let (a, b) = (session(client).await, session(client).await);
    let election = client.election::<String>("asked");
    assert!(
        election
            .request_resignation(&b, "x")
            .await
            .unwrap()
            .is_none()
    );
    let leader = election.try_campaign(&a, "leads".to_owned()).await.unwrap();
    let leader = leader.expect("nobody else");
    assert!(
        election
            .try_campaign(&b, "no".to_owned())
            .await
            .unwrap()
            .is_none()
    );
    let request = election.request_resignation(&b, "restart").await.unwrap();
    let asked = soon("the request", leader.resignation_requested())
        .await
        .unwrap();
    assert_eq!(asked.reason, "restart");
    leader.resign().await.unwrap();
    soon("the grant", request.unwrap().granted()).await.unwrap();
}
