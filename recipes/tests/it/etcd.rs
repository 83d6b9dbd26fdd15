//! Every recipe body on a real etcd server, and what only such a server can show: its stop, its
//! compactions, and its own programs in the same line.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use crate::bodies::{faults, keys_below, locks, session, sessions, short_session};
use crate::support::etcd::Etcd;
use crate::support::{soon, until};
use futures::FutureExt;
use quorate_recipes::store::faulty::Faulty;
use quorate_recipes::store::remote::Remote;
use quorate_recipes::watch::{Change, Origin};
use quorate_recipes::{Client, Error, KeyRange, LostReason, Name, SessionState};
use tokio::io::{AsyncBufReadExt, BufReader};

macro_rules! on_etcd {
    ($($module:ident :: $body:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $body() {
            let Some(etcd) = Etcd::start().await else { return };
            $module::$body(&etcd.client()).await;
        }
    )*};
}

on_etcd! {
    locks::excludes,
    locks::exclusive_lock_excludes,
    locks::grants_in_order,
    locks::trying_writes_nothing,
    locks::lost_when_the_lease_is_revoked,
    locks::fence_refuses_after_loss,
    locks::epoch_ends_old_holds,
    locks::waiter_learns_of_its_own_loss,
    locks::removed_waiter_is_told,
    locks::foreign_key_is_an_error,
    locks::drops_leave_nothing,
    sessions::closing_ends_everything,
    sessions::last_handle_ends_the_session,
    sessions::session_tells_who_it_is,
    faults::acquiring_survives_lost_answers,
    faults::trying_survives_lost_answers,
    faults::releasing_is_idempotent,
    faults::dropped_in_flight_leaves_nothing,
    faults::waiting_survives_ended_watches,
    faults::own_values_survive_lost_answers,
    faults::unread_watches_hold_up_nothing,
}

/// A session is lost by its own clock while the server is silent, and stays lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_by_the_clock_while_the_server_is_stopped() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let client = etcd.client();
    let (held, short) = (short_session(&client).await, short_session(&client).await);
    let lock = client.mutex("clock");
    let guard = lock.lock(&held).await.unwrap();
    let mut states = short.watch_state();
    etcd.signal("STOP");
    let suspended = states.wait_for(|state| matches!(state, SessionState::Suspended { .. }));
    soon("suspension", suspended).await.unwrap();
    assert!(!guard.remaining().is_zero());
    assert_eq!(soon("the loss", guard.lost()).await, LostReason::Expired);
    assert_eq!(soon("the loss", short.lost()).await, LostReason::Expired);
    etcd.signal("CONT");
    until("the server's answers", async || {
        client.get("x").await.is_ok()
    })
    .await;
    assert_eq!(held.state(), SessionState::Lost(LostReason::Expired));
    let refused = guard.put("clock/x", "late").await.map_err(Error::from);
    assert!(
        matches!(refused, Err(Error::SessionLost(LostReason::Expired))),
        "{refused:?}"
    );
    let next = session(&client).await;
    drop(soon("the next holder", lock.lock(&next)).await.unwrap());
}

/// A short silence of the server costs nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_outlives_a_short_stop() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let client = etcd.client();
    let session = client.session().ttl(Duration::from_secs(8)).await.unwrap();
    let guard = client.mutex("short").lock(&session).await.unwrap();
    let mut states = session.watch_state();
    etcd.signal("STOP");
    let suspended = states.wait_for(|state| matches!(state, SessionState::Suspended { .. }));
    soon("suspension", suspended).await.unwrap();
    etcd.signal("CONT");
    let live = states.wait_for(|state| matches!(state, SessionState::Live { .. }));
    soon("recovery", live).await.unwrap();
    guard.put("short/x", "still held").await.unwrap();
    guard.release().await.unwrap();
}

