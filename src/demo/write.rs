//! Guarded writes that are finished whatever happens to the connection.

use std::time::Duration;

use quorate::recipes::{Error, Txn, TxnError};
use tracing::warn;

const PAUSE: Duration = Duration::from_millis(200);

/// Commits what `make` gives, again while the outcome is unknown. The demo's writes put values that
/// never change, so a second one does no harm; where a compare says that the key is there already,
/// the work is done; and a guard that was lost ends it.
///
/// # Errors
/// A lost guard or session; the store's final refusals.
pub(crate) async fn until_written(make: impl Fn() -> Txn) -> Result<(), Error> {
    loop {
        match make().commit().await {
            Ok(_) | Err(TxnError::Conflict { .. }) => return Ok(()),
            Err(error) if error.is_ambiguous() || error.is_retryable() => {
                warn!(%error, "writing again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
