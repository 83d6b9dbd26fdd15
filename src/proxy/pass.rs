//! Calls that are passed on as they are: every method of the API but those that clients share. The
//! request goes to a member with its metadata, the answer comes back with its; neither is looked into,
//! except where that tells whether the call may be made twice.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::Response as HttpResponse;
use axum::routing::post;
use bytes::Bytes;
use futures::future::Either;
use futures::{Stream, StreamExt as _};
use prost::Message as _;
use quorate::core::api::grpc::methods;
use quorate::core::tasks::Tasks;
use quorate::proto::Reason;
use quorate::proto::etcdserverpb::TxnRequest;
use quorate::recipes::store::is_read_only;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tower::service_fn;

use super::ANSWER_BYTES_MAX;
use super::calls::{self, Effect};
use super::endpoints::{Lane, Pool, Server};
use super::fate::Fate;
use super::latest::Latest;
use super::messages::Unread;

/// Methods that change nothing, whatever they are sent.
const READS: [&str; 17] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Lease/LeaseLeases",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Hash",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.Auth/AuthStatus",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/UserGet",
    "/etcdserverpb.Auth/UserList",
    "/etcdserverpb.Auth/RoleGet",
    "/etcdserverpb.Auth/RoleList",
    "/v3electionpb.Election/Leader",
    "/v3electionpb.Election/Observe",
];
/// Methods that wait for their turn. They end when the proxy does.
const WAITS: [&str; 2] = ["/v3lockpb.Lock/Lock", "/v3electionpb.Election/Campaign"];
const TXN: &str = "/etcdserverpb.KV/Txn";
/// Services that are the proxy's own, or not for clients.
const NOT_PASSED: [&str; 2] = ["grpc.health.v1.", "quorate."];
/// Metadata of the connection to the client, not of the call.
const OF_THE_CONNECTION: [&str; 8] = [
    "user-agent",
    "grpc-encoding",
    "grpc-accept-encoding",
    "content-length",
    "host",
    "connection",
    "keep-alive",
    "transfer-encoding",
];

