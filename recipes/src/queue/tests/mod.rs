use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;

use super::*;
use crate::error::Error;
use crate::error::LostReason;
use crate::store::faulty::{Calls, Fault, Held, Stage};
use crate::store::{Counting, Faulty, MemStore, Store};

mod bounds;
mod ends;
mod lanes;
mod orders;
mod pushing;
mod taking;

struct Place {
    store: MemStore,
    faulty: Faulty<MemStore>,
    counting: Counting<Faulty<MemStore>>,
    client: Client,
    session: Session,
}

impl Place {
    async fn new() -> Self {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let counting = Counting::new(faulty.clone());
        let client = Client::builder(counting.clone()).seed(1).build();
        let session = client.session().await.unwrap();
        Self {
            store,
            faulty,
            counting,
            client,
            session,
        }
    }

    fn queue(&self) -> Queue<u32> {
        self.client.queue("q")
    }

    /// Cuts all watches of one consumer, and lets none come back before it is released: those of the front, of
    /// delayed items, and of who sees to them.
    async fn without_watches(&self) -> Vec<Held> {
        let watches: Vec<Held> = (1..=6)
            .map(|nth| self.faulty.hold(nth, Calls::Read, Stage::NotSent))
            .collect();
        self.faulty.cut_watches();
        for watch in &watches {
            soon(watch.reached()).await;
        }
        watches
    }

    /// Everything of the queue that is kept, save its head and what consumers have agreed on.
    fn left(&self) -> Vec<String> {
        let mut left = self.store.keys("quorate/queue/");
        left.retain(|key| !key.ends_with("/head") && !key.ends_with("/settings"));
        left
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(Duration::from_secs(60), work).await;
    done.expect("it ends by itself")
}

async fn no_news<T: fmt::Debug>(work: impl Future<Output = T>) {
    let done = tokio::time::timeout(Duration::from_secs(60), work).await;
    assert!(done.is_err(), "{done:?}");
}
