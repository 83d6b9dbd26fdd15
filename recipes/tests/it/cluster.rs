//! Every recipe body on a cluster of three, through its client ports.

use std::time::Duration;

use crate::bodies::{faults, locks, sessions};
use crate::support::soon;
use quorate_harness::target::Target;
use quorate_recipes::store::Remote;
use quorate_recipes::{Client, LostReason};

macro_rules! on_a_cluster {
    ($($module:ident :: $body:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $body() {
            let cluster = Target::Cluster.start().await.unwrap().expect("needs nothing installed");
            $module::$body(cluster.client()).await;
            cluster.stop().await;
        }
    )*};
}

on_a_cluster! {
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

/// A program that blocks its only thread for longer than its lease lives keeps what it holds if the store's
/// connections have a thread of their own, and loses it if they have not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_on_a_thread_of_their_own_go_on() {
    let cluster = Target::Cluster.start().await.unwrap();
    let cluster = cluster.expect("needs nothing installed");
    for own in [true, false] {
        let endpoints = cluster.endpoints().to_vec();
        let program = tokio::task::spawn_blocking(move || {
            let program = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            program.block_on(async {
                let store = match own {
                    true => Remote::builder(endpoints).own_runtime(),
                    false => Remote::builder(endpoints),
                };
                let client = Client::new(store.build().unwrap());
                let open = client.session().ttl(Duration::from_secs(2));
                let session = open.await.unwrap();
                let guard = client.mutex("blocked").lock(&session).await.unwrap();
                std::thread::sleep(2 * session.ttl());
                assert_eq!(session.check().is_ok(), own, "{session:?}");
                let written = guard.put("blocked/x", "held").await;
                assert_eq!(written.is_ok(), own, "{written:?}");
            });
        });
        program.await.unwrap();
    }
    cluster.stop().await;
}

/// A program that hangs gives up what it holds by itself, long before its lease would end, if the store's
/// connections have a thread of their own and the session a watchdog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_program_lets_go() {
    let cluster = Target::Cluster.start().await.unwrap();
    let cluster = cluster.expect("needs nothing installed");
    let endpoints = cluster.endpoints().to_vec();
    let (tell, hangs) = tokio::sync::oneshot::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let program = tokio::task::spawn_blocking(move || {
        let program = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        program.block_on(async {
            let store = Remote::builder(endpoints).own_runtime();
            let client = Client::new(store.build().unwrap());
            let open = client.session().ttl(Duration::from_secs(300));
            let session = open.watchdog(Duration::from_secs(1)).await.unwrap();
            let guard = client.mutex("hangs").lock(&session).await.unwrap();
            tell.send(()).unwrap();
            ended.recv().unwrap_err();
            assert_eq!(session.lost().await, LostReason::Stalled);
            drop(guard);
        });
    });
    hangs.await.unwrap();
    let client = cluster.client();
    let session = client.session().await.unwrap();
    let guard = soon("the lock", client.mutex("hangs").lock(&session)).await;
    guard.unwrap().release().await.unwrap();
    drop(end);
    program.await.unwrap();
    cluster.stop().await;
}
