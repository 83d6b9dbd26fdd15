//! Sessions against outages, restores and other programs' writes: what a caller who has gone leaves behind,
//! what an epoch that was raised ends, what a key that has lost its lease means.

use std::pin::Pin;
use std::time::Duration;

use futures::FutureExt;

use crate::client::Client;
use crate::error::{Error, LostReason, Result};
use crate::keys::{EPOCH_KEY, Key, Revision};
use crate::kit::{Attach, Claim, Claimed, NewKey};
use crate::lock::Upgraded;
use crate::session::Session;
use crate::session::actor::OPERATIONS_MAX;
use crate::store::faulty::{Fault, Outage};
use crate::store::{Faulty, MemStore, Store};

struct Place {
    store: MemStore,
    faulty: Faulty<MemStore>,
    client: Client,
    session: Session,
}

impl Place {
    async fn new() -> Self {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::builder(faulty.clone()).seed(1).build();
        let session = client.session().ttl(Duration::from_secs(60)).await.unwrap();
        Self {
            store,
            faulty,
            client,
            session,
        }
    }
}

async fn for_a_second<T>(work: impl Future<Output = T>) {
    let done = tokio::time::timeout(Duration::from_secs(1), work).await;
    assert!(done.is_err(), "there is no store");
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(50), work).await;
    done.expect("it ends by itself")
}

/// All that a caller may begin and leave while nobody listens: a store that comes back later does not hear
/// of it.
#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_not_sent_once_the_caller_has_gone() {
    type Work<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;
    let Place {
        store,
        faulty,
        client: c,
        session: s,
    } = Place::new().await;
    let (mutex, election, cyclic) = (c.mutex("m"), c.election("e"), c.cyclic_barrier("c", 2));
    let (counter, rw, latch) = (c.counter("n"), c.rw_lock("r"), c.latch("l"));
    let (many, one) = (c.semaphore("s", 3), c.exclusive("x"));
    latch.init(&s, 3).await.unwrap();
    // So that the lanes are there.
    counter.add(&s, 1).await.unwrap();
    let guard = mutex.lock(&s).await.unwrap();
    let other = c.mutex("other");
    let works: Vec<(&str, Work<'_>)> = vec![
        ("lock", Box::pin(other.lock(&s).map(|held| held.map(drop)))),
        (
            "try",
            Box::pin(other.try_lock(&s).map(|held| held.map(drop))),
        ),
        ("read", Box::pin(rw.read(&s).map(|held| held.map(drop)))),
        (
            "exclusive",
            Box::pin(one.lock(&s).map(|held| held.map(drop))),
        ),
        (
            "permit",
            Box::pin(many.acquire(&s).map(|held| held.map(drop))),
        ),
        (
            "campaign",
            Box::pin(election.campaign(&s, 1).map(|held| held.map(drop))),
        ),
        ("wait", Box::pin(cyclic.wait(&s).map(|turn| turn.map(drop)))),
        ("add", Box::pin(counter.add(&s, 1).map(|sum| sum.map(drop)))),
        (
            "count",
            Box::pin(latch.count_down(&s).map(|left| left.map(drop))),
        ),
    ];
    for (name, work) in works {
        let before = store.revision();
        faulty.disconnect(Outage::Refused);
        for_a_second(work).await;
        faulty.reconnect();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(store.revision(), before, "{name}");
    }
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn callers_who_have_gone_take_up_no_place() {
    let Place {
        store,
        faulty,
        client,
        session,
    } = Place::new().await;
    let lock = client.mutex("m");
    let before = store.revision();
    faulty.disconnect(Outage::Refused);
    let gone = (0..2 * OPERATIONS_MAX).map(|_| lock.lock(&session));
    for_a_second(futures::future::join_all(gone)).await;
    let mut live = Box::pin(lock.lock(&session));
    for_a_second(&mut live).await;
    faulty.reconnect();
    let held = soon(live).await.unwrap();
    assert_eq!(held.token().revision, Revision(before.0 + 1), "the first");
}