/// `etcdctl lock` and the mutex stand in the same line, whoever comes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stands_in_line_with_etcdctl() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let client = etcd.client();
    let session = session(&client).await;
    let lock = client.mutex(Name::raw("jobs/nightly"));
    let guard = lock.lock(&session).await.unwrap();
    let mut ctl = etcd
        .ctl(&["lock", lock.prefix()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(ctl.stdout.take().unwrap()).lines();
    until("etcdctl in line", async || {
        lock.waiters(9).await.unwrap().len() == 1
    })
    .await;
    // A waiter behind etcdctl that gives up must not matter to it.
    let in_line = async |count| {
        until("the line", async || {
            lock.waiters(9).await.unwrap().len() == count
        })
        .await;
    };
    tokio::select! {
        biased;
        early = lock.lock(&session) => panic!("{early:?}"),
        () = in_line(2) => {}
    }
    in_line(1).await;
    guard.put("nightly", "still mine").await.unwrap();
    assert!(lines.next_line().now_or_never().is_none());
    guard.release().await.unwrap();
    let key = soon("etcdctl's turn", lines.next_line())
        .await
        .unwrap()
        .unwrap();
    assert!(key.starts_with("jobs/nightly/"), "{key}");
    assert!(lock.try_lock(&session).await.unwrap().is_none());
    let waiting = tokio::spawn({
        let (lock, session) = (lock.clone(), session.clone());
        async move { lock.lock(&session).await.unwrap() }
    });
    until("us in line", async || {
        lock.waiters(9).await.unwrap().len() == 1
    })
    .await;
    assert_eq!(lock.holder().await.unwrap().unwrap().key.to_string(), key);
    assert!(!waiting.is_finished());
    // Interrupted, etcdctl releases its lock.
    let pid = ctl.id().unwrap().to_string();
    std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .unwrap();
    soon("etcdctl's end", ctl.wait()).await.unwrap();
    let guard = soon("our turn", waiting).await.unwrap();
    guard.release().await.unwrap();
    until("an empty line", async || {
        keys_below(&client, lock.prefix()).await == 0
    })
    .await;
}

/// A watcher that missed events which were compacted away reports the difference, as one batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watcher_resumes_and_resyncs() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let faulty = Faulty::new(Arc::clone(etcd.client().store()));
    let client = Client::builder(faulty.clone()).build();
    client.put("w/a", "1").await.unwrap();
    client.put("w/b", "1").await.unwrap();
    let mut watcher = client.watch(KeyRange::prefix("w/"));
    let first = soon("the listing", watcher.next()).await.unwrap();
    assert_eq!((first.origin, first.changes.len()), (Origin::Listing, 2));
    // Nothing is lost or repeated when the stream ends in the middle.
    let revision = client
        .txn()
        .put("w/a", "2")
        .put("w/c", "1")
        .commit()
        .await
        .unwrap()
        .revision();
    let live = soon("the live batch", watcher.next()).await.unwrap();
    assert_eq!(
        (live.origin, live.revision, live.changes.len()),
        (Origin::Live, revision, 2)
    );
    faulty.cut_watches();
    client.put("w/d", "1").await.unwrap();
    let live = soon("the batch after the cut", watcher.next())
        .await
        .unwrap();
    assert_eq!((live.origin, live.changes.len()), (Origin::Live, 1));
    // Missed and compacted: the net difference.
    faulty.cut_watches();
    client.put("w/a", "3").await.unwrap();
    client.delete("w/b").await.unwrap();
    client.put("w/e", "1").await.unwrap();
    client.delete("w/e").await.unwrap();
    let last = client.put("w/f", "1").await.unwrap();
    let compacted = etcd
        .ctl(&["compaction", &last.to_string()])
        .output()
        .await
        .unwrap();
    assert!(compacted.status.success());
    let batch = soon("the difference", watcher.next()).await.unwrap();
    assert_eq!(batch.origin, Origin::Resync);
    let changed: BTreeMap<_, _> = batch
        .changes
        .iter()
        .map(|change| match change {
            Change::Put { kv, previous } => (kv.key.clone(), (true, previous.is_some())),
            Change::Delete { key, previous } => {
                (key.as_bytes().clone(), (false, previous.is_some()))
            }
        })
        .collect();
    let expected = [
        ("w/a", (true, true)),
        ("w/b", (false, true)),
        ("w/f", (true, false)),
    ];
    assert_eq!(
        changed,
        expected.into_iter().map(|(k, v)| (k.into(), v)).collect()
    );
    let mut mirror = client.mirror(KeyRange::prefix("w/")).await.unwrap();
    assert_eq!(mirror.view().entries.len(), 4);
    client.delete("w/f").await.unwrap();
    assert_eq!(
        soon("a new view", mirror.changed())
            .await
            .unwrap()
            .entries
            .len(),
        3
    );
}

/// Calls go on at the next endpoint; only what was certainly not applied is repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_fail_over() {
    let Some(etcd) = Etcd::start().await else {
        return;
    };
    let Some(second) = Etcd::start().await else {
        return;
    };
    let closed = "127.0.0.1:1".to_owned();
    let store = Remote::new([closed, second.url().to_owned(), etcd.url().to_owned()]).unwrap();
    let client = Client::new(store);
    client.put("x", "1").await.unwrap();
    assert!(second.client().get("x").await.unwrap().is_some());
    second.signal("STOP");
    let outcome = client.put("x", "2").await.unwrap_err();
    assert!(outcome.is_ambiguous(), "{outcome}");
    soon("the next endpoint", client.put("x", "3"))
        .await
        .unwrap();
    assert_eq!(etcd.client().get("x").await.unwrap().unwrap().version, 1);
    second.signal("CONT");
}
