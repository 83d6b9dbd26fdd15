//! What is kept of jobs that have ended, and for how long.

use super::*;

async fn end_one(place: &Place, inbox: &Inbox<u32, u32>) -> Job<u32> {
    let job = place.send(to("a")).await;
    soon(inbox.next()).await.unwrap().reply(&1).await.unwrap();
    job
}

#[tokio::test(start_paused = true)]
async fn jobs_that_end_together_are_kept_together() {
    let place = Place::new().await;
    let inbox = place.inbox("a").await;
    let before = place.store.leases().len();
    let mut jobs = Vec::new();
    for _ in 0..50 {
        jobs.push(end_one(&place, &inbox).await);
    }
    assert_eq!(place.store.leases().len(), before + 1);
    // From outside, by another handle.
    let never = place.send(to("b")).await;
    never.cancel().await.unwrap();
    assert_eq!(place.store.leases().len(), before + 2);
    // Each at least as long as it is to be kept, also the last of those that share a lease.
    tokio::time::sleep(RETENTION / 8 - Duration::from_secs(10)).await;
    let last = end_one(&place, &inbox).await;
    assert_eq!(place.store.leases().len(), before + 2);
    tokio::time::sleep(RETENTION - Duration::from_secs(10)).await;
    assert_eq!(last.state().await.unwrap(), JobState::Ended(Ended::Done(1)));
    tokio::time::sleep(Duration::from_secs(60)).await;
    for job in jobs.into_iter().chain([last, never]) {
        let gone = job.state().await;
        assert!(matches!(gone, Err(Error::Removed(_))), "{gone:?}");
    }
    assert_eq!(place.store.leases().len(), before);
}

/// Somebody revoked it.
#[tokio::test(start_paused = true)]
async fn a_lease_that_is_gone_is_not_used_for_ever() {
    let place = Place::new().await;
    let (ours, theirs) = (place.ops(), place.ops());
    let inbox = ours.inbox(&place.session, [to("a")]).await.unwrap();
    let before = place.store.leases();
    end_one(&place, &inbox).await;
    let send = async || theirs.send(&place.session, to("b"), &1).await.unwrap();
    send().await.cancel().await.unwrap();
    for lease in place.store.leases() {
        if !before.contains(&lease) {
            place.client.store().lease_revoke(lease).await.unwrap();
        }
    }
    let again = send().await;
    assert!(again.cancel().await.unwrap());
    let ended = again.state().await.unwrap();
    assert_eq!(ended, JobState::Ended(Ended::Cancelled));
    // And the session of who replies goes on.
    let job = place.send(to("a")).await;
    let mut command = soon(inbox.next()).await.unwrap();
    let txn = place.client.txn().put("x", "");
    command.reply_with(&2, txn).await.unwrap();
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Done(2));
    assert_eq!(place.client.get("x").await.unwrap().unwrap().version, 1);
    place.session.actor().verify().await.unwrap();
    assert_eq!(
        end_one(&place, &inbox).await.state().await.unwrap(),
        JobState::Ended(Ended::Done(1))
    );
}

/// With that of the session gone too, it is the session that is lost.
#[tokio::test(start_paused = true)]
async fn a_session_without_its_lease_is_lost_nevertheless() {
    let place = Place::new().await;
    let session = place.client.session().await.unwrap();
    let inbox = place.ops().inbox(&session, [to("a")]).await.unwrap();
    let job = place.send(to("a")).await;
    let mut command = soon(inbox.next()).await.unwrap();
    let revoked = place.client.store().lease_revoke(session.lease()).await;
    revoked.unwrap();
    let refused = command.reply(&1).await;
    assert!(
        matches!(
            refused,
            Err(TxnError::Fenced { .. } | TxnError::Failed(Error::SessionLost(_)))
        ),
        "{refused:?}"
    );
    assert_eq!(
        job.state().await.unwrap(),
        JobState::Delivered { attempt: 1 }
    );
}

#[tokio::test(start_paused = true)]
async fn a_damaged_job_hides_no_other() {
    let place = Place::new().await;
    let jobs = [place.send(to("a")).await, place.send(to("a")).await];
    let keys = place.store.keys("quorate/dispatch/ops/job/");
    let damaged = keys.iter().find(|key| key.ends_with(jobs[0].id()));
    place
        .client
        .put(damaged.unwrap().as_str(), "x")
        .await
        .unwrap();
    let lines = place.ops().jobs(9).await.unwrap();
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line.id.as_str(), line.state, line.target.clone()))
        .collect();
    assert_eq!(
        told,
        [
            (jobs[0].id(), "unreadable", None),
            (jobs[1].id(), "queued", Some(to("a")))
        ]
    );
}
