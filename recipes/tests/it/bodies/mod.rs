//! What every backend must do, as functions over a client: run on each store there is.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod assign;
pub mod elections;
pub mod faults;
pub mod leased;
pub mod locks;
pub mod membership;
pub mod progress;
pub mod registry;
pub mod sessions;

use quorate_recipes::{Client, KeyRange, Session};
use std::time::Duration;

/// A session with a short time to live.
pub async fn session(client: &Client) -> Session {
    let open = client.session().ttl(Duration::from_secs(3));
    open.label("test").await.unwrap()
}

/// How many keys lie below a prefix.
pub async fn keys_below(client: &Client, prefix: &str) -> usize {
    let range = KeyRange::prefix(format!("{prefix}/"));
    client.list(range).await.unwrap().1.len()
}
