//! What goes wrong on the way of a job: lost watches and answers, what is too large, what cannot be read.

use tokio::sync::Notify;

use super::*;
use crate::store::faulty::{Calls, Stage};

/// The watch was cut, and its past compacted; the listing that follows finds the job as it was.
#[tokio::test(start_paused = true)]
async fn a_listing_without_news_is_no_end() {
    let place = Place::new().await;
    let job = place.send(to("a")).await;
    let mut states = job.states().boxed();
    soon(states.next()).await.unwrap().unwrap();
    let held = place.faulty.hold(1, Calls::Read, Stage::NotSent);
    place.faulty.cut_watches();
    let mut next = states.next();
    tokio::select! {
        biased;
        told = &mut next => panic!("{told:?}"),
        () = held.reached() => {}
    }
    for _ in 0..2 {
        place.client.put("other", "").await.unwrap();
    }
    place.store.compact(place.store.revision()).unwrap();
    held.release();
    no_news(&mut next).await;
    assert!(job.cancel().await.unwrap());
    let told = soon(next).await.unwrap().unwrap();
    assert_eq!(told, JobState::Ended(Ended::Cancelled));
    // There is none.
    let mut none = place.ops().job("x").states().boxed();
    let told = soon(none.next()).await.unwrap();
    assert!(matches!(told, Err(Error::Removed(_))), "{told:?}");
}

/// The work is done; only the reply is to be another one.
#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_take_costs_no_command() {
    let place = Place::new().await;
    let (ops, client) = (place.client.dispatcher::<u32, String>("ops"), &place.client);
    let inbox = ops.inbox(&place.session, [to("a")]).await.unwrap();
    let job = ops.send(&place.session, to("a"), &1).await.unwrap();
    let mut command = soon(inbox.next()).await.unwrap();
    let limits = client.store().capabilities();
    let large = "x".repeat(limits.max_request_bytes);
    let wide = (0..limits.max_txn_ops).fold(client.txn(), |txn, n| txn.put(format!("k{n}"), ""));
    let twice = client.txn().put("k", "").put("k", "");
    for (reply, txn) in [
        (large, client.txn()),
        (String::new(), wide),
        (String::new(), twice),
    ] {
        let refused = command.reply_with(&reply, txn).await;
        assert!(
            matches!(
                refused,
                Err(TxnError::Failed(
                    Error::Invalid(_) | Error::Store(StoreError::Invalid(_))
                ))
            ),
            "{refused:?}"
        );
    }
    let unmet = client.txn().when(Compare::present("k"));
    let refused = command.reply_with(&String::new(), unmet).await;
    assert!(
        matches!(refused, Err(TxnError::Conflict { .. })),
        "{refused:?}"
    );
    command.reply(&"short".to_owned()).await.unwrap();
    let ended = soon(job.wait()).await.unwrap();
    assert_eq!(ended, Ended::Done("short".to_owned()));
}

