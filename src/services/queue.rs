//! The queue under both services: a contender's key is `<name>/<lease in hexadecimal>`, attached to
//! the lease; its turn has come when all keys of the prefix created before it are gone. The layout
//! is that of etcd's Go package `concurrency`. A call that comes again with the same lease finds its
//! key and keeps its place.

use bytes::Bytes;
use quorate::core::node::Node;
use quorate::core::tasks::Tasks;
use quorate::proto::Reason;
use quorate::proto::etcdserverpb::{
    LeaseGrantRequest, RangeRequest, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest,
    watch_create_request::FilterType,
};
use quorate::proto::mvccpb::KeyValue;
use quorate::recipes::store::ops::{self, Compare};
use quorate::recipes::{KeyRange, LeaseId, Revision};
use tokio::sync::oneshot;
use tonic::Status;

use super::unmapped;

/// Time to live, in seconds, of the lease granted to a caller that brings none (etcd's).
const OWN_LEASE_SECONDS: i64 = 60;

/// The queues of one member's store. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Queues {
    node: Node,
    tasks: Tasks,
}

/// The keys below `<name>/`.
pub(super) fn candidates(name: &[u8]) -> KeyRange {
    KeyRange::prefix(prefix(name))
}

fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// Where a contender stood when it entered.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) key: Bytes,
    /// The revision that created the key.
    pub(super) created: i64,
    /// Of the transaction that entered.
    pub(super) header: ResponseHeader,
    /// The key as it was, if an earlier call with the same lease had made it.
    pub(super) found: Option<KeyValue>,
}

/// A contender that is in the queue. Dropping it leaves the queue in the background, if its call had
/// made the key.
#[derive(Debug)]
pub(super) struct Contender {
    queues: Queues,
    candidates: KeyRange,
    place: Place,
    stays: bool,
}

impl Queues {
    pub(super) fn new(node: Node, tasks: Tasks) -> Self {
        Self { node, tasks }
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// The caller's lease, or a fresh one for a caller without.
    pub(super) async fn lease(&self, given: i64) -> Result<LeaseId, Status> {
        if given != 0 {
            return Ok(LeaseId(given));
        }
        let request = LeaseGrantRequest {
            ttl: OWN_LEASE_SECONDS,
            id: 0,
        };
        let granted = self.node.lease_grant(request).await.map_err(unmapped)?;
        tracing::warn!(
            lease = granted.id,
            "a lock or election call without a lease: what it holds ends after {OWN_LEASE_SECONDS} s"
        );
        Ok(LeaseId(granted.id))
    }

    pub(super) async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, Status> {
        self.node.txn(request).await.map_err(unmapped)
    }

    /// Ends with an error when the service stops; the future's own result otherwise.
    pub(super) async fn until_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            result = work => result,
            () = self.tasks.cancelled() => Err(Reason::Stopped.into()),
        }
    }

    /// Enters the queue of `name`, or finds the place that the lease has there. When the caller has
    /// gone before the answer, the place is given up again.
    pub(super) async fn enter(
        &self,
        name: &Bytes,
        lease: LeaseId,
        value: Bytes,
    ) -> Result<Contender, Status> {
        let (tell, told) = oneshot::channel();
        let (queues, name) = (self.clone(), name.clone());
        self.tasks.spawn("enter a queue", async move {
            // A contender that nobody takes leaves.
            drop(tell.send(queues.put(&name, lease, value).await));
        });
        told.await.unwrap_or_else(|_| Err(Reason::Stopped.into()))
    }

    async fn put(&self, name: &[u8], lease: LeaseId, value: Bytes) -> Result<Contender, Status> {
        let key = [prefix(name).as_ref(), lease.to_string().as_bytes()].concat();
        let key = Bytes::from(key);
        let request = TxnRequest {
            compare: vec![Compare::absent(key.clone()).into()],
            success: vec![ops::put(key.clone(), value, Some(lease))],
            failure: vec![ops::read(ops::get(key.clone()))],
        };
        let answer = self.txn(request).await?;
        let header = answer.header.unwrap_or_default();
        let found = match answer.succeeded {
            true => None,
            false => ops::kvs(&answer.responses, 0).first().cloned(),
        };
        let created = found
            .as_ref()
            .map_or(header.revision, |kv| kv.create_revision);
        let place = Place {
            key,
            created,
            header,
            found,
        };
        Ok(Contender {
            queues: self.clone(),
            candidates: candidates(name),
            stays: place.found.is_some(),
            place,
        })
    }

    pub(super) async fn range(
        &self,
        request: RangeRequest,
    ) -> Result<(ResponseHeader, Option<KeyValue>), Status> {
        let answer = self.node.range(request).await.map_err(unmapped)?;
        let header = answer.header.unwrap_or_default();
        Ok((header, answer.kvs.into_iter().next()))
    }

    /// Returns once `key` was deleted at `from` or later, or when it must be looked again.
    async fn deleted(&self, key: Bytes, from: i64) -> Result<(), Status> {
        let mut session = self.node.watch();
        let request = WatchCreateRequest {
            key,
            start_revision: from,
            filters: vec![FilterType::Noput.into()],
            ..Default::default()
        };
        session.control().create(request).await;
        loop {
            let answer = session.next().await.map_err(unmapped)?;
            // Cancelled: the start is compacted by now. The key tells what was missed.
            if !answer.events.is_empty() || answer.canceled {
                return Ok(());
            }
        }
    }
}

impl Contender {
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Waits until every key created before is gone, then looks whether the own key still is there:
    /// `None` if not. The header is that of the look.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn wait_turn(&self) -> Result<Option<ResponseHeader>, Status> {
        let queues = &self.queues;
        loop {
            let mut ahead = ops::newest(self.candidates.clone(), 1);
            ahead.max_create_revision = self.place.created - 1;
            let request = TxnRequest {
                compare: vec![self.is_there().into()],
                success: vec![ops::read(ahead.clone())],
                failure: vec![ops::read(ahead)],
            };
            let answer = queues.txn(request).await?;
            let header = answer.header.unwrap_or_default();
            match ops::kvs(&answer.responses, 0).first() {
                None => return Ok(answer.succeeded.then_some(header)),
                Some(ahead) => {
                    queues
                        .deleted(ahead.key.clone(), header.revision + 1)
                        .await?;
                }
            }
        }
    }

    /// Keeps the key when this value is dropped.
    pub(super) fn stay(mut self) -> Place {
        self.stays = true;
        self.place.clone()
    }

    fn is_there(&self) -> Compare {
        Compare::create_revision(self.place.key.clone(), Revision(self.place.created))
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let request = TxnRequest {
            compare: vec![self.is_there().into()],
            success: vec![ops::delete(KeyRange::one(self.place.key.clone()))],
            failure: Vec::new(),
        };
        let queues = self.queues.clone();
        self.queues.tasks.spawn("leave a queue", async move {
            if let Err(error) = queues.txn(request).await {
                tracing::warn!(%error, "the key of a caller that has gone is left to its lease");
            }
        });
    }
}
