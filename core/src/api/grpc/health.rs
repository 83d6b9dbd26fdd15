//! The standard gRPC health service: whether this member serves. As on etcd the one thing that has a
//! state is the whole server, named by the empty string.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use quorate_proto::Reason;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use crate::node::Node;
use crate::tasks::Tasks;

/// The health of one member and its server.
#[derive(Debug)]
pub struct Health {
    node: Node,
    serving: Tasks,
}

impl Health {
    /// The service of this member; it tells `NOT_SERVING` once `serving` is cancelled or the member
    /// has failed.
    #[must_use]
    pub fn new(node: Node, serving: Tasks) -> Self {
        Self { node, serving }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            return Err(Reason::UnknownService.into());
        }
        let serves = self.node.failure().is_none() && !self.serving.is_cancelled();
        Ok(Response::new(response(if serves {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        })))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    /// The state now and at each change. An unknown service has the state that says so; it cannot
    /// become known, so nothing follows.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let stopping = self.serving.cancelled();
        if !request.into_inner().service.is_empty() {
            let unknown = futures::stream::iter([Ok(response(ServingStatus::ServiceUnknown))]);
            let forever = unknown.chain(futures::stream::pending());
            return Ok(Response::new(Box::pin(forever.take_until(stopping))));
        }
        let node = self.node.clone();
        let ended = futures::stream::once(async move {
            tokio::select! {
                () = stopping => {}
                _ = node.failed() => {}
            }
            Ok(response(ServingStatus::NotServing))
        });
        let now = (self.node.failure().is_none() && !self.serving.is_cancelled())
            .then(|| Ok(response(ServingStatus::Serving)));
        let states = futures::stream::iter(now).chain(ended);
        // A failed member is asked on until its server stops.
        let held = futures::stream::pending().take_until(self.serving.cancelled());
        Ok(Response::new(Box::pin(states.chain(held))))
    }
}
