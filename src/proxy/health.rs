//! Whether the proxy is of use: the gRPC health service, and `/health` for load balancers.

use std::pin::Pin;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response as HttpResponse};
use futures::{Stream, StreamExt as _};
use quorate::core::tasks::Tasks;
use quorate::proto::Reason;
use quorate::proto::etcdserverpb::RangeRequest;
use quorate::proto::etcdserverpb::kv_client::KvClient;
use tokio_stream::wrappers::WatchStream;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use super::calls::{self, Effect};
use super::endpoints::{Lane, Pool};

/// A health check waits no longer than this: callers have deadlines of their own.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// The health of the proxy: it serves as long as some endpoint has not failed.
#[derive(Debug)]
pub(super) struct Health {
    pool: Pool,
    serving: Tasks,
}

impl Health {
    /// The service; it tells `NOT_SERVING` once `serving` is cancelled.
    pub(super) fn new(pool: Pool, serving: Tasks) -> Self {
        Self { pool, serving }
    }
}

fn response(is_live: bool) -> HealthCheckResponse {
    let status = match is_live {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
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
        let is_live = *self.pool.is_live().borrow() && !self.serving.is_cancelled();
        Ok(Response::new(response(is_live)))
    }

    type WatchStream =
        Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static>>;

    /// The state now and at each change. An unknown service has the state that says so.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let stopping = self.serving.cancelled();
        if !request.into_inner().service.is_empty() {
            let unknown = HealthCheckResponse {
                status: ServingStatus::ServiceUnknown.into(),
            };
            let unknown = futures::stream::iter([Ok(unknown)]);
            let forever = unknown.chain(futures::stream::pending());
            return Ok(Response::new(Box::pin(forever.take_until(stopping))));
        }
        let states = WatchStream::new(self.pool.is_live()).map(|live| Ok(response(live)));
        let stopped = futures::stream::iter([Ok(response(false))]);
        let states = states.take_until(stopping).chain(stopped);
        Ok(Response::new(Box::pin(states)))
    }
}

/// `/health`: a linearizable read is answered. A refusal for lack of rights is an answer.
pub(super) async fn health(State(pool): State<Pool>) -> HttpResponse {
    let read = calls::call(&pool, Effect::Reads, async |server| {
        let mut client = KvClient::new(server.channel(Lane::Calls));
        let request = RangeRequest {
            key: "health".into(),
            count_only: true,
            ..Default::default()
        };
        client.range(request).await
    });
    let cause = match tokio::time::timeout(CHECK_TIMEOUT, read).await {
        Ok(Ok(_)) => None,
        Ok(Err(status)) if is_about_rights(&status) => None,
        Ok(Err(status)) => Some(status.message().to_owned()),
        Err(_) => Some("no answer in time".to_owned()),
    };
    let (status, health, reason) = match cause {
        None => (StatusCode::OK, "true", String::new()),
        Some(cause) => {
            let reason = format!("RANGE ERROR:{cause}");
            (StatusCode::SERVICE_UNAVAILABLE, "false", reason)
        }
    };
    let told = serde_json::json!({ "health": health, "reason": reason });
    (status, told.to_string()).into_response()
}

fn is_about_rights(status: &Status) -> bool {
    let code = status.code();
    matches!(code, Code::PermissionDenied | Code::Unauthenticated)
        || Reason::from_status(status) == Some(Reason::UserEmpty)
}
