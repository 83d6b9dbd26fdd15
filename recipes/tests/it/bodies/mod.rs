//! What every backend must do, as functions over a client: run on each store there is.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod assign;
pub mod balance;
pub mod barriers;
pub mod collections;
pub mod conditions;
pub mod config;
pub mod counters;
pub mod crons;
pub mod deadlocks;
pub mod dispatch;
pub mod elections;
pub mod faults;
pub mod inspections;
pub mod latches;
pub mod leased;
pub mod lock_forms;
pub mod locks;
pub mod membership;
pub mod once;
pub mod probes;
pub mod progress;
pub mod queues;
pub mod rates;
pub mod registry;
pub mod rw_locks;
pub mod semaphores;
pub mod sessions;
pub mod successions;
pub mod topics;
pub mod transactions;

use std::sync::Arc;
use std::time::Duration;

use quorate_recipes::store::{Counting, Faulty};
use quorate_recipes::{Client, KeyRange, Session, Store};

use crate::support::until;

/// A session that lives on through a stall of the machine.
pub async fn session(client: &Client) -> Session {
    let open = client.session().ttl(Duration::from_secs(15));
    open.label("test").await.unwrap()
}

/// A session that is soon lost when it is not renewed.
pub async fn short_session(client: &Client) -> Session {
    client.session().ttl(Duration::from_secs(3)).await.unwrap()
}

/// How many keys lie below a prefix.
pub async fn keys_below(client: &Client, prefix: &str) -> usize {
    let range = KeyRange::prefix(format!("{prefix}/"));
    client.list(range).await.unwrap().1.len()
}

/// A connection whose watches can be cut, and are counted.
pub type Watched = Faulty<Counting<Arc<dyn Store>>>;

/// Another client of the same store, by a connection of its own.
pub fn watched(client: &Client) -> (Watched, Client) {
    let store = Faulty::new(Counting::new(Arc::clone(client.store())));
    (store.clone(), Client::new(store))
}

/// Waits until so many watches have been opened by that connection since it was made.
pub async fn watches(store: &Watched, count: u64) {
    until("watches to be opened", async || {
        store.inner().counts().watch >= count
    })
    .await;
}

/// Ends the watches of so many who wait, time and again; returns when all of them watch again, and so
/// have taken the end of their watches for what it is.
pub async fn cut_time_and_again(store: &Watched, waiting: u64) {
    watches(store, waiting).await;
    for _ in 0..5 {
        let before = store.inner().counts().watch;
        store.cut_watches();
        watches(store, before + waiting).await;
    }
}
