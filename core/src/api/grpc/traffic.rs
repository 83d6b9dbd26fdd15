//! Counts gRPC calls by service, method and outcome, and the bytes of their messages: around all
//! services, read by `/metrics`. Calls by way of the JSON gateway pass here too and count, as on
//! etcd.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Code;

use super::methods::{Method, methods};

/// The codes of gRPC, by number, as Go's library names them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// What one server has carried. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Traffic(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    methods: BTreeMap<&'static str, Counted>,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

/// The calls of one method.
#[derive(Debug)]
pub(crate) struct Counted {
    /// The method.
    pub(crate) method: &'static Method,
    started: AtomicU64,
    handled: [AtomicU64; CODES.len()],
}

impl Counted {
    /// Calls that have begun.
    pub(crate) fn started(&self) -> u64 {
        self.started.load(Relaxed)
    }

    /// Calls that have ended, by code; codes that have not occurred are left out, but for OK.
    pub(crate) fn handled(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = CODES.iter().zip(&self.handled);
        let counts = counts.map(|(code, count)| (*code, count.load(Relaxed)));
        counts.filter(|(code, count)| *count > 0 || *code == "OK")
    }
}

impl Traffic {
    /// Nothing yet, of all methods that clients can call.
    pub(crate) fn new() -> Self {
        let of_clients = |method: &Method| !method.service.starts_with("quorate.");
        let methods = methods().iter().filter(|(_, method)| of_clients(method));
        let methods = methods.map(|(path, method)| {
            let counted = Counted {
                method,
                started: AtomicU64::new(0),
                handled: Default::default(),
            };
            (path.as_str(), counted)
        });
        Self(Arc::new(Counts {
            methods: methods.collect(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }))
    }

    /// All methods, by path.
    pub(crate) fn methods(&self) -> impl Iterator<Item = &Counted> {
        self.0.methods.values()
    }

    /// Calls of a method that have begun and not ended.
    pub(crate) fn under_way(&self, path: &str) -> u64 {
        let Some(counted) = self.0.methods.get(path) else {
            return 0;
        };
        // Ended ones first: a call that ends meanwhile must not make the difference negative.
        let ended: u64 = counted
            .handled
            .iter()
            .map(|count| count.load(Relaxed))
            .sum();
        counted.started().saturating_sub(ended)
    }

    /// Counts a call. What is no method of the API is not counted: names made up by callers would
    /// make as many series.
    pub(crate) async fn count<N, F>(&self, request: Request, next: N) -> Response
    where
        N: FnOnce(Request) -> F,
        F: Future<Output = Response>,
    {
        let found = self.0.methods.get_key_value(request.uri().path());
        let Some((&path, counted)) = found else {
            return next(request).await;
        };
        counted.started.fetch_add(1, Relaxed);
        let mut call = Call {
            counts: self.0.clone(),
            path,
            outcome: None,
        };
        let counts = self.0.clone();
        let request = request.map(|inner| Body::new(Received { inner, counts }));
        let response = next(request).await;
        // A call refused before any answer has its code among the headers.
        call.outcome = code(response.headers());
        response.map(|inner| Body::new(Sent { inner, call }))
    }

    /// Bytes of messages that came from clients.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.0.received_bytes.load(Relaxed)
    }

    /// Bytes of messages that went to clients.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.0.sent_bytes.load(Relaxed)
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    let told = headers.get("grpc-status")?;
    Some(Code::from_bytes(told.as_bytes()))
}

/// One call under way; counted as handled when it goes.
#[derive(Debug)]
struct Call {
    counts: Arc<Counts>,
    path: &'static str,
    /// None as long as it may still be cancelled.
    outcome: Option<Code>,
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.outcome.unwrap_or(Code::Cancelled);
        let number = usize::try_from(i32::from(code)).unwrap_or_default();
        let counted = self.counts.methods.get(self.path);
        if let Some(handled) = counted.and_then(|counted| counted.handled.get(number)) {
            handled.fetch_add(1, Relaxed);
        }
    }
}

/// A request's body.
struct Received {
    inner: Body,
    counts: Arc<Counts>,
}

/// An answer's body.
struct Sent {
    inner: Body,
    call: Call,
}

fn data_bytes(frame: &Frame<Bytes>) -> u64 {
    let data = frame.data_ref().map_or(0, Bytes::len);
    u64::try_from(data).unwrap_or(u64::MAX)
}

type Polled = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.counts
                .received_bytes
                .fetch_add(data_bytes(frame), Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let sent = &self.call.counts.sent_bytes;
                sent.fetch_add(data_bytes(frame), Relaxed);
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.outcome = code(trailers);
                }
            }
            Poll::Ready(None) if self.call.outcome.is_none() => {
                self.call.outcome = Some(Code::Unknown);
            }
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
