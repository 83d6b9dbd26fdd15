//! One call through the gateway: the request read from JSON, the gRPC service called as any client
//! would call it, the answers written as JSON.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use super::values::{Values, cut_off};
use super::{Gateway, error, json};
use crate::api::grpc;

/// Headers with this prefix become metadata of the call.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// How long the next piece of a call's only request may take.
const PIECE_WAIT_MAX: Duration = Duration::from_secs(60);

/// What a message of the API can do here.
pub trait Carried: Message + Default + Send + Sync + 'static {}
impl<T: Message + Default + Send + Sync + 'static> Carried for T {}

/// One request, one answer.
pub(super) async fn unary<Q, A>(
    gateway: Gateway,
    method: &'static str,
    request: Request,
) -> Response
where
    Q: Carried + DeserializeOwned,
    A: Carried + Serialize,
{
    let answer = async {
        let asked = gateway.asked::<Q>(request).await?;
        let mut service = gateway.service().await?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(method);
        let answer = service.unary(asked, path, codec).await?;
        Ok((answer.metadata().clone(), json::encode(answer.get_ref())?))
    };
    match answer.await {
        Ok((metadata, body)) => (headers(&metadata), body).into_response(),
        Err(status) => error::failed(&status),
    }
}

/// One request, any number of answers.
pub(super) async fn server_streaming<Q, A>(
    gateway: Gateway,
    method: &'static str,
    request: Request,
) -> Response
where
    Q: Carried + DeserializeOwned,
    A: Carried + Serialize,
{
    let answers = async {
        let asked = gateway.asked::<Q>(request).await?;
        let mut service = gateway.service().await?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(method);
        Ok(service.server_streaming(asked, path, codec).await)
    };
    told(answers.await, std::future::pending()).await
}

/// Any number of requests, any number of answers.
pub(super) async fn streaming<Q, A>(
    gateway: Gateway,
    method: &'static str,
    request: Request,
) -> Response
where
    Q: Carried + DeserializeOwned,
    A: Carried + Serialize,
{
    let (leave, left) = oneshot::channel();
    let answers = async {
        let (parts, body) = request.into_parts();
        let mut values = Values::new(body.into_data_stream(), gateway.limit);
        // etcd reads the first request before it calls, and tells its failure with the code Unknown.
        let first = match values.next().await? {
            Some(value) => {
                Some(json::decode(&value).map_err(|status| Status::unknown(status.message()))?)
            }
            None => None,
        };
        let asked = with_metadata(requests(first, values, leave), &parts.headers);
        let mut service = gateway.service().await?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(method);
        Ok(service.streaming(asked, path, codec).await)
    };
    told(answers.await, broken(left)).await
}

/// How the requests of a body ended, if not with the body.
enum Left {
    /// The connection broke, or what came was too large.
    Broken(Status),
    /// One could not be read, and none after it will be.
    Unread(Values),
}

/// The requests of a body. As on etcd, one that cannot be read ends them, and the call goes on with
/// those before it.
fn requests<Q: Carried + DeserializeOwned>(
    first: Option<Q>,
    values: Values,
    leave: oneshot::Sender<Left>,
) -> impl Stream<Item = Q> + Send + 'static {
    let no_more = first.is_none();
    let rest = futures::stream::unfold((values, leave), |(mut values, leave)| async move {
        let left = match values.next().await {
            Ok(Some(value)) => match json::decode::<Q>(&value) {
                Ok(request) => return Some((request, (values, leave))),
                Err(status) => {
                    tracing::debug!(%status, "a request of a stream cannot be read");
                    Left::Unread(values)
                }
            },
            Ok(None) => return None,
            Err(status) => Left::Broken(status),
        };
        // Nobody to tell: the call is over.
        let _ = leave.send(left);
        None
    });
    futures::stream::iter(first).chain(rest.take_while(move |_| std::future::ready(!no_more)))
}

/// Completes when nobody waits for answers any more. While a body is not read, nothing else tells that
/// its client has gone; once it was read to its end, the HTTP server does.
async fn broken(left: oneshot::Receiver<Left>) -> Status {
    let status = match left.await {
        Ok(Left::Broken(status)) => Some(status),
        Ok(Left::Unread(mut values)) => values.skip_all().await.err(),
        Err(_) => None,
    };
    match status {
        Some(status) => status,
        None => std::future::pending().await,
    }
}

type Answers<A> = Result<tonic::Response<Streaming<A>>, Status>;

