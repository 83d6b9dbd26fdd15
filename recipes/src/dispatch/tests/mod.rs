use std::sync::Arc;

use futures::StreamExt;

use super::*;
use crate::clock::LateClock;
use crate::error::TxnError;
use crate::keys::KeyRange;
use crate::store::faulty::Fault;
use crate::store::{Faulty, MemStore, StoreError};
use crate::testing::{no_news, soon};

mod casts;
mod costs;
mod ends;
mod trouble;

struct Place {
    store: MemStore,
    faulty: Faulty<MemStore>,
    client: Client,
    session: Session,
}

type Ops = Dispatcher<u32, u32>;

impl Place {
    async fn new() -> Self {
        Self::on(MemStore::new()).await
    }

    async fn on(store: MemStore) -> Self {
        let faulty = Faulty::new(store.clone());
        // Its wall clock goes with the paused time.
        let clock = Arc::new(LateClock::default());
        let client = Client::builder(faulty.clone()).seed(1).clock(clock).build();
        let session = client.session().await.unwrap();
        Self {
            store,
            faulty,
            client,
            session,
        }
    }

    fn ops(&self) -> Ops {
        self.client.dispatcher("ops")
    }

    async fn inbox(&self, name: &str) -> Inbox<u32, u32> {
        self.ops().inbox(&self.session, [to(name)]).await.unwrap()
    }

    async fn send(&self, target: Target) -> Job<u32> {
        self.ops().send(&self.session, target, &7).await.unwrap()
    }

    /// What is kept of jobs, but for what inboxes always have.
    fn left(&self) -> Vec<String> {
        let mut left = self.store.keys("quorate/dispatch/ops/");
        left.retain(|key| !key.ends_with("/head"));
        left
    }
}

fn to(name: &str) -> Target {
    Target::Instance(name.to_owned())
}

