//! Settings on a store in memory, in virtual time, with faults that are planned.

mod following;
mod gray;
mod groups;
mod publishing;
mod snapshots;

use std::sync::Arc;
use std::time::Duration;

use super::{Config, Following, Source, View};
use crate::client::Client;
use crate::session::Session;
use crate::store::{Faulty, MemStore};

pub(super) struct World {
    pub(super) store: MemStore,
    pub(super) faulty: Faulty<MemStore>,
    /// By the faulty connection.
    pub(super) client: Client,
    pub(super) session: Session,
    /// By another connection, which does not fail.
    pub(super) other: Client,
    pub(super) other_session: Session,
}

impl World {
    pub(super) async fn new() -> Self {
        let store = MemStore::new();
        let faulty = Faulty::new(store.clone());
        let client = Client::builder(faulty.clone()).seed(1).label("one").build();
        let other = Client::builder(store.clone())
            .seed(2)
            .label("other")
            .build();
        Self {
            session: client.session().await.unwrap(),
            other_session: other.session().await.unwrap(),
            store,
            faulty,
            client,
            other,
        }
    }

    pub(super) fn config(&self) -> Config<u32> {
        self.client.config("app/n")
    }

    pub(super) fn others(&self) -> Config<u32> {
        self.other.config("app/n")
    }
}

/// Time for everything on its way.
pub(super) async fn quiet() {
    tokio::time::sleep(Duration::from_secs(30)).await;
}

/// Waits until the value is this one, from the store.
pub(super) async fn until<T>(following: &mut Following<T>, wanted: T) -> Arc<View<T>>
where
    T: PartialEq + Send + Sync + 'static,
{
    let is_there =
        |view: &View<T>| view.source == Source::Store && view.value.as_deref() == Some(&wanted);
    let found = following.wait_for(is_there);
    let found = tokio::time::timeout(Duration::from_secs(600), found).await;
    found.expect("in time").unwrap()
}
