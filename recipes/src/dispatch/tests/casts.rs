//! One command for many: who gets it, and that all of them do, whatever becomes of the sender.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use quorate_proto::etcdserverpb::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest,
};

use super::*;
use crate::keys::LeaseId;
use crate::store::faulty::{Calls, Stage};
use crate::store::{Capabilities, Counting, Lease, LeaseTtl, Store, WatchStream};

/// What a transaction of the store has room for.
const TXN_OPS: usize = 16;

/// How many recipients that is enough for.
const PART: usize = 6;

/// More than three times as many.
const MANY: usize = 20;

fn all(_: &Recipient) -> bool {
    true
}

/// A place with many inboxes, whose session has sent before.
async fn crowd() -> (Place, Vec<Inbox<u32, u32>>) {
    let limits = Capabilities {
        max_txn_ops: TXN_OPS,
        ..Capabilities::default()
    };
    let place = Place::on(MemStore::with_capabilities(limits)).await;
    let mut inboxes = Vec::new();
    for name in everybody() {
        inboxes.push(place.inbox(&name).await);
    }
    let other = place.client.queue::<u32>("other");
    other.push(&place.session, &1).await.unwrap();
    (place, inboxes)
}

/// The names of those that have a job, each time.
async fn have_a_job(place: &Place) -> Vec<String> {
    let jobs = place.ops().jobs(usize::MAX).await.unwrap();
    let targets = jobs.into_iter().filter_map(|job| job.target);
    let names = targets.map(|target| match target {
        Target::Instance(name) | Target::Any(name) => name,
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

fn everybody() -> Vec<String> {
    (0..MANY).map(|n| format!("i-{n:02}")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_cast_goes_to_all_that_are_there() {
    let place = Place::new().await;
    let ops = place.ops();
    let mut inboxes = BTreeMap::new();
    for name in ["eu-1", "eu-2", "us-1"] {
        inboxes.insert(name, place.inbox(name).await);
    }
    let selected = |one: &Recipient| one.instance.starts_with("eu-");
    let cast = ops
        .send_all(&place.session, selected, &7, Sending::new())
        .await
        .unwrap();
    let names: Vec<&str> = cast.jobs().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["eu-1", "eu-2"]);
    for (name, inbox) in &inboxes {
        match *name {
            "us-1" => no_news(inbox.next()).await,
            name => {
                let reply = u32::from(name == "eu-1");
                soon(inbox.next())
                    .await
                    .unwrap()
                    .reply(&reply)
                    .await
                    .unwrap();
            }
        }
    }
    let found = ops.cast(cast.id()).await.unwrap().unwrap();
    let ended = soon(found.wait()).await.unwrap();
    let expected = [("eu-1", 1), ("eu-2", 0)];
    let expected = expected.map(|(name, reply)| (name.to_owned(), Ended::Done(reply)));
    assert_eq!(ended, expected);
    let none = async |sending| ops.send_all(&place.session, |_| false, &7, sending).await;
    assert_eq!(none(Sending::new()).await.unwrap().jobs().len(), 0);
    let refused = none(Sending::new().require_live()).await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    assert!(ops.cast("x").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn recipients_are_chosen_by_what_is_said_of_them() {
    let place = Place::new().await;
    let mut open = Vec::new();
    for (name, zone) in [("a", "eu"), ("b", "us"), ("c", "eu")] {
        let ops = place.ops().label("zone", zone).label("kind", "web");
        open.push(ops.inbox(&place.session, [to(name)]).await.unwrap());
    }
    // A second inbox of one of them, and one of which nothing is said.
    let more = place.ops().label("zone", "us").label("gpu", "");
    open.push(more.inbox(&place.session, [to("a")]).await.unwrap());
    open.push(place.inbox("d").await);
    let chosen = async |selected: fn(&Recipient) -> bool| {
        let ops = place.ops();
        let cast = ops.send_all(&place.session, selected, &7, Sending::new());
        let cast = cast.await.unwrap();
        let names = cast.jobs().iter().map(|(name, _)| name.clone());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(chosen(|one| one.is("zone", "eu")).await, "c");
    assert_eq!(chosen(|one| one.is("zone", "us")).await, "a b");
    assert_eq!(chosen(|one| one.is("kind", "web")).await, "a b c");
    assert_eq!(chosen(|one| one.labels.contains_key("gpu")).await, "a");
    assert_eq!(chosen(|one| one.labels.is_empty()).await, "d");
}

#[tokio::test(start_paused = true)]
async fn however_many_there_are() {
    let (place, inboxes) = crowd().await;
    let before = place.store.revision();
    let ops = place.ops();
    let cast = ops.send_all(&place.session, all, &7, Sending::new());
    let cast = cast.await.unwrap();
    assert_eq!(cast.revision(), before);
    // The names, and then four parts.
    assert_eq!(place.store.revision().0, before.0 + 5);
    assert_eq!(have_a_job(&place).await, everybody());
    for (n, inbox) in (0..).zip(&inboxes) {
        let mut command = soon(inbox.next()).await.unwrap();
        assert_eq!(*command.value(), 7);
        command.reply(&n).await.unwrap();
    }
    let ended = soon(cast.wait()).await.unwrap();
    let expected = everybody().into_iter().zip((0..).map(Ended::Done));
    assert_eq!(ended, Vec::from_iter(expected));
    let left = place.left();
    assert!(
        left.iter().all(|key| !key.contains("sent/")),
        "it is known that all have got it: {left:?}"
    );
}

/// Dropped at each of its calls: to all, or to nobody, and to each once.
#[tokio::test(start_paused = true)]
async fn what_a_sender_began_is_brought_to_its_end() {
    let mut finished = BTreeSet::new();
    for stage in [Stage::NotSent, Stage::OnItsWay, Stage::Answered] {
        for nth in 1.. {
            let (place, inboxes) = crowd().await;
            let ops = place.ops();
            let held = place.faulty.hold(nth, Calls::Txn, stage);
            let sending = ops.send_all(&place.session, all, &7, Sending::new());
            tokio::select! {
                biased;
                () = held.reached() => {}
                sent = sending => drop(sent.unwrap()),
            }
            if !held.is_reached() {
                break;
            }
            held.release();
            tokio::time::sleep(Duration::from_secs(10)).await;
            let got = have_a_job(&place).await;
            assert!(
                got == everybody() || got.is_empty(),
                "{stage:?} {nth}: {}",
                got.len()
            );
            finished.insert((nth, got.len()));
            drop(inboxes);
        }
    }
    // The names, which go on by themselves; then a read and a write for each part.
    let all = (1..=9).map(|nth| (nth, MANY));
    assert_eq!(finished, BTreeSet::from_iter(all));
}

/// No inbox is open any more.
#[tokio::test(start_paused = true)]
async fn who_asks_for_a_cast_finds_it_sent() {
    let (place, inboxes) = crowd().await;
    let ops = place.ops();
    let held = place.faulty.hold(3, Calls::Txn, Stage::Answered);
    tokio::select! {
        biased;
        () = held.reached() => {}
        sent = ops.send_all(&place.session, all, &7, Sending::new()) => panic!("{sent:?}"),
    }
    drop(inboxes);
    let begun = have_a_job(&place).await.len();
    assert!(begun > 0 && begun < MANY, "{begun}");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(have_a_job(&place).await.len(), begun);
    let id = place.store.keys("quorate/dispatch/ops/unsent/");
    let id = id[0].rsplit('/').next().unwrap();
    let cast = ops.cast(id).await.unwrap().unwrap();
    assert_eq!(cast.jobs().len(), MANY);
    assert_eq!(have_a_job(&place).await, everybody());
    cast.cancel().await.unwrap();
    let ended = soon(cast.wait()).await.unwrap();
    assert!(ended.iter().all(|(_, ended)| *ended == Ended::Cancelled));
}

/// How many items there are in inboxes.
fn items(place: &Place) -> usize {
    let items = place.store.keys("quorate/dispatch/ops/inbox/");
    items.iter().filter(|key| key.contains("/segment/")).count()
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_on_the_way_is_sent_once() {
    for fault in [Fault::Late, Fault::Unanswered] {
        let (place, _inboxes) = crowd().await;
        let faults = [(); 4].map(|()| fault.clone());
        place.faulty.plan("quorate/dispatch/ops/sent/", faults);
        let ops = place.ops();
        let sent = ops.send_all(&place.session, all, &7, Sending::new());
        assert_eq!(soon(sent).await.unwrap().jobs().len(), MANY);
        place.faulty.deliver().await;
        assert_eq!(place.faulty.left(), 0, "{fault:?}");
        assert_eq!(have_a_job(&place).await, everybody(), "{fault:?}");
        assert_eq!(items(&place), MANY, "{fault:?}");
    }
}

/// A sender that stood still comes back when somebody else has gone on with it.
#[tokio::test(start_paused = true)]
async fn several_senders_of_one_cast_send_once() {
    let (place, inboxes) = crowd().await;
    let ops = place.ops();
    let held = place.faulty.hold(5, Calls::Txn, Stage::NotSent);
    let sending = ops.send_all(&place.session, all, &7, Sending::new());
    let other = async {
        held.reached().await;
        let begun = have_a_job(&place).await.len();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!((begun, have_a_job(&place).await), (PART, everybody()));
        let mut command = soon(inboxes[8].next()).await.unwrap();
        command.reply(&1).await.unwrap();
        held.release();
    };
    let (sent, ()) = tokio::join!(soon(sending), soon(other));
    assert_eq!(have_a_job(&place).await, everybody());
    assert_eq!(items(&place), MANY - 1);
    no_news(inboxes[8].next()).await;
    let cast = sent.unwrap();
    let (_, job) = &cast.jobs()[8];
    assert_eq!(job.state().await.unwrap(), JobState::Ended(Ended::Done(1)));
}

/// With one watch, and whoever waits sees to it that they end in time.
#[tokio::test(start_paused = true)]
async fn all_are_waited_for_together() {
    let (place, inboxes) = crowd().await;
    let counting = Counting::new(place.store.clone());
    let client = Client::builder(counting.clone())
        .clock(Arc::clone(place.client.clock()))
        .build();
    let session = client.session().await.unwrap();
    let ops: Ops = client.dispatcher("ops");
    let second = Duration::from_secs(1);
    let sending = Sending::new().deadline(10 * second);
    let cast = ops.send_all(&session, all, &7, sending).await.unwrap();
    let mut done = Vec::new();
    for inbox in &inboxes[..5] {
        done.push(soon(inbox.next()).await.unwrap());
    }
    done.pop().unwrap().reply(&4).await.unwrap();
    let before = counting.counts();
    let replies = async {
        for (n, command) in (0..).zip(&mut done) {
            tokio::time::sleep(second).await;
            command.reply(&n).await.unwrap();
        }
    };
    let (ended, ()) = tokio::join!(soon(cast.wait()), replies);
    let expected = everybody().into_iter().enumerate().map(|(n, name)| {
        let ended = match n {
            0..5 => Ended::Done(u32::try_from(n).unwrap()),
            _ => Ended::Expired,
        };
        (name, ended)
    });
    assert_eq!(ended.unwrap(), Vec::from_iter(expected));
    let used = counting.counts() - before;
    assert_eq!((used.watch, used.lease_grant), (1, 1), "{used:?}");
    assert_eq!(used.txn, 15, "one for each that expires: {used:?}");
    // Also when it is asked for later, and when not all is kept any more.
    let again = ops.cast(cast.id()).await.unwrap().unwrap();
    assert_eq!(soon(again.wait()).await.unwrap().len(), MANY);
    let keys = place.store.keys("quorate/dispatch/ops/job/");
    place.client.delete(keys[3].as_str()).await.unwrap();
    let gone = soon(again.wait()).await;
    assert!(matches!(gone, Err(Error::Removed(_))), "{gone:?}");
}

/// One is begun in time, which has no due any more; the others have.
#[tokio::test(start_paused = true)]
async fn those_that_are_not_begun_in_time_expire_beside_one_that_is() {
    let (place, inboxes) = crowd().await;
    let ops = place.ops();
    let sending = Sending::new().start_by(Duration::from_secs(10));
    let cast = ops
        .send_all(&place.session, all, &7, sending)
        .await
        .unwrap();
    let one = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut command = soon(inboxes[3].next()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        command.reply(&3).await.unwrap();
    };
    let (ended, ()) = tokio::join!(soon(cast.wait()), one);
    let done = ended.unwrap().into_iter().enumerate();
    for (n, (name, ended)) in done {
        let expected = if n == 3 {
            Ended::Done(3)
        } else {
            Ended::Expired
        };
        assert_eq!(ended, expected, "{name}");
    }
}

/// As many as fit into a request.
#[tokio::test(start_paused = true)]
async fn a_large_command_goes_to_fewer_at_a_time() {
    let (place, _inboxes) = crowd().await;
    let ops: Dispatcher<String, u32> = place.client.dispatcher("ops");
    let most = place.client.store().capabilities().max_request_bytes;
    let send = async |bytes: usize| {
        let command = "x".repeat(bytes);
        ops.send_all(&place.session, all, &command, Sending::new())
            .await
    };
    let before = place.store.revision();
    send(most / 4).await.unwrap();
    assert_eq!(have_a_job(&place).await, everybody());
    let parts = place.store.revision().0 - before.0 - 1;
    // Three at a time; some close the segments that they are in.
    assert!((7..=12).contains(&parts), "{parts}");
    // Nothing is begun that cannot be ended.
    for bytes in [most - 5_000, most, 2 * most] {
        let (before, leases) = (place.store.revision(), place.store.leases());
        let refused = send(bytes).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
        let after = (place.store.revision(), place.store.leases());
        assert_eq!(after, (before, leases), "{bytes}");
    }
    let begun = place.store.revision();
    send(most - 20_000).await.unwrap();
    let parts = place.store.revision().0 - begun.0 - 1;
    assert!((20..=40).contains(&parts), "one at a time: {parts}");
}

/// As one whose operator has set other limits than etcd's.
#[derive(Debug)]
struct Boasting(MemStore);

#[async_trait]
impl Store for Boasting {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.0.range(request).await
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.0.txn(request).await
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        self.0.watch(requests).await
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        self.0.lease_grant(id, ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.0.lease_keep_alive(id).await
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.0.lease_ttl(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.0.lease_revoke(id).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_less_than_is_known_gets_less_at_a_time() {
    let (place, _inboxes) = crowd().await;
    let client = Client::new(Boasting(place.store.clone()));
    let session = client.session().await.unwrap();
    let ops: Ops = client.dispatcher("ops");
    let sent = ops.send_all(&session, all, &7, Sending::new());
    assert_eq!(soon(sent).await.unwrap().jobs().len(), MANY);
    assert_eq!(have_a_job(&place).await, everybody());
}

/// What is said of it is gone before all have got it.
#[tokio::test(start_paused = true)]
async fn a_cast_that_is_not_kept_any_more_was_not_sent_to_all() {
    let (place, inboxes) = crowd().await;
    let ops = place.ops();
    let held = place.faulty.hold(5, Calls::Txn, Stage::NotSent);
    let sending = ops.send_all(&place.session, all, &7, Sending::new());
    let meanwhile = async {
        held.reached().await;
        drop(inboxes);
        let cast = place
            .client
            .list(KeyRange::prefix("quorate/dispatch/ops/cast/"));
        let lease = LeaseId(cast.await.unwrap().1[0].lease);
        place.client.store().lease_revoke(lease).await.unwrap();
        held.release();
    };
    let (sent, ()) = tokio::join!(soon(sending), meanwhile);
    assert!(matches!(sent, Err(Error::OutcomeUnknown(_))), "{sent:?}");
    assert_eq!(have_a_job(&place).await.len(), PART);
}

/// Somebody revokes what it is to be kept by before it is begun.
#[tokio::test(start_paused = true)]
async fn a_cast_without_its_lease_is_begun_under_another_one() {
    let (place, _inboxes) = crowd().await;
    let before = place.store.leases();
    let held = place.faulty.hold(1, Calls::Txn, Stage::NotSent);
    let ops = place.ops();
    let sending = ops.send_all(&place.session, all, &7, Sending::new());
    let meanwhile = async {
        held.reached().await;
        for lease in place.store.leases() {
            if !before.contains(&lease) {
                place.client.store().lease_revoke(lease).await.unwrap();
            }
        }
        assert_eq!(place.store.leases(), before);
        held.release();
    };
    let (sent, ()) = tokio::join!(soon(sending), meanwhile);
    assert_eq!(sent.unwrap().jobs().len(), MANY);
    assert_eq!(have_a_job(&place).await, everybody());
    place.session.actor().verify().await.unwrap();
}

/// One inbox is damaged: what can be told is told, and other casts go on.
#[tokio::test(start_paused = true)]
async fn a_recipient_that_cannot_get_it_holds_up_no_other_cast() {
    let (place, inboxes) = crowd().await;
    let ops = place.ops();
    let head = "quorate/dispatch/ops/inbox/i-10/head";
    place.client.put(head, "x").await.unwrap();
    let sent = ops.send_all(&place.session, all, &7, Sending::new()).await;
    assert!(matches!(sent, Err(Error::OutcomeUnknown(_))), "{sent:?}");
    let id = place.store.keys("quorate/dispatch/ops/unsent/");
    let id = id[0].rsplit('/').next().unwrap();
    let found = ops.cast(id).await.unwrap().unwrap();
    assert_eq!(found.jobs().len(), MANY);
    found.cancel().await.unwrap();
    let waited = soon(found.wait()).await;
    assert!(matches!(waited, Err(Error::Removed(_))), "{waited:?}");
    // Another sender dies.
    let some = |one: &Recipient| one.instance.as_str() < "i-08";
    let held = place.faulty.hold(3, Calls::Txn, Stage::Answered);
    tokio::select! {
        biased;
        () = held.reached() => {}
        sent = ops.send_all(&place.session, some, &8, Sending::new()) => panic!("{sent:?}"),
    }
    held.release();
    tokio::time::sleep(Duration::from_secs(10)).await;
    for inbox in &inboxes[..8] {
        assert_eq!(*soon(inbox.next()).await.unwrap().value(), 8);
    }
}