fn any(name: &str) -> Target {
    Target::Any(name.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_job_from_its_beginning_to_its_end() {
    let place = Place::new().await;
    let inbox = place.inbox("a").await;
    let job = place.send(to("a")).await;
    let mut states = job.states().boxed();
    assert_eq!(
        soon(states.next()).await.unwrap().unwrap(),
        JobState::Queued
    );
    let mut command = soon(inbox.next()).await.unwrap();
    assert_eq!(
        (*command.value(), command.job(), command.attempt()),
        (7, job.id(), 1)
    );
    let delivered = JobState::Delivered { attempt: 1 };
    assert_eq!(soon(states.next()).await.unwrap().unwrap(), delivered);
    command.progress(0.5, "half").await.unwrap();
    let told = soon(states.next()).await.unwrap().unwrap();
    let JobState::Running {
        fraction, message, ..
    } = told
    else {
        panic!("{told:?}");
    };
    assert_eq!((fraction, &*message), (0.5, "half"));
    let wrong = command.progress(1.5, "").await;
    assert!(matches!(wrong, Err(Error::Invalid(_))), "{wrong:?}");
    let unmet = place.client.txn().when(Compare::present("x"));
    let refused = command.reply_with(&1, unmet).await;
    assert!(
        matches!(refused, Err(TxnError::Conflict { .. })),
        "{refused:?}"
    );
    let with = place.client.txn().put("effect", "");
    command.reply_with(&42, with).await.unwrap();
    let again = command.reply_with(&43, place.client.txn()).await;
    assert!(matches!(again, Err(TxnError::Fenced { .. })), "{again:?}");
    let done = JobState::Ended(Ended::Done(42));
    assert_eq!(soon(states.next()).await.unwrap().unwrap(), done);
    assert!(soon(states.next()).await.is_none());
    assert_eq!(
        place.client.get("effect").await.unwrap().unwrap().version,
        1
    );
    // By another process, later.
    let other: Ops = Client::new(place.store.clone()).dispatcher("ops");
    assert_eq!(
        soon(other.job(job.id()).wait()).await.unwrap(),
        Ended::Done(42)
    );
    assert!(!job.cancel().await.unwrap(), "it has ended");
    let lines = other.jobs(9).await.unwrap();
    assert_eq!((lines.len(), lines[0].state), (1, "done"));
    let status = other.status().await.unwrap();
    assert_eq!((status.jobs, status.instances), (1, vec!["a".to_owned()]));
    // Not for ever.
    tokio::time::sleep(2 * RETENTION).await;
    let gone = job.wait().await;
    assert!(matches!(gone, Err(Error::Removed(_))), "{gone:?}");
    drop(inbox);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(place.left(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn each_goes_where_it_is_sent() {
    let place = Place::new().await;
    let (a, b) = (place.inbox("a").await, place.inbox("b").await);
    let both = place
        .ops()
        .inbox(&place.session, [to("c"), any("web")])
        .await
        .unwrap();
    let job = place.send(to("b")).await;
    no_news(a.next()).await;
    soon(b.next()).await.unwrap().reply(&1).await.unwrap();
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Done(1));
    for target in [any("web"), to("c"), any("web")] {
        let job = place.send(target).await;
        soon(both.next()).await.unwrap().fail("no").await.unwrap();
        assert_eq!(
            soon(job.wait()).await.unwrap(),
            Ended::Failed("no".to_owned())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_comes_again_and_fails_in_the_end() {
    let place = Place::new().await;
    let ops = place.ops().max_attempts(2);
    let inbox = ops.inbox(&place.session, [any("web")]).await.unwrap();
    let job = place.send(any("web")).await;
    drop(soon(inbox.next()).await.unwrap());
    let second = soon(inbox.next()).await.unwrap();
    assert_eq!(second.attempt(), 2);
    second.give_back().await.unwrap();
    no_news(inbox.next()).await;
    let ended = soon(job.wait()).await.unwrap();
    assert_eq!(
        ended,
        Ended::Failed("taken 2 times without success".to_owned())
    );

    // One that cannot be read.
    let wrong: Dispatcher<String, u32> = place.client.dispatcher("ops");
    let text = "seven".to_owned();
    let job = wrong.send(&place.session, any("web"), &text).await.unwrap();
    no_news(inbox.next()).await;
    let ended = soon(job.wait()).await.unwrap();
    assert!(
        matches!(&ended, Ended::Failed(why) if why.contains("cannot be read")),
        "{ended:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_it_ends_nothing() {
    let place = Place::new().await;
    let dying = place.client.session().await.unwrap();
    let first = place.ops().inbox(&dying, [any("web")]).await.unwrap();
    let job = place.send(any("web")).await;
    let mut zombie = soon(first.next()).await.unwrap();
    place
        .client
        .store()
        .lease_revoke(dying.lease())
        .await
        .unwrap();
    let second = place
        .ops()
        .inbox(&place.session, [any("web")])
        .await
        .unwrap();
    let mut again = soon(second.next()).await.unwrap();
    assert_eq!(again.attempt(), 2);
    assert!(zombie.progress(0.1, "").await.is_err());
    assert!(
        zombie
            .reply_with(&1, place.client.txn().put("x", ""))
            .await
            .is_err()
    );
    again.reply(&2).await.unwrap();
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Done(2));
    assert!(place.client.get("x").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn cancelled_before_it_is_taken_it_never_runs() {
    let place = Place::new().await;
    let job = place.send(to("a")).await;
    assert!(job.cancel().await.unwrap());
    assert!(!job.cancel().await.unwrap());
    let inbox = place.inbox("a").await;
    no_news(inbox.next()).await;
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn who_has_it_is_told_to_stop() {
    let place = Place::new().await;
    let inbox = place.inbox("a").await;
    let job = place.send(to("a")).await;
    let command = soon(inbox.next()).await.unwrap();
    no_news(command.cancelled()).await;
    assert!(job.cancel().await.unwrap());
    soon(command.cancelled()).await;
    assert_eq!(place.ops().status().await.unwrap().cancelling, 1);
    command.stop().await.unwrap();
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Cancelled);
    // Too late to stop, or given back.
    for reply in [true, false] {
        let job = place.send(to("a")).await;
        let mut command = soon(inbox.next()).await.unwrap();
        assert!(job.cancel().await.unwrap());
        match reply {
            true => drop(command.reply(&3).await.unwrap()),
            false => drop(command),
        }
        if !reply {
            no_news(inbox.next()).await;
        }
        let expected = if reply {
            Ended::Done(3)
        } else {
            Ended::Cancelled
        };
        assert_eq!(soon(job.wait()).await.unwrap(), expected);
    }
    assert_eq!(place.ops().status().await.unwrap().cancelling, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_done_in_time_expires() {
    let place = Place::new().await;
    let (ops, session) = (place.ops(), &place.session);
    let second = Duration::from_secs(1);
    let deadline = Sending::new().deadline(second);
    // Nobody is there: whoever waits.
    let job = ops.send_with(session, to("a"), &1, deadline).await.unwrap();
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Expired);
    let items = KeyRange::prefix("quorate/dispatch/ops/inbox/a/segment/");
    assert_eq!(place.client.list(items).await.unwrap().1, []);
    // Somebody has it.
    let inbox = place.inbox("a").await;
    let job = ops.send_with(session, to("a"), &1, deadline).await.unwrap();
    let mut command = soon(inbox.next()).await.unwrap();
    let lost = command.lost();
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Expired);
    assert_eq!(soon(lost).await, crate::error::LostReason::Removed);
    let ended = command.scope(std::future::pending::<()>()).await;
    assert!(matches!(ended, Err(Error::Removed(_))), "{ended:?}");
    let late = command.reply(&1).await;
    assert!(matches!(late, Err(TxnError::Fenced { .. })), "{late:?}");
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Expired);
    // Begun in time.
    let start_by = Sending::new().start_by(second);
    let job = ops.send_with(session, to("a"), &1, start_by).await.unwrap();
    let mut command = soon(inbox.next()).await.unwrap();
    no_news(job.wait()).await;
    command.reply(&2).await.unwrap();
    assert_eq!(soon(job.wait()).await.unwrap(), Ended::Done(2));
}

#[tokio::test(start_paused = true)]
async fn an_inbox_ends_what_has_expired() {
    let place = Place::new().await;
    let start_by = Sending::new().start_by(Duration::from_millis(5));
    let ops = place.ops();
    let job = ops
        .send_with(&place.session, to("a"), &1, start_by)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let inbox = place.inbox("a").await;
    no_news(inbox.next()).await;
    assert_eq!(job.state().await.unwrap(), JobState::Ended(Ended::Expired));
}

#[tokio::test(start_paused = true)]
async fn somebody_must_be_there_if_that_is_asked_for() {
    let place = Place::new().await;
    let live = Sending::new().require_live();
    let send = async || {
        place
            .ops()
            .send_with(&place.session, to("a"), &1, live)
            .await
    };
    let refused = send().await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    assert_eq!(place.left(), [""; 0]);
    let inbox = place.inbox("a").await;
    send().await.unwrap();
    drop(inbox);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(send().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn lost_answers_send_and_end_once() {
    for fault in [Fault::Late, Fault::Unanswered] {
        let place = Place::new().await;
        let inbox = place.inbox("a").await;
        place.faulty.plan("quorate/lane/", [fault.clone()]);
        let job = place.send(to("a")).await;
        let mut command = soon(inbox.next()).await.unwrap();
        place.faulty.plan("quorate/lane/", [fault]);
        command
            .reply_with(&1, place.client.txn().put("x", ""))
            .await
            .unwrap();
        place.faulty.deliver().await;
        no_news(inbox.next()).await;
        assert_eq!(soon(job.wait()).await.unwrap(), Ended::Done(1));
        assert_eq!(place.client.get("x").await.unwrap().unwrap().version, 1);
        assert_eq!(place.ops().jobs(9).await.unwrap().len(), 1);
    }
}
