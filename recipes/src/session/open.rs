//! Opening a session: grant the lease, write the session's key, read the epoch, start renewing.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::time::Duration;

use futures::future::BoxFuture;
use quorate_proto::etcdserverpb::TxnRequest;
use serde::{Deserialize, Serialize};

use super::actor::{Actor, Opened};
use super::{Session, renew};
use crate::client::{Client, Identity};
use crate::clock::{self, Instant, Moment};
use crate::error::{Error, Result};
use crate::keys::{EPOCH_KEY, Key, Revision, session_key};
use crate::lock::Epoch;
use crate::store::{Cause, Lease, StoreError, ops};
use crate::tasks::Tasks;
use crate::value::{Json, Value};
use crate::wait::Backoff;

/// The default time to live of a session's lease.
const DEFAULT_TTL: Duration = Duration::from_secs(10);

/// The default limit on opening a session.
const DEFAULT_OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// What a session's key says: who holds what is attached to its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The version of this record.
    pub v: u32,
    /// Host, process and label.
    #[serde(flatten)]
    pub who: Identity,
    /// When the session was opened, in milliseconds since the Unix epoch by its own wall clock.
    pub opened_ms: u64,
}

/// Opens a [`Session`] when awaited.
#[derive(Clone)]
#[must_use = "awaiting the builder opens the session"]
pub struct SessionBuilder {
    client: Client,
    ttl: Duration,
    open_timeout: Duration,
    label: Option<String>,
    watchdog: Option<Duration>,
}