/// The answers of a stream, a line each, until `broken` says that they are over. The outer error is of
/// a request that was not sent.
async fn told<A: Carried + Serialize>(
    answers: Result<Answers<A>, Status>,
    broken: impl Future<Output = Status> + Send + 'static,
) -> Response {
    let answers = match answers {
        Ok(answers) => answers,
        Err(status) => return error::failed(&status),
    };
    let mut broken = Box::pin(broken);
    // The HTTP status tells whether there was an answer at all, so the first one is waited for.
    let opened = async {
        let (metadata, mut answers, _) = answers?.into_parts();
        let first = tokio::select! {
            first = answers.message() => first?,
            status = &mut broken => return Err(status),
        };
        Ok::<_, Status>((metadata, first, answers))
    };
    let (metadata, first, answers) = match opened.await {
        Ok(opened) => opened,
        Err(status) => return error::failed_stream(&status),
    };
    let answers = futures::stream::iter(first.map(Ok)).chain(answers);
    let lines = futures::stream::unfold(Some((answers, broken)), |open| async move {
        let (mut answers, mut broken) = open?;
        let answer = tokio::select! {
            answer = answers.next() => answer?,
            status = &mut broken => Err(status),
        };
        match answer.and_then(|answer| json::line(&answer)) {
            Ok(line) => Some((line, Some((answers, broken)))),
            Err(status) => Some((error::last_line(&status), None)),
        }
    });
    let lines = lines.map(|line| Ok::<_, Infallible>(Bytes::from(line)));
    (headers(&metadata), Body::from_stream(lines)).into_response()
}

impl Gateway {
    /// What a call with one request asks.
    async fn asked<Q: Carried + DeserializeOwned>(
        &self,
        request: Request,
    ) -> Result<tonic::Request<Q>, Status> {
        let (parts, body) = request.into_parts();
        let body = self.read(body).await?;
        Ok(with_metadata(json::decode(&body)?, &parts.headers))
    }

    /// The whole body.
    async fn read(&self, body: Body) -> Result<Bytes, Status> {
        let mut body = body.into_data_stream();
        let mut read = BytesMut::new();
        loop {
            let piece = tokio::time::timeout(PIECE_WAIT_MAX, body.next()).await;
            let piece = piece.map_err(|_| Status::deadline_exceeded("the request is not complete"));
            let Some(piece) = piece? else { break };
            let piece = piece.map_err(|error| cut_off(&error))?;
            self.limit.check(read.len() + piece.len())?;
            read.extend_from_slice(&piece);
        }
        Ok(read.freeze())
    }

    /// The services as a client sees them.
    async fn service(&self) -> Result<Grpc<axum::Router>, Status> {
        // The size of answers is the services' affair.
        let mut service = Grpc::new(self.services.clone()).max_decoding_message_size(usize::MAX);
        match service.ready().await {
            Ok(()) => Ok(service),
            Err(never) => match never {},
        }
    }
}

/// The request with what the HTTP headers say to the service: `Authorization`, `Grpc-Timeout`, and
/// whatever comes with the prefix `Grpc-Metadata-`.
fn with_metadata<T>(request: T, headers: &HeaderMap) -> tonic::Request<T> {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let is_kept = name == header::AUTHORIZATION || name == grpc::TIMEOUT;
        let name = match name.as_str().strip_prefix(METADATA_PREFIX) {
            Some(rest) if !is_reserved(rest) => rest.parse().ok(),
            Some(_) => None,
            None => is_kept.then(|| name.clone()),
        };
        if let Some(name) = name {
            kept.append(name, value.clone());
        }
    }
    let metadata = MetadataMap::from_headers(kept);
    tonic::Request::from_parts(metadata, Default::default(), request)
}

/// Whether the name is of gRPC or HTTP itself, or its value would have to be decoded.
fn is_reserved(name: &str) -> bool {
    name.starts_with("grpc-")
        || name.ends_with("-bin")
        || ["content-type", "te", "user-agent", "connection", "host"].contains(&name)
        || ["content-length", "transfer-encoding", "upgrade"].contains(&name)
}

/// The headers of an answer: its kind, and the service's own with a prefix.
fn headers(metadata: &MetadataMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for entry in metadata.iter() {
        let KeyAndValueRef::Ascii(name, value) = entry else {
            continue;
        };
        // Of the call itself: told by the body and its HTTP status.
        if name.as_str().starts_with("grpc-") {
            continue;
        }
        let name = format!("{METADATA_PREFIX}{name}").parse();
        let value = value.as_encoded_bytes().try_into();
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append::<header::HeaderName>(name, value);
        }
    }
    let json = header::HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    headers
}
