//! The workload of locks: each client takes a queue-ordered lock and releases it, over and over,
//! under a session of its own, as programs on different machines would.

use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use futures::future::{join_all, try_join_all};
use quorate::core::clock::{self, Instant};
use quorate::proto::etcdserverpb::{
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest,
};
use quorate::recipes::lock::Mutex;
use quorate::recipes::store::{
    Capabilities, Lease, LeaseTtl, Remote, Store, StoreError, WatchStream,
};
use quorate::recipes::{Client, Error, Fenced as _, LeaseId, Session};

use super::args::Load;
use super::drive::Worker;
use super::servers::Spread;
use super::tally::Tally;

/// Taking a lock, from when it was asked for to when it is held: what is waited for others is in
/// it.
const ACQUIRE: &str = "acquire";
/// Giving it back, until the store has confirmed.
const RELEASE: &str = "release";

/// Which locks are taken.
#[derive(Debug, Args)]
pub(super) struct LockArgs {
    /// How many locks the clients contend for [default: each client has its own]
    #[arg(long, value_name = "LOCKS",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=10_000))]
    pub(super) names: Option<usize>,
}

/// A client that locks.
#[derive(Debug)]
pub(super) struct Locker {
    endpoint: usize,
    client: Client,
    mutex: Mutex,
    /// None once it was lost, until the next request opens another.
    session: Option<Session>,
}

/// The clients of a load, each with an open session.
///
/// # Errors
/// When a session cannot be opened.
pub(super) async fn lockers(
    load: &Load,
    spread: Spread,
    args: &LockArgs,
    tally: &Arc<Tally>,
) -> anyhow::Result<Vec<Locker>> {
    let clients = (0..load.connections).map(|connection| {
        let url = &load.endpoints[spread.endpoint_of(connection)];
        let store = Remote::builder([url])
            .call_timeout(load.timeout)
            .attempt_timeout(load.timeout)
            .attempts_max(1)
            .build()?;
        let tally = Arc::clone(tally);
        anyhow::Ok(
            Client::builder(Told { store, tally })
                .label("quorate bench")
                .build(),
        )
    });
    let clients = clients.collect::<Result<Vec<_>, _>>()?;
    let names = args.names.unwrap_or(load.clients);
    let lockers = (0..load.clients).map(|n| {
        let place = spread.place(n);
        let client = clients[place.connection].clone();
        async move {
            let session = client.session().open_timeout(load.timeout).await?;
            Ok::<_, Error>(Locker {
                endpoint: place.endpoint,
                mutex: client.mutex(format!("quorate-bench/{}", n % names)),
                session: Some(session),
                client,
            })
        }
    });
    let opened = try_join_all(lockers).await;
    opened.context("open a session for each client")
}

/// Ends the clients' sessions, so that no lease outlives the run. One that cannot be ended runs out
/// by itself, and is told.
pub(super) async fn close(lockers: Vec<Locker>, tally: &Tally) {
    let sessions = lockers.into_iter().filter_map(|locker| locker.session);
    for closed in join_all(sessions.map(Session::close)).await {
        if let Err(error) = closed {
            tally.error(&format!("end a session: {error}"), 1);
        }
    }
}

impl Locker {
    async fn session(&mut self) -> Result<Session, Error> {
        if let Some(session) = &self.session
            && session.check().is_ok()
        {
            return Ok(session.clone());
        }
        let session = self.client.session().await?;
        self.session = Some(session.clone());
        Ok(session)
    }

    async fn turn(&mut self, from: Instant, tally: &Tally) -> Result<i64, Error> {
        let session = self.session().await?;
        let guard = self.mutex.lock(&session).await?;
        let held = clock::now();
        let revision = guard.fence().revision();
        guard.release().await?;
        tally.part(ACQUIRE, [held.saturating_duration_since(from)]);
        tally.part(RELEASE, [held.elapsed()]);
        Ok(revision.0)
    }
}

impl Worker for Locker {
    fn endpoint(&self) -> usize {
        self.endpoint
    }

    async fn request(&mut self, from: Instant, tally: &Tally) -> Result<i64, String> {
        self.turn(from, tally)
            .await
            .map_err(|error| error.to_string())
    }
}

/// A store whose failures are told. Recipes repeat by themselves what certainly was not applied,
/// or can be found out; in a measurement nothing of that may stay hidden.
#[derive(Debug)]
struct Told {
    store: Remote,
    tally: Arc<Tally>,
}

impl Told {
    fn told<T>(&self, ended: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &ended {
            self.tally.store_error(&error.to_string());
        }
        ended
    }
}

#[tonic::async_trait]
impl Store for Told {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.told(self.store.range(request).await)
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.told(self.store.txn(request).await)
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        self.told(self.store.watch(requests).await)
    }

    async fn lease_grant(
        &self,
        id: LeaseId,
        ttl: std::time::Duration,
    ) -> Result<Lease, StoreError> {
        self.told(self.store.lease_grant(id, ttl).await)
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        self.told(self.store.lease_keep_alive(id).await)
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        self.told(self.store.lease_ttl(id).await)
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        self.told(self.store.lease_revoke(id).await)
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}
