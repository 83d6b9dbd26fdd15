//! What the unit tests of several recipes stand on. Time is virtual in all of them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::clock::LateClock;
use crate::session::Session;
use crate::store::{Counting, Faulty, MemStore};

/// How long something may take, or is waited for in vain.
const LIMIT: Duration = Duration::from_secs(60);

/// A client with a session, and the layers of its store: what is there, what fails, what is counted.
pub(crate) struct Place {
    pub(crate) store: MemStore,
    pub(crate) faulty: Faulty<MemStore>,
    pub(crate) counting: Counting<Faulty<MemStore>>,
    pub(crate) client: Client,
    pub(crate) session: Session,
}

impl Place {
    pub(crate) async fn new() -> Self {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let counting = Counting::new(faulty.clone());
        // Its wall time goes on with the virtual time.
        let clock = Arc::new(LateClock::default());
        let client = Client::builder(counting.clone()).seed(1).clock(clock);
        let client = client.build();
        let session = client.session().await.unwrap();
        Self {
            store,
            faulty,
            counting,
            client,
            session,
        }
    }

    /// The keys below a prefix, save those that end in one of these.
    pub(crate) fn keys_but(&self, prefix: &str, ends: &[&str]) -> Vec<String> {
        let mut left = self.store.keys(prefix);
        left.retain(|key| !ends.iter().any(|end| key.ends_with(end)));
        left
    }
}

/// What ends by itself.
pub(crate) async fn soon<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(LIMIT, work).await;
    done.expect("it ends by itself")
}

/// What does not end as long as nothing else happens.
pub(crate) async fn no_news<T: fmt::Debug>(work: impl Future<Output = T>) {
    let done = tokio::time::timeout(LIMIT, work).await;
    assert!(done.is_err(), "{done:?}");
}
