//! How long the record of a job that has ended can be read: under a lease that nobody renews, which jobs share that
//! end at about the same time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::client::Client;
use crate::clock::{Moment, whole_seconds};
use crate::error::Result;
use crate::keys::LeaseId;

/// This part of the retention a lease is given to ends, and so much longer than the retention some are kept.
const SHARED_PART: u32 = 8;

/// What a dispatcher and its clones keep ended jobs by.
#[derive(Debug, Clone)]
pub(super) struct Retention {
    length: Duration,
    granted: Arc<Mutex<Option<Granted>>>,
}

#[derive(Debug, Clone, Copy)]
struct Granted {
    lease: LeaseId,
    /// Before it was asked for.
    since: Moment,
}

impl Retention {
    pub(super) fn new(length: Duration) -> Self {
        Self {
            length,
            granted: Arc::default(),
        }
    }

    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// A lease that lives at least as long as a job that ends now is kept; `grant` grants one of this length. Others
    /// wait for it meanwhile, and then share it.
    pub(super) async fn lease<F>(
        &self,
        client: &Client,
        grant: impl FnOnce(Duration) -> F,
    ) -> Result<LeaseId>
    where
        F: Future<Output = Result<LeaseId>>,
    {
        let shared = self.length / SHARED_PART;
        let mut granted = self.granted.lock().await;
        let known = granted.filter(|known| known.since.elapsed(&**client.clock()) < shared);
        if let Some(known) = known {
            return Ok(known.lease);
        }
        let since = client.moment();
        let lease = grant(whole_seconds(self.length.saturating_add(shared))).await?;
        *granted = Some(Granted { lease, since });
        Ok(lease)
    }

    /// The store says that there is no such lease.
    pub(super) async fn forget(&self, lease: LeaseId) {
        let mut granted = self.granted.lock().await;
        if granted.is_some_and(|granted| granted.lease == lease) {
            *granted = None;
        }
    }
}