/// The caller goes while its claim is under way, and nobody listens when it is to be looked up.
#[tokio::test(start_paused = true)]
async fn what_may_have_been_sent_is_looked_up_and_taken_back() {
    for fault in [Fault::Unanswered, Fault::Late] {
        let Place {
            store,
            faulty,
            client,
            session,
        } = Place::new().await;
        let lock = client.mutex("m");
        faulty.plan("quorate/lock/", [fault.clone()]);
        let mut locking = Box::pin(lock.lock(&session));
        while faulty.left() > 0 {
            assert!(locking.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        faulty.disconnect(Outage::Refused);
        drop(locking);
        tokio::time::sleep(Duration::from_secs(5)).await;
        faulty.reconnect();
        tokio::time::sleep(Duration::from_secs(5)).await;
        faulty.deliver().await;
        assert_eq!(store.keys("quorate/lock/"), [""; 0], "{fault:?}");
        drop(
            lock.try_lock(&session)
                .await
                .unwrap()
                .expect("nobody has it"),
        );
    }
}

/// A session that was opened before, and has written nothing since: tokens do not go back.
#[tokio::test(start_paused = true)]
async fn a_raised_epoch_ends_a_session_at_its_next_claim() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let waits = client.session().await.unwrap();
    let held = client.mutex("w").lock(&session).await.unwrap();
    let lock = client.mutex("w");
    let mut waiting = Box::pin(lock.lock(&waits));
    assert!(waiting.as_mut().now_or_never().is_none());
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.put(EPOCH_KEY, "17").await.unwrap();
    let old = client.mutex("m").lock(&session).await;
    let replaced = LostReason::StoreReplaced;
    assert!(
        matches!(&old, Err(Error::SessionLost(reason)) if *reason == replaced),
        "{old:?}"
    );
    assert_eq!(soon(held.lost()).await, replaced);
    // Its turn comes, and it may not take it.
    let turn = soon(waiting).await;
    assert!(
        matches!(&turn, Err(Error::SessionLost(reason)) if *reason == replaced),
        "{turn:?}"
    );
    let new = client.session().await.unwrap();
    let held = client.mutex("m").lock(&new).await.unwrap();
    assert_eq!(held.token().epoch, 17);
}

#[tokio::test(start_paused = true)]
async fn a_raised_epoch_ends_a_leader_at_its_next_proclamation() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let election = client.election("e");
    let leads = election.campaign(&session, 1).await.unwrap();
    client.put(EPOCH_KEY, "17").await.unwrap();
    let told = leads.proclaim(2).await;
    assert!(matches!(told, Err(Error::SessionLost(_))), "{told:?}");
    assert_eq!(
        election.leader().await.unwrap().map(|leader| leader.value),
        None
    );
}

/// `etcdctl put` of somebody's key takes it off its lease: it would stay for ever.
#[tokio::test(start_paused = true)]
async fn a_key_that_came_off_its_lease_is_waited_for_by_nobody() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let others = client.session().await.unwrap();
    let (mutex, one) = (client.mutex("m"), client.exclusive("x"));
    let held = mutex.lock(&session).await.unwrap();
    let alone = one.lock(&session).await.unwrap();
    let keys: [Key; 2] = [held.key().clone(), alone.key().clone()];
    let lost = (held.lost(), alone.lost());
    let waiters = async { tokio::join!(mutex.lock(&others), one.lock(&others)) };
    let detach = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for key in &keys {
            client.put(key, "x").await.unwrap();
        }
    };
    let ((waited, tried), ()) = soon(async { tokio::join!(waiters, detach) }).await;
    assert!(
        matches!(&waited, Err(Error::ForeignKey(key)) if *key == keys[0]),
        "{waited:?}"
    );
    assert!(
        matches!(&tried, Err(Error::ForeignKey(key)) if *key == keys[1]),
        "{tried:?}"
    );
    assert_eq!(
        soon(async { tokio::join!(lost.0, lost.1) }).await,
        (LostReason::Removed, LostReason::Removed)
    );
    let tried = mutex.try_lock(&others).await;
    assert!(
        matches!(&tried, Err(Error::ForeignKey(key)) if *key == keys[0]),
        "{tried:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_came_off_its_lease_is_told() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let many = client.semaphore("s", 1);
    let held = many.acquire(&session).await.unwrap();
    let record = client.get(held.key()).await.unwrap().unwrap().value;
    client.put(held.key(), record).await.unwrap();
    let refused = soon(many.acquire(&session)).await;
    assert!(
        matches!(&refused, Err(Error::ForeignKey(key)) if key == held.key()),
        "{refused:?}"
    );
}

/// The session's lease as well: v3election's Proclaim with the leader's key writes so.
#[tokio::test(start_paused = true)]
async fn a_leader_proclaims_over_what_was_written_in_its_name() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let election = client.election::<i32>("e");
    let leads = election.campaign(&session, 1).await.unwrap();
    let txn = client.txn().put_leased(leads.key(), "7", &session);
    txn.commit().await.unwrap();
    leads.proclaim(2).await.unwrap();
    leads.proclaim(3).await.unwrap();
    let leader = election.leader().await.unwrap().unwrap();
    assert_eq!(leader.value, 3);
    client.put(leads.key(), "8").await.unwrap();
    let removed = leads.proclaim(4).await;
    assert!(matches!(removed, Err(Error::Removed(_))), "{removed:?}");
}

