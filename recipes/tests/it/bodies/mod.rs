//! What every backend must do, as functions over a client: run on each store there is.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod assign;
pub mod barriers;
pub mod counters;
pub mod deadlocks;
pub mod elections;
pub mod faults;
pub mod latches;
pub mod leased;
pub mod lock_forms;
pub mod locks;
pub mod membership;
pub mod once;
pub mod progress;
pub mod rates;
pub mod registry;
pub mod rw_locks;
pub mod semaphores;
pub mod sessions;
pub mod successions;
pub mod transactions;

use quorate_recipes::{Client, KeyRange, Session};
use std::time::Duration;

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