/// Given back, or left by a worker that died; no inbox is open that would see to it.
#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_has_any_more_is_cancelled_at_once() {
    for dies in [false, true] {
        let place = Place::new().await;
        let session = place.client.session().await.unwrap();
        let inbox = place.ops().inbox(&session, [to("a")]).await.unwrap();
        let job = place.send(to("a")).await;
        let mut command = soon(inbox.next()).await.unwrap();
        command.progress(0.5, "").await.unwrap();
        drop(inbox);
        match dies {
            true => {
                let store = place.client.store();
                store.lease_revoke(session.lease()).await.unwrap();
            }
            false => command.give_back().await.unwrap(),
        }
        assert!(job.cancel().await.unwrap());
        let state = job.state().await.unwrap();
        assert_eq!(state, JobState::Ended(Ended::Cancelled), "dies: {dies}");
        assert_eq!(place.ops().status().await.unwrap().cancelling, 0);
        no_news(place.inbox("a").await.next()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_heard_has_cancelled_although_the_answer_was_lost() {
    let place = Place::new().await;
    let inbox = place.inbox("a").await;
    let job = place.send(to("a")).await;
    let command = soon(inbox.next()).await.unwrap();
    place
        .faulty
        .plan("quorate/dispatch/ops/cancel/", [Fault::Unanswered]);
    let (asked, ()) = tokio::join!(soon(job.cancel()), async {
        soon(command.cancelled()).await;
        command.stop().await.unwrap();
    });
    assert!(asked.unwrap());
}

#[tokio::test(start_paused = true)]
async fn progress_does_not_hold_off_who_cancels() {
    let place = Place::new().await;
    let inbox = place.inbox("a").await;
    let job = place.send(to("a")).await;
    let mut command = soon(inbox.next()).await.unwrap();
    let (sent, never) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let held = [Arc::clone(&sent), never].map(Fault::HeldBefore);
    place.faulty.plan("quorate/dispatch/ops/cancel/", held);
    let (asked, ()) = tokio::join!(soon(job.cancel()), async {
        while place.faulty.held() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        command.progress(0.5, "").await.unwrap();
        sent.notify_one();
    });
    assert!(asked.unwrap());
    soon(command.cancelled()).await;
}

/// Whether it was written or not, and also when it comes late.
#[tokio::test(start_paused = true)]
async fn progress_that_was_not_waited_for_does_not_keep_a_job_from_its_end() {
    for stage in [Stage::OnItsWay, Stage::Answered] {
        for late in [false, true] {
            let place = Place::new().await;
            let inbox = place.inbox("a").await;
            let job = place.send(to("a")).await;
            let mut command = soon(inbox.next()).await.unwrap();
            let held = place.faulty.hold(1, Calls::Txn, stage);
            tokio::select! {
                biased;
                () = held.reached() => {}
                told = command.progress(0.5, "") => panic!("{told:?}"),
            }
            if !late {
                held.release();
                tokio::time::sleep(Duration::from_secs(1)).await;
                command.progress(0.6, "more").await.unwrap();
                command.reply(&1).await.unwrap();
            } else {
                command.reply(&1).await.unwrap();
                held.release();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let state = job.state().await.unwrap();
            assert_eq!(state, JobState::Ended(Ended::Done(1)), "{stage:?} {late}");
        }
    }
}

/// Of a newer program, or damaged: its job fails, and what is behind it is done.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_fails_and_holds_up_nothing() {
    let place = Place::new().await;
    let mut failing = Vec::new();
    for (part, value) in [
        ("/job/", r#"{"v":2}"#),
        ("/job/", "x"),
        ("/segment/", r#"{"v":1,"since_ms":1,"value":{"order":1}}"#),
        ("/segment/", r#"{"v":2,"since_ms":1,"value":{"order":1}}"#),
        ("/segment/", "x"),
    ] {
        let job = place.send(any("web")).await;
        let keys = place.left().into_iter();
        let mut keys = keys.filter(|key| key.contains(part) && key.ends_with(job.id()));
        place.client.put(keys.next().unwrap(), value).await.unwrap();
        failing.push(job);
    }
    let good = place.send(any("web")).await;
    let ops = place.ops();
    let inbox = ops.inbox(&place.session, [any("web")]).await.unwrap();
    soon(inbox.next()).await.unwrap().reply(&1).await.unwrap();
    no_news(inbox.next()).await;
    assert_eq!(soon(good.wait()).await.unwrap(), Ended::Done(1));
    for job in failing {
        let ended = soon(job.wait()).await.unwrap();
        assert!(
            matches!(&ended, Ended::Failed(why) if why.contains("cannot be read")),
            "{ended:?}"
        );
    }
    let kept = place.left();
    assert!(
        kept.iter()
            .all(|key| !key.contains("/service/") || key.contains("/consumer/")),
        "{kept:?}"
    );
}

/// What has ended is kept as it is, by whatever program it was written.
#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_read_stays() {
    let place = Place::new().await;
    let job = place.send(any("web")).await;
    let mut keys = place.left().into_iter();
    let key = keys.find(|key| key.contains("/job/")).unwrap();
    let later = r#"{"v":2}"#;
    let put = ops::put(key.as_str(), later.into(), Some(place.session.lease()));
    let request = TxnRequest {
        success: vec![put],
        ..TxnRequest::default()
    };
    place.client.store().txn(request).await.unwrap();
    let ops = place.ops();
    let inbox = ops.inbox(&place.session, [any("web")]).await.unwrap();
    no_news(inbox.next()).await;
    let kept = place.client.get(key.as_str()).await.unwrap();
    assert_eq!(kept.unwrap().value, later);
    let kept = place.left();
    assert!(
        kept.iter().all(|key| !key.contains("/segment/")),
        "{}: {kept:?}",
        job.id()
    );
}
