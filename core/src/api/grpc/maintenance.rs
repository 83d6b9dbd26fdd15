//! The Maintenance service.

use std::pin::Pin;

use futures::Stream;
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::downgrade_request::DowngradeAction;
use quorate_proto::etcdserverpb::maintenance_server;
use quorate_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
    DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
    MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use tonic::{Request, Response, Status};

use super::check_leader;
use crate::node::Node;

/// etcd's Maintenance service, for one member.
#[derive(Debug)]
pub struct Maintenance {
    node: Node,
}

impl Maintenance {
    /// The service of this member.
    #[must_use]
    pub fn new(node: Node) -> Self {
        Self { node }
    }
}

/// There is no older version to go back to: every target is refused, in etcd's order of checks.
fn refuse_downgrade(request: &DowngradeRequest) -> Reason {
    match DowngradeAction::try_from(request.action) {
        Ok(DowngradeAction::Cancel) => Reason::NoDowngrade,
        Ok(DowngradeAction::Validate | DowngradeAction::Enable) => {
            let parts: Vec<&str> = request.version.split('.').collect();
            let is_version = (2..=3).contains(&parts.len())
                && parts.iter().all(|part| part.parse::<u32>().is_ok());
            if is_version {
                Reason::DowngradeInvalidTarget
            } else {
                Reason::DowngradeBadVersion
            }
        }
        Err(_) => Reason::UnknownMethod,
    }
}

#[tonic::async_trait]
impl maintenance_server::Maintenance for Maintenance {
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        check_leader(&self.node, request.metadata())?;
        Ok(Response::new(self.node.alarm(request.into_inner()).await?))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.node.status().await?))
    }

    /// Space is given back by the storage engine as it goes: there is nothing left to do here, and
    /// the answer says so as etcd's does, by being empty.
    async fn defragment(
        &self,
        _request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        Ok(Response::new(DefragmentResponse::default()))
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
        Err(Reason::Unimplemented.into())
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
        Err(refuse_downgrade(&request.into_inner()).into())
    }
}
