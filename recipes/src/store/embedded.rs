//! The backend for a node in this process: no network and no serialisation between a recipe and the
//! store.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::FutureExt;
use futures::stream::{self, StreamExt};
use quorate_core::node::Node;
use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, RangeRequest, RangeResponse,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
};
use tonic::Status;

use super::status::classify;
use super::{Capabilities, Cause, Lease, LeaseTtl, Store, StoreError, WatchStream, seconds};
use crate::keys::LeaseId;

/// A store that is a node of this process, alone or a member of a cluster.
///
/// It does not own the node: whoever started the node stops it, and calls then fail.
#[derive(Debug, Clone)]
pub struct Embedded {
    node: Node,
}

impl Embedded {
    /// The store of this node.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self { node }
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }
}

impl From<Node> for Embedded {
    fn from(node: Node) -> Self {
        Self::new(node)
    }
}

/// A node's error, judged as its status would be by a client of its.
fn judge(error: quorate_core::error::Error) -> StoreError {
    let text = error.to_string();
    match classify(&Status::from(error)) {
        StoreError::NotApplied(_) => StoreError::NotApplied(Cause::new(text)),
        StoreError::Unknown(_) => StoreError::Unknown(Cause::new(text)),
        StoreError::Refused(_) => StoreError::Refused(Cause::new(text)),
        other => other,
    }
}

#[async_trait]
impl Store for Embedded {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.node.range(request).await.map_err(judge)
    }

    async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, StoreError> {
        self.node.txn(request).await.map_err(judge)
    }

    async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<WatchStream, StoreError> {
        let session = self.node.watch();
        let control = session.control();
        // Asked for while answers are taken: the asking side is bounded.
        let ask = async move {
            for (watch_id, request) in (1..).zip(requests) {
                control
                    .create(WatchCreateRequest {
                        watch_id,
                        ..request
                    })
                    .await;
            }
        };
        let asking = ask.into_stream().filter_map(|()| async { None });
        let answers = stream::unfold(Some(session), |session| async move {
            let mut session = session?;
            match session.next().await {
                Ok(answer) => Some((Ok(answer), Some(session))),
                Err(error) => Some((Err(judge(error)), None)),
            }
        });
        let node = self.node.clone();
        let leaderless = async move { node.leaderless().await };
        // The end comes with the answers', not only with both.
        let both = stream::select(asking, answers.map(Some).chain(stream::iter([None])));
        let stream = both.take_while(|item| std::future::ready(item.is_some()));
        let stream = stream.filter_map(|item: Option<Result<WatchResponse, _>>| async { item });
        Ok(stream.take_until(leaderless).boxed())
    }

    async fn lease_grant(&self, id: LeaseId, ttl: Duration) -> Result<Lease, StoreError> {
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let request = LeaseGrantRequest { ttl, id: id.0 };
        let answer = self.node.lease_grant(request).await.map_err(judge)?;
        let header = answer.header.unwrap_or_default();
        Ok(Lease::new(LeaseId(answer.id), seconds(answer.ttl), header))
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        let answer = self.node.lease_keep_alive(id.0).await.map_err(judge)?;
        let header = answer.header.unwrap_or_default();
        Ok((answer.ttl > 0).then(|| Lease::new(id, seconds(answer.ttl), header)))
    }

    async fn lease_ttl(&self, id: LeaseId) -> Result<Option<LeaseTtl>, StoreError> {
        let request = LeaseTimeToLiveRequest {
            id: id.0,
            keys: false,
        };
        let answer = self.node.lease_time_to_live(request).await.map_err(judge)?;
        let header = answer.header.unwrap_or_default();
        let (left, granted) = (seconds(answer.ttl), seconds(answer.granted_ttl));
        Ok((answer.ttl >= 0).then(|| LeaseTtl::new(left, granted, header)))
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), StoreError> {
        let request = LeaseRevokeRequest { id: id.0 };
        self.node.lease_revoke(request).await.map_err(judge)?;
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}
