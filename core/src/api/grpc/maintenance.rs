//! The Maintenance service.

use std::pin::Pin;

use futures::Stream;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::maintenance_server;
use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status};

use crate::node::{Node, Snapshot};
use crate::tasks::Tasks;

/// etcd's Maintenance service, for one member.
#[derive(Debug)]
pub struct Maintenance {
    node: Node,
    serving: Tasks,
}

impl Maintenance {
    /// The service of this member; its streams end when `serving` is cancelled.
    #[must_use]
    pub fn new(node: Node, serving: Tasks) -> Self {
        Self { node, serving }
    }
}

/// What one call for a snapshot holds.
struct Call {
    snapshot: Snapshot,
    /// Ends when the server stops.
    stopping: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Call {
    /// The next piece, or the end of the call. Both branches are cancel safe.
    async fn piece(&mut self) -> Result<Option<SnapshotResponse>, Status> {
        tokio::select! {
            biased;
            () = &mut self.stopping => Err(Reason::Stopped.into()),
            piece = self.snapshot.next() => Ok(piece?),
        }
    }
}

#[tonic::async_trait]
impl maintenance_server::Maintenance for Maintenance {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        Ok(Response::new(self.node.alarm(request.into_inner()).await?))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.node.status().await?))
    }

    async fn defragment(
        &self,
        _request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Ok(Response::new(self.node.defragment().await?))
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Ok(Response::new(self.node.hash().await?))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        Ok(Response::new(
            self.node.hash_kv(request.into_inner()).await?,
        ))
    }

    type SnapshotStream =
        Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send + 'static>>;

    async fn snapshot(
        &self,
        _request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let call = Call {
            snapshot: self.node.snapshot().await?,
            stopping: Box::pin(self.serving.cancelled()),
        };
        let pieces = futures::stream::unfold(Some(call), |call| async move {
            let mut call = call?;
            match call.piece().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(call))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        Ok(Response::new(
            self.node.move_leader(request.into_inner()).await?,
        ))
    }

    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        Ok(Response::new(
            self.node.downgrade(&request.into_inner()).await?,
        ))
    }
}