impl SessionBuilder {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            ttl: DEFAULT_TTL,
            open_timeout: DEFAULT_OPEN_TIMEOUT,
            label: None,
            watchdog: None,
        }
    }

    /// The lease's time to live, rounded up to whole seconds; the store may grant more. Shorter
    /// frees the locks of a dead process sooner; longer rides out longer outages of the store, and
    /// a change of its leader takes a second or more. Default: 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// What this session is called in lists of holders and waiters. Default: the client's label.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Loses the session unless [`Session::feed_watchdog`] is called within every `limit`: for programs whose
    /// own loop may hang while the renewals go on. Default: none.
    pub fn watchdog(mut self, limit: Duration) -> Self {
        self.watchdog = Some(limit);
        self
    }

    /// How long opening may take while the store does not answer. Default: 15 s.
    pub fn open_timeout(mut self, limit: Duration) -> Self {
        self.open_timeout = limit;
        self
    }

    async fn open(self) -> Result<Session> {
        if self.watchdog.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::Invalid("a watchdog of no time".to_owned()));
        }
        let deadline = self.client.deadline(self.open_timeout);
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            let (sent, lease) = self.grant(deadline).await?;
            match self.open_under(sent, lease, deadline).await {
                // It ended before the session was there, so nothing hangs on it: another one will do.
                Err(Error::Store(StoreError::LeaseNotFound)) => {
                    let ended = StoreError::NotApplied(Cause::new("the lease ended too soon"));
                    self.pause_or_fail(ended, &mut pause, deadline).await?;
                }
                opened => return opened,
            }
        }
    }

    /// Opens the session under a lease that was asked for at `sent`.
    async fn open_under(&self, sent: Moment, lease: Lease, deadline: Instant) -> Result<Session> {
        let key = session_key(lease.id);
        let mut who = self.client.identity().clone();
        who.label = self.label.clone().unwrap_or(who.label);
        let record = SessionRecord {
            v: 1,
            who,
            opened_ms: clock::wall_millis(),
        };
        let value = Value::from(Json(&record)).into_bytes(&key)?;
        let (created, epoch) = self.announce(&key, &value, &lease, deadline).await?;
        let opened = Opened {
            lease,
            who: record.who,
            key,
            value,
            created,
            epoch,
            watchdog: self.watchdog,
        };
        let actor = Actor::new(self.client.clone(), Tasks::current(), opened);
        actor.acknowledge(sent, &lease);
        actor.spawn_renewals(renew::run(actor.clone()));
        tracing::debug!(lease = %lease.id, ttl = ?lease.ttl, "session opened");
        Ok(Session::new(actor))
    }

    /// Grants the lease under an id of ours, so that a grant whose answer was lost is recognised.
    async fn grant(&self, deadline: Instant) -> Result<(Moment, Lease)> {
        let ttl = clock::whole_seconds(self.ttl);
        let mut id = self.client.lease_id();
        let mut unknown = false;
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            let sent = self.client.moment();
            let error = match self
                .before(deadline, self.client.store().lease_grant(id, ttl))
                .await
            {
                Ok(lease) => return Ok((sent, lease)),
                // An earlier copy of this call, or somebody else, has it.
                Err(StoreError::LeaseExists) if unknown => {
                    match self.client.store().lease_keep_alive(id).await {
                        Ok(Some(lease)) => return Ok((sent, lease)),
                        Ok(None) => {
                            (id, unknown) = (self.client.lease_id(), false);
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(StoreError::LeaseExists) => {
                    id = self.client.lease_id();
                    continue;
                }
                Err(error) => error,
            };
            unknown |= error.is_ambiguous();
            self.pause_or_fail(error, &mut pause, deadline).await?;
        }
    }

    /// Writes the session's key and reads the epoch. Repeating is safe: the key is only created.
    async fn announce(
        &self,
        key: &Key,
        value: &bytes::Bytes,
        lease: &Lease,
        deadline: Instant,
    ) -> Result<(Revision, Epoch)> {
        let request = TxnRequest {
            compare: vec![ops::Compare::absent(key).into()],
            success: vec![
                ops::put(key, value.clone(), Some(lease.id)),
                ops::read(ops::get(EPOCH_KEY)),
            ],
            failure: vec![ops::read(ops::get(key)), ops::read(ops::get(EPOCH_KEY))],
        };
        let mut pause = Backoff::between_attempts(&self.client);
        loop {
            match self
                .before(deadline, self.client.store().txn(request.clone()))
                .await
            {
                Ok(answer) => {
                    let written = ops::kvs(&answer.responses, 0).first();
                    let revision = match written {
                        Some(kv) => kv.create_revision,
                        None => answer.header.map_or(0, |header| header.revision),
                    };
                    let epoch = Epoch::read(ops::kvs(&answer.responses, 1).first())?;
                    return Ok((Revision(revision), epoch));
                }
                Err(error) => self.pause_or_fail(error, &mut pause, deadline).await?,
            }
        }
    }

    /// The call's answer, or an unknown outcome once the deadline has passed.
    async fn before<T>(
        &self,
        deadline: Instant,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let late = || StoreError::Unknown(Cause::new("no answer from the store in time"));
        let answer = self.client.before(deadline, call).await;
        answer.unwrap_or_else(|| Err(late()))
    }

    async fn pause_or_fail(
        &self,
        error: StoreError,
        pause: &mut Backoff,
        deadline: Instant,
    ) -> Result<()> {
        if !error.is_transient() || self.client.now() >= deadline {
            return Err(error.into());
        }
        tracing::debug!(%error, "opening a session");
        pause.pause().await;
        Ok(())
    }
}

impl IntoFuture for SessionBuilder {
    type Output = Result<Session>;
    type IntoFuture = BoxFuture<'static, Result<Session>>;

    /// Opens the session.
    ///
    /// # Errors
    /// The store's, when it refuses or does not answer within the open timeout.
    ///
    /// # Cancel safety
    /// Dropped early, it may leave a lease behind that nobody renews and that has no effect.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

impl fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionBuilder")
            .field("ttl", &self.ttl)
            .field("open_timeout", &self.open_timeout)
            .field("label", &self.label)
            .field("watchdog", &self.watchdog)
            .finish_non_exhaustive()
    }
}