/// A session that is closed says it in the name of who is just writing: that one is not there again then.
#[tokio::test(start_paused = true)]
async fn nothing_is_written_over_a_farewell() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let claim = Claim {
        farewell: Some("bye".into()),
        ..Claim::of("member".into(), "1".into())
    };
    let Claimed::Made { owned, .. } = session.actor().claim(claim).await.unwrap() else {
        panic!("there is nobody else");
    };
    let txn = client.txn().put_leased(owned.key(), "bye", &session);
    txn.commit().await.unwrap();
    let written = owned.write("2".into()).await;
    assert!(matches!(written, Err(Error::Removed(_))), "{written:?}");
    let there = client.get("member").await.unwrap().unwrap();
    assert_eq!(there.value, "bye");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_loss_waits_on_when_a_lock_changes_its_kind() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let lock = client.rw_lock("r");
    let reader = lock.read(&session).await.unwrap();
    let mut lost = reader.lost();
    let Upgraded::Write(writer) = reader.try_upgrade().await.unwrap() else {
        panic!("there is nobody else");
    };
    let reader = writer.downgrade().await.unwrap();
    let wait = tokio::time::timeout(Duration::from_secs(5), &mut lost).await;
    assert!(wait.is_err(), "it is held all the time: {wait:?}");
    client.delete(reader.key()).await.unwrap();
    assert_eq!(soon(lost).await, LostReason::Removed);
    // Gone: not "still held for reading".
    let upgraded = reader.try_upgrade().await;
    assert!(
        matches!(upgraded, Err(Error::Fenced { .. })),
        "{upgraded:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_hold_handed_on_is_over_for_who_had_it() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let lock = client.mutex("m").combined(&session);
    let first = lock.lock().await.unwrap();
    let lost = first.lost();
    let next = lock.lock();
    let ((), second) = tokio::join!(async { first.release().await.unwrap() }, next);
    let second = second.unwrap();
    assert_eq!(soon(lost).await, LostReason::Released);
    let lost = second.lost();
    client.delete(second.key()).await.unwrap();
    assert_eq!(soon(lost).await, LostReason::Removed);
}

/// What a claim made is kept apart from its caller: it is looked after when that one has gone.
#[tokio::test(start_paused = true)]
async fn what_is_owned_is_given_up_by_whoever_has_it() {
    let Place {
        store,
        client,
        session,
        ..
    } = Place::new().await;
    let key = |key: &str, attach| NewKey {
        key: key.into(),
        value: "v".into(),
        attach,
    };
    let claim = Claim {
        keys: vec![key("leased", Attach::Session), key("free", Attach::Nothing)],
        ..Claim::default()
    };
    let claimed = session
        .actor()
        .run(|actor| async move { actor.claim(claim).await });
    let Claimed::Made {
        owned, revision, ..
    } = claimed.await.unwrap()
    else {
        panic!("nobody has it");
    };
    assert!(revision > Revision(0) && client.get("free").await.unwrap().is_some());
    owned.write("w".into()).await.unwrap();
    drop(owned);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(store.keys("leased").is_empty() && store.keys("free").is_empty());
    assert!(store.capabilities().max_txn_ops > 2);
}

/// Longer than there is time: never, and not at once.
#[tokio::test(start_paused = true)]
async fn limits_without_an_end() {
    let store = MemStore::new();
    let client = Client::new(store.clone());
    let longest = Duration::MAX;
    let open = client.session().ttl(longest).open_timeout(longest);
    let session = open.await.unwrap();
    assert!(session.remaining() > Duration::from_secs(1_000_000_000));
    let others = client.session().await.unwrap();
    let lock = client.mutex("m").with_delay(longest);
    let held = lock.lock(&session).await.unwrap();
    let mut waiting = Box::pin(lock.lock_within(&others, longest));
    let early = tokio::time::timeout(Duration::from_secs(3_600), &mut waiting).await;
    assert!(early.is_err(), "it waits");
    held.release().await.unwrap();
    assert!(soon(waiting).await.unwrap().is_some());
    let rates = client.rate_limiter("r", 1, longest);
    assert!(soon(rates.try_acquire(&others, 1)).await.unwrap());
    let more = tokio::time::timeout(Duration::from_secs(3_600), rates.acquire(&others, 1)).await;
    assert!(more.is_err(), "one in all that time");
}

#[tokio::test(start_paused = true)]
async fn no_leader_hands_over_to_itself_and_none_of_a_line_is_asked_for() {
    let Place {
        client, session, ..
    } = Place::new().await;
    let election = client.election("e");
    let leads = election.campaign(&session, 1).await.unwrap();
    assert_eq!(election.candidates(0).await.unwrap(), []);
    let own = election.candidates(1).await.unwrap().remove(0);
    let named = leads.hand_over(&own).await;
    assert!(matches!(named, Err(Error::Invalid(_))), "{named:?}");
}

/// Nobody answers the renewal, and the loss is told when it is due.
#[tokio::test(start_paused = true)]
async fn a_loss_is_told_while_a_renewal_is_under_way() {
    let Place { faulty, client, .. } = Place::new().await;
    let open = client.session().ttl(Duration::from_secs(60));
    let session = open.watchdog(Duration::from_secs(2)).await.unwrap();
    let lost = session.lost();
    faulty.disconnect(Outage::Silent);
    let began = client.now();
    for _ in 0..21 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        session.feed_watchdog();
    }
    assert_eq!(lost.await, LostReason::Stalled);
    let told = client.now() - began;
    assert!(told < Duration::from_millis(24_100), "{told:?}");
}
