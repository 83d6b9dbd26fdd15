//! Calls that want a leader: a client says so with metadata (`hasleader: true`) and then gets an error
//! rather than a wait, and streams that end, when this member knows of no leader. A layer around all
//! services, as on etcd.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use quorate_proto::Reason;
use tonic::Status;

use crate::node::Node;

/// Refuses calls that want a leader while none is known, and ends those that go on once there has been
/// none for a while.
pub(crate) async fn require(State(node): State<Node>, request: Request, next: Next) -> Response {
    if !wants_leader(request.headers()) {
        return next.run(request).await;
    }
    if node.leadership().leader.is_none() {
        let refused = Status::from(Reason::NoLeader);
        return refused.into_http::<tonic::body::Body>().map(Body::new);
    }
    let response = next.run(request).await;
    response.map(|inner| {
        Body::new(Led {
            inner,
            leaderless: Some(Box::pin(async move { node.leaderless().await })),
        })
    })
}

fn wants_leader(headers: &HeaderMap) -> bool {
    headers
        .get("hasleader")
        .is_some_and(|value| value == "true")
}

/// An answer's body, as long as there is a leader.
struct Led {
    inner: Body,
    /// None once it has ended the body.
    leaderless: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl http_body::Body for Led {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(leaderless) = &mut self.leaderless else {
            return Poll::Ready(None);
        };
        if leaderless.as_mut().poll(context).is_ready() {
            self.leaderless = None;
            let mut trailers = HeaderMap::new();
            let told = Status::from(Reason::NoLeader).add_header(&mut trailers);
            let trailers = told.map(|()| Frame::trailers(trailers));
            return Poll::Ready(Some(trailers.map_err(axum::Error::new)));
        }
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
