//! What the recipes' tests need around them: an etcd server of their own, and waiting with a limit.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

pub mod etcd;

use std::future::Future;
use std::time::Duration;

/// Longest wait for anything that must happen.
pub const SOON: Duration = Duration::from_secs(20);

/// Fails the test if `what` does not complete soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(output) => output,
        Err(_) => panic!("timed out: {what}"),
    }
}

/// Asks again and again until `check` is satisfied.
pub async fn until<F, Fut>(what: &str, mut check: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    soon(what, async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
