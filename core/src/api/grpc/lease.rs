//! The Lease service.

use std::pin::Pin;

use futures::future::ready;
use futures::{Stream, StreamExt};
use quorate_proto::Reason;
use quorate_proto::etcdserverpb::lease_server;
use quorate_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::in_etcds_words;
use crate::node::Node;
use crate::tasks::Tasks;

/// Keep-alives of one stream under way at once; further ones wait in the connection.
const KEEP_ALIVES_IN_FLIGHT: usize = 256;

/// etcd's Lease service, for one member.
#[derive(Debug)]
pub struct Lease {
    node: Node,
    serving: Tasks,
}

impl Lease {
    /// The service of this member; its streams end when `serving` is cancelled.
    #[must_use]
    pub fn new(node: Node, serving: Tasks) -> Self {
        Self { node, serving }
    }
}

#[tonic::async_trait]
impl lease_server::Lease for Lease {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        Ok(Response::new(
            self.node.lease_grant(request.into_inner()).await?,
        ))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        Ok(Response::new(
            self.node.lease_revoke(request.into_inner()).await?,
        ))
    }

    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send + 'static>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let node = self.node.clone();
        let answers = request
            .into_inner()
            .map(move |asked| {
                let node = node.clone();
                async move {
                    let asked = asked.map_err(in_etcds_words)?;
                    Ok(node.lease_keep_alive(asked.id).await?)
                }
            })
            .buffered(KEEP_ALIVES_IN_FLIGHT)
            .take_until(self.serving.cancelled());
        let serving = self.serving.clone();
        let stopped = async move {
            let is_stopped = serving.is_cancelled();
            is_stopped.then(|| Err(Reason::Stopped.into()))
        };
        let answers = answers.chain(futures::stream::once(stopped).filter_map(ready));
        Ok(Response::new(Box::pin(until_first_error(answers))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        Ok(Response::new(
            self.node.lease_time_to_live(request.into_inner()).await?,
        ))
    }

    async fn lease_leases(
        &self,
        _request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        Ok(Response::new(self.node.leases().await?))
    }
}

/// Ends a stream of answers with its first error, as a gRPC status ends a call.
fn until_first_error<T>(
    answers: impl Stream<Item = Result<T, Status>>,
) -> impl Stream<Item = Result<T, Status>> {
    answers.scan(false, |over, answer| {
        let ended = std::mem::replace(over, answer.is_err());
        ready((!ended).then_some(answer))
    })
}
