//! One call through the gateway: the request read from JSON, the gRPC service called as any client
//! would call it, the answers written as JSON.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use prost::Message;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

use super::values::Values;
use super::{Gateway, error, json};

/// Headers with this prefix become metadata of the call.
const METADATA_PREFIX: &str = "grpc-metadata-";

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
    told(answers.await).await
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
        let asked = with_metadata(requests(first, values), &parts.headers);
        let mut service = gateway.service().await?;
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(method);
        Ok(service.streaming(asked, path, codec).await)
    };
    told(answers.await).await
}

/// The requests of a body. As on etcd, one that cannot be read ends them, and the call goes on with
/// those before it.
fn requests<Q: Carried + DeserializeOwned>(
    first: Option<Q>,
    values: Values,
) -> impl Stream<Item = Q> + Send + 'static {
    let no_more = first.is_none();
    let rest = futures::stream::unfold(values, |mut values| async move {
        let read = values.next().await;
        let read = read.and_then(|value| value.map(|value| json::decode::<Q>(&value)).transpose());
        match read {
            Ok(request) => request.map(|request| (request, values)),
            Err(status) => {
                tracing::debug!(%status, "a request of a stream cannot be read");
                None
            }
        }
    });
    futures::stream::iter(first).chain(rest.take_while(move |_| std::future::ready(!no_more)))
}

type Answers<A> = Result<tonic::Response<Streaming<A>>, Status>;

/// The answers of a stream, a line each. The outer error is of a request that was not sent.
async fn told<A: Carried + Serialize>(answers: Result<Answers<A>, Status>) -> Response {
    let answers = match answers {
        Ok(answers) => answers,
        Err(status) => return error::failed(&status),
    };
    // The HTTP status tells whether there was an answer at all, so the first one is waited for.
    let opened = async {
        let (metadata, mut answers, _) = answers?.into_parts();
        let first = answers.message().await?;
        Ok::<_, Status>((metadata, first, answers))
    };
    let (metadata, first, answers) = match opened.await {
        Ok(opened) => opened,
        Err(status) => return error::failed_stream(&status),
    };
    let first = futures::stream::iter(first.map(Ok));
    let lines = first.chain(answers).map(|answer| {
        let line = answer.and_then(|answer| json::line(&answer));
        let line = line.unwrap_or_else(|status| error::last_line(&status));
        Ok::<_, Infallible>(Bytes::from(line))
    });
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
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| Status::unknown(error.to_string()))?;
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

/// The request with what the HTTP headers say to the service: `Authorization`, and whatever comes
/// with the prefix `Grpc-Metadata-`.
fn with_metadata<T>(request: T, headers: &HeaderMap) -> tonic::Request<T> {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let name = match name.as_str().strip_prefix(METADATA_PREFIX) {
            Some(rest) if !is_reserved(rest) => rest.parse().ok(),
            Some(_) => None,
            None => (name == header::AUTHORIZATION).then(|| name.clone()),
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
