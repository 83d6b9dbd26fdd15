//! Where the demo keeps its things in the store.
//!
//! | key | value | written by |
//! |---|---|---|
//! | `demo/batch/<n>` | paths, each followed by a NUL | the primary, guarded by its leadership |
//! | `demo/plan` | [`Plan`] as JSON; there once all batches are | the primary, guarded |
//! | `demo/result/<n>` | the batch's lines of the manifest | the worker that holds the batch's lock, guarded by it |
//! | `demo/manifest/<n>` | the manifest, cut as the batches are | the primary, guarded |
//! | `demo/complete` | the number of batches | the primary, guarded |

use serde::{Deserialize, Serialize};

/// The service that workers register as.
pub(crate) const SERVICE: &str = "demo-worker";
/// The election of the primary.
pub(crate) const ELECTION: &str = "demo/primary";
/// The job under which progress is reported.
pub(crate) const JOB: &str = "demo";
/// The task in which the primary reports the whole.
pub(crate) const WHOLE: &str = "whole";
/// There once all batches are.
pub(crate) const PLAN: &str = "demo/plan";
/// There once the manifest is.
pub(crate) const COMPLETE: &str = "demo/complete";
/// Below it, the batches.
pub(crate) const BATCHES: &str = "demo/batch/";
/// Below it, the results.
pub(crate) const RESULTS: &str = "demo/result/";
/// Below it, the manifest.
pub(crate) const MANIFEST: &str = "demo/manifest/";

/// What there is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// How many batches.
    pub(crate) batches: usize,
    /// How many files.
    pub(crate) files: usize,
}

/// The key of number `n` below `prefix`; byte order is the order of the numbers.
pub(crate) fn numbered(prefix: &str, n: usize) -> String {
    format!("{prefix}{n:08}")
}

/// The number in a key made by [`numbered`].
pub(crate) fn number(prefix: &str, key: &[u8]) -> Option<usize> {
    std::str::from_utf8(key)
        .ok()?
        .strip_prefix(prefix)?
        .parse()
        .ok()
}

/// The name of the lock of batch `n`.
pub(crate) fn batch_lock(n: usize) -> String {
    format!("demo-batch-{n:08}")
}
