//! Waiting for a condition with a deadline, in place of sleeping for luck.

use std::future::Future;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Calls `probe` until it answers `Some`, and returns that; `what` is named in the error when
/// `limit` passes first.
///
/// # Errors
/// When the condition did not hold within `limit`.
#[expect(
    clippy::disallowed_methods,
    reason = "a test's own deadline, outside any member"
)]
pub async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}
