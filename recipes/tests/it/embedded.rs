//! Every recipe body on a node in this process.

use crate::bodies::{faults, locks, sessions};
use quorate_core::node::Node;
use quorate_recipes::Client;
use quorate_recipes::store::embedded::Embedded;

macro_rules! on_a_node {
    ($($module:ident :: $body:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $body() {
            let node = Node::builder().in_memory().start().await.unwrap();
            $module::$body(&Client::new(Embedded::new(node.clone()))).await;
            node.shutdown().await;
        }
    )*};
}

on_a_node! {
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