/// Passes calls on.
#[derive(Debug, Clone)]
pub(super) struct Passing {
    pool: Pool,
    latest: Latest,
    message_bytes_max: usize,
    serving: Tasks,
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl Passing {
    /// Passes calls on to `pool`, with requests up to `message_bytes_max`; `latest` hears of the answers.
    /// Calls that last end when `serving` is cancelled.
    pub(super) fn new(
        pool: Pool,
        latest: Latest,
        message_bytes_max: usize,
        serving: Tasks,
    ) -> Self {
        Self {
            pool,
            latest,
            message_bytes_max,
            serving,
        }
    }

    /// Routes for every method that clients call, but `others`.
    pub(super) fn routes(self, others: &[&str]) -> Router {
        let mut router = Router::new();
        for (path, method) in methods() {
            let is_passed = NOT_PASSED.iter().all(|p| !method.service.starts_with(p));
            if !is_passed || others.contains(&path.as_str()) {
                continue;
            }
            let route = match method.kind {
                "unary" => post(unary),
                "server_stream" => post(streaming),
                kind => unreachable!("{path} is {kind}, and no list of others names it"),
            };
            router = router.route(path, route);
        }
        router.with_state(Arc::new(self))
    }

    /// A server side for one call.
    pub(super) fn grpc<C: tonic::codec::Codec>(&self, codec: C) -> tonic::server::Grpc<C> {
        tonic::server::Grpc::new(codec)
            .max_decoding_message_size(self.message_bytes_max)
            .accept_compressed(CompressionEncoding::Gzip)
    }

    /// Makes a call with one request and one answer.
    pub(super) async fn unary(
        &self,
        path: &PathAndQuery,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Status> {
        let effect = effect(path.path(), request.get_ref());
        let request = Sent::new(request);
        let answer = calls::call(&self.pool, effect, async |server| {
            let mut client = client(&server, Lane::Calls).await?;
            client.unary(request.copy(), path.clone(), Unread).await
        });
        let waits = WAITS.contains(&path.path());
        let answer = tokio::select! {
            answer = answer => answer?,
            () = self.serving.cancelled(), if waits => return Err(Reason::Stopped.into()),
        };
        self.latest.hear_answer(answer.get_ref());
        Ok(without_connection(answer))
    }

    /// Makes a call whose answer streams. It may go to another member until the first message came.
    async fn streaming(
        &self,
        path: &PathAndQuery,
        request: Request<Bytes>,
    ) -> Result<Response<Messages>, Status> {
        let effect = effect(path.path(), request.get_ref());
        let request = Sent::new(request);
        let begun = calls::call(&self.pool, effect, async |server: Arc<Server>| {
            let mut client = client(&server, Lane::Streams).await?;
            let request = request.copy();
            let answer = client
                .server_streaming(request, path.clone(), Unread)
                .await?;
            let (metadata, mut messages, extensions) = answer.into_parts();
            let first = messages.message().await?;
            let visit = server.visit();
            Ok((metadata, first, messages, extensions, visit))
        });
        let begun = tokio::select! {
            begun = begun => begun?,
            () = self.serving.cancelled() => return Err(Reason::Stopped.into()),
        };
        let (metadata, first, messages, extensions, visit) = begun;
        let is_over = first.is_none();
        let rest = match is_over {
            true => Either::Left(futures::stream::empty()),
            false => Either::Right(messages.map(move |message| {
                let _under_way = &visit;
                message.map_err(|status| Fate::of(&status).told(status))
            })),
        };
        let messages = futures::stream::iter(first.map(Ok)).chain(rest);
        let messages = until_stopped(messages, &self.serving);
        let answer = Response::from_parts(metadata, messages, extensions);
        Ok(without_connection(answer))
    }
}

/// The messages, or the word that the proxy stops.
fn until_stopped(
    messages: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
    serving: &Tasks,
) -> Messages {
    let (stop, serving) = (serving.cancelled(), serving.clone());
    let stopped = async move { serving.is_cancelled().then(|| Err(Reason::Stopped.into())) };
    let stopped = futures::stream::once(stopped).filter_map(std::future::ready);
    Box::pin(messages.take_until(stop).chain(stopped))
}

/// The path of a call. One without would not have been routed here; a member knows no method of none.
fn path_of(request: &axum::extract::Request) -> PathAndQuery {
    let path = request.uri().path_and_query();
    path.cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"))
}

async fn unary(
    State(passing): State<Arc<Passing>>,
    request: axum::extract::Request,
) -> HttpResponse {
    let path = path_of(&request);
    let service = service_fn(|request| {
        let (passing, path) = (&passing, &path);
        async move { passing.unary(path, request).await }
    });
    let answer = passing.grpc(Unread).unary(service, request).await;
    answer.map(axum::body::Body::new)
}

async fn streaming(
    State(passing): State<Arc<Passing>>,
    request: axum::extract::Request,
) -> HttpResponse {
    let path = path_of(&request);
    let service = service_fn(|request| {
        let (passing, path) = (&passing, &path);
        async move { passing.streaming(path, request).await }
    });
    let answer = passing
        .grpc(Unread)
        .server_streaming(service, request)
        .await;
    answer.map(axum::body::Body::new)
}

/// Whether a call may be made twice.
fn effect(path: &str, request: &Bytes) -> Effect {
    let reads = READS.contains(&path)
        || (path == TXN && TxnRequest::decode(&**request).is_ok_and(|txn| is_read_only(&txn)));
    match reads {
        true => Effect::Reads,
        false => Effect::Writes,
    }
}

/// A request that may be sent more than once.
struct Sent {
    metadata: MetadataMap,
    message: Bytes,
}

impl Sent {
    fn new(request: Request<Bytes>) -> Self {
        let (mut metadata, _, message) = request.into_parts();
        for name in OF_THE_CONNECTION {
            metadata.remove(name);
        }
        Self { metadata, message }
    }

    fn copy(&self) -> Request<Bytes> {
        let mut request = Request::new(self.message.clone());
        *request.metadata_mut() = self.metadata.clone();
        request
    }
}

fn without_connection<T>(mut answer: Response<T>) -> Response<T> {
    for name in OF_THE_CONNECTION {
        answer.metadata_mut().remove(name);
    }
    answer
}

async fn client(server: &Server, lane: Lane) -> Result<tonic::client::Grpc<Channel>, Status> {
    let mut client =
        tonic::client::Grpc::new(server.channel(lane)).max_decoding_message_size(ANSWER_BYTES_MAX);
    let ready = client.ready().await;
    ready.map_err(|error| Status::from_error(Box::new(error)))?;
    Ok(client)
}

#[cfg(test)]
mod tests {
    use quorate::proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, request_op};

    use super::*;

    #[test]
    fn reads_are_known_and_transactions_are_looked_into() {
        for known in READS.into_iter().chain(WAITS).chain([TXN]) {
            assert!(methods().contains_key(known), "{known}");
        }
        let txn = |op: request_op::Request| {
            let txn = TxnRequest {
                failure: vec![RequestOp { request: Some(op) }],
                ..Default::default()
            };
            effect(TXN, &txn.encode_to_vec().into())
        };
        let read = request_op::Request::RequestRange(RangeRequest::default());
        assert_eq!(txn(read), Effect::Reads);
        let write = request_op::Request::RequestPut(PutRequest::default());
        assert_eq!(txn(write), Effect::Writes);
        assert_eq!(effect(TXN, &Bytes::from_static(b"\xff")), Effect::Writes);
        assert_eq!(
            effect("/etcdserverpb.KV/Put", &Bytes::new()),
            Effect::Writes
        );
    }
}
