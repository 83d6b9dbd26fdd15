//! The gRPC services that this program serves beside the core's: etcd's Lock and Election. They are
//! recipes, which the core does not know. Not offered yet: every call is refused as not implemented.

use std::pin::Pin;

use futures::Stream;
use quorate::proto::Reason;
use quorate::proto::v3electionpb::election_server::{self, ElectionServer};
use quorate::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use quorate::proto::v3lockpb::lock_server::{self, LockServer};
use quorate::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};

/// Adds the services to `routes`.
pub(crate) fn add(routes: &mut RoutesBuilder) {
    routes
        .add_service(LockServer::new(Lock))
        .add_service(ElectionServer::new(Election));
}

/// Refuses what is not offered.
fn refuse<T>() -> Result<Response<T>, Status> {
    Err(Reason::Unimplemented.into())
}

/// etcd's Lock service.
#[derive(Debug)]
struct Lock;

#[tonic::async_trait]
impl lock_server::Lock for Lock {
    async fn lock(&self, _: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        refuse()
    }

    async fn unlock(&self, _: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        refuse()
    }
}

/// etcd's Election service.
#[derive(Debug)]
struct Election;

#[tonic::async_trait]
impl election_server::Election for Election {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn campaign(
        &self,
        _: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        refuse()
    }

    async fn proclaim(
        &self,
        _: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        refuse()
    }

    async fn leader(&self, _: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        refuse()
    }

    async fn observe(
        &self,
        _: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        refuse()
    }

    async fn resign(&self, _: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        refuse()
    }
}
