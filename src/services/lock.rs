//! etcd's Lock service.

use bytes::Bytes;
use quorate::proto::etcdserverpb::{DeleteRangeRequest, ResponseHeader};
use quorate::proto::v3lockpb::lock_server;
use quorate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status};

use super::queue::Queues;
use super::unmapped;

/// What etcd says to a waiter whose key has gone.
const EXPIRED: &str = "mutex: session is expired";

/// etcd's Lock service, for one member.
#[derive(Debug)]
pub(super) struct Lock {
    queues: Queues,
}

impl Lock {
    pub(super) fn new(queues: Queues) -> Self {
        Self { queues }
    }

    async fn hold(&self, request: LockRequest) -> Result<LockResponse, Status> {
        let lease = self.queues.lease(request.lease).await?;
        let contender = self
            .queues
            .enter(&request.name, lease, Bytes::new())
            .await?;
        let turn = self.queues.until_stopped(contender.wait_turn()).await?;
        let place = contender.stay();
        let header = turn.ok_or_else(|| Status::unknown(EXPIRED))?;
        Ok(LockResponse {
            header: Some(header),
            key: place.key,
        })
    }

    async fn release(&self, key: Bytes) -> Result<Option<ResponseHeader>, Status> {
        let request = DeleteRangeRequest {
            key,
            ..Default::default()
        };
        let deleted = self.queues.node().delete_range(request).await;
        Ok(deleted.map_err(unmapped)?.header)
    }
}

#[tonic::async_trait]
impl lock_server::Lock for Lock {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        self.hold(request.into_inner()).await.map(Response::new)
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let header = self.release(request.into_inner().key).await?;
        Ok(Response::new(UnlockResponse { header }))
    }
}
